// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "dialects/Fused/GpuPlan.h"
#include "dialects/Model/Semantics.h"

#include "dialects/Fused/Weights.h"

#include "sluice-runtime/SamplingWords.h"
#include "sluice/Formats/Activations.h"

#include <cmath>

using namespace mlir;
using namespace sluice;
using namespace sluice::fused;

/// The most blocks of a portable cluster (CUDA C++ Programming Guide, "Thread Block Clusters").
static constexpr int64_t kMaxCluster = 8;

static InFlightDiagnostic reject(Operation *op, GpuScheduleAttr schedule) {
  return op->emitOpError() << "cannot run with " << schedule << ": ";
}

/// Checks how many blocks share one output.
static LogicalResult checkSplits(Operation *op, GpuScheduleAttr schedule, const GpuDevice &device) {
  if (schedule.getSplits() > kMaxCluster)
    return reject(op, schedule) << "a cluster has 1 to " << kMaxCluster << " blocks";
  if (schedule.getSplits() > 1 && !device.bulkCopies)
    return reject(op, schedule) << device.arch << " has no clusters, splits must be 1";
  return success();
}

LogicalResult fused::checkShared(Operation *op, GpuScheduleAttr schedule, int64_t bytes,
                                 const GpuDevice &device) {
  if (bytes <= device.sharedBytes)
    return success();
  return op->emitOpError() << "with " << schedule << " needs " << bytes
                           << " bytes of shared memory, the target has " << device.sharedBytes
                           << " a block";
}

//===----------------------------------------------------------------------===//
// Products
//===----------------------------------------------------------------------===//

FailureOr<ProductPlan> ProductPlan::get(MatvecOp op, GpuScheduleAttr schedule,
                                        const GpuDevice &device) {
  FailureOr<SmallVector<PackedPart, 1>> parts = packedParts(op);
  if (failed(parts))
    return failure();
  ProductPlan plan(std::move(*parts));
  formats::PackedShape shape = plan.shape;
  bool records = shape.layout().kind == formats::Layout::Kind::Records;
  // Of the tensor cores' 8 columns an integer product uses two per token. With weights in records
  // all are used, and registers hold the inputs of two tokens, or of one beside a table's words.
  int64_t most = shape.format().isInteger() ? 4 : 8;
  formats::Encoding encoding = shape.format();
  for (const PackedPart &part : plan.parts)
    if (records && most > (part.shape.format().code() == formats::Encoding::Code::Table ? 1 : 2)) {
      encoding = part.shape.format();
      most = encoding.code() == formats::Encoding::Code::Table ? 1 : 2;
    }
  if (op.getTokens() > most)
    return op.emitOpError() << "has " << op.getTokens() << " tokens, GPU kernels of "
                            << encoding.name() << " weights take at most " << most;
  plan.grid = schedule.getBlocks();
  plan.warps = schedule.getWarps();
  plan.ring = schedule.getStages();
  plan.inFlight = schedule.getInFlight();
  plan.overlap = device.bulkCopies && schedule.getEarly() != "none";
  plan.resident = schedule.getResident();
  plan.tiles = plan.parts.back().endTile();
  plan.chunks = shape.chunks();
  for (const PackedPart &part : plan.parts)
    plan.stageBytes = std::max(plan.stageBytes, part.shape.chunkBytes(0));
  int64_t chunk = shape.layout().columns;
  if (plan.grid > plan.tiles)
    return reject(op, schedule) << "its weight has " << plan.tiles
                                << " tiles of 16 rows, one for each block at most";
  if (schedule.getSplits() != 1)
    return reject(op, schedule) << "products are not split";
  if (schedule.getColumns() != chunk)
    return reject(op, schedule) << "its weight is packed in chunks of " << chunk << " columns";
  plan.sliceColumns = records                     ? formats::RecordShape::columns
                      : shape.format().isScaled() ? formats::activationGroup
                                                  : 64;
  if (plan.chunks > 1 && chunk % plan.sliceColumns)
    return reject(op, schedule) << "chunks of " << chunk << " columns are no multiple of "
                                << plan.sliceColumns;
  int64_t widest = std::min(chunk, shape.columns());
  plan.slices = llvm::divideCeil(widest, plan.sliceColumns);
  if (plan.slices > plan.warps)
    return reject(op, schedule) << "a chunk of " << widest << " columns needs " << plan.slices
                                << " warps";
  plan.tilesPerBlock = llvm::divideCeil(plan.tiles, plan.grid);
  plan.reuses = plan.tilesPerBlock * plan.chunks > plan.ring;
  plan.warpGroups = plan.warps / plan.slices;
  if (plan.reuses)
    plan.warpGroups = ringReaders(plan.ring, plan.inFlight, plan.warpGroups);
  plan.held = plan.tilesPerBlock;
  if (schedule.getHeld())
    plan.held = std::min(plan.held, schedule.getHeld());
  // Sums of neighbouring tiles lie half a row of banks apart.
  plan.heldBytes = op.getTokens() * plan.warpGroups * plan.slices * 64;
  plan.heldBytes += plan.heldBytes % 128 == 0 ? 64 : 0;

  SharedRanges ranges;
  plan.stages = ranges.take(plan.ring * plan.stageBytes, 128);
  plan.full = ranges.take(plan.ring * 8, 8);
  if (plan.reuses)
    plan.empty = ranges.take(plan.ring * 8, 8);
  plan.sums = ranges.take(plan.held * plan.heldBytes);

  InputPlan &input = plan.input;
  input.format = shape.format();
  input.tokens = op.getTokens();
  input.columns = op.getColumns();
  input.padded = llvm::alignTo(input.columns,
                               records ? formats::RecordShape::columns : formats::activationGroup);
  if (records) {
    formats::RecordShape record(shape.format());
    input.diagonal = true;
    for (const PackedPart &part : plan.parts)
      if (part.shape.format().hasOffset()) {
        int64_t unit = formats::RecordShape(part.shape.format()).unit();
        input.sumColumns = input.hasSums ? std::min(input.sumColumns, unit) : unit;
        input.hasSums = true;
      }
    for (unsigned group : {0, 1})
      input.stepFactors[group] = std::ldexp(1.0f, -static_cast<int>(record.fraction(4 * group)));
    // Lanes that have nothing in the operand read zeros, as far as the others read.
    input.fragments = ranges.take(input.tokens * input.padded * 2);
    input.zeros = ranges.take(InputPlan::kZeroBytes);
    input.scales = ranges.take(input.tokens * input.padded / 64 * input.unitFloats() * 4);
  } else {
    input.fragments = ranges.take(input.padded / input.fragmentColumns() * input.fragmentBytes());
  }
  if (input.format.isScaled() && !records) {
    input.accumulationColumns = accumulationColumns(input.format);
    input.scales = ranges.take(input.tokens * input.padded / formats::activationGroup * 4);
    if (input.format.hasZeroPoint())
      input.inputSums = ranges.take(input.tokens * input.padded / input.accumulationColumns * 4);
  }
  if (!op.getPrologue().empty())
    input.warpSums = ranges.take(countRowSums(op.getPrologue()) * rowSumStride(plan.warps));
  plan.shared = ranges.bytes();
  return plan;
}

