// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sluice/Calibration/ForwardPass.h"

#include "Gemm.h"
#include "Parallel.h"

#include "dialects/Model/Semantics.h"
#include "sluice/Import/ModelBuilder.h"
#include "sluice/Import/TensorReader.h"
#include "sluice/Reference/Ops.h"

#include "llvm/ADT/MapVector.h"
#include "llvm/ADT/TypeSwitch.h"

#include <unsupported/Eigen/SpecialFunctions>

#include <Eigen/Core>

#include <mutex>
#include <numeric>

using namespace mlir;
using namespace sluice;
using namespace sluice::calibration;
using model::DoubleArithmetic;

static llvm::Error makeError(const Twine &message) {
  return llvm::createStringError(llvm::inconvertibleErrorCode(), message);
}

static DoubleArithmetic arithmetic;

//===----------------------------------------------------------------------===//
// Weights
//===----------------------------------------------------------------------===//

WeightRows::~WeightRows() = default;

struct FileWeightRows::State {
  explicit State(std::string root) : files(std::move(root)) {}
  FileSet files;
  std::mutex mutex;
  llvm::StringMap<TensorReader> readers;
};

FileWeightRows::FileWeightRows(std::unique_ptr<State> state) : state(std::move(state)) {}
FileWeightRows::~FileWeightRows() = default;

llvm::Expected<std::unique_ptr<FileWeightRows>> FileWeightRows::open(ModuleOp module) {
  llvm::Expected<std::string> root = weightRoot(module);
  if (!root)
    return root.takeError();
  return std::unique_ptr<FileWeightRows>(
      new FileWeightRows(std::make_unique<State>(std::move(*root))));
}

llvm::Error FileWeightRows::read(model::WeightOp weight, int64_t first,
                                 llvm::MutableArrayRef<float> rows) {
  const TensorReader *reader = nullptr;
  {
    std::lock_guard lock(state->mutex);
    auto it = state->readers.find(weight.getSymName());
    if (it == state->readers.end()) {
      llvm::Expected<Weight> located = weightInFile(weight);
      if (!located)
        return located.takeError();
      llvm::Expected<TensorReader> opened = TensorReader::open(*located, state->files);
      if (!opened)
        return opened.takeError();
      it = state->readers.try_emplace(weight.getSymName(), std::move(*opened)).first;
    }
    reader = &it->second;
  }
  int64_t columns = reader->columns();
  for (int64_t row = 0, count = static_cast<int64_t>(rows.size()) / columns; row < count; ++row)
    reader->readRow(first + row, rows.slice(row * columns, columns));
  return llvm::Error::success();
}

//===----------------------------------------------------------------------===//
// Arithmetic
//===----------------------------------------------------------------------===//

namespace {

/// Several elements at a time, in float32.
struct ArrayArithmetic {
  static constexpr int64_t size = 64;
  using Value = Eigen::Array<float, size, 1>;

  static Value constantLike(const Value &, double number) {
    return Value::Constant(static_cast<float>(number));
  }
  static Value addF(const Value &x, const Value &y) { return x + y; }
  static Value subF(const Value &x, const Value &y) { return x - y; }
  static Value mulF(const Value &x, const Value &y) { return x * y; }
  static Value divF(const Value &x, const Value &y) { return x / y; }
  static Value negF(const Value &x) { return -x; }
  static Value sqrt(const Value &x) { return x.sqrt(); }
  static Value exp(const Value &x) { return x.exp(); }
  static Value erf(const Value &x) { return x.erf(); }
  static Value widen(const Value &x) { return x; }
  static Value narrow(const Value &x, Type) { return x; }

  /// `count` elements, at most `size`; the others are zeros.
  static Value load(const float *from, int64_t count) {
    if (count >= size)
      return Eigen::Map<const Value>(from);
    Value value = Value::Zero();
    std::copy_n(from, count, value.data());
    return value;
  }
  static void store(const Value &value, float *to, int64_t count) {
    std::copy_n(value.data(), std::min(count, size), to);
  }
};

using FloatMap = Eigen::Map<Eigen::ArrayXf>;
using ConstFloatMap = Eigen::Map<const Eigen::ArrayXf>;

struct RotaryTable {
  /// [positions][pairs].
  std::vector<float> cosines, sines;
};

/// The rows of a table that are asked for.
struct EmbeddingRows {
  llvm::DenseMap<int32_t, int64_t> place;
  Tensor rows;
};

} // namespace

