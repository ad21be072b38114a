// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sluice/Report/Report.h"

#include "dialects/Plan/Plan.h"
#include "dialects/Quantized/Quantized.h"

#include "mlir/Dialect/Func/IR/FuncOps.h"
#include "mlir/IR/AsmState.h"
#include "llvm/ADT/SetVector.h"

using namespace mlir;
using namespace sluice;
using namespace sluice::report;

namespace {

using Names = llvm::SetVector<StringRef>;

/// Which weights and caches of the model symbols and operations of one stage come of.
class Origins {
public:
  explicit Origins(ModuleOp module) : module(module) {}

  void addSymbol(StringRef name, Names &names) {
    Operation *op = module.lookupSymbol(name);
    if (isa_and_nonnull<model::WeightOp, model::CacheOp>(op)) {
      names.insert(name);
    } else if (auto packed = dyn_cast_or_null<quantized::PackedOp>(op)) {
      for (auto source : packed.getSources().getAsRange<FlatSymbolRefAttr>())
        addSymbol(source.getValue(), names);
    } else if (auto buffer = dyn_cast_or_null<plan::BufferOp>(op)) {
      if (auto source = buffer->getAttrOfType<FlatSymbolRefAttr>("source"))
        addSymbol(source.getValue(), names);
      else if (buffer.getKind() == plan::BufferKind::Cache)
        names.insert(name);
    }
  }

  Names of(Operation *op) {
    Names names;
    if (auto symbol = dyn_cast<SymbolOpInterface>(op)) {
      addSymbol(symbol.getName(), names);
      return names;
    }
    op->walk([&](Operation *inner) {
      // What a product names besides its operands is the next one's weight, to bring it closer.
      if (!isa<fused::MatvecOp>(inner))
        inner->getAttrDictionary().walk(
            [&](FlatSymbolRefAttr symbol) { addSymbol(symbol.getValue(), names); });
      for (Value operand : inner->getOperands())
        addValue(operand, names);
    });
    // So may a launch.
    if (auto label = op->getAttrOfType<StringAttr>("label")) {
      Names own;
      addSymbol(label.getValue(), own);
      names.remove_if([&](StringRef name) {
        auto weight = module.lookupSymbol<model::WeightOp>(name);
        auto type = weight ? dyn_cast<ShapedType>(weight.getType()) : ShapedType();
        return type && type.getRank() > 1 && !own.contains(name);
      });
      names.insert_range(own);
    }
    return names;
  }

private:
  /// Weights reach an operation through what only stores them in another way.
  void addValue(Value value, Names &names) {
    Operation *op = value.getDefiningOp();
    if (auto parameter = dyn_cast_or_null<model::ParameterOp>(op))
      addSymbol(parameter.getWeight(), names);
    else if (isa_and_nonnull<quantized::QuantizeOp, quantized::DequantizeOp>(op))
      addValue(op->getOperand(0), names);
  }

  ModuleOp module;
};

} // namespace

StageText report::stageText(ModuleOp module, StringRef name, int64_t layer) {
  StageText stage;
  stage.name = name.str();
  Origins origins(module);
  auto layerOfNames = [](const Names &names) {
    std::optional<int64_t> least;
    for (StringRef name : names)
      if (std::optional<int64_t> own = layerOf(name))
        least = least ? std::min(*least, *own) : *own;
    return least;
  };
  auto add = [&](Operation *op, AsmState &state, const Names &names) {
    StageText::Operation entry;
    llvm::raw_string_ostream os(entry.text);
    op->print(os, state);
    for (StringRef name : names)
      if (layerOf(name).value_or(layer) == layer)
        entry.origins.push_back(name.str());
    stage.operations.push_back(std::move(entry));
  };
  bool isPlan = !module.getOps<plan::StepOp>().empty();
  bool isPacked = !isPlan && !module.getOps<quantized::PackedOp>().empty();
  AsmState symbols(module);
  for (Operation &op : module.getOps()) {
    // Of each symbol where it is new.
    bool shown = isPlan ? isa<plan::BufferOp>(op)
                 : isPacked
                     ? isa<quantized::PackedOp>(op)
                     : isa<model::CacheOp>(op) || (name == "model" && isa<model::WeightOp>(op));
    Names names = origins.of(&op);
    if (shown && layerOfNames(names) == layer)
      add(&op, symbols, names);
  }
  Region *steps = nullptr;
  for (Operation &op : module.getOps())
    if (isa<func::FuncOp, plan::StepOp>(op) &&
        SymbolTable::getSymbolName(&op).getValue() == "decode")
      steps = &op.getRegion(0);
  if (!steps || steps->empty())
    return stage;
  AsmState state(steps->getParentOp());
  // What names no weight belongs to what stands before it.
  std::optional<int64_t> current;
  for (Operation &op : steps->front()) {
    Names names = origins.of(&op);
    if (!names.empty())
      current = layerOfNames(names);
    if (current == layer && !op.hasTrait<OpTrait::IsTerminator>())
      add(&op, state, names);
  }
  return stage;
}
