#include "ops/rope.hpp"

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
template <int P>
__global__ void qk_norm_rope_kernel(QkNormRopeShape s, const float* in, const float* q_weight, const float* k_weight, const float* cosine,
                                    const float* sine, float* out, float* inverse_rms) {
    const int lane = threadIdx.x % warp_size;
    const std::int64_t unit = static_cast<std::int64_t>(blockIdx.x) * warps + threadIdx.x / warp_size;
    if (unit >= s.rows * 3 * s.heads) return;  // whole warps leave
    const std::int64_t row = unit / (3 * s.heads), head = unit % s.heads, half = s.head_dim / 2;
    const int part = static_cast<int>(unit / s.heads % 3);
    const float* x = in + unit * s.head_dim;
    float* y = out + unit * s.head_dim;
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

/// A block a chunk of rows, its warps take the heads of q and k in turn; sums of the weights' gradients by warp, then over warps in
/// order into a row [q, k] of `partial` (null: none).
template <int P>
__global__ void qk_norm_rope_backward_kernel(QkNormRopeShape s, const float* in, const float* q_weight, const float* k_weight,
                                             const float* cosine, const float* sine, const float* inverse_rms, float* gradient,
                                             float* partial) {
    ATELIER_DYNAMIC_SHARED(float, sums);  // [warps, 2, head_dim]; each lane has its own channels
    const int lane = threadIdx.x % warp_size, warp = threadIdx.x / warp_size;
    const std::int64_t half = s.head_dim / 2, d = s.head_dim;
    for (std::int64_t i = lane * P; i < half; i += warp_size * P)
        for (int k = 0; k < 2 * P; ++k) sums[warp * 2 * d + 2 * i + k] = sums[(warp * 2 + 1) * d + 2 * i + k] = 0;
    const std::int64_t first = blockIdx.x * rope_chunk_rows, count = (s.rows - first < rope_chunk_rows ? s.rows - first : rope_chunk_rows) * 2 * s.heads;
    for (std::int64_t unit = warp; unit < count; unit += warps) {
        const std::int64_t row = first + unit / (2 * s.heads), head = unit % s.heads;
        const int part = static_cast<int>(unit / s.heads % 2);
        const std::int64_t at = ((row * 3 + part) * s.heads + head) * d;
        const float *x = in + at, *weight = part == 0 ? q_weight : k_weight;
        const float *c = cosine + row % s.positions * half, *n = sine + row % s.positions * half;
        float *g = gradient + at, *dweight = sums + (warp * 2 + part) * d;
        const float inverse = inverse_rms[(row * 2 + part) * s.heads + head];
        float dot = 0;
        for (std::int64_t i = lane * P; i < half; i += warp_size * P) {
            const Pack<2 * P> p = load<2 * P>(x + 2 * i), w = load<2 * P>(weight + 2 * i), up = load<2 * P>(g + 2 * i);
            const Pack<P> cs = load<P>(c + i), sn = load<P>(n + i);
            Pack<2 * P> r;
            for (int k = 0; k < P; ++k) {  // rotate back
                r.v[2 * k] = up.v[2 * k] * cs.v[k] + up.v[2 * k + 1] * sn.v[k];
                r.v[2 * k + 1] = up.v[2 * k + 1] * cs.v[k] - up.v[2 * k] * sn.v[k];
            }
            for (int k = 0; k < 2 * P; ++k) {
                dweight[2 * i + k] += r.v[k] * p.v[k] * inverse;
                dot += r.v[k] * w.v[k] * p.v[k];
            }
            store(g + 2 * i, r);  // read again below by the same lane
        }
        const float pull = warp_sum(dot) * inverse * inverse * inverse / static_cast<float>(d);
        for (std::int64_t i = lane * P; i < half; i += warp_size * P) {
            const Pack<2 * P> p = load<2 * P>(x + 2 * i), w = load<2 * P>(weight + 2 * i);
            Pack<2 * P> r = load<2 * P>(g + 2 * i);
            for (int k = 0; k < 2 * P; ++k) r.v[k] = r.v[k] * w.v[k] * inverse - p.v[k] * pull;
            store(g + 2 * i, r);
        }
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

// Floor: 6 * 4 n bytes.
void qk_norm_rope(const QkNormRopeShape& s, const float* in, const float* q_weight, const float* k_weight, const float* cosine,
                  const float* sine, float* out, float* inverse_rms) {
    check_shape(s);
    const Grid grid{ceil_div(s.rows * 3 * s.heads, warps)};
    if (pairs_in_twos(s, {in, q_weight, k_weight, cosine, sine, out}))
        launch(qk_norm_rope_kernel<2>, grid, warps * warp_size, 0, s, in, q_weight, k_weight, cosine, sine, out, inverse_rms);
    else
        launch(qk_norm_rope_kernel<1>, grid, warps * warp_size, 0, s, in, q_weight, k_weight, cosine, sine, out, inverse_rms);
}

// Floor: 6 * 4 n bytes (in and gradient of q and k read, gradient written).
void qk_norm_rope_backward(const QkNormRopeShape& s, const float* in, const float* q_weight, const float* k_weight, const float* cosine,
                           const float* sine, const float* inverse_rms, float* gradient, float* dq_weight, float* dk_weight,
                           float* workspace) {
    check_shape(s);
    const std::int64_t blocks = ceil_div(s.rows, rope_chunk_rows);
    const std::size_t shared = warps * 2 * static_cast<std::size_t>(s.head_dim) * sizeof(float);
    float* partial = dq_weight == nullptr ? nullptr : workspace;
    if (pairs_in_twos(s, {in, q_weight, k_weight, cosine, sine, gradient}))
        launch(qk_norm_rope_backward_kernel<2>, {blocks}, warps * warp_size, shared, s, in, q_weight, k_weight, cosine, sine, inverse_rms,
               gradient, partial);
    else
        launch(qk_norm_rope_backward_kernel<1>, {blocks}, warps * warp_size, shared, s, in, q_weight, k_weight, cosine, sine, inverse_rms,
               gradient, partial);
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
