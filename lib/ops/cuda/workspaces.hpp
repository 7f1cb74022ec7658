#pragma once

#include "ops/attention.hpp"
#include "ops/rope.hpp"

// Numbers of workspace that operations take on the device. Without CUDA: plans are made where no device is, too.
namespace atelier::ops::cuda {

inline constexpr std::int64_t rope_chunk_rows = 8;  ///< rows of a block of the backward pass of norm and rotation

inline constexpr int plain_attention_max_head = 128;          ///< channels; wider heads go to wide_attention
inline constexpr std::int64_t wide_attention_queries = 1024;  ///< of a block: 16 MB of scores beside 4,096 keys

/// Of the masks at the front of plain attention's workspace.
std::int64_t masks_floats(const AttentionShape& shape);
/// Bytes that the library takes for a call of the backward pass, at most, as backward_cut() cuts it: no less for more entries, queries or keys.
std::int64_t backward_room(const AttentionShape& shape);
std::int64_t plain_attention_workspace(const AttentionShape& shape);
std::int64_t wide_attention_workspace(const AttentionShape& shape);
std::int64_t attention_workspace(const AttentionShape& shape);
std::int64_t attention_backward_workspace(const AttentionShape& shape);
std::int64_t qk_norm_rope_workspace(const QkNormRopeShape& shape);

/// What a call of the library's backward takes: all key heads of some entries, or some of one entry's; a divisor of what there are, so that all
/// calls have one shape.
struct BackwardCut {
    std::int64_t entries, kv_heads;
};
/// As many at a time as take no more than 512 MiB of the library's room, but at least a key head of an entry.
BackwardCut backward_cut(const AttentionShape& shape);

/// bf16 numbers and fp32 statistics in the workspace, one behind the other; each begins at a multiple of 128 bytes. What the backward pass alone
/// takes lies behind the rest.
class Packed {
  public:
    Packed(const AttentionShape& s, float* workspace, bool backward) : s_(s), at_(reinterpret_cast<std::byte*>(workspace)) {
        q = take<std::uint16_t>(queries());
        k = take<std::uint16_t>(keys());
        v = take<std::uint16_t>(keys());
        out = take<std::uint16_t>(queries());
        stats = take<float>(s.batch * s.heads * s.queries);
        if (!backward) return;
        dout = take<std::uint16_t>(queries());
        dq = take<std::uint16_t>(queries());
        dk = take<std::uint16_t>(keys());
        dv = take<std::uint16_t>(keys());
        room_bytes = backward_room(s);
        room = take<std::byte>(room_bytes);
    }
    std::int64_t floats() const { return bytes_ / static_cast<std::int64_t>(sizeof(float)); }
    std::int64_t q_width() const { return s_.heads * s_.head_dim; }
    std::int64_t kv_width() const { return s_.kv_heads * s_.head_dim; }

    std::uint16_t *q, *k, *v, *out, *dout = nullptr, *dq = nullptr, *dk = nullptr, *dv = nullptr;
    float* stats;
    std::byte* room = nullptr;      ///< the library's
    std::int64_t room_bytes = 0;

  private:
    std::int64_t queries() const { return s_.batch * s_.queries * q_width(); }
    std::int64_t keys() const { return s_.batch * (s_.shared_keys + s_.own_keys) * kv_width(); }
    template <typename T>
    T* take(std::int64_t count) {
        T* taken = at_ == nullptr ? nullptr : reinterpret_cast<T*>(at_ + bytes_);  // null: sizes are counted
        bytes_ += (count * static_cast<std::int64_t>(sizeof(T)) + 127) / 128 * 128;
        return taken;
    }
    const AttentionShape& s_;
    std::byte* at_;
    std::int64_t bytes_ = 0;
};

}  // namespace atelier::ops::cuda
