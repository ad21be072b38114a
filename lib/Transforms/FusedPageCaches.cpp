// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sluice/Transforms/Passes.h"

#include "mlir/Dialect/Func/IR/FuncOps.h"
#include "llvm/ADT/SetVector.h"
#include "llvm/Support/DebugLog.h"

#define DEBUG_TYPE "fused-page-caches"

namespace sluice {
#define GEN_PASS_DEF_FUSEDPAGECACHES
#include "lib/Transforms/Passes.h.inc"

namespace {
using namespace mlir;
using quantized::CacheType;

struct FusedPageCaches : impl::FusedPageCachesBase<FusedPageCaches> {
  using FusedPageCachesBase::FusedPageCachesBase;
  void runOnOperation() override;

private:
  /// Gives the caches of @decode, which all have this shape, `count` pages.
  LogicalResult page(func::FuncOp decode, CacheType shape, int64_t count);
};

LogicalResult FusedPageCaches::page(func::FuncOp decode, CacheType shape, int64_t count) {
  Block &body = decode.getBody().front();
  int64_t sequences = shape.getSequences(), pagesOfEach = shape.getPositions() / formats::cacheTile;
  auto table = RankedTensorType::get(
      {sequences, pagesOfEach},
      IntegerType::get(&getContext(), 32, IntegerType::SignednessSemantics::Unsigned));
  // Behind tokens and positions.
  if (failed(decode.insertArgument(2, table, {}, decode.getLoc())))
    return failure();
  Value pages = body.getArgument(2);
  llvm::SmallSetVector<Attribute, 16> caches;
  decode.walk([&](Operation *op) {
    if (auto append = dyn_cast<model::CacheAppendOp>(op)) {
      append.getPagesMutable().assign(pages);
      caches.insert(append.getCacheAttr());
    } else if (auto attention = dyn_cast<fused::AttentionOp>(op)) {
      attention.getPagesMutable().assign(pages);
      caches.insert(attention.getKeysAttr());
      caches.insert(attention.getValuesAttr());
    }
  });
  for (auto name : caches.getArrayRef()) {
    auto cache = getOperation().lookupSymbol<model::CacheOp>(cast<FlatSymbolRefAttr>(name));
    CacheType type = cache.getCacheType();
    cache.setType(CacheType::get(
        &getContext(), {count + sequences, formats::cacheTile, type.getHeads(), type.getHeadDim()},
        type.getElement(), type.getGroup(), type.getLayout()));
    LDBG() << name << ": " << type << " became " << cache.getType();
  }
  return success();
}

void FusedPageCaches::runOnOperation() {
  auto decode = getOperation().lookupSymbol<func::FuncOp>("decode");
  // What is no step of decoding is the business of plan-assign-buffers.
  if (!decode || decode.isExternal() || decode.getNumArguments() < 2 ||
      !decode.getBody().hasOneBlock() || model::pageTable(decode.getBody().front()))
    return markAllAnalysesPreserved();
  CacheType shape;
  WalkResult walk = decode.walk([&](fused::AttentionOp op) {
    auto keys = getOperation().lookupSymbol<model::CacheOp>(op.getKeysAttr().getAttr());
    CacheType type = keys.getCacheType();
    if (!type.isTiled()) {
      op.emitOpError() << "reads cache " << op.getKeysAttr() << " of type " << type
                       << ", pages are made of tiles (fused-tile-caches makes them)";
      return WalkResult::interrupt();
    }
    if (shape && (type.getSequences() != shape.getSequences() ||
                  type.getPositions() != shape.getPositions())) {
      op.emitOpError() << "reads a cache of " << type.getSequences() << " sequences of "
                       << type.getPositions() << " positions, others have " << shape.getSequences()
                       << " of " << shape.getPositions() << ": one page table is for all";
      return WalkResult::interrupt();
    }
    shape = type;
    return WalkResult::advance();
  });
  if (walk.wasInterrupted())
    return signalPassFailure();
  const int64_t asked = pages;
  if (!shape || shape.getSequences() == 1) {
    if (asked == 0)
      return markAllAnalysesPreserved();
    decode.emitOpError() << "decodes one sequence, whose caches are not in pages; found pages = "
                         << asked;
    return signalPassFailure();
  }
  int64_t most = shape.getSequences() * shape.getPositions() / formats::cacheTile;
  if (asked < 0 || asked > most) {
    decode.emitOpError() << "has caches of at most " << most << " pages, found pages = " << asked;
    return signalPassFailure();
  }
  if (failed(page(decode, shape, asked ? asked : most)))
    signalPassFailure();
}
} // namespace
} // namespace sluice
