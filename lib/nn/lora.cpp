#include "nn/lora.hpp"

#include <algorithm>

#include "ops/matmul.hpp"

namespace atelier::nn {
namespace {

constexpr std::string_view weight_suffix = ".weight";

bool matches(std::string_view glob, std::string_view text) {
    if (glob.empty()) return text.empty();
    if (glob[0] == '*') {
        for (std::size_t skip = 0; skip <= text.size(); ++skip)
            if (matches(glob.substr(1), text.substr(skip))) return true;
        return false;
    }
    return !text.empty() && (glob[0] == '?' || glob[0] == text[0]) && matches(glob.substr(1), text.substr(1));
}

/// PEFT's rule for plain names: the whole name, or its end behind a dot.
bool is_target(const std::string& target, std::string_view module) {
    if (target.find_first_of("*?") != std::string::npos) return matches(target, module);
    return module == target || (module.ends_with(target) && module[module.size() - target.size() - 1] == '.');
}

}  // namespace

LoraTable::LoraTable(const ParameterTable& model, const LoraConfig& config) : model_(&model), config_(config) {
    ATELIER_CHECK_USAGE(config.rank >= 1 && config.alpha > 0, "an adapter needs a rank of at least 1 and a positive alpha, found {} and {}",
                        config.rank, config.alpha);
    std::vector<bool> used(config.targets.size());
    for (int row = 0; row < model.size(); ++row) {
        const ParameterSpec& spec = model.spec(row);
        rows_.push_back(-1);
        if (spec.shape.rank() != 2 || !spec.name.ends_with(weight_suffix)) continue;
        const std::string module = spec.name.substr(0, spec.name.size() - weight_suffix.size());
        bool wanted = false;
        for (std::size_t t = 0; t < config.targets.size(); ++t)
            if (is_target(config.targets[t], module)) wanted = used[t] = true;
        if (!wanted) continue;
        ATELIER_CHECK_USAGE(config.rank <= std::min(spec.shape[0], spec.shape[1]), "rank {} is above that of {} {}", config.rank,
                            module, spec.shape.str());
        rows_.back() = table_.add({module + ".lora_A.weight", {config.rank, spec.shape[1]}});
        table_.add({.name = module + ".lora_B.weight", .shape = {spec.shape[0], config.rank}, .init = Init::zeros});
    }
    for (std::size_t t = 0; t < used.size(); ++t)
        ATELIER_CHECK_USAGE(used[t], "the adapter's target \"{}\" matches no matrix of the model", config.targets[t]);
    ATELIER_CHECK_USAGE(table_.size() > 0, "the adapter has no targets");
}

std::vector<int> LoraTable::adapted() const {
    std::vector<int> rows;
    for (int row = 0; row < static_cast<int>(rows_.size()); ++row)
        if (rows_[static_cast<std::size_t>(row)] >= 0) rows.push_back(row);
    return rows;
}

LoraStore::LoraStore(const LoraTable& table, Arena& arena, Device device) : table_(&table), values_(table.table(), arena, device) {
    down_ = arena.take_f32({chunk, table.rank()}, device);
    up_ = arena.take_f32({chunk, table.rank()}, device);
    std::int64_t longest = 1;
    for (const ParameterSpec& spec : table.model().specs())
        if (spec.shape.rank() == 1) longest = std::max(longest, spec.shape.elements());
    discard_ = arena.take_f32({longest}, device);
}

void initialise(const LoraStore& adapter, std::uint64_t seed) { initialise(adapter.values(), seed); }

void merge_lora(const LoraStore& adapter, int row, float factor, float* w) {
    const Tensor a = adapter.a(row), b = adapter.b(row);
    const std::int64_t out = b.size(0), in = a.size(1), rank = a.size(0);
    ops::matmul(false, false, factor * adapter.table().scale(), {b.f32(), out, rank, rank}, {a.f32(), rank, in, in}, 1.0f,
                {w, out, in, in});
}

void merge_lora(const LoraStore& adapter, const ParameterStore& weights, float factor) {
    for (const int row : adapter.table().adapted()) merge_lora(adapter, row, factor, weights[row].f32());
}

}  // namespace atelier::nn
