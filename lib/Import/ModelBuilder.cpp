// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sluice/Import/ModelBuilder.h"

#include "sluice/Formats/GgufBlocks.h"
#include "sluice/Import/TensorReader.h"

#include "mlir/Dialect/Arith/IR/Arith.h"
#include "mlir/Dialect/Func/IR/FuncOps.h"
#include "mlir/IR/Builders.h"
#include "mlir/IR/Verifier.h"
#include "llvm/Support/FileSystem.h"
#include "llvm/Support/Path.h"

#include <array>
#include <charconv>
#include <cmath>

using namespace mlir;
using namespace sluice;

static llvm::Error makeError(const Twine &message) {
  return llvm::createStringError(llvm::inconvertibleErrorCode(), message);
}

namespace {

/// Builds one module. Weights are declared as they are used, so that both come from one place.
class ModelBuilder {
public:
  ModelBuilder(MLIRContext &context, const ModelFiles &files, int64_t positions,
               const ImportOptions &options)
      : config(files.config), files(files), positions(positions),
        rows(options.tokens * options.sequences), sequences(options.sequences), symbols(&context),
        code(&context) {}

  OwningOpRef<ModuleOp> build();

private:
  /// The decimal number that the model's author wrote: 1e-5 and not the float nearest to it.
  FloatAttr normEpsilon();
  Location named(const Twine &name) { return NameLoc::get(code.getStringAttr(name)); }
  RankedTensorType activation(int64_t width) {
    return RankedTensorType::get({rows, width}, code.getF32Type());
  }
  DictionaryAttr configAttr();
  model::RopeAttr ropeAttr(int64_t layer);
  model::ViewAttr viewAttr(const formats::RowView &view);
  Type weightType(const Weight &weight);

  void declare(StringRef name, const Weight *weight, ArrayRef<int64_t> shape);
  Value parameter(StringRef name);
  Value vector(StringRef name, const Weight *weight, int64_t size);
  Value matrix(StringRef name, const Weight *weight, int64_t rows, int64_t columns);

  /// `bias` may be null although the config has one (no files).
  Value norm(StringRef name, Value input, const Weight *gain, const Weight *bias);
  /// An RMS norm of a whole row of any width, or of every head of a row.
  Value rmsNorm(StringRef name, Value input, const Weight *gain, bool byHead = false);
  Value activated(StringRef name, Value input);
  Value scaled(const Twine &name, Value input, double factor);
  /// The sum of the residual stream and what attention or MLP made.
  Value residual(StringRef name, Value x, Value made);
  /// `hasBias` is the config's word; `bias` may be null although it is set (no files).
  Value linear(StringRef name, Value input, const Weight *weight, int64_t rows, bool hasBias,
               const Weight *bias);
  /// The input in the order of the weight's columns, if these were sorted by group.
  Value reordered(StringRef name, Value input, const Weight *weight);
  /// The linear layer with the matrix that stands for `weight`, which may be null; of a weight with
  /// a divisor its result is divided.
  Value product(StringRef name, Value input, Value matrix, const Weight *weight, Value bias);
  /// What attention and MLP make of `x`, norms included, the residual not.
  Value attention(int64_t layer, Value x, const LayerWeights *weights);
  Value mlp(int64_t layer, Value x, const LayerWeights *weights);
  Value embedded(const Weights *weights);

  const ModelConfig &config;
  const ModelFiles &files;
  int64_t positions, rows, sequences;
  OpBuilder symbols, code;
  ModuleOp module;
  llvm::StringMap<Type> declared;
  /// Orders of columns by file and offset of their groups, and inputs in these orders.
  std::map<std::pair<std::string, uint64_t>, Value> orders;
  llvm::DenseMap<std::pair<Value, Value>, Value> reorders;
  Value tokens, steps;
};

} // namespace

FloatAttr ModelBuilder::normEpsilon() {
  std::array<char, 32> shortest;
  char *end = std::to_chars(shortest.begin(), shortest.end(), config.normEps).ptr;
  double value = config.normEps;
  std::from_chars(shortest.begin(), end, value);
  return code.getF64FloatAttr(value);
}

