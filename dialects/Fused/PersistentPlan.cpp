// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "dialects/Fused/PersistentPlan.h"

#include "sluice/Formats/Records.h"
#include "sluice/Target/ThreadRegisters.h"

#include "llvm/ADT/STLExtras.h"

#include <numeric>

using namespace sluice::fused;
using llvm::createStringError;
using llvm::Expected;
using llvm::Twine;

/// A part of `total` things, as even as possible.
static IndexRange part(int64_t total, int64_t parts, int64_t index) {
  return {total * index / parts, total * (index + 1) / parts};
}

WeightUnit WeightUnit::ofGroup(int64_t bits) {
  WeightUnit unit;
  unit.columns = PersistentPlan::kGroup;
  unit.bits = bits;
  unit.bytes = PersistentPlan::kTile * (PersistentPlan::kGroup * bits / 8 + (bits < 16 ? 2 : 0));
  return unit;
}

WeightUnit WeightUnit::ofRecord(const formats::Encoding &encoding) {
  formats::RecordShape record(encoding);
  WeightUnit unit;
  unit.columns = formats::RecordShape::columns;
  unit.bits = encoding.bits();
  unit.bytes = record.bytes();
  unit.isRecord = true;
  unit.sumColumns = encoding.hasOffset() ? record.unit() : 0;
  return unit;
}

int64_t WeightUnit::inStage(int64_t warps) const {
  // 16 KB a copy reach the memory's bandwidth (docs/kernels.md). A power of two of units, so that
  // no warp is left over.
  constexpr int64_t most = 16384 * 5 / 4;
  int64_t elements = PersistentPlan::kTile * columns * bits / 8;
  return std::min(int64_t(llvm::bit_floor(uint64_t(most / elements))), warps);
}

PartStages::PartStages(const WeightUnit &unit, int64_t tileUnits, int64_t warps)
    : units(unit.inStage(warps)), stageTiles(std::max<int64_t>(units / tileUnits, 1)),
      stageUnits(std::min(tileUnits, units)), tileStages(llvm::divideCeil(tileUnits, units)),
      setStages(unit.isRecord ? 1 : tileStages) {}

/// The weights of a layer that read the input of an exchange.
static llvm::SmallVector<WeightUnit> readersOf(const DecoderShape::Weights &weights,
                                               PersistentPlan::ExchangeIndex exchange) {
  switch (exchange) {
  case PersistentPlan::Input: {
    llvm::SmallVector<WeightUnit> readers = {weights.gates};
    llvm::append_range(readers, weights.projections);
    return readers;
  }
  case PersistentPlan::Attended:
    return {weights.output};
  case PersistentPlan::Inner:
    return {weights.down};
  default:
    return {};
  }
}

PersistentPlan::InputOrder PersistentPlan::inputOrder(ExchangeIndex exchange) const {
  InputOrder order;
  for (const DecoderShape::Weights &weights : shape.kinds)
    for (const WeightUnit &unit : readersOf(weights, exchange)) {
      order.records |= unit.isRecord;
      if (unit.sumColumns)
        order.sumColumns =
            order.sumColumns ? std::min(order.sumColumns, unit.sumColumns) : unit.sumColumns;
    }
  return order;
}

std::optional<std::string> PersistentPlan::unitProblem() const {
  struct Reading {
    ExchangeIndex exchange;
    std::string input, columnsAre;
    int64_t columns;
    bool mayEnd; ///< whether the last group of 128 columns may have fewer
  };
  int64_t columns = clusterHeads() * shape.group() * shape.dim;
  Reading readings[] = {
      {Inner, "inner values", ("an MLP of " + Twine(shape.inner) + " inner values is").str(),
       shape.inner, false},
      {Attended, "attention's output",
       ("a cluster's " + Twine(columns) + " columns of the attention output are").str(), columns,
       schedule.attentionClusters == 1},
      {Input, "the residual stream", ("a width of " + Twine(shape.width) + " is").str(),
       shape.width, true}};
  for (const Reading &reading : readings) {
    bool records = inputOrder(reading.exchange).records;
    for (const DecoderShape::Weights &weights : shape.kinds)
      for (const WeightUnit &unit : readersOf(weights, reading.exchange)) {
        if (unit.isRecord != records)
          return "products of " + reading.input + " have weights in both layouts, records and mma";
        if (reading.columns % unit.columns && (unit.isRecord || !reading.mayEnd))
          return (reading.columnsAre + " not in whole " +
                  (unit.isRecord ? "records of " : "groups of ") + Twine(unit.columns))
              .str();
      }
  }
  int64_t parts = innerGroups() / downGroups();
  if (parts < schedule.clusters)
    return (Twine(parts) + " " + (inputOrder(Inner).records ? "records" : "groups") +
            " of the MLP's inner values for " + Twine(schedule.clusters) + " clusters")
        .str();
  return std::nullopt;
}

