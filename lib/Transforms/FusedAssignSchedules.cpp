// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sluice/Transforms/Passes.h"

#include "dialects/Fused/GpuPlan.h"
#include "sluice/Analysis/TimeModel.h"
#include "sluice/Formats/Activations.h"
#include "sluice/Target/GpuDevice.h"
#include "sluice/Target/LoadTarget.h"

#include "mlir/Dialect/Func/IR/FuncOps.h"
#include "llvm/ADT/TypeSwitch.h"
#include "llvm/Support/DebugLog.h"
#include "llvm/Support/FormatVariadic.h"
#include "llvm/Support/MathExtras.h"

#define DEBUG_TYPE "fused-assign-schedules"

namespace sluice {
#define GEN_PASS_DEF_FUSEDASSIGNSCHEDULES
#include "lib/Transforms/Passes.h.inc"

namespace {
using namespace mlir;
using llvm::formatv;
using quantized::LayoutKind;

/// A schedule and why it was chosen.
struct Choice {
  Attribute schedule;
  std::string reason;
};

struct FusedAssignSchedules : impl::FusedAssignSchedulesBase<FusedAssignSchedules> {
  using FusedAssignSchedulesBase::FusedAssignSchedulesBase;
  void runOnOperation() override;

private:
  LogicalResult assign(fused::KernelOp op);
  FailureOr<Choice> chooseHost(Operation *op);
  FailureOr<Choice> chooseGpu(fused::EmbeddingOp op);
  bool standsBesideAttention(fused::MatvecOp op);
  FailureOr<Choice> chooseGpu(fused::MatvecOp op);
  FailureOr<Choice> chooseGpu(fused::PrepareOp op);
  FailureOr<Choice> chooseGpu(fused::MatmulOp op);
  /// A way to divide a product of many tokens.
  struct Tiles {
    fused::GpuScheduleAttr schedule;
    fused::MatmulPlan plan;
  };
  FailureOr<std::vector<Tiles>> tilesOfWarpgroups(fused::MatmulOp op);
  FailureOr<std::vector<Tiles>> tilesOfWarps(fused::MatmulOp op, bool any);
  FailureOr<Choice> chooseGpu(fused::AttentionOp op);
  FailureOr<Choice> choosePrefill(fused::AttentionOp op);
  FailureOr<Choice> chooseGpu(fused::AppendOp op);
  FailureOr<Choice> chooseGpu(fused::LastRowOp op);
  /// The products before and after.
  SmallVector<fused::MatvecOp, 2> neighbours(fused::AttentionOp op);
  /// Bytes of shared memory that a block of `op` may have to stand beside one of the products
  /// before and after it, which start before their predecessors have ended.
  int64_t roomBesideProducts(fused::AttentionOp op);
  FailureOr<Choice> chooseGpu(fused::RowsOp op);
  FailureOr<Choice> chooseGpu(fused::SampleOp op);
  void prefetch(fused::MatvecOp op, fused::MatvecOp next);
  void predict();

  fused::GpuScheduleAttr gpuSchedule(int64_t blocks, int64_t warps, int64_t stages,
                                     int64_t inFlight, int64_t columns, int64_t splits,
                                     StringRef early, int64_t held = 0, int64_t resident = 1,
                                     int64_t rows = 0, int64_t tokens = 0, int64_t warpgroups = 0) {
    return fused::GpuScheduleAttr::get(&getContext(), blocks, warps, stages, inFlight, columns,
                                       splits, early, held, resident, rows, tokens, warpgroups);
  }

