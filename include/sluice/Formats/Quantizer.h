// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// A weight's row to the integers, scales and zero points that stand for it.
//
// The objective is the sum of squared errors of each group, with the scale as it will be stored, in
// f16. For a scale (and zero point) the best integers are the nearest ones, so the search is over
// scales alone:
//
// 1. A grid of scales around the one that just covers the group's range, on both sides of it
// (clipping the largest
//    weights often pays), and, for long groups and heavy tails, on down to a fraction of the
//    group's deviation. Symmetric formats try both signs of the scale, since the range -8..7 has
//    one more step on one side. Formats with zero points try the three zero points nearest to the
//    centred one. Each candidate's integers are scored with the scale that fits them best, sum(x q)
//    / sum(q q).
// 2. The winner's fitted scale, rounded to f16, and its 16 neighbours in f16, each with its own
// integers; again from
//    the best of them while that brings anything.
//
// The result does not depend on the machine: the same bytes with and without vector units.

#ifndef SLUICE_FORMATS_QUANTIZER_H
#define SLUICE_FORMATS_QUANTIZER_H

#include "sluice/Formats/Format.h"

#include "llvm/Support/Error.h"

namespace sluice::formats {

/// Quantizes one row of K weights to an integer format.
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
llvm::Error quantizeRow(llvm::ArrayRef<float> row, Format format, llvm::MutableArrayRef<int8_t> q,
                        llvm::MutableArrayRef<uint16_t> scales, llvm::MutableArrayRef<int8_t> zeros,
                        int64_t rowIndex = 0);

/// The values that a quantized row stands for: float(q - zero) * float(scale), in float32.
void dequantizeRow(Format format, llvm::ArrayRef<int8_t> q, llvm::ArrayRef<uint16_t> scales,
                   llvm::ArrayRef<int8_t> zeros, llvm::MutableArrayRef<float> values);

/// Converts one row to f16 or bf16 (`bits`, one entry a column), to nearest even.
/// Errors as above: a NaN or infinite weight, or one that rounds to infinity.
llvm::Error convertRow(llvm::ArrayRef<float> row, Format::Element element,
                       llvm::MutableArrayRef<uint16_t> bits, int64_t rowIndex = 0);

/// An error, in the same words, if a weight is NaN or infinite: for rows that are kept in f32.
llvm::Error checkFinite(llvm::ArrayRef<float> row, int64_t rowIndex = 0);

/// An error, in the same words, if one of the f16 scales of a row of `columns` columns is NaN or
/// infinite, with the first column of its group: for blocks that are kept as a file has them.
llvm::Error checkFiniteScales(llvm::ArrayRef<uint16_t> scales, Format format, int64_t columns,
                              int64_t rowIndex = 0);

} // namespace sluice::formats

#endif // SLUICE_FORMATS_QUANTIZER_H
