#include "reward/scorer.hpp"

#include <chrono>
#include <thread>

#include "core/error.hpp"
#include "core/json.hpp"
#include "core/philox.hpp"
#include "model/processor/resize.hpp"
#include "world/measure.hpp"

namespace atelier::reward {
namespace {

/// A picture of another size as the world's square: things keep their place relative to its sides.
std::vector<std::uint8_t> to_world(const Request& request) {
    io::Image picture(static_cast<int>(request.width), static_cast<int>(request.height), 4);
    ATELIER_CHECK_INPUT(picture.pixels.size() == request.picture.size(),
                        "a picture of {} x {} with {} bytes", request.height, request.width,
                        request.picture.size());
    picture.pixels = request.picture;
    return model::resize(picture, world::side, world::side, model::ResizeFilter::bicubic,
                         model::PassOrder::pillow_13)
        .pixels;
}

class WorldScorer final : public Scorer {
  public:
    const std::vector<std::string>& dimensions(const std::string& kind) const override {
        static const std::vector<std::string> t2i{"alignment", "aesthetics", "portrait"},
            edit{"instruction", "identity"};
        ATELIER_CHECK_USAGE(kind == "t2i" || kind == "edit",
                            "a task's kind must be t2i or edit, found {}", kind);
        return kind == "t2i" ? t2i : edit;
    }
    Verdicts score(const Request& request, int) const override {
        Verdicts verdicts;
        const bool fits = request.height == world::side && request.width == world::side;
        const auto scaled = fits ? std::vector<std::uint8_t>() : to_world(request);
        for (auto& [name, m] : world::measure(parse_json(request.attributes, "attributes of the prompt"),
                                              fits ? world::Picture(request.picture) : scaled))
            verdicts[name] = {m.present, m.score, std::move(m.reason)};
        return verdicts;
    }
};

class FaultyScorer final : public Scorer {
  public:
    FaultyScorer(std::unique_ptr<Scorer> inner, const Faults& faults)
        : inner_(std::move(inner)), faults_(faults) {}
    const std::vector<std::string>& dimensions(const std::string& kind) const override {
        return inner_->dimensions(kind);
    }
    Verdicts score(const Request& request, int attempt) const override {
        if (faults_.delay_seconds > 0)
            std::this_thread::sleep_for(std::chrono::duration<double>(faults_.delay_seconds));
        Random random(random_key(faults_.seed, RandomUse::test, request.sample_id,
                                 static_cast<std::uint64_t>(attempt)));
        ATELIER_CHECK_KIND(ErrorKind::reward, random.uniform() >= faults_.failure_share,
                           "attempt {} at sample {} fails by reward.test_failures", attempt,
                           request.sample_id);
        return inner_->score(request, attempt);
    }
    Bytes bytes(std::size_t workers, std::size_t picture_bytes) const override {
        return inner_->bytes(workers, picture_bytes);
    }
    void interrupt() const noexcept override { inner_->interrupt(); }

  private:
    std::unique_ptr<Scorer> inner_;
    Faults faults_;
};

}  // namespace

std::unique_ptr<Scorer> make_world_scorer() { return std::make_unique<WorldScorer>(); }

void check_world_attributes(const std::string& attributes) {
    const nlohmann::json json = parse_json(attributes, "attributes of the prompt");
    if (json.is_object() && json.contains("edit")) world::edit_from_json(json);
    else world::scene_from_json(json);
}

std::unique_ptr<Scorer> make_faulty_scorer(std::unique_ptr<Scorer> inner, const Faults& faults) {
    return std::make_unique<FaultyScorer>(std::move(inner), faults);
}

}  // namespace atelier::reward
