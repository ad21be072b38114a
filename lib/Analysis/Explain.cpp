// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sluice/Analysis/Explain.h"

#include "dialects/Fused/GpuPlan.h"
#include "dialects/Model/Semantics.h"

#include "mlir/Dialect/Arith/IR/Arith.h"
#include "mlir/Dialect/Func/IR/FuncOps.h"
#include "mlir/Transforms/RegionUtils.h"
#include "llvm/ADT/MapVector.h"
#include "llvm/ADT/SetVector.h"
#include "llvm/Support/FormatVariadic.h"

#include <nlohmann/json.hpp>

using namespace mlir;
using namespace sluice;
using nlohmann::json;

StringRef sluice::modelPartName(ModelPart part) {
  switch (part) {
  case ModelPart::Embedding:
    return "embedding";
  case ModelPart::AttentionProjections:
    return "attention projections";
  case ModelPart::AttentionCache:
    return "attention cache";
  case ModelPart::Mlp:
    return "MLP";
  case ModelPart::Norms:
    return "norms";
  case ModelPart::Head:
    return "head";
  }
  llvm_unreachable("unknown part");
}

//===----------------------------------------------------------------------===//
// What an operation belongs to
//===----------------------------------------------------------------------===//

static bool isProduct(Operation *op) { return isa<model::LinearOp, fused::MatvecOp>(op); }
static bool isAttention(Operation *op) { return isa<model::AttentionOp, fused::AttentionOp>(op); }
static bool isEmbedding(Operation *op) { return isa<model::EmbeddingOp, fused::EmbeddingOp>(op); }

/// By the graph, not by names: a product whose result attention or the cache takes, or whose input
/// is attention's result, is a projection; one whose result the function returns is the head; the
/// others are the MLP's.
static ModelPart partOfProduct(Operation *product) {
  Value input = product->getOperand(0);
  while (Operation *definition = input.getDefiningOp()) {
    if (isAttention(definition))
      return ModelPart::AttentionProjections;
    if (isProduct(definition) || definition->getNumOperands() != 1)
      break;
    input = definition->getOperand(0);
  }
  bool appends =
      product->walk([](model::CacheAppendOp) { return WalkResult::interrupt(); }).wasInterrupted();
  if (appends)
    return ModelPart::AttentionProjections;

  // A kernel reads what operations in its regions read.
  llvm::SetVector<Operation *> reached;
  auto addReaders = [&](Operation *op) {
    for (Operation *user : op->getUsers())
      reached.insert(product->getBlock()->findAncestorOpInBlock(*user));
  };
  addReaders(product);
  for (size_t i = 0; i < reached.size(); ++i) {
    Operation *op = reached[i];
    if (isAttention(op) || isa<model::CacheAppendOp>(op))
      return ModelPart::AttentionProjections;
    if (isa<func::ReturnOp>(op))
      return ModelPart::Head;
    if (isa<fused::RowsOp>(op) &&
        op->walk([](model::CacheAppendOp) { return WalkResult::interrupt(); }).wasInterrupted())
      return ModelPart::AttentionProjections;
    if (!isProduct(op))
      addReaders(op);
  }
  return ModelPart::Mlp;
}

/// The part of a norm, or of a kernel of rows; nothing for anything else.
static std::optional<ModelPart> partOfRows(Operation *op) {
  if (model::isNorm(op))
    return ModelPart::Norms;
  auto rows = dyn_cast<fused::RowsOp>(op);
  if (!rows)
    return std::nullopt;
  return fused::countRowSums(rows.getBody()) ? ModelPart::Norms : ModelPart::Embedding;
}

/// The part whose result `value` is, through elementwise operations; nothing for the residual
/// stream.
static std::optional<ModelPart> originOf(Value value) {
  Operation *op = value.getDefiningOp();
  if (!op || isa<arith::AddFOp, model::ParameterOp>(op) || isEmbedding(op))
    return std::nullopt;
  if (isProduct(op))
    return partOfProduct(op);
  if (isAttention(op))
    return ModelPart::AttentionCache;
  if (std::optional<ModelPart> part = partOfRows(op))
    return part;
  for (Value operand : op->getOperands())
    if (std::optional<ModelPart> part = originOf(operand))
      return part;
  return std::nullopt;
}

