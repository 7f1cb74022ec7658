#include "nn/checkpoint_weights.hpp"

#include <algorithm>
#include <cmath>

#include "core/convert.hpp"
#include "core/device.hpp"
#include "core/parallel.hpp"
#include "ops/backend.hpp"

namespace atelier::nn {
namespace {

bool is_floating(DType dtype) { return dtype == DType::f32 || dtype == DType::bf16 || dtype == DType::f16; }

}  // namespace

void check_weights(const ParameterTable& table, const io::Safetensors& file, std::span<const std::string> ignorable) {
    const std::string path = file.path().string();
    for (const ParameterSpec& spec : table.specs()) {
        ATELIER_CHECK_INPUT(file.contains(spec.name), "{}: tensor {} of shape {} is missing", path, spec.name,
                            spec.shape.str());
        const io::StoredTensor& found = file.at(spec.name);
        ATELIER_CHECK_INPUT(found.shape == spec.shape, "{}: tensor {} must have shape {}, found {}", path, spec.name,
                            spec.shape.str(), found.shape.str());
        ATELIER_CHECK_INPUT(is_floating(found.dtype), "{}: tensor {} must hold f32, bf16 or f16, found {}", path, spec.name,
                            name_of(found.dtype));
    }
    for (const auto& [name, stored] : file.tensors()) {
        ATELIER_CHECK_INPUT(
            table.find(name) >= 0 || std::find(ignorable.begin(), ignorable.end(), name) != ignorable.end(),
            "{}: tensor {} of shape {} belongs to no part of the model that the config describes", path, name,
            stored.shape.str());
    }
}

void load_weights(const ParameterStore& store, const io::Safetensors& file, std::span<const std::string> ignorable) {
    const ParameterTable& table = store.table();
    check_weights(table, file, ignorable);
    const std::string path = file.path().string();
    // To a device one tensor goes after another, through host memory.
    const bool there = store.device() != Device::cpu;
    parallel_for(table.size(), there ? table.size() : 1, [&](std::int64_t begin, std::int64_t end) {
        std::vector<float> staged;
        for (std::int64_t i = begin; i < end; ++i) {
            const Tensor values = store[static_cast<int>(i)];
            const io::StoredTensor& stored = file.at(table.spec(static_cast<int>(i)).name);
            if (there) staged.resize(static_cast<std::size_t>(values.elements()));
            float* v = there ? staged.data() : values.f32();
            io::to_f32(stored, v);
            for (std::int64_t k = 0; k < values.elements(); ++k)
                ATELIER_CHECK_INPUT(std::isfinite(v[k]), "{}: tensor {} holds {} at element {}", path, stored.name,
                                    v[k], k);
            io::release_pages(stored);
            if (there) transfer(Tensor::of(v, values.shape()), values);
        }
    });
}

bool StorageFormat::is_exact() const {
    return std::all_of(dtypes.begin(), dtypes.end(), [](DType d) { return d == DType::f32; });
}

StorageFormat storage_format(const ParameterTable& table, const io::Safetensors& source, std::optional<DType> dtype,
                             std::uint64_t shard_bytes) {
    StorageFormat format;
    format.shard_bytes = shard_bytes;
    format.metadata = source.metadata();
    for (const ParameterSpec& spec : table.specs()) format.dtypes.push_back(dtype ? *dtype : source.at(spec.name).dtype);
    return format;
}

std::optional<DType> parse_storage_dtype(const std::string& word) {
    if (word == "kept") return std::nullopt;
    if (word == "f32") return DType::f32;
    if (word == "bf16") return DType::bf16;
    if (word == "f16") return DType::f16;
    ATELIER_FAIL(ErrorKind::usage, "the dtype of stored weights must be kept, f32, bf16 or f16, found \"{}\"", word);
}

void round_to(DType dtype, std::span<float> values) {
    if (dtype == DType::f32) return;
    if (current_device() == Device::cuda)
        return ops::backend().round_to(dtype, static_cast<std::int64_t>(values.size()), values.data(), values.data());
    parallel_for(static_cast<std::int64_t>(values.size()), 1 << 15, [&](std::int64_t begin, std::int64_t end) {
        float* v = values.data();
        if (dtype == DType::bf16)
            for (std::int64_t i = begin; i < end; ++i) v[i] = bf16_to_f32(f32_to_bf16(v[i]));
        else
            for (std::int64_t i = begin; i < end; ++i) v[i] = f16_to_f32(f32_to_f16(v[i]));
    });
}

namespace {

/// Calls f with each row in order, its block acquired.
template <typename Function>
void with_row(const ParameterStore& store, int row, Function f) {
    const int block = store.table().spec(row).block;
    if (block >= 0) store.acquire(block);
    f();
    if (block >= 0) store.release(block);
}

}  // namespace

std::vector<std::string> save_weights(const ParameterStore& store, const std::filesystem::path& directory,
                                      const std::string& stem, const StorageFormat& format) {
    std::vector<io::TensorToWrite> tensors;
    for (int i = 0; i < store.table().size(); ++i) {
        const ParameterSpec& spec = store.table().spec(i);
        io::TensorToWrite tensor{spec.name, Tensor(nullptr, DType::f32, spec.shape), format.dtypes[static_cast<std::size_t>(i)]};
        if (store.residence() == nullptr && store.device() == Device::cpu)
            tensor.values = store[i];
        else
            tensor.make = [&store, i](float* out) {
                with_row(store, i, [&] { transfer(store[i], Tensor::of(out, store[i].shape())); });
            };
        tensors.push_back(std::move(tensor));
    }
    return io::write_sharded(directory, stem, tensors, format.shard_bytes, format.metadata);
}

void attend_saving(const ParameterStore& store) {
    if (store.residence() == nullptr) return;
    for (int i = 0; i < store.table().size(); ++i) with_row(store, i, [] {});
}

}  // namespace atelier::nn
