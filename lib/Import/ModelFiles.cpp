// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sluice/Import/ModelFiles.h"

#include "Diagnostics.h"
#include "Families.h"

#include "sluice/Formats/GgufBlocks.h"
#include "sluice/Import/CheckpointMatrix.h"
#include "sluice/Import/GGUF.h"
#include "sluice/Import/Safetensors.h"

#include "llvm/ADT/MapVector.h"
#include "llvm/ADT/STLExtras.h"
#include "llvm/ADT/StringExtras.h"
#include "llvm/ADT/StringSet.h"
#include "llvm/Support/FileSystem.h"
#include "llvm/Support/Path.h"

#include <array>

using namespace llvm;
using namespace sluice;
using sluice::detail::fail;
using sluice::detail::FirstProblem;
using sluice::detail::quote;

// A config is a few kilobytes; what is larger is something else.
static constexpr uint64_t maxConfigBytes = 16 << 20;

static std::string childPath(StringRef folder, StringRef name) {
  SmallString<256> path(folder);
  sys::path::append(path, name);
  return path.str().str();
}

//===----------------------------------------------------------------------===//
// Weights
//===----------------------------------------------------------------------===//

namespace {
/// Beginnings of the names of everything that a graph may compute with. A tensor with such a name
/// that no role takes belongs to another graph.
constexpr StringLiteral huggingFaceGraph[] = {"model.", "lm_head.", "transformer.", "gpt_neox.",
                                              "embed_out."};
constexpr StringLiteral ggufGraph[] = {"blk.", "output", "token_", "position_", "rope_"};

/// Finds a tensor by name.
struct Inventory {
  std::function<const TensorRef *(StringRef name)> find;
  std::function<std::string(const TensorRef &)> fileOf;
  /// The file that should have a tensor which find() does not, and a reason to expect it there (or
  /// nothing).
  std::function<std::pair<std::string, std::string>(StringRef name)> whyMissing;
};

/// Which rows of a tensor a weight is: `total` rows in all. An empty part is all of them.
struct Part {
  int64_t first = 0, total = 0;
  formats::RowView view;
  bool interleaved = false;
};

class WeightCollector {
public:
  WeightCollector(const ModelConfig &config, const Inventory &inventory, FileSet &files, bool gguf)
      : config(config), inventory(inventory), files(files),
        names(gguf ? sluice::detail::familyOf(config.family).gguf
                   : sluice::detail::familyOf(config.family).huggingFace),
        gguf(gguf) {}

  /// Takes the head, too, if the config says that it is the embedding but there is one.
  Expected<Weights> run();

  /// Sorts out a tensor of the file `path` that nothing may need: passes it over, warns of it, or
  /// remembers it for the error that finish() returns.
  void leave(StringRef path, const TensorRef &tensor);
  bool takes(StringRef name) const { return usedNames.contains(name); }
  Error finish(std::vector<std::string> &warnings);

private:
  Weight matrix(const std::string &stem, int64_t rows, int64_t columns, const Part &part = {}) {
    if (const SchemeInfo *scheme = findScheme(root + stem))
      return takeParts(*scheme, root + stem, rows, columns, part);
    return take(stem + ".weight", {rows, columns}, part);
  }
  Weight vector(const std::string &name, int64_t size, const Part &part = {}) {
    return take(name, {size}, part);
  }
  std::optional<Weight> bias(bool present, const std::string &stem, int64_t size,
                             const Part &part = {}) {
    if (!present)
      return std::nullopt;
    return vector(stem + ".bias", size, part);
  }
  Weight take(const std::string &name, const SmallVector<int64_t, 4> &shape, const Part &part);
  LayerWeights takeLayer(const std::string &prefix);
  /// The parts that q, k and v are of their tensors.
  std::array<Part, 3> projectionParts() const;

  /// The scheme in which the file has a matrix, by its tensors; null: a tensor of its own. `stem`
  /// is the whole name, with the root.
  const SchemeInfo *findScheme(const std::string &stem) const;
  Weight takeParts(const SchemeInfo &scheme, const std::string &stem, int64_t rows, int64_t columns,
                   const Part &part);

  /// Layers that read the same input have tensors of their own with the same order of columns: the
  /// first of those that have a tensor's bytes. It is known to be in its file.
  const TensorRef &firstWithSameBytes(const TensorRef &tensor);

  const ModelConfig &config;
  const Inventory &inventory;
  FileSet &files;
  const sluice::detail::TensorNames &names;
  bool gguf;
  StringSet<> usedNames;
  /// By file: tensors of another graph, and those that have nothing to do with any.
  MapVector<StringRef, std::vector<std::string>> foreign, ignored;
  /// In front of every name: the names' root, if the file's have it.
  std::string root;
  /// Of matrices that are read as float32 values: the first one and why, and how many there are.
  std::string expanded;
  int64_t expandedCount = 0;
  /// Column groups by their bytes.
  StringMap<TensorRef> columnGroups;
  /// Of matrices in blocks that are re-packed: how many there are of a type.
  MapVector<StringRef, int64_t> repacked;
  FirstProblem problem;
};
} // namespace

