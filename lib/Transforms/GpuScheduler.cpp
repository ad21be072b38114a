// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

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

FailureOr<ScheduleChoice> GpuScheduler::choose(fused::EmbeddingOp op) {
  auto result = op.getResult().getType();
  int64_t columns = std::min(result.getDimSize(1), description.gpuTuning.embeddingColumns.value);
  int64_t blocks = result.getDimSize(0) * llvm::divideCeil(result.getDimSize(1), columns);
  return ScheduleChoice{
      gpuSchedule(op, blocks, description.gpuTuning.embeddingWarps.value, /*stages=*/1,
                  /*inFlight=*/1, columns, /*splits=*/1, "none"),
      formatv("a row of {0} numbers a token, {1} a block", result.getDimSize(1), columns)};
}

/// Whether a block of the product before or after attention can have so few registers that
/// attention's kernel leaves room for it: kernels of layout mma have anyhow; of those of records,
/// tables and several encodings would have to spill (docs/kernels.md).
bool GpuScheduler::canStandBesideAttention(fused::MatvecOp op) {
  quantized::QuantizedTensorType type = op.getPackedType();
  return device.bulkCopies && op.getTokens() == 1 && op.getWeights().size() == 1 && type &&
         type.getLayout().getKind() == LayoutKind::Records &&
         type.getEncoding().getValue().code() != formats::Encoding::Code::Table;
}

/// Its copies go on (or start) while attention runs, then. Records want more registers, which slows
/// large products down by more than is saved. Both products of an attention are decided together,
/// as they were measured.
bool GpuScheduler::standsBesideAttention(fused::MatvecOp op) {
  auto attention = op.getInput().getDefiningOp<fused::AttentionOp>();
  for (Operation *user : op->getUsers())
    if (!attention)
      attention = dyn_cast<fused::AttentionOp>(user);
  if (!attention || !canStandBesideAttention(op))
    return false;
  double seconds = 0;
  for (fused::MatvecOp product : neighbours(attention))
    if (canStandBesideAttention(product))
      seconds += model.besideAttentionSeconds(kernelLoad(product).weights);
  return seconds < 0;
}

FailureOr<ScheduleChoice> GpuScheduler::choose(fused::MatvecOp op) {
  quantized::QuantizedTensorType type = op.getPackedType();
  if (!type || !type.getLayout().isForGpu())
    return op.emitOpError() << "reads weights that are not packed for a GPU ("
                            << op.getWeights().front().getType() << "), target " << description.name
                            << " is one";
  const GpuTuning &tuning = description.gpuTuning;
  int64_t inFlight = tuning.productInFlight.value;
  int64_t resident = standsBesideAttention(op) ? 2 : 1;
  auto planOf = [&](int64_t blocks, int64_t stages, int64_t held) {
    fused::GpuScheduleAttr schedule =
        gpuSchedule(op, blocks, tuning.productWarps.value, stages, std::min(inFlight, stages),
                    type.getLayout().getColumns(), /*splits=*/1, "weights", held, resident);
    return std::pair(schedule, fused::ProductPlan::get(op, schedule, device));
  };
  FailureOr<fused::ProductPlan> least = planOf(/*blocks=*/1, /*stages=*/1, /*held=*/1).second;
  if (failed(least))
    return failure();
  int64_t tiles = least->tiles, stageBytes = least->stageBytes;
  int64_t blocks = std::min(description.multiprocessors.value, tiles);
  int64_t perBlock = llvm::divideCeil(tiles, blocks), read = perBlock * least->chunks;
  // Two products whose rings share a multiprocessor probably compete for the memory. A ring of so
  // many stages keeps the next product's blocks out until this one's are done. Behind attention a
  // ring has to fit beside attention's.
  int64_t alone = device.sharedBytes / 2 / stageBytes + 2;
  bool besideAttention = op.getInput().getDefiningOp<fused::AttentionOp>() != nullptr;
  KernelLoad load = kernelLoad(op);

  std::optional<std::pair<int64_t, int64_t>> best; // Stages, and tiles that are held.
  double shortest = std::numeric_limits<double>::infinity();
  int64_t ways = 0;
  for (int64_t held = std::min(perBlock, tuning.productHeldTiles.value); held; held /= 2)
    for (int64_t stages = 1; stages <= tuning.productStages.value; ++stages) {
      if (planOf(blocks, stages, held).second->shared > device.sharedBytes)
        break;
      ProductSchedule schedule;
      schedule.wantedStages = std::min(read, tuning.productStages.value);
      schedule.stages = std::min(stages, schedule.wantedStages);
      schedule.wantedUnderWay = std::min(read, inFlight);
      schedule.underWay = std::min(stages, schedule.wantedUnderWay);
      schedule.sums = llvm::divideCeil(perBlock, held);
      schedule.hasRoomForRival = !besideAttention && stages < alone;
      double seconds =
          model.product(load.weights, load.place, load.tokens, schedule).at(1).seconds();
      ++ways;
      if (seconds < shortest) {
        shortest = seconds;
        best = {stages, held};
      }
    }
  if (!best)
    return op.emitOpError() << "needs " << planOf(blocks, 1, 1).second->shared
                            << " bytes of shared memory for one stage, target " << description.name
                            << " has " << device.sharedBytes << " a block";
  auto [stages, held] = *best;
  LDBG() << op->getName() << ": " << stages << " stages, the fastest of " << ways << " ways, "
         << shortest * 1e6 << " us";
  StringRef limit = stages > read && stages == alone
                        ? "so much that no other product's ring fits beside it"
                    : stages >= read                      ? "all that a block reads"
                    : stages < tuning.productStages.value ? "what fits in shared memory"
                                                          : "enough to bridge two kernels";
  // All tiles that a block has need not be told.
  auto [schedule, plan] = planOf(blocks, stages, held < perBlock ? held : 0);
  if (failed(fused::checkShared(op, schedule, plan->shared, device)))
    return failure();
  return ScheduleChoice{schedule, formatv("{0} tiles on {1} multiprocessors; a ring of {2} x {3} "
                                          "bytes, {4}",
                                          tiles, description.multiprocessors.value, stages,
                                          stageBytes, limit)};
}

