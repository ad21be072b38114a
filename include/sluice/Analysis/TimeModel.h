// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// How long kernels take on a target: what `explain` and `bench` predict, and what passes that
// choose between kernels compare. The parameters are the target's (GpuTime, CpuTime, rates);
// `sluice calibrate` measures them. docs/cost-model.md tells how well it predicts.
//
// A kernel has three parts: reading memory, the arithmetic that reading does not hide, and the
// boundary to the kernel before it. Let bytes and elements be those of the device's slowest block
// times the number of blocks, so that tiles that do not divide evenly count. On a GPU:
//
//   product    stream = bytes / min(productBandwidth, blocks * blockBandwidth)
//              chain  = productWait + columns * productColumn + sum of elements * tokens / rate
//              time   = norm8(stream + productGap, chain)
//
//   The memory never waits longer than the gap, because the weights of the next product are
//   requested before its input is there; but no weight is multiplied before. Whichever of the two
//   takes longer counts; norm8(a, b) = (a^8 + b^8)^(1/8) is a maximum that is rounded where both
//   are alike. Of the weights of a product behind attention, as many are read while attention waits
//   as it waits for: stream is attentionWait shorter.
//
//   The rates are those of kernels that lack nothing. Another schedule of the same product takes
//   longer:
//
//              stream * copies wanted / copies under way + lacking stages * productStage
//              + (sums - 1) * productSum + productRival, if a ring like its own fits beside it
//
//   attention  time = attentionWait - (most parts - parts) * attentionPart + positions * norm8(
//              bytes a position / min(cacheBandwidth, blocks * blockBandwidth * ring / long ring),
//              numbers a position * heads / rate * multiprocessors / blocks)
//
//   where heads is the query heads of a key/value head, rounded up to 4 (GpuPlan.h), positions
//   those that are read at most. Parts are a head's blocks: a cluster of fewer waits less for all
//   to be there and has less to join, but fewer read. What a block has under way is what its ring
//   holds; less than the long ring counts only where a block reads more. Attention that leaves room
//   for a product with few enough registers saves roomSaving. attentionPart is not subtracted of a
//   step of many tokens.
//
//   A step of many tokens has other kernels. A block's tile of a product is `rows` rows of weights
//   by `tokens` tokens, a part of the columns (1 of `splits`) and as many rounds as blocks need for
//   all tiles; a number of the input is two bytes, of the result (and of what is added to it) 8:
//
//   matmul     load   = columns * (rows * bytes of a weight + 2 * tokens) / copy
//              work   = rows * columns * (tokens / rate + 1 / unpack) * multiprocessors
//              tile   = norm8(work, load) + stages * matmulStage
//                       + 8 * rows * tokens * exchange / copy
//              copy   = min(l2BlockBandwidth, l2Bandwidth / blocks)
//              time   = matmulWait + norm8(stream + productGap, rounds * tile)
//
//   where exchange is 1 for whole tiles, and for parts (whose blocks add their sums and finish a
//   part each) 2 / splits; the rate is that of integers, floats or records, of warpgroups or of
//   single warps, and weights become operands once for all tokens of a tile; stream is a product's,
//   of all rounds. Of attention's positions each token reads those up to itself, half of the step's
//   own tokens on average: its arithmetic is less by that.
//
//   A step whose layers are one kernel (PersistentPlan.h) has, instead of theirs,
//
//   layer      sqrt(stream^2 + persistentWait^2) + positions * bytes a position
//              / min(persistentCacheBandwidth, blocks that attend * blockBandwidth)
//
//   where stream is what the layer's weights take at persistentBandwidth if nothing waits: of a
//   layer that takes long to read, the ring bridges nearly all of the waits; one that reads little
//   takes as long as them.
//
//   sampling   smallKernel + logits of a token * rounds of blocks * samplingLogit
//   others     smallKernel + bytes / rowsBandwidth
//   step       step + the sum of its kernels
//
// Alone, between two events (bench --per-kernel), a kernel takes `alone` longer, and a product
// behind attention its whole stream.
//
// On a CPU a core that waits for memory does not multiply, but for what it has under way, so that
// the maximum of reading and arithmetic is rounder:
//
//   product    launch + columns * productColumn + norm3(bytes / productBandwidth, elements / rate)
//   attention  launch + positions * norm3(bytes a position / cacheBandwidth,
//                                         numbers a position * (1 / operand rate + heads / rate))
//   matmul     a product's, with rates of its own
//   others     launch + bytes / rowsBandwidth
//   step       step + the sum of its kernels
//
// Numbers become operands once for all query heads of a key/value head, and for up to 8 tokens.

