#include "distill/student_group.hpp"

#include <algorithm>
#include <limits>

#include "flow/noise.hpp"

namespace atelier::distill {
namespace {

std::span<float> numbers(const Tensor& t) {
    return {t.f32(), static_cast<std::size_t>(t.elements())};
}

/// One member's numbers of a micro-batch, and stored ones at `at` of n each.
Tensor member(const Tensor& t, std::int64_t b, std::int64_t n) { return t.slice(b, b + 1).reshaped({n}); }
Tensor stored(std::span<const float> all, std::int64_t at, std::int64_t n) {
    return Tensor::of(all.data() + at * n, {n});
}

}  // namespace

StudentGroup::StudentGroup(const dit::Dit& dit, const nn::ParameterStore& weights,
                           const pipeline::EncodedPrompt& conditional,
                           const pipeline::EncodedPrompt* unconditional, const StudentSpec& spec,
                           dit::Keep keep, Arena& arena)
    : dit_(dit),
      weights_(weights),
      conditional_prompt_(conditional),
      spec_(spec),
      keep_(keep),
      conditional_(dit, conditional, spec.target, keep, arena) {
    ATELIER_CHECK_USAGE(
        spec.members >= 1 && spec.micro_batch >= 1 && spec.members % spec.micro_batch == 0,
        "a group of {} members cannot be cut into micro-batches of {}", spec.members,
        spec.micro_batch);
    ATELIER_CHECK_USAGE(dit.config().causal_condition,
                        "training needs a model with causal_condition = true");
    std::int64_t prefix = conditional_.layout().prefix_tokens();
    if (unconditional != nullptr) {
        unconditional_ = std::make_unique<pipeline::Branch>(dit, *unconditional, spec.target,
                                                            dit::Keep::nothing, arena);
        prefix = std::max(prefix, unconditional_->layout().prefix_tokens());
    }
    pass_ = std::make_unique<dit::TargetPass>(dit, spec.micro_batch, spec.target.tokens(), prefix,
                                              keep, arena);
    const Shape shape{spec.micro_batch, spec.target.tokens(), dit.config().out_channels};
    const auto take = [&](Shape of) { return arena.take_f32(of, dit.device()); };
    x_ = take(shape);
    v_ = take(shape);
    if (unconditional_) u_ = take(shape);
    if (keep != dit::Keep::nothing) d_v_ = take(shape);
    host_noise_ = arena.take_f32({sample_size()});
    noise_ = dit.device() == Device::cpu ? host_noise_ : take({sample_size()});
    other_ = take({sample_size()});
    times_.resize(static_cast<std::size_t>(spec.micro_batch));
}

void StudentGroup::run_prefixes() {
    conditional_.run(weights_);
    if (unconditional_) unconditional_->run(weights_);
}

void StudentGroup::evaluate(int step) {
    std::fill(times_.begin(), times_.end(), spec_.schedule.sigmas[static_cast<std::size_t>(step)]);
    pass_->forward(weights_, conditional_.prefix(), x_, times_, v_);
}

void StudentGroup::load_states(std::span<const float> x, std::int64_t first, int step) {
    const std::int64_t n = sample_size(), steps = spec_.schedule.steps();
    for (std::int64_t b = 0; b < spec_.micro_batch; ++b)
        transfer(stored(x, (first + b) * steps + step, n), member(x_, b, n));
}

void StudentGroup::draw(const RandomKey& key) {
    fill_normal(key, numbers(host_noise_));
    transfer(host_noise_, noise_);
}

StudentTrajectory StudentGroup::sample(std::span<const RandomKey> noise_keys) {
    ATELIER_CHECK(static_cast<int>(noise_keys.size()) == spec_.members,
                  "{} noise keys for {} members", noise_keys.size(), spec_.members);
    const DeviceScope scope(dit_.device());
    const std::int64_t n = sample_size(), steps = spec_.schedule.steps();
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
            draw(flow::initial_noise_key(noise_keys[static_cast<std::size_t>(first + b)]));
            transfer(noise_, member(x_, b, n));
        }
        for (int step = 0; step < steps; ++step) {
            evaluate(step);
            const auto t = flow::transition(spec_.sampler,
                                            spec_.sampler == flow::Sampler::ode ? 0.0 : spec_.eta,
                                            spec_.schedule.sigmas, step);
            for (std::int64_t b = 0; b < spec_.micro_batch; ++b) {
                const std::int64_t at = (first + b) * steps + step;
                const Tensor state = member(x_, b, n);
                const std::span<const float> x = numbers(state), velocity = numbers(member(v_, b, n));
                if (t.has_log_prob())
                    draw(flow::step_noise_key(noise_keys[static_cast<std::size_t>(first + b)], step));
                flow::step<float>(t, x, velocity,
                                  t.has_log_prob() ? std::span<const float>(numbers(noise_))
                                                   : std::span<const float>(),
                                  numbers(other_));
                if (const auto p =
                        flow::log_prob<float>(t, flow::LogProb::mean, x, velocity, numbers(other_)))
                    out.log_prob[static_cast<std::size_t>(at)] = static_cast<float>(*p);
                transfer(state, stored(out.x, at, n));
                transfer(other_, stored(out.x_next, at, n));
                transfer(other_, state);
            }
        }
        transfer(x_, Tensor::of(out.latents.data() + first * n, x_.shape()));
    }
    return out;
}

