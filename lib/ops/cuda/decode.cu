#include "ops/decode.hpp"

#include <algorithm>

#include "ops/cuda/cast.hpp"
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
    const std::int64_t column = static_cast<std::int64_t>(blockIdx.y) * warps + threadIdx.x / warp_size;
    if (column >= n) return;  // whole warps leave
    const std::int64_t first = static_cast<std::int64_t>(blockIdx.x) * row_tile;
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
__global__ void linear_rows_bf16_kernel(std::int64_t rows, std::int64_t n, std::int64_t k, const float* x, const std::uint16_t* weight, float* y) {
    const std::int64_t column = static_cast<std::int64_t>(blockIdx.y) * warps + threadIdx.x / warp_size;
    if (column >= n) return;  // whole warps leave
    const std::int64_t first = static_cast<std::int64_t>(blockIdx.x) * row_tile;
    const int lane = threadIdx.x % warp_size, count = static_cast<int>(rows - first < row_tile ? rows - first : row_tile);
    float sums[row_tile] = {};
    for (std::int64_t j = lane * 4; j < k; j += warp_size * 4) {
        const Pack<4> w = load<4>(weight + column * k + j);
        for (int r = 0; r < count; ++r) {
            const Pack<4> p = load<4>(x + (first + r) * k + j);
            for (int i = 0; i < 4; ++i) sums[r] = fmaf(bf16_value(bf16_bits(p.v[i])), w.v[i], sums[r]);
        }
    }
    for (int r = 0; r < count; ++r) {
        const float sum = warp_sum(sums[r]);
        if (lane == 0) y[(first + r) * n + column] = sum;
    }
}

// Addresses of rows go with the launch, so many at a time (within the 4 KiB of a kernel's arguments): no copy, and no wait for one.
constexpr std::int64_t launch_rows = 64;

struct Places {
    float* row[launch_rows];
};
struct Caches {
    CachedTokens first[launch_rows], second[launch_rows];
};

__global__ void append_kernel(std::int64_t width, const float* in, Places to) {
    for (std::int64_t j = threadIdx.x; j < width; j += blockDim.x) to.row[blockIdx.x][j] = in[blockIdx.x * width + j];
}

/// Token j of [first, second].
__device__ __forceinline__ const float* token(const CachedTokens& first, const CachedTokens& second, bool values, std::int64_t j, std::int64_t width) {
    const CachedTokens& part = j < first.length ? first : second;
    return (values ? part.v : part.k) + (j < first.length ? j : j - first.length) * width;
}

/// A block a query head of a row: scores by warps a key each, their softmax, then a thread a channel of the values.
__global__ void decode_attention_kernel(DecodeAttentionShape s, const float* q, Caches caches, float* out, float* scores) {
    const std::int64_t head = blockIdx.x, row = blockIdx.y, width = s.kv_heads * s.head_dim, at = row * s.heads + head;
    const std::int64_t in_token = head / (s.heads / s.kv_heads) * s.head_dim;
    const CachedTokens first = caches.first[row], second = caches.second[row];
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
    // Tiles of rows run side by side: what one reads of the weights the others find in the cache.
    const Grid grid{ceil_div(rows, row_tile), ceil_div(n, warps)};
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
    const std::int64_t width = in.size(1);
    for (std::int64_t at = 0; at < in.size(0); at += launch_rows) {
        const std::int64_t rows = std::min(launch_rows, in.size(0) - at);
        Places places{};
        std::copy_n(to.begin() + at, rows, places.row);
        launch(append_kernel, {rows}, row_threads(width, 1), 0, width, in.f32() + at * width, places);
    }
}

// Floor: keys and values of all tokens once for the query heads that share them, from the cache for the others.
void decode_attention(const DecodeAttentionShape& s, const Tensor& q, std::span<const CachedTokens> first, std::span<const CachedTokens> second,
                      const Tensor& out, const Tensor& scores) {
    const std::int64_t rows = q.size(0);
    ATELIER_CHECK(static_cast<std::int64_t>(first.size()) == rows && second.size() == first.size() && q.size(1) == s.heads * s.head_dim &&
                      scores.elements() >= rows * s.heads * s.most_keys,
                  "attention of {} rows over the tokens of {} and {}", rows, first.size(), second.size());
    for (std::int64_t at = 0; at < rows; at += launch_rows) {
        const std::int64_t count = std::min(launch_rows, rows - at), heads = at * s.heads;
        Caches caches{};
        std::copy_n(first.begin() + at, count, caches.first);
        std::copy_n(second.begin() + at, count, caches.second);
        launch(decode_attention_kernel, {s.heads, count}, attention_warps * warp_size, 0, s, q.f32() + heads * s.head_dim, caches,
               out.f32() + heads * s.head_dim, scores.f32() + heads * s.most_keys);
    }
}

}  // namespace atelier::ops::cuda