const SchemeInfo *WeightCollector::findScheme(const std::string &stem) const {
  if (!config.quantization)
    return nullptr;
  for (CheckpointScheme scheme : config.quantization->schemes) {
    // Schemes share names of tensors, also with plain floats; their types tell them apart.
    const SchemeInfo &info = schemeInfo(scheme);
    const TensorRef *found = inventory.find(stem + "." + info.elements.str());
    if (found && found->type == elementForms(scheme, 1, 1).front().type &&
        (info.divisor.empty() || inventory.find(stem + "." + info.divisor.str())))
      return &info;
  }
  return nullptr;
}

Weight WeightCollector::takeParts(const SchemeInfo &scheme, const std::string &stem, int64_t rows,
                                  int64_t columns, const Part &matrixPart) {
  Weight weight;
  if (problem)
    return weight;
  std::string name = stem + "." + scheme.elements.str();
  weight.tensor = *inventory.find(name);
  usedNames.insert(name);
  // GPTQ and AWQ have the same shapes for Conv1D as for linear layers.
  if (names.transposed &&
      !is_contained({CheckpointScheme::Gptq, CheckpointScheme::GptqV2, CheckpointScheme::Awq},
                    scheme.scheme)) {
    problem.set(inventory.fileOf(weight.tensor),
                "tensor " + quote(name) + " of scheme " + scheme.name +
                    " may be transposed, as this family's matrices are, which is not supported");
    return weight;
  }
  weight.tensor.view = matrixPart.view;
  weight.tensor.view.first = matrixPart.first;
  weight.tensor.view.total = matrixPart.total;
  weight.ropeInterleaved = matrixPart.interleaved;
  CheckpointParts &parts = weight.parts.emplace(scheme.scheme, rows, columns);
  parts.group = config.quantization->group;
  for (const PartInfo &part : scheme.parts) {
    std::string partName = stem + "." + part.suffix.str();
    if (!part.other.empty() && !inventory.find(partName))
      partName = stem + "." + part.other.str();
    if (const TensorRef *tensor = inventory.find(partName)) {
      usedNames.insert(partName);
      parts.parts.emplace_back(part.role, *tensor);
      continue;
    }
    if (part.isOptional)
      continue;
    auto [where, reason] = inventory.whyMissing(partName);
    problem.set(where, "tensor " + quote(partName) + " is missing, " +
                           (reason.empty()
                                ? "expected the " + roleName(part.role).str() + " of " + quote(name)
                                : reason));
    return weight;
  }
  for (StringRef rest : scheme.passedOver)
    usedNames.insert((stem + "." + rest).str());
  if (!scheme.divisor.empty()) {
    std::string divisor = stem + "." + scheme.divisor.str();
    usedNames.insert(divisor);
    parts.divisor = *inventory.find(divisor);
    if (parts.divisor->shape.empty())
      parts.divisor->shape = {1};
    Weight vector;
    vector.tensor = *parts.divisor;
    vector.parts.emplace(CheckpointScheme::InverseFactor, 1, rows);
    if (auto factor = CheckpointMatrix::open(vector, files); !factor)
      problem.set(toString(factor.takeError()));
  }

  std::string path = inventory.fileOf(weight.tensor), who = "tensor " + quote(name);
  auto matrix = CheckpointMatrix::open(weight, files);
  if (!matrix) {
    problem.set(toString(matrix.takeError()));
    return weight;
  }
  const QuantizationConfig &quantization = *config.quantization;
  if (quantization.bits && *quantization.bits != (*matrix)->bits())
    problem.set(path, who + " has elements of " + Twine((*matrix)->bits()) +
                          " bits, but config.json says " + Twine(*quantization.bits));
  if (quantization.group && *quantization.group != (*matrix)->group() &&
      // A group as long as a row.
      !((*matrix)->group() == 0 && *quantization.group >= columns))
    problem.set(path,
                who + " has groups of " +
                    ((*matrix)->group() ? Twine((*matrix)->group()) : Twine("all")) +
                    " columns, but config.json says " +
                    (*quantization.group ? Twine(*quantization.group) : Twine("a whole row")));
  parts.encoding = (*matrix)->encoding();
  erase_if(parts.parts, [&](const auto &part) { return !(*matrix)->needs(part.first); });
  for (auto &[role, tensor] : parts.parts)
    if (role == PartRole::Groups && parts.encoding)
      tensor = firstWithSameBytes(tensor);
  if (!parts.encoding && !expandedCount++)
    expanded = path + ": " + who + ": " + (*matrix)->whyNoEncoding().str();
  return weight;
}

