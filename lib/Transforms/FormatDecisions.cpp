// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "FormatDecisions.h"

#include "mlir/Dialect/Func/IR/FuncOps.h"

using namespace mlir;
using namespace sluice;
using quantized::LayoutAttr;
using quantized::LayoutKind;
using quantized::QuantizedTensorType;

static constexpr StringLiteral kDecision = "sluice.decision", kReason = "sluice.reason";

std::string sluice::weightName(Value weight) {
  Value stored = weight;
  while (Operation *op = stored.getDefiningOp()) {
    if (auto parameter = dyn_cast<model::ParameterOp>(op))
      return parameter.getWeight().str();
    if (!isa<quantized::QuantizeOp, quantized::DequantizeOp>(op))
      break;
    stored = op->getOperand(0);
  }
  return "a weight";
}

bool sluice::isDecided(Operation *op) { return op->hasAttr(kDecision); }

void sluice::setDecision(Operation *op, StringRef decision, StringRef reason) {
  op->setDiscardableAttr(kDecision, StringAttr::get(op->getContext(), decision));
  op->setDiscardableAttr(kReason, StringAttr::get(op->getContext(), reason));
}

Value sluice::quantizeWeight(Value weight, quantized::EncodingAttr encoding, StringRef reason) {
  OpBuilder builder(weight.getContext());
  builder.setInsertionPointAfterValue(weight);
  auto type = cast<RankedTensorType>(weight.getType());
  auto rows = LayoutAttr::get(weight.getContext(), LayoutKind::Rows, 0);
  auto quantize = quantized::QuantizeOp::create(
      builder, weight.getLoc(),
      QuantizedTensorType::get(weight.getContext(), type.getShape(), encoding, rows), weight);
  setDecision(quantize, encoding.getName(), reason);
  return quantized::DequantizeOp::create(builder, weight.getLoc(), type.clone(builder.getF32Type()),
                                         quantize);
}

void sluice::decideCache(model::CacheOp cache, const formats::CacheChoice &choice,
                         StringRef reason) {
  cache.setType(cache.getCacheType().withEncoding(choice.encoding));
  setDecision(cache, choice.name(), reason);
}

void sluice::rotateKeys(model::AttentionOp attention) {
  auto module = attention->getParentOfType<ModuleOp>();
  int64_t dim = module.lookupSymbol<model::CacheOp>(attention.getKeysAttr().getAttr())
                    .getCacheType()
                    .getHeadDim();
  auto rotated = [&](Operation *user, OpOperand &operand) {
    OpBuilder builder(user);
    operand.set(model::HadamardOp::create(builder, user->getLoc(), operand.get().getType(),
                                          operand.get(), builder.getI64IntegerAttr(dim)));
  };
  rotated(attention, attention.getQueryMutable());
  attention->getParentOfType<func::FuncOp>().walk([&](model::CacheAppendOp append) {
    if (append.getCacheAttr() == attention.getKeysAttr())
      rotated(append, append.getInputMutable());
  });
}
