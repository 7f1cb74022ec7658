#include "ops/linear.hpp"

#include "core/parallel.hpp"
#include "ops/matmul.hpp"

namespace atelier::ops::cpu {
namespace {

MatrixView view(const Tensor& t) {
    ATELIER_CHECK(t.shape().rank() == 2, "a matrix was expected, found shape {}", t.shape().str());
    return {t.f32(), t.size(0), t.size(1), t.size(1)};
}

}  // namespace

void linear(const Tensor& x, const Tensor& weight, const Tensor& bias, const Tensor& y) {
    matmul(false, true, 1.0f, view(x), view(weight), 0.0f, view(y));
    if (bias.empty()) return;
    const std::int64_t n = y.size(1);
    const float* b = bias.f32();
    parallel_for(y.size(0), 64, [&, out = y.f32()](std::int64_t begin, std::int64_t end) {
        for (std::int64_t i = begin; i < end; ++i)
            for (std::int64_t j = 0; j < n; ++j) out[i * n + j] += b[j];
    });
}

void linear_backward_input(const Tensor& dy, const Tensor& weight, const Tensor& dx, bool accumulate) {
    matmul(false, false, 1.0f, view(dy), view(weight), accumulate ? 1.0f : 0.0f, view(dx));
}

void linear_backward_weight(const Tensor& dy, const Tensor& x, const Tensor& dweight, const Tensor& dbias) {
    matmul(true, false, 1.0f, view(dy), view(x), 1.0f, view(dweight));
    if (dbias.empty()) return;
    const std::int64_t m = dy.size(0), n = dy.size(1);
    const float* g = dy.f32();
    parallel_for(n, 64, [&, out = dbias.f32()](std::int64_t begin, std::int64_t end) {
        for (std::int64_t i = 0; i < m; ++i)
            for (std::int64_t j = begin; j < end; ++j) out[j] += g[i * n + j];
    });
}

}  // namespace atelier::ops::cpu
