#include "ops/rows.hpp"

#include <algorithm>

#include "core/parallel.hpp"

namespace atelier::ops::cpu {
namespace {

constexpr std::int64_t grain_rows = 16, grain = 1 << 15;

template <typename Row>
void each_row(std::int64_t rows, Row row) {
    parallel_for(rows, grain_rows, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t i = begin; i < end; ++i) row(i);
    });
}

}  // namespace

void fill_zero(float* out, std::int64_t n) {
    parallel_for(n, grain, [=](std::int64_t begin, std::int64_t end) { std::fill(out + begin, out + end, 0.0f); });
}

void copy_columns(std::int64_t rows, std::int64_t width, Operand in, std::int64_t in_stride, OperandOut out, std::int64_t out_stride) {
    each_row(rows, [=, from = in.f32(), to = out.f32()](std::int64_t i) { std::copy_n(from + i * in_stride, width, to + i * out_stride); });
}

void add_columns(std::int64_t rows, std::int64_t width, Operand in, std::int64_t in_stride, float* out, std::int64_t out_stride) {
    each_row(rows, [=, from = in.f32()](std::int64_t i) {
        const float* x = from + i * in_stride;
        float* y = out + i * out_stride;
        for (std::int64_t j = 0; j < width; ++j) y[j] += x[j];
    });
}

void gather_rows(std::int64_t rows, std::int64_t width, const std::int32_t* source, const float* a, const float* b, float* out) {
    each_row(rows, [=](std::int64_t i) {
        const std::int64_t from = source[i];
        std::copy_n(from >= 0 ? a + from * width : b + (-1 - from) * width, width, out + i * width);
    });
}

void scatter_rows(std::int64_t rows, std::int64_t width, const std::int32_t* source, const float* in, float* a, float* b) {
    each_row(rows, [=](std::int64_t i) {
        const std::int64_t to = source[i];
        std::copy_n(in + i * width, width, to >= 0 ? a + to * width : b + (-1 - to) * width);
    });
}

void add_to_rows(std::int64_t rows, std::int64_t width, const std::int32_t* target, const float* in, float* out) {
    each_row(rows, [=](std::int64_t i) {
        const float* x = in + i * width;
        float* y = out + target[i] * width;
        for (std::int64_t j = 0; j < width; ++j) y[j] += x[j];
    });
}

void add_blend_of_rows(std::int64_t rows, std::int64_t width, const std::int32_t* source, const float* share, const float* table, float* out) {
    each_row(rows, [=](std::int64_t i) {
        const std::int32_t* from = source + 4 * i;
        const float *s = share + 4 * i, *a = table + from[0] * width, *b = table + from[1] * width, *c = table + from[2] * width,
                    *d = table + from[3] * width;
        float* y = out + i * width;
        for (std::int64_t j = 0; j < width; ++j) y[j] += s[0] * a[j] + s[1] * b[j] + s[2] * c[j] + s[3] * d[j];
    });
}

}  // namespace atelier::ops::cpu
