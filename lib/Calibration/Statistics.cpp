// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sluice/Calibration/Statistics.h"

#include "sluice-support/Text.h"
#include "sluice/Import/GGUF.h"

#include "llvm/ADT/STLExtras.h"
#include "llvm/ADT/StringExtras.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

using namespace llvm;
using namespace sluice;
using namespace sluice::calibration;
using support::quote;

static constexpr StringLiteral formatName = "sluice statistics", formatVersion = "1";
static constexpr StringLiteral sensitivityName = "sensitivity", keyName = "loss.k",
                               valueName = "loss.v";

static Error fail(StringRef path, const Twine &message) {
  return createStringError(path + ": " + message);
}

StringRef calibration::roundingName(const InputStatistics *input) {
  if (!input)
    return "rounded without statistics";
  return input->hessian.empty() ? "rounded by its input's moments"
                                : "rounded by its input's Hessian";
}

Expected<formats::Rounder> calibration::makeRounder(const InputStatistics *input, int64_t columns) {
  if (!input)
    return formats::Rounder::plain(columns);
  return input->hessian.empty() ? formats::Rounder::byMoments(input->moments)
                                : formats::Rounder::byHessian(input->hessian, columns);
}

//===----------------------------------------------------------------------===//
// Errors
//===----------------------------------------------------------------------===//

double calibration::outputError(ArrayRef<float> weight, ArrayRef<float> rounded,
                                const InputStatistics &input) {
  assert(weight.size() == rounded.size() && "two matrices of the same shape");
  size_t columns = input.moments.size();
  double sum = 0;
  std::vector<double> error(columns);
  for (size_t begin = 0; begin < weight.size(); begin += columns) {
    for (size_t j = 0; j < columns; ++j)
      error[j] = static_cast<double>(weight[begin + j]) - rounded[begin + j];
    for (size_t i = 0; i < columns; ++i) {
      double others = 0;
      if (!input.hessian.empty()) {
        const float *row = input.hessian.data() + packedIndex(i, 0);
        for (size_t j = 0; j < i; ++j)
          others += row[j] * error[j];
      }
      sum += error[i] * (input.moments[i] * error[i] + 2 * others);
    }
  }
  return sum;
}

double calibration::whiteNoiseError(ArrayRef<float> weight, const InputStatistics &input) {
  double norm = 0, trace = 0;
  for (float x : weight)
    norm += static_cast<double>(x) * x;
  for (float moment : input.moments)
    trace += moment;
  return norm * trace / static_cast<double>(input.moments.size());
}

double calibration::relativeError(ArrayRef<float> weight, ArrayRef<float> rounded,
                                  const InputStatistics &input) {
  double noise = whiteNoiseError(weight, input);
  return noise > 0 ? outputError(weight, rounded, input) / noise : 0;
}

//===----------------------------------------------------------------------===//
// Statistics
//===----------------------------------------------------------------------===//

const WeightStatistics *Statistics::find(StringRef weight) const {
  auto it = byName.find(weight);
  return it == byName.end() ? nullptr : &it->second;
}

std::optional<double> Statistics::cacheLoss(int64_t layer, bool isKey, StringRef format) const {
  const CacheLosses &losses = isKey ? keys : values;
  auto it = llvm::find(losses.formats, format);
  if (it == losses.formats.end())
    return std::nullopt;
  size_t index = layer * losses.formats.size() + (it - losses.formats.begin());
  return index < losses.nats.size() ? std::optional<double>(losses.nats[index]) : std::nullopt;
}

bool Statistics::hasHessians() const {
  return any_of(inputList, [](const InputStatistics &input) { return !input.hessian.empty(); });
}

bool Statistics::hasSensitivities() const {
  return any_of(names, [&](const std::string &name) { return find(name)->sensitivity; });
}

size_t Statistics::addInput(std::vector<float> moments, std::vector<float> hessian) {
  assert((hessian.empty() || hessian.size() == packedSize(moments.size())) && "a packed triangle");
  InputStatistics input;
  input.moments = owned->emplace_back(std::move(moments));
  if (!hessian.empty())
    input.hessian = owned->emplace_back(std::move(hessian));
  inputList.push_back(input);
  return inputList.size() - 1;
}

void Statistics::addWeight(StringRef name, size_t input, std::optional<double> sensitivity) {
  assert(input < inputList.size() && "an input that was added");
  if (byName.insert_or_assign(name, WeightStatistics{input, sensitivity}).second)
    names.push_back(name.str());
}

