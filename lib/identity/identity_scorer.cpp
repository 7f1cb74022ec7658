#include "identity/identity_scorer.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <mutex>

#include "core/error.hpp"

namespace atelier::identity {
namespace {

bool read_number(std::string_view text, double& value) {
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    return error == std::errc{} && end == text.data() + text.size();
}

class IdentityScorer final : public reward::Scorer {
  public:
    IdentityScorer(std::unique_ptr<reward::Scorer> inner, std::unique_ptr<FaceEmbedder> embedder, ScoreTable table)
        : inner_(std::move(inner)), embedder_(std::move(embedder)), table_(std::move(table)) {}

    const std::vector<std::string>& dimensions(const std::string& kind) const override {
        const auto& inner = inner_->dimensions(kind);
        if (kind != "edit" || std::find(inner.begin(), inner.end(), identity_dimension) != inner.end()) return inner;
        std::call_once(once_, [&] {
            extended_ = inner;
            extended_.push_back(identity_dimension);
        });
        return extended_;
    }

    reward::Verdicts score(const reward::Request& r, int attempt) const override {
        reward::Verdicts verdicts = inner_->score(r, attempt);
        if (r.kind != "edit") return verdicts;
        std::vector<Face> sources;
        if (r.sources)
            for (const io::Image& source : *r.sources)
                for (Face& face : embedder_->faces(source)) sources.push_back(std::move(face));
        std::vector<Face> result;
        if (!sources.empty()) {
            io::Image picture(static_cast<int>(r.width), static_cast<int>(r.height), 4);
            picture.pixels = r.picture;
            result = embedder_->faces(picture);
        }
        verdicts[identity_dimension] = identity_verdict(sources, result, table_);
        return verdicts;
    }

    bool retries_itself() const override { return inner_->retries_itself(); }
    Bytes bytes(std::size_t workers, std::size_t picture_bytes) const override {
        return inner_->bytes(workers, picture_bytes) + embedder_->bytes(workers) + workers * picture_bytes;
    }
    void interrupt() const noexcept override { inner_->interrupt(); }

  private:
    std::unique_ptr<reward::Scorer> inner_;
    std::unique_ptr<FaceEmbedder> embedder_;
    ScoreTable table_;
    mutable std::once_flag once_;
    mutable std::vector<std::string> extended_;
};

}  // namespace

ScoreTable::ScoreTable(const std::vector<std::string>& entries, const std::string& key) {
    for (const std::string& entry : entries) {
        const auto equals = entry.find('=');
        double cosine = 0, score = 0;
        ATELIER_CHECK_USAGE(equals != std::string::npos && read_number(std::string_view(entry).substr(0, equals), cosine) &&
                                read_number(std::string_view(entry).substr(equals + 1), score) && cosine >= -1 && cosine <= 1 && score >= 1 && score <= 5,
                            "{}: \"{}\" is not cosine=score, a cosine within -1 and 1, a score within 1 and 5", key, entry);
        ATELIER_CHECK_USAGE(points_.empty() || (cosine > points_.back().first && score >= points_.back().second),
                            "{}: \"{}\" must follow a smaller cosine and no larger score", key, entry);
        points_.emplace_back(cosine, score);
    }
    ATELIER_CHECK_USAGE(points_.size() >= 2, "{} needs at least two entries \"cosine=score\", found {}", key, points_.size());
}

double ScoreTable::score(double cosine) const {
    const auto above = std::find_if(points_.begin(), points_.end(), [&](const auto& p) { return p.first > cosine; });
    if (above == points_.begin()) return points_.front().second;
    if (above == points_.end()) return points_.back().second;
    const auto& [x0, y0] = *std::prev(above);
    const auto& [x1, y1] = *above;
    return y0 + (y1 - y0) * (cosine - x0) / (x1 - x0);
}

reward::Verdict identity_verdict(const std::vector<Face>& sources, const std::vector<Face>& result, const ScoreTable& table) {
    if (sources.empty()) return {false, 1, "no face in the source"};
    if (result.empty()) return {true, 1, "the face was lost"};
    const Face& subject = *std::max_element(sources.begin(), sources.end(), [](const Face& a, const Face& b) { return a.area < b.area; });
    double best = -1;
    for (const Face& face : result) {
        ATELIER_CHECK(face.embedding.size() == subject.embedding.size(), "embeddings of {} and {} numbers", subject.embedding.size(),
                      face.embedding.size());
        double cosine = 0;
        for (std::size_t i = 0; i < face.embedding.size(); ++i) cosine += static_cast<double>(face.embedding[i]) * subject.embedding[i];
        best = std::max(best, cosine);
    }
    return {true, table.score(best), fmt::format("the faces' embeddings have cosine {:.3f}", best)};
}

std::unique_ptr<reward::Scorer> make_identity_scorer(std::unique_ptr<reward::Scorer> inner, std::unique_ptr<FaceEmbedder> embedder, ScoreTable table) {
    return std::make_unique<IdentityScorer>(std::move(inner), std::move(embedder), std::move(table));
}

}  // namespace atelier::identity
