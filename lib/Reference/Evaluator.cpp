// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sluice/Reference/Evaluator.h"

#include "dialects/Fused/Fused.h"
#include "sluice/Formats/RowOrder.h"
#include "sluice/Reference/Ops.h"

#include "PersistentStep.h"

#include "mlir/Dialect/Arith/IR/Arith.h"
#include "mlir/Dialect/Func/IR/FuncOps.h"
#include "mlir/IR/BuiltinAttributes.h"
#include "llvm/ADT/TypeSwitch.h"

using namespace mlir;
using namespace sluice;
using namespace sluice::reference;
using formats::Encoding;

static llvm::Error makeError(const Twine &message) {
  return llvm::createStringError(llvm::inconvertibleErrorCode(), message);
}

static std::string typeText(Type type) {
  std::string text;
  llvm::raw_string_ostream(text) << type;
  return text;
}

/// Puts the operation's name, and the part of the model that it is located at, before an error.
static llvm::Error inOperation(Operation *op, llvm::Error error) {
  std::string message = llvm::toString(std::move(error)),
              where = op->getName().getStringRef().str();
  if (auto name = op->getLoc()->findInstanceOf<NameLoc>())
    where += " (" + name.getName().str() + ")";
  return makeError(where + ": " + message);
}

/// The float element type of a tensor type.
static Encoding::Element elementOf(Type type) {
  Type element = getElementTypeOrSelf(type);
  return element.isF16()    ? Encoding::Element::F16
         : element.isBF16() ? Encoding::Element::BF16
                            : Encoding::Element::F32;
}

static EvaluatedValue wrap(Tensor tensor) {
  return {std::make_shared<const Tensor>(std::move(tensor)), nullptr};
}
static EvaluatedValue wrap(QuantizedMatrix matrix) {
  return {nullptr, std::make_shared<const QuantizedMatrix>(std::move(matrix))};
}
template <typename T> static llvm::Expected<EvaluatedValue> wrap(llvm::Expected<T> value) {
  if (!value)
    return value.takeError();
  return wrap(std::move(*value));
}

/// `tensor` rounded to the element type of `type`.
static EvaluatedValue wrapAs(Type type, Tensor tensor) {
  roundTo(elementOf(type), tensor);
  return wrap(std::move(tensor));
}

//===----------------------------------------------------------------------===//
// Symbols
//===----------------------------------------------------------------------===//

Evaluator::Evaluator(ModuleOp module, WeightProvider &weights) : module(module), weights(weights) {
  resetCaches();
}

Evaluator::~Evaluator() = default;

static Cache makeCache(quantized::CacheType type) {
  return Cache(type.getSequences(), type.getPositions(), type.getHeads(), type.getHeadDim(),
               type.getEncoding());
}

void Evaluator::resetCaches() {
  for (auto cache : module.getOps<model::CacheOp>())
    caches[cache.getSymName()] = makeCache(cache.getCacheType());
}

Cache *Evaluator::cache(StringRef name) {
  auto it = caches.find(name);
  return it == caches.end() ? nullptr : &it->second;
}

/// Whose each row is of sequences that are packed one behind the other.
static llvm::Expected<std::vector<int32_t>> ownersOf(const Tensor &starts) {
  std::vector<int32_t> owners;
  ArrayRef<int32_t> ends = ArrayRef(starts.integers).drop_front();
  if (starts.integers.front() != 0)
    return makeError("the first of packed sequences starts at row 0, found " +
                     Twine(starts.integers.front()));
  for (auto [sequence, end] : llvm::enumerate(ends)) {
    if (end < static_cast<int32_t>(owners.size()))
      return makeError("packed sequence " + Twine(sequence) + " ends before it starts");
    owners.resize(end, static_cast<int32_t>(sequence));
  }
  return owners;
}

