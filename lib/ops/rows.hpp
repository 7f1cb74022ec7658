#pragma once

#include <cstdint>

#include "ops/dispatch.hpp"
#include "ops/operand.hpp"

// Rows of numbers from one place to another.
namespace atelier::ops {

namespace cpu {
/// n zeros.
void fill_zero(float* out, std::int64_t n);
/// out = in, and out += in: rows of `width` numbers, in_stride and out_stride apart; widened or rounded where only one of them is bf16.
void copy_columns(std::int64_t rows, std::int64_t width, Operand in, std::int64_t in_stride, OperandOut out, std::int64_t out_stride);
void add_columns(std::int64_t rows, std::int64_t width, Operand in, std::int64_t in_stride, float* out, std::int64_t out_stride);
/// Row i of out is row source[i] of a, or, where source[i] is negative, row -1 - source[i] of b; all rows contiguous.
void gather_rows(std::int64_t rows, std::int64_t width, const std::int32_t* source, const float* a, const float* b, float* out);
/// The way back: row i of in is written to where gather_rows took it from. No row is named twice.
void scatter_rows(std::int64_t rows, std::int64_t width, const std::int32_t* source, const float* in, float* a, float* b);
/// Row target[i] of out += row i of in; all rows contiguous. No row is named twice.
void add_to_rows(std::int64_t rows, std::int64_t width, const std::int32_t* target, const float* in, float* out);
/// Row i of out += the sum of share[i, k] times row source[i, k] of table, k = 0 … 3 in order; source and share [rows, 4], all rows
/// contiguous.
void add_blend_of_rows(std::int64_t rows, std::int64_t width, const std::int32_t* source, const float* share, const float* table, float* out);
}  // namespace cpu

ATELIER_OP(fill_zero);
ATELIER_OP(copy_columns);
ATELIER_OP(add_columns);
ATELIER_OP(gather_rows);
ATELIER_OP(scatter_rows);
ATELIER_OP(add_to_rows);
ATELIER_OP(add_blend_of_rows);

}  // namespace atelier::ops
