// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "dialects/Model/Semantics.h"
#include "sluice/Transforms/Passes.h"

#include "mlir/IR/Remarks.h"
#include "llvm/ADT/SetVector.h"
#include "llvm/Support/DebugLog.h"

#define DEBUG_TYPE "fused-fuse-prologues"

namespace sluice {
#define GEN_PASS_DEF_FUSEDFUSEPROLOGUES
#include "lib/Transforms/Passes.h.inc"

namespace {
using namespace mlir;
using fused::MatvecOp;

struct FusedFusePrologues : impl::FusedFuseProloguesBase<FusedFusePrologues> {
  void runOnOperation() override;
};

void FusedFusePrologues::runOnOperation() {
  llvm::SmallSetVector<Operation *, 8> norms, others;
  getOperation().walk([&](MatvecOp matvec) {
    if (!matvec.getPrologue().empty() || matvec.getTraffic() || matvec.getSchedule())
      return;
    // A norm, a reorder, or a reorder of a norm or of what is stored as f16: the last one first.
    SmallVector<Operation *, 2> fused;
    Value input = matvec.getInput();
    auto takeOther = [&](Operation *op) {
      others.insert(op);
      fused.push_back(op);
      input = op->getOperand(0);
    };
    if (auto reorder = input.getDefiningOp<model::ReorderOp>()) {
      takeOther(reorder);
      if (auto extend = input.getDefiningOp<arith::ExtFOp>())
        takeOther(extend);
    }
    // A product's prologue has a row's factor, not one for each head.
    if (Operation *norm = input.getDefiningOp(); norm && model::isRowNorm(norm)) {
      if (!norms.insert(norm))
        remark::analysis(matvec.getLoc(),
                         remark::RemarkOpts::name("norm-repeated").category(DEBUG_TYPE))
            << remark::reason("the norm is computed again in each product that reads it");
      fused.push_back(norm);
      input = norm->getOperand(0);
    }
    if (fused.empty())
      return;
    OpBuilder builder(&getContext());
    Block *block =
        builder.createBlock(&matvec.getPrologue(), {}, input.getType(), fused.back()->getLoc());
    IRMapping mapping;
    mapping.map(input, block->getArgument(0));
    for (Operation *op : llvm::reverse(fused)) {
      builder.clone(*op, mapping);
      LDBG() << "fused " << *op;
    }
    fused::YieldOp::create(builder, fused.front()->getLoc(),
                           mapping.lookup(fused.front()->getResult(0)));
    matvec.getInputMutable().assign(input);
  });
  // Readers come before what they read.
  for (Operation *other : others)
    if (other->use_empty())
      other->erase();
  for (Operation *norm : norms) {
    if (norm->use_empty()) {
      norm->erase();
      continue;
    }
    remark::missed(norm->getLoc(), remark::RemarkOpts::name("norm-left").category(DEBUG_TYPE))
        << remark::reason("'{0}' reads the norm too",
                          (*norm->user_begin())->getName().getStringRef().str());
  }
}
} // namespace
} // namespace sluice
