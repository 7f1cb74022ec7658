#include "stage/student.hpp"

#include <numeric>

namespace atelier::stage {

distill::StudentSpec student_spec(const Context& c, const pipeline::Pipeline& pipeline) {
    distill::StudentSpec s;
    s.target = {c.config.integer("sampling.height") / model::pixels_per_latent,
                c.config.integer("sampling.width") / model::pixels_per_latent};
    s.schedule =
        pipeline.schedule(static_cast<int>(c.config.integer("sampling.steps")), s.target.tokens());
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

std::string load_start(const Context& c, std::int64_t round, const nn::ParameterStore& weights) {
    const auto source = student_source(c, round);
    dit::load(weights, source);
    if (round > 1 || c.config.text("distill.start") == "base") return weights_hash(source);
    const auto tasks = c.config.tasks();
    const auto size = static_cast<std::size_t>(weights.flat().elements());
    Arena arena("teacher", size * sizeof(float) + Arena::alignment);
    const nn::ParameterStore teacher(weights.table(), arena);
    const std::span<float> mean(weights.data(), size);
    const float share = 1.0f / static_cast<float>(tasks.size());
    std::string hashes;
    for (std::size_t t = 0; t < tasks.size(); ++t) {
        const auto directory = c.final_policy(tasks[t]);
        dit::load(teacher, directory);
        hashes += weights_hash(directory);
        for (std::size_t i = 0; i < size; ++i)
            mean[i] = (t == 0 ? 0.0f : mean[i]) + share * teacher.data()[i];
    }
    return io::digest_bytes(hashes.data(), hashes.size());
}

}  // namespace atelier::stage
