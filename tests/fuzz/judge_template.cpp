// A template of a judge's dimension.
#include "judge/template.hpp"

#include "fuzz/target.hpp"

namespace atelier::fuzz {

void run_one(std::span<const std::uint8_t> bytes) {
    const auto path = as_file("template.toml", bytes);
    read_or_refuse([&] {
        const auto asked = judge::read_template(path);
        (void)judge::make_conversation(asked, "a red circle", io::Image(2, 2, 3), {});
    });
}

}  // namespace atelier::fuzz
