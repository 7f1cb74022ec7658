// A tokenizer.json, and a text through the tokenizer that it makes.
#include "fuzz/target.hpp"
#include "model/tokenizer/tokenizer.hpp"

namespace atelier::fuzz {

void run_one(std::span<const std::uint8_t> bytes) {
    const auto path = as_file("tokenizer.json", bytes);
    read_or_refuse([&] {
        const auto tokenizer = model::Tokenizer::load(path);
        const auto ids = tokenizer.encode("a red circle, 3 \xc3\xa9t\xc3\xa9s <|im_end|>\n");
        (void)tokenizer.decode(ids);
    });
}

}  // namespace atelier::fuzz
