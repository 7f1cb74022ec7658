#pragma once

#include <memory>
#include <string>
#include <vector>

#include "identity/face_embedder.hpp"
#include "reward/scorer.hpp"

namespace atelier::identity {

/// Scores by cosine: points (cosine, score), linear between them, level outside.
class ScoreTable {
  public:
    /// Entries "cosine=score", cosines rising within [-1, 1], scores never falling within [1, 5], at least two. Throws Error(usage) naming
    /// `key`.
    ScoreTable(const std::vector<std::string>& entries, const std::string& key);
    double score(double cosine) const;

  private:
    std::vector<std::pair<double, double>> points_;
};

/// Whether the result still shows the person of the sources: the largest face of the sources beside the face of the result that is most
/// like it. No face in the sources: absent. No face in the result: score 1, "the face was lost".
reward::Verdict identity_verdict(const std::vector<Face>& sources, const std::vector<Face>& result, const ScoreTable& table);

/// `inner`, with the dimension `identity` of edits scored by face embeddings in place of inner's own, where it has one.
std::unique_ptr<reward::Scorer> make_identity_scorer(std::unique_ptr<reward::Scorer> inner, std::unique_ptr<FaceEmbedder> embedder,
                                                     ScoreTable table);

inline constexpr const char* identity_dimension = "identity";

}  // namespace atelier::identity
