// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// What a #fused.gpu_schedule means for an operation: how its kernel divides the work, and where
// everything lies in a block's shared memory. The pass that chooses a schedule asks here whether
// it fits; the generator of the kernel takes every number from here.

#ifndef SLUICE_DIALECTS_FUSED_GPUPLAN_H
#define SLUICE_DIALECTS_FUSED_GPUPLAN_H

#include "dialects/Fused/PreparedInput.h"
#include "dialects/Fused/Weights.h"

#include "sluice/Formats/CacheLayout.h"
#include "sluice/Formats/Packing.h"

#include "llvm/Support/MathExtras.h"

namespace sluice::fused {

/// Threads of a warp.
inline constexpr int64_t kWarpThreads = 32;

/// A range of a block's dynamic shared memory. Empty if the kernel needs no such range.
struct SharedRange {
  int64_t offset = 0, bytes = 0;
};

/// How many readers, at most `most`, may take sets of `setStages` stages of a ring in turn. A
/// reader must not wait for a stage whose previous filling it cannot know to have completed: the
/// barrier's parity would look as if the new one had. It knows of fillings that it has read itself,
/// and of those that `inFlight` or more fillings followed, one of which it has read.
inline int64_t ringReaders(int64_t stages, int64_t inFlight, int64_t most, int64_t setStages = 1) {
  for (int64_t readers = most; readers > 1; --readers)
    if (stages % (readers * setStages) == 0 || stages > (readers - 1) * setStages + inFlight)
      return readers;
  return 1;
}

/// Hands out a block's dynamic shared memory.
class SharedRanges {
public:
  SharedRange take(int64_t bytes, int64_t alignment = 16) {
    used = llvm::alignTo(used, alignment);
    SharedRange range{used, bytes};
    used += bytes;
    return range;
  }
  int64_t bytes() const { return used; }

private:
  int64_t used = 0;
};

/// The input of a product in shared memory, as operands of the tensor cores' 8 columns.
///
/// Integer weights (two columns per token, high and low byte), for every 32 columns of the
/// weight: [2 * token + low][lane % 4][8 bytes]; a float32 scale per token and group of 128
/// columns (for int4 weights a 16th of it, as they are multiplied as 16 * q); for zero points an
/// int32 sum of x16 per token and accumulation block. Float weights (one column per token), for
/// every 16 columns: [token][lane % 4][8 bytes]. E4M3 weights: as float weights, but a lane has 4
/// neighbouring columns, as in the weight's fragment; and a float32 scale (times 256, by which the
/// weights are divided) as integer weights.
///
/// Weights in records (Formats/Records.h), whose operand is block diagonal: for each token and 32
/// columns the high bytes, then the low bytes, which the lanes of the diagonal read; the others
/// read zeros. For each token, record and sub-block s, `unitFloats` float32: the scales of the
/// inputs of groups 0 and 1 times `stepFactors`; if `hasSums`, group by group, for units of 16
/// unit by unit, the sum of the inputs of the sub-block's units.
struct InputPlan {
  formats::Encoding format;
  int64_t tokens = 1;
  int64_t columns = 0; ///< K
  int64_t padded = 0;  ///< K rounded up to a multiple of 128
  /// Columns of an accumulation block, of integer weights with an exact sum; scaled weights only.
  int64_t accumulationColumns = 0;
  SharedRange fragments, scales, inputSums;
  // Of weights in records.
  bool diagonal = false;
  bool hasSums = false;
  int64_t sumColumns = 0;        ///< columns of a sum
  float stepFactors[2] = {1, 1}; ///< 2^-fraction of the first weight's operands
  SharedRange zeros;
  /// What a lane reads of a record's inputs spans two groups.
  static constexpr int64_t kZeroBytes = 320;
  int64_t sumsPerGroup() const { return sumColumns == 16 ? 2 : 1; }
  /// 2, 4 or 8.
  int64_t unitFloats() const { return !hasSums ? 2 : sumsPerGroup() == 1 ? 4 : 8; }
  /// One float32 per warp for each of a row's sums over all threads; products with a prologue only.
  SharedRange warpSums;