  TargetDescription description;
  fused::GpuDevice device;
};

FailureOr<Choice> FusedAssignSchedules::chooseHost(Operation *op) {
  if (auto product = dyn_cast<fused::ProductOp>(op))
    if (auto type =
            dyn_cast<quantized::QuantizedTensorType>(product.getWeights().front().getType());
        type && type.getLayout().isForGpu())
      return op->emitOpError() << "reads weights packed for a GPU (" << type << "), target "
                               << description.name << " is a CPU";
  if (isa<fused::SampleOp>(op))
    return op->emitOpError() << "is for GPUs, target " << description.name
                             << " is a CPU, where the runtime chooses tokens";
  int64_t positions =
      isa<fused::AttentionOp>(op) ? description.cpuTuning.positions.value : int64_t(0);
  return Choice{fused::HostScheduleAttr::get(&getContext(), description.isa,
                                             description.cpuTuning.accumulators.value, positions),
                formatv("{0} is what target {1} has", description.isa, description.name)};
}

FailureOr<Choice> FusedAssignSchedules::chooseGpu(fused::EmbeddingOp op) {
  auto result = op.getResult().getType();
  int64_t columns = std::min(result.getDimSize(1), description.gpuTuning.embeddingColumns.value);
  int64_t blocks = result.getDimSize(0) * llvm::divideCeil(result.getDimSize(1), columns);
  return Choice{
      gpuSchedule(blocks, description.gpuTuning.embeddingWarps.value, /*stages=*/1, /*inFlight=*/1,
                  columns, /*splits=*/1, "none"),
      formatv("a row of {0} numbers a token, {1} a block", result.getDimSize(1), columns)};
}

/// Attention's kernel leaves room for a block of the product before or after it, whose copies go on
/// (or start) meanwhile, if that has few enough registers. Kernels of layout mma have. Of those of
/// records, tables and several encodings would have to spill; with wide elements the product itself
/// loses more than is gained (docs/kernels.md).
bool FusedAssignSchedules::standsBesideAttention(fused::MatvecOp op) {
  auto isAttention = [](Operation *other) { return isa_and_nonnull<fused::AttentionOp>(other); };
  quantized::QuantizedTensorType type = op.getPackedType();
  if (!device.bulkCopies || op.getTokens() != 1 || op.getWeights().size() != 1 || !type ||
      type.getLayout().getKind() != LayoutKind::Records)
    return false;
  constexpr unsigned mostBits = 5;
  const formats::Encoding &encoding = type.getEncoding().getValue();
  return encoding.bits() <= mostBits && encoding.code() != formats::Encoding::Code::Table &&
         (isAttention(op.getInput().getDefiningOp()) || llvm::any_of(op->getUsers(), isAttention));
}

FailureOr<Choice> FusedAssignSchedules::chooseGpu(fused::MatvecOp op) {
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
        gpuSchedule(blocks, tuning.productWarps.value, stages, std::min(inFlight, stages),
                    type.getLayout().getColumns(), /*splits=*/1, "weights", held, resident);
    return std::pair(schedule, fused::ProductPlan::get(op, schedule, device));
  };
  FailureOr<fused::ProductPlan> least = planOf(/*blocks=*/1, /*stages=*/1, /*held=*/1).second;
  if (failed(least))
    return failure();
  int64_t tiles = least->tiles, stageBytes = least->stageBytes;
  int64_t blocks = std::min(description.multiprocessors.value, tiles);
  int64_t perBlock = llvm::divideCeil(tiles, blocks), read = perBlock * least->chunks;
  int64_t held = std::min(perBlock, tuning.productHeldTiles.value);
  // The most stages that fit.
  auto fitting = [&](int64_t most) {
    for (int64_t stages = most; stages; --stages)
      if (planOf(blocks, stages, held).second->shared <= device.sharedBytes)
        return stages;
    return int64_t(0);
  };
  int64_t stages = fitting(tuning.productStages.value);
  // Adding up more often costs a barrier; copies that wait for each other cost much more.
  for (; stages < std::min(inFlight, read) && held > 1;
       stages = fitting(tuning.productStages.value))
    held /= 2;
  if (!stages)
    return op.emitOpError() << "needs " << planOf(blocks, 1, 1).second->shared
                            << " bytes of shared memory for one stage, target " << description.name
                            << " has " << device.sharedBytes << " a block";
  int64_t most = stages;
  StringRef limit = most < tuning.productStages.value ? "what fits in shared memory"
                                                      : "enough to bridge two kernels";
  if (read <= most) {
    stages = read;
    limit = "all that a block reads";
  }
  // Two products whose rings share a multiprocessor probably compete for the memory: a ring of more
  // than half of the shared memory keeps the next product's blocks out until this one's are done.
  // Measured on an H200 (int4, 8B, context 512): 831 tokens/s instead of 790; docs/kernels.md. The
  // product that follows attention keeps a ring that fits beside attention's.
  int64_t alone = device.sharedBytes / 2 / stageBytes + 2;
  bool besideAttention = op.getInput().getDefiningOp<fused::AttentionOp>() != nullptr;
  if (!besideAttention && stages < alone && alone <= most) {
    stages = alone;
    limit = "so much that no other product's ring fits beside it";
  }
  // All tiles that a block has need not be told.
  auto [schedule, plan] = planOf(blocks, stages, held < perBlock ? held : 0);
  if (failed(fused::checkShared(op, schedule, plan->shared, device)))
    return failure();
  return Choice{schedule,
                formatv("{0} tiles on {1} multiprocessors; a ring of {2} x {3} bytes, {4}", tiles,
                        description.multiprocessors.value, stages, stageBytes, limit)};
}

FailureOr<Choice> FusedAssignSchedules::chooseGpu(fused::PrepareOp op) {
  // As many warps as have a vector of 8 columns to start with.
  constexpr int64_t columns = 8 * fused::kWarpThreads;
  int64_t warps = std::clamp<int64_t>(llvm::divideCeil(op.getColumns(), columns), 1,
                                      description.gpuTuning.productWarps.value);
  return Choice{gpuSchedule(op.getTokens(), warps, /*stages=*/1, /*inFlight=*/1, op.getColumns(),
                            /*splits=*/1, "none"),
                formatv("a row of {0} numbers a token, {1} warps", op.getColumns(), warps)};
}

/// Tiles by warpgroups, with the longest ring of stages that fits.
FailureOr<std::vector<FusedAssignSchedules::Tiles>>
FusedAssignSchedules::tilesOfWarpgroups(fused::MatmulOp op) {
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
            gpuSchedule(blocks * splits, warps, stages, stages, columns, splits, "weights",
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
FailureOr<std::vector<FusedAssignSchedules::Tiles>>
FusedAssignSchedules::tilesOfWarps(fused::MatmulOp op, bool any) {
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
            blocks, tuning.matmulWarps.value, stages, stages, columns, /*splits=*/1, "weights",
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

FailureOr<Choice> FusedAssignSchedules::chooseGpu(fused::MatmulOp op) {
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
  // which predictions are least certain: they must save an eighth, or give work to multiprocessors
  // that have none.
  constexpr double worthwhile = 0.875;
  TimeModel model(description, /*context=*/1);
  const Tiles *best = nullptr;
  double shortest = std::numeric_limits<double>::infinity();
  for (const Tiles &tiles : *candidates) {
    double seconds = model.matmul(matmulLoad(op, tiles.schedule)).at(1).seconds();
    LDBG() << op->getName() << ": " << tiles.schedule << ", " << seconds * 1e6 << " us";
    bool mustSave = best && (tiles.plan.tileTokens < best->plan.tileTokens ||
                             best->plan.grid == description.multiprocessors.value);
    if (seconds < (mustSave ? worthwhile : 1) * shortest) {
      shortest = seconds;
      best = &tiles;
    }
  }
  if (!best)
    return op.emitOpError() << "finds no stage that fits the shared memory of target "
                            << description.name;
  const fused::MatmulPlan &plan = best->plan;
  return Choice{
      best->schedule,
      formatv("{0} tiles of {1} rows by {2} tokens, each by {3} blocks, the fastest of {4} ways; a "
              "ring of {5} x {6} bytes",
              plan.rowGroups * plan.tokenTiles, plan.rowTiles * formats::tileRows, plan.tileTokens,
              best->schedule.getSplits(), candidates->size(), plan.ring, plan.stageBytes)};
}

SmallVector<fused::MatvecOp, 2> FusedAssignSchedules::neighbours(fused::AttentionOp op) {
  auto isProduct = [](Operation &other) { return isa<fused::MatvecOp>(other); };
  Block &block = *op->getBlock();
  Block::iterator place(op);
  SmallVector<fused::MatvecOp, 2> products;
  if (auto after = std::find_if(place, block.end(), isProduct); after != block.end())
    products.push_back(cast<fused::MatvecOp>(*after));
  if (auto before = std::find_if(Block::reverse_iterator(place), block.rend(), isProduct);
      before != block.rend())
    products.push_back(cast<fused::MatvecOp>(*before));
  return products;
}

int64_t FusedAssignSchedules::roomBesideProducts(fused::AttentionOp op) {
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

FailureOr<Choice> FusedAssignSchedules::choosePrefill(fused::AttentionOp op) {
  // Four warps, and as many bytes a stage as copies need to be fast (docs/kernels.md).
  constexpr int64_t warps = 4, mostStages = 4, stageBytes = 16384;
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
  int64_t blocks = heads * parts *
                   llvm::divideCeil(op.getTokens(), tiles * fused::PrefillAttentionPlan::kTokens);
  // Few tokens are few blocks: several divide the positions, as far as there are multiprocessors.
  int64_t splits = 1;
  while (device.bulkCopies && 2 * splits <= description.gpuTuning.attentionSplits.value &&
         2 * splits * blocks <= description.multiprocessors.value)
    splits *= 2;
  auto planOf = [&](int64_t stages, int64_t positions) {
    fused::GpuScheduleAttr schedule = gpuSchedule(blocks * splits, warps, stages,
                                                  /*inFlight=*/stages, positions, splits, "cache");
    return std::pair(schedule, fused::PrefillAttentionPlan::get(op, schedule, device));
  };
  int64_t positions = formats::cacheBlock;
  if (!values.getCacheType().getEncoding().isInteger()) {
    FailureOr<fused::PrefillAttentionPlan> one = planOf(2, formats::cacheTile).second;
    if (failed(one))
      return failure();
    if (one->stageBytes >= stageBytes)
      positions = formats::cacheTile;
  }
  int64_t stages = mostStages;
  FailureOr<fused::PrefillAttentionPlan> least = planOf(2, positions).second;
  if (failed(least))
    return failure();
  while (stages > 2 && planOf(stages, positions).second->shared > device.sharedBytes)
    --stages;
  auto [schedule, plan] = planOf(stages, positions);
  if (failed(fused::checkShared(op, schedule, plan->shared, device)))
    return failure();
  return Choice{schedule,
                formatv("{0} tokens a block of {1} query heads, positions in {2} parts; a ring of "
                        "{3} x {4} bytes",
                        plan->blockTokens(), plan->partHeads, splits, stages, plan->stageBytes)};
}

FailureOr<Choice> FusedAssignSchedules::chooseGpu(fused::AppendOp op) {
  auto keys = SymbolTable::lookupNearestSymbolFrom<model::CacheOp>(op, op.getKeysAttr());
  if (!keys)
    return op.emitOpError() << "names an unknown cache " << op.getKeysAttr();
  int64_t heads = keys.getCacheType().getHeads(), dim = keys.getCacheType().getHeadDim();
  int64_t group = op.getQuery().getType().getDimSize(1) / dim / heads;
  // A warp for each query head, the key and the value.
  int64_t warps = std::min<int64_t>(group + 2, description.gpuTuning.productWarps.value);
  return Choice{gpuSchedule(op.getTokens() * heads, warps, /*stages=*/1, /*inFlight=*/1, dim,
                            /*splits=*/1, "none"),
                formatv("{0} heads of a token in a block", group + 2)};
}

FailureOr<Choice> FusedAssignSchedules::chooseGpu(fused::LastRowOp op) {
  int64_t width = op.getType().getDimSize(1), warps = description.gpuTuning.embeddingWarps.value;
  return Choice{gpuSchedule(llvm::divideCeil(width, warps * fused::kWarpThreads), warps,
                            /*stages=*/1, /*inFlight=*/1, width, /*splits=*/1, "none"),
                formatv("a row of {0} numbers", width)};
}

FailureOr<Choice> FusedAssignSchedules::chooseGpu(fused::AttentionOp op) {
  if (op.getActive())
    return choosePrefill(op);
  const GpuTuning &tuning = description.gpuTuning;
  auto keys = SymbolTable::lookupNearestSymbolFrom<model::CacheOp>(op, op.getKeysAttr());
  if (!keys)
    return op.emitOpError() << "names an unknown cache " << op.getKeysAttr();
  int64_t heads = keys.getCacheType().getHeads(), splits = tuning.attentionSplits.value;
  int64_t blocks = op.getTokens() * heads * splits;
  auto planOf = [&](int64_t warps, int64_t stages, int64_t positions) {
    // Half the multiprocessors or fewer read: the memory needs all that they can have under way.
    fused::GpuScheduleAttr schedule =
        gpuSchedule(blocks, warps, stages, /*inFlight=*/stages, positions, splits, "cache");
    return std::pair(schedule, fused::AttentionPlan::get(op, schedule, device));
  };
  using Plan = fused::AttentionPlan;
  FailureOr<Plan> least = planOf(Plan::kMaxWarps, 1, formats::cacheBlock).second;
  if (failed(least))
    return failure();
  // A short ring leaves room for products; where none can stand there, it has no use.
  bool isShort = least->reach() <= tuning.shortContext.value &&
                 llvm::any_of(neighbours(op), [&](fused::MatvecOp product) {
                   return standsBesideAttention(product);
                 });
  int64_t ringBytes = (isShort ? tuning.shortRingBytes : tuning.longRingBytes).value;
  if (isShort)
    ringBytes = std::min(ringBytes, roomBesideProducts(op) - (least->shared - least->stageBytes));
  // Larger stages have more warps that read them. With one stage alone nothing would be on its way
  // while it is read.
  int64_t readers = 1, readerBytes = least->stageBytes / least->readers;
  auto fits = [&](int64_t readers) {
    auto plan = planOf(readers * least->headParts, 1, readers * least->warpPositions()).second;
    return plan->shared <= device.sharedBytes;
  };
  while (2 * readers <= tuning.attentionWarps.value &&
         2 * readers * least->headParts <= Plan::kMaxWarps &&
         readers * readerBytes < tuning.attentionStageBytes.value &&
         2 * (2 * readers * readerBytes) <= ringBytes && fits(2 * readers))
    readers *= 2;
  int64_t positions = readers * least->warpPositions(), stageBytes = readers * readerBytes;
  int64_t groups = std::clamp<int64_t>(Plan::kMaxWarps / (readers * least->headParts), 1,
                                       tuning.attentionWarps.value / readers);
  int64_t warps = groups * readers * least->headParts;
  int64_t stages = std::max<int64_t>(2, ringBytes / stageBytes);
  while (stages && planOf(warps, stages, positions).second->shared > device.sharedBytes)
    --stages;
  if (!stages)
    return op.emitOpError() << "needs " << planOf(warps, 1, positions).second->shared
                            << " bytes of shared memory for one stage, target " << description.name
                            << " has " << device.sharedBytes << " a block";
  // Every warp group has stages of its own.
  stages -= stages % std::min(groups, stages);
  auto [schedule, plan] = planOf(warps, stages, positions);
  if (failed(fused::checkShared(op, schedule, plan->shared, device)))
    return failure();
  return Choice{
      schedule,
      formatv("{0} key/value heads in {1} parts; a {2} ring of {3} bytes for {4} positions", heads,
              splits, isShort ? "short" : "long", stages * stageBytes, plan->reach())};
}

FailureOr<Choice> FusedAssignSchedules::chooseGpu(fused::SampleOp op) {
  const GpuTuning &tuning = description.gpuTuning;
  auto type = op.getLogits().getType();
  int64_t tokens = type.getDimSize(0), logits = type.getDimSize(1);
  int64_t splits = llvm::bit_floor(static_cast<uint64_t>(
      std::clamp<int64_t>(logits / tuning.sampleLogits.value, 1, tuning.sampleSplits.value)));
  int64_t share = llvm::divideCeil(logits, splits);
  return Choice{gpuSchedule(tokens * splits, tuning.sampleWarps.value, /*stages=*/1, /*inFlight=*/1,
                            share, splits, "none"),
                formatv("{0} logits, {1} a block", logits, share)};
}

FailureOr<Choice> FusedAssignSchedules::chooseGpu(fused::RowsOp op) {
  // As many warps as have a column or a pair to start with.
  int64_t places = op.getWidth() / (op.getHeadDim() ? 2 : 1);
  int64_t warps = std::clamp<int64_t>(llvm::divideCeil(places, fused::kWarpThreads), 1,
                                      description.gpuTuning.productWarps.value);
  return Choice{gpuSchedule(op.getTokens(), warps, /*stages=*/1, /*inFlight=*/1, op.getWidth(),
                            /*splits=*/1, "none"),
                formatv("a row of {0} numbers a token, {1} warps", op.getWidth(), warps)};
}

LogicalResult FusedAssignSchedules::assign(fused::KernelOp op) {
  if (std::optional<Attribute> schedule = op.getSchedule()) {
    bool fits = description.isGpu() ? isa<fused::GpuScheduleAttr>(*schedule)
                                    : isa<fused::HostScheduleAttr>(*schedule);
    if (!fits)
      return op.emitOpError() << "has the schedule " << *schedule << ", but target "
                              << description.name << " is a "
                              << (description.isGpu() ? "GPU" : "CPU");
    return success();
  }
  FailureOr<Choice> choice = failure();
  if (!description.isGpu())
    choice = chooseHost(op);
  else
    choice = llvm::TypeSwitch<Operation *, FailureOr<Choice>>(op)
                 .Case<fused::EmbeddingOp, fused::MatvecOp, fused::PrepareOp, fused::MatmulOp,
                       fused::AttentionOp, fused::RowsOp, fused::SampleOp, fused::AppendOp,
                       fused::LastRowOp>([&](auto kernel) { return chooseGpu(kernel); })
                 .Default([](Operation *op) -> FailureOr<Choice> {
                   return op->emitOpError() << "has no kernel for GPUs";
                 });
  if (failed(choice))
    return failure();
  op.setScheduleAttr(choice->schedule);
  op->setDiscardableAttr("sluice.schedule_reason", StringAttr::get(&getContext(), choice->reason));
  LDBG() << op->getName() << ": " << choice->schedule << ", " << choice->reason;
  return success();
}

/// Between two products the memory is idle while blocks end and start. Once a block of `op` has all
/// its own weights, it has the first bytes that `next` reads brought into L2.
void FusedAssignSchedules::prefetch(fused::MatvecOp op, fused::MatvecOp next) {
  int64_t most = description.gpuTuning.productPrefetchBytes.value;
  auto schedule = dyn_cast_if_present<fused::GpuScheduleAttr>(next.getScheduleAttr());
  auto parameter = next.getWeights().front().getDefiningOp<model::ParameterOp>();
  // Weights that are no symbols have no name to prefetch by.
  if (!schedule || !parameter || !device.bulkCopies || most < 16)
    return;
  FailureOr<fused::ProductPlan> plan = fused::ProductPlan::get(next, schedule, device);
  if (failed(plan))
    return;
  // Tiles are multiples of 16 bytes.
  int64_t stride = plan->shape.tileBytes(), bytes = std::min(most - most % 16, stride);
  // Blocks whose first tile is the first weight's.
  int64_t blocks = std::min(plan->grid, plan->shape.tiles());
  op.setPrefetchAttr(
      fused::PrefetchAttr::get(&getContext(), parameter.getWeightAttr(), blocks, stride, bytes));
  // Names no weight, so that layers still share their kernels.
  std::string reason =
      formatv("{0} of the {1} bytes of a block's first tile in the next product, for the time "
              "between two kernels",
              bytes, stride);
  op->setDiscardableAttr("sluice.prefetch_reason", StringAttr::get(&getContext(), reason));
  LDBG() << "prefetch " << parameter.getWeight() << ": " << reason;
}

/// Writes down how long every kernel takes, and what a step takes beside its kernels.
void FusedAssignSchedules::predict() {
  TimeModel model(description, /*context=*/1);
  getOperation().walk([&](func::FuncOp function) {
    bool hasKernels = false;
    function.walk([&](fused::KernelOp op) {
      hasKernels = true;
      op->setDiscardableAttr(fused::kTimeAttr, model.formula(op).toAttribute(&getContext()));
    });
    TimeFormula step;
    step.fixed.boundary = model.stepSeconds();
    if (hasKernels)
      function->setDiscardableAttr(fused::kTimeAttr, step.toAttribute(&getContext()));
  });
}

void FusedAssignSchedules::runOnOperation() {
  FailureOr<TargetDescription> loaded = loadTarget(getOperation(), target);
  if (failed(loaded))
    return signalPassFailure();
  description = std::move(*loaded);
  device = gpuDevice(description);
  // A product that came with a schedule keeps its prefetch, too, or that it has none.
  fused::MatvecOp last;
  bool lastIsNew = false;
  WalkResult walk = getOperation().walk([&](fused::KernelOp op) {
    if (isa<fused::AttentionOp>(op.getOperation()))
      return WalkResult::advance();
    bool isNew = !op.getSchedule();
    if (failed(assign(op)))
      return WalkResult::interrupt();
    auto product = dyn_cast<fused::MatvecOp>(op.getOperation());
    if (!product)
      return WalkResult::advance();
    // Attention may lie between the two. Its own first bytes are not prefetched: they depend on the
    // position, and its ring is filled early anyway.
    if (last && lastIsNew && last->getBlock() == product->getBlock())
      prefetch(last, product);
    last = product;
    lastIsNew = isNew;
    return WalkResult::advance();
  });
  if (walk.wasInterrupted())
    return signalPassFailure();
  // What the products leave decides how much attention takes.
  walk = getOperation().walk([&](fused::AttentionOp op) {
    return failed(assign(op)) ? WalkResult::interrupt() : WalkResult::advance();
  });
  if (walk.wasInterrupted())
    return signalPassFailure();
  predict();
}
} // namespace
} // namespace sluice
