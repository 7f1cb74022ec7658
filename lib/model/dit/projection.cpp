#include "model/dit/projection.hpp"

#include "ops/matmul.hpp"

namespace atelier::dit {
namespace {

using ops::MatrixView;

MatrixView view(const Tensor& t) { return {t.f32(), t.size(0), t.size(1), t.size(1)}; }

/// `count` column blocks of `cols` from block `first` on.
MatrixView columns(const Tensor& t, std::int64_t first, std::int64_t count, std::int64_t cols) {
    return {t.f32() + first * cols, t.size(0), count * cols, t.size(1)};
}

/// How many matrices from `at` on lie one behind the other.
std::size_t run_length(const nn::ParameterTable& table, std::span<const int> rows, std::size_t at) {
    std::size_t n = 1;
    while (at + n < rows.size() && table.offset(rows[at + n]) == table.offset(rows[at + n - 1]) +
                                                                     table.spec(rows[at + n - 1]).shape.elements())
        ++n;
    return n;
}

template <typename Function>
void each_run(const nn::ParameterStore& store, std::span<const int> rows, Function f) {
    for (std::size_t i = 0; i < rows.size();) {
        const std::size_t n = run_length(store.table(), rows, i);
        f(static_cast<std::int64_t>(i), static_cast<std::int64_t>(n), rows[i]);
        i += n;
    }
}

/// n matrices that follow one another, as one.
MatrixView stacked(const nn::ParameterStore& store, int first, std::int64_t n) {
    const Tensor t = store[first];
    return {t.f32(), n * t.size(0), t.size(1), t.size(1)};
}

}  // namespace

void project(const nn::ParameterStore& weights, std::span<const int> rows, const Tensor& x, const Tensor& y) {
    const std::int64_t cols = weights[rows[0]].size(0);
    each_run(weights, rows, [&](std::int64_t i, std::int64_t n, int row) {
        ops::matmul(false, true, 1.0f, view(x), stacked(weights, row, n), 0.0f, columns(y, i, n, cols));
    });
}

void project_backward(const nn::ParameterStore& weights, const nn::ParameterStore& gradients,
                      std::span<const int> rows, const Tensor& x, const Tensor& dy, const Tensor& dx) {
    const std::int64_t cols = weights[rows[0]].size(0);
    each_run(weights, rows, [&](std::int64_t i, std::int64_t n, int row) {
        ops::matmul(false, false, 1.0f, columns(dy, i, n, cols), stacked(weights, row, n), i == 0 ? 0.0f : 1.0f, view(dx));
        ops::matmul(true, false, 1.0f, columns(dy, i, n, cols), view(x), 1.0f, stacked(gradients, row, n));
    });
}

}  // namespace atelier::dit