static ArrayArithmetic arrays;

static ConstFloatMap mapOf(ArrayRef<float> x) {
  return {x.data(), static_cast<Eigen::Index>(x.size())};
}

static void normalize(ArrayRef<float> input, double factor, ArrayRef<float> gain, double plus,
                      MutableArrayRef<float> out) {
  auto size = static_cast<int64_t>(input.size());
  auto scale = ArrayArithmetic::constantLike({}, factor);
  for (int64_t i = 0; i < size; i += ArrayArithmetic::size) {
    int64_t count = size - i;
    ArrayArithmetic::Value gains =
        ArrayArithmetic::load(gain.data() + i, count) + static_cast<float>(plus);
    ArrayArithmetic::store(
        model::normalized<ArrayArithmetic>(arrays, ArrayArithmetic::load(input.data() + i, count),
                                           scale, gains),
        out.data() + i, count);
  }
}

static Tensor rmsNorm(const Tensor &input, const Tensor &gain, double epsilon, bool plusOne) {
  Tensor result = Tensor::zeros(input.shape);
  size_t width = gain.values.size();
  for (size_t begin = 0; begin < input.values.size(); begin += width) {
    ArrayRef<float> x = ArrayRef(input.values).slice(begin, width);
    double squares = mapOf(x).cast<double>().square().sum();
    double factor = model::normFactor<DoubleArithmetic>(arithmetic, squares,
                                                        static_cast<int64_t>(width), epsilon);
    normalize(x, factor, gain.values, plusOne ? 1 : 0,
              MutableArrayRef(result.values).slice(begin, width));
  }
  return result;
}

static Tensor layerNorm(const Tensor &input, const Tensor &gain, const Tensor *bias,
                        double epsilon) {
  Tensor result = Tensor::zeros(input.shape);
  std::vector<float> centered(input.width());
  for (int64_t row = 0; row < input.rows(); ++row) {
    ConstFloatMap x = mapOf(input.row(row));
    FloatMap c(centered.data(), x.size());
    c = (x.cast<double>() - x.cast<double>().mean()).cast<float>();
    double factor = model::normFactor<DoubleArithmetic>(arithmetic, c.cast<double>().square().sum(),
                                                        input.width(), epsilon);
    normalize(centered, factor, gain.values, 0, result.row(row));
    if (bias)
      FloatMap(result.row(row).data(), x.size()) += mapOf(bias->values);
  }
  return result;
}

static Tensor rotary(const Tensor &input, model::RotaryPairs pairs, const RotaryTable &table) {
  Tensor result = Tensor::zeros(input.shape);
  for (int64_t row = 0; row < input.rows(); ++row) {
    const float *cosines = table.cosines.data() + row * pairs.half();
    const float *sines = table.sines.data() + row * pairs.half();
    for (int64_t head = 0; head < input.width(); head += pairs.dim) {
      const float *in = input.row(row).data() + head;
      float *out = result.row(row).data() + head;
      for (int64_t begin = 0; begin < pairs.half(); begin += ArrayArithmetic::size) {
        int64_t count = std::min(ArrayArithmetic::size, pairs.half() - begin);
        ArrayArithmetic::Value x = ArrayArithmetic::Value::Zero(), y = x;
        for (int64_t i = 0; i < count; ++i) {
          x[i] = in[pairs.first(begin + i)];
          y[i] = in[pairs.second(begin + i)];
        }
        auto [first, second] = model::turned<ArrayArithmetic>(
            arrays, x, y, ArrayArithmetic::load(cosines + begin, count),
            ArrayArithmetic::load(sines + begin, count));
        for (int64_t i = 0; i < count; ++i) {
          out[pairs.first(begin + i)] = first[i];
          out[pairs.second(begin + i)] = second[i];
        }
      }
    }
  }
  return result;
}