int64_t PersistentPlan::downGroups() const {
  int64_t columns = 0;
  for (const DecoderShape::Weights &weights : shape.kinds)
    columns = std::max(columns, weights.down.columns);
  return columns / kGroup;
}

IndexRange PersistentPlan::inputGroups(int64_t rank) const {
  return part(widthGroups(), schedule.clusterBlocks, rank);
}

IndexRange PersistentPlan::heads(int64_t cluster) const {
  if (cluster >= schedule.attentionClusters)
    return {};
  return part(shape.heads, schedule.attentionClusters, cluster);
}

IndexRange PersistentPlan::projectionTiles(size_t number, int64_t rank) const {
  return part(projectionTiles(number), schedule.clusterBlocks, rank);
}

int64_t PersistentPlan::projectionCount(int64_t rank) const {
  int64_t count = 0;
  for (size_t number = 0; number < shape.projections.size(); ++number)
    count += projectionTiles(number, rank).size();
  return count;
}

int64_t PersistentPlan::mostProjectionTiles() const {
  int64_t most = 0;
  for (size_t number = 0; number < shape.projections.size(); ++number)
    most += mostProjectionTiles(number);
  return most;
}

IndexRange PersistentPlan::joinedColumns(int64_t set) const {
  int64_t all = clusterHeads() * shape.group() * shape.dim, columns = joined * shape.dim;
  return {set * columns, std::min((set + 1) * columns, all)};
}

int64_t PersistentPlan::ownSets(int64_t rank) const {
  return llvm::divideCeil(std::max<int64_t>(joinedSets() - rank, 0), schedule.clusterBlocks);
}

IndexRange PersistentPlan::sumTiles(int64_t rank) const {
  return part(widthTiles(), schedule.clusterBlocks, rank);
}

IndexRange PersistentPlan::innerGroups(int64_t block) const {
  IndexRange all = clusterInnerGroups(clusterOf(block)),
             own = part(all.size(), schedule.clusterBlocks, rankOf(block));
  return {all.begin + own.begin, all.begin + own.end};
}

IndexRange PersistentPlan::clusterInnerGroups(int64_t cluster) const {
  IndexRange units = part(innerGroups() / downGroups(), schedule.clusters, cluster);
  return {units.begin * downGroups(), units.end * downGroups()};
}

int64_t PersistentPlan::mostClusterInnerGroups() const {
  int64_t most = 0;
  for (int64_t cluster = 0; cluster < schedule.clusters; ++cluster)
    most = std::max(most, clusterInnerGroups(cluster).size());
  return most;
}

IndexRange PersistentPlan::headTiles(int64_t block) const {
  return part(llvm::divideCeil(shape.vocabulary, kTile), blocks(), block);
}

int64_t PersistentPlan::projectionBytes(int64_t block, const DecoderShape::Weights &weights) const {
  if (!attends(block))
    return 0;
  int64_t bytes = 0;
  for (auto [number, unit] : llvm::enumerate(weights.projections))
    bytes += projectionTiles(number, rankOf(block)).size() *
             int64_t(llvm::divideCeil(shape.width, unit.columns)) * unit.bytes;
  return bytes;
}

int64_t PersistentPlan::outputBytes(int64_t block, const DecoderShape::Weights &weights) const {
  return attends(block) ? sumTiles(rankOf(block)).size() * attendedGroups() * kGroup /
                              weights.output.columns * weights.output.bytes
                        : 0;
}

