#include "model/vae/training.hpp"

#include <algorithm>
#include <cmath>

#include "ops/activation.hpp"
#include "ops/attention.hpp"
#include "ops/linear.hpp"
#include "ops/picture.hpp"

namespace atelier::vae {
namespace {

ops::AttentionShape one_head(std::int64_t pixels, std::int64_t channels) {
    ops::AttentionShape s;
    s.queries = s.own_keys = pixels;
    s.heads = s.kv_heads = 1;
    s.head_dim = s.out_stride = channels;
    s.q_stride = s.own_stride = 3 * channels;
    s.scale = 1.0f / std::sqrt(static_cast<float>(channels));
    return s;
}

void add(const Tensor& x, const Tensor& y) { ops::add(x.f32(), y.f32(), y.elements()); }

}  // namespace

// A measuring arena makes the same requests and computes nothing.
TrainingPass::TrainingPass(const Vae& vae, std::int64_t height, std::int64_t width)
    : vae_(vae), height_(height), width_(width), encoder_arena_(Arena::measuring("vae encoder")),
      decoder_arena_(Arena::measuring("vae decoder")), gradient_arena_(Arena::measuring("vae gradients")) {
    const Config& c = vae.config();
    ATELIER_CHECK(vae.device() == Device::cpu, "an autoencoder is trained on the CPU");
    ATELIER_CHECK(height % c.factor() == 0 && width % c.factor() == 0, "a picture of {} x {} pixels, multiples of {} needed", height,
                  width, c.factor());
    const std::int64_t h = height / c.factor(), w = width / c.factor();
    Run encode{encoder_arena_, nullptr, nullptr}, decode{decoder_arena_, nullptr, nullptr}, turn{gradient_arena_, nullptr, nullptr};
    run_encoder(encode, take(encode, height, width, c.channels));
    run_decoder(decode, take(decode, h, w, c.z));
    turn_encoder(turn, take(turn, h, w, 2 * c.z));
    gradient_arena_.release(0);
    turn_decoder(turn, take(turn, height, width, c.channels));
    encoder_arena_ = Arena("vae encoder", encoder_arena_.peak());
    decoder_arena_ = Arena("vae decoder", decoder_arena_.peak());
    gradient_arena_ = Arena("vae gradients", gradient_arena_.peak());
}

TrainingPass::Image TrainingPass::take(Run& run, std::int64_t height, std::int64_t width, std::int64_t channels) const {
    return {run.arena.take_f32({height * width, channels}), height, width, channels};
}

const ops::TrainableConvolution& TrainingPass::prepared(const ConvRows& rows, const Image& x, std::int64_t out_channels,
                                                        std::int64_t stride) {
    const std::tuple key(rows.weight, x.height, x.width);
    auto found = convolutions_.find(key);
    if (found == convolutions_.end()) {
        ops::ConvolutionShape shape{.in_channels = x.channels, .out_channels = out_channels, .height = x.height, .width = x.width};
        shape.stride = stride;
        if (stride == 2) shape.pad_begin = 0;  // zeros at the right and the bottom only
        found = convolutions_.emplace(key, ops::TrainableConvolution(shape)).first;
    }
    return found->second;
}

TrainingPass::Image TrainingPass::convolve(Run& run, const ConvRows& rows, const Image& x, std::int64_t out_channels,
                                           std::int64_t stride) {
    const Image y = take(run, x.height / stride, x.width / stride, out_channels);
    if (vae_.table().spec(rows.weight).shape[2] == 1) {
        if (run.computes())
            ops::linear(x.data, (*run.weights)[rows.weight].reshaped({out_channels, x.channels}), (*run.weights)[rows.bias], y.data);
        return y;
    }
    const auto& convolution = prepared(rows, x, out_channels, stride);
    const std::size_t mark = run.arena.mark();
    const Tensor scratch = run.arena.take_f32({convolution.scratch()});
    if (run.computes())
        convolution.forward(x.data.f32(), run.weight(rows.weight), run.weight(rows.bias), y.data.f32(), scratch.f32());
    run.arena.release(mark);
    return y;
}

TrainingPass::Image TrainingPass::convolve_backward(Run& run, const ConvRows& rows, const Image& x, const Image& d_out,
                                                    std::int64_t stride) {
    const Image d_x = take(run, d_out.height * stride, d_out.width * stride, vae_.table().spec(rows.weight).shape[1]);
    if (vae_.table().spec(rows.weight).shape[2] == 1) {
        if (run.computes()) {
            const Shape matrix{d_out.channels, d_x.channels};
            ops::linear_backward_weight(d_out.data, x.data, (*run.gradients)[rows.weight].reshaped(matrix), (*run.gradients)[rows.bias]);
            ops::linear_backward_input(d_out.data, (*run.weights)[rows.weight].reshaped(matrix), d_x.data, false);
        }
        return d_x;
    }
    const auto& convolution = prepared(rows, d_x, d_out.channels, stride);
    const std::size_t mark = run.arena.mark();
    const Tensor scratch = run.arena.take_f32({convolution.scratch()});
    if (run.computes())
        convolution.backward(x.data.f32(), run.weight(rows.weight), d_out.data.f32(), d_x.data.f32(), run.gradient(rows.weight),
                             run.gradient(rows.bias), scratch.f32());
    run.arena.release(mark);
    return d_x;
}

TrainingPass::Image TrainingPass::residual(Run& run, const ResidualRows& rows, const Image& x, Residual& kept) {
    kept.x = x;
    kept.normed1 = take(run, x.height, x.width, x.channels);
    if (run.computes())
        ops::channel_norm(x.pixels(), x.channels, x.data.f32(), run.weight(rows.norm1), true, kept.normed1.data.f32());
    kept.middle = convolve(run, rows.conv1, kept.normed1, rows.out, 1);
    kept.normed2 = take(run, x.height, x.width, rows.out);
    if (run.computes())
        ops::channel_norm(x.pixels(), rows.out, kept.middle.data.f32(), run.weight(rows.norm2), true, kept.normed2.data.f32());
    const Image y = convolve(run, rows.conv2, kept.normed2, rows.out, 1);
    const Image identity = rows.shortcut.weight >= 0 ? convolve(run, rows.shortcut, x, rows.out, 1) : x;
    if (run.computes()) add(identity.data, y.data);
    return y;
}

TrainingPass::Image TrainingPass::residual_backward(Run& run, const ResidualRows& rows, const Residual& kept, const Image& d_out) {
    const Image d_middle = convolve_backward(run, rows.conv2, kept.normed2, d_out, 1);
    if (run.computes())
        ops::channel_norm_backward(d_middle.pixels(), rows.out, kept.middle.data.f32(), run.weight(rows.norm2), true,
                                   d_middle.data.f32(), d_middle.data.f32(), run.gradient(rows.norm2));
    const Image d_x = convolve_backward(run, rows.conv1, kept.normed1, d_middle, 1);
    if (run.computes())
        ops::channel_norm_backward(d_x.pixels(), rows.in, kept.x.data.f32(), run.weight(rows.norm1), true, d_x.data.f32(),
                                   d_x.data.f32(), run.gradient(rows.norm1));
    const Image d_identity = rows.shortcut.weight >= 0 ? convolve_backward(run, rows.shortcut, kept.x, d_out, 1) : d_out;
    if (run.computes()) add(d_identity.data, d_x.data);
    return d_x;
}

TrainingPass::Image TrainingPass::attention(Run& run, const AttentionRows& rows, const Image& x, Attention& kept) {
    kept.x = x;
    kept.normed = take(run, x.height, x.width, x.channels);
    if (run.computes())
        ops::channel_norm(x.pixels(), x.channels, x.data.f32(), run.weight(rows.norm), false, kept.normed.data.f32());
    const Image qkv = convolve(run, rows.qkv, kept.normed, 3 * x.channels, 1);
    kept.qkv = qkv.data;
    const Image attended = take(run, x.height, x.width, x.channels);
    kept.attended = attended.data;
    kept.log_sum_exp = run.arena.take_f32({x.pixels()});
    const ops::AttentionShape s = one_head(x.pixels(), x.channels);
    const Tensor workspace = run.arena.take_f32({ops::attention_workspace(s)});
    if (run.computes()) {
        const float* q = qkv.data.f32();
        ops::attention(s, q, {}, {q + x.channels, q + 2 * x.channels}, attended.data.f32(), kept.log_sum_exp.f32(), workspace);
    }
    const Image y = convolve(run, rows.proj, attended, x.channels, 1);
    if (run.computes()) add(x.data, y.data);
    return y;
}

TrainingPass::Image TrainingPass::attention_backward(Run& run, const AttentionRows& rows, const Attention& kept, const Image& d_out) {
    const std::int64_t channels = d_out.channels;
    const Image attended{kept.attended, d_out.height, d_out.width, channels};
    const Image d_attended = convolve_backward(run, rows.proj, attended, d_out, 1);
    const Image d_qkv = take(run, d_out.height, d_out.width, 3 * channels);
    const ops::AttentionShape s = one_head(d_out.pixels(), channels);
    const Tensor workspace = run.arena.take_f32({ops::attention_backward_workspace(s)});
    if (run.computes()) {
        const float* q = kept.qkv.f32();
        float* d_q = d_qkv.data.f32();
        ops::attention_backward(s, q, {}, {q + channels, q + 2 * channels}, attended.data.f32(), kept.log_sum_exp.f32(),
                                d_attended.data.f32(), d_q, {}, {d_q + channels, d_q + 2 * channels}, workspace);
    }
    const Image d_x = convolve_backward(run, rows.qkv, kept.normed, d_qkv, 1);
    if (run.computes()) {
        ops::channel_norm_backward(d_x.pixels(), channels, kept.x.data.f32(), run.weight(rows.norm), false, d_x.data.f32(),
                                   d_x.data.f32(), run.gradient(rows.norm));
        add(d_out.data, d_x.data);
    }
    return d_x;
}

TrainingPass::Image TrainingPass::middle(Run& run, const MidRows& rows, const Image& x, Middle& kept) {
    const Image first = residual(run, rows.first, x, kept.first);
    return residual(run, rows.last, attention(run, rows.attention, first, kept.attention), kept.last);
}

TrainingPass::Image TrainingPass::middle_backward(Run& run, const MidRows& rows, const Middle& kept, const Image& d_out) {
    const Image d_last = residual_backward(run, rows.last, kept.last, d_out);
    return residual_backward(run, rows.first, kept.first, attention_backward(run, rows.attention, kept.attention, d_last));
}

TrainingPass::Image TrainingPass::head(Run& run, const HalfRows& rows, const Image& x, std::int64_t out_channels, Half& kept) {
    kept.head_in = x;
    kept.head_normed = take(run, x.height, x.width, x.channels);
    if (run.computes())
        ops::channel_norm(x.pixels(), x.channels, x.data.f32(), run.weight(rows.norm_out), true, kept.head_normed.data.f32());
    return convolve(run, rows.conv_out, kept.head_normed, out_channels, 1);
}

TrainingPass::Image TrainingPass::head_backward(Run& run, const HalfRows& rows, const Half& kept, const Image& d_out) {
    const Image d_x = convolve_backward(run, rows.conv_out, kept.head_normed, d_out, 1);
    if (run.computes())
        ops::channel_norm_backward(d_x.pixels(), d_x.channels, kept.head_in.data.f32(), run.weight(rows.norm_out), true,
                                   d_x.data.f32(), d_x.data.f32(), run.gradient(rows.norm_out));
    return d_x;
}

void TrainingPass::run_encoder(Run& run, const Image& picture) {
    const HalfRows& rows = vae_.encoder;
    encoder_.in = picture;
    Image x = encoder_.conv_in = convolve(run, rows.conv_in, picture, rows.levels[0].in, 1);
    encoder_.levels.resize(rows.levels.size());
    for (std::size_t i = 0; i < rows.levels.size(); ++i) {
        const LevelRows& level = rows.levels[i];
        Level& kept = encoder_.levels[i];
        kept.input = x;
        kept.residuals.resize(level.residuals.size());
        for (std::size_t k = 0; k < level.residuals.size(); ++k) x = residual(run, level.residuals[k], x, kept.residuals[k]);
        kept.last = x;
        if (level.resamples) {
            x = convolve(run, level.resample, x, level.out, 2);
        } else {  // the shortcut is added to it, and the residual before it is kept as it was
            const Image sum = take(run, x.height, x.width, x.channels);
            if (run.computes()) std::copy_n(x.data.f32(), x.data.elements(), sum.data.f32());
            x = sum;
        }
        if (run.computes())
            ops::add_average_down(kept.input.height, kept.input.width, level.in, level.out, level.temporal ? 2 : 1,
                                  level.resamples ? 2 : 1, kept.input.data.f32(), x.data.f32());
    }
    x = middle(run, rows.mid, x, encoder_.middle);
    posterior_in_ = head(run, rows, x, 2 * vae_.config().z, encoder_);
    encoder_.out = convolve(run, vae_.quant, posterior_in_, 2 * vae_.config().z, 1);
    posterior_ = run.arena.take_f32({x.pixels(), 2 * vae_.config().z});
}

TrainingPass::Image TrainingPass::turn_encoder(Run& run, const Image& d_posterior) {
    const HalfRows& rows = vae_.encoder;
    Image d = convolve_backward(run, vae_.quant, posterior_in_, d_posterior, 1);
    d = middle_backward(run, rows.mid, encoder_.middle, head_backward(run, rows, encoder_, d));
    for (std::size_t i = rows.levels.size(); i-- > 0;) {
        const LevelRows& level = rows.levels[i];
        const Level& kept = encoder_.levels[i];
        const Image d_level = d;
        if (level.resamples) d = convolve_backward(run, level.resample, kept.last, d, 2);
        for (std::size_t k = level.residuals.size(); k-- > 0;) d = residual_backward(run, level.residuals[k], kept.residuals[k], d);
        if (run.computes())
            ops::add_average_down_backward(d.height, d.width, level.in, level.out, level.temporal ? 2 : 1, level.resamples ? 2 : 1,
                                           d_level.data.f32(), d.data.f32());
    }
    return convolve_backward(run, rows.conv_in, encoder_.in, d, 1);
}

void TrainingPass::run_decoder(Run& run, const Image& latents) {
    const HalfRows& rows = vae_.decoder;
    latents_in_ = latents;
    decoder_.in = convolve(run, vae_.post_quant, latents, latents.channels, 1);
    Image x = decoder_.conv_in = convolve(run, rows.conv_in, decoder_.in, rows.mid.first.in, 1);
    x = middle(run, rows.mid, x, decoder_.middle);
    decoder_.levels.resize(rows.levels.size());
    for (std::size_t i = 0; i < rows.levels.size(); ++i) {
        const LevelRows& level = rows.levels[i];
        Level& kept = decoder_.levels[i];
        kept.input = x;
        kept.residuals.resize(level.residuals.size());
        for (std::size_t k = 0; k < level.residuals.size(); ++k) x = residual(run, level.residuals[k], x, kept.residuals[k]);
        if (!level.resamples) continue;
        kept.upsampled = take(run, 2 * x.height, 2 * x.width, x.channels);
        if (run.computes()) ops::upsample_nearest(x.height, x.width, x.channels, x.data.f32(), kept.upsampled.data.f32());
        x = convolve(run, level.resample, kept.upsampled, level.out, 1);
        if (run.computes())
            ops::add_duplicate_up(kept.input.height, kept.input.width, level.in, level.out, level.temporal ? 2 : 1,
                                  kept.input.data.f32(), x.data.f32());
    }
    decoder_.out = head(run, rows, x, vae_.config().channels, decoder_);
}

TrainingPass::Image TrainingPass::turn_decoder(Run& run, const Image& d_picture) {
    const HalfRows& rows = vae_.decoder;
    Image d = head_backward(run, rows, decoder_, d_picture);
    for (std::size_t i = rows.levels.size(); i-- > 0;) {
        const LevelRows& level = rows.levels[i];
        const Level& kept = decoder_.levels[i];
        const Image d_level = d;
        if (level.resamples) {
            const Image d_up = convolve_backward(run, level.resample, kept.upsampled, d, 1);
            d = take(run, d_up.height / 2, d_up.width / 2, d_up.channels);
            if (run.computes()) ops::upsample_nearest_backward(d.height, d.width, d.channels, d_up.data.f32(), d.data.f32());
        }
        for (std::size_t k = level.residuals.size(); k-- > 0;) d = residual_backward(run, level.residuals[k], kept.residuals[k], d);
        if (level.resamples && run.computes())
            ops::add_duplicate_up_backward(kept.input.height, kept.input.width, level.in, level.out, level.temporal ? 2 : 1,
                                           d_level.data.f32(), d.data.f32());
    }
    d = convolve_backward(run, rows.conv_in, decoder_.in, middle_backward(run, rows.mid, decoder_.middle, d), 1);
    return convolve_backward(run, vae_.post_quant, latents_in_, d, 1);
}

Tensor TrainingPass::encode(const nn::ParameterStore& weights, const Tensor& picture) {
    const Config& c = vae_.config();
    ATELIER_CHECK(picture.elements() == height_ * width_ * c.channels, "a picture {}, planned for {} x {} x {}", picture.shape().str(),
                  height_, width_, c.channels);
    encoder_arena_.release(0);
    Run run{encoder_arena_, &weights, nullptr};
    const Image in = take(run, height_, width_, c.channels);
    std::copy_n(picture.f32(), picture.elements(), in.data.f32());
    run_encoder(run, in);
    std::copy_n(encoder_.out.data.f32(), posterior_.elements(), posterior_.f32());
    for (std::int64_t p = 0; p < posterior_.size(0); ++p)
        for (std::int64_t j = c.z; j < 2 * c.z; ++j) {
            float& v = posterior_.f32()[p * 2 * c.z + j];
            v = std::clamp(v, log_variance_low, log_variance_high);
        }
    return posterior_;
}

void TrainingPass::encode_backward(const nn::ParameterStore& weights, const nn::ParameterStore& gradients, const Tensor& d_posterior) {
    gradient_arena_.release(0);
    Run run{gradient_arena_, &weights, &gradients};
    const Image d = take(run, encoder_.out.height, encoder_.out.width, encoder_.out.channels);
    std::copy_n(d_posterior.f32(), d.data.elements(), d.data.f32());
    for (std::int64_t i = 0; i < d.data.elements(); ++i)
        if (posterior_.f32()[i] != encoder_.out.data.f32()[i]) d.data.f32()[i] = 0;
    turn_encoder(run, d);
}

Tensor TrainingPass::decode(const nn::ParameterStore& weights, const Tensor& latents) {
    const Config& c = vae_.config();
    const std::int64_t h = height_ / c.factor(), w = width_ / c.factor();
    ATELIER_CHECK(latents.elements() == h * w * c.z, "latents {}, planned for {} x {} x {}", latents.shape().str(), h, w, c.z);
    decoder_arena_.release(0);
    Run run{decoder_arena_, &weights, nullptr};
    const Image in = take(run, h, w, c.z);
    std::copy_n(latents.f32(), latents.elements(), in.data.f32());
    run_decoder(run, in);
    return decoder_.out.data;
}

void TrainingPass::decode_backward(const nn::ParameterStore& weights, const nn::ParameterStore& gradients, const Tensor& d_picture,
                                   const Tensor& d_latents) {
    gradient_arena_.release(0);
    Run run{gradient_arena_, &weights, &gradients};
    const Image d = take(run, height_, width_, vae_.config().channels);
    std::copy_n(d_picture.f32(), d.data.elements(), d.data.f32());
    const Image result = turn_decoder(run, d);
    if (!d_latents.empty()) std::copy_n(result.data.f32(), result.data.elements(), d_latents.f32());
}

}  // namespace atelier::vae
