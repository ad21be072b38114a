// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sluice/Analysis/TimeModel.h"

#include "dialects/Fused/GpuPlan.h"

#include "llvm/Support/MathExtras.h"

#include <cmath>

using namespace mlir;
using namespace sluice;

//===----------------------------------------------------------------------===//
// Times
//===----------------------------------------------------------------------===//

KernelTime &KernelTime::operator+=(const KernelTime &other) {
  memory += other.memory;
  arithmetic += other.arithmetic;
  boundary += other.boundary;
  return *this;
}

KernelTime KernelTime::operator*(double factor) const {
  return {memory * factor, arithmetic * factor, boundary * factor};
}

KernelTime TimeFormula::at(int64_t context) const {
  KernelTime time = fixed;
  time += perPosition * static_cast<double>(window ? std::min(window, context) : context);
  time.arithmetic = std::max(0.0, time.arithmetic);
  return time;
}

DictionaryAttr TimeFormula::toAttribute(MLIRContext *context) const {
  Builder b(context);
  SmallVector<NamedAttribute> entries;
  auto add = [&](StringRef name, double seconds) {
    if (seconds == 0)
      return;
    double unit = std::pow(10.0, std::floor(std::log10(std::abs(seconds))) - 3);
    entries.push_back(b.getNamedAttr(name, b.getF64FloatAttr(std::round(seconds / unit) * unit)));
  };
  add("memory", fixed.memory);
  add("arithmetic", fixed.arithmetic);
  add("boundary", fixed.boundary);
  add("memory_per_position", perPosition.memory);
  add("arithmetic_per_position", perPosition.arithmetic);
  add("alone", alone);
  if (window)
    entries.push_back(b.getNamedAttr("window", b.getI64IntegerAttr(window)));
  return b.getDictionaryAttr(entries);
}

/// A maximum that is rounded where both are alike, the less the greater the exponent.
static double norm(double a, double b, int exponent) {
  double greatest = std::max(a, b);
  if (greatest <= 0)
    return 0;
  return greatest * std::pow(std::pow(a / greatest, exponent) + std::pow(b / greatest, exponent),
                             1.0 / exponent);
}

/// A GPU's, whose copies go on while it multiplies.
static double norm8(double a, double b) { return norm(a, b, 8); }

/// A CPU's.
static double norm3(double a, double b) { return norm(a, b, 3); }

/// A kernel that takes `seconds` in all, of which memory reads for `stream` and whose arithmetic
/// would take `work` alone.
static KernelTime divide(double seconds, double stream, double gap, double work) {
  KernelTime time;
  time.memory = std::min(stream, seconds);
  time.arithmetic = std::clamp(seconds - time.memory - gap, 0.0, work);
  time.boundary = seconds - time.memory - time.arithmetic;
  return time;
}

//===----------------------------------------------------------------------===//
// Rates
//===----------------------------------------------------------------------===//

static int64_t sizeOrder(int64_t group) {
  return group ? llvm::Log2_64(static_cast<uint64_t>(group)) : 16;
}

/// How little two formats have in common, as a number whose digits are compared in order.
static int64_t distance(const formats::Encoding &a, const formats::Encoding &b) {
  if (a == b)
    return -1;
  int64_t result = a.code() != b.code();
  result = 64 * result + std::abs(int(a.bits()) - int(b.bits()));
  result = 2 * result + (a.scale != b.scale);
  result = 2 * result + (a.offset != b.offset);
  return 32 * result + std::abs(sizeOrder(a.group) - sizeOrder(b.group));
}

static int64_t distance(const formats::CacheEncoding &a, const formats::CacheEncoding &b) {
  if (a == b)
    return -1;
  int64_t result = a.isInteger() != b.isInteger();
  result = 64 * result + std::abs(int(a.bits()) - int(b.bits()));
  return 32 * result + std::abs(sizeOrder(a.group) - sizeOrder(b.group));
}

template <typename Format>
static double rateOf(ArrayRef<std::pair<Format, double>> rates, const Format &format) {
  assert(!rates.empty() && "a target names at least one format");
  auto nearest = llvm::min_element(rates, [&](const auto &a, const auto &b) {
    return std::pair(distance(a.first, format), a.second) <
           std::pair(distance(b.first, format), b.second);
  });
  return nearest->second;
}

