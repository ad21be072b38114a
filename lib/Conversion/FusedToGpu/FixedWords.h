// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Activations as 16-bit fixed point, in the bytes that the tensor cores multiply.

#ifndef SLUICE_LIB_CONVERSION_FUSEDTOGPU_FIXEDWORDS_H
#define SLUICE_LIB_CONVERSION_FUSEDTOGPU_FIXEDWORDS_H

#include "../FusedKernels/FixedPoint.h"
#include "DeviceBuilder.h"

namespace sluice::device {

/// x16 of an element (Formats/Activations.h).
inline mlir::Value toFixedPoint(DeviceBuilder &k, const kernels::ActivationScale &scale,
                                mlir::Value element) {
  // Adding 1.5 * 2^23 rounds to the nearest integer, ties to even, and leaves it in the low bits.
  mlir::Value shifted = k.addF(k.mulF(element, scale.inverse), k.number(12582912.0));
  mlir::Value integer = k.sub(k.bitcast(shifted, k.i32()), 0x4B400000);
  return k.select(scale.usable, integer, k.constI32(0));
}

/// High or low bytes of four elements in fixed point, the first in the lowest byte.
inline mlir::Value fixedPointBytes(DeviceBuilder &k, llvm::ArrayRef<mlir::Value> fixed, bool high) {
  mlir::Value word;
  for (auto [number, q] : llvm::enumerate(fixed)) {
    mlir::Value byte = k.shl(k.bitAnd(high ? k.shr(k.add(q, 128), 8) : q, 0xFF), 8 * number);
    word = word ? k.bitOr(word, byte) : byte;
  }
  return word;
}

} // namespace sluice::device

#endif // SLUICE_LIB_CONVERSION_FUSEDTOGPU_FIXEDWORDS_H
