#include "nn/checkpoint_weights.hpp"

#include <algorithm>
#include <cmath>

#include "core/device.hpp"
#include "core/parallel.hpp"

namespace atelier::nn {

void load_weights(const ParameterStore& store, const io::Safetensors& file, std::span<const std::string> ignorable) {
    const ParameterTable& table = store.table();
    const std::string path = file.path().string();
    for (const ParameterSpec& spec : table.specs()) {
        ATELIER_CHECK_INPUT(file.contains(spec.name), "{}: tensor {} of shape {} is missing", path, spec.name,
                            spec.shape.str());
        const Shape& found = file.at(spec.name).shape;
        ATELIER_CHECK_INPUT(found == spec.shape, "{}: tensor {} must have shape {}, found {}", path, spec.name,
                            spec.shape.str(), found.str());
    }
    for (const auto& [name, stored] : file.tensors()) {
        ATELIER_CHECK_INPUT(
            table.find(name) >= 0 || std::find(ignorable.begin(), ignorable.end(), name) != ignorable.end(),
            "{}: tensor {} of shape {} belongs to no part of the model that the config describes", path, name,
            stored.shape.str());
    }
    // To a device one tensor goes after another, through host memory.
    const bool there = store.flat().device() != Device::cpu;
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
            if (there) transfer(Tensor::of(v, values.shape()), values);
        }
    });
}

void save_weights(const ParameterStore& store, const std::filesystem::path& path, DType dtype) {
    if (store.flat().device() != Device::cpu) {
        Arena arena("weights to write", store.flat().bytes() + Arena::alignment);
        const ParameterStore host(store.table(), arena);
        transfer(store.flat(), host.flat());
        return save_weights(host, path, dtype);
    }
    std::vector<io::TensorToWrite> tensors;
    for (int i = 0; i < store.table().size(); ++i)
        tensors.push_back({store.table().spec(i).name, store[i], dtype});
    io::write_safetensors(path, tensors, {{"format", "pt"}});
}

}  // namespace atelier::nn
