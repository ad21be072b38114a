// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sluice/Analysis/Traffic.h"

#include "dialects/Plan/Plan.h"

#include "mlir/Transforms/RegionUtils.h"
#include "llvm/ADT/SetVector.h"
#include "llvm/ADT/TypeSwitch.h"

using namespace mlir;
using namespace sluice;

Traffic &Traffic::operator+=(const Traffic &other) {
  weights += other.weights;
  scales += other.scales;
  activations += other.activations;
  keys += other.keys;
  values += other.values;
  written += other.written;
  operations += other.operations;
  operationsPerPosition += other.operationsPerPosition;
  return *this;
}

fused::TrafficAttr Traffic::toAttribute(MLIRContext *context) const {
  return fused::TrafficAttr::get(context, weights, scales, activations, keys, values, written,
                                 operations, operationsPerPosition);
}

Traffic Traffic::fromAttribute(fused::TrafficAttr attribute) {
  return {attribute.getWeights(),     attribute.getScales(),
          attribute.getActivations(), attribute.getKeys(),
          attribute.getValues(),      attribute.getWritten(),
          attribute.getOperations(),  attribute.getOperationsPerPosition()};
}

/// Product of sizes. Types may be written by hand: no shape makes the counts overflow.
static int64_t product(ArrayRef<int64_t> sizes) {
  constexpr int64_t most = int64_t(1) << 46;
  int64_t result = 1;
  for (int64_t size : sizes) {
    if (size <= 0)
      return 0;
    result = result > most / size ? most : result * size;
  }
  return result;
}

/// Bytes of a plain tensor with a static shape; 0 of anything else.
static int64_t tensorBytes(Type type) {
  auto tensor = dyn_cast<RankedTensorType>(type);
  if (!tensor || !tensor.hasStaticShape() || !tensor.getElementType().isIntOrFloat())
    return 0;
  int64_t elements = product(tensor.getShape());
  return llvm::divideCeil(elements * tensor.getElementTypeBitWidth(), 8);
}

MatrixBytes sluice::matrixBytes(Type type) {
  auto quantized = dyn_cast<quantized::QuantizedTensorType>(type);
  if (!quantized)
    return {tensorBytes(type), 0};
  quantized::FormatAttr format = quantized.getFormat();
  int64_t rows = quantized.getRows(), columns = quantized.getColumns();
  MatrixBytes bytes;
  bytes.elements = rows * llvm::divideCeil(columns * format.getBits(), 8);
  // A scale is f16, a zero point an int8 (include/sluice/Formats/Packing.h).
  if (format.isInteger())
    bytes.scales =
        rows * llvm::divideCeil(columns, quantized.getGroup()) * (format.getZeroPoint() ? 3 : 2);
  return bytes;
}

/// Rows and columns of a matrix.
static std::pair<int64_t, int64_t> matrixShape(Type type) {
  if (auto quantized = dyn_cast<quantized::QuantizedTensorType>(type))
    return {quantized.getRows(), quantized.getColumns()};
  auto plain = cast<RankedTensorType>(type);
  return {plain.getDimSize(0), plain.getDimSize(1)};
}

/// Bytes of one position of a sequence in a cache, without what pads tiles.
static int64_t cacheBytes(Operation *from, FlatSymbolRefAttr name) {
  auto cache = SymbolTable::lookupNearestSymbolFrom<model::CacheOp>(from, name);
  if (!cache)
    return 0;
  quantized::CacheType type = cache.getCacheType();
  return type.getHeads() * type.getEncoding().bytesPerVector(type.getHeadDim());
}

/// Bytes read of `value`, which an operation for `tokens` tokens uses, where `user` is one of
/// its uses.
static int64_t readBytes(Value value, OpOperand &use, int64_t tokens) {
  if (Operation *definition = value.getDefiningOp();
      definition && definition->hasTrait<OpTrait::ConstantLike>())
    return 0;
  // Of a rotary table each token reads the row of its position.
  if (auto rotary = dyn_cast<model::RotaryOp>(use.getOwner()); rotary && rotary.getTable() == value)
    return std::min<int64_t>(tensorBytes(value.getType()), tokens * rotary.getHeadDim() * 4);
  return tensorBytes(value.getType());
}

/// Rows of an embedding table for some tokens.
static Traffic gather(Type table, int64_t tokens) {
  int64_t rows = std::max<int64_t>(1, matrixShape(table).first);
  MatrixBytes bytes = matrixBytes(table);
  Traffic traffic;
  traffic.activations = bytes.elements / rows * tokens;
  traffic.scales = bytes.scales / rows * tokens;
  return traffic;
}

static Traffic traffic(fused::EmbeddingOp op) {
  Traffic traffic = gather(op.getTable().getType(), op.getTokens().getType().getDimSize(0));
  traffic.activations += tensorBytes(op.getTokens().getType());
  traffic.written = tensorBytes(op.getType());
  return traffic;
}

