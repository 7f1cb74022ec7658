#include "nn/lora.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "core/numbers.hpp"
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

std::string module_of(const ParameterSpec& spec) { return spec.name.substr(0, spec.name.size() - weight_suffix.size()); }

std::vector<LoraSize> sizes_of(const ParameterTable& model, const LoraConfig& config) {
    ATELIER_CHECK_USAGE(config.rank >= 1 && config.alpha > 0, "an adapter needs a rank of at least 1 and a positive alpha, found {} and {}",
                        config.rank, config.alpha);
    std::vector<bool> used(config.targets.size());
    std::vector<LoraSize> sizes;
    for (const ParameterSpec& spec : model.specs()) {
        sizes.emplace_back();
        if (spec.shape.rank() != 2 || !spec.name.ends_with(weight_suffix)) continue;
        const std::string module = module_of(spec);
        bool wanted = false;
        for (std::size_t t = 0; t < config.targets.size(); ++t)
            if (is_target(config.targets[t], module)) wanted = used[t] = true;
        if (!wanted) continue;
        ATELIER_CHECK_USAGE(config.rank <= std::min(spec.shape[0], spec.shape[1]), "rank {} is above that of {} {}", config.rank,
                            module, spec.shape.str());
        sizes.back() = {config.rank, config.alpha};
    }
    for (std::size_t t = 0; t < used.size(); ++t)
        ATELIER_CHECK_USAGE(used[t], "the adapter's target \"{}\" matches no matrix of the model", config.targets[t]);
    ATELIER_CHECK_USAGE(!config.targets.empty(), "the adapter has no targets");
    return sizes;
}

}  // namespace

std::string describe(std::span<const LoraSize> sizes) {
    const auto range = [&](auto member) {
        auto low = sizes[0].*member, high = low;
        for (const LoraSize& size : sizes) low = std::min(low, size.*member), high = std::max(high, size.*member);
        return low == high ? fmt::format("{}", low) : fmt::format("{} to {}", low, high);
    };
    return fmt::format("rank {}, alpha {} for {} matrices", range(&LoraSize::rank), range(&LoraSize::alpha), sizes.size());
}

LoraTable::LoraTable(const ParameterTable& model, const LoraConfig& config) : LoraTable(model, sizes_of(model, config)) {}

LoraTable::LoraTable(const ParameterTable& model, std::vector<LoraSize> sizes) : model_(&model), sizes_(std::move(sizes)) {
    for (int row = 0; row < model.size(); ++row) {
        const ParameterSpec& spec = model.spec(row);
        const std::int64_t rank = sizes_.at(static_cast<std::size_t>(row)).rank;
        rows_.push_back(-1);
        if (rank == 0) continue;
        rank_ = std::max(rank_, rank);
        rows_.back() = table_.add({module_of(spec) + ".lora_A.weight", {rank, spec.shape[1]}});
        table_.add({.name = module_of(spec) + ".lora_B.weight", .shape = {spec.shape[0], rank}, .init = Init::zeros});
    }
    ATELIER_CHECK(table_.size() > 0, "an adapter of nothing");
}

std::string LoraTable::text() const {
    std::vector<LoraSize> adapted;
    for (const LoraSize& size : sizes_)
        if (size.rank > 0) adapted.push_back(size);
    return describe(adapted);
}

std::vector<int> LoraTable::adapted() const {
    std::vector<int> rows;
    for (int row = 0; row < static_cast<int>(rows_.size()); ++row)
        if (rows_[static_cast<std::size_t>(row)] >= 0) rows.push_back(row);
    return rows;
}

LoraStore::LoraStore(const LoraTable& table, Arena& arena, Device device) : table_(&table), values_(table.table(), arena, device) {
    for (Tensor* room : {&down_, &up_}) *room = arena.take_f32({chunk(device) * table.rank()}, device);
    std::int64_t longest = 1;
    for (const ParameterSpec& spec : table.model().specs())
        if (spec.shape.rank() == 1) longest = std::max(longest, spec.shape.elements());
    discard_ = arena.take_f32({longest}, device);
}

Tensor LoraStore::inner(const Tensor& room, int row, std::int64_t rows) const {
    const std::int64_t rank = table_->sizes()[static_cast<std::size_t>(row)].rank;
    return room.slice(0, rows * rank).reshaped({rows, rank});
}

void initialise(const LoraStore& adapter, std::uint64_t seed) { initialise(adapter.values(), seed); }

void merge_lora(const LoraStore& adapter, int row, float factor, float* w) {
    const Tensor a = adapter.a(row), b = adapter.b(row);
    const std::int64_t out = b.size(0), in = a.size(1), rank = a.size(0);
    ops::matmul(false, false, factor * adapter.table().scale(row), {b.f32(), out, rank, rank}, {a.f32(), rank, in, in}, 1.0f,
                {w, out, in, in});
}

void merge_lora(const LoraStore& adapter, const ParameterStore& weights, float factor) {
    for (const int row : adapter.table().adapted()) {
        const Tensor w = weights[row];
        if (w.device() == Device::cpu) {
            merge_lora(adapter, row, factor, w.f32());
            continue;
        }
        const Numbers merged(w, Device::cpu);
        merge_lora(adapter, row, factor, merged.tensor().f32());
        transfer(merged.tensor().reshaped(w.shape()), w);
    }
}

}  // namespace atelier::nn
