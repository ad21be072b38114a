// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sluice/Report/Report.h"

#include "dialects/Quantized/Quantized.h"

#include "mlir/Dialect/Func/IR/FuncOps.h"

using namespace mlir;
using namespace sluice;
using namespace sluice::report;

StringRef report::timeClassName(TimeClass timeClass) {
  static constexpr llvm::StringLiteral names[kTimeClasses] = {
      "weights", "scales", "keys", "values", "activations", "arithmetic", "boundaries"};
  return names[static_cast<size_t>(timeClass)];
}

std::optional<int64_t> report::layerOf(StringRef name) {
  for (StringRef prefix : {"blk.", "cache.k.", "cache.v."}) {
    size_t at = name.find(prefix);
    int64_t layer;
    if (at != StringRef::npos && !name.substr(at + prefix.size()).consumeInteger(10, layer))
      return layer;
  }
  return std::nullopt;
}

std::array<std::pair<double, double>, kTimeClasses> Kernel::byClass() const {
  std::array<std::pair<double, double>, kTimeClasses> result{};
  auto at = [&](TimeClass timeClass) -> auto & { return result[static_cast<size_t>(timeClass)]; };
  // The time of reading is divided as the bytes are.
  auto divide = [](double seconds, std::initializer_list<std::pair<double *, int64_t>> shares) {
    double bytes = 0;
    for (auto [target, part] : shares)
      bytes += static_cast<double>(part);
    for (auto [target, part] : shares)
      *target += bytes > 0 ? seconds * static_cast<double>(part) / bytes : 0;
  };
  divide(time.fixed.memory,
         {{&at(TimeClass::Weights).first, traffic.weights},
          {&at(TimeClass::Scales).first, traffic.scales},
          {&at(TimeClass::Activations).first, traffic.activations + traffic.written}});
  divide(time.perPosition.memory, {{&at(TimeClass::Keys).second, traffic.keys},
                                   {&at(TimeClass::Values).second, traffic.values}});
  at(TimeClass::Arithmetic) = {time.fixed.arithmetic, time.perPosition.arithmetic};
  at(TimeClass::Boundaries) = {time.fixed.boundary, time.perPosition.boundary};
  return result;
}

std::array<double, kTimeClasses> Report::secondsByClass(int64_t at) const {
  std::array<double, kTimeClasses> sums{};
  sums[static_cast<size_t>(TimeClass::Boundaries)] = stepSeconds;
  for (const Kernel &kernel : kernels)
    for (auto [sum, seconds] : llvm::zip_equal(sums, kernel.byClass()))
      sum += seconds.first + seconds.second * static_cast<double>(kernel.traffic.positionsRead(at));
  return sums;
}

double Report::seconds(int64_t at) const {
  double sum = 0;
  for (double seconds : secondsByClass(at))
    sum += seconds;
  return sum;
}

/// The weights of the model's files that a value is made of.
static void addOrigins(Value value, ModuleOp module, std::vector<std::string> &names) {
  Operation *op = value.getDefiningOp();
  if (!op)
    return;
  if (auto parameter = dyn_cast<model::ParameterOp>(op)) {
    if (auto packed = module.lookupSymbol<quantized::PackedOp>(parameter.getWeight()))
      for (auto source : packed.getSources().getAsRange<FlatSymbolRefAttr>())
        names.push_back(source.getValue().str());
    else
      names.push_back(parameter.getWeight().str());
  } else if (isa<quantized::QuantizeOp, quantized::DequantizeOp>(op)) {
    addOrigins(op->getOperand(0), module, names);
  }
}

std::vector<Kernel> report::kernelsOf(ModuleOp module, const TimeModel &model) {
  std::vector<Kernel> kernels;
  auto decode = module.lookupSymbol<func::FuncOp>("decode");
  if (!decode)
    return kernels;
  decode.walk([&](fused::KernelOp op) {
    Kernel kernel;
    kernel.label = op.getLabel();
    if (kernel.label.empty())
      kernel.label = op->getName().stripDialect().str();
    kernel.traffic = op.computeTraffic();
    kernel.time = model.formula(op);
    if (auto product = dyn_cast<fused::MatvecOp>(*op))
      for (Value weight : product.getWeights())
        addOrigins(weight, module, kernel.weights);
    kernel.layer = layerOf(kernel.label);
    for (const std::string &weight : kernel.weights)
      if (!kernel.layer)
        kernel.layer = layerOf(weight);
    kernels.push_back(std::move(kernel));
  });
  return kernels;
}
