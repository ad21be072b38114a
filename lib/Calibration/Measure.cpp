// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sluice/Calibration/Measure.h"

#include "Gemm.h"
#include "Parallel.h"

#include "sluice/Calibration/ForwardPass.h"
#include "sluice/Formats/CacheScheme.h"
#include "sluice/Import/ModelBuilder.h"
#include "sluice/Reference/Ops.h"

#include "llvm/ADT/MapVector.h"
#include "llvm/Support/xxhash.h"

#include <atomic>
#include <cmath>
#include <limits>
#include <unistd.h>

using namespace mlir;
using namespace sluice;
using namespace sluice::calibration;

static llvm::Error makeError(const Twine &message) {
  return llvm::createStringError(llvm::inconvertibleErrorCode(), message);
}

/// Rows of logits that are made at a time.
static constexpr int64_t logitRows = 128;

namespace {

/// A weight, or a layer's keys or values, that is changed to see what comes of it.
struct Change {
  size_t segment = 0;
  /// A product that gets noise ...
  model::LinearOp product;
  /// ... or a cache whose rows get a format.
  StringRef cache;
  bool isKey = false;
  formats::CacheChoice format;
  int64_t headDim = 0;

  /// Of the noise: its sum of squares in each window.
  std::vector<double> outputError;
  /// Sum of the divergences of the tokens that count in each piece of a window.
  std::vector<double> divergence;
  /// Of the noise: what it would be if it were spread as the weight's columns are over all tokens.
  double whiteNoise = 0;
};

/// A change on its way through the model: the latest segment's result for each window.
struct Stream {
  Change *change;
  std::vector<std::shared_ptr<const Tensor>> states;
};

/// What the products that read one value have in common.
struct Input {
  StatisticsWriter::Input declared;
  size_t segment = 0;
  std::vector<model::LinearOp> products;
  /// Of each window, or piece of one, while the segment runs.
  std::vector<std::shared_ptr<const Tensor>> values;
  double trace = 0;
};

using NoiseMap = llvm::DenseMap<Operation *, PackedMatrix>;

class Measurement {
public:
  Measurement(ForwardPass &pass, ModuleOp module, const MeasureOptions &options)
      : pass(pass), module(module), options(options), window(pass.window()) {}

  llvm::Expected<MeasureSummary> run(StringRef path, StringRef model);

private:
  llvm::Error chooseWindows();
  void findInputs();
  void findChanges();
  size_t changesPerRound() const;
  llvm::Error runRound(llvm::MutableArrayRef<Change> changes, bool isFirst);
  llvm::Error runBase(size_t segment, bool keepsInputs);
  llvm::Error runStreams(size_t segment);
  llvm::Error runLogits(size_t segment);
  int64_t pieceRows(size_t segment) const;
  llvm::Error writeInputs(size_t segment);
  llvm::Error writeHessian(size_t index, const Input &input);
  PackedMatrix makeNoise(model::LinearOp product) const;
  NoiseMap makeNoises(size_t segment) const;
  ForwardHooks hooksFor(Change &change, const NoiseMap &noises, size_t windowIndex) const;
  llvm::Expected<MeasureSummary> finish();

  ArrayRef<int32_t> tokensOf(size_t windowIndex) const {
    return ArrayRef(tokens).slice(windowIndex * window, window);
  }
  /// The first token of a window whose divergence counts: as for perplexity, those before it have
  /// too little to go by.
  int64_t firstCounted() const { return window / 2; }
  /// Counts work as done, and says so.
  void progress(StringRef what, double work);

  ForwardPass &pass;
  ModuleOp module;
  const MeasureOptions &options;
  int64_t window;
  /// Of all windows, one after the other.
  std::vector<int32_t> tokens;
  size_t windows = 0, changedWindows = 0;
  llvm::MapVector<Value, Input> inputs;
  std::vector<Change> changes;
  std::vector<std::string> keyFormats, valueFormats;
  int64_t layers = 0;
  StatisticsSource source;
  std::optional<StatisticsWriter> writer;

  /// Of the round: what the unchanged model's latest segment gave, and what each change did.
  std::vector<std::shared_ptr<const Tensor>> base;
  std::vector<Stream> streams;
  std::mutex progressMutex;
  double workDone = 0, workInAll = 0;
};

} // namespace