double TimeModel::productRate(const formats::Encoding &encoding) const {
  return rateOf<formats::Encoding>(productRates, encoding);
}

double TimeModel::matmulRate(const formats::Encoding &encoding) const {
  return rateOf<formats::Encoding>(matmulRates, encoding);
}

double TimeModel::attentionOperandRate(const formats::CacheEncoding &encoding) const {
  return rateOf<formats::CacheEncoding>(operandRates, encoding);
}

double TimeModel::attentionRate(const formats::CacheEncoding &encoding) const {
  return rateOf<formats::CacheEncoding>(attentionRates, encoding);
}

//===----------------------------------------------------------------------===//
// Descriptions
//===----------------------------------------------------------------------===//

TimeModel::TimeModel(const TargetDescription &target, int64_t context, int64_t tokens)
    : description(target), positions(context), tokens(tokens) {
  for (const auto &[name, rate] : target.productRates)
    productRates.emplace_back(*formats::Encoding::fromName(name), rate.value);
  for (const auto &[name, rate] : target.matmulRates)
    matmulRates.emplace_back(*formats::Encoding::fromName(name), rate.value);
  for (const auto &[name, rate] : target.attentionRates)
    attentionRates.emplace_back(*formats::CacheEncoding::fromName(name), rate.value);
  for (const auto &[name, rate] : target.attentionOperandRates)
    operandRates.emplace_back(*formats::CacheEncoding::fromName(name), rate.value);
}

/// A CPU's product of one token or of many.
static TimeFormula hostProduct(const CpuTime &time, double bytes, int64_t columns, double work) {
  TimeFormula formula;
  double stream = bytes / time.productBandwidth.value;
  double beside = time.launch.value + static_cast<double>(columns) * time.productColumn.value;
  formula.fixed = divide(beside + norm3(stream, work), stream, beside, work);
  return formula;
}

TimeFormula TimeModel::product(ArrayRef<WeightLoad> weights, ProductPlace place, int64_t inputs,
                               const ProductSchedule &schedule) const {
  TimeFormula formula;
  double bytes = 0;
  int64_t tiles = 0, columns = 0;
  for (const WeightLoad &weight : weights) {
    double rows = static_cast<double>(weight.rows);
    bytes += rows * static_cast<double>(weight.encoding.bytesPerRow(weight.columns));
    tiles += llvm::divideCeil(weight.rows, formats::tileRows);
    columns = std::max(columns, weight.columns);
  }
  double work = productWork(weights) * static_cast<double>(tokens * inputs);
  if (!description.isGpu())
    return hostProduct(description.cpuTime, bytes, columns, work);
  const GpuTime &time = description.gpuTime;
  // All blocks take as long as the one with most tiles.
  int64_t blocks = std::clamp<int64_t>(tiles, 1, description.multiprocessors.value);
  double slowest = static_cast<double>(llvm::divideCeil(tiles, blocks) * blocks) /
                   static_cast<double>(std::max<int64_t>(tiles, 1));
  // A block's arithmetic is a multiprocessor's.
  double idle =
      static_cast<double>(description.multiprocessors.value) / static_cast<double>(blocks);
  work *= slowest * idle;
  double whole = slowest * bytes /
                 std::min(time.productBandwidth.value,
                          static_cast<double>(blocks) * time.blockBandwidth.value);
  // What is under way at once is read in the same time.
  whole *= static_cast<double>(schedule.wantedUnderWay) / static_cast<double>(schedule.underWay);
  double stream = whole;
  if (place == ProductPlace::BehindAttention)
    stream = std::max(0.0, stream - time.attentionWait.value);
  double gap = time.productGap.value;
  double chain =
      time.productWait.value + static_cast<double>(columns) * time.productColumn.value + work;
  double seconds = norm8(stream + gap, chain);
  formula.fixed = divide(seconds, stream, gap, work);
  formula.fixed.boundary +=
      static_cast<double>(schedule.wantedStages - schedule.stages) * time.productStage.value +
      static_cast<double>(schedule.sums - 1) * time.productSum.value +
      (schedule.hasRoomForRival ? time.productRival.value : 0);
  formula.alone = time.alone.value + norm8(whole + gap, chain) - seconds;
  return formula;
}

