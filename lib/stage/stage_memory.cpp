#include "stage/stage_memory.hpp"

#include "core/progress.hpp"
#include "io/image/png.hpp"

namespace atelier::stage {

std::vector<EncodedPair> StageMemory::add_model(const Context& c, pipeline::Pipeline& model,
                                                const std::vector<const Prompt*>& prompts,
                                                bool with_negative, std::int64_t decoded) {
    std::vector<EncodedPair> outlines;
    for (const Prompt* prompt : prompts) {
        const auto references = prepare_references(model, c, *prompt);
        EncodedPair pair;
        pair.conditional = model.reserve(prompt->text, references);
        if (with_negative)
            pair.unconditional = model.reserve(c.negative(prompt->task), references);
        outlines.push_back(std::move(pair));
    }
    const std::int64_t height = c.config.integer("sampling.height"),
                       width = c.config.integer("sampling.width");
    if (decoded > 0) model.codec().reserve_decoding(height, width);
    plan.hold("weights", model.weight_bytes());
    plan.hold("text encoder", model.encoder_bytes());
    plan.hold("autoencoder", model.codec().bytes());
    plan.hold("decoded pictures", static_cast<std::size_t>(decoded * height * width) * 4 * sizeof(float));
    return outlines;
}

void StageMemory::say(const Context& c, const std::string& whose) const {
    if (c.world->is_root()) log_line(whose + "memory planned, " + plan.str());
}

void StageMemory::compare(const Context& c, const std::string& whose) const {
    if (!c.world->is_root()) return;
    const auto peak = static_cast<double>(peak_resident_bytes());
    log_line(fmt::format("{}memory: the peak was {:.1f} MiB, {:.0f} % of the plan", whose,
                         peak / (1 << 20), 100 * peak / static_cast<double>(plan.total())));
}

void StageMemory::finish(const Context& c, io::Manifest& manifest) const {
    manifest.planned_bytes = plan.total();
    compare(c);
}

std::vector<const Prompt*> my_prompts(const Context& c, const std::vector<Prompt>& prompts) {
    std::vector<const Prompt*> mine;
    for (std::size_t i = 0; i < prompts.size(); ++i)
        if (c.is_mine(i)) mine.push_back(&prompts[i]);
    return mine;
}

std::size_t picture_bytes(dit::Grid target) {
    return static_cast<std::size_t>(target.tokens() * model::pixels_per_latent *
                                    model::pixels_per_latent * 4);
}

std::size_t asked_picture_bytes(const config::Config& config) {
    return static_cast<std::size_t>(config.integer("sampling.height") *
                                    config.integer("sampling.width") * 4);
}

std::size_t sample_bytes(dit::Grid target, std::int64_t channels, std::int64_t steps,
                         std::int64_t velocities) {
    return static_cast<std::size_t>(target.tokens() * channels * (2 * steps + velocities + 1)) *
               sizeof(float) +
           picture_bytes(target);
}

}  // namespace atelier::stage