static Traffic traffic(fused::MatvecOp op) {
  Traffic traffic;
  int64_t tokens = op.getTokens();
  for (Value weight : op.getWeights()) {
    MatrixBytes bytes = matrixBytes(weight.getType());
    auto [rows, columns] = matrixShape(weight.getType());
    traffic.weights += bytes.elements;
    traffic.scales += bytes.scales;
    traffic.operations += 2 * product({rows, columns, tokens});
  }
  traffic.activations = tensorBytes(op.getInput().getType());
  for (Type type : op.getResultTypes())
    traffic.written += tensorBytes(type);

  // Distinct values from above: the residual may be the input itself.
  SmallPtrSet<Value, 8> seen = {op.getInput()};
  visitUsedValuesDefinedAbove(op->getRegions(), [&](OpOperand *use) {
    Value value = use->get();
    // A parameter that was loaded twice is still one gain.
    if (auto parameter = value.getDefiningOp<model::ParameterOp>())
      for (Value other : seen)
        if (auto loaded = other.getDefiningOp<model::ParameterOp>();
            loaded && loaded.getWeightAttr() == parameter.getWeightAttr())
          return;
    if (seen.insert(value).second)
      traffic.activations += readBytes(value, *use, tokens);
  });
  // Parameters may also be loaded inside.
  for (Region &region : op->getRegions())
    region.walk([&](model::ParameterOp parameter) {
      if (!parameter->use_empty())
        traffic.activations += readBytes(parameter.getResult(), *parameter->use_begin(), tokens);
    });
  op.getEpilogue().walk([&](model::CacheAppendOp append) {
    traffic.written += tokens * cacheBytes(op, append.getCacheAttr());
  });
  return traffic;
}

/// Reads a key and a value, multiplies each query element by one of each.
static Traffic attention(Operation *op, Value query, FlatSymbolRefAttr keys,
                         FlatSymbolRefAttr values, Value positions) {
  auto type = cast<RankedTensorType>(query.getType());
  int64_t tokens = type.getDimSize(0);
  Traffic traffic;
  traffic.activations = tensorBytes(type) + tensorBytes(positions.getType());
  traffic.keys = tokens * cacheBytes(op, keys);
  traffic.values = tokens * cacheBytes(op, values);
  traffic.written = tensorBytes(op->getResult(0).getType());
  traffic.operationsPerPosition = 4 * product(type.getShape());
  return traffic;
}

static Traffic traffic(model::LinearOp op) {
  Traffic traffic;
  auto [rows, columns] = matrixShape(op.getWeight().getType());
  MatrixBytes bytes = matrixBytes(op.getWeight().getType());
  traffic.weights = bytes.elements;
  traffic.scales = bytes.scales;
  traffic.activations = tensorBytes(op.getInput().getType());
  if (op.getBias())
    traffic.activations += tensorBytes(op.getBias().getType());
  traffic.written = tensorBytes(op.getType());
  traffic.operations = 2 * product({rows, columns, op.getInput().getType().getDimSize(0)});
  return traffic;
}

static Traffic traffic(quantized::DequantizeOp op) {
  auto type = op.getInput().getType();
  auto result = op.getResult().getType();
  if (!op->use_empty() && llvm::all_of(op->getUsers(), llvm::IsaPred<model::EmbeddingOp>)) {
    int64_t tokens = 0;
    for (Operation *user : op->getUsers())
      tokens += cast<model::EmbeddingOp>(user).getTokens().getType().getDimSize(0);
    Traffic traffic = gather(type, tokens);
    traffic.written = tokens * (tensorBytes(result) / std::max<int64_t>(1, result.getDimSize(0)));
    traffic.operations = 2 * tokens * result.getDimSize(1);
    return traffic;
  }
  MatrixBytes bytes = matrixBytes(type);
  Traffic traffic;
  traffic.weights = bytes.elements;
  traffic.scales = bytes.scales;
  traffic.written = tensorBytes(result);
  traffic.operations = 2 * product(result.getShape());
  return traffic;
}

/// Operands read, results written.
static Traffic elementwise(Operation *op) {
  Traffic traffic;
  auto first =
      dyn_cast<RankedTensorType>(op->getNumOperands() ? op->getOperand(0).getType() : Type());
  int64_t tokens = first && first.getRank() == 2 ? first.getDimSize(0) : 1;
  SmallPtrSet<Value, 4> seen;
  for (OpOperand &use : op->getOpOperands())
    if (seen.insert(use.get()).second)
      traffic.activations += readBytes(use.get(), use, tokens);
  for (Type type : op->getResultTypes())
    traffic.written += tensorBytes(type);
  return traffic;
}

static Traffic attributeTraffic(std::optional<fused::TrafficAttr> attribute) {
  return attribute ? Traffic::fromAttribute(*attribute) : Traffic();
}

Traffic sluice::computeTraffic(Operation *op) {
  return llvm::TypeSwitch<Operation *, Traffic>(op)
      .Case<fused::EmbeddingOp, fused::MatvecOp, model::LinearOp, quantized::DequantizeOp>(
          [](auto op) { return traffic(op); })
      .Case<fused::AttentionOp, model::AttentionOp>([](auto op) {
        return attention(op, op.getQuery(), op.getKeysAttr(), op.getValuesAttr(),
                         op.getPositions());
      })
      .Case<model::EmbeddingOp>([](auto op) {
        Traffic traffic = gather(op.getTable().getType(), op.getTokens().getType().getDimSize(0));
        traffic.activations += tensorBytes(op.getTokens().getType());
        traffic.written = tensorBytes(op.getType());
        return traffic;
      })
      .Case<fused::SampleOp>([](auto op) { return elementwise(op); })
      .Case<model::CacheAppendOp>([](auto op) {
        Traffic traffic = elementwise(op);
        traffic.written = op.getInput().getType().getDimSize(0) * cacheBytes(op, op.getCacheAttr());
        return traffic;
      })
      .Case<plan::DispatchOp, plan::LaunchOp>(
          [](auto op) { return attributeTraffic(op.getTraffic()); })
      .Case<model::ParameterOp, quantized::QuantizeOp, fused::YieldOp>(
          [](auto) { return Traffic(); })
      .Default([](Operation *op) {
        StringRef dialect = op->getName().getDialectNamespace();
        bool computes = (dialect == "model" || dialect == "arith") && op->getNumResults() &&
                        !op->hasTrait<OpTrait::ConstantLike>();
        return computes ? elementwise(op) : Traffic();
      });
}
