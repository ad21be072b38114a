// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// How attention runs on a GPU.

#include "GpuScheduler.h"

#include "llvm/Support/DebugLog.h"
#include "llvm/Support/FormatVariadic.h"
#include "llvm/Support/MathExtras.h"

#define DEBUG_TYPE "fused-assign-schedules"

using namespace mlir;
using namespace sluice;
using llvm::formatv;

int64_t GpuScheduler::roomBesideProducts(fused::AttentionOp op) {
  int64_t greatest = 0;
  for (fused::MatvecOp product : neighbours(op)) {
    auto schedule = dyn_cast_if_present<fused::GpuScheduleAttr>(product.getScheduleAttr());
    if (!schedule)
      continue;
    FailureOr<fused::ProductPlan> plan = fused::ProductPlan::get(product, schedule, device);
    if (succeeded(plan))
      greatest = std::max(greatest, plan->shared);
  }
  // A multiprocessor has what a block can have, and what is reserved for that block; a second block
  // has a reserve, too (CUDA C++ Programming Guide, "Compute Capability 9.0").
  constexpr int64_t reserved = 1024;
  return device.sharedBytes - greatest - reserved;
}

FailureOr<ScheduleChoice> GpuScheduler::choosePrefill(fused::AttentionOp op) {
  // Four warps have the rows of four query heads.
  constexpr int64_t warps = 4;
  const GpuTuning &tuning = description.gpuTuning;
  auto keys = SymbolTable::lookupNearestSymbolFrom<model::CacheOp>(op, op.getKeysAttr());
  if (!keys)
    return op.emitOpError() << "names an unknown cache " << op.getKeysAttr();
  auto values = SymbolTable::lookupNearestSymbolFrom<model::CacheOp>(op, op.getValuesAttr());
  if (!values)
    return op.emitOpError() << "names an unknown cache " << op.getValuesAttr();
  int64_t heads = keys.getCacheType().getHeads();
  int64_t group = op.getQuery().getType().getDimSize(1) / keys.getCacheType().getHeadDim() / heads;
  int64_t parts = llvm::divideCeil(group, warps);
  int64_t tiles =
      std::min<int64_t>(warps / llvm::divideCeil(group, parts),
                        llvm::divideCeil(op.getTokens(), fused::PrefillAttentionPlan::kTokens));
  bool packed = op.getStarts() != nullptr;
  int64_t sequences = packed ? op.getPages().getType().getDimSize(0) : 1;
  int64_t blocks =
      heads * parts *
      fused::PrefillAttentionPlan::blocksOf(
          op.getTokens(), tiles * fused::PrefillAttentionPlan::kTokens, packed, sequences);
  auto scheduleOf = [&](int64_t splits, int64_t stages, int64_t positions) {
    return gpuSchedule(op, blocks * splits, warps, stages, /*inFlight=*/stages, positions, splits,
                       "cache");
  };
  // Few tokens are few blocks: several divide the positions, as far as there are multiprocessors.
  int64_t splits = 1, most = device.bulkCopies ? tuning.attentionSplits.value : 1;
  int64_t read = context ? context : std::max<int64_t>(keys.getCacheType().getPositions() / 2, 1);
  double shortest = std::numeric_limits<double>::infinity();
  for (int64_t parts = 1;
       parts <= most && (parts == 1 || parts * blocks <= description.multiprocessors.value);
       parts *= 2) {
    AttentionLoad load = attentionLoad(op, scheduleOf(parts, /*stages=*/2, formats::cacheBlock));
    double seconds = model.attention(load).at(read).seconds();
    if (seconds < shortest) {
      shortest = seconds;
      splits = parts;
    }
  }
  auto planOf = [&](int64_t stages, int64_t positions) {
    fused::GpuScheduleAttr schedule = scheduleOf(splits, stages, positions);
    return std::pair(schedule, fused::PrefillAttentionPlan::get(op, schedule, device));
  };
  int64_t positions = formats::cacheBlock;
  if (!values.getCacheType().getEncoding().isInteger()) {
    FailureOr<fused::PrefillAttentionPlan> one = planOf(2, formats::cacheTile).second;
    if (failed(one))
      return failure();
    if (one->stageBytes >= tuning.promptStageBytes.value)
      positions = formats::cacheTile;
  }
  int64_t stages = tuning.promptStages.value;
  FailureOr<fused::PrefillAttentionPlan> least = planOf(2, positions).second;
  if (failed(least))
    return failure();
  while (stages > 2 && planOf(stages, positions).second->shared > device.sharedBytes)
    --stages;
  auto [schedule, plan] = planOf(stages, positions);
  if (failed(fused::checkShared(op, schedule, plan->shared, device)))
    return failure();
  return ScheduleChoice{
      schedule, formatv("{0} tokens a block of {1} query heads, positions in {2} parts; a ring of "
                        "{3} x {4} bytes",
                        plan->blockTokens(), plan->partHeads, splits, stages, plan->stageBytes)};
}