llvm::Expected<Cache *> Evaluator::cacheWith(StringRef name, Value pages,
                                             std::vector<int32_t> owners) {
  Cache &found = caches[name];
  found.pages = pages ? lookup(pages).tensor : nullptr;
  for (int32_t owner : owners)
    if (owner < 0 || owner >= found.pages->rows())
      return makeError("sequence " + Twine(owner) + " is not in the page table, which has " +
                       Twine(found.pages->rows()));
  found.owners = std::move(owners);
  if (found.pages)
    for (int32_t page : found.pages->integers)
      if (page < 0 || page >= found.sequences)
        return makeError("page " + Twine(page) + " is not in cache '" + name + "', which has " +
                         Twine(found.sequences));
  return &found;
}

/// Row i of the result is row order(i) of `data`, whose rows have `width` entries.
template <typename T>
static void permuteRows(std::vector<T> &data, int64_t rows, function_ref<int64_t(int64_t)> order) {
  std::vector<T> result(data.size());
  int64_t width = static_cast<int64_t>(data.size()) / rows;
  for (int64_t row = 0; row < rows; ++row)
    std::copy_n(data.begin() + order(row) * width, width, result.begin() + row * width);
  data = std::move(result);
}

/// Whether a value has the type that its weight declares.
static bool matches(const WeightValue &value, Type type) {
  if (auto matrix = std::get_if<QuantizedMatrix>(&value)) {
    auto declared = dyn_cast<quantized::QuantizedTensorType>(type);
    return declared && declared.getRows() == matrix->rows &&
           declared.getColumns() == matrix->columns &&
           declared.getEncoding().getValue() == matrix->encoding;
  }
  auto declared = dyn_cast<RankedTensorType>(type);
  return declared && declared.getShape() == ArrayRef<int64_t>(std::get<Tensor>(value).shape);
}

llvm::Expected<EvaluatedValue> Evaluator::readWeight(model::WeightOp weight) {
  llvm::Expected<WeightValue> read = weights.read(weight);
  if (!read)
    return read.takeError();
  if (!matches(*read, weight.getType()))
    return makeError("weight '" + weight.getSymName() + "' is declared as " +
                     typeText(weight.getType()) + ", but another shape or format was read");
  if (std::optional<int64_t> dim = weight.getInterleaved()) {
    auto order = [&](int64_t row) { return formats::ggufRotaryRow(row, *dim); };
    if (auto matrix = std::get_if<QuantizedMatrix>(&*read)) {
      permuteRows(matrix->q, matrix->rows, order);
      permuteRows(matrix->scales, matrix->rows, order);
      permuteRows(matrix->zeros, matrix->rows, order);
      permuteRows(matrix->offsets, matrix->rows, order);
      permuteRows(matrix->supers, matrix->rows, order);
    } else {
      auto &tensor = std::get<Tensor>(*read);
      permuteRows(tensor.values, tensor.rows(), order);
    }
  }
  if (auto tensor = std::get_if<Tensor>(&*read))
    return wrapAs(weight.getType(), std::move(*tensor));
  return wrap(std::move(std::get<QuantizedMatrix>(*read)));
}