int64_t PersistentPlan::gateBytes(int64_t block, const DecoderShape::Weights &weights) const {
  return innerGroups(block).size() * 2 * kGroup / kTile *
         int64_t(llvm::divideCeil(shape.width, weights.gates.columns)) * weights.gates.bytes;
}

int64_t PersistentPlan::downBytes(int64_t block, const DecoderShape::Weights &weights) const {
  return sumTiles(rankOf(block)).size() * clusterInnerGroups(clusterOf(block)).size() * kGroup /
         weights.down.columns * weights.down.bytes;
}

int64_t PersistentPlan::projectionSums(size_t number) const {
  int64_t most = 0;
  for (const DecoderShape::Weights &weights : shape.kinds) {
    const WeightUnit &unit = weights.projections[number];
    PartStages stages(unit, llvm::divideCeil(shape.width, unit.columns), schedule.warps);
    most = std::max(most, stages.sumBytes(mostProjectionTiles(number)));
  }
  return most;
}

int64_t PersistentPlan::mostSums() const {
  int64_t most = 0;
  for (size_t number = 0; number < shape.projections.size(); ++number)
    most += projectionSums(number);
  auto add = [&](const WeightUnit &unit, int64_t groups) {
    int64_t units = llvm::divideCeil(groups * kGroup, unit.columns);
    most = std::max(most, PartStages(unit, units, schedule.warps).sumBytes(1));
  };
  for (const DecoderShape::Weights &weights : shape.kinds) {
    add(weights.gates, widthGroups());
    add(weights.output, attendedGroups());
    add(weights.down, mostClusterInnerGroups());
  }
  return most;
}

