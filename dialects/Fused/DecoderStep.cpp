// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Which steps can be one kernel: their operations are recognised one after another.

#include "dialects/Fused/PersistentPlan.h"

#include "sluice/Formats/Records.h"

#include "mlir/Dialect/Arith/IR/Arith.h"
#include "llvm/ADT/STLExtras.h"
#include "llvm/ADT/SetVector.h"

#include <set>

using namespace mlir;
using namespace sluice;
using namespace sluice::fused;
using llvm::createStringError;
using llvm::Error;
using llvm::Expected;
using llvm::Twine;

bool fused::isInRecords(Type weight) {
  formats::Encoding encoding = quantized::encodingOf(weight);
  auto type = dyn_cast<quantized::QuantizedTensorType>(weight);
  if (type && type.getLayout())
    return type.getLayout().getKind() == quantized::LayoutKind::Records;
  // Before they are packed, those that have no other layout.
  return !encoding.isPlainInteger() && formats::RecordShape::problem(encoding).empty();
}

namespace {

std::string labelOf(Operation *op) {
  auto kernel = dyn_cast<KernelOp>(op);
  std::string label = kernel ? kernel.getLabel() : std::string();
  return op->getName().getStringRef().str() + (label.empty() ? "" : " of " + label);
}

Error problem(Operation *op, const Twine &what) {
  return createStringError(labelOf(op) + ": " + what);
}

int64_t rowsOf(Value weight) {
  auto quantized = dyn_cast<quantized::QuantizedTensorType>(weight.getType());
  return quantized ? quantized.getRows() : cast<RankedTensorType>(weight.getType()).getDimSize(0);
}

/// The operations of a step in their order.
class Matcher {
public:
  explicit Matcher(Block &step) {
    for (Operation &op : step)
      if (isa<KernelOp>(op))
        kernels.push_back(&op);
  }

  Expected<DecoderStep> match() {
    if (Error error = take(step.embedding, "an embedding"))
      return std::move(error);
    if (step.embedding.getResult().getType().getDimSize(0) != 1)
      return problem(step.embedding, "a step of several tokens");
    Value stream = step.embedding.getResult();
    while (remaining() > 1 && isa_and_present<AttentionOp>(peek(1)))
      if (Error error = takeLayer(stream))
        return createStringError("layer " + Twine(step.layers.size()) + ": " +
                                 llvm::toString(std::move(error)));
    if (step.layers.empty())
      return createStringError("the step has no layers of a projection, attention and an MLP");
    if (Error error = take(step.head, "the head"))
      return std::move(error);
    if (Error error = checkNormed(step.head, stream))
      return std::move(error);
    if (!step.head.getEpilogue().empty())
      return problem(step.head, "logits that are computed further");
    // What chooses the token has a kernel of its own.
    if (remaining() && !isa<SampleOp>(peek()))
      return problem(peek(), "comes behind the head");
    if (Error error = findShape())
      return std::move(error);
    return std::move(step);
  }

private:
  size_t remaining() const { return kernels.size() - next; }
  Operation *peek(size_t ahead = 0) const {
    return ahead < remaining() ? kernels[next + ahead] : nullptr;
  }

  template <typename Op> Error take(Op &into, const char *what) {
    Operation *op = peek();
    if (!op)
      return createStringError("the step ends where " + Twine(what) + " is expected");
    into = dyn_cast<Op>(op);
    if (!into)
      return problem(op, "where " + Twine(what) + " is expected");
    ++next;
    return Error::success();
  }

  /// That a product's input is the stream, normed by its root mean square.
  Error checkNormed(MatvecOp op, Value stream) {
    if (op.getInput() != stream)
      return problem(op, "its input is not the residual stream");
    if (op.getPrologue().empty())
      return problem(op, "its input is not normed");
    Block &body = op.getPrologue().front();
    auto norm = dyn_cast<model::RmsNormOp>(body.front());
    if (!norm || norm.getHeadDim() || body.getOperations().size() != 2 ||
        norm.getInput() != body.getArgument(0))
      return problem(op,
                     "its prologue is more than a norm by the root mean square, which alone can "
                     "be applied to the sums");
    return Error::success();
  }

  /// That a product is added to the stream, and nothing else.
  Error checkAdded(MatvecOp op, Value stream) {
    if (!op.getPrologue().empty())
      return problem(op, "has a prologue");
    auto add = op.getEpilogue().empty() ? arith::AddFOp()
                                        : dyn_cast<arith::AddFOp>(op.getEpilogue().front().front());
    bool plain = add && op.getEpilogue().front().getOperations().size() == 2 &&
                 op.getEpilogue().getNumArguments() == 1;
    if (plain) {
      Value sum = op.getEpilogue().getArgument(0), lhs = add.getLhs(), rhs = add.getRhs();
      plain = (lhs == sum && rhs == stream) || (lhs == stream && rhs == sum);
    }
    if (!plain)
      return problem(op,
                     "more happens to its sums than that they are added to the residual stream");
    return Error::success();
  }