llvm::Expected<EvaluatedValue> Evaluator::makePacked(quantized::PackedOp packed) {
  std::string name = ("packed weight '" + packed.getSymName() + "'").str();
  QuantizedMatrix result;
  auto type = dyn_cast<quantized::QuantizedTensorType>(packed.getType());
  for (auto source : packed.getSources().getAsRange<FlatSymbolRefAttr>()) {
    if (!isa_and_nonnull<model::WeightOp>(module.lookupSymbol(source.getValue())))
      return makeError(name + ": its source '" + source.getValue() + "' is not a weight");
    llvm::Expected<EvaluatedValue> value = symbol(source.getValue());
    if (!value)
      return value.takeError();
    // Blocks that already have the format are taken over bit for bit.
    bool kept = type && value->matrix && value->matrix->encoding == type.getEncoding().getValue();
    TensorPtr floats = value->tensor;
    if (!floats && !kept)
      floats = std::make_shared<const Tensor>(dequantize(*value->matrix));
    if (!type) {
      if (ArrayRef<int64_t>(floats->shape) != cast<RankedTensorType>(packed.getType()).getShape())
        return makeError(name + ": its source '" + source.getValue() + "' has another shape than " +
                         typeText(packed.getType()));
      return wrapAs(packed.getType(), *floats);
    }
    if ((kept ? value->matrix->columns : floats->width()) != type.getColumns())
      return makeError(name + ": its source '" + source.getValue() +
                       "' does not have the columns of " + typeText(packed.getType()));
    QuantizedPtr part = value->matrix;
    if (!kept) {
      llvm::Expected<QuantizedMatrix> made = quantize(*floats, type.getEncoding().getValue());
      if (!made)
        return makeError(name + ": its source '" + source.getValue() +
                         "': " + llvm::toString(made.takeError()));
      part = std::make_shared<const QuantizedMatrix>(std::move(*made));
    }
    result.encoding = part->encoding;
    result.columns = part->columns;
    result.rows += part->rows;
    llvm::append_range(result.q, part->q);
    llvm::append_range(result.scales, part->scales);
    llvm::append_range(result.zeros, part->zeros);
    llvm::append_range(result.offsets, part->offsets);
    llvm::append_range(result.supers, part->supers);
    llvm::append_range(result.values, part->values);
  }
  if (result.rows != type.getRows())
    return makeError(name + ": its sources have " + Twine(result.rows) + " rows, its type is " +
                     typeText(packed.getType()));
  return wrap(std::move(result));
}

llvm::Expected<EvaluatedValue> Evaluator::symbol(StringRef name) {
  auto it = symbols.find(name);
  if (it != symbols.end())
    return it->second;
  Operation *definition = module.lookupSymbol(name);
  if (!definition)
    return makeError("the module has no symbol '" + name + "'");
  auto value =
      TypeSwitch<Operation *, llvm::Expected<EvaluatedValue>>(definition)
          .Case<model::WeightOp>([&](auto op) { return readWeight(op); })
          .Case<quantized::PackedOp>([&](auto op) { return makePacked(op); })
          .Case<model::RopeTableOp>([&](auto op) {
            auto type = cast<RankedTensorType>(op.getType());
            return wrap(ropeTable(type.getDimSize(0),
                                  op.getRope().getFrequencies(type.getDimSize(1)),
                                  op.getRope().getFactor()));
          })
          .Default([&](Operation *) { return makeError("'" + name + "' is not a weight"); });
  if (value)
    symbols[name] = *value;
  return value;
}

//===----------------------------------------------------------------------===//
// Operations
//===----------------------------------------------------------------------===//

EvaluatedValue Evaluator::lookup(Value value) const {
  auto it = values.find(value);
  if (it != values.end())
    return it->second;
  return constants.lookup(value);
}

const Tensor &Evaluator::tensor(Value value) const { return *lookup(value).tensor; }

static llvm::Expected<EvaluatedValue> evaluateConstant(arith::ConstantOp op) {
  auto elements = dyn_cast<DenseElementsAttr>(op.getValue());
  if (!elements || !(isa<FloatType>(elements.getElementType()) ||
                     elements.getElementType().isSignlessInteger(32)))
    return makeError("only dense tensors of floats or i32 have a value here");
  ArrayRef<int64_t> shape = elements.getType().getShape();
  if (elements.getElementType().isInteger()) {
    auto range = elements.getValues<int32_t>();
    return wrap(Tensor::ints(shape, {range.begin(), range.end()}));
  }
  std::vector<float> floats;
  for (const APFloat &value : elements.getValues<APFloat>())
    floats.push_back(static_cast<float>(value.convertToDouble()));
  return wrap(Tensor::floats(shape, std::move(floats)));
}

