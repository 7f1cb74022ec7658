#include "distill/student_sampler.hpp"

#include <limits>
#include <numeric>

#include "core/numbers.hpp"
#include "flow/noise.hpp"

namespace atelier::distill {
namespace {

/// Targets that run together: all members of several prompts, or a part of one prompt's.
int batch_of(const StudentSpec& spec, std::size_t prompts) {
    ATELIER_CHECK(prompts >= 1 && prompts <= StudentSampler::prompts_together(spec), "{} prompts of {} members for a micro-batch of {}", prompts,
                  spec.members, spec.micro_batch);
    return prompts > 1 ? static_cast<int>(prompts) * spec.members : std::gcd(spec.members, spec.micro_batch);
}

}  // namespace

StudentSampler::StudentSampler(const dit::Dit& dit, const nn::ParameterStore& weights, std::span<const pipeline::EncodedPrompt* const> prompts,
                               const StudentSpec& spec, Arena& arena)
    : dit_(dit),
      weights_(weights),
      spec_(spec),
      branch_(dit, prompts, spec.target, dit::Keep::nothing, arena),
      batch_(dit, spec.target, batch_of(spec, prompts.size()), arena),
      pass_(dit, batch_.size(), spec.target.tokens(), branch_.longest(), dit::Keep::nothing, arena, std::ssize(prompts)) {}

std::vector<StudentTrajectory> StudentSampler::sample(std::span<const RandomKey> noise_keys) {
    const std::int64_t prompts = branch_.layout().prompt_count(), members = spec_.members, count = prompts * members;
    ATELIER_CHECK(std::ssize(noise_keys) == count, "{} noise keys for {} members of {} prompts", noise_keys.size(), members, prompts);
    const DeviceScope scope(dit_.device());
    const std::int64_t n = batch_.sample_size(), steps = spec_.schedule.steps();
    std::vector<StudentTrajectory> all(static_cast<std::size_t>(prompts));
    for (std::int64_t p = 0; p < prompts; ++p) {
        StudentTrajectory& t = all[static_cast<std::size_t>(p)];
        const auto keys = noise_keys.subspan(static_cast<std::size_t>(p * members), static_cast<std::size_t>(members));
        t.noise_key.assign(keys.begin(), keys.end());
        t.x.resize(static_cast<std::size_t>(members * steps * n));
        t.x_next.resize(t.x.size());
        t.log_prob.assign(static_cast<std::size_t>(members * steps), std::numeric_limits<float>::quiet_NaN());
        t.latents.resize(static_cast<std::size_t>(members * n));
    }
    branch_.run(weights_);
    for (std::int64_t first = 0; first < count; first += batch_.size()) {
        const auto key_of = [&](std::int64_t b) { return noise_keys[static_cast<std::size_t>(first + b)]; };
        batch_.draw([&](std::int64_t b) { return flow::initial_noise_key(key_of(b)); });
        transfer(batch_.noise, batch_.x);
        for (int step = 0; step < steps; ++step) {
            pass_.forward(weights_, branch_.prefix(), batch_.x, batch_.times(spec_.schedule.sigmas[static_cast<std::size_t>(step)]), batch_.v);
            const auto t = flow::transition(spec_.sampler, spec_.sampler == flow::Sampler::ode ? 0.0 : spec_.eta, spec_.schedule.sigmas, step);
            if (t.has_log_prob()) batch_.draw([&](std::int64_t b) { return flow::step_noise_key(key_of(b), step); });
            for (std::int64_t b = 0; b < batch_.size(); ++b) {
                StudentTrajectory& out = all[static_cast<std::size_t>((first + b) / members)];
                const std::int64_t member = (first + b) % members, at = member * steps + step;
                const Tensor state = batch_.member(batch_.x, b);
                const std::span<const float> x = numbers(state), velocity = numbers(batch_.member(batch_.v, b));
                const std::span<const float> noise = t.has_log_prob() ? numbers(batch_.member(batch_.noise, b)) : std::span<float>();
                flow::step<float>(t, x, velocity, noise, numbers(batch_.next));
                if (const auto p = flow::log_prob<float>(t, flow::LogProb::mean, x, velocity, numbers(batch_.next)))
                    out.log_prob[static_cast<std::size_t>(at)] = static_cast<float>(*p);
                transfer(state, batch_.stored(out.x, at));
                transfer(batch_.next, batch_.stored(out.x_next, at));
                transfer(batch_.next, state);
                if (step + 1 == steps) transfer(state, batch_.stored(out.latents, member));
            }
        }
    }
    return all;
}

}  // namespace atelier::distill
