#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

namespace atelier::model {

/// A token that is cut out of the text before the split expression sees it.
struct AddedToken {
    std::int32_t id = 0;
    std::string content;
    bool special = false;     ///< left out by decode(..., skip_special)
    bool normalized = false;  ///< looked for after normalisation instead of in the raw text
};

/// What a `tokenizer.json` says, checked.
struct TokenizerFile {
    std::filesystem::path path;
    std::vector<AddedToken> added_tokens;
    bool nfc = false;  ///< normalise to NFC
    std::vector<std::pair<std::string, std::string>>
        splits;  ///< expression and its place in the file
    std::unordered_map<std::string, std::int32_t> vocabulary;  ///< spelling → id
    std::vector<std::pair<std::string, std::string>> merges;   ///< in order of rank
};

/// Reads `path`, a tokenizer.json or a directory that holds one; a `tokenizer_config.json` beside
/// it is only checked for settings that would change the tokens. Supported: byte-level BPE as
/// Qwen2's (see docs of Tokenizer). Throws Error(input) naming file, key and found value for
/// anything else.
TokenizerFile read_tokenizer_file(const std::filesystem::path& path);

}  // namespace atelier::model
