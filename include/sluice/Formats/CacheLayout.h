// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Where a key or value lies in a cache of a GPU. A cache is a tensor [positions][heads][D] of f16;
// its bytes are head after head, a head is pieces of 32 positions, and a piece is in the operand
// order of the tensor cores' m16n8k16 (PTX ISA, "Matrix Fragments for mma.m16n8k16"), so that a
// lane reads its operands as 16 consecutive bytes, nothing is converted or shuffled, and a piece is
// one bulk copy.
//
// clang-format off
//
// A piece of keys: 4 parts of 8 positions, 16 * D bytes each. q = position % 32, 0 <= d < D.
//
//   part q / 8:   | d 0-31: 512 bytes | d 32-63 | ... | the last 16, if D % 32 = 16: 256 bytes |
//
//     512 bytes:  lane L = 4 * (q % 8) + t has 16 bytes at 16L: elements 8t .. 8t+7 of the 32
//     256 bytes:  lane L = 4 * (q % 8) + t has  8 bytes at  8L: elements 4t .. 4t+3 of the 16
//
//   16 positions are the rows of an operand; a row's elements are the products' inner dimension,
//   whose order is free as long as the query has the same.
//
// A piece of values: 2 parts of 16 positions, 32 * D bytes each. q = position % 16.
//
//   part:         | d 0-15: 512 bytes | d 16-31: 512 bytes | ... |
//
//     512 bytes:  lane L has 16 bytes at 16L, its registers a0 .. a3. L.a is register a of lane L;
//                 it holds 2 positions, the lower one first.
//
//                         q: 0,1   2,3   4,5   6,7       8,9   10,11 12,13 14,15
//       d % 16 = 0           0.a0  1.a0  2.a0  3.a0      0.a2  1.a2  2.a2  3.a2
//       d % 16 = 7          28.a0 29.a0 30.a0 31.a0     28.a2 29.a2 30.a2 31.a2
//       d % 16 = 8           0.a1  1.a1  2.a1  3.a1      0.a3  1.a3  2.a3  3.a3
//       d % 16 = 15         28.a1 29.a1 30.a1 31.a1     28.a3 29.a3 30.a3 31.a3
//
//   16 elements of D are the rows of an operand, and 16 positions its inner dimension.
//
// clang-format on

#ifndef SLUICE_FORMATS_CACHELAYOUT_H
#define SLUICE_FORMATS_CACHELAYOUT_H

#include "llvm/ADT/STLFunctionalExtras.h"

#include <cstdint>
#include <functional>
#include <optional>
#include <string>

namespace sluice::formats {

/// Positions of a piece.
inline constexpr int64_t cachePiece = 32;
/// Heads have a multiple of these elements; `fused-pad-caches` pads others.
inline constexpr int64_t cacheHeadUnit = 16;

/// Bytes of a piece of the keys, or of the values, of one head.
inline constexpr int64_t cachePieceBytes(int64_t dim) { return cachePiece * dim * 2; }

/// What is wrong with a cache's shape; nothing if it has this layout.
inline std::optional<std::string> checkCacheShape(int64_t positions, int64_t dim) {
  if (positions < 1 || positions % cachePiece)
    return "a GPU's cache needs a multiple of " + std::to_string(cachePiece) +
           " positions, found " + std::to_string(positions);
  if (dim < 1 || dim % cacheHeadUnit || dim > 256)
    return "a GPU's cache needs heads of a multiple of 16 elements, at most 256, found " +
           std::to_string(dim);
  return std::nullopt;
}

/// The arithmetic that the formulas below are written in: of numbers, or of a kernel's values.
template <typename Integer> struct CacheArithmetic {
  std::function<Integer(Integer, Integer)> add;
  std::function<Integer(Integer, int64_t)> mul, div, rem;
  /// x < limit ? below : above
  std::function<Integer(Integer, int64_t, llvm::function_ref<Integer()>,
                        llvm::function_ref<Integer()>)>
      choose;
};

/// The byte, in its head's keys, of element d of a position.
template <typename Integer>
Integer keyByte(const CacheArithmetic<Integer> &c, int64_t dim, Integer position, Integer d) {
  Integer q = c.rem(position, cachePiece), row = c.rem(q, 8);
  Integer base =
      c.add(c.mul(c.div(position, cachePiece), cachePieceBytes(dim)), c.mul(c.div(q, 8), 16 * dim));
  auto wide = [&] {
    Integer lane = c.add(c.mul(row, 4), c.div(c.rem(d, 32), 8));
    return c.add(c.mul(c.div(d, 32), 512), c.add(c.mul(lane, 16), c.mul(c.rem(d, 8), 2)));
  };
  int64_t full = dim / 32 * 32;
  if (full == dim)
    return c.add(base, wide());
  auto last = [&] {
    Integer lane = c.add(c.mul(row, 4), c.div(c.rem(d, 16), 4));
    return c.add(c.mul(c.div(d, 32), 512), c.add(c.mul(lane, 8), c.mul(c.rem(d, 4), 2)));
  };
  return c.add(base, c.choose(d, full, wide, last));
}

/// The byte, in its head's values, of element d of a position.
template <typename Integer>
Integer valueByte(const CacheArithmetic<Integer> &c, int64_t dim, Integer position, Integer d) {
  Integer q = c.rem(position, 16);
  Integer base = c.add(c.mul(c.div(position, 16), 32 * dim), c.mul(c.div(d, 16), 512));
  Integer lane = c.add(c.mul(c.rem(d, 8), 4), c.div(c.rem(q, 8), 2));
  Integer word = c.add(c.div(c.rem(d, 16), 8), c.mul(c.div(q, 8), 2));
  return c.add(c.add(base, c.mul(lane, 16)), c.add(c.mul(word, 4), c.mul(c.rem(q, 2), 2)));
}

/// The arithmetic of numbers.
inline CacheArithmetic<int64_t> cacheNumbers() {
  return {std::plus<int64_t>(), std::multiplies<int64_t>(), std::divides<int64_t>(),
          std::modulus<int64_t>(),
          [](int64_t x, int64_t limit, llvm::function_ref<int64_t()> below,
             llvm::function_ref<int64_t()> above) { return x < limit ? below() : above(); }};
}
inline int64_t keyByte(int64_t dim, int64_t position, int64_t d) {
  return keyByte<int64_t>(cacheNumbers(), dim, position, d);
}
inline int64_t valueByte(int64_t dim, int64_t position, int64_t d) {
  return valueByte<int64_t>(cacheNumbers(), dim, position, d);
}

} // namespace sluice::formats

#endif // SLUICE_FORMATS_CACHELAYOUT_H