static ModelPart partOf(Operation *op) {
  if (isEmbedding(op))
    return ModelPart::Embedding;
  if (isProduct(op))
    return partOfProduct(op);
  if (isAttention(op) || isa<model::CacheAppendOp>(op))
    return ModelPart::AttentionCache;
  if (std::optional<ModelPart> part = partOfRows(op))
    return *part;
  if (isa<model::RotaryOp>(op))
    return ModelPart::AttentionProjections;
  for (Value operand : op->getOperands())
    if (std::optional<ModelPart> part = originOf(operand))
      return *part;
  for (Value operand : op->getOperands())
    if (Operation *source = operand.getDefiningOp(); source && isEmbedding(source))
      return ModelPart::Embedding;
  // What is made of a weight belongs to its reader.
  for (Operation *user : op->getUsers())
    if (user->getBlock() == op->getBlock() && !user->hasTrait<OpTrait::IsTerminator>())
      return partOf(user);
  return ModelPart::Embedding;
}

//===----------------------------------------------------------------------===//
// Counting
//===----------------------------------------------------------------------===//

/// Calls `visit` for each vector (gain or bias) that the operation reads, once for each weight.
static void visitVectors(Operation *op,
                         llvm::function_ref<void(OpOperand &use, int64_t bytes)> visit) {
  SmallPtrSet<void *, 4> seen;
  op->walk([&](Operation *inner) {
    for (OpOperand &use : inner->getOpOperands()) {
      auto type = dyn_cast<RankedTensorType>(use.get().getType());
      if (!type || type.getRank() != 1 || !isa<FloatType>(type.getElementType()))
        continue;
      auto parameter = use.get().getDefiningOp<model::ParameterOp>();
      void *key = parameter ? const_cast<void *>(parameter.getWeightAttr().getAsOpaquePointer())
                            : use.get().getAsOpaquePointer();
      if (seen.insert(key).second)
        visit(use, matrixBytes(type).elements);
    }
  });
}

static func::FuncOp findDecode(ModuleOp module) {
  return module.lookupSymbol<func::FuncOp>("decode");
}

/// Tokens that a function's step decodes.
static int64_t tokensOf(func::FuncOp decode) {
  for (Type type : decode.getArgumentTypes())
    if (auto tensor = dyn_cast<RankedTensorType>(type); tensor && tensor.getRank() == 1)
      return tensor.getDimSize(0);
  return 0;
}

static PartTraffic count(func::FuncOp decode, int64_t factor, int64_t context) {
  PartTraffic result;
  for (Operation &op : decode.getBody().front()) {
    Traffic traffic = computeTraffic(&op).at(context);
    if (traffic == Traffic())
      continue;
    ++result.kernels;
    int64_t vectors = 0, gains = 0, appended = 0;
    visitVectors(&op, [&](OpOperand &use, int64_t bytes) {
      vectors += bytes;
      if (&op != use.getOwner() && model::isNorm(use.getOwner()))
        gains += bytes;
    });
    // Inside a product: norms and cache have lines of their own.
    if (isa<fused::MatvecOp>(op)) {
      op.walk([&](model::CacheAppendOp append) { appended += computeTraffic(append).written; });
      traffic.activations -= gains;
      traffic.written -= appended;
      vectors -= gains;
      result[ModelPart::Norms].activations += gains;
      result[ModelPart::AttentionCache].written += appended * factor;
    }
    // A dequantized matrix is written once for all tokens; rows for an embedding are one a
    // token.
    bool matrix = isa<quantized::DequantizeOp>(op) && traffic.weights;
    if (!matrix) {
      traffic.activations = vectors + factor * (traffic.activations - vectors);
      traffic.written *= factor;
      traffic.operations *= factor;
      traffic.keys *= factor;
      traffic.values *= factor;
      traffic.operationsPerPosition *= factor;
      if (!traffic.weights)
        traffic.scales *= factor;
    }
    result[partOf(&op)] += traffic;
  }
  for (const Traffic &part : result.parts)
    result.total += part;
  return result;
}