Error Statistics::write(StringRef path) const {
  std::vector<StatisticsWriter::Input> inputs(inputList.size());
  for (auto [input, known] : zip_equal(inputs, inputList))
    input.columns = known.columns();
  for (const std::string &name : names)
    inputs[find(name)->input].weights.push_back(name);
  std::vector<float> sensitivities;
  for (const StatisticsWriter::Input &input : inputs)
    for (const std::string &name : input.weights)
      sensitivities.push_back(static_cast<float>(
          find(name)->sensitivity.value_or(std::numeric_limits<double>::quiet_NaN())));
  int64_t layers = static_cast<int64_t>(
      std::max(keys.formats.empty() ? 0 : keys.nats.size() / keys.formats.size(),
               values.formats.empty() ? 0 : values.nats.size() / values.formats.size()));
  Expected<StatisticsWriter> writer =
      StatisticsWriter::create(path, inputs, hasHessians(), hasSensitivities(), source,
                               keys.formats, values.formats, layers);
  if (!writer)
    return writer.takeError();
  for (auto [index, input] : enumerate(inputList)) {
    if (Error error = writer->moments(index, input.moments))
      return error;
    if (hasHessians())
      if (Error error = writer->hessian(index, input.hessian))
        return error;
  }
  return writer->finish(hasSensitivities() ? ArrayRef<float>(sensitivities) : ArrayRef<float>(),
                        keys.nats, values.nats);
}

//===----------------------------------------------------------------------===//
// Files of its own
//===----------------------------------------------------------------------===//

Expected<StatisticsWriter> StatisticsWriter::create(StringRef path, ArrayRef<Input> inputs,
                                                    bool hasHessians, bool hasSensitivities,
                                                    const StatisticsSource &source,
                                                    ArrayRef<std::string> keyFormats,
                                                    ArrayRef<std::string> valueFormats,
                                                    int64_t layers) {
  std::vector<SafetensorsWriter::Declaration> tensors;
  auto declare = [&](const Twine &name, ArrayRef<int64_t> shape) {
    tensors.push_back({name.str(), StorageType::F32, {shape.begin(), shape.end()}});
    return tensors.size() - 1;
  };
  std::vector<size_t> momentTensors, hessianTensors;
  std::string weights;
  int64_t count = 0;
  for (const Input &input : inputs) {
    const std::string &name = input.weights.front();
    momentTensors.push_back(declare(name + ".moments", input.columns));
    if (hasHessians)
      hessianTensors.push_back(
          declare(name + ".hessian", static_cast<int64_t>(packedSize(input.columns))));
    weights += (weights.empty() ? "" : ";") + join(input.weights, ",");
    count += static_cast<int64_t>(input.weights.size());
  }
  std::optional<size_t> sensitivityTensor, keyTensor, valueTensor;
  if (hasSensitivities)
    sensitivityTensor = declare(sensitivityName, count);
  if (!keyFormats.empty())
    keyTensor = declare(keyName, {layers, static_cast<int64_t>(keyFormats.size())});
  if (!valueFormats.empty())
    valueTensor = declare(valueName, {layers, static_cast<int64_t>(valueFormats.size())});

  std::pair<std::string, std::string> metadata[] = {
      {"format", formatName.str()},
      {"version", formatVersion.str()},
      {"model", support::printable(source.model, source.model.size())},
      {"tokens", std::to_string(source.tokens)},
      {"sensitivity_tokens", std::to_string(source.sensitivityTokens)},
      {"text_xxh3", source.text},
      {"seed", std::to_string(source.seed)},
      {"weights", weights},
      {"k_formats", join(keyFormats, ",")},
      {"v_formats", join(valueFormats, ",")},
  };
  Expected<SafetensorsWriter> writer = SafetensorsWriter::create(path, tensors, metadata);
  if (!writer)
    return writer.takeError();
  StatisticsWriter result(std::move(*writer));
  result.momentTensors = std::move(momentTensors);
  result.hessianTensors = std::move(hessianTensors);
  result.sensitivityTensor = sensitivityTensor;
  result.keyTensor = keyTensor;
  result.valueTensor = valueTensor;
  return result;
}

Error StatisticsWriter::append(size_t tensor, ArrayRef<float> numbers) {
  return writer.append(tensor, ArrayRef(reinterpret_cast<const uint8_t *>(numbers.data()),
                                        numbers.size() * sizeof(float)));
}

Error StatisticsWriter::moments(size_t input, ArrayRef<float> moments) {
  return append(momentTensors[input], moments);
}

