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
//   attention  time = attentionWait + positions * norm8(bytes a position / min(cacheBandwidth,
//              blocks * blockBandwidth), numbers a position * heads / rate * multiprocessors /
//              blocks)
//
//   where heads is the query heads of a key/value head, rounded up to 4 (GpuPlan.h), and positions
//   those that are read at most.
//
//   sampling   smallKernel + logits * samplingLogit
//   others     smallKernel
//   step       step + the sum of its kernels
//
// Alone, between two events (bench --per-kernel), a kernel takes `alone` longer, and a product
// behind attention its whole stream.
//
// On a CPU every kernel takes launch + norm8(bytes / read ceiling, elements / rate).

#ifndef SLUICE_ANALYSIS_TIMEMODEL_H
#define SLUICE_ANALYSIS_TIMEMODEL_H

#include "dialects/Fused/Fused.h"
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

/// The caches of a layer, as attention reads them.
struct AttentionLoad {
  formats::CacheEncoding keys, values;
  int64_t kvHeads = 0;
  int64_t queryHeads = 0; ///< in all
  int64_t headDim = 0;
  int64_t window = 0; ///< latest positions that are read at most; 0: all
  /// Neighbouring tokens of one sequence that attend, each up to itself.
  int64_t rows = 1;

  bool operator==(const AttentionLoad &) const = default;
};

/// What a kernel's time depends on.
struct KernelLoad {
  enum class Kind { Product, Attention, Sampling, Other };

  Kind kind = Kind::Other;
  /// Of a product.
  llvm::SmallVector<WeightLoad> weights;
  ProductPlace place = ProductPlace::BehindProduct;
  AttentionLoad attention;
  /// Of sampling.
  int64_t logits = 0;

  bool operator==(const KernelLoad &) const = default;
};

KernelLoad kernelLoad(fused::KernelOp op);

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

/// How a step is launched.
enum class LaunchMode {
  Graph ///< a kernel for each operation, each started before its predecessor has ended
};

class TimeModel {
public:
  /// `context` positions are read, the token's own included. The target must outlive the model.
  TimeModel(const TargetDescription &target, int64_t context, int64_t tokens = 1,
            LaunchMode mode = LaunchMode::Graph);

  const TargetDescription &target() const { return description; }
  int64_t context() const { return positions; }

  // Of descriptions, for choices that are made before there are kernels.

  /// A product of weights that are merged into one kernel: all have the same columns.
  TimeFormula product(llvm::ArrayRef<WeightLoad> weights,
                      ProductPlace place = ProductPlace::BehindProduct) const;
  TimeFormula attention(const AttentionLoad &load) const;
  double productSeconds(llvm::ArrayRef<WeightLoad> weights,
                        ProductPlace place = ProductPlace::BehindProduct) const {
    return product(weights, place).at(positions).seconds();
  }
  double attentionSeconds(const AttentionLoad &load) const {
    return attention(load).at(positions).seconds();
  }

  // Of kernels: the same times, from what the operation names.

  TimeFormula formula(const KernelLoad &load) const;
  TimeFormula formula(fused::KernelOp op) const { return formula(kernelLoad(op)); }
  KernelTime kernel(fused::KernelOp op) const { return formula(op).at(positions); }
  /// All kernels of a function in stage fused or scheduled, and what a step takes beside them.
  KernelTime step(mlir::Operation *function) const;
  /// What a step takes beside its kernels, seconds.
  double stepSeconds() const;

  /// Elements per second of a format, of the whole device. One that the target does not name has
  /// the rate of the most similar one that it names (or the slowest of those): of the same kind of
  /// code, then of the nearest number of bits, kind of scale and of offset, and size of group.
  double productRate(const formats::Encoding &encoding) const;
  double attentionRate(const formats::CacheEncoding &encoding) const;

private:
  const TargetDescription &description;
  int64_t positions, tokens;
  llvm::SmallVector<std::pair<formats::Encoding, double>> productRates;
  llvm::SmallVector<std::pair<formats::CacheEncoding, double>> attentionRates;
};

} // namespace sluice

#endif // SLUICE_ANALYSIS_TIMEMODEL_H
