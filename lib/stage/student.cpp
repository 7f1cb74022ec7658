#include "stage/student.hpp"

#include "stage/retention.hpp"

namespace atelier::stage {

distill::StudentSpec student_spec(const Context& c, const flow::ScheduleConfig& schedule) {
    distill::StudentSpec s;
    s.target = {c.config.integer("sampling.height") / model::pixels_per_latent,
                c.config.integer("sampling.width") / model::pixels_per_latent};
    s.schedule = flow::make_schedule(schedule, static_cast<int>(c.config.integer("sampling.steps")), s.target.tokens());
    s.sampler = flow::parse_sampler(c.config.text("distill.sampler"));
    s.eta = c.config.number("distill.eta");
    s.members = static_cast<int>(c.config.integer("distill.group_size"));
    s.micro_batch = static_cast<int>(c.config.integer("rollout.micro_batch"));
    distill::check_student(s, distill::parse_loss_kind(c.config.text("distill.loss")));
    return s;
}

StudentStart student_start(const Context& c, std::int64_t round, Reads reads) {
    StudentStart start;
    if (round > 1) {
        start.source = c.run.student(round - 1);
        require_complete(*c.world, start.source, fmt::format("run round {} of the distillation first", round - 1), reads);
        if (reads == reads_weights_and_state) require_state(start.source);
    } else {
        start.source = c.base_transformer();
    }
    if (round > 1 || c.config.text("distill.start") != "average") {
        start.hash = weights_hash(*c.world, start.source);
        return start;
    }
    ATELIER_CHECK_USAGE(c.config.integer("lora.rank") == 0,
                        "distill.start = average: the mean of adapters is no adapter of the same rank; with [lora] a "
                        "student starts from the base (distill.start = base)");
    std::string hashes;
    for (const std::string& task : c.config.tasks()) {
        start.teachers.push_back(c.final_policy(task));
        hashes += weights_hash(*c.world, start.teachers.back());
    }
    start.hash = io::digest_bytes(hashes.data(), hashes.size());
    return start;
}

void load_start(const StudentStart& start, pipeline::Pipeline& model) {
    model.load_transformer(start.source);
    if (!start.teachers.empty()) model.load_mean(start.teachers);
}

}  // namespace atelier::stage
