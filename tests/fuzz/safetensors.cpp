// A safetensors file: every tensor that is handed out is read.
#include "io/safetensors.hpp"

#include "fuzz/target.hpp"

namespace atelier::fuzz {

void run_one(std::span<const std::uint8_t> bytes) {
    const auto path = as_file("one.safetensors", bytes);
    read_or_refuse([&] {
        const auto file = io::Safetensors::open(path);
        for (const auto& [name, stored] : file.tensors()) {
            if (stored.bytes() > bytes.size()) std::abort();  // a tensor larger than its file
            if (stored.dtype == DType::f32 || stored.dtype == DType::bf16 || stored.dtype == DType::f16) {
                std::vector<float> values(static_cast<std::size_t>(stored.shape.elements()));
                io::to_f32(stored, values.data());
            }
        }
    });
}

}  // namespace atelier::fuzz