GpuLaunch ProductPlan::launch() const {
  GpuLaunch launch;
  launch.grid = grid;
  launch.block = (warps + 1) * kWarpThreads;
  launch.shared = shared;
  launch.resident = resident;
  launch.overlap = overlap;
  return launch;
}

FailureOr<GpuLaunch> MatvecOp::planGpuLaunch(GpuScheduleAttr schedule, const GpuDevice &device) {
  FailureOr<ProductPlan> plan = ProductPlan::get(*this, schedule, device);
  if (failed(plan) || failed(checkShared(*this, schedule, plan->shared, device)))
    return failure();
  return plan->launch();
}

//===----------------------------------------------------------------------===//
// Products of many tokens
//===----------------------------------------------------------------------===//

FailureOr<PreparePlan> PreparePlan::get(PrepareOp op, GpuScheduleAttr schedule,
                                        const GpuDevice &device) {
  if (!op.getType().getImage())
    return op.emitOpError() << "makes rows of a host, GPU kernels need an image";
  PreparePlan plan;
  plan.image = PreparedImage::get(op.getType());
  plan.input.format = plan.image.format;
  if (plan.input.format.element == formats::Encoding::Element::F32)
    return op.emitOpError() << "prepares for f32 weights, which GPU kernels do not multiply";
  plan.input.columns = plan.image.columns;
  plan.input.padded = plan.image.paddedColumns;
  plan.warps = schedule.getWarps();
  plan.overlap = device.bulkCopies;
  SharedRanges ranges;
  int64_t sums = op.getPrologue().empty() ? 0 : countRowSums(op.getPrologue());
  if (plan.image.records)
    ++sums; // the greatest number of a row
  if (sums)
    plan.input.warpSums = ranges.take(sums * rowSumStride(plan.warps));
  plan.shared = ranges.bytes();
  return plan;
}

GpuLaunch PreparePlan::launch() const {
  GpuLaunch launch;
  launch.grid = image.paddedTokens;
  launch.block = warps * kWarpThreads;
  launch.shared = shared;
  launch.overlap = overlap;
  return launch;
}

FailureOr<GpuLaunch> PrepareOp::planGpuLaunch(GpuScheduleAttr schedule, const GpuDevice &device) {
  FailureOr<PreparePlan> plan = PreparePlan::get(*this, schedule, device);
  if (failed(plan) || failed(checkShared(*this, schedule, plan->shared, device)))
    return failure();
  return plan->launch();
}

int64_t MatmulPlan::bytesOf(const PackedPart &part, int64_t stage) const {
  if (records && wgmma)
    return formats::RecordShape(part.shape.format()).bytes();
  if (records) {
    int64_t count = stage + 1 < stages ? stageSteps : lastStageSteps();
    return count * formats::RecordShape(part.shape.format()).bytes();
  }
  int64_t chunk = part.shape.layout().columns, column = stage * stageColumns();
  int64_t perColumn = formats::tileRows * part.shape.format().bits() / 8;
  return std::min(stageColumns() * perColumn,
                  part.shape.chunkElements(column / chunk) - column % chunk * perColumn);
}