DictionaryAttr ModelBuilder::configAttr() {
  SmallVector<NamedAttribute> entries;
  auto integer = [&](StringRef key, int64_t value) {
    entries.push_back(code.getNamedAttr(key, code.getI64IntegerAttr(value)));
  };
  entries.push_back(
      code.getNamedAttr("architecture", code.getStringAttr(familyName(config.family))));
  integer("vocab_size", config.vocabSize);
  integer("hidden_size", config.hiddenSize);
  integer("intermediate_size", config.intermediateSize);
  integer("layers", config.layers);
  integer("heads", config.heads);
  integer("kv_heads", config.kvHeads);
  integer("head_dim", config.headDim);
  integer("context_length", positions);
  integer("max_context_length", config.contextLength);
  if (sequences > 1)
    integer("batch", sequences);
  entries.push_back(code.getNamedAttr("norm_epsilon", normEpsilon()));
  if (config.bosId)
    integer("bos_id", *config.bosId);
  entries.push_back(code.getNamedAttr("eos_ids", code.getDenseI64ArrayAttr(config.eosIds)));
  return code.getDictionaryAttr(entries);
}

model::RopeAttr ModelBuilder::ropeAttr(int64_t layer) {
  if (!config.localRotary.empty() && config.localRotary[layer])
    return model::RopeAttr::get(code.getContext(), code.getF64FloatAttr(config.localRopeTheta),
                                "none", code.getDenseF64ArrayAttr({}), 0, FloatAttr());
  const RopeScaling &scaling = config.ropeScaling;
  return model::RopeAttr::get(
      code.getContext(), code.getF64FloatAttr(config.ropeTheta), scaling.name(),
      code.getDenseF64ArrayAttr(scaling.values(positions)), config.rotaryDims,
      scaling.magnitude == 1 ? FloatAttr() : code.getF64FloatAttr(scaling.magnitude));
}

model::ViewAttr ModelBuilder::viewAttr(const formats::RowView &view) {
  if (view.isPlain())
    return {};
  return model::ViewAttr::get(code.getContext(), view.block, view.stride, view.rotary, view.head,
                              view.pitch, view.first, view.total);
}

Type ModelBuilder::weightType(const Weight &weight) {
  if (const std::optional<CheckpointParts> &parts = weight.parts) {
    int64_t matrix[] = {parts->rows, parts->columns};
    if (isVectorScheme(parts->scheme))
      return RankedTensorType::get({parts->columns}, code.getF32Type());
    if (!parts->encoding)
      return RankedTensorType::get(matrix, code.getF32Type());
    MLIRContext *context = code.getContext();
    return quantized::QuantizedTensorType::get(
        context, matrix, quantized::EncodingAttr::get(context, *parts->encoding),
        quantized::LayoutAttr::get(context, quantized::LayoutKind::Rows, 0));
  }
  ArrayRef<int64_t> shape = weight.tensor.shape;
  switch (weight.tensor.type) {
  case StorageType::F32:
    return RankedTensorType::get(shape, code.getF32Type());
  case StorageType::F16:
    return RankedTensorType::get(shape, code.getF16Type());
  case StorageType::BF16:
    return RankedTensorType::get(shape, code.getBF16Type());
  default:
    break;
  }
  const formats::GgufBlock *block = formats::GgufBlock::named(storageName(weight.tensor.type));
  assert(block && "openModel accepts only usable types");
  MLIRContext *context = code.getContext();
  return quantized::QuantizedTensorType::get(
      context, shape, quantized::EncodingAttr::get(context, block->encoding),
      quantized::LayoutAttr::get(
          context,
          block->isRepacked() ? quantized::LayoutKind::Rows : quantized::LayoutKind::Blocks, 0));
}

