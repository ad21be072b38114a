// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// The input of a product with quantized weights, and that product's definition.
//
// An input of an integer-weight product is 16-bit fixed point, with one float32 scale
// per group of 128 consecutive elements, so that the sums inside a group are exact integers: they
// do not depend on the order in which a device adds, and a GPU computes them as two int8 products
// (high and low byte).

#ifndef SLUICE_FORMATS_ACTIVATIONS_H
#define SLUICE_FORMATS_ACTIVATIONS_H

#include "sluice/Formats/Format.h"

#include "llvm/ADT/SmallVector.h"

namespace sluice::formats {

/// Consecutive inputs that share a scale.
inline constexpr int64_t activationGroup = 128;
/// The fixed-point value of a group's largest input: 127 * 256, so that the high byte fits in an
/// int8.
inline constexpr float activationLimit = 32512.0f;
/// A group whose inputs are all below this counts as zeros (32512 / m would overflow not far below
/// it).
inline constexpr float activationFloor = 0x1p-100f;

inline constexpr int64_t activationGroups(int64_t columns) {
  return (columns + activationGroup - 1) / activationGroup;
}

/// The two int8 operands whose products a GPU adds: x16 = 256 * high + low.
inline constexpr int8_t highByte(int16_t x16) { return static_cast<int8_t>((x16 + 128) >> 8); }
inline constexpr int8_t lowByte(int16_t x16) {
  return static_cast<int8_t>(x16 - 256 * highByte(x16));
}

/// Rounds K inputs to fixed point: x is about x16 * the scale of its group.
///
///   m     = max |x| of the group
///   inv   = m > activationFloor ? 32512 / m : 0
///   x16   = x * inv, rounded to nearest even        |x16| <= 32512
///   scale = m / 32512
///
/// All in float32.
///
/// `x16` has K entries, `scales` activationGroups(K). The last group may be short. A group with a
/// NaN or infinity gets x16 = 0 and a scale of NaN, so that every result that it enters is NaN.
void quantizeActivations(llvm::ArrayRef<float> x, llvm::MutableArrayRef<int16_t> x16,
                         llvm::MutableArrayRef<float> scales);

/// One row of a product with integer weights, the definition:
///
///   result = sum over blocks of float(sum of (q - zero) * x16) * (float(scale) * activation scale)
///
/// An accumulation block is min(weight group, 128) consecutive columns (the row's last one may be
/// shorter). The inner sum is an exact int32; the outer sum runs over the blocks in order, in
/// float32. Devices may add blocks in another order.
float integerProduct(Format format, llvm::ArrayRef<int8_t> q, llvm::ArrayRef<uint16_t> scales,
                     llvm::ArrayRef<int8_t> zeros, llvm::ArrayRef<int16_t> x16,
                     llvm::ArrayRef<float> activationScales);

/// The exact inner sums of the above, one per accumulation block.
llvm::SmallVector<int32_t> integerSums(Format format, llvm::ArrayRef<int8_t> q,
                                       llvm::ArrayRef<int8_t> zeros, llvm::ArrayRef<int16_t> x16);

/// Columns of an accumulation block in a row of K columns: min(weight group, 128).
int64_t accumulationColumns(Format format, int64_t columns);

/// One row of a product with float weights, the definition: the input is rounded to the weight's
/// type (f16, bf16; f32 is left alone), products and sums are float32, from the first column to the
/// last. `weights` are the row's bits: f16 or bf16.
float floatProduct(Format::Element element, llvm::ArrayRef<uint16_t> weights,
                   llvm::ArrayRef<float> x);
float floatProduct(llvm::ArrayRef<float> weights, llvm::ArrayRef<float> x);

/// Rounds inputs to what a product with weights of this element reads: f16 or bf16 values; f32
/// unchanged.
void roundActivations(Format::Element element, llvm::ArrayRef<float> x,
                      llvm::MutableArrayRef<float> rounded);

} // namespace sluice::formats

#endif // SLUICE_FORMATS_ACTIVATIONS_H
