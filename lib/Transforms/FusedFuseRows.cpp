// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "CacheAppends.h"
#include "Hoist.h"
#include "dialects/Model/Semantics.h"
#include "sluice/Transforms/Passes.h"

#include "llvm/Support/DebugLog.h"

#define DEBUG_TYPE "fused-fuse-rows"

namespace sluice {
#define GEN_PASS_DEF_FUSEDFUSEROWS
#include "lib/Transforms/Passes.h.inc"

namespace {
using namespace mlir;

/// Whether `op` needs a kernel wherever it stands. Rounding and rotating alone are left to
/// attention, which works on heads.
bool startsRows(Operation *op) {
  if (isa<arith::TruncFOp, arith::ExtFOp>(op) || op->getNumResults() != 1)
    return false;
  auto type = dyn_cast<RankedTensorType>(op->getResult(0).getType());
  return type && type.getRank() == 2 && (model::isRowNorm(op) || model::isElementwise(op));
}

/// Whether `op` can follow in the same kernel.
bool continuesRows(Operation *op) {
  if (auto append = dyn_cast<model::CacheAppendOp>(op))
    return storesElements(append);
  if (auto rotary = dyn_cast<model::RotaryOp>(op))
    return !rotary.getInterleaved();
  return isa<arith::TruncFOp>(op) || startsRows(op);
}

/// What keeps `op` out of the kernel of rows at `first`.
bool fits(Operation *op, Operation *first, const llvm::SmallPtrSetImpl<Operation *> &taken,
          const DominanceInfo &dominance) {
  auto shapeOf = [](Operation *of) {
    return cast<ShapedType>(of->getOperand(0).getType()).getShape();
  };
  if (shapeOf(op) != shapeOf(first))
    return false;
  if (auto rotary = dyn_cast<model::RotaryOp>(op))
    for (Operation *other : taken)
      if (auto earlier = dyn_cast<model::RotaryOp>(other);
          earlier && earlier.getHeadDim() != rotary.getHeadDim())
        return false;
  return llvm::all_of(op->getOperands(), [&](Value operand) {
    Operation *source = operand.getDefiningOp();
    return (source && taken.contains(source)) || canHoist(operand, first, dominance);
  });
}

struct FusedFuseRows : impl::FusedFuseRowsBase<FusedFuseRows> {
  void runOnOperation() override;

private:
  void fuse(Operation *first);
};

void FusedFuseRows::fuse(Operation *first) {
  DominanceInfo dominance;
  llvm::SmallPtrSet<Operation *, 8> taken = {first};
  SmallVector<Operation *> members = {first};
  // A store moves to the kernel's place: nothing may read the cache in between.
  bool readsCaches = false;
  for (Operation *op = first->getNextNode(); op; op = op->getNextNode()) {
    bool reads = llvm::any_of(op->getOperands(), [&](Value operand) {
      return operand.getDefiningOp() && taken.contains(operand.getDefiningOp());
    });
    if (reads && continuesRows(op) && fits(op, first, taken, dominance) &&
        !(readsCaches && isa<model::CacheAppendOp>(op))) {
      taken.insert(op);
      members.push_back(op);
    } else if (!isa<model::CacheAppendOp>(op) && !isMemoryEffectFree(op)) {
      readsCaches |= isa<fused::AttentionOp, model::AttentionOp>(op) || op->getNumRegions() == 0;
    }
  }

  SmallVector<Value> yielded;
  for (Operation *op : members)
    for (Value result : op->getResults())
      if (llvm::any_of(result.getUsers(), [&](Operation *user) { return !taken.contains(user); }))
        yielded.push_back(result);

  OpBuilder builder(first);
  for (Operation *op : members)
    for (Value operand : op->getOperands())
      if (!operand.getDefiningOp() || !taken.contains(operand.getDefiningOp()))
        hoist(operand, first, dominance);
  SmallVector<Location> locations =
      llvm::map_to_vector(members, [](Operation *op) { return op->getLoc(); });
  auto rows =
      fused::RowsOp::create(builder, FusedLoc::get(&getContext(), locations),
                            TypeRange(ValueRange(yielded)), /*active=*/nullptr, /*traffic=*/nullptr,
                            /*schedule=*/nullptr);
  builder.createBlock(&rows.getBody());
  IRMapping mapping;
  for (Operation *op : members)
    builder.clone(*op, mapping);
  fused::YieldOp::create(builder, rows.getLoc(), llvm::map_to_vector(yielded, [&](Value value) {
                           return mapping.lookup(value);
                         }));
  for (auto [old, result] : llvm::zip_equal(yielded, rows.getResults()))
    old.replaceAllUsesWith(result);
  for (Operation *op : llvm::reverse(members))
    op->erase();
  LDBG() << "made " << rows;
}

void FusedFuseRows::runOnOperation() {
  for (auto function : getOperation().getOps<func::FuncOp>())
    for (Block &block : function.getBody())
      for (Operation *op = block.empty() ? nullptr : &block.front(); op;) {
        Operation *next = op->getNextNode();
        if (startsRows(op)) {
          // The kernel stands in front of what it is made of, and takes what follows with it.
          Operation *before = op->getPrevNode();
          fuse(op);
          next = before ? before->getNextNode() : &block.front();
        }
        op = next;
      }
}
} // namespace
} // namespace sluice
