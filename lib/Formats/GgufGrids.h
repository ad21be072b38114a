// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// The grids of GGUF's IQ types: which combinations of elements their indices name.

#ifndef SLUICE_LIB_FORMATS_GGUFGRIDS_H
#define SLUICE_LIB_FORMATS_GGUFGRIDS_H

#include "llvm/ADT/ArrayRef.h"

#include <cstdint>

namespace sluice::formats {

/// IQ1 and IQ2: points of eight elements with 3 codes each. IQ3: of four elements with 8 codes
/// each.
enum class GgufGrid : uint8_t { IQ1, IQ2_XXS, IQ2_XS, IQ2_S, IQ3_XXS, IQ3_S };

/// The points of a grid by their index: the codes of their elements in fields of 2 (IQ1, IQ2) or 3
/// bits, the first element's at the low end. Codes stand for -1, 0, 1 (IQ1), 8, 25, 43 (IQ2), 4,
/// 12, 20, 28, 36, 44, 52, 62 (IQ3_XXS) and 1, 3, ..., 15 (IQ3_S).
llvm::ArrayRef<uint16_t> gridPoints(GgufGrid grid);

} // namespace sluice::formats

#endif // SLUICE_LIB_FORMATS_GGUFGRIDS_H
