#pragma once

#include <algorithm>
#include <cmath>
#include <functional>
#include <string>
#include <vector>

#include "core/philox.hpp"
#include "test_device.hpp"

namespace atelier::testing {

inline ::testing::Environment* const device_environment = ::testing::AddGlobalTestEnvironment(new DeviceEnvironment);

using Doubles = std::vector<double>;
using Floats = std::vector<float, SharedAllocator<float>>;

/// A kernel beside its slow reference in double. Inputs are flat; the reference is the definition, written plainly.
struct KernelCase {
    std::string name;
    std::vector<std::size_t> input_sizes;
    std::function<Doubles(const std::vector<Doubles>&)> reference;
    std::function<Floats(const std::vector<Floats>&)> forward;
    /// Gradients of every input from the gradient of the output; empty: no backward pass.
    std::function<std::vector<Floats>(const std::vector<Floats>&, const Floats&)> backward;
};

struct Verdict {
    double forward_error = 0, backward_error = 0;  ///< largest difference over the RMS of the expected
};

inline double error_over_rms(const Floats& found, const Doubles& expected) {
    if (found.size() != expected.size()) return INFINITY;
    double square = 0, worst = 0;
    for (std::size_t i = 0; i < expected.size(); ++i) {
        square += expected[i] * expected[i];
        worst = std::max(worst, std::abs(double(found[i]) - expected[i]));
    }
    const double rms = std::sqrt(square / static_cast<double>(std::max<std::size_t>(expected.size(), 1)));
    return rms == 0 ? worst : worst / rms;
}

/// Runs both on the same random inputs; gradients of the reference are central differences in double of
/// sum(output * weights), element by element.
inline Verdict judge(const KernelCase& c, std::uint64_t seed) {
    std::vector<Floats> inputs;
    std::vector<Doubles> exact;
    for (std::size_t i = 0; i < c.input_sizes.size(); ++i) {
        inputs.emplace_back(c.input_sizes[i]);
        fill_normal(random_key(seed, RandomUse::test, i), inputs.back());
        exact.emplace_back(inputs.back().begin(), inputs.back().end());
    }
    const Doubles expected = c.reference(exact);
    Verdict v;
    v.forward_error = error_over_rms(c.forward(inputs), expected);
    if (!c.backward) return v;
    Floats weights(expected.size());
    fill_normal(random_key(seed, RandomUse::test, 1000), weights);
    const auto loss = [&] {
        const Doubles y = c.reference(exact);
        double sum = 0;
        for (std::size_t i = 0; i < y.size(); ++i) sum += y[i] * weights[i];
        return sum;
    };
    const auto found = c.backward(inputs, weights);
    constexpr double step = 1e-5;
    for (std::size_t i = 0; i < exact.size(); ++i) {
        Doubles gradient(exact[i].size());
        for (std::size_t k = 0; k < exact[i].size(); ++k) {
            const double kept = exact[i][k];
            exact[i][k] = kept + step;
            const double up = loss();
            exact[i][k] = kept - step;
            const double down = loss();
            exact[i][k] = kept;
            gradient[k] = (up - down) / (2 * step);
        }
        v.backward_error = std::max(v.backward_error, error_over_rms(found.at(i), gradient));
    }
    return v;
}

}  // namespace atelier::testing
