// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// What each operation means, one function per operation.
//
// Operands and results are float32 (or the type that the operation rounds to); everything between
// is double, so a result is the correctly rounded value of its formula but for the last bit.
// Devices compute in float32 and differ from it by their own rounding errors alone. Roundings that
// belong to an operation's definition (fixed-point inputs, f16 softmax weights) are made, and sums
// of which the definition leaves the order open are added in double.
//
// Shapes are those that the operations' verifiers demand and are not checked again. Errors are
// about numbers: a token outside the table, a position outside the cache.

#ifndef SLUICE_REFERENCE_OPS_H
#define SLUICE_REFERENCE_OPS_H

#include "dialects/Model/Semantics.h"
#include "sluice/Reference/Tensor.h"

#include "llvm/Support/Error.h"

namespace sluice::reference {

/// Rounds every number to `element`: f16, bf16 or f32, which is left alone.
void roundTo(formats::Encoding::Element element, Tensor &tensor);

//===----------------------------------------------------------------------===//
// model
//===----------------------------------------------------------------------===//

/// tokens [S], table [V, H] -> [S, H]. Errors: a token that is not in 0 .. V-1.
llvm::Expected<Tensor> embedding(const Tensor &tokens, const Tensor &table);

/// 1 / sqrt(mean(x^2) + epsilon)
double rmsFactor(llvm::ArrayRef<float> row, double epsilon);

/// x / sqrt(mean(x^2) + epsilon) * gain, as many elements at a time as the gain has: a row, or a
/// head; with `plusOne`, * (gain + 1).
Tensor rmsNorm(const Tensor &input, const Tensor &gain, double epsilon, bool plusOne = false);

/// Element j of a row becomes the input's element order[j].
Tensor reorder(const Tensor &input, const Tensor &order);

/// (x - mean(x)) / sqrt(mean((x - mean(x))^2) + epsilon) * gain + bias (null: 0), a row at a time.
Tensor layerNorm(const Tensor &input, const Tensor &gain, const Tensor *bias, double epsilon);

/// input [S, K], weight [N, K], bias [N] or null -> [S, N].
Tensor linear(const Tensor &input, const Tensor &weight, const Tensor *bias);

/// Turns the elements of pair i of each head by position * frequencies[i]; cosines and sines are
/// multiplied by `magnitude`.
Tensor rotary(const Tensor &input, const Tensor &positions, model::RotaryPairs pairs,
              llvm::ArrayRef<double> frequencies, double magnitude = 1);

/// The same with cosines and sines from a table [positions, d]: cosines, then sines.
/// Errors: a position outside the table.
llvm::Expected<Tensor> rotary(const Tensor &input, const Tensor &positions,
                              model::RotaryPairs pairs, const Tensor &table);

/// Row p: cos(p f_i) for all i, then sin(p f_i), times `magnitude`, rounded once.
Tensor ropeTable(int64_t positions, llvm::ArrayRef<double> frequencies, double magnitude = 1);

/// Every block of `block` elements (a power of two) times the Walsh-Hadamard matrix over the square
/// root of `block`.
Tensor hadamard(const Tensor &input, int64_t block);

/// Writes each row of `input` at its position of its sequence in `cache`, rounded to the cache's
/// encoding. Errors: a position outside the cache.
llvm::Error cacheAppend(Cache &cache, const Tensor &input, const Tensor &positions);

/// softmax(q K^T * scale) V for every query head of every row over positions 0 .. its own, or the
/// last `window` of them; query head h reads key/value head h / (query heads / key heads). With a
/// `softCap` of c each scaled score s is c tanh(s / c). Errors: a position outside the caches.
llvm::Expected<Tensor> attention(const Tensor &query, const Cache &keys, const Cache &values,
                                 const Tensor &positions, double scale,
                                 std::optional<int64_t> window,
                                 std::optional<double> softCap = std::nullopt);

//===----------------------------------------------------------------------===//
// quantized
//===----------------------------------------------------------------------===//

/// The search of Formats/Quantizer.h. Errors: numbers that the format cannot hold.
llvm::Expected<QuantizedMatrix> quantize(const Tensor &input, formats::Encoding format);

/// The values of Formats/Encoding.h.
Tensor dequantize(const QuantizedMatrix &input);

//===----------------------------------------------------------------------===//
// fused
//===----------------------------------------------------------------------===//

/// The products of fused.matvec: input [S, K], weight [N, K] -> [S, N], with the input rounded as
/// the weight's format demands (Formats/Activations.h).
Tensor product(const Tensor &input, const QuantizedMatrix &weight);
/// The same for a builtin tensor of `element`.
Tensor product(const Tensor &input, const Tensor &weight, formats::Encoding::Element element);

/// The attention of fused.attention: the same with query and softmax weights rounded as the caches'
/// encodings have it (docs/numerics.md); the sum that normalises is of unrounded weights.
llvm::Expected<Tensor> fusedAttention(const Tensor &query, const Cache &keys, const Cache &values,
                                      const Tensor &positions, double scale,
                                      std::optional<int64_t> window,
                                      std::optional<double> softCap = std::nullopt);

/// Rows of a quantized table. Errors as of the float one.
llvm::Expected<Tensor> embedding(const Tensor &tokens, const QuantizedMatrix &table);

/// [S]: the token that each row of logits [S, V] and its words [S, 8] choose, -1 where none can be
/// chosen. The rule is that of sluice-runtime/SamplingWords.h, in its float32 weights and exact
/// sums.
Tensor sample(const Tensor &logits, const Tensor &options);

//===----------------------------------------------------------------------===//
// Elementwise
//===----------------------------------------------------------------------===//

/// Additions, activations and so on, by their formula (dialects/Model/Semantics.h). An operand of
/// fewer dimensions than the first is repeated for every row. The result is float32; a narrower
/// type is rounded to afterwards.
Tensor elementwise(model::ElementFunction<model::DoubleArithmetic> function,
                   llvm::ArrayRef<const Tensor *> operands);

} // namespace sluice::reference

#endif // SLUICE_REFERENCE_OPS_H