std::vector<float> StudentGroup::velocities(const flow::Guidance& guidance,
                                            std::span<const float> x) {
    ATELIER_CHECK(guidance.is_off() || unconditional_ != nullptr,
                  "guidance {} needs a negative prompt", guidance.scale);
    const DeviceScope scope(dit_.device());
    const std::int64_t n = sample_size(), steps = spec_.schedule.steps();
    ATELIER_CHECK(static_cast<std::int64_t>(x.size()) == spec_.members * steps * n,
                  "{} numbers for {} states", x.size(), spec_.members * steps);
    std::vector<float> result(x.size());
    run_prefixes();
    for (std::int64_t first = 0; first < spec_.members; first += spec_.micro_batch)
        for (int step = 0; step < steps; ++step) {
            load_states(x, first, step);
            evaluate(step);
            if (!guidance.is_off()) {
                pass_->forward(weights_, unconditional_->prefix(), x_, times_, u_);
                flow::guide<float>(guidance, dit_.config().out_channels, numbers(v_), numbers(u_),
                                   numbers(v_));
            }
            for (std::int64_t b = 0; b < spec_.micro_batch; ++b)
                transfer(member(v_, b, n), stored(result, (first + b) * steps + step, n));
        }
    return result;
}

DistillStats StudentGroup::train(LossKind kind, std::span<const float> x,
                                 std::span<const float> teacher_velocity, double weight,
                                 const nn::ParameterStore& gradients) {
    ATELIER_CHECK(keep_ != dit::Keep::nothing, "this group was planned for sampling");
    const DeviceScope scope(dit_.device());
    const dit::Config& c = dit_.config();
    const std::int64_t n = sample_size(), steps = spec_.schedule.steps();
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
            load_states(x, first, step);
            evaluate(step);
            clear(d_v_);
            for (std::int64_t b = 0; b < spec_.micro_batch; ++b) {
                const Tensor teacher = stored(teacher_velocity, (first + b) * steps + step, n);
                if (dit_.device() != Device::cpu) transfer(teacher, other_);
                stats.loss += loss<float>(kind, t, numbers(member(v_, b, n)),
                                          numbers(dit_.device() == Device::cpu ? teacher : other_),
                                          weight, numbers(member(d_v_, b, n)));
                ++stats.terms;
            }
            pass_->backward(weights_, gradients, conditional_.prefix(), x_, d_v_, {});
        }
    conditional_.prefix().backward(weights_, gradients,
                                   conditional_prompt_.states_tensor(c.context_dim),
                                   conditional_prompt_.references_tensor(c.in_channels), {}, {});
    return stats;
}

}  // namespace atelier::distill
