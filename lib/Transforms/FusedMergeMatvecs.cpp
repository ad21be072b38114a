// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "Hoist.h"
#include "sluice/Transforms/Passes.h"

#include "sluice/Analysis/Merging.h"
#include "sluice/Target/LoadTarget.h"

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
    return {type.getEncoding(), type.getLayout()};
  return {TypeAttr::get(cast<RankedTensorType>(weight.getType()).getElementType()), Attribute()};
}

/// Whether `op` is a bare product: regions, row orders and schedules stand for decisions that
/// merging would undo.
bool isBare(MatvecOp op) {
  return op.getPrologue().empty() && op.getEpilogue().empty() && !op.getOrder() &&
         !op.getTraffic() && !op.getSchedule();
}

/// Products whose weights are stored alike.
using Group = SmallVector<MatvecOp>;

/// Whether a kernel for GPUs reads this weight beside others of other formats.
bool isInRecords(Value weight) {
  auto type = dyn_cast<quantized::QuantizedTensorType>(weight.getType());
  return type && mergesWithOtherFormats(type.getEncoding().getValue());
}

/// Whether rows of products of two groups are combined one by one.
bool areCombined(const Group &group, const Group &other) {
  return llvm::any_of(group, [&](MatvecOp op) {
    return llvm::any_of(other, [&](MatvecOp otherOp) { return sluice::areCombined(op, otherOp); });
  });
}

struct FusedMergeMatvecs : impl::FusedMergeMatvecsBase<FusedMergeMatvecs> {
  using FusedMergeMatvecsBase::FusedMergeMatvecsBase;
  void runOnOperation() override;

private:
  /// Merges `ops`, which read the same input in one block, in program order.
  void merge(ArrayRef<MatvecOp> ops);
  /// Joins groups of different formats that one kernel can read.
  void joinGroups(SmallVectorImpl<Group> &groups);

  bool gpu = false;
};

void FusedMergeMatvecs::joinGroups(SmallVectorImpl<Group> &groups) {
  if (!gpu)
    return;
  auto fits = [](const Group &group) {
    return llvm::all_of(group, [](MatvecOp op) {
      return op.getWeights().size() == 1 && isInRecords(op.getWeights().front());
    });
  };
  for (size_t first = 0; first < groups.size(); ++first)
    for (size_t other = first + 1; other < groups.size();) {
      if (fits(groups[first]) && fits(groups[other]) &&
          !areCombined(groups[first], groups[other])) {
        groups[first].append(groups[other]);
        groups.erase(groups.begin() + other);
      } else {
        ++other;
      }
    }
}

void FusedMergeMatvecs::merge(ArrayRef<MatvecOp> ops) {
  MatvecOp first = ops.front();
  DominanceInfo dominance;
  auto missed = [&](MatvecOp op, StringRef reason) {
    remark::missed(op.getLoc(), remark::RemarkOpts::name("not-merged").category(DEBUG_TYPE))
        << remark::reason("{0}", reason);
  };
  llvm::MapVector<std::pair<Attribute, Attribute>, Group> byStorage;
  for (MatvecOp op : ops) {
    auto key = storage(op.getWeights().front());
    if (!llvm::all_of(op.getWeights(), [&](Value weight) { return storage(weight) == key; }))
      missed(op, "its own weights differ in format");
    else
      byStorage[key].push_back(op);
  }
  SmallVector<Group> groups = llvm::to_vector(llvm::make_second_range(byStorage));
  joinGroups(groups);
  if (groups.size() > 1)
    for (Group &group : llvm::drop_begin(groups))
      missed(group.front(),
             "its weight differs in format from those of other readers of the same input");

  for (Group &group : groups) {
    first = *llvm::min_element(
        group, [](MatvecOp op, MatvecOp other) { return op->isBeforeInBlock(other); });
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
  // Without a target nothing is known of its kernels.
  if (!target.empty()) {
    FailureOr<TargetDescription> description = loadTarget(getOperation(), target);
    if (failed(description))
      return signalPassFailure();
    gpu = description->isGpu();
  }
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
