#pragma once

#include <cstdint>

#include "ops/dispatch.hpp"

// Operations on pictures with channels last, [height, width, channels]. On the CPU each runs on its calling thread (pictures of a
// batch are what runs side by side); gradients run there alone.
namespace atelier::ops {

namespace cpu {

/// y = x / max(||x||, 1e-12) * sqrt(channels) * gamma for each pixel, then SiLU if `silu`. y may be x.
void channel_norm(std::int64_t pixels, std::int64_t channels, const float* x, const float* gamma, bool silu, float* y);

/// Each pixel twice in both directions: [h, w, c] -> [2h, 2w, c].
void upsample_nearest(std::int64_t height, std::int64_t width, std::int64_t channels, const float* x, float* y);

/// Down shortcut of the residual autoencoder: pixels of a space x space square (and `frames` frames, all but the last zero)
/// become channels in the order (channel, frame, row, column), whose consecutive groups are averaged to out_channels; ADDED
/// to y [h / space, w / space, out_channels].
void add_average_down(std::int64_t height, std::int64_t width, std::int64_t in_channels, std::int64_t out_channels,
                      std::int64_t frames, std::int64_t space, const float* x, float* y);

/// Up shortcut: channels are repeated, then spread to (channel, frame, row, column), of the frames the last is kept; ADDED to
/// y [2h, 2w, out_channels].
void add_duplicate_up(std::int64_t height, std::int64_t width, std::int64_t in_channels, std::int64_t out_channels,
                      std::int64_t frames, const float* x, float* y);

}  // namespace cpu

ATELIER_OP(channel_norm);
ATELIER_OP(upsample_nearest);
ATELIER_OP(add_average_down);
ATELIER_OP(add_duplicate_up);

/// dx is written, dgamma is added to; x as it was before the norm. dx may be dy.
void channel_norm_backward(std::int64_t pixels, std::int64_t channels, const float* x, const float* gamma, bool silu,
                           const float* dy, float* dx, float* dgamma);
/// dx [h, w, c] is written from dy [2h, 2w, c].
void upsample_nearest_backward(std::int64_t height, std::int64_t width, std::int64_t channels, const float* dy, float* dx);
/// dx is ADDED to; sizes as in the forward.
void add_average_down_backward(std::int64_t height, std::int64_t width, std::int64_t in_channels, std::int64_t out_channels,
                               std::int64_t frames, std::int64_t space, const float* dy, float* dx);
/// dx is ADDED to; sizes as in the forward.
void add_duplicate_up_backward(std::int64_t height, std::int64_t width, std::int64_t in_channels, std::int64_t out_channels,
                               std::int64_t frames, const float* dy, float* dx);

}  // namespace atelier::ops
