// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sluice/Transforms/Passes.h"

#include "sluice/Formats/CacheLayout.h"
#include "sluice/Target/TargetDescription.h"

#include "llvm/Support/DebugLog.h"
#include "llvm/Support/MathExtras.h"

#define DEBUG_TYPE "fused-pad-caches"

namespace sluice {
#define GEN_PASS_DEF_FUSEDPADCACHES
#include "lib/Transforms/Passes.h.inc"

namespace {
using namespace mlir;

struct FusedPadCaches : impl::FusedPadCachesBase<FusedPadCaches> {
  using FusedPadCachesBase::FusedPadCachesBase;
  void runOnOperation() override;
};

void FusedPadCaches::runOnOperation() {
  llvm::Expected<TargetDescription> description = loadTarget(target);
  if (!description) {
    emitError(getOperation().getLoc()) << llvm::toString(description.takeError());
    return signalPassFailure();
  }
  if (!description->isGpu())
    return markAllAnalysesPreserved();
  for (auto cache : getOperation().getOps<model::CacheOp>()) {
    RankedTensorType type = cache.getTensorType();
    SmallVector<int64_t> shape(type.getShape());
    shape.front() = llvm::alignTo(shape.front(), formats::cachePiece);
    // Heads, too, are whole operands; what they have says the attribute.
    if (!cache.getHeadDim() && shape.back() % formats::cacheHeadUnit) {
      cache.setHeadDim(shape.back());
      shape.back() = llvm::alignTo(shape.back(), formats::cacheHeadUnit);
    }
    cache.setType(type.clone(shape));
    LDBG() << cache.getSymName() << ": " << type << " became " << cache.getType();
  }
}
} // namespace
} // namespace sluice
