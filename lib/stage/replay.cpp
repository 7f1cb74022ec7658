#include <bit>
#include <cstdint>
#include <ostream>

#include "io/trajectory.hpp"
#include "stage/context.hpp"
#include "stage/group_rollout.hpp"
#include "stage/inspect.hpp"
#include "stage/picture_sizes.hpp"
#include "stage/schema.hpp"

namespace atelier::stage {
namespace {

namespace fs = std::filesystem;

RunDirectory run_above(const fs::path& path) {
    for (fs::path at = fs::absolute(path).lexically_normal(); at.has_relative_path();
         at = at.parent_path())
        if (fs::exists(at / "config.toml")) return {at};
    ATELIER_FAIL(
        ErrorKind::input,
        "no directory above {} holds a config.toml: replay needs the run that made the shards",
        path.string());
}

}  // namespace

std::int64_t replay(const fs::path& path, std::ostream& out) {
    const auto files = shards_at(path);
    const RunDirectory run = run_above(path);
    const auto first = io::read_trajectory(files[0], {}, io::TrajectoryParts::scores);
    ATELIER_CHECK_INPUT(first.header.stage == "rollout",
                        "{} is of stage {}: only rollouts are replayed", files[0].string(),
                        first.header.stage);
    const auto world = comm::make_self();
    const Context c{run, config::Config::resolve(run.config(), {}, schema()), world.get(),
                    first.header.task, first.header.iteration};
    const auto policy = c.starting_policy(reads_weights);
    ATELIER_CHECK_INPUT(weights_hash(*world, policy) == first.header.model_hash,
                        "{} is not the policy that sampled {}", policy.string(), files[0].string());
    pipeline::Pipeline model(c.model(), policy, c.placement());
    prepare_adapter(c, model);
    const rl::SamplingSpec sampling = c.sampling(model);
    const PromptIndex prompts(c, c.tasks());
    Workspace workspace("group");
    std::int64_t checked = 0, different = 0;
    double largest = 0;
    for (const fs::path& file : files) {
        const auto shard =
            io::read_trajectory(file, c.config.hash(), io::TrajectoryParts::training);
        const io::TrajectorySamples& s = shard.shapes.at(0);
        ATELIER_CHECK_INPUT(s.trained > 0, "{} holds no states (storage.keep)", file.string());
        const rl::SamplingSpec spec = on_grid(sampling, model.schedule_config(), {s.height, s.width});
        const Prompt& prompt = prompts.at(shard.prompts.task[0], shard.prompts.id[0], file);
        require_same_prompt(c, prompt, shard.prompts, file);
        const EncodedPair pair = encode_pair(model, c, prompt, spec.trains_both_branches());
        rl::GroupPolicy group = workspace.build([&](Arena& arena) {
            return rl::GroupPolicy(model.dit(), model.dit_weights(), pair.conditional,
                                   spec.trains_both_branches() ? &pair.unconditional : nullptr, spec,
                                   dit::Keep::nothing, arena);
        });
        rl::GroupTrajectory trajectory;
        trajectory.x = s.x;
        trajectory.x_next = s.x_next;
        trajectory.log_prob = s.log_prob;
        const auto again = group.replay(trajectory);
        for (std::size_t i = 0; i < again.size(); ++i) {
            ++checked;
            different += std::bit_cast<std::uint32_t>(again[i]) != std::bit_cast<std::uint32_t>(s.log_prob[i]) ? 1 : 0;
            largest = std::max(largest, std::abs(static_cast<double>(again[i]) - s.log_prob[i]));
        }
    }
    out << fmt::format("{} log-probabilities replayed, {} differ, largest difference {:.3g}\n",
                       checked, different, largest);
    return different;
}

}  // namespace atelier::stage