FailureOr<ScheduleChoice> GpuScheduler::choose(fused::PrepareOp op) {
  // As many warps as have a vector of 8 columns to start with.
  constexpr int64_t columns = 8 * fused::kWarpThreads;
  int64_t warps = std::clamp<int64_t>(llvm::divideCeil(op.getColumns(), columns), 1,
                                      description.gpuTuning.productWarps.value);
  return ScheduleChoice{gpuSchedule(op, op.getTokens(), warps, /*stages=*/1, /*inFlight=*/1,
                                    op.getColumns(),
                                    /*splits=*/1, "none"),
                        formatv("a row of {0} numbers a token, {1} warps", op.getColumns(), warps)};
}

FailureOr<ScheduleChoice> GpuScheduler::choose(fused::AppendOp op) {
  auto keys = SymbolTable::lookupNearestSymbolFrom<model::CacheOp>(op, op.getKeysAttr());
  if (!keys)
    return op.emitOpError() << "names an unknown cache " << op.getKeysAttr();
  int64_t heads = keys.getCacheType().getHeads(), dim = keys.getCacheType().getHeadDim();
  int64_t group = op.getQuery().getType().getDimSize(1) / dim / heads;
  // A warp for each query head, the key and the value.
  int64_t warps = std::min<int64_t>(group + 2, description.gpuTuning.productWarps.value);
  return ScheduleChoice{gpuSchedule(op, op.getTokens() * heads, warps, /*stages=*/1, /*inFlight=*/1,
                                    dim,
                                    /*splits=*/1, "none"),
                        formatv("{0} heads of a token in a block", group + 2)};
}

FailureOr<ScheduleChoice> GpuScheduler::choose(fused::LastRowOp op) {
  int64_t width = op.getType().getDimSize(1), warps = description.gpuTuning.embeddingWarps.value;
  int64_t rows = op.getType().getDimSize(0);
  return ScheduleChoice{gpuSchedule(op, rows * llvm::divideCeil(width, warps * fused::kWarpThreads),
                                    warps,
                                    /*stages=*/1, /*inFlight=*/1, width, /*splits=*/1, "none"),
                        formatv("{0} row(s) of {1} numbers", rows, width)};
}

FailureOr<ScheduleChoice> GpuScheduler::choose(fused::SampleOp op) {
  const GpuTuning &tuning = description.gpuTuning;
  auto type = op.getLogits().getType();
  int64_t tokens = type.getDimSize(0), logits = type.getDimSize(1);
  int64_t splits = llvm::bit_floor(static_cast<uint64_t>(
      std::clamp<int64_t>(logits / tuning.sampleLogits.value, 1, tuning.sampleSplits.value)));
  int64_t share = llvm::divideCeil(logits, splits);
  return ScheduleChoice{gpuSchedule(op, tokens * splits, tuning.sampleWarps.value, /*stages=*/1,
                                    /*inFlight=*/1, share, splits, "none"),
                        formatv("{0} logits, {1} a block", logits, share)};
}

FailureOr<ScheduleChoice> GpuScheduler::choose(fused::RowsOp op) {
  // As many warps as have a column or a pair to start with.
  int64_t places = op.getWidth() / (op.getHeadDim() ? 2 : 1);
  int64_t warps = std::clamp<int64_t>(llvm::divideCeil(places, fused::kWarpThreads), 1,
                                      description.gpuTuning.productWarps.value);
  return ScheduleChoice{gpuSchedule(op, op.getTokens(), warps, /*stages=*/1, /*inFlight=*/1,
                                    op.getWidth(),
                                    /*splits=*/1, "none"),
                        formatv("a row of {0} numbers a token, {1} warps", op.getWidth(), warps)};
}
