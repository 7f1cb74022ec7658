#include "nn/parameters.hpp"

#include <algorithm>
#include <cmath>
#include <span>

#include "core/philox.hpp"

namespace atelier::nn {

int ParameterTable::add(ParameterSpec spec) {
    const int index = size();
    ATELIER_CHECK(index_.emplace(spec.name, index).second, "parameter {} stands twice in the table", spec.name);
    if (spec.block >= 0) {
        const bool continues = !specs_.empty() && specs_.back().block == spec.block;
        ATELIER_CHECK(continues || spec.block == blocks_, "parameter {} belongs to block {}, the next one is {}", spec.name, spec.block, blocks_);
        blocks_ = spec.block + 1;
    }
    offsets_.push_back(flat_size_);
    flat_size_ += (spec.shape.elements() + alignment - 1) / alignment * alignment;
    specs_.push_back(std::move(spec));
    return index;
}

int ParameterTable::find(const std::string& name) const {
    const auto found = index_.find(name);
    return found == index_.end() ? -1 : found->second;
}

bool ParameterTable::is_operand(int index) const {
    constexpr std::int64_t unit = 8;
    const ParameterSpec& s = spec(index);
    return s.reader != Reader::operations && s.shape.elements() / s.shape[0] % unit == 0;
}

std::int64_t ParameterTable::count() const {
    std::int64_t n = 0;
    for (const ParameterSpec& spec : specs_) n += spec.shape.elements();
    return n;
}

ParameterStore::ParameterStore(const ParameterTable& table, Arena& arena, Device device)
    : table_(&table), flat_(arena.take_f32({table.flat_size()}, device)) {}

ParameterStore ParameterStore::with_lora(const LoraStore* adapter) const {
    ParameterStore store = *this;
    store.lora_ = adapter;
    return store;
}

Tensor ParameterStore::operator[](int index) const {
    ATELIER_CHECK(has_values(), "parameter {} is frozen: this store holds an adapter's gradients alone", table_->spec(index).name);
    if (residence_ != nullptr) return residence_->row(index);
    const std::int64_t offset = table_->offset(index);
    const Shape& shape = table_->spec(index).shape;
    return flat_.slice(offset, offset + shape.elements()).reshaped(shape);
}

Tensor ParameterStore::at(const std::string& name) const {
    const int index = table_->find(name);
    ATELIER_CHECK(index >= 0, "no parameter {}", name);
    return (*this)[index];
}

Bytes rounded_copy_bytes(const ParameterTable& table, Device device) {
    return device == Device::cpu ? Bytes() : Bytes(0, static_cast<std::size_t>(table.flat_size()) * sizeof(std::uint16_t));
}

void initialise(const ParameterStore& store, std::uint64_t seed) {
    for (int i = 0; i < store.table().size(); ++i) {
        const ParameterSpec& spec = store.table().spec(i);
        const Tensor values = store[i];
        std::span<float> out(values.f32(), static_cast<std::size_t>(values.elements()));
        if (spec.init != Init::fan_in_normal) {
            std::fill(out.begin(), out.end(), spec.init == Init::ones ? 1.0f : 0.0f);
            continue;
        }
        fill_normal(random_key(seed, RandomUse::parameter_init, static_cast<std::uint64_t>(i)), out);
        const std::int64_t fan_in = spec.shape.rank() > 1 ? spec.shape.elements() / spec.shape[0] : 1;
        const float scale = 1.0f / std::sqrt(static_cast<float>(fan_in));
        for (float& v : out) v *= scale;
    }
}

}  // namespace atelier::nn