const TensorRef &WeightCollector::firstWithSameBytes(const TensorRef &tensor) {
  auto bytesOf = [&](const TensorRef &of) {
    return cantFail(files.get(of.file))->text().substr(of.offset, of.bytes);
  };
  return columnGroups.try_emplace(bytesOf(tensor), tensor).first->second;
}

Weight WeightCollector::take(const std::string &role, const SmallVector<int64_t, 4> &wanted,
                             const Part &part) {
  std::string name = root + role;
  Weight weight;
  if (problem)
    return weight;
  bool isVector = wanted.size() == 1;
  // Embeddings are not transposed.
  bool transposed = names.transposed && !isVector && StringRef(role).starts_with(names.layerPrefix);
  SmallVector<int64_t, 4> shape = wanted;
  if (part.total)
    shape[0] = part.total;
  if (transposed)
    std::swap(shape[0], shape[1]);
  const TensorRef *tensor = inventory.find(name);
  std::string who = "tensor " + quote(name);
  if (!tensor) {
    auto [where, reason] = inventory.whyMissing(name);
    std::string expected = "expected shape " + shapeText(shape);
    if (StringRef stem = name;
        config.quantization && shape.size() == 2 && stem.consume_back(".weight"))
      expected +=
          " or quantized elements in " +
          quote((stem + "." + schemeInfo(config.quantization->schemes.front()).elements).str());
    problem.set(where, who + " is missing, " + (reason.empty() ? expected : reason));
    return weight;
  }
  usedNames.insert(name);
  std::string path = inventory.fileOf(*tensor);
  if (ArrayRef(tensor->shape) != ArrayRef(shape))
    problem.set(path,
                who + " has shape " + shapeText(tensor->shape) + ", expected " + shapeText(shape));
  else if (isVector ? !isPlainFloat(tensor->type) : !isUsableWeight(tensor->type))
    problem.set(path, who + " has type " + tensor->typeText() + ", expected " +
                          (isVector || !gguf ? "F32, F16 or BF16" : usableWeights()));
  else if (transposed && !isPlainFloat(tensor->type))
    problem.set(path, who + " has type " + tensor->typeText() + ", expected F32, F16 or BF16");
  else if (StringRef stem = name; tensor->type == StorageType::NVFP4 &&
                                  stem.consume_back(".weight") &&
                                  inventory.find((stem + ".scale").str()))
    problem.set(path, who + " has type NVFP4 with a factor of the whole tensor in " +
                          quote((stem + ".scale").str()) + ", which is not supported");
  weight.tensor = *tensor;
  weight.ropeInterleaved = part.interleaved;
  if (problem)
    return weight;
  const formats::GgufBlock *block = formats::GgufBlock::named(storageName(tensor->type));
  if (block && block->isRepacked())
    ++repacked[block->name];
  // Rows that follow each other are a tensor of their own; others are a view.
  formats::RowView view = part.view;
  int64_t rows = wanted[0], span = view.fileRows(rows);
  uint64_t elementBytes = isVector || transposed ? *storageBytes(tensor->type, 1)
                                                 : *storageBytes(tensor->type, wanted[1]);
  weight.tensor.shape = wanted;
  weight.tensor.offset += part.first * elementBytes;
  weight.tensor.bytes = span * elementBytes;
  if (transposed) {
    view.pitch = shape[1];
    weight.tensor.bytes = ((wanted[1] - 1) * view.pitch + span) * elementBytes;
  }
  weight.tensor.view = view;
  return weight;
}

std::array<Part, 3> WeightCollector::projectionParts() const {
  int64_t qRows = config.heads * config.headDim, kvRows = config.kvHeads * config.headDim;
  std::array<Part, 3> parts;
  int64_t firsts[] = {0, qRows, qRows + kvRows};
  for (auto [i, part] : enumerate(parts)) {
    if (names.q == names.k) {
      part.total = qRows + 2 * kvRows;
      part.first = firsts[i];
      if (names.qkvByHead) {
        part.first = i * config.headDim;
        part.view.block = config.headDim;
        part.view.stride = 3 * config.headDim;
      }
    }
    if (i < 2) {
      part.interleaved = names.ropeInterleaved;
      // All rotary pairs half a head apart, as the graph has them.
      if (config.rotaryDims && config.rotaryDims != config.headDim) {
        part.view.rotary = config.rotaryDims;
        part.view.head = config.headDim;
      }
    }
  }
  return parts;
}

