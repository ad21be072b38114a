// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sluice/Analysis/Traffic.h"

#include "dialects/Plan/Plan.h"

#include "llvm/ADT/TypeSwitch.h"

using namespace mlir;
using namespace sluice;
using sluice::traffic::cacheBytes;
using sluice::traffic::elementwise;
using sluice::traffic::gather;
using sluice::traffic::product;
using sluice::traffic::tensorBytes;

static Traffic trafficOf(model::LinearOp op) {
  Traffic traffic;
  MatrixBytes bytes = matrixBytes(op.getWeight().getType());
  traffic.weights = bytes.elements;
  traffic.scales = bytes.scales;
  traffic.activations = tensorBytes(op.getInput().getType());
  if (op.getBias())
    traffic.activations += tensorBytes(op.getBias().getType());
  traffic.written = tensorBytes(op.getType());
  traffic.operations =
      2 * product({op.getType().getDimSize(1), op.getInput().getType().getDimSize(1),
                   op.getInput().getType().getDimSize(0)});
  return traffic;
}

static Traffic trafficOf(quantized::DequantizeOp op) {
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

static Traffic attributeTraffic(std::optional<fused::TrafficAttr> attribute) {
  return attribute ? Traffic::fromAttribute(*attribute) : Traffic();
}

Traffic sluice::computeTraffic(Operation *op) {
  return llvm::TypeSwitch<Operation *, Traffic>(op)
      .Case([](fused::KernelOp kernel) { return kernel.computeTraffic(); })
      .Case<model::LinearOp, quantized::DequantizeOp>([](auto op) { return trafficOf(op); })
      .Case([](model::AttentionOp op) {
        return traffic::attention(op, op.getQuery(), op.getKeysAttr(), op.getValuesAttr(),
                                  op.getPositions(), op.getWindow());
      })
      .Case<model::EmbeddingOp>([](auto op) {
        Traffic traffic = gather(op.getTable().getType(), op.getTokens().getType().getDimSize(0));
        traffic.activations += tensorBytes(op.getTokens().getType());
        traffic.written = tensorBytes(op.getType());
        return traffic;
      })
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
