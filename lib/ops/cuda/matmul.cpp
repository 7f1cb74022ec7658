#include "ops/matmul.hpp"

#include <map>

#include "ops/cuda/context.hpp"
#include "ops/cuda/device_memory.hpp"
#include "ops/cuda/functions.hpp"
#include "ops/cuda/products.hpp"

namespace atelier::ops::cuda {
namespace {

ProductPrecision precision = ProductPrecision::bf16;

struct Copy {
    std::int64_t count;
    std::uint16_t* bits;
};
/// By the address of the first weight.
std::map<const float*, Copy>& copies() {
    static std::map<const float*, Copy> all;
    return all;
}

std::map<const float*, Copy>::iterator covering(const float* weight) {
    auto after = copies().upper_bound(weight);
    if (after == copies().begin()) return copies().end();
    --after;
    return weight < after->first + after->second.count ? after : copies().end();
}

// Rows of tensor-core products start at multiples of 16 bytes.
constexpr std::int64_t bf16_alignment = 8;

/// A side of a product as the library takes it.
struct Side {
    const void* data;
    std::int64_t stride;
};

bool fits_bf16(const MatrixView& view) { return view.stride % bf16_alignment == 0; }

std::int64_t padded(std::int64_t columns) { return (columns + bf16_alignment - 1) / bf16_alignment * bf16_alignment; }

/// The matrix in bf16 where a product can take what is there: its own numbers, or the kept copy. Else null.
const std::uint16_t* kept_bf16(const MatrixView& view) {
    if (view.bf16 == nullptr) return fits_bf16(view) ? bf16_copy_of(view.data) : nullptr;
    ATELIER_CHECK(fits_bf16(view), "rows of {} numbers in bf16 are no operand", view.stride);
    return view.bf16;
}

/// Numbers that the matrix takes where it has to be rounded first.
std::int64_t room_of(const MatrixView& view) { return kept_bf16(view) != nullptr ? 0 : view.rows * padded(view.cols); }

/// The matrix in bf16: what is there, else rounded into `to`.
Side in_bf16(const MatrixView& view, std::uint16_t* to) {
    if (const std::uint16_t* kept = kept_bf16(view)) return {kept, view.stride};
    copy_columns(view.rows, view.cols, view.data, view.stride, to, padded(view.cols));
    return {to, padded(view.cols)};
}

void product(bool bf16, bool ta, bool tb, float alpha, const MatrixView& a, const MatrixView& b, float beta, const MatrixView& c,
             const float* bias) {
    const std::int64_t m = ta ? a.cols : a.rows, k = ta ? a.rows : a.cols, n = tb ? b.rows : b.cols;
    ATELIER_CHECK((tb ? b.cols : b.rows) == k && c.rows == m && c.cols == n, "matmul of [{}, {}]{} and [{}, {}]{} into [{}, {}]", a.rows,
                  a.cols, ta ? "^T" : "", b.rows, b.cols, tb ? "^T" : "", c.rows, c.cols);
    if (m == 0 || n == 0) return;
    const bool rounds_result = c.bf16 != nullptr;
    ATELIER_CHECK(!rounds_result || (bf16 && fits_bf16(c) && bias == nullptr && beta == 0.0f),
                  "a result in bf16 of a product in fp32, with a bias, added to what is there, or of rows of {} numbers", c.stride);
    Side x{a.data, a.stride}, y{b.data, b.stride};
    ATELIER_CHECK(bf16 || (a.bf16 == nullptr && b.bf16 == nullptr), "an operand is there in bf16 alone, products take fp32");
    if (bf16) {
        const std::int64_t room = room_of(a);
        auto* bits = static_cast<std::uint16_t*>(scratch(static_cast<std::size_t>(room + room_of(b)) * sizeof(std::uint16_t)));
        x = in_bf16(a, bits);
        y = in_bf16(b, bits + room);
    }
    // Row-major C = op(A) op(B) is column-major C^T = op(B)^T op(A)^T on the same memory.
    run_product({.transpose_a = tb, .transpose_b = ta, .bf16 = bf16, .rounds_result = rounds_result, .m = n, .n = m, .k = k, .lda = y.stride, .ldb = x.stride,
                 .ldd = c.stride, .has_bias = bias != nullptr},
                alpha, y.data, x.data, beta, rounds_result ? static_cast<void*>(c.bf16) : c.data, bias);
}

/// Whether products round their operands.
bool rounds() { return precision == ProductPrecision::bf16; }

MatrixView view(const Tensor& t) {
    ATELIER_CHECK(t.shape().rank() == 2, "a matrix was expected, found shape {}", t.shape().str());
    if (t.dtype() == DType::bf16) return {nullptr, t.size(0), t.size(1), t.size(1), static_cast<std::uint16_t*>(t.raw())};
    return {t.f32(), t.size(0), t.size(1), t.size(1)};
}

}  // namespace

void set_product_precision(ProductPrecision to) { precision = to; }
ProductPrecision product_precision() { return precision; }

void keep_bf16_copy(const float* weights, std::int64_t n) {
    if (const auto found = copies().find(weights); found != copies().end()) {
        if (found->second.count == n) return refresh_bf16_copy(weights);
        memory().release(found->second.bits);
        copies().erase(found);
    }
    if (n == 0) return;
    copies()[weights] = {n, static_cast<std::uint16_t*>(memory().allocate(static_cast<std::size_t>(n) * sizeof(std::uint16_t)))};
    refresh_bf16_copy(weights);
}

void refresh_bf16_copy(const float* weights) {
    const auto found = covering(weights);
    if (found == copies().end()) return;
    const std::int64_t n = found->second.count;
    copy_columns(1, n, found->first, n, found->second.bits, n);
}

std::uint16_t* bf16_copy_of(const float* weight) {
    const auto found = covering(weight);
    return found == copies().end() ? nullptr : found->second.bits + (weight - found->first);
}

void matmul(bool ta, bool tb, float alpha, const MatrixView& a, const MatrixView& b, float beta, const MatrixView& c) {
    product(rounds(), ta, tb, alpha, a, b, beta, c, nullptr);
}

void matmul_in_fp32(bool ta, bool tb, float alpha, const MatrixView& a, const MatrixView& b, float beta, const MatrixView& c) {
    product(false, ta, tb, alpha, a, b, beta, c, nullptr);
}

void linear(const Tensor& x, const Tensor& weight, const Tensor& bias, const Tensor& y) {
    product(rounds(), false, true, 1.0f, view(x), view(weight), 0.0f, view(y), bias.empty() ? nullptr : bias.f32());
}

void linear_backward_input(const Tensor& dy, const Tensor& weight, const Tensor& dx, bool accumulate) {
    product(rounds(), false, false, 1.0f, view(dy), view(weight), accumulate ? 1.0f : 0.0f, view(dx), nullptr);
}

void linear_backward_weight(const Tensor& dy, const Tensor& x, const Tensor& dweight, const Tensor& dbias) {
    product(rounds(), true, false, 1.0f, view(dy), view(x), 1.0f, view(dweight), nullptr);
    if (!dbias.empty()) add_row_sums(dy.size(0), dy.size(1), dy.f32(), dbias.f32());
}

}  // namespace atelier::ops::cuda
