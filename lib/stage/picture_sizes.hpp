#pragma once

#include <vector>

#include "flow/schedule.hpp"
#include "model/dit/dit.hpp"
#include "model/processor/sizes.hpp"
#include "stage/context.hpp"

namespace atelier::stage {

/// The sizes that a prompt's pictures may have: the one that its line names; else task.<name>.sizes; else for a prompt with pictures the
/// last one's ratio at sampling.output_resolution squared, as QwenImage21Pipeline chooses; else sampling.height x sampling.width.
std::vector<model::PictureSize> possible_sizes(const Context& context, const Prompt& prompt);

/// The one of these that the prompt's group has in this iteration: drawn by (seed, iteration, prompt), so that all members and all ranks
/// have the same.
model::PictureSize picture_size(const Context& context, const Prompt& prompt);
/// The same in latent tokens.
dit::Grid target_grid(const Context& context, const Prompt& prompt);
dit::Grid target_grid(model::PictureSize size);

/// Sizes that a configuration can ask for, without prompt files and pictures: the lists of its tasks, sampling.height x width, and
/// the square of sampling.output_resolution for edits. Throws Error(usage) for sides that are no multiples of side_multiple.
std::vector<model::PictureSize> configured_sizes(const config::Config& config, const std::string& task);

/// The order in which prompts of one size stand together, the largest first, else as they were: ranks that work side by side have the
/// same amount to do. A function of the prompts alone. Collective.
std::vector<std::uint64_t> order_by_size(const Context& context, const PromptSource& prompts);
void put_sizes_together(const Context& context, std::vector<Prompt>& prompts);

/// The same sampling of pictures of another size: the schedule's shift follows the size, the trained steps stay.
template <typename Spec>
Spec on_grid(Spec spec, const flow::ScheduleConfig& schedule, dit::Grid target) {
    spec.schedule = flow::make_schedule(schedule, spec.schedule.steps(), target.tokens());
    spec.target = target;
    return spec;
}

}  // namespace atelier::stage