  Error takeLayer(Value &stream) {
    DecoderStep::Layer layer;
    if (Error error = take(layer.projections, "a layer's projections"))
      return error;
    if (Error error = checkNormed(layer.projections, stream))
      return error;
    if (Error error = take(layer.attention, "attention"))
      return error;
    auto isProjection = [&](Value value) {
      return value.getDefiningOp() == layer.projections.getOperation();
    };
    if (layer.projections.getSegments().size() != 3 || !isProjection(layer.attention.getQuery()) ||
        !llvm::all_of(layer.attention.getAppended(), isProjection))
      return problem(layer.attention, "query, key and value do not come from one product");
    if (Error error = take(layer.output, "the product behind attention"))
      return error;
    if (layer.output.getInput() != layer.attention.getResult())
      return problem(layer.output, "its input is not attention's result");
    if (Error error = checkAdded(layer.output, stream))
      return error;
    stream = layer.output.getResult(0);
    if (Error error = take(layer.gates, "the MLP's first product"))
      return error;
    if (Error error = checkNormed(layer.gates, stream))
      return error;
    if (layer.gates.getSegments().size() != 2 || layer.gates.getNumResults() != 1)
      return problem(layer.gates, "the MLP has no gate");
    if (Error error = take(layer.down, "the MLP's second product"))
      return error;
    if (layer.down.getInput() != layer.gates.getResult(0))
      return problem(layer.down, "its input is not what the product before it computes");
    if (Error error = checkAdded(layer.down, stream))
      return error;
    stream = layer.down.getResult(0);
    step.layers.push_back(layer);
    return Error::success();
  }

  /// Units of a weight of `op`, if it has such as can be streamed.
  static Expected<WeightUnit> unitOf(MatvecOp op, Value weight) {
    formats::Encoding encoding = quantized::encodingOf(weight.getType());
    if (isInRecords(weight.getType()))
      return WeightUnit::ofRecord(encoding);
    bool isHalf = !encoding.isScaled() && encoding.bits() == 16,
         isInteger = encoding.isPlainInteger() && !encoding.hasZeroPoint() &&
                     encoding.scale == formats::Encoding::Scale::F16 &&
                     encoding.group == PersistentPlan::kGroup;
    if (!isHalf && !isInteger)
      return problem(op, "weights of " + encoding.name() +
                             ", expected f16, bf16, int8-g128, int4-g128 or a layout of records");
    return WeightUnit::ofGroup(encoding.bits());
  }

  /// Units of a product whose weights are all alike.
  static Error setUnit(MatvecOp op, WeightUnit &unit) {
    for (Value weight : op.getWeights()) {
      Expected<WeightUnit> found = unitOf(op, weight);
      if (!found)
        return found.takeError();
      if (unit.bytes && !(unit == *found))
        return problem(op, "weights of different formats");
      unit = *found;
    }
    return Error::success();
  }

  /// Divides query, key and value wherever some layer has another weight.
  Error divideProjections() {
    std::set<int64_t> ends;
    for (DecoderStep::Layer &layer : step.layers) {
      std::set<int64_t> ofSegments;
      int64_t end = 0;
      for (int64_t rows : layer.projections.getSegments())
        ofSegments.insert(end += rows);
      end = 0;
      for (Value weight : layer.projections.getWeights()) {
        end += rowsOf(weight);
        if (!ofSegments.contains(end))
          return problem(layer.projections, "a weight that ends within query, key or value");
        ends.insert(end);
      }
    }
    int64_t begin = 0;
    for (int64_t end : ends)
      step.shape.projections.push_back((end - std::exchange(begin, end)) / step.shape.heads);
    return Error::success();
  }

  /// Finds which weights the layers have.
  Error findKinds() {
    DecoderShape &shape = step.shape;
    if (Error error = divideProjections())
      return error;
    for (DecoderStep::Layer &layer : step.layers) {
      DecoderShape::Weights weights;
      for (size_t number = 0; number < shape.projections.size(); ++number) {
        size_t weight = step.weightOf(layer, number).first;
        Expected<WeightUnit> unit =
            unitOf(layer.projections, layer.projections.getWeights()[weight]);
        if (!unit)
          return unit.takeError();
        weights.projections.push_back(*unit);
      }
      for (auto [product, unit] :
           {std::pair(layer.output, &weights.output), std::pair(layer.gates, &weights.gates),
            std::pair(layer.down, &weights.down)})
        if (Error error = setUnit(product, *unit))
          return error;
      auto known = llvm::find(shape.kinds, weights);
      shape.kindOf.push_back(known - shape.kinds.begin());
      if (known == shape.kinds.end())
        shape.kinds.push_back(std::move(weights));
    }
    return Error::success();
  }

