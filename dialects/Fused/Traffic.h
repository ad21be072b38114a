// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Bytes that a kernel moves between memory and the device that executes it, by class, and its
// operations. A model of the traffic, not a measurement: every value that an operation names is
// read once and every result written once; caches, padding of tiles and partial sectors do not
// exist.

#ifndef SLUICE_DIALECTS_FUSED_TRAFFIC_H
#define SLUICE_DIALECTS_FUSED_TRAFFIC_H

#include "mlir/IR/BuiltinAttributes.h"
#include "mlir/IR/Operation.h"

#include <cstdint>

namespace sluice {
namespace fused {
class TrafficAttr;
} // namespace fused

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
  /// Operations of attention, for each position of context.
  int64_t operationsPerPosition = 0;
  /// Positions of context, the latest ones, that attention reads at most; 0: all.
  int64_t window = 0;

  int64_t positionsRead(int64_t positions) const {
    return window ? std::min(window, positions) : positions;
  }
  /// Bytes read and written with `positions` of context.
  int64_t bytes(int64_t positions) const {
    return weights + scales + activations + written + positionsRead(positions) * (keys + values);
  }
  int64_t operationsAt(int64_t positions) const {
    return operations + positionsRead(positions) * operationsPerPosition;
  }
  /// What this comes to with `positions` of context, as traffic of a context of 1. Kernels whose
  /// windows differ can be added up so.
  Traffic at(int64_t positions) const;

  /// Neither has a window.
  Traffic &operator+=(const Traffic &other);
  bool operator==(const Traffic &) const = default;

  fused::TrafficAttr toAttribute(mlir::MLIRContext *context) const;
  static Traffic fromAttribute(fused::TrafficAttr attribute);
};

/// Bytes of the elements, and of the scales and zero points, of a quantized or plain matrix (its
/// logical shape).
struct MatrixBytes {
  int64_t elements = 0, scales = 0;
};
MatrixBytes matrixBytes(mlir::Type type);

namespace traffic {
/// Product of sizes. Types may be written by hand: no shape makes the counts overflow.
int64_t product(llvm::ArrayRef<int64_t> sizes);
/// Bytes of a plain tensor with a static shape; 0 for any other type.
int64_t tensorBytes(mlir::Type type);
/// Bytes of one position of the cache `name`; 0 if there is none.
int64_t cacheBytes(mlir::Operation *from, mlir::FlatSymbolRefAttr name);
/// Bytes read of an operand of an operation for `tokens` tokens.
int64_t readBytes(mlir::OpOperand &use, int64_t tokens);
/// Reading the rows of an embedding table for `tokens` tokens.
Traffic gather(mlir::Type table, int64_t tokens);
/// Attention: per position (of the last `window`, if there is one) it reads a key and a value, and
/// multiplies each query element by one of each.
Traffic attention(mlir::Operation *op, mlir::Value query, mlir::FlatSymbolRefAttr keys,
                  mlir::FlatSymbolRefAttr values, mlir::Value positions,
                  std::optional<int64_t> window);
/// Reading all operands and writing all results.
Traffic elementwise(mlir::Operation *op);
} // namespace traffic

} // namespace sluice

#endif // SLUICE_DIALECTS_FUSED_TRAFFIC_H