double TimeModel::besideAttentionSeconds(ArrayRef<WeightLoad> weights) const {
  if (!description.isGpu())
    return 0;
  double bytes = 0;
  for (const WeightLoad &weight : weights)
    bytes += static_cast<double>(weight.rows) *
             static_cast<double>(weight.encoding.bytesPerRow(weight.columns));
  const GpuTime &time = description.gpuTime;
  return time.besideSlowdown.value * bytes / time.productBandwidth.value - time.besideSaving.value;
}

/// Weights multiplied with a token, and weights that become operands, a second.
static std::pair<double, double> tileRates(MatmulLoad::Arithmetic arithmetic, bool warpgroups,
                                           const GpuTime &time) {
  switch (arithmetic) {
  case MatmulLoad::Arithmetic::Integers:
    return {(warpgroups ? time.warpgroupIntegers : time.warpIntegers).value,
            time.unpackIntegers.value};
  case MatmulLoad::Arithmetic::Floats:
    return {(warpgroups ? time.warpgroupFloats : time.warpFloats).value, time.unpackFloats.value};
  case MatmulLoad::Arithmetic::Records:
    return {(warpgroups ? time.warpgroupRecords : time.warpRecords).value,
            time.unpackRecords.value};
  }
  llvm_unreachable("arithmetic that is none of these");
}

TimeFormula TimeModel::matmul(const MatmulLoad &load) const {
  TimeFormula formula;
  double bytes = 0, hostWork = 0;
  int64_t rowTiles = 0, columns = 1;
  auto inputs = static_cast<double>(tokens * load.tokens);
  for (const WeightLoad &weight : load.weights) {
    auto rows = static_cast<double>(weight.rows);
    bytes += rows * static_cast<double>(weight.encoding.bytesPerRow(weight.columns));
    if (!description.isGpu())
      hostWork += rows * static_cast<double>(weight.columns) * inputs / matmulRate(weight.encoding);
    rowTiles += llvm::divideCeil(weight.rows, formats::tileRows);
    columns = std::max(columns, weight.columns);
  }
  if (!description.isGpu())
    return hostProduct(description.cpuTime, bytes, columns, hostWork);
  const GpuTime &time = description.gpuTime;
  auto multiprocessors = static_cast<double>(description.multiprocessors.value);
  auto [rate, unpack] = tileRates(load.arithmetic, load.warpgroups, time);
  int64_t parts = llvm::divideCeil(rowTiles * formats::tileRows, load.tileRows) *
                  llvm::divideCeil(tokens * load.tokens, load.tileTokens) * load.splits;
  int64_t blocks = std::clamp<int64_t>(parts, 1, std::max<int64_t>(load.blocks, 1));
  int64_t rounds = llvm::divideCeil(std::max<int64_t>(parts, 1), blocks);
  double tileColumns = static_cast<double>(columns) / static_cast<double>(load.splits);
  auto tileRows = static_cast<double>(load.tileRows),
       tileTokens = static_cast<double>(load.tileTokens);
  double copy =
      std::min(time.l2BlockBandwidth.value, time.l2Bandwidth.value / static_cast<double>(blocks));
  double weightBytes =
      bytes / static_cast<double>(rowTiles * formats::tileRows) / static_cast<double>(columns);
  double work = tileRows * tileColumns * (tileTokens / rate + 1 / unpack) * multiprocessors;
  double copied = tileColumns * (tileRows * weightBytes + 2 * tileTokens) / copy;
  double stages = std::ceil(tileColumns / static_cast<double>(load.stageColumns));
  double exchange = load.splits > 1 ? 2 / static_cast<double>(load.splits) : 1;
  double tile = norm8(work, copied) + stages * time.matmulStage.value +
                8 * tileRows * tileTokens * exchange / copy;
  double slowest = static_cast<double>(rounds * blocks) / static_cast<double>(parts);
  double stream = slowest * bytes /
                  std::min(time.productBandwidth.value,
                           static_cast<double>(blocks) * time.blockBandwidth.value);
  double gap = time.productGap.value, chain = static_cast<double>(rounds) * tile;
  double seconds = time.matmulWait.value + norm8(stream + gap, chain);
  formula.fixed = divide(seconds, stream, time.matmulWait.value + gap, chain);
  formula.alone = time.alone.value;
  return formula;
}

