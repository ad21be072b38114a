// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "KernelInterface.h"

#include "llvm/ADT/TypeSwitch.h"

using namespace mlir;
using namespace sluice;
using namespace sluice::kernels;

FailureOr<KernelInterface> KernelInterface::get(Operation *op, Value prefetched) {
  KernelInterface result;
  result.op = op;
  result.numResults = op->getNumResults();
  result.values.insert_range(op->getOperands());

  auto addCache = [&](Operation *user, FlatSymbolRefAttr symbol) -> LogicalResult {
    auto cache = SymbolTable::lookupNearestSymbolFrom<model::CacheOp>(op, symbol);
    if (!cache)
      return user->emitOpError() << "names an unknown cache " << symbol;
    result.cacheTypes.insert({symbol, cache.getCacheType()});
    return success();
  };
  LogicalResult named = llvm::TypeSwitch<Operation *, LogicalResult>(op)
                            .Case<fused::AttentionOp, fused::AppendOp>([&](auto attention) {
                              return success(succeeded(addCache(op, attention.getKeysAttr())) &&
                                             succeeded(addCache(op, attention.getValuesAttr())));
                            })
                            .Default(success());
  if (failed(named))
    return failure();
  for (Region &region : op->getRegions()) {
    WalkResult walk = region.walk<WalkOrder::PreOrder>([&](Operation *inner) {
      for (Value operand : inner->getOperands())
        if (!region.isAncestor(operand.getParentRegion()))
          result.values.insert(operand);
      if (auto append = dyn_cast<model::CacheAppendOp>(inner))
        if (failed(addCache(inner, append.getCacheAttr())))
          return WalkResult::interrupt();
      return WalkResult::advance();
    });
    if (walk.wasInterrupted())
      return failure();
  }
  if (prefetched) {
    result.prefetched = prefetched;
    result.values.insert(prefetched);
  }
  return result;
}

SmallVector<Attribute> KernelInterface::caches() const {
  return llvm::map_to_vector(cacheTypes, [](const auto &entry) { return entry.first; });
}

std::string KernelInterface::key() const {
  std::string text;
  llvm::raw_string_ostream os(text);
  DenseMap<Value, unsigned> numbers;
  for (auto [number, value] : llvm::enumerate(values)) {
    numbers[value] = number;
    // Which product comes next differs between layers; what is prefetched of it, in general not.
    if (value != prefetched)
      os << value.getType() << ' ';
  }
  for (auto [cache, type] : cacheTypes)
    os << type << ' ';
  auto number = [&](Value value) {
    return numbers.try_emplace(value, numbers.size()).first->second;
  };
  op->walk<WalkOrder::PreOrder>([&](Operation *inner) {
    os << '\n' << inner->getName();
    for (Value operand : inner->getOperands())
      os << " %" << number(operand);
    for (NamedAttribute attr : inner->getAttrDictionary()) {
      // Neither counts nor reasons make another kernel.
      if (inner == op && (attr.getName() == "traffic" || attr.getName() == "sluice.reason" ||
                          attr.getName() == fused::kTimeAttr))
        continue;
      os << ' ' << attr.getName().getValue() << '=';
      if (auto ahead = dyn_cast<fused::PrefetchAttr>(attr.getValue())) {
        os << ahead.getBlocks() << ',' << ahead.getStride() << ',' << ahead.getBytes();
        continue;
      }
      auto *cache = cacheTypes.find(attr.getValue());
      if (cache != cacheTypes.end())
        os << "cache" << cache - cacheTypes.begin();
      else
        os << attr.getValue();
    }
    for (Region &region : inner->getRegions())
      for (Block &block : region)
        for (BlockArgument argument : block.getArguments())
          os << " ^%" << number(argument) << ':' << argument.getType();
    for (Value result : inner->getResults())
      os << " ->%" << number(result) << ':' << result.getType();
  });
  return text;
}

Value KernelInterface::pointer(Value operand) const {
  auto found = llvm::find(values, operand);
  return found == values.end() ? Value() : pointers[found - values.begin()];
}

Value KernelInterface::cachePointer(FlatSymbolRefAttr cache) const {
  return pointers[values.size() + (cacheTypes.find(cache) - cacheTypes.begin())];
}

bool kernels::isConstant(Value value) { return value.getDefiningOp<model::ParameterOp>(); }

bool kernels::isFloatTensor(Value value) {
  auto type = dyn_cast<RankedTensorType>(value.getType());
  return type && type.getRank() >= 1 && type.getRank() <= 2 &&
         isa<Float16Type, BFloat16Type, Float32Type>(type.getElementType());
}

void kernels::dispatchKernel(fused::KernelOp op, const KernelInterface &interface, StringRef name,
                             plan::LaunchAttr launch) {
  OpBuilder b(op);
  auto symbol = SymbolRefAttr::get(b.getStringAttr(kKernelsModule),
                                   {FlatSymbolRefAttr::get(op->getContext(), name)});
  std::string label = op.getLabel();
  auto dispatch = plan::DispatchOp::create(b, op->getLoc(), op->getResultTypes(), symbol,
                                           interface.operands(), b.getArrayAttr(interface.caches()),
                                           launch, b.getStringAttr(label.empty() ? name : label),
                                           op.getTraffic().value_or(fused::TrafficAttr()));
  if (Attribute time = op->getDiscardableAttr(fused::kTimeAttr))
    dispatch->setDiscardableAttr(fused::kTimeAttr, time);
  op->replaceAllUsesWith(dispatch);
}

LogicalResult kernels::checkKernelsModule(ModuleOp module) {
  if (Operation *taken = module.lookupSymbol(kKernelsModule))
    return taken->emitError() << "symbol '" << kKernelsModule
                              << "' is taken, kernels are generated under it";
  return success();
}
