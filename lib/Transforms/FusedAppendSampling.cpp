// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sluice/Transforms/Passes.h"

#include "sluice-runtime/SamplingWords.h"
#include "sluice/Target/LoadTarget.h"

#include "mlir/Dialect/Func/IR/FuncOps.h"
#include "llvm/Support/DebugLog.h"

#define DEBUG_TYPE "fused-append-sampling"

namespace sluice {
#define GEN_PASS_DEF_FUSEDAPPENDSAMPLING
#include "lib/Transforms/Passes.h.inc"

namespace {
using namespace mlir;

struct FusedAppendSampling : impl::FusedAppendSamplingBase<FusedAppendSampling> {
  using FusedAppendSamplingBase::FusedAppendSamplingBase;

  void runOnOperation() override {
    FailureOr<TargetDescription> description = loadTarget(getOperation(), target);
    if (failed(description))
      return signalPassFailure();
    auto decode = getOperation().lookupSymbol<func::FuncOp>("decode");
    if (!description->isGpu() || !decode || !decode.getBody().hasOneBlock())
      return markAllAnalysesPreserved();
    if (!decode.getOps<fused::SampleOp>().empty()) {
      LDBG() << "@decode samples already";
      return markAllAnalysesPreserved();
    }
    Operation *end = decode.getBody().front().getTerminator();
    auto logits = end->getNumOperands() == 1
                      ? dyn_cast<TypedValue<RankedTensorType>>(end->getOperand(0))
                      : TypedValue<RankedTensorType>();
    // What is no step of decoding is the business of plan-assign-buffers.
    if (!logits || logits.getType().getRank() != 2 || !logits.getType().getElementType().isF32())
      return markAllAnalysesPreserved();

    OpBuilder builder(end);
    Location loc = NameLoc::get(builder.getStringAttr("sampling"));
    int64_t rows = logits.getType().getDimSize(0);
    Type words = RankedTensorType::get({rows, sampling::kWords}, builder.getI32Type());
    Type tokens = RankedTensorType::get({rows}, builder.getI32Type());
    if (failed(decode.insertArgument(decode.getNumArguments(), words, /*argAttrs=*/{}, loc)) ||
        failed(decode.insertResult(1, tokens, /*resultAttrs=*/{})))
      return signalPassFailure();
    auto sample = fused::SampleOp::create(builder, loc, tokens, logits,
                                          decode.getArguments().back(), /*traffic=*/nullptr,
                                          /*schedule=*/nullptr);
    end->insertOperands(1, sample.getResult());
  }
};
} // namespace
} // namespace sluice
