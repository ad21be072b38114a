// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Tiles of products of many tokens.

#include "GpuScheduler.h"

#include "sluice/Formats/Activations.h"

#include "llvm/Support/DebugLog.h"
#include "llvm/Support/FormatVariadic.h"
#include "llvm/Support/MathExtras.h"

#define DEBUG_TYPE "fused-assign-schedules"

using namespace mlir;
using namespace sluice;
using llvm::formatv;
using quantized::LayoutKind;

/// Tiles by warpgroups, with the longest ring of stages that fits.
FailureOr<std::vector<GpuScheduler::Tiles>> GpuScheduler::tilesOfWarpgroups(fused::MatmulOp op) {
  std::vector<Tiles> candidates;
  constexpr int64_t warpgroups = 2, warps = warpgroups * fused::MatmulPlan::kGroupWarps, rows = 128,
                    leastStages = 3, mostSplits = 2;
  // Fewer are a pipeline or two, which become straight code: there ptxas spills, and copies end as
  // late as the products.
  constexpr int64_t leastColumns = 512;
  const GpuTuning &tuning = description.gpuTuning;
  fused::PreparedImage image = fused::PreparedImage::get(op.getInput().getType());
  auto type = cast<quantized::QuantizedTensorType>(op.getWeights().front().getType());
  formats::Encoding format = type.getEncoding().getValue();
  bool records = type.getLayout().getKind() == LayoutKind::Records;
  bool isInteger = format.isInteger() && !records;
  // Of integers, high and low bytes are two.
  int64_t instructionColumns = image.paddedTokens * (isInteger ? 2 : 1);
  if (instructionColumns < tuning.warpgroupColumns.value || op.getColumns() < leastColumns ||
      fused::MatmulPlan::warpgroupProblem(op, device))
    return candidates;
  int64_t step = isInteger || records ? formats::activationGroup : 64;
  int64_t chunk = type.getLayout().getColumns();
  int64_t multiprocessors = description.multiprocessors.value;
  // The numbers of small groups and zero points take the registers of half of the tokens.
  bool hasMoreNumbers = isInteger && (format.hasZeroPoint() || fused::accumulationColumns(format) <
                                                                   formats::activationGroup);
  for (int64_t tokens = image.mostTileTokens() / (hasMoreNumbers ? 2 : 1);
       tokens >= image.setTokens; tokens /= 2) {
    if (image.paddedTokens % tokens)
      continue;
    for (int64_t columns : {2 * step, step}) {
      if (columns > step && !isInteger)
        continue;
      if (!records && (chunk % columns || op.getColumns() % columns))
        continue;
      auto planOf = [&](int64_t blocks, int64_t splits, int64_t stages) {
        fused::GpuScheduleAttr schedule =
            gpuSchedule(op, blocks * splits, warps, stages, stages, columns, splits, "weights",
                        /*held=*/0, /*resident=*/1, rows, tokens, warpgroups);
        return std::pair(schedule, fused::MatmulPlan::get(op, schedule, device));
      };
      int64_t stages = tuning.matmulStages.value;
      FailureOr<fused::MatmulPlan> plan = failure();
      for (; stages >= leastStages; --stages) {
        plan = planOf(/*blocks=*/1, /*splits=*/1, stages).second;
        if (failed(plan))
          return failure();
        if (plan->shared <= device.sharedBytes)
          break;
      }
      if (stages < leastStages)
        continue;
      int64_t number = plan->rowGroups * plan->tokenTiles;
      // Blocks that would have no tile share those of others, two and two: larger clusters do not
      // find room on all multiprocessors.
      for (int64_t splits = 1; splits <= mostSplits; splits *= 2) {
        if (splits > 1 && (number * splits > multiprocessors || plan->stages % splits ||
                           plan->steps / splits % 2))
          break;
        auto [schedule, divided] = planOf(std::min(multiprocessors, number), splits, stages);
        if (failed(divided))
          return failure();
        candidates.push_back({schedule, *divided});
      }
      // The longest stages of which several fit.
      break;
    }
  }
  return candidates;
}