Expected<PersistentPlan> PersistentPlan::compute(const DecoderShape &shape,
                                                 const PersistentSchedule &schedule,
                                                 const GpuDevice &device) {
  PersistentPlan plan;
  plan.shape = shape;
  plan.schedule = schedule;
  if (!device.bulkCopies)
    return createStringError("a step as one kernel needs clusters and bulk copies, which " +
                             device.arch + " does not have");
  for (auto [name, value, most] :
       {std::tuple("clusters", schedule.clusters, int64_t(255)),
        std::tuple("cluster_blocks", schedule.clusterBlocks, int64_t(8)),
        std::tuple("attention_clusters", schedule.attentionClusters, schedule.clusters),
        std::tuple("warps", schedule.warps, int64_t(31)),
        std::tuple("attention_in_flight", schedule.attentionInFlight, schedule.stages),
        std::tuple("mlp_in_flight", schedule.mlpInFlight, schedule.stages)})
    if (value < 1 || value > most)
      return createStringError(Twine(name) + " is " + Twine(value) + ", expected 1 to " +
                               Twine(most));
  if (schedule.warps == 1)
    return createStringError("warps is 1, expected 2 to 31: one adds the token to its piece of the "
                             "cache while others read");
  if (shape.width % kTile || shape.dim % kTile)
    return createStringError("a width of " + Twine(shape.width) + " and heads of " +
                             Twine(shape.dim) + " elements are not whole tiles of 16 rows");
  if (shape.heads % schedule.attentionClusters)
    return createStringError(Twine(shape.heads) + " key/value heads on " +
                             Twine(schedule.attentionClusters) + " clusters");
  if (std::optional<std::string> what = plan.unitProblem())
    return createStringError(*what);
  plan.joined = std::lcm(shape.dim, kGroup) / shape.dim;
  // Four registers of operands each; more would spill (docs/kernels.md).
  constexpr int64_t mostWarpGroups = 4;
  if (plan.warpGroups() > mostWarpGroups)
    return createStringError("an input of " + Twine(shape.width) + " columns is " +
                             Twine(plan.warpGroups()) + " groups a warp, at most " +
                             Twine(mostWarpGroups) + " find room in registers");

  plan.dividesRegisters = device.warpgroups && schedule.warps % kWarpgroupWarps == 0;

  SharedRanges ranges;
  plan.stageBytes = shape.pieceBytes;
  for (const DecoderShape::Weights &weights : shape.kinds)
    for (ExchangeIndex exchange : {Input, Attended, Inner})
      for (const WeightUnit &unit : readersOf(weights, exchange))
        plan.stageBytes = std::max(plan.stageBytes, unit.inStage(schedule.warps) * unit.bytes);
  plan.stageBytes = llvm::alignTo(plan.stageBytes, 128);
  int64_t ranks = schedule.clusterBlocks, ownSets = plan.ownSets(0),
          setColumns = plan.joined * shape.dim;
  plan.ring = ranges.take(schedule.stages * plan.stageBytes, 128);
  plan.full = ranges.take(schedule.stages * 8, 8);
  plan.empty = ranges.take(schedule.stages * 8, 8);
  plan.barriers = ranges.take((Inner - Input + 1) * 8, 8);
  plan.input = ranges.take(plan.widthGroups() * kGroupBytes);
  plan.inputMeta = ranges.take(plan.widthGroups() * plan.inputOrder(Input).metaBytes());
  plan.projections =
      ranges.take(plan.clusterHeads() * shape.projectionRows() * shape.projectionBytes);
  // Of every rank, its part of the sets that this one finishes, and each head's maximum and sum.
  plan.parts = ranges.take(ranks * ownSets * setColumns * 4);
  plan.partMeta = ranges.take(ranks * ownSets * plan.joined * 8);
  plan.attended = ranges.take(plan.attendedGroups() * kGroupBytes);
  plan.attendedMeta = ranges.take(plan.attendedGroups() * plan.inputOrder(Attended).metaBytes());
  plan.state = ranges.take(llvm::divideCeil(plan.widthGroups(), ranks) * kGroup * 4 * kSumArrays);
  // Two floats a row pair and warp; attention's warps leave a head's outputs each.
  int64_t held = 2 * kGroup / kTile;
  plan.sums = ranges.take(std::max({held * schedule.warps * kTile * 4, plan.mostSums(),
                                    plan.pieceReaders() * shape.group() * plan.partFloats() * 4}));
  plan.tokens = ranges.take(3 * ranks * kTokenBytes);
  plan.extents = ranges.take(kExtents * 4);
  plan.rotary = ranges.take(shape.dim * 4);
  // A warp rounds when no sums are in use: what it sends, others wait for before they write sums.
  plan.scratch = {plan.sums.offset, schedule.warps * kGroupBytes};
  plan.pointers = ranges.take(shape.layers * shape.layerPointers * 8, 8);
  if (shape.kinds.size() > 1)
    plan.kinds = ranges.take(shape.layers * 4, 4);
  plan.appended = ranges.take(16, 8); // the newest piece has come; the token is in it
  if (plan.inputOrder(Input).records || plan.inputOrder(Attended).records ||
      plan.inputOrder(Inner).records)
    plan.zeros = ranges.take(InputPlan::kZeroBytes);
  // The block's own numbers of attention, and the MLP's inner values: between them are barriers,
  // and nobody sends inner values before all blocks of the cluster have sent attention's outputs.
  SharedRanges inAttention = ranges, inMlp = ranges;
  plan.projected = inAttention.take(plan.mostProjectionTiles() * kTile * shape.projectionBytes);
  int64_t queryHeads = plan.clusterHeads() * shape.group();
  plan.queries = inAttention.take(queryHeads * shape.queryBytes);
  plan.queryFactors = inAttention.take(queryHeads * 4);
  plan.outputs = inAttention.take(plan.joinedSets() * setColumns * 4);
  plan.outputMeta = inAttention.take(plan.joinedSets() * plan.joined * 8);
  plan.innerValues = inMlp.take(plan.mostInnerGroups() * kGroup * 4);
  plan.inner = inMlp.take(plan.mostClusterInnerGroups() * kGroupBytes);
  plan.innerMeta = inMlp.take(plan.mostClusterInnerGroups() * plan.inputOrder(Inner).metaBytes());
  plan.shared = std::max(inAttention.bytes(), inMlp.bytes());
  if (plan.shared > device.sharedBytes)
    return createStringError("a ring of " + Twine(schedule.stages) + " stages of " +
                             Twine(plan.stageBytes) + " bytes and " +
                             Twine(plan.shared - schedule.stages * plan.stageBytes) +
                             " other bytes need more than the " + Twine(device.sharedBytes) +
                             " bytes of shared memory that a block has");
  return plan;
}

