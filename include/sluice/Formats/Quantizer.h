// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Turns a row of weights into the integers, scales and zero points that stand for it.
//
// The objective is the sum of squared errors of each group, with the scale as it will be stored, in
// f16. For a scale (and zero point) the best integers are the nearest ones, so the search is over
// scales alone.
//
// clang-format off
//
//   minimized, per group:   sum over its weights x of (x - scale * (q - zero))^2, where
//                           q - zero = clamp(round(x / scale), qMin - zero, qMax - zero)
//   fitted scale:           sum(x * (q - zero)) / sum((q - zero)^2), the best for given integers
//
//   tried                   symmetric                        with zero points
//     scale                 max|x| / t, both signs           (most - least) / t
//     t, int4               6.375, 6.5625 ... 9.1875         12.75, 13 ... 16.5
//     t, int8               124, 124.375 ... 129.625         250, 250.5 ... 257.5
//     then t grows by       5% (int4), 4% (int8)             5% (int4), 4% (int8)
//     while scale >         f * root mean square of x        f * standard deviation of x
//     and t <               512 (int4), 8192 (int8)          896 (int4), 16256 (int8)
//     checked after         every 8 values of t              every 16 values of t
//     zero                  0                                z - 1, z, z + 1, within qMin ... qMax
//
//   f = 0.25 (int4), 0.02 (int8). most = max(x, 0), least = min(x, 0). No scale is above 65504, and
//   the standard deviation counts as at least 1% of the root mean square. z puts the middle of the
//   range least ... most in the middle of the integers. Symmetric formats try both signs because
//   -8 ... 7 has one more integer on one side. t grows for long groups and heavy tails only.
//
// clang-format on
//
// 1. Each scale of the table is scored with its integers and their fitted scale. Scales below the
//    one that just covers the group's range clip its largest weights, which often pays.
// 2. The winner's fitted scale is rounded to f16. That f16 and its neighbours, 16 candidates in
//    all, are scored as they are, each with its own integers. This repeats around a better scale
//    outside of the candidates, up to 4 rounds in all.
//
// The result does not depend on the machine: the same bytes with and without vector units.

#ifndef SLUICE_FORMATS_QUANTIZER_H
#define SLUICE_FORMATS_QUANTIZER_H

#include "sluice/Formats/Encoding.h"

#include "llvm/Support/Error.h"

namespace sluice::formats {

/// Quantizes one row of K weights to a plain integer format (Encoding::isPlainInteger).
///
/// `q` has K entries, `scales` (f16 bits) format.groupsPerRow(K), and `zeros` as many if the format
/// has zero points, else none. K may be any positive number; the last group may be short.
///
/// Special cases: a group of zeros, or of weights so small that none reaches half of the smallest
/// f16 (2^-25), becomes q = 0, scale = 0, zero = 0. Any other group has a scale that is not 0.
///
/// Errors, one line that starts with "row R, column C: ": a weight that is NaN or infinite, or
/// greater in magnitude than 65504 * qMax (no f16 scale reaches it). `rowIndex` is only used for
/// the message.
llvm::Error quantizeRow(llvm::ArrayRef<float> row, Encoding format, llvm::MutableArrayRef<int8_t> q,
                        llvm::MutableArrayRef<uint32_t> scales, llvm::MutableArrayRef<int8_t> zeros,
                        int64_t rowIndex = 0);

/// The same for any integer format: writes all numbers of an encoded row. Formats that are not
/// plain are quantized unit by unit (lib/Formats/QuantizeUnits.cpp says how); with scales that
/// are fields K is a multiple of 256. Errors also: a weight so great that the format has no scale
/// for it.
llvm::Error quantizeRow(llvm::ArrayRef<float> row, const Encoding &format, RowNumbers to,
                        int64_t rowIndex = 0);

/// The values that a row stands for, of any integer format: float(integer - zero) * scale + offset,
/// in float32.
void dequantizeRow(const Encoding &format, const EncodedRow &row,
                   llvm::MutableArrayRef<float> values);

/// Converts one row to f16 or bf16 (`bits`, one entry per column), to nearest even.
/// Errors as above: a NaN or infinite weight, or one that rounds to infinity.
llvm::Error convertRow(llvm::ArrayRef<float> row, Encoding::Element element,
                       llvm::MutableArrayRef<uint16_t> bits, int64_t rowIndex = 0);

/// An error, in the same words, if a weight is NaN or infinite: for rows that are kept in f32.
llvm::Error checkFinite(llvm::ArrayRef<float> row, int64_t rowIndex = 0);

/// An error, in the same words, if an element is NaN, or a scale or offset of a row of `columns`
/// columns is NaN or infinite, then with the first column of its group: for numbers that are kept
/// as a file has them.
llvm::Error checkFiniteNumbers(const Encoding &format, const EncodedRow &row, int64_t columns,
                               int64_t rowIndex = 0);

} // namespace sluice::formats

#endif // SLUICE_FORMATS_QUANTIZER_H
