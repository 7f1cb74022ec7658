#include "distill/student_spec.hpp"

#include "core/error.hpp"

namespace atelier::distill {

flow::Transition StudentSpec::loss_transition(int step) const {
    return flow::transition(sampler == flow::Sampler::ode ? flow::Sampler::flow_sde : sampler, eta, schedule.sigmas, step);
}

int StudentSpec::loss_steps(LossKind kind) const {
    int steps = 0;
    for (int step = 0; step < schedule.steps(); ++step) steps += loss_transition(step).has_log_prob() || kind != LossKind::kl ? 1 : 0;
    return steps;
}

void check_student(const StudentSpec& spec, LossKind kind) {
    ATELIER_CHECK_USAGE(spec.loss_steps(kind) > 0,
                        "distill.loss = kl with distill.eta = {}: no step of the {} has a standard deviation above 0, so nothing would be trained", spec.eta,
                        spec.schedule.steps());
}

}  // namespace atelier::distill