std::optional<std::string> MatmulPlan::warpgroupProblem(MatmulOp op, const GpuDevice &device) {
  if (!device.warpgroups)
    return device.arch + " has no instructions for them";
  auto type = dyn_cast<quantized::QuantizedTensorType>(op.getWeights().front().getType());
  if (!type || !type.getLayout().isForGpu())
    return "weights are not packed for a GPU";
  if (type.getLayout().getKind() == quantized::LayoutKind::Records) {
    FailureOr<SmallVector<PackedPart, 1>> parts = packedParts(op);
    bool divided =
        succeeded(parts) && llvm::any_of(ArrayRef(*parts).drop_back(), [](const PackedPart &part) {
          return part.endTile() % kGroupRowTiles;
        });
    if (divided)
      return "a block's rows would be of several weights";
    return std::nullopt;
  }
  formats::Encoding format = type.getEncoding().getValue();
  if (format.isScaled() && !format.isInteger())
    return "weights of " + format.name() + " are not multiplied as they are";
  // Two steps of floats at a time.
  constexpr int64_t columns = formats::activationGroup;
  if (op.getColumns() % columns)
    return std::to_string(op.getColumns()) + " columns are no multiple of " +
           std::to_string(columns);
  return std::nullopt;
}

FailureOr<MatmulPlan> MatmulPlan::get(MatmulOp op, GpuScheduleAttr schedule,
                                      const GpuDevice &device) {
  FailureOr<SmallVector<PackedPart, 1>> parts = packedParts(op);
  if (failed(parts))
    return failure();
  if (!op.getInput().getType().getImage())
    return op.emitOpError() << "reads rows of a host, GPU kernels need an image";
  MatmulPlan plan(std::move(*parts));
  const formats::Encoding &format = plan.shape.format();
  plan.image = PreparedImage::get(op.getInput().getType());
  plan.records = plan.shape.layout().kind == formats::Layout::Kind::Records;
  if (plan.records != plan.image.records)
    return op.emitOpError() << "multiplies weights in layout " << (plan.records ? "records" : "mma")
                            << " with an input prepared for another one";
  for (const PackedPart &part : plan.parts) {
    const formats::Encoding &encoding = part.shape.format();
    if (plan.records)
      continue;
    if (encoding.isInteger() != plan.image.format.isInteger() ||
        (!encoding.isInteger() && encoding.element != plan.image.format.element))
      return op.emitOpError() << "multiplies " << encoding.name()
                              << " weights with an input prepared for " << plan.image.format.name();
    if (encoding.hasZeroPoint() && plan.image.sumColumns != accumulationColumns(encoding))
      return op.emitOpError() << "multiplies " << encoding.name()
                              << " weights with an input whose sums they cannot use";
  }
  plan.grid = schedule.getBlocks();
  plan.warps = schedule.getWarps();
  plan.ring = schedule.getStages();
  plan.overlap = device.bulkCopies && schedule.getEarly() != "none";
  plan.tiles = plan.parts.back().endTile();
  if (schedule.getRows() < 1 || schedule.getRows() % formats::tileRows)
    return reject(op, schedule) << "rows must be a multiple of " << formats::tileRows;
  plan.rowTiles = schedule.getRows() / formats::tileRows;
  plan.rowGroups = llvm::divideCeil(plan.tiles, plan.rowTiles);
  plan.tileTokens = schedule.getTokens();
  int64_t set = plan.image.setTokens;
  if (plan.tileTokens < 1 || plan.tileTokens % set)
    return reject(op, schedule) << "tokens must be a multiple of " << set;
  plan.tokenTiles = llvm::divideCeil(plan.image.paddedTokens, plan.tileTokens);
  plan.early = plan.tileTokens == plan.image.paddedTokens && plan.overlap;
  plan.wgmma = schedule.getWarpgroups() > 0;
  if (plan.wgmma) {
    auto refuse = [&] { return reject(op, schedule) << "warpgroups do not multiply: "; };
    if (std::optional<std::string> problem = warpgroupProblem(op, device))
      return refuse() << *problem;
    if (plan.rowTiles != plan.warps || (plan.records && plan.rowTiles > kGroupRowTiles))
      return refuse() << "each has 64 rows";
    if (plan.image.paddedTokens % plan.tileTokens || plan.tileTokens > plan.image.mostTileTokens())
      return refuse() << "tiles must be whole, and have " << plan.image.mostTileTokens()
                      << " tokens at most";
  }
  plan.warpTokens = plan.wgmma ? plan.tileTokens : std::min(plan.tileTokens, kWarpTokens);
  plan.warpColumns = plan.tileTokens / plan.warpTokens;
  if (plan.tileTokens % plan.warpTokens || plan.warps % plan.warpColumns)
    return reject(op, schedule) << plan.tileTokens << " tokens cannot be divided among "
                                << plan.warps << " warps";
  int64_t rowWarps = plan.warps / plan.warpColumns;
  plan.warpRows = std::min(rowWarps, plan.rowTiles);
  plan.slices = rowWarps / plan.warpRows;
  plan.warpRowTiles = plan.rowTiles / plan.warpRows;
  if (plan.rowTiles % plan.warpRows || rowWarps % plan.warpRows)
    return reject(op, schedule) << plan.rowTiles << " tiles of 16 rows cannot be divided among "
                                << rowWarps << " warps";

  // Of records, warpgroups take half of the input at a time.
  plan.stepColumns = plan.records && !plan.wgmma ? formats::RecordShape::columns
                     : format.isScaled()         ? formats::activationGroup
                                                 : 64;
  if (schedule.getColumns() % plan.stepColumns)
    return reject(op, schedule) << "columns must be a multiple of " << plan.stepColumns;
  plan.stageSteps = schedule.getColumns() / plan.stepColumns;
  plan.steps = (plan.records ? plan.image.paddedColumns : op.getColumns() + plan.stepColumns - 1) /
               plan.stepColumns;
  plan.stages = llvm::divideCeil(plan.steps, plan.stageSteps);
  if (!plan.records && plan.shape.chunks() > 1 &&
      plan.shape.layout().columns % schedule.getColumns())
    return reject(op, schedule) << "its weight is packed in chunks of "
                                << plan.shape.layout().columns << " columns";
  if (plan.wgmma) {
    // Two that are multiplied, one to go on with.
    if (plan.records && plan.ring < 3)
      return reject(op, schedule) << "warpgroups multiply records in three stages or more";
    bool isInteger = plan.image.format.isInteger();
    if (plan.stageSteps > (isInteger ? 2 : 1) || plan.steps % plan.stageSteps ||
        (!plan.records && plan.shape.layout().columns % schedule.getColumns()))
      return reject(op, schedule) << "warpgroups take stages of " << plan.stepColumns
                                  << (isInteger ? " or 256" : "") << " columns, all of them whole";
    if (failed(checkSplits(op, schedule, device)))
      return failure();
    // Two steps of floats at a time.
    int64_t splits = schedule.getSplits();
    if (plan.stages % splits || plan.grid % splits || (!isInteger && plan.steps / splits % 2))
      return reject(op, schedule) << "splits must divide the blocks and the " << plan.stages
                                  << " stages";
    if (splits > 1 &&
        (plan.grid / splits < plan.rowGroups * plan.tokenTiles || plan.tileTokens % (4 * splits)))
      return reject(op, schedule) << "splits need blocks for all tiles, which they divide by "
                                     "multiples of 4 tokens";
  }

  for (const PackedPart &part : plan.parts)
    plan.weightBytes = std::max(plan.weightBytes, plan.bytesOf(part, 0));
  plan.stepPieces = plan.stepColumns / plan.image.pieceColumns();
  plan.tilePieceBytes = plan.tileTokens / 8 * plan.image.blockBytes();
  int64_t groups =
      plan.image.format.isScaled() ? plan.stageColumns() / formats::activationGroup : 0;
  plan.weightsAt = plan.stageSteps * plan.stepPieces * plan.tilePieceBytes;
  bool apart = plan.records && plan.wgmma;
  plan.scalesAt = plan.weightsAt + (apart ? 0 : plan.rowTiles * plan.weightBytes);
  plan.sumsAt = plan.scalesAt + groups * plan.tileTokens * 4;
  plan.stageBytes =
      llvm::alignTo(plan.sumsAt + groups * plan.image.sumsPerGroup() * plan.tileTokens * 4, 1024);
  SharedRanges ranges;
  int64_t allSums =
      schedule.getSplits() > 1 ? plan.rowTiles * plan.tileTokens * kSumBytes : int64_t(0);
  plan.stagesRange = ranges.take(std::max(plan.ring * plan.stageBytes, allSums), 1024);
  // A record's place is free when the stage before that which it comes with is.
  plan.recordSlots = apart ? llvm::divideCeil(plan.ring + 1, 2) : 0;
  plan.recordsRange = ranges.take(plan.recordSlots * plan.rowTiles * plan.weightBytes, 16);
  plan.full = ranges.take(plan.ring * 8, 8);
  plan.empty = ranges.take(plan.ring * 8, 8);
  plan.sums = ranges.take(plan.slices * plan.rowTiles * set * plan.warpColumns * kSumBytes);
  plan.shared = ranges.bytes();
  return plan;
}

