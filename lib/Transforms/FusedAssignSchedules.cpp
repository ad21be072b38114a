// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sluice/Transforms/Passes.h"

#include "sluice/Formats/CacheLayout.h"
#include "sluice/Formats/Packing.h"
#include "sluice/Formats/RowOrder.h"
#include "sluice/Target/TargetDescription.h"

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
using quantized::QuantizedTensorType;

/// A schedule and why it was chosen.
struct Choice {
  Attribute schedule;
  std::string reason;
};

/// What the kernels of GPU products are made of. A chain of matrix-vector products built this way
/// reached 92% (H200) and 99% (H100) of the read ceiling with the shapes of Llama-3-8B in int8.
namespace gpu {
/// Warps that multiply; one more copies.
constexpr int64_t warps = 16;
/// A ring bridges the gap between two kernels: ten stages of 16 KB do, more do not help.
constexpr int64_t stages = 10;
/// More copies in flight do not raise bandwidth, but every small access queues behind them; one or
/// two are too few.
constexpr int64_t inFlight = 3;
/// Tiles whose sums of all warps wait in shared memory to be added.
constexpr int64_t heldTiles = 14;
/// Barriers and alignment.
constexpr int64_t reserved = 512;
/// Attention: a cluster of 8 blocks a key/value head; pieces of 32 positions; two warps a piece,
/// four pieces at once.
constexpr int64_t splits = 8, attentionWarps = 4, stageTiles = 8, attentionStageBytes = 33000;
/// A short ring leaves room for the next product's block beside attention's, so its weights stream
/// meanwhile; a long cache needs the bandwidth of a long one.
constexpr int64_t shortRingBytes = 33000, longRingBytes = 140000, shortContext = 2048;
/// Sampling: fewer logits than this a block are not worth the cluster's barriers.
constexpr int64_t sampledLogits = 4096, samplingWarps = 16;
} // namespace gpu

struct FusedAssignSchedules : impl::FusedAssignSchedulesBase<FusedAssignSchedules> {
  using FusedAssignSchedulesBase::FusedAssignSchedulesBase;
  void runOnOperation() override;

private:
  template <typename Op> LogicalResult assign(Op op);
  FailureOr<Choice> chooseHost(Operation *op);
  FailureOr<Choice> chooseGpu(fused::EmbeddingOp op);
  FailureOr<Choice> chooseGpu(fused::MatvecOp op);
  FailureOr<Choice> chooseGpu(fused::AttentionOp op);
  FailureOr<Choice> chooseGpu(fused::SampleOp op);

  TargetDescription description;
};

FailureOr<Choice> FusedAssignSchedules::chooseHost(Operation *op) {
  if (auto matvec = dyn_cast<fused::MatvecOp>(op))
    if (QuantizedTensorType type = matvec.getPackedType();
        type && type.getLayout().getKind() == LayoutKind::Mma)
      return op->emitOpError() << "reads weights packed for a GPU (" << type << "), target "
                               << description.name << " is a CPU";
  if (isa<fused::SampleOp>(op))
    return op->emitOpError() << "is for GPUs, target " << description.name
                             << " is a CPU, where the runtime chooses tokens";
  // Four independent sums hide a multiply-add's latency of four cycles; 64 positions' scores stay
  // in registers and L1.
  int64_t positions = isa<fused::AttentionOp>(op) ? 64 : 0;
  std::string reason = formatv("{0} is what target {1} has", description.isa, description.name);
  return Choice{
      fused::HostScheduleAttr::get(&getContext(), description.isa, /*accumulators=*/4, positions),
      reason};
}

FailureOr<Choice> FusedAssignSchedules::chooseGpu(fused::EmbeddingOp op) {
  auto result = op.getResult().getType();
  int64_t columns = std::min<int64_t>(result.getDimSize(1), 1024);
  int64_t blocks = result.getDimSize(0) * llvm::divideCeil(result.getDimSize(1), columns);
  return Choice{
      fused::GpuScheduleAttr::get(&getContext(), blocks, /*warps=*/8, /*stages=*/1, /*inFlight=*/1,
                                  columns,
                                  /*splits=*/1, "none"),
      formatv("a row of {0} numbers a token, {1} a block", result.getDimSize(1), columns)};
}

