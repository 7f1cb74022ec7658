#include "optim/adamw.hpp"

#include <algorithm>
#include <cmath>

#include "core/error.hpp"
#include "core/parallel.hpp"
#include "ops/backend.hpp"

namespace atelier::optim {
namespace {

struct Factors {
    float gradient_scale, one_minus_beta1, beta2, one_minus_beta2, step, inverse_root_correction,
        epsilon;
};

void update_range(const Factors& f, float keep, std::int64_t count,
                  const float* __restrict gradient, float* __restrict parameter,
                  float* __restrict m, float* __restrict v) {
    for (std::int64_t i = 0; i < count; ++i) {
        const float g = gradient[i] * f.gradient_scale;
        m[i] = m[i] + f.one_minus_beta1 * (g - m[i]);
        v[i] = f.beta2 * v[i] + f.one_minus_beta2 * (g * g);
        const float denominator = std::sqrt(v[i]) * f.inverse_root_correction + f.epsilon;
        parameter[i] = parameter[i] * keep - f.step * (m[i] / denominator);
    }
}

}  // namespace

void check_config(const AdamWConfig& config) {
    ATELIER_CHECK_USAGE(config.beta1 >= 0.0 && config.beta1 < 1.0,
                        "beta1 must lie in [0, 1), found {}", config.beta1);
    ATELIER_CHECK_USAGE(config.beta2 >= 0.0 && config.beta2 < 1.0,
                        "beta2 must lie in [0, 1), found {}", config.beta2);
    ATELIER_CHECK_USAGE(config.epsilon > 0.0, "epsilon of AdamW must be positive, found {}",
                        config.epsilon);
    ATELIER_CHECK_USAGE(config.weight_decay >= 0.0, "weight_decay must be at least 0, found {}",
                        config.weight_decay);
}

void adamw_step(const AdamWConfig& config, double rate, std::int64_t update, double gradient_scale,
                std::span<const ParameterRange> ranges, std::span<const float> gradient,
                std::span<float> parameter, std::span<float> m, std::span<float> v) {
    ATELIER_CHECK(gradient.size() == parameter.size() && m.size() == parameter.size() &&
                      v.size() == parameter.size(),
                  "AdamW needs spans of one size: {} parameters, {} gradients, {} and {} moments",
                  parameter.size(), gradient.size(), m.size(), v.size());
    ATELIER_CHECK(update >= 1, "AdamW counts updates from 1, found {}", update);
    std::int64_t covered = 0;
    for (const ParameterRange& range : ranges) {
        ATELIER_CHECK(range.begin == covered && range.end >= range.begin,
                      "parameter range [{}, {}) after index {}", range.begin, range.end, covered);
        covered = range.end;
    }
    ATELIER_CHECK(covered == static_cast<std::int64_t>(parameter.size()),
                  "ranges cover {} of {} parameters", covered, parameter.size());
    const double t = static_cast<double>(update);
    const Factors factors{static_cast<float>(gradient_scale),
                          static_cast<float>(1.0 - config.beta1),
                          static_cast<float>(config.beta2),
                          static_cast<float>(1.0 - config.beta2),
                          static_cast<float>(rate / (1.0 - std::pow(config.beta1, t))),
                          static_cast<float>(1.0 / std::sqrt(1.0 - std::pow(config.beta2, t))),
                          static_cast<float>(config.epsilon)};
    const float decayed = static_cast<float>(1.0 - rate * config.weight_decay);
    if (current_device() == Device::cuda) {
        const ops::Backend& device = ops::backend();
        for (std::size_t first = 0, end = 0; first < ranges.size(); first = end) {
            for (end = first + 1; end < ranges.size() && ranges[end].decay == ranges[first].decay;) ++end;
            const std::int64_t begin = ranges[first].begin, count = ranges[end - 1].end - begin;
            device.adamw(count,
                         {factors.gradient_scale, factors.one_minus_beta1, factors.beta2, factors.one_minus_beta2, factors.step,
                          factors.inverse_root_correction, factors.epsilon, ranges[first].decay ? decayed : 1.0f},
                         gradient.data() + begin, parameter.data() + begin, m.data() + begin, v.data() + begin,
                         device.bf16_copy_of(parameter.data() + begin));
        }
        return;
    }
    parallel_for(covered, 1 << 15, [&](std::int64_t begin, std::int64_t end) {
        const auto* range =
            std::partition_point(ranges.data(), ranges.data() + ranges.size(),
                                 [&](const ParameterRange& r) { return r.end <= begin; });
        for (; begin < end; ++range) {
            const std::int64_t stop = std::min(end, range->end);
            if (stop > begin)
                update_range(factors, range->decay ? decayed : 1.0f, stop - begin,
                             gradient.data() + begin, parameter.data() + begin, m.data() + begin,
                             v.data() + begin);
            begin = std::max(begin, stop);
        }
    });
}

}  // namespace atelier::optim