GpuLaunch MatmulPlan::launch() const {
  GpuLaunch launch;
  launch.grid = grid;
  launch.block = threads();
  launch.shared = shared;
  launch.resident = 1;
  launch.overlap = overlap;
  return launch;
}

FailureOr<GpuLaunch> MatmulOp::planGpuLaunch(GpuScheduleAttr schedule, const GpuDevice &device) {
  FailureOr<MatmulPlan> plan = MatmulPlan::get(*this, schedule, device);
  if (failed(plan) || failed(checkShared(*this, schedule, plan->shared, device)))
    return failure();
  GpuLaunch launch = plan->launch();
  launch.cluster = plan->wgmma ? schedule.getSplits() : 1;
  return launch;
}

//===----------------------------------------------------------------------===//
// Attention
//===----------------------------------------------------------------------===//

/// The caches that `op` names, if kernels can read and write them.
template <typename Op>
static LogicalResult findCaches(Op op, formats::CacheShape &keys, formats::CacheShape &values) {
  for (auto [symbol, shape, layout] :
       {std::tuple(op.getKeysAttr(), &keys, quantized::CacheLayout::MmaKeys),
        {op.getValuesAttr(), &values, quantized::CacheLayout::MmaValues}}) {
    auto cache = SymbolTable::lookupNearestSymbolFrom<model::CacheOp>(op, symbol);
    if (!cache)
      return op.emitOpError() << "names an unknown cache " << symbol;
    quantized::CacheType type = cache.getCacheType();
    if (type.getLayout() != layout)
      return op.emitOpError() << "reads cache " << symbol << " as "
                              << quantized::stringifyCacheLayout(layout) << ", but it is " << type;
    *shape = model::cacheShape(type, op.getPages());
    if (std::optional<std::string> error = formats::checkMmaCache(*shape))
      return op.emitOpError() << "reads cache " << symbol << ": " << *error;
    if (shape->positions % formats::cacheBlock)
      return op.emitOpError() << "reads cache " << symbol << " of " << shape->positions
                              << " positions, GPU kernels need a multiple of "
                              << formats::cacheBlock;
  }
  return success();
}

