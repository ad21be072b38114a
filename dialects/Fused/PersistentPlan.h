// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// A decode step as one persistent kernel of clusters: which block computes what, what lies where in
// shared memory, and what blocks hand to each other. As GpuPlan.h, what a schedule means is
// computed here and nowhere else. docs/kernels.md, "A step as one kernel", has the design.

#ifndef SLUICE_DIALECTS_FUSED_PERSISTENTPLAN_H
#define SLUICE_DIALECTS_FUSED_PERSISTENTPLAN_H

#include "dialects/Fused/GpuLaunch.h"
#include "dialects/Fused/GpuPlan.h"
#include "dialects/Fused/Protocol.h"

#include "llvm/ADT/ArrayRef.h"
#include "llvm/ADT/SmallBitVector.h"

namespace sluice::fused {

/// Attributes of the function of a step that is planned as one kernel: its schedule, and what it
/// means, or why there is none.
inline constexpr llvm::StringLiteral kPersistentAttr = "sluice.persistent",
                                     kPersistentReasonAttr = "sluice.persistent_reason";
/// What such a step is predicted to take, where the target tells: `graph` and `persistent`, seconds
/// at `positions` positions, and `layers`, the formula of the one kernel (TimeFormula).
inline constexpr llvm::StringLiteral kPersistentTimesAttr = "sluice.persistent_times";
/// The same step as a graph of kernels, for devices where the one kernel cannot run.
inline constexpr llvm::StringLiteral kGraphStep = "decode_graph";

/// A unit of a weight, which a warp multiplies: 16 rows by `columns` columns with their scales.
struct WeightUnit {
  int64_t columns = 0;
  int64_t bits = 0;  ///< of an element
  int64_t bytes = 0; ///< in all
  bool isRecord = false;
  /// Columns of the input whose sum is multiplied by an offset of the elements; 0 where they have
  /// none.
  int64_t sumColumns = 0;

  /// Layout mma: 128 columns, each row with a scale in f16 if the numbers have less than 16 bits.
  static WeightUnit ofGroup(int64_t bits);
  /// Layout records (Formats/Records.h).
  static WeightUnit ofRecord(const formats::Encoding &encoding);

  /// Units of a stage of the ring, if there are so many warps.
  int64_t inStage(int64_t warps) const;
  bool operator==(const WeightUnit &) const = default;
};

/// How the tiles of a part of a weight, each of `tileUnits` units, come as stages.
struct PartStages {
  PartStages(const WeightUnit &unit, int64_t tileUnits, int64_t warps);

  int64_t units;                  ///< of a stage
  int64_t stageTiles, stageUnits; ///< of a stage, and units of each of these tiles
  int64_t tileStages;             ///< stages of a set of tiles
  /// Stages whose units a warp adds up; the others' sums are added after all are there. Of records
  /// each stage is another team's, so that all warps share a tile.
  int64_t setStages;
  /// Sets of stages that a set of tiles has.
  int64_t tileSets() const { return tileStages / setStages; }
  /// Bytes of the sums of so many tiles, two floats of a row pair for each unit of a stage.
  int64_t sumBytes(int64_t tiles) const {
    return llvm::divideCeil(tiles, stageTiles) * tileSets() * units * 64;
  }
};

/// A decoder whose layers are all alike but for the encodings of their weights, in elements, as far
/// as the plan of its step depends on it.
struct DecoderShape {
  int64_t width = 0;      ///< of the residual stream
  int64_t queryHeads = 0; ///< a multiple of `heads`
  int64_t heads = 0;      ///< of keys and values
  int64_t dim = 0;        ///< elements of a head
  int64_t inner = 0;      ///< between the MLP's products
  int64_t vocabulary = 0;
  int64_t layers = 0;
  /// Parts that query, key and value, one after another, are divided into so that in every layer a
  /// part has one weight: rows of a part that belong to one key/value head.
  static constexpr size_t kMostProjections = 3;
  llvm::SmallVector<int64_t, kMostProjections> projections;
  /// The weights of a layer in the order in which they are read, of query, key and value by parts.
  struct Weights {
    llvm::SmallVector<WeightUnit, kMostProjections> projections;
    WeightUnit output, gates, down;
    bool operator==(const Weights &) const = default;
  };
  /// What layers have, each once, and which of these a layer has; where all have the same, perhaps
  /// no numbers.
  llvm::SmallVector<Weights, 1> kinds;
  llvm::SmallVector<int64_t> kindOf;
  /// Positions whose keys and values are read at once, and their bytes, of one head.
  int64_t piecePositions = 0, pieceBytes = 0;
  /// Bytes of an element of query, key and value as they come from their product.
  int64_t projectionBytes = 2;
  /// Bytes of a query head as an operand of attention.
  int64_t queryBytes = 0;
  /// Weights and caches whose addresses differ from layer to layer.
  int64_t layerPointers = 0;

