#include "optim/gradient_norm.hpp"

#include <algorithm>
#include <array>
#include <cmath>

#include "core/error.hpp"
#include "core/parallel.hpp"
#include "ops/backend.hpp"

namespace atelier::optim {
namespace {

constexpr std::int64_t block_size = 1 << 14;

double block_sum(const float* values, std::int64_t count) {
    constexpr std::int64_t lanes = 8;
    std::array<double, lanes> sums{};
    std::int64_t i = 0;
    for (; i + lanes <= count; i += lanes)
        for (std::int64_t lane = 0; lane < lanes; ++lane) {
            const double value = values[i + lane];
            sums[static_cast<std::size_t>(lane)] += value * value;
        }
    for (std::size_t lane = 0; i < count; ++i, ++lane)
        sums[lane] += static_cast<double>(values[i]) * values[i];
    return ((sums[0] + sums[1]) + (sums[2] + sums[3])) +
           ((sums[4] + sums[5]) + (sums[6] + sums[7]));
}

}  // namespace

GradientNorm::GradientNorm(std::int64_t capacity)
    : blocks_(static_cast<std::size_t>((capacity + block_size - 1) / block_size), 0.0) {}

double GradientNorm::sum_of_squares(std::span<const float> gradient) {
    const auto size = static_cast<std::int64_t>(gradient.size());
    if (current_device() == Device::cuda)
        return ops::sum_from_device([&](double* sum) { ops::backend().sum_of_squares(size, gradient.data(), sum); });
    const std::int64_t blocks = (size + block_size - 1) / block_size;
    ATELIER_CHECK(blocks <= static_cast<std::int64_t>(blocks_.size()),
                  "{} numbers, room for {} blocks of {}", size, blocks_.size(), block_size);
    parallel_for(blocks, 1, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t block = begin; block < end; ++block) {
            const std::int64_t at = block * block_size;
            blocks_[static_cast<std::size_t>(block)] =
                block_sum(gradient.data() + at, std::min(block_size, size - at));
        }
    });
    double sum = 0;
    for (std::int64_t block = 0; block < blocks; ++block)
        sum += blocks_[static_cast<std::size_t>(block)];
    return sum;
}

double clip_scale(double norm, double max_norm) {
    ATELIER_CHECK_KIND(
        ErrorKind::numeric, std::isfinite(norm),
        "the gradient's norm is {}: lower the learning rate or look for damaged weights", norm);
    return max_norm > 0.0 ? std::min(1.0, max_norm / (norm + 1e-6)) : 1.0;
}

std::int64_t first_non_finite(std::span<const float> values) {
    for (std::size_t i = 0; i < values.size(); ++i)
        if (!std::isfinite(values[i])) return static_cast<std::int64_t>(i);
    return -1;
}

}  // namespace atelier::optim