std::optional<fused::GpuScheduleAttr> GpuScheduler::withRing(fused::AttentionOp op,
                                                             const fused::AttentionPlan &least,
                                                             int64_t splits, int64_t ringBytes) {
  using Plan = fused::AttentionPlan;
  const GpuTuning &tuning = description.gpuTuning;
  int64_t blocks = op.getTokens() * least.heads * splits;
  auto scheduleOf = [&](int64_t warps, int64_t stages, int64_t positions) {
    // Half the multiprocessors or fewer read: the memory needs all that they can have under way.
    return gpuSchedule(op, blocks, warps, stages, /*inFlight=*/stages, positions, splits, "cache");
  };
  auto fits = [&](int64_t warps, int64_t stages, int64_t positions) {
    FailureOr<Plan> plan = Plan::get(op, scheduleOf(warps, stages, positions), device);
    return succeeded(plan) && plan->shared <= device.sharedBytes;
  };
  // Larger stages have more warps that read them. With one stage alone nothing would be on its way
  // while it is read.
  int64_t readers = 1, readerBytes = least.stageBytes / least.readers;
  while (2 * readers <= tuning.attentionWarps.value &&
         2 * readers * least.headParts <= Plan::kMaxWarps &&
         readers * readerBytes < tuning.attentionStageBytes.value &&
         2 * (2 * readers * readerBytes) <= ringBytes &&
         fits(2 * readers * least.headParts, 1, 2 * readers * least.warpPositions()))
    readers *= 2;
  int64_t positions = readers * least.warpPositions(), stageBytes = readers * readerBytes;
  int64_t groups = std::clamp<int64_t>(Plan::kMaxWarps / (readers * least.headParts), 1,
                                       tuning.attentionWarps.value / readers);
  int64_t warps = groups * readers * least.headParts;
  int64_t stages = std::max<int64_t>(2, ringBytes / stageBytes);
  while (stages && !fits(warps, stages, positions))
    --stages;
  if (!stages)
    return std::nullopt;
  // Every warp group has stages of its own.
  stages -= stages % std::min(groups, stages);
  return scheduleOf(warps, stages, positions);
}

FailureOr<ScheduleChoice> GpuScheduler::choose(fused::AttentionOp op) {
  if (op.getActive())
    return choosePrefill(op);
  using Plan = fused::AttentionPlan;
  const GpuTuning &tuning = description.gpuTuning;
  auto keys = SymbolTable::lookupNearestSymbolFrom<model::CacheOp>(op, op.getKeysAttr());
  if (!keys)
    return op.emitOpError() << "names an unknown cache " << op.getKeysAttr();
  int64_t heads = keys.getCacheType().getHeads(), most = tuning.attentionSplits.value;
  FailureOr<Plan> least =
      Plan::get(op,
                gpuSchedule(op, op.getTokens() * heads * most, Plan::kMaxWarps, /*stages=*/1,
                            /*inFlight=*/1, formats::cacheBlock, most, "cache"),
                device);
  if (failed(least))
    return failure();
  int64_t positions = context ? context : std::max<int64_t>(least->reach() / 2, 1);
  // A short ring leaves room for products; where none can stand there, it has no use.
  bool mayBeShort = llvm::any_of(neighbours(op), [](fused::MatvecOp product) {
    auto schedule = dyn_cast_if_present<fused::GpuScheduleAttr>(product.getScheduleAttr());
    return schedule && schedule.getResident() > 1;
  });
  auto planOf = [&](fused::GpuScheduleAttr schedule) { return Plan::get(op, schedule, device); };
  int64_t room = roomBesideProducts(op);
  fused::GpuScheduleAttr best;
  bool bestIsShort = false;
  double shortest = std::numeric_limits<double>::infinity();
  for (int64_t splits = most; splits; splits /= 2)
    for (bool isShort : {true, false}) {
      if (isShort && !mayBeShort)
        continue;
      int64_t bytes = tuning.longRingBytes.value;
      if (isShort)
        bytes = std::min(tuning.shortRingBytes.value, room - (least->shared - least->stageBytes));
      std::optional<fused::GpuScheduleAttr> schedule = withRing(op, *least, splits, bytes);
      if (!schedule)
        continue;
      AttentionLoad load = attentionLoad(op, *schedule);
      load.leavesRoom = mayBeShort && planOf(*schedule)->shared <= room;
      double seconds = model.attention(load).at(positions).seconds();
      LDBG() << op->getName() << ": " << *schedule << ", " << seconds * 1e6 << " us at "
             << positions;
      if (seconds < shortest) {
        shortest = seconds;
        best = *schedule;
        bestIsShort = isShort;
      }
    }
  if (!best) {
    auto one = gpuSchedule(op, op.getTokens() * heads * most, least->headParts, /*stages=*/1,
                           /*inFlight=*/1, least->warpPositions(), most, "cache");
    return op.emitOpError() << "needs " << planOf(one)->shared
                            << " bytes of shared memory for one stage, target " << description.name
                            << " has " << device.sharedBytes << " a block";
  }
  FailureOr<Plan> plan = planOf(best);
  if (failed(fused::checkShared(op, best, plan->shared, device)))
    return failure();
  return ScheduleChoice{
      best, formatv("{0} key/value heads in {1} parts; a {2} ring of {3} bytes for {4} positions",
                    heads, best.getSplits(), bestIsShort ? "short" : "long",
                    best.getStages() * plan->stageBytes, plan->reach())};
}
