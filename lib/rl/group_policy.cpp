#include "rl/group_policy.hpp"

#include <algorithm>

#include "flow/noise.hpp"

namespace atelier::rl {
namespace {

std::span<float> numbers(const Tensor& t) { return {t.f32(), static_cast<std::size_t>(t.elements())}; }

/// One member's numbers of a micro-batch [members, ...], or of stored ones at `at` of n each.
Tensor member(const Tensor& t, std::int64_t b) { return t.slice(b, b + 1); }
Tensor stored(std::span<const float> all, std::int64_t at, std::int64_t n) { return Tensor::of(all.data() + at * n, {n}); }

}  // namespace

GroupPolicy::GroupPolicy(const dit::Dit& dit, const nn::ParameterStore& weights, const pipeline::EncodedPrompt& conditional,
                         const pipeline::EncodedPrompt* unconditional, const SamplingSpec& spec, dit::Keep keep, Arena& arena)
    : dit_(dit),
      weights_(weights),
      conditional_prompt_(conditional),
      unconditional_prompt_(unconditional),
      spec_(spec),
      keep_(keep),
      conditional_(dit, conditional, spec.target, keep, arena) {
    ATELIER_CHECK_USAGE(spec.members >= 1 && spec.micro_batch >= 1 && spec.members % spec.micro_batch == 0,
                        "a group of {} members cannot be cut into micro-batches of {}", spec.members, spec.micro_batch);
    ATELIER_CHECK_USAGE(dit.config().causal_condition, "training needs a model with causal_condition = true");
    ATELIER_CHECK_USAGE(!spec.uses_guidance() || unconditional != nullptr, "guidance {} needs a negative prompt",
                        spec.guidance.scale);
    const bool guided = spec.uses_guidance();
    const bool trains_both = guided && spec.guidance_train == flow::GuidanceTrain::guided;
    std::int64_t prefix = conditional_.layout().prefix_tokens();
    if (guided) {
        unconditional_ = std::make_unique<pipeline::Branch>(dit, *unconditional, spec.target,
                                                            trains_both ? keep : dit::Keep::nothing, arena);
        prefix = std::max(prefix, unconditional_->layout().prefix_tokens());
    }
    const std::int64_t tokens = spec.target.tokens();
    conditional_pass_ = std::make_unique<dit::TargetPass>(dit, spec.micro_batch, tokens, prefix, keep, arena);
    if (trains_both) unconditional_pass_ = std::make_unique<dit::TargetPass>(dit, spec.micro_batch, tokens, prefix, keep, arena);
    const Shape shape{spec.micro_batch, tokens, dit.config().out_channels};
    const auto take = [&](Shape of) { return arena.take_f32(of, dit.device()); };
    x_ = take(shape);
    v_ = take(shape);
    guided_ = v_;
    if (guided) {
        u_ = take(shape);
        guided_ = take(shape);
    }
    host_noise_ = arena.take_f32({sample_size()});
    noise_ = dit.device() == Device::cpu ? host_noise_ : take({sample_size()});
    next_ = take({sample_size()});
    if (keep != dit::Keep::nothing) {
        d_v_ = take(shape);
        if (trains_both) {
            d_u_ = take(shape);
            d_guided_ = take(shape);
        }
        if (dit.device() != Device::cpu) base_ = take({sample_size()});
    }
    times_.resize(static_cast<std::size_t>(spec.micro_batch));
}

flow::Transition GroupPolicy::transition(int step) const {
    const bool trained = std::find(spec_.trained_steps.begin(), spec_.trained_steps.end(), step) != spec_.trained_steps.end();
    return flow::transition(trained ? spec_.sampler : flow::Sampler::ode, trained ? spec_.eta : 0.0, spec_.schedule.sigmas, step);
}

void GroupPolicy::run_prefixes() {
    conditional_.run(weights_);
    if (unconditional_) unconditional_->run(weights_);
}

void GroupPolicy::load_states(const GroupTrajectory& trajectory, std::int64_t first, std::int64_t k) {
    const std::int64_t n = sample_size();
    const auto trained = static_cast<std::int64_t>(spec_.trained_steps.size());
    for (std::int64_t b = 0; b < spec_.micro_batch; ++b)
        transfer(stored(trajectory.x, (first + b) * trained + k, n), member(x_, b).reshaped({n}));
}

void GroupPolicy::evaluate(int step, bool needs_guidance) {
    // The model's time is the stored sigma itself.
    std::fill(times_.begin(), times_.end(), spec_.schedule.sigmas[static_cast<std::size_t>(step)]);
    conditional_pass_->forward(weights_, conditional_.prefix(), x_, times_, v_);
    if (!needs_guidance) return;
    dit::TargetPass& pass = unconditional_pass_ ? *unconditional_pass_ : *conditional_pass_;
    pass.forward(weights_, unconditional_->prefix(), x_, times_, u_);
    flow::guide<float>(spec_.guidance, dit_.config().out_channels, numbers(v_), numbers(u_), numbers(guided_));
}

Tensor GroupPolicy::trained_velocity(std::int64_t b) const {
    return member(spec_.guidance_train == flow::GuidanceTrain::guided ? guided_ : v_, b);
}

void GroupPolicy::draw(const RandomKey& key) {
    fill_normal(key, numbers(host_noise_));
    transfer(host_noise_, noise_);
}

std::span<const float> GroupPolicy::bring(const Tensor& from, const Tensor& room) const {
    if (dit_.device() == Device::cpu) return numbers(from);
    transfer(from, room);
    return numbers(room);
}

GroupTrajectory GroupPolicy::sample(std::span<const RandomKey> noise_keys) {
    ATELIER_CHECK(static_cast<int>(noise_keys.size()) == spec_.members, "{} noise keys for {} members", noise_keys.size(),
                  spec_.members);
    const DeviceScope scope(dit_.device());
    const std::int64_t n = sample_size();
    const auto trained = static_cast<std::int64_t>(spec_.trained_steps.size());
    GroupTrajectory out;
    out.noise_key.assign(noise_keys.begin(), noise_keys.end());
    out.x.resize(static_cast<std::size_t>(spec_.members * trained * n));
    out.x_next.resize(out.x.size());
    out.log_prob.resize(static_cast<std::size_t>(spec_.members * trained));
    out.latents.resize(static_cast<std::size_t>(spec_.members * n));
    run_prefixes();
    for (std::int64_t first = 0; first < spec_.members; first += spec_.micro_batch) {
        for (std::int64_t b = 0; b < spec_.micro_batch; ++b) {
            draw(flow::initial_noise_key(noise_keys[spec_.shared_noise ? 0 : static_cast<std::size_t>(first + b)]));
            transfer(noise_, member(x_, b).reshaped({n}));
        }
        std::int64_t k = 0;
        for (int step = 0; step < spec_.schedule.steps(); ++step) {
            evaluate(step, spec_.uses_guidance());
            const flow::Transition t = transition(step);
            for (std::int64_t b = 0; b < spec_.micro_batch; ++b) {
                const Tensor state = member(x_, b).reshaped({n});
                const std::span<const float> x = numbers(state), velocity = numbers(member(guided_, b));
                if (!t.has_log_prob()) {
                    flow::step<float>(t, x, velocity, {}, numbers(state));
                    continue;
                }
                const std::int64_t at = (first + b) * trained + k;
                // On a device the noise is drawn while it computes the velocities.
                draw(flow::step_noise_key(noise_keys[static_cast<std::size_t>(first + b)], step));
                flow::step<float>(t, x, velocity, numbers(noise_), numbers(next_));
                out.log_prob[static_cast<std::size_t>(at)] =
                    static_cast<float>(*flow::log_prob<float>(t, spec_.log_prob, x, numbers(trained_velocity(b)), numbers(next_)));
                transfer(state, stored(out.x, at, n));
                transfer(next_, stored(out.x_next, at, n));
                transfer(next_, state);
            }
            if (t.has_log_prob()) ++k;
        }
        transfer(x_, Tensor::of(out.latents.data() + first * n, x_.shape()));
    }
    return out;
}

std::vector<float> GroupPolicy::replay(const GroupTrajectory& trajectory) {
    const DeviceScope scope(dit_.device());
    const std::int64_t n = sample_size();
    const auto trained = static_cast<std::int64_t>(spec_.trained_steps.size());
    std::vector<float> result(trajectory.log_prob.size());
    run_prefixes();
    for (std::int64_t first = 0; first < spec_.members; first += spec_.micro_batch)
        for (std::int64_t k = 0; k < trained; ++k) {
            const int step = spec_.trained_steps[static_cast<std::size_t>(k)];
            const flow::Transition t = transition(step);
            load_states(trajectory, first, k);
            evaluate(step, spec_.guidance_train == flow::GuidanceTrain::guided && spec_.uses_guidance());
            for (std::int64_t b = 0; b < spec_.micro_batch; ++b) {
                const std::int64_t at = (first + b) * trained + k;
                result[static_cast<std::size_t>(at)] = static_cast<float>(*flow::log_prob<float>(
                    t, spec_.log_prob, numbers(member(x_, b)), numbers(trained_velocity(b)), bring(stored(trajectory.x_next, at, n), next_)));
            }
        }
    return result;
}

std::vector<float> GroupPolicy::velocities(const GroupTrajectory& trajectory) {
    const DeviceScope scope(dit_.device());
    const std::int64_t n = sample_size();
    const auto trained = static_cast<std::int64_t>(spec_.trained_steps.size());
    std::vector<float> result(trajectory.x.size());
    run_prefixes();
    for (std::int64_t first = 0; first < spec_.members; first += spec_.micro_batch)
        for (std::int64_t k = 0; k < trained; ++k) {
            load_states(trajectory, first, k);
            evaluate(spec_.trained_steps[static_cast<std::size_t>(k)],
                     spec_.guidance_train == flow::GuidanceTrain::guided && spec_.uses_guidance());
            for (std::int64_t b = 0; b < spec_.micro_batch; ++b)
                transfer(trained_velocity(b).reshaped({n}), stored(result, (first + b) * trained + k, n));
        }
    return result;
}

ObjectiveStats GroupPolicy::train(const ObjectiveConfig& objective, const GroupTrajectory& trajectory, std::span<const double> advantage,
                                  double weight, const nn::ParameterStore& gradients, std::span<const float> base_velocity) {
    ATELIER_CHECK(keep_ != dit::Keep::nothing, "this group was planned for sampling");
    const bool has_kl = objective.kl != KlKind::none && objective.beta > 0;
    ATELIER_CHECK(!has_kl || base_velocity.size() == trajectory.x.size(), "a KL term needs the base's velocities");
    ATELIER_CHECK_USAGE(!objective.ratio_norm || !spec_.uses_guidance() || spec_.guidance_train == flow::GuidanceTrain::guided,
                        "the normalised ratio needs the trained policy's own mean, which sampling with guidance_train = conditional does not give");
    ATELIER_CHECK_USAGE(!objective.ratio_norm || spec_.log_prob == flow::LogProb::mean, "the normalised ratio is defined for log_prob = mean");
    const DeviceScope scope(dit_.device());
    const dit::Config& c = dit_.config();
    const std::int64_t n = sample_size();
    const auto trained = static_cast<std::int64_t>(spec_.trained_steps.size());
    const bool both = unconditional_pass_ != nullptr;
    ObjectiveStats stats;
    run_prefixes();
    conditional_.prefix().zero_key_gradients();
    if (both) unconditional_->prefix().zero_key_gradients();
    for (std::int64_t first = 0; first < spec_.members; first += spec_.micro_batch)
        for (std::int64_t k = 0; k < trained; ++k) {
            const int step = spec_.trained_steps[static_cast<std::size_t>(k)];
            const flow::Transition t = transition(step);
            load_states(trajectory, first, k);
            evaluate(step, both);
            const Tensor& d_trained = both ? d_guided_ : d_v_;
            clear(d_trained);
            for (std::int64_t b = 0; b < spec_.micro_batch; ++b) {
                const double a = advantage[static_cast<std::size_t>(first + b)];
                if (a == 0.0 && !has_kl) continue;
                const std::int64_t at = (first + b) * trained + k;
                const std::span<const float> x = numbers(member(x_, b)), v = numbers(trained_velocity(b));
                const std::span<const float> next = bring(stored(trajectory.x_next, at, n), next_);
                const std::span<float> d_v = numbers(member(d_trained, b));
                Surrogate term;
                if (objective.ratio_norm) {
                    draw(flow::step_noise_key(trajectory.noise_key[static_cast<std::size_t>(first + b)], step));
                    const std::span<const float> noise = numbers(noise_);
                    term = clipped_surrogate<double>(guard_log_ratio<float>(t, x, v, next, noise), a, objective.clip);
                    guard_log_ratio_backward<float>(t, noise, weight * guard_weight(t) * term.d_log_ratio, d_v);
                } else {
                    const auto now = static_cast<float>(*flow::log_prob<float>(t, spec_.log_prob, x, v, next));
                    const double log_ratio = static_cast<double>(now) - trajectory.log_prob[static_cast<std::size_t>(at)];
                    term = clipped_surrogate<double>(log_ratio, a, objective.clip);
                    flow::log_prob_backward<float>(t, spec_.log_prob, x, v, next, weight * term.d_log_ratio, d_v);
                }
                double kl = 0;
                if (has_kl) {
                    const std::span<const float> base = bring(stored(base_velocity, at, n), base_);
                    const double scale = weight * objective.beta;
                    if (objective.kl == KlKind::gaussian) {
                        kl = flow::gaussian_kl<float>(t, v, base);
                        flow::gaussian_kl_backward<float>(t, v, base, scale, d_v);
                    } else {
                        kl = flow::velocity_mse<float>(v, base);
                        flow::velocity_mse_backward<float>(v, base, scale, d_v);
                    }
                }
                stats.add(term, kl);
            }
            if (both) {
                clear(d_v_);
                clear(d_u_);
                flow::guide_backward<float>(spec_.guidance, c.out_channels, numbers(v_), numbers(u_), numbers(d_guided_),
                                            numbers(d_v_), numbers(d_u_));
                unconditional_pass_->backward(weights_, gradients, unconditional_->prefix(), x_, d_u_, {});
            }
            conditional_pass_->backward(weights_, gradients, conditional_.prefix(), x_, d_v_, {});
        }
    conditional_.prefix().backward(weights_, gradients, conditional_prompt_.states_tensor(c.context_dim),
                                   conditional_prompt_.references_tensor(c.in_channels), {}, {});
    if (both)
        unconditional_->prefix().backward(weights_, gradients, unconditional_prompt_->states_tensor(c.context_dim),
                                          unconditional_prompt_->references_tensor(c.in_channels), {}, {});
    return stats;
}

}  // namespace atelier::rl