Error StatisticsWriter::hessian(size_t input, ArrayRef<float> hessian) {
  return append(hessianTensors[input], hessian);
}

Error StatisticsWriter::finish(ArrayRef<float> sensitivities, ArrayRef<float> keyLosses,
                               ArrayRef<float> valueLosses) {
  for (auto [tensor, numbers] :
       {std::pair(sensitivityTensor, sensitivities), std::pair(keyTensor, keyLosses),
        std::pair(valueTensor, valueLosses)})
    if (tensor)
      if (Error error = append(*tensor, numbers))
        return error;
  return writer.finish();
}

/// The numbers of a tensor in a mapped file, which its writer aligned.
static ArrayRef<float> numbersOf(const SafetensorsFile &file, const TensorRef &tensor) {
  return ArrayRef(reinterpret_cast<const float *>(file.file().bytes().data() + tensor.offset),
                  tensor.bytes / sizeof(float));
}

static bool areMoments(ArrayRef<float> numbers) {
  return all_of(numbers, [](float x) { return std::isfinite(x) && x >= 0; });
}

/// The text of a key, or an empty one.
static StringRef metadataOf(const SafetensorsFile &file, StringRef key) {
  for (const auto &[name, value] : file.metadata())
    if (name == key)
      return value;
  return "";
}

bool Statistics::isStatistics(StringRef path) {
  Expected<SafetensorsFile> file = SafetensorsFile::open(path);
  if (!file) {
    consumeError(file.takeError());
    return false;
  }
  return metadataOf(*file, "format") == formatName;
}

Expected<Statistics> Statistics::readOwn(const SafetensorsFile &file) {
  StringRef path = file.file().path();
  auto text = [&](StringRef key) { return metadataOf(file, key); };
  if (text("format") != formatName)
    return fail(path, "is no file of statistics: it lacks the format '" + formatName + "'");
  if (text("version") != formatVersion)
    return fail(path, "has version " + quote(text("version")) + " of statistics, expected " +
                          formatVersion);

  // An array of the declared size that can be read in place.
  auto array = [&](const Twine &name, size_t size) -> Expected<ArrayRef<float>> {
    const TensorRef *tensor = file.find(name.str());
    if (!tensor)
      return fail(path, "lacks the tensor " + quote(name.str()));
    if (tensor->type != StorageType::F32 || tensor->bytes != size * sizeof(float) ||
        tensor->offset % alignof(float))
      return fail(path, "tensor " + quote(name.str()) + " is " + tensor->typeText() + " " +
                            shapeText(tensor->shape) + ", expected " + Twine(size) +
                            " numbers of F32");
    return numbersOf(file, *tensor);
  };

  Statistics result;
  result.file = file.sharedFile();
  auto integer = [&](StringRef key, auto &value) -> Error {
    if (text(key).getAsInteger(10, value))
      return fail(path, "metadata " + key + " is " + quote(text(key)) + ", expected a number");
    return Error::success();
  };
  result.source.model = text("model").str();
  result.source.text = text("text_xxh3").str();
  if (Error error = integer("tokens", result.source.tokens))
    return error;
  if (Error error = integer("sensitivity_tokens", result.source.sensitivityTokens))
    return error;
  if (Error error = integer("seed", result.source.seed))
    return error;

  for (StringRef group : split(text("weights"), ';')) {
    SmallVector<StringRef> weights;
    group.split(weights, ',');
    const TensorRef *tensor = file.find((weights.front() + ".moments").str());
    size_t columns = tensor ? tensor->bytes / sizeof(float) : 0;
    Expected<ArrayRef<float>> moments = array(weights.front() + ".moments", columns);
    if (!moments)
      return moments.takeError();
    if (moments->empty() || !areMoments(*moments))
      return fail(path, "tensor " + quote((weights.front() + ".moments").str()) +
                            " holds what is no mean of squares");
    InputStatistics input{*moments, {}};
    if (std::string name = (weights.front() + ".hessian").str(); file.find(name)) {
      Expected<ArrayRef<float>> hessian = array(name, packedSize(columns));
      if (!hessian)
        return hessian.takeError();
      input.hessian = *hessian;
    }
    result.inputList.push_back(input);
    for (StringRef weight : weights)
      result.addWeight(weight, result.inputList.size() - 1);
  }

  if (file.find(sensitivityName)) {
    Expected<ArrayRef<float>> numbers = array(sensitivityName, result.names.size());
    if (!numbers)
      return numbers.takeError();
    for (auto [name, number] : zip_equal(result.names, *numbers))
      if (!std::isnan(number))
        result.byName[name].sensitivity = number;
  }
  for (auto [losses, key, name] : {std::tuple(&result.keys, "k_formats", keyName),
                                   std::tuple(&result.values, "v_formats", valueName)}) {
    if (text(key).empty())
      continue;
    for (StringRef format : split(text(key), ','))
      losses->formats.push_back(format.str());
    const TensorRef *tensor = file.find(name);
    size_t size = tensor && tensor->shape.size() == 2 ? tensor->shape[0] * losses->formats.size()
                                                      : losses->formats.size();
    Expected<ArrayRef<float>> numbers = array(name, size);
    if (!numbers)
      return numbers.takeError();
    losses->nats = numbers->vec();
  }
  return result;
}

