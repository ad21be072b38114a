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

/// A prepared input of a GPU: pieces of columns as products have them in shared memory, so that a
/// piece of any number of neighbouring tokens is one copy.
///
/// Tokens are padded to whole sets. Those of the last tile (of kTileTokens) that has an active
/// token, but are not active themselves, are zeros; the tiles behind it are not written. Columns
/// are padded with zeros.
///
/// Eight tokens (`t` = token % 8) of a piece are rows of 128 bytes. Bytes 16 c to 16 c + 15 of row
/// t lie at place c ^ t, the 128-byte swizzle of `wgmma` and of tensor copies (PTX ISA, "Shared
/// Memory Matrix Layout"), in which `ldmatrix` reads them without bank conflicts:
/// - `numbers`: integer weights: int8 [columns / 128][tokens / 8][high, low][8 rows][128 bytes] of
/// the
///   16-bit fixed point numbers (formats::highByte, lowByte). Others: f16 or bf16
///   [columns / 64][tokens / 8][8 rows][128 bytes]; for E4M3 weights, of which a lane has four
///   neighbouring columns, the pairs of every 16 columns in the order 0 2 4 6 1 3 5 7.
///   For weights in records, f16 in the order in which their lanes have columns
///   (Formats/Records.h): chunk q (0 to 15) of 128 columns is columns 32 s + 2 q and 32 s + 2 q + 1
///   for s = 0, 1, 2, 3.
/// - `scales`: scaled weights only: float32 [columns / 128][tokens], the activation scales; for
///   weights in records one of the whole row, [tokens].
/// - `sums`: of weights with zero points, int32 [columns / sumColumns][tokens], the sums of the
///   fixed point numbers.
struct PreparedImage {
  /// Tokens of a set at most.
  static constexpr int64_t kSetTokens = 32;
  /// Tokens of a tile of a product at most: of exact integers, whose products need more registers,
  /// half as many.
  static constexpr int64_t kTileTokens = 256;

  /// How the input is rounded: as for the first weight, or as for f16 weights where weights in
  /// records are multiplied as such.
  formats::Encoding format;
  bool records = false;
  int64_t tokens = 0, columns = 0;
  int64_t setTokens = 0;
  int64_t paddedTokens = 0, paddedColumns = 0;
  int64_t sumColumns = 0; ///< 0: no sums
  int64_t numbers = 0, scales = 0, sums = 0, bytes = 0;

  int64_t pieceColumns() const { return format.isInteger() ? 128 : 64; }
  /// Bytes of eight tokens of a piece, and of all.
  int64_t blockBytes() const { return format.isInteger() ? 2048 : 1024; }
  int64_t pieceBytes() const { return paddedTokens / 8 * blockBytes(); }
  int64_t sumsPerGroup() const { return sumColumns ? 128 / sumColumns : 0; }
  int64_t mostTileTokens() const { return format.isInteger() ? kTileTokens / 2 : kTileTokens; }

  static PreparedImage get(PreparedType type);
};

/// Bytes of the whole prepared input.
int64_t preparedBytes(PreparedType type);

} // namespace sluice::fused

#endif // SLUICE_DIALECTS_FUSED_PREPAREDINPUT_H
