// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sluice/Import/ModelFiles.h"

#include "Diagnostics.h"

#include "sluice/Import/GGUF.h"
#include "sluice/Import/Safetensors.h"

#include "llvm/ADT/StringSet.h"
#include "llvm/Support/FileSystem.h"
#include "llvm/Support/Path.h"

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
/// Tensor names of one kind of file, a layer's with its number already in front.
struct Names {
  StringLiteral tokenEmbedding, outputNorm, head;
  /// Before and after the layer's number.
  StringLiteral layerPrefix;
  StringLiteral attnNorm, q, k, v, o, mlpNorm, gate, up, down;
};

constexpr Names huggingFaceNames = {"model.embed_tokens",
                                    "model.norm",
                                    "lm_head",
                                    "model.layers.",
                                    "input_layernorm",
                                    "self_attn.q_proj",
                                    "self_attn.k_proj",
                                    "self_attn.v_proj",
                                    "self_attn.o_proj",
                                    "post_attention_layernorm",
                                    "mlp.gate_proj",
                                    "mlp.up_proj",
                                    "mlp.down_proj"};
constexpr Names ggufNames = {"token_embd", "output_norm", "output",  "blk.",        "attn_norm",
                             "attn_q",     "attn_k",      "attn_v",  "attn_output", "ffn_norm",
                             "ffn_gate",   "ffn_up",      "ffn_down"};

/// Finds a tensor by name. `where` is the file that should have it, for the message when it lacks
/// it.
struct Inventory {
  std::function<const TensorRef *(StringRef name)> find;
  std::function<std::string(const TensorRef &)> fileOf;
  std::string where;
};

class WeightCollector {
public:
  WeightCollector(const ModelConfig &config, const Inventory &inventory, bool gguf)
      : config(config), inventory(inventory), names(gguf ? ggufNames : huggingFaceNames),
        gguf(gguf) {}

  Expected<Weights> run();
  const StringSet<> &used() const { return usedNames; }

private:
  Weight matrix(const std::string &stem, int64_t rows, int64_t columns, bool permuted = false) {
    return take(stem + ".weight", {rows, columns}, permuted);
  }
  Weight vector(const std::string &name, int64_t size, bool permuted = false) {
    return take(name, {size}, permuted);
  }
  std::optional<Weight> bias(bool present, const std::string &stem, int64_t size,
                             bool permuted = false) {
    if (!present)
      return std::nullopt;
    return vector(stem + ".bias", size, permuted);
  }
  Weight take(const std::string &name, const SmallVector<int64_t, 4> &shape, bool permuted);

  const ModelConfig &config;
  const Inventory &inventory;
  const Names &names;
  bool gguf;
  StringSet<> usedNames;
  FirstProblem problem;
};
} // namespace

Weight WeightCollector::take(const std::string &name, const SmallVector<int64_t, 4> &shape,
                             bool permuted) {
  Weight weight;
  if (problem)
    return weight;
  const TensorRef *tensor = inventory.find(name);
  std::string who = "tensor " + quote(name);
  if (!tensor) {
    problem.set(inventory.where, who + " is missing, expected shape " + shapeText(shape));
    return weight;
  }
  usedNames.insert(name);
  std::string path = inventory.fileOf(*tensor);
  bool isVector = shape.size() == 1;
  if (ArrayRef(tensor->shape) != ArrayRef(shape))
    problem.set(path,
                who + " has shape " + shapeText(tensor->shape) + ", expected " + shapeText(shape));
  else if (isVector ? !isPlainFloat(tensor->type) : !isUsableWeight(tensor->type))
    problem.set(path,
                who + " has type " + storageName(tensor->type) + ", expected " +
                    (isVector || !gguf ? "F32, F16 or BF16" : "F32, F16, BF16, Q8_0 or Q4_0"));
  weight.tensor = *tensor;
  weight.ropeInterleaved = permuted;
  return weight;
}

