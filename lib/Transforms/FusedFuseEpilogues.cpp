// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "AttentionPlacement.h"
#include "CacheAppends.h"
#include "Hoist.h"
#include "dialects/Model/Semantics.h"
#include "sluice/Transforms/Passes.h"

#include "sluice/Target/LoadTarget.h"

#include "mlir/IR/Remarks.h"
#include "llvm/ADT/SetVector.h"
#include "llvm/ADT/TypeSwitch.h"
#include "llvm/Support/DebugLog.h"

#define DEBUG_TYPE "fused-fuse-epilogues"

namespace sluice {
#define GEN_PASS_DEF_FUSEDFUSEEPILOGUES
#include "lib/Transforms/Passes.h.inc"

namespace {
using namespace mlir;
using fused::MatvecOp;

/// Whether an epilogue can hold `op`: it works on one element, or on one rotary pair, at a time.
bool isFinisher(Operation *op) {
  // Epilogues compute in float32 and round to 16 bits at most.
  if (isa<arith::AddFOp, arith::MulFOp>(op))
    return getElementTypeOrSelf(op->getResult(0)).isF32();
  if (isa<arith::TruncFOp>(op))
    return isa<Float16Type, BFloat16Type>(getElementTypeOrSelf(op->getResult(0)));
  if (auto append = dyn_cast<model::CacheAppendOp>(op))
    return storesElements(append);
  if (isa<arith::ArithDialect>(op->getDialect()))
    return false;
  auto rotary = dyn_cast<model::RotaryOp>(op);
  return model::isElementwise(op) || (rotary && !rotary.getInterleaved());
}

/// Whether `op`, or something inside it, may read or write `cache`.
bool mayTouch(Operation *op, FlatSymbolRefAttr cache) {
  if (isMemoryEffectFree(op))
    return false;
  return op
      ->walk([&](Operation *inner) {
        bool touches =
            TypeSwitch<Operation *, bool>(inner)
                .Case([&](model::CacheAppendOp append) { return append.getCacheAttr() == cache; })
                .Case<model::AttentionOp, fused::AttentionOp>([&](auto attention) {
                  return attention.getKeysAttr() == cache || attention.getValuesAttr() == cache;
                })
                .Case([](MatvecOp) { return false; }) // Its regions are walked.
                .Default([](Operation *other) { return !isMemoryEffectFree(other); });
        return touches ? WalkResult::interrupt() : WalkResult::advance();
      })
      .wasInterrupted();
}

struct FusedFuseEpilogues : impl::FusedFuseEpiloguesBase<FusedFuseEpilogues> {
  using FusedFuseEpiloguesBase::FusedFuseEpiloguesBase;
  void runOnOperation() override;

private:
  /// Decides for every attention what is left to its prologue.
  LogicalResult place();
  /// Returns the matvec that takes the place of `matvec`, or `matvec` if it stays.
  MatvecOp fuse(MatvecOp matvec);