void ModelBuilder::declare(StringRef name, const Weight *weight, ArrayRef<int64_t> shape) {
  Location loc = named(name);
  Type type = weight ? weightType(*weight) : RankedTensorType::get(shape, code.getF16Type());
  if (!declared.try_emplace(name, type).second)
    return;
  StringAttr file, tensor, scheme;
  ArrayAttr parts;
  IntegerAttr offset, length, interleaved;
  model::ViewAttr view;
  if (weight) {
    file = symbols.getStringAttr(weight->tensor.file);
    tensor = symbols.getStringAttr(weight->tensor.name);
    offset = symbols.getI64IntegerAttr(weight->tensor.offset);
    length = symbols.getI64IntegerAttr(weight->tensor.bytes);
    if (weight->parts) {
      scheme = symbols.getStringAttr(schemeName(weight->parts->scheme));
      SmallVector<Attribute> list;
      for (const auto &[role, part] : weight->parts->parts)
        list.push_back(model::PartAttr::get(
            code.getContext(), roleName(role), part.file, part.name, storageName(part.type),
            part.shape, static_cast<int64_t>(part.offset), static_cast<int64_t>(part.bytes)));
      parts = symbols.getArrayAttr(list);
    }
    if (weight->ropeInterleaved)
      interleaved = symbols.getI64IntegerAttr(config.headDim);
    view = viewAttr(weight->tensor.view);
  }
  model::WeightOp::create(symbols, loc, symbols.getStringAttr(name), TypeAttr::get(type), file,
                          tensor, offset, length, scheme, parts, interleaved, view);
}

Value ModelBuilder::parameter(StringRef name) {
  return model::ParameterOp::create(code, named(name), declared.lookup(name),
                                    SymbolRefAttr::get(code.getContext(), name));
}

Value ModelBuilder::vector(StringRef name, const Weight *weight, int64_t size) {
  declare(name, weight, {size});
  return parameter(name);
}

Value ModelBuilder::matrix(StringRef name, const Weight *weight, int64_t rows, int64_t columns) {
  declare(name, weight, {rows, columns});
  Value value = parameter(name);
  if (isa<quantized::QuantizedTensorType>(value.getType()))
    value = quantized::DequantizeOp::create(
        code, named(name), RankedTensorType::get({rows, columns}, code.getF32Type()), value);
  return value;
}

Value ModelBuilder::norm(StringRef name, Value input, const Weight *gain, const Weight *bias) {
  if (config.norm != NormKind::Layer)
    return rmsNorm(name, input, gain);
  Value gains = vector(name, gain, config.hiddenSize);
  Value biases =
      config.normBias ? vector((name + ".bias").str(), bias, config.hiddenSize) : Value();
  return model::LayerNormOp::create(code, named(name), input.getType(), input, gains, biases,
                                    normEpsilon());
}

Value ModelBuilder::rmsNorm(StringRef name, Value input, const Weight *gain, bool byHead) {
  int64_t width = byHead ? config.headDim : cast<RankedTensorType>(input.getType()).getDimSize(1);
  Value gains = vector(name, gain, width);
  UnitAttr plusOne = config.norm == NormKind::RmsPlusOne ? code.getUnitAttr() : UnitAttr();
  return model::RmsNormOp::create(code, named(name), input.getType(), input, gains, normEpsilon(),
                                  plusOne, byHead ? code.getI64IntegerAttr(width) : IntegerAttr());
}

Value ModelBuilder::activated(StringRef name, Value input) {
  Location loc = named(name);
  switch (config.activation) {
  case Activation::Silu:
    return model::SiluOp::create(code, loc, input.getType(), input);
  case Activation::Gelu:
  case Activation::GeluTanh:
    return model::GeluOp::create(code, loc, input.getType(), input,
                                 config.activation == Activation::GeluTanh ? code.getUnitAttr()
                                                                           : UnitAttr());
  }
  llvm_unreachable("all activations are known");
}

Value ModelBuilder::scaled(const Twine &name, Value input, double factor) {
  if (factor == 1)
    return input;
  return model::ScaleOp::create(code, named(name), input.getType(), input,
                                code.getF64FloatAttr(factor));
}

Value ModelBuilder::residual(StringRef name, Value x, Value made) {
  return arith::AddFOp::create(code, named(name), x,
                               scaled(name + "_scale", made, config.residualScale));
}

