// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "dialects/Fused/Traffic.h"

#include "dialects/Fused/Fused.h"
#include "dialects/Fused/PreparedInput.h"

#include "mlir/Transforms/RegionUtils.h"

#include <limits>

using namespace mlir;
using namespace sluice;
using namespace sluice::fused;
using namespace sluice::traffic;

Traffic Traffic::at(int64_t positions) const {
  Traffic result = *this;
  int64_t read = positionsRead(positions);
  result.keys *= read;
  result.values *= read;
  result.operationsPerPosition *= read;
  result.window = 0;
  return result;
}

Traffic &Traffic::operator+=(const Traffic &other) {
  assert(!window && !other.window && "different windows have no sum");
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
                                 operations, operationsPerPosition, window);
}

Traffic Traffic::fromAttribute(fused::TrafficAttr attribute) {
  return {attribute.getWeights(),     attribute.getScales(),
          attribute.getActivations(), attribute.getKeys(),
          attribute.getValues(),      attribute.getWritten(),
          attribute.getOperations(),  attribute.getOperationsPerPosition(),
          attribute.getWindow()};
}

int64_t traffic::product(ArrayRef<int64_t> sizes) {
  constexpr int64_t most = int64_t(1) << 46;
  int64_t result = 1;
  for (int64_t size : sizes) {
    if (size <= 0)
      return 0;
    result = result > most / size ? most : result * size;
  }
  return result;
}

int64_t traffic::tensorBytes(Type type) {
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
  const formats::Encoding &encoding = quantized.getEncoding().getValue();
  int64_t rows = quantized.getRows(), columns = quantized.getColumns();
  MatrixBytes bytes;
  bytes.elements = rows * encoding.elementBytesPerRow(columns);
  bytes.scales = rows * encoding.scaleBytesPerRow(columns);
  return bytes;
}

/// Rows and columns of a matrix.
static std::pair<int64_t, int64_t> matrixShape(Type type) {
  if (auto quantized = dyn_cast<quantized::QuantizedTensorType>(type))
    return {quantized.getRows(), quantized.getColumns()};
  auto plain = cast<RankedTensorType>(type);
  return {plain.getDimSize(0), plain.getDimSize(1)};
}

int64_t traffic::cacheBytes(Operation *from, FlatSymbolRefAttr name) {
  auto cache = SymbolTable::lookupNearestSymbolFrom<model::CacheOp>(from, name);
  if (!cache)
    return 0;
  quantized::CacheType type = cache.getCacheType();
  return type.getHeads() * type.getEncoding().bytesPerVector(type.getHeadDim());
}

int64_t traffic::readBytes(OpOperand &use, int64_t tokens) {
  Value value = use.get();
  if (Operation *definition = value.getDefiningOp();
      definition && definition->hasTrait<OpTrait::ConstantLike>())
    return 0;
  // Of a rotary table each token reads the row of its position.
  if (auto rotary = dyn_cast<model::RotaryOp>(use.getOwner()); rotary && rotary.getTable() == value)
    return std::min<int64_t>(tensorBytes(value.getType()), tokens * rotary.getHeadDim() * 4);
  // Of a page table each appended token reads an entry. The eighth of a byte that attention reads
  // of it for a position is not counted.
  if (auto append = dyn_cast<model::CacheAppendOp>(use.getOwner());
      append && append.getPages() == value)
    return std::min<int64_t>(tensorBytes(value.getType()), tokens * 4);
  return tensorBytes(value.getType());
}

Traffic traffic::gather(Type table, int64_t tokens) {
  int64_t rows = std::max<int64_t>(1, matrixShape(table).first);
  MatrixBytes bytes = matrixBytes(table);
  Traffic traffic;
  traffic.activations = bytes.elements / rows * tokens;
  traffic.scales = bytes.scales / rows * tokens;
  return traffic;
}

Traffic traffic::attention(Operation *op, Value query, FlatSymbolRefAttr keys,
                           FlatSymbolRefAttr values, Value positions,
                           std::optional<int64_t> window) {
  auto type = cast<RankedTensorType>(query.getType());
  int64_t tokens = type.getDimSize(0);
  Traffic traffic;
  traffic.activations = tensorBytes(type) + tensorBytes(positions.getType());
  traffic.keys = tokens * cacheBytes(op, keys);
  traffic.values = tokens * cacheBytes(op, values);
  traffic.written = tensorBytes(op->getResult(0).getType());
  traffic.operationsPerPosition = 4 * product(type.getShape());
  // No context is longer.
  traffic.window = std::min<int64_t>(window.value_or(0), std::numeric_limits<int32_t>::max());
  return traffic;
}