Expected<PersistentPlan> PersistentPlan::get(const DecoderShape &shape,
                                             const PersistentSchedule &schedule,
                                             const GpuDevice &device) {
  Expected<PersistentPlan> plan = compute(shape, schedule, device);
  // What is true of four layers is true of all: they repeat with a period of two.
  if (plan)
    if (llvm::Error error = checkProtocol(plan->protocol(std::min<int64_t>(shape.layers, 4))))
      return std::move(error);
  return plan;
}

std::optional<PersistentPlan::Registers> PersistentPlan::registers() const {
  if (!dividesRegisters)
    return std::nullopt;
  // The copying warp: with fewer its addresses spill, and more the others do not need
  // (docs/kernels.md).
  constexpr int64_t copying = 64;
  // What the block has at its launch is divided, not what the multiprocessor has beside that.
  int64_t pool = ptx::registersAtLaunch(launchWarps()) * launchWarps() - copying * kWarpgroupWarps;
  int64_t computing = pool / schedule.warps / ptx::registerStep * ptx::registerStep;
  return Registers{std::min(computing, ptx::mostRegisters), copying};
}

GpuLaunch PersistentPlan::launch() const {
  GpuLaunch launch;
  launch.grid = blocks();
  launch.block = launchWarps() * kWarpThreads;
  launch.shared = shared;
  launch.cluster = schedule.clusterBlocks;
  launch.resident = 1;
  launch.overlap = launch.cooperative = true;
  return launch;
}