  Error findShape() {
    DecoderShape &shape = step.shape;
    DecoderStep::Layer first = step.layers.front();
    shape.width = step.embedding.getResult().getType().getDimSize(1);
    shape.layers = step.layers.size();
    shape.vocabulary = llvm::sum_of(step.head.getSegments());
    shape.inner = first.gates.getSegments()[0];
    for (DecoderStep::Layer &layer : step.layers) {
      int64_t pieceBytes = 0, positions = formats::cacheTile;
      formats::CacheShape keys, values;
      for (auto [symbol, cache] : {std::pair(layer.attention.getKeysAttr(), &keys),
                                   std::pair(layer.attention.getValuesAttr(), &values)}) {
        auto found = SymbolTable::lookupNearestSymbolFrom<model::CacheOp>(layer.attention, symbol);
        if (!found)
          return problem(layer.attention, "an unknown cache");
        *cache = found.getCacheType().getShapeInfo();
      }
      if (values.encoding.isInteger())
        positions = formats::cacheBlock;
      pieceBytes = positions / formats::cacheTile * (keys.tileBytes() + values.tileBytes());
      if (!shape.pieceBytes) {
        shape.projectionBytes = cast<RankedTensorType>(layer.projections.getResult(0).getType())
                                    .getElementTypeBitWidth() /
                                8;
        AttentionShape attention;
        attention.keys = keys;
        shape.queryBytes = 2 * attention.queryRow();
        shape.heads = keys.heads;
        shape.dim = keys.dim;
        shape.queryHeads = layer.attention.getQuery().getType().getDimSize(1) / keys.dim;
        shape.piecePositions = positions;
        shape.pieceBytes = pieceBytes;
      }
      if (keys.heads != shape.heads || keys.dim != shape.dim || pieceBytes != shape.pieceBytes ||
          positions != shape.piecePositions ||
          layer.gates.getSegments() != first.gates.getSegments() ||
          layer.projections.getSegments() != first.projections.getSegments())
        return problem(layer.attention, "its layer differs from the first one");
    }
    if (Error error = findKinds())
      return error;
    for (const DecoderStep::Layer &layer : step.layers)
      if (step.constantsOf(layer).size() != step.constantsOf(first).size())
        return problem(layer.attention, "its layer differs from the first one");
    llvm::SmallBitVector common = step.commonConstants();
    shape.layerPointers = common.size() - common.count() + 2; // and its caches
    return Error::success();
  }

  SmallVector<Operation *> kernels;
  size_t next = 0;
  DecoderStep step;
};

} // namespace

std::pair<size_t, int64_t> DecoderStep::weightOf(const Layer &layer, size_t number) const {
  int64_t before = 0;
  for (int64_t rows : ArrayRef(shape.projections).take_front(number))
    before += rows * shape.heads;
  for (auto [weight, value] : llvm::enumerate(MatvecOp(layer.projections).getWeights())) {
    int64_t rows = rowsOf(value);
    if (before < rows)
      return {weight, before};
    before -= rows;
  }
  llvm_unreachable("a part behind all weights");
}

llvm::SmallVector<Value> DecoderStep::constantsOf(const Layer &layer) const {
  llvm::SmallVector<Value> constants;
  for (size_t number = 0; number < shape.projections.size(); ++number)
    constants.push_back(MatvecOp(layer.projections).getWeights()[weightOf(layer, number).first]);
  llvm::SetVector<Value> others;
  for (Operation *op : layer.operations())
    op->walk<WalkOrder::PreOrder>([&](Operation *inner) {
      for (Value operand : inner->getOperands())
        if (operand.getDefiningOp<model::ParameterOp>() && !llvm::is_contained(constants, operand))
          others.insert(operand);
    });
  llvm::append_range(constants, others);
  return constants;
}

llvm::SmallBitVector DecoderStep::commonConstants() const {
  SmallVector<Value> ofFirst = constantsOf(layers.front());
  llvm::SmallBitVector common(ofFirst.size(), true);
  for (const Layer &layer : layers)
    for (auto [index, value] : llvm::enumerate(constantsOf(layer)))
      if (value != ofFirst[index])
        common.reset(index);
  return common;
}

Expected<DecoderStep> DecoderStep::match(Block &step) { return Matcher(step).match(); }