void AttentionShape::divide() {
  int64_t allPasses = llvm::divideCeil(group, kHeads);
  headParts = llvm::divideCeil(allPasses, kMostPasses);
  passes = llvm::divideCeil(allPasses, headParts);
  warpTiles = values.encoding.isInteger() ? formats::cacheBlock / formats::cacheTile : 1;
}

FailureOr<AttentionPlan> AttentionPlan::get(AttentionOp op, GpuScheduleAttr schedule,
                                            const GpuDevice &device) {
  AttentionPlan plan;
  if (failed(findCaches(op, plan.keys, plan.values)))
    return failure();
  const formats::CacheShape &keys = plan.keys;
  if (auto window = static_cast<int64_t>(op.getWindow().value_or(0)); window < keys.positions)
    plan.window = window;
  plan.appends = !op.getPrologue().empty();
  plan.heads = keys.heads;
  plan.dim = keys.dim;
  plan.tokens = op.getTokens();
  plan.group = op.getQuery().getType().getDimSize(1) / keys.dim / keys.heads;
  constexpr int64_t mostHeads = kMaxWarps * kMostPasses * kHeads;
  if (plan.group < 1 || plan.group > mostHeads)
    return op.emitOpError() << "has " << plan.group
                            << " query heads for a key/value head, GPU kernels take 1 to "
                            << mostHeads;
  plan.divide();
  if (plan.appends && keys.sequences != plan.tokens)
    return op.emitOpError() << "appends " << plan.tokens << " rows to caches of " << keys.sequences
                            << " sequences";

  plan.warps = schedule.getWarps();
  plan.splits = schedule.getSplits();
  plan.overlap = device.bulkCopies;
  if (schedule.getColumns() < plan.warpPositions() || schedule.getColumns() % plan.warpPositions())
    return reject(op, schedule) << "a stage holds a multiple of " << plan.warpPositions()
                                << " positions";
  plan.stageTiles = schedule.getColumns() / formats::cacheTile;
  plan.readers = plan.stageTiles / plan.warpTiles;
  if (plan.warps < plan.groupWarps())
    return reject(op, schedule) << plan.group << " query heads for a key/value head and stages of "
                                << schedule.getColumns() << " positions need at least "
                                << plan.groupWarps() << " warps";
  if (failed(checkSplits(op, schedule, device)))
    return failure();
  if (int64_t blocks = plan.tokens * plan.heads * plan.splits; schedule.getBlocks() != blocks)
    return reject(op, schedule) << plan.heads << " key/value heads and " << plan.tokens
                                << " tokens need " << blocks << " blocks";

  plan.stageBytes = plan.stageTiles * (keys.tileBytes() + plan.values.tileBytes());
  int64_t stages = llvm::divideCeil(keys.tiles(), plan.stageTiles);
  if (plan.window) // which may begin at the last position of a stage
    stages =
        std::min<int64_t>(stages, llvm::divideCeil(plan.window - 1, schedule.getColumns()) + 1);
  int64_t most = llvm::divideCeil(stages, plan.splits);
  plan.ring = std::min(schedule.getStages(), most);
  plan.warpGroups = std::min(plan.warps / plan.groupWarps(), plan.ring);
  // Each stage belongs to one warp group: in a stage that
  // another one also reads, it could not tell from the barrier's parity which filling has
  // completed.
  plan.ring -= plan.ring % plan.warpGroups;
  plan.inFlight = std::min(schedule.getInFlight(), plan.ring);
  plan.reuses = most > plan.ring;
  plan.own = llvm::divideCeil(plan.group * plan.dim, plan.splits);

  SharedRanges ranges;
  // The warps' sums come where the ring was.
  int64_t partBytes = plan.parts() * plan.group * plan.partRow() * 4;
  plan.stages = ranges.take(std::max(plan.ring * plan.stageBytes, partBytes), 128);
  plan.full = ranges.take(plan.ring * 8, 8);
  if (plan.reuses)
    plan.empty = ranges.take(plan.ring * 8, 8);
  if (plan.appends)
    plan.appended = ranges.take(8, 8);
  plan.queries = ranges.take(plan.group * 2 * plan.queryRow(), 16);
  plan.queryFactors = ranges.take(plan.group * 4);
  plan.rowMaxima = ranges.take(plan.parts() * plan.group * 4);
  plan.rowSums = ranges.take(plan.parts() * plan.group * 4);
  if (plan.splits > 1) {
    plan.gatheredOutputs = ranges.take(plan.splits * plan.own * 4);
    plan.gatheredMaxima = ranges.take(plan.splits * plan.group * 4);
    plan.gatheredSums = ranges.take(plan.splits * plan.group * 4);
  }
  plan.shared = ranges.bytes();
  return plan;
}