  int64_t group() const { return queryHeads / heads; }
  /// Rows of query, key and value that belong to one key/value head.
  int64_t projectionRows() const { return (group() + 2) * dim; }
  /// All weights alike, those of query, key and value one.
  void setUnits(const WeightUnit &unit) {
    projections = {projectionRows()};
    kinds = {{{unit}, unit, unit, unit}};
  }
};

/// Whether a weight of this type is packed in records, or will be.
bool isInRecords(mlir::Type weight);

/// The operations of a decode step that are one kernel.
struct DecoderStep {
  struct Layer {
    MatvecOp projections, output, gates, down;
    AttentionOp attention;

    llvm::SmallVector<mlir::Operation *, 5> operations() const {
      return {projections, attention, output, gates, down};
    }
  };
  EmbeddingOp embedding;
  llvm::SmallVector<Layer> layers;
  MatvecOp head;
  DecoderShape shape;

  /// What the operations of a layer read that no operation of the step computes: the weights of the
  /// parts of query, key and value, then the others in their order, each once. All layers have as
  /// many.
  llvm::SmallVector<mlir::Value> constantsOf(const Layer &layer) const;
  /// Of query, key and value, the number of the weight that has part `number`, and the rows of it
  /// that come before.
  std::pair<size_t, int64_t> weightOf(const Layer &layer, size_t number) const;
  /// Which of these are the same for all layers.
  llvm::SmallBitVector commonConstants() const;

  /// Recognises the operations of a step of one token. An error says what does not fit, and where.
  static llvm::Expected<DecoderStep> match(mlir::Block &step);
};

/// The choices of #fused.persistent_schedule.
struct PersistentSchedule {
  /// Clusters of the grid, blocks of each; clusters that have key/value heads (the first ones).
  int64_t clusters = 0, clusterBlocks = 0, attentionClusters = 0;
  /// Warps that compute; one more copies.
  int64_t warps = 0;
  /// Stages of the ring that all weights and caches pass through; how many are under way at once
  /// around attention and in the MLP.
  int64_t stages = 0, attentionInFlight = 0, mlpInFlight = 0;

  static PersistentSchedule get(PersistentScheduleAttr attribute) {
    return {
        attribute.getClusters(),   attribute.getClusterBlocks(), attribute.getAttentionClusters(),
        attribute.getWarps(),      attribute.getStages(),        attribute.getAttentionInFlight(),
        attribute.getMlpInFlight()};
  }
};

/// Indices [begin, end).
struct IndexRange {
  int64_t begin = 0, end = 0;
  int64_t size() const { return end - begin; }
  bool operator==(const IndexRange &) const = default;
};

struct PersistentPlan {
  /// An error says what does not fit, or what is wrong with the protocol.
  static llvm::Expected<PersistentPlan>
  get(const DecoderShape &shape, const PersistentSchedule &schedule, const GpuDevice &device);

  /// Columns that share a step of fixed point: what a block rounds, sends and keeps as operands.
  static constexpr int64_t kGroup = 128;
  /// Rows of a tile of the tensor cores.
  static constexpr int64_t kTile = 16;
  /// What is sent of a group of 128 numbers: high and low bytes (or 16-bit floats), then its step
  /// and sum of squares, float32, and where weights have offsets the sums that they are multiplied
  /// by (InputOrder).
  static constexpr int64_t kGroupBytes = 2 * kGroup, kStepBytes = 8;

  /// What a rank sends that has no share of what is gathered: that it has read the round before.
  static constexpr int64_t kTokenBytes = 8;

  /// The exchanges of protocol(), by index. The residual stream is the embedding plus two kinds of
  /// sums: attention outputs of all layers in one array, MLP outputs of even and of odd layers in
  /// two.
  enum ExchangeIndex : int64_t {
    AttentionSums,
    MlpSums,
    Input = MlpSums + 2,
    Projections,
    Parts,
    Attended,
    Inner
  };
  /// How an input's numbers lie for the weights that read them: as InputPlan has them for layout
  /// mma, or for records.
  struct InputOrder {
    bool records = false;
    /// Columns of a sum; 0: none are wanted.
    int64_t sumColumns = 0;
    int64_t sums() const { return sumColumns ? kGroup / sumColumns : 0; } ///< of a group
    int64_t metaBytes() const { return kStepBytes + 4 * sums(); }
  };
  /// Of exchange Input, Attended or Inner.
  InputOrder inputOrder(ExchangeIndex exchange) const;
  static constexpr int64_t kSumArrays = 3;
  static constexpr int64_t kExtents = 16;
  static constexpr int64_t kWarpgroupWarps = 4;