/// The ring of a block as a share of the target's long one.
double TimeModel::ringShare(const AttentionLoad &load) const {
  if (!load.stages)
    return 1;
  int64_t position =
      load.keys.bytesPerVector(load.headDim) + load.values.bytesPerVector(load.headDim);
  int64_t stage = std::max<int64_t>(position * load.stagePositions, 1);
  int64_t most = std::clamp<int64_t>(description.gpuTuning.longRingBytes.value / stage, 1,
                                     std::max<int64_t>(load.mostStages, 1));
  return std::min(1.0, static_cast<double>(load.stages) / static_cast<double>(most));
}

TimeFormula TimeModel::attention(const AttentionLoad &load) const {
  TimeFormula formula;
  formula.window = load.window;
  auto kvHeads = static_cast<double>(tokens * load.sequences * load.kvHeads);
  // A token reads what is before it: of the step's own tokens half. A window hides that.
  double unread = load.window ? 0 : static_cast<double>(load.rows - 1) / 2;
  int64_t group = llvm::divideCeil(load.queryHeads, std::max<int64_t>(load.kvHeads, 1));
  double bytes = kvHeads * static_cast<double>(load.keys.bytesPerVector(load.headDim) +
                                               load.values.bytesPerVector(load.headDim));
  auto workOf = [&](int64_t heads) {
    return kvHeads * static_cast<double>(load.headDim * heads) *
           (1 / attentionRate(load.keys) + 1 / attentionRate(load.values));
  };
  if (!description.isGpu()) {
    constexpr int64_t tokensOfBlock = 8; // FusedToHost reads a position once for so many
    double operands =
        kvHeads * static_cast<double>(load.headDim * llvm::divideCeil(load.rows, tokensOfBlock)) *
        (1 / attentionOperandRate(load.keys) + 1 / attentionOperandRate(load.values));
    double stream = bytes / description.cpuTime.cacheBandwidth.value,
           work = operands + workOf(group * load.rows);
    formula.perPosition = divide(norm3(stream, work), stream, 0, work);
    formula.fixed.arithmetic = -unread * formula.perPosition.arithmetic;
    formula.fixed.boundary = description.cpuTime.launch.value;
    return formula;
  }
  const GpuTime &time = description.gpuTime;
  int64_t splits = load.splits ? load.splits : description.gpuTuning.attentionSplits.value;
  int64_t blocks = std::max<int64_t>(1, tokens * load.sequences * load.kvHeads * splits);
  // A block has 64 rows of query heads' tokens.
  constexpr int64_t blockRows = 64;
  if (load.rows > 1)
    blocks *= llvm::divideCeil(group * load.rows, blockRows);
  int64_t running = std::min(blocks, description.multiprocessors.value);
  double ring = load.rows > 1 ? 1 : ringShare(load);
  double stream = bytes / std::min(time.cacheBandwidth.value,
                                   static_cast<double>(running) * time.blockBandwidth.value * ring);
  // With many rows a product of the tensor cores has 128 scores, with one it has 64.
  double arithmetic = load.rows > 1 ? workOf(group * load.rows) / 2
                                    : workOf(llvm::alignTo(group, fused::AttentionPlan::kHeads));
  double work = arithmetic * static_cast<double>(description.multiprocessors.value) /
                static_cast<double>(running);
  formula.perPosition = divide(norm8(stream, work), stream, 0, work);
  formula.fixed.arithmetic = -unread * formula.perPosition.arithmetic;
  formula.fixed.boundary = time.attentionWait.value;
  // The parameter is that of one token's parts: a prompt's have more rows to join.
  if (load.rows == 1)
    formula.fixed.boundary = std::max(
        0.0, formula.fixed.boundary -
                 static_cast<double>(description.gpuTuning.attentionSplits.value - splits) *
                     time.attentionPart.value);
  if (load.leavesRoom)
    formula.fixed.boundary -= time.roomSaving.value;
  formula.alone = time.alone.value;
  return formula;
}

double TimeModel::productWork(ArrayRef<WeightLoad> weights) const {
  double work = 0;
  for (const WeightLoad &weight : weights)
    work += static_cast<double>(weight.rows) * static_cast<double>(weight.columns) /
            productRate(weight.encoding);
  return work;
}

