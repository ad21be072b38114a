// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// The fixed-point input of products with integer weights (sluice/Formats/Activations.h), as code.

#ifndef SLUICE_LIB_CONVERSION_FUSEDKERNELS_FIXEDPOINT_H
#define SLUICE_LIB_CONVERSION_FUSEDKERNELS_FIXEDPOINT_H

#include "ComputeBuilder.h"

#include "sluice/Formats/Activations.h"

namespace sluice::kernels {

/// |x| as an i32: magnitudes compare as integers, infinity and NaN above all numbers.
mlir::Value magnitudeBits(ComputeBuilder &k, mlir::Value x);

/// How a group of activations is rounded: x16 = usable ? round(x * inverse) : 0, and the scale that
/// the product is multiplied by.
struct ActivationScale {
  mlir::Value usable, inverse, scale;
};
/// `greatest`: the group's greatest magnitude, as bits.
ActivationScale activationScale(ComputeBuilder &k, mlir::Value greatest);

} // namespace sluice::kernels

#endif // SLUICE_LIB_CONVERSION_FUSEDKERNELS_FIXEDPOINT_H
