// A prompt file: no picture lies outside its directory.
#include "fuzz/target.hpp"
#include "stage/prompts.hpp"

namespace atelier::fuzz {

void run_one(std::span<const std::uint8_t> bytes) {
    const auto path = as_file("prompts.jsonl", bytes);
    read_or_refuse([&] {
        for (const auto& prompt : stage::read_prompts(path, "edit", "edit"))
            for (const auto& picture : prompt.images)
                if (picture.lexically_normal().string().rfind(scratch().string() + "/", 0) != 0) std::abort();
    });
}

}  // namespace atelier::fuzz