/// Columns begin .. begin + width of every row.
static Tensor sliceColumns(const Tensor &input, int64_t begin, int64_t width) {
  Tensor result = Tensor::zeros({input.rows(), width});
  for (int64_t row = 0; row < input.rows(); ++row)
    llvm::copy(input.row(row).slice(begin, width), result.row(row).begin());
  return result;
}

llvm::Expected<EvaluatedValue> Evaluator::runPrologue(Region &prologue,
                                                      ArrayRef<EvaluatedValue> inputs) {
  if (prologue.empty())
    return inputs.front();
  llvm::Expected<Results> made = runBlock(prologue.front(), inputs);
  if (!made)
    return made.takeError();
  return made->front();
}

Tensor Evaluator::runWeights(Operation *operation, const Tensor &input) const {
  auto op = cast<fused::ProductOp>(operation);
  Tensor sums = Tensor::zeros({input.rows(), llvm::sum_of(op.getSegments(), int64_t(0))});
  int64_t begin = 0;
  for (Value weight : op.getWeights()) {
    EvaluatedValue value = lookup(weight);
    Tensor part = value.matrix ? product(input, *value.matrix)
                               : product(input, *value.tensor, elementOf(weight.getType()));
    for (int64_t row = 0; row < sums.rows(); ++row)
      llvm::copy(part.row(row), sums.row(row).begin() + begin);
    begin += part.width();
  }
  return sums;
}

llvm::Expected<Evaluator::Results> Evaluator::runProduct(Operation *operation) {
  auto op = cast<fused::ProductOp>(operation);
  EvaluatedValue input = lookup(op->getOperand(0));
  if (persistent && persistent->isAdded(operation)) {
    for (fused::IndexRange columns : persistent->columnsOf(operation)) {
      // Groups of zeros add nothing to a sum.
      Tensor part = *input.tensor;
      for (auto [column, value] : llvm::enumerate(part.row(0)))
        if (int64_t(column) < columns.begin || int64_t(column) >= columns.end)
          value = 0;
      persistent->add(operation, runWeights(operation, part));
    }
    return Results{wrap(persistent->streamAfter(operation, tensor(persistent->embedding())))};
  }
  float factor = 1;
  if (persistent && persistent->isNormed(operation)) {
    auto norm =
        cast<model::RmsNormOp>(cast<fused::MatvecOp>(operation).getPrologue().front().front());
    const Tensor &gain = tensor(norm.getGain());
    Tensor scaled = *input.tensor;
    factor = static_cast<float>(rmsFactor(scaled.row(0), norm.getEpsilon().convertToDouble()));
    for (auto [value, by] : llvm::zip_equal(scaled.row(0), gain.values))
      value *= norm.getPlusOne() ? by + 1.0f : by;
    input = wrap(std::move(scaled));
  } else if (auto matvec = dyn_cast<fused::MatvecOp>(operation)) {
    llvm::Expected<EvaluatedValue> made = runPrologue(matvec.getPrologue(), {input});
    if (!made)
      return made.takeError();
    input = *made;
  }

  Tensor sums = runWeights(operation, *input.tensor);
  if (factor != 1)
    for (float &sum : sums.values)
      sum *= factor;

  Results segments;
  int64_t begin = 0;
  for (int64_t segment : op.getSegments()) {
    segments.push_back(wrap(sliceColumns(sums, begin, segment)));
    begin += segment;
  }
  if (op.getEpilogue().empty())
    return segments;
  return runBlock(op.getEpilogue().front(), segments);
}

llvm::Expected<EvaluatedValue> Evaluator::runElementwise(Operation *op) {
  auto function = model::elementFunction<model::DoubleArithmetic>(op);
  if (!function)
    return makeError(isa<arith::TruncFOp>(op)
                         ? "only rounding to nearest even has semantics here"
                         : "the operation has no semantics in the reference evaluator");
  auto operands =
      llvm::map_to_vector<2>(op->getOperands(), [&](Value operand) { return &tensor(operand); });
  return wrapAs(op->getResult(0).getType(), elementwise(function, operands));
}

