// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sluice/Transforms/Passes.h"

#include "sluice/Analysis/Traffic.h"

#include "llvm/ADT/TypeSwitch.h"
#include "llvm/Support/DebugLog.h"

#define DEBUG_TYPE "fused-annotate-traffic"

namespace sluice {
#define GEN_PASS_DEF_FUSEDANNOTATETRAFFIC
#include "lib/Transforms/Passes.h.inc"

namespace {
using namespace mlir;

struct FusedAnnotateTraffic : impl::FusedAnnotateTrafficBase<FusedAnnotateTraffic> {
  void runOnOperation() override {
    getOperation().walk([&](Operation *op) {
      llvm::TypeSwitch<Operation *>(op)
          .Case<fused::EmbeddingOp, fused::MatvecOp, fused::AttentionOp, fused::SampleOp>(
              [&](auto fusedOp) {
                fusedOp.setTrafficAttr(computeTraffic(op).toAttribute(&getContext()));
                LDBG() << op->getName() << ": " << *fusedOp.getTraffic();
              });
    });
  }
};
} // namespace
} // namespace sluice
