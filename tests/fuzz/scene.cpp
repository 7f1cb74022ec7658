// A prompt's attributes: the scene or edit that a picture is measured against. The first byte chooses the picture.
#include "core/json.hpp"
#include "fuzz/target.hpp"
#include "world/draw.hpp"
#include "world/measure.hpp"

namespace atelier::fuzz {

void run_one(std::span<const std::uint8_t> bytes) {
    static const auto pictures = [] {
        std::vector<std::vector<std::uint8_t>> drawn;
        for (const char* category : {"general", "portrait", "landscape", "typography"}) {
            Random random(random_key(1, RandomUse::test, drawn.size()));
            drawn.push_back(world::draw(world::random_scene(category, random)));
        }
        return drawn;
    }();
    if (bytes.empty()) return;
    read_or_refuse([&] {
        const auto attributes = parse_json(as_text(bytes.subspan(1)), "attributes");
        for (const auto& [dimension, found] : world::measure(attributes, pictures[bytes[0] % pictures.size()]))
            if (found.present && !(found.score >= 1 && found.score <= 5)) std::abort();
    });
}

}  // namespace atelier::fuzz
