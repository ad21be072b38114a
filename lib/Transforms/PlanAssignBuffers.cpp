// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sluice/Transforms/Passes.h"

#include "dialects/Fused/PersistentPlan.h"
#include "dialects/Fused/PreparedInput.h"
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

/// Names of what a step returns, and of what it takes: @decode one token, other steps up to so
/// many, of which `count` says how many are there.
constexpr StringRef kNext = "next", kOutputs[] = {"logits", kNext},
                    kVerifyOutputs[] = {"all_logits"};
constexpr StringRef kDecodeInputs[] = {"token", "position"},
                    kChunkInputs[] = {"tokens", "positions"}, kCount = "count",
                    kSequences = "sequences", kStarts = "starts", kPages = "pages",
                    kSampling = "sampling";

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

/// A function that becomes a step.
struct StepFunction {
  func::FuncOp function;
  bool isDecode = false, isVerify = false, samples = false;
  /// @decode, or the same as a graph of kernels; both take and give the same.
  bool takesOne = false;
  SmallVector<plan::DispatchOp> dispatches;
  /// What it returns, and the output's name.
  llvm::MapVector<Value, StringRef> returned;

  /// The names of what it takes.
  SmallVector<StringRef, 4> inputNames;
};

struct PlanAssignBuffers : impl::PlanAssignBuffersBase<PlanAssignBuffers> {
  void runOnOperation() override;

private:
  /// Checks what a function takes, holds and returns; collects its launches, and the weights and
  /// caches of all functions, in order of use.
  LogicalResult collect(StepFunction &step);
  LogicalResult checkTypes(StepFunction &step);
  FailureOr<int64_t> bytesOf(Operation *reporter, Type type, quantized::PackedOp packed = {});
  FlatSymbolRefAttr createBuffer(Location loc, StringRef name, BufferKind kind, Type type,
                                 int64_t bytes);
  LogicalResult createWeightsAndCaches();
  /// The inputs or outputs of that name of all steps are one buffer, of the largest one's type.
  LogicalResult createInterface(Operation *reporter, StringRef name, BufferKind kind, Type type);
  LogicalResult convert(StepFunction &step);

  SmallVector<StepFunction> steps;
  /// Symbols of weights and the operation that first uses them.
  llvm::MapVector<StringAttr, Operation *> weights, caches;
  DenseMap<StringAttr, FlatSymbolRefAttr> cacheBuffers, weightBuffers;
  /// Inputs and outputs, by name.
  llvm::StringMap<plan::BufferOp> interface;
  std::optional<SymbolTable> symbols;
  std::optional<OpBuilder> builder;
};

LogicalResult PlanAssignBuffers::checkTypes(StepFunction &step) {
  auto integers = [](Type type, int64_t rank) {
    auto tensor = dyn_cast<RankedTensorType>(type);
    bool fits = tensor && tensor.getRank() == rank && tensor.hasStaticShape() &&
                tensor.getElementType().isSignlessInteger(32);
    return fits ? tensor : RankedTensorType();
  };
  ArrayRef<Type> arguments = step.function.getArgumentTypes();
  step.inputNames.assign(step.takesOne ? ArrayRef(kDecodeInputs) : ArrayRef(kChunkInputs));
  bool fits = arguments.size() >= 2 && integers(arguments[0], 1) && integers(arguments[1], 1);
  ArrayRef<Type> rest = fits ? arguments.drop_front(2) : ArrayRef<Type>();
  if (!step.takesOne) {
    auto count = rest.empty() ? RankedTensorType() : integers(rest.front(), 1);
    fits &= count && count.getDimSize(0) == 1;
    step.inputNames.push_back(kCount);
    rest = rest.drop_front(fits);
    // Of several sequences' tokens.
    if (rest.size() >= 2 && integers(rest[0], 1) && integers(rest[1], 1)) {
      step.inputNames.append({kSequences, kStarts});
      rest = rest.drop_front(2);
    }
  }
  if (Block &body = step.function.getBody().front();
      !rest.empty() && model::pageTable(body) == body.getArgument(arguments.size() - rest.size())) {
    step.inputNames.push_back(kPages);
    rest = rest.drop_front();
  }
  auto words = rest.empty() ? RankedTensorType() : integers(rest.front(), 2);
  step.samples = words && words.getDimSize(1) == sampling::kWords && !step.isVerify;
  if (step.samples) {
    step.inputNames.push_back(kSampling);
    rest = rest.drop_front();
  }
  if (fits && rest.empty())
    return success();
  return step.function.emitOpError()
         << "must take tokens and positions, two int32 vectors, "
         << (step.takesOne ? ""
                           : "their number, of several sequences' whose each is and where "
                             "those of each begin, ")
         << "the page table if caches are in pages, and where it samples " << sampling::kWords
         << " int32 words per token, found (" << TypeRange(arguments) << ")";
}

