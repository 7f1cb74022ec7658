#include "ops/matmul.hpp"

#include <algorithm>
#include <vector>

#include "core/parallel.hpp"
#include "ops/cpu/onednn.hpp"

namespace atelier::ops::cpu {
namespace {

constexpr std::int64_t tile_cols = 768;

/// Rows of an output tile, fixed so that the bits don't depend on the number of threads: large enough for the product's own blocking,
/// small enough to share 512 rows between two threads.
///
/// A row's bits must not depend on its place either: members of a group have the same results wherever they stand. oneDNN's AVX2
/// kernels take six rows at a time and add up one to three left-over rows in another order (and, with B not transposed, cut from 76 rows
/// on at other places): tiles are whole sixes there, and few left-over rows go through the kernel as six.
struct Tiling {
    std::int64_t rows, rows_transposed_b, step, fewest;
};
const Tiling& tiling() {
    static const Tiling instance = dnnl_get_effective_cpu_isa() >= dnnl_cpu_isa_avx512_core ? Tiling{128, 128, 1, 0} : Tiling{72, 126, 6, 3};
    return instance;
}

void tile(bool ta, bool tb, std::int64_t m, std::int64_t n, std::int64_t k, float alpha, const float* a,
          std::int64_t lda, const float* b, std::int64_t ldb, float beta, float* c, std::int64_t ldc) {
    use_one_thread();
    const dnnl_status_t status =
        dnnl_sgemm(ta ? 'T' : 'N', tb ? 'T' : 'N', m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
    ATELIER_CHECK(status == dnnl_success, "sgemm {} x {} x {} failed with status {}", m, n, k,
                  static_cast<int>(status));
}

/// As `tile` with A not transposed, for m rows that the kernel would treat in a way of their own: together with rows of zeros.
void few_rows(bool tb, std::int64_t m, std::int64_t n, std::int64_t k, float alpha, const float* a, std::int64_t lda, const float* b,
              std::int64_t ldb, float beta, float* c, std::int64_t ldc) {
    const std::int64_t rows = tiling().step;
    thread_local std::vector<float> room;  // grows to the largest product's once
    room.assign(static_cast<std::size_t>(rows * (k + n)), 0.0f);
    float *in = room.data(), *out = in + rows * k;
    for (std::int64_t i = 0; i < m; ++i) {
        std::copy_n(a + i * lda, k, in + i * k);
        if (beta != 0.0f) std::copy_n(c + i * ldc, n, out + i * n);
    }
    tile(false, tb, rows, n, k, alpha, in, k, b, ldb, beta, out, n);
    for (std::int64_t i = 0; i < m; ++i) std::copy_n(out + i * n, n, c + i * ldc);
}

}  // namespace

void matmul(bool ta, bool tb, float alpha, const MatrixView& a, const MatrixView& b, float beta,
            const MatrixView& c) {
    const std::int64_t m = ta ? a.cols : a.rows, k = ta ? a.rows : a.cols;
    const std::int64_t n = tb ? b.rows : b.cols;
    ATELIER_CHECK((tb ? b.cols : b.rows) == k && c.rows == m && c.cols == n,
                  "matmul of [{}, {}]{} and [{}, {}]{} into [{}, {}]", a.rows, a.cols, ta ? "^T" : "", b.rows, b.cols,
                  tb ? "^T" : "", c.rows, c.cols);
    if (m == 0 || n == 0) return;
    const std::int64_t tile_rows = tb ? tiling().rows_transposed_b : tiling().rows;
    const std::int64_t rows = (m + tile_rows - 1) / tile_rows, cols = (n + tile_cols - 1) / tile_cols;
    parallel_for(rows * cols, 1, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t t = begin; t < end; ++t) {
            const std::int64_t i = t / cols * tile_rows, j = t % cols * tile_cols, here = std::min(tile_rows, m - i),
                               wide = std::min(tile_cols, n - j), left = here % tiling().step;
            const float *from = a.data + (ta ? i : i * a.stride), *by = b.data + (tb ? j * b.stride : j);
            float* to = c.data + i * c.stride + j;
            if (ta || left == 0 || left > tiling().fewest) {
                tile(ta, tb, here, wide, k, alpha, from, a.stride, by, b.stride, beta, to, c.stride);
                continue;
            }
            const std::int64_t whole = here - left;
            if (whole > 0) tile(false, tb, whole, wide, k, alpha, from, a.stride, by, b.stride, beta, to, c.stride);
            few_rows(tb, left, wide, k, alpha, from + whole * a.stride, a.stride, by, b.stride, beta, to + whole * c.stride, c.stride);
        }
    });
}

}  // namespace atelier::ops::cpu