Protocol PersistentPlan::protocol(int64_t layers) const {
  Protocol protocol;
  int64_t ranks = schedule.clusterBlocks;
  auto groupBytes = [&](ExchangeIndex index) {
    return kGroupBytes + inputOrder(index).metaBytes();
  };
  protocol.clusterBlocks = ranks;
  auto exchange = [&](const char *name, Exchange::Kind kind, int64_t size) {
    protocol.exchanges.push_back({name, kind, size});
  };
  int64_t words = widthTiles() * kTile, setBytes = joined * (shape.dim * 4 + 8),
          rowBytes = kTile * shape.projectionBytes;
  exchange("attention sums", Exchange::Kind::Sum, words);
  exchange("MLP sums, even layers", Exchange::Kind::Sum, words);
  exchange("MLP sums, odd layers", Exchange::Kind::Sum, words);
  int64_t tokens = ranks * kTokenBytes;
  exchange("input", Exchange::Kind::Gather, widthGroups() * groupBytes(Input) + tokens);
  exchange("projections", Exchange::Kind::Gather,
           clusterHeads() * shape.projectionRows() / kTile * rowBytes + tokens);
  exchange("parts", Exchange::Kind::Gather, ranks * ownSets(0) * setBytes);
  exchange("attention output", Exchange::Kind::Gather, attendedGroups() * groupBytes(Attended));
  exchange("inner values", Exchange::Kind::Gather,
           mostClusterInnerGroups() * groupBytes(Inner) + tokens);

  using Kind = ProtocolEvent::Kind;
  for (int64_t block = 0; block < blocks(); ++block) {
    std::vector<ProtocolEvent> &events = protocol.blocks.emplace_back();
    int64_t rank = rankOf(block), cluster = clusterOf(block), first = cluster * ranks;
    // Of gathers, the round that comes next.
    int64_t rounds[Inner + 1] = {};
    auto send = [&](int64_t index, IndexRange bytes, int64_t target, int64_t end) {
      if (bytes.size() > 0)
        events.push_back(
            {Kind::Send, index, rounds[index], bytes.begin, bytes.end, 0, target, end});
    };
    auto wait = [&](int64_t index, int64_t bytes) {
      events.push_back({Kind::WaitGather, index, rounds[index], 0, 0, bytes, 0, 0});
    };
    // Sends the rank's own of `total` things to its whole cluster and waits for all of them.
    auto gather = [&](int64_t index, llvm::ArrayRef<IndexRange> own, int64_t total, int64_t bytes,
                      llvm::function_ref<bool(int64_t)> hasNone) {
      int64_t tokens = protocol.exchanges[index].size - ranks * kTokenBytes, count = 0;
      for (int64_t other = 0; other < ranks; ++other)
        count += hasNone(other);
      if (hasNone(rank))
        send(index, {tokens + rank * kTokenBytes, tokens + (rank + 1) * kTokenBytes}, first,
             first + ranks);
      for (IndexRange range : own)
        send(index, {range.begin * bytes, range.end * bytes}, first, first + ranks);
      wait(index, total * bytes + count * kTokenBytes);
    };
    auto done = [&](int64_t index) {
      events.push_back({Kind::Done, index, rounds[index]++, 0, 0, 0, 0, 0});
    };
    IndexRange own = inputGroups(rank), rows{own.begin * kGroup, std::min(own.end * kGroup, words)},
               tiles = sumTiles(rank);
    auto read = [&](int64_t sums, int64_t round, int64_t additions) {
      if (rows.size() > 0)
        events.push_back(
            {Kind::WaitSum, sums, round, rows.begin, rows.end, (round + 1) * additions, 0, 0});
    };
    auto add = [&](int64_t sums, int64_t round) {
      if (tiles.size() > 0)
        events.push_back({Kind::Add, sums, round, tiles.begin * kTile, tiles.end * kTile, 0, 0, 0});
    };
    auto readMlp = [&](int64_t layer) { // what `layer` left
      read(MlpSums + layer % 2, layer / 2, mlpAdditions());
    };
    auto shareInput = [&] {
      gather(Input, own, widthGroups(), groupBytes(Input),
             [&](int64_t other) { return inputGroups(other).size() == 0; });
    };
    for (int64_t layer = 0; layer < layers; ++layer) {
      if (attends(block)) {
        if (layer)
          readMlp(layer - 1);
        shareInput();
        done(Input);
        llvm::SmallVector<IndexRange> projected;
        int64_t before = 0; // in the weights before
        for (size_t number = 0; number < shape.projections.size(); ++number) {
          IndexRange tiles = projectionTiles(number, rank);
          projected.push_back({before + tiles.begin, before + tiles.end});
          before += projectionTiles(number);
        }
        gather(Projections, projected, before, rowBytes,
               [&](int64_t other) { return projectionCount(other) == 0; });
        done(Projections);
        // A set's part goes to the rank that finishes it.
        for (int64_t set = 0; set < joinedSets(); ++set) {
          int64_t place = rank * ownSets(0) + set / ranks, target = first + set % ranks;
          send(Parts, {place * setBytes, (place + 1) * setBytes}, target, target + 1);
        }
        if (ownSets(rank)) {
          wait(Parts, ranks * ownSets(rank) * setBytes);
          events.push_back({Kind::Done, Parts, rounds[Parts], 0, 0, 0, 0, 0});
          for (int64_t set = rank; set < joinedSets(); set += ranks) {
            IndexRange columns = joinedColumns(set);
            send(Attended,
                 {columns.begin / kGroup * groupBytes(Attended),
                  int64_t(llvm::divideCeil(columns.end, kGroup)) * groupBytes(Attended)},
                 first, first + ranks);
          }
        }
        ++rounds[Parts];
        wait(Attended, attendedGroups() * groupBytes(Attended));
        done(Attended);
        add(AttentionSums, layer);
      } else if (layer) {
        readMlp(layer - 1);
      }
      read(AttentionSums, layer, attentionAdditions());
      shareInput();
      done(Input);
      IndexRange inner = innerGroups(block), all = clusterInnerGroups(cluster);
      IndexRange ofCluster{inner.begin - all.begin, inner.end - all.begin};
      gather(Inner, ofCluster, all.size(), groupBytes(Inner),
             [&](int64_t other) { return innerGroups(first + other).size() == 0; });
      done(Inner);
      add(MlpSums + layer % 2, layer / 2);
    }
    readMlp(layers - 1);
    shareInput();
    done(Input);
  }
  return protocol;
}

