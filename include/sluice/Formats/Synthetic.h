// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// What generated weights look like in each number format and layout.
// sluice-runtime/SyntheticWords.h has the rule that makes bytes of a seed, a place and the masks
// keep and set of the region that the place lies in:
//
//   region       keep                  set                      gives
//   int elements FFFF...               0                        q uniform over the element's range
//   fp8 elements 9F x 8                20 x 8                   +-2^(-3 to 0) * [1, 2), uniform
//   scales       8000 8000 8000 8000   S S S S                  +S or -S, also of bf16 and f32
//   zero points  01 x 8                FE x 8                   -2 or -1
//   scales that come with offsets, of bytes, of super-blocks:
//     f16        0                     S S S S                  S; offset Z = -S * mean(q)
//     int8       87 x 8                40 x 8                   +-(64 to 71) times the
//     super-block's S E8M0, E4M3 0                     S x 8                    S fields FFFF... 0
//     uniform, times S; offsets times Z
//   f16          83FF x 4              E << 10 x 4              +-2^e * [1, 2), uniform
//   bf16         807F x 4              E << 7 x 4
//   f32          807FFFFF x 2          E << 23 x 2
//   padding      0                     0
//
// S = f16(1 / (sqrt(K) * rms(what S is a factor of))) and 2^e = 1 / (sqrt(K) * sqrt(7/3)) rounded
// to a power of two, so that a row's product with an input of unit variance has about unit
// variance. Elements of columns and rows that pad a tile are generated like all others: nothing
// reads their results, and the inputs that they are multiplied by are zeros. In lanes, mma and
// records every region starts at a multiple of 16 bytes, so a word has one pair of masks.

#ifndef SLUICE_FORMATS_SYNTHETIC_H
#define SLUICE_FORMATS_SYNTHETIC_H

#include "sluice-runtime/SyntheticWords.h"
#include "sluice/Formats/Packing.h"

namespace sluice::formats {

using synthetic::mix64;
using synthetic::syntheticBits;
using synthetic::SyntheticMasks;
using synthetic::SyntheticPattern;

/// The pattern of a vector that is no matrix's row (norm gains, biases): f32, f16 or bf16 elements
/// of magnitude [0.5, 1), so that what passes through many layers neither grows nor vanishes.
SyntheticPattern syntheticVector(Encoding::Element element, uint64_t seed);

class SyntheticTensor {
public:
  /// In blocks, Q8_0 and Q4_0 only. `seed` should differ from tensor to tensor, for instance a hash
  /// of the name.
  SyntheticTensor(const PackedShape &shape, uint64_t seed);

  const PackedShape &shape() const { return packed; }
  /// The masks of the regions; for a float format scales and zeros are unused.
  SyntheticMasks elements() const { return elementMasks; }
  SyntheticMasks scales() const { return scaleMasks; }
  SyntheticMasks zeros() const { return {0x0101010101010101u, 0xFEFEFEFEFEFEFEFEu}; }

  /// The regions of the whole matrix: of a chunk if all chunks are alike, else of a tile.
  const SyntheticPattern &pattern() const { return regions; }

  /// Writes out.size() bytes from word `firstWord` on; stops at the matrix's end, so out.size() may
  /// be any number up to bytes() - 16 * firstWord.
  void generate(int64_t firstWord, llvm::MutableArrayRef<uint8_t> out) const;

private:
  void setMasks();
  void setRegions();
  /// The regions of a record.
  SyntheticPattern recordRegions() const;

  PackedShape packed;
  SyntheticMasks elementMasks, scaleMasks, offsetMasks, superMasks[2];
  SyntheticPattern regions;
};

} // namespace sluice::formats

#endif // SLUICE_FORMATS_SYNTHETIC_H
