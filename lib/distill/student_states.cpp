#include "distill/student_states.hpp"

#include <algorithm>
#include <numeric>

#include "core/numbers.hpp"

namespace atelier::distill {

StudentStates::StudentStates(const dit::Dit& dit, const nn::ParameterStore& weights, const pipeline::EncodedPrompt& conditional,
                             const pipeline::EncodedPrompt* unconditional, const StudentSpec& spec, dit::Keep keep, Arena& arena)
    : dit_(dit),
      weights_(weights),
      spec_(spec),
      keep_(keep),
      conditional_(dit, conditional, spec.target, keep, arena),
      batch_(dit, spec.target, std::gcd(spec.states(), spec.micro_batch), arena) {
    std::int64_t prefix = conditional_.longest();
    if (unconditional != nullptr) {
        unconditional_ = std::make_unique<pipeline::Branch>(dit, *unconditional, spec.target, dit::Keep::nothing, arena);
        prefix = std::max(prefix, unconditional_->longest());
    }
    pass_ = std::make_unique<dit::TargetPass>(dit, batch_.size(), spec.target.tokens(), prefix, keep, arena);
    if (unconditional_) u_ = batch_.take_states(arena);
    if (keep != dit::Keep::nothing) d_v_ = batch_.take_states(arena);
}

void StudentStates::run_prefixes() {
    conditional_.run(weights_);
    if (unconditional_) unconditional_->run(weights_);
}

std::span<const float> StudentStates::evaluate(std::span<const float> x, std::int64_t first) {
    batch_.load(x, first, 1, 0);
    const std::span<const float> times = batch_.times([&](std::int64_t b) {
        return spec_.schedule.sigmas[static_cast<std::size_t>((first + b) % spec_.schedule.steps())];
    });
    pass_->forward(weights_, conditional_.prefix(), batch_.x, times, batch_.v);
    return times;
}

std::vector<float> StudentStates::velocities(const flow::Guidance& guidance, std::span<const float> x) {
    ATELIER_CHECK(guidance.is_off() || unconditional_ != nullptr, "guidance {} needs a negative prompt", guidance.scale);
    const DeviceScope scope(dit_.device());
    const std::int64_t n = batch_.sample_size(), count = spec_.states();
    ATELIER_CHECK(std::ssize(x) == count * n, "{} numbers for {} states", x.size(), count);
    std::vector<float> result(x.size());
    run_prefixes();
    for (std::int64_t first = 0; first < count; first += batch_.size()) {
        const std::span<const float> times = evaluate(x, first);
        if (!guidance.is_off()) {
            pass_->forward(weights_, unconditional_->prefix(), batch_.x, times, u_);
            flow::guide<float>(guidance, dit_.config().out_channels, numbers(batch_.v), numbers(u_), numbers(batch_.v));
        }
        for (std::int64_t b = 0; b < batch_.size(); ++b) transfer(batch_.member(batch_.v, b), batch_.stored(result, first + b));
    }
    return result;
}

DistillStats StudentStates::train(LossKind kind, std::span<const float> x, std::span<const float> teacher_velocity, double weight,
                                  const nn::ParameterStore& gradients) {
    ATELIER_CHECK(keep_ != dit::Keep::nothing, "these states were planned for recording");
    const DeviceScope scope(dit_.device());
    const std::int64_t n = batch_.sample_size(), steps = spec_.schedule.steps(), count = spec_.states();
    ATELIER_CHECK(std::ssize(x) == count * n && teacher_velocity.size() == x.size(), "{} and {} numbers for {} states", x.size(),
                  teacher_velocity.size(), count);
    DistillStats stats;
    run_prefixes();
    conditional_.prefix().zero_key_gradients();
    for (std::int64_t first = 0; first < count; first += batch_.size()) {
        evaluate(x, first);
        clear(d_v_);
        for (std::int64_t b = 0; b < batch_.size(); ++b) {
            const auto t = spec_.loss_transition(static_cast<int>((first + b) % steps));
            if (kind == LossKind::kl && !t.has_log_prob()) continue;
            const Tensor teacher = batch_.stored(teacher_velocity, first + b);
            stats.loss += loss<float>(kind, t, numbers(batch_.member(batch_.v, b)), batch_.bring(teacher, batch_.next), weight,
                                      numbers(batch_.member(d_v_, b)));
            ++stats.terms;
        }
        pass_->backward(weights_, gradients, conditional_.prefix(), batch_.x, d_v_, {});
    }
    conditional_.backward(weights_, gradients);
    return stats;
}

}  // namespace atelier::distill