FailureOr<Choice> FusedAssignSchedules::chooseGpu(fused::MatvecOp op) {
  QuantizedTensorType type = op.getPackedType();
  if (!type || type.getLayout().getKind() != LayoutKind::Mma || op.getWeights().size() != 1)
    return op.emitOpError() << "reads weights that are not packed for a GPU ("
                            << op.getWeights().front().getType() << "), target " << description.name
                            << " is one";
  llvm::Expected<formats::RowOrder> order =
      quantized::expandRowOrder(op.getOrderAttr(), op.getSegments());
  if (!order)
    return op.emitOpError() << "has a row order that does not fit: "
                            << llvm::toString(order.takeError());
  llvm::Expected<formats::PackedShape> shape = formats::PackedShape::get(
      type.getFormat().toFormat(), type.getLayout().toLayout(), order->rows(), type.getColumns());
  if (!shape)
    return op.emitOpError() << "has weights that cannot be packed: "
                            << llvm::toString(shape.takeError());

  int64_t tiles = shape->tiles(), chunks = shape->chunks(), stageBytes = shape->chunkBytes(0);
  int64_t blocks = std::min(description.multiprocessors.value, tiles);
  int64_t perBlock = llvm::divideCeil(tiles, blocks);
  // In shared memory beside the ring: the input (two bytes an element, in either form, and a scale
  // a group of 128), the warps' partial sums.
  int64_t tokens = op.getTokens(), width = op.getColumns();
  int64_t input = tokens * (2 * width + 4 * llvm::divideCeil(width, 128));
  int64_t sums = tokens * std::min(perBlock, gpu::heldTiles) * gpu::warps *
                 quantized::LayoutAttr::kTileRows * 4;
  int64_t available = description.sharedBytesPerBlock.value - input - sums - gpu::reserved;
  int64_t fitting = available / stageBytes;
  if (available < 0 || fitting < 1)
    return op.emitOpError() << "needs " << input + sums + gpu::reserved + stageBytes
                            << " bytes of shared memory for one stage, target " << description.name
                            << " has " << description.sharedBytesPerBlock.value << " a block";
  int64_t read = perBlock * chunks;
  int64_t stages = std::min({gpu::stages, fitting, read});
  StringRef limit = stages == read      ? "all that a block reads"
                    : stages == fitting ? "what fits in shared memory"
                                        : "enough to bridge two kernels";
  // Two products whose rings share a multiprocessor probably compete for the memory: a ring of more
  // than half of the shared memory keeps the next product's blocks out until this one's are done.
  // Measured on an H200 (int4, 8B, context 512): 831 tokens/s instead of 790; docs/kernels.md. The
  // product that follows attention keeps a ring that fits beside attention's.
  int64_t alone = description.sharedBytesPerBlock.value / 2 / stageBytes + 2;
  bool besideAttention = op.getInput().getDefiningOp<fused::AttentionOp>() != nullptr;
  if (!besideAttention && stages < alone && alone <= std::min(gpu::stages, fitting)) {
    stages = alone;
    limit = "so much that no other product's ring fits beside it";
  }
  return Choice{fused::GpuScheduleAttr::get(&getContext(), blocks, gpu::warps, stages,
                                            std::min(gpu::inFlight, stages),
                                            type.getLayout().getColumns(), /*splits=*/1, "weights"),
                formatv("{0} tiles on {1} multiprocessors; a ring of {2} x {3} bytes, {4}", tiles,
                        description.multiprocessors.value, stages, stageBytes, limit)};
}

