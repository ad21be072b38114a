// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// What the kernels of products of many tokens have in common: the tiles that a block takes, the
// numbers of groups, and what becomes of a tile's sums.

#ifndef SLUICE_LIB_CONVERSION_FUSEDTOGPU_MATMULTILES_H
#define SLUICE_LIB_CONVERSION_FUSEDTOGPU_MATMULTILES_H

#include "Kernels.h"
#include "StageRing.h"

namespace sluice::device {

class MatmulTiles : protected fused::MatmulPlan {
public:
  MatmulTiles(Kernel &kernel, fused::MatmulOp op, const fused::MatmulPlan &plan,
              llvm::SmallVector<PackedSegment> segments)
      : fused::MatmulPlan(plan), kernel(kernel), k(kernel.k), op(op), segments(std::move(segments)),
        splits(kernel.schedule.getSplits()) {}

protected:
  using Value = mlir::Value;
  using Values = DeviceBuilder::Values;

  /// What a block computes at a time.
  struct Tile {
    Value rowGroup, tokenTile;
    Value tokens; ///< active tokens, tileTokens at most
  };
  /// A warp's sums: [row tile][8 tokens][row r: tokens 2t, 2t + 1; row r + 8: the same], t being
  /// lane % 4 and r lane / 4.
  size_t sumNumber(int64_t rowTile, int64_t block, int64_t number) const {
    return (rowTile * (warpTokens / 8) + block) * 4 + number;
  }
  /// Of an accumulation block, for rows r and r + 8: as they lie in memory, and to be multiplied
  /// with.
  struct RawNumbers {
    Value scales, zeros; ///< vectors; null without zero points
  };
  struct BlockNumbers {
    Values scales, zeros;
  };

  StageRing stageRing() { return {k, ring, fullAt}; }
  Value divide(Value x, Value y) { return mlir::arith::DivUIOp::create(k.b, k.loc, x, y); }
  /// Finds where everything lies in shared memory, and sets the barriers up, of which `copiers`
  /// threads fill a stage and `readers` warps read it.
  void start(int64_t copiers, int64_t readers);
  /// A number of the weight that a tile of 16 rows is in.
  Value ofPart(Value tile, llvm::function_ref<Value(const fused::PackedPart &, size_t)> number);
  /// Of a tile of 16 rows.
  Value weightPointer(Value tile);
  Values forEachTile(mlir::ValueRange carried,
                     llvm::function_ref<Values(const Tile &, mlir::ValueRange carried)> body);
  /// Place `index` of things of `bytes` each, of which the last step, if it is not like the others,
  /// has `existing`: behind them, the last once more.
  Value clampedPlace(Value isLast, int64_t index, int64_t existing, int64_t bytes);
  /// The numbers of the accumulation blocks of step `number`, from the device's memory; `weights`
  /// is the row tile's pointer.
  llvm::SmallVector<RawNumbers> loadNumbers(Value weights, Value number, Value isLast);
  BlockNumbers numbersOf(const RawNumbers &raw);
  /// Of four words of int4 weights, two operands of int8: 16 times the elements.
  llvm::SmallVector<Values> int4Operands(const Values &words);
  /// The numbers of tokens 2t and 2t + 1 of a block in row `row` of a section of the stage.
  Values loadPair(Value stage, int64_t section, Value row, int64_t block, mlir::Type element);
  Value exactSum(Value high, Value low) { return k.add(k.shl(high, 8), low); }
  /// Sum `number` (of a block's four) of an accumulation block's integers, with zero points.
  Value exactFloat(Value high, Value low, const BlockNumbers &block, const Values &inputSums,
                   int64_t number);
  /// Runs `body` for the sets of a tile that have active tokens, with their first one.
  void forEachSetOf(const Tile &tile, llvm::function_ref<void(int64_t first)> body);
  /// Writes a warp's sums of a set to shared memory, [token][8 pairs of rows].
  void storeSums(Value to, mlir::ValueRange sums, int64_t rowTile, int64_t first);
  /// Of weights in records: loads the scales of the tile's tokens `thread`, `thread` + `threads`
  /// and so on, while there is other work; `finish` stores those of the block's threads.
  void loadTokenScales(Value thread, int64_t threads, const Tile &tile);
  /// Of weights in records: what sums are multiplied with besides a token's scale.
  Value recordFactor(Value rowTile);
  /// Runs the epilogue for a tile whose sums the block's threads have.
  mlir::LogicalResult finish(Value thread, const Tile &tile, mlir::ValueRange sums);

  Kernel &kernel;
  DeviceBuilder &k;
  fused::MatmulOp op;
  llvm::SmallVector<PackedSegment> segments;
  /// Blocks of a cluster, which share a tile's columns.
  const int64_t splits;
  Values tokenScales;
  /// `block` is that of the cluster, where blocks share a tile.
  Value block, rank, lane, rowWarp, columnWarp, slice, stagesAt, fullAt, emptyAt, partialSums,
      active;
};

/// The kernel of a plan with `wgmma`.
mlir::LogicalResult emitWgmma(Kernel &kernel, fused::MatmulOp op, const fused::MatmulPlan &plan,
                              llvm::SmallVector<PackedSegment> segments);

} // namespace sluice::device

#endif // SLUICE_LIB_CONVERSION_FUSEDTOGPU_MATMULTILES_H
