#pragma once

#include "ops/attention.hpp"

namespace atelier::ops::cuda {

/// Which own keys queries see, as runs: query first + i of a run sees own keys [0, limit + slope * i). Derived from
/// AttentionShape::own_limit; passed to kernels by value.
struct KeyLimits {
    static constexpr int max_runs = 32;
    struct Run {
        std::int32_t first, limit, slope;
    };
    int runs = 0;
    Run run[max_runs];
};

/// Of runs of equal limits (a picture: slope 0) and of limits rising by one (text: slope 1). Throws Error(internal) for more than
/// max_runs of them.
KeyLimits key_limits(const AttentionShape& shape);

/// fp32 attention of any head width up to plain_attention_max_head (workspaces.hpp): the reference on the device, and what serves shapes and
/// masks that the library has nothing for. A warp a query (backward: also a warp a key), everything in a fixed order. Arguments as ops::attention;
/// `workspace` of plain_attention_workspace() numbers (workspaces.hpp).
void plain_attention(const AttentionShape& shape, const float* q, AttentionKeys shared, AttentionKeys own, float* out, float* log_sum_exp,
                     float* workspace);
void plain_attention_backward(const AttentionShape& shape, const float* q, AttentionKeys shared, AttentionKeys own, const float* out,
                              const float* log_sum_exp, const float* dout, float* dq, AttentionKeyGradients shared_gradients,
                              AttentionKeyGradients own_gradients, float* workspace);

}  // namespace atelier::ops::cuda