static Tensor elementwise(Operation *op, ArrayRef<const Tensor *> operands) {
  auto function = model::elementFunction<ArrayArithmetic>(op);
  const Tensor &first = *operands.front();
  Tensor result = Tensor::zeros(first.shape);
  bool sameShape =
      llvm::all_of(operands, [&](const Tensor *operand) { return operand->shape == first.shape; });
  // Where an operand is repeated for every row, the work goes row by row.
  auto size = static_cast<int64_t>(first.values.size()), piece = sameShape ? size : first.width();
  SmallVector<ArrayArithmetic::Value, 2> x(operands.size());
  for (int64_t begin = 0; begin < size; begin += piece)
    for (int64_t i = 0; i < piece; i += ArrayArithmetic::size) {
      for (auto [value, operand] : llvm::zip_equal(x, operands)) {
        bool repeated = operand->shape.size() < first.shape.size();
        value =
            ArrayArithmetic::load(operand->values.data() + (repeated ? 0 : begin) + i, piece - i);
      }
      ArrayArithmetic::store(model::applyElementFunction<ArrayArithmetic>(arrays, function, op, x),
                             result.values.data() + begin + i, piece - i);
    }
  return result;
}

/// The first position that a token at `last` attends to.
static int64_t oldestPosition(int64_t last, std::optional<int64_t> window) {
  return window ? std::max<int64_t>(0, last - *window + 1) : 0;
}

/// Attention of all rows over all rows up to their own.
static Tensor attention(model::AttentionOp op, const Tensor &query, const Tensor &keys,
                        const Tensor &values, int64_t dim) {
  /// Rows whose scores are one product.
  constexpr int64_t block = 64;
  std::optional<int64_t> window = op.getWindow();
  auto scale = static_cast<float>(op.getScale().convertToDouble());
  std::optional<APFloat> cap = op.getSoftCap();
  int64_t positions = keys.rows(), heads = query.width() / dim, kvHeads = keys.width() / dim;
  Tensor result = Tensor::zeros(query.shape);
  std::vector<float> scores(block * positions);
  for (int64_t kvHead = 0; kvHead < kvHeads; ++kvHead) {
    PackedMatrix packedKeys(
        MatrixView{keys.values.data() + kvHead * dim, positions, dim, keys.width()});
    PackedMatrix packedValues(
        MatrixView{values.values.data() + kvHead * dim, positions, dim, values.width()}
            .transposed());
    for (int64_t head = kvHead * (heads / kvHeads); head < (kvHead + 1) * (heads / kvHeads); ++head)
      for (int64_t first = 0; first < positions; first += block) {
        int64_t rows = std::min(block, positions - first), end = first + rows;
        int64_t begin = oldestPosition(first, window);
        begin -= begin % PackedMatrix::panelRows();
        int64_t width = end - begin;
        multiply({query.row(first).data() + head * dim, rows, dim, query.width()}, packedKeys,
                 scores.data(), width, {.firstRow = begin, .lastRow = end});
        for (int64_t row = first; row < end; ++row) {
          FloatMap all(scores.data() + (row - first) * width, width);
          int64_t oldest = oldestPosition(row, window);
          auto seen = all.segment(oldest - begin, row - oldest + 1);
          seen *= scale;
          if (cap)
            for (int64_t i = 0; i < seen.size(); i += ArrayArithmetic::size)
              ArrayArithmetic::store(model::softCapped<ArrayArithmetic>(
                                         arrays,
                                         ArrayArithmetic::load(seen.data() + i, seen.size() - i),
                                         cap->convertToDouble()),
                                     seen.data() + i, seen.size() - i);
          seen = (seen - seen.maxCoeff()).exp();
          seen *= 1 / seen.sum();
          all.head(oldest - begin).setZero();
          all.tail(end - 1 - row).setZero();
        }
        multiply({scores.data(), rows, width, width}, packedValues,
                 result.row(first).data() + head * dim, result.width(), {.firstColumn = begin});
      }
  }
  return result;
}

//===----------------------------------------------------------------------===//
// The pass
//===----------------------------------------------------------------------===//

namespace {
struct Segment {
  SmallVector<Operation *> operations;
  /// Null for the first.
  Value input, output;
  bool byRow = true;
  double work = 0;
};
} // namespace

struct ForwardPass::State {
  State(ModuleOp module, WeightRows &weights) : module(module), weights(weights) {}

