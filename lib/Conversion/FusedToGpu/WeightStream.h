// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Parts of packed weights as a block of a persistent kernel reads them: through one ring, as units
// of 16 rows by 128 columns (layout mma) or 256 (records), each of which a warp multiplies.

#ifndef SLUICE_LIB_CONVERSION_FUSEDTOGPU_WEIGHTSTREAM_H
#define SLUICE_LIB_CONVERSION_FUSEDTOGPU_WEIGHTSTREAM_H

#include "GroupExchange.h"
#include "RecordProduct.h"
#include "StageRing.h"

#include "dialects/Fused/PersistentPlan.h"
#include "sluice/Formats/Packing.h"

#include <functional>

namespace sluice::device {

/// A block's part of a product: some tiles of a weight, of each the same units of columns. A stage
/// has several tiles, or a part of one:
///
///     mma:      | elements [stageTiles][stageUnits] | scales [stageTiles][stageUnits] |
///     records:  | records [stageTiles][stageUnits] |
struct StreamedPart : fused::PartStages {
  /// `groups`: groups of 128 columns of a tile, in the block that has most.
  StreamedPart(formats::PackedShape shape, int64_t groups, const fused::PersistentPlan &plan);

  /// What is wrong with a weight; nothing if it can be streamed.
  static std::optional<std::string> problem(const formats::PackedShape &shape);

  formats::PackedShape shape;
  fused::WeightUnit unit;
  int64_t tileUnits; ///< units of a tile that the block has
  int64_t allUnits;  ///< units of a tile that there are
  int64_t unitBytes; ///< of elements; of a record, of all
  /// Bytes that the row's last unit lacks of that, where the columns are no whole groups.
  int64_t missingBytes = 0;
  bool isRecord() const { return unit.isRecord; }
  /// Units of so many groups of 128 columns.
  int64_t unitGroups() const { return unit.columns / kGroupColumns; }
  /// Whether a stage is a chunk of a packed tile as it lies in memory.
  bool isWholeChunk() const {
    bool whole = tileUnits == allUnits && stageTiles == 1 && tileUnits % units == 0;
    if (isRecord())
      return whole;
    return whole && !missingBytes && shape.layout().columns == units * kGroupColumns &&
           shape.chunkScales(0) == units * unitBytes;
  }
  static constexpr int64_t kGroupColumns = fused::PersistentPlan::kGroup;

  /// What the kernel knows only when it runs. `groupCount` is at most the part's groups; both are
  /// whole units.
  struct Extent {
    mlir::Value weight, firstTile, tileCount, firstGroup, groupCount;
    /// The weight's tile that is tile number n; null: tile n.
    std::function<mlir::Value(mlir::Value n)> placeOf = nullptr;

    mlir::Value place(mlir::Value tile) const { return placeOf ? placeOf(tile) : tile; }
  };
};

/// The two kinds of warps of a persistent kernel: all threads that compute, and the warp that
/// copies. Divides registers among them, where the plan does.
void computeAndCopy(DeviceBuilder &k, const fused::PersistentPlan &plan, mlir::Value thread,
                    llvm::function_ref<void()> compute, llvm::function_ref<void()> copy);

/// The ring of a persistent kernel. The copying warp and every other one count the stages that have
/// passed, from the kernel's start on.
class WeightStream {
public:
  using Values = DeviceBuilder::Values;
  /// `shared`: start of the block's shared memory.
  WeightStream(DeviceBuilder &k, const fused::PersistentPlan &plan, mlir::Value shared);

  /// By one thread.
  void initBarriers();

  /// Stages of a part.
  mlir::Value stageCount(const StreamedPart &part, const StreamedPart::Extent &extent);

  /// A part that is copied now or later, whose stages are brought into the L2 cache while the ring
  /// has no room: the memory goes on while a step waits.
  struct Later {
    const StreamedPart &part;
    const StreamedPart::Extent &extent;
    /// The first stage that is not copied yet; null: none is.
    mlir::Value first = {};
  };

  /// By the copying warp: copies the part's stages, at most `inFlight` of all stages at a time. A
  /// lane copies a tile of a stage. Carried: the stages so far, the oldest that may be under way,
  /// and the stages of `later` that need not be brought any more.
  Values copy(const StreamedPart &part, const StreamedPart::Extent &extent, int64_t inFlight,
              mlir::ValueRange carried, mlir::Value lane, const Later *later = nullptr);