#ifndef SLUICE_ANALYSIS_TIMEMODEL_H
#define SLUICE_ANALYSIS_TIMEMODEL_H

#include "dialects/Fused/Fused.h"
#include "dialects/Fused/PersistentPlan.h"
#include "sluice/Formats/CacheEncoding.h"
#include "sluice/Target/TargetDescription.h"

#include "llvm/ADT/SmallVector.h"

namespace sluice {

/// A weight that a product reads: its encoding and logical shape.
struct WeightLoad {
  formats::Encoding encoding;
  int64_t rows = 0, columns = 0;

  bool operator==(const WeightLoad &) const = default;
};

/// What stands before a product.
enum class ProductPlace { BehindProduct, BehindAttention };

/// How a GPU runs a product, as far as that makes it slower than its format's rates tell.
struct ProductSchedule {
  /// Stages of the ring, and how many a block could use; of them those under way at once, and how
  /// many of those.
  int64_t stages = 1, wantedStages = 1;
  int64_t underWay = 1, wantedUnderWay = 1;
  /// How often a block adds up its warps' sums.
  int64_t sums = 1;
  /// Whether a ring like its own fits beside it: that of the next product may, then.
  bool hasRoomForRival = false;
};

/// The caches of a layer, as attention reads them.
struct AttentionLoad {
  formats::CacheEncoding keys, values;
  int64_t kvHeads = 0;
  int64_t queryHeads = 0; ///< in all
  int64_t headDim = 0;
  int64_t window = 0;    ///< latest positions that are read at most; 0: all
  int64_t sequences = 1; ///< tokens of different sequences, each with a cache of its own
  /// Neighbouring tokens of one sequence that attend, each up to itself.
  int64_t rows = 1;
  // How a GPU runs it.
  int64_t splits = 0; ///< blocks of a key/value head; 0: as many as the target's attention has
  /// Stages of a block's ring, stages that it reads at most, and positions of each; 0: the target's
  /// long ring.
  int64_t stages = 0, mostStages = 0, stagePositions = 0;
  /// Whether it leaves room for a product that has few enough registers. Choices are made by it; it
  /// is not known of a kernel.
  bool leavesRoom = false;

  bool operator==(const AttentionLoad &) const = default;
};

/// A product of many tokens.
struct MatmulLoad {
  /// By what weights and inputs are multiplied: exact integers, floats as they are, or what records
  /// are unpacked to.
  enum class Arithmetic { Integers, Floats, Records };

  Arithmetic arithmetic = Arithmetic::Integers;
  llvm::SmallVector<WeightLoad> weights; ///< all have the same columns
  int64_t tokens = 1;
  /// How a GPU divides it. A tile's columns are divided by `splits` blocks and copied in stages of
  /// `stageColumns`.
  int64_t tileRows = 128, tileTokens = 128, splits = 1, stageColumns = 128;
  int64_t blocks = 1; ///< all of them
  bool warpgroups = false;

  bool operator==(const MatmulLoad &) const = default;
};

/// What a kernel's time depends on.
struct KernelLoad {
  enum class Kind { Product, Matmul, Attention, Sampling, Other };

  Kind kind = Kind::Other;
  /// Of a product.
  llvm::SmallVector<WeightLoad> weights;
  ProductPlace place = ProductPlace::BehindProduct;
  MatmulLoad matmul;
  AttentionLoad attention;
  /// Of sampling: a token's logits. Of products and sampling: tokens.
  int64_t logits = 0, tokens = 1;
  /// Of others: what is read and written.
  int64_t bytes = 0;

  bool operator==(const KernelLoad &) const = default;
};

KernelLoad kernelLoad(fused::KernelOp op);

/// The products before and after an attention in its block.
llvm::SmallVector<fused::MatvecOp, 2> neighbours(fused::AttentionOp op);

/// What attention reads, under a schedule for a GPU, which it need not have.
AttentionLoad attentionLoad(fused::AttentionOp op, fused::GpuScheduleAttr schedule);

/// What a product is under a schedule for a GPU, which it need not have.
MatmulLoad matmulLoad(fused::MatmulOp op, fused::GpuScheduleAttr schedule);

/// Seconds of a kernel, or of a step, at one context.
struct KernelTime {
  /// Reading memory; arithmetic that goes on after it; the rest.
  double memory = 0, arithmetic = 0, boundary = 0;

