#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "core/device.hpp"
#include "core/parallel.hpp"
#include "model/vae/vae.hpp"
#include "ops/activation.hpp"
#include "ops/attention.hpp"
#include "ops/backend.hpp"
#include "ops/linear.hpp"
#include "ops/picture.hpp"

namespace atelier::vae {

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

Codec::Image Codec::take(Arena& arena, std::int64_t height, std::int64_t width, std::int64_t channels) const {
    return {arena.take_f32({height * width, channels}, vae_.device()), height, width, channels};
}

ops::ConvolutionShape Codec::shape_of(const ConvRows& rows, const Image& x, std::int64_t stride) const {
    const Shape& weight = vae_.table().spec(rows.weight).shape;
    ops::ConvolutionShape s{.in_channels = x.channels, .out_channels = weight[0], .height = x.height, .width = x.width, .kernel = weight[2]};
    s.stride = stride;
    s.pad_end = s.kernel > 1 ? 1 : 0;
    s.pad_begin = stride == 2 ? 0 : s.pad_end;  // of stride 2: zeros at the right and the bottom only
    return s;
}

// Each step takes its result from the arena first, so that what it takes after that can be released; a measuring arena makes
// the same requests and computes nothing.
void Codec::convolve(Arena& arena, const ConvRows& rows, const Image& x, std::int64_t stride, const Image& y) {
    const ops::ConvolutionShape shape = shape_of(rows, x, stride);
    const bool runs = !arena.is_measuring();
    if (vae_.device() != Device::cpu) {
        if (runs) ops::backend().convolution(shape, x.data.f32(), weights_[rows.weight].f32(), weights_[rows.bias].f32(), y.data.f32());
        return;
    }
    if (shape.kernel == 1) {
        if (runs) ops::linear(x.data, weights_[rows.weight].reshaped({y.channels, x.channels}), weights_[rows.bias], y.data);
        return;
    }
    const std::size_t mark = arena.mark();
    const Tensor taken = arena.take_f32({scratch(rows, shape)});
    if (runs) prepared(rows, shape).run(x.data.f32(), y.data.f32(), taken.f32());
    arena.release(mark);
}

Codec::Image Codec::convolve(Arena& arena, const ConvRows& rows, const Image& x, std::int64_t stride) {
    const ops::ConvolutionShape shape = shape_of(rows, x, stride);
    const Image y = take(arena, shape.out_height(), shape.out_width(), shape.out_channels);
    convolve(arena, rows, x, stride, y);
    return y;
}

Codec::Image Codec::residual(Arena& arena, const ResidualRows& rows, const Image& x) {
    const Image y = take(arena, x.height, x.width, rows.out);
    const std::size_t mark = arena.mark(vae_.device());
    const Image normed = take(arena, x.height, x.width, x.channels);
    const bool runs = !arena.is_measuring();
    if (runs) ops::channel_norm(x.pixels(), x.channels, x.data.f32(), weights_[rows.norm1].f32(), true, normed.data.f32());
    const Image middle = convolve(arena, rows.conv1, normed, 1);
    if (runs)
        ops::channel_norm(x.pixels(), rows.out, middle.data.f32(), weights_[rows.norm2].f32(), true, middle.data.f32());
    convolve(arena, rows.conv2, middle, 1, y);
    const Image identity = rows.shortcut.weight >= 0 ? convolve(arena, rows.shortcut, x, 1) : x;
    if (runs) ops::add(identity.data.f32(), y.data.f32(), y.data.elements());
    arena.release(mark, vae_.device());
    return y;
}

Codec::Image Codec::attention(Arena& arena, const AttentionRows& rows, const Image& x) {
    const Image y = take(arena, x.height, x.width, x.channels);
    const std::size_t mark = arena.mark(vae_.device());
    const Image normed = take(arena, x.height, x.width, x.channels), qkv = take(arena, x.height, x.width, 3 * x.channels);
    const Image attended = take(arena, x.height, x.width, x.channels);
    ops::AttentionShape s;
    s.queries = s.own_keys = x.pixels();
    s.heads = s.kv_heads = 1;
    s.head_dim = s.out_stride = x.channels;
    s.q_stride = s.own_stride = 3 * x.channels;
    s.scale = 1.0f / std::sqrt(static_cast<float>(x.channels));
    const Tensor workspace = arena.take_f32({ops::attention_workspace(s)}, vae_.device());
    const bool runs = !arena.is_measuring();
    if (runs) ops::channel_norm(x.pixels(), x.channels, x.data.f32(), weights_[rows.norm].f32(), false, normed.data.f32());
    convolve(arena, rows.qkv, normed, 1, qkv);
    const float* q = qkv.data.f32();
    if (runs) ops::attention(s, q, {}, {q + x.channels, q + 2 * x.channels}, attended.data.f32(), nullptr, workspace);
    convolve(arena, rows.proj, attended, 1, y);
    if (runs) ops::add(x.data.f32(), y.data.f32(), y.data.elements());
    arena.release(mark, vae_.device());
    return y;
}

Codec::Image Codec::middle(Arena& arena, const MidRows& rows, const Image& x) {
    return residual(arena, rows.last, attention(arena, rows.attention, residual(arena, rows.first, x)));
}

Codec::Image Codec::head(Arena& arena, const HalfRows& rows, const Image& x) {
    if (!arena.is_measuring())
        ops::channel_norm(x.pixels(), x.channels, x.data.f32(), weights_[rows.norm_out].f32(), true, x.data.f32());
    return convolve(arena, rows.conv_out, x, 1);
}

void Codec::show(const Arena& arena, const Observer& observe, const std::string& name, const Image& x) const {
    if (!observe || arena.is_measuring()) return;
    std::vector<float> copy(vae_.device() == Device::cpu ? 0 : static_cast<std::size_t>(x.data.elements()));
    if (!copy.empty()) transfer(x.data, Tensor::of(copy.data(), x.data.shape()));
    observe(name, copy.empty() ? x.data.f32() : copy.data(), x.height, x.width, x.channels);
}

Codec::Image Codec::run_decoder(Arena& arena, const Image& latents, const Observer& observe) {
    const HalfRows& rows = vae_.decoder;
    Image x = convolve(arena, vae_.post_quant, latents, 1);
    x = convolve(arena, rows.conv_in, x, 1);
    show(arena, observe, "decoder.conv_in", x);
    x = middle(arena, rows.mid, x);
    show(arena, observe, "decoder.mid_block", x);
    for (std::size_t i = 0; i < rows.levels.size(); ++i) {
        const LevelRows& level = rows.levels[i];
        const Image input = x;
        for (const ResidualRows& r : level.residuals) x = residual(arena, r, x);
        if (level.resamples) {
            const Image up = take(arena, 2 * x.height, 2 * x.width, x.channels);
            if (!arena.is_measuring()) ops::upsample_nearest(x.height, x.width, x.channels, x.data.f32(), up.data.f32());
            x = convolve(arena, level.resample, up, 1);
            if (!arena.is_measuring())
                ops::add_duplicate_up(input.height, input.width, level.in, level.out, level.temporal ? 2 : 1, input.data.f32(),
                                      x.data.f32());
        }
        show(arena, observe, fmt::format("decoder.up_blocks.{}", i), x);
    }
    return head(arena, rows, x);
}

Codec::Image Codec::run_encoder(Arena& arena, const Image& picture, const Observer& observe) {
    const HalfRows& rows = vae_.encoder;
    Image x = convolve(arena, rows.conv_in, picture, 1);
    show(arena, observe, "encoder.conv_in", x);
    for (std::size_t i = 0; i < rows.levels.size(); ++i) {
        const LevelRows& level = rows.levels[i];
        const Image input = x;
        for (const ResidualRows& r : level.residuals) x = residual(arena, r, x);
        if (level.resamples) x = convolve(arena, level.resample, x, 2);
        if (!arena.is_measuring())
            ops::add_average_down(input.height, input.width, level.in, level.out, level.temporal ? 2 : 1,
                                  level.resamples ? 2 : 1, input.data.f32(), x.data.f32());
        show(arena, observe, fmt::format("encoder.down_blocks.{}", i), x);
    }
    x = middle(arena, rows.mid, x);
    show(arena, observe, "encoder.mid_block", x);
    x = head(arena, rows, x);
    return convolve(arena, vae_.quant, x, 1);
}

std::int64_t Codec::lanes(const PictureUse& use) const {
    return vae_.device() == Device::cpu ? std::clamp<std::int64_t>(use.decoded, 1, threads()) : 1;
}

Bytes Codec::measure(std::int64_t height, std::int64_t width, bool decoder) {
    const DeviceScope scope(vae_.device());
    const Config& c = vae_.config();
    Arena arena = Arena::measuring("vae");
    if (decoder)
        run_decoder(arena, take(arena, height / c.factor(), width / c.factor(), c.z), {});
    else
        run_encoder(arena, take(arena, height, width, c.channels), {});
    return {arena.peak(), arena.peak(Device::cuda)};
}

void Codec::reserve(const PictureUse& use) {
    const std::tuple key(use.height, use.width, use.decoded > 0);
    auto found = planned_.find(key);
    if (found == planned_.end()) found = planned_.emplace(key, measure(use.height, use.width, use.decoded > 0)).first;
    const auto needed = static_cast<std::size_t>(lanes(use));
    const Bytes held = arenas_.empty() ? Bytes() : arenas_[0].bytes(), picture = larger(found->second, held);
    if (picture == held && arenas_.size() >= needed) return;
    const std::size_t count = std::max(arenas_.size(), needed);
    arenas_.clear();
    for (std::size_t i = 0; i < count; ++i) arenas_.emplace_back("vae", picture);
}

Bytes Codec::bytes() const {
    Bytes bytes;
    for (const auto& [key, convolution] : convolutions_) bytes += convolution.bytes();
    for (const Arena& arena : arenas_) bytes += arena.bytes();
    return bytes;
}

void Codec::decode_raw(const float* latents, std::int64_t height, std::int64_t width, float* picture, const Observer& observe) {
    const Config& c = vae_.config();
    reserve({height * c.factor(), width * c.factor(), 1});
    decode_in(arenas_[0], latents, height, width, picture, observe);
}

void Codec::decode_in(Arena& arena, const float* latents, std::int64_t height, std::int64_t width, float* picture, const Observer& observe) {
    const DeviceScope scope(vae_.device());
    const Config& c = vae_.config();
    const std::size_t mark = arena.mark(vae_.device());
    const Image in = take(arena, height, width, c.z);
    transfer(Tensor::of(latents, in.data.shape()), in.data);
    const Image out = run_decoder(arena, in, observe);
    transfer(out.data, Tensor::of(picture, out.data.shape()));
    arena.release(mark, vae_.device());
}

void Codec::encode_raw(const float* picture, std::int64_t height, std::int64_t width, float* posterior, const Observer& observe) {
    const DeviceScope scope(vae_.device());
    const Config& c = vae_.config();
    ATELIER_CHECK(height % c.factor() == 0 && width % c.factor() == 0, "a picture of {} x {} pixels, multiples of {} needed",
                  height, width, c.factor());
    reserve({height, width, 0});
    Arena& arena = arenas_[0];
    const std::size_t mark = arena.mark(vae_.device());
    const Image in = take(arena, height, width, c.channels);
    transfer(Tensor::of(picture, in.data.shape()), in.data);
    const Image out = run_encoder(arena, in, observe);
    transfer(out.data, Tensor::of(posterior, out.data.shape()));
    for (std::int64_t p = 0; p < out.pixels(); ++p)
        for (std::int64_t j = c.z; j < 2 * c.z; ++j) {
            float& v = posterior[p * 2 * c.z + j];
            v = std::clamp(v, log_variance_low, log_variance_high);
        }
    arena.release(mark, vae_.device());
}

void Codec::decode(const Tensor& latents, std::int64_t height, std::int64_t width, const Tensor& pictures) {
    const Config& c = vae_.config();
    const std::int64_t batch = latents.size(0), count = height * width * c.z;
    const std::int64_t picture = height * width * c.factor() * c.factor() * c.channels;
    ATELIER_CHECK(latents.elements() == batch * count && pictures.elements() == batch * picture,
                  "decoding latents {} on a grid of {} x {} into {}", latents.shape().str(), height, width,
                  pictures.shape().str());
    const PictureUse use{height * c.factor(), width * c.factor(), batch};
    reserve(use);
    const std::int64_t at_once = lanes(use);
    // A lane decodes every at_once-th picture; a single one runs its own operations in parallel.
    const auto decode_lane = [&](std::int64_t lane) {
        for (std::int64_t b = lane; b < batch; b += at_once) {
            // The picture's memory is larger than the latents': it holds them until they have been copied.
            float* out = pictures.f32() + b * picture;
            const float* in = latents.f32() + b * count;
            for (std::int64_t i = 0; i < count; ++i) {
                const auto channel = static_cast<std::size_t>(i % c.z);
                out[i] = in[i] * c.latents_std[channel] + c.latents_mean[channel];
            }
            decode_in(arenas_[static_cast<std::size_t>(lane)], out, height, width, out, {});
            for (std::int64_t i = 0; i < picture; ++i) out[i] = std::clamp(out[i], -1.0f, 1.0f);
        }
    };
    parallel_for(at_once, 1, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t lane = begin; lane < end; ++lane) decode_lane(lane);
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

Bytes planned_bytes(const Vae& vae, std::span<const PictureUse> uses) {
    const nn::ParameterStore none;
    Codec codec(vae, none);
    codec.plans_only_ = true;
    Bytes picture, all;
    std::int64_t lanes = 0;
    for (const PictureUse& use : uses) {
        picture = larger(picture, codec.measure(use.height, use.width, use.decoded > 0));
        lanes = std::max(lanes, codec.lanes(use));
    }
    for (std::int64_t i = 0; i < lanes; ++i) all += picture;
    for (const auto& [key, outline] : codec.outlines_) all += outline.bytes;
    return all;
}

void to_bytes(const float* picture, std::int64_t count, std::uint8_t* bytes) {
    for (std::int64_t i = 0; i < count; ++i) {
        ATELIER_CHECK_KIND(ErrorKind::numeric, std::isfinite(picture[i]), "a decoded picture holds {}: the weights have diverged, or are not the autoencoder's",
                           picture[i]);
        bytes[i] = static_cast<std::uint8_t>(std::nearbyint(std::clamp(picture[i] / 2.0f + 0.5f, 0.0f, 1.0f) * 255.0f));
    }
}

}  // namespace atelier::vae