//===----------------------------------------------------------------------===//
// What there is to do
//===----------------------------------------------------------------------===//

llvm::Error Measurement::chooseWindows() {
  size_t available = options.tokens.size() / window;
  if (available == 0)
    return makeError("the text has " + Twine(options.tokens.size()) +
                     " tokens, expected at least one window of " + Twine(window));
  auto needed = [&](int64_t count) { return static_cast<size_t>((count + window - 1) / window); };
  windows = std::min(available, std::max<size_t>(1, needed(options.statisticsTokens)));
  changedWindows = std::min(windows, needed(options.sensitivityTokens));
  // Both are spread over the whole text, whose parts differ. Those that losses are measured in come
  // first.
  std::vector<size_t> chosen, others;
  for (size_t i = 0; i < windows; ++i) {
    bool isChanged = i * changedWindows / windows != (i + 1) * changedWindows / windows;
    (isChanged ? chosen : others).push_back(i * available / windows);
  }
  llvm::append_range(chosen, others);
  for (size_t index : chosen)
    llvm::append_range(tokens, options.tokens.slice(index * window, window));
  if (options.bosId >= 0)
    for (size_t w = 0; w < windows; ++w)
      tokens[w * window] = options.bosId;
  return llvm::Error::success();
}

void Measurement::findInputs() {
  for (size_t segment = 0; segment < pass.segments(); ++segment)
    for (Operation *op : pass.operations(segment))
      if (auto product = dyn_cast<model::LinearOp>(op)) {
        Input &input = inputs[product.getInput()];
        input.segment = segment;
        input.declared.columns =
            cast<RankedTensorType>(product.getInput().getType()).getShape().back();
        input.declared.weights.push_back(pass.weightOf(product).getSymName().str());
        input.products.push_back(product);
      }
}

/// The formats that are worth a choice for heads of `dim` elements. A loss of f16 is not
/// measurable.
static std::vector<std::string> formatsOf(int64_t dim, bool isKey) {
  std::vector<std::string> names = {"int8", "fp8", "int4"};
  bool hasGroups = dim > 32 && dim % 32 == 0, canRotate = isKey && dim % 2 == 0;
  if (hasGroups)
    names.push_back("int4-h32");
  if (canRotate)
    names.push_back("int4-rot");
  if (hasGroups && canRotate)
    names.push_back("int4-h32-rot");
  return names;
}

void Measurement::findChanges() {
  for (size_t segment = 0; segment < pass.segments(); ++segment)
    for (Operation *op : pass.operations(segment)) {
      if (auto product = dyn_cast<model::LinearOp>(op)) {
        Change change;
        change.segment = segment;
        change.product = product;
        changes.push_back(std::move(change));
      }
      auto attention = dyn_cast<model::AttentionOp>(op);
      if (!attention)
        continue;
      ++layers;
      int64_t dim =
          module.lookupSymbol<model::CacheOp>(attention.getKeys()).getCacheType().getHeadDim();
      for (bool isKey : {true, false}) {
        std::vector<std::string> &formats = isKey ? keyFormats : valueFormats;
        formats = formatsOf(dim, isKey);
        for (const std::string &format : formats) {
          Change change;
          change.segment = segment;
          change.cache = isKey ? attention.getKeys() : attention.getValues();
          change.isKey = isKey;
          change.format = cantFail(formats::CacheScheme::parse(format, isKey)).common;
          change.headDim = dim;
          changes.push_back(std::move(change));
        }
      }
    }
  int64_t pieces = (window + logitRows - 1) / logitRows;
  for (Change &change : changes) {
    change.outputError.resize(changedWindows);
    change.divergence.resize(changedWindows * pieces);
  }
}

size_t Measurement::changesPerRound() const {
  uint64_t bytes = options.streamBytes;
  if (!bytes)
    bytes = static_cast<uint64_t>(sysconf(_SC_PHYS_PAGES)) *
            static_cast<uint64_t>(sysconf(_SC_PAGESIZE)) / 4;
  // The widest value between two segments is the residual stream.
  int64_t width = 1;
  for (const auto &[value, input] : inputs)
    width = std::max<int64_t>(width, input.declared.columns);
  return std::max<size_t>(1, bytes / (changedWindows * window * width * sizeof(float)));
}

