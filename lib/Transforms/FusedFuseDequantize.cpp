// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sluice/Transforms/Passes.h"

#include "mlir/IR/Remarks.h"
#include "llvm/ADT/TypeSwitch.h"
#include "llvm/Support/DebugLog.h"

#define DEBUG_TYPE "fused-fuse-dequantize"

namespace sluice {
#define GEN_PASS_DEF_FUSEDFUSEDEQUANTIZE
#include "lib/Transforms/Passes.h.inc"

namespace {
using namespace mlir;

/// What a kernel reads for the float matrix `weight`: the quantized one behind it, if dequantizing
/// it loses nothing.
Value lookThroughDequantize(Value weight) {
  auto dequantize = weight.getDefiningOp<quantized::DequantizeOp>();
  if (!dequantize)
    return weight;
  Type element = cast<RankedTensorType>(weight.getType()).getElementType();
  bool exact =
      element.isF32() || element == dequantize.getInput().getType().getEncoding().getElement();
  return exact ? dequantize.getInput() : weight;
}

/// The float type whose range the inputs of a product with `weight` have, as far as the model says:
/// a product with float weights rounds its input to their type; a model whose weights were
/// quantized by the compiler ran in their type before. Blocks of a file say nothing: null.
Type activationElement(Value weight) {
  auto quantize = weight.getDefiningOp<quantized::QuantizeOp>();
  auto quantized = dyn_cast<quantized::QuantizedTensorType>(weight.getType());
  if (!quantized || !quantized.getEncoding().isScaled())
    return quantized ? quantized.getEncoding().getElement()
                     : getElementTypeOrSelf(weight.getType());
  return quantize ? getElementTypeOrSelf(quantize.getInput().getType()) : Type();
}

RankedTensorType withElement(Type type, Type element) {
  return RankedTensorType::get(cast<RankedTensorType>(type).getShape(), element);
}

struct FusedFuseDequantize : impl::FusedFuseDequantizeBase<FusedFuseDequantize> {
  void runOnOperation() override;

private:
  void fuse(model::EmbeddingOp op);
  void fuse(model::AttentionOp op);
  void fuse(model::LinearOp op);
  /// The type that `input` can be stored in so that no product that reads it computes anything
  /// else, narrower than its own; null if there is none.
  Type storageOf(Value input);
  /// What a product reads for `input`.
  Value storedInput(Value input);