LayerWeights WeightCollector::takeLayer(const std::string &prefix) {
  int64_t hidden = config.hiddenSize, inner = config.intermediateSize;
  int64_t qRows = config.heads * config.headDim, kvRows = config.kvHeads * config.headDim;
  auto named = [&](StringRef name) { return prefix + name.str(); };
  auto norm = [&](bool present, StringRef name, int64_t size) -> std::optional<Weight> {
    if (!present)
      return std::nullopt;
    return vector(named(name) + ".weight", size);
  };
  bool before = config.normPlaces != NormPlaces::After,
       after = config.normPlaces != NormPlaces::Before;
  auto [qPart, kPart, vPart] = projectionParts();
  LayerWeights layer;
  if (before)
    layer.attnNorm = *norm(true, names.attnNorm, hidden);
  layer.q = matrix(named(names.q), qRows, hidden, qPart);
  layer.k = matrix(named(names.k), kvRows, hidden, kPart);
  layer.v = matrix(named(names.v), kvRows, hidden, vPart);
  layer.o = matrix(named(names.o), hidden, qRows);
  layer.qBias = bias(config.qBias, named(names.q), qRows, qPart);
  layer.kBias = bias(config.kBias, named(names.k), kvRows, kPart);
  layer.vBias = bias(config.vBias, named(names.v), kvRows, vPart);
  layer.oBias = bias(config.oBias, named(names.o), hidden);
  // Of rows, or one for all heads.
  bool hasQkNorms = config.rowQkNorm || config.qkNorms;
  layer.qNorm = norm(hasQkNorms, names.qNorm, config.qkNorms ? config.headDim : qRows);
  layer.kNorm = norm(hasQkNorms, names.kNorm, config.qkNorms ? config.headDim : kvRows);
  layer.attnPostNorm = norm(after, names.attnPostNorm, hidden);
  if (before)
    layer.mlpNorm = *norm(true, names.mlpNorm, hidden);
  layer.attnNormBias = bias(before && config.normBias, named(names.attnNorm), hidden);
  layer.mlpNormBias = bias(before && config.normBias, named(names.mlpNorm), hidden);
  layer.mlpPostNorm = norm(after, names.mlpPostNorm, hidden);
  Part gatePart, upPart;
  if (config.gatedMlp && names.gate == names.up) {
    gatePart.total = upPart.total = 2 * inner;
    upPart.first = inner;
  }
  if (config.gatedMlp)
    layer.gate = matrix(named(names.gate), inner, hidden, gatePart);
  layer.up = matrix(named(names.up), inner, hidden, upPart);
  layer.down = matrix(named(names.down), hidden, inner);
  layer.gateBias = bias(config.mlpBias && config.gatedMlp, named(names.gate), inner, gatePart);
  layer.upBias = bias(config.mlpBias, named(names.up), inner, upPart);
  layer.downBias = bias(config.mlpBias, named(names.down), hidden);
  return layer;
}

Expected<Weights> WeightCollector::run() {
  int64_t hidden = config.hiddenSize;
  // Models that were saved without the class around them have names without its name.
  if (inventory.find((names.root + names.tokenEmbedding + ".weight").str()) ||
      !inventory.find((names.tokenEmbedding + ".weight").str()))
    root = names.root.str();
  Weights weights;
  weights.tokenEmbedding = matrix(names.tokenEmbedding.str(), config.vocabSize, hidden);
  if (const auto &parts = weights.tokenEmbedding.parts; !problem && parts && parts->divisor)
    problem.set(inventory.fileOf(weights.tokenEmbedding.tensor),
                "tensor " + quote(weights.tokenEmbedding.tensor.name) +
                    " is an embedding with a divisor of all values, which is not supported");
  if (const auto &parts = weights.tokenEmbedding.parts;
      !problem && parts && parts->encoding && parts->find(PartRole::Groups))
    problem.set(inventory.fileOf(weights.tokenEmbedding.tensor),
                "tensor " + quote(weights.tokenEmbedding.tensor.name) +
                    " is an embedding whose columns are not in the order of their groups "
                    "(act-order), which is not supported");
  if (config.learnedPositions)
    weights.positionEmbedding = matrix(names.positionEmbedding.str(), config.contextLength, hidden);
  for (int64_t i = 0; i < config.layers && !problem; ++i)
    weights.layers.push_back(takeLayer(names.layerPrefix.str() + std::to_string(i) + "."));
  weights.outputNorm = vector(names.outputNorm.str() + ".weight", hidden);
  weights.outputNormBias = bias(config.normBias, names.outputNorm.str(), hidden);
  // The head is no part of what the root names.
  root.clear();
  if (!config.tiedEmbeddings || inventory.find((names.head + ".weight").str()))
    weights.head = matrix(names.head.str(), config.vocabSize, hidden);
  if (problem)
    return problem.take();
  return weights;
}

/// Buffers that old checkpoints carry and the config determines.
static bool isDerived(StringRef name) {
  return name.ends_with("rotary_emb.inv_freq") || name.ends_with("attn_rot_embd.weight") ||
         name.ends_with("attn.masked_bias") || name.ends_with("attention.masked_bias") ||
         name.starts_with("rope_f"); // read with the config
}

/// The lower triangle that GPT-2 and GPT-NeoX checkpoints carry as a bias of attention.
static bool isMask(const TensorRef &tensor) {
  StringRef name = tensor.name;
  return tensor.shape.size() == 4 &&
         (name.ends_with(".attn.bias") || name.ends_with(".attention.bias"));
}

