#include "model/tokenizer/bpe.hpp"

#include <queue>
#include <tuple>

namespace atelier::model {

namespace {

std::uint64_t key_of(std::int32_t left, std::int32_t right) {
    return static_cast<std::uint64_t>(static_cast<std::uint32_t>(left)) << 32 |
           static_cast<std::uint32_t>(right);
}

/// A token of the piece in a doubly linked list over indices; token -1: merged away.
struct Symbol {
    std::int32_t token;
    std::int32_t previous;
    std::int32_t next;
};

struct Candidate {
    std::int32_t rank;
    std::int32_t position;  // of the left symbol
    std::int32_t merged;
    bool operator>(const Candidate& other) const {
        return std::tie(rank, position) > std::tie(other.rank, other.position);
    }
};

}  // namespace

bool BytePairEncoder::add_merge(std::int32_t left, std::int32_t right, std::int32_t merged) {
    return rules_
        .try_emplace(key_of(left, right), Rule{static_cast<std::int32_t>(rules_.size()), merged})
        .second;
}

const BytePairEncoder::Rule* BytePairEncoder::find(std::int32_t left, std::int32_t right) const {
    const auto it = rules_.find(key_of(left, right));
    return it == rules_.end() ? nullptr : &it->second;
}

void BytePairEncoder::encode(std::string_view piece, std::vector<std::int32_t>& tokens) const {
    const auto count = static_cast<std::int32_t>(piece.size());
    std::vector<Symbol> symbols(piece.size());
    const auto at = [&](std::int32_t i) -> Symbol& { return symbols[static_cast<std::size_t>(i)]; };
    for (std::int32_t i = 0; i < count; ++i) {
        const auto byte = static_cast<std::uint8_t>(piece[static_cast<std::size_t>(i)]);
        at(i) = {byte_tokens_[byte], i - 1, i + 1 < count ? i + 1 : -1};
    }

    std::priority_queue<Candidate, std::vector<Candidate>, std::greater<>> queue;
    const auto consider = [&](std::int32_t left) {
        if (left < 0 || at(left).next < 0) return;
        if (const Rule* rule = find(at(left).token, at(at(left).next).token)) {
            queue.push({rule->rank, left, rule->merged});
        }
    };
    for (std::int32_t i = 0; i < count; ++i) consider(i);

    while (!queue.empty()) {
        const Candidate best = queue.top();
        queue.pop();
        Symbol& left = at(best.position);
        if (left.token < 0 || left.next < 0) continue;  // merged away, or its partner is
        Symbol& right = at(left.next);
        const Rule* rule = find(left.token, right.token);
        if (!rule || rule->rank != best.rank) continue;  // an outdated pair
        left.token = rule->merged;
        left.next = right.next;
        right.token = -1;
        if (left.next >= 0) at(left.next).previous = best.position;
        consider(left.previous);
        consider(best.position);
    }
    for (std::int32_t i = count > 0 ? 0 : -1; i >= 0; i = at(i).next) tokens.push_back(at(i).token);
}

}  // namespace atelier::model