Value ModelBuilder::reordered(StringRef name, Value input, const Weight *weight) {
  if (!weight || !weight->parts || !weight->parts->encoding)
    return input;
  const TensorRef *groups = weight->parts->find(PartRole::Groups);
  if (!groups)
    return input;
  // Weights with the same order share it.
  Value &order = orders[{groups->file, groups->offset}];
  if (!order) {
    Weight columns;
    columns.tensor = *groups;
    columns.parts.emplace(CheckpointScheme::ColumnOrder, 1, weight->parts->columns);
    order = vector((name + ".order").str(), &columns, weight->parts->columns);
  }
  Value &result = reorders[{input, order}];
  if (!result)
    result = model::ReorderOp::create(code, named((name + ".reorder").str()), input, order);
  return result;
}

Value ModelBuilder::linear(StringRef name, Value input, const Weight *weight, int64_t rows,
                           bool hasBias, const Weight *bias) {
  Value w = matrix(name, weight, rows, cast<RankedTensorType>(input.getType()).getDimSize(1));
  Value b = hasBias ? vector((name + ".bias").str(), bias, rows) : Value();
  return product(name, input, w, weight, b);
}

Value ModelBuilder::product(StringRef name, Value input, Value matrix, const Weight *weight,
                            Value bias) {
  int64_t rows = cast<RankedTensorType>(matrix.getType()).getDimSize(0);
  input = reordered(name, input, weight);
  if (!weight || !weight->parts || !weight->parts->divisor)
    return model::LinearOp::create(code, named(name), activation(rows), input, matrix, bias);
  Weight inverse;
  inverse.tensor = *weight->parts->divisor;
  inverse.parts.emplace(CheckpointScheme::InverseFactor, 1, rows);
  std::string factorName = (name + ".factor").str();
  Value factor = vector(factorName, &inverse, rows);
  Value unscaled = model::LinearOp::create(code, named(name), activation(rows), input, matrix,
                                           /*bias=*/Value());
  Value divided = model::ScaleChannelsOp::create(code, named(factorName), unscaled, factor);
  return bias ? Value(model::AddBiasOp::create(code, named(name), divided, bias)) : divided;
}

/// What `member` selects of `weights`, or null.
static const Weight *get(const LayerWeights *weights, std::optional<Weight> LayerWeights::*member) {
  return weights && weights->*member ? &*(weights->*member) : nullptr;
}

static const Weight *get(const LayerWeights *weights, Weight LayerWeights::*member) {
  return weights ? &(weights->*member) : nullptr;
}

Value ModelBuilder::attention(int64_t layer, Value x, const LayerWeights *weights) {
  auto name = [&](StringRef part) { return ("blk." + Twine(layer) + "." + part).str(); };
  int64_t width = config.heads * config.headDim, kvWidth = config.kvHeads * config.headDim;
  Value n = x;
  if (config.normPlaces != NormPlaces::After)
    n = norm(name("attn_norm"), x, get(weights, &LayerWeights::attnNorm),
             get(weights, &LayerWeights::attnNormBias));
  Value q = linear(name("attn_q"), n, get(weights, &LayerWeights::q), width, config.qBias,
                   get(weights, &LayerWeights::qBias));
  Value k = linear(name("attn_k"), n, get(weights, &LayerWeights::k), kvWidth, config.kBias,
                   get(weights, &LayerWeights::kBias));
  Value v = linear(name("attn_v"), n, get(weights, &LayerWeights::v), kvWidth, config.vBias,
                   get(weights, &LayerWeights::vBias));
  if (config.rowQkNorm || config.qkNorms) {
    q = rmsNorm(name("attn_q_norm"), q, get(weights, &LayerWeights::qNorm), config.qkNorms);
    k = rmsNorm(name("attn_k_norm"), k, get(weights, &LayerWeights::kNorm), config.qkNorms);
  }
  bool rotates =
      !config.learnedPositions && (config.withoutRotary.empty() || !config.withoutRotary[layer]);
  auto rotary = [&](StringRef part, Value value) -> Value {
    if (!rotates)
      return value;
    return model::RotaryOp::create(code, named(name(part)), value.getType(), value, steps,
                                   code.getI64IntegerAttr(config.headDim),
                                   /*interleaved=*/UnitAttr(), ropeAttr(layer),
                                   /*table=*/Value());
  };
  q = rotary("attn_q.rope", q);
  k = rotary("attn_k.rope", k);

  auto cacheType = quantized::CacheType::get(
      code.getContext(), {sequences, positions, config.kvHeads, config.headDim},
      formats::CacheEncoding{formats::CacheEncoding::Element::F16}, quantized::CacheLayout::Rows);
  auto append = [&](StringRef kind, Value value) {
    std::string cache = ("cache." + kind + "." + Twine(layer)).str();
    model::CacheOp::create(symbols, named(cache), symbols.getStringAttr(cache),
                           TypeAttr::get(cacheType));
    auto ref = FlatSymbolRefAttr::get(code.getContext(), cache);
    model::CacheAppendOp::create(code, named(cache), ref, value, steps, /*pages=*/nullptr,
                                 /*sequences=*/nullptr);
    return ref;
  };
  FlatSymbolRefAttr keys = append("k", k), values = append("v", v);
  double scale = config.attentionScale ? config.attentionScale
                                       : 1.0 / std::sqrt(static_cast<double>(config.headDim));
  IntegerAttr window;
  if (!config.windows.empty() && config.windows[layer])
    window = code.getI64IntegerAttr(config.windows[layer]);
  Value a = model::AttentionOp::create(
      code, named(name("attn")), q.getType(), q, keys, values, steps, code.getF64FloatAttr(scale),
      window, config.scoreCap ? code.getF64FloatAttr(config.scoreCap) : FloatAttr());
  Value o = linear(name("attn_output"), a, get(weights, &LayerWeights::o), config.hiddenSize,
                   config.oBias, get(weights, &LayerWeights::oBias));
  if (config.normPlaces != NormPlaces::Before)
    o = rmsNorm(name("post_attention_norm"), o, get(weights, &LayerWeights::attnPostNorm));
  return o;
}