  bool isInteger() const { return format.isInteger(); }
  int64_t fragmentColumns() const { return isInteger() ? 32 : 16; }
  /// Bytes of a fragment.
  int64_t fragmentBytes() const { return (isInteger() ? 64 : 32) * tokens; }
  /// Lanes of a warp that own a part of it.
  int64_t fragmentLanes() const { return (isInteger() ? 8 : 4) * tokens; }
};

/// A matrix-vector product. Block b has row tiles b, b + grid, ...; a tile's chunks are the stages
/// of the ring. A chunk is cut into slices of columns (K slices), one per warp; if there are more
/// warps than slices, several warp groups take chunks in turn.
struct ProductPlan {
  /// Fails, with an error at `op`, if the schedule does not suit the product. Whether its shared
  /// memory fits is another question: see checkShared.
  static mlir::FailureOr<ProductPlan> get(MatvecOp op, GpuScheduleAttr schedule,
                                          const GpuDevice &device);
  GpuLaunch launch() const;

  /// The packed weights, and the first one's shape: all have as many columns and chunks.
  llvm::SmallVector<PackedPart, 1> parts;
  formats::PackedShape shape;
  int64_t stageBytes = 0; ///< of the largest chunk
  int64_t grid = 0, warps = 0, ring = 0, inFlight = 0, tiles = 0, tilesPerBlock = 0, chunks = 0;
  int64_t sliceColumns = 0; ///< columns of a warp's part of a chunk
  int64_t slices = 0;       ///< slices of a full chunk
  int64_t warpGroups = 0;
  int64_t held = 0;      ///< tiles whose partial sums wait in shared memory to be added
  int64_t heldBytes = 0; ///< bytes of a tile's partial sums
  bool reuses = false;   ///< whether a stage is filled more than once
  bool overlap = false;
  int64_t resident = 1; ///< blocks for which a multiprocessor's registers suffice
  InputPlan input;
  /// The ring; a barrier of 8 bytes per stage for "filled" and, if stages are reused, for "read";
  /// the partial sums.
  SharedRange stages, full, empty, sums;
  int64_t shared = 0; ///< bytes in all

private:
  explicit ProductPlan(llvm::SmallVector<PackedPart, 1> parts)
      : parts(std::move(parts)), shape(this->parts.front().shape) {}
};

/// The input of products of many tokens, a block a token.
struct PreparePlan {
  /// As ProductPlan::get.
  static mlir::FailureOr<PreparePlan> get(PrepareOp op, GpuScheduleAttr schedule,
                                          const GpuDevice &device);
  GpuLaunch launch() const;

  PreparedImage image;
  InputPlan input; ///< of one token; only `warpSums` is in shared memory
  int64_t warps = 0;
  bool overlap = false;
  int64_t shared = 0; ///< bytes in all
};

/// A product of many tokens. Blocks take tiles of `rowTiles` tiles of 16 rows by `tileTokens`
/// tokens in turn, the tiles of the same rows after each other. A tile's columns come in stages, a
/// stage's columns in steps, which `slices` warps take in turn.
///
///     stage:  | activations [pieces] | weights [rowTiles] | activation scales | input sums |
struct MatmulPlan {
  /// What keeps warpgroups from multiplying this product; nothing if they can.
  static std::optional<std::string> warpgroupProblem(MatmulOp op, const GpuDevice &device);
  /// As ProductPlan::get.
  static mlir::FailureOr<MatmulPlan> get(MatmulOp op, GpuScheduleAttr schedule,
                                         const GpuDevice &device);
  GpuLaunch launch() const;

  /// Tokens of a warp at most.
  static constexpr int64_t kWarpTokens = 64;
  /// Bytes of a token's sums of 16 rows; 16 more than they have, for the banks. With weights in
  /// records, those of the first row tile have there the scales of the token and of those that have
  /// its place in other sets, of which a warp has four at most.
  static constexpr int64_t kSumBytes = 80, kScalesInSums = 64;

