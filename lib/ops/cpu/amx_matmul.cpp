#include "ops/cpu/amx_matmul.hpp"

#include <algorithm>
#include <limits>

#include "core/arena.hpp"
#include "core/parallel.hpp"
#include "ops/cpu/amx_block.hpp"

namespace atelier::ops::cpu {
namespace {

// How deep a panel is at most (bf16 numbers, of all parts).
constexpr std::int64_t longest_depth = 2048;
// Of the panels that a thread multiplies alone: those that stay in its second-level cache, and those that go by a few at a time.
constexpr std::int64_t kept_numbers = std::int64_t{1} << 19, passing_numbers = std::int64_t{1} << 18;
// Where both sides are larger, what all threads share of A: all rows that are likely to come.
constexpr std::int64_t shared_numbers = std::int64_t{1} << 21;
// Panels that are packed together where rows of memory lie across them.
constexpr std::int64_t panels_across = 8;

Parts parts_of(ProductPrecision precision) { return precision == ProductPrecision::bf16 ? Parts::rounded : Parts::exact; }

std::int64_t pieces(std::int64_t n, std::int64_t size) { return (n + size - 1) / size; }

/// Equal pieces of whole steps, by the depth alone.
std::int64_t depth_of_piece(std::int64_t depth, Parts parts) {
    return pieces(pieces(depth, pieces(depth, longest_depth / count(parts))), panel_step) * panel_step;
}

/// Panels of one side: `size` rows of op(A), or columns of op(B), from `first` on.
struct Range {
    std::int64_t first, size;
    std::int64_t panels() const { return pieces(size, panel_side); }
    std::int64_t end() const { return first + size; }
    /// The i-th of `count` parts of whole panels.
    Range part(std::int64_t i, std::int64_t count) const {
        const auto begin = [&](std::int64_t t) { return std::min(panels() * t / count * panel_side, size); };
        return {first + begin(i), begin(i + 1) - begin(i)};
    }
};

/// One side of a product over a piece of its depth: op(A) by rows, or op(B) by columns.
struct Operand {
    Side side;
    Parts parts;
    const float* data;  ///< where the piece begins
    std::int64_t stride;
    bool is_deep;  ///< a row's (column's) numbers lie side by side
    std::int64_t depth;
    std::int64_t numbers() const { return panel_numbers(depth, parts); }  ///< of a panel
    std::int64_t panels_together() const { return is_deep ? 1 : panels_across; }
    std::int64_t tasks(const Range& range) const { return pieces(range.panels(), panels_together()); }
    /// The t-th of `tasks`.
    void pack(const Range& range, std::int64_t t, Bf16* to) const {
        const std::int64_t skipped = t * panels_together(), begin = range.first + skipped * panel_side;
        const std::int64_t count = std::min(panels_together() * panel_side, range.end() - begin);
        pack_panels(side, parts, {data + begin * (is_deep ? stride : 1), stride, count, depth, is_deep}, to + skipped * numbers());
    }
    void pack(const Range& range, Bf16* to) const {
        for (std::int64_t t = 0; t < tasks(range); ++t) pack(range, t, to);
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

/// A product over a piece of its depth.
struct Product {
    Operand a, b;
    float alpha, beta;
    float* c;
    std::int64_t stride;

    std::int64_t numbers() const { return a.numbers(); }
    /// Rows and columns of at most a panel.
    void block(const Range& rows, const Bf16* packed_a, const Range& cols, const Bf16* packed_b) const {
        float* to = c + rows.first * stride + cols.first;
        const auto multiply = [&](bool adds, float* out, std::int64_t out_stride) {
            multiply_block(a.parts, packed_a, rows.size, packed_b, cols.size, steps_of(a.depth), adds, out, out_stride);
        };
        // Sums begin with what is there wherever an element stands, in C itself or beside it.
        const bool adds = alpha == 1.0f && beta == 1.0f, is_sum = adds || (alpha == 1.0f && beta == 0.0f);
        if (is_sum && rows.size % tile_side == 0 && cols.size % tile_side == 0) return multiply(adds, to, stride);
        alignas(64) float sums[panel_side * panel_side];
        if (adds) {
            std::fill_n(sums, panel_side * panel_side, 0.0f);
            for (std::int64_t row = 0; row < rows.size; ++row) std::copy_n(to + row * stride, cols.size, sums + row * panel_side);
        }
        multiply(adds, sums, panel_side);
        combine(sums, rows.size, cols.size, alpha, adds ? 0.0f : beta, to, stride);
    }
    /// A panel of A after the other, each for all panels of B.
    void blocks(const Range& rows, const Bf16* packed_a, const Range& cols, const Bf16* packed_b) const {
        for (std::int64_t i = 0; i < rows.panels(); ++i)
            for (std::int64_t j = 0; j < cols.panels(); ++j)
                block(rows.part(i, rows.panels()), packed_a + i * numbers(), cols.part(j, cols.panels()), packed_b + j * numbers());
    }
};

Bf16* room(Workspace& workspace, std::int64_t panels, std::int64_t numbers) {
    return static_cast<Bf16*>(workspace.build([&](Arena& arena) { return arena.take(DType::bf16, {panels, numbers}); }).raw());
}

/// Which of the rooms of `threads` free threads is the calling one's.
std::int64_t own_room(std::int64_t threads) { return threads == 1 ? 0 : thread_index(); }

/// How many parts rows and columns are cut into, a part of each for a thread.
struct Grid {
    std::int64_t down, across;
    std::int64_t count() const { return down * across; }
};
/// The least work of a thread. What is cut across leaves the cores that have its rows: panels of A come from other cores' caches, blocks of C go there.
Grid grid_of(std::int64_t rows, std::int64_t cols, Parts parts) {
    // In blocks, a product of two panels being one.
    const double packing = parts == Parts::exact ? 2 : 4, move_of_panel = 2, move_of_block = 0.25;
    Grid best{1, 1};
    double least = std::numeric_limits<double>::max();
    const std::int64_t threads = free_threads();
    for (std::int64_t down = 1; down <= std::min(threads, rows); ++down) {
        const Grid grid{down, std::min(threads / down, cols)};
        const auto tall = static_cast<double>(pieces(rows, grid.down)), wide = static_cast<double>(pieces(cols, grid.across));
        const double moved = 1.0 - 1.0 / static_cast<double>(grid.across);
        const double work = tall * wide + packing * (tall + wide) + moved * tall * (move_of_panel + move_of_block * wide);
        if (work < least) best = grid, least = work;
    }
    return best;
}

/// By each thread alone: one side's panels of its part are kept, the other's packed a few at a time.
void multiply_apart(const Product& product, const Range& rows, const Range& cols, const Grid& grid) {
    thread_local Workspace workspace{"packed rows and columns"};  // all threads' room; grows to the largest product's once
    const std::int64_t numbers = product.numbers(), tall = pieces(rows.panels(), grid.down), wide = pieces(cols.panels(), grid.across);
    const bool keeps_b = wide * numbers <= kept_numbers;
    const Operand &stays = keeps_b ? product.b : product.a, &passes = keeps_b ? product.a : product.b;
    const std::int64_t kept = keeps_b ? wide : tall, passing = keeps_b ? tall : wide;
    const std::int64_t groups = pieces(passing, std::max<std::int64_t>(passing_numbers / numbers, 1)), panels = kept + pieces(passing, groups);
    const std::int64_t threads = free_threads();
    Bf16* packed = room(workspace, threads * panels, numbers);
    parallel_for(grid.count(), 1, [&](std::int64_t begin, std::int64_t end) {
        const BlockScope scope;
        Bf16 *of_kept = packed + own_room(threads) * panels * numbers, *of_group = of_kept + kept * numbers;
        for (std::int64_t t = begin; t < end; ++t) {
            const Range here = rows.part(t / grid.across, grid.down), there = cols.part(t % grid.across, grid.across);
            stays.pack(keeps_b ? there : here, of_kept);
            for (std::int64_t g = 0; g < groups; ++g) {
                const Range group = (keeps_b ? here : there).part(g, groups);
                passes.pack(group, of_group);
                if (keeps_b) product.blocks(group, of_group, there, of_kept);
                else product.blocks(here, of_kept, group, of_group);
            }
        }
    });
}

/// Where neither side stays in a cache: panels of A are packed by all threads for all, those of B by who multiplies them, a part of the columns at a time.
void multiply_together(const Product& product, const Range& rows, const Range& cols) {
    thread_local Workspace of_a{"packed rows"}, of_b{"packed columns"};  // all threads' room; grow to the largest product's once
    const std::int64_t numbers = product.numbers(), regions = pieces(rows.panels(), std::max<std::int64_t>(shared_numbers / numbers, 1)), threads = free_threads();
    const std::int64_t groups = std::min(pieces(pieces(cols.panels() * numbers, kept_numbers), threads) * threads, cols.panels()), panels = pieces(cols.panels(), groups);
    Bf16 *packed_a = room(of_a, pieces(rows.panels(), regions), numbers), *packed_b = room(of_b, threads * panels, numbers);
    for (std::int64_t i = 0; i < regions; ++i) {
        const Range here = rows.part(i, regions);
        parallel_for(product.a.tasks(here), 1, [&](std::int64_t begin, std::int64_t end) {
            for (std::int64_t t = begin; t < end; ++t) product.a.pack(here, t, packed_a);
        });
        parallel_for(groups, 1, [&](std::int64_t begin, std::int64_t end) {
            const BlockScope scope;
            Bf16* own = packed_b + own_room(threads) * panels * numbers;
            for (std::int64_t g = begin; g < end; ++g) {
                const Range group = cols.part(g, groups);
                product.b.pack(group, own);
                product.blocks(here, packed_a, group, own);
            }
        });
    }
}

}  // namespace

std::size_t packed_operand_bytes(std::int64_t width, ProductPrecision precision) {
    if (!has_amx()) return 0;
    const std::int64_t parts = count(parts_of(precision)), weights = 6 * width * width * parts, rows = 1024 * width * parts;
    const std::int64_t shared = weights > kept_numbers * threads() ? std::min(shared_numbers, rows) : 0;
    return static_cast<std::size_t>(shared + threads() * std::min(kept_numbers + passing_numbers, 3 * rows)) * sizeof(Bf16);
}

void amx_matmul(bool ta, bool tb, float alpha, const MatrixView& a, const MatrixView& b, float beta, const MatrixView& c) {
    const Parts parts = parts_of(product_precision());
    const std::int64_t depth = ta ? a.rows : a.cols, longest = depth_of_piece(depth, parts);
    const Range rows{0, c.rows}, cols{0, c.cols};
    const Grid grid = grid_of(rows.panels(), cols.panels(), parts);
    const std::int64_t smaller = std::min(pieces(rows.panels(), grid.down), pieces(cols.panels(), grid.across));
    for (std::int64_t at = 0; at < depth; at += longest) {
        const std::int64_t deep = std::min(longest, depth - at);
        const Product product{{Side::a, parts, a.data + at * (ta ? a.stride : 1), a.stride, !ta, deep}, {Side::b, parts, b.data + at * (tb ? 1 : b.stride), b.stride, tb, deep},
                              alpha, at == 0 ? beta : 1.0f, c.data, c.stride};
        if (smaller * product.numbers() > kept_numbers) multiply_together(product, rows, cols);
        else multiply_apart(product, rows, cols, grid);
    }
}

}  // namespace atelier::ops::cpu
