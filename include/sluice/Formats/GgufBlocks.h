// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Converts GGUF's blocks Q8_0 and Q4_0 to and from q and scale, bit for bit (ggml: struct
// block_q8_0, struct block_q4_0).

#ifndef SLUICE_FORMATS_GGUFBLOCKS_H
#define SLUICE_FORMATS_GGUFBLOCKS_H

#include "sluice/Formats/Format.h"

namespace sluice::formats {

inline constexpr int64_t ggufBlockColumns = 32;
inline constexpr int64_t q8_0BlockBytes = 34; ///< f16 scale, 32 int8
inline constexpr int64_t q4_0BlockBytes =
    18; ///< f16 scale, 16 bytes: q + 8 of elements 0..15 low, of 16..31 high

/// What the blocks are: int8-g32 and int4-g32.
inline constexpr Format q8_0Format{Format::Element::I8, 32, false};
inline constexpr Format q4_0Format{Format::Element::I4, 32, false};

/// Splits consecutive blocks. `q` has 32 entries per block, `scales` (f16 bits) one; the sizes
/// decide how many blocks there are.
void readQ8_0(llvm::ArrayRef<uint8_t> blocks, llvm::MutableArrayRef<int8_t> q,
              llvm::MutableArrayRef<uint16_t> scales);
void readQ4_0(llvm::ArrayRef<uint8_t> blocks, llvm::MutableArrayRef<int8_t> q,
              llvm::MutableArrayRef<uint16_t> scales);

/// The inverses of the above.
void writeQ8_0(llvm::ArrayRef<int8_t> q, llvm::ArrayRef<uint16_t> scales,
               llvm::MutableArrayRef<uint8_t> blocks);
void writeQ4_0(llvm::ArrayRef<int8_t> q, llvm::ArrayRef<uint16_t> scales,
               llvm::MutableArrayRef<uint8_t> blocks);

} // namespace sluice::formats

#endif // SLUICE_FORMATS_GGUFBLOCKS_H