void WeightCollector::leave(StringRef path, const TensorRef &tensor) {
  StringRef name = tensor.name;
  if (isDerived(name) || isMask(tensor))
    return;
  bool isForeign = any_of(gguf ? ArrayRef(ggufGraph) : ArrayRef(huggingFaceGraph),
                          [&](StringRef start) { return name.starts_with(start); }) ||
                   name.starts_with(names.layerPrefix);
  StringRef rest = name;
  rest.consume_front(names.root);
  int64_t layer = 0;
  if (rest.consume_front(names.layerPrefix) && !rest.consumeInteger(10, layer) &&
      layer >= config.layers)
    problem.set(path, "tensor " + quote(name) + " is of layer " + Twine(layer) +
                          " (counted from 0), but the model's configuration has only " +
                          Twine(config.layers));
  (isForeign ? foreign : ignored)[path].push_back(tensor.name);
}

Error WeightCollector::finish(std::vector<std::string> &warnings) {
  if (problem)
    return problem.take();
  if (expandedCount)
    warnings.push_back(expanded + ", so it is read as float32 values" +
                       (expandedCount == 1
                            ? ""
                            : ", as are " + std::to_string(expandedCount - 1) + " more matrices") +
                       "; with --weights keep, CPUs compute with exactly these");
  for (const auto &[type, count] : repacked)
    warnings.push_back((Twine(count) + " matrices of " + type + " are re-packed as " +
                        formats::GgufBlock::named(type)->encoding.name() +
                        ", which has exactly their values")
                           .str());
  for (const auto &[path, list] : foreign) {
    constexpr size_t limit = 3;
    auto quoted = [](const std::string &name) { return quote(name); };
    std::string text = join(map_range(ArrayRef(list).take_front(limit), quoted), ", ");
    if (list.size() > limit)
      text += " and " + std::to_string(list.size() - limit) + " more";
    return fail(path, (list.size() == 1 ? "tensor " : "tensors ") + text +
                          ": a model of this family and config has no such tensors, so this is "
                          "another graph");
  }
  // A line for each, in the file's order; a sum after the first few.
  for (const auto &[path, list] : ignored) {
    constexpr size_t limit = 16;
    for (const std::string &name : ArrayRef(list).take_front(limit))
      warnings.push_back(
          (path + ": tensor " + quote(name) + " is not part of the model and ignored").str());
    if (list.size() > limit)
      warnings.push_back((path + ": " + Twine(list.size() - limit) +
                          " more tensors are not part of the model and ignored")
                             .str());
  }
  return Error::success();
}

static void warnOfTrailingBytes(StringRef path, uint64_t bytes,
                                std::vector<std::string> &warnings) {
  if (bytes)
    warnings.push_back(
        (path + ": " + Twine(bytes) + " bytes follow the last tensor and are ignored").str());
}

//===----------------------------------------------------------------------===//
// Hugging Face folders
//===----------------------------------------------------------------------===//

namespace {
/// The safetensors files of a folder: one, or those that an index names.
class Shards {
public:
  explicit Shards(ModelFiles &model) : model(model) {}

  /// False if the folder has no weights.
  Expected<bool> open();
  const TensorRef *find(StringRef name) const;
  std::pair<std::string, std::string> whyMissing(StringRef name) const;
  /// Hands every tensor that the collector did not take to it, and warns of the rest that is wrong
  /// but not needed.
  void leaveRest(WeightCollector &collector) const;

private:
  Error openShard(StringRef name);

  ModelFiles &model;
  std::string indexPath;
  std::optional<SafetensorsIndex> index;
  /// As the index has them; one without file is missing.
  std::vector<std::optional<SafetensorsFile>> files;
};
} // namespace

Error Shards::openShard(StringRef name) {
  auto mapped = model.files->get(name);
  if (!mapped)
    return mapped.takeError();
  auto shard = SafetensorsFile::parse(*mapped, name);
  if (!shard)
    return shard.takeError();
  files.push_back(std::move(*shard));
  return Error::success();
}

Expected<bool> Shards::open() {
  // transformers takes the single file where both are there.
  if (sys::fs::exists(childPath(model.root, "model.safetensors"))) {
    if (Error error = openShard("model.safetensors"))
      return std::move(error);
    return true;
  }
  indexPath = childPath(model.root, "model.safetensors.index.json");
  if (!sys::fs::exists(indexPath))
    return false;
  auto file = mapFile(indexPath);
  if (!file)
    return file.takeError();
  auto parsed = SafetensorsIndex::parse(**file);
  if (!parsed)
    return parsed.takeError();
  index = std::move(*parsed);
  for (const std::string &shard : index->shards)
    if (!sys::fs::exists(childPath(model.root, shard)))
      files.emplace_back();
    else if (Error error = openShard(shard))
      return std::move(error);
  return true;
}

