// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "AttentionPlacement.h"
#include "sluice/Transforms/Passes.h"

#include "mlir/IR/Remarks.h"
#include "llvm/ADT/SetVector.h"
#include "llvm/Support/DebugLog.h"

#define DEBUG_TYPE "fused-fuse-attention-prologues"

namespace sluice {
#define GEN_PASS_DEF_FUSEDFUSEATTENTIONPROLOGUES
#include "lib/Transforms/Passes.h.inc"

namespace {
using namespace mlir;
using fused::AttentionOp;

struct FusedFuseAttentionPrologues
    : impl::FusedFuseAttentionProloguesBase<FusedFuseAttentionPrologues> {
  void runOnOperation() override;

private:
  void fuse(AttentionOp attention);
};

void FusedFuseAttentionPrologues::fuse(AttentionOp attention) {
  std::array<model::CacheAppendOp, 2> appends = findAppends(attention);
  auto missed = [&](StringRef reason) {
    remark::missed(attention->getLoc(), remark::RemarkOpts::name("not-fused").category(DEBUG_TYPE))
        << remark::reason("{0}", reason);
  };
  if (!appends[0] && !appends[1])
    return; // A product's epilogue appends.
  if (!appends[0] || !appends[1])
    return missed("keys and values are appended in different places");

  SmallVector<Operation *> chains[3];
  Value query = followHeads(attention.getQuery(), chains[0]);
  Value starts[] = {query, followHeads(appends[0].getInput(), chains[1]),
                    followHeads(appends[1].getInput(), chains[2])};

  OpBuilder builder(attention);
  auto fusedOp = AttentionOp::create(
      builder, attention.getLoc(), attention.getType(), starts[0], ValueRange{starts[1], starts[2]},
      attention.getKeysAttr(), attention.getValuesAttr(), attention.getPositions(),
      attention.getPages(), attention.getStarts(), attention.getActive(), attention.getScaleAttr(),
      attention.getWindowAttr(), attention.getSoftCapAttr(),
      /*traffic=*/nullptr, /*schedule=*/nullptr);
  fusedOp->setDiscardableAttrs(attention->getDiscardableAttrDictionary());
  SmallVector<Type> types =
      llvm::map_to_vector(starts, [](Value value) { return value.getType(); });
  SmallVector<Location> locations(types.size(), attention.getLoc());
  Block *block = builder.createBlock(&fusedOp.getPrologue(), {}, types, locations);
  SmallVector<Value> ends;
  for (auto [argument, chain] : llvm::zip_equal(block->getArguments(), chains)) {
    Value value = argument;
    for (Operation *op : llvm::reverse(chain)) {
      IRMapping mapping;
      mapping.map(op->getOperand(0), value);
      value = builder.clone(*op, mapping)->getResult(0);
    }
    ends.push_back(value);
  }
  for (auto [append, value] : llvm::zip_equal(appends, ArrayRef(ends).drop_front()))
    model::CacheAppendOp::create(builder, append.getLoc(), append.getCacheAttr(), value,
                                 append.getPositions(), append.getPages(), append.getSequences());
  fused::YieldOp::create(builder, attention.getLoc(), ends.front());
  attention.replaceAllUsesWith(fusedOp.getResult());
  attention.erase();
  for (model::CacheAppendOp append : appends)
    append.erase();
  for (const SmallVector<Operation *> &chain : chains)
    for (Operation *op : chain)
      op->erase();
  LDBG() << fusedOp;
}

void FusedFuseAttentionPrologues::runOnOperation() {
  SmallVector<AttentionOp> attentions;
  getOperation().walk([&](AttentionOp op) {
    if (op.getPrologue().empty() && !op.getSchedule())
      attentions.push_back(op);
  });
  llvm::for_each(attentions, [&](AttentionOp op) { fuse(op); });
}
} // namespace
} // namespace sluice
