// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sluice/Transforms/Passes.h"

#include "sluice-runtime/SamplingWords.h"
#include "sluice/Analysis/Arena.h"
#include "sluice/Formats/Packing.h"
#include "sluice/Formats/RowOrder.h"

#include "llvm/ADT/MapVector.h"
#include "llvm/ADT/StringExtras.h"
#include "llvm/Support/DebugLog.h"

#define DEBUG_TYPE "plan-assign-buffers"

namespace sluice {
#define GEN_PASS_DEF_PLANASSIGNBUFFERS
#include "lib/Transforms/Passes.h.inc"

namespace {
using namespace mlir;
using plan::BufferKind;
using quantized::QuantizedTensorType;

/// Of arena buffers: GPUs want 256 for wide and bulk accesses, hosts 64.
constexpr int64_t alignment = 256;

/// Names of what @decode returns.
constexpr StringRef kNext = "next", kOutputs[] = {"logits", kNext};

/// What a launch with this label computes: "blk.0.attn_output.packed" gives
/// "blk.0.attn_output.out". Labels may be any text; a buffer's name is a plain identifier.
std::string resultName(StringRef label) {
  if (!label.consume_back(".packed"))
    label.consume_back(".rows");
  std::string name;
  for (char c : label) {
    if (llvm::isAlnum(c) || c == '.' || c == '_')
      name += c;
    else if (!name.empty() && name.back() != '_')
      name += '_';
  }
  return (name.empty() || llvm::isDigit(name[0]) ? "_" + name : name) + ".out";
}

struct PlanAssignBuffers : impl::PlanAssignBuffersBase<PlanAssignBuffers> {
  void runOnOperation() override;

private:
  LogicalResult run(func::FuncOp decode);
  /// Checks what @decode takes, holds and returns; collects launches, weights and caches in order
  /// of use.
  LogicalResult collect(func::FuncOp decode);
  FailureOr<int64_t> bytesOf(Operation *reporter, Type type, quantized::PackedOp packed = {});
  FlatSymbolRefAttr createBuffer(Location loc, StringRef name, BufferKind kind, Type type,
                                 int64_t bytes);