Value ModelBuilder::mlp(int64_t layer, Value x, const LayerWeights *weights) {
  auto name = [&](StringRef part) { return ("blk." + Twine(layer) + "." + part).str(); };
  Value n = x;
  if (config.normPlaces != NormPlaces::After)
    n = norm(name("ffn_norm"), x, get(weights, &LayerWeights::mlpNorm),
             get(weights, &LayerWeights::mlpNormBias));
  Value gate;
  if (config.gatedMlp)
    gate = linear(name("ffn_gate"), n, get(weights, &LayerWeights::gate), config.intermediateSize,
                  config.mlpBias, get(weights, &LayerWeights::gateBias));
  Value up = linear(name("ffn_up"), n, get(weights, &LayerWeights::up), config.intermediateSize,
                    config.mlpBias, get(weights, &LayerWeights::upBias));
  std::string activation = name(config.activation == Activation::Silu ? "ffn_silu" : "ffn_gelu");
  Value inner = activated(activation, config.gatedMlp ? gate : up);
  if (config.gatedMlp)
    inner = arith::MulFOp::create(code, named(name("ffn_gated")), inner, up);
  Value down = linear(name("ffn_down"), inner, get(weights, &LayerWeights::down), config.hiddenSize,
                      config.mlpBias, get(weights, &LayerWeights::downBias));
  if (config.normPlaces != NormPlaces::Before)
    down = rmsNorm(name("post_ffw_norm"), down, get(weights, &LayerWeights::mlpPostNorm));
  return down;
}

Value ModelBuilder::embedded(const Weights *weights) {
  RankedTensorType type = activation(config.hiddenSize);
  Value table = matrix("token_embd", weights ? &weights->tokenEmbedding : nullptr, config.vocabSize,
                       config.hiddenSize);
  Value x = model::EmbeddingOp::create(code, named("token_embd"), type, tokens, table);
  x = scaled("token_embd_scale", x, config.embeddingScale);
  if (!config.learnedPositions)
    return x;
  Value places = matrix("position_embd", weights ? &*weights->positionEmbedding : nullptr,
                        config.contextLength, config.hiddenSize);
  Value p = model::EmbeddingOp::create(code, named("position_embd"), type, steps, places);
  return arith::AddFOp::create(code, named("embd_sum"), x, p);
}