const TensorRef *Shards::find(StringRef name) const {
  if (!index)
    return files.front()->find(name);
  auto found = index->shardOf.find(name);
  if (found == index->shardOf.end() || !files[found->second])
    return nullptr;
  return files[found->second]->find(name);
}

std::pair<std::string, std::string> Shards::whyMissing(StringRef name) const {
  if (!index)
    return {files.front()->file().path(), ""};
  auto found = index->shardOf.find(name);
  if (found == index->shardOf.end())
    return {indexPath, ""};
  const std::string &shard = index->shards[found->second];
  if (!files[found->second])
    return {indexPath, "as is its shard " + quote(shard)};
  return {childPath(model.root, shard), "but " + indexPath + " places it here"};
}

void Shards::leaveRest(WeightCollector &collector) const {
  for (auto [i, shard] : enumerate(files)) {
    if (!shard) {
      model.warnings.push_back(indexPath + ": names the shard " + quote(index->shards[i]) +
                               ", which is missing and not needed");
      continue;
    }
    StringRef path = shard->file().path();
    for (const TensorRef &tensor : shard->tensors()) {
      if (!collector.takes(tensor.name))
        collector.leave(path, tensor);
      else if (find(tensor.name) != &tensor)
        model.warnings.push_back((path + ": tensor " + quote(tensor.name) +
                                  " is ignored: " + indexPath + " places it elsewhere")
                                     .str());
    }
    warnOfTrailingBytes(path, shard->trailingBytes(), model.warnings);
  }
  if (!index)
    return;
  std::vector<StringRef> absent;
  for (const auto &entry : index->shardOf)
    if (const auto &shard = files[entry.second]; shard && !shard->find(entry.first()))
      absent.push_back(entry.first());
  if (!absent.empty())
    model.warnings.push_back(indexPath + ": names " + std::to_string(absent.size()) +
                             (absent.size() == 1 ? " tensor that is" : " tensors that are") +
                             " in no shard and not needed, such as " +
                             quote(*llvm::min_element(absent)));
}

/// Decides between the embedding and a head that is there although the config says that they are
/// one: a copy is left out, another matrix is the head.
static Error settleHead(ModelFiles &model) {
  if (!model.config.tiedEmbeddings || !model.weights.head)
    return Error::success();
  auto bytesOf = [&](const TensorRef &tensor) -> Expected<StringRef> {
    auto file = model.files->get(tensor.file);
    if (!file)
      return file.takeError();
    return (*file)->text().substr(tensor.offset, tensor.bytes);
  };
  const TensorRef &embedding = model.weights.tokenEmbedding.tensor,
                  &head = model.weights.head->tensor;
  Expected<StringRef> embeddingBytes = bytesOf(embedding);
  if (!embeddingBytes)
    return embeddingBytes.takeError();
  Expected<StringRef> headBytes = bytesOf(head);
  if (!headBytes)
    return headBytes.takeError();
  if (embedding.type == head.type && *embeddingBytes == *headBytes) {
    model.weights.head.reset();
    return Error::success();
  }
  model.config.tiedEmbeddings = false;
  model.warnings.push_back(childPath(model.root, head.file) + ": tensor " + quote(head.name) +
                           " differs from " + quote(embedding.name) +
                           " although tie_word_embeddings is true: it is used as the head");
  return Error::success();
}

static Error collectHuggingFace(ModelFiles &model) {
  Shards shards(model);
  Expected<bool> present = shards.open();
  if (!present)
    return present.takeError();
  if (!*present) {
    model.weightsAbsentReason =
        model.path + ": no model.safetensors or model.safetensors.index.json";
    if (sys::fs::exists(childPath(model.root, "pytorch_model.bin")) ||
        sys::fs::exists(childPath(model.root, "pytorch_model.bin.index.json")))
      model.weightsAbsentReason += " (pytorch_model.bin is not read)";
    return Error::success();
  }

  Inventory inventory;
  inventory.find = [&](StringRef name) { return shards.find(name); };
  inventory.fileOf = [&](const TensorRef &tensor) { return childPath(model.root, tensor.file); };
  inventory.whyMissing = [&](StringRef name) { return shards.whyMissing(name); };
  WeightCollector collector(model.config, inventory, *model.files, /*gguf=*/false);
  auto weights = collector.run();
  if (!weights)
    return weights.takeError();
  model.weights = std::move(*weights);
  model.weightsPresent = true;
  shards.leaveRest(collector);
  if (Error error = collector.finish(model.warnings))
    return error;
  return settleHead(model);
}