  double seconds() const { return memory + arithmetic + boundary; }
  KernelTime &operator+=(const KernelTime &other);
  KernelTime operator*(double factor) const;
};

/// The same at any context.
struct TimeFormula {
  KernelTime fixed, perPosition;
  int64_t window = 0;
  /// Seconds that the kernel takes longer by itself, measured between two events.
  double alone = 0;

  KernelTime at(int64_t context) const;

  /// As a dictionary: memory, arithmetic, boundary, memory_per_position, arithmetic_per_position,
  /// window and alone, as far as they are not 0; seconds, of which four digits are kept.
  mlir::DictionaryAttr toAttribute(mlir::MLIRContext *context) const;
};

class TimeModel {
public:
  /// `context` positions are read, the token's own included, `tokens` times what a kernel's own
  /// tokens do. The target must outlive the model.
  TimeModel(const TargetDescription &target, int64_t context, int64_t tokens = 1);

  const TargetDescription &target() const { return description; }
  int64_t context() const { return positions; }

  // Of descriptions, for choices that are made before there are kernels.

  /// A product of weights that are merged into one kernel: all have the same columns. They are
  /// multiplied with `inputs` tokens each.
  TimeFormula product(llvm::ArrayRef<WeightLoad> weights,
                      ProductPlace place = ProductPlace::BehindProduct, int64_t inputs = 1,
                      const ProductSchedule &schedule = {}) const;
  TimeFormula attention(const AttentionLoad &load) const;
  TimeFormula matmul(const MatmulLoad &load) const;
  double productSeconds(llvm::ArrayRef<WeightLoad> weights,
                        ProductPlace place = ProductPlace::BehindProduct) const {
    return product(weights, place).at(positions).seconds();
  }
  double attentionSeconds(const AttentionLoad &load) const {
    return attention(load).at(positions).seconds();
  }

  /// What a product next to attention takes longer with so few registers that both fit on a
  /// multiprocessor (less than 0 if that is faster). The rates of formats whose products run so
  /// include it already, so it says which of both is faster, and is no part of a product's time.
  double besideAttentionSeconds(llvm::ArrayRef<WeightLoad> weights) const;
  /// What appending keys and values in attention's prologue, instead of an epilogue, adds.
  double appendSeconds() const {
    return (description.isGpu() ? description.gpuTime.append : description.cpuTime.append).value;
  }

  // Of kernels: the same times, from what the operation names.

  TimeFormula formula(const KernelLoad &load) const;
  TimeFormula formula(fused::KernelOp op) const { return formula(kernelLoad(op)); }
  KernelTime kernel(fused::KernelOp op) const { return formula(op).at(positions); }
  /// Seconds that multiplying weights with a token takes if nothing is read.
  double productWork(llvm::ArrayRef<WeightLoad> weights) const;
  /// A layer of a step as one kernel, whose attention reads `load`, and whose weights in records,
  /// if it has such, have `recordWork` (productWork); nothing where the target does not tell.
  std::optional<TimeFormula> persistentLayer(const fused::PersistentPlan &plan,
                                             const AttentionLoad &load,
                                             double recordWork = 0) const;
  /// The layers of a step as one kernel, all of them.
  std::optional<TimeFormula> persistentLayers(const fused::DecoderStep &step,
                                              const fused::PersistentPlan &plan) const;

  /// All kernels of a function in stage fused or scheduled, and what a step takes beside them.
  KernelTime step(mlir::Operation *function) const;
  /// What a step takes beside its kernels, seconds.
  double stepSeconds() const;

  /// Elements per second of a format, of the whole device. One that the target does not name has
  /// the rate of the most similar one that it names (or the slowest of those): of the same kind of
  /// code, then of the nearest number of bits, kind of scale and of offset, and size of group.
  double productRate(const formats::Encoding &encoding) const;
  double attentionRate(const formats::CacheEncoding &encoding) const;
  /// The same of a CPU's products of many tokens, and of cached numbers that become operands.
  double matmulRate(const formats::Encoding &encoding) const;
  double attentionOperandRate(const formats::CacheEncoding &encoding) const;

private:
  double ringShare(const AttentionLoad &load) const;

  const TargetDescription &description;
  int64_t positions, tokens;
  llvm::SmallVector<std::pair<formats::Encoding, double>> productRates, matmulRates;
  llvm::SmallVector<std::pair<formats::CacheEncoding, double>> attentionRates, operandRates;
};

} // namespace sluice

#endif // SLUICE_ANALYSIS_TIMEMODEL_H
