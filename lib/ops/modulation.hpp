#pragma once

#include <cstdint>

#include "ops/dispatch.hpp"
#include "ops/operand.hpp"

namespace atelier::ops {

/// Rows in groups: group g owns rows [g * rows, (g + 1) * rows) and row g of scale and gate (`mod_stride` numbers
/// from one group's to the next).
struct ModulationShape {
    std::int64_t groups = 1, rows = 0, width = 0, mod_stride = 0;
    float eps = 1e-6f;
};

namespace cpu {

/// y = LayerNorm(x) * (1 + scale), LayerNorm without affine. x, y [groups * rows, width]; mean and inverse_std
/// [groups * rows] are kept for the backward pass.
void layer_norm_modulate(const ModulationShape& shape, const float* x, const float* scale, OperandOut y, float* mean,
                         float* inverse_std);
/// dx is added to, dscale is added to (mod_stride).
void layer_norm_modulate_backward(const ModulationShape& shape, const float* x, const float* scale, const float* mean,
                                  const float* inverse_std, Operand dy, float* dx, float* dscale);

/// y = x + gate * branch; `gate` is past its tanh. y may be x.
void gate_residual(const ModulationShape& shape, const float* x, const float* gate, Operand branch, float* y);
/// The same, and the norm of y with its modulation, as layer_norm_modulate makes it, in one pass over y: the same bits.
void gate_residual_norm_modulate(const ModulationShape& shape, const float* x, const float* gate, Operand branch, float* y, const float* scale,
                                 OperandOut normed, float* mean, float* inverse_std);
/// dbranch is written, dgate (of the gate past its tanh) is added to. The gradient of x is dy itself.
void gate_residual_backward(const ModulationShape& shape, const float* gate, Operand branch, const float* dy,
                            OperandOut dbranch, float* dgate);

}  // namespace cpu

ATELIER_OP(layer_norm_modulate);
ATELIER_OP(layer_norm_modulate_backward);
ATELIER_OP(gate_residual);
ATELIER_OP(gate_residual_norm_modulate);
ATELIER_OP(gate_residual_backward);

}  // namespace atelier::ops
