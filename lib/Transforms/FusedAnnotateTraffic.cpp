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
      if (!isa<fused::EmbeddingOp, fused::MatvecOp, fused::AttentionOp>(op))
        return;
      fused::TrafficAttr traffic = computeTraffic(op).toAttribute(&getContext());
      llvm::TypeSwitch<Operation *>(op)
          .Case<fused::EmbeddingOp, fused::MatvecOp, fused::AttentionOp>(
              [&](auto fusedOp) { fusedOp.setTrafficAttr(traffic); });
      LDBG() << op->getName() << ": " << traffic;
    });
  }
};
} // namespace
} // namespace sluice