  DenseMap<Value, Value> storedInputs;
};

void FusedFuseDequantize::fuse(model::EmbeddingOp op) {
  OpBuilder builder(op);
  auto fusedOp = fused::EmbeddingOp::create(builder, op.getLoc(), op.getResult().getType(),
                                            op.getTokens(), lookThroughDequantize(op.getTable()),
                                            /*active=*/nullptr, /*traffic=*/nullptr,
                                            /*schedule=*/nullptr);
  op.replaceAllUsesWith(fusedOp.getResult());
  op.erase();
}

void FusedFuseDequantize::fuse(model::AttentionOp op) {
  OpBuilder builder(op);
  Type type = op.getQuery().getType(), half = withElement(type, Float16Type::get(&getContext()));
  // Queries that meet f16 (and fp8, which becomes f16) are of that type; others are rounded by
  // attention itself, from float32.
  auto keys = SymbolTable::lookupNearestSymbolFrom<model::CacheOp>(op, op.getKeysAttr());
  using Element = formats::CacheEncoding::Element;
  Element element = keys.getCacheType().getEncoding().element;
  Value query = op.getQuery();
  if (element == Element::F16 || element == Element::E4M3)
    query = arith::TruncFOp::create(builder, op.getLoc(), half, query);
  auto fusedOp = fused::AttentionOp::create(
      builder, op.getLoc(), half, query, /*appended=*/ValueRange(), op.getKeysAttr(),
      op.getValuesAttr(), op.getPositions(), /*pages=*/nullptr, /*starts=*/nullptr,
      /*active=*/nullptr, op.getScaleAttr(), op.getWindowAttr(), op.getSoftCapAttr(),
      /*traffic=*/nullptr,
      /*schedule=*/nullptr);
  // Layers read the f16 result itself, see storedInput.
  Value wide = arith::ExtFOp::create(builder, op.getLoc(), type, fusedOp.getResult());
  op.replaceAllUsesWith(wide);
  op.erase();
}

Type FusedFuseDequantize::storageOf(Value input) {
  // Only what an epilogue computes is stored for its readers: a norm is computed by each of them.
  Operation *source = input.getDefiningOp();
  if (!source || !source->hasTrait<OpTrait::Elementwise>())
    return {};
  Type common;
  for (OpOperand &use : input.getUses()) {
    auto linear = dyn_cast<model::LinearOp>(use.getOwner());
    if (!linear || use.getOperandNumber() != 0)
      return {};
    Type element = activationElement(lookThroughDequantize(linear.getWeight()));
    if (common && element != common)
      return {};
    common = element;
  }
  return isa_and_nonnull<Float16Type, BFloat16Type>(common) ? common : Type();
}

Value FusedFuseDequantize::storedInput(Value input) {
  Operation *source = input.getDefiningOp();
  if (auto extend = dyn_cast_or_null<arith::ExtFOp>(source))
    if (cast<RankedTensorType>(extend.getIn().getType()).getElementType().isF16())
      return extend.getIn();
  Value &stored = storedInputs[input];
  if (stored)
    return stored;
  stored = input;
  if (Type element = storageOf(input)) {
    OpBuilder builder(&getContext());
    builder.setInsertionPointAfter(source);
    stored = arith::TruncFOp::create(builder, source->getLoc(),
                                     withElement(input.getType(), element), input);
  }
  return stored;
}

void FusedFuseDequantize::fuse(model::LinearOp op) {
  OpBuilder builder(op);
  int64_t rows = op.getWeight().getType().getDimSize(0);
  auto matvec = fused::MatvecOp::create(
      builder, op.getLoc(), TypeRange(op.getResult().getType()), storedInput(op.getInput()),
      ValueRange(lookThroughDequantize(op.getWeight())), builder.getDenseI64ArrayAttr(rows),
      /*order=*/nullptr, /*traffic=*/nullptr,
      /*schedule=*/nullptr, /*prefetch=*/nullptr);
  Value result = matvec.getResult(0);
  if (op.getBias())
    result = model::AddBiasOp::create(builder, op.getLoc(), result, op.getBias());
  op.replaceAllUsesWith(result);
  op.erase();
}

void FusedFuseDequantize::runOnOperation() {
  storedInputs.clear();
  // In program order, so that a layer finds the f16 results of the attention before it.
  WalkResult walk = getOperation().walk([&](Operation *op) {
    if (auto linear = dyn_cast<model::LinearOp>(op);
        linear && !linear.getWeight().getType().hasStaticShape()) {
      linear.emitOpError() << "needs a weight of static shape, found "
                           << linear.getWeight().getType();
      return WalkResult::interrupt();
    }
    TypeSwitch<Operation *>(op).Case<model::EmbeddingOp, model::AttentionOp, model::LinearOp>(
        [&](auto layer) { fuse(layer); });
    return WalkResult::advance();
  });
  if (walk.wasInterrupted())
    return signalPassFailure();

  getOperation().walk([](Operation *op) {
    if (!isa<quantized::DequantizeOp, arith::ExtFOp>(op))
      return;
    if (op->use_empty()) {
      op->erase();
      return;
    }
    // Weights on their way to another format are dequantized by the compiler, not by a kernel.
    auto reader = llvm::find_if(op->getUsers(),
                                [](Operation *user) { return !isa<quantized::QuantizeOp>(user); });
    if (isa<quantized::DequantizeOp>(op) && reader != op->user_end()) {
      LDBG() << "left " << *op;
      remark::missed(op->getLoc(), remark::RemarkOpts::name("dequantize-left").category(DEBUG_TYPE))
          << remark::reason("'{0}' reads the dequantized weight",
                            (*reader)->getName().getStringRef().str());
    }
  });
}
} // namespace
} // namespace sluice
