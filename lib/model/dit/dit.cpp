#include "model/dit/dit.hpp"

#include <fmt/format.h>

#include "ops/backend.hpp"

namespace atelier::dit {

Dit::Dit(const Config& config, Device device, ops::ProductPrecision precision, bool takes_adapter)
    : config_(config), device_(device), precision_(precision), takes_adapter_(takes_adapter) {
    const std::int64_t w = config.width(), m = config.mlp_width();
    int layer = -1;
    const auto matrix = [&](const std::string& name, std::int64_t rows, std::int64_t cols) {
        return table_.add({.name = name, .shape = {rows, cols}, .block = layer, .reader = nn::Reader::products});
    };
    const auto norm = [&](const std::string& name, std::int64_t width, nn::Init init) {
        return table_.add({.name = name, .shape = {width}, .decay = false, .init = init, .block = layer});
    };
    time_in = matrix("time_text_embed.timestep_embedder.linear_1.weight", w, sinusoid_width);
    time_out = matrix("time_text_embed.timestep_embedder.linear_2.weight", w, w);
    text_norm = norm("txt_in.text_norm.weight", config.context_dim, nn::Init::zeros);
    text_in = matrix("txt_in.in_layer.weight", w, config.context_dim);
    text_out = matrix("txt_in.out_layer.weight", w, w);
    image_in = matrix("img_in.weight", w, config.in_channels);
    modulation = matrix("modulation.1.weight", 4 * w, w);
    for (std::int64_t i = 0; i < config.layers; ++i) {
        const std::string block = fmt::format("transformer_blocks.{}.", i);
        layer = static_cast<int>(i);
        BlockParameters p;
        // q, k, v and the two halves of the MLP's input follow one another, so that each group is one product.
        p.q = matrix(block + "attn.to_q.weight", w, w);
        p.k = matrix(block + "attn.to_k.weight", w, w);
        p.v = matrix(block + "attn.to_v.weight", w, w);
        p.out = matrix(block + "attn.to_out.0.weight", w, w);
        p.q_norm = norm(block + "attn.norm_q.weight", config.head_dim, nn::Init::ones);
        p.k_norm = norm(block + "attn.norm_k.weight", config.head_dim, nn::Init::ones);
        p.mlp_value = matrix(block + "img_mlp.proj.weight", m, w);
        p.mlp_gate = matrix(block + "img_mlp.gate_layer.weight", m, w);
        p.mlp_out = matrix(block + "img_mlp.out.weight", w, m);
        blocks_.push_back(p);
    }
    layer = -1;
    norm_out = matrix("norm_out.linear.weight", w, w);
    proj_out = matrix("proj_out.weight", config.out_channels, w);
}

io::Safetensors open_weights(const std::filesystem::path& directory) {
    return io::Safetensors::open_component(directory, weights_stem);
}

void load(const nn::ParameterStore& weights, const std::filesystem::path& directory) {
    nn::load_weights(weights, open_weights(directory));
    // Products take a rounded copy of the weights (ops/backend.hpp).
    if (weights.flat().device() == Device::cuda) ops::backend().keep_bf16_copy(weights.data(), weights.flat().elements());
}

std::vector<std::string> save(const nn::ParameterStore& weights, const std::filesystem::path& config_source,
                              const std::filesystem::path& directory, const nn::StorageFormat& format) {
    std::error_code error;
    std::filesystem::create_directories(directory, error);
    ATELIER_CHECK_IO(!error, "cannot create {}: {}", directory.string(), error.message());
    std::filesystem::copy_file(config_source, directory / "config.json",
                               std::filesystem::copy_options::overwrite_existing, error);
    ATELIER_CHECK_IO(!error, "cannot copy {} to {}: {}", config_source.string(), directory.string(), error.message());
    auto names = nn::save_weights(weights, directory, weights_stem, format);
    names.push_back("config.json");
    return names;
}

}  // namespace atelier::dit
