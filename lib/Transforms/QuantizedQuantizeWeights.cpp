// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sluice/Transforms/Passes.h"

#include "mlir/IR/Remarks.h"
#include "llvm/Support/DebugLog.h"

#define DEBUG_TYPE "quantized-quantize-weights"

namespace sluice {
#define GEN_PASS_DEF_QUANTIZEDQUANTIZEWEIGHTS
#include "lib/Transforms/Passes.h.inc"

namespace {
using namespace mlir;
using quantized::FormatAttr;
using quantized::LayoutAttr;
using quantized::LayoutKind;
using quantized::QuantizedTensorType;

/// A format for one weight and why it was taken.
struct Decision {
  FormatAttr format;
  std::string reason;
};

/// The format that a weight of `columns` columns gets when `asked` is what the user wants.
Decision decide(FormatAttr asked, int64_t columns) {
  int64_t group = asked.getGroup();
  if (!asked.isInteger() || group == FormatAttr::kChannel || columns % group == 0)
    return {asked, "asked for"};
  MLIRContext *context = asked.getContext();
  std::string misfit = llvm::formatv("{0} columns are not a multiple of {1}", columns, group);
  for (int64_t smaller = group / 2; smaller >= 32; smaller /= 2)
    if (columns % smaller == 0)
      return {FormatAttr::get(context, asked.getElement(), smaller, asked.getZeroPoint()), misfit};
  return {FormatAttr::fromName(context, "f16"), misfit + ", nor of any smaller group"};
}

struct QuantizedQuantizeWeights : impl::QuantizedQuantizeWeightsBase<QuantizedQuantizeWeights> {
  using QuantizedQuantizeWeightsBase::QuantizedQuantizeWeightsBase;
  void runOnOperation() override;

private:
  /// The float matrix that takes the place of `weight`: `weight` itself if its format stays.
  Value quantize(Value weight, FormatAttr asked);
};

Value QuantizedQuantizeWeights::quantize(Value weight, FormatAttr asked) {
  auto dequantize = weight.getDefiningOp<quantized::DequantizeOp>();
  Value stored = dequantize ? Value(dequantize.getInput()) : weight;
  Operation *source = stored.getDefiningOp();
  if (source && (isa<quantized::QuantizeOp>(source) || source->hasAttr("sluice.decision")))
    return weight; // Decided by an earlier run or by hand.
  if (!isa_and_nonnull<model::ParameterOp>(source)) {
    remark::missed(weight.getLoc(),
                   remark::RemarkOpts::name("not-a-parameter").category(DEBUG_TYPE))
        << remark::reason("a weight that is computed cannot be quantized");
    return weight;
  }
  auto type = cast<RankedTensorType>(weight.getType());
  if (!type.hasStaticShape())
    return weight;
  auto storedType = dyn_cast<QuantizedTensorType>(stored.getType());
  FormatAttr present = storedType ? storedType.getFormat()
                                  : FormatAttr::get(&getContext(), type.getElementType(),
                                                    FormatAttr::kChannel, false);
  Decision decision = decide(asked, type.getDimSize(1));
  if (decision.format != asked)
    remark::analysis(weight.getLoc(), remark::RemarkOpts::name("other-format").category(DEBUG_TYPE))
        << remark::reason("{0} instead of {1}: {2}", decision.format.getName(), asked.getName(),
                          decision.reason);
  OpBuilder builder(&getContext());
  auto record = [&](Operation *op) {
    op->setDiscardableAttr("sluice.decision", builder.getStringAttr(decision.format.getName()));
    op->setDiscardableAttr("sluice.reason", builder.getStringAttr(decision.reason));
  };
  if (decision.format == present) {
    // Not what was asked for, so the reason is worth knowing even though nothing changes.
    if (decision.format != asked)
      record(source);
    return weight;
  }

  builder.setInsertionPointAfterValue(weight);
  auto rows = LayoutAttr::get(&getContext(), LayoutKind::Rows, 0);
  auto quantize = quantized::QuantizeOp::create(
      builder, weight.getLoc(),
      QuantizedTensorType::get(&getContext(), type.getShape(), decision.format, rows), weight);
  record(quantize);
  LDBG() << decision.format.getName() << " for " << *source;
  return quantized::DequantizeOp::create(builder, weight.getLoc(), type.clone(builder.getF32Type()),
                                         quantize);
}

void QuantizedQuantizeWeights::runOnOperation() {
  if (scheme == "keep")
    return markAllAnalysesPreserved();
  FormatAttr asked = FormatAttr::fromName(&getContext(), scheme);
  if (!asked) {
    emitError(getOperation().getLoc()) << "unknown weight scheme '" << scheme
                                       << "': expected keep, f16, bf16, f32, or int8 or int4 with "
                                          "-g32, -g64, -g128, -g256 or -channel, and "
                                          "optionally -zp";
    return signalPassFailure();
  }
  DenseMap<Value, Value> replacements;
  getOperation().walk([&](model::LinearOp linear) {
    Value weight = linear.getWeight();
    auto [entry, isNew] = replacements.try_emplace(weight);
    if (isNew)
      entry->second = quantize(weight, asked);
    linear.getWeightMutable().assign(entry->second);
  });
}
} // namespace
} // namespace sluice
