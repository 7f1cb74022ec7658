#include "flow/guidance.hpp"

#include <cmath>

#include "core/error.hpp"
#include "flow/on_device.hpp"
#include "flow/reduce.hpp"

namespace atelier::flow {
namespace {

template <typename T>
T combined(T scale, T conditional, T unconditional) {
    return unconditional + scale * (conditional - unconditional);
}

template <typename... Spans>
void check_sizes(std::int64_t channels, std::size_t n, const Spans&... spans) {
    ATELIER_CHECK(
        channels > 0 && n % static_cast<std::size_t>(channels) == 0 && ((spans.size() == n) && ...),
        "guidance needs spans of one size, a multiple of {} channels; found {} and more", channels,
        n);
}

}  // namespace

GuidanceTrain parse_guidance_train(const std::string& word) {
    for (const GuidanceTrain train :
         {GuidanceTrain::conditional, GuidanceTrain::guided, GuidanceTrain::none})
        if (word == name_of(train)) return train;
    ATELIER_FAIL(ErrorKind::usage,
                 "guidance train must be conditional, guided or none, found \"{}\"", word);
}

const char* name_of(GuidanceTrain train) {
    switch (train) {
        case GuidanceTrain::conditional:
            return "conditional";
        case GuidanceTrain::guided:
            return "guided";
        case GuidanceTrain::none:
            return "none";
    }
    return "unknown";
}

template <typename T>
void guide(const Guidance& guidance, std::int64_t channels, std::span<const T> conditional,
           std::span<const T> unconditional, std::span<T> out) {
    check_sizes(channels, out.size(), conditional, unconditional);
    const T scale = static_cast<T>(guidance.scale);
    if constexpr (std::is_same_v<T, float>)
        if (runs_on_device<T>())
            return ops::backend().guide(static_cast<std::int64_t>(out.size()) / channels, channels, scale, guidance.rescale, conditional.data(),
                                        unconditional.data(), out.data());
    const auto width = static_cast<std::size_t>(channels);
    for (std::size_t begin = 0; begin < out.size(); begin += width) {
        const T* c = conditional.data() + begin;
        const T* u = unconditional.data() + begin;
        T factor = 1;
        if (guidance.rescale) {
            const double wanted =
                ordered_sum(width, [&](std::size_t i) { return double(c[i]) * double(c[i]); });
            const double found = ordered_sum(width, [&](std::size_t i) {
                const double value = combined(scale, c[i], u[i]);
                return value * value;
            });
            if (found > 0.0) factor = static_cast<T>(std::sqrt(wanted / found));
        }
        for (std::size_t i = 0; i < width; ++i)
            out[begin + i] = factor * combined(scale, c[i], u[i]);
    }
}

template <typename T>
void guide_backward(const Guidance& guidance, std::int64_t channels, std::span<const T> conditional,
                    std::span<const T> unconditional, std::span<const T> d_out,
                    std::span<T> d_conditional, std::span<T> d_unconditional) {
    check_sizes(channels, d_out.size(), conditional, unconditional, d_conditional, d_unconditional);
    const T scale = static_cast<T>(guidance.scale);
    if constexpr (std::is_same_v<T, float>)
        if (runs_on_device<T>())
            return ops::backend().guide_backward(static_cast<std::int64_t>(d_out.size()) / channels, channels, scale, guidance.rescale,
                                                 conditional.data(), unconditional.data(), d_out.data(), d_conditional.data(),
                                                 d_unconditional.data());
    const auto width = static_cast<std::size_t>(channels);
    for (std::size_t begin = 0; begin < d_out.size(); begin += width) {
        const T* c = conditional.data() + begin;
        const T* u = unconditional.data() + begin;
        const T* g = d_out.data() + begin;
        // out = k v, k = |c| / |v|: d v = k (g - v (v.g)/|v|^2), and c also gets c (v.g) / (|v|
        // |c|).
        T k = 1, along_v = 0, along_c = 0;
        if (guidance.rescale) {
            const double cc =
                ordered_sum(width, [&](std::size_t i) { return double(c[i]) * double(c[i]); });
            const double vv = ordered_sum(width, [&](std::size_t i) {
                const double value = combined(scale, c[i], u[i]);
                return value * value;
            });
            const double vg = ordered_sum(width, [&](std::size_t i) {
                return double(combined(scale, c[i], u[i])) * double(g[i]);
            });
            if (vv > 0.0) {
                k = static_cast<T>(std::sqrt(cc / vv));
                along_v = static_cast<T>(vg / vv);
                if (cc > 0.0) along_c = static_cast<T>(vg / std::sqrt(vv * cc));
            }
        }
        for (std::size_t i = 0; i < width; ++i) {
            const T d_v = k * (g[i] - along_v * combined(scale, c[i], u[i]));
            d_conditional[begin + i] += scale * d_v + along_c * c[i];
            d_unconditional[begin + i] += (1 - scale) * d_v;
        }
    }
}

template void guide<float>(const Guidance&, std::int64_t, std::span<const float>,
                           std::span<const float>, std::span<float>);
template void guide<double>(const Guidance&, std::int64_t, std::span<const double>,
                            std::span<const double>, std::span<double>);
template void guide_backward<float>(const Guidance&, std::int64_t, std::span<const float>,
                                    std::span<const float>, std::span<const float>,
                                    std::span<float>, std::span<float>);
template void guide_backward<double>(const Guidance&, std::int64_t, std::span<const double>,
                                     std::span<const double>, std::span<const double>,
                                     std::span<double>, std::span<double>);

}  // namespace atelier::flow