static Floor floorOf(const Traffic &total, const TargetDescription &target, int64_t batch) {
  Floor floor;
  floor.bytes = total.bytes(1);
  floor.operations = total.operationsAt(1);
  floor.seconds = static_cast<double>(floor.bytes) / target.bandwidth();
  if (auto rate = target.operations.find("f16"); rate != target.operations.end()) {
    double computing = static_cast<double>(floor.operations) / rate->second.value;
    floor.boundByMemory = computing <= floor.seconds;
    floor.seconds = std::max(floor.seconds, computing);
  }
  floor.tokensPerSecond = static_cast<double>(batch) / floor.seconds;
  return floor;
}

/// Elements of the distinct activations that the MLP's products read and write.
static int64_t mlpActivationElements(func::FuncOp decode) {
  llvm::SetVector<Value> values;
  auto add = [&](Value value) {
    auto type = dyn_cast<RankedTensorType>(value.getType());
    bool weight =
        value.getDefiningOp<model::ParameterOp>() || value.getDefiningOp<quantized::DequantizeOp>();
    if (type && type.getRank() == 2 && isa<FloatType>(type.getElementType()) && !weight)
      values.insert(value);
  };
  for (auto product : decode.getBody().getOps<fused::MatvecOp>()) {
    if (partOfProduct(product) != ModelPart::Mlp)
      continue;
    add(product.getInput());
    for (Value result : product.getResults())
      add(result);
    visitUsedValuesDefinedAbove(product->getRegions(), [&](OpOperand *use) { add(use->get()); });
  }
  int64_t elements = 0;
  for (Value value : values)
    elements += matrixBytes(value.getType()).elements * 8 /
                cast<RankedTensorType>(value.getType()).getElementTypeBitWidth();
  return elements;
}

/// What `count` counts of caches, layer by layer, and what was decided of them.
static SmallVector<CacheFigures> cacheFigures(func::FuncOp decode, int64_t context, int64_t batch) {
  SmallVector<CacheFigures> result;
  int64_t layer = 0;
  for (auto attention : decode.getBody().getOps<fused::AttentionOp>()) {
    CacheFigures figures;
    figures.firstLayer = figures.lastLayer = layer++;
    auto describe = [&](FlatSymbolRefAttr name, std::string &format, std::string &reason,
                        int64_t &perPosition) {
      auto cache = SymbolTable::lookupNearestSymbolFrom<model::CacheOp>(attention, name);
      if (!cache)
        return;
      auto decision = cache->getAttrOfType<StringAttr>("sluice.decision");
      auto why = cache->getAttrOfType<StringAttr>("sluice.reason");
      format = decision ? decision.str() : cache.getCacheType().getEncoding().name();
      reason = why ? why.str() : "not decided";
      perPosition = traffic::cacheBytes(attention, name);
      figures.memory +=
          perPosition * cache.getCacheType().getPositions() * cache.getCacheType().getSequences();
    };
    describe(attention.getKeysAttr(), figures.keys, figures.keysReason, figures.keysPerPosition);
    describe(attention.getValuesAttr(), figures.values, figures.valuesReason,
             figures.valuesPerPosition);
    Traffic traffic = attention.computeTraffic();
    figures.window = traffic.window;
    figures.read = traffic.positionsRead(context) * batch *
                   (figures.keysPerPosition + figures.valuesPerPosition);
    auto facts = [](const CacheFigures &f) {
      return std::tie(f.keys, f.values, f.keysReason, f.valuesReason, f.keysPerPosition,
                      f.valuesPerPosition, f.window, f.memory);
    };
    if (!result.empty() && facts(result.back()) == facts(figures))
      result.back().lastLayer = figures.lastLayer;
    else
      result.push_back(figures);
  }
  return result;
}

/// The memory of caches in pages: all have as many.
static void addPages(Explanation &explanation, func::FuncOp decode) {
  for (auto attention : decode.getBody().getOps<fused::AttentionOp>()) {
    auto cache =
        SymbolTable::lookupNearestSymbolFrom<model::CacheOp>(attention, attention.getKeysAttr());
    if (!cache || !attention.getPages())
      return;
    explanation.cachePages = cache.getCacheType().getSequences();
  }
  for (CacheFigures &figures : explanation.caches)
    figures.memory = (figures.keysPerPosition + figures.valuesPerPosition) *
                     explanation.cachePages * formats::cacheTile;
}

