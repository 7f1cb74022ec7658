#include "ops/rope.hpp"

#include "ops/cuda/cast.hpp"
#include "ops/cuda/columns.hpp"
#include "ops/cuda/functions.hpp"
#include "ops/cuda/kernel.hpp"
#include "ops/cuda/workspaces.hpp"

// n = rows * heads * head_dim: the numbers of q, of k, or of v.
namespace atelier::ops::cuda {
namespace {

constexpr int warps = 8;       // of a block: each takes heads by itself
constexpr int max_head = 512;  // channels: 8 warps keep sums of two weights in 32 KB

/// How a head lies on lanes: I packs of P pairs a lane, lanes * P pairs apart; `channels` of a head where they fill that, 0 where they are told.
template <int P_, int I_, int lanes_, int channels_>
struct Layout {
    static constexpr int P = P_, I = I_, lanes = lanes_, channels = channels_;
    static_assert(channels == 0 || channels == 2 * P * I * lanes);
};

/// f(pack, number of its first pair) for a lane's packs within the head.
template <typename L, typename Function>
__device__ __forceinline__ void each_pack(int half, Function f) {
    for (int n = 0; n < L::I; ++n) {
        const int i = (n * L::lanes + threadIdx.x % L::lanes) * L::P;
        if (L::channels > 0 || i < half) f(n, i);
    }
}

/// What a lane holds of a head's channels, as they lie in memory; zeros beyond the head.
template <typename L, typename T>
struct StoredShare {
    Stored<2 * L::P, T> v[L::I] = {};
};
template <typename L, typename T>
__device__ __forceinline__ StoredShare<L, T> load_share(const T* head, int half) {
    StoredShare<L, T> share;
    each_pack<L>(half, [&](int n, int i) { share.v[n] = load_stored<2 * L::P>(head + 2 * i); });
    return share;
}
template <typename L>
using Share = StoredShare<L, float>;
template <typename L, typename T>
__device__ __forceinline__ Share<L> widened(const StoredShare<L, T>& stored) {
    Share<L> share;
    for (int n = 0; n < L::I; ++n) share.v[n] = widened(stored.v[n]);
    return share;
}
template <typename L, typename Out>
__device__ __forceinline__ void store_share(Out* head, int half, const Share<L>& share) {
    each_pack<L>(half, [&](int n, int i) { store(head + 2 * i, share.v[n]); });
}
template <typename L, typename In, typename Out>
__device__ __forceinline__ void copy_share(const In* from, Out* to, int half) {
    const StoredShare<L, In> share = load_share<L>(from, half);
    if constexpr (std::is_same_v<In, Out>)
        each_pack<L>(half, [&](int n, int i) { *reinterpret_cast<Stored<2 * L::P, Out>*>(to + 2 * i) = share.v[n]; });
    else store_share<L>(to, half, widened(share));
}

/// Cosines and sines of a lane's pairs at a row's position.
template <typename L>
struct Angles {
    Pack<L::P> c[L::I] = {}, n[L::I] = {};
    __device__ __forceinline__ Angles(int half, const float* cosine, const float* sine) {
        each_pack<L>(half, [&](int k, int i) { c[k] = load<L::P>(cosine + i), n[k] = load<L::P>(sine + i); });
    }
};
/// Where a row's angles lie. Rows and positions are within 31 bits (check_shape): a remainder of 64 takes a hundred instructions.
__device__ __forceinline__ std::int64_t angles_at(const QkNormRopeShape& s, std::int64_t row, int half) {
    return static_cast<std::int64_t>(static_cast<unsigned>(row) % static_cast<unsigned>(s.positions)) * half;
}

/// Sum of squares over a head's lanes, the same in both layouts: of 16 lanes each has what two of 32 would have.
template <typename L>
__device__ __forceinline__ float sum_of_squares(const Share<L>& x) {
    static_assert(L::lanes == warp_size || (L::lanes == warp_size / 2 && L::I == 2));
    constexpr int parts = warp_size / L::lanes;
    float sums[parts];
    for (int n = 0; n < L::I; ++n)
        for (int k = 0; k < 2 * L::P; ++k) {
            const float square = x.v[n].v[k] * x.v[n].v[k];
            float& sum = sums[n % parts];
            sum = k == 0 && n < parts ? square : sum + square;
        }
    float sum = sums[0];
    if constexpr (parts == 2) sum += sums[1];
    for (int distance = L::lanes / 2; distance > 0; distance /= 2) sum += __shfl_xor_sync(all_lanes, sum, distance);
    return sum;
}

/// A block a row; the lanes of a head take heads of q and k in turn, the next one's numbers on their way meanwhile, then those of v.
template <typename L, typename In, typename Out>
__global__ void qk_norm_rope_kernel(QkNormRopeShape s, const In* in, const float* q_weight, const float* k_weight, const float* cosine,
                                    const float* sine, Out* out, float* inverse_rms) {
    constexpr int slots = warps * warp_size / L::lanes;
    const int d = L::channels > 0 ? L::channels : static_cast<int>(s.head_dim), half = d / 2, heads = static_cast<int>(s.heads);
    const int slot = threadIdx.x / L::lanes;
    const std::int64_t row = blockIdx.x, at = angles_at(s, row, half);
    const Angles<L> angles(half, cosine + at, sine + at);
    const In* from = in + (row * 3 * heads + slot) * d;
    Out* to = out + (row * 3 * heads + slot) * d;
    // Heads of q and k are an even number, so that both halves of a warp go through as many: shuffles are of all lanes.
    StoredShare<L, In> next;
    if (slot < 2 * heads) next = load_share<L>(from, half);
    Share<L> w = load_share<L>(slot < heads ? q_weight : k_weight, half);
    int head = slot;
    for (; head < 2 * heads; head += slots, to += slots * d) {
        const Share<L> x = widened(next);
        from += slots * d;
        if (head + slots < 2 * heads) next = load_share<L>(from, half);
        if (head >= heads && head - slots < heads) w = load_share<L>(k_weight, half);
        const float inverse = 1.0f / sqrtf(sum_of_squares<L>(x) / static_cast<float>(d) + s.eps);
        Share<L> r;
        for (int n = 0; n < L::I; ++n)
            for (int k = 0; k < L::P; ++k) {
                const float a = x.v[n].v[2 * k] * inverse * w.v[n].v[2 * k], b = x.v[n].v[2 * k + 1] * inverse * w.v[n].v[2 * k + 1];
                r.v[n].v[2 * k] = a * angles.c[n].v[k] - b * angles.n[n].v[k];
                r.v[n].v[2 * k + 1] = a * angles.n[n].v[k] + b * angles.c[n].v[k];
            }
        store_share<L>(to, half, r);
        if (threadIdx.x % L::lanes == 0) inverse_rms[row * 2 * heads + head] = inverse;
    }
    for (; head < 3 * heads; head += slots, from += slots * d, to += slots * d) copy_share<L>(from, to, half);
}

/// A block a chunk of rows, its warps take the heads of q, then of k in turn, and of v where d_in is other memory than d_out; sums of the
/// weights' gradients by warp, then over warps in order into a row [q, k] of `partial` (null: none).
template <typename L, typename In, typename Out>
__global__ void __launch_bounds__(warps* warp_size, L::I == 1 ? 4 : 1)
    qk_norm_rope_backward_kernel(QkNormRopeShape s, const In* in, const float* q_weight, const float* k_weight, const float* cosine,
                                 const float* sine, const float* inverse_rms, const float* d_out, Out* d_in, bool copies_v, float* partial) {
    static_assert(L::lanes == warp_size);  // the order of the weights' gradients
    ATELIER_DYNAMIC_SHARED(float, sums);   // [warps, 2, head_dim]
    const int d = L::channels > 0 ? L::channels : static_cast<int>(s.head_dim), half = d / 2, heads = static_cast<int>(s.heads), width = heads * d;
    const int warp = threadIdx.x / warp_size;
    const std::int64_t first = blockIdx.x * rope_chunk_rows, last = first + rope_chunk_rows < s.rows ? first + rope_chunk_rows : s.rows;
    Share<L> dq_weight, dk_weight;
    for (std::int64_t row = first; row < last; ++row) {
        const std::int64_t at = angles_at(s, row, half), of_row = row * 3 * width;
        const Angles<L> angles(half, cosine + at, sine + at);
        const auto take = [&](int part, const float* weight, Share<L>& d_weight) {
            const In* const xs = in + of_row + part * width;
            const float *const gs = d_out + of_row + part * width, *const inverses = inverse_rms + (row * 2 + part) * heads;
            Out* const to = d_in + of_row + part * width;
            const Share<L> w = load_share<L>(weight, half);
            StoredShare<L, In> next;
            if (warp < heads) next = load_share<L>(xs + warp * d, half);
            for (int head = warp; head < heads; head += warps) {
                const Share<L> x = widened(next), g = load_share<L>(gs + head * d, half);
                if (head + warps < heads) next = load_share<L>(xs + (head + warps) * d, half);
                const float inverse = inverses[head];
                Share<L> r;  // what the rotation got
                float dot = 0;
                for (int n = 0; n < L::I; ++n) {
                    for (int k = 0; k < L::P; ++k) {
                        const float up = g.v[n].v[2 * k], next_up = g.v[n].v[2 * k + 1], c = angles.c[n].v[k], sn = angles.n[n].v[k];
                        r.v[n].v[2 * k] = up * c + next_up * sn;
                        r.v[n].v[2 * k + 1] = next_up * c - up * sn;
                    }
                    for (int k = 0; k < 2 * L::P; ++k) {
                        d_weight.v[n].v[k] += r.v[n].v[k] * x.v[n].v[k] * inverse;
                        dot += r.v[n].v[k] * w.v[n].v[k] * x.v[n].v[k];
                    }
                }
                const float pull = warp_sum(dot) * inverse * inverse * inverse / static_cast<float>(d);
                for (int n = 0; n < L::I; ++n)
                    for (int k = 0; k < 2 * L::P; ++k) r.v[n].v[k] = r.v[n].v[k] * w.v[n].v[k] * inverse - x.v[n].v[k] * pull;
                store_share<L>(to + head * d, half, r);
            }
        };
        take(0, q_weight, dq_weight);
        take(1, k_weight, dk_weight);
        const std::int64_t values = of_row + 2 * width;
        for (int head = warp; copies_v && head < heads; head += warps)
            copy_share<L>(d_out + values + head * d, d_in + values + head * d, half);
    }
    if (partial == nullptr) return;
    store_share<L>(sums + warp * 2 * d, half, dq_weight);
    store_share<L>(sums + (warp * 2 + 1) * d, half, dk_weight);
    __syncthreads();
    for (int j = threadIdx.x; j < 2 * d; j += blockDim.x) {
        float sum = sums[j];
        for (int w = 1; w < warps; ++w) sum += sums[w * 2 * d + j];
        partial[blockIdx.x * 2 * d + j] = sum;
    }
}

/// A warp a head of a row; `direction` 1 rotates, -1 rotates back.
__global__ void rotate_halves_kernel(std::int64_t rows, std::int64_t heads, std::int64_t head_dim, std::int64_t stride, const float* cosine,
                                     const float* sine, float direction, float* x) {
    const std::int64_t unit = static_cast<std::int64_t>(blockIdx.x) * warps + threadIdx.x / warp_size, half = head_dim / 2;
    if (unit >= rows * heads) return;
    const std::int64_t row = unit / heads;
    float *a = x + row * stride + unit % heads * head_dim, *b = a + half;
    for (std::int64_t i = threadIdx.x % warp_size; i < half; i += warp_size) {
        const float u = a[i], v = b[i], c = cosine[row * half + i], turn = direction * sine[row * half + i];
        a[i] = u * c - v * turn;
        b[i] = v * c + u * turn;
    }
}

void check_shape(const QkNormRopeShape& s) {
    ATELIER_CHECK(s.head_dim % 2 == 0 && s.head_dim <= max_head, "heads of {} channels (even, at most {})", s.head_dim, max_head);
    constexpr std::int64_t end = std::int64_t{1} << 31;
    ATELIER_CHECK(s.rows < end && s.positions < end && 3 * s.heads * s.head_dim < end, "{} rows of {} heads at {} positions", s.rows, s.heads,
                  s.positions);
}

/// f.template operator()<Layout>() by how a head's channels are shared: two pairs at a time where addresses allow, `Whole` for heads of 128.
template <typename Whole, typename Function>
void with_layout(const QkNormRopeShape& s, std::initializer_list<const void*> pointers, Function f) {
    const bool in_twos = in_fours({s.head_dim}, pointers);
    if (in_twos && s.head_dim == 128) f.template operator()<Whole>();
    else if (in_twos && s.head_dim < 128) f.template operator()<Layout<2, 1, warp_size, 0>>();
    else if (in_twos) f.template operator()<Layout<2, max_head / 128, warp_size, 0>>();
    else f.template operator()<Layout<1, max_head / 64, warp_size, 0>>();
}

}  // namespace

// Floor: 6 * 4 n bytes, 18 n to bf16, 12 n of bf16 to bf16.
void qk_norm_rope(const QkNormRopeShape& s, Operand from, const float* q_weight, const float* k_weight, const float* cosine,
                  const float* sine, OperandOut to, float* inverse_rms) {
    check_shape(s);
    with_addresses(from, to, [&]<typename In, typename Out>(const In* in, Out* out) {
        with_layout<Layout<2, 2, warp_size / 2, 128>>(s, {in, q_weight, k_weight, cosine, sine, out}, [&]<typename L>() {
            launch(qk_norm_rope_kernel<L, In, Out>, {s.rows}, warps * warp_size, 0, s, in, q_weight, k_weight, cosine, sine, out, inverse_rms);
        });
    });
}

// Floor: 6 * 4 n bytes (in and d_out of q and k read, d_in written); to other memory, where v comes along, 8 * 4 n, in bf16 26 n,
// 22 n of bf16 in.
void qk_norm_rope_backward(const QkNormRopeShape& s, Operand from, const float* q_weight, const float* k_weight, const float* cosine,
                           const float* sine, const float* inverse_rms, float* d_out, OperandOut to, float* dq_weight, float* dk_weight,
                           float* workspace) {
    check_shape(s);
    const std::int64_t blocks = ceil_div(s.rows, rope_chunk_rows);
    const std::size_t shared = warps * 2 * static_cast<std::size_t>(s.head_dim) * sizeof(float);
    float* partial = dq_weight == nullptr ? nullptr : workspace;
    with_addresses(from, to, [&]<typename In, typename Out>(const In* in, Out* d_in) {
        const bool elsewhere = static_cast<const void*>(d_in) != d_out;
        with_layout<Layout<2, 1, warp_size, 128>>(s, {in, q_weight, k_weight, cosine, sine, d_out, d_in}, [&]<typename L>() {
            launch(qk_norm_rope_backward_kernel<L, In, Out>, {blocks}, warps * warp_size, shared, s, in, q_weight, k_weight, cosine, sine,
                   inverse_rms, d_out, d_in, elsewhere, partial);
        });
    });
    if (dq_weight == nullptr) return;
    finish_part_columns(blocks, s.head_dim, 2 * s.head_dim, partial, dq_weight);
    finish_part_columns(blocks, s.head_dim, 2 * s.head_dim, partial + s.head_dim, dk_weight);
}

// Floor: 2 * 4 rows * heads * head_dim bytes.
void rope_half(std::int64_t rows, std::int64_t heads, std::int64_t head_dim, std::int64_t stride, const float* cosine, const float* sine,
               float* x) {
    launch(rotate_halves_kernel, {ceil_div(rows * heads, warps)}, warps * warp_size, 0, rows, heads, head_dim, stride, cosine, sine, 1.0f,
           x);
}
void rope_half_backward(std::int64_t rows, std::int64_t heads, std::int64_t head_dim, std::int64_t stride, const float* cosine,
                        const float* sine, float* gradient) {
    launch(rotate_halves_kernel, {ceil_div(rows * heads, warps)}, warps * warp_size, 0, rows, heads, head_dim, stride, cosine, sine, -1.0f,
           gradient);
}

}  // namespace atelier::ops::cuda
