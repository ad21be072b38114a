// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#ifndef SLUICE_LIB_CONVERSION_FUSEDTOGPU_STAGERING_H
#define SLUICE_LIB_CONVERSION_FUSEDTOGPU_STAGERING_H

#include "DeviceBuilder.h"

namespace sluice::device {

/// A ring of stages in shared memory that asynchronous copies fill one after the other. A stage is
/// named by its slot (0 .. stages - 1) and the parity of its barrier's phase, which changes with
/// each filling.
struct StageRing {
  DeviceBuilder &k;
  int64_t stages;
  /// Barriers of 8 bytes, one per stage; a barrier's phase completes when its stage has been
  /// filled.
  mlir::Value full;

  mlir::Value fullBarrier(mlir::Value slot) const { return k.at(full, slot, 8); }

  /// Moves on by `steps` stages.
  void advance(mlir::Value &slot, mlir::Value &parity, int64_t steps) const {
    slot = k.add(slot, steps % stages);
    if (steps / stages % 2)
      parity = k.bitXor(parity, 1);
    if (steps % stages == 0)
      return;
    mlir::Value wraps = k.less(k.constI32(stages - 1), slot);
    slot = k.select(wraps, k.sub(slot, stages), slot);
    parity = k.select(wraps, k.bitXor(parity, 1), parity);
  }

  /// Before copy number `copies`: waits until less than `inFlight` are under way. `oldest` and
  /// `parity` name the oldest stage that may be.
  void limitInFlight(mlir::Value copies, int64_t inFlight, mlir::Value &oldest,
                     mlir::Value &parity) const {
    auto next = k.ifElseYield(
        k.less(copies, k.constI32(inFlight)), [&] { return kernels::Values{oldest, parity}; },
        [&] {
          k.wait(fullBarrier(oldest), parity);
          mlir::Value slotAfter = oldest, parityAfter = parity;
          advance(slotAfter, parityAfter, 1);
          return kernels::Values{slotAfter, parityAfter};
        });
    oldest = next[0];
    parity = next[1];
  }
};

} // namespace sluice::device

#endif // SLUICE_LIB_CONVERSION_FUSEDTOGPU_STAGERING_H
