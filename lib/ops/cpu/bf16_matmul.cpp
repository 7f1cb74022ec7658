#include "ops/cpu/bf16_matmul.hpp"

#include <algorithm>
#include <map>
#include <tuple>
#include <unordered_map>
#include <vector>

#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

#include "core/convert.hpp"
#include "core/error.hpp"
#include "core/parallel.hpp"
#include "ops/cpu/onednn.hpp"

namespace atelier::ops::cpu {
namespace {

using Bf16 = std::uint16_t;  ///< the upper half of an fp32 number

// Output tiles: a bf16 tile of B (columns x depth) serves all rows of a task, `rows` of them at a time. Of 64 to 128 rows and some hundred
// columns oneDNN's products are fastest (AMX, 192 to 4096 deep), and tile, operands and sums stay in a core's second-level cache.
constexpr std::int64_t rows = 128, rows_of_task = 256, numbers_of_b = 1 << 18;
// Longer sums are added in pieces: oneDNN would cut them at places that depend on the number of rows.
constexpr std::int64_t depth = 1024;
// Rows of a tile of A^T B, a gradient of weights.
constexpr std::int64_t few_columns_of_a = 96, many_columns_of_a = 192;
/// By the shape of B alone: whole, where it fits, so that sums can go straight to where C lies.
std::int64_t columns_of(std::int64_t n, std::int64_t k) { return std::min(n, std::max<std::int64_t>(numbers_of_b / std::min(k, depth) / 64 * 64, 64)); }
/// What a tile of few rows is filled up to, with zeros: below, oneDNN's kernels add up a row in another order (in some shapes from 16 rows
/// down), and the same row must have the same bits in any company.
std::int64_t filled_rows(std::int64_t n) { return n > 64 ? rows : n > 32 ? 64 : 32; }
/// Columns and depth of a tile are filled up too: prompts have many lengths, and each shape of a product is code of its own.
std::int64_t filled(std::int64_t n) { return (n + 31) / 32 * 32; }

/// A piece of a matrix, rounded, as tall x wide numbers one row behind the other; what the piece lacks is 0.
void round_into(const float* from, std::int64_t stride, std::int64_t height, std::int64_t width, Bf16* to, std::int64_t tall, std::int64_t wide) {
    std::fill(to + height * wide, to + tall * wide, Bf16{0});
    for (std::int64_t i = 0; i < height; ++i) {
        const float* row = from + i * stride;
        Bf16* out = to + i * wide;
        std::fill(out + width, out + wide, Bf16{0});
        std::int64_t j = 0;
#ifdef __AVX512BF16__
        for (; j + 32 <= width; j += 32)
            _mm512_storeu_si512(out + j, reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(_mm512_loadu_ps(row + j + 16), _mm512_loadu_ps(row + j))));
#endif
        for (; j < width; ++j) out[j] = f32_to_bf16(row[j]);
    }
}

/// One product of dense operands into a dense fp32 result.
class Product {
  public:
    Product(bool ta, bool tb, std::int64_t m, std::int64_t n, std::int64_t k) {
        using Tag = dnnl::memory::format_tag;
        const auto operand = [](const dnnl::memory::dims& dims, bool transposed) {
            return dnnl::memory::desc(dims, dnnl::memory::data_type::bf16, transposed ? Tag::ba : Tag::ab);
        };
        const auto a = operand({m, k}, ta), b = operand({k, n}, tb);
        const dnnl::memory::desc c({m, n}, dnnl::memory::data_type::f32, Tag::ab);
#if DNNL_VERSION_MAJOR >= 3
        const dnnl::matmul::primitive_desc description(engine(), a, b, c);
#else
        const dnnl::matmul::primitive_desc description(dnnl::matmul::desc(a, b, c), engine());
#endif
        primitive_ = dnnl::matmul(description);
        for (const auto& [which, layout] : {std::pair{DNNL_ARG_SRC, a}, {DNNL_ARG_WEIGHTS, b}, {DNNL_ARG_DST, c}})
            operands_.emplace(which, dnnl::memory(layout, engine(), nullptr));
    }
    void operator()(const Bf16* a, const Bf16* b, float* c) {
        operands_.at(DNNL_ARG_SRC).set_data_handle(const_cast<Bf16*>(a));
        operands_.at(DNNL_ARG_WEIGHTS).set_data_handle(const_cast<Bf16*>(b));
        operands_.at(DNNL_ARG_DST).set_data_handle(c);
        primitive_.execute(stream(), operands_);
    }