Expected<Weights> WeightCollector::run() {
  int64_t hidden = config.hiddenSize;
  int64_t qRows = config.heads * config.headDim;
  int64_t kvRows = config.kvHeads * config.headDim;
  // convert_hf_to_gguf.py permutes q and k (and their biases) of "llama" only.
  bool permuted = gguf && config.family == ModelFamily::Llama;

  Weights weights;
  weights.tokenEmbedding = matrix(names.tokenEmbedding.str(), config.vocabSize, hidden);
  for (int64_t i = 0; i < config.layers && !problem; ++i) {
    std::string prefix = names.layerPrefix.str() + std::to_string(i) + ".";
    LayerWeights layer;
    layer.attnNorm = vector(prefix + names.attnNorm.str() + ".weight", hidden);
    layer.q = matrix(prefix + names.q.str(), qRows, hidden, permuted);
    layer.k = matrix(prefix + names.k.str(), kvRows, hidden, permuted);
    layer.v = matrix(prefix + names.v.str(), kvRows, hidden);
    layer.o = matrix(prefix + names.o.str(), hidden, qRows);
    layer.qBias = bias(config.qBias, prefix + names.q.str(), qRows, permuted);
    layer.kBias = bias(config.kBias, prefix + names.k.str(), kvRows, permuted);
    layer.vBias = bias(config.vBias, prefix + names.v.str(), kvRows);
    layer.oBias = bias(config.oBias, prefix + names.o.str(), hidden);
    layer.mlpNorm = vector(prefix + names.mlpNorm.str() + ".weight", hidden);
    layer.gate = matrix(prefix + names.gate.str(), config.intermediateSize, hidden);
    layer.up = matrix(prefix + names.up.str(), config.intermediateSize, hidden);
    layer.down = matrix(prefix + names.down.str(), hidden, config.intermediateSize);
    layer.gateBias = bias(config.mlpBias, prefix + names.gate.str(), config.intermediateSize);
    layer.upBias = bias(config.mlpBias, prefix + names.up.str(), config.intermediateSize);
    layer.downBias = bias(config.mlpBias, prefix + names.down.str(), hidden);
    weights.layers.push_back(std::move(layer));
  }
  weights.outputNorm = vector(names.outputNorm.str() + ".weight", hidden);
  if (!config.tiedEmbeddings)
    weights.head = matrix(names.head.str(), config.vocabSize, hidden);
  if (problem)
    return problem.take();
  return weights;
}

/// A line for each tensor that no role took, in the file's order; a sum after the first few.
static void warnOfExtras(StringRef path, const std::vector<std::string> &extras,
                         std::vector<std::string> &warnings) {
  constexpr size_t limit = 16;
  for (const std::string &name : ArrayRef(extras).take_front(limit))
    warnings.push_back(
        (path + ": tensor " + quote(name) + " is not part of the model and ignored").str());
  if (extras.size() > limit)
    warnings.push_back((path + ": " + Twine(extras.size() - limit) +
                        " more tensors are not part of the model and ignored")
                           .str());
}

//===----------------------------------------------------------------------===//
// Hugging Face folders
//===----------------------------------------------------------------------===//

/// Every tensor of the folder's shards that its index (if it has one) assigns to them.
static Error collectHuggingFace(ModelFiles &model) {
  std::vector<SafetensorsFile> shards;
  std::vector<std::string> shardPaths;
  std::optional<SafetensorsIndex> index;
  Inventory inventory;

  auto openShard = [&](StringRef name) -> Error {
    auto mapped = model.files->get(name);
    if (!mapped)
      return mapped.takeError();
    auto shard = SafetensorsFile::parse(*mapped, name);
    if (!shard)
      return shard.takeError();
    shards.push_back(std::move(*shard));
    return Error::success();
  };

  // transformers takes the single file where both are there.
  std::string single = childPath(model.root, "model.safetensors");
  std::string indexPath = childPath(model.root, "model.safetensors.index.json");
  if (sys::fs::exists(single)) {
    inventory.where = single;
    if (Error error = openShard("model.safetensors"))
      return error;
  } else if (sys::fs::exists(indexPath)) {
    inventory.where = indexPath;
    auto file = mapFile(indexPath);
    if (!file)
      return file.takeError();
    auto parsed = SafetensorsIndex::parse(**file);
    if (!parsed)
      return parsed.takeError();
    index = std::move(*parsed);
    for (const std::string &shard : index->shards) {
      std::string path = childPath(model.root, shard);
      if (!sys::fs::exists(path))
        return fail(indexPath, "names the shard " + quote(shard) + ", which is missing");
      if (Error error = openShard(shard))
        return error;
    }
    // In the order of names, so that the line does not depend on hashing.
    std::vector<std::pair<std::string, size_t>> assigned;
    for (const auto &entry : index->shardOf)
      assigned.emplace_back(entry.first().str(), entry.second);
    llvm::sort(assigned);
    for (const auto &[name, shard] : assigned)
      if (!shards[shard].find(name))
        return fail(shards[shard].file().path(),
                    "tensor " + quote(name) + " is missing, but " + indexPath + " places it here");
  } else {
    model.weightsAbsentReason =
        model.path + ": no model.safetensors or model.safetensors.index.json";
    if (sys::fs::exists(childPath(model.root, "pytorch_model.bin")) ||
        sys::fs::exists(childPath(model.root, "pytorch_model.bin.index.json")))
      model.weightsAbsentReason += " (pytorch_model.bin is not read)";
    return Error::success();
  }

  inventory.find = [&](StringRef name) -> const TensorRef * {
    if (!index)
      return shards.front().find(name);
    auto found = index->shardOf.find(name);
    return found == index->shardOf.end() ? nullptr : shards[found->second].find(name);
  };
  inventory.fileOf = [&](const TensorRef &tensor) { return childPath(model.root, tensor.file); };

  WeightCollector collector(model.config, inventory, /*gguf=*/false);
  auto weights = collector.run();
  if (!weights)
    return weights.takeError();
  model.weights = std::move(*weights);
  model.weightsPresent = true;

  for (auto [i, shard] : enumerate(shards)) {
    std::vector<std::string> extras;
    for (const TensorRef &tensor : shard.tensors()) {
      // Old checkpoints carry the rotary frequencies, which the config determines.
      bool mine = !index || (index->shardOf.count(tensor.name) && index->shardOf[tensor.name] == i);
      if (!(mine && collector.used().contains(tensor.name)) &&
          !StringRef(tensor.name).ends_with("rotary_emb.inv_freq"))
        extras.push_back(tensor.name);
    }
    warnOfExtras(shard.file().path(), extras, model.warnings);
  }
  return Error::success();
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
  if (std::string name = childPath(path, "tokenizer.model"); sys::fs::exists(name))
    model.tokenizer.sentencePieceModel = name;
  if (std::string name = childPath(path, "tokenizer.json"); sys::fs::exists(name))
    model.tokenizer.huggingFaceJson = name;
  if (Error error = collectHuggingFace(model))
    return std::move(error);
  return model;
}

