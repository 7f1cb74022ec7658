#include "distill/student_spec.hpp"

#include "core/error.hpp"

namespace atelier::distill {

flow::Transition StudentSpec::loss_transition(int step) const {
    return flow::transition(sampler == flow::Sampler::ode ? flow::Sampler::flow_sde : sampler, eta, schedule.sigmas, step);
}

void check_student(const StudentSpec& spec, LossKind kind) {
    // Of every step, for what transitions refuse.
    int steps = 0;
    for (int step = 0; step < spec.schedule.steps(); ++step) steps += spec.loss_transition(step).has_log_prob() ? 1 : 0;
    ATELIER_CHECK_USAGE(kind != LossKind::kl || steps > 0,
                        "distill.loss = kl with distill.eta = {}: no step of the {} has a standard deviation above 0, so nothing would be trained", spec.eta,
                        spec.schedule.steps());
}

}  // namespace atelier::distill
