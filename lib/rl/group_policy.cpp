#include "rl/group_policy.hpp"

#include <algorithm>

#include "flow/noise.hpp"

namespace atelier::rl {
namespace {

std::span<float> numbers(const Tensor& t) { return {t.f32(), static_cast<std::size_t>(t.elements())}; }

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
    x_ = arena.take_f32(shape);
    v_ = arena.take_f32(shape);
    guided_ = v_;
    if (guided) {
        u_ = arena.take_f32(shape);
        guided_ = arena.take_f32(shape);
    }
    noise_ = arena.take_f32({sample_size()});
    if (keep != dit::Keep::nothing) {
        d_v_ = arena.take_f32(shape);
        if (trains_both) {
            d_u_ = arena.take_f32(shape);
            d_guided_ = arena.take_f32(shape);
        }
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
        std::copy_n(trajectory.x.data() + ((first + b) * trained + k) * n, n, x_.f32() + b * n);
}

void GroupPolicy::evaluate(const float* x, int step, bool needs_guidance) {
    // The model's time is the stored sigma itself.
    std::fill(times_.begin(), times_.end(), spec_.schedule.sigmas[static_cast<std::size_t>(step)]);
    const Tensor latents = Tensor::of(x, x_.shape());
    conditional_pass_->forward(weights_, conditional_.prefix(), latents, times_, v_);
    if (!needs_guidance) return;
    dit::TargetPass& pass = unconditional_pass_ ? *unconditional_pass_ : *conditional_pass_;
    pass.forward(weights_, unconditional_->prefix(), latents, times_, u_);
    flow::guide<float>(spec_.guidance, dit_.config().out_channels, numbers(v_), numbers(u_), numbers(guided_));
}

const float* GroupPolicy::trained_velocity(std::int64_t member) const {
    const Tensor& v = spec_.guidance_train == flow::GuidanceTrain::guided ? guided_ : v_;
    return v.f32() + member * sample_size();
}

GroupTrajectory GroupPolicy::sample(std::span<const RandomKey> noise_keys) {
    ATELIER_CHECK(static_cast<int>(noise_keys.size()) == spec_.members, "{} noise keys for {} members", noise_keys.size(),
                  spec_.members);
    const std::int64_t n = sample_size();
    const auto size = static_cast<std::size_t>(n);
    const auto trained = static_cast<std::int64_t>(spec_.trained_steps.size());
    GroupTrajectory out;
    out.noise_key.assign(noise_keys.begin(), noise_keys.end());
    out.x.resize(static_cast<std::size_t>(spec_.members * trained * n));
    out.x_next.resize(out.x.size());
    out.log_prob.resize(static_cast<std::size_t>(spec_.members * trained));
    out.latents.resize(static_cast<std::size_t>(spec_.members * n));
    run_prefixes();
    for (std::int64_t first = 0; first < spec_.members; first += spec_.micro_batch) {
        for (std::int64_t b = 0; b < spec_.micro_batch; ++b)
            fill_normal(flow::initial_noise_key(noise_keys[spec_.shared_noise ? 0 : static_cast<std::size_t>(first + b)]), {x_.f32() + b * n, size});
        std::int64_t k = 0;
        for (int step = 0; step < spec_.schedule.steps(); ++step) {
            evaluate(x_.f32(), step, spec_.uses_guidance());
            const flow::Transition t = transition(step);
            for (std::int64_t b = 0; b < spec_.micro_batch; ++b) {
                float* x = x_.f32() + b * n;
                const std::span<const float> velocity(guided_.f32() + b * n, size);
                if (!t.has_log_prob()) {
                    flow::step<float>(t, {x, size}, velocity, {}, {x, size});
                    continue;
                }
                const std::int64_t at = (first + b) * trained + k;
                float *kept = out.x.data() + at * n, *next = out.x_next.data() + at * n;
                std::copy_n(x, n, kept);
                fill_normal(flow::step_noise_key(noise_keys[static_cast<std::size_t>(first + b)], step), numbers(noise_));
                flow::step<float>(t, {kept, size}, velocity, numbers(noise_), {next, size});
                out.log_prob[static_cast<std::size_t>(at)] = static_cast<float>(
                    *flow::log_prob<float>(t, spec_.log_prob, {kept, size}, {trained_velocity(b), size}, {next, size}));
                std::copy_n(next, n, x);
            }
            if (t.has_log_prob()) ++k;
        }
        std::copy_n(x_.f32(), spec_.micro_batch * n, out.latents.data() + first * n);
    }
    return out;
}

std::vector<float> GroupPolicy::replay(const GroupTrajectory& trajectory) {
    const std::int64_t n = sample_size();
    const auto size = static_cast<std::size_t>(n);
    const auto trained = static_cast<std::int64_t>(spec_.trained_steps.size());
    std::vector<float> result(trajectory.log_prob.size());
    run_prefixes();
    for (std::int64_t first = 0; first < spec_.members; first += spec_.micro_batch)
        for (std::int64_t k = 0; k < trained; ++k) {
            const int step = spec_.trained_steps[static_cast<std::size_t>(k)];
            const flow::Transition t = transition(step);
            load_states(trajectory, first, k);
            evaluate(x_.f32(), step, spec_.guidance_train == flow::GuidanceTrain::guided && spec_.uses_guidance());
            for (std::int64_t b = 0; b < spec_.micro_batch; ++b) {
                const std::int64_t at = (first + b) * trained + k;
                result[static_cast<std::size_t>(at)] = static_cast<float>(
                    *flow::log_prob<float>(t, spec_.log_prob, {x_.f32() + b * n, size}, {trained_velocity(b), size},
                                           {trajectory.x_next.data() + at * n, size}));
            }
        }
    return result;
}

std::vector<float> GroupPolicy::velocities(const GroupTrajectory& trajectory) {
    const std::int64_t n = sample_size();
    const auto trained = static_cast<std::int64_t>(spec_.trained_steps.size());
    std::vector<float> result(trajectory.x.size());
    run_prefixes();
    for (std::int64_t first = 0; first < spec_.members; first += spec_.micro_batch)
        for (std::int64_t k = 0; k < trained; ++k) {
            load_states(trajectory, first, k);
            evaluate(x_.f32(), spec_.trained_steps[static_cast<std::size_t>(k)],
                     spec_.guidance_train == flow::GuidanceTrain::guided && spec_.uses_guidance());
            for (std::int64_t b = 0; b < spec_.micro_batch; ++b)
                std::copy_n(trained_velocity(b), n, result.data() + ((first + b) * trained + k) * n);
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
    const dit::Config& c = dit_.config();
    const std::int64_t n = sample_size();
    const auto size = static_cast<std::size_t>(n);
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
            evaluate(x_.f32(), step, both);
            const Tensor& d_trained = both ? d_guided_ : d_v_;
            std::fill_n(d_trained.f32(), d_trained.elements(), 0.0f);
            for (std::int64_t b = 0; b < spec_.micro_batch; ++b) {
                const double a = advantage[static_cast<std::size_t>(first + b)];
                if (a == 0.0 && !has_kl) continue;
                const std::int64_t at = (first + b) * trained + k;
                const std::span<const float> x(x_.f32() + b * n, size), v(trained_velocity(b), size);
                const std::span<const float> next(trajectory.x_next.data() + at * n, size);
                const std::span<float> d_v(d_trained.f32() + b * n, size);
                Surrogate term;
                if (objective.ratio_norm) {
                    fill_normal(flow::step_noise_key(trajectory.noise_key[static_cast<std::size_t>(first + b)], step), numbers(noise_));
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
                    const std::span<const float> base = base_velocity.subspan(static_cast<std::size_t>(at * n), size);
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
                std::fill_n(d_v_.f32(), d_v_.elements(), 0.0f);
                std::fill_n(d_u_.f32(), d_u_.elements(), 0.0f);
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
