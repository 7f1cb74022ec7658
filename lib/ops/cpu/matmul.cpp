#include "ops/matmul.hpp"

#include <algorithm>
#include <vector>

#include "core/arena.hpp"
#include "core/parallel.hpp"
#include "ops/cpu/amx_block.hpp"
#include "ops/cpu/amx_matmul.hpp"
#include "ops/cpu/onednn.hpp"
#include "ops/cpu/transpose.hpp"

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
/// are that large then. AVX-512's where that leaves a tile for each of two threads.
constexpr std::int64_t copied_rows = 504, copied_cols = 768, copied_depth = 768, copied_depth_transposed_a = 192, copied_side_avx512 = 1024;

/// Products that AVX-512's kernels sum in the same order however many rows and columns there are, and whether they copy operands or not: those whose depth
/// is of one piece or two, or of whole ones, and that aren't scaled.
bool is_summed_alike(std::int64_t k, float alpha) {
    constexpr std::int64_t piece = 384;
    return alpha == 1.0f && (k <= 2 * piece || k % piece == 0);
}

/// A tile's rows are what a thread finds in its cache again; of more weights than these (numbers; the second-level cache has room for twice as many) each
/// row of tiles reads all from memory, and there are a quarter as many.
constexpr std::int64_t cached_weights = std::int64_t{1} << 18;

struct Tiles {
    Cut rows, cols;
    bool copied;
};
/// By the shape alone, so that no bit depends on the number of threads.
Tiles tiles_of(bool ta, bool tb, std::int64_t m, std::int64_t n, std::int64_t k, float alpha) {
    if (k >= (ta ? copied_depth_transposed_a : copied_depth)) {
        constexpr std::int64_t side = copied_side_avx512;
        if (avx512() && (!tb || is_summed_alike(k, alpha)) && m >= side && n >= side && (m >= 2 * side || n >= 2 * side)) return {even_pieces(m, side), even_pieces(n, side), true};
        if (!avx512() && m >= copied_rows && n >= copied_cols) return {equal_pieces(m, copied_rows), equal_pieces(n, copied_cols), true};
    }
    // Rows of A^T are no samples' rows: these are gradients of weights.
    if (ta) return {pieces_of(m, 96), pieces_of(n, copied_cols), false};
    // A product of few rows is one tile high: its columns are what threads share; whole multiples of the kernels' own 16 and 48. By n and k alone, so that
    // a row's bits don't depend on how many rows there are.
    constexpr std::int64_t step = 48, narrow = 2 * step, widest = 8 * step, enough = 8;
    if (!avx512()) {
        const std::int64_t wide = std::clamp((n / 4 + step - 1) / step * step, narrow, widest);
        return {pieces_of(m, tb ? tiling().rows_transposed_b : tiling().rows), pieces_of(n, wide), false};
    }
    if (n * k <= cached_weights) return {pieces_of(m, tiling().rows), pieces_of(n, narrow), false};
    return {pieces_of(m, 4 * tiling().rows), pieces_of(n, is_summed_alike(k, alpha) ? std::clamp(n / enough / step * step, narrow, widest) : narrow), false};
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

/// oneDNN's kernels for AVX-512 that leave operands where they are run at 1.2 to 1.6 times the speed where the numbers of both lie along the depth, once
/// the weights don't stay in the cache: there the others are turned first. By n and k alone where rows are samples'.
bool is_turned(bool ta, bool tb, std::int64_t m, std::int64_t n, std::int64_t k) {
    constexpr std::int64_t least = 256, least_of_two = 512;  // both operands are turned for a weight's gradient
    return avx512() && !tb && n * k > cached_weights && n >= least && (!ta || std::min(m, n) >= least_of_two);
}

/// An odd number of cache lines, so that the same place of many rows finds room in the cache.
std::int64_t turned_stride(std::int64_t depth) {
    static_assert(transpose_step * sizeof(float) == 64);
    return ((depth + transpose_step - 1) / transpose_step | 1) * transpose_step;
}

constexpr std::int64_t turned_numbers = std::int64_t{1} << 23, turned_step = 384;
/// Rows (columns) of an operand of this depth that are turned together: enough tiles for many threads.
std::int64_t turned_together(std::int64_t depth) { return std::max(turned_numbers / depth / turned_step * turned_step, turned_step); }

/// Columns `first` to `first + count` of a matrix as rows of `stride` numbers. A thread reads whole rows, as they lie in memory.
void turn(const MatrixView& from, std::int64_t first, std::int64_t count, float* to, std::int64_t stride) {
    constexpr std::int64_t together = 4 * transpose_step;
    parallel_for((from.rows + together - 1) / together, 1, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t t = begin; t < end; ++t) {
            const std::int64_t at = t * together;
            transpose(from.data + at * from.stride + first, from.stride, std::min(together, from.rows - at), count, to + at, stride);
        }
    });
}

