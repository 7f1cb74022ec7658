#include "model/vlm/vlm.hpp"

#include <fmt/format.h>

#include <cmath>

#include "nn/checkpoint_weights.hpp"
#include "nn/sharded.hpp"
#include "ops/backend.hpp"

namespace atelier::vlm {
namespace {

/// What a checkpoint may hold besides.
std::span<const std::string> ignorable(const Vlm& vlm) {
    static const std::string tied_head = "lm_head.weight";
    return {&tied_head, vlm.config().tied_head ? 1u : 0u};
}

}  // namespace

Vlm::Vlm(const Config& config, Device device, ops::ProductPrecision precision) : config_(config), device_(device), precision_(precision) {
    const TextConfig& t = config.text;
    const VisionConfig& v = config.vision;
    int part = -1;  // the block of the rows that come
    const auto matrix = [&](const std::string& name, std::int64_t rows, std::int64_t cols, nn::Reader reader = nn::Reader::products) {
        return table_.add({.name = name, .shape = {rows, cols}, .block = part, .reader = reader});
    };
    const auto vector = [&](const std::string& name, std::int64_t n, nn::Init init) {
        return table_.add({.name = name, .shape = {n}, .decay = false, .init = init, .block = part});
    };
    const auto norm = [&](const std::string& name, std::int64_t n) {
        return Affine{vector(name + ".weight", n, nn::Init::ones), vector(name + ".bias", n, nn::Init::zeros)};
    };
    const auto affine = [&](const std::string& name, std::int64_t rows, std::int64_t cols) {
        return Affine{matrix(name + ".weight", rows, cols), vector(name + ".bias", rows, nn::Init::zeros)};
    };
    const auto make_merger = [&](const std::string& name, bool norm_after_merge) {
        Merger m;
        m.norm = norm(name + ".norm", norm_after_merge ? v.merged() : v.hidden);
        m.fc1 = affine(name + ".linear_fc1", v.merged(), v.merged());
        m.fc2 = affine(name + ".linear_fc2", v.out_hidden, v.merged());
        return m;
    };

    const std::string visual = "model.visual.";
    patch.weight = table_.add({.name = visual + "patch_embed.proj.weight",
                               .shape = {v.hidden, v.channels, v.temporal_patch, v.patch, v.patch},
                               .reader = nn::Reader::products});
    patch.bias = vector(visual + "patch_embed.proj.bias", v.hidden, nn::Init::zeros);
    position_embedding = matrix(visual + "pos_embed.weight", v.positions, v.hidden, nn::Reader::operations);
    for (std::int64_t i = 0; i < v.depth; ++i) {
        const std::string block = fmt::format("{}blocks.{}.", visual, i);
        part = static_cast<int>(i);
        VisionBlock b;
        b.norm1 = norm(block + "norm1", v.hidden);
        b.norm2 = norm(block + "norm2", v.hidden);
        b.qkv = affine(block + "attn.qkv", 3 * v.hidden, v.hidden);
        b.proj = affine(block + "attn.proj", v.hidden, v.hidden);
        b.fc1 = affine(block + "mlp.linear_fc1", v.intermediate, v.hidden);
        b.fc2 = affine(block + "mlp.linear_fc2", v.hidden, v.intermediate);
        blocks.push_back(b);
    }
    part = -1;
    merger = make_merger(visual + "merger", false);
    for (std::size_t i = 0; i < v.deepstack.size(); ++i)
        deepstack_mergers.push_back(make_merger(fmt::format("{}deepstack_merger_list.{}", visual, i), true));

    const std::string text = "model.language_model.";
    const std::int64_t q_width = t.heads * t.head_dim, kv_width = t.kv_heads * t.head_dim;
    embedding = matrix(text + "embed_tokens.weight", t.vocabulary, t.hidden, config.tied_head ? nn::Reader::both : nn::Reader::operations);
    for (std::int64_t i = 0; i < t.layers; ++i) {
        const std::string layer = fmt::format("{}layers.{}.", text, i);
        part = static_cast<int>(v.depth + i);
        TextLayer l;
        l.input_norm = vector(layer + "input_layernorm.weight", t.hidden, nn::Init::ones);
        l.q = matrix(layer + "self_attn.q_proj.weight", q_width, t.hidden);
        l.k = matrix(layer + "self_attn.k_proj.weight", kv_width, t.hidden);
        l.v = matrix(layer + "self_attn.v_proj.weight", kv_width, t.hidden);
        l.out = matrix(layer + "self_attn.o_proj.weight", t.hidden, q_width);
        l.q_norm = vector(layer + "self_attn.q_norm.weight", t.head_dim, nn::Init::ones);
        l.k_norm = vector(layer + "self_attn.k_norm.weight", t.head_dim, nn::Init::ones);
        l.post_norm = vector(layer + "post_attention_layernorm.weight", t.hidden, nn::Init::ones);
        l.gate = matrix(layer + "mlp.gate_proj.weight", t.intermediate, t.hidden);
        l.up = matrix(layer + "mlp.up_proj.weight", t.intermediate, t.hidden);
        l.down = matrix(layer + "mlp.down_proj.weight", t.hidden, t.intermediate);
        layers.push_back(l);
    }
    part = -1;
    final_norm = vector(text + "norm.weight", t.hidden, nn::Init::ones);
    part = encoding_blocks();  // what encoding doesn't need
    head = config.tied_head ? embedding : matrix("lm_head.weight", t.vocabulary, t.hidden);
}

io::Safetensors open_weights(const std::filesystem::path& directory) { return io::Safetensors::open_component(directory, weights_stem); }

void load(const Vlm& vlm, const nn::ParameterStore& weights, const std::filesystem::path& directory) {
    nn::load_weights(weights, open_weights(directory), ignorable(vlm));
    if (weights.device() != Device::cpu) ops::backend().keep_bf16_copy(weights.data(), weights.flat().elements());
}

void load(const Vlm& vlm, const nn::FrozenWeights& weights, const std::filesystem::path& directory) {
    weights.load(open_weights(directory), ignorable(vlm));
}

void load(const Vlm& vlm, nn::StreamedWeights& weights, const std::filesystem::path& directory) { weights.load(open_weights(directory), ignorable(vlm)); }

void load_shard(const Vlm& vlm, const nn::Partition& partition, int rank, const std::filesystem::path& directory, const Tensor& shard) {
    nn::load_shard(partition, rank, open_weights(directory), shard, ignorable(vlm));
}

Positions make_positions(const Config& config, std::span<const std::int32_t> ids, std::span<const GridThw> grids) {
    Positions p;
    std::size_t picture = 0;
    for (std::size_t i = 0; i < ids.size();) {
        if (ids[i] != config.image_token) {
            p.token.push_back({p.next, p.next, p.next});
            ++p.next;
            ++i;
            continue;
        }
        ATELIER_CHECK_INPUT(picture < grids.size(), "the prompt has image tokens beyond its {} pictures", grids.size());
        const GridThw& grid = grids[picture++];
        const std::int64_t rows = grid[1] / config.vision.merge, columns = grid[2] / config.vision.merge;
        ATELIER_CHECK_INPUT(grid[0] == 1 && rows > 0 && columns > 0 && rows * config.vision.merge == grid[1] &&
                                columns * config.vision.merge == grid[2],
                            "picture {} has a grid of {} x {} x {} patches", picture, grid[0], grid[1], grid[2]);
        for (std::int64_t k = 0; k < rows * columns; ++k, ++i) {
            ATELIER_CHECK_INPUT(i < ids.size() && ids[i] == config.image_token,
                                "picture {} takes {} image tokens, the prompt has {}", picture, rows * columns, k);
            p.token.push_back({p.next, p.next + k / columns, p.next + k % columns});
        }
        p.next += std::max(rows, columns);
    }
    ATELIER_CHECK_INPUT(picture == grids.size(), "the prompt has image tokens for {} of {} pictures", picture, grids.size());
    return p;
}

ScoreReading read_score(std::span<const float> logits, std::span<const std::int32_t> candidates) {
    double top = -INFINITY, all = 0, some = 0;
    for (float v : logits) top = std::max(top, static_cast<double>(v));
    for (float v : logits) all += std::exp(v - top);
    ScoreReading r;
    for (std::int32_t id : candidates) {
        ATELIER_CHECK_INPUT(id >= 0 && static_cast<std::size_t>(id) < logits.size(), "score token {} of a vocabulary of {}",
                            id, logits.size());
        const double e = std::exp(logits[static_cast<std::size_t>(id)] - top);
        some += e;
        r.probability.push_back(e / all);
        r.renormalised.push_back(e);
    }
    r.probability_of_candidates = some / all;
    for (std::size_t i = 0; i < r.renormalised.size(); ++i) {
        r.renormalised[i] /= some;
        r.expected_score += static_cast<double>(i + 1) * r.renormalised[i];
    }
    return r;
}

}  // namespace atelier::vlm