std::optional<TimeFormula> TimeModel::persistentLayer(const fused::PersistentPlan &plan,
                                                      const AttentionLoad &load,
                                                      double recordWork) const {
  if (!description.persistent || !description.persistent->time)
    return std::nullopt;
  const PersistentTime &time = *description.persistent->time;
  double blockBandwidth = description.gpuTime.blockBandwidth.value;
  // A layer's products are all in records or none is, but for a few.
  double memory = plan.readSeconds((recordWork > 0 ? time.recordBandwidth : time.bandwidth).value,
                                   blockBandwidth);
  double arithmetic = time.recordArithmetic.value * recordWork, stream = memory + arithmetic;
  TimeFormula formula;
  formula.fixed.memory = memory;
  formula.fixed.arithmetic = arithmetic;
  formula.fixed.boundary = std::hypot(stream, time.wait.value) - stream;
  formula.window = load.window;
  auto readers = static_cast<double>(plan.schedule.attentionClusters * plan.schedule.clusterBlocks);
  int64_t integers = load.headDim * (static_cast<int64_t>(load.keys.isInteger()) +
                                     static_cast<int64_t>(load.values.isInteger()));
  double multiply =
      static_cast<double>(integers * load.queryHeads) / (readers * time.integers.value);
  if (integers)
    formula.fixed.boundary += time.integerWait.value;
  double read = static_cast<double>(load.kvHeads * (load.keys.bytesPerVector(load.headDim) +
                                                    load.values.bytesPerVector(load.headDim))) /
                std::min(time.cacheBandwidth.value, readers * blockBandwidth);
  formula.perPosition = divide(norm8(read, multiply), read, 0, multiply);
  return formula;
}

static SmallVector<WeightLoad> weightLoads(fused::ProductOp op) {
  return llvm::map_to_vector(op.getWeights(), [](Value weight) -> WeightLoad {
    if (auto type = dyn_cast<quantized::QuantizedTensorType>(weight.getType()))
      return {type.getEncoding().getValue(), type.getRows(), type.getColumns()};
    auto type = cast<RankedTensorType>(weight.getType());
    return {quantized::EncodingAttr::of(type.getElementType()).getValue(), type.getDimSize(0),
            type.getDimSize(1)};
  });
}

std::optional<TimeFormula> TimeModel::persistentLayers(const fused::DecoderStep &step,
                                                       const fused::PersistentPlan &plan) const {
  // Layers are alike but for their weights' encodings, of which all that are in records count.
  fused::AttentionOp attention = step.layers.front().attention;
  SmallVector<WeightLoad> records;
  for (const fused::DecoderStep::Layer &layer : step.layers)
    for (fused::MatvecOp product : {layer.projections, layer.output, layer.gates, layer.down})
      for (auto [weight, load] : llvm::zip_equal(product.getWeights(), weightLoads(product))) {
        if (fused::isInRecords(weight.getType()))
          records.push_back(load);
      }
  auto count = static_cast<double>(step.layers.size());
  std::optional<TimeFormula> formula =
      persistentLayer(plan, attentionLoad(attention, {}), productWork(records) / count);
  if (!formula)
    return std::nullopt;
  formula->fixed = formula->fixed * count;
  formula->perPosition = formula->perPosition * count;
  formula->alone = description.gpuTime.alone.value;
  return formula;
}

//===----------------------------------------------------------------------===//
// Kernels
//===----------------------------------------------------------------------===//