void sluice::addScheduled(Explanation &explanation, ModuleOp scheduled) {
  for (auto function : scheduled.getOps<func::FuncOp>()) {
    int64_t tokens = tokensOf(function);
    if (auto reason = function->getAttrOfType<StringAttr>(fused::kPersistentReasonAttr))
      explanation.launch = {function->hasAttr(fused::kPersistentAttr) ? "persistent" : "graph",
                            reason.str()};
    if (function.getSymName() == "decode" && tokens == explanation.batch && tokens > 1) {
      addPages(explanation, function);
      explanation.predicted = TimeModel(explanation.target, explanation.context).step(function);
    } else if (function.getSymName().starts_with("prefill_")) {
      explanation.prompts.emplace_back(
          tokens, TimeModel(explanation.target, tokens).step(function).seconds());
    }
  }
  llvm::sort(explanation.prompts);
}

llvm::Expected<Explanation> sluice::explain(ModuleOp unfused, ModuleOp fused,
                                            const TargetDescription &target, int64_t context,
                                            int64_t batch) {
  constexpr int64_t most = int64_t(1) << 31;
  if (context < 1 || context > most)
    return llvm::createStringError("context is " + llvm::Twine(context) + ", expected 1 to " +
                                   llvm::Twine(most));
  if (batch < 1 || batch > most)
    return llvm::createStringError("batch is " + llvm::Twine(batch) + ", expected 1 to " +
                                   llvm::Twine(most));
  Explanation result;
  result.model = fused.getSymName().value_or("model").str();
  result.target = target;
  result.context = context;
  result.batch = batch;

  func::FuncOp before = findDecode(unfused), after = findDecode(fused);
  for (func::FuncOp decode : {before, after}) {
    if (!decode || decode.getBody().empty())
      return llvm::createStringError("the module has no function @decode to explain");
    int64_t tokens = tokensOf(decode);
    if (tokens < 1 || batch % tokens)
      return llvm::createStringError("batch is " + llvm::Twine(batch) +
                                     ", expected a multiple of the module's " +
                                     llvm::Twine(tokens) + " tokens");
  }
  result.layers =
      llvm::count_if(after.getBody().front(), [](Operation &op) { return isAttention(&op); });
  if (!result.layers)
    return llvm::createStringError("@decode has no attention, so no layers to explain");

  result.caches = cacheFigures(after, context, batch);
  result.unfused = count(before, batch / tokensOf(before), context);
  result.fused = count(after, batch / tokensOf(after), context);
  result.unfusedFloor = floorOf(result.unfused.total, target, batch);
  result.fusedFloor = floorOf(result.fused.total, target, batch);
  result.stepTokens = tokensOf(after);
  result.predicted = TimeModel(target, context, batch / result.stepTokens).step(after);

  double layers = static_cast<double>(result.layers);
  const Traffic &mlp = result.fused[ModelPart::Mlp],
                &attention = result.fused[ModelPart::AttentionProjections];
  LayerFigures &layer = result.layer;
  layer.mlpWeights = static_cast<double>(mlp.weights) / layers;
  layer.mlpScales = static_cast<double>(mlp.scales) / layers;
  layer.attentionWeights = static_cast<double>(attention.weights) / layers;
  layer.attentionScales = static_cast<double>(attention.scales) / layers;
  layer.mlpOperations = static_cast<double>(mlp.operations) / layers;
  int64_t steps = batch / tokensOf(after);
  layer.mlpActivations = 2.0 * static_cast<double>(mlpActivationElements(after) * steps) / layers;
  if (layer.mlpWeights > 0)
    layer.intensity = layer.mlpOperations / (layer.mlpWeights + layer.mlpActivations);

  llvm::MapVector<Attribute, int64_t> formats;
  llvm::MapVector<Attribute, quantized::QuantizedTensorType> example;
  for (auto product : after.getBody().getOps<fused::MatvecOp>())
    for (Value weight : product.getWeights()) {
      quantized::EncodingAttr format;
      if (auto type = dyn_cast<quantized::QuantizedTensorType>(weight.getType())) {
        format = type.getEncoding();
        example.insert({format, type});
      } else {
        format =
            quantized::EncodingAttr::of(cast<RankedTensorType>(weight.getType()).getElementType());
      }
      MatrixBytes bytes = matrixBytes(weight.getType());
      formats[format] += bytes.elements + bytes.scales;
    }
  SmallVector<std::pair<Attribute, int64_t>> byBytes = formats.takeVector();
  llvm::sort(byBytes, [](const auto &a, const auto &b) {
    if (a.second != b.second)
      return a.second > b.second;
    return cast<quantized::EncodingAttr>(a.first).getName() <
           cast<quantized::EncodingAttr>(b.first).getName();
  });
  for (auto &[format, bytes] : byBytes) {
    auto known = cast<quantized::EncodingAttr>(format);
    result.formats.emplace_back(known.getName(), bytes);
    if (!known.isScaled() || result.dequantizeToF32)
      continue;
    DequantizePass pass{.block = static_cast<double>(example.lookup(format).getGroup()),
                        .elementBytes = known.getBits() / 8.0,
                        .parameterBytes =
                            (known.getValue().scaleBits() + known.getValue().offsetBits()) / 8.0,
                        .resultBytes = 4};
    result.dequantizeToF32 = pass;
    pass.resultBytes = 2;
    result.dequantizeToF16 = pass;
  }
  return result;
}

