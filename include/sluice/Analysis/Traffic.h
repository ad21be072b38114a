// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// What any operation of a decode function moves: kernels (dialects/Fused/Traffic.h), and what is
// not fused.

#ifndef SLUICE_ANALYSIS_TRAFFIC_H
#define SLUICE_ANALYSIS_TRAFFIC_H

#include "dialects/Fused/Fused.h"

namespace sluice {

/// Traffic of one execution of an operation of a decode function, as if it were a kernel of its
/// own.
/// - Fused operations: each value that the operation or its regions use from outside is read once.
/// - Model, arith and dequantize operations: each by itself, operands read from and results written
///   to memory. A dequantize in front of an embedding only is taken to dequantize the rows that are
///   looked up.
/// - plan.dispatch and plan.launch: what their attribute says.
/// - Work that is done at compile time (parameters, quantize) and anything else: nothing.
Traffic computeTraffic(mlir::Operation *op);

/// The cost of dequantizing a matrix in a pass of its own, for one block of elements that share
/// their parameters (scale and zero point): the pass reads elements and parameters, does two
/// operations per element and writes the numbers.
struct DequantizePass {
  /// Elements of a block, bytes of an element and of the block's parameters, bytes of a written
  /// number.
  double block, elementBytes = 1, parameterBytes = 8, resultBytes = 4;

  double operations() const { return 2 * block; }
  double bytes() const { return block * (elementBytes + resultBytes) + parameterBytes; }
  /// Operations per byte: 2B / (5B + 8) for int8 to float32 with 8 bytes of parameters.
  double intensity() const { return operations() / bytes(); }
  /// What intensity() tends to for large blocks.
  double intensityLimit() const { return 2 / (elementBytes + resultBytes); }
  /// Bytes of parameters per element.
  double overhead() const { return parameterBytes / block; }
};

} // namespace sluice

#endif // SLUICE_ANALYSIS_TRAFFIC_H