  ModuleOp module;
  WeightRows &weights;
  func::FuncOp function;
  std::vector<Segment> segments;

  /// Of the loaded segment.
  size_t loaded = 0;
  llvm::DenseMap<Value, Tensor> vectors;
  llvm::DenseMap<Operation *, PackedMatrix> matrices;
  llvm::DenseMap<Operation *, EmbeddingRows> tables;
  llvm::DenseMap<Operation *, RotaryTable> rotaries;

  model::WeightOp weightOf(Value value) const;
  llvm::Error findSegments();
  llvm::Error readMatrix(model::WeightOp weight, PackedMatrix &matrix);
  llvm::Error readRows(model::WeightOp weight, ArrayRef<int32_t> wanted, EmbeddingRows &table);
  Tensor evaluate(Operation *op, llvm::function_ref<const Tensor &(Value)> get,
                  ArrayRef<int32_t> tokens) const;
};

ForwardPass::ForwardPass(std::unique_ptr<State> state) : state(std::move(state)) {}
ForwardPass::ForwardPass(ForwardPass &&) noexcept = default;
ForwardPass::~ForwardPass() = default;

/// Whether a value depends on weights alone.
static bool isConstant(Value value) {
  return value.getDefiningOp<model::ParameterOp>() ||
         value.getDefiningOp<quantized::DequantizeOp>();
}

model::WeightOp ForwardPass::State::weightOf(Value value) const {
  if (auto dequantize = value.getDefiningOp<quantized::DequantizeOp>())
    value = dequantize.getInput();
  auto parameter = value.getDefiningOp<model::ParameterOp>();
  return parameter ? ModuleOp(module).lookupSymbol<model::WeightOp>(parameter.getWeight())
                   : nullptr;
}

/// Whether `run` knows the operation.
static bool isKnown(Operation *op) {
  if (auto rotary = dyn_cast<model::RotaryOp>(op))
    return !rotary.getTable();
  return isa<model::EmbeddingOp, model::RmsNormOp, model::LayerNormOp, model::LinearOp,
             model::ReorderOp, model::CacheAppendOp, model::AttentionOp>(op) ||
         model::isElementwise(op);
}

static int64_t widthOf(Value value) {
  return cast<RankedTensorType>(value.getType()).getShape().back();
}

llvm::Error ForwardPass::State::findSegments() {
  Block &body = function.getBody().front();
  SmallVector<Operation *> operations;
  for (Operation &op : body.without_terminator()) {
    if (op.getNumResults() == 1 && isConstant(op.getResult(0)))
      continue;
    if (!isKnown(&op))
      return makeError("'" + op.getName().getStringRef() +
                       "' is no operation that a forward pass knows");
    for (Value operand : op.getOperands())
      if (isConstant(operand) && !weightOf(operand))
        return makeError("an operand of '" + op.getName().getStringRef() + "' is no weight");
    operations.push_back(&op);
  }
  Operation *end = body.getTerminator();
  if (end->getNumOperands() != 1 || operations.empty() ||
      end->getOperand(0).getDefiningOp() != operations.back())
    return makeError("the function 'decode' does not end in its logits");

  llvm::DenseMap<Operation *, size_t> number;
  for (auto [i, op] : llvm::enumerate(operations))
    number[op] = i;
  number[end] = operations.size();
  // The last operation that needs a value, or what is in a cache.
  auto lastUse = [&](Operation *op) {
    size_t last = 0;
    for (Operation *user : op->getUsers())
      last = std::max(last, number.lookup(user));
    if (auto append = dyn_cast<model::CacheAppendOp>(op))
      for (Operation *reader : operations)
        if (auto attention = dyn_cast<model::AttentionOp>(reader))
          if (llvm::is_contained({attention.getKeys(), attention.getValues()}, append.getCache()))
            last = std::max(last, number[reader]);
    return last;
  };
  double rows = cast<RankedTensorType>(function.getArgumentTypes()[0]).getDimSize(0);
  llvm::SmallMapVector<Operation *, size_t, 8> alive;
  Segment segment;
  for (auto [i, op] : llvm::enumerate(operations)) {
    segment.operations.push_back(op);
    segment.byRow &=
        !isa<model::CacheAppendOp, model::AttentionOp, model::RotaryOp, model::EmbeddingOp>(op);
    if (auto linear = dyn_cast<model::LinearOp>(op))
      segment.work += 2 * rows * widthOf(linear.getInput()) * widthOf(linear.getResult());
    if (auto attention = dyn_cast<model::AttentionOp>(op))
      segment.work += 2 * rows * rows * widthOf(attention.getResult());
    alive.insert({op, lastUse(op)});
    alive.remove_if([&](const auto &entry) { return entry.second <= i; });
    bool isLast = i + 1 == operations.size();
    if (alive.size() != 1 || alive.front().first != op || (segment.work == 0 && !isLast))
      continue;
    segment.output = op->getResult(0);
    segments.push_back(std::move(segment));
    segment = {};
    segment.input = op->getResult(0);
  }
  // What follows the last product belongs to it.
  while (segments.size() > 1 && segments.back().work == 0) {
    Segment last = segments.back();
    segments.pop_back();
    llvm::append_range(segments.back().operations, last.operations);
    segments.back().output = last.output;
    segments.back().byRow &= last.byRow;
  }
  return llvm::Error::success();
}