  /// By the copying warp: copies one stage. `body` has a lane expect bytes at the stage's barrier,
  /// and lanes ask for them. Carried as above.
  Values copyStage(int64_t inFlight, mlir::ValueRange carried, mlir::Value lane, const Later *later,
                   llvm::function_ref<void(mlir::Value to, mlir::Value barrier)> body);
  /// By a warp that computes: waits for a stage; gives its place.
  mlir::Value take(mlir::Value stage);
  /// By a warp, when it reads nothing more of the stage: it stands for so many of all warps.
  void release(mlir::Value stage, mlir::Value lane, mlir::Value count);

  /// By threads that compute: runs `body` for runs of tiles whose sums find room at the same time;
  /// `passed` stages came before the first one. A block has at most `mostTiles`. Returns the stages
  /// that have passed in the end.
  mlir::Value forBatches(const StreamedPart &part, const StreamedPart::Extent &extent,
                         int64_t mostTiles, mlir::Value passed,
                         llvm::function_ref<void(const StreamedPart::Extent &batch,
                                                 mlir::Value firstTile, mlir::Value passed)>
                             body);

  /// By a warp that computes: multiplies its units of the part, of which `passed` stages came
  /// before, by `input`, whose first group is that of the part's first column. Sums go to shared
  /// memory, `sumsFrom` bytes behind the first ones, where finish() adds them after a barrier.
  void multiply(const StreamedPart &part, const StreamedPart::Extent &extent, mlir::Value passed,
                mlir::Value warp, mlir::Value lane, const GroupExchange &input,
                int64_t sumsFrom = 0);
  /// By all `threads` threads that compute: `body` gets the sums of rows r and r + 8 of a tile.
  void finish(
      const StreamedPart &part, const StreamedPart::Extent &extent, mlir::Value thread,
      int64_t threads,
      llvm::function_ref<void(mlir::Value tile, mlir::Value row, mlir::Value low, mlir::Value high)>
          body,
      int64_t sumsFrom = 0);

private:
  /// Sets of tiles that share their stages.
  mlir::Value setCount(const StreamedPart &part, const StreamedPart::Extent &extent) {
    return k.div(k.add(extent.tileCount, part.stageTiles - 1), part.stageTiles);
  }
  /// Units of whole groups of 128 columns.
  mlir::Value unitsOf(const StreamedPart &part, mlir::Value groups) {
    return part.unitGroups() == 1 ? groups : k.div(groups, part.unitGroups());
  }
  mlir::Value slotOf(mlir::Value stage) { return k.rem(stage, plan.schedule.stages); }
  mlir::Value parityOf(mlir::Value stage) {
    return k.bitAnd(k.div(stage, plan.schedule.stages), 1);
  }
  /// By the copying warp: brings stages of a later part while there is no `room` in the ring.
  /// Returns how many need not be brought any more.
  mlir::Value bringLater(const Later &later, mlir::Value brought, mlir::Value lane,
                         mlir::Value room, mlir::Value parity);
  /// Offset and bytes of a stage that is a chunk of a packed tile.
  std::pair<mlir::Value, mlir::Value>
  chunkOf(const StreamedPart &part, const StreamedPart::Extent &extent, mlir::Value number);
  void copyTile(const StreamedPart &part, const StreamedPart::Extent &extent, mlir::Value tile,
                mlir::Value place, mlir::Value firstUnit, mlir::Value count, mlir::Value to,
                mlir::Value barrier);
  /// What a warp needs of a unit's columns of the input.
  struct Operands {
    llvm::SmallVector<Values> fragments;
    mlir::Value scale;
    RecordProduct::Input ofRecord;
  };
  Operands loadOperands(const StreamedPart &part, const GroupExchange &input, mlir::Value unit,
                        mlir::Value lane);
  /// Sums of rows r and r + 8, r = lane / 4, of one unit of 128 columns.
  std::pair<mlir::Value, mlir::Value> multiplyUnit(const StreamedPart &part, mlir::Value stage,
                                                   mlir::Value unit, mlir::Value isLast,
                                                   const Operands &operands, mlir::Value lane);
  /// The same of a record, each lane's of its sub-block.
  Values multiplyRecord(const StreamedPart &part, const GroupExchange &input, mlir::Value record,
                        const Operands &operands, mlir::Value lane,
                        llvm::function_ref<void()> release);

  DeviceBuilder &k;
  const fused::PersistentPlan &plan;
  mlir::Value ring, full, empty, sums;
};

} // namespace sluice::device

#endif // SLUICE_LIB_CONVERSION_FUSEDTOGPU_WEIGHTSTREAM_H