double PersistentPlan::readSeconds(double bandwidth, double blockBandwidth) const {
  auto seconds = [&](llvm::function_ref<int64_t(int64_t)> bytesOf) {
    int64_t most = 0, readers = 0;
    for (int64_t block = 0; block < blocks(); ++block)
      if (int64_t bytes = bytesOf(block)) {
        most = std::max(most, bytes);
        ++readers;
      }
    return std::max(double(most * readers) / bandwidth, double(most) / blockBandwidth);
  };
  double sum = 0;
  for (auto [kind, weights] : llvm::enumerate(shape.kinds)) {
    double one = seconds([&](int64_t block) {
                   return projectionBytes(block, weights) + outputBytes(block, weights);
                 }) +
                 seconds([&](int64_t block) {
                   return gateBytes(block, weights) + downBytes(block, weights);
                 });
    if (shape.kinds.size() == 1)
      return one;
    sum += one * double(llvm::count(shape.kindOf, int64_t(kind)));
  }
  return sum / double(shape.layers);
}

Expected<PersistentSchedule> sluice::fused::choosePersistentSchedule(const DecoderShape &shape,
                                                                     const PersistentLimits &limits,
                                                                     const GpuDevice &device) {
  struct Candidate {
    PersistentPlan plan;
    double seconds;
  };
  std::vector<Candidate> candidates;
  // The first thing that did not fit.
  std::string problem;
  // The larger a cluster, the fewer blocks round the same numbers.
  for (int64_t size = limits.residentClusters.size() - 1; size >= 0 && candidates.empty(); --size)
    for (int64_t attention = std::min(shape.heads, limits.residentClusters[size]); attention >= 1;
         --attention) {
      if (shape.heads % attention)
        continue;
      for (int64_t clusters = attention; clusters <= limits.residentClusters[size]; ++clusters) {
        PersistentSchedule schedule;
        schedule.clusters = clusters;
        schedule.clusterBlocks = int64_t(1) << size;
        schedule.attentionClusters = attention;
        schedule.warps = limits.warps;
        schedule.attentionInFlight = limits.attentionInFlight;
        schedule.mlpInFlight = limits.mlpInFlight;
        schedule.stages = std::max(limits.attentionInFlight, limits.mlpInFlight);
        Expected<PersistentPlan> plan = PersistentPlan::compute(shape, schedule, device);
        if (plan) {
          candidates.push_back({*plan, plan->readSeconds(limits.bandwidth, limits.blockBandwidth)});
        } else {
          std::string found = llvm::toString(plan.takeError());
          if (problem.empty())
            problem = std::move(found);
        }
      }
    }
  while (!candidates.empty()) {
    auto fastest = llvm::min_element(
        candidates, [](const Candidate &a, const Candidate &b) { return a.seconds < b.seconds; });
    auto best = fastest;
    for (auto other = candidates.begin(); other != candidates.end(); ++other)
      if (other->seconds < 1.01 * fastest->seconds && other->plan.blocks() < best->plan.blocks())
        best = other;
    // As many stages as find room: they bridge the waits.
    PersistentSchedule schedule = best->plan.schedule;
    schedule.stages += (device.sharedBytes - best->plan.shared) / best->plan.stageBytes;
    for (; schedule.stages > best->plan.schedule.stages; --schedule.stages) {
      Expected<PersistentPlan> fits = PersistentPlan::compute(shape, schedule, device);
      if (fits)
        break;
      llvm::consumeError(fits.takeError());
    }
    Expected<PersistentPlan> plan = PersistentPlan::get(shape, schedule, device);
    if (plan)
      return schedule;
    if (std::string found = llvm::toString(plan.takeError()); problem.empty())
      problem = std::move(found);
    candidates.erase(best);
  }
  return createStringError(problem.empty() ? "the target does not say how many clusters live at "
                                             "the same time"
                                           : problem);
}
