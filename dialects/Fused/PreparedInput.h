// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Where the bytes of a prepared input lie (!fused.prepared).

#ifndef SLUICE_DIALECTS_FUSED_PREPAREDINPUT_H
#define SLUICE_DIALECTS_FUSED_PREPAREDINPUT_H

#include "dialects/Fused/Fused.h"

#include "sluice/Formats/Activations.h"

#include "llvm/Support/MathExtras.h"

namespace sluice::fused {

/// The sections of a prepared input, each an offset in bytes from its start, 64-byte aligned.
///
/// Of a host, with `padded` columns, a multiple of 32, zeros behind the last, G = ceil(padded /
/// 128) activation groups and B = ceil(tokens / 8) blocks of tokens. A kernel multiplies 16 rows of
/// weights by one number of each of several tokens at a time, so that the numbers of 8 tokens lie
/// side by side; the last group has the room of a whole one.
/// - `numbers`: scaled integer weights: int16 [G][B][64 pairs of columns][8 tokens][2], the 16-bit
///   fixed point numbers. All others: float32 [G][B][128 columns][8 tokens], rounded to what
///   products read.
/// - `scales`: scaled weights only: float32 [G][B][8], the activation scales.
/// - `sums`: weights with offsets only: float32 [G][sumsPerGroup][B][8], the sum of the numbers of
/// each
///   accumulation block times the activation scale.
struct PreparedShape {
  int64_t tokens = 0, columns = 0, padded = 0;
  /// Columns of an accumulation block; scaled weights only.
  int64_t accumulationColumns = 0;
  int64_t numbers = 0, scales = 0, sums = 0, bytes = 0;

  /// Tokens that lie side by side.
  static constexpr int64_t kTokenBlock = 8;

  int64_t blocks() const { return llvm::divideCeil(tokens, kTokenBlock); }
  int64_t groups() const { return llvm::divideCeil(padded, formats::activationGroup); }
  /// Accumulation blocks of an activation group.
  int64_t sumsPerGroup() const {
    return std::max<int64_t>(1, formats::activationGroup / accumulationColumns);
  }

  static PreparedShape get(PreparedType type);
};

/// Bytes of the whole prepared input.
inline int64_t preparedBytes(PreparedType type) { return PreparedShape::get(type).bytes; }

} // namespace sluice::fused

#endif // SLUICE_DIALECTS_FUSED_PREPAREDINPUT_H
