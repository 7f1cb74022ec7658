#include "stage/student.hpp"

#include <numeric>

#include "core/numbers.hpp"

namespace atelier::stage {

distill::StudentSpec student_spec(const Context& c, const flow::ScheduleConfig& schedule) {
    distill::StudentSpec s;
    s.target = {c.config.integer("sampling.height") / model::pixels_per_latent,
                c.config.integer("sampling.width") / model::pixels_per_latent};
    s.schedule = flow::make_schedule(schedule, static_cast<int>(c.config.integer("sampling.steps")), s.target.tokens());
    s.sampler = flow::parse_sampler(c.config.text("distill.sampler"));
    s.eta = c.config.number("distill.eta");
    s.members = static_cast<int>(c.config.integer("distill.group_size"));
    s.micro_batch = std::gcd(s.members, static_cast<int>(c.config.integer("rollout.micro_batch")));
    return s;
}

std::filesystem::path student_source(const Context& c, std::int64_t round) {
    if (round == 1) return c.base_transformer();
    const auto directory = c.run.student(round - 1);
    require_complete(directory, fmt::format("run round {} of the distillation first", round - 1));
    return directory;
}

bool starts_from_average(const Context& c, std::int64_t round) {
    return round == 1 && c.config.text("distill.start") == "average";
}

std::string load_start(const Context& c, std::int64_t round, pipeline::Pipeline& model) {
    const auto source = student_source(c, round);
    model.load_transformer(source);
    if (!starts_from_average(c, round)) return weights_hash(source);
    ATELIER_CHECK_USAGE(c.config.integer("lora.rank") == 0,
                        "distill.start = average: the mean of adapters is no adapter of the same rank; with [lora] a "
                        "student starts from the base (distill.start = base)");
    const auto tasks = c.config.tasks();
    // Before the room for a teacher is taken: hashing maps a whole file.
    std::string hashes;
    for (const std::string& task : tasks) hashes += weights_hash(c.final_policy(task));
    const Tensor own = model.own_weights();
    const Numbers teacher(own.elements());
    // The mean is made in host memory, so that it has the same bits wherever the model is.
    const Numbers room = own.device() == Device::cpu ? Numbers() : Numbers(own.elements());
    const std::span<float> mean(room.empty() ? own.f32() : room.data(), static_cast<std::size_t>(own.elements()));
    const float share = 1.0f / static_cast<float>(tasks.size());
    for (std::size_t t = 0; t < tasks.size(); ++t) {
        model.read_own_weights(c.final_policy(tasks[t]), teacher.tensor());
        for (std::size_t i = 0; i < mean.size(); ++i)
            mean[i] = (t == 0 ? 0.0f : mean[i]) + share * teacher.span()[i];
    }
    if (!room.empty()) transfer(room.tensor(), own);
    model.weights_were_changed();
    return io::digest_bytes(hashes.data(), hashes.size());
}

}  // namespace atelier::stage
