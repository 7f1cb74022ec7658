// A LoRA adapter's file, with its settings in the metadata or beside it (the part ahead of the first zero byte).
#include <algorithm>

#include "fuzz/target.hpp"
#include "nn/lora_file.hpp"

namespace atelier::fuzz {
namespace {

nn::ParameterTable small_model() {
    nn::ParameterTable table;
    table.add({"blocks.0.to_q.weight", {6, 5}});
    table.add({"blocks.0.norm.weight", {6}});
    table.add({"blocks.1.to_q.weight", {6, 5}});
    return table;
}

}  // namespace

void run_one(std::span<const std::uint8_t> bytes) {
    static const nn::ParameterTable model = small_model();
    const auto settings = std::find(bytes.begin(), bytes.end(), std::uint8_t{0});
    as_file("adapter_config.json", bytes.first(static_cast<std::size_t>(settings - bytes.begin())));
    const auto path = as_file("adapter_model.safetensors", settings == bytes.end() ? bytes.first(0) : std::span(settings + 1, bytes.end()));
    read_or_refuse([&] { (void)nn::load_lora(path, model); });
}

}  // namespace atelier::fuzz