OwningOpRef<ModuleOp> ModelBuilder::build() {
  OwningOpRef<ModuleOp> owner = ModuleOp::create(named(files.path));
  module = *owner;
  if (!config.name.empty())
    module.setSymName(config.name);
  module->setAttr("model.source", code.getStringAttr(files.path));
  module->setAttr("model.config", configAttr());

  auto perRow = RankedTensorType::get({rows}, code.getI32Type());
  code.setInsertionPointToEnd(module.getBody());
  auto function =
      func::FuncOp::create(code, named("decode"), "decode",
                           code.getFunctionType({perRow, perRow}, {activation(config.vocabSize)}));
  Block *body = new Block();
  function.getBody().push_back(body);
  tokens = body->addArgument(perRow, named("token"));
  steps = body->addArgument(perRow, named("position"));
  symbols.setInsertionPoint(function);
  code.setInsertionPointToEnd(body);

  const Weights *weights = files.weightsPresent ? &files.weights : nullptr;
  const Weight *embedding = weights ? &weights->tokenEmbedding : nullptr;
  Value x = embedded(weights);
  for (int64_t layer = 0; layer < config.layers; ++layer) {
    auto name = [&](StringRef part) { return ("blk." + Twine(layer) + "." + part).str(); };
    const LayerWeights *layerWeights = weights ? &weights->layers[layer] : nullptr;
    Value attended = attention(layer, x, layerWeights);
    Value sum = residual(name("attn_residual"), x, attended);
    Value made = mlp(layer, config.parallelResidual ? x : sum, layerWeights);
    x = residual(name("ffn_residual"), sum, made);
  }
  x = norm("output_norm", x, weights ? &weights->outputNorm : nullptr,
           weights && weights->outputNormBias ? &*weights->outputNormBias : nullptr);

  bool tied = weights ? !weights->head : config.tiedEmbeddings;
  const Weight *head = tied ? embedding : weights ? &*weights->head : nullptr;
  Value w = matrix(tied ? "token_embd" : "output", head, config.vocabSize, config.hiddenSize);
  Value logits = product("output", x, w, head, /*bias=*/Value());
  logits = scaled("output_scale", logits, config.logitScale);
  if (config.logitCap)
    logits = model::SoftCapOp::create(code, named("output_soft_cap"), logits.getType(), logits,
                                      code.getF64FloatAttr(config.logitCap));
  func::ReturnOp::create(code, named("decode"), logits);
  return owner;
}

llvm::Expected<OwningOpRef<ModuleOp>>
sluice::importModel(MLIRContext &context, const ModelFiles &files, const ImportOptions &options) {
  int64_t most = files.config.contextLength;
  int64_t positions = options.context.value_or(std::min(most, ImportOptions::defaultContext));
  if (positions < 1)
    return makeError("context must be at least 1, found " + Twine(positions));
  if (positions > most)
    return makeError(files.path + ": context must be at most the model's " + Twine(most) +
                     " positions, found " + Twine(positions));
  if (options.tokens < 1 || options.tokens > positions)
    return makeError("rows of a step must be 1 to the context's " + Twine(positions) + ", found " +
                     Twine(options.tokens));

  context.loadDialect<arith::ArithDialect, func::FuncDialect, model::ModelDialect,
                      quantized::QuantizedDialect>();
  OwningOpRef<ModuleOp> module = ModelBuilder(context, files, positions, options).build();

  std::string message;
  ScopedDiagnosticHandler collect(&context, [&](Diagnostic &diagnostic) {
    if (message.empty())
      message = diagnostic.str();
  });
  if (failed(verify(*module)))
    return makeError(files.path + ": " + message);
  return module;
}

llvm::Expected<std::string> sluice::weightRoot(ModuleOp module) {
  auto source = module->getAttrOfType<StringAttr>("model.source");
  if (!source)
    return makeError("the module has no model.source: its weights cannot be found");
  llvm::sys::fs::file_status status;
  if (std::error_code code = llvm::sys::fs::status(source.getValue(), status))
    return makeError(source.getValue() +
                     ": the module's model.source cannot be opened: " + code.message());
  if (status.type() == llvm::sys::fs::file_type::directory_file)
    return source.str();
  StringRef parent = llvm::sys::path::parent_path(source.getValue());
  return parent.empty() ? std::string(".") : parent.str();
}

