#include "distill/student_spec.hpp"

#include <algorithm>
#include <ranges>

#include "core/error.hpp"

namespace atelier::distill {

flow::Transition StudentSpec::loss_transition(int step) const {
    return flow::transition(sampler == flow::Sampler::ode ? flow::Sampler::flow_sde : sampler, eta, schedule.sigmas, step);
}

void check_student(const StudentSpec& spec, LossKind kind) {
    const auto has_kl = [&](int step) { return spec.loss_transition(step).has_log_prob(); };
    // Of every step, for what transitions refuse.
    const auto steps = std::ranges::count_if(std::views::iota(0, spec.schedule.steps()), has_kl);
    ATELIER_CHECK_USAGE(kind != LossKind::kl || steps > 0,
                        "distill.loss = kl with distill.eta = {}: no step of the {} has a standard deviation above 0, so nothing would be trained", spec.eta,
                        spec.schedule.steps());
}

}  // namespace atelier::distill
