#include "rl/group_policy.hpp"

#include <algorithm>

#include "core/numbers.hpp"
#include "flow/noise.hpp"

namespace atelier::rl {

void check_sampling(const SamplingSpec& spec) {
    ATELIER_CHECK_USAGE(spec.members >= 1 && spec.micro_batch >= 1 && spec.members % spec.micro_batch == 0,
                        "a group of {} members (rollout.group_size) cannot be cut into micro-batches of {} (rollout.micro_batch): a multiple of it was expected",
                        spec.members, spec.micro_batch);
}

void check_objective(const ObjectiveConfig& objective, const SamplingSpec& spec) {
    ATELIER_CHECK_USAGE(!objective.ratio_norm || !spec.uses_guidance() || spec.guidance_train == flow::GuidanceTrain::guided,
                        "grpo.ratio_norm needs the trained policy's own mean, which sampling with guidance {} and sampling.guidance_train = conditional does not "
                        "give: guided or none was expected", spec.guidance.scale);
    ATELIER_CHECK_USAGE(!objective.ratio_norm || spec.log_prob == flow::LogProb::mean, "grpo.ratio_norm is defined for sampling.log_prob = mean");
    ATELIER_CHECK_USAGE(objective.kl == KlKind::none || objective.beta > 0,
                        "grpo.kl_beta = {}: a weight above 0 was expected, since grpo.kl asks for a distance to the base", objective.beta);
    ATELIER_CHECK_USAGE(objective.kl != KlKind::none || objective.beta == 0, "grpo.kl_beta = {} with grpo.kl = none: gaussian or velocity was expected",
                        objective.beta);
}

GroupPolicy::GroupPolicy(const dit::Dit& dit, const nn::ParameterStore& weights, const pipeline::EncodedPrompt& conditional,
                         const pipeline::EncodedPrompt* unconditional, const SamplingSpec& spec, dit::Keep keep, Arena& arena)
    : dit_(dit),
      weights_(weights),
      spec_(spec),
      keep_(keep),
      conditional_(dit, conditional, spec.target, keep, arena),
      batch_(dit, spec.target, spec.micro_batch, arena) {
    check_sampling(spec);
    const bool trains_both = spec.trains_both_branches(), guided = spec.uses_guidance() && unconditional != nullptr;
    ATELIER_CHECK_USAGE(!trains_both || guided, "guidance {} needs a negative prompt", spec.guidance.scale);
    std::int64_t prefix = conditional_.longest();
    if (guided) {
        unconditional_ = std::make_unique<pipeline::Branch>(dit, *unconditional, spec.target,
                                                            trains_both ? keep : dit::Keep::nothing, arena);
        prefix = std::max(prefix, unconditional_->longest());
    }
    const std::int64_t tokens = spec.target.tokens();
    conditional_pass_ = std::make_unique<dit::TargetPass>(dit, spec.micro_batch, tokens, prefix, keep, arena);
    if (trains_both) unconditional_pass_ = std::make_unique<dit::TargetPass>(dit, spec.micro_batch, tokens, prefix, keep, arena);
    guided_ = batch_.v;
    if (guided) {
        u_ = batch_.take_states(arena);
        guided_ = batch_.take_states(arena);
    }
    if (keep != dit::Keep::nothing) {
        d_v_ = batch_.take_states(arena);
        if (trains_both) {
            d_u_ = batch_.take_states(arena);
            d_guided_ = batch_.take_states(arena);
        }
        if (dit.device() != Device::cpu) base_ = batch_.take_state(arena);
    }
}

flow::Transition GroupPolicy::transition(int step) const {
    const bool trained = std::find(spec_.trained_steps.begin(), spec_.trained_steps.end(), step) != spec_.trained_steps.end();
    return flow::transition(trained ? spec_.sampler : flow::Sampler::ode, trained ? spec_.eta : 0.0, spec_.schedule.sigmas, step);
}

void GroupPolicy::run_prefixes() {
    conditional_.run(weights_);
    if (unconditional_) unconditional_->run(weights_);
}

void GroupPolicy::evaluate(int step, bool needs_guidance) {
    const std::span<const float> times = batch_.times(spec_.schedule.sigmas[static_cast<std::size_t>(step)]);
    conditional_pass_->forward(weights_, conditional_.prefix(), batch_.x, times, batch_.v);
    if (!needs_guidance) return;
    dit::TargetPass& pass = unconditional_pass_ ? *unconditional_pass_ : *conditional_pass_;
    pass.forward(weights_, unconditional_->prefix(), batch_.x, times, u_);
    flow::guide<float>(spec_.guidance, dit_.config().out_channels, numbers(batch_.v), numbers(u_), numbers(guided_));
}

Tensor GroupPolicy::trained_velocity(std::int64_t b) const {
    return batch_.member(spec_.trains_both_branches() ? guided_ : batch_.v, b);
}

GroupTrajectory GroupPolicy::sample(std::span<const RandomKey> noise_keys) {
    return *sample(noise_keys, [] { return false; });
}

std::optional<GroupTrajectory> GroupPolicy::sample(std::span<const RandomKey> noise_keys, const std::function<bool()>& is_stopped) {
    ATELIER_CHECK(static_cast<int>(noise_keys.size()) == spec_.members, "{} noise keys for {} members", noise_keys.size(),
                  spec_.members);
    ATELIER_CHECK_USAGE(!spec_.uses_guidance() || unconditional_, "guidance {} needs a negative prompt", spec_.guidance.scale);
    const DeviceScope scope(dit_.device());
    const std::int64_t n = batch_.sample_size(), trained = trained_count();
    GroupTrajectory out;
    out.noise_key.assign(noise_keys.begin(), noise_keys.end());
    out.x.resize(static_cast<std::size_t>(spec_.members * trained * n));
    out.x_next.resize(out.x.size());
    out.log_prob.resize(static_cast<std::size_t>(spec_.members * trained));
    if (spec_.uses_guidance() && !spec_.trains_both_branches()) out.log_prob_guided.resize(out.log_prob.size());
    out.latents.resize(static_cast<std::size_t>(spec_.members * n));
    run_prefixes();
    for (std::int64_t first = 0; first < spec_.members; first += spec_.micro_batch) {
        const auto key_of = [&](std::int64_t b) { return noise_keys[static_cast<std::size_t>(first + b)]; };
        batch_.draw([&](std::int64_t b) { return flow::initial_noise_key(spec_.shared_noise ? noise_keys[0] : key_of(b)); });
        transfer(batch_.noise, batch_.x);
        std::int64_t k = 0;
        for (int step = 0; step < spec_.schedule.steps(); ++step) {
            if (is_stopped()) return std::nullopt;
            evaluate(step, spec_.uses_guidance());
            const flow::Transition t = transition(step);
            if (t.has_log_prob()) batch_.draw([&](std::int64_t b) { return flow::step_noise_key(key_of(b), step); });
            for (std::int64_t b = 0; b < spec_.micro_batch; ++b) {
                const Tensor state = batch_.member(batch_.x, b);
                const std::span<const float> x = numbers(state), velocity = numbers(batch_.member(guided_, b));
                if (!t.has_log_prob()) {
                    flow::step<float>(t, x, velocity, {}, numbers(state));
                    continue;
                }
                const std::int64_t at = (first + b) * trained + k;
                flow::step<float>(t, x, velocity, numbers(batch_.member(batch_.noise, b)), numbers(batch_.next));
                const auto log_prob = [&](std::span<const float> v) {
                    return static_cast<float>(*flow::log_prob<float>(t, spec_.log_prob, x, v, numbers(batch_.next)));
                };
                out.log_prob[static_cast<std::size_t>(at)] = log_prob(numbers(trained_velocity(b)));
                if (!out.log_prob_guided.empty()) out.log_prob_guided[static_cast<std::size_t>(at)] = log_prob(velocity);
                transfer(state, batch_.stored(out.x, at));
                transfer(batch_.next, batch_.stored(out.x_next, at));
                transfer(batch_.next, state);
            }
            if (t.has_log_prob()) ++k;
        }
        transfer(batch_.x, Tensor::of(out.latents.data() + first * n, batch_.x.shape()));
    }
    return out;
}

std::vector<float> GroupPolicy::replay(const GroupTrajectory& trajectory) {
    const DeviceScope scope(dit_.device());
    const std::int64_t trained = trained_count();
    std::vector<float> result(trajectory.log_prob.size());
    run_prefixes();
    for (std::int64_t first = 0; first < spec_.members; first += spec_.micro_batch)
        for (std::int64_t k = 0; k < trained; ++k) {
            const int step = spec_.trained_steps[static_cast<std::size_t>(k)];
            const flow::Transition t = transition(step);
            batch_.load(trajectory.x, first, trained, k);
            evaluate(step, spec_.trains_both_branches());
            for (std::int64_t b = 0; b < spec_.micro_batch; ++b) {
                const std::int64_t at = (first + b) * trained + k;
                result[static_cast<std::size_t>(at)] = static_cast<float>(*flow::log_prob<float>(
                    t, spec_.log_prob, numbers(batch_.member(batch_.x, b)), numbers(trained_velocity(b)), batch_.bring(batch_.stored(trajectory.x_next, at), batch_.next)));
            }
        }
    return result;
}

std::vector<float> GroupPolicy::velocities(const GroupTrajectory& trajectory) {
    const DeviceScope scope(dit_.device());
    const std::int64_t trained = trained_count();
    std::vector<float> result(trajectory.x.size());
    run_prefixes();
    for (std::int64_t first = 0; first < spec_.members; first += spec_.micro_batch)
        for (std::int64_t k = 0; k < trained; ++k) {
            batch_.load(trajectory.x, first, trained, k);
            evaluate(spec_.trained_steps[static_cast<std::size_t>(k)], spec_.trains_both_branches());
            for (std::int64_t b = 0; b < spec_.micro_batch; ++b)
                transfer(trained_velocity(b), batch_.stored(result, (first + b) * trained + k));
        }
    return result;
}

ObjectiveStats GroupPolicy::train(const ObjectiveConfig& objective, const GroupTrajectory& trajectory, std::span<const double> advantage,
                                  double weight, const nn::ParameterStore& gradients, std::span<const float> base_velocity) {
    ATELIER_CHECK(keep_ != dit::Keep::nothing, "this group was planned for sampling");
    check_objective(objective, spec_);
    const bool has_kl = objective.kl != KlKind::none;
    ATELIER_CHECK(!has_kl || base_velocity.size() == trajectory.x.size(), "a KL term needs the base's velocities");
    const DeviceScope scope(dit_.device());
    const dit::Config& c = dit_.config();
    const std::int64_t trained = trained_count();
    const bool both = unconditional_pass_ != nullptr;
    ObjectiveStats stats;
    run_prefixes();
    conditional_.prefix().zero_key_gradients();
    if (both) unconditional_->prefix().zero_key_gradients();
    for (std::int64_t first = 0; first < spec_.members; first += spec_.micro_batch)
        for (std::int64_t k = 0; k < trained; ++k) {
            const int step = spec_.trained_steps[static_cast<std::size_t>(k)];
            const flow::Transition t = transition(step);
            batch_.load(trajectory.x, first, trained, k);
            evaluate(step, both);
            if (objective.ratio_norm)
                batch_.draw([&](std::int64_t b) { return flow::step_noise_key(trajectory.noise_key[static_cast<std::size_t>(first + b)], step); });
            const Tensor& d_trained = both ? d_guided_ : d_v_;
            clear(d_trained);
            for (std::int64_t b = 0; b < spec_.micro_batch; ++b) {
                const double a = advantage[static_cast<std::size_t>(first + b)];
                if (a == 0.0 && !has_kl) continue;
                const std::int64_t at = (first + b) * trained + k;
                const std::span<const float> x = numbers(batch_.member(batch_.x, b)), v = numbers(trained_velocity(b));
                const std::span<const float> next = batch_.bring(batch_.stored(trajectory.x_next, at), batch_.next);
                const std::span<float> d_v = numbers(batch_.member(d_trained, b));
                Surrogate term;
                if (objective.ratio_norm) {
                    const std::span<const float> noise = numbers(batch_.member(batch_.noise, b));
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
                    const std::span<const float> base = batch_.bring(batch_.stored(base_velocity, at), base_);
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
                flow::guide_backward<float>(spec_.guidance, c.out_channels, numbers(batch_.v), numbers(u_), numbers(d_guided_),
                                            numbers(d_v_), numbers(d_u_));
                unconditional_pass_->backward(weights_, gradients, unconditional_->prefix(), batch_.x, d_u_, {});
            }
            conditional_pass_->backward(weights_, gradients, conditional_.prefix(), batch_.x, d_v_, {});
        }
    conditional_.backward(weights_, gradients);
    if (both) unconditional_->backward(weights_, gradients);
    return stats;
}

}  // namespace atelier::rl
