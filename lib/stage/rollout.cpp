#include "stage/rollout.hpp"

#include "stage/group_rollout.hpp"
#include "stage/picture_sizes.hpp"
#include "stage/run_model.hpp"
#include "stage/scorers.hpp"

namespace atelier::stage {

std::vector<std::size_t> prompts_of_tasks(const Context& c) {
    const std::size_t tasks = c.tasks().size(), wanted = static_cast<std::size_t>(c.config.integer("rollout.prompts_per_iteration"));
    ATELIER_CHECK_USAGE(wanted >= tasks, "rollout.prompts_per_iteration = {} for {} tasks", wanted, tasks);
    std::vector<std::size_t> counts;
    for (std::size_t t = 0; t < tasks; ++t) counts.push_back(wanted / tasks + (t < wanted % tasks ? 1 : 0));
    return counts;
}

std::vector<Prompt> draw_iteration(const Context& c) {
    const auto tasks = c.tasks();
    const auto counts = prompts_of_tasks(c);
    std::vector<Prompt> drawn;
    for (std::size_t t = 0; t < tasks.size(); ++t) {
        const auto pool = training_prompts(c, tasks[t]);
        const std::size_t count = counts[t];
        ATELIER_CHECK_INPUT(count <= pool.size(),
                            "rollout.prompts_per_iteration asks for {} prompts of task {}, and {} are in its pool{}: a new run is needed, with fewer an "
                            "iteration, {}a larger pool", count, tasks[t], pool.size(), c.config.flag("curate.enabled") ? " after curation" : "",
                            c.config.flag("curate.enabled") ? "a lower curate.range_min or " : "or ");
        for (const std::size_t i :
             draw_prompts(pool.size(), count, c.seed(), task_number(c.policy) ^ t,
                          static_cast<std::uint64_t>(c.iteration)))
            drawn.push_back(pool.at(i));
    }
    put_sizes_together(c, drawn);
    return drawn;
}

int run_rollout(const Context& c) {
    const auto directory = c.run.rollout(c.policy, c.iteration);
    const StageLock stage = begin_stage(c, directory, directory);
    if (stage.is_complete) return 0;
    require_same_model(c);
    for (const std::string& task : c.tasks()) check_weights(c, task);
    io::Manifest manifest = c.new_manifest("rollout");
    StageMemory memory;
    const auto policy = c.starting_policy(reads_weights);
    pipeline::Pipeline model(c.model(), policy, c.placement());
    prepare_adapter(c, model);  // a new one adds nothing; one that is there must be the configured one
    const rl::SamplingSpec spec = c.sampling(model);
    const auto drawn = draw_iteration(c);
    std::map<std::string, CategoryWeights> weights;
    for (const std::string& task : c.tasks()) weights[task] = category_weights(c, task);
    GroupRollout rollout(c, model, spec, "rollout", policy, directory);
    rollout.reserve(source_of(drawn), memory);
    if (rollout.run(source_of(drawn), weights) == GroupRollout::End::stopped)
        return static_cast<int>(ErrorKind::requeue);
    c.world->barrier();
    if (c.world->is_root()) {
        manifest.inputs = rollout.scorer_files();
        manifest.inputs["policy"] = {0, rollout.model_hash()};
        manifest.facts = {{"groups", drawn.size()},
                          {"group_size", spec.members},
                          {"samples_without_score", rollout.absent()},
                          {"writing_seconds", rollout.writer().seconds()},
                          {"waited_for_writing_seconds", rollout.writer().waited_seconds()}};
        memory.finish(c, manifest);
        publish_shards(directory, drawn.size(), rollout.take_digests(), manifest);
    }
    c.world->barrier();
    return 0;
}

}  // namespace atelier::stage