  DecoderShape shape;
  PersistentSchedule schedule;

  int64_t blocks() const { return schedule.clusters * schedule.clusterBlocks; }
  int64_t clusterOf(int64_t block) const { return block / schedule.clusterBlocks; }
  int64_t rankOf(int64_t block) const { return block % schedule.clusterBlocks; }
  bool attends(int64_t block) const { return clusterOf(block) < schedule.attentionClusters; }

  int64_t widthGroups() const { return llvm::divideCeil(shape.width, kGroup); }
  int64_t widthTiles() const { return llvm::divideCeil(shape.width, kTile); }
  int64_t innerGroups() const { return llvm::divideCeil(shape.inner, kGroup); }

  /// Groups of the input that a rank keeps up to date and sends to its cluster.
  IndexRange inputGroups(int64_t rank) const;
  /// Key/value heads of a cluster; with it its rows of query, key and value, and the columns of the
  /// attention output.
  IndexRange heads(int64_t cluster) const;
  int64_t clusterHeads() const { return shape.heads / schedule.attentionClusters; }
  /// Tiles of a cluster in part `number` of query, key and value, and those of a rank.
  int64_t projectionTiles(size_t number) const {
    return clusterHeads() * shape.projections[number] / kTile;
  }
  IndexRange projectionTiles(size_t number, int64_t rank) const;
  /// Of all these parts.
  int64_t projectionCount(int64_t rank) const;
  /// Columns of the attention output of a cluster, in groups.
  int64_t attendedGroups() const {
    return llvm::divideCeil(clusterHeads() * shape.group() * shape.dim, kGroup);
  }
  /// Query heads that are finished together: their columns are whole groups.
  int64_t joinedHeads() const { return joined; }
  /// Sets of joined heads of a cluster, and those that a rank finishes: rank, rank + clusterBlocks
  /// and so on.
  int64_t joinedSets() const {
    return llvm::divideCeil(clusterHeads() * shape.group(), joinedHeads());
  }
  IndexRange joinedColumns(int64_t set) const;
  int64_t ownSets(int64_t rank) const;
  /// Tiles of a rank, of the rows of the residual stream: both products that add to it.
  IndexRange sumTiles(int64_t rank) const;
  /// Groups of the MLP's inner values, of a block and of a cluster. A cluster has whole units of
  /// the down product.
  IndexRange innerGroups(int64_t block) const;
  IndexRange clusterInnerGroups(int64_t cluster) const;
  int64_t mostInnerGroups() const {
    return llvm::divideCeil(mostClusterInnerGroups(), schedule.clusterBlocks);
  }
  int64_t mostClusterInnerGroups() const;
  /// Groups of a unit of the down product, of the layer with the largest.
  int64_t downGroups() const;
  /// Tiles of the vocabulary's rows.
  IndexRange headTiles(int64_t block) const;

  int64_t stageBytes = 0;
  /// Bytes of weights that a block reads in a layer, before and after attention, and in the MLP.
  int64_t projectionBytes(int64_t block, const DecoderShape::Weights &weights) const;
  int64_t outputBytes(int64_t block, const DecoderShape::Weights &weights) const;
  int64_t gateBytes(int64_t block, const DecoderShape::Weights &weights) const;
  int64_t downBytes(int64_t block, const DecoderShape::Weights &weights) const;
  /// Seconds that a layer's weights take, on average, if nothing waits, read with so many bytes a
  /// second by all blocks, and by one at most: attention's clusters read first, then all. Blocks
  /// get the same share, so the one that reads most decides.
  double readSeconds(double bandwidth, double blockBandwidth) const;
  /// Groups of the input that a warp keeps in registers.
  int64_t warpGroups() const { return llvm::divideCeil(widthGroups(), schedule.warps); }
  /// Floats of a query head's part in `sums`: AttentionShape::partRow(), its maximum and its sum.
  int64_t partFloats() const { return shape.dim + 4 + 2; }
  /// Most tiles of query, key and value that a rank has, of one of their parts and of all.
  int64_t mostProjectionTiles(size_t number) const {
    return llvm::divideCeil(projectionTiles(number), schedule.clusterBlocks);
  }
  int64_t mostProjectionTiles() const;
  /// Warps that read keys and values: half of them, as many as find room for their outputs.
  int64_t attentionWarps() const { return llvm::divideCeil(schedule.warps, 2); }
  /// Of these, warps that divide the query heads of a piece, and the pieces that are read at once.
  int64_t headParts() const {
    return std::min<int64_t>(attentionWarps(),
                             llvm::divideCeil(shape.group(), AttentionShape::kHeads));
  }
  int64_t pieceReaders() const {
    return ringReaders(schedule.stages, inFlight(), attentionWarps() / headParts());
  }
  /// Teams of warps that take sets of `setStages` stages in turn, each as many warps as a stage of
  /// weights has units.
  int64_t teams(const WeightUnit &unit, int64_t setStages) const {
    return ringReaders(schedule.stages, inFlight(), schedule.warps / unit.inStage(schedule.warps),
                       setStages);
  }
  /// Most stages that are under way at the same time.
  int64_t inFlight() const { return std::max(schedule.attentionInFlight, schedule.mlpInFlight); }

