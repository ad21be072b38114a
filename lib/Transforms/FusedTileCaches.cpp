// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sluice/Transforms/Passes.h"

#include "sluice/Target/LoadTarget.h"

#include "llvm/Support/DebugLog.h"
#include "llvm/Support/MathExtras.h"

#define DEBUG_TYPE "fused-tile-caches"

namespace sluice {
#define GEN_PASS_DEF_FUSEDTILECACHES
#include "lib/Transforms/Passes.h.inc"

namespace {
using namespace mlir;
using quantized::CacheLayout;
using quantized::CacheType;

struct FusedTileCaches : impl::FusedTileCachesBase<FusedTileCaches> {
  using FusedTileCachesBase::FusedTileCachesBase;
  void runOnOperation() override;
};

void FusedTileCaches::runOnOperation() {
  FailureOr<TargetDescription> description = loadTarget(getOperation(), target);
  if (failed(description))
    return signalPassFailure();
  bool isGpu = description->isGpu();
  // How attention reads a cache says which operand it is.
  auto place = [&](Operation *attention, FlatSymbolRefAttr name, CacheLayout layout) {
    auto cache = getOperation().lookupSymbol<model::CacheOp>(name.getAttr());
    CacheType type = cache.getCacheType();
    if (type.getLayout() == layout)
      return success();
    if (type.isTiled())
      return LogicalResult(attention->emitOpError()
                           << "reads cache " << name << " as " << stringifyCacheLayout(layout)
                           << ", but it is " << stringifyCacheLayout(type.getLayout()));
    cache.setType(
        type.withLayout(layout, llvm::alignTo(type.getPositions(),
                                              isGpu ? formats::cacheBlock : formats::cacheTile)));
    LDBG() << name << ": " << type << " became " << cache.getType();
    return success();
  };
  WalkResult walk = getOperation().walk([&](fused::AttentionOp op) {
    bool placed = succeeded(place(op, op.getKeysAttr(),
                                  isGpu ? CacheLayout::MmaKeys : CacheLayout::LanesKeys)) &&
                  succeeded(place(op, op.getValuesAttr(),
                                  isGpu ? CacheLayout::MmaValues : CacheLayout::LanesValues));
    return placed ? WalkResult::advance() : WalkResult::interrupt();
  });
  if (walk.wasInterrupted())
    signalPassFailure();
}
} // namespace
} // namespace sluice
