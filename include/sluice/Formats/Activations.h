// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// The input of a product with quantized weights, and that product's definition.
//
// An input of an integer-weight product is 16-bit fixed point, with one float32 scale
// per group of 128 consecutive elements, so that the sums inside a group are exact integers: they
// do not depend on the order in which a device adds, and a GPU computes them as two int8 products
// (high and low byte). An input of a product with FP8 weights is scaled alike and then rounded to
// f16 instead, which every device multiplies: no input of a model leaves its range.

#ifndef SLUICE_FORMATS_ACTIVATIONS_H
#define SLUICE_FORMATS_ACTIVATIONS_H

#include "sluice/Formats/Encoding.h"

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
///   result = sum over blocks of float(sum of (integer - zero) * x16) * (scale * activation scale)
///                               + offset * (activation scale * float(sum of x16))
///
/// An accumulation block is min(weight group, 128) consecutive columns (the row's last one may be
/// shorter). The inner sums are exact int32; the outer sum runs over the blocks in order, in
/// float32. Devices may add blocks in another order.
float integerProduct(const Encoding &format, const EncodedRow &row, llvm::ArrayRef<int16_t> x16,
                     llvm::ArrayRef<float> activationScales);

/// The exact inner sums of the above, for every accumulation block: of the row's integers with x16,
/// and of x16.
struct IntegerSums {
  int32_t products = 0, inputs = 0;
};
llvm::SmallVector<IntegerSums> integerSums(const Encoding &format, const EncodedRow &row,
                                           llvm::ArrayRef<int16_t> x16);

/// Columns of an accumulation block in a row of K columns: min(weight group, 128).
int64_t accumulationColumns(Encoding format, int64_t columns);

/// The same for products with scaled weights that are no integers (E4M3): `halves` are f16 numbers,
/// x * inv rounded to nearest even.
void scaleActivations(llvm::ArrayRef<float> x, llvm::MutableArrayRef<float> halves,
                      llvm::MutableArrayRef<float> scales);

/// One row of a product with such weights, the definition:
///
///   result = sum over blocks of (sum of number * half) * (scale * activation scale)
///
/// Accumulation blocks are as above. Products are exact; sums inside a block are float32, in any
/// order, so they are made in double here, as is the outer sum.
float scaledProduct(const Encoding &format, const EncodedRow &row, llvm::ArrayRef<float> halves,
                    llvm::ArrayRef<float> activationScales);

/// One row of a product with float weights, the definition: the input is rounded to the weight's
/// type (f16, bf16; f32 is left alone), products and sums are float32, from the first column to the
/// last. `weights` are the row's bits: f16 or bf16.
float floatProduct(Encoding::Element element, llvm::ArrayRef<uint16_t> weights,
                   llvm::ArrayRef<float> x);
float floatProduct(llvm::ArrayRef<float> weights, llvm::ArrayRef<float> x);

/// Rounds inputs to what a product with weights of this element reads: f16 or bf16 values; f32
/// unchanged.
void roundActivations(Encoding::Element element, llvm::ArrayRef<float> x,
                      llvm::MutableArrayRef<float> rounded);

} // namespace sluice::formats

#endif // SLUICE_FORMATS_ACTIVATIONS_H
