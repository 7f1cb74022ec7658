#include "ops/cuda/workspaces.hpp"

#include <algorithm>

namespace atelier::ops::cuda {

std::int64_t masks_floats(const AttentionShape& s) { return (s.shared_keys + s.batch * s.own_keys + 3) / 4; }

std::int64_t plain_attention_workspace(const AttentionShape& s) { return masks_floats(s) + s.batch * s.heads * s.queries; }

std::int64_t wide_attention_workspace(const AttentionShape& s) { return std::min(s.queries, wide_attention_queries) * s.own_keys; }

std::int64_t attention_workspace(const AttentionShape& s) {
    if (s.head_dim > plain_attention_max_head) return wide_attention_workspace(s);
    return std::max(Packed(s, nullptr).floats(), plain_attention_workspace(s));
}

std::int64_t qk_norm_rope_workspace(const QkNormRopeShape& s) {
    return (s.rows + rope_chunk_rows - 1) / rope_chunk_rows * 2 * s.head_dim;
}

}  // namespace atelier::ops::cuda