  llvm::SmallVector<PackedPart, 1> parts;
  formats::PackedShape shape; ///< the first part's
  PreparedImage image;
  bool records = false, overlap = false, early = false;
  /// Whether a warpgroup multiplies 64 rows by a tile's tokens at a time (wgmma), and four warps
  /// copy. Then all stages are alike.
  bool wgmma = false;
  static constexpr int64_t kGroupWarps = 4;
  /// Row tiles of two warpgroups.
  static constexpr int64_t kGroupRowTiles = 8;
  int64_t grid = 0, warps = 0, ring = 0;
  int64_t tiles = 0; ///< of 16 rows
  int64_t rowTiles = 0, rowGroups = 0;
  int64_t tileTokens = 0, tokenTiles = 0;
  /// A warp's share of a tile, and how many warps divide rows, tokens and steps.
  int64_t warpRowTiles = 0, warpTokens = 0, warpRows = 0, warpColumns = 0, slices = 0;
  int64_t stepColumns = 0, steps = 0, stageSteps = 0, stages = 0;
  int64_t weightBytes = 0; ///< of a stage and row tile, at most
  int64_t tilePieceBytes = 0, stepPieces = 0;
  // In a stage.
  int64_t weightsAt = 0, scalesAt = 0, sumsAt = 0, stageBytes = 0;
  /// Barriers as ProductPlan's. `sums` are those of a set: [slice][row tile][token][8 pairs of
  /// rows].
  SharedRange stagesRange, full, empty, sums;
  /// Of records that warpgroups multiply, a ring of its own, [slot][row tile]: a record comes with
  /// the first of its two stages, which have the input alone.
  SharedRange recordsRange;
  int64_t recordSlots = 0;
  int64_t shared = 0; ///< bytes in all

  int64_t threads() const { return (warps + (wgmma ? kGroupWarps : 1)) * kWarpThreads; }
  int64_t stageColumns() const { return stageSteps * stepColumns; }
  int64_t lastStageSteps() const { return steps - (stages - 1) * stageSteps; }
  /// Bytes of a stage of 16 rows of a part's weights.
  int64_t bytesOf(const PackedPart &part, int64_t stage) const;

private:
  explicit MatmulPlan(llvm::SmallVector<PackedPart, 1> parts)
      : parts(std::move(parts)), shape(this->parts.front().shape) {}
};

/// What a warp does with tiles of one key/value head, for up to 16 query heads, 4 in the columns of
/// the tensor cores at a time; further query heads have further warps.
struct AttentionShape {
  /// Query heads of a pass, passes of a warp.
  static constexpr int64_t kHeads = 4, kMostPasses = 4;

  formats::CacheShape keys, values;
  int64_t window = 0;    ///< latest positions that a token reads at most; 0: all
  int64_t dim = 0;       ///< elements of a head
  int64_t group = 0;     ///< query heads of a key/value head
  int64_t passes = 0;    ///< of a warp
  int64_t headParts = 0; ///< warps that divide the query heads
  /// Tiles that a warp takes at once: a block (formats::cacheBlock) where its positions share the
  /// unit of their weights, as those of integer values do.
  int64_t warpTiles = 0;

  /// Finds passes, parts and tiles from the other numbers.
  void divide();
  /// Bytes of a column of a query head's operand; 32 elements more keep the lanes that read eight
  /// columns in different banks. Operands are [query heads][2 columns].
  int64_t queryRow() const { return (keys.paddedDim() + 32) * (keys.encoding.isInteger() ? 1 : 2); }
  int64_t warpPositions() const { return warpTiles * formats::cacheTile; }
  /// Floats of a query head's outputs in shared memory; 4 more keep the lanes of a warp that write
  /// different heads in different banks.
  int64_t partRow() const { return dim + 4; }
};

/// Attention of the query heads of one key/value head, by a cluster of blocks that divide the
/// cache's stages of several tiles.
struct AttentionPlan : AttentionShape {
  /// As ProductPlan::get.
  static mlir::FailureOr<AttentionPlan> get(AttentionOp op, GpuScheduleAttr schedule,
                                            const GpuDevice &device);
  GpuLaunch launch() const;

  static constexpr int64_t kMaxWarps = 31;