template <typename Attention> static std::optional<double> softCapOf(Attention op) {
  std::optional<APFloat> cap = op.getSoftCap();
  return cap ? std::optional(cap->convertToDouble()) : std::nullopt;
}

llvm::Expected<Evaluator::Results> Evaluator::run(Operation *operation) {
  using Result = llvm::Expected<EvaluatedValue>;
  if (isa<fused::ProductOp>(operation))
    return runProduct(operation);
  if (auto op = dyn_cast<model::CacheAppendOp>(operation)) {
    llvm::Expected<Cache *> cache =
        cacheWith(op.getCache(), op.getPages(),
                  op.getSequences() ? tensor(op.getSequences()).integers : std::vector<int32_t>());
    if (!cache)
      return cache.takeError();
    if (llvm::Error error = cacheAppend(**cache, tensor(op.getInput()), tensor(op.getPositions())))
      return error;
    return Results();
  }

  Result result =
      TypeSwitch<Operation *, Result>(operation)
          .Case<model::ParameterOp>([&](auto op) { return symbol(op.getWeight()); })
          .Case<model::EmbeddingOp>([&](auto op) {
            return wrap(embedding(tensor(op.getTokens()), tensor(op.getTable())));
          })
          .Case<model::RmsNormOp>([&](auto op) {
            return wrap(rmsNorm(tensor(op.getInput()), tensor(op.getGain()),
                                op.getEpsilon().convertToDouble(), op.getPlusOne()));
          })
          .Case<model::LayerNormOp>([&](auto op) {
            return wrap(layerNorm(tensor(op.getInput()), tensor(op.getGain()),
                                  op.getBias() ? &tensor(op.getBias()) : nullptr,
                                  op.getEpsilon().convertToDouble()));
          })
          .Case<model::ReorderOp>(
              [&](auto op) { return wrap(reorder(tensor(op.getInput()), tensor(op.getOrder()))); })
          .Case<model::LinearOp>([&](auto op) {
            return wrap(linear(tensor(op.getInput()), tensor(op.getWeight()),
                               op.getBias() ? &tensor(op.getBias()) : nullptr));
          })
          .Case<model::RotaryOp>([&](auto op) -> Result {
            const Tensor &input = tensor(op.getInput()), &positions = tensor(op.getPositions());
            model::RotaryPairs pairs(op);
            if (op.getTable())
              return wrap(rotary(input, positions, pairs, tensor(op.getTable())));
            return wrap(rotary(input, positions, pairs, op.getRope().getFrequencies(pairs.dim),
                               op.getRope().getFactor()));
          })
          .Case<model::AttentionOp>([&](auto op) {
            return wrap(attention(tensor(op.getQuery()), caches[op.getKeys()],
                                  caches[op.getValues()], tensor(op.getPositions()),
                                  op.getScale().convertToDouble(), op.getWindow(), softCapOf(op)));
          })
          .Case<model::HadamardOp>(
              [&](auto op) { return wrap(hadamard(tensor(op.getInput()), op.getBlock())); })
          .Case<quantized::QuantizeOp>([&](auto op) {
            return wrap(quantize(tensor(op.getInput()), op.getType().getEncoding().getValue()));
          })
          .Case<quantized::DequantizeOp>([&](auto op) {
            return wrapAs(op.getType(), dequantize(*lookup(op.getInput()).matrix));
          })
          .Case<fused::EmbeddingOp>([&](auto op) {
            EvaluatedValue table = lookup(op.getTable());
            return wrap(table.matrix ? embedding(tensor(op.getTokens()), *table.matrix)
                                     : embedding(tensor(op.getTokens()), *table.tensor));
          })
          .Case<fused::AttentionOp>([&](auto op) -> Result {
            Results given = {lookup(op.getQuery())};
            for (Value value : op.getAppended())
              given.push_back(lookup(value));
            llvm::Expected<EvaluatedValue> query = runPrologue(op.getPrologue(), given);
            if (!query)
              return query.takeError();
            llvm::Expected<std::vector<int32_t>> owners = std::vector<int32_t>();
            if (op.getStarts())
              owners = ownersOf(tensor(op.getStarts()));
            if (!owners)
              return owners.takeError();
            if (op.getStarts() && static_cast<int64_t>(owners->size()) != query->tensor->rows())
              return makeError("packed sequences have " + Twine(owners->size()) + " of " +
                               Twine(query->tensor->rows()) + " rows");
            llvm::Expected<Cache *> keys = cacheWith(op.getKeys(), op.getPages(), *owners),
                                    values = cacheWith(op.getValues(), op.getPages(), *owners);
            if (llvm::Error error = llvm::joinErrors(keys.takeError(), values.takeError()))
              return error;
            llvm::Expected<Tensor> mixed =
                fusedAttention(*query->tensor, **keys, **values, tensor(op.getPositions()),
                               op.getScale().convertToDouble(), op.getWindow(), softCapOf(op));
            if (!mixed)
              return mixed.takeError();
            return wrapAs(op.getType(), std::move(*mixed));
          })
          .Case<fused::PrepareOp>(
              [&](auto op) { return runPrologue(op.getPrologue(), {lookup(op.getInput())}); })
          .Case<fused::AppendOp>([&](auto op) -> Result {
            Results given = {lookup(op.getQuery()), lookup(op.getNewKeys()),
                             lookup(op.getNewValues())};
            llvm::Expected<EvaluatedValue> query = runPrologue(op.getPrologue(), given);
            if (!query)
              return query.takeError();
            return wrapAs(op.getType(), *query->tensor);
          })
          .Case<fused::LastRowOp>([&](auto op) {
            const Tensor &rows = tensor(op.getInput());
            std::vector<int32_t> ends = {static_cast<int32_t>(rows.rows())};
            if (op.getStarts())
              ends.assign(tensor(op.getStarts()).integers.begin() + 1,
                          tensor(op.getStarts()).integers.end());
            Tensor last = Tensor::zeros({static_cast<int64_t>(ends.size()), rows.width()});
            for (auto [i, end] : llvm::enumerate(ends))
              llvm::copy(rows.row(std::clamp<int64_t>(end - 1, 0, rows.rows() - 1)),
                         last.row(i).begin());
            return wrap(std::move(last));
          })
          .Case<fused::SampleOp>([&](auto op) {
            return wrap(sample(tensor(op.getLogits()), tensor(op.getOptions())));
          })
          .Case<arith::ConstantOp>([&](auto op) { return evaluateConstant(op); })
          .Default([&](Operation *op) { return runElementwise(op); });
  if (!result)
    return result.takeError();
  return Results{std::move(*result)};
}