FailureOr<Choice> FusedAssignSchedules::chooseGpu(fused::AttentionOp op) {
  auto keys = SymbolTable::lookupNearestSymbolFrom<model::CacheOp>(op, op.getKeysAttr());
  auto values = SymbolTable::lookupNearestSymbolFrom<model::CacheOp>(op, op.getValuesAttr());
  if (!keys || !values)
    return op.emitOpError() << "names an unknown cache";
  formats::CacheShape shape = keys.getCacheType().getShapeInfo();
  formats::CacheShape valueShape = values.getCacheType().getShapeInfo();
  // Copies of about 16 KB reach the memory's bandwidth, and are long enough for a pair of warps.
  int64_t tileBytes = shape.tileBytes() + valueShape.tileBytes();
  int64_t pairs = llvm::divideCeil(formats::cacheBlock, formats::cacheTile);
  int64_t stageTiles = pairs;
  while (stageTiles < gpu::stageTiles && stageTiles * tileBytes < gpu::attentionStageBytes)
    stageTiles *= 2;
  int64_t stageBytes = stageTiles * tileBytes, readers = stageTiles / pairs;
  int64_t splits = description.hasBulkCopies() ? gpu::splits : 1;
  int64_t outputs = op.getQuery().getType().getDimSize(1) / shape.heads;
  int64_t group = outputs / shape.dim;
  int64_t warps = std::max(gpu::attentionWarps, readers);
  // In shared memory beside the ring: maxima and sums of the warps, outputs, maxima and sums of the
  // other blocks. The warps' outputs come where the ring was.
  int64_t parts =
      8 * warps * group +
      4 * splits * (static_cast<int64_t>(llvm::divideCeil(outputs, splits)) + 2 * group);
  int64_t available = description.sharedBytesPerBlock.value - parts - gpu::reserved;
  int64_t outputBytes = warps * group * (shape.dim + 4) * 4;
  if (available < std::max(stageBytes, outputBytes))
    return op.emitOpError() << "needs " << parts + gpu::reserved + std::max(stageBytes, outputBytes)
                            << " bytes of shared memory for one stage, target " << description.name
                            << " has " << description.sharedBytesPerBlock.value << " a block";
  bool isShort = shape.positions <= gpu::shortContext;
  int64_t ringBytes = isShort ? gpu::shortRingBytes : gpu::longRingBytes;
  int64_t stages = std::clamp<int64_t>(ringBytes / stageBytes, 1, available / stageBytes);
  stages = std::max<int64_t>(stages, std::min<int64_t>(2, available / stageBytes));
  // Every warp group has stages of its own.
  int64_t warpGroups = std::min(warps / readers, stages);
  stages -= stages % warpGroups;
  int64_t blocks = op.getTokens() * shape.heads * splits;
  // Half the multiprocessors or fewer read: the memory needs all that they can have under way.
  return Choice{
      fused::GpuScheduleAttr::get(&getContext(), blocks, warps, stages, /*inFlight=*/stages,
                                  stageTiles * formats::cacheTile, splits, "cache"),
      formatv("{0} key/value heads in {1} parts; a {2} ring of {3} bytes for {4} positions",
              shape.heads, splits, isShort ? "short" : "long", stages * stageBytes,
              shape.positions)};
}

FailureOr<Choice> FusedAssignSchedules::chooseGpu(fused::SampleOp op) {
  auto type = op.getLogits().getType();
  int64_t tokens = type.getDimSize(0), logits = type.getDimSize(1);
  int64_t splits = description.hasBulkCopies()
                       ? llvm::bit_floor(static_cast<uint64_t>(
                             std::clamp<int64_t>(logits / gpu::sampledLogits, 1, gpu::splits)))
                       : 1;
  return Choice{fused::GpuScheduleAttr::get(&getContext(), tokens * splits, gpu::samplingWarps,
                                            /*stages=*/1, /*inFlight=*/1,
                                            llvm::divideCeil(logits, splits), splits, "none"),
                formatv("{0} logits, {1} a block", logits, llvm::divideCeil(logits, splits))};
}

template <typename Op> LogicalResult FusedAssignSchedules::assign(Op op) {
  if (std::optional<Attribute> schedule = op.getSchedule()) {
    bool fits = description.isGpu() ? isa<fused::GpuScheduleAttr>(*schedule)
                                    : isa<fused::HostScheduleAttr>(*schedule);
    if (!fits)
      return op.emitOpError() << "has the schedule " << *schedule << ", but target "
                              << description.name << " is a "
                              << (description.isGpu() ? "GPU" : "CPU");
    return success();
  }
  FailureOr<Choice> choice = description.isGpu() ? chooseGpu(op) : chooseHost(op);
  if (failed(choice))
    return failure();
  op.setScheduleAttr(choice->schedule);
  op->setDiscardableAttr("sluice.schedule_reason", StringAttr::get(&getContext(), choice->reason));
  LDBG() << op->getName() << ": " << choice->schedule << ", " << choice->reason;
  return success();
}

void FusedAssignSchedules::runOnOperation() {
  llvm::Expected<TargetDescription> loaded = loadTarget(target);
  if (!loaded) {
    emitError(getOperation().getLoc()) << llvm::toString(loaded.takeError());
    return signalPassFailure();
  }
  description = std::move(*loaded);
  WalkResult walk = getOperation().walk([&](Operation *op) {
    LogicalResult result =
        llvm::TypeSwitch<Operation *, LogicalResult>(op)
            .Case<fused::EmbeddingOp, fused::MatvecOp, fused::AttentionOp, fused::SampleOp>(
                [&](auto kernel) { return assign(kernel); })
            .Default([](Operation *) { return success(); });
    return failed(result) ? WalkResult::interrupt() : WalkResult::advance();
  });
  if (walk.wasInterrupted())
    signalPassFailure();
}
} // namespace
} // namespace sluice
