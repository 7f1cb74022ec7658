#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "core/parallel.hpp"
#include "model/vae/vae.hpp"
#include "ops/activation.hpp"
#include "ops/attention.hpp"
#include "ops/linear.hpp"
#include "ops/picture.hpp"

namespace atelier::vae {
namespace {

Tensor take(Arena& arena, std::int64_t pixels, std::int64_t channels) { return arena.take_f32({pixels, channels}); }

}  // namespace

Codec::Codec(const Vae& vae, const nn::ParameterStore& weights) : vae_(vae), weights_(weights) {}

const ops::Convolution& Codec::prepared(const ConvRows& rows, const ops::ConvolutionShape& shape) {
    const std::tuple key(rows.weight, shape.height, shape.width);
    auto found = convolutions_.find(key);
    if (found != convolutions_.end()) return found->second;
    for (auto other = convolutions_.lower_bound({rows.weight, 0, 0}); other != convolutions_.end() && std::get<0>(other->first) == rows.weight;
         ++other)
        if (ops::shares_weights(other->second.shape(), shape))
            return convolutions_.emplace(key, ops::Convolution(shape, other->second)).first->second;
    return convolutions_.emplace(key, ops::Convolution(shape, weights_[rows.weight].f32(), weights_[rows.bias].f32())).first->second;
}

std::int64_t Codec::scratch(const ConvRows& rows, const ops::ConvolutionShape& shape) {
    if (!plans_only_) return prepared(rows, shape).scratch();
    const std::tuple key(rows.weight, shape.height, shape.width);
    if (const auto found = outlines_.find(key); found != outlines_.end()) return found->second.scratch;
    bool shares = false;
    for (auto other = outlines_.lower_bound({rows.weight, 0, 0}); other != outlines_.end() && std::get<0>(other->first) == rows.weight; ++other)
        shares = shares || ops::shares_weights(other->second.shape, shape);
    // Of zeros, one at a time: what it holds and takes doesn't depend on the numbers.
    const std::vector<float> weights(static_cast<std::size_t>(vae_.table().spec(rows.weight).shape.elements())),
        bias(static_cast<std::size_t>(shape.out_channels));
    const ops::Convolution convolution(shape, weights.data(), bias.data());
    outlines_[key] = {shape, shares ? 0 : convolution.bytes(), convolution.scratch()};
    return convolution.scratch();
}

// Each step takes its result from the arena first, so that what it takes after that can be released; a measuring arena makes
// the same requests and computes nothing.
Codec::Image Codec::convolve(Arena& arena, const ConvRows& rows, const Image& x, std::int64_t out_channels, std::int64_t stride) {
    const Shape& kernel = vae_.table().spec(rows.weight).shape;
    if (kernel[2] == 1) {
        Image y{take(arena, x.pixels(), out_channels), x.height, x.width, out_channels};
        if (!arena.is_measuring())
            ops::linear(x.data, weights_[rows.weight].reshaped({out_channels, x.channels}), weights_[rows.bias], y.data);
        return y;
    }
    ops::ConvolutionShape shape{.in_channels = x.channels, .out_channels = out_channels, .height = x.height, .width = x.width};
    shape.stride = stride;
    if (stride == 2) shape.pad_begin = 0;  // zeros at the right and the bottom only
    Image y{take(arena, shape.out_height() * shape.out_width(), out_channels), shape.out_height(), shape.out_width(),
            out_channels};
    const std::size_t mark = arena.mark();
    const Tensor taken = arena.take_f32({scratch(rows, shape)});
    if (!arena.is_measuring()) prepared(rows, shape).run(x.data.f32(), y.data.f32(), taken.f32());
    arena.release(mark);
    return y;
}

Codec::Image Codec::residual(Arena& arena, const ResidualRows& rows, const Image& x) {
    Image y{take(arena, x.pixels(), rows.out), x.height, x.width, rows.out};
    const std::size_t mark = arena.mark();
    Image normed{take(arena, x.pixels(), x.channels), x.height, x.width, x.channels};
    const bool runs = !arena.is_measuring();
    if (runs) ops::channel_norm(x.pixels(), x.channels, x.data.f32(), weights_[rows.norm1].f32(), true, normed.data.f32());
    const Image middle = convolve(arena, rows.conv1, normed, rows.out, 1);
    if (runs)
        ops::channel_norm(x.pixels(), rows.out, middle.data.f32(), weights_[rows.norm2].f32(), true, middle.data.f32());
    const Image branch = convolve(arena, rows.conv2, middle, rows.out, 1);
    const Image identity = rows.shortcut.weight >= 0 ? convolve(arena, rows.shortcut, x, rows.out, 1) : x;
    if (runs) {
        const float *a = branch.data.f32(), *b = identity.data.f32();
        float* out = y.data.f32();
        for (std::int64_t i = 0; i < x.pixels() * rows.out; ++i) out[i] = a[i] + b[i];
    }
    arena.release(mark);
    return y;
}

Codec::Image Codec::attention(Arena& arena, const AttentionRows& rows, const Image& x) {
    Image y{take(arena, x.pixels(), x.channels), x.height, x.width, x.channels};
    const std::size_t mark = arena.mark();
    const Image normed{take(arena, x.pixels(), x.channels), x.height, x.width, x.channels};
    const Tensor qkv = take(arena, x.pixels(), 3 * x.channels), attended = take(arena, x.pixels(), x.channels);
    ops::AttentionShape s;
    s.queries = s.own_keys = x.pixels();
    s.heads = s.kv_heads = 1;
    s.head_dim = s.out_stride = x.channels;
    s.q_stride = s.own_stride = 3 * x.channels;
    s.scale = 1.0f / std::sqrt(static_cast<float>(x.channels));
    const Tensor workspace = arena.take_f32({ops::attention_workspace(s)});
    if (!arena.is_measuring()) {
        const auto map = [&](const ConvRows& conv, const Tensor& in, const Tensor& out) {
            const Tensor w = weights_[conv.weight];
            ops::linear(in, w.reshaped({w.size(0), w.size(1)}), weights_[conv.bias], out);
        };
        ops::channel_norm(x.pixels(), x.channels, x.data.f32(), weights_[rows.norm].f32(), false, normed.data.f32());
        map(rows.qkv, normed.data, qkv);
        const float* q = qkv.f32();
        ops::attention(s, q, {}, {q + x.channels, q + 2 * x.channels}, attended.f32(), nullptr, workspace);
        map(rows.proj, attended, y.data);
        ops::add(x.data.f32(), y.data.f32(), y.data.elements());
    }
    arena.release(mark);
    return y;
}

Codec::Image Codec::middle(Arena& arena, const MidRows& rows, const Image& x) {
    return residual(arena, rows.last, attention(arena, rows.attention, residual(arena, rows.first, x)));
}

Codec::Image Codec::head(Arena& arena, const HalfRows& rows, const Image& x, std::int64_t out_channels) {
    if (!arena.is_measuring())
        ops::channel_norm(x.pixels(), x.channels, x.data.f32(), weights_[rows.norm_out].f32(), true, x.data.f32());
    return convolve(arena, rows.conv_out, x, out_channels, 1);
}

Codec::Image Codec::run_decoder(Arena& arena, const Image& latents, const Observer& observe) {
    const auto show = [&](const std::string& name, const Image& x) {
        if (observe && !arena.is_measuring()) observe("decoder." + name, x.data.f32(), x.height, x.width, x.channels);
    };
    const HalfRows& rows = vae_.decoder;
    Image x = convolve(arena, vae_.post_quant, latents, latents.channels, 1);
    x = convolve(arena, rows.conv_in, x, rows.mid.first.in, 1);
    show("conv_in", x);
    x = middle(arena, rows.mid, x);
    show("mid_block", x);
    for (std::size_t i = 0; i < rows.levels.size(); ++i) {
        const LevelRows& level = rows.levels[i];
        const Image input = x;
        for (const ResidualRows& r : level.residuals) x = residual(arena, r, x);
        if (level.resamples) {
            Image up{take(arena, 4 * x.pixels(), x.channels), 2 * x.height, 2 * x.width, x.channels};
            if (!arena.is_measuring()) ops::upsample_nearest(x.height, x.width, x.channels, x.data.f32(), up.data.f32());
            x = convolve(arena, level.resample, up, level.out, 1);
            if (!arena.is_measuring())
                ops::add_duplicate_up(input.height, input.width, level.in, level.out, level.temporal ? 2 : 1, input.data.f32(),
                                      x.data.f32());
        }
        show(fmt::format("up_blocks.{}", i), x);
    }
    return head(arena, rows, x, vae_.config().channels);
}

Codec::Image Codec::run_encoder(Arena& arena, const Image& picture, const Observer& observe) {
    const auto show = [&](const std::string& name, const Image& x) {
        if (observe && !arena.is_measuring()) observe("encoder." + name, x.data.f32(), x.height, x.width, x.channels);
    };
    const HalfRows& rows = vae_.encoder;
    Image x = convolve(arena, rows.conv_in, picture, rows.levels[0].in, 1);
    show("conv_in", x);
    for (std::size_t i = 0; i < rows.levels.size(); ++i) {
        const LevelRows& level = rows.levels[i];
        const Image input = x;
        for (const ResidualRows& r : level.residuals) x = residual(arena, r, x);
        if (level.resamples) x = convolve(arena, level.resample, x, level.out, 2);
        if (!arena.is_measuring())
            ops::add_average_down(input.height, input.width, level.in, level.out, level.temporal ? 2 : 1,
                                  level.resamples ? 2 : 1, input.data.f32(), x.data.f32());
        show(fmt::format("down_blocks.{}", i), x);
    }
    x = middle(arena, rows.mid, x);
    show("mid_block", x);
    x = head(arena, rows, x, 2 * vae_.config().z);
    return convolve(arena, vae_.quant, x, 2 * vae_.config().z, 1);
}

std::size_t Codec::measure(std::int64_t height, std::int64_t width, bool decoder) {
    Arena arena = Arena::measuring("vae");
    if (decoder) {
        const std::int64_t h = height / vae_.config().factor(), w = width / vae_.config().factor();
        run_decoder(arena, {take(arena, h * w, vae_.config().z), h, w, vae_.config().z}, {});
    } else {
        run_encoder(arena, {take(arena, height * width, vae_.config().channels), height, width, vae_.config().channels}, {});
    }
    return arena.peak();
}

void Codec::prepare(std::int64_t height, std::int64_t width, bool decoder) {
    const std::tuple key(height, width, decoder);
    auto found = planned_.find(key);
    if (found == planned_.end()) found = planned_.emplace(key, measure(height, width, decoder)).first;
    if (arenas_.size() != static_cast<std::size_t>(threads()) || arenas_[0].capacity() < found->second) {
        arenas_.clear();
        for (int i = 0; i < threads(); ++i) arenas_.emplace_back("vae", found->second);
    }
}

std::size_t Codec::bytes() const {
    std::size_t bytes = 0;
    for (const auto& [key, convolution] : convolutions_) bytes += convolution.bytes();
    for (const Arena& arena : arenas_) bytes += arena.capacity();
    return bytes;
}

void Codec::decode_raw(const float* latents, std::int64_t height, std::int64_t width, float* picture, const Observer& observe) {
    const Config& c = vae_.config();
    prepare(height * c.factor(), width * c.factor(), true);
    Arena& arena = arenas_[static_cast<std::size_t>(thread_index())];
    const std::size_t mark = arena.mark();
    const Image in{take(arena, height * width, c.z), height, width, c.z};
    std::copy_n(latents, height * width * c.z, in.data.f32());
    const Image out = run_decoder(arena, in, observe);
    std::copy_n(out.data.f32(), out.pixels() * out.channels, picture);
    arena.release(mark);
}

void Codec::encode_raw(const float* picture, std::int64_t height, std::int64_t width, float* posterior, const Observer& observe) {
    const Config& c = vae_.config();
    ATELIER_CHECK(height % c.factor() == 0 && width % c.factor() == 0, "a picture of {} x {} pixels, multiples of {} needed",
                  height, width, c.factor());
    prepare(height, width, false);
    Arena& arena = arenas_[static_cast<std::size_t>(thread_index())];
    const std::size_t mark = arena.mark();
    const Image in{take(arena, height * width, c.channels), height, width, c.channels};
    std::copy_n(picture, height * width * c.channels, in.data.f32());
    const Image out = run_encoder(arena, in, observe);
    std::copy_n(out.data.f32(), out.pixels() * out.channels, posterior);
    for (std::int64_t p = 0; p < out.pixels(); ++p)
        for (std::int64_t j = c.z; j < 2 * c.z; ++j) {
            float& v = posterior[p * 2 * c.z + j];
            v = std::clamp(v, log_variance_low, log_variance_high);
        }
    arena.release(mark);
}

void Codec::decode(const Tensor& latents, std::int64_t height, std::int64_t width, const Tensor& pictures) {
    const Config& c = vae_.config();
    const std::int64_t batch = latents.size(0), count = height * width * c.z;
    const std::int64_t picture = height * width * c.factor() * c.factor() * c.channels;
    ATELIER_CHECK(latents.elements() == batch * count && pictures.elements() == batch * picture,
                  "decoding latents {} on a grid of {} x {} into {}", latents.shape().str(), height, width,
                  pictures.shape().str());
    prepare(height * c.factor(), width * c.factor(), true);
    parallel_for(batch, 1, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t b = begin; b < end; ++b) {
            // The picture's memory is larger than the latents': it holds them until they have been copied.
            float* out = pictures.f32() + b * picture;
            const float* in = latents.f32() + b * count;
            for (std::int64_t i = 0; i < count; ++i) {
                const auto channel = static_cast<std::size_t>(i % c.z);
                out[i] = in[i] * c.latents_std[channel] + c.latents_mean[channel];
            }
            decode_raw(out, height, width, out);
            for (std::int64_t i = 0; i < picture; ++i) out[i] = std::clamp(out[i], -1.0f, 1.0f);
        }
    });
}

