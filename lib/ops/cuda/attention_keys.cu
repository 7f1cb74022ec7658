#include "ops/cuda/attention_keys.hpp"

#include "ops/cuda/cast.hpp"
#include "ops/cuda/kernel.hpp"

namespace atelier::ops::cuda {
namespace {

constexpr int warps = 8;  // heads of a block

/// What the kernels read of an AttentionShape; `own` keys of each entry take part.
struct KeyRows {
    std::int64_t batch, shared, own, entry_own, width, shared_stride, own_stride;
};

/// A block a packed key or (blockIdx.y = 1) value.
template <int N, typename Shared, typename Own>
__global__ void pack_kernel(KeyRows s, const Shared* shared_k, const Shared* shared_v, const Own* own_k, const Own* own_v, std::uint16_t* k,
                            std::uint16_t* v) {
    const std::int64_t row = blockIdx.x, entry = row / (s.shared + s.own), key = row % (s.shared + s.own);
    const bool is_value = blockIdx.y == 1;
    std::uint16_t* to = (is_value ? v : k) + row * s.width;
    const auto copy = [=](const auto* from) {
        for (std::int64_t j = threadIdx.x * N; j < s.width; j += blockDim.x * N) store(to + j, load<N>(from + j));
    };
    if (key < s.shared) copy((is_value ? shared_v : shared_k) + key * s.shared_stride);
    else copy((is_value ? own_v : own_k) + (entry * s.entry_own + key - s.shared) * s.own_stride);
}

/// A block a shared key (all entries, in order) or an entry's own one, or (blockIdx.y = 1) its value.
template <int N>
__global__ void unpack_kernel(KeyRows s, bool adds, const std::uint16_t* dk, const std::uint16_t* dv, float* shared_k, float* shared_v, float* own_k,
                              float* own_v) {
    const std::int64_t row = blockIdx.x, keys = s.shared + s.own;
    const bool is_value = blockIdx.y == 1;
    const auto put = [=](const std::uint16_t* from, std::int64_t entries, bool added, float* to) {
        for (std::int64_t j = threadIdx.x * N; j < s.width; j += blockDim.x * N) {
            Pack<N> sum = added ? load<N>(to + j) : load<N>(from + j);
            for (std::int64_t entry = added ? 0 : 1; entry < entries; ++entry) {
                const Pack<N> p = load<N>(from + entry * keys * s.width + j);
                for (int n = 0; n < N; ++n) sum.v[n] = sum.v[n] + p.v[n];
            }
            store(to + j, sum);
        }
    };
    const std::uint16_t* from = is_value ? dv : dk;
    if (row < s.shared) {
        float* to = is_value ? shared_v : shared_k;
        if (to != nullptr) put(from + row * s.width, s.batch, true, to + row * s.shared_stride);
        return;
    }
    const std::int64_t entry = (row - s.shared) / s.own, key = (row - s.shared) % s.own;
    put(from + (entry * keys + s.shared + key) * s.width, 1, adds, (is_value ? own_v : own_k) + (entry * s.entry_own + key) * s.own_stride);
}

/// A warp a query head of an entry.
__global__ void single_key_kernel(DenseAttention s, const std::uint16_t* q, const std::uint16_t* k, const std::uint16_t* v, std::uint16_t* out,
                                  float* stats) {
    const std::int64_t unit = static_cast<std::int64_t>(blockIdx.x) * warps + threadIdx.x / warp_size, lane = threadIdx.x % warp_size;
    if (unit >= s.batch * s.heads) return;
    const std::int64_t entry = unit / s.heads, head = unit % s.heads, key_head = head / (s.heads / s.kv_heads);
    const std::int64_t key = entry * s.entry_keys * s.kv_stride + key_head * s.head_dim;
    const std::int64_t query = entry * s.entry_queries * s.q_stride + head * s.head_dim, to = entry * s.entry_queries * s.out_stride + head * s.head_dim;
    float dot = 0;
    for (std::int64_t j = lane; j < s.head_dim; j += warp_size) {
        dot = fmaf(bf16_value(q[query + j]), bf16_value(k[key + j]), dot);
        out[to + j] = v[key + j];
    }
    dot = warp_sum(dot);
    if (lane == 0) stats[unit] = dot * s.scale;
}

/// A warp a key head of an entry, with its query heads in order.
__global__ void single_key_backward_kernel(DenseAttention s, const std::uint16_t* dout, std::uint16_t* dq, std::uint16_t* dk, std::uint16_t* dv) {
    const std::int64_t unit = static_cast<std::int64_t>(blockIdx.x) * warps + threadIdx.x / warp_size, group = s.heads / s.kv_heads;
    if (unit >= s.batch * s.kv_heads) return;
    const std::int64_t entry = unit / s.kv_heads, head = unit % s.kv_heads, key = entry * s.kv_gradient_stride + head * s.head_dim;
    const std::int64_t query = entry * s.entry_queries * s.q_gradient_stride + head * group * s.head_dim;
    for (std::int64_t j = threadIdx.x % warp_size; j < s.head_dim; j += warp_size) {
        float sum = 0;
        for (std::int64_t h = 0; h < group; ++h) {
            sum += bf16_value(dout[query + h * s.head_dim + j]);
            dq[query + h * s.head_dim + j] = 0;
        }
        dk[key + j] = 0;
        dv[key + j] = bf16_bits(sum);
    }
}

}  // namespace

// Floor: 2 * batch * (shared + own) * width numbers written in bf16, each own one and each shared one read once.
void pack_keys(const AttentionShape& s, AttentionKeys shared, AttentionKeys own, std::uint16_t* k, std::uint16_t* v) {
    if (s.shared_keys == 0) shared = {};  // whatever stands where there are none
    if (s.own_keys == 0) own = {};
    const KeyRows rows{s.batch, s.shared_keys, s.own_keys, s.own_keys, s.kv_heads * s.head_dim, s.shared_stride, s.own_stride};
    const Grid blocks{s.batch * (s.shared_keys + s.own_keys), 2};
    with_address(shared.k, [&]<typename Shared>(const Shared* shared_k) {
        with_address(own.k, [&]<typename Own>(const Own* own_k) {
            const Shared* shared_v = address_of<Shared>(shared.v);
            const Own* own_v = address_of<Own>(own.v);
            const bool in_packs = in_fours({rows.width, s.own_stride}, {own_k, own_v, k, v}) &&
                                  (s.shared_keys == 0 || in_fours({s.shared_stride}, {shared_k, shared_v}));
            if (in_packs)
                launch(pack_kernel<4, Shared, Own>, blocks, row_threads(rows.width, 4), 0, rows, shared_k, shared_v, own_k, own_v, k, v);
            else
                launch(pack_kernel<1, Shared, Own>, blocks, row_threads(rows.width, 1), 0, rows, shared_k, shared_v, own_k, own_v, k, v);
        });
    });
}

// Floor: 2 * batch * keys * width numbers read in bf16; 4 bytes for each own one written (read as well where it is added), 8 for each shared one.
void unpack_key_gradients(const AttentionShape& s, std::int64_t keys, bool adds, const std::uint16_t* dk, const std::uint16_t* dv,
                          AttentionKeyGradients shared, AttentionKeyGradients own) {
    if (s.shared_keys == 0) shared = {};
    if (s.own_keys == 0) own = {};
    const KeyRows rows{s.batch, s.shared_keys, keys - s.shared_keys, s.own_keys, s.kv_heads * s.head_dim, s.shared_stride, s.own_stride};
    const Grid blocks{rows.shared + rows.batch * rows.own, 2};
    const bool in_packs = in_fours({rows.width, s.own_stride}, {dk, dv, own.dk, own.dv}) &&
                          (s.shared_keys == 0 || in_fours({s.shared_stride}, {shared.dk, shared.dv}));
    if (in_packs)
        launch(unpack_kernel<4>, blocks, row_threads(rows.width, 4), 0, rows, adds, dk, dv, shared.dk, shared.dv, own.dk, own.dv);
    else
        launch(unpack_kernel<1>, blocks, row_threads(rows.width, 1), 0, rows, adds, dk, dv, shared.dk, shared.dv, own.dk, own.dv);
}

// Once a text that begins before a picture; bound by its launch.
void single_key_attention(const DenseAttention& s, const std::uint16_t* q, const std::uint16_t* k, const std::uint16_t* v, std::uint16_t* out,
                          float* stats) {
    launch(single_key_kernel, {ceil_div(s.batch * s.heads, warps)}, warps * warp_size, 0, s, q, k, v, out, stats);
}
void single_key_attention_backward(const DenseAttention& s, const std::uint16_t* dout, std::uint16_t* dq, std::uint16_t* dk, std::uint16_t* dv) {
    launch(single_key_backward_kernel, {ceil_div(s.batch * s.kv_heads, warps)}, warps * warp_size, 0, s, dout, dq, dk, dv);
}

}  // namespace atelier::ops::cuda