/// Adds the parts of a checkpoint's scheme, and what the tensor with the elements is: the scheme
/// and the number of its bytes say it.
static llvm::Error addParts(model::WeightOp weight, Weight &result) {
  auto wrong = [&](const Twine &message) {
    return makeError("weight '" + weight.getSymName() + "': " + message);
  };
  std::optional<CheckpointScheme> scheme = schemeFromName(*weight.getScheme());
  if (!scheme)
    return wrong("unknown scheme '" + *weight.getScheme() + "'");
  CheckpointParts &parts = result.parts.emplace();
  parts.scheme = *scheme;
  if (auto type = dyn_cast<quantized::QuantizedTensorType>(weight.getType())) {
    parts.rows = type.getRows();
    parts.columns = type.getColumns();
    parts.encoding = type.getEncoding().getValue();
    parts.group = parts.encoding->group;
  } else {
    auto plain = cast<RankedTensorType>(weight.getType());
    parts.rows = plain.getRank() == 2 ? plain.getDimSize(0) : 1;
    parts.columns = plain.getDimSize(plain.getRank() - 1);
  }
  for (auto part : weight.getParts()->getAsRange<model::PartAttr>()) {
    std::optional<PartRole> role = roleFromName(part.getRole());
    std::optional<StorageType> storage = storageFromSafetensors(part.getElement());
    if (!role || !storage)
      return wrong("unknown " + (role ? "type '" + part.getElement() : "role '" + part.getRole()) +
                   "' of a part");
    TensorRef ref;
    ref.name = part.getTensor().str();
    ref.file = part.getFile().str();
    ref.type = *storage;
    ref.shape.assign(part.getShape().begin(), part.getShape().end());
    ref.offset = part.getOffset();
    ref.bytes = part.getLength();
    if (parts.find(*role))
      return wrong("has two parts with the role " + part.getRole());
    parts.parts.emplace_back(*role, std::move(ref));
  }
  for (const ElementForm &form : elementForms(*scheme, matrixRows(result), parts.columns))
    if (storageBytes(form.type, form.shape) == result.tensor.bytes) {
      result.tensor.type = form.type;
      result.tensor.shape = form.shape;
      return llvm::Error::success();
    }
  return wrong("no matrix of scheme " + *weight.getScheme() + " has " + Twine(result.tensor.bytes) +
               " bytes of elements");
}

llvm::Expected<Weight> sluice::weightInFile(model::WeightOp weight) {
  if (weight.isSynthetic())
    return makeError("weight '" + weight.getSymName() +
                     "' is synthetic: there is no file to read it from");
  Weight result;
  result.ropeInterleaved = weight.getInterleaved().has_value();
  TensorRef &ref = result.tensor;
  ref.name = weight.getTensor()->str();
  ref.file = weight.getFile()->str();
  ref.offset = *weight.getOffset();
  ref.bytes = *weight.getLength();
  ref.view = weight.getRowView();
  if (weight.getScheme()) {
    if (llvm::Error error = addParts(weight, result))
      return std::move(error);
    return result;
  }
  std::optional<StorageType> storage;
  if (auto blocks = dyn_cast<quantized::QuantizedTensorType>(weight.getType())) {
    ref.shape.assign(blocks.getShape().begin(), blocks.getShape().end());
    if (blocks.getLayout().getKind() == quantized::LayoutKind::Blocks)
      storage = storageFromName(formats::GgufBlock::of(blocks.getEncoding().getValue())->name);
    else
      storage = repackedStorage(blocks.getEncoding().getValue(), ref);
  } else {
    auto plain = cast<RankedTensorType>(weight.getType());
    ref.shape.assign(plain.getShape().begin(), plain.getShape().end());
    Type element = plain.getElementType();
    if (element.isF32())
      storage = StorageType::F32;
    else if (element.isF16())
      storage = StorageType::F16;
    else if (element.isBF16())
      storage = StorageType::BF16;
  }
  if (!storage) {
    std::string type;
    llvm::raw_string_ostream(type) << weight.getType();
    return makeError("weight '" + weight.getSymName() + "': no model file holds the type " + type);
  }
  ref.type = *storage;
  return result;
}
