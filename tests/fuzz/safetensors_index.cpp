// The index of a sharded set, beside two good shards.
#include "fuzz/target.hpp"
#include "io/safetensors.hpp"

namespace atelier::fuzz {
namespace {

bool write_shards() {
    const float values[4] = {1, 2, 3, 4};
    for (const char* name : {"a", "b"})
        io::write_safetensors(scratch() / (std::string(name) + ".safetensors"), {{name, Tensor::of(values, {2, 2}), DType::f32}});
    return true;
}

}  // namespace

void run_one(std::span<const std::uint8_t> bytes) {
    static const bool written = write_shards();
    const auto path = as_file("model.safetensors.index.json", bytes);
    read_or_refuse([&] {
        const auto file = io::Safetensors::open(path);
        for (const auto& [name, stored] : file.tensors())
            if (!written || stored.file->path().parent_path() != scratch()) std::abort();  // a file outside the directory
    });
}

}  // namespace atelier::fuzz
