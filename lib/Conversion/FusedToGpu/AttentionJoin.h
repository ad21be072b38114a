// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Attention of a persistent kernel after its blocks have read their positions: parts of heads go to
// the rank of the cluster that finishes them, and finished heads, rounded, to all ranks.

#ifndef SLUICE_LIB_CONVERSION_FUSEDTOGPU_ATTENTIONJOIN_H
#define SLUICE_LIB_CONVERSION_FUSEDTOGPU_ATTENTIONJOIN_H

#include "GroupExchange.h"

namespace sluice::device {

/// A set of joined heads (PersistentPlan::joinedHeads) has whole groups of 128 columns, and is
/// finished by rank set % ranks.
class AttentionJoin {
public:
  using Values = DeviceBuilder::Values;
  AttentionJoin(DeviceBuilder &k, const fused::PersistentPlan &plan, mlir::Value shared,
                mlir::Value thread);

  /// By one thread.
  void initBarriers();

  /// By all warps that compute: sends the block's part of all sets. `outputs` gives four
  /// neighbouring columns of a set, not yet divided by the sum of weights; `softmax` the greatest
  /// exponent (of 2) of a head of the set, and the sum of its weights relative to that one.
  void
  send(llvm::function_ref<Values(mlir::Value set, mlir::Value column)> outputs,
       llvm::function_ref<std::pair<mlir::Value, mlir::Value>(mlir::Value set, mlir::Value head)>
           softmax);
  /// By all warps that compute: finishes the rank's sets, round `round`, and sends them.
  void finish(mlir::Value round);
  /// Waits for all heads of the cluster.
  void receive(mlir::Value round);
  /// What receive() waits for: attention's output as the input of the next product.
  GroupExchange exchange() const {
    return {k, plan, shared, fused::PersistentPlan::Attended, plan.attended, plan.attendedMeta};
  }

private:
  int64_t setColumns() const { return plan.joinedHeads() * plan.shape.dim; }
  mlir::Value partsBarrier() const {
    return k.offset(shared, plan.barriers.offset +
                                (fused::PersistentPlan::Parts - fused::PersistentPlan::Input) * 8);
  }
  /// Bytes of parts that the rank waits for; 0 if it finishes no heads.
  mlir::Value partBytes();
  mlir::Value attendedBytes();
  mlir::Value ownSets();
  /// A rank's part of a set, in the memory of the rank that finishes it.
  mlir::Value placeOf(mlir::Value from, mlir::Value set);

  DeviceBuilder &k;
  const fused::PersistentPlan &plan;
  mlir::Value shared, thread, lane, warp, rank;
};

} // namespace sluice::device

#endif // SLUICE_LIB_CONVERSION_FUSEDTOGPU_ATTENTIONJOIN_H
