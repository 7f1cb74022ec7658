#include "ops/cpu/bf16_matmul.hpp"

#include <algorithm>

#include "core/arena.hpp"
#include "core/parallel.hpp"
#include "ops/cpu/bf16_block.hpp"

namespace atelier::ops::cpu {
namespace {

// How deep a panel is at most, and how many numbers are packed at a time: all rows of A that are likely to come, some hundred columns of B.
constexpr std::int64_t longest_depth = 2048, packed_numbers_of_a = std::int64_t{1} << 21, packed_numbers_of_b = std::int64_t{1} << 20;
// Panels of A that stay in the second-level cache while all panels of B go by.
constexpr std::int64_t group_bytes = std::int64_t{1} << 20, largest_group = 16;
// Panels that are packed together where rows of memory lie across them.
constexpr std::int64_t panels_across = 8;

std::int64_t pieces(std::int64_t n, std::int64_t size) { return (n + size - 1) / size; }

/// Equal pieces of whole steps, by the depth alone.
std::int64_t depth_of_piece(std::int64_t depth) { return pieces(pieces(depth, pieces(depth, longest_depth)), panel_step) * panel_step; }

/// Rows of op(A) or columns of op(B) that are packed together.
std::int64_t packed_together(std::int64_t numbers, std::int64_t depth) { return numbers / (steps_of(depth) * panel_step) / panel_side * panel_side; }

/// One side of a product: op(A) by rows, or op(B) by columns.
struct Operand {
    const float* data;
    std::int64_t stride;
    bool is_deep;  ///< a row's (column's) numbers lie side by side
    std::int64_t panels_together() const { return is_deep ? 1 : panels_across; }
    /// The t-th part, of `panels_together`, of the panels of `size` rows (columns) from `first` on.
    void pack(Side side, std::int64_t first, std::int64_t size, std::int64_t at, std::int64_t deep, std::int64_t t, Bf16* to) const {
        const std::int64_t skipped = t * panels_together(), begin = first + skipped * panel_side;
        const std::int64_t count = std::min(panels_together() * panel_side, first + size - begin);
        pack_panels(side, {data + (is_deep ? begin * stride + at : at * stride + begin), stride, count, deep, is_deep}, to + skipped * panel_numbers(deep));
    }
};

/// C = alpha P + beta C for a block.
void combine(const float* p, std::int64_t rows, std::int64_t cols, float alpha, float beta, float* c, std::int64_t stride) {
    for (std::int64_t i = 0; i < rows; ++i, p += panel_side, c += stride) {
        if (beta == 0.0f)
            for (std::int64_t j = 0; j < cols; ++j) c[j] = alpha * p[j];
        else
            for (std::int64_t j = 0; j < cols; ++j) c[j] = alpha * p[j] + beta * c[j];
    }
}

/// Packed panels of both sides and where their product goes.
struct Packed {
    const Bf16 *a, *b;
    std::int64_t rows, cols, depth;
    float alpha, beta;
    float* c;
    std::int64_t stride;

