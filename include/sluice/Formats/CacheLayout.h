// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Where a key or value lies in a cache.
//
// A tiled cache is sequence after sequence, head after head; a head is tiles of 32 positions, and a
// tile is its codes, then its scales [group][position] as f16. So a tile with its scales is one
// piece of memory, and any number of tiles one copy. Elements that pad a head's vector are zero.
//
// A cache in pages is page after page, head after head; a page has one tile of each head. Which
// pages a sequence has says a table, [sequences][tiles] u32.
//
// Order `mma` is that of the operands of the tensor cores' m16n8k32 (one byte an element) and
// m16n8k16 (two; PTX ISA, "Matrix Fragments"): a lane reads its operand registers as 16 consecutive
// bytes and nothing is shuffled. A lane is 4 * g + t.
//
//   Keys are the 16-row operand of the scores, rows are positions. Positions 4g .. 4g+3 of a tile
//   are rows g and g + 8 of a first and of a second operand, so that a lane that holds the scores
//   of row g has four neighbouring positions, whose scales are 8 consecutive bytes. Of every 32
//   elements lane t has 8t .. 8t+7: the order of the products' inner dimension is free as long as
//   the query's is the same.
//
//   Values are the 16-row operand of the weighted sums, rows are elements, the inner dimension is
//   positions. Lane t has positions 8t .. 8t+7, in the order in which softmax weights come out of a
//   transposition of 8 x 8 pairs: 0 1 4 5 | 2 3 6 7 where an element is a byte, else 0 4 1 5 and
//   2 6 3 7 in two operands.
//
//   Four-bit codes: both nibbles of a byte belong to one position. The high one is that of the
//   lower element; the two are 32 elements apart in keys, 16 in values.
//
// Order `lanes` is for vector registers of a host, whose lanes are 16 positions of keys, or 16
// elements of values.
//
//   Integers are multiplied as 16-bit words, of which a multiply-add adds up two neighbours. A line
//   of 64 bytes is 16 lanes of two words. The codes of a word are taken apart by shifts, each with
//   its neighbour's: elements 2i and 2i + 1 of a key (a line has 4 of them, or 8 of four bits), or
//   positions 2i and 2i + 1 of a value (4; of four bits, first those of element e of 16, then those
//   of element e + 16, in turn). So a line becomes 2 or 4 operands without a shuffle.
//
//   E4M3 numbers are converted as the low and the high bytes of 16-bit words. A word is two
//   neighbouring elements of a key, or elements e and e + 16 of a value.

#ifndef SLUICE_FORMATS_CACHELAYOUT_H
#define SLUICE_FORMATS_CACHELAYOUT_H

#include "sluice/Formats/CacheEncoding.h"

#include <cstdint>
#include <functional>
#include <optional>
#include <string>

namespace sluice::formats {

/// Positions of a tile.
inline constexpr int64_t cacheTile = 32;

enum class CacheOrder : uint8_t { Rows, LanesKeys, LanesValues, MmaKeys, MmaValues };

/// The shape of a cache with everything that says where its bytes lie.
struct CacheShape {
  int64_t sequences = 1, positions = 0, heads = 0, dim = 0;
  CacheEncoding encoding;
  CacheOrder order = CacheOrder::Rows;
  /// Pages of a tile of every head, of which a table names those of each sequence; 0: a sequence's
  /// positions lie together. Tiled orders only.
  int64_t pages = 0;

