#pragma once

#include "core/tensor.hpp"
#include "ops/dispatch.hpp"

namespace atelier::ops {

/// Row-wise RMS norm: y = x / sqrt(mean(x^2) + eps) * (offset + weight), over the last axis.
/// x, y: [rows, width], consecutive rows `x_stride` / `y_stride` numbers apart (0: width); weight [width];
/// `offset` is 1 for zero-centred weights (text_norm), else 0. inverse_rms [rows] is kept for the backward
/// pass if not null. In place is allowed.
struct RmsNormShape {
    std::int64_t rows = 0, width = 0;
    std::int64_t x_stride = 0, y_stride = 0;
    float eps = 1e-6f;
    float offset = 0;
};

/// Row-wise LayerNorm: y = (x - mean) / sqrt(var + eps) * weight + bias (either may be null: 1 and 0).
/// x, y [rows, width] contiguous; mean and inverse_std [rows] kept if not null.
struct LayerNormShape {
    std::int64_t rows = 0, width = 0;
    float eps = 1e-6f;
};

namespace cpu {

void rms_norm(const RmsNormShape& shape, const float* x, const float* weight, float* y, float* inverse_rms);

/// dx (written; x_stride), dweight (added; may be null). dy by y_stride. Needs x as it was before the norm.
/// dx may be dy's memory when the strides agree.
void rms_norm_backward(const RmsNormShape& shape, const float* x, const float* weight, const float* inverse_rms,
                       const float* dy, float* dx, float* dweight);

void layer_norm(const LayerNormShape& shape, const float* x, const float* weight, const float* bias, float* y,
                float* mean, float* inverse_std);
/// dx written (or added if `accumulate`), dweight and dbias added (may be null).
void layer_norm_backward(const LayerNormShape& shape, const float* x, const float* weight, const float* mean,
                         const float* inverse_std, const float* dy, float* dx, bool accumulate, float* dweight,
                         float* dbias);

}  // namespace cpu

ATELIER_OP(rms_norm);
ATELIER_OP(rms_norm_backward);
ATELIER_OP(layer_norm);
ATELIER_OP(layer_norm_backward);

}  // namespace atelier::ops