LogicalResult PlanAssignBuffers::collect(StepFunction &step) {
  func::FuncOp function = step.function;
  if (!function.getBody().hasOneBlock())
    return function.emitOpError() << "must have one block";
  if (failed(checkTypes(step)))
    return failure();

  for (Operation &op : function.getBody().front()) {
    if (auto dispatch = dyn_cast<plan::DispatchOp>(op)) {
      step.dispatches.push_back(dispatch);
      for (Value argument : dispatch.getArguments()) {
        auto parameter = argument.getDefiningOp<model::ParameterOp>();
        if (parameter)
          weights.insert({parameter.getWeightAttr().getAttr(), parameter});
      }
      for (auto cache : dispatch.getCaches().getAsRange<FlatSymbolRefAttr>())
        caches.insert({cache.getAttr(), dispatch});
    } else if (auto terminator = dyn_cast<func::ReturnOp>(op)) {
      if (terminator.getNumOperands() != (step.samples ? 2 : 1) ||
          !llvm::all_of(terminator.getOperands(),
                        [](Value value) { return value.getDefiningOp<plan::DispatchOp>(); }))
        return terminator.emitOpError()
               << "must return the logits" << (step.samples ? " and the next tokens" : "")
               << (step.samples ? ", two values" : ", one value")
               << " that a plan.dispatch computes";
      for (auto [value, name] :
           llvm::zip(terminator.getOperands(),
                     step.isVerify ? ArrayRef(kVerifyOutputs) : ArrayRef(kOutputs)))
        if (!step.returned.insert({value, name}).second)
          return terminator.emitOpError() << "must return two different values";
    } else if (!isa<model::ParameterOp>(op)) {
      return op.emitOpError() << "is not compiled to a kernel: @" << function.getSymName()
                              << " may hold plan.dispatch and model.parameter only";
    }
  }
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
  if (auto prepared = dyn_cast<fused::PreparedType>(type))
    return fused::preparedBytes(prepared);
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
    llvm::Expected<int64_t> count = quantized::countPackedRows(packed.getOrder(), sourceRows);
    if (!count)
      return packed.emitOpError() << llvm::toString(count.takeError());
    rows = *count;
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

LogicalResult PlanAssignBuffers::createWeightsAndCaches() {
  for (auto [name, user] : weights)
    if (!isa_and_nonnull<quantized::PackedOp, model::RopeTableOp>(symbols->lookup(name)))
      return user->emitOpError() << "loads @" << name.getValue()
                                 << ", which is neither packed nor a rotary table";
  for (auto [name, user] : caches)
    if (!isa_and_nonnull<model::CacheOp>(symbols->lookup(name)))
      return user->emitOpError() << "names an unknown cache @" << name.getValue();
  // The buffer takes the recipe's name.
  for (auto [name, user] : weights) {
    Operation *recipe = symbols->lookup(name);
    Type type = recipe->getAttrOfType<TypeAttr>("type").getValue();
    FailureOr<int64_t> bytes = bytesOf(recipe, type, dyn_cast<quantized::PackedOp>(recipe));
    if (failed(bytes))
      return failure();
    // SymbolTable::rename would visit every use in the module; all of them are parameters of
    // functions, which end here.
    symbols->remove(recipe);
    SymbolTable::setSymbolName(recipe, (name.getValue() + ".recipe").str());
    symbols->insert(recipe);
    FlatSymbolRefAttr buffer =
        createBuffer(recipe->getLoc(), name, BufferKind::Weights, type, *bytes);
    symbols->lookup(buffer.getAttr())
        ->setDiscardableAttr("source", FlatSymbolRefAttr::get(SymbolTable::getSymbolName(recipe)));
    weightBuffers[name] = buffer;
  }
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
  return success();
}

LogicalResult PlanAssignBuffers::createInterface(Operation *reporter, StringRef name,
                                                 BufferKind kind, Type type) {
  FailureOr<int64_t> bytes = bytesOf(reporter, type);
  if (failed(bytes))
    return failure();
  plan::BufferOp &buffer = interface[name];
  if (!buffer) {
    FlatSymbolRefAttr made = createBuffer(reporter->getLoc(), name, kind, type, *bytes);
    buffer = symbols->lookup<plan::BufferOp>(made.getAttr());
  } else if (buffer.getBytes() < static_cast<uint64_t>(*bytes)) {
    buffer.setType(type);
    buffer.setBytes(*bytes);
  }
  return success();
}

LogicalResult PlanAssignBuffers::convert(StepFunction &step) {
  func::FuncOp function = step.function;
  builder->setInsertionPoint(function);
  DenseMap<Value, FlatSymbolRefAttr> buffers;
  auto interfaceBuffer = [&](StringRef name) {
    return FlatSymbolRefAttr::get(interface[name].getSymNameAttr());
  };
  for (auto [argument, name] : llvm::zip(function.getArguments(), step.inputNames))
    buffers[argument] = interfaceBuffer(name);
  // What launches compute.
  SmallVector<ArenaBuffer> lifetimes;
  SmallVector<plan::BufferOp> arenaBuffers;
  DenseMap<Value, size_t> arenaIndex;
  for (auto [launch, dispatch] : enumerate(step.dispatches)) {
    int64_t index = static_cast<int64_t>(launch);
    for (Value argument : dispatch.getArguments()) {
      if (auto arena = arenaIndex.find(argument); arena != arenaIndex.end())
        lifetimes[arena->second].last = index;
      else if (auto parameter = argument.getDefiningOp<model::ParameterOp>())
        buffers[argument] = weightBuffers.lookup(parameter.getWeightAttr().getAttr());
    }
    for (OpResult result : dispatch->getResults()) {
      if (StringRef output = step.returned.lookup(result); !output.empty()) {
        buffers[result] = interfaceBuffer(output);
        continue;
      }
      FailureOr<int64_t> bytes = bytesOf(dispatch, result.getType());
      if (failed(bytes))
        return failure();
      std::string name = resultName(dispatch.getLabel());
      if (!step.isDecode)
        name = (function.getSymName() + "." + name).str();
      if (dispatch->getNumResults() > 1)
        name += "." + std::to_string(result.getResultNumber());
      buffers[result] =
          createBuffer(dispatch.getLoc(), name, BufferKind::Arena, result.getType(), *bytes);
      arenaBuffers.push_back(symbols->lookup<plan::BufferOp>(buffers[result].getAttr()));
      arenaIndex[result] = lifetimes.size();
      lifetimes.push_back({*bytes, index, index});
    }
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
  std::string stepName = function.getSymName().str();
  int64_t tokens = cast<RankedTensorType>(function.getArgumentTypes()[0]).getDimSize(0);
  auto made = plan::StepOp::create(
      *builder, function.getLoc(), stepName, arena.bytes,
      step.takesOne ? IntegerAttr() : builder->getI64IntegerAttr(tokens), step.isVerify);
  auto copyTime = [](Operation *from, Operation *to) {
    if (Attribute time = from->getDiscardableAttr(fused::kTimeAttr))
      to->setDiscardableAttr(fused::kTimeAttr, time);
  };
  copyTime(function, made);
  if (Attribute reason = function->getDiscardableAttr(fused::kPersistentReasonAttr)) {
    made->setDiscardableAttr(fused::kPersistentReasonAttr, reason);
    if (Attribute schedule = function->getDiscardableAttr(fused::kPersistentAttr))
      made->setDiscardableAttr(fused::kPersistentAttr, schedule);
    if (Attribute times = function->getDiscardableAttr(fused::kPersistentTimesAttr))
      made->setDiscardableAttr(fused::kPersistentTimesAttr, times);
  }
  builder->createBlock(&made.getBody());
  for (plan::DispatchOp dispatch : step.dispatches) {
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
  symbols->erase(function);
  return success();
}

void PlanAssignBuffers::runOnOperation() {
  ModuleOp module = getOperation();
  symbols.emplace(module);
  steps.clear();
  weights.clear();
  caches.clear();
  cacheBuffers.clear();
  weightBuffers.clear();
  interface.clear();
  auto decode = symbols->lookup<func::FuncOp>("decode");
  if (!decode || decode.isExternal()) {
    // A module whose step is planned already stays as it is.
    if (isa_and_nonnull<plan::StepOp>(symbols->lookup("decode")))
      return markAllAnalysesPreserved();
    emitError(module.getLoc()) << "has no function @decode";
    return signalPassFailure();
  }
  for (auto function : module.getOps<func::FuncOp>()) {
    StepFunction &step = steps.emplace_back();
    step.function = function;
    step.isDecode = function == decode;
    step.takesOne = step.isDecode || function.getSymName() == fused::kGraphStep;
    step.isVerify = function.getSymName().starts_with("verify_");
    if (!step.takesOne && !step.isVerify && !function.getSymName().starts_with("prefill_")) {
      function.emitOpError() << "cannot be part of a plan, whose steps are @decode, @"
                             << fused::kGraphStep << ", @prefill_N and @verify_N";
      return signalPassFailure();
    }
  }
  for (StepFunction &step : steps)
    if (failed(collect(step)))
      return signalPassFailure();
  builder.emplace(decode);
  for (StepFunction &step : steps) {
    for (auto [type, name] : llvm::zip(step.function.getArgumentTypes(), step.inputNames))
      if (failed(createInterface(step.function, name, BufferKind::Input, type)))
        return signalPassFailure();
  }
  if (failed(createWeightsAndCaches()))
    return signalPassFailure();
  for (StepFunction &step : steps)
    for (auto [value, name] : step.returned)
      if (failed(createInterface(value.getDefiningOp(), name, BufferKind::Output, value.getType())))
        return signalPassFailure();
  // The token that a step chooses is the next step's.
  if (plan::BufferOp next = interface.lookup(kNext)) {
    plan::BufferOp token = interface.lookup(kDecodeInputs[0]);
    if (next.getType() != token.getType()) {
      decode.emitOpError() << "chooses tokens of type " << next.getType() << ", but takes "
                           << token.getType();
      return signalPassFailure();
    }
    token.setFedByAttr(FlatSymbolRefAttr::get(next.getSymNameAttr()));
  }
  for (StepFunction &step : steps)
    if (failed(convert(step)))
      return signalPassFailure();
}
} // namespace
} // namespace sluice
