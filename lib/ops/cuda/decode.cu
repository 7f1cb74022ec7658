#include "ops/decode.hpp"

#include <algorithm>
#include <type_traits>

#include "ops/cuda/cast.hpp"
#include "ops/cuda/functions.hpp"
#include "ops/cuda/kernel.hpp"
#include "ops/cuda/products.hpp"

// Decoding: bound by the weights and the keys that are read. A row's sums are in an order of its own length alone.
namespace atelier::ops::cuda {
namespace {

constexpr int warps = 4;         // of a block of the product
constexpr int columns = 2;       // of a warp: what a lane has read and rounded of x serves both
constexpr int most_rows = 8;     // that one reading of the weights serves
constexpr int bytes_ahead = 64;  // of weights on their way to a lane: 32 KiB a multiprocessor of 16 warps, where 4.3 TB/s take 26 KiB at 0.8 us
constexpr int attention_warps = 4;

/// A warp two columns and `tile` rows: lanes take N numbers in turn, then a butterfly. Where weights are a copy in bf16 x is rounded as it is read.
/// Rows and columns beyond the last, and weights beyond a column's end, are the last again, which nobody uses, so that loops have fixed bounds.
template <int N, int tile, typename W>
__global__ void __launch_bounds__(warps* warp_size, 5) linear_rows_kernel(std::int64_t rows, std::int64_t n, int k, const float* x, const W* weight,
                                                                          float* y) {
    constexpr int step = warp_size * N, ahead = bytes_ahead / static_cast<int>(columns * sizeof(Stored<N, W>));
    const std::int64_t column = (static_cast<std::int64_t>(blockIdx.y) * warps + threadIdx.x / warp_size) * columns;
    if (column >= n) return;  // whole warps leave
    const std::int64_t first = static_cast<std::int64_t>(blockIdx.x) * tile;
    const int lane = threadIdx.x % warp_size, count = static_cast<int>(rows - first < tile ? rows - first : tile);
    const float* const in = x + first * k;
    const W* w[columns];
    for (int c = 0; c < columns; ++c) w[c] = weight + (column + c < n ? column + c : n - 1) * k;

    Stored<N, W> next[ahead][columns];
    const auto fetch = [&](int j, Stored<N, W>(&to)[columns]) {
        for (int c = 0; c < columns; ++c) to[c] = load_stored<N>(w[c] + (j < k ? j : k - N));
    };
    for (int d = 0; d < ahead; ++d) fetch(lane * N + d * step, next[d]);
    float sums[tile][columns] = {};
    for (int begin = lane * N; begin < k; begin += ahead * step) {
        for (int d = 0; d < ahead; ++d) {
            const int j = begin + d * step;
            if (j >= k) break;
            Pack<N> factor[columns];
            for (int c = 0; c < columns; ++c) factor[c] = widened(next[d][c]);
            fetch(j + ahead * step, next[d]);
            for (int r = 0; r < tile; ++r) {
                Pack<N> p = load<N>(in + (j + (r < count ? r : count - 1) * k));
                if constexpr (!std::is_same_v<W, float>) p = rounded(p).widened();
                for (int c = 0; c < columns; ++c)
                    for (int i = 0; i < N; ++i) sums[r][c] = fmaf(p.v[i], factor[c].v[i], sums[r][c]);
            }
        }
    }
    for (int r = 0; r < tile; ++r)
        for (int c = 0; c < columns; ++c) {
            const float sum = warp_sum(sums[r][c]);
            if (lane == 0 && r < count && column + c < n) y[(first + r) * n + column + c] = sum;
        }
}

/// As many rows at a time as there are, up to most_rows. Tiles of rows run side by side: what one reads of the weights the others find in the cache.
template <int N, typename W>
void multiply_rows(std::int64_t rows, std::int64_t n, std::int64_t k, const float* x, const W* weight, float* y) {
    const auto run = [&]<int tile>() {
        const Grid grid{ceil_div(rows, tile), ceil_div(n, warps * columns)};
        launch(linear_rows_kernel<N, tile, W>, grid, warps * warp_size, 0, rows, n, static_cast<int>(k), x, weight, y);
    };
    if (rows <= 1) run.template operator()<1>();
    else if (rows <= 2) run.template operator()<2>();
    else if (rows <= 4) run.template operator()<4>();
    else run.template operator()<most_rows>();
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

// Floor: 4 n k bytes (2 n k of a copy in bf16) for each most_rows rows.
void linear_rows(const Tensor& x, const Tensor& weight, const Tensor& y) {
    const std::int64_t rows = x.size(0), k = x.size(1), n = weight.size(0);
    ATELIER_CHECK(weight.size(1) == k && y.size(0) == rows && y.size(1) == n, "{} times {} into {}", x.shape().str(), weight.shape().str(),
                  y.shape().str());
    ATELIER_CHECK(k > 0 && k <= 1 << 27, "rows of {} numbers", k);
    const bool rounds = product_precision() == ProductPrecision::bf16;
    if (weight.dtype() == DType::bf16) {
        ATELIER_CHECK(rounds && in_fours({k}, {x.f32()}), "rows of {} numbers times weights that are there in bf16 alone", k);
        return multiply_rows<4>(rows, n, k, x.f32(), static_cast<const std::uint16_t*>(weight.raw()), y.f32());
    }
    const std::uint16_t* copy = rounds ? bf16_copy_of(weight.f32()) : nullptr;
    if (!in_fours({k}, {x.f32(), weight.f32()})) multiply_rows<1>(rows, n, k, x.f32(), weight.f32(), y.f32());
    else if (copy != nullptr) multiply_rows<4>(rows, n, k, x.f32(), copy, y.f32());
    else multiply_rows<4>(rows, n, k, x.f32(), weight.f32(), y.f32());
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