GpuLaunch AttentionPlan::launch() const {
  GpuLaunch launch;
  launch.grid = tokens * heads * splits;
  launch.block = (warps + 1) * kWarpThreads;
  launch.shared = shared;
  launch.cluster = splits;
  // Leaves registers for a block of the product that follows, whose weights stream meanwhile.
  // Longer heads, more query heads and larger blocks do not fit in so few, and before sm_90 no
  // kernel starts early.
  constexpr int64_t mostThreads = 9 * kWarpThreads;
  launch.resident = overlap && dim <= 128 && passes == 1 && launch.block <= mostThreads ? 2 : 0;
  launch.overlap = overlap;
  return launch;
}

FailureOr<PrefillAttentionPlan> PrefillAttentionPlan::get(AttentionOp op, GpuScheduleAttr schedule,
                                                          const GpuDevice &device) {
  PrefillAttentionPlan plan;
  if (failed(findCaches(op, plan.keys, plan.values)))
    return failure();
  const formats::CacheShape &keys = plan.keys;
  plan.packed = op.getStarts() != nullptr;
  if (keys.sequences != 1 && !plan.packed)
    return op.emitOpError() << "of one sequence's tokens reads caches of " << keys.sequences
                            << " sequences";
  if (auto window = static_cast<int64_t>(op.getWindow().value_or(0)); window < keys.positions)
    plan.window = window;
  plan.heads = keys.heads;
  plan.dim = keys.dim;
  if (plan.dim % 2)
    return op.emitOpError() << "has heads of " << plan.dim
                            << " elements, GPU kernels need an even number";
  plan.tokens = op.getTokens();
  plan.group = op.getQuery().getType().getDimSize(1) / keys.dim / keys.heads;
  plan.headParts = llvm::divideCeil(plan.group, schedule.getWarps());
  plan.partHeads = llvm::divideCeil(plan.group, plan.headParts);
  plan.tokenTiles = std::min<int64_t>(schedule.getWarps() / plan.partHeads,
                                      llvm::divideCeil(plan.tokens, kTokens));
  plan.overlap = device.bulkCopies;
  plan.early = device.bulkCopies && schedule.getEarly() != "none";
  int64_t least = plan.values.encoding.isInteger() ? formats::cacheBlock : formats::cacheTile;
  if (schedule.getColumns() != least && schedule.getColumns() != formats::cacheBlock)
    return reject(op, schedule) << "a stage holds "
                                << (least == formats::cacheBlock ? "" : "32 or ")
                                << formats::cacheBlock << " positions";
  plan.stageTiles = schedule.getColumns() / formats::cacheTile;
  plan.stageBytes = plan.stageTiles * (keys.tileBytes() + plan.values.tileBytes());
  plan.ring = schedule.getStages();
  if (plan.ring < 2)
    return reject(op, schedule) << "while one stage is read another one is filled";
  plan.splits = schedule.getSplits();
  plan.ownRows = llvm::divideCeil(plan.rows(), plan.splits);
  if (failed(checkSplits(op, schedule, device)))
    return failure();
  if (schedule.getBlocks() != plan.grid())
    return reject(op, schedule) << plan.heads << " key/value heads and " << plan.tokens
                                << " tokens need " << plan.grid() << " blocks";
  SharedRanges ranges;
  int64_t gathered = plan.splits > 1 ? plan.splits * plan.ownRows * plan.gatheredRow() : 0;
  plan.stages = ranges.take(std::max(plan.ring * plan.stageBytes, gathered), 128);
  plan.full = ranges.take(plan.ring * 8, 8);
  plan.empty = ranges.take(plan.ring * 8, 8);
  if (plan.splits > 1) {
    plan.gatheredMaxima = ranges.take(plan.splits * plan.ownRows * 4);
    plan.gatheredSums = ranges.take(plan.splits * plan.ownRows * 4);
  }
  if (plan.dim > 128)
    plan.queries = ranges.take(plan.warps() * plan.queryOperands() * kWarpThreads * 16);
  plan.shared = ranges.bytes();
  return plan;
}

