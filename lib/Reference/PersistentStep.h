// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// What a step means that is planned as one kernel: its residual stream is the embedding and sums in
// fixed point, and norms are applied to the sums of products. docs/numerics.md, "Sums in fixed
// point".

#ifndef SLUICE_LIB_REFERENCE_PERSISTENTSTEP_H
#define SLUICE_LIB_REFERENCE_PERSISTENTSTEP_H

#include "dialects/Fused/PersistentPlan.h"
#include "sluice/Reference/Tensor.h"

#include "llvm/ADT/DenseMap.h"

namespace sluice::reference {

class PersistentStep {
public:
  /// Recognises the step; an error says what does not fit.
  static llvm::Expected<PersistentStep> get(mlir::Block &step,
                                            fused::PersistentScheduleAttr schedule);

  /// A product whose norm is applied to its sums.
  bool isNormed(mlir::Operation *op) const { return normed.contains(op); }
  /// A product whose sums are added to the residual stream.
  bool isAdded(mlir::Operation *op) const { return added.contains(op); }

  /// Of an added product: the columns whose products are one addition each, by cluster.
  llvm::SmallVector<fused::IndexRange> columnsOf(mlir::Operation *op) const;
  /// Adds one such part, a row of sums, to the words.
  void add(mlir::Operation *op, const Tensor &part);
  /// The residual stream after all parts of `op` have been added, from the step's embedding. NaN
  /// where something was added that fixed point does not hold.
  Tensor streamAfter(mlir::Operation *op, const Tensor &embedding) const;
  mlir::Value embedding() { return step.embedding.getResult(); }

private:
  struct Place {
    int64_t layer;
    bool mlp;
    /// Index of the array of words.
    int64_t array() const { return mlp ? 1 + layer % 2 : 0; }
  };
  struct Words {
    std::vector<uint64_t> words;
    std::vector<bool> poisoned;
    uint64_t additions = 0;
    float limit = 0;
    float value(size_t row) const;
  };

  PersistentStep(fused::DecoderStep step, fused::PersistentPlan plan);

  fused::DecoderStep step;
  fused::PersistentPlan plan;
  llvm::DenseSet<mlir::Operation *> normed;
  llvm::DenseMap<mlir::Operation *, Place> added;
  /// Of attention; of the MLPs of even and of odd layers.
  std::array<Words, fused::PersistentPlan::kSumArrays> sums;
};

} // namespace sluice::reference

#endif // SLUICE_LIB_REFERENCE_PERSISTENTSTEP_H
