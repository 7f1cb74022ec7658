#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "io/image/image.hpp"

namespace atelier::judge {

/// A picture that labels show: its size at once, its pixels when they are asked for.
class LabelledPicture {
  public:
    /// One that is kept.
    explicit LabelledPicture(io::Image picture);
    /// One that `read` gets from its file each time: labels of any number take no memory for pixels.
    LabelledPicture(const io::Image& size, std::function<io::Image()> read);
    /// Throws Error(input) where the file is gone or holds a picture of another size by now.
    io::Image load() const { return read_(); }
    int height() const { return height_; }
    int width() const { return width_; }
    int channels() const { return channels_; }
    std::size_t bytes() const;  ///< of the pixels
    bool is_kept() const { return is_kept_; }

  private:
    int height_, width_, channels_;
    bool is_kept_;
    std::function<io::Image()> read_;
};

/// One of a PNG file. Throws Error(input) where it is none.
std::shared_ptr<const LabelledPicture> picture_of_png(const std::filesystem::path& file);

/// One dimension of one picture, scored by people.
struct LabelledSample {
    std::string id;  ///< of the picture; several dimensions of it share it
    std::string kind, dimension, category, prompt;
    std::string rationale;  ///< why, in words; empty: none written
    std::shared_ptr<const LabelledPicture> picture;
    std::vector<std::shared_ptr<const LabelledPicture>> sources;  ///< the prompt's pictures
    std::vector<std::pair<std::string, double>> scores;           ///< annotator, score in [1, 5]; NaN: "it does not apply"
    /// Whether more than half of the annotators say that the dimension applies.
    bool applies() const;
    /// Of those who gave one, in order.
    std::vector<double> given_scores() const;
    /// Their mean; NaN where there is none.
    double mean_score() const;
};

/// Reads labels: JSON lines
///
///     {"id": "…", "kind": "t2i", "dimension": "alignment", "category": "general", "prompt": "…",
///      "picture": "p/1.png", "sources": ["s/1.png"], "scores": {"anna": 4.5}, "rationale": "…"}
///
/// (pictures relative to the file; `sources` and `rationale` may be left out; a score of null: the
/// dimension does not apply), or an HDF5 file as write_labels makes it, told by its first bytes. Every picture is decoded once, to be
/// checked, and read again when it is asked for. Throws Error(input) naming file, line or dataset: a missing or
/// wrong field, a score outside [1, 5], no score at all, a dimension of a picture that stands twice,
/// a picture outside the file's directory.
std::vector<LabelledSample> read_labels(const std::filesystem::path& file);
/// Those of several files, in their order; what one file must not hold twice, they must not together.
std::vector<LabelledSample> read_labels(std::span<const std::string> files);

/// Throws Error(input) naming `place` and the sample's number where one of them is none that read_labels takes.
void check_labels(const std::vector<LabelledSample>& samples, const std::filesystem::path& place);

/// HDF5: / attributes schema = "atelier.labels", schema_version; /samples/{id, kind, dimension,
/// category, prompt, rationale} strings [S], /samples/picture u32 [S]; /sources/{sample, picture}
/// u32 [K]; /scores/{sample u32, annotator (string), score f64, NaN: does not apply} [L]; /pictures/<i> u8 [H, W, 3 or
/// 4]. Throws Error(io).
void write_labels(const std::filesystem::path& file, const std::vector<LabelledSample>& samples);

}  // namespace atelier::judge