  /// Additions to each word: a layer's of the attention sums, and of the MLP sums of its parity.
  int64_t attentionAdditions() const { return schedule.attentionClusters; }
  int64_t mlpAdditions() const { return schedule.clusters; }

  /// Bytes of the sums of a rank's tiles of part `number` of query, key and value, in the layers
  /// that have most: those of all parts wait to be added at the same time.
  int64_t projectionSums(size_t number) const;
  /// The ring, its barriers, and the exchanges' barriers; what comes from other blocks of the
  /// cluster (the groups, then what belongs to them); the residual rows of the rank's groups, three
  /// parts of them; the partial sums of the warps, rows' and attention's; a place for each warp to
  /// round a group in; a row of the rotary table; tokens of input, projections and inner values;
  /// numbers of the block's own parts, which need not stay in registers; the block's tiles of
  /// query, key and value; query heads as operands, and their factors; outputs of the cluster's
  /// query heads over the block's positions, and each one's greatest exponent and sum of weights;
  /// the layers' addresses and kinds of weights; two barriers for the step's own key and value;
  /// zeros, where weights in records want them (InputPlan).
  SharedRange ring, full, empty, barriers, input, inputMeta, projections, parts, partMeta, attended,
      attendedMeta, innerValues, inner, innerMeta, state, sums, scratch, rotary, tokens, extents,
      projected, queries, queryFactors, outputs, outputMeta, pointers, kinds, appended, zeros;
  int64_t shared = 0; ///< bytes in all

  GpuLaunch launch() const;

  /// Registers of a thread that computes, and of one of the copying warp's warpgroup.
  struct Registers {
    int64_t computing = 0, copying = 0;
    bool operator==(const Registers &) const = default;
  };
  /// How warpgroups divide a block's registers (`setmaxnreg`, of sm_90a); nothing where they do
  /// not, because the device cannot or those that compute are no whole warpgroups.
  std::optional<Registers> registers() const;
  /// Warps of a block. Where registers are divided the copying warp has a whole warpgroup, whose
  /// other warps have nothing to do: they take no registers that 17 warps would leave, because a
  /// multiprocessor has four parts, one of which then holds five warps.
  int64_t launchWarps() const {
    return dividesRegisters ? schedule.warps + kWarpgroupWarps : schedule.warps + 1;
  }

  /// What the blocks hand to each other in `layers` layers and the head. Layers repeat with a
  /// period of two.
  Protocol protocol(int64_t layers) const;

private:
  /// Bytes of partial sums: of a tile of any product, and of all tiles of query, key and value.
  int64_t mostSums() const;
  /// What keeps the units of the weights from the parts that clusters have; nothing if they fit.
  std::optional<std::string> unitProblem() const;
  friend llvm::Expected<PersistentSchedule>
  choosePersistentSchedule(const DecoderShape &shape, const struct PersistentLimits &limits,
                           const GpuDevice &device);
  /// As get(), with the protocol not yet checked.
  static llvm::Expected<PersistentPlan>
  compute(const DecoderShape &shape, const PersistentSchedule &schedule, const GpuDevice &device);

  int64_t joined = 0;
  bool dividesRegisters = false;
};

/// What the choice of a schedule depends on, beside the device.
struct PersistentLimits {
  /// Clusters of 1, 2, 4 and 8 blocks that live at the same time; fewer entries where larger
  /// clusters are not known to.
  llvm::ArrayRef<int64_t> residentClusters;
  /// Bytes a second, of the device and of one block.
  double bandwidth = 0, blockBandwidth = 0;
  /// As PersistentSchedule's.
  int64_t warps = 0, attentionInFlight = 0, mlpInFlight = 0;
};

/// Of the largest clusters that fit, the schedule whose layers are read in the least time if
/// nothing waits, with the fewest blocks that reach it within 1%. An error says why there is none.
llvm::Expected<PersistentSchedule> choosePersistentSchedule(const DecoderShape &shape,
                                                            const PersistentLimits &limits,
                                                            const GpuDevice &device);

} // namespace sluice::fused

#endif // SLUICE_DIALECTS_FUSED_PERSISTENTPLAN_H
