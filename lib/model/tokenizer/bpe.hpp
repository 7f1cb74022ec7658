#pragma once

#include <array>
#include <cstdint>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace atelier::model {

/// Byte-pair encoding of one piece of text: starting from one token per byte, the adjacent pair of
/// lowest rank (leftmost among equals) is merged until no adjacent pair has a rule (Sennrich et
/// al., arXiv 1508.07909). Immutable after construction, so safe to use from many threads.
class BytePairEncoder {
  public:
    /// `byte_tokens[b]`: the token of byte b.
    explicit BytePairEncoder(const std::array<std::int32_t, 256>& byte_tokens)
        : byte_tokens_(byte_tokens) {}
    /// Rules in order of rank. Returns false, and changes nothing, if the pair has a rule already.
    bool add_merge(std::int32_t left, std::int32_t right, std::int32_t merged);
    /// Appends the tokens of `piece`; O(n log n) in its bytes.
    void encode(std::string_view piece, std::vector<std::int32_t>& tokens) const;

  private:
    struct Rule {
        std::int32_t rank;
        std::int32_t merged;
    };
    const Rule* find(std::int32_t left, std::int32_t right) const;
    std::array<std::int32_t, 256> byte_tokens_;
    std::unordered_map<std::uint64_t, Rule> rules_;
};

}  // namespace atelier::model
