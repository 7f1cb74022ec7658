#include "nn/checkpoint_weights.hpp"

#include <algorithm>
#include <bit>
#include <cmath>

#include "core/convert.hpp"
#include "core/device.hpp"
#include "core/parallel.hpp"
#include "ops/backend.hpp"

namespace atelier::nn {
void check_dtype(const io::Safetensors& file, const io::StoredTensor& stored) {
    ATELIER_CHECK_INPUT(stored.dtype == DType::f32 || stored.dtype == DType::bf16 || stored.dtype == DType::f16,
                        "{}: tensor {} must hold f32, bf16 or f16, found {}", file.path().string(), stored.name, name_of(stored.dtype));
}

void check_weights(const ParameterTable& table, const io::Safetensors& file, std::span<const std::string> ignorable) {
    const std::string path = file.path().string();
    for (const ParameterSpec& spec : table.specs()) {
        ATELIER_CHECK_INPUT(file.contains(spec.name), "{}: tensor {} of shape {} is missing", path, spec.name,
                            spec.shape.str());
        const io::StoredTensor& found = file.at(spec.name);
        ATELIER_CHECK_INPUT(found.shape == spec.shape, "{}: tensor {} must have shape {}, found {}", path, spec.name,
                            spec.shape.str(), found.shape.str());
        check_dtype(file, found);
    }
    for (const auto& [name, stored] : file.tensors()) {
        ATELIER_CHECK_INPUT(
            table.find(name) >= 0 || std::find(ignorable.begin(), ignorable.end(), name) != ignorable.end(),
            "{}: tensor {} of shape {} belongs to no part of the model that the config describes", path, name,
            stored.shape.str());
    }
}

namespace {

void check_finite(const io::Safetensors& file, const io::StoredTensor& stored, std::int64_t first, std::int64_t count, const float* v) {
    // Exponents of ones alone: looked for without leaving the loop, so that vectors of numbers are.
    std::uint32_t found = 0;
    for (std::int64_t k = 0; k < count; ++k) found |= static_cast<std::uint32_t>((std::bit_cast<std::uint32_t>(v[k]) & 0x7f800000u) == 0x7f800000u);
    if (found == 0) return;
    for (std::int64_t k = 0; k < count; ++k)
        ATELIER_CHECK_INPUT(std::isfinite(v[k]), "{}: tensor {} holds {} at element {}", file.path().string(), stored.name, v[k], first + k);
}

// Numbers that are widened on a device at a time: 512 KiB of bf16, less than a small model's buffers take later.
constexpr std::int64_t widened_numbers = 1 << 18;

}  // namespace

NumbersLoader::NumbersLoader(const io::Safetensors& file, Device device)
    : file_(file) {
    const auto is_narrow = [](const auto& entry) { return entry.second.dtype == DType::bf16; };
    if (device != Device::cpu && std::any_of(file.tensors().begin(), file.tensors().end(), is_narrow)) room_ = Numbers(widened_numbers / 2, device);
}

void NumbersLoader::load(const io::StoredTensor& stored, std::int64_t first, const Tensor& to) const {
    const std::int64_t count = to.elements();
    if (to.dtype() == DType::bf16) {
        load_rounded(stored, first, to);
    } else if (to.device() == Device::cpu) {
        parallel_for(count, 1 << 15, [&](std::int64_t begin, std::int64_t end) {
            io::to_f32(stored, first + begin, end - begin, to.f32() + begin);
            check_finite(file_, stored, first + begin, end - begin, to.f32() + begin);
        });
    } else {
        to_device(stored, first, to);
    }
    io::release_pages(stored);
}

void NumbersLoader::to_device(const io::StoredTensor& stored, std::int64_t first, const Tensor& to) const {
    const DeviceScope scope(to.device());
    const std::int64_t count = to.elements();
    DeviceMemory& memory = device_memory();
    if (stored.dtype == DType::f32) {
        memory.to_device(to.raw(), stored.data + first * 4, to.bytes());
    } else if (stored.dtype == DType::bf16) {
        // In the file's width over the bus; widened there.
        for (std::int64_t at = 0; at < count; at += widened_numbers) {
            const std::int64_t n = std::min(widened_numbers, count - at);
            auto* bits = static_cast<std::uint16_t*>(room_.tensor().raw());
            memory.to_device(bits, stored.data + (first + at) * 2, static_cast<std::size_t>(n) * 2);
            ops::backend().copy_columns(1, n, bits, n, to.f32() + at, n);
        }
    } else {
        std::vector<float> staged(static_cast<std::size_t>(count));
        io::to_f32(stored, first, count, staged.data());
        transfer(Tensor::of(staged.data(), {count}), to.reshaped({count}));
    }
    check_finite_there(stored, first, to);
}

void NumbersLoader::check_finite_there(const io::StoredTensor& stored, std::int64_t first, const Tensor& to) const {
    const double squares = ops::sum_from_device([&](double* sum) { ops::backend().sum_of_squares(to.elements(), to, sum); });
    if (std::isfinite(squares)) return;
    std::vector<float> host(static_cast<std::size_t>(to.elements()));
    io::to_f32(stored, first, to.elements(), host.data());
    check_finite(file_, stored, first, to.elements(), host.data());
}

void NumbersLoader::load_rounded(const io::StoredTensor& stored, std::int64_t first, const Tensor& to) const {
    const Tensor flat = to.reshaped({to.elements()});
    if (to.device() != Device::cpu && stored.dtype == DType::bf16) {
        const DeviceScope scope(to.device());
        device_memory().to_device(to.raw(), stored.data + first * 2, to.bytes());
        return check_finite_there(stored, first, to);
    }
    const bool is_here = to.device() == Device::cpu;
    std::vector<std::uint16_t> staged(is_here ? 0 : static_cast<std::size_t>(std::min(room_numbers, to.elements())));
    for (std::int64_t at = 0; at < to.elements(); at += room_numbers) {
        const std::int64_t count = std::min(room_numbers, to.elements() - at);
        std::uint16_t* bits = is_here ? static_cast<std::uint16_t*>(to.raw()) + at : staged.data();
        parallel_for(count, 1 << 15, [&](std::int64_t begin, std::int64_t end) {
            std::vector<float> values(static_cast<std::size_t>(end - begin));
            io::to_f32(stored, first + at + begin, end - begin, values.data());
            check_finite(file_, stored, first + at + begin, end - begin, values.data());
            for (std::int64_t i = begin; i < end; ++i) bits[i] = f32_to_bf16(values[static_cast<std::size_t>(i - begin)]);
        });
        if (!is_here) transfer(Tensor(bits, DType::bf16, {count}), flat.slice(at, at + count));
    }
}

void load_weights(const ParameterStore& store, const io::Safetensors& file, std::span<const std::string> ignorable) {
    const ParameterTable& table = store.table();
    check_weights(table, file, ignorable);
    const NumbersLoader loader(file, store.device());
    // To a device one tensor goes after another.
    parallel_for(table.size(), store.device() == Device::cpu ? 1 : table.size(), [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t i = begin; i < end; ++i)
            loader.load(file.at(table.spec(static_cast<int>(i)).name), 0, store[static_cast<int>(i)]);
    });
}

void load_weights(const DeviceRows& rows, const io::Safetensors& file, std::span<const std::string> ignorable) {
    const ParameterTable& table = rows.table();
    check_weights(table, file, ignorable);
    const NumbersLoader loader(file, rows.device());
    for (int row = 0; row < table.size(); ++row)
        if (const Tensor to = rows.fp32(row).empty() ? rows.bf16(row) : rows.fp32(row); !to.empty()) loader.load(file.at(table.spec(row).name), 0, to);
    rows.round_both();
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
