#include "ops/matmul.hpp"

#include <algorithm>
#include <vector>

#include "core/parallel.hpp"
#include "ops/cpu/bf16_matmul.hpp"
#include "ops/cpu/onednn.hpp"
#include "ops/precision.hpp"

namespace atelier::ops::cpu {
namespace {

/// One side of the output, cut into pieces.
struct Cut {
    std::int64_t n, size, longer, pieces;  ///< the first `longer` pieces have one more
    std::int64_t begin(std::int64_t i) const { return i * size + std::min(i, longer); }
    std::int64_t length(std::int64_t i) const { return std::min(begin(i + 1), n) - begin(i); }
};
Cut pieces_of(std::int64_t n, std::int64_t size) { return {n, size, 0, (n + size - 1) / size}; }
Cut equal(std::int64_t n, std::int64_t pieces) { return {n, n / pieces, n % pieces, pieces}; }
/// Equal pieces of at least `least`.
Cut equal_pieces(std::int64_t n, std::int64_t least) { return equal(n, n / least); }
/// An even number of them where there are more than one: few large ones have to be shared evenly.
Cut even_pieces(std::int64_t n, std::int64_t least) { return equal(n, n < 2 * least ? 1 : n / least / 2 * 2); }

/// Rows of an output tile.
///
/// A row's bits must not depend on its place: members of a group have the same results wherever they stand. oneDNN's AVX2
/// kernels take six rows at a time and add up one to three left-over rows in another order (and, with B not transposed, cut from 76 rows
/// on at other places): tiles are whole sixes there, and few left-over rows go through the kernel as six. Its AVX-512 kernels add up rows in
/// another order where there are fewer than 16 of them: those go through the kernel as 16.
struct Tiling {
    std::int64_t rows, rows_transposed_b;
    std::int64_t filled;  ///< what few rows are filled up to
};
bool avx512() { return dnnl_get_effective_cpu_isa() >= dnnl_cpu_isa_avx512_core; }
const Tiling& tiling() {
    static const Tiling instance = avx512() ? Tiling{256, 256, 16} : Tiling{72, 126, 6};
    return instance;
}
/// How many of a tile's last rows the kernel would treat in a way of their own.
std::int64_t few_of(std::int64_t rows) {
    if (avx512()) return rows < 16 ? rows : 0;
    return rows % 6 <= 3 ? rows % 6 : 0;
}

/// From this size on oneDNN's products copy both operands into the order in which they are used, which is faster, and treat all rows alike: all tiles
/// are that large then. AVX-512's gain only where B is not transposed, and where that leaves a tile for each of two threads.
constexpr std::int64_t copied_rows = 504, copied_cols = 768, copied_depth = 768, copied_depth_transposed_a = 192, copied_side_avx512 = 1024;

/// A tile's rows are what a thread finds in its cache again, so two threads get a tile each of 512 rows; of more weights than these (numbers; the
/// second-level cache has room for twice as many) each row of tiles reads all from memory, and there are half as many.
constexpr std::int64_t cached_weights = std::int64_t{1} << 18;

struct Tiles {
    Cut rows, cols;
    bool copied;
};
/// By the shape alone, so that no bit depends on the number of threads.
Tiles tiles_of(bool ta, bool tb, std::int64_t m, std::int64_t n, std::int64_t k) {
    if (k >= (ta ? copied_depth_transposed_a : copied_depth)) {
        constexpr std::int64_t side = copied_side_avx512;
        if (avx512() && !tb && m >= side && n >= side && (m >= 2 * side || n >= 2 * side)) return {even_pieces(m, side), even_pieces(n, side), true};
        if ((ta || !avx512()) && m >= copied_rows && n >= copied_cols) return {equal_pieces(m, copied_rows), equal_pieces(n, copied_cols), true};
    }
    // Rows of A^T are no samples' rows: these are gradients of weights.
    if (ta) return {pieces_of(m, 96), pieces_of(n, copied_cols), false};
    // A product of few rows is one tile high: its columns are what threads share. By n alone, so that a row's bits don't depend on how
    // many rows there are; whole multiples of the kernels' own 16 and 48 columns. AVX-512's are fastest a panel at a time.
    constexpr std::int64_t step = 48;
    const std::int64_t wide = avx512() ? (n > 2 * step ? step : n) : std::clamp((n / 4 + step - 1) / step * step, 2 * step, 8 * step);
    const std::int64_t tall = tb ? tiling().rows_transposed_b : tiling().rows;
    return {pieces_of(m, avx512() && n * k > cached_weights ? 2 * tall : tall), pieces_of(n, wide), false};
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
    const std::int64_t rows = tiling().filled;
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
    if (k > 0 && product_precision() == ProductPrecision::bf16 && has_bf16_products()) return bf16_matmul(ta, tb, alpha, a, b, beta, c);
    const Tiles tiles = tiles_of(ta, tb, m, n, k);
    parallel_for(tiles.rows.pieces * tiles.cols.pieces, 1, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t t = begin; t < end; ++t) {
            const std::int64_t row = t / tiles.cols.pieces, col = t % tiles.cols.pieces, i = tiles.rows.begin(row), j = tiles.cols.begin(col),
                               here = tiles.rows.length(row), wide = tiles.cols.length(col), left = ta || tiles.copied ? 0 : few_of(here);
            const float *from = a.data + (ta ? i : i * a.stride), *by = b.data + (tb ? j * b.stride : j);
            float* to = c.data + i * c.stride + j;
            if (left == 0) {
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