SmallVector<fused::MatvecOp, 2> sluice::neighbours(fused::AttentionOp op) {
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

AttentionLoad sluice::attentionLoad(fused::AttentionOp op, fused::GpuScheduleAttr schedule) {
  AttentionLoad load;
  auto cacheOf = [&](FlatSymbolRefAttr name) {
    return SymbolTable::lookupNearestSymbolFrom<model::CacheOp>(op, name);
  };
  load.window = op.getWindow().value_or(0);
  (op.getActive() ? load.rows : load.sequences) = op.getTokens();
  model::CacheOp keys = cacheOf(op.getKeysAttr()), values = cacheOf(op.getValuesAttr());
  if (!keys || !values)
    return load;
  load.keys = keys.getCacheType().getEncoding();
  load.values = values.getCacheType().getEncoding();
  load.kvHeads = keys.getCacheType().getHeads();
  load.headDim = keys.getCacheType().getHeadDim();
  load.queryHeads = op.getQuery().getType().getDimSize(1) / std::max<int64_t>(load.headDim, 1);
  if (!schedule)
    return load;
  load.splits = schedule.getSplits();
  load.stages = schedule.getStages();
  load.stagePositions = schedule.getColumns();
  int64_t reach = load.window ? load.window : keys.getCacheType().getPositions();
  load.mostStages =
      llvm::divideCeil(reach, std::max<int64_t>(schedule.getColumns() * schedule.getSplits(), 1));
  return load;
}

MatmulLoad sluice::matmulLoad(fused::MatmulOp op, fused::GpuScheduleAttr schedule) {
  MatmulLoad load;
  load.weights = weightLoads(cast<fused::ProductOp>(op.getOperation()));
  load.tokens = op.getTokens();
  auto type = dyn_cast<quantized::QuantizedTensorType>(op.getWeights().front().getType());
  if (type && type.getLayout().getKind() == quantized::LayoutKind::Records)
    load.arithmetic = MatmulLoad::Arithmetic::Records;
  else if (!load.weights.front().encoding.isInteger())
    load.arithmetic = MatmulLoad::Arithmetic::Floats;
  if (!schedule)
    return load;
  load.tileRows = schedule.getRows();
  load.tileTokens = schedule.getTokens();
  load.splits = schedule.getSplits();
  load.stageColumns = schedule.getColumns();
  load.blocks = schedule.getBlocks();
  load.warpgroups = schedule.getWarpgroups() > 0;
  return load;
}

KernelLoad sluice::kernelLoad(fused::KernelOp op) {
  KernelLoad load;
  Operation *operation = op;
  if (auto product = dyn_cast<fused::MatvecOp>(operation)) {
    load.kind = KernelLoad::Kind::Product;
    load.weights = weightLoads(product);
    load.tokens = product.getTokens();
    if (product.getInput().getDefiningOp<fused::AttentionOp>())
      load.place = ProductPlace::BehindAttention;
  } else if (auto product = dyn_cast<fused::MatmulOp>(operation)) {
    load.kind = KernelLoad::Kind::Matmul;
    load.matmul =
        matmulLoad(product, dyn_cast_if_present<fused::GpuScheduleAttr>(product.getScheduleAttr()));
  } else if (auto attention = dyn_cast<fused::AttentionOp>(operation)) {
    load.kind = KernelLoad::Kind::Attention;
    load.attention = attentionLoad(
        attention, dyn_cast_if_present<fused::GpuScheduleAttr>(attention.getScheduleAttr()));
  } else if (auto sample = dyn_cast<fused::SampleOp>(operation)) {
    load.kind = KernelLoad::Kind::Sampling;
    load.tokens = sample.getLogits().getType().getDimSize(0);
    load.logits = sample.getLogits().getType().getDimSize(1);
  } else {
    Traffic traffic = op.computeTraffic();
    load.bytes = traffic.activations + traffic.written;
  }
  return load;
}

TimeFormula TimeModel::formula(const KernelLoad &load) const {
  if (load.kind == KernelLoad::Kind::Product)
    return product(load.weights, load.place, load.tokens);
  if (load.kind == KernelLoad::Kind::Attention)
    return attention(load.attention);
  if (load.kind == KernelLoad::Kind::Matmul)
    return matmul(load.matmul);
  TimeFormula formula;
  auto bytes = static_cast<double>(tokens * load.bytes);
  if (!description.isGpu()) {
    formula.fixed.boundary = description.cpuTime.launch.value;
    formula.fixed.memory = bytes / description.cpuTime.rowsBandwidth.value;
    return formula;
  }
  const GpuTime &time = description.gpuTime;
  // A token's logits are a cluster's.
  int64_t rounds = llvm::divideCeil(tokens * load.tokens * description.gpuTuning.sampleSplits.value,
                                    description.multiprocessors.value);
  formula.fixed.boundary =
      time.smallKernel.value + static_cast<double>(load.logits * rounds) * time.samplingLogit.value;
  formula.fixed.memory = bytes / time.rowsBandwidth.value;
  formula.alone = time.alone.value;
  return formula;
}

double TimeModel::stepSeconds() const {
  return (description.isGpu() ? description.gpuTime.step : description.cpuTime.step).value;
}

KernelTime TimeModel::step(Operation *function) const {
  KernelTime total;
  total.boundary = stepSeconds();
  function->walk([&](fused::KernelOp op) { total += kernel(op); });
  return total;
}
