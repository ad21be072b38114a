// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// What happens to a step's query, keys and values before any is attended to: the prologue of
// fused.attention, or a fused.append. Work is done head by head.

#ifndef SLUICE_LIB_CONVERSION_FUSEDTOHOST_ATTENTIONPROLOGUE_H
#define SLUICE_LIB_CONVERSION_FUSEDTOHOST_ATTENTIONPROLOGUE_H

#include "Products.h"

#include "../FusedKernels/CachePlaces.h"

#include <functional>

namespace sluice::host {

class AttentionPrologue {
public:
  /// `op` is a fused.attention, with or without a prologue, or a fused.append.
  template <typename Op>
  AttentionPrologue(KernelBuilder &k, Op op, const KernelInterface &interface)
      : op(op), interface(interface), k(k), region(op.getPrologue()), queryOperand(op.getQuery()),
        positions(op.getPositions()), pages(op.getPages()), sequences(ownersOf(op)),
        keysSymbol(op.getKeysAttr()), valuesSymbol(op.getValuesAttr()),
        sourceOf([op](mlir::Value value) mutable { return op.getSource(value); }),
        f32s(k.vec(kLanes, k.f32())), i32s(k.vec(kLanes, k.i32())) {}

  /// Takes the shapes of the caches. Fails, with a message, if the host has no kernels for them.
  mlir::LogicalResult plan();
  formats::CacheShape keys, values;
  int64_t rowBytes() const { return std::max(keys.paddedDim(), values.paddedDim()) * 4; }

  /// Stack memory of rowBytes() bytes: a head, float32, padded with zeros.
  mlir::Value row;
  /// The query that is attended with.
  mlir::Value query();
  /// The position of a token, i64, inside the caches.
  mlir::Value position(mlir::Value token);
  /// The tiles of a key head in both caches. `row` is a row of the step, any where it has one
  /// sequence, or a sequence where attention's tokens are packed.
  std::pair<kernels::HeadTiles, kernels::HeadTiles> tilesOf(mlir::Value row, mlir::Value head);
  /// Writes head `number` of `value`, padded to `padded` elements, to `row`.
  mlir::LogicalResult evaluate(mlir::Value value, mlir::Value token, mlir::Value number,
                               int64_t padded);
  /// Rounds and stores what the prologue appends of a key head, whose tiles these are. Overwrites
  /// `row`.
  mlir::LogicalResult append(mlir::Value token, mlir::Value head, mlir::Value position,
                             const kernels::HeadTiles &keyTiles,
                             const kernels::HeadTiles &valueTiles);
  /// The greatest magnitude of elements [begin, end) of `row` (multiples of 16) as bits.
  mlir::Value greatestMagnitude(int64_t begin, int64_t end);

private:
  friend class Head;
  /// The greatest of them, or the greatest negated one, as bits; 0 if none is positive.
  mlir::Value greatestWithSign(int64_t begin, int64_t end, bool negated);
  /// Rounds `row` and stores it as the key or value of a position.
  void store(const formats::CacheShape &shape, const kernels::HeadTiles &tiles,
             mlir::Value position);

  mlir::Operation *op;
  const KernelInterface &interface;
  KernelBuilder &k;
  mlir::Region &region;
  template <typename Op> static mlir::Value ownersOf(Op op) {
    if constexpr (requires { op.getSequences(); })
      return op.getSequences();
    else
      return mlir::Value();
  }
  mlir::Value queryOperand, positions, pages, sequences;
  mlir::FlatSymbolRefAttr keysSymbol, valuesSymbol;
  std::function<mlir::Value(mlir::Value)> sourceOf;
  mlir::VectorType f32s, i32s;
};

} // namespace sluice::host

#endif // SLUICE_LIB_CONVERSION_FUSEDTOHOST_ATTENTIONPROLOGUE_H