  private:
    dnnl::matmul primitive_;
    std::unordered_map<int, dnnl::memory> operands_;
};

/// The calling thread's product of a shape: made once, as long as there are no more shapes than a run's few lengths of prompts give.
Product& product(bool ta, bool tb, std::int64_t m, std::int64_t n, std::int64_t k) {
    using Shape = std::tuple<bool, bool, std::int64_t, std::int64_t, std::int64_t>;
    thread_local std::map<Shape, Product> made;
    const Shape shape{ta, tb, m, n, k};
    auto found = made.find(shape);
    if (found == made.end()) {
        use_one_thread();
        if (made.size() == 512) made.clear();
        found = made.try_emplace(shape, ta, tb, m, n, k).first;
    }
    return found->second;
}

/// Buffers of the calling thread; they grow to the largest tile's once.
struct Room {
    std::vector<Bf16> a, b;
    std::vector<float> c;
    template <typename T>
    static T* of(std::vector<T>& v, std::int64_t n) {
        if (static_cast<std::int64_t>(v.size()) < n) v.resize(static_cast<std::size_t>(n));
        return v.data();
    }
};
Room& room() {
    thread_local Room instance;
    return instance;
}

/// C = alpha P + beta C for a tile, P with rows of filled(width).
void combine(const float* p, std::int64_t height, std::int64_t width, float alpha, float beta, float* c, std::int64_t stride) {
    for (std::int64_t i = 0; i < height; ++i, p += filled(width), c += stride) {
        if (beta == 0.0f)
            for (std::int64_t j = 0; j < width; ++j) c[j] = alpha * p[j];
        else
            for (std::int64_t j = 0; j < width; ++j) c[j] = alpha * p[j] + beta * c[j];
    }
}

std::int64_t pieces(std::int64_t n, std::int64_t size) { return (n + size - 1) / size; }

/// Rows [at, at + deep) of op(B) and a tile of its columns, as B lies in memory.
void round_b(bool tb, const MatrixView& b, std::int64_t column, std::int64_t wide, std::int64_t at, std::int64_t deep, Bf16* to) {
    if (tb)
        round_into(b.data + column * b.stride + at, b.stride, wide, deep, to, filled(wide), filled(deep));
    else
        round_into(b.data + at * b.stride + column, b.stride, deep, wide, to, filled(deep), filled(wide));
}

/// [first, first + size) rows of a task times one tile of columns.
void rows_task(bool tb, float alpha, const MatrixView& a, const MatrixView& b, float beta, const MatrixView& c, std::int64_t first,
               std::int64_t size, std::int64_t column, std::int64_t wide) {
    const std::int64_t k = a.cols;
    Room& r = room();
    Bf16 *from = Room::of(r.a, rows * depth), *by = Room::of(r.b, depth * filled(wide));
    float* sums = Room::of(r.c, rows * filled(wide));
    for (std::int64_t at = 0; at < k; at += depth) {
        const std::int64_t deep = std::min(depth, k - at);
        round_b(tb, b, column, wide, at, deep, by);
        for (std::int64_t i = first; i < first + size; i += rows) {
            const std::int64_t here = std::min(rows, first + size - i), tall = filled_rows(here);
            round_into(a.data + i * a.stride + at, a.stride, here, deep, from, tall, filled(deep));
            float* to = c.data + i * c.stride + column;
            const bool in_place = here == tall && c.stride == wide && wide == filled(wide) && alpha == 1.0f && beta == 0.0f && k <= depth;
            product(false, tb, tall, filled(wide), filled(deep))(from, by, in_place ? to : sums);
            if (!in_place) combine(sums, here, wide, alpha, at == 0 ? beta : 1.0f, to, c.stride);
        }
    }
}

/// A tile of A^T B, its depth in pieces that are added in their order.
void transposed_a_task(bool tb, float alpha, const MatrixView& a, const MatrixView& b, float beta, const MatrixView& c, std::int64_t first,
                       std::int64_t size, std::int64_t column, std::int64_t wide) {
    const std::int64_t k = a.rows;
    Room& r = room();
    Bf16 *from = Room::of(r.a, depth * filled(size)), *by = Room::of(r.b, depth * filled(wide));
    float *sums = Room::of(r.c, filled(size) * filled(wide)), *to = c.data + first * c.stride + column;
    for (std::int64_t at = 0; at < k; at += depth) {
        const std::int64_t deep = std::min(depth, k - at);
        round_into(a.data + at * a.stride + first, a.stride, deep, size, from, filled(deep), filled(size));
        round_b(tb, b, column, wide, at, deep, by);
        product(true, tb, filled(size), filled(wide), filled(deep))(from, by, sums);
        combine(sums, size, wide, alpha, at == 0 ? beta : 1.0f, to, c.stride);
    }
}

}  // namespace

bool has_bf16_products() {
    static const bool instance = (dnnl_get_effective_cpu_isa() & dnnl_cpu_isa_avx512_core_bf16) == dnnl_cpu_isa_avx512_core_bf16;
    return instance;
}

std::size_t bf16_product_bytes() { return (std::size_t{4} + 2 * static_cast<std::size_t>(threads())) << 20; }

void bf16_matmul(bool ta, bool tb, float alpha, const MatrixView& a, const MatrixView& b, float beta, const MatrixView& c) {
    const std::int64_t tall = ta ? (c.rows >= 4 * many_columns_of_a ? many_columns_of_a : few_columns_of_a) : rows_of_task;
    const std::int64_t columns = columns_of(c.cols, ta ? a.rows : a.cols), across = pieces(c.cols, columns), count = pieces(c.rows, tall) * across;
    try {
        parallel_for(count, 1, [&](std::int64_t begin, std::int64_t end) {
            for (std::int64_t t = begin; t < end; ++t) {
                const std::int64_t first = t / across * tall, column = t % across * columns;
                (ta ? transposed_a_task : rows_task)(tb, alpha, a, b, beta, c, first, std::min(tall, c.rows - first), column,
                                                     std::min(columns, c.cols - column));
            }
        });
    } catch (const dnnl::error& e) {
        ATELIER_FAIL(ErrorKind::internal, "bf16 product {} x {}: {}", c.rows, c.cols, e.what());
    }
}

}  // namespace atelier::ops::cpu