    void block(std::int64_t of_a, std::int64_t of_b) const {
        const std::int64_t i = of_a * panel_side, j = of_b * panel_side, numbers = panel_numbers(depth);
        const std::int64_t tall = std::min(panel_side, rows - i), wide = std::min(panel_side, cols - j);
        float* to = c + i * stride + j;
        const auto multiply = [&](bool adds, float* out, std::int64_t out_stride) {
            multiply_block(a + of_a * numbers, tall, b + of_b * numbers, wide, steps_of(depth), adds, out, out_stride);
        };
        // Sums begin with what is there wherever an element stands, in C itself or beside it.
        const bool adds = alpha == 1.0f && beta == 1.0f, is_sum = adds || (alpha == 1.0f && beta == 0.0f);
        if (is_sum && tall % tile_side == 0 && wide % tile_side == 0) return multiply(adds, to, stride);
        alignas(64) float sums[panel_side * panel_side];
        if (adds) {
            std::fill_n(sums, panel_side * panel_side, 0.0f);
            for (std::int64_t row = 0; row < tall; ++row) std::copy_n(to + row * stride, wide, sums + row * panel_side);
        }
        multiply(adds, sums, panel_side);
        combine(sums, tall, wide, alpha, adds ? 0.0f : beta, to, stride);
    }
    /// A panel of B after the other, each for a group of panels of A.
    void multiply() const {
        const std::int64_t panel_bytes = panel_numbers(depth) * static_cast<std::int64_t>(sizeof(Bf16));
        const std::int64_t down = pieces(rows, panel_side), across = pieces(cols, panel_side);
        const std::int64_t group = std::clamp<std::int64_t>(pieces(down, threads()), 1, std::clamp<std::int64_t>(group_bytes / panel_bytes, 1, largest_group));
        const std::int64_t count = pieces(down, group) * across, grain = std::max<std::int64_t>(1, count / (8 * threads()));
        parallel_for(count, grain, [&](std::int64_t begin, std::int64_t end) {
            const BlockScope scope;
            for (std::int64_t t = begin; t < end; ++t) {
                const std::int64_t top = t / across * group;
                for (std::int64_t i = top; i < std::min(top + group, down); ++i) block(i, t % across);
            }
        });
    }
};

}  // namespace

bool has_bf16_products() { return has_amx(); }

std::size_t bf16_product_bytes(std::int64_t width) {
    if (!has_bf16_products()) return 0;
    const std::int64_t of_a = std::min(packed_numbers_of_a, 1024 * 3 * width), of_b = std::min(packed_numbers_of_b, 18 * width * width);
    return static_cast<std::size_t>(of_a + of_b) * sizeof(Bf16);
}

void bf16_matmul(bool ta, bool tb, float alpha, const MatrixView& a, const MatrixView& b, float beta, const MatrixView& c) {
    thread_local Workspace of_a{"packed rows"}, of_b{"packed columns"};  // grow to the largest product's once
    const auto room = [](Workspace& workspace, std::int64_t panels, std::int64_t numbers) {
        return static_cast<Bf16*>(workspace.build([&](Arena& arena) { return arena.take(DType::bf16, {panels, numbers}); }).raw());
    };
    const Operand left{a.data, a.stride, !ta}, right{b.data, b.stride, tb};
    const std::int64_t depth = ta ? a.rows : a.cols, piece = depth_of_piece(depth);
    const std::int64_t tall = packed_together(packed_numbers_of_a, piece), wide = packed_together(packed_numbers_of_b, piece);
    for (std::int64_t at = 0; at < depth; at += piece) {
        const std::int64_t deep = std::min(piece, depth - at), numbers = panel_numbers(deep);
        for (std::int64_t i = 0; i < c.rows; i += tall) {
            const std::int64_t rows = std::min(tall, c.rows - i), down = pieces(rows, panel_side), tasks_of_a = pieces(down, left.panels_together());
            Bf16* packed_a = room(of_a, down, numbers);
            for (std::int64_t j = 0; j < c.cols; j += wide) {
                const std::int64_t cols = std::min(wide, c.cols - j), across = pieces(cols, panel_side);
                Bf16* packed_b = room(of_b, across, numbers);
                // Parts of A among those of B, so that each thread's share has both, and of A the rows that it will multiply.
                const std::int64_t parts_of_a = j == 0 ? tasks_of_a : 0, parts = parts_of_a + pieces(across, right.panels_together());
                parallel_for(parts, 1, [&](std::int64_t begin, std::int64_t end) {
                    for (std::int64_t t = begin; t < end; ++t) {
                        const std::int64_t of_a = t * parts_of_a / parts;
                        if ((t + 1) * parts_of_a / parts > of_a) left.pack(Side::a, i, rows, at, deep, of_a, packed_a);
                        else right.pack(Side::b, j, cols, at, deep, t - of_a, packed_b);
                    }
                });
                Packed{packed_a, packed_b, rows, cols, deep, alpha, at == 0 ? beta : 1.0f, c.data + i * c.stride + j, c.stride}.multiply();
            }
        }
    }
}

}  // namespace atelier::ops::cpu