/// Whether `op` gives the same values in every call: it depends on weights alone.
static bool dependsOnWeightsAlone(Operation *op,
                                  const llvm::DenseMap<Value, EvaluatedValue> &known) {
  if (isa<model::ParameterOp, arith::ConstantOp>(op))
    return true;
  return isa<quantized::QuantizeOp, quantized::DequantizeOp>(op) &&
         known.contains(op->getOperand(0));
}

llvm::Expected<Evaluator::Results> Evaluator::runBlock(Block &block,
                                                       ArrayRef<EvaluatedValue> arguments) {
  for (auto [argument, value] : llvm::zip_equal(block.getArguments(), arguments))
    values[argument] = value;
  for (Operation &op : block.without_terminator()) {
    bool constant = dependsOnWeightsAlone(&op, constants);
    Results results;
    if (constant && constants.contains(op.getResult(0))) {
      results.push_back(constants.lookup(op.getResult(0)));
    } else {
      llvm::Expected<Results> computed = run(&op);
      if (!computed)
        // An error inside a region has its own operation's name already.
        return isa<fused::ProductOp>(op) ? computed.takeError()
                                         : inOperation(&op, computed.takeError());
      results = std::move(*computed);
    }
    for (auto [result, value] : llvm::zip_equal(op.getResults(), results))
      (constant ? constants : values)[result] = value;
    if (hook)
      hook(&op, results);
  }
  return llvm::map_to_vector<2>(block.getTerminator()->getOperands(),
                                [&](Value value) { return lookup(value); });
}

