// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Converts GGUF's blocks to and from the numbers of their encoding, bit for bit. The blocks are
// ggml's (ggml-common.h, the block_* structs; ggml-quants.c, the dequantize_row_* functions):
//
// clang-format off
//
//   type    columns  bytes  in order
//   Q4_0         32     18  d f16; q + 8, 4 bits
//   Q4_1         32     20  d f16; m f16; q, 4 bits
//   Q5_0         32     22  d f16; bit 4 of q + 16, 32 bits; its low 4 bits
//   Q5_1         32     24  d f16; m f16; bit 4 of q, 32 bits; its low 4 bits
//   Q8_0         32     34  d f16; q int8
//   IQ4_NL       32     18  d f16; index, 4 bits
//   MXFP4        32     17  e8m0; index, 4 bits
//   NVFP4        64     36  e4m3 of 4 groups; for each group: index, 4 bits
//   Q2_K        256     84  16 x (scale, minimum << 4); q, 2 bits; d f16; dmin f16
//   Q3_K        256    110  bit 2 of q + 4; its low 2 bits; 16 scales + 32 of 6 bits; d f16
//   Q4_K        256    144  d f16; dmin f16; 8 x (scale, minimum) of 6 bits; q, 4 bits
//   Q5_K        256    176  d f16; dmin f16; 8 x (scale, minimum) of 6 bits; bit 4 of q; its low 4
//   Q6_K        256    210  low 4 bits of q + 32; its high 2 bits; 16 scales int8; d f16
//   IQ4_XS      256    136  d f16; high 2 bits of 8 scales + 32; their low 4 bits; index, 4 bits
//   TQ1_0       256     54  q + 1, 5 digits of base 3 in each of 48 bytes, 4 in 4; d f16
//   TQ2_0       256     66  q + 1, 2 bits; d f16
//   Q8_K        256    292  d f32; q int8; 16 sums of 16 q each, int16
//   IQ2_XXS     256     66  d f16; 8 x (4 points of 8 bits; 4 signs of 7 bits, scale of 4 bits)
//   IQ2_XS      256     74  d f16; 32 x (point of 9 bits, signs of 7); 16 scales, 4 bits
//   IQ2_S       256     82  d f16; low 8 bits of 32 points; 32 signs of 8 bits; high 2 bits of
//                           points; 16 scales, 4 bits
//   IQ3_XXS     256     98  d f16; 64 points of 8 bits; 8 x (4 signs of 7 bits, scale of 4 bits)
//   IQ3_S       256    110  d f16; low 8 bits of 64 points; their high bit; 32 signs of 8 bits; 8
//                           scales, 4 bits
//   IQ1_S       256     50  d f16; low 8 bits of 32 points; 8 x (high 3 bits of 4 points, scale of
//                           3 bits, sign of delta)
//   IQ1_M       256     56  low 8 bits of 32 points; 32 x (their high 3 bits, sign of delta); 16
//                           scales, 3 bits, in 4 words, whose high 4 bits are d f16
//
// clang-format on
//
// Those from TQ1_0 on are re-packed: their values are those of an encoding in which the blocks
// cannot be written. A byte of TQ1_0 is ceil(256 n / 243) for the digits' number n.
//
// Of IQ1, IQ2 and IQ3 eight elements (IQ3: four) are a point of a grid (lib/Formats/GgufGrids.h);
// IQ2 and IQ3 have signs of eight elements, the first element's lowest. Of seven bits, the eighth
// makes the number of ones even. With a scale's code s,
//
//     IQ2_*     d (2 s + 1) / 8 * (8, 25 or 43), signed
//     IQ3_XXS   d (2 s + 1) / 4 * (4, 12, 20, 28, 36, 44, 52 or 62), signed
//     IQ3_S     d (2 s + 1) * (1, 3, ..., 15), signed
//     IQ1_*     d (2 s + 1) * (-1, 0 or 1, plus or minus 1/8)
//
// so each is a table of at most 16 integers with nested scales 2 s + 1.
//
// Elements of 4 bits: byte i of a block of 32 has elements i (low nibble) and i + 16.

#ifndef SLUICE_FORMATS_GGUFBLOCKS_H
#define SLUICE_FORMATS_GGUFBLOCKS_H

#include "sluice/Formats/Encoding.h"

namespace sluice::formats {

/// A type of GGUF's blocks. Each is an encoding, and no two that can be written are the same.
struct GgufBlock {
  /// As GGUF's tools print it: "Q4_K".
  llvm::StringLiteral name;
  Encoding encoding;
  int64_t columns, bytes;
  void (*readBlock)(const uint8_t *block, const RowNumbers &to);
  /// Null for a type that is re-packed.
  void (*writeBlock)(const RowNumbers &from, uint8_t *block);

  bool isRepacked() const { return !writeBlock; }

  /// The block type that holds an encoding and can be written, or the one of a name; null if there
  /// is none.
  static const GgufBlock *of(const Encoding &encoding);
  static const GgufBlock *named(llvm::StringRef name);

  /// Splits consecutive blocks, as many as `blocks` has, and puts them together. NVFP4 scales that
  /// ggml reads as zero or without their sign are read as that number's own code, so that they are
  /// not written back as they were; all else is.
  void read(llvm::ArrayRef<uint8_t> blocks, RowNumbers to) const;
  void write(const EncodedRow &row, llvm::MutableArrayRef<uint8_t> blocks) const;
};

} // namespace sluice::formats

#endif // SLUICE_FORMATS_GGUFBLOCKS_H
