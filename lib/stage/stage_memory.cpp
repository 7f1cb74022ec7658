#include "stage/stage_memory.hpp"

#include "core/device.hpp"
#include "core/device_turn.hpp"
#include "core/progress.hpp"
#include "io/image/png.hpp"
#include "stage/picture_sizes.hpp"

namespace atelier::stage {

ModelOutline StageMemory::add_model(const Context& c, pipeline::Pipeline& model,
                                    const PromptSource& prompts, bool with_negative,
                                    std::int64_t decoded) {
    ModelOutline outline;
    outline.dit = &model.dit();
    outline.schedule = model.schedule_config();
    GroupOutlines groups;
    for (std::size_t i = 0; i < prompts.size; ++i) {
        const Prompt prompt = prompts.at(i);
        std::vector<model::PictureSize> pictures;  // as their files say: many prompts' pictures are not decoded for a plan
        for (const auto& path : prompt.images) {
            const auto [width, height] = io::read_png_size(path);
            pictures.push_back({width, height});
        }
        const auto references = model.outline(pictures, c.config.integer("sampling.output_resolution"));
        const model::PictureSize size = picture_size(c, prompt);
        GroupOutline group;
        group.target = target_grid(size);
        group.prompt.conditional = model.reserve(prompt.text, references);
        if (with_negative)
            group.prompt.unconditional = model.reserve(c.negative(prompt.task), references);
        groups.cover(group);
        if (decoded > 0) model.codec().reserve({size.height, size.width, decoded});
    }
    outline.groups = groups.all();
    outline.parameters = model.weight_bytes() - model.frozen_bytes();
    outline.frozen = model.frozen_bytes();
    outline.text_encoder = model.encoder_bytes();
    outline.autoencoder = model.codec().bytes();
    hold_model(plan, outline, decoded);
    return outline;
}

void StageMemory::say(const Context& c, const std::string& whose) const {
    if (c.world->is_root()) log_line(whose + "memory planned, " + plan.str());
}

void StageMemory::compare(const Context& c, const std::string& whose) const {
    if (!c.world->is_root()) return;
    const auto peak = static_cast<double>(peak_resident_bytes());
    log_line(fmt::format("{}memory: the peak was {:.1f} MiB, {:.0f} % of the plan", whose,
                         peak / (1 << 20), 100 * peak / static_cast<double>(plan.total().host)));
    if (plan.total().device == 0) return;
    const DeviceTurn turn(Device::cuda);  // a judge may be at work there
    const auto mib = [](std::size_t bytes) { return static_cast<double>(bytes) / (1 << 20); };
    // Scratch memory and libraries' workspaces are in the peak, and among what libraries are planned to take: none in emulation.
    const std::size_t taken = device_memory().peak_bytes(), planned = plan.without_libraries();
    log_line(fmt::format("{}device memory: the peak was {:.1f} MiB, {:.0f} % of the plan without libraries, {:.0f} % with them", whose, mib(taken),
                         100 * mib(taken) / mib(planned), 100 * mib(taken) / mib(plan.total().device)));
}

void StageMemory::finish(const Context& c, io::Manifest& manifest) const {
    manifest.planned_bytes = plan.total().host;
    if (plan.total().device > 0) {
        const DeviceTurn turn(Device::cuda);
        manifest.facts["device_memory"] = {{"planned", plan.total().device}, {"without_libraries", plan.without_libraries()},
                                           {"peak", device_memory().peak_bytes()}};
    }
    compare(c);
}

PromptSource my_prompts(const Context& c, const PromptSource& prompts) {
    std::vector<std::size_t> mine;
    for (std::size_t i = 0; i < prompts.size; ++i)
        if (c.is_mine(i)) mine.push_back(i);
    const std::size_t count = mine.size();
    return {count, [at = prompts.at, mine = std::move(mine)](std::size_t i) { return at(mine[i]); }};
}

}  // namespace atelier::stage
