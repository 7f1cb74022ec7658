#include "nn/linear.hpp"

#include <algorithm>

#include "nn/lora.hpp"
#include "ops/matmul.hpp"
#include "ops/precision.hpp"

namespace atelier::nn {
namespace {

using ops::MatrixView;

/// `rows` rows of `cols` numbers from number `first` of a matrix on, in its memory.
MatrixView part(const Tensor& t, std::int64_t first, std::int64_t rows, std::int64_t cols) {
    if (t.dtype() == DType::bf16) return {nullptr, rows, cols, t.size(1), static_cast<std::uint16_t*>(t.raw()) + first};
    return {t.f32() + first, rows, cols, t.size(1)};
}

MatrixView view(const Tensor& t) { return part(t, 0, t.size(0), t.size(1)); }

/// `count` column blocks of `cols` from block `first` on.
MatrixView columns(const Tensor& t, std::int64_t first, std::int64_t count, std::int64_t cols) {
    return part(t, first * cols, t.size(0), count * cols);
}

MatrixView rows_of(const MatrixView& m, std::int64_t first, std::int64_t count) {
    if (m.bf16 != nullptr) return {nullptr, count, m.cols, m.stride, m.bf16 + first * m.stride};
    return {m.data + first * m.stride, count, m.cols, m.stride};
}

/// What is bf16 already is as a product takes it.
void round_operand(const Tensor& t) {
    if (t.dtype() == DType::f32) ops::round_operand(t.size(0), t.size(1), t.size(1), t.f32());
}

/// How many matrices from `at` on lie one behind the other.
std::size_t run_length(const ParameterTable& table, std::span<const int> rows, std::size_t at) {
    std::size_t n = 1;
    while (at + n < rows.size() && table.offset(rows[at + n]) == table.offset(rows[at + n - 1]) +
                                                                     table.spec(rows[at + n - 1]).shape.elements())
        ++n;
    return n;
}

template <typename Function>
void each_run(const ParameterTable& table, std::span<const int> rows, Function f) {
    for (std::size_t i = 0; i < rows.size();) {
        const std::size_t n = run_length(table, rows, i);
        f(static_cast<std::int64_t>(i), static_cast<std::int64_t>(n), rows[i]);
        i += n;
    }
}

/// n matrices that follow one another, as one.
MatrixView stacked(const ParameterStore& store, int first, std::int64_t n) {
    const Tensor t = store[first];
    return part(t, 0, n * t.size(0), t.size(1));
}

/// Calls f(first row, rows, their share of down, of up) over the rows of an input of one matrix.
template <typename Function>
void each_chunk(const LoraStore& adapter, int row, std::int64_t rows, Function f) {
    for (std::int64_t at = 0; at < rows; at += adapter.chunk()) {
        const std::int64_t n = std::min(adapter.chunk(), rows - at);
        f(at, n, view(adapter.down(row, n)), view(adapter.up(row, n)));
    }
}

// The scopes below are of products on a CPU. A device's backend keeps one precision for the process, and rounds what it is given: x and dy are there
// in bf16 alone, and products in fp32, outside of the tensor cores, would take 2 rows rank (in + out) operations at some 50 TFLOP/s. Of 16,384 rows
// at rank 32 that is 0.17 ms for a matrix of 4096 x 4096, and 55 ms for the forward pass of Qwen-Image 2.1, which takes about 480 without.
void add_lora(const LoraStore& adapter, int row, const MatrixView& x, const MatrixView& y) {
    const ops::PrecisionScope fp32(ops::ProductPrecision::fp32);
    const MatrixView a = view(adapter.a(row)), b = view(adapter.b(row));
    each_chunk(adapter, row, x.rows, [&](std::int64_t at, std::int64_t n, const MatrixView& down, const MatrixView&) {
        ops::matmul(false, true, 1.0f, rows_of(x, at, n), a, 0.0f, down);
        ops::matmul(false, true, adapter.table().scale(row), down, b, 1.0f, rows_of(y, at, n));
    });
}

/// scale dy B, the gradient of the adapter's inner numbers, of a piece of rows.
void to_inner(const LoraStore& adapter, int row, const MatrixView& dy, const MatrixView& up) {
    ops::matmul(false, false, adapter.table().scale(row), dy, view(adapter.b(row)), 0.0f, up);
}

void lora_gradients(const LoraStore& adapter, const LoraStore& gradients, int row, const MatrixView& x, const MatrixView& dy) {
    const ops::PrecisionScope fp32(ops::ProductPrecision::fp32);
    each_chunk(adapter, row, x.rows, [&](std::int64_t at, std::int64_t n, const MatrixView& down, const MatrixView& up) {
        to_inner(adapter, row, rows_of(dy, at, n), up);
        ops::matmul(false, true, 1.0f, rows_of(x, at, n), view(adapter.a(row)), 0.0f, down);
        ops::matmul(true, false, 1.0f, up, rows_of(x, at, n), 1.0f, view(gradients.a(row)));
        ops::matmul(true, false, adapter.table().scale(row), rows_of(dy, at, n), down, 1.0f, view(gradients.b(row)));
    });
}

void add_lora_input_gradient(const LoraStore& adapter, int row, const MatrixView& dy, const MatrixView& dx) {
    const ops::PrecisionScope fp32(ops::ProductPrecision::fp32);
    each_chunk(adapter, row, dy.rows, [&](std::int64_t at, std::int64_t n, const MatrixView&, const MatrixView& up) {
        to_inner(adapter, row, rows_of(dy, at, n), up);
        ops::matmul(false, false, 1.0f, up, view(adapter.a(row)), 1.0f, rows_of(dx, at, n));
    });
}

}  // namespace

void project(const ParameterStore& weights, std::span<const int> rows, const Tensor& x, const Tensor& y) {
    const std::int64_t cols = weights.table().spec(rows[0]).shape[0];
    round_operand(x);
    each_run(weights.table(), rows, [&](std::int64_t i, std::int64_t n, int row) {
        ops::matmul(false, true, 1.0f, view(x), stacked(weights, row, n), 0.0f, columns(y, i, n, cols));
    });
    if (weights.lora() == nullptr) return;
    for (std::size_t i = 0; i < rows.size(); ++i)
        if (weights.lora()->adapts(rows[i]))
            add_lora(*weights.lora(), rows[i], view(x), columns(y, static_cast<std::int64_t>(i), 1, cols));
}

void project_backward(const ParameterStore& weights, const ParameterStore& gradients, std::span<const int> rows, const Tensor& x,
                      const Tensor& dy, const Tensor& dx, bool accumulate) {
    const std::int64_t cols = weights.table().spec(rows[0]).shape[0];
    const LoraStore* adapter = weights.lora();
    round_operand(x);  // where it is what the forward pass took, nothing changes
    round_operand(dy);
    const auto each_adapted = [&](auto f) {
        for (std::size_t i = 0; adapter != nullptr && i < rows.size(); ++i)
            if (adapter->adapts(rows[i])) f(rows[i], columns(dy, static_cast<std::int64_t>(i), 1, cols));
    };
    // All that reads x comes before dx is written.
    if (gradients.has_values())
        each_run(weights.table(), rows, [&](std::int64_t i, std::int64_t n, int row) {
            ops::matmul(true, false, 1.0f, columns(dy, i, n, cols), view(x), 1.0f, stacked(gradients, row, n));
        });
    if (gradients.lora() != nullptr)
        each_adapted([&](int row, const MatrixView& own) { lora_gradients(*adapter, *gradients.lora(), row, view(x), own); });
    if (dx.empty()) return;
    each_run(weights.table(), rows, [&](std::int64_t i, std::int64_t n, int row) {
        ops::matmul(false, false, 1.0f, columns(dy, i, n, cols), stacked(weights, row, n), i == 0 && !accumulate ? 0.0f : 1.0f, view(dx));
    });
    each_adapted([&](int row, const MatrixView& own) { add_lora_input_gradient(*adapter, row, own, view(dx)); });
}

float* vector_gradient(const ParameterStore& gradients, int row) {
    return gradients.has_values() ? gradients[row].f32() : gradients.lora()->discard();
}

}  // namespace atelier::nn