llvm::Expected<ForwardPass> ForwardPass::create(ModuleOp module, WeightRows &weights) {
  auto state = std::make_unique<State>(module, weights);
  state->function = module.lookupSymbol<func::FuncOp>("decode");
  if (!state->function || state->function.isExternal() ||
      !llvm::hasSingleElement(state->function.getBody()) || state->function.getNumArguments() != 2)
    return makeError("the module has no function 'decode' of tokens and positions");
  if (llvm::Error error = state->findSegments())
    return std::move(error);
  return ForwardPass(std::move(state));
}

int64_t ForwardPass::window() const {
  return cast<RankedTensorType>(state->function.getArgumentTypes()[0]).getDimSize(0);
}
int64_t ForwardPass::vocabulary() const { return widthOf(state->segments.back().output); }
size_t ForwardPass::segments() const { return state->segments.size(); }
ArrayRef<Operation *> ForwardPass::operations(size_t segment) const {
  return state->segments[segment].operations;
}
double ForwardPass::work(size_t segment) const { return state->segments[segment].work; }
double ForwardPass::squaredNorm(model::LinearOp product) const {
  return state->matrices.at(product).squares();
}
bool ForwardPass::isByRow(size_t segment) const { return state->segments[segment].byRow; }
model::WeightOp ForwardPass::weightOf(model::LinearOp product) const {
  return state->weightOf(product.getWeight());
}

llvm::Error ForwardPass::State::readMatrix(model::WeightOp weight, PackedMatrix &matrix) {
  int64_t rows = matrix.rows(), columns = matrix.columns();
  int64_t piece = PackedMatrix::panelRows() * 8;
  return parallelTasks((rows + piece - 1) / piece, [&](size_t task) -> llvm::Error {
    int64_t first = static_cast<int64_t>(task) * piece, count = std::min(piece, rows - first);
    std::vector<float> part(count * columns);
    if (llvm::Error error = weights.read(weight, first, part))
      return error;
    matrix.pack({part.data(), count, columns, columns}, first);
    return llvm::Error::success();
  });
}

llvm::Error ForwardPass::State::readRows(model::WeightOp weight, ArrayRef<int32_t> wanted,
                                         EmbeddingRows &table) {
  std::vector<int32_t> distinct = wanted.vec();
  llvm::sort(distinct);
  distinct.erase(std::unique(distinct.begin(), distinct.end()), distinct.end());
  table.rows = Tensor::zeros({static_cast<int64_t>(distinct.size()), table.rows.width()});
  for (auto [place, index] : llvm::enumerate(distinct))
    table.place[index] = static_cast<int64_t>(place);
  return parallelTasks(distinct.size(), [&](size_t place) {
    return weights.read(weight, distinct[place], table.rows.row(static_cast<int64_t>(place)));
  });
}

