// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// What a warp does with tiles of keys and values in shared memory, for the query heads of one
// key/value head and one token: scores, online softmax and weighted sums (AttentionKernel.cpp says
// how). Whoever uses it brings tiles and joins the parts of warps.

#ifndef SLUICE_LIB_CONVERSION_FUSEDTOGPU_TILEATTENTION_H
#define SLUICE_LIB_CONVERSION_FUSEDTOGPU_TILEATTENTION_H

#include "AttentionPrologue.h"
#include "AttentionTiles.h"

namespace sluice::device {

class TileAttention : public fused::AttentionShape {
public:
  using Values = DeviceBuilder::Values;

  /// What a warp carries for four query heads. In lane 4g + t: reference point and sum of weights
  /// of head t, and its outputs 16i + g and 16i + g + 8.
  struct Pass {
    mlir::Value reference, sum;
    Values outputs;
  };
  using State = llvm::SmallVector<Pass>;
  struct Query {
    llvm::SmallVector<Values> words; ///< operands of every 32 elements
    mlir::Value factor;              ///< from sums of products to exponents of 2, of head t
  };
  /// Outputs of several warps in shared memory: [parts][query heads][partRow()] floats, and
  /// [parts][query heads] greatest exponents and sums of weights.
  struct Parts {
    mlir::Value outputs, maxima, sums;
    int64_t count;
  };
  struct Joined {
    mlir::Value greatest, output, rowSum;
  };

  TileAttention(DeviceBuilder &k, fused::AttentionOp op, const fused::AttentionShape &shape,
                mlir::Value lane);

  /// Operands of the query heads in shared memory, and their factors (integer keys).
  mlir::Value queriesAt, queryFactorsAt;
  /// The warp's first query head; used where headParts > 1.
  mlir::Value firstHead;
  /// The token's position, and the first one that it reads if there is a window.
  mlir::Value last, oldest;

  /// A state as values that loops carry, and back; that of a warp that has read nothing.
  static Values list(const State &state);
  State stateOf(mlir::ValueRange values) const;
  Values nothing();

  /// Makes the operands of query head `number`, by a warp whose lanes have its elements (as Head).
  void storeQuery(mlir::Value number, const Values &elements);
  llvm::SmallVector<Query> loadQueries();
  /// Attends to the warp's tiles, of which the first has number `firstTile`.
  void consumeTiles(mlir::Value firstTile, mlir::Value keysPlace, mlir::Value valuesPlace,
                    llvm::ArrayRef<Query> queries, State &state);
  /// After the last tile: adds the lanes' sums of weights.
  void addLanes(State &state);
  /// Writes the state as part `part`.
  void storePart(const State &state, const Parts &parts, mlir::Value part);
  /// Element `index` of a query head's output, not yet divided by the sum of weights.
  Joined joinParts(const Parts &parts, mlir::Value head, mlir::Value index);

private:
  /// Numbers of a pass's state.
  int64_t passValues() const { return 2 + outputsPerPart() * valueParts(); }
  /// Float products leave a sum in each of two columns.
  int64_t outputsPerPart() const { return values.encoding.isInteger() ? 2 : 4; }
  int64_t valueParts() const { return values.paddedDim() / 16; }

  mlir::Value floats(mlir::Value base, mlir::Value index) {
    return k.offset(base, k.shl(index, 2));
  }
  /// Exponents of positions 4g .. 4g+3 of a tile for head t.
  Values scoresOf(mlir::Value tile, const Query &query);
  mlir::Value groupSums(const Values &products, int64_t row);
  Values addValues(mlir::Value tiles, llvm::ArrayRef<Values> weights,
                   llvm::ArrayRef<llvm::SmallVector<Values>> scales, mlir::Value firstPosition,
                   mlir::Value keep, mlir::Value unit, mlir::ValueRange outputs);
  /// Whether a position is not attended to: it does not exist yet, or is behind the window.
  mlir::Value isOutside(mlir::Value position);
  /// Masks that leave the positions that are attended to.
  Values attended(mlir::Value firstPosition);
  /// Values of positions that are not attended to must not make a weight of 0 NaN.
  void clearTile(mlir::Value tile, mlir::Value firstPosition);
  llvm::SmallVector<Values> loadScales(const formats::CacheShape &shape, mlir::Value tile);
  /// Four bytes of E4M3 as two pairs of f16.
  Values widenE4M3(mlir::Value word);
  mlir::Value turn(mlir::Value word);

  DeviceBuilder &k;
  fused::AttentionOp op;
  mlir::Value lane, row, column; ///< row, column: lane / 4, lane % 4
};

} // namespace sluice::device

#endif // SLUICE_LIB_CONVERSION_FUSEDTOGPU_TILEATTENTION_H