void Measurement::progress(StringRef what, double work) {
  std::lock_guard lock(progressMutex);
  workDone += work;
  if (options.progress)
    options.progress(what, std::min(1.0, workDone / workInAll));
}

//===----------------------------------------------------------------------===//
// Changes
//===----------------------------------------------------------------------===//

/// Sixty-four random bits for each number (splitmix64; Steele, Lea and Flood, 2014).
static uint64_t randomBits(uint64_t number) {
  number += 0x9e3779b97f4a7c15;
  number = (number ^ (number >> 30)) * 0xbf58476d1ce4e5b9;
  number = (number ^ (number >> 27)) * 0x94d049bb133111eb;
  return number ^ (number >> 31);
}

/// A matrix of random signs of the weight's shape.
PackedMatrix Measurement::makeNoise(model::LinearOp product) const {
  auto shape = cast<RankedTensorType>(product.getWeight().getType()).getShape();
  int64_t rows = shape[0], columns = shape[1], piece = PackedMatrix::panelRows();
  PackedMatrix noise(rows, columns);
  // Each row has a random sequence of its own.
  uint64_t start =
      randomBits(options.seed ^ llvm::xxh3_64bits(pass.weightOf(product).getSymName()));
  llvm::parallelFor(0, (rows + piece - 1) / piece, [&](size_t task) {
    int64_t first = static_cast<int64_t>(task) * piece, count = std::min(piece, rows - first);
    std::vector<float> signs(count * columns);
    for (int64_t row = 0; row < count; ++row) {
      uint64_t state = randomBits(start + first + row), bits = 0;
      for (int64_t column = 0; column < columns; ++column, bits >>= 1) {
        if (column % 64 == 0)
          bits = randomBits(state + column / 64);
        signs[row * columns + column] = bits & 1 ? 1.0f : -1.0f;
      }
    }
    noise.pack({signs.data(), count, columns, columns}, first);
  });
  return noise;
}

/// What is read back of keys or values that are cached so.
static void roundCacheRows(Tensor &rows, const Change &change) {
  int64_t block = change.headDim & -change.headDim; // as model.hadamard has it
  if (change.format.rotated)
    rows = reference::hadamard(rows, block);
  std::vector<float> rounded(change.headDim);
  for (size_t head = 0; head < rows.values.size(); head += change.headDim) {
    auto x = llvm::MutableArrayRef(rows.values).slice(head, change.headDim);
    formats::roundCacheVector(change.format.encoding, x, rounded);
    llvm::copy(rounded, x.begin());
  }
  // The rotation is its own inverse; queries can stay as they are.
  if (change.format.rotated)
    rows = reference::hadamard(rows, block);
}

/// Of all products of a segment that get some in this round.
NoiseMap Measurement::makeNoises(size_t segment) const {
  NoiseMap noises;
  for (const Stream &stream : streams)
    if (stream.change->segment == segment && stream.change->product)
      noises[stream.change->product] = makeNoise(stream.change->product);
  return noises;
}

ForwardHooks Measurement::hooksFor(Change &change, const NoiseMap &noises,
                                   size_t windowIndex) const {
  ForwardHooks hooks;
  if (!change.product) {
    hooks.append = [&change](model::CacheAppendOp op, Tensor &rows) {
      if (op.getCache() == change.cache)
        roundCacheRows(rows, change);
    };
    return hooks;
  }
  const PackedMatrix &noise = noises.at(change.product);
  double elements = static_cast<double>(noise.rows()) * static_cast<double>(noise.columns());
  double size = std::sqrt(options.noise * pass.squaredNorm(change.product) / elements);
  hooks.product = [&change, &noise, size, windowIndex](model::LinearOp op,
                                                       const std::shared_ptr<const Tensor> &input,
                                                       Tensor &output) {
    if (op != change.product)
      return;
    std::vector<float> error(output.values.size());
    multiply({input->values.data(), input->rows(), input->width(), input->width()}, noise,
             error.data(), output.width());
    double squares = 0;
    for (auto [out, e] : llvm::zip_equal(output.values, error)) {
      squares += static_cast<double>(e) * e;
      out += static_cast<float>(size) * e;
    }
    change.outputError[windowIndex] += size * size * squares;
  };
  return hooks;
}

