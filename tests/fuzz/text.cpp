// Any text through the miniature's tokenizer: what is UTF-8 comes back as it went in.
#include "fuzz/target.hpp"
#include "model/tokenizer/tokenizer.hpp"

namespace atelier::fuzz {

void run_one(std::span<const std::uint8_t> bytes) {
    static const auto tokenizer = model::Tokenizer::load(std::filesystem::path(ATELIER_SOURCE_DIR) / "assets/mini/base/processor");
    read_or_refuse([&] {
        const auto ids = tokenizer.encode(as_text(bytes));
        const std::string back = tokenizer.decode(ids);
        if (tokenizer.decode(tokenizer.encode(back)) != back) std::abort();
    });
}

}  // namespace atelier::fuzz