llvm::Error ForwardPass::load(size_t index, ArrayRef<int32_t> tokens) {
  State &s = *state;
  s.loaded = index;
  s.vectors.clear();
  s.matrices.clear();
  s.tables.clear();
  s.rotaries.clear();
  int64_t rows = window();
  for (Operation *op : s.segments[index].operations) {
    auto embedding = dyn_cast<model::EmbeddingOp>(op);
    auto linear = dyn_cast<model::LinearOp>(op);
    if (embedding) {
      auto type = cast<RankedTensorType>(embedding.getTable().getType());
      std::vector<int32_t> wanted = tokens.vec();
      if (embedding.getTokens() != s.function.getArgument(0)) {
        wanted.resize(rows);
        std::iota(wanted.begin(), wanted.end(), 0);
      }
      for (int32_t token : wanted)
        if (token < 0 || token >= type.getDimSize(0))
          return makeError("token " + Twine(token) + " is outside the table of " +
                           Twine(type.getDimSize(0)));
      EmbeddingRows &table = s.tables[op];
      table.rows = Tensor::zeros({0, type.getDimSize(1)});
      if (llvm::Error error = s.readRows(s.weightOf(embedding.getTable()), wanted, table))
        return error;
    } else if (linear) {
      auto type = cast<RankedTensorType>(linear.getWeight().getType());
      PackedMatrix &matrix = s.matrices[op] = PackedMatrix(type.getDimSize(0), type.getDimSize(1));
      if (llvm::Error error = s.readMatrix(weightOf(linear), matrix))
        return error;
    } else if (auto rotary = dyn_cast<model::RotaryOp>(op)) {
      model::RotaryPairs pairs(rotary);
      RotaryTable &table = s.rotaries[op];
      double magnitude = rotary.getRope().getFactor();
      SmallVector<double> frequencies = rotary.getRope().getFrequencies(pairs.dim);
      for (int64_t position = 0; position < rows; ++position)
        for (double frequency : frequencies) {
          table.cosines.push_back(static_cast<float>(magnitude * std::cos(position * frequency)));
          table.sines.push_back(static_cast<float>(magnitude * std::sin(position * frequency)));
        }
    }
    for (Value operand : op->getOperands()) {
      auto type = cast<RankedTensorType>(operand.getType());
      if (!isConstant(operand) || type.getRank() != 1 || s.vectors.count(operand))
        continue;
      Tensor &vector = s.vectors[operand] = Tensor::zeros(type.getShape());
      if (llvm::Error error = s.weights.read(s.weightOf(operand), 0, vector.values))
        return error;
    }
  }
  return llvm::Error::success();
}

Tensor ForwardPass::State::evaluate(Operation *operation,
                                    llvm::function_ref<const Tensor &(Value)> get,
                                    ArrayRef<int32_t> tokens) const {
  return TypeSwitch<Operation *, Tensor>(operation)
      .Case<model::EmbeddingOp>([&](auto op) {
        const EmbeddingRows &table = tables.at(op);
        auto rows = static_cast<int64_t>(tokens.size());
        bool byToken = op.getTokens() == func::FuncOp(function).getArgument(0);
        Tensor result = Tensor::zeros({rows, table.rows.width()});
        for (int64_t row = 0; row < rows; ++row)
          llvm::copy(
              table.rows.row(table.place.at(byToken ? tokens[row] : static_cast<int32_t>(row))),
              result.row(row).begin());
        return result;
      })
      .Case<model::RmsNormOp>([&](auto op) {
        return ::rmsNorm(get(op.getInput()), get(op.getGain()), op.getEpsilon().convertToDouble(),
                         op.getPlusOne());
      })
      .Case<model::LayerNormOp>([&](auto op) {
        return ::layerNorm(get(op.getInput()), get(op.getGain()),
                           op.getBias() ? &get(op.getBias()) : nullptr,
                           op.getEpsilon().convertToDouble());
      })
      .Case<model::ReorderOp>(
          [&](auto op) { return reference::reorder(get(op.getInput()), get(op.getOrder())); })
      .Case<model::LinearOp>([&](auto op) {
        const Tensor &input = get(op.getInput());
        const PackedMatrix &matrix = matrices.at(op);
        Tensor result = Tensor::zeros({input.rows(), matrix.rows()});
        if (op.getBias())
          for (int64_t row = 0; row < input.rows(); ++row)
            llvm::copy(get(op.getBias()).values, result.row(row).begin());
        multiply({input.values.data(), input.rows(), input.width(), input.width()}, matrix,
                 result.values.data(), result.width(), {.accumulate = op.getBias() != nullptr});
        return result;
      })
      .Case<model::RotaryOp>([&](auto op) {
        return rotary(get(op.getInput()), model::RotaryPairs(op), rotaries.at(op));
      })
      .Default([&](Operation *op) {
        auto operands =
            llvm::map_to_vector<2>(op->getOperands(), [&](Value value) { return &get(value); });
        return elementwise(op, operands);
      });
}

