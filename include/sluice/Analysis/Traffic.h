// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Bytes that an operation moves between memory and the device that executes it, by class, and its
// operations. A model of the traffic, not a measurement: every value that an operation names is
// read once and every result written once; caches, padding of tiles and partial sectors do not
// exist.

#ifndef SLUICE_ANALYSIS_TRAFFIC_H
#define SLUICE_ANALYSIS_TRAFFIC_H

#include "dialects/Fused/Fused.h"

#include <cstdint>

namespace sluice {

struct Traffic {
  /// Bytes of elements of weight matrices; dequantized matrices that are read back count too.
  int64_t weights = 0;
  /// Bytes of the matrices' scales and zero points.
  int64_t scales = 0;
  /// Bytes of all else that is read: inputs, residuals, positions, tokens, embedding rows, norm
  /// gains, biases, rows of rotary tables.
  int64_t activations = 0;
  /// Bytes read of keys and values for each position of context.
  int64_t keys = 0, values = 0;
  /// Bytes written: results, dequantized matrices, cached keys and values.
  int64_t written = 0;
  /// Multiplications and additions (two for each weight and token) of products, and of
  /// dequantizing in a pass of its own. Norms, activations and rotary embedding are left out: 0.1%
  /// of a product's.
  int64_t operations = 0;
  /// Those of attention, for each position of context.
  int64_t operationsPerPosition = 0;

  /// Bytes read and written with `positions` of context.
  int64_t bytes(int64_t positions) const {
    return weights + scales + activations + written + positions * (keys + values);
  }
  int64_t operationsAt(int64_t positions) const {
    return operations + positions * operationsPerPosition;
  }

  Traffic &operator+=(const Traffic &other);
  bool operator==(const Traffic &) const = default;

  fused::TrafficAttr toAttribute(mlir::MLIRContext *context) const;
  static Traffic fromAttribute(fused::TrafficAttr attribute);
};

/// Traffic of one execution of an operation of a decode function, as if it were a kernel of its
/// own.
/// - Fused operations: each value that the operation or its regions use from outside is read once.
/// - Model, arith and dequantize operations: each by itself, operands read from and results written
/// to memory. A
///   dequantize in front of an embedding only is taken to dequantize the rows that are looked up.
/// - plan.dispatch and plan.launch: what their attribute says.
/// - Work that is done at compile time (parameters, quantize) and anything else: nothing.
Traffic computeTraffic(mlir::Operation *op);

/// Bytes of the elements, and of the scales and zero points, of a quantized or plain matrix (its
/// logical shape).
struct MatrixBytes {
  int64_t elements = 0, scales = 0;
};
MatrixBytes matrixBytes(mlir::Type type);

/// Dequantizing a matrix in a pass of its own, a block of elements that share one set of parameters
/// (scale and zero point): it reads elements and parameters, does two operations an element and
/// writes the numbers.
struct DequantizePass {
  /// Elements of a block, bytes of an element and of the block's parameters, bytes of a written
  /// number.
  double block, elementBytes = 1, parameterBytes = 8, resultBytes = 4;

  double operations() const { return 2 * block; }
  double bytes() const { return block * (elementBytes + resultBytes) + parameterBytes; }
  /// Operations a byte: 2B / (5B + 8) for int8 to float32 with 8 bytes of parameters.
  double intensity() const { return operations() / bytes(); }
  /// What intensity() tends to for large blocks.
  double intensityLimit() const { return 2 / (elementBytes + resultBytes); }
  /// Bytes that the parameters add to an element.
  double overhead() const { return parameterBytes / block; }
};

} // namespace sluice

#endif // SLUICE_ANALYSIS_TRAFFIC_H