  bool appends = false; ///< whether the operation appends the step's key and value
  int64_t tokens = 0, heads = 0;
  int64_t warps = 0, splits = 0, ring = 0, inFlight = 0;
  int64_t stageTiles = 0, stageBytes = 0;
  int64_t readers = 0;    ///< warps that divide the positions of a stage
  int64_t warpGroups = 0; ///< stages that are read at once
  int64_t own = 0;        ///< outputs that a block finishes
  bool reuses = false;    ///< whether a stage is filled more than once
  bool overlap = false;
  /// `appended` is a barrier: the step's key and value are in the newest stage.
  SharedRange stages, full, empty, appended, queries, queryFactors, rowMaxima, rowSums,
      gatheredOutputs, gatheredMaxima, gatheredSums;
  int64_t shared = 0; ///< bytes in all

  /// Positions that a token reads at most.
  int64_t reach() const { return window ? window : keys.positions; }
  /// Warps of a warp group, and of all warp groups.
  int64_t groupWarps() const { return readers * headParts; }
  int64_t active() const { return warpGroups * groupWarps(); }
  /// Parts of each output in a block, of [query heads][partRow()] floats each; they take the ring's
  /// memory when all stages have been read.
  int64_t parts() const { return warpGroups * readers; }
};

/// Attention of many tokens of one sequence, or of packed ones, causal. A warp has 16 neighbouring
/// tokens of a query head. The warps of a block share a key/value head, whose positions stream
/// through a ring from the oldest to the latest that one of the block's tokens reads: they are up
/// to `partHeads` query heads, each of `tokenTiles` times 16 tokens. A cluster of `splits` blocks
/// divides the positions. Blocks of later tokens, which read more, come first.
struct PrefillAttentionPlan {
  /// As ProductPlan::get.
  static mlir::FailureOr<PrefillAttentionPlan> get(AttentionOp op, GpuScheduleAttr schedule,
                                                   const GpuDevice &device);
  GpuLaunch launch() const;

  /// Tokens of a warp, the rows of the tensor cores' first operand.
  static constexpr int64_t kTokens = 16;

  formats::CacheShape keys, values;
  int64_t tokens = 0, heads = 0;
  bool packed = false;    ///< whether tokens are several sequences'
  int64_t window = 0;     ///< latest positions that a token reads at most; 0: all
  int64_t dim = 0;        ///< elements of a head
  int64_t group = 0;      ///< query heads of a key/value head
  int64_t headParts = 0;  ///< blocks that divide them
  int64_t partHeads = 0;  ///< query heads of a block; the last part may have fewer
  int64_t tokenTiles = 0; ///< of a query head in a block
  int64_t splits = 0;
  int64_t ownRows = 0; ///< of the warps' rows those that a block of a cluster finishes
  int64_t ring = 0;    ///< stages
  /// Tiles of a stage: a block (formats::cacheBlock) where its positions share the unit of their
  /// weights, as those of integer values do; else one tile or two.
  int64_t stageTiles = 0;
  int64_t stageBytes = 0;
  bool overlap = false;
  bool early =
      false; ///< whether positions of earlier steps are copied before the previous kernel has ended
  /// The ring, and a barrier of 8 bytes per stage for "filled" and for "read".
  SharedRange stages, full, empty;
  /// What a cluster's blocks have of a block's own rows; the outputs take the ring's memory when
  /// all stages have been read.
  SharedRange gatheredMaxima, gatheredSums;
  /// The operands of heads that registers do not hold beside their outputs.
  SharedRange queries;
  int64_t shared = 0; ///< bytes in all

  /// Whether a query or a weight is two numbers.
  static bool isDouble(const formats::CacheShape &shape) {
    return shape.encoding.isInteger() ||
           shape.encoding.element == formats::CacheEncoding::Element::BF16;
  }
  /// First operands of a warp's query.
  int64_t queryOperands() const {
    return keys.paddedDim() / (keys.encoding.isInteger() ? 32 : 16) * (isDouble(keys) ? 2 : 1);
  }
  int64_t warps() const { return partHeads * tokenTiles; }
  int64_t rows() const { return warps() * kTokens; }
  /// Bytes of a row's outputs.
  int64_t gatheredRow() const { return llvm::alignTo(dim, 8) * 4; }
  int64_t blockTokens() const { return tokenTiles * kTokens; }
  int64_t tokenBlocks() const { return blocksOf(tokens, blockTokens(), packed, keys.sequences); }
  static int64_t blocksOf(int64_t tokens, int64_t blockTokens, bool packed, int64_t sequences) {
    return packed ? packedTiles(tokens, blockTokens, sequences)
                  : llvm::divideCeil(tokens, blockTokens);
  }
  int64_t grid() const { return tokenBlocks() * heads * headParts * splits; }
  int64_t stagePositions() const { return stageTiles * formats::cacheTile; }
};

/// What tokens' queries, keys and values go through before attention: a block has the heads of a
/// token that belong to one key/value head, a warp one of them at a time.
struct AppendPlan {
  /// As ProductPlan::get.
  static mlir::FailureOr<AppendPlan> get(AppendOp op, GpuScheduleAttr schedule,
                                         const GpuDevice &device);
  GpuLaunch launch() const;