std::shared_ptr<Tensor> ForwardPass::run(std::shared_ptr<const Tensor> input,
                                         ArrayRef<int32_t> tokens,
                                         const ForwardHooks &hooks) const {
  const State &s = *state;
  const Segment &segment = s.segments[s.loaded];
  llvm::DenseMap<Value, std::shared_ptr<const Tensor>> values;
  llvm::StringMap<Tensor> caches;
  if (segment.input)
    values[segment.input] = std::move(input);
  auto get = [&](Value value) -> const Tensor & {
    auto known = s.vectors.find(value);
    return known != s.vectors.end() ? known->second : *values.at(value);
  };
  std::shared_ptr<Tensor> result;
  for (Operation *operation : segment.operations) {
    if (auto op = dyn_cast<model::CacheAppendOp>(operation)) {
      Tensor rows = get(op.getInput());
      if (hooks.append)
        hooks.append(op, rows);
      caches[op.getCache()] = std::move(rows);
      continue;
    }
    if (auto op = dyn_cast<model::AttentionOp>(operation)) {
      auto cache = ModuleOp(s.module).lookupSymbol<model::CacheOp>(op.getKeys());
      result = std::make_shared<Tensor>(attention(op, get(op.getQuery()), caches[op.getKeys()],
                                                  caches[op.getValues()],
                                                  cache.getCacheType().getHeadDim()));
    } else {
      result = std::make_shared<Tensor>(s.evaluate(operation, get, tokens));
    }
    if (auto op = dyn_cast<model::LinearOp>(operation); op && hooks.product)
      hooks.product(op, values.at(op.getInput()), *result);
    values[operation->getResult(0)] = result;
  }
  return result;
}

//===----------------------------------------------------------------------===//
// Divergence
//===----------------------------------------------------------------------===//

ReferenceLogits::ReferenceLogits(Tensor given)
    : logits(std::move(given)), probabilities(Tensor::zeros(logits.shape)) {
  for (int64_t row = 0; row < logits.rows(); ++row) {
    ConstFloatMap x = mapOf(logits.row(row));
    FloatMap p(probabilities.row(row).data(), x.size());
    p = (x - x.maxCoeff()).exp();
    p *= static_cast<float>(1 / p.cast<double>().sum());
    masses.push_back(p.cast<double>().sum());
  }
}

double ReferenceLogits::divergence(int64_t row, ArrayRef<float> other) const {
  // With d = other - reference, m = sum(p d) and u = d - m, the divergence is
  // log(sum(p exp(u))) = log(1 + sum(p (exp(u) - 1 - u))): each term is small where u is.
  constexpr int64_t piece = 256;
  using Piece = Eigen::Array<float, Eigen::Dynamic, 1, 0, piece, 1>;
  auto size = static_cast<int64_t>(other.size());
  const float *x = logits.row(row).data(), *p = probabilities.row(row).data(), *y = other.data();
  auto sum = [&](auto term) {
    double total = 0;
    for (int64_t i = 0; i < size; i += piece) {
      int64_t count = std::min(piece, size - i);
      ConstFloatMap weights(p + i, count), from(x + i, count), to(y + i, count);
      total += (weights * term(Piece(to - from))).sum();
    }
    return total;
  };
  auto mean = static_cast<float>(sum([](const Piece &d) { return d; }) / masses[row]);
  double excess = sum([&](const Piece &d) -> Piece {
    Piece u = d - mean;
    if (u.abs().maxCoeff() < 0.1f)
      return u.square() * (0.5f + u * (1 / 6.0f + u * (1 / 24.0f + u * (1 / 120.0f))));
    return u.exp() - 1 - u;
  });
  return std::log1p(excess / masses[row]);
}
