#pragma once

#include <cstdint>
#include <span>

namespace atelier::optim {

struct AdamWConfig {
    double beta1 = 0.9, beta2 = 0.999;
    double epsilon = 1e-8;
    double weight_decay = 0.01;  ///< decoupled: parameter *= 1 - rate * weight_decay
};

/// Half-open range of flat parameter indices with one decay setting.
struct ParameterRange {
    std::int64_t begin = 0, end = 0;
    bool decay = true;
};

/// Throws Error(usage) for values outside their ranges.
void check_config(const AdamWConfig& config);

/// One AdamW update (Loshchilov & Hutter, arXiv 1711.05101; order of operations as
/// torch.optim.AdamW), all spans fp32 of one size: m = m + (1 - b1)(g - m), v = b2 v + (1 - b2)
/// g^2, p -= rate / (1 - b1^t) * m / (sqrt(v) / sqrt(1 - b2^t) + epsilon). `update`: t, from 1.
/// `gradient_scale` multiplies the gradient first (clipping, averaging). `ranges` must cover
/// [0, size) in order without gap. Where the calling thread's operations run on a device the spans are its memory, and the bf16
/// copy of the parameters (ops/backend.hpp) follows them. Elementwise: calls on shards make the same bits as one on the
/// whole. Bit-identical for any number of threads; allocates nothing.
void adamw_step(const AdamWConfig& config, double rate, std::int64_t update, double gradient_scale,
                std::span<const ParameterRange> ranges, std::span<const float> gradient,
                std::span<float> parameter, std::span<float> m, std::span<float> v);

}  // namespace atelier::optim
