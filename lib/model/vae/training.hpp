#pragma once

#include <cstdint>
#include <map>
#include <tuple>
#include <vector>

#include "core/arena.hpp"
#include "model/vae/vae.hpp"

namespace atelier::vae {

/// Forward and backward of the autoencoder on one picture of a fixed size, with all activations kept. Runs on its calling thread.
/// Encoder and decoder may be run and turned back independently of each other.
class TrainingPass {
  public:
    /// Height and width of the pictures in pixels, multiples of the autoencoder's factor. Measures what both directions need, then
    /// takes it at once.
    TrainingPass(const Vae& vae, std::int64_t height, std::int64_t width);

    /// picture [height, width, channels] -> posterior [h, w, 2 z]: means, then log variances clamped to [-30, 20]. Valid until the
    /// next `encode`.
    Tensor encode(const nn::ParameterStore& weights, const Tensor& picture);
    /// Adds to the encoder's gradients. d_posterior as the posterior; where the clamp held a log variance its gradient is zero.
    void encode_backward(const nn::ParameterStore& weights, const nn::ParameterStore& gradients, const Tensor& d_posterior);

    /// latents [h, w, z] (not normalised) -> picture [height, width, channels] before the clamp. Valid until the next `decode`.
    Tensor decode(const nn::ParameterStore& weights, const Tensor& latents);
    /// Adds to the decoder's gradients; writes d_latents unless empty.
    void decode_backward(const nn::ParameterStore& weights, const nn::ParameterStore& gradients, const Tensor& d_picture,
                         const Tensor& d_latents);

    std::size_t bytes() const { return encoder_arena_.capacity() + decoder_arena_.capacity() + gradient_arena_.capacity(); }

  private:
    struct Image {
        Tensor data;  ///< [pixels, channels]
        std::int64_t height = 0, width = 0, channels = 0;
        std::int64_t pixels() const { return height * width; }
    };
    struct Residual {
        Image x, normed1, middle, normed2;
    };
    struct Attention {
        Image x, normed;
        Tensor qkv, attended, log_sum_exp;
    };
    struct Middle {
        Residual first, last;
        Attention attention;
    };
    struct Level {
        Image input, last, upsampled;  ///< before and behind the residuals; what the decoder's convolution sees
        std::vector<Residual> residuals;
    };
    struct Half {
        Image in, conv_in;  ///< in: of the half's first convolution
        Middle middle;
        std::vector<Level> levels;
        Image head_in, head_normed, out;
    };
    /// Everything that a pass over one half works with.
    struct Run {
        Arena& arena;
        const nn::ParameterStore* weights;
        const nn::ParameterStore* gradients;
        bool computes() const { return !arena.is_measuring(); }
        const float* weight(int row) const { return weights == nullptr ? nullptr : (*weights)[row].f32(); }
        float* gradient(int row) const { return gradients == nullptr ? nullptr : (*gradients)[row].f32(); }
    };

    Image take(Run& run, std::int64_t height, std::int64_t width, std::int64_t channels) const;
    Image convolve(Run& run, const ConvRows& rows, const Image& x, std::int64_t out_channels, std::int64_t stride);
    Image residual(Run& run, const ResidualRows& rows, const Image& x, Residual& kept);
    Image attention(Run& run, const AttentionRows& rows, const Image& x, Attention& kept);
    Image middle(Run& run, const MidRows& rows, const Image& x, Middle& kept);
    Image head(Run& run, const HalfRows& rows, const Image& x, std::int64_t out_channels, Half& kept);
    void run_encoder(Run& run, const Image& picture);
    void run_decoder(Run& run, const Image& latents);

    // Each takes the gradient of its step's result and gives that of the step's input.
    Image convolve_backward(Run& run, const ConvRows& rows, const Image& x, const Image& d_out, std::int64_t stride);
    Image residual_backward(Run& run, const ResidualRows& rows, const Residual& kept, const Image& d_out);
    Image attention_backward(Run& run, const AttentionRows& rows, const Attention& kept, const Image& d_out);
    Image middle_backward(Run& run, const MidRows& rows, const Middle& kept, const Image& d_out);
    Image head_backward(Run& run, const HalfRows& rows, const Half& kept, const Image& d_out);
    Image turn_encoder(Run& run, const Image& d_posterior);
    Image turn_decoder(Run& run, const Image& d_picture);
    const ops::TrainableConvolution& prepared(const ConvRows& rows, const Image& x, std::int64_t out_channels, std::int64_t stride);

    const Vae& vae_;
    std::int64_t height_, width_;
    std::map<std::tuple<int, std::int64_t, std::int64_t>, ops::TrainableConvolution> convolutions_;
    Arena encoder_arena_, decoder_arena_, gradient_arena_;
    Half encoder_, decoder_;
    Image posterior_in_, latents_in_;  ///< of quant and post_quant
    Tensor posterior_;
};

}  // namespace atelier::vae
