// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Inputs of products that blocks of a cluster make for each other, 128 numbers at a time.

#ifndef SLUICE_LIB_CONVERSION_FUSEDTOGPU_GROUPEXCHANGE_H
#define SLUICE_LIB_CONVERSION_FUSEDTOGPU_GROUPEXCHANGE_H

#include "DeviceBuilder.h"

#include "dialects/Fused/PersistentPlan.h"

namespace sluice::device {

/// The part of `total` things that `index`, known when the kernel runs, has of `parts`: as
/// PersistentPlan divides them.
struct PartOf {
  PartOf(DeviceBuilder &k, int64_t total, int64_t parts, mlir::Value index)
      : PartOf(k, k.constI32(total), parts, index) {}
  PartOf(DeviceBuilder &k, mlir::Value total, int64_t parts, mlir::Value index)
      : begin(k.div(k.mul(index, total), parts)), end(k.div(k.mul(k.add(index, 1), total), parts)) {
  }
  mlir::Value begin, end;
};

/// Groups of the MLP's inner values of a cluster, and of a rank of it: as PersistentPlan divides
/// them.
struct InnerParts {
  InnerParts(DeviceBuilder &k, const fused::PersistentPlan &plan, mlir::Value cluster,
             mlir::Value rank) {
    PartOf units(k, plan.innerGroups() / plan.downGroups(), plan.schedule.clusters, cluster);
    clusterBegin = k.mul(units.begin, plan.downGroups());
    clusterCount = k.mul(k.sub(units.end, units.begin), plan.downGroups());
    PartOf own(k, clusterCount, plan.schedule.clusterBlocks, rank);
    begin = k.add(clusterBegin, own.begin);
    count = k.sub(own.end, own.begin);
  }
  mlir::Value clusterBegin, clusterCount, begin, count;
};

/// An exchange of the plan in which every rank sends groups to its whole cluster: where groups,
/// what belongs to them, and the barrier lie in every block's shared memory.
struct GroupExchange {
  DeviceBuilder &k;
  const fused::PersistentPlan &plan;
  /// Start of the block's shared memory.
  mlir::Value shared;
  fused::PersistentPlan::ExchangeIndex index;
  fused::SharedRange groups, meta;

  mlir::Value barrier() const {
    return k.offset(shared, plan.barriers.offset + (index - fused::PersistentPlan::Input) * 8);
  }
  fused::PersistentPlan::InputOrder order() const { return plan.inputOrder(index); }
  int64_t groupBytes() const { return fused::PersistentPlan::kGroupBytes + order().metaBytes(); }
  /// Operands of the tensor cores: as fused::InputPlan has them, one token, integer weights.
  mlir::Value operands(mlir::Value group) const {
    return k.at(k.offset(shared, groups.offset), group, fused::PersistentPlan::kGroupBytes);
  }
  mlir::Value scale(mlir::Value group) const { return loadMeta(group, 0); }
  mlir::Value square(mlir::Value group) const { return loadMeta(group, 4); }
  /// Sum `number` of a group, times its scale; a value that may differ between lanes.
  mlir::Value sum(mlir::Value group, mlir::Value number) const {
    return loadMeta(group, fused::PersistentPlan::kStepBytes, k.shl(number, 2));
  }

  /// By one thread, once: `bytes` are those of a round.
  void init(mlir::Value bytes) const;
  /// By a warp: rounds four numbers a lane to fixed point and sends them as group `group`, with
  /// their scale and `square`. `place`: where the warp brings bytes in order, kGroupBytes.
  void send(const DeviceBuilder::Values &x, mlir::Value square, mlir::Value group,
            mlir::Value place, mlir::Value lane) const;
  /// By all threads that compute, if the rank has no group of this exchange.
  void sendToken(mlir::Value rank, mlir::Value thread) const;
  /// By all threads that compute: waits for round `round`. One of them expects the next one.
  void receive(mlir::Value round, mlir::Value bytes, mlir::Value thread) const;

private:
  mlir::Value metaAt(mlir::Value group, int64_t byte) const {
    return k.at(k.offset(shared, meta.offset + byte), group, order().metaBytes());
  }
  mlir::Value loadMeta(mlir::Value group, int64_t byte, mlir::Value more = {}) const {
    mlir::Value at = metaAt(group, byte);
    return k.load(k.f32(), more ? k.offset(at, more) : at, 4);
  }
  /// Sends the sums of a group's columns that offsets of weights are multiplied by.
  void sendSums(const DeviceBuilder::Values &fixed, mlir::Value scale, mlir::Value group,
                mlir::Value lane) const;
};

} // namespace sluice::device

#endif // SLUICE_LIB_CONVERSION_FUSEDTOGPU_GROUPEXCHANGE_H
