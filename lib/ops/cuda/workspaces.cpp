#include "ops/cuda/workspaces.hpp"

#include <algorithm>

namespace atelier::ops::cuda {

std::int64_t masks_floats(const AttentionShape& s) { return (s.shared_keys + s.batch * s.own_keys + 3) / 4; }

std::int64_t plain_attention_workspace(const AttentionShape& s) { return masks_floats(s) + s.batch * s.heads * s.queries; }

std::int64_t wide_attention_workspace(const AttentionShape& s) { return std::min(s.queries, wide_attention_queries) * s.own_keys; }

std::int64_t attention_workspace(const AttentionShape& s) {
    if (s.head_dim > plain_attention_max_head) return wide_attention_workspace(s);
    return std::max(Packed(s, nullptr, false).floats(), plain_attention_workspace(s));
}

std::int64_t attention_backward_workspace(const AttentionShape& s) {
    if (s.head_dim > plain_attention_max_head) return wide_attention_workspace(s);
    return std::max(Packed(s, nullptr, true).floats(), plain_attention_workspace(s));
}

namespace {

#ifdef ATELIER_EMULATED
constexpr std::int64_t most_room = std::int64_t{50} << 10;  // bytes: the sizes of tests are cut, too
#else
constexpr std::int64_t most_room = std::int64_t{512} << 20;  // bytes
#endif

std::int64_t rounded_up(std::int64_t n, std::int64_t to) { return (n + to - 1) / to * to; }

/// Of cuDNN's deterministic algorithm on sm_90 for one query head of an entry (cudnn-frontend 1.32, SDPA backward): the gradient of the
/// probabilities in bf16, sums of rows, and the keys' gradients of each query head where heads share keys.
std::int64_t head_room(const AttentionShape& s) {
    const std::int64_t keys = s.shared_keys + s.own_keys, shares = s.heads == s.kv_heads ? 0 : 2 * 4 * keys * s.head_dim;
    return 2 * rounded_up(s.queries, 64) * rounded_up(keys, 128) + 4 * s.queries + shares;
}

/// The same for a key head of an entry: of the query heads that it serves.
std::int64_t key_head_room(const AttentionShape& s) { return s.heads / s.kv_heads * head_room(s); }

/// What a call may take. Like a key head's room, no less for more queries or keys.
std::int64_t room_limit(const AttentionShape& s) { return std::max(most_room, key_head_room(s)); }

}  // namespace

BackwardCut backward_cut(const AttentionShape& s) {
    const std::int64_t limit = room_limit(s), head = key_head_room(s);
    const auto largest_divisor = [=](std::int64_t of, std::int64_t room_of_each) {
        std::int64_t n = of;
        while (of % n != 0 || n * room_of_each > limit) --n;
        return n;
    };
    if (s.kv_heads * head > limit) return {1, largest_divisor(s.kv_heads, head)};
    return {largest_divisor(s.batch, s.kv_heads * head), s.kv_heads};
}

// Not of the cut, which may take more of a smaller shape: of all that a call may take, so that what is planned for the longest prefix serves any.
std::int64_t backward_room(const AttentionShape& s) {
    // Each of the library's buffers may begin at a multiple of 256 bytes.
    return std::min(s.batch * s.kv_heads * key_head_room(s), room_limit(s)) + 4 * 256;
}

std::int64_t qk_norm_rope_workspace(const QkNormRopeShape& s) {
    return (s.rows + rope_chunk_rows - 1) / rope_chunk_rows * 2 * s.head_dim;
}

}  // namespace atelier::ops::cuda
