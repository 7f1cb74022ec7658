#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "model/tokenizer/bpe.hpp"
#include "model/tokenizer/split.hpp"
#include "model/tokenizer/tokenizer_file.hpp"

namespace atelier::model {

/// Byte-level BPE as in Qwen2's `tokenizer.json`; gives the ids of Hugging Face's tokenizers.
///
/// Text → ids: added tokens are cut out of the raw text (leftmost, then longest), each remaining
/// piece is normalised (NFC) and cut at added tokens that are flagged `normalized`, then by the
/// split expressions; each piece's bytes are merged by rank. All of it comes from the file.
/// Immutable: one object may serve many threads.
class Tokenizer {
  public:
    /// `path`: a tokenizer.json, or the directory (`tokenizer/`, `processor/`) that holds it.
    /// Throws Error(input) naming file, key and found value if anything in it is not supported.
    static Tokenizer load(const std::filesystem::path& path);

    /// Throws Error(input) if `text` is not UTF-8.
    std::vector<std::int32_t> encode(std::string_view text) const;
    /// Bytes of all tokens joined, broken UTF-8 replaced by U+FFFD (one for each maximal invalid
    /// part). Ids without a token (a model's padded vocabulary) stand for nothing, as in the
    /// reference implementation; `skip_special` leaves out the tokens flagged special.
    std::string decode(std::span<const std::int32_t> ids, bool skip_special = false) const;

    /// The id of one token by its spelling (vocabulary or added). Throws Error(input) if there is
    /// none.
    std::int32_t id_of(std::string_view spelling) const;
    /// The spelling of a token; empty if the id has none.
    const std::string& spelling(std::int32_t id) const;
    /// One more than the largest id.
    std::int32_t size() const { return static_cast<std::int32_t>(spellings_.size()); }
    const std::filesystem::path& path() const { return path_; }

    /// What the split expressions alone make of `text` (no normalisation, no added tokens).
    std::vector<std::string_view> split(std::string_view text) const;

  private:
    /// Added tokens by first byte, longest first.
    class AddedTokenFinder {
      public:
        void add(const std::string& content, std::int32_t id);
        /// Cuts `text` at its added tokens: calls text(piece) and token(id) in order.
        template <typename OnText, typename OnToken>
        void cut(std::string_view text, OnText&& on_text, OnToken&& on_token) const;

      private:
        std::unordered_map<char, std::vector<std::pair<std::string, std::int32_t>>> by_first_byte_;
    };

    explicit Tokenizer(const TokenizerFile& file);
    void encode_plain(std::string_view text, std::vector<std::int32_t>& ids) const;
    std::string normalised(std::string_view text) const;

    std::filesystem::path path_;
    bool nfc_ = false;
    AddedTokenFinder raw_tokens_, normalised_tokens_;
    std::vector<SplitExpression> splits_;
    BytePairEncoder encoder_;
    std::vector<std::string> spellings_;                 // by id
    std::vector<std::uint8_t> special_;                  // by id
    std::unordered_map<std::string, std::int32_t> ids_;  // by spelling
};

}  // namespace atelier::model