void Codec::encode(const float* picture, std::int64_t height, std::int64_t width, float* latents) {
    const Config& c = vae_.config();
    const std::int64_t pixels = height * width, tokens = pixels / (c.factor() * c.factor());
    std::vector<float> channels_last(static_cast<std::size_t>(pixels * c.channels)),
        posterior(static_cast<std::size_t>(tokens * 2 * c.z));
    for (std::int64_t k = 0; k < c.channels; ++k)
        for (std::int64_t p = 0; p < pixels; ++p)
            channels_last[static_cast<std::size_t>(p * c.channels + k)] = picture[k * pixels + p];
    encode_raw(channels_last.data(), height, width, posterior.data());
    for (std::int64_t t = 0; t < tokens; ++t)
        for (std::int64_t j = 0; j < c.z; ++j)
            latents[t * c.z + j] = (posterior[static_cast<std::size_t>(t * 2 * c.z + j)] - c.latents_mean[static_cast<std::size_t>(j)]) /
                                   c.latents_std[static_cast<std::size_t>(j)];
}

std::size_t planned_bytes(const Vae& vae, std::span<const PictureUse> uses) {
    const nn::ParameterStore none;
    Codec codec(vae, none);
    codec.plans_only_ = true;
    std::size_t bytes = 0;
    for (const PictureUse& use : uses) bytes = std::max(bytes, codec.measure(use.height, use.width, use.decodes));
    bytes *= static_cast<std::size_t>(threads());
    for (const auto& [key, outline] : codec.outlines_) bytes += outline.bytes;
    return bytes;
}

void to_bytes(const float* picture, std::int64_t count, std::uint8_t* bytes) {
    for (std::int64_t i = 0; i < count; ++i) {
        const float unit = std::clamp(picture[i] / 2.0f + 0.5f, 0.0f, 1.0f);
        bytes[i] = static_cast<std::uint8_t>(std::nearbyint(unit * 255.0f));
    }
}

}  // namespace atelier::vae
