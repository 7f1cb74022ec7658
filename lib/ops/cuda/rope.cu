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

/// What a lane holds of a head's channels: I packs of P pairs, 32 P pairs apart; zeros beyond the head.
template <int P, int I>
struct Share {
    Pack<2 * P> v[I] = {};
};
template <int P, int I, typename In>
__device__ __forceinline__ Share<P, I> load_share(const In* head, std::int64_t half) {
    Share<P, I> share;
    for (int n = 0; n < I; ++n) {
        const std::int64_t i = (n * warp_size + threadIdx.x % warp_size) * P;
        if (i < half) share.v[n] = load<2 * P>(head + 2 * i);
    }
    return share;
}
template <int P, int I, typename Out>
__device__ __forceinline__ void store_share(Out* head, std::int64_t half, const Share<P, I>& share) {
    for (int n = 0; n < I; ++n) {
        const std::int64_t i = (n * warp_size + threadIdx.x % warp_size) * P;
        if (i < half) store(head + 2 * i, share.v[n]);
    }
}

/// Cosines and sines of a lane's pairs at a row's position.
template <int P, int I>
struct Angles {
    Pack<P> c[I] = {}, n[I] = {};
    __device__ __forceinline__ Angles(const QkNormRopeShape& s, std::int64_t row, const float* cosine, const float* sine) {
        const std::int64_t half = s.head_dim / 2, at = row % s.positions * half;
        for (int k = 0; k < I; ++k) {
            const std::int64_t i = (k * warp_size + threadIdx.x % warp_size) * P;
            if (i < half) c[k] = load<P>(cosine + at + i), n[k] = load<P>(sine + at + i);
        }
    }
};

/// Calls f(number, its share) for the heads first, first + warps, … below `end`, the next one's numbers on their way meanwhile.
template <int P, int I, typename In, typename Function>
__device__ __forceinline__ void each_head(const In* heads, std::int64_t head_dim, std::int64_t first, std::int64_t end, Function f) {
    const std::int64_t half = head_dim / 2;
    Share<P, I> next;
    if (first < end) next = load_share<P, I>(heads + first * head_dim, half);
    for (std::int64_t head = first; head < end; head += warps) {
        const Share<P, I> share = next;
        if (head + warps < end) next = load_share<P, I>(heads + (head + warps) * head_dim, half);
        f(head, share);
    }
}

/// A block a row, its warps take the heads of q, k and v in turn.
template <int P, int I, typename In, typename Out>
__global__ void qk_norm_rope_kernel(QkNormRopeShape s, const In* in, const float* q_weight, const float* k_weight, const float* cosine,
                                    const float* sine, Out* out, float* inverse_rms) {
    const int lane = threadIdx.x % warp_size;
    const std::int64_t row = blockIdx.x, half = s.head_dim / 2, first = threadIdx.x / warp_size, of_row = row * 3 * s.heads * s.head_dim;
    const Angles<P, I> angles(s, row, cosine, sine);
    each_head<P, I>(in + of_row, s.head_dim, first, 3 * s.heads, [&](std::int64_t head, const Share<P, I>& x) {
        Out* y = out + of_row + head * s.head_dim;
        if (head >= 2 * s.heads) return store_share<P, I>(y, half, x);
        float square = 0;
        for (int n = 0; n < I; ++n)
            for (int k = 0; k < 2 * P; ++k) square += x.v[n].v[k] * x.v[n].v[k];
        const float inverse = 1.0f / sqrtf(warp_sum(square) / static_cast<float>(s.head_dim) + s.eps);
        const Share<P, I> w = load_share<P, I>(head < s.heads ? q_weight : k_weight, half);
        Share<P, I> r;
        for (int n = 0; n < I; ++n)
            for (int k = 0; k < P; ++k) {
                const float a = x.v[n].v[2 * k] * inverse * w.v[n].v[2 * k], b = x.v[n].v[2 * k + 1] * inverse * w.v[n].v[2 * k + 1];
                r.v[n].v[2 * k] = a * angles.c[n].v[k] - b * angles.n[n].v[k];
                r.v[n].v[2 * k + 1] = a * angles.n[n].v[k] + b * angles.c[n].v[k];
            }
        store_share<P, I>(y, half, r);
        if (lane == 0) inverse_rms[row * 2 * s.heads + head] = inverse;
    });
}

