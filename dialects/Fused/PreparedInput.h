// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Where the bytes of a prepared input lie (!fused.prepared).

#ifndef SLUICE_DIALECTS_FUSED_PREPAREDINPUT_H
#define SLUICE_DIALECTS_FUSED_PREPAREDINPUT_H

#include "dialects/Fused/Fused.h"

namespace sluice::fused {

/// The sections of a prepared input, each an offset in bytes from its start, 64-byte aligned.
///
/// Of a host, with `padded` columns, a multiple of 32, zeros behind the last, and G = ceil(padded /
/// 128) activation groups:
/// - `numbers`: scaled integer weights: int16 [tokens][padded], the 16-bit fixed point numbers. All
///   others: float32 [tokens][padded], rounded to what products read.
/// - `scales`: scaled weights only: float32 [tokens][G].
/// - `sums`: weights with zero points or offsets only: int32 [tokens][G][sumsPerGroup], the sums of
///   the numbers of each accumulation block.
/// - `biases`: weights with biased pairs only: int32 as `sums`.
struct PreparedShape {
  int64_t tokens = 0, columns = 0, padded = 0;
  /// Columns of an accumulation block; scaled weights only.
  int64_t accumulationColumns = 0;
  int64_t numbers = 0, scales = 0, sums = 0, biases = 0, bytes = 0;

  static PreparedShape get(PreparedType type);
};

/// Bytes of the whole prepared input.
inline int64_t preparedBytes(PreparedType type) { return PreparedShape::get(type).bytes; }

} // namespace sluice::fused

#endif // SLUICE_DIALECTS_FUSED_PREPAREDINPUT_H
