#include "ops/attention.hpp"

#include <algorithm>
#include <cmath>

#include "core/parallel.hpp"
#include "ops/cpu/vector_math.hpp"
#include "ops/cpu/amx_block.hpp"
#include "ops/cpu/block_product.hpp"
#include "ops/matmul.hpp"
#include "ops/precision.hpp"

namespace atelier::ops::cpu {
namespace {

/// Numbers of a row of scores in memory: whole vectors, what lies behind the keys weighs nothing.
std::int64_t row_stride(const AttentionShape& s) { return (s.shared_keys + s.own_keys + lanes - 1) / lanes * lanes; }

constexpr std::int64_t pieces(std::int64_t n, std::int64_t size) { return (n + size - 1) / size; }

// A block of queries has a multiple of `query_step`, at least `few_queries` if there are as many; more while their scores stay in 2 MB: keys and values are
// read, turned or packed once a block.
constexpr std::int64_t query_step = 32, few_queries = 64, most_scores = std::int64_t{1} << 19;

/// Blocks of about the same size.
std::int64_t block_queries(const AttentionShape& s) {
    const std::int64_t queries = std::max<std::int64_t>(s.queries, 1), stride = std::max<std::int64_t>(row_stride(s), lanes);
    const std::int64_t most = std::max(few_queries, most_scores / stride / query_step * query_step);
    return pieces(pieces(queries, pieces(queries, most)), query_step) * query_step;
}

/// Scores of a block at most; never less for more queries or keys.
std::int64_t block_scores(const AttentionShape& s) {
    const std::int64_t stride = row_stride(s);
    return std::min(std::max(most_scores, few_queries * stride), pieces(s.queries, query_step) * query_step * stride);
}

float* mutable_data(Operand data) { return const_cast<float*>(data.f32()); }

struct Block {
    const AttentionShape& s;
    std::int64_t batch, head, first, rows;  ///< queries [first, first + rows) of one batch entry and head
    std::int64_t keys() const { return s.shared_keys + s.own_keys; }
    std::int64_t stride() const { return row_stride(s); }
    std::int64_t kv_head() const { return head / (s.heads / s.kv_heads); }
    MatrixView queries(Operand q, std::int64_t stride) const {
        return {mutable_data(q) + (batch * s.queries + first) * stride + head * s.head_dim, rows, s.head_dim, stride};
    }
    MatrixView shared(Operand k) const {
        return {mutable_data(k) + kv_head() * s.head_dim, s.shared_keys, s.head_dim, s.shared_stride};
    }
    MatrixView own(Operand k) const {
        return {mutable_data(k) + batch * s.own_keys * s.own_stride + kv_head() * s.head_dim, s.own_keys, s.head_dim,
                s.own_stride};
    }
    /// The columns of a [rows, stride] buffer that belong to shared or own keys.
    MatrixView shared_part(float* scores) const { return {scores, rows, s.shared_keys, stride()}; }
    MatrixView own_part(float* scores) const { return {scores + s.shared_keys, rows, s.own_keys, stride()}; }
    bool sees(std::int64_t row, std::int64_t key) const {
        if (key < s.shared_keys) return s.shared_valid == nullptr || s.shared_valid[key] != 0;
        const std::int64_t j = key - s.shared_keys;
        if (s.own_valid != nullptr && s.own_valid[batch * s.own_keys + j] == 0) return false;
        return s.own_limit == nullptr || j < s.own_limit[first + row];
    }
    bool masked() const { return s.shared_valid != nullptr || s.own_valid != nullptr || s.own_limit != nullptr; }
};

/// Multiplications from which on `matmul` is the faster one.
std::int64_t large_product() {
    if (!has_amx()) return 1 << 20;
    return product_precision() == ProductPrecision::bf16 ? 0 : 1 << 18;
}

/// A block's product.
void product(bool ta, bool tb, float alpha, const MatrixView& a, const MatrixView& b, float beta, const MatrixView& c) {
    if (a.rows * a.cols * (tb ? b.rows : b.cols) >= large_product()) matmul(ta, tb, alpha, a, b, beta, c);
    else block_product(ta, tb, alpha, a, b, beta, c);
}

void clear_rows(const MatrixView& rows) {
    for (std::int64_t i = 0; i < rows.rows; ++i) std::fill_n(rows.data + i * rows.stride, rows.cols, 0.0f);
}

void product_with_keys(const Block& b, float alpha, const MatrixView& rows, Operand shared, Operand own,
                       float* out) {
    if (b.s.shared_keys > 0) product(false, true, alpha, rows, b.shared(shared), 0.0f, b.shared_part(out));
    if (b.s.own_keys > 0) product(false, true, alpha, rows, b.own(own), 0.0f, b.own_part(out));
}

/// What a query doesn't see, and what lies behind the keys, has a score of -inf.
void mask(const Block& b, float* scores) {
    for (std::int64_t i = 0; i < b.rows; ++i) {
        float* row = scores + i * b.stride();
        if (b.masked())
            for (std::int64_t j = 0; j < b.keys(); ++j) row[j] = b.sees(i, j) ? row[j] : -INFINITY;
        std::fill(row + b.keys(), row + b.stride(), -INFINITY);
    }
}

/// Masked scores become 0 weight: probabilities are exp(score - max) where the query sees the key.
void softmax_rows(const Block& b, float* scores, float* log_sum_exp) {
    const std::int64_t stride = b.stride();
    mask(b, scores);
    for (std::int64_t i = 0; i < b.rows; ++i) {
        float* row = scores + i * stride;
        const float top = lane_max(stride, -INFINITY, row);
        if (top == -INFINITY) {  // sees nothing
            std::fill_n(row, stride, 0.0f);
            if (log_sum_exp != nullptr) log_sum_exp[i] = INFINITY;
            continue;
        }
        for (std::int64_t j = 0; j < stride; ++j) row[j] = exp_f32(row[j] - top);
        const float sum = lane_sum(stride, [=](std::int64_t j) { return row[j]; });
        const float inverse = 1.0f / sum;
        for (std::int64_t j = 0; j < stride; ++j) row[j] *= inverse;
        if (log_sum_exp != nullptr) log_sum_exp[i] = top + std::log(sum);
    }
}

void check(const AttentionShape& s, const Tensor& workspace) {
    ATELIER_CHECK(s.heads > 0 && s.kv_heads > 0 && s.heads % s.kv_heads == 0,
                  "{} query heads cannot share {} key heads", s.heads, s.kv_heads);
    ATELIER_CHECK(workspace.elements() >= attention_workspace(s), "attention needs a workspace of {} numbers, found {}",
                  attention_workspace(s), workspace.elements());
}

/// The calling thread's part of the workspace, twice a block's scores. Where it lies does not depend on the shape: threads may be
/// at work on prompts of different lengths in one workspace.
float* own_rows(const Tensor& workspace) {
    return workspace.f32() + thread_index() * (workspace.elements() / threads() / lanes * lanes);
}

}  // namespace

std::int64_t attention_workspace(const AttentionShape& s) {
    return threads() * 2 * block_scores(s);
}

std::int64_t attention_backward_workspace(const AttentionShape& s) { return attention_workspace(s); }

void attention(const AttentionShape& s, Operand q, AttentionKeys shared, AttentionKeys own, OperandOut out,
               float* log_sum_exp, const Tensor& workspace) {
    check(s, workspace);
    const std::int64_t at_once = block_queries(s), blocks = pieces(s.queries, at_once), stride = row_stride(s);
    const ProductPrecision precision = product_precision();  // the caller's
    parallel_for(s.batch * s.heads * blocks, 1, [&](std::int64_t begin, std::int64_t end) {
        const PrecisionScope of_the_caller(precision);
        float* scores = own_rows(workspace);
        for (std::int64_t t = begin; t < end; ++t) {
            const std::int64_t first = t % blocks * at_once;
            const Block b{s, t / blocks / s.heads, t / blocks % s.heads, first,
                          std::min(at_once, s.queries - first)};
            product_with_keys(b, s.scale, b.queries(q, s.q_stride), shared.k, own.k, scores);
            float* kept = log_sum_exp == nullptr
                              ? nullptr
                              : log_sum_exp + (b.batch * s.heads + b.head) * s.queries + first;
            softmax_rows(b, scores, kept);
            round_operand(1, b.rows * stride, 0, scores);
            const MatrixView o = b.queries(out, s.out_stride);
            if (b.keys() == 0) clear_rows(o);
            if (s.shared_keys > 0) product(false, false, 1.0f, b.shared_part(scores), b.shared(shared.v), 0.0f, o);
            if (s.own_keys > 0)
                product(false, false, 1.0f, b.own_part(scores), b.own(own.v), s.shared_keys > 0 ? 1.0f : 0.0f, o);
        }
    });
}

void attention_backward(const AttentionShape& s, Operand q, AttentionKeys shared, AttentionKeys own,
                        Operand out, const float* log_sum_exp, Operand dout, float* dq,
                        AttentionKeyGradients dshared, AttentionKeyGradients down, const Tensor& workspace) {
    check(s, workspace);
    const std::int64_t at_once = block_queries(s), stride = row_stride(s), group = s.heads / s.kv_heads;
    const ProductPrecision precision = product_precision();
    // One task per key head: it alone adds to that head's key gradients, batch entries in order.
    parallel_for(s.kv_heads, 1, [&](std::int64_t begin, std::int64_t end) {
        const PrecisionScope of_the_caller(precision);
        float* weights = own_rows(workspace);
        float* dscores = weights + at_once * stride;
        for (std::int64_t kv = begin; kv < end; ++kv)
            for (std::int64_t batch = 0; batch < s.batch; ++batch)
                for (std::int64_t head = kv * group; head < (kv + 1) * group; ++head)
                    for (std::int64_t first = 0; first < s.queries; first += at_once) {
                        const Block b{s, batch, head, first, std::min(at_once, s.queries - first)};
                        const MatrixView qs = b.queries(q, s.q_stride), gs = b.queries(dout, s.out_stride);
                        const MatrixView os = b.queries(out, s.out_stride);
                        product_with_keys(b, s.scale, qs, shared.k, own.k, weights);
                        product_with_keys(b, 1.0f, gs, shared.v, own.v, dscores);
                        const float* lse = log_sum_exp + (batch * s.heads + head) * s.queries + first;
                        mask(b, weights);
                        for (std::int64_t i = 0; i < b.rows; ++i) {
                            float* p = weights + i * stride;
                            float* d = dscores + i * stride;
                            const float* g = gs.data + i * gs.stride;
                            const float* o = os.data + i * os.stride;
                            const float dot = lane_sum(s.head_dim, [=](std::int64_t j) { return g[j] * o[j]; });
                            const float top = lse[i];
                            std::fill(d + b.keys(), d + stride, 0.0f);
                            for (std::int64_t j = 0; j < stride; ++j) p[j] = exp_f32(p[j] - top);
                            for (std::int64_t j = 0; j < stride; ++j) d[j] = p[j] * (d[j] - dot) * s.scale;
                        }
                        for (float* operand : {weights, dscores}) round_operand(1, b.rows * stride, 0, operand);
                        const MatrixView dqs = b.queries(dq, s.q_stride);
                        if (b.keys() == 0) clear_rows(dqs);
                        // The first block of the first head of the group writes own gradients, later ones add.
                        const float add = head == kv * group && first == 0 ? 0.0f : 1.0f;
                        if (s.shared_keys > 0) {
                            product(false, false, 1.0f, b.shared_part(dscores), b.shared(shared.k), 0.0f, dqs);
                            if (dshared.dk != nullptr) {
                                product(true, false, 1.0f, b.shared_part(dscores), qs, 1.0f, b.shared(dshared.dk));
                                product(true, false, 1.0f, b.shared_part(weights), gs, 1.0f, b.shared(dshared.dv));
                            }
                        }
                        if (s.own_keys > 0) {
                            product(false, false, 1.0f, b.own_part(dscores), b.own(own.k), s.shared_keys > 0 ? 1.0f : 0.0f,
                                   dqs);
                            product(true, false, 1.0f, b.own_part(dscores), qs, add, b.own(down.dk));
                            product(true, false, 1.0f, b.own_part(weights), gs, add, b.own(down.dv));
                        }
                    }
    });
}

}  // namespace atelier::ops::cpu