  formats::CacheShape keys, values;
  int64_t tokens = 0, heads = 0;
  int64_t dim = 0;   ///< elements of a head
  int64_t group = 0; ///< query heads of a key/value head
  int64_t warps = 0;
  bool overlap = false;

  /// Elements of a head in a warp's registers, a multiple of 32.
  int64_t padded() const { return std::max(keys.paddedDim(), values.paddedDim()); }
};

/// The choice of a token by a cluster of blocks that divide a row's logits.
struct SamplePlan {
  /// As ProductPlan::get.
  static mlir::FailureOr<SamplePlan> get(SampleOp op, GpuScheduleAttr schedule,
                                         const GpuDevice &device);
  GpuLaunch launch() const;

  static constexpr int64_t kBins = 256;
  /// 32-bit words of a bin: low halves, high halves, and the number of tokens.
  static constexpr int64_t kBinWords = 3;

  int64_t rows = 0, vocabulary = 0, splits = 0, threads = 0;
  int64_t share = 0;   ///< tokens of a block
  bool staged = false; ///< whether the logits are kept in shared memory
  bool overlap = false;
  SharedRange bins, merged, mergedCounts, warpKeys, blockKeys, found, stage;
  int64_t shared = 0; ///< bytes in all
};

/// The lookup of rows of an embedding table.
struct EmbeddingPlan {
  /// As ProductPlan::get.
  static mlir::FailureOr<EmbeddingPlan> get(EmbeddingOp op, GpuScheduleAttr schedule,
                                            const GpuDevice &device);
  GpuLaunch launch() const;

  /// Neighbouring columns that a thread reads at a time.
  static constexpr int64_t kColumns = 2;

  formats::PackedShape shape;
  int64_t tokens = 0, threads = 0; ///< threads of a block
  int64_t parts = 0;               ///< blocks of a token

private:
  explicit EmbeddingPlan(formats::PackedShape shape) : shape(shape) {}
};

/// Norms and element operations on rows, a block a token. A thread has one column at a time, or the
/// two of a rotary pair.
struct RowsPlan {
  /// As ProductPlan::get.
  static mlir::FailureOr<RowsPlan> get(RowsOp op, GpuScheduleAttr schedule,
                                       const GpuDevice &device);
  GpuLaunch launch() const;

  int64_t tokens = 0, warps = 0;
  bool overlap = false;
  SharedRange warpSums; ///< as InputPlan's
  int64_t shared = 0;   ///< bytes in all
};

/// The copy of the last row, or of each sequence's: a thread has a number at a time.
struct LastRowPlan {
  /// As ProductPlan::get.
  static mlir::FailureOr<LastRowPlan> get(LastRowOp op, GpuScheduleAttr schedule,
                                          const GpuDevice &device);
  GpuLaunch launch() const;

  int64_t rows = 0, width = 0, threads = 0; ///< threads of a block
  int64_t results = 0;                      ///< rows that are copied
  int64_t blocks = 0;                       ///< of each of them
  bool overlap = false;
};

/// Bytes between the places of one row sum and the next in `warpSums`.
int64_t rowSumStride(int64_t warps);
/// The sums over a whole row that the norms of a region need.
int64_t countRowSums(mlir::Region &region);

/// Fails, with an error at `op`, if a block has less than `bytes` of shared memory.
mlir::LogicalResult checkShared(mlir::Operation *op, GpuScheduleAttr schedule, int64_t bytes,
                                const GpuDevice &device);

} // namespace sluice::fused

#endif // SLUICE_DIALECTS_FUSED_GPUPLAN_H
