#include "ops/cuda/plain_attention.hpp"

#include "ops/cuda/device_memory.hpp"
#include "ops/cuda/kernel.hpp"
#include "ops/cuda/workspaces.hpp"

// Bound by arithmetic, not by memory: 4 (forward) and 10 (backward, keys' products twice) floating point operations for each pair
// of query and key and each channel, in fp32 outside of the tensor cores.
namespace atelier::ops::cuda {
namespace {

constexpr int warps = 8;            // queries (or keys) of a block
constexpr int tile = warp_size;     // keys (or queries) that the block sees at a time, one a lane
constexpr int max_head = plain_attention_max_head;
constexpr int lane_channels = max_head / warp_size;

struct Keys {
    const float *k, *v;
};

/// What the kernels read of an AttentionShape, masks in device memory.
struct Problem {
    std::int64_t batch, queries, shared_keys, own_keys, heads, kv_heads, head_dim, q_stride, shared_stride, own_stride, out_stride;
    float scale;
    KeyLimits limits;
    const std::uint8_t *shared_valid, *own_valid;
    Keys shared, own;
};

/// Own keys that a query sees.
__device__ __forceinline__ std::int64_t limit_of(const Problem& p, std::int64_t query) {
    if (p.limits.runs == 0) return p.own_keys;
    int r = p.limits.runs - 1;
    while (p.limits.run[r].first > query) --r;
    return p.limits.run[r].limit + p.limits.run[r].slope * (query - p.limits.run[r].first);
}

__device__ __forceinline__ bool is_valid(const Problem& p, std::int64_t batch, int part, std::int64_t key) {
    if (part == 0) return p.shared_valid == nullptr || p.shared_valid[key] != 0;
    return p.own_valid == nullptr || p.own_valid[batch * p.own_keys + key] != 0;
}

/// Row `key` of shared (part 0) or own keys or values.
__device__ __forceinline__ const float* key_row(const Problem& p, const float* shared, const float* own, std::int64_t batch,
                                                std::int64_t kv_head, int part, std::int64_t key) {
    return part == 0 ? shared + key * p.shared_stride + kv_head * p.head_dim
                     : own + (batch * p.own_keys + key) * p.own_stride + kv_head * p.head_dim;
}

/// Loads rows [first, first + count) into shared memory, `pitch` numbers apart.
template <typename Row>
__device__ __forceinline__ void load_rows(float* to, std::int64_t pitch, std::int64_t head_dim, std::int64_t count, Row row) {
    for (std::int64_t i = threadIdx.x; i < count * head_dim; i += blockDim.x) to[i / head_dim * pitch + i % head_dim] = row(i / head_dim)[i % head_dim];
}

__device__ __forceinline__ float dot_of(const float* a, const float* b, std::int64_t n) {
    float sum = 0;
    for (std::int64_t i = 0; i < n; ++i) sum = fmaf(a[i], b[i], sum);
    return sum;
}

/// Largest number of own keys that a query of this block sees.
__device__ __forceinline__ std::int64_t block_limit(const Problem& p, std::int64_t first) {
    std::int64_t most = 0;
    for (std::int64_t i = first; i < first + warps && i < p.queries; ++i) {
        const std::int64_t limit = limit_of(p, i);
        most = limit > most ? limit : most;
    }
    return most < p.own_keys ? most : p.own_keys;
}

/// Keys and values [at, at + count) of a part, once nobody reads the last ones any more.
__device__ __forceinline__ void load_tile(const Problem& p, std::int64_t batch, std::int64_t kv_head, int part, std::int64_t at, std::int64_t count, float* keys,
                                 float* values) {
    const std::int64_t d = p.head_dim, pitch = d + 1;
    __syncthreads();
    load_rows(keys, pitch, d, count, [=](std::int64_t i) { return key_row(p, p.shared.k, p.own.k, batch, kv_head, part, at + i); });
    load_rows(values, pitch, d, count, [=](std::int64_t i) { return key_row(p, p.shared.v, p.own.v, batch, kv_head, part, at + i); });
    __syncthreads();
}

__global__ void forward_kernel(Problem p, const float* q, float* out, float* log_sum_exp) {
    ATELIER_DYNAMIC_SHARED(float, memory);
    const std::int64_t d = p.head_dim, pitch = d + 1, head = blockIdx.y, batch = blockIdx.z, kv_head = head / (p.heads / p.kv_heads);
    const int lane = threadIdx.x % warp_size, warp = threadIdx.x / warp_size;
    const std::int64_t first = static_cast<std::int64_t>(blockIdx.x) * warps, query = first + warp;
    float *keys = memory, *values = keys + tile * pitch, *queries = values + tile * pitch, *weights = queries + warps * d;
    const bool active = query < p.queries;
    load_rows(queries, d, d, p.queries - first < warps ? p.queries - first : warps,
              [=](std::int64_t i) { return q + (batch * p.queries + first + i) * p.q_stride + head * d; });
    const std::int64_t limit = active ? limit_of(p, query) : 0, most = block_limit(p, first);
    float top = -INFINITY, sum = 0, sums[lane_channels] = {};
    for (int part = 0; part < 2; ++part) {
        const std::int64_t end = part == 0 ? p.shared_keys : most;
        for (std::int64_t at = 0; at < end; at += tile) {
            const std::int64_t count = end - at < tile ? end - at : tile;
            load_tile(p, batch, kv_head, part, at, count, keys, values);
            const bool sees = active && lane < count && (part == 0 || at + lane < limit) && is_valid(p, batch, part, at + lane);
            const float score = sees ? dot_of(queries + warp * d, keys + lane * pitch, d) * p.scale : -INFINITY;
            const float new_top = fmaxf(top, warp_max(score));
            const float weight = sees ? expf(score - new_top) : 0.0f, kept = top == -INFINITY ? 0.0f : expf(top - new_top);
            sum = sum * kept + warp_sum(weight);
            top = new_top;
            weights[warp * tile + lane] = weight;
            __syncwarp();
            for (int c = 0; c < lane_channels; ++c) {
                const std::int64_t channel = lane + c * warp_size;
                if (channel >= d) break;
                float value = sums[c] * kept;
                for (std::int64_t j = 0; j < count; ++j) value = fmaf(weights[warp * tile + j], values[j * pitch + channel], value);
                sums[c] = value;
            }
            __syncwarp();
        }
    }
    if (!active) return;
    const bool blind = top == -INFINITY;
    for (int c = 0; c < lane_channels; ++c) {
        const std::int64_t channel = lane + c * warp_size;
        if (channel >= d) break;
        out[(batch * p.queries + query) * p.out_stride + head * d + channel] = blind ? 0.0f : sums[c] / sum;
    }
    if (log_sum_exp != nullptr && lane == 0)
        log_sum_exp[(batch * p.heads + head) * p.queries + query] = blind ? INFINITY : top + logf(sum);
}

/// delta [batch, heads, queries] = sum over channels of dout * out. A warp a query.
__global__ void delta_kernel(Problem p, const float* out, const float* dout, float* delta) {
    const std::int64_t query = static_cast<std::int64_t>(blockIdx.x) * warps + threadIdx.x / warp_size, head = blockIdx.y, batch = blockIdx.z;
    if (query >= p.queries) return;
    const std::int64_t at = (batch * p.queries + query) * p.out_stride + head * p.head_dim;
    float sum = 0;
    for (std::int64_t j = threadIdx.x % warp_size; j < p.head_dim; j += warp_size) sum = fmaf(dout[at + j], out[at + j], sum);
    sum = warp_sum(sum);
    if (threadIdx.x % warp_size == 0) delta[(batch * p.heads + head) * p.queries + query] = sum;
}

__global__ void query_gradient_kernel(Problem p, const float* q, const float* log_sum_exp, const float* delta, const float* dout, float* dq) {
    ATELIER_DYNAMIC_SHARED(float, memory);
    const std::int64_t d = p.head_dim, pitch = d + 1, head = blockIdx.y, batch = blockIdx.z, kv_head = head / (p.heads / p.kv_heads);
    const int lane = threadIdx.x % warp_size, warp = threadIdx.x / warp_size;
    const std::int64_t first = static_cast<std::int64_t>(blockIdx.x) * warps, query = first + warp;
    float *keys = memory, *values = keys + tile * pitch, *queries = values + tile * pitch, *gradients = queries + warps * d,
          *weights = gradients + warps * d;
    const bool active = query < p.queries;
    const std::int64_t rows = p.queries - first < warps ? p.queries - first : warps;
    load_rows(queries, d, d, rows, [=](std::int64_t i) { return q + (batch * p.queries + first + i) * p.q_stride + head * d; });
    load_rows(gradients, d, d, rows, [=](std::int64_t i) { return dout + (batch * p.queries + first + i) * p.out_stride + head * d; });
    const std::int64_t limit = active ? limit_of(p, query) : 0, most = block_limit(p, first);
    const std::int64_t row = (batch * p.heads + head) * p.queries + query;
    const float lse = active ? log_sum_exp[row] : 0.0f, pull = active ? delta[row] : 0.0f;
    float sums[lane_channels] = {};
    for (int part = 0; part < 2; ++part) {
        const std::int64_t end = part == 0 ? p.shared_keys : most;
        for (std::int64_t at = 0; at < end; at += tile) {
            const std::int64_t count = end - at < tile ? end - at : tile;
            load_tile(p, batch, kv_head, part, at, count, keys, values);
            const bool sees = active && lane < count && (part == 0 || at + lane < limit) && is_valid(p, batch, part, at + lane);
            float slope = 0;
            if (sees) {
                const float weight = expf(dot_of(queries + warp * d, keys + lane * pitch, d) * p.scale - lse);
                slope = weight * (dot_of(gradients + warp * d, values + lane * pitch, d) - pull) * p.scale;
            }
            weights[warp * tile + lane] = slope;
            __syncwarp();
            for (int c = 0; c < lane_channels; ++c) {
                const std::int64_t channel = lane + c * warp_size;
                if (channel >= d) break;
                for (std::int64_t j = 0; j < count; ++j) sums[c] = fmaf(weights[warp * tile + j], keys[j * pitch + channel], sums[c]);
            }
            __syncwarp();
        }
    }
    if (!active) return;
    for (int c = 0; c < lane_channels; ++c) {
        const std::int64_t channel = lane + c * warp_size;
        if (channel < d) dq[(batch * p.queries + query) * p.q_stride + head * d + channel] = sums[c];
    }
}

/// A warp a key of shared (part 0: all batch entries in order, added) or own keys (part 1: its own entry, written).
__global__ void key_gradient_kernel(Problem p, int part, const float* q, const float* log_sum_exp, const float* delta, const float* dout,
                                    AttentionKeyGradients to) {
    ATELIER_DYNAMIC_SHARED(float, memory);
    const std::int64_t d = p.head_dim, pitch = d + 1, kv_head = blockIdx.y, group = p.heads / p.kv_heads;
    const int lane = threadIdx.x % warp_size, warp = threadIdx.x / warp_size;
    const std::int64_t keys_of_part = part == 0 ? p.shared_keys : p.own_keys;
    const std::int64_t first = static_cast<std::int64_t>(blockIdx.x) * warps, key = first + warp, entry = blockIdx.z;
    float *queries = memory, *gradients = queries + tile * pitch, *keys = gradients + tile * pitch, *values = keys + warps * d,
          *slopes = values + warps * d, *weights = slopes + warps * tile;
    const bool active = key < keys_of_part;
    const std::int64_t rows = keys_of_part - first < warps ? keys_of_part - first : warps;
    load_rows(keys, d, d, rows, [=](std::int64_t i) { return key_row(p, p.shared.k, p.own.k, entry, kv_head, part, first + i); });
    load_rows(values, d, d, rows, [=](std::int64_t i) { return key_row(p, p.shared.v, p.own.v, entry, kv_head, part, first + i); });
    float dk[lane_channels] = {}, dv[lane_channels] = {};
    const std::int64_t first_batch = part == 0 ? 0 : entry, last_batch = part == 0 ? p.batch : entry + 1;
    for (std::int64_t batch = first_batch; batch < last_batch; ++batch)
        for (std::int64_t head = kv_head * group; head < (kv_head + 1) * group; ++head)
            for (std::int64_t at = 0; at < p.queries; at += tile) {
                const std::int64_t count = p.queries - at < tile ? p.queries - at : tile;
                __syncthreads();
                load_rows(queries, pitch, d, count, [=](std::int64_t i) { return q + (batch * p.queries + at + i) * p.q_stride + head * d; });
                load_rows(gradients, pitch, d, count,
                          [=](std::int64_t i) { return dout + (batch * p.queries + at + i) * p.out_stride + head * d; });
                __syncthreads();
                const bool sees = active && lane < count && is_valid(p, batch, part, key) && (part == 0 || key < limit_of(p, at + lane));
                float weight = 0, slope = 0;
                if (sees) {
                    const std::int64_t row = (batch * p.heads + head) * p.queries + at + lane;
                    weight = expf(dot_of(queries + lane * pitch, keys + warp * d, d) * p.scale - log_sum_exp[row]);
                    slope = weight * (dot_of(gradients + lane * pitch, values + warp * d, d) - delta[row]) * p.scale;
                }
                slopes[warp * tile + lane] = slope;
                weights[warp * tile + lane] = weight;
                __syncwarp();
                for (int c = 0; c < lane_channels; ++c) {
                    const std::int64_t channel = lane + c * warp_size;
                    if (channel >= d) break;
                    for (std::int64_t j = 0; j < count; ++j) {
                        dk[c] = fmaf(slopes[warp * tile + j], queries[j * pitch + channel], dk[c]);
                        dv[c] = fmaf(weights[warp * tile + j], gradients[j * pitch + channel], dv[c]);
                    }
                }
                __syncwarp();
            }
    if (!active) return;
    const std::int64_t to_row = part == 0 ? key * p.shared_stride : (entry * p.own_keys + key) * p.own_stride;
    for (int c = 0; c < lane_channels; ++c) {
        const std::int64_t channel = lane + c * warp_size;
        if (channel >= d) break;
        float *k = to.dk + to_row + kv_head * d + channel, *v = to.dv + to_row + kv_head * d + channel;
        *k = part == 0 ? *k + dk[c] : dk[c];
        *v = part == 0 ? *v + dv[c] : dv[c];
    }
}

std::size_t shared_bytes(const AttentionShape& s, std::int64_t rows_of_block) {
    return static_cast<std::size_t>(2 * tile * (s.head_dim + 1) + rows_of_block * warps * s.head_dim + 2 * warps * tile) * sizeof(float);
}

/// Masks go into the front of the workspace.
Problem make_problem(const AttentionShape& s, AttentionKeys shared, AttentionKeys own, float* workspace) {
    ATELIER_CHECK(s.head_dim >= 1 && s.head_dim <= max_head, "attention with heads of {} channels (at most {})", s.head_dim, max_head);
    ATELIER_CHECK(s.heads > 0 && s.kv_heads > 0 && s.heads % s.kv_heads == 0, "{} query heads cannot share {} key heads", s.heads, s.kv_heads);
    auto* bytes = reinterpret_cast<std::uint8_t*>(workspace);
    Problem p{s.batch, s.queries, s.shared_keys, s.own_keys, s.heads, s.kv_heads, s.head_dim, s.q_stride, s.shared_stride, s.own_stride,
              s.out_stride, s.scale, key_limits(s), nullptr, nullptr, {shared.k.f32(), shared.v.f32()}, {own.k.f32(), own.v.f32()}};
    if (s.shared_valid != nullptr) {
        copy_to_device(bytes, s.shared_valid, static_cast<std::size_t>(s.shared_keys));
        p.shared_valid = bytes;
    }
    if (s.own_valid != nullptr) {
        copy_to_device(bytes + s.shared_keys, s.own_valid, static_cast<std::size_t>(s.batch * s.own_keys));
        p.own_valid = bytes + s.shared_keys;
    }
    return p;
}

}  // namespace

KeyLimits key_limits(const AttentionShape& s) {
    KeyLimits limits;
    if (s.own_limit == nullptr) return limits;
    for (std::int64_t i = 0; i < s.queries;) {
        std::int64_t end = i + 1;
        const std::int32_t slope = end < s.queries && s.own_limit[end] == s.own_limit[i] + 1 ? 1 : 0;
        while (end < s.queries && s.own_limit[end] == s.own_limit[end - 1] + slope) ++end;
        ATELIER_CHECK(limits.runs < KeyLimits::max_runs, "attention whose key limits have more than {} runs", KeyLimits::max_runs);
        limits.run[limits.runs++] = {static_cast<std::int32_t>(i), s.own_limit[i], slope};
        i = end;
    }
    return limits;
}

void plain_attention(const AttentionShape& s, const float* q, AttentionKeys shared, AttentionKeys own, float* out, float* log_sum_exp,
                     float* workspace) {
    const Problem p = make_problem(s, shared, own, workspace);
    launch(forward_kernel, {ceil_div(s.queries, warps), s.heads, s.batch}, warps * warp_size, shared_bytes(s, 1), p, q, out, log_sum_exp);
}

void plain_attention_backward(const AttentionShape& s, const float* q, AttentionKeys shared, AttentionKeys own, const float* out,
                              const float* log_sum_exp, const float* dout, float* dq, AttentionKeyGradients shared_gradients,
                              AttentionKeyGradients own_gradients, float* workspace) {
    const Problem p = make_problem(s, shared, own, workspace);
    float* delta = workspace + masks_floats(s);
    const Grid queries{ceil_div(s.queries, warps), s.heads, s.batch};
    launch(delta_kernel, queries, warps * warp_size, 0, p, out, dout, delta);
    launch(query_gradient_kernel, queries, warps * warp_size, shared_bytes(s, 2), p, q, log_sum_exp, delta, dout, dq);
    if (shared_gradients.dk != nullptr)
        launch(key_gradient_kernel, {ceil_div(s.shared_keys, warps), s.kv_heads, 1}, warps * warp_size, shared_bytes(s, 2), p, 0, q,
               log_sum_exp, delta, dout, shared_gradients);
    launch(key_gradient_kernel, {ceil_div(s.own_keys, warps), s.kv_heads, s.batch}, warps * warp_size, shared_bytes(s, 2), p, 1, q,
           log_sum_exp, delta, dout, own_gradients);
}

}  // namespace atelier::ops::cuda
