#include "model/vae/vae.hpp"

#include <fmt/format.h>

#include "nn/checkpoint_weights.hpp"

namespace atelier::vae {
namespace {

/// Adds rows under names that follow one another in the classes.
class Builder {
  public:
    explicit Builder(nn::ParameterTable& table) : table_(table) {}
    ConvRows conv(const std::string& name, std::int64_t in, std::int64_t out, std::int64_t kernel, bool used = true) {
        ConvRows c;
        c.weight = table_.add({.name = name + ".weight", .shape = {out, in, kernel, kernel}, .used = used});
        c.bias = table_.add({.name = name + ".bias", .shape = {out}, .decay = false, .init = nn::Init::zeros, .used = used});
        return c;
    }
    int gamma(const std::string& name, Shape shape) {
        return table_.add({.name = name + ".gamma", .shape = shape, .decay = false, .init = nn::Init::ones});
    }
    ResidualRows residual(const std::string& name, std::int64_t in, std::int64_t out) {
        ResidualRows r{.in = in, .out = out};
        r.norm1 = gamma(name + ".norm1", {in, 1, 1, 1});
        r.conv1 = conv(name + ".conv1", in, out, 3);
        r.norm2 = gamma(name + ".norm2", {out, 1, 1, 1});
        r.conv2 = conv(name + ".conv2", out, out, 3);
        if (in != out) r.shortcut = conv(name + ".conv_shortcut", in, out, 1);
        return r;
    }
    MidRows mid(const std::string& name, std::int64_t width) {
        MidRows m;
        m.first = residual(name + ".resnets.0", width, width);
        m.attention.norm = gamma(name + ".attentions.0.norm", {width, 1, 1});
        m.attention.qkv = conv(name + ".attentions.0.to_qkv", width, 3 * width, 1);
        m.attention.proj = conv(name + ".attentions.0.proj", width, width, 1);
        m.last = residual(name + ".resnets.1", width, width);
        return m;
    }

  private:
    nn::ParameterTable& table_;
};

}  // namespace

Vae::Vae(const Config& config, Device device) : config_(config), device_(device) {
    Builder build(table_);
    const std::size_t levels = config.multipliers.size();

    std::vector<std::int64_t> down{config.base};
    for (std::int64_t m : config.multipliers) down.push_back(config.base * m);
    encoder.conv_in = build.conv("encoder.conv_in", config.channels, down[0], 3);
    for (std::size_t i = 0; i < levels; ++i) {
        const std::string name = fmt::format("encoder.down_blocks.{}", i);
        LevelRows level{.in = down[i], .out = down[i + 1], .resamples = i + 1 < levels};
        level.temporal = level.resamples && config.temporal_down[i];
        for (std::int64_t k = 0; k < config.residual_blocks; ++k)
            level.residuals.push_back(build.residual(fmt::format("{}.resnets.{}", name, k), k == 0 ? level.in : level.out, level.out));
        if (level.resamples) level.resample = build.conv(name + ".downsampler.resample.1", level.out, level.out, 3);
        if (level.temporal) build.conv(name + ".downsampler.time_conv", level.out, level.out, 1, false);
        encoder.levels.push_back(level);
    }
    encoder.mid = build.mid("encoder.mid_block", down.back());
    encoder.norm_out = build.gamma("encoder.norm_out", {down.back(), 1, 1, 1});
    encoder.conv_out = build.conv("encoder.conv_out", down.back(), 2 * config.z, 3);
    quant = build.conv("quant_conv", 2 * config.z, 2 * config.z, 1);
    post_quant = build.conv("post_quant_conv", config.z, config.z, 1);

    std::vector<std::int64_t> up{config.decoder_base * config.multipliers.back()};
    for (std::size_t i = levels; i-- > 0;) up.push_back(config.decoder_base * config.multipliers[i]);
    decoder.conv_in = build.conv("decoder.conv_in", config.z, up[0], 3);
    decoder.mid = build.mid("decoder.mid_block", up[0]);
    for (std::size_t i = 0; i < levels; ++i) {
        const std::string name = fmt::format("decoder.up_blocks.{}", i);
        LevelRows level{.in = up[i], .out = up[i + 1], .resamples = i + 1 < levels};
        level.temporal = level.resamples && config.temporal_down[levels - 2 - i];
        for (std::int64_t k = 0; k <= config.residual_blocks; ++k)
            level.residuals.push_back(build.residual(fmt::format("{}.resnets.{}", name, k), k == 0 ? level.in : level.out, level.out));
        if (level.resamples) level.resample = build.conv(name + ".upsampler.resample.1", level.out, level.out, 3);
        if (level.temporal) build.conv(name + ".upsampler.time_conv", level.out, 2 * level.out, 1, false);
        decoder.levels.push_back(level);
    }
    decoder.norm_out = build.gamma("decoder.norm_out", {up.back(), 1, 1, 1});
    decoder.conv_out = build.conv("decoder.conv_out", up.back(), config.channels, 3);
}

void load(const nn::ParameterStore& weights, const std::filesystem::path& directory) {
    nn::load_weights(weights, io::Safetensors::open_component(directory, "diffusion_pytorch_model"));
}

}  // namespace atelier::vae