Traffic traffic::elementwise(Operation *op) {
  Traffic traffic;
  auto first =
      dyn_cast<RankedTensorType>(op->getNumOperands() ? op->getOperand(0).getType() : Type());
  int64_t tokens = first && first.getRank() == 2 ? first.getDimSize(0) : 1;
  SmallPtrSet<Value, 4> seen;
  for (OpOperand &use : op->getOpOperands())
    if (seen.insert(use.get()).second)
      traffic.activations += readBytes(use, tokens);
  for (Type type : op->getResultTypes())
    traffic.written += tensorBytes(type);
  return traffic;
}

//===----------------------------------------------------------------------===//
// Kernels
//===----------------------------------------------------------------------===//

Traffic EmbeddingOp::computeTraffic() {
  Traffic traffic = gather(getTable().getType(), getTokens().getType().getDimSize(0));
  traffic.activations += tensorBytes(getTokens().getType());
  traffic.written = tensorBytes(getType());
  return traffic;
}

/// Adds what a kernel's regions read besides `seen`, the kernel's operands, and what they append to
/// caches.
static void addRegions(Operation *kernel, int64_t tokens, SmallPtrSet<Value, 8> seen,
                       Traffic &traffic) {
  // Distinct values from above: the residual may be the input itself.
  visitUsedValuesDefinedAbove(kernel->getRegions(), [&](OpOperand *use) {
    Value value = use->get();
    // A parameter that was loaded twice is still one gain.
    if (auto parameter = value.getDefiningOp<model::ParameterOp>())
      for (Value other : seen)
        if (auto loaded = other.getDefiningOp<model::ParameterOp>();
            loaded && loaded.getWeightAttr() == parameter.getWeightAttr())
          return;
    if (seen.insert(value).second)
      traffic.activations += readBytes(*use, tokens);
  });
  // Parameters may also be loaded inside.
  for (Region &region : kernel->getRegions()) {
    region.walk([&](model::ParameterOp parameter) {
      if (!parameter->use_empty())
        traffic.activations += readBytes(*parameter->use_begin(), tokens);
    });
    region.walk([&](model::CacheAppendOp append) {
      traffic.written += tokens * cacheBytes(kernel, append.getCacheAttr());
    });
  }
}

/// What a product reads of its weights, writes and computes; its input is not among it.
static Traffic productTraffic(ProductOp op, SmallPtrSet<Value, 8> seen) {
  Traffic traffic;
  int64_t tokens = op.getTokens();
  for (Value weight : op.getWeights()) {
    MatrixBytes bytes = matrixBytes(weight.getType());
    auto [rows, columns] = matrixShape(weight.getType());
    traffic.weights += bytes.elements;
    traffic.scales += bytes.scales;
    traffic.operations += 2 * product({rows, columns, tokens});
  }
  for (Type type : op->getResultTypes())
    traffic.written += tensorBytes(type);
  addRegions(op, tokens, std::move(seen), traffic);
  return traffic;
}

Traffic MatvecOp::computeTraffic() {
  Traffic traffic = productTraffic(*this, {getInput()});
  traffic.activations += tensorBytes(getInput().getType());
  return traffic;
}

Traffic MatmulOp::computeTraffic() {
  Traffic traffic = productTraffic(*this, {});
  traffic.activations += preparedBytes(getInput().getType());
  return traffic;
}

Traffic PrepareOp::computeTraffic() {
  Traffic traffic;
  traffic.activations = tensorBytes(getInput().getType());
  traffic.written = preparedBytes(getType());
  addRegions(*this, getTokens(), {getInput()}, traffic);
  return traffic;
}

Traffic AppendOp::computeTraffic() {
  Traffic traffic;
  SmallPtrSet<Value, 8> seen;
  for (Value value : {Value(getQuery()), Value(getNewKeys()), Value(getNewValues())}) {
    traffic.activations += tensorBytes(value.getType());
    seen.insert(value);
  }
  traffic.written = tensorBytes(getType());
  addRegions(*this, getTokens(), std::move(seen), traffic);
  return traffic;
}

Traffic LastRowOp::computeTraffic() {
  Traffic traffic;
  traffic.activations = traffic.written = tensorBytes(getType());
  return traffic;
}

Traffic AttentionOp::computeTraffic() {
  Traffic traffic = traffic::attention(*this, getQuery(), getKeysAttr(), getValuesAttr(),
                                       getPositions(), getWindow());
  // Tokens of one sequence share what is read.
  if (getActive()) {
    traffic.keys = cacheBytes(*this, getKeysAttr());
    traffic.values = cacheBytes(*this, getValuesAttr());
  }
  for (Value row : getAppended())
    traffic.activations += tensorBytes(row.getType());
  SmallPtrSet<Value, 8> seen;
  seen.insert_range(getOperands());
  addRegions(*this, getTokens(), std::move(seen), traffic);
  return traffic;
}

Traffic RowsOp::computeTraffic() {
  Traffic traffic;
  for (Type type : getResultTypes())
    traffic.written += tensorBytes(type);
  addRegions(*this, getTokens(), {}, traffic);
  return traffic;
}

Traffic SampleOp::computeTraffic() { return elementwise(*this); }