//===----------------------------------------------------------------------===//
// Printing
//===----------------------------------------------------------------------===//

/// "135.3 MB", "4.72 MB", "0 B": decimal units, three or four digits.
static std::string human(double value, StringRef unit) {
  static constexpr llvm::StringLiteral prefixes[] = {"", "K", "M", "G", "T", "P"};
  size_t prefix = 0;
  while (value >= 999.95 && prefix + 1 < std::size(prefixes)) {
    value /= 1000;
    ++prefix;
  }
  bool whole = prefix == 0 && value == static_cast<double>(static_cast<int64_t>(value));
  std::string number = whole           ? llvm::formatv("{0}", static_cast<int64_t>(value)).str()
                       : value < 9.995 ? llvm::formatv("{0:F2}", value).str()
                                       : llvm::formatv("{0:F1}", value).str();
  return number + " " + prefixes[prefix].str() + unit.str();
}

static std::string human(int64_t value, StringRef unit) {
  return human(static_cast<double>(value), unit);
}

static std::string seconds(double value) {
  if (value < 1e-3)
    return llvm::formatv("{0:F1} us", value * 1e6);
  if (value < 1)
    return llvm::formatv("{0:F2} ms", value * 1e3);
  return llvm::formatv("{0:F2} s", value);
}

static std::string rate(double value) {
  return value < 100 ? llvm::formatv("{0:F1}", value).str() : llvm::formatv("{0:F0}", value).str();
}

/// What int8 costs in the form that papers give it: 8 bytes of scale and zero point a group.
static std::string dequantizeTable() {
  DequantizePass small{.block = 64, .resultBytes = 4}, large{.block = 2048, .resultBytes = 4},
      small16{.block = 64, .resultBytes = 2}, large16{.block = 2048, .resultBytes = 2};
  return llvm::formatv(
      "  int8 with 8 bytes of scale and zero point: {0:F2} and {1:F2} in groups of 64, {2:F2} and "
      "{3:F2} in groups of 2048, at most {4:F2} and {5:F2}; scales add {6:F3} and {7:F3}\n",
      small.intensity(), small16.intensity(), large.intensity(), large16.intensity(),
      small.intensityLimit(), small16.intensityLimit(), small.overhead(), large.overhead());
}

