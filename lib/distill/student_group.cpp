#include "distill/student_group.hpp"

#include <limits>

#include "core/numbers.hpp"
#include "flow/noise.hpp"

namespace atelier::distill {
StudentGroup::StudentGroup(const dit::Dit& dit, const nn::ParameterStore& weights,
                           const pipeline::EncodedPrompt& conditional,
                           const pipeline::EncodedPrompt* unconditional, const StudentSpec& spec,
                           dit::Keep keep, Arena& arena)
    : dit_(dit),
      weights_(weights),
      conditional_prompt_(conditional),
      spec_(spec),
      keep_(keep),
      conditional_(dit, conditional, spec.target, keep, arena),
      batch_(dit, spec.target, spec.members, spec.micro_batch, arena) {
    std::int64_t prefix = conditional_.layout().prefix_tokens();
    if (unconditional != nullptr) {
        unconditional_ = std::make_unique<pipeline::Branch>(dit, *unconditional, spec.target,
                                                            dit::Keep::nothing, arena);
        prefix = std::max(prefix, unconditional_->layout().prefix_tokens());
    }
    pass_ = std::make_unique<dit::TargetPass>(dit, spec.micro_batch, spec.target.tokens(), prefix,
                                              keep, arena);
    if (unconditional_) u_ = batch_.take_states(arena);
    if (keep != dit::Keep::nothing) d_v_ = batch_.take_states(arena);
}

void StudentGroup::run_prefixes() {
    conditional_.run(weights_);
    if (unconditional_) unconditional_->run(weights_);
}

void StudentGroup::evaluate(int step) {
    pass_->forward(weights_, conditional_.prefix(), batch_.x, batch_.times(spec_.schedule.sigmas[static_cast<std::size_t>(step)]), batch_.v);
}

StudentTrajectory StudentGroup::sample(std::span<const RandomKey> noise_keys) {
    ATELIER_CHECK(static_cast<int>(noise_keys.size()) == spec_.members,
                  "{} noise keys for {} members", noise_keys.size(), spec_.members);
    const DeviceScope scope(dit_.device());
    const std::int64_t n = batch_.sample_size(), steps = spec_.schedule.steps();
    StudentTrajectory out;
    out.noise_key.assign(noise_keys.begin(), noise_keys.end());
    out.x.resize(static_cast<std::size_t>(spec_.members * steps * n));
    out.x_next.resize(out.x.size());
    out.log_prob.assign(static_cast<std::size_t>(spec_.members * steps),
                        std::numeric_limits<float>::quiet_NaN());
    out.latents.resize(static_cast<std::size_t>(spec_.members * n));
    run_prefixes();
    for (std::int64_t first = 0; first < spec_.members; first += spec_.micro_batch) {
        for (std::int64_t b = 0; b < spec_.micro_batch; ++b) {
            batch_.draw(flow::initial_noise_key(noise_keys[static_cast<std::size_t>(first + b)]));
            transfer(batch_.noise, batch_.member(batch_.x, b));
        }
        for (int step = 0; step < steps; ++step) {
            evaluate(step);
            const auto t = flow::transition(spec_.sampler,
                                            spec_.sampler == flow::Sampler::ode ? 0.0 : spec_.eta,
                                            spec_.schedule.sigmas, step);
            for (std::int64_t b = 0; b < spec_.micro_batch; ++b) {
                const std::int64_t at = (first + b) * steps + step;
                const Tensor state = batch_.member(batch_.x, b);
                const std::span<const float> x = numbers(state), velocity = numbers(batch_.member(batch_.v, b));
                if (t.has_log_prob())
                    batch_.draw(flow::step_noise_key(noise_keys[static_cast<std::size_t>(first + b)], step));
                flow::step<float>(t, x, velocity,
                                  t.has_log_prob() ? std::span<const float>(numbers(batch_.noise))
                                                   : std::span<const float>(),
                                  numbers(batch_.next));
                if (const auto p =
                        flow::log_prob<float>(t, flow::LogProb::mean, x, velocity, numbers(batch_.next)))
                    out.log_prob[static_cast<std::size_t>(at)] = static_cast<float>(*p);
                transfer(state, batch_.stored(out.x, at));
                transfer(batch_.next, batch_.stored(out.x_next, at));
                transfer(batch_.next, state);
            }
        }
        transfer(batch_.x, Tensor::of(out.latents.data() + first * n, batch_.x.shape()));
    }
    return out;
}

std::vector<float> StudentGroup::velocities(const flow::Guidance& guidance,
                                            std::span<const float> x) {
    ATELIER_CHECK(guidance.is_off() || unconditional_ != nullptr,
                  "guidance {} needs a negative prompt", guidance.scale);
    const DeviceScope scope(dit_.device());
    const std::int64_t n = batch_.sample_size(), steps = spec_.schedule.steps();
    ATELIER_CHECK(static_cast<std::int64_t>(x.size()) == spec_.members * steps * n,
                  "{} numbers for {} states", x.size(), spec_.members * steps);
    std::vector<float> result(x.size());
    run_prefixes();
    for (std::int64_t first = 0; first < spec_.members; first += spec_.micro_batch)
        for (int step = 0; step < steps; ++step) {
            batch_.load(x, first, steps, step);
            evaluate(step);
            if (!guidance.is_off()) {
                pass_->forward(weights_, unconditional_->prefix(), batch_.x, batch_.times(spec_.schedule.sigmas[static_cast<std::size_t>(step)]), u_);
                flow::guide<float>(guidance, dit_.config().out_channels, numbers(batch_.v), numbers(u_),
                                   numbers(batch_.v));
            }
            for (std::int64_t b = 0; b < spec_.micro_batch; ++b)
                transfer(batch_.member(batch_.v, b), batch_.stored(result, (first + b) * steps + step));
        }
    return result;
}

DistillStats StudentGroup::train(LossKind kind, std::span<const float> x,
                                 std::span<const float> teacher_velocity, double weight,
                                 const nn::ParameterStore& gradients) {
    ATELIER_CHECK(keep_ != dit::Keep::nothing, "this group was planned for sampling");
    const DeviceScope scope(dit_.device());
    const dit::Config& c = dit_.config();
    const std::int64_t n = batch_.sample_size(), steps = spec_.schedule.steps();
    ATELIER_CHECK(static_cast<std::int64_t>(x.size()) == spec_.members * steps * n &&
                      teacher_velocity.size() == x.size(),
                  "{} and {} numbers for {} states", x.size(), teacher_velocity.size(),
                  spec_.members * steps);
    DistillStats stats;
    run_prefixes();
    conditional_.prefix().zero_key_gradients();
    for (std::int64_t first = 0; first < spec_.members; first += spec_.micro_batch)
        for (int step = 0; step < steps; ++step) {
            // Along the ODE there is no KL of transitions: that of flow_sde's with the same states
            // is taken.
            const flow::Sampler sampler =
                spec_.sampler == flow::Sampler::ode ? flow::Sampler::flow_sde : spec_.sampler;
            const auto t = flow::transition(sampler, spec_.eta, spec_.schedule.sigmas, step);
            if (kind == LossKind::kl && !t.has_log_prob()) continue;
            batch_.load(x, first, steps, step);
            evaluate(step);
            clear(d_v_);
            for (std::int64_t b = 0; b < spec_.micro_batch; ++b) {
                const Tensor teacher = batch_.stored(teacher_velocity, (first + b) * steps + step);
                stats.loss += loss<float>(kind, t, numbers(batch_.member(batch_.v, b)),
                                          batch_.bring(teacher, batch_.next),
                                          weight, numbers(batch_.member(d_v_, b)));
                ++stats.terms;
            }
            pass_->backward(weights_, gradients, conditional_.prefix(), batch_.x, d_v_, {});
        }
    conditional_.prefix().backward(weights_, gradients,
                                   conditional_prompt_.states_tensor(c.context_dim),
                                   conditional_prompt_.references_tensor(c.in_channels), {}, {});
    return stats;
}

}  // namespace atelier::distill