GpuLaunch PrefillAttentionPlan::launch() const {
  GpuLaunch launch;
  launch.grid = grid();
  launch.block = warps() * kWarpThreads;
  launch.shared = shared;
  launch.cluster = splits;
  // 168 registers a thread hold a head of up to 128 elements, but not a query and weights that are
  // two numbers each.
  constexpr int64_t warpsOf168 = 12;
  launch.resident = dim <= 128 && !isDouble(keys) && !isDouble(values) ? warpsOf168 / warps() : 0;
  launch.overlap = overlap;
  return launch;
}

FailureOr<GpuLaunch> AttentionOp::planGpuLaunch(GpuScheduleAttr schedule, const GpuDevice &device) {
  if (getActive()) {
    FailureOr<PrefillAttentionPlan> plan = PrefillAttentionPlan::get(*this, schedule, device);
    if (failed(plan) || failed(checkShared(*this, schedule, plan->shared, device)))
      return failure();
    return plan->launch();
  }
  FailureOr<AttentionPlan> plan = AttentionPlan::get(*this, schedule, device);
  if (failed(plan) || failed(checkShared(*this, schedule, plan->shared, device)))
    return failure();
  return plan->launch();
}

FailureOr<AppendPlan> AppendPlan::get(AppendOp op, GpuScheduleAttr schedule,
                                      const GpuDevice &device) {
  AppendPlan plan;
  if (failed(findCaches(op, plan.keys, plan.values)))
    return failure();
  plan.tokens = op.getTokens();
  plan.heads = plan.keys.heads;
  plan.dim = plan.keys.dim;
  plan.group = op.getQuery().getType().getDimSize(1) / plan.dim / plan.heads;
  plan.warps = schedule.getWarps();
  plan.overlap = device.bulkCopies;
  if (plan.keys.sequences != 1 && !op.getSequences())
    return op.emitOpError() << "appends one sequence's tokens to caches of " << plan.keys.sequences
                            << " sequences";
  if (schedule.getBlocks() != plan.tokens * plan.heads)
    return reject(op, schedule) << plan.heads << " key/value heads and " << plan.tokens
                                << " tokens need " << plan.tokens * plan.heads << " blocks";
  return plan;
}

GpuLaunch AppendPlan::launch() const {
  GpuLaunch launch;
  launch.grid = tokens * heads;
  launch.block = warps * kWarpThreads;
  launch.overlap = overlap;
  return launch;
}

FailureOr<GpuLaunch> AppendOp::planGpuLaunch(GpuScheduleAttr schedule, const GpuDevice &device) {
  FailureOr<AppendPlan> plan = AppendPlan::get(*this, schedule, device);
  if (failed(plan))
    return failure();
  return plan->launch();
}

//===----------------------------------------------------------------------===//
// Sampling
//===----------------------------------------------------------------------===//

FailureOr<SamplePlan> SamplePlan::get(SampleOp op, GpuScheduleAttr schedule,
                                      const GpuDevice &device) {
  // A weight's halves are added apart, in 32 bits each.
  constexpr int64_t mostTokens = int64_t(1) << (32 - sampling::kWeightBits / 2);
  SamplePlan plan;
  plan.rows = op.getLogits().getType().getDimSize(0);
  plan.vocabulary = op.getLogits().getType().getDimSize(1);
  plan.splits = schedule.getSplits();
  plan.threads = schedule.getWarps() * kWarpThreads;
  plan.share = llvm::divideCeil(plan.vocabulary, plan.splits);
  plan.overlap = device.bulkCopies;
  if (plan.threads < kBins)
    return reject(op, schedule) << "warps must be at least " << kBins / kWarpThreads;
  if (failed(checkSplits(op, schedule, device)))
    return failure();
  if (schedule.getBlocks() != plan.rows * plan.splits)
    return reject(op, schedule) << plan.rows << " rows need " << plan.rows * plan.splits
                                << " blocks";
  if (plan.share > mostTokens)
    return reject(op, schedule) << "a block has " << plan.share << " tokens, at most " << mostTokens
                                << " can be added up";
  SharedRanges ranges;
  // Two sets: one is cleared while other blocks still read the other.
  plan.bins = ranges.take(2 * kBins * kBinWords * 4);
  plan.merged = ranges.take(kBins * 8);
  plan.mergedCounts = ranges.take(kBins * 4);
  plan.warpKeys = ranges.take(schedule.getWarps() * 8);
  plan.blockKeys = ranges.take(plan.splits * 8);
  plan.found = ranges.take(8);
  plan.shared = ranges.bytes();
  // Logits that do not fit are read from memory each time.
  SharedRange stage = ranges.take(plan.share * 4);
  plan.staged = ranges.bytes() <= device.sharedBytes;
  if (plan.staged) {
    plan.stage = stage;
    plan.shared = ranges.bytes();
  }
  return plan;
}

