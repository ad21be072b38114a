// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// The angles of rotary position embedding.
//
// Pair i of a head of d elements (elements i and i + d/2) turns by position * f_i:
//   x'[i]       = x[i] * cos - x[i + d/2] * sin
//   x'[i + d/2] = x[i + d/2] * cos + x[i] * sin
// with f_i = theta^(-2i/d) (Su et al., "RoFormer", 2021), scaled by one of the rules below.

#ifndef SLUICE_FORMATS_ROPETABLE_H
#define SLUICE_FORMATS_ROPETABLE_H

#include "llvm/ADT/ArrayRef.h"
#include "llvm/ADT/SmallVector.h"
#include "llvm/ADT/StringRef.h"
#include "llvm/Support/Error.h"

#include <cstdint>

namespace sluice::formats {

/// The angle by which each of headDim / 2 pairs turns from one position to the next, in radians.
/// `scaling` and `values`:
/// - "none", []: f_i.
/// - "linear", [factor]: f_i / factor.
/// - "llama3", [factor, low, high, original]: with wavelength 2 pi / f_i, those above original /
///   low are divided by factor, those below original / high are kept, and those between blend both
///   by (original / wavelength - low) / (high - low). Llama 3.1's rule (`apply_scaling` in
///   meta-llama/llama-models, models/llama3/model.py).
/// - "yarn", [factor, fast, slow, original]: pairs that turn more than `fast` times in `original`
///   positions are kept, those that turn less than `slow` times divided by factor, and those
///   between blend both; the bounds are rounded outwards to whole pairs (transformers,
///   modeling_rope_utils.py, _compute_yarn_parameters).
/// - "factors", [headDim / 2 numbers]: f_i / factors[i] (GGUF's rope_freqs tensor).
///
/// Errors: an odd or non-positive head size (or one above 65536), a theta that is not a finite
/// number above 0, an unknown scaling, the wrong number of values, or values that are not finite
/// and above 0 (llama3: high must exceed low; yarn: fast must exceed slow).
llvm::Expected<llvm::SmallVector<double>> ropeFrequencies(double theta, int64_t headDim,
                                                          llvm::StringRef scaling,
                                                          llvm::ArrayRef<double> values);

/// Row `position` of the table that kernels read: cos and sin of position * f_i times `magnitude`,
/// computed in double and rounded to float. All three arrays have headDim / 2 entries.
void ropeTableRow(llvm::ArrayRef<double> frequencies, double magnitude, int64_t position,
                  llvm::MutableArrayRef<float> cosines, llvm::MutableArrayRef<float> sines);

} // namespace sluice::formats

#endif // SLUICE_FORMATS_ROPETABLE_H