  SmallVector<plan::DispatchOp> dispatches;
  /// Symbols of weights and the operation that first uses them.
  llvm::MapVector<StringAttr, Operation *> weights, caches;
  /// What @decode returns, and the output's name.
  DenseMap<Value, StringRef> returned;
  std::optional<SymbolTable> symbols;
  std::optional<OpBuilder> builder;
};

LogicalResult PlanAssignBuffers::collect(func::FuncOp decode) {
  TypeRange arguments = decode.getArgumentTypes();
  auto isPositions = [](Type type) {
    auto tensor = dyn_cast<RankedTensorType>(type);
    return tensor && tensor.getRank() == 1 && tensor.hasStaticShape() &&
           tensor.getElementType().isInteger(32);
  };
  auto isWords = [](Type type) {
    auto tensor = dyn_cast<RankedTensorType>(type);
    return tensor && tensor.getRank() == 2 && tensor.getDimSize(1) == sampling::kWords &&
           tensor.getElementType().isInteger(32);
  };
  bool samples = arguments.size() == 3;
  if ((arguments.size() != 2 && !samples) || !llvm::all_of(arguments.take_front(2), isPositions) ||
      (samples && !isWords(arguments[2])))
    return decode.emitOpError()
           << "must take tokens and positions, two int32 vectors, and where it samples "
           << sampling::kWords << " int32 words per token, found (" << arguments << ")";
  if (!decode.getBody().hasOneBlock())
    return decode.emitOpError() << "must have one block";

  for (Operation &op : decode.getBody().front()) {
    if (auto dispatch = dyn_cast<plan::DispatchOp>(op)) {
      dispatches.push_back(dispatch);
      for (Value argument : dispatch.getArguments()) {
        auto parameter = argument.getDefiningOp<model::ParameterOp>();
        if (parameter)
          weights.insert({parameter.getWeightAttr().getAttr(), parameter});
      }
      for (auto cache : dispatch.getCaches().getAsRange<FlatSymbolRefAttr>())
        caches.insert({cache.getAttr(), dispatch});
    } else if (auto terminator = dyn_cast<func::ReturnOp>(op)) {
      if (terminator.getNumOperands() != (samples ? 2 : 1) ||
          !llvm::all_of(terminator.getOperands(),
                        [](Value value) { return value.getDefiningOp<plan::DispatchOp>(); }))
        return terminator.emitOpError()
               << "must return the logits" << (samples ? " and the next tokens" : "")
               << (samples ? ", two values" : ", one value") << " that a plan.dispatch computes";
      for (auto [value, name] : llvm::zip(terminator.getOperands(), kOutputs))
        if (!returned.try_emplace(value, name).second)
          return terminator.emitOpError() << "must return two different values";
    } else if (!isa<model::ParameterOp>(op)) {
      return op.emitOpError() << "is not compiled to a kernel: @decode may hold plan.dispatch and "
                                 "model.parameter only";
    }
  }
  for (auto [name, user] : weights)
    if (!isa_and_nonnull<quantized::PackedOp, model::RopeTableOp>(symbols->lookup(name)))
      return user->emitOpError() << "loads @" << name.getValue()
                                 << ", which is neither packed nor a rotary table";
  for (auto [name, user] : caches)
    if (!isa_and_nonnull<model::CacheOp>(symbols->lookup(name)))
      return user->emitOpError() << "names an unknown cache @" << name.getValue();
  return success();
}

FailureOr<int64_t> PlanAssignBuffers::bytesOf(Operation *reporter, Type type,
                                              quantized::PackedOp packed) {
  if (auto tensor = dyn_cast<RankedTensorType>(type)) {
    // A size that is far from overflow even when all are added.
    constexpr int64_t most = int64_t(1) << 46;
    int64_t bytes = tensor.getElementType().isIntOrFloat()
                        ? llvm::divideCeil(tensor.getElementTypeBitWidth(), 8)
                        : 0;
    for (int64_t dim : tensor.getShape()) {
      if (dim <= 0 || bytes > most / dim)
        bytes = 0;
      bytes *= dim;
    }
    if (bytes)
      return bytes;
  }
  auto quantized = dyn_cast<QuantizedTensorType>(type);
  if (!quantized || !packed)
    return reporter->emitOpError()
           << "needs a buffer of type " << type << ", expected a tensor of static shape";

  int64_t rows = quantized.getRows();
  if (quantized.getLayout().isTiled()) {
    SmallVector<int64_t> sourceRows;
    for (auto source : packed.getSources().getAsRange<FlatSymbolRefAttr>()) {
      auto weight = symbols->lookup<model::WeightOp>(source.getAttr());
      if (!weight)
        return packed.emitOpError()
               << "is made of @" << source.getValue() << ", which is no model.weight";
      auto blocks = dyn_cast<QuantizedTensorType>(weight.getType());
      sourceRows.push_back(blocks ? blocks.getRows()
                                  : cast<RankedTensorType>(weight.getType()).getDimSize(0));
    }
    llvm::Expected<formats::RowOrder> order =
        quantized::expandRowOrder(packed.getOrder(), sourceRows);
    if (!order)
      return packed.emitOpError() << llvm::toString(order.takeError());
    rows = order->rows();
  }
  llvm::Expected<int64_t> bytes =
      formats::packedBytes(quantized.getEncoding().getValue(), quantized.getLayout().toLayout(),
                           rows, quantized.getColumns());
  if (!bytes)
    return packed.emitOpError() << llvm::toString(bytes.takeError());
  return *bytes;
}

FlatSymbolRefAttr PlanAssignBuffers::createBuffer(Location loc, StringRef name, BufferKind kind,
                                                  Type type, int64_t bytes) {
  auto buffer = plan::BufferOp::create(*builder, loc, name, kind, type, bytes, /*offset=*/nullptr,
                                       /*first=*/nullptr, /*last=*/nullptr, /*fed_by=*/nullptr);
  // Renames if the name is taken.
  symbols->insert(buffer);
  return FlatSymbolRefAttr::get(buffer.getSymNameAttr());
}

LogicalResult PlanAssignBuffers::run(func::FuncOp decode) {
  if (failed(collect(decode)))
    return failure();
  DenseMap<Value, FlatSymbolRefAttr> buffers;
  DenseMap<StringAttr, FlatSymbolRefAttr> cacheBuffers, weightBuffers;
  Location loc = decode.getLoc();

  // Inputs.
  static constexpr StringRef inputs[] = {"token", "position", "sampling"};
  for (auto [argument, name] : llvm::zip(decode.getArguments(), inputs)) {
    FailureOr<int64_t> bytes = bytesOf(decode, argument.getType());
    if (failed(bytes))
      return failure();
    buffers[argument] = createBuffer(loc, name, BufferKind::Input, argument.getType(), *bytes);
  }
  // Weights: the buffer takes the recipe's name.
  for (auto [name, user] : weights) {
    Operation *recipe = symbols->lookup(name);
    Type type = recipe->getAttrOfType<TypeAttr>("type").getValue();
    FailureOr<int64_t> bytes = bytesOf(recipe, type, dyn_cast<quantized::PackedOp>(recipe));
    if (failed(bytes))
      return failure();
    // SymbolTable::rename would visit every use in the module; all of them are parameters of
    // @decode, which ends here.
    symbols->remove(recipe);
    SymbolTable::setSymbolName(recipe, (name.getValue() + ".recipe").str());
    symbols->insert(recipe);
    FlatSymbolRefAttr buffer =
        createBuffer(recipe->getLoc(), name, BufferKind::Weights, type, *bytes);
    symbols->lookup(buffer.getAttr())
        ->setDiscardableAttr("source", FlatSymbolRefAttr::get(SymbolTable::getSymbolName(recipe)));
    weightBuffers[name] = buffer;
  }
  // Caches.
  for (auto [name, user] : caches) {
    auto cache = symbols->lookup<model::CacheOp>(name);
    Location cacheLoc = cache.getLoc();
    quantized::CacheType type = cache.getCacheType();
    // What was decided of it.
    DictionaryAttr attributes = cache->getDiscardableAttrDictionary();
    symbols->erase(cache);
    cacheBuffers[name] = createBuffer(cacheLoc, name, BufferKind::Cache, type, type.getBytes());
    symbols->lookup(cacheBuffers[name].getAttr())->setDiscardableAttrs(attributes);
  }
  // What launches compute.
  SmallVector<ArenaBuffer> lifetimes;
  SmallVector<plan::BufferOp> arenaBuffers;
  DenseMap<Value, size_t> arenaIndex;
  for (auto [launch, dispatch] : enumerate(dispatches)) {
    int64_t index = static_cast<int64_t>(launch);
    for (Value argument : dispatch.getArguments()) {
      if (auto arena = arenaIndex.find(argument); arena != arenaIndex.end())
        lifetimes[arena->second].last = index;
      else if (auto parameter = argument.getDefiningOp<model::ParameterOp>())
        buffers[argument] = weightBuffers.lookup(parameter.getWeightAttr().getAttr());
    }
    for (OpResult result : dispatch->getResults()) {
      FailureOr<int64_t> bytes = bytesOf(dispatch, result.getType());
      if (failed(bytes))
        return failure();
      if (StringRef output = returned.lookup(result); !output.empty()) {
        buffers[result] =
            createBuffer(dispatch.getLoc(), output, BufferKind::Output, result.getType(), *bytes);
        continue;
      }
      std::string name = resultName(dispatch.getLabel());
      if (dispatch->getNumResults() > 1)
        name += "." + std::to_string(result.getResultNumber());
      buffers[result] =
          createBuffer(dispatch.getLoc(), name, BufferKind::Arena, result.getType(), *bytes);
      arenaBuffers.push_back(symbols->lookup<plan::BufferOp>(buffers[result].getAttr()));
      arenaIndex[result] = lifetimes.size();
      lifetimes.push_back({*bytes, index, index});
    }
  }
  // The token that a step chooses is the next step's.
  if (auto next = llvm::find_if(returned, [](const auto &entry) { return entry.second == kNext; });
      next != returned.end()) {
    Value token = decode.getArgument(0);
    if (next->first.getType() != token.getType())
      return decode.emitOpError() << "chooses tokens of type " << next->first.getType()
                                  << ", but takes " << token.getType();
    symbols->lookup<plan::BufferOp>(buffers[token].getAttr())
        .setFedByAttr(buffers.lookup(next->first));
  }
  Arena arena = assignArena(lifetimes, alignment);
  if (auto overlap = findArenaOverlap(lifetimes, arena.offsets))
    return arenaBuffers[overlap->first].emitOpError()
           << "and @" << arenaBuffers[overlap->second].getSymName()
           << " share bytes while both are alive";
  for (auto [buffer, lifetime, offset] : llvm::zip_equal(arenaBuffers, lifetimes, arena.offsets)) {
    buffer.setOffset(offset);
    buffer.setFirst(lifetime.first);
    buffer.setLast(lifetime.last);
  }
  LDBG() << "arena of " << arena.bytes << " bytes for " << lifetimes.size() << " buffers, at least "
         << arenaLowerBound(lifetimes, alignment) << " are alive at once";

  // The step takes the function's name and place.
  std::string stepName = decode.getSymName().str();
  auto step = plan::StepOp::create(*builder, loc, stepName, arena.bytes);
  auto copyTime = [](Operation *from, Operation *to) {
    if (Attribute time = from->getDiscardableAttr(fused::kTimeAttr))
      to->setDiscardableAttr(fused::kTimeAttr, time);
  };
  copyTime(decode, step);
  builder->createBlock(&step.getBody());
  for (plan::DispatchOp dispatch : dispatches) {
    SmallVector<Attribute> arguments;
    for (Value argument : dispatch.getArguments())
      arguments.push_back(buffers.lookup(argument));
    for (auto cache : dispatch.getCaches().getAsRange<FlatSymbolRefAttr>())
      arguments.push_back(cacheBuffers.lookup(cache.getAttr()));
    for (Value result : dispatch.getResults())
      arguments.push_back(buffers.lookup(result));
    auto launch = plan::LaunchOp::create(*builder, dispatch.getLoc(), dispatch.getKernelAttr(),
                                         builder->getArrayAttr(arguments), dispatch.getLaunchAttr(),
                                         dispatch.getLabelAttr(), dispatch.getTrafficAttr());
    copyTime(dispatch, launch);
  }
  symbols->erase(decode);
  return success();
}

void PlanAssignBuffers::runOnOperation() {
  ModuleOp module = getOperation();
  symbols.emplace(module);
  auto decode = symbols->lookup<func::FuncOp>("decode");
  if (!decode || decode.isExternal()) {
    // A module whose step is planned already stays as it is.
    if (isa_and_nonnull<plan::StepOp>(symbols->lookup("decode")))
      return markAllAnalysesPreserved();
    emitError(module.getLoc()) << "has no function @decode";
    return signalPassFailure();
  }
  for (auto function : module.getOps<func::FuncOp>())
    if (function != decode) {
      function.emitOpError() << "cannot be part of a plan, which has the one step @decode";
      return signalPassFailure();
    }
  dispatches.clear();
  weights.clear();
  caches.clear();
  returned.clear();
  builder.emplace(decode);
  if (failed(run(decode)))
    signalPassFailure();
}
} // namespace
} // namespace sluice