/// A block a chunk of rows, its warps take the heads of q, then of k in turn, and of v where d_in is other memory than d_out; sums of the
/// weights' gradients by warp, then over warps in order into a row [q, k] of `partial` (null: none).
template <int P, int I, typename In, typename Out>
__global__ void __launch_bounds__(warps* warp_size, I == 1 ? 4 : 1) qk_norm_rope_backward_kernel(QkNormRopeShape s, const In* in, const float* q_weight, const float* k_weight,
                                             const float* cosine, const float* sine, const float* inverse_rms, const float* d_out,
                                             Out* d_in, bool copies_v, float* partial) {
    ATELIER_DYNAMIC_SHARED(float, sums);  // [warps, 2, head_dim]
    const std::int64_t half = s.head_dim / 2, d = s.head_dim, warp = threadIdx.x / warp_size, width = s.heads * d;
    const std::int64_t first = blockIdx.x * rope_chunk_rows, last = first + rope_chunk_rows < s.rows ? first + rope_chunk_rows : s.rows;
    Share<P, I> dq_weight, dk_weight;
    for (std::int64_t row = first; row < last; ++row) {
        const Angles<P, I> angles(s, row, cosine, sine);
        const auto take = [&](int part, const float* weight, Share<P, I>& d_weight) {
            const std::int64_t at = (row * 3 + part) * width;
            const Share<P, I> w = load_share<P, I>(weight, half);
            each_head<P, I>(in + at, d, warp, s.heads, [&](std::int64_t head, const Share<P, I>& x) {
                const Share<P, I> g = load_share<P, I>(d_out + at + head * d, half);
                const float inverse = inverse_rms[(row * 2 + part) * s.heads + head];
                Share<P, I> r;  // what the rotation got
                float dot = 0;
                for (int n = 0; n < I; ++n) {
                    for (int k = 0; k < P; ++k) {
                        const float up = g.v[n].v[2 * k], next = g.v[n].v[2 * k + 1], c = angles.c[n].v[k], sn = angles.n[n].v[k];
                        r.v[n].v[2 * k] = up * c + next * sn;
                        r.v[n].v[2 * k + 1] = next * c - up * sn;
                    }
                    for (int k = 0; k < 2 * P; ++k) {
                        d_weight.v[n].v[k] += r.v[n].v[k] * x.v[n].v[k] * inverse;
                        dot += r.v[n].v[k] * w.v[n].v[k] * x.v[n].v[k];
                    }
                }
                const float pull = warp_sum(dot) * inverse * inverse * inverse / static_cast<float>(d);
                for (int n = 0; n < I; ++n)
                    for (int k = 0; k < 2 * P; ++k) r.v[n].v[k] = r.v[n].v[k] * w.v[n].v[k] * inverse - x.v[n].v[k] * pull;
                store_share<P, I>(d_in + at + head * d, half, r);
            });
        };
        take(0, q_weight, dq_weight);
        take(1, k_weight, dk_weight);
        const std::int64_t values = (row * 3 + 2) * width;
        for (std::int64_t head = warp; copies_v && head < s.heads; head += warps)
            store_share<P, I>(d_in + values + head * d, half, load_share<P, I>(d_out + values + head * d, half));
    }
    if (partial == nullptr) return;
    store_share<P, I>(sums + warp * 2 * d, half, dq_weight);
    store_share<P, I>(sums + (warp * 2 + 1) * d, half, dk_weight);
    __syncthreads();
    for (std::int64_t j = threadIdx.x; j < 2 * d; j += blockDim.x) {
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
}

/// f.template operator()<P, I>() by how a head's channels are shared: two pairs at a time where addresses allow.
template <typename Function>
void with_shares(const QkNormRopeShape& s, std::initializer_list<const void*> pointers, Function f) {
    const bool in_twos = in_fours({s.head_dim}, pointers);
    if (in_twos && s.head_dim <= 128) f.template operator()<2, 1>();
    else if (in_twos) f.template operator()<2, max_head / 128>();
    else f.template operator()<1, max_head / 64>();
}

}  // namespace

// Floor: 6 * 4 n bytes, 18 n to bf16, 12 n of bf16 to bf16.
void qk_norm_rope(const QkNormRopeShape& s, Operand from, const float* q_weight, const float* k_weight, const float* cosine,
                  const float* sine, OperandOut to, float* inverse_rms) {
    check_shape(s);
    with_addresses(from, to, [&]<typename In, typename Out>(const In* in, Out* out) {
        with_shares(s, {in, q_weight, k_weight, cosine, sine, out}, [&]<int P, int I>() {
            launch(qk_norm_rope_kernel<P, I, In, Out>, {s.rows}, warps * warp_size, 0, s, in, q_weight, k_weight, cosine, sine, out, inverse_rms);
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
        with_shares(s, {in, q_weight, k_weight, cosine, sine, d_out, d_in}, [&]<int P, int I>() {
            launch(qk_norm_rope_backward_kernel<P, I, In, Out>, {blocks}, warps * warp_size, shared, s, in, q_weight, k_weight, cosine, sine,
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
