// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Which steps can be one kernel, as far as its generators decide it.

#include "StepCode.h"

using namespace mlir;
using namespace sluice;
using namespace sluice::device;
using fused::PersistentPlan;
using kernels::KernelInterface;
using llvm::createStringError;
using llvm::Error;
using llvm::Expected;
using llvm::Twine;

Error StepInterface::checkProducts() {
  SmallVector<fused::MatvecOp> products;
  for (const fused::DecoderStep::Layer &layer : step.layers)
    products.append({layer.projections, layer.output, layer.gates, layer.down});
  for (fused::MatvecOp product : products) {
    auto problem = [&](const Twine &what) {
      return createStringError(fused::KernelOp(product).getLabel() + ": " + what);
    };
    FailureOr<SmallVector<fused::PackedPart, 1>> parts = fused::packedParts(product);
    if (failed(parts))
      return problem("a weight that is not packed");
    for (const fused::PackedPart &part : *parts)
      if (auto what = StreamedPart::problem(part.shape))
        return problem(*what);
    if (product.getPrologue().empty())
      continue;
    model::RmsNormOp norm = normOf(product);
    if (norm.getPlusOne())
      return problem("gains of a norm to which 1 is added");
    if (!cast<RankedTensorType>(norm.getGain().getType()).getElementType().isF32())
      return problem("gains of a norm that are not float32");
  }
  fused::DecoderStep::Layer layer = step.layers.front();
  FailureOr<SmallVector<PackedSegment>> rows = kernels::packedSegments(layer.projections),
                                        gates = kernels::packedSegments(layer.gates);
  if (failed(rows) || failed(gates) || rows->size() != 3 || gates->size() != 1 ||
      !gates->front().order.isZip())
    return createStringError("query, key and value, or gate and up rows, are packed in an order "
                             "that such a kernel does not read");
  for (auto [index, segment] : llvm::enumerate(*rows))
    if (segment.order.getFirst() != static_cast<int64_t>(index) || segment.order.isZip() ||
        (segment.order.isPairs() && segment.order.getSecond() != plan.shape.dim))
      return createStringError("rows of query, key and value are packed in an order that such a "
                               "kernel does not read");
  for (Value result : layer.projections.getResults())
    if (cast<RankedTensorType>(result.getType()).getElementTypeBitWidth() !=
        8 * plan.shape.projectionBytes)
      return createStringError("query, key and value are numbers of different types");
  return Error::success();
}

/// What tells operations apart as kernels, but for the encodings of their weights: as if `op` had
/// those of `first`.
static FailureOr<std::string> keyOf(Operation *op, Operation *first) {
  Operation *other = op->clone();
  OpBuilder(op).insert(other);
  if (auto product = dyn_cast<fused::MatvecOp>(other))
    product.getWeightsMutable().assign(cast<fused::MatvecOp>(first).getWeights());
  FailureOr<KernelInterface> found = KernelInterface::get(other);
  FailureOr<std::string> key = failure();
  if (succeeded(found))
    key = found->key();
  other->erase();
  return key;
}

Error StepInterface::checkLayers() {
  SmallVector<std::string> keys;
  SmallVector<Value> table;
  for (auto [number, layer] : llvm::enumerate(step.layers)) {
    for (auto [index, op] : llvm::enumerate(layer.operations())) {
      for (NamedAttribute attribute : llvm::to_vector(op->getDiscardableAttrs()))
        op->removeDiscardableAttr(attribute.getName());
      if (auto product = dyn_cast<fused::MatvecOp>(op))
        product.removePrefetchAttr();
      op->removeAttr("schedule");
      FailureOr<std::string> key = keyOf(op, step.layers.front().operations()[index]);
      if (failed(key))
        return createStringError("an operation's interface");
      if (number == 0)
        keys.push_back(std::move(*key));
      else if (keys[index] != *key)
        return createStringError(cast<fused::KernelOp>(op).getLabel() +
                                 ": its layer differs from the first one");
    }
    SmallVector<Value> read = step.constantsOf(layer);
    constants.insert(read.begin(), read.end());
    caches.push_back(layer.attention.getKeysAttr());
    caches.push_back(layer.attention.getValuesAttr());
    for (model::RotaryOp rotary : rotariesOf(layer.projections))
      if (rotary.getTable() != rotariesOf(step.layers.front().projections).front().getTable())
        return createStringError("rotations by different tables");
    if (layer.attention.getPositions() != positions())
      return createStringError("layers with different positions");
  }
  return Error::success();
}

Expected<StepInterface> StepInterface::get(fused::DecoderStep step,
                                           const fused::PersistentSchedule &schedule,
                                           const fused::GpuDevice &device) {
  Expected<PersistentPlan> plan = PersistentPlan::get(step.shape, schedule, device);
  if (!plan)
    return plan.takeError();
  StepInterface result(std::move(step), std::move(*plan));
  if (Error error = result.checkProducts())
    return std::move(error);
  if (Error error = result.checkLayers())
    return std::move(error);
  return std::move(result);
}
