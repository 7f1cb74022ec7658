#include "ops/rope.hpp"

#include "ops/cuda/cast.hpp"
#include "ops/cuda/columns.hpp"
#include "ops/cuda/functions.hpp"
#include "ops/cuda/kernel.hpp"
#include "ops/cuda/workspaces.hpp"

// n = rows * heads * head_dim: the numbers of q, of k, or of v.
namespace atelier::ops::cuda {
namespace {

constexpr int warps = 8;                  // of a block: each takes heads by itself
constexpr std::int64_t max_head = 512;    // channels: 8 warps keep sums of two weights in 32 KB

/// A warp a head of a row's q, k or v. P channel pairs a lane at a time.
template <int P, typename Out>
__global__ void qk_norm_rope_kernel(QkNormRopeShape s, const float* in, const float* q_weight, const float* k_weight, const float* cosine,
                                    const float* sine, Out* out, float* inverse_rms) {
    const int lane = threadIdx.x % warp_size;
    const std::int64_t unit = static_cast<std::int64_t>(blockIdx.x) * warps + threadIdx.x / warp_size;
    if (unit >= s.rows * 3 * s.heads) return;  // whole warps leave
    const std::int64_t row = unit / (3 * s.heads), head = unit % s.heads, half = s.head_dim / 2;
    const int part = static_cast<int>(unit / s.heads % 3);
    const float* x = in + unit * s.head_dim;
    Out* y = out + unit * s.head_dim;
    if (part == 2) {
        for (std::int64_t i = lane * P; i < half; i += warp_size * P) store(y + 2 * i, load<2 * P>(x + 2 * i));
        return;
    }
    float square = 0;
    for (std::int64_t i = lane * P; i < half; i += warp_size * P) {
        const Pack<2 * P> p = load<2 * P>(x + 2 * i);
        for (int k = 0; k < 2 * P; ++k) square += p.v[k] * p.v[k];
    }
    const float inverse = 1.0f / sqrtf(warp_sum(square) / static_cast<float>(s.head_dim) + s.eps);
    const float* weight = part == 0 ? q_weight : k_weight;
    const float *c = cosine + row % s.positions * half, *n = sine + row % s.positions * half;
    for (std::int64_t i = lane * P; i < half; i += warp_size * P) {
        const Pack<2 * P> p = load<2 * P>(x + 2 * i), w = load<2 * P>(weight + 2 * i);
        const Pack<P> cs = load<P>(c + i), sn = load<P>(n + i);
        Pack<2 * P> r;
        for (int k = 0; k < P; ++k) {
            const float a = p.v[2 * k] * inverse * w.v[2 * k], b = p.v[2 * k + 1] * inverse * w.v[2 * k + 1];
            r.v[2 * k] = a * cs.v[k] - b * sn.v[k];
            r.v[2 * k + 1] = a * sn.v[k] + b * cs.v[k];
        }
        store(y + 2 * i, r);
    }
    if (lane == 0) inverse_rms[(row * 2 + part) * s.heads + head] = inverse;
}

/// What a rotation by (c, n) got from a gradient of its result, pair by pair.
template <int P>
__device__ __forceinline__ Pack<2 * P> rotated_back(const Pack<2 * P>& up, const Pack<P>& c, const Pack<P>& n) {
    Pack<2 * P> r;
    for (int k = 0; k < P; ++k) {
        r.v[2 * k] = up.v[2 * k] * c.v[k] + up.v[2 * k + 1] * n.v[k];
        r.v[2 * k + 1] = up.v[2 * k + 1] * c.v[k] - up.v[2 * k] * n.v[k];
    }
    return r;
}

/// A block a chunk of rows, its warps take the heads of q and k in turn, and of v where d_in is other memory than d_out; sums of the
/// weights' gradients by warp, then over warps in order into a row [q, k] of `partial` (null: none).
template <int P, typename Out>
__global__ void qk_norm_rope_backward_kernel(QkNormRopeShape s, const float* in, const float* q_weight, const float* k_weight,
                                             const float* cosine, const float* sine, const float* inverse_rms, const float* d_out,
                                             Out* d_in, bool copies_v, float* partial) {
    ATELIER_DYNAMIC_SHARED(float, sums);  // [warps, 2, head_dim]; each lane has its own channels
    const int lane = threadIdx.x % warp_size, warp = threadIdx.x / warp_size;
    const std::int64_t half = s.head_dim / 2, d = s.head_dim;
    for (std::int64_t i = lane * P; i < half; i += warp_size * P)
        for (int k = 0; k < 2 * P; ++k) sums[warp * 2 * d + 2 * i + k] = sums[(warp * 2 + 1) * d + 2 * i + k] = 0;
    const std::int64_t first = blockIdx.x * rope_chunk_rows, rows = s.rows - first < rope_chunk_rows ? s.rows - first : rope_chunk_rows;
    for (std::int64_t unit = warp; unit < rows * 2 * s.heads; unit += warps) {
        const std::int64_t row = first + unit / (2 * s.heads), head = unit % s.heads;
        const int part = static_cast<int>(unit / s.heads % 2);
        const std::int64_t at = ((row * 3 + part) * s.heads + head) * d;
        const float *x = in + at, *g = d_out + at, *weight = part == 0 ? q_weight : k_weight;
        Out* dx = d_in + at;
        const float *c = cosine + row % s.positions * half, *n = sine + row % s.positions * half;
        float* dweight = sums + (warp * 2 + part) * d;
        const float inverse = inverse_rms[(row * 2 + part) * s.heads + head];
        float dot = 0;
        for (std::int64_t i = lane * P; i < half; i += warp_size * P) {
            const Pack<2 * P> p = load<2 * P>(x + 2 * i), w = load<2 * P>(weight + 2 * i);
            const Pack<2 * P> r = rotated_back<P>(load<2 * P>(g + 2 * i), load<P>(c + i), load<P>(n + i));
            for (int k = 0; k < 2 * P; ++k) {
                dweight[2 * i + k] += r.v[k] * p.v[k] * inverse;
                dot += r.v[k] * w.v[k] * p.v[k];
            }
        }
        const float pull = warp_sum(dot) * inverse * inverse * inverse / static_cast<float>(d);
        // The same numbers again, from the cache.
        for (std::int64_t i = lane * P; i < half; i += warp_size * P) {
            const Pack<2 * P> p = load<2 * P>(x + 2 * i), w = load<2 * P>(weight + 2 * i);
            Pack<2 * P> r = rotated_back<P>(load<2 * P>(g + 2 * i), load<P>(c + i), load<P>(n + i));
            for (int k = 0; k < 2 * P; ++k) r.v[k] = r.v[k] * w.v[k] * inverse - p.v[k] * pull;
            store(dx + 2 * i, r);
        }
    }
    for (std::int64_t unit = warp; copies_v && unit < rows * s.heads; unit += warps) {
        const std::int64_t at = (((first + unit / s.heads) * 3 + 2) * s.heads + unit % s.heads) * d;
        for (std::int64_t i = lane * P; i < half; i += warp_size * P) store(d_in + at + 2 * i, load<2 * P>(d_out + at + 2 * i));
    }
    if (partial == nullptr) return;
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

bool pairs_in_twos(const QkNormRopeShape& s, std::initializer_list<const void*> pointers) {
    return in_fours({s.head_dim}, pointers);
}

}  // namespace

// Floor: 6 * 4 n bytes, 18 n to bf16.
void qk_norm_rope(const QkNormRopeShape& s, const float* in, const float* q_weight, const float* k_weight, const float* cosine,
                  const float* sine, OperandOut to, float* inverse_rms) {
    check_shape(s);
    const Grid grid{ceil_div(s.rows * 3 * s.heads, warps)};
    with_address(to, [&]<typename Out>(Out* out) {
        if (pairs_in_twos(s, {in, q_weight, k_weight, cosine, sine, out}))
            launch(qk_norm_rope_kernel<2, Out>, grid, warps * warp_size, 0, s, in, q_weight, k_weight, cosine, sine, out, inverse_rms);
        else
            launch(qk_norm_rope_kernel<1, Out>, grid, warps * warp_size, 0, s, in, q_weight, k_weight, cosine, sine, out, inverse_rms);
    });
}

// Floor: 6 * 4 n bytes (in and d_out of q and k read, d_in written); to other memory, where v comes along, 8 * 4 n, in bf16 26 n.
void qk_norm_rope_backward(const QkNormRopeShape& s, const float* in, const float* q_weight, const float* k_weight, const float* cosine,
                           const float* sine, const float* inverse_rms, float* d_out, OperandOut to, float* dq_weight, float* dk_weight,
                           float* workspace) {
    check_shape(s);
    const std::int64_t blocks = ceil_div(s.rows, rope_chunk_rows);
    const std::size_t shared = warps * 2 * static_cast<std::size_t>(s.head_dim) * sizeof(float);
    float* partial = dq_weight == nullptr ? nullptr : workspace;
    with_address(to, [&]<typename Out>(Out* d_in) {
        const bool elsewhere = static_cast<const void*>(d_in) != d_out;
        if (pairs_in_twos(s, {in, q_weight, k_weight, cosine, sine, d_out, d_in}))
            launch(qk_norm_rope_backward_kernel<2, Out>, {blocks}, warps * warp_size, shared, s, in, q_weight, k_weight, cosine, sine,
                   inverse_rms, d_out, d_in, elsewhere, partial);
        else
            launch(qk_norm_rope_backward_kernel<1, Out>, {blocks}, warps * warp_size, shared, s, in, q_weight, k_weight, cosine, sine,
                   inverse_rms, d_out, d_in, elsewhere, partial);
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
