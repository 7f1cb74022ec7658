#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <span>
#include <string>
#include <tuple>
#include <vector>

#include "core/arena.hpp"
#include "model/vae/config.hpp"
#include "nn/parameters.hpp"
#include "ops/convolution.hpp"

namespace atelier::vae {

constexpr float log_variance_low = -30.0f, log_variance_high = 20.0f;  ///< clamp of diffusers' DiagonalGaussianDistribution

struct ConvRows {
    int weight = -1, bias = -1;
};
struct ResidualRows {
    std::int64_t in = 0, out = 0;
    int norm1 = -1, norm2 = -1;
    ConvRows conv1, conv2, shortcut;  ///< shortcut.weight == -1: identity
};
struct AttentionRows {
    int norm = -1;
    ConvRows qkv, proj;
};
struct MidRows {
    ResidualRows first, last;
    AttentionRows attention;
};
struct LevelRows {
    std::int64_t in = 0, out = 0;
    bool resamples = false, temporal = false;
    std::vector<ResidualRows> residuals;
    ConvRows resample;
};
/// Encoder or decoder: conv_in, levels and a middle block, norm_out, conv_out.
struct HalfRows {
    ConvRows conv_in, conv_out;
    int norm_out = -1;
    MidRows mid;
    std::vector<LevelRows> levels;
};

/// Architecture and parameter table (diffusers' names).
class Vae {
  public:
    /// `device`: where a codec runs, its weights must be there (training: the CPU alone).
    explicit Vae(const Config& config, Device device = Device::cpu);
    const Config& config() const { return config_; }
    Device device() const { return device_; }
    const nn::ParameterTable& table() const { return table_; }
    HalfRows encoder, decoder;
    ConvRows quant, post_quant;

  private:
    Config config_;
    Device device_;
    nn::ParameterTable table_;
};

void load(const nn::ParameterStore& weights, const std::filesystem::path& directory);

/// Sees intermediate values [height, width, channels] by name; for comparisons.
using Observer = std::function<void(const std::string& name, const float* value, std::int64_t height, std::int64_t width,
                                    std::int64_t channels)>;

/// A size of picture, and what is done with it.
struct PictureUse {
    std::int64_t height = 0, width = 0;  ///< pixels
    std::int64_t decoded = 0;            ///< so many are decoded at once; 0: one is encoded
};

/// A frozen autoencoder ready to run, where its Vae says; latents and pictures come and go through host memory. On the CPU convolutions
/// are prepared per picture size on first use of the size (their weights once for all sizes, where these are laid out alike) and pictures
/// of a batch run side by side on the pool's threads; on a device one after another. Results depend neither on threads nor on the batch.
/// Numbers are fp32, on a device too (there but for the attention of at most 128 channels, which follows ops::ProductPrecision).
class Codec {
  public:
    /// The weights must outlive the codec and not change.
    Codec(const Vae& vae, const nn::ParameterStore& weights);

    /// latents [batch, height * width, z], packed and normalised, on a grid of height x width ->
    /// pictures [batch, H, W, channels] in [-1, 1], H = height * factor.
    void decode(const Tensor& latents, std::int64_t height, std::int64_t width, const Tensor& pictures);
    /// The same before the clamp, of one picture's raw latents [h, w, z] (not normalised).
    void decode_raw(const float* latents, std::int64_t height, std::int64_t width, float* picture,
                    const Observer& observe = {});
    /// picture [channels, H, W] in [-1, 1] -> normalised packed latents [H / f * W / f, z] of the posterior's mode.
    void encode(const float* picture, std::int64_t height, std::int64_t width, float* latents);
    /// Posterior [h, w, 2 z] of a picture [H, W, channels]: means, then log variances clamped to [-30, 20].
    void encode_raw(const float* picture, std::int64_t height, std::int64_t width, float* posterior,
                    const Observer& observe = {});

    /// Prepares every convolution of a use and sizes the arenas, before the first picture comes and before any thread runs.
    void reserve(const PictureUse& use);
    /// Bytes held: prepared convolutions and the scratch memory of the pictures that run at once.
    Bytes bytes() const;

  private:
    struct Image {
        Tensor data;
        std::int64_t height = 0, width = 0, channels = 0;
        std::int64_t pixels() const { return height * width; }
    };
    /// The next picture of the arena.
    Image take(Arena& arena, std::int64_t height, std::int64_t width, std::int64_t channels) const;
    void convolve(Arena& arena, const ConvRows& rows, const Image& x, std::int64_t stride, const Image& y);
    Image convolve(Arena& arena, const ConvRows& rows, const Image& x, std::int64_t stride);
    Image residual(Arena& arena, const ResidualRows& rows, const Image& x);
    Image attention(Arena& arena, const AttentionRows& rows, const Image& x);
    Image middle(Arena& arena, const MidRows& rows, const Image& x);
    Image run_decoder(Arena& arena, const Image& latents, const Observer& observe);
    Image run_encoder(Arena& arena, const Image& picture, const Observer& observe);
    Image head(Arena& arena, const HalfRows& rows, const Image& x);
    ops::ConvolutionShape shape_of(const ConvRows& rows, const Image& x, std::int64_t stride) const;
    /// Shows what a step gave, by a copy in host memory where it is elsewhere.
    void show(const Arena& arena, const Observer& observe, const std::string& name, const Image& x) const;
    const ops::Convolution& prepared(const ConvRows& rows, const ops::ConvolutionShape& shape);
    /// Numbers of scratch memory of a convolution; it is prepared unless this codec only plans.
    std::int64_t scratch(const ConvRows& rows, const ops::ConvolutionShape& shape);
    friend Bytes planned_bytes(const Vae&, std::span<const PictureUse>);
    /// Bytes that a picture of the size takes of an arena.
    Bytes measure(std::int64_t height, std::int64_t width, bool decoder);
    /// Pictures of a use that run at once, each in an arena of its own.
    std::int64_t lanes(const PictureUse& use) const;
    void decode_in(Arena& arena, const float* latents, std::int64_t height, std::int64_t width, float* picture, const Observer& observe);

    const Vae& vae_;
    const nn::ParameterStore& weights_;
    std::map<std::tuple<int, std::int64_t, std::int64_t>, ops::Convolution> convolutions_;
    std::map<std::tuple<std::int64_t, std::int64_t, bool>, Bytes> planned_;
    std::vector<Arena> arenas_;
    bool plans_only_ = false;
    struct ConvolutionOutline {
        ops::ConvolutionShape shape;
        std::size_t bytes = 0;
        std::int64_t scratch = 0;
    };
    std::map<std::tuple<int, std::int64_t, std::int64_t>, ConvolutionOutline> outlines_;
};

/// What a codec's bytes() come to, of weights that aren't there, after all these uses, on this process's threads or the Vae's device.
Bytes planned_bytes(const Vae& vae, std::span<const PictureUse> uses);

/// [-1, 1] -> bytes as the pipeline's postprocessing does: (x / 2 + 1/2) clamped, times 255, rounded half to even. Throws Error(numeric) for a number that
/// is not finite.
void to_bytes(const float* picture, std::int64_t count, std::uint8_t* bytes);

}  // namespace atelier::vae
