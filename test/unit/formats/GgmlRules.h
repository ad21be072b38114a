// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// How ggml makes blocks of weights (quantize_row_q8_0_ref, quantize_row_q4_0_ref), and so how a
// GGUF file of that type was made: a yardstick for the quantizer, and a source of realistic blocks.
//
// Q8_0 has the scale max|x| / 127; Q4_0 has the x of greatest magnitude over -8. The row's length
// is a multiple of 32; `q` has an entry for each element, `scales` (f16 bits) one for each block.

#ifndef SLUICE_TEST_UNIT_FORMATS_GGMLRULES_H
#define SLUICE_TEST_UNIT_FORMATS_GGMLRULES_H

#include "sluice/Formats/GgufBlocks.h"

#include <algorithm>
#include <cassert>
#include <cmath>

namespace sluice::formats::ggml {

/// Columns of a block of Q8_0 and Q4_0.
inline constexpr int64_t ggufBlockColumns = 32;

inline void quantizeRowQ8_0(llvm::ArrayRef<float> row, llvm::MutableArrayRef<int8_t> q,
                            llvm::MutableArrayRef<uint32_t> scales) {
  assert(row.size() == scales.size() * ggufBlockColumns && q.size() == row.size());
  for (size_t block = 0; block < scales.size(); ++block) {
    const float *x = row.data() + block * ggufBlockColumns;
    float greatest = 0;
    for (int64_t i = 0; i < ggufBlockColumns; ++i)
      greatest = std::max(greatest, std::fabs(x[i]));
    float scale = greatest / 127.0f, inverse = scale != 0 ? 1.0f / scale : 0.0f;
    scales[block] = floatToF16(scale);
    for (int64_t i = 0; i < ggufBlockColumns; ++i)
      q[block * ggufBlockColumns + i] = static_cast<int8_t>(std::round(x[i] * inverse));
  }
}

inline void quantizeRowQ4_0(llvm::ArrayRef<float> row, llvm::MutableArrayRef<int8_t> q,
                            llvm::MutableArrayRef<uint32_t> scales) {
  assert(row.size() == scales.size() * ggufBlockColumns && q.size() == row.size());
  for (size_t block = 0; block < scales.size(); ++block) {
    const float *x = row.data() + block * ggufBlockColumns;
    float greatest = 0, signedGreatest = 0;
    for (int64_t i = 0; i < ggufBlockColumns; ++i)
      if (std::fabs(x[i]) > greatest) {
        greatest = std::fabs(x[i]);
        signedGreatest = x[i];
      }
    float scale = signedGreatest / -8.0f, inverse = scale != 0 ? 1.0f / scale : 0.0f;
    scales[block] = floatToF16(scale);
    for (int64_t i = 0; i < ggufBlockColumns; ++i)
      q[block * ggufBlockColumns + i] =
          static_cast<int8_t>(std::min(15, static_cast<int>(x[i] * inverse + 8.5f)) - 8);
  }
}

} // namespace sluice::formats::ggml

#endif // SLUICE_TEST_UNIT_FORMATS_GGMLRULES_H