GpuLaunch SamplePlan::launch() const {
  GpuLaunch launch;
  launch.grid = rows * splits;
  launch.block = threads;
  launch.shared = shared;
  launch.cluster = splits;
  launch.overlap = overlap;
  return launch;
}

FailureOr<GpuLaunch> SampleOp::planGpuLaunch(GpuScheduleAttr schedule, const GpuDevice &device) {
  FailureOr<SamplePlan> plan = SamplePlan::get(*this, schedule, device);
  if (failed(plan) || failed(checkShared(*this, schedule, plan->shared, device)))
    return failure();
  return plan->launch();
}

//===----------------------------------------------------------------------===//
// Embedding
//===----------------------------------------------------------------------===//

int64_t fused::rowSumStride(int64_t warps) { return llvm::alignTo(warps * 4, 16); }

int64_t fused::countRowSums(Region &region) {
  int64_t sums = 0;
  for (Operation &op : region.getOps())
    if (model::isNorm(&op))
      sums += isa<model::LayerNormOp>(op) ? 2 : 1;
  return sums;
}

FailureOr<RowsPlan> RowsPlan::get(RowsOp op, GpuScheduleAttr schedule, const GpuDevice &device) {
  RowsPlan plan;
  plan.tokens = op.getTokens();
  plan.warps = schedule.getWarps();
  if (schedule.getBlocks() != plan.tokens)
    return reject(op, schedule) << plan.tokens << " tokens need as many blocks";
  plan.overlap = device.bulkCopies;
  SharedRanges ranges;
  plan.warpSums = ranges.take(countRowSums(op.getBody()) * rowSumStride(plan.warps));
  plan.shared = ranges.bytes();
  return plan;
}

GpuLaunch RowsPlan::launch() const {
  GpuLaunch launch;
  launch.grid = tokens;
  launch.block = warps * kWarpThreads;
  launch.shared = shared;
  launch.overlap = overlap;
  return launch;
}

FailureOr<GpuLaunch> RowsOp::planGpuLaunch(GpuScheduleAttr schedule, const GpuDevice &device) {
  FailureOr<RowsPlan> plan = RowsPlan::get(*this, schedule, device);
  if (failed(plan) || failed(checkShared(*this, schedule, plan->shared, device)))
    return failure();
  return plan->launch();
}

FailureOr<EmbeddingPlan> EmbeddingPlan::get(EmbeddingOp op, GpuScheduleAttr schedule,
                                            const GpuDevice &device) {
  FailureOr<formats::PackedShape> shape = tableShape(op);
  if (failed(shape))
    return failure();
  int64_t width = shape->columns();
  if (width % kColumns)
    return op.emitOpError() << "has rows of " << width
                            << " columns, GPU kernels need an even number";
  EmbeddingPlan plan(*shape);
  plan.tokens = op.getTokens().getType().getDimSize(0);
  plan.threads = schedule.getWarps() * kWarpThreads;
  if (plan.tokens < 1 || schedule.getBlocks() % plan.tokens)
    return reject(op, schedule) << plan.tokens << " tokens need as many blocks each";
  // More blocks would have nothing to read.
  plan.parts = std::min<int64_t>(schedule.getBlocks() / plan.tokens,
                                 llvm::divideCeil(width, kColumns * plan.threads));
  return plan;
}

GpuLaunch EmbeddingPlan::launch() const {
  GpuLaunch launch;
  launch.grid = parts * tokens;
  launch.block = threads;
  return launch;
}

FailureOr<GpuLaunch> EmbeddingOp::planGpuLaunch(GpuScheduleAttr schedule, const GpuDevice &device) {
  FailureOr<EmbeddingPlan> plan = EmbeddingPlan::get(*this, schedule, device);
  if (failed(plan))
    return failure();
  return plan->launch();
}

FailureOr<LastRowPlan> LastRowPlan::get(LastRowOp op, GpuScheduleAttr schedule,
                                        const GpuDevice &device) {
  LastRowPlan plan;
  plan.rows = op.getInput().getType().getDimSize(0);
  plan.width = op.getInput().getType().getDimSize(1);
  plan.threads = schedule.getWarps() * kWarpThreads;
  plan.results = op.getType().getDimSize(0);
  if (schedule.getBlocks() % plan.results)
    return reject(op, schedule) << plan.results << " rows need a multiple of as many blocks";
  // More blocks would have nothing to read.
  plan.blocks = std::min<int64_t>(schedule.getBlocks() / plan.results,
                                  llvm::divideCeil(plan.width, plan.threads));
  plan.overlap = device.bulkCopies;
  return plan;
}

GpuLaunch LastRowPlan::launch() const {
  GpuLaunch launch;
  launch.grid = results * blocks;
  launch.block = threads;
  launch.overlap = overlap;
  return launch;
}

FailureOr<GpuLaunch> LastRowOp::planGpuLaunch(GpuScheduleAttr schedule, const GpuDevice &device) {
  FailureOr<LastRowPlan> plan = LastRowPlan::get(*this, schedule, device);
  if (failed(plan))
    return failure();
  return plan->launch();
}