/// As `matmul` with op(A) = A or A^T and B not transposed.
void turned_matmul(bool ta, float alpha, const MatrixView& a, const MatrixView& b, float beta, const MatrixView& c) {
    thread_local Workspace of_a{"turned rows"}, of_b{"turned columns"};  // grow to the largest product's once
    const std::int64_t depth = b.rows, stride = turned_stride(depth), together = turned_together(stride);
    const std::int64_t tall = ta ? std::min(together, c.rows) : c.rows, wide = std::min(together, c.cols);
    const auto room = [&](Workspace& workspace, std::int64_t rows) {
        return workspace.build([&](Arena& arena) { return arena.take_f32({rows, stride}); }).f32();
    };
    float *rows_of_a = ta ? room(of_a, tall) : nullptr, *rows_of_b = room(of_b, wide);
    for (std::int64_t i = 0; i < c.rows; i += tall) {
        const std::int64_t rows = std::min(tall, c.rows - i);
        if (ta) turn(a, i, rows, rows_of_a, stride);
        const MatrixView left = ta ? MatrixView{rows_of_a, rows, depth, stride} : a;
        for (std::int64_t j = 0; j < c.cols; j += wide) {
            const MatrixView right{rows_of_b, std::min(wide, c.cols - j), depth, stride};
            turn(b, j, right.rows, right.data, stride);
            matmul(false, true, alpha, left, right, beta, {c.data + i * c.stride + j, rows, right.rows, c.stride});
        }
    }
}

}  // namespace

std::size_t turned_operand_bytes(std::int64_t width) {
    const std::int64_t deepest = 6 * width, weights = deepest * width;
    if (!avx512() || has_amx() || weights <= cached_weights) return 0;
    return 2 * static_cast<std::size_t>(std::min(weights, std::max(turned_numbers, turned_step * deepest))) * sizeof(float);
}

void matmul(bool ta, bool tb, float alpha, const MatrixView& a, const MatrixView& b, float beta,
            const MatrixView& c) {
    const std::int64_t m = ta ? a.cols : a.rows, k = ta ? a.rows : a.cols;
    const std::int64_t n = tb ? b.rows : b.cols;
    ATELIER_CHECK((tb ? b.cols : b.rows) == k && c.rows == m && c.cols == n,
                  "matmul of [{}, {}]{} and [{}, {}]{} into [{}, {}]", a.rows, a.cols, ta ? "^T" : "", b.rows, b.cols,
                  tb ? "^T" : "", c.rows, c.cols);
    if (m == 0 || n == 0) return;
    if (k > 0 && has_amx()) return amx_matmul(ta, tb, alpha, a, b, beta, c);
    const Tiles tiles = tiles_of(ta, tb, m, n, k, alpha);
    if (!tiles.copied && is_turned(ta, tb, m, n, k)) return turned_matmul(ta, alpha, a, b, beta, c);
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
