// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sluice/Transforms/Passes.h"

#include "dialects/Fused/Fused.h"

#include "llvm/Support/DebugLog.h"

#define DEBUG_TYPE "fused-annotate-traffic"

namespace sluice {
#define GEN_PASS_DEF_FUSEDANNOTATETRAFFIC
#include "lib/Transforms/Passes.h.inc"

namespace {
using namespace mlir;

struct FusedAnnotateTraffic : impl::FusedAnnotateTrafficBase<FusedAnnotateTraffic> {
  void runOnOperation() override {
    getOperation().walk([&](fused::KernelOp kernel) {
      kernel.setTrafficAttr(kernel.computeTraffic().toAttribute(&getContext()));
      LDBG() << kernel->getName() << ": " << *kernel.getTraffic();
    });
  }
};
} // namespace
} // namespace sluice
