// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// The fixed-point input of products with integer weights (sluice/Formats/Activations.h), as code.

#ifndef SLUICE_LIB_CONVERSION_FUSEDKERNELS_FIXEDPOINT_H
#define SLUICE_LIB_CONVERSION_FUSEDKERNELS_FIXEDPOINT_H

#include "ComputeBuilder.h"

#include "sluice/Formats/Activations.h"

namespace sluice::kernels {

/// The bits of |x| as an i32, which compare like the magnitudes; infinity and NaN are the greatest.
mlir::Value magnitudeBits(ComputeBuilder &k, mlir::Value x);

/// How a group of activations is rounded: x16 = usable ? round(x * inverse) : 0. The product is
/// multiplied by `scale`.
struct ActivationScale {
  mlir::Value usable, inverse, scale;
};
/// Emits the activation scale of a group. `greatest` is its greatest magnitude, as bits.
ActivationScale activationScale(ComputeBuilder &k, mlir::Value greatest);

} // namespace sluice::kernels

#endif // SLUICE_LIB_CONVERSION_FUSEDKERNELS_FIXEDPOINT_H