static Expected<ModelFiles> openHuggingFace(StringRef path, bool isFolder) {
  ModelFiles model;
  model.format = ModelFiles::Format::HuggingFace;
  model.path = path.str();
  model.root = isFolder ? path.str() : sys::path::parent_path(path).str();
  if (model.root.empty())
    model.root = ".";
  model.files = std::make_shared<FileSet>(model.root);

  std::string configPath = isFolder ? childPath(path, "config.json") : path.str();
  if (isFolder && !sys::fs::exists(configPath))
    return fail(path, "has no config.json, expected a Hugging Face folder or a GGUF file");
  auto file = mapFile(configPath, maxConfigBytes);
  if (!file)
    return file.takeError();
  auto config = configFromJson((*file)->text(), configPath, model.warnings);
  if (!config)
    return config.takeError();
  model.config = std::move(*config);
  if (!isFolder) {
    model.weightsAbsentReason = path.str() + ": is a config alone, without weights";
    return model;
  }
  // "." and ".." as given say nothing about the model; its real folder does.
  SmallString<256> real;
  if (!sys::fs::real_path(path, real))
    model.config.name = sys::path::filename(real).str();

  if (std::string generation = childPath(path, "generation_config.json");
      sys::fs::exists(generation)) {
    auto text = mapFile(generation, maxConfigBytes);
    if (!text)
      return text.takeError();
    if (Error error = addGenerationConfig((*text)->text(), generation, model.config))
      return std::move(error);
  }
  for (auto [name, source] : {std::pair("tokenizer.model", &model.tokenizer.sentencePieceModel),
                              std::pair("tokenizer.json", &model.tokenizer.huggingFaceJson)})
    if (std::string file = childPath(path, name); sys::fs::exists(file)) {
      // What reads it sees only its text; that it is the file and not a stand-in is known here.
      if (auto opened = mapFile(file); !opened)
        return opened.takeError();
      *source = file;
    }
  if (Error error = collectHuggingFace(model))
    return std::move(error);
  return model;
}

//===----------------------------------------------------------------------===//
// GGUF
//===----------------------------------------------------------------------===//

/// Nothing when the file has no vocabulary.
static Expected<std::optional<GgufTokenizer>> readTokenizer(const GGUFFile &file,
                                                            int64_t vocabSize) {
  StringRef path = file.file().path();
  FirstProblem problem;
  auto wrongType = [&](StringRef key, const GGUFValue &value, StringRef expected) {
    problem.set(path, key + " is a value of type " +
                          (value.isArray() ? "array of " + ggufTypeName(value.elementType())
                                           : Twine(ggufTypeName(value.type()))) +
                          ", expected " + expected);
  };
  auto string = [&](StringRef key, std::string &out) {
    if (const GGUFValue *value = file.find(key)) {
      if (std::optional<StringRef> text = value->asString())
        out = text->str();
      else
        wrongType(key, *value, "a string");
    }
  };
  auto strings = [&](StringRef key, std::vector<std::string> &out) {
    if (const GGUFValue *value = file.find(key)) {
      if (auto list = value->asStrings())
        out.assign(list->begin(), list->end());
      else
        wrongType(key, *value, "an array of strings");
    }
  };
  auto id = [&](StringRef key) -> std::optional<int64_t> {
    const GGUFValue *value = file.find(key);
    if (!value)
      return std::nullopt;
    std::optional<int64_t> found = value->asInteger();
    if (!found)
      wrongType(key, *value, "a token id");
    else if (*found < 0 || *found >= vocabSize)
      problem.set(path, key + " is " + Twine(*found) + ", expected a token of the vocabulary of " +
                            Twine(vocabSize));
    return found;
  };
  auto flag = [&](StringRef key, std::optional<bool> &out) {
    if (const GGUFValue *value = file.find(key)) {
      out = value->asBool();
      if (!out)
        wrongType(key, *value, "a bool");
    }
  };

  GgufTokenizer tokenizer;
  if (!file.find("tokenizer.ggml.model") && !file.find("tokenizer.ggml.tokens"))
    return std::nullopt;
  string("tokenizer.ggml.model", tokenizer.model);
  // How converters write that there is none: such a model runs on ids.
  if (tokenizer.model == "no_vocab" || tokenizer.model == "none")
    return std::nullopt;
  string("general.name", tokenizer.name);
  string("tokenizer.ggml.pre", tokenizer.pre);
  strings("tokenizer.ggml.tokens", tokenizer.tokens);
  strings("tokenizer.ggml.merges", tokenizer.merges);
  if (const GGUFValue *value = file.find("tokenizer.ggml.scores")) {
    if (auto list = value->asFloats())
      tokenizer.scores.assign(list->begin(), list->end());
    else
      wrongType("tokenizer.ggml.scores", *value, "an array of f32");
  }
  if (const GGUFValue *value = file.find("tokenizer.ggml.precompiled_charsmap")) {
    auto list = value->asIntegers();
    // Converters write i8 as well as u8.
    if (list && all_of(*list, [](int64_t byte) { return byte >= -128 && byte <= 255; }))
      for (int64_t byte : *list)
        tokenizer.charsmap.push_back(static_cast<char>(byte));
    else
      wrongType("tokenizer.ggml.precompiled_charsmap", *value, "an array of u8");
  }
  if (const GGUFValue *value = file.find("tokenizer.ggml.token_type")) {
    if (auto list = value->asIntegers())
      tokenizer.types.assign(list->begin(), list->end());
    else
      wrongType("tokenizer.ggml.token_type", *value, "an array of i32");
  }
  size_t count = tokenizer.tokens.size();
  if (count > static_cast<size_t>(vocabSize))
    problem.set(path, "tokenizer.ggml.tokens has " + Twine(count) +
                          " tokens, expected at most the vocabulary of " + Twine(vocabSize));
  for (auto [key, size] : {std::pair("scores", tokenizer.scores.size()),
                           std::pair("token_type", tokenizer.types.size())})
    if (size != 0 && size != count)
      problem.set(path, Twine("tokenizer.ggml.") + key + " has " + Twine(size) +
                            " entries, expected one for each of " + Twine(count) + " tokens");
  tokenizer.bosId = id("tokenizer.ggml.bos_token_id");
  tokenizer.unknownId = id("tokenizer.ggml.unknown_token_id");
  for (const char *end : {"eos", "eot", "eom"})
    if (std::optional<int64_t> found = id(("tokenizer.ggml." + Twine(end) + "_token_id").str()))
      tokenizer.eosIds.push_back(*found);
  tokenizer.paddingId = id("tokenizer.ggml.padding_token_id");
  flag("tokenizer.ggml.add_bos_token", tokenizer.addBos);
  flag("tokenizer.ggml.add_eos_token", tokenizer.addEos);
  flag("tokenizer.ggml.add_space_prefix", tokenizer.addSpacePrefix);
  flag("tokenizer.ggml.remove_extra_whitespaces", tokenizer.removeExtraWhitespaces);
  string("tokenizer.chat_template", tokenizer.chatTemplate);
  if (problem)
    return problem.take();
  return std::optional(std::move(tokenizer));
}