//===----------------------------------------------------------------------===//
// Segments
//===----------------------------------------------------------------------===//

static bool isFinite(const Tensor &tensor) {
  return llvm::all_of(tensor.values, [](float x) { return std::isfinite(x); });
}

/// Rows first to first + count of a tensor.
static std::shared_ptr<const Tensor> rowsOf(const std::shared_ptr<const Tensor> &tensor,
                                            int64_t first, int64_t count) {
  if (first == 0 && count == tensor->rows())
    return tensor;
  int64_t width = tensor->width();
  auto begin = tensor->values.begin() + first * width;
  return std::make_shared<const Tensor>(
      Tensor::floats({count, width}, std::vector<float>(begin, begin + count * width)));
}

/// Rows that the last segment, whose result is much wider than any other, is run on at a time.
int64_t Measurement::pieceRows(size_t segment) const {
  return pass.isByRow(segment) ? std::min(logitRows, window) : window;
}

llvm::Error Measurement::runBase(size_t segment, bool keepsInputs) {
  size_t count = keepsInputs ? windows : changedWindows;
  bool isLast = segment + 1 == pass.segments();
  // Logits of whole windows may be gigabytes.
  int64_t rows = isLast ? pieceRows(segment) : window;
  size_t pieces = (window + rows - 1) / rows;
  for (auto &[value, input] : inputs)
    if (keepsInputs && input.segment == segment)
      input.values.resize(count * pieces);
  std::vector<std::shared_ptr<const Tensor>> results(count);
  if (llvm::Error error = parallelTasks(count * pieces, [&](size_t task) -> llvm::Error {
        size_t w = task / pieces;
        int64_t first = static_cast<int64_t>(task % pieces) * rows;
        int64_t size = std::min(rows, window - first);
        ForwardHooks hooks;
        if (keepsInputs)
          hooks.product = [&](model::LinearOp op, const std::shared_ptr<const Tensor> &value,
                              Tensor &) {
            // Of the products that read the same value each would put it there.
            inputs.find(op.getInput())->second.values[task] = value;
          };
        std::shared_ptr<const Tensor> result =
            pass.run(base.empty() ? nullptr : rowsOf(base[w], first, size),
                     tokensOf(w).slice(first, size), hooks);
        if (!isFinite(*result))
          return makeError("the model's results are not finite");
        if (!isLast)
          results[w] = std::move(result);
        progress("reading the text",
                 pass.work(segment) * static_cast<double>(size) / static_cast<double>(window));
        return llvm::Error::success();
      }))
    return error;
  base = std::move(results);
  return llvm::Error::success();
}

llvm::Error Measurement::runStreams(size_t segment) {
  NoiseMap noises = makeNoises(segment);
  return parallelTasks(streams.size() * changedWindows, [&](size_t task) -> llvm::Error {
    Stream &stream = streams[task / changedWindows];
    size_t w = task % changedWindows;
    ForwardHooks hooks;
    Change &change = *stream.change;
    if (change.segment == segment)
      hooks = hooksFor(change, noises, w);
    stream.states[w] = pass.run(stream.states[w], tokensOf(w), hooks);
    progress("measuring sensitivities", pass.work(segment));
    return llvm::Error::success();
  });
}

llvm::Error Measurement::runLogits(size_t segment) {
  NoiseMap noises = makeNoises(segment);
  int64_t rows = pieceRows(segment);
  int64_t pieces = (window + rows - 1) / rows;
  for (size_t w = 0; w < changedWindows; ++w)
    for (int64_t piece = 0; piece < pieces; ++piece) {
      int64_t first = piece * rows, count = std::min(rows, window - first);
      ArrayRef<int32_t> ids = tokensOf(w).slice(first, count);
      auto part = [&](const std::shared_ptr<const Tensor> &state) {
        return state ? rowsOf(state, first, count) : nullptr;
      };
      ReferenceLogits reference(std::move(*pass.run(part(base.empty() ? nullptr : base[w]), ids)));
      llvm::parallelFor(0, streams.size(), [&](size_t i) {
        Change &change = *streams[i].change;
        // Noise in the last segment itself is measured in all rows.
        if (first + count <= firstCounted() && change.segment != segment)
          return;
        ForwardHooks hooks;
        if (change.segment == segment)
          hooks = hooksFor(change, noises, w);
        std::shared_ptr<Tensor> logits = pass.run(part(streams[i].states[w]), ids, hooks);
        double sum = 0;
        for (int64_t row = std::max<int64_t>(0, firstCounted() - first); row < count; ++row)
          sum += reference.divergence(row, logits->row(row));
        change.divergence[w * pieces + piece] = sum;
        progress("measuring sensitivities",
                 pass.work(segment) * static_cast<double>(count) / static_cast<double>(window));
      });
    }
  return llvm::Error::success();
}