//===----------------------------------------------------------------------===//
// GGUF
//===----------------------------------------------------------------------===//

/// Nothing when the file has no vocabulary.
static Expected<std::optional<GGUFTokenizer>> readTokenizer(const GGUFFile &file,
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
  auto id = [&](StringRef key, std::optional<int64_t> &out) {
    if (const GGUFValue *value = file.find(key)) {
      out = value->asInteger();
      if (!out)
        wrongType(key, *value, "a token id");
      else if (*out < 0 || *out >= vocabSize)
        problem.set(path, key + " is " + Twine(*out) + ", expected a token of the vocabulary of " +
                              Twine(vocabSize));
    }
  };
  auto flag = [&](StringRef key, std::optional<bool> &out) {
    if (const GGUFValue *value = file.find(key)) {
      out = value->asBool();
      if (!out)
        wrongType(key, *value, "a bool");
    }
  };

  GGUFTokenizer tokenizer;
  if (!file.find("tokenizer.ggml.model") && !file.find("tokenizer.ggml.tokens"))
    return std::nullopt;
  string("tokenizer.ggml.model", tokenizer.model);
  string("tokenizer.ggml.pre", tokenizer.pre);
  strings("tokenizer.ggml.tokens", tokenizer.tokens);
  strings("tokenizer.ggml.merges", tokenizer.merges);
  if (const GGUFValue *value = file.find("tokenizer.ggml.scores")) {
    if (auto list = value->asFloats())
      tokenizer.scores.assign(list->begin(), list->end());
    else
      wrongType("tokenizer.ggml.scores", *value, "an array of f32");
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
  id("tokenizer.ggml.bos_token_id", tokenizer.bosId);
  id("tokenizer.ggml.eos_token_id", tokenizer.eosId);
  id("tokenizer.ggml.eot_token_id", tokenizer.eotId);
  id("tokenizer.ggml.unknown_token_id", tokenizer.unkId);
  id("tokenizer.ggml.padding_token_id", tokenizer.padId);
  flag("tokenizer.ggml.add_bos_token", tokenizer.addBos);
  flag("tokenizer.ggml.add_eos_token", tokenizer.addEos);
  flag("tokenizer.ggml.add_space_prefix", tokenizer.addSpacePrefix);
  if (problem)
    return problem.take();
  return std::optional(std::move(tokenizer));
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
  inventory.where = path.str();
  inventory.find = [&](StringRef name) { return file->findTensor(name); };
  inventory.fileOf = [&](const TensorRef &) { return path.str(); };
  WeightCollector collector(model.config, inventory, /*gguf=*/true);
  auto weights = collector.run();
  if (!weights)
    return weights.takeError();
  model.weights = std::move(*weights);
  model.weightsPresent = true;
  std::vector<std::string> extras;
  for (const TensorRef &tensor : file->tensors())
    if (!collector.used().contains(tensor.name) && tensor.name != "rope_freqs.weight")
      extras.push_back(tensor.name);
  warnOfExtras(path, extras, model.warnings);

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