Expected<std::optional<GgufTokenizer>> sluice::openGGUFTokenizer(StringRef path) {
  auto file = GGUFFile::open(path, /*withTensors=*/false);
  if (!file)
    return file.takeError();
  // Without the model, nothing bounds the vocabulary but itself.
  return readTokenizer(*file, INT64_MAX);
}

static Expected<ModelFiles> openGGUF(StringRef path) {
  ModelFiles model;
  model.format = ModelFiles::Format::GGUF;
  model.path = path.str();
  model.root = sys::path::parent_path(path).str();
  if (model.root.empty())
    model.root = ".";
  model.files = std::make_shared<FileSet>(model.root);
  std::string name = sys::path::filename(path).str();

  auto mapped = model.files->get(name);
  if (!mapped)
    return mapped.takeError();
  auto file = GGUFFile::parse(*mapped, name);
  if (!file)
    return file.takeError();
  auto config = configFromGGUF(*file, model.warnings);
  if (!config)
    return config.takeError();
  model.config = std::move(*config);

  Inventory inventory;
  inventory.find = [&](StringRef name) { return file->findTensor(name); };
  inventory.fileOf = [&](const TensorRef &) { return path.str(); };
  inventory.whyMissing = [&](StringRef) { return std::pair(path.str(), std::string()); };
  WeightCollector collector(model.config, inventory, *model.files, /*gguf=*/true);
  auto weights = collector.run();
  if (!weights)
    return weights.takeError();
  model.weights = std::move(*weights);
  model.weightsPresent = true;
  for (const TensorRef &tensor : file->tensors())
    if (!collector.takes(tensor.name))
      collector.leave(path, tensor);
  if (Error error = collector.finish(model.warnings))
    return std::move(error);
  warnOfTrailingBytes(path, file->trailingBytes(), model.warnings);

  auto tokenizer = readTokenizer(*file, model.config.vocabSize);
  if (!tokenizer)
    return tokenizer.takeError();
  model.tokenizer.gguf = std::move(*tokenizer);
  return model;
}

Expected<ModelFiles> sluice::openModel(StringRef path) {
  sys::fs::file_status status;
  if (std::error_code ec = sys::fs::status(path, status))
    return fail(path, "cannot be opened: " + ec.message());
  if (status.type() == sys::fs::file_type::directory_file)
    return openHuggingFace(path, /*isFolder=*/true);
  auto file = mapFile(path);
  if (!file)
    return file.takeError();
  if (GGUFFile::hasMagic((*file)->text()) || path.ends_with_insensitive(".gguf"))
    return openGGUF(path);
  if (path.ends_with(".safetensors"))
    return fail(path,
                "is a safetensors file, expected the folder that holds it and its config.json");
  if (path.ends_with(".json"))
    return openHuggingFace(path, /*isFolder=*/false);
  return fail(path, "is not a model: expected a GGUF file, a Hugging Face folder or a config.json");
}
