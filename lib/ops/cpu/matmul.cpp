#include "ops/matmul.hpp"

#include <algorithm>

#include "core/parallel.hpp"
#include "ops/cpu/onednn.hpp"

namespace atelier::ops::cpu {
namespace {

// Tiles of the output, fixed so that the bits don't depend on the number of threads. Large enough for the
// product's own blocking, small enough to share 512 rows between two threads.
constexpr std::int64_t tile_rows = 128, tile_cols = 768;

void tile(bool ta, bool tb, std::int64_t m, std::int64_t n, std::int64_t k, float alpha, const float* a,
          std::int64_t lda, const float* b, std::int64_t ldb, float beta, float* c, std::int64_t ldc) {
    use_one_thread();
    const dnnl_status_t status =
        dnnl_sgemm(ta ? 'T' : 'N', tb ? 'T' : 'N', m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
    ATELIER_CHECK(status == dnnl_success, "sgemm {} x {} x {} failed with status {}", m, n, k,
                  static_cast<int>(status));
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
    const std::int64_t rows = (m + tile_rows - 1) / tile_rows, cols = (n + tile_cols - 1) / tile_cols;
    parallel_for(rows * cols, 1, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t t = begin; t < end; ++t) {
            const std::int64_t i = t / cols * tile_rows, j = t % cols * tile_cols;
            tile(ta, tb, std::min(tile_rows, m - i), std::min(tile_cols, n - j), k, alpha,
                 a.data + (ta ? i : i * a.stride), a.stride, b.data + (tb ? j * b.stride : j), b.stride, beta,
                 c.data + i * c.stride + j, c.stride);
        }
    });
}

}  // namespace atelier::ops::cpu