//===----------------------------------------------------------------------===//
// Moments and Hessians
//===----------------------------------------------------------------------===//

llvm::Error Measurement::writeHessian(size_t index, const Input &input) {
  /// Rows of the Hessian that are one task.
  constexpr int64_t block = 96;
  int64_t columns = input.declared.columns;
  auto view = [&](size_t i) {
    const Tensor &value = *input.values[i];
    return MatrixView{value.values.data(), value.rows(), columns, columns}.transposed();
  };
  std::vector<PackedMatrix> packed(input.values.size());
  llvm::parallelFor(0, packed.size(), [&](size_t i) { packed[i] = PackedMatrix(view(i)); });
  std::vector<float> hessian(packedSize(columns));
  auto scale = static_cast<float>(1.0 / static_cast<double>(tokens.size()));
  llvm::parallelFor(0, (columns + block - 1) / block, [&](size_t task) {
    int64_t first = static_cast<int64_t>(task) * block, rows = std::min(block, columns - first);
    int64_t width = first + rows; // up to the diagonal
    std::vector<float> sums(rows * width);
    for (size_t i = 0; i < packed.size(); ++i) {
      MatrixView x = view(i);
      x.data += first;
      x.rows = rows;
      multiply(x, packed[i], sums.data(), width, {.accumulate = true, .lastRow = width});
    }
    for (int64_t row = 0; row < rows; ++row)
      for (int64_t column = 0; column <= first + row; ++column)
        hessian[packedIndex(first + row, column)] = sums[row * width + column] * scale;
  });
  return writer->hessian(index, hessian);
}

llvm::Error Measurement::writeInputs(size_t segment) {
  for (auto [index, entry] : llvm::enumerate(inputs)) {
    Input &input = entry.second;
    if (input.segment != segment)
      continue;
    int64_t columns = input.declared.columns;
    std::vector<double> sums(columns);
    for (const std::shared_ptr<const Tensor> &value : input.values)
      for (int64_t row = 0; row < value->rows(); ++row)
        for (auto [sum, x] : llvm::zip_equal(sums, value->row(row)))
          sum += static_cast<double>(x) * x;
    std::vector<float> moments(columns);
    for (auto [moment, sum] : llvm::zip_equal(moments, sums)) {
      moment = static_cast<float>(sum / static_cast<double>(tokens.size()));
      input.trace += moment;
    }
    if (llvm::Error error = writer->moments(index, moments))
      return error;
    if (options.hessians)
      if (llvm::Error error = writeHessian(index, input))
        return error;
    input.values.clear();
  }
  return llvm::Error::success();
}

//===----------------------------------------------------------------------===//
// All of it
//===----------------------------------------------------------------------===//

llvm::Error Measurement::runRound(llvm::MutableArrayRef<Change> round, bool isFirst) {
  base.clear();
  streams.clear();
  for (size_t segment = 0; segment < pass.segments(); ++segment) {
    bool isLast = segment + 1 == pass.segments();
    if (llvm::Error error = pass.load(segment, tokens))
      return error;
    for (Change &change : round)
      if (change.segment == segment) {
        std::vector<std::shared_ptr<const Tensor>> start(changedWindows);
        if (!base.empty())
          start.assign(base.begin(), base.begin() + static_cast<int64_t>(changedWindows));
        streams.push_back({&change, std::move(start)});
      }
    if (isLast && !streams.empty())
      if (llvm::Error error = runLogits(segment))
        return error;
    if (isFirst || !isLast)
      if (llvm::Error error = runBase(segment, isFirst))
        return error;
    if (isFirst)
      if (llvm::Error error = writeInputs(segment))
        return error;
    if (!isLast)
      if (llvm::Error error = runStreams(segment))
        return error;
    for (Change &change : round)
      if (change.segment == segment && change.product)
        change.whiteNoise =
            pass.squaredNorm(change.product) *
            inputs.find(change.product.getInput())->second.trace /
            static_cast<double>(
                cast<RankedTensorType>(change.product.getInput().getType()).getShape().back());
  }
  return llvm::Error::success();
}

