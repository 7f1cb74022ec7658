#include "distill/loss.hpp"

#include "core/error.hpp"

namespace atelier::distill {

LossKind parse_loss_kind(const std::string& word) {
    if (word == "velocity") return LossKind::velocity;
    if (word == "kl") return LossKind::kl;
    ATELIER_FAIL(ErrorKind::usage, "the distillation loss must be velocity or kl, found \"{}\"",
                 word);
}

const char* name_of(LossKind kind) { return kind == LossKind::velocity ? "velocity" : "kl"; }

template <typename T>
double loss(LossKind kind, const flow::Transition& transition, std::span<const T> v,
            std::span<const T> v_teacher, double scale, std::span<T> d_v) {
    if (kind == LossKind::velocity) {
        flow::velocity_mse_backward<T>(v, v_teacher, scale, d_v);
        return flow::velocity_mse<T>(v, v_teacher);
    }
    flow::gaussian_kl_backward<T>(transition, v, v_teacher, scale, d_v);
    return flow::gaussian_kl<T>(transition, v, v_teacher);
}

template double loss<float>(LossKind, const flow::Transition&, std::span<const float>,
                            std::span<const float>, double, std::span<float>);
template double loss<double>(LossKind, const flow::Transition&, std::span<const double>,
                             std::span<const double>, double, std::span<double>);

}  // namespace atelier::distill