//===----------------------------------------------------------------------===//
// Importance matrices of llama.cpp (tools/imatrix/imatrix.cpp)
//===----------------------------------------------------------------------===//

/// The weights here that read the input of a weight there: some families' files have several
/// matrices in one.
static SmallVector<std::string> weightsOf(StringRef name) {
  SmallVector<std::string> weights = {name.str()};
  StringRef layer = name;
  if (layer.consume_back("attn_qkv"))
    for (StringRef part : {"attn_q", "attn_k", "attn_v"})
      weights.push_back((layer + part).str());
  else if (layer.consume_back("ffn_up"))
    weights.push_back((layer + "ffn_gate").str());
  return weights;
}

Expected<Statistics> Statistics::readImatrix(StringRef path) {
  Expected<GGUFFile> file = GGUFFile::open(path);
  if (!file)
    return file.takeError();
  const GGUFValue *type = file->find("general.type");
  if (!type || type->asString() != std::optional<StringRef>("imatrix"))
    return fail(path, "is a GGUF file but no importance matrix (general.type is not 'imatrix')");

  Statistics result;
  if (const GGUFValue *datasets = file->find("imatrix.datasets"))
    if (std::optional<std::vector<StringRef>> names = datasets->asStrings())
      result.source.model = join(*names, ", ");
  auto numbers = [&](const TensorRef &tensor) {
    // Tensors of GGUF files need not be aligned to more than a byte.
    std::vector<float> values(tensor.bytes / sizeof(float));
    std::memcpy(values.data(), file->file().bytes().data() + tensor.offset, tensor.bytes);
    return values;
  };
  for (const TensorRef &tensor : file->tensors()) {
    StringRef name = tensor.name;
    if (!name.consume_back(".in_sum2"))
      continue;
    const TensorRef *counts = file->findTensor((name + ".counts").str());
    if (!counts)
      return fail(path, "lacks the tensor " + quote((name + ".counts").str()));
    if (tensor.type != StorageType::F32 || counts->type != StorageType::F32)
      return fail(path, "tensors of " + quote(name) + " are " + tensor.typeText() + " and " +
                            counts->typeText() + ", expected F32");
    std::vector<float> sums = numbers(tensor), tokens = numbers(*counts);
    // Several counts are those of experts, which no weight here has.
    if (tokens.size() != 1 || sums.empty())
      continue;
    if (!(tokens[0] > 0) || !areMoments(sums))
      return fail(path, "tensors of " + quote(name) + " hold what is no sum of squares");
    for (float &sum : sums)
      sum /= tokens[0];
    result.source.tokens =
        std::max(result.source.tokens, static_cast<int64_t>(std::min(tokens[0], 0x1p53f)));
    name.consume_back(".weight");
    size_t input = result.addInput(std::move(sums));
    for (const std::string &weight : weightsOf(name))
      if (weight == name || !result.find(weight))
        result.addWeight(weight, input);
  }
  if (result.names.empty())
    return fail(path, "holds no sums of squares (tensors NAME.in_sum2)");
  return result;
}

Expected<Statistics> Statistics::read(StringRef path) {
  Expected<std::shared_ptr<const MappedFile>> mapped = mapFile(path);
  if (!mapped)
    return mapped.takeError();
  StringRef text = (*mapped)->text();
  if (GGUFFile::hasMagic(text))
    return readImatrix(path);
  if (!text.substr(8).starts_with("{"))
    return fail(path, "is neither a file of statistics nor an importance matrix in GGUF form");
  Expected<SafetensorsFile> file = SafetensorsFile::parse(*mapped, path);
  if (!file)
    return file.takeError();
  return readOwn(*file);
}