/// Rows that are not active have no value here: tokens and positions are cut to the number of
/// those that are, and with them everything that is computed from them.
static llvm::Error keepActiveRows(func::FuncOp function,
                                  MutableArrayRef<EvaluatedValue> arguments) {
  std::optional<int64_t> active;
  llvm::SmallPtrSet<Value, 2> starts;
  function.walk([&](fused::KernelOp op) {
    if (auto attention = dyn_cast<fused::AttentionOp>(op.getOperation()))
      starts.insert(attention.getStarts());
    auto count = dyn_cast_if_present<BlockArgument>(op.activeRows());
    if (active || !count)
      return;
    active = arguments[count.getArgNumber()].tensor->integers.front();
  });
  if (!active)
    return llvm::Error::success();
  for (auto [argument, value] : llvm::zip_equal(arguments, function.getArguments())) {
    const Tensor &all = *argument.tensor;
    if (all.shape.size() != 1 || all.shape[0] == 1 || starts.contains(value))
      continue;
    if (*active < 1 || *active > all.shape[0])
      return makeError("the number of active rows must be 1 to " + Twine(all.shape[0]) +
                       ", found " + Twine(*active));
    ArrayRef<int32_t> kept = ArrayRef(all.integers).take_front(*active);
    argument = wrap(Tensor::ints({*active}, {kept.begin(), kept.end()}));
  }
  return llvm::Error::success();
}

llvm::Expected<SmallVector<Tensor>> Evaluator::call(StringRef function,
                                                    ArrayRef<Tensor> arguments) {
  auto op = module.lookupSymbol<func::FuncOp>(function);
  if (!op || op.isExternal())
    return makeError("the module has no function '" + function + "'");
  if (!llvm::hasSingleElement(op.getBody()))
    return makeError("function '" + function +
                     "' has branches, which the reference evaluator does not follow");
  if (op.getNumArguments() != arguments.size())
    return makeError("function '" + function + "' takes " + Twine(op.getNumArguments()) +
                     " arguments, found " + Twine(arguments.size()));
  SmallVector<EvaluatedValue> given;
  for (auto [index, type, argument] : llvm::enumerate(op.getArgumentTypes(), arguments)) {
    auto expected = dyn_cast<RankedTensorType>(type);
    bool integers = expected && expected.getElementType().isInteger(32);
    if (!expected || expected.getShape() != ArrayRef<int64_t>(argument.shape) ||
        (integers ? argument.integers.size() : argument.values.size()) !=
            static_cast<size_t>(expected.getNumElements()))
      return makeError("argument " + Twine(index) + " of function '" + function + "' must be a " +
                       typeText(type));
    given.push_back(wrap(argument));
  }
  if (llvm::Error error = keepActiveRows(op, given))
    return error;
  persistent.reset();
  if (auto schedule = op->getAttrOfType<fused::PersistentScheduleAttr>(fused::kPersistentAttr)) {
    llvm::Expected<PersistentStep> step = PersistentStep::get(op.getBody().front(), schedule);
    if (!step)
      return makeError("function '" + function + "': " + llvm::toString(step.takeError()));
    persistent = std::make_unique<PersistentStep>(std::move(*step));
  }
  values.clear();
  llvm::Expected<Results> results = runBlock(op.getBody().front(), given);
  if (!results)
    return results.takeError();
  SmallVector<Tensor> tensors;
  for (const EvaluatedValue &result : *results) {
    if (!result.tensor)
      return makeError("function '" + function + "' returns a quantized matrix");
    tensors.push_back(*result.tensor);
  }
  return tensors;
}
