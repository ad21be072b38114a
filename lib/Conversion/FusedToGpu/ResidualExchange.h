// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// The residual stream of a step that is one kernel: sums of all clusters in global memory
// (Formats/FixedSum.h), of which every cluster makes the input of its next product.

#ifndef SLUICE_LIB_CONVERSION_FUSEDTOGPU_RESIDUALEXCHANGE_H
#define SLUICE_LIB_CONVERSION_FUSEDTOGPU_RESIDUALEXCHANGE_H

#include "GroupExchange.h"

namespace sluice::device {

/// Emits what a block does with the stream. A rank of a cluster keeps the groups of 128 rows that
/// the plan gives it, in shared memory, a warp each in turn. Input that integer weights multiply.
class ResidualExchange {
public:
  struct Pointers {
    /// Start of the block's shared memory.
    mlir::Value shared;
    /// The embedding, f32; the arrays of words, one after another, zero at the kernel's start; an
    /// i64, zero, that becomes 1 if something is added that a sum does not hold.
    mlir::Value embedding, sums, poison;
  };

  ResidualExchange(DeviceBuilder &k, const fused::PersistentPlan &plan, const Pointers &pointers,
                   mlir::Value thread);

  /// Initialises the input's barrier, by one thread, and expects the first input. Blocks of the
  /// cluster must not send before.
  void initBarrier();
  /// Fills the rank's rows with the embedding, by all warps that compute.
  void start();

  /// Waits for the sums of attention after its layer `layer`, and takes them over. With `gains`,
  /// f32: multiplies the rank's rows by them, rounds them to fixed point and sends them to the
  /// cluster; with `sends`, an i1, only if it is true.
  void readAttention(mlir::Value layer, mlir::Value gains = {}, mlir::Value sends = {}) {
    read(fused::PersistentPlan::AttentionSums, layer, gains, sends);
  }
  /// The same of the MLP of layer `layer`; -1 is before the first one, where sums are zero. Between
  /// two of them all layers in between are read.
  void readMlp(mlir::Value layer, mlir::Value gains = {}, mlir::Value sends = {}) {
    read(fused::PersistentPlan::MlpSums, layer, gains, sends);
  }
  /// Waits, by all threads that compute, for the input number `round`: operands of the tensor cores
  /// as fused::InputPlan has them, one token, at the plan's `input`; of each group the activation
  /// scale and the sum of squares, without gains, at `inputMeta`. One thread expects the next one.
  void receive(mlir::Value round);
  /// What the input says: groups of operands and scales, and sums of squares.
  GroupExchange exchange() {
    return {k, plan, pointers.shared, fused::PersistentPlan::Input, plan.input, plan.inputMeta};
  }
  /// 1 / sqrt(mean of the squares + epsilon), of the input that was received last.
  mlir::Value normFactor(double epsilon);

  /// Adds `value` to row `row` of attention's sums.
  void addAttention(mlir::Value row, mlir::Value value);
  /// The same of the MLP of layer `layer`.
  void addMlp(mlir::Value layer, mlir::Value row, mlir::Value value);

  /// After the last MLP's sums were read: writes the rank's rows of the stream, f32. NaN if
  /// something was added that a sum does not hold.
  void store(mlir::Value result);

private:
  /// Words of an array; those behind the width are not used.
  int64_t words() const { return plan.widthTiles() * fused::PersistentPlan::kTile; }
  mlir::Value mlpArray(mlir::Value layer) {
    return k.add(k.bitAnd(layer, 1), fused::PersistentPlan::MlpSums);
  }
  /// Runs `body` for each group that is the warp's turn; `row` is the first of the lane's four.
  void
  forGroups(llvm::function_ref<void(mlir::Value group, mlir::Value local, mlir::Value row)> body);
  /// Whether the lane's rows exist; null if all do.
  mlir::Value exists(mlir::Value row);
  /// Where the lane's four rows of a part of the stream are: 0 the embedding and attention, 1 all
  /// MLPs, 2 the MLPs of layers like the one read last.
  mlir::Value statePlace(int64_t part, mlir::Value local);
  DeviceBuilder::Values loadState(int64_t part, mlir::Value local);
  void storeState(int64_t part, mlir::Value local, const DeviceBuilder::Values &x);
  DeviceBuilder::Values loadRows(mlir::Value array, mlir::Value row);

  void read(int64_t kind, mlir::Value layer, mlir::Value gains, mlir::Value sends);
  /// The values of the lane's four words of an array, once each has got so many additions.
  DeviceBuilder::Values readWords(mlir::Value array, mlir::Value row, mlir::Value additions);
  /// `additions`: to a word of the array, in the whole step.
  void add(mlir::Value array, mlir::Value row, mlir::Value value, int64_t additions);

  DeviceBuilder &k;
  const fused::PersistentPlan &plan;
  Pointers pointers;
  mlir::Value thread, lane, warp, rank;
};

} // namespace sluice::device

#endif // SLUICE_LIB_CONVERSION_FUSEDTOGPU_RESIDUALEXCHANGE_H