  bool isTiled() const { return order != CacheOrder::Rows; }
  bool isMma() const { return order == CacheOrder::MmaKeys || order == CacheOrder::MmaValues; }
  bool areKeys() const { return order == CacheOrder::LanesKeys || order == CacheOrder::MmaKeys; }
  /// Elements of a vector, padding included.
  int64_t paddedDim() const;
  /// Scales of a vector; 0 for a float encoding.
  int64_t groups() const { return encoding.groups(dim); }
  /// Bytes of a tile's codes, a multiple of 64; tiled orders only.
  int64_t tileCodeBytes() const { return cacheTile * paddedDim() * encoding.bits() / 8; }
  int64_t tileBytes() const { return tileCodeBytes() + groups() * cacheTile * 2; }
  int64_t tiles() const { return positions / cacheTile; }
  /// Bytes of a head of a sequence, or of a page; tiled orders only.
  int64_t headBytes() const { return (pages ? 1 : tiles()) * tileBytes(); }
  /// Bytes from one page to the next.
  int64_t pageBytes() const { return heads * tileBytes(); }
  /// The same cache, whose `sequences` of one tile each are pages for `count` sequences of
  /// `tilesOfEach` tiles.
  CacheShape asPages(int64_t count, int64_t tilesOfEach) const {
    CacheShape shape = *this;
    shape.pages = sequences;
    shape.sequences = count;
    shape.positions = tilesOfEach * cacheTile;
    return shape;
  }
  /// Bytes of the whole cache.
  int64_t bytes() const;
};

/// What is wrong with a cache for the tensor cores; nothing if there are kernels for it.
std::optional<std::string> checkMmaCache(const CacheShape &shape);

/// The arithmetic that the formulas below are written in: of numbers, or of a kernel's values.
template <typename Integer> struct CacheArithmetic {
  std::function<Integer(Integer, Integer)> add;
  std::function<Integer(Integer, int64_t)> mul, div, rem;
};

namespace detail {
/// A sum of terms `(x / divisor % modulus) * factor`; a modulus of 0 is none.
template <typename Integer> struct CacheTerm {
  Integer x;
  int64_t divisor, modulus, factor;
};
template <typename Integer>
Integer sum(const CacheArithmetic<Integer> &c, std::initializer_list<CacheTerm<Integer>> terms) {
  std::optional<Integer> result;
  for (const CacheTerm<Integer> &term : terms) {
    if (term.factor == 0)
      continue;
    Integer value = term.x;
    if (term.divisor != 1)
      value = c.div(value, term.divisor);
    if (term.modulus)
      value = c.rem(value, term.modulus);
    if (term.factor != 1)
      value = c.mul(value, term.factor);
    result = result ? c.add(*result, value) : value;
  }
  return *result;
}
} // namespace detail

/// The byte, in its tile, of the code of element `d` of position `p` (0 to 31) of the tile.
template <typename Integer>
Integer cacheCodeByte(const CacheArithmetic<Integer> &c, const CacheShape &shape, Integer p,
                      Integer d) {
  int64_t width = shape.paddedDim(), bits = shape.encoding.bits(), bytes = bits / 8;
  bool isInteger = shape.encoding.isInteger();
  switch (shape.order) {
  case CacheOrder::MmaKeys:
    if (bits == 4)
      return detail::sum<Integer>(c, {{p, 2, 2, 8 * width},
                                      {d, 64, 0, 512},
                                      {p, 4, 0, 64},
                                      {d, 8, 4, 16},
                                      {d, 4, 2, 8},
                                      {p, 1, 2, 4},
                                      {d, 1, 4, 1}});
    if (bits == 8)
      return detail::sum<Integer>(c, {{p, 2, 2, 16 * width},
                                      {d, 32, 0, 512},
                                      {p, 4, 0, 64},
                                      {d, 8, 4, 16},
                                      {d, 4, 2, 8},
                                      {p, 1, 2, 4},
                                      {d, 1, 4, 1}});
    return detail::sum<Integer>(c, {{p, 2, 2, 32 * width},
                                    {d, 32, 0, 1024},
                                    {d, 4, 2, 512},
                                    {p, 4, 0, 64},
                                    {d, 8, 4, 16},
                                    {d, 2, 2, 8},
                                    {p, 1, 2, 4},
                                    {d, 1, 2, 2}});
  case CacheOrder::MmaValues:
    if (bits == 16)
      return detail::sum<Integer>(c, {{d, 16, 0, 1024},
                                      {p, 2, 2, 512},
                                      {d, 1, 8, 64},
                                      {p, 8, 0, 16},
                                      {p, 1, 2, 8},
                                      {d, 8, 2, 4},
                                      {p, 4, 2, 2}});
    if (!isInteger) // E4M3, converted to two operands of 16-bit elements
      return detail::sum<Integer>(c, {{d, 16, 0, 512},
                                      {d, 1, 8, 64},
                                      {p, 8, 0, 16},
                                      {p, 2, 2, 8},
                                      {d, 8, 2, 4},
                                      {p, 1, 2, 2},
                                      {p, 4, 2, 1}});
    return detail::sum<Integer>(c, {{d, bits == 4 ? 32 : 16, 0, 512},
                                    {d, 1, 8, 64},
                                    {p, 8, 0, 16},
                                    {p, 2, 2, 8},
                                    {d, 8, 2, 4},
                                    {p, 4, 2, 2},
                                    {p, 1, 2, 1}});
  case CacheOrder::LanesKeys:
    if (!isInteger && bytes == 1)
      return detail::sum<Integer>(
          c, {{p, 16, 0, 16 * width}, {d, 2, 0, 32}, {p, 1, 16, 2}, {d, 1, 2, 1}});
    if (!isInteger)
      return detail::sum<Integer>(
          c, {{p, 16, 0, 16 * width * bytes}, {d, 1, 0, 16 * bytes}, {p, 1, 16, bytes}});
    if (bits == 8)
      return detail::sum<Integer>(
          c, {{p, 16, 0, 16 * width}, {d, 4, 0, 64}, {p, 1, 16, 4}, {d, 1, 2, 2}, {d, 2, 2, 1}});
    return detail::sum<Integer>(
        c, {{p, 16, 0, 8 * width}, {d, 8, 0, 64}, {p, 1, 16, 4}, {d, 1, 2, 2}, {d, 4, 2, 1}});
  case CacheOrder::LanesValues:
    if (!isInteger && bytes == 1)
      return detail::sum<Integer>(c,
                                  {{p, 1, 0, width}, {d, 32, 0, 32}, {d, 1, 16, 2}, {d, 16, 2, 1}});
    if (!isInteger)
      return detail::sum<Integer>(c, {{p, 1, 0, width * bytes}, {d, 1, 0, bytes}});
    return detail::sum<Integer>(c, {{p, 4, 0, 4 * width * bits / 8},
                                    {d, bits == 4 ? 32 : 16, 0, 64},
                                    {d, 1, 16, 4},
                                    {p, 1, 2, 2},
                                    {p, 2, 2, 1}});
  case CacheOrder::Rows:
    break;
  }
  return c.mul(p, 0); // rows have no tiles
}

/// Elements between the two nibbles of a byte; 0 if codes are whole bytes. The lower element is in
/// the high nibble in order `mma`, in the low one in order `lanes`.
inline int64_t cacheNibbleDistance(const CacheShape &shape) {
  if (shape.encoding.bits() != 4)
    return 0;
  switch (shape.order) {
  case CacheOrder::MmaKeys:
    return 32;
  case CacheOrder::MmaValues:
  case CacheOrder::LanesValues:
    return 16;
  case CacheOrder::LanesKeys:
    return 2;
  case CacheOrder::Rows:
    return 1;
  }
  return 0;
}
/// Whether the code of element `d` is in the high nibble of its byte.
inline bool isCacheHighNibble(const CacheShape &shape, int64_t d) {
  int64_t distance = cacheNibbleDistance(shape);
  return distance && (d / distance % 2 == 0) == shape.isMma();
}

/// The byte, in its tile, of the scale of a group of the tile's first position; the other
/// positions' follow it, two bytes each.
inline int64_t cacheScaleByte(const CacheShape &shape, int64_t group) {
  return shape.tileCodeBytes() + group * cacheTile * 2;
}

/// The same in numbers.
int64_t cacheCodeByte(const CacheShape &shape, int64_t p, int64_t d);

/// Stores a vector (dim elements) at a position of a head of a tiled cache; `head` are the head's
/// bytes. The definition of what an append leaves there.
void storeCacheVector(const CacheShape &shape, llvm::MutableArrayRef<uint8_t> head,
                      int64_t position, llvm::ArrayRef<float> x);
/// What is read back: dim elements and, of integer encodings, the scale of each group.
void loadCacheVector(const CacheShape &shape, llvm::ArrayRef<uint8_t> head, int64_t position,
                     llvm::MutableArrayRef<float> x, llvm::MutableArrayRef<float> scales = {});

} // namespace sluice::formats

#endif // SLUICE_FORMATS_CACHELAYOUT_H
