#include "ops/decode.hpp"

#include "ops/cuda/cast.hpp"
#include "ops/cuda/device_memory.hpp"
#include "ops/cuda/functions.hpp"
#include "ops/cuda/kernel.hpp"
#include "ops/cuda/products.hpp"

// Decoding: bound by the weights and the keys that are read. A row's sums are in an order of its own length alone.
namespace atelier::ops::cuda {
namespace {

constexpr int warps = 8;      // columns of a block of the product
constexpr int row_tile = 8;   // rows that one reading of the weights serves
constexpr int attention_warps = 4;

/// A warp a column and row_tile rows: lanes take N numbers in turn, then a butterfly.
template <int N>
__global__ void linear_rows_kernel(std::int64_t rows, std::int64_t n, std::int64_t k, const float* x, const float* weight, float* y) {
    const std::int64_t column = static_cast<std::int64_t>(blockIdx.x) * warps + threadIdx.x / warp_size;
    if (column >= n) return;  // whole warps leave
    const std::int64_t first = static_cast<std::int64_t>(blockIdx.y) * row_tile;
    const int lane = threadIdx.x % warp_size, count = static_cast<int>(rows - first < row_tile ? rows - first : row_tile);
    float sums[row_tile] = {};
    for (std::int64_t j = lane * N; j < k; j += warp_size * N) {
        const Pack<N> w = load<N>(weight + column * k + j);
        for (int r = 0; r < count; ++r) {
            const Pack<N> p = load<N>(x + (first + r) * k + j);
            for (int i = 0; i < N; ++i) sums[r] = fmaf(p.v[i], w.v[i], sums[r]);
        }
    }
    for (int r = 0; r < count; ++r) {
        const float sum = warp_sum(sums[r]);
        if (lane == 0) y[(first + r) * n + column] = sum;
    }
}

/// The same of a copy of the weights in bf16, four numbers in turn; x is rounded as it is read.
struct alignas(8) HalfPack {
    std::uint16_t v[4];
};
__global__ void linear_rows_bf16_kernel(std::int64_t rows, std::int64_t n, std::int64_t k, const float* x, const std::uint16_t* weight, float* y) {
    const std::int64_t column = static_cast<std::int64_t>(blockIdx.x) * warps + threadIdx.x / warp_size;
    if (column >= n) return;  // whole warps leave
    const std::int64_t first = static_cast<std::int64_t>(blockIdx.y) * row_tile;
    const int lane = threadIdx.x % warp_size, count = static_cast<int>(rows - first < row_tile ? rows - first : row_tile);
    float sums[row_tile] = {};
    for (std::int64_t j = lane * 4; j < k; j += warp_size * 4) {
        const HalfPack w = *reinterpret_cast<const HalfPack*>(weight + column * k + j);
        for (int r = 0; r < count; ++r) {
            const Pack<4> p = load<4>(x + (first + r) * k + j);
            for (int i = 0; i < 4; ++i) sums[r] = fmaf(bf16_value(bf16_bits(p.v[i])), bf16_value(w.v[i]), sums[r]);
        }
    }
    for (int r = 0; r < count; ++r) {
        const float sum = warp_sum(sums[r]);
        if (lane == 0) y[(first + r) * n + column] = sum;
    }
}

__global__ void append_kernel(std::int64_t width, const float* in, float* const* to) {
    for (std::int64_t j = threadIdx.x; j < width; j += blockDim.x) to[blockIdx.x][j] = in[blockIdx.x * width + j];
}

/// Token j of [first, second].
__device__ __forceinline__ const float* token(const CachedTokens& first, const CachedTokens& second, bool values, std::int64_t j, std::int64_t width) {
    const CachedTokens& part = j < first.length ? first : second;
    return (values ? part.v : part.k) + (j < first.length ? j : j - first.length) * width;
}

/// A block a query head of a row: scores by warps a key each, their softmax, then a thread a channel of the values.
__global__ void decode_attention_kernel(DecodeAttentionShape s, const float* q, const CachedTokens* firsts, const CachedTokens* seconds, float* out,
                                        float* scores) {
    const std::int64_t head = blockIdx.x, row = blockIdx.y, width = s.kv_heads * s.head_dim, at = row * s.heads + head;
    const std::int64_t in_token = head / (s.heads / s.kv_heads) * s.head_dim;
    const CachedTokens first = firsts[row], second = seconds[row];
    const std::int64_t keys = first.length + second.length;
    const int lane = threadIdx.x % warp_size, warp = threadIdx.x / warp_size;
    const float* query = q + at * s.head_dim;
    float* p = scores + at * s.most_keys;
    for (std::int64_t j = warp; j < keys; j += attention_warps) {
        const float* key = token(first, second, false, j, width) + in_token;
        float dot = 0;
        for (std::int64_t c = lane; c < s.head_dim; c += warp_size) dot = fmaf(query[c], key[c], dot);
        dot = warp_sum(dot);
        if (lane == 0) p[j] = s.scale * dot;
    }
    __syncthreads();
    float top = -INFINITY;
    for (std::int64_t j = lane; j < keys; j += warp_size) top = fmaxf(top, p[j]);
    top = warp_max(top);
    __syncthreads();  // every warp has read the scores
    float sum[1] = {0};
    for (std::int64_t j = threadIdx.x; j < keys; j += blockDim.x) sum[0] += p[j] = expf(p[j] - top);
    block_sum(sum);  // its barriers show the weights to all
    const float inverse = 1.0f / sum[0];
    for (std::int64_t c = threadIdx.x; c < s.head_dim; c += blockDim.x) {
        float value = 0;
        for (std::int64_t j = 0; j < keys; ++j) value = fmaf(p[j] * inverse, token(first, second, true, j, width)[in_token + c], value);
        out[at * s.head_dim + c] = value;
    }
}

}  // namespace

// Floor: 4 n k bytes (2 n k of a copy in bf16) for each row_tile rows.
void linear_rows(const Tensor& x, const Tensor& weight, const Tensor& y) {
    const std::int64_t rows = x.size(0), k = x.size(1), n = weight.size(0);
    ATELIER_CHECK(weight.size(1) == k && y.size(0) == rows && y.size(1) == n, "{} times {} into {}", x.shape().str(), weight.shape().str(),
                  y.shape().str());
    const Grid grid{ceil_div(n, warps), ceil_div(rows, row_tile)};
    const bool rounds = product_precision() == ProductPrecision::bf16;
    if (weight.dtype() == DType::bf16) {
        ATELIER_CHECK(rounds && in_fours({k}, {x.f32()}), "rows of {} numbers times weights that are there in bf16 alone", k);
        return launch(linear_rows_bf16_kernel, grid, warps * warp_size, 0, rows, n, k, x.f32(), static_cast<const std::uint16_t*>(weight.raw()), y.f32());
    }
    const std::uint16_t* copy = rounds ? bf16_copy_of(weight.f32()) : nullptr;
    if (copy != nullptr && in_fours({k}, {x.f32(), weight.f32()}))
        launch(linear_rows_bf16_kernel, grid, warps * warp_size, 0, rows, n, k, x.f32(), copy, y.f32());
    else if (in_fours({k}, {x.f32(), weight.f32()}))
        launch(linear_rows_kernel<4>, grid, warps * warp_size, 0, rows, n, k, x.f32(), weight.f32(), y.f32());
    else
        launch(linear_rows_kernel<1>, grid, warps * warp_size, 0, rows, n, k, x.f32(), weight.f32(), y.f32());
}

// Floor: 2 * 4 n bytes.
void append_rows(const Tensor& in, std::span<float* const> to) {
    ATELIER_CHECK(static_cast<std::int64_t>(to.size()) == in.size(0), "{} rows to {} places", in.size(0), to.size());
    const std::size_t bytes = to.size() * sizeof(float*);
    auto* there = static_cast<float**>(scratch(bytes));
    copy_to_device(there, to.data(), bytes);
    launch(append_kernel, {in.size(0)}, row_threads(in.size(1), 1), 0, in.size(1), in.f32(), there);
}

// Floor: keys and values of all tokens once for the query heads that share them, from the cache for the others.
void decode_attention(const DecodeAttentionShape& s, const Tensor& q, std::span<const CachedTokens> first, std::span<const CachedTokens> second,
                      const Tensor& out, const Tensor& scores) {
    const std::int64_t rows = q.size(0);
    ATELIER_CHECK(static_cast<std::int64_t>(first.size()) == rows && second.size() == first.size() && q.size(1) == s.heads * s.head_dim &&
                      scores.elements() >= rows * s.heads * s.most_keys,
                  "attention of {} rows over the tokens of {} and {}", rows, first.size(), second.size());
    const std::size_t bytes = first.size() * sizeof(CachedTokens);
    auto* there = static_cast<CachedTokens*>(scratch(2 * bytes));
    copy_to_device(there, first.data(), bytes);
    copy_to_device(there + rows, second.data(), bytes);
    launch(decode_attention_kernel, {s.heads, rows}, attention_warps * warp_size, 0, s, q.f32(), there, there + rows, out.f32(), scores.f32());
}

}  // namespace atelier::ops::cuda