llvm::Expected<MeasureSummary> Measurement::finish() {
  std::vector<float> sensitivities, keyLosses, valueLosses;
  double count = static_cast<double>(changedWindows) * static_cast<double>(window);
  auto sum = [](ArrayRef<double> parts) {
    double total = 0;
    for (double part : parts)
      total += part;
    return total;
  };
  for (const Change &change : changes) {
    double loss = sum(change.divergence) / (static_cast<double>(changedWindows) *
                                            static_cast<double>(window - firstCounted()));
    // What overflows is worse than anything; below zero is rounding alone.
    loss = std::isfinite(loss) ? std::max(0.0, loss) : std::numeric_limits<double>::infinity();
    if (change.product) {
      double error = sum(change.outputError) / count;
      sensitivities.push_back(static_cast<float>(error > 0 ? loss * change.whiteNoise / error : 0));
      continue;
    }
    (change.isKey ? keyLosses : valueLosses).push_back(static_cast<float>(loss));
  }
  MeasureSummary summary;
  summary.source = source;
  summary.inputs = inputs.size();
  for (const auto &[value, input] : inputs)
    summary.weights += input.declared.weights.size();
  summary.layers = changedWindows ? layers : 0;
  summary.hessians = options.hessians;
  summary.fileBytes = writer->fileBytes();
  if (llvm::Error error = writer->finish(sensitivities, keyLosses, valueLosses))
    return std::move(error);
  return summary;
}

llvm::Expected<MeasureSummary> Measurement::run(StringRef path, StringRef model) {
  if (llvm::Error error = chooseWindows())
    return std::move(error);
  findInputs();
  if (changedWindows)
    findChanges();

  source.model = model.str();
  source.tokens = static_cast<int64_t>(tokens.size());
  source.sensitivityTokens = static_cast<int64_t>(changedWindows) * window;
  source.text = options.textChecksum;
  source.seed = options.seed;
  std::vector<StatisticsWriter::Input> declared;
  for (const auto &[value, input] : inputs)
    declared.push_back(input.declared);
  llvm::Expected<StatisticsWriter> made =
      StatisticsWriter::create(path, declared, options.hessians, changedWindows > 0, source,
                               keyFormats, valueFormats, layers);
  if (!made)
    return made.takeError();
  writer.emplace(std::move(*made));

  size_t perRound = changedWindows ? changesPerRound() : 1;
  for (size_t segment = 0; segment < pass.segments(); ++segment) {
    workInAll += pass.work(segment) * static_cast<double>(windows);
    for (const Change &change : changes)
      if (change.segment <= segment)
        workInAll += pass.work(segment) * static_cast<double>(changedWindows);
  }
  llvm::MutableArrayRef<Change> left = changes;
  for (bool isFirst = true; isFirst || !left.empty(); isFirst = false) {
    size_t count = std::min(perRound, left.size());
    if (llvm::Error error = runRound(left.take_front(count), isFirst))
      return std::move(error);
    left = left.drop_front(count);
  }
  return finish();
}

llvm::Expected<MeasureSummary> calibration::measure(const ModelFiles &model, StringRef path,
                                                    const MeasureOptions &options) {
  if (!model.weightsPresent)
    return makeError(model.weightsAbsentReason);
  MLIRContext context(MLIRContext::Threading::DISABLED);
  int64_t window = std::min(calibrationWindow, model.config.contextLength);
  llvm::Expected<OwningOpRef<ModuleOp>> module =
      importModel(context, model, {.context = window, .tokens = window});
  if (!module)
    return module.takeError();
  llvm::Expected<std::unique_ptr<FileWeightRows>> weights = FileWeightRows::open(**module);
  if (!weights)
    return weights.takeError();
  llvm::Expected<ForwardPass> pass = ForwardPass::create(**module, **weights);
  if (!pass)
    return pass.takeError();
  return Measurement(*pass, **module, options).run(path, model.path);
}