/// Tiles by single warps, with the longest stages of which several fit. With `any` one suffices, of
/// any size.
FailureOr<std::vector<GpuScheduler::Tiles>> GpuScheduler::tilesOfWarps(fused::MatmulOp op,
                                                                       bool any) {
  std::vector<Tiles> candidates;
  constexpr int64_t mostRowTiles = 8;
  const GpuTuning &tuning = description.gpuTuning;
  auto type = cast<quantized::QuantizedTensorType>(op.getWeights().front().getType());
  bool records = type.getLayout().getKind() == LayoutKind::Records;
  int64_t step = records                         ? formats::RecordShape::columns
                 : type.getEncoding().isScaled() ? formats::activationGroup
                                                 : 64;
  int64_t chunk = type.getLayout().getColumns();
  if (!records && chunk % step)
    return op.emitOpError() << "reads weights in chunks of " << chunk
                            << " columns, which are no multiple of " << step;
  fused::PreparedImage image = fused::PreparedImage::get(op.getInput().getType());
  int64_t multiprocessors = description.multiprocessors.value;
  for (int64_t tokens = std::min(image.paddedTokens, tuning.matmulTokens.value);
       tokens >= image.setTokens; tokens = tokens / 2 / image.setTokens * image.setTokens) {
    for (int64_t rowTiles = mostRowTiles; rowTiles; rowTiles /= 2) {
      auto planOf = [&](int64_t blocks, int64_t stages, int64_t columns) {
        fused::GpuScheduleAttr schedule = gpuSchedule(
            op, blocks, tuning.matmulWarps.value, stages, stages, columns, /*splits=*/1, "weights",
            /*held=*/0, /*resident=*/1, rowTiles * formats::tileRows, tokens);
        return std::pair(schedule, fused::MatmulPlan::get(op, schedule, device));
      };
      for (int64_t columns = records ? 8 * step : chunk; columns >= step; columns -= step) {
        if (!records && chunk % columns)
          continue;
        FailureOr<fused::MatmulPlan> one = planOf(/*blocks=*/1, /*stages=*/1, columns).second;
        if (failed(one))
          return failure();
        int64_t room = device.sharedBytes - one->shared;
        if (room < 0)
          continue;
        int64_t stages = std::min(tuning.matmulStages.value, room / one->stageBytes + 1);
        // Two suffice where shorter ones would leave warps that divide the columns without work.
        int64_t wanted = one->stageSteps <= one->slices ? 2 : 3;
        if (!any && (stages < std::min(wanted, one->stages) ||
                     rowTiles * one->weightBytes > tuning.matmulWeightBytes.value))
          continue;
        auto [schedule, plan] =
            planOf(std::min(multiprocessors, one->rowGroups * one->tokenTiles), stages, columns);
        if (failed(plan))
          return failure();
        candidates.push_back({schedule, *plan});
        break;
      }
    }
  }
  return candidates;
}

FailureOr<ScheduleChoice> GpuScheduler::choose(fused::MatmulOp op) {
  if (!op.getInput().getType().getImage())
    return op.emitOpError() << "reads rows of a host, target " << description.name << " is a GPU";
  auto type = dyn_cast<quantized::QuantizedTensorType>(op.getWeights().front().getType());
  if (!type || !type.getLayout().isForGpu())
    return op.emitOpError() << "reads weights that are not packed for a GPU ("
                            << op.getWeights().front().getType() << "), target " << description.name
                            << " is one";
  FailureOr<std::vector<Tiles>> candidates = tilesOfWarpgroups(op);
  for (bool any : {false, true})
    if (succeeded(candidates) && candidates->empty())
      candidates = tilesOfWarps(op, any);
  if (failed(candidates))
    return failure();
  // The largest tiles come first. Smaller ones copy more of what other blocks copy, too, about
  // which predictions are least certain: those of fewer tokens must save a twentieth, those of
  // fewer rows an eighth, and so must others where no multiprocessor is without work.
  const Tiles *best = nullptr;
  double shortest = std::numeric_limits<double>::infinity();
  for (const Tiles &tiles : *candidates) {
    double seconds = model.matmul(matmulLoad(op, tiles.schedule)).at(1).seconds();
    LDBG() << op->getName() << ": " << tiles.schedule << ", " << seconds * 1e6 << " us";
    double share = 1;
    if (best && tiles.plan.tileTokens < best->plan.tileTokens)
      share = 0.95;
    else if (best && (tiles.plan.rowTiles < best->plan.rowTiles ||
                      best->plan.grid == description.multiprocessors.value))
      share = 0.875;
    if (seconds < share * shortest) {
      shortest = seconds;
      best = &tiles;
    }
  }
  if (!best)
    return op.emitOpError() << "finds no stage that fits the shared memory of target "
                            << description.name;
  const fused::MatmulPlan &plan = best->plan;
  return ScheduleChoice{
      best->schedule,
      formatv("{0} tiles of {1} rows by {2} tokens, each by {3} blocks, the fastest of {4} ways; a "
              "ring of {5} x {6} bytes",
              plan.rowGroups * plan.tokenTiles, plan.rowTiles * formats::tileRows, plan.tileTokens,
              best->schedule.getSplits(), candidates->size(), plan.ring, plan.stageBytes)};
}
