#include "ops/picture.hpp"

#include <algorithm>
#include <cmath>
#include <vector>

#include "ops/cpu/vector_math.hpp"

namespace atelier::ops {

void cpu::channel_norm(std::int64_t pixels, std::int64_t channels, const float* x, const float* gamma, bool silu, float* y) {
    constexpr std::int64_t block = 64;  // pixels whose SiLU is one loop, in the cache
    const float root = std::sqrt(static_cast<float>(channels));
    for (std::int64_t first = 0; first < pixels; first += block) {
        const std::int64_t end = std::min(first + block, pixels);
        for (std::int64_t p = first; p < end; ++p) {
            const float* in = x + p * channels;
            float* out = y + p * channels;
            const float square = cpu::lane_sum(channels, [=](std::int64_t c) { return in[c] * in[c]; });
            const float scale = root / std::max(std::sqrt(square), 1e-12f);
            for (std::int64_t c = 0; c < channels; ++c) out[c] = in[c] * scale * gamma[c];
        }
        if (silu)
            for (std::int64_t i = first * channels; i < end * channels; ++i) y[i] = cpu::silu_f32(y[i]);
    }
}

void channel_norm_backward(std::int64_t pixels, std::int64_t channels, const float* x, const float* gamma, bool silu,
                           const float* dy, float* dx, float* dgamma) {
    const float root = std::sqrt(static_cast<float>(channels));
    for (std::int64_t p = 0; p < pixels; ++p) {
        const float *in = x + p * channels, *d_out = dy + p * channels;
        float* d_in = dx + p * channels;
        const float norm = std::sqrt(cpu::lane_sum(channels, [=](std::int64_t c) { return in[c] * in[c]; }));
        const float scale = root / std::max(norm, 1e-12f);
        // d_in holds the gradient past the SiLU's, times gamma: that of the normalised pixel.
        for (std::int64_t c = 0; c < channels; ++c) {
            float d = d_out[c];
            if (silu) d *= cpu::silu_slope_f32(in[c] * scale * gamma[c]);
            dgamma[c] += d * in[c] * scale;
            d_in[c] = d * gamma[c];
        }
        // Below the floor of the norm the scale is a constant.
        const float along = norm <= 1e-12f ? 0.0f : cpu::lane_sum(channels, [=](std::int64_t c) { return d_in[c] * in[c]; }) / (norm * norm);
        for (std::int64_t c = 0; c < channels; ++c) d_in[c] = scale * (d_in[c] - in[c] * along);
    }
}

void cpu::upsample_nearest(std::int64_t height, std::int64_t width, std::int64_t channels, const float* x, float* y) {
    for (std::int64_t r = 0; r < 2 * height; ++r)
        for (std::int64_t c = 0; c < 2 * width; ++c)
            std::copy_n(x + (r / 2 * width + c / 2) * channels, channels, y + (r * 2 * width + c) * channels);
}

void upsample_nearest_backward(std::int64_t height, std::int64_t width, std::int64_t channels, const float* dy, float* dx) {
    for (std::int64_t r = 0; r < height; ++r)
        for (std::int64_t c = 0; c < width; ++c) {
            const float *above = dy + (2 * r * 2 * width + 2 * c) * channels, *below = above + 2 * width * channels;
            float* out = dx + (r * width + c) * channels;
            for (std::int64_t k = 0; k < channels; ++k) out[k] = above[k] + above[channels + k] + below[k] + below[channels + k];
        }
}

void cpu::add_average_down(std::int64_t height, std::int64_t width, std::int64_t in_channels, std::int64_t out_channels,
                      std::int64_t frames, std::int64_t space, const float* x, float* y) {
    const std::int64_t square = space * space, group = in_channels * frames * square / out_channels;
    for (std::int64_t r = 0; r < height / space; ++r)
        for (std::int64_t c = 0; c < width / space; ++c) {
            float* out = y + (r * (width / space) + c) * out_channels;
            for (std::int64_t o = 0; o < out_channels; ++o) {
                float sum = 0;
                for (std::int64_t k = o * group; k < (o + 1) * group; ++k) {
                    if (k / square % frames != frames - 1) continue;
                    const std::int64_t row = r * space + k % square / space, column = c * space + k % space;
                    sum += x[(row * width + column) * in_channels + k / (square * frames)];
                }
                out[o] += sum / static_cast<float>(group);
            }
        }
}

void add_average_down_backward(std::int64_t height, std::int64_t width, std::int64_t in_channels, std::int64_t out_channels,
                               std::int64_t frames, std::int64_t space, const float* dy, float* dx) {
    const std::int64_t square = space * space, group = in_channels * frames * square / out_channels;
    for (std::int64_t r = 0; r < height / space; ++r)
        for (std::int64_t c = 0; c < width / space; ++c) {
            const float* d_out = dy + (r * (width / space) + c) * out_channels;
            for (std::int64_t o = 0; o < out_channels; ++o)
                for (std::int64_t k = o * group; k < (o + 1) * group; ++k) {
                    if (k / square % frames != frames - 1) continue;
                    const std::int64_t row = r * space + k % square / space, column = c * space + k % space;
                    dx[(row * width + column) * in_channels + k / (square * frames)] += d_out[o] / static_cast<float>(group);
                }
        }
}

void cpu::add_duplicate_up(std::int64_t height, std::int64_t width, std::int64_t in_channels, std::int64_t out_channels,
                      std::int64_t frames, const float* x, float* y) {
    const std::int64_t repeats = out_channels * frames * 4 / in_channels;
    thread_local std::vector<std::int32_t> sources;  // of each corner's channels; grows to the largest level's once
    sources.resize(static_cast<std::size_t>(4 * out_channels));
    for (std::int64_t corner = 0; corner < 4; ++corner)
        for (std::int64_t o = 0; o < out_channels; ++o)
            sources[static_cast<std::size_t>(corner * out_channels + o)] = static_cast<std::int32_t>(((o * frames + frames - 1) * 4 + corner) / repeats);
    for (std::int64_t r = 0; r < 2 * height; ++r)
        for (std::int64_t c = 0; c < 2 * width; ++c) {
            const float* in = x + (r / 2 * width + c / 2) * in_channels;
            const std::int32_t* source = sources.data() + (r % 2 * 2 + c % 2) * out_channels;
            float* out = y + (r * 2 * width + c) * out_channels;
            for (std::int64_t o = 0; o < out_channels; ++o) out[o] += in[source[o]];
        }
}

void add_duplicate_up_backward(std::int64_t height, std::int64_t width, std::int64_t in_channels, std::int64_t out_channels,
                               std::int64_t frames, const float* dy, float* dx) {
    const std::int64_t repeats = out_channels * frames * 4 / in_channels;
    for (std::int64_t r = 0; r < 2 * height; ++r)
        for (std::int64_t c = 0; c < 2 * width; ++c) {
            float* d_in = dx + (r / 2 * width + c / 2) * in_channels;
            const float* d_out = dy + (r * 2 * width + c) * out_channels;
            for (std::int64_t o = 0; o < out_channels; ++o)
                d_in[((o * frames + frames - 1) * 4 + r % 2 * 2 + c % 2) / repeats] += d_out[o];
        }
}

}  // namespace atelier::ops
