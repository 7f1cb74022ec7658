#pragma once

#include <filesystem>
#include <iosfwd>
#include <vector>

#include "judge/labels.hpp"

namespace atelier::stage {

/// Writes a sheet for people to label: DIRECTORY/index.html (pictures with prompt, the judge's reasons
/// and scores), DIRECTORY/labels.csv (one row a picture and dimension: id, kind, dimension, category,
/// prompt, picture, sources, judge_score, judge_reason; to be filled in: annotator, score, rationale)
/// and DIRECTORY/pictures/. `path`: a shard, or a directory of shards. Returns how many pictures there
/// are.
int write_label_sheet(const std::filesystem::path& path, const std::filesystem::path& directory);

/// Reads filled-in sheets back, one or several people's, into a label file (HDF5) that reward-train
/// takes, and says how many labels there are of whom, and how far the annotators agree
/// (Krippendorff's alpha). Rows without score are left out, "none" says that the dimension does not apply; pictures are looked for beside each
/// sheet. Where several wrote a rationale the first one's is kept. Throws Error(input) naming file
/// and row: a column that is missing, a score that is no number in [1, 5], a score without
/// annotator, an annotator who scores something twice, an id that has another prompt, picture or
/// source elsewhere.
void read_label_sheets(const std::vector<std::filesystem::path>& sheets,
                       const std::filesystem::path& labels, std::ostream& out);

/// Says how many labels there are of whom, of what, and how far the annotators agree. `file`: where the samples are from.
void describe_labels(const std::vector<judge::LabelledSample>& samples, const std::filesystem::path& file, std::ostream& out);

}  // namespace atelier::stage
