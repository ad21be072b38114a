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
  llvm::SmallSetVector<Operation *, 8> norms;
  getOperation().walk([&](MatvecOp matvec) {
    Operation *norm = matvec.getInput().getDefiningOp();
    // A product's prologue has a row's factor, not one for each head.
    if (!norm || !model::isRowNorm(norm) || !matvec.getPrologue().empty() || matvec.getTraffic() ||
        matvec.getSchedule())
      return;
    if (!norms.insert(norm))
      remark::analysis(matvec.getLoc(),
                       remark::RemarkOpts::name("norm-repeated").category(DEBUG_TYPE))
          << remark::reason("the norm is computed again in each product that reads it");
    Value input = norm->getOperand(0);
    OpBuilder builder(&getContext());
    Block *block = builder.createBlock(&matvec.getPrologue(), {}, input.getType(), norm->getLoc());
    IRMapping mapping;
    mapping.map(input, block->getArgument(0));
    Operation *inside = builder.clone(*norm, mapping);
    fused::YieldOp::create(builder, norm->getLoc(), inside->getResults());
    matvec.getInputMutable().assign(input);
    LDBG() << "fused " << *norm;
  });
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