void sluice::printExplanation(const Explanation &e, llvm::raw_ostream &os) {
  os << e.model << ", weights ";
  llvm::ListSeparator comma;
  for (const auto &[name, bytes] : e.formats)
    os << comma << name << " (" << human(bytes, "B") << ")";
  os << "\nbytes of a step: context " << e.context << ", batch " << e.batch << "\n\n";

  auto row = [&](StringRef name, ArrayRef<std::string> cells) {
    os << llvm::left_justify(name, 22);
    for (const std::string &cell : cells)
      os << llvm::right_justify(cell, 12);
    os << "\n";
  };
  row("part",
      {"weights", "scales", "activations", "keys", "values", "written", "total", "unfused"});
  auto line = [&](StringRef name, const Traffic &t, const Traffic &unfused) {
    row(name, {human(t.weights, "B"), human(t.scales, "B"), human(t.activations, "B"),
               human(t.keys, "B"), human(t.values, "B"), human(t.written, "B"),
               human(t.bytes(1), "B"), human(unfused.bytes(1), "B")});
  };
  for (size_t i = 0; i < kModelParts; ++i)
    line(modelPartName(static_cast<ModelPart>(i)), e.fused.parts[i], e.unfused.parts[i]);
  line("total", e.fused.total, e.unfused.total);
  row("kernels",
      {"", "", "", "", "", "", std::to_string(e.fused.kernels), std::to_string(e.unfused.kernels)});

  const LayerFigures &layer = e.layer;
  os << "\na layer (of " << e.layers << "): MLP " << human(layer.mlpWeights, "B")
     << ", attention projections " << human(layer.attentionWeights, "B")
     << " of weights; their scales " << human(layer.mlpScales, "B") << " and "
     << human(layer.attentionScales, "B") << "\n";
  os << "  MLP: " << human(layer.mlpOperations, "FLOP") << " a step, activations of 16 bits "
     << human(layer.mlpActivations, "B") << ": " << llvm::formatv("{0:F1}", layer.intensity)
     << " FLOP a byte\n";

  int64_t memory = 0;
  for (const CacheFigures &cache : e.caches) {
    os << "cache of layer" << (cache.firstLayer == cache.lastLayer ? " " : "s ")
       << cache.firstLayer;
    if (cache.firstLayer != cache.lastLayer)
      os << " to " << cache.lastLayer;
    os << ": keys " << cache.keys << " (" << cache.keysReason << "), "
       << human(cache.keysPerPosition, "B") << " a position; values " << cache.values << " ("
       << cache.valuesReason << "), " << human(cache.valuesPerPosition, "B") << "; a layer reads "
       << human(cache.read, "B") << "\n";
    memory += cache.memory * (cache.lastLayer - cache.firstLayer + 1);
  }
  os << "  memory of all caches: " << human(memory, "B");
  if (e.cachePages)
    os << ", " << e.cachePages - e.batch << " pages of " << formats::cacheTile
       << " positions, and one for each sequence";
  os << "\n";

  os << "target " << e.target.name << " (" << e.target.description << "): ";
  if (std::optional<double> ridge = e.target.ridge())
    os << "ridge at " << llvm::formatv("{0:F0}", *ridge) << " FLOP a byte ("
       << human(e.target.operations.at("f16").value, "FLOP/s") << " over "
       << human(e.target.peakBandwidth->value, "B/s") << "), ";
  os << (e.target.readCeiling ? "read ceiling " : "bandwidth ")
     << human(e.target.bandwidth(), "B/s") << "\n";
  auto floor = [&](StringRef name, const Floor &f) {
    os << "floor " << name << ": " << human(f.bytes, "B") << ", "
       << llvm::formatv("{0:F1}", static_cast<double>(f.operations) / static_cast<double>(f.bytes))
       << " FLOP a byte, " << seconds(f.seconds) << ", " << rate(f.tokensPerSecond) << " tokens/s"
       << (f.boundByMemory ? "" : " (bound by operations)") << "\n";
  };
  floor("fused", e.fusedFloor);
  floor("unfused", e.unfusedFloor);
  double predicted = e.predicted.seconds();
  os << "predicted " << seconds(predicted) << ", " << rate(static_cast<double>(e.batch) / predicted)
     << " tokens/s at " << e.context << ": reading " << seconds(e.predicted.memory)
     << ", arithmetic beyond it " << seconds(e.predicted.arithmetic) << ", boundaries "
     << seconds(e.predicted.boundary) << "\n";
  if (e.launch)
    os << "launch " << e.launch->first << ": " << e.launch->second << "\n";
  if (!e.prompts.empty()) {
    os << "predicted prompts:";
    llvm::interleave(
        e.prompts, os,
        [&](const auto &prompt) {
          os << " " << rate(static_cast<double>(prompt.first) / prompt.second) << " tokens/s of "
             << prompt.first;
        },
        ",");
    os << "\n";
  }
  if (e.dequantizeToF32)
    os << "dequantizing in a pass of its own, groups of "
       << static_cast<int64_t>(e.dequantizeToF32->block) << ": "
       << llvm::formatv("{0:F2}", e.dequantizeToF32->intensity())
       << " operations a byte to float32, "
       << llvm::formatv("{0:F2}", e.dequantizeToF16->intensity()) << " to 16 bits; scales add "
       << llvm::formatv("{0:F3}", e.dequantizeToF32->overhead()) << " bytes an element\n"
       << dequantizeTable();
}

