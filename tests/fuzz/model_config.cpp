// The JSON files of a model directory. The first byte chooses which.
#include "flow/schedule_config.hpp"
#include "fuzz/target.hpp"
#include "model/dit/config.hpp"
#include "model/processor/processor_config.hpp"
#include "model/vae/config.hpp"
#include "model/vlm/config.hpp"

namespace atelier::fuzz {

void run_one(std::span<const std::uint8_t> bytes) {
    if (bytes.empty()) return;
    const auto path = as_file("config.json", bytes.subspan(1));
    read_or_refuse([&] {
        switch (bytes[0] % 5) {
            case 0: (void)dit::load_config(path); break;
            case 1: (void)vae::load_config(path); break;
            case 2: (void)vlm::load_config(path); break;
            case 3: (void)model::ProcessorConfig::load(path); break;
            default: (void)flow::read_schedule_config(path);
        }
    });
}

}  // namespace atelier::fuzz