  llvm::SmallPtrSet<Operation *, 8> kept; ///< for attention's prologues
};

std::optional<PlacementOption> parsePlacement(StringRef text) {
  return llvm::StringSwitch<std::optional<PlacementOption>>(text)
      .Case("auto", PlacementOption::Auto)
      .Case("epilogue", PlacementOption::Epilogue)
      .Case("prologue", PlacementOption::Prologue)
      .Default(std::nullopt);
}

LogicalResult FusedFuseEpilogues::place() {
  kept.clear();
  std::optional<PlacementOption> common = parsePlacement(placement);
  if (!common)
    return emitError(getOperation().getLoc())
           << "placement must be auto, epilogue or prologue, found '" << placement << "'";
  FailureOr<TargetDescription> description = loadTarget(getOperation(), target);
  if (failed(description))
    return failure();
  TimeModel model(*description, /*context=*/1);
  WalkResult walk = getOperation().walk([&](fused::AttentionOp attention) {
    if (!attention.getPrologue().empty() || attention.getSchedule())
      return WalkResult::advance();
    // Decided by an earlier run or by hand.
    auto decided = attention->getAttrOfType<StringAttr>("sluice.decision");
    std::optional<PlacementOption> option = decided ? parsePlacement(decided) : common;
    if (!option) {
      attention.emitOpError() << "sluice.decision must be epilogue or prologue, found " << decided;
      return WalkResult::interrupt();
    }
    std::optional<AttentionPlacement> placed = placeAttention(attention, *option, model);
    if (!placed)
      return WalkResult::advance();
    kept.insert_range(placed->kept);
    if (decided)
      return WalkResult::advance();
    StringRef where = placed->prologue ? "prologue" : "epilogue";
    Builder builder(&getContext());
    attention->setDiscardableAttr("sluice.decision", builder.getStringAttr(where));
    attention->setDiscardableAttr("sluice.reason", builder.getStringAttr(placed->reason));
    LDBG() << where << ": " << placed->reason;
    return WalkResult::advance();
  });
  return failure(walk.wasInterrupted());
}

/// Why `op` cannot move into `matvec`; empty if it can. `inside` are the values that the epilogue
/// will hold.
StringRef whyNot(Operation *op, MatvecOp matvec, const llvm::SmallPtrSetImpl<Operation *> &taken,
                 llvm::function_ref<bool(Value)> inside, const DominanceInfo &dominance) {
  for (Value operand : op->getOperands())
    if (!inside(operand) && !canHoist(operand, matvec, dominance))
      return "another operand is computed after the product";
  if (auto append = dyn_cast<model::CacheAppendOp>(op))
    for (Operation *between = matvec->getNextNode(); between != op;
         between = between->getNextNode())
      if (!taken.contains(between) && mayTouch(between, append.getCacheAttr()))
        return "something between the product and the store may use the same cache";
  return {};
}

MatvecOp FusedFuseEpilogues::fuse(MatvecOp matvec) {
  DominanceInfo dominance;
  // What finishes the matvec's results, in program order.
  llvm::SmallPtrSet<Operation *, 8> taken;
  SmallVector<Operation *> finishers;
  auto inside = [&](Value value) {
    Operation *source = value.getDefiningOp();
    return source && (source == matvec || taken.contains(source));
  };
  for (Operation *op = matvec->getNextNode(); op; op = op->getNextNode()) {
    if (!llvm::any_of(op->getOperands(), inside) || kept.contains(op) || !isFinisher(op))
      continue;
    StringRef reason = whyNot(op, matvec, taken, inside, dominance);
    if (!reason.empty()) {
      remark::missed(op->getLoc(), remark::RemarkOpts::name("not-fused").category(DEBUG_TYPE))
          << remark::reason("{0}", reason);
      continue;
    }
    taken.insert(op);
    finishers.push_back(op);
  }
  if (finishers.empty())
    return matvec;

  OpBuilder builder(matvec);
  for (Operation *op : finishers)
    for (Value operand : op->getOperands())
      if (!inside(operand))
        hoist(operand, matvec, dominance);

  // Results that are read by others leave the epilogue; the rest exist only in it.
  SmallVector<Value> yielded;
  auto collect = [&](Operation *op) {
    for (Value result : op->getResults())
      if (llvm::any_of(result.getUsers(), [&](Operation *user) { return !taken.contains(user); }))
        yielded.push_back(result);
  };
  collect(matvec);
  llvm::for_each(finishers, collect);

  auto fusedOp =
      MatvecOp::create(builder, matvec.getLoc(), TypeRange(ValueRange(yielded)), matvec.getInput(),
                       matvec.getWeights(), matvec.getSegmentsAttr(), matvec.getOrderAttr(),
                       /*traffic=*/nullptr, /*schedule=*/nullptr, /*prefetch=*/nullptr);
  fusedOp->setDiscardableAttrs(matvec->getDiscardableAttrDictionary());
  fusedOp.getPrologue().takeBody(matvec.getPrologue());

  IRMapping mapping;
  if (matvec.getEpilogue().empty()) {
    SmallVector<Location> locations(matvec.getNumResults(), matvec.getLoc());
    Block *block =
        builder.createBlock(&fusedOp.getEpilogue(), {}, matvec.getResultTypes(), locations);
    mapping.map(matvec.getResults(), block->getArguments());
  } else {
    fusedOp.getEpilogue().takeBody(matvec.getEpilogue());
    Operation *yield = fusedOp.getEpilogue().front().getTerminator();
    mapping.map(matvec.getResults(), yield->getOperands());
    builder.setInsertionPoint(yield);
    yield->erase();
    builder.setInsertionPointToEnd(&fusedOp.getEpilogue().front());
  }
  for (Operation *op : finishers)
    builder.clone(*op, mapping);
  fused::YieldOp::create(builder, matvec.getLoc(), llvm::map_to_vector(yielded, [&](Value value) {
                           return mapping.lookup(value);
                         }));
  for (auto [old, result] : llvm::zip_equal(yielded, fusedOp.getResults()))
    old.replaceAllUsesWith(result);
  for (Operation *op : llvm::reverse(finishers))
    op->erase();
  matvec.erase();
  LDBG() << "fused " << finishers.size() << " operations into " << fusedOp;
  return fusedOp;
}

void FusedFuseEpilogues::runOnOperation() {
  if (failed(place()))
    return signalPassFailure();
  SmallVector<MatvecOp> matvecs;
  getOperation().walk<WalkOrder::PreOrder>([&](MatvecOp op) {
    if (!op.getTraffic() && !op.getSchedule())
      matvecs.push_back(op);
  });
  for (MatvecOp op : matvecs)
    fuse(op);
}
} // namespace
} // namespace sluice