static json trafficJson(const Traffic &t) {
  return {{"weights", t.weights},         {"scales", t.scales},
          {"activations", t.activations}, {"keys", t.keys},
          {"values", t.values},           {"written", t.written},
          {"bytes", t.bytes(1)},          {"operations", t.operationsAt(1)}};
}

json sluice::explanationJson(const Explanation &e) {
  auto column = [&](const PartTraffic &traffic, const Floor &floor) {
    json parts = json::object();
    for (size_t i = 0; i < kModelParts; ++i)
      parts[modelPartName(static_cast<ModelPart>(i)).str()] = trafficJson(traffic.parts[i]);
    return json{{"parts", parts},
                {"total", trafficJson(traffic.total)},
                {"kernels", traffic.kernels},
                {"floor",
                 {{"seconds", floor.seconds},
                  {"tokens_per_second", floor.tokensPerSecond},
                  {"operations_per_byte",
                   static_cast<double>(floor.operations) / static_cast<double>(floor.bytes)},
                  {"bound_by", floor.boundByMemory ? "memory" : "operations"}}}};
  };
  json formats = json::object();
  for (const auto &[name, bytes] : e.formats)
    formats[name] = bytes;
  json caches = json::array();
  for (const CacheFigures &cache : e.caches) {
    auto side = [](const std::string &format, const std::string &reason, int64_t bytes) {
      return json{{"format", format}, {"reason", reason}, {"bytes_per_position", bytes}};
    };
    caches.push_back({{"first_layer", cache.firstLayer},
                      {"last_layer", cache.lastLayer},
                      {"keys", side(cache.keys, cache.keysReason, cache.keysPerPosition)},
                      {"values", side(cache.values, cache.valuesReason, cache.valuesPerPosition)},
                      {"window", cache.window},
                      {"read_bytes_per_layer", cache.read},
                      {"memory_bytes_per_layer", cache.memory}});
  }
  json target = planTarget(e.target);
  target["description"] = e.target.description;
  target["bandwidth"] = e.target.bandwidth();
  target["bandwidth_source"] =
      (e.target.readCeiling ? e.target.readCeiling : e.target.peakBandwidth)->source;
  if (std::optional<double> ridge = e.target.ridge())
    target["ridge"] = *ridge;
  json result = {{"model", e.model},
                 {"weights", formats},
                 {"caches", caches},
                 {"target", target},
                 {"context", e.context},
                 {"batch", e.batch},
                 {"layers", e.layers},
                 {"fused", column(e.fused, e.fusedFloor)},
                 {"unfused", column(e.unfused, e.unfusedFloor)},
                 {"predicted",
                  {{"seconds", e.predicted.seconds()},
                   {"tokens_per_second", static_cast<double>(e.batch) / e.predicted.seconds()},
                   {"memory_seconds", e.predicted.memory},
                   {"arithmetic_seconds", e.predicted.arithmetic},
                   {"boundary_seconds", e.predicted.boundary}}},
                 {"layer",
                  {{"mlp_weights", e.layer.mlpWeights},
                   {"mlp_scales", e.layer.mlpScales},
                   {"attention_weights", e.layer.attentionWeights},
                   {"attention_scales", e.layer.attentionScales},
                   {"mlp_operations", e.layer.mlpOperations},
                   {"mlp_activations", e.layer.mlpActivations},
                   {"mlp_operations_per_byte", e.layer.intensity}}}};
  for (auto [tokens, seconds] : e.prompts)
    result["prompts"].push_back({{"tokens", tokens},
                                 {"seconds", seconds},
                                 {"tokens_per_second", static_cast<double>(tokens) / seconds}});
  if (e.launch)
    result["launch"] = {{"mode", e.launch->first}, {"reason", e.launch->second}};
  if (e.dequantizeToF32)
    result["dequantize_pass"] = {{"block", e.dequantizeToF32->block},
                                 {"operations_per_byte_f32", e.dequantizeToF32->intensity()},
                                 {"operations_per_byte_f16", e.dequantizeToF16->intensity()},
                                 {"parameter_bytes_per_element", e.dequantizeToF32->overhead()}};
  return result;
}
