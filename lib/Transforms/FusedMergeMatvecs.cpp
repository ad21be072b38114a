// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "Hoist.h"
#include "sluice/Transforms/Passes.h"

#include "mlir/IR/Remarks.h"
#include "llvm/ADT/MapVector.h"
#include "llvm/Support/DebugLog.h"

#define DEBUG_TYPE "fused-merge-matvecs"

namespace sluice {
#define GEN_PASS_DEF_FUSEDMERGEMATVECS
#include "lib/Transforms/Passes.h.inc"

namespace {
using namespace mlir;
using fused::MatvecOp;

/// How `weight` is stored: matvecs merge only if they agree on it.
std::pair<Attribute, Attribute> storage(Value weight) {
  if (auto type = dyn_cast<quantized::QuantizedTensorType>(weight.getType()))
    return {type.getFormat(), type.getLayout()};
  return {TypeAttr::get(cast<RankedTensorType>(weight.getType()).getElementType()), Attribute()};
}

/// Whether `op` is a bare product: regions, row orders and schedules stand for decisions that
/// merging would undo.
bool isBare(MatvecOp op) {
  return op.getPrologue().empty() && op.getEpilogue().empty() && !op.getOrder() &&
         !op.getTraffic() && !op.getSchedule();
}

struct FusedMergeMatvecs : impl::FusedMergeMatvecsBase<FusedMergeMatvecs> {
  void runOnOperation() override;

private:
  /// Merges `ops`, which read the same input in one block, in program order.
  void merge(ArrayRef<MatvecOp> ops);
};

void FusedMergeMatvecs::merge(ArrayRef<MatvecOp> ops) {
  MatvecOp first = ops.front();
  DominanceInfo dominance;
  auto missed = [&](MatvecOp op, StringRef reason) {
    remark::missed(op.getLoc(), remark::RemarkOpts::name("not-merged").category(DEBUG_TYPE))
        << remark::reason("{0}", reason);
  };
  llvm::MapVector<std::pair<Attribute, Attribute>, SmallVector<MatvecOp>> groups;
  for (MatvecOp op : ops) {
    auto key = storage(op.getWeights().front());
    if (!llvm::all_of(op.getWeights(), [&](Value weight) { return storage(weight) == key; }))
      missed(op, "its own weights differ in format");
    else
      groups[key].push_back(op);
  }
  if (groups.size() > 1)
    for (auto &[key, group] : llvm::drop_begin(groups))
      missed(group.front(),
             "its weight differs in format from those of other readers of the same input");

  for (auto &[key, group] : groups) {
    first = group.front();
    SmallVector<MatvecOp> mergeable;
    for (MatvecOp op : group) {
      if (llvm::all_of(op.getWeights(),
                       [&](Value weight) { return canHoist(weight, first, dominance); }))
        mergeable.push_back(op);
      else
        missed(op, "its weight is computed after another reader of the same input");
    }
    if (mergeable.size() < 2)
      continue;
    SmallVector<Value> weights, oldResults;
    SmallVector<int64_t> segments;
    SmallVector<Location> locations;
    for (MatvecOp op : mergeable) {
      for (Value weight : op.getWeights())
        hoist(weight, first, dominance);
      llvm::append_range(weights, op.getWeights());
      llvm::append_range(segments, op.getSegments());
      llvm::append_range(oldResults, op.getResults());
      locations.push_back(op.getLoc());
    }
    OpBuilder builder(first);
    auto merged = MatvecOp::create(builder, FusedLoc::get(&getContext(), locations),
                                   TypeRange(ValueRange(oldResults)), first.getInput(), weights,
                                   builder.getDenseI64ArrayAttr(segments),
                                   /*order=*/nullptr, /*traffic=*/nullptr, /*schedule=*/nullptr,
                                   /*prefetch=*/nullptr);
    for (auto [old, result] : llvm::zip_equal(oldResults, merged.getResults()))
      old.replaceAllUsesWith(result);
    for (MatvecOp op : mergeable)
      op.erase();
    LDBG() << "merged " << mergeable.size() << " products into " << merged;
  }
}

void FusedMergeMatvecs::runOnOperation() {
  llvm::MapVector<std::pair<Value, Block *>, SmallVector<MatvecOp>> readers;
  getOperation().walk([&](MatvecOp op) {
    if (isBare(op))
      readers[{op.getInput(), op->getBlock()}].push_back(op);
  });
  for (auto &[key, ops] : readers)
    if (ops.size() > 1)
      merge(ops);
}
} // namespace
} // namespace sluice
