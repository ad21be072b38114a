// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sluice/Import/ModelConfig.h"

#include "Diagnostics.h"
#include "Json.h"

#include "sluice/Import/GGUF.h"
#include "sluice/Import/TensorReader.h"

#include "llvm/ADT/STLExtras.h"
#include "llvm/ADT/StringExtras.h"
#include "llvm/Support/Path.h"

#include <cmath>
#include <numbers>

using namespace llvm;
using namespace sluice;
using nlohmann::json;
using sluice::detail::fail;
using sluice::detail::FirstProblem;
using sluice::detail::jsonText;
using sluice::detail::quote;

// Far above every published model and small enough that no product of three of them overflows.
static constexpr int64_t maxVocab = 1 << 24;
static constexpr int64_t maxWidth = 1 << 20;
static constexpr int64_t maxLayers = 1 << 12;
static constexpr int64_t maxHeads = 1 << 12;
static constexpr int64_t maxHeadDim = 1 << 12;
static constexpr int64_t maxPositions = int64_t(1) << 30;

StringRef sluice::familyName(ModelFamily family) {
  switch (family) {
  case ModelFamily::Llama:
    return "llama";
  case ModelFamily::Mistral:
    return "mistral";
  case ModelFamily::Qwen2:
    return "qwen2";
  }
  llvm_unreachable("all families are named");
}

StringRef sluice::ropeScalingName(RopeScaling::Kind kind) {
  switch (kind) {
  case RopeScaling::Kind::None:
    return "none";
  case RopeScaling::Kind::Linear:
    return "linear";
  case RopeScaling::Kind::Llama3:
    return "llama3";
  case RopeScaling::Kind::Factors:
    return "factors";
  }
  llvm_unreachable("all kinds are named");
}

std::vector<float> sluice::ropeFrequencies(const ModelConfig &config) {
  const RopeScaling &scaling = config.ropeScaling;
  std::vector<float> result;
  for (int64_t i = 0; i < config.headDim / 2; ++i) {
    double frequency = std::pow(config.ropeTheta, -2.0 * i / config.headDim);
    switch (scaling.kind) {
    case RopeScaling::Kind::None:
      break;
    case RopeScaling::Kind::Linear:
      frequency /= scaling.factor;
      break;
    case RopeScaling::Kind::Factors:
      frequency /= scaling.factors[i];
      break;
    case RopeScaling::Kind::Llama3: {
      // How often the pair turns within the context that the model was first trained for.
      double turns = scaling.originalContext * frequency / (2.0 * std::numbers::pi);
      double keep = std::clamp((turns - scaling.lowFreqFactor) /
                                   (scaling.highFreqFactor - scaling.lowFreqFactor),
                               0.0, 1.0);
      frequency = (1.0 - keep) * frequency / scaling.factor + keep * frequency;
      break;
    }
    }
    result.push_back(static_cast<float>(frequency));
  }
  return result;
}

/// What holds between the numbers, whichever file they come from. `headsKey` and `kvHeadsKey` are
/// how that file calls them.
static Error checkRelations(const ModelConfig &config, StringRef path, StringRef headsKey,
                            StringRef kvHeadsKey) {
  if (config.kvHeads > config.heads || config.heads % config.kvHeads != 0)
    return fail(path, headsKey + " is " + Twine(config.heads) + " and " + kvHeadsKey + " is " +
                          Twine(config.kvHeads) + ", expected a divisor of the former");
  if (config.headDim % 2 != 0)
    return fail(path, "the head size is " + Twine(config.headDim) +
                          ", expected an even number for the rotary embedding");
  if (config.heads * config.headDim > 4 * maxWidth)
    return fail(path, headsKey + " " + Twine(config.heads) + " times the head size " +
                          Twine(config.headDim) + " is above " + Twine(4 * maxWidth));
  return Error::success();
}

static Error checkTokenId(int64_t id, int64_t vocabSize, StringRef path, StringRef key) {
  if (id >= 0 && id < vocabSize)
    return Error::success();
  return fail(path, key + " is " + Twine(id) + ", expected a token of the vocabulary of " +
                        Twine(vocabSize));
}

static std::string rangeText(int64_t low, int64_t high) {
  return "an integer from " + std::to_string(low) + " to " + std::to_string(high);
}

static std::string numberText(double value) {
  SmallString<32> text;
  raw_svector_ostream(text) << format("%g", value);
  return text.str().str();
}

//===----------------------------------------------------------------------===//
// config.json
//===----------------------------------------------------------------------===//

namespace {
/// Typed access to one object. The first failure sticks; the caller checks it before it uses what
/// it got (which is in range even then, being the default).
class Fields {
public:
  Fields(const json &object, StringRef path, std::string prefix, FirstProblem &problem)
      : object(object), path(path), prefix(std::move(prefix)), problem(problem) {}

  /// Nothing where the key is missing or null.
  const json *find(StringRef key) const {
    auto found = object.find(key.str());
    return found == object.end() || found->is_null() ? nullptr : &*found;
  }

  int64_t integer(StringRef key, int64_t low, int64_t high,
                  std::optional<int64_t> fallback = std::nullopt) {
    const json *value = find(key);
    if (!value) {
      if (!fallback)
        complain(key, "is missing", rangeText(low, high));
      return fallback.value_or(low);
    }
    if (value->is_number_integer()) {
      bool above = value->is_number_unsigned() && value->get<uint64_t>() > INT64_MAX;
      if (!above && value->get<int64_t>() >= low && value->get<int64_t>() <= high)
        return value->get<int64_t>();
    }
    complain(key, "is " + jsonText(*value), rangeText(low, high));
    return low;
  }

  /// Greater than zero.
  double positive(StringRef key, std::optional<double> fallback = std::nullopt) {
    const json *value = find(key);
    if (!value) {
      if (!fallback)
        complain(key, "is missing", "a number above 0");
      return fallback.value_or(1.0);
    }
    if (value->is_number() && value->get<double>() > 0 && std::isfinite(value->get<double>()))
      return value->get<double>();
    complain(key, "is " + jsonText(*value), "a number above 0");
    return 1.0;
  }

  bool boolean(StringRef key, bool fallback) {
    const json *value = find(key);
    if (!value)
      return fallback;
    if (value->is_boolean())
      return value->get<bool>();
    complain(key, "is " + jsonText(*value), "true or false");
    return fallback;
  }

  std::string string(StringRef key, StringRef fallback) {
    const json *value = find(key);
    if (!value)
      return fallback.str();
    if (value->is_string())
      return value->get<std::string>();
    complain(key, "is " + jsonText(*value), "a string");
    return fallback.str();
  }

  void complain(StringRef key, const Twine &found, const Twine &expected) {
    problem.set(path, prefix + key + " " + found + ", expected " + expected);
  }

private:
  const json &object;
  StringRef path;
  std::string prefix;
  FirstProblem &problem;
};
} // namespace

/// Rotary parameters are spread over the top level (rope_theta), `rope_scaling` and, since
/// transformers 5, `rope_parameters`, which holds both.
static void readRope(Fields &top, StringRef path, ModelConfig &config, FirstProblem &problem) {
  config.ropeTheta = top.positive("rope_theta", 10000.0);
  auto checkPartial = [](Fields &fields) {
    if (fields.positive("partial_rotary_factor", 1.0) != 1.0)
      fields.complain("partial_rotary_factor",
                      "makes the rotary embedding cover a part of each head", "1");
  };
  checkPartial(top);

  for (StringRef key : {"rope_scaling", "rope_parameters"}) {
    const json *object = top.find(key);
    if (!object)
      continue;
    if (!object->is_object()) {
      top.complain(key, "is " + jsonText(*object), "an object");
      return;
    }
    Fields rope(*object, path, key.str() + ".", problem);
    for (const auto &[name, value] : object->items())
      if (value.is_object())
        rope.complain(name, "is an object", "the same rotary parameters for all layers");
    config.ropeTheta = rope.positive("rope_theta", config.ropeTheta);
    checkPartial(rope);
    std::string type = rope.string("rope_type", rope.string("type", "default"));
    RopeScaling scaling;
    if (type == "linear") {
      scaling.kind = RopeScaling::Kind::Linear;
      scaling.factor = rope.positive("factor");
    } else if (type == "llama3") {
      scaling.kind = RopeScaling::Kind::Llama3;
      scaling.factor = rope.positive("factor");
      scaling.lowFreqFactor = rope.positive("low_freq_factor");
      scaling.highFreqFactor = rope.positive("high_freq_factor");
      scaling.originalContext = rope.integer("original_max_position_embeddings", 1, maxPositions);
      if (scaling.highFreqFactor <= scaling.lowFreqFactor)
        rope.complain("high_freq_factor", "is " + numberText(scaling.highFreqFactor),
                      "more than low_freq_factor (" + numberText(scaling.lowFreqFactor) + ")");
    } else if (type != "default") {
      rope.complain("rope_type", "is " + quote(type), "default, linear or llama3");
    }
    if (scaling.kind != RopeScaling::Kind::None)
      config.ropeScaling = scaling;
  }
}

/// A token id or an array of them; null and -1 (which some configs have) mean none.
static Error readTokenIds(Fields &fields, StringRef key, StringRef path, int64_t vocabSize,
                          SmallVectorImpl<int64_t> &ids) {
  const json *value = fields.find(key);
  if (!value)
    return Error::success();
  std::vector<json> list =
      value->is_array() ? value->get<std::vector<json>>() : std::vector<json>{*value};
  for (const json &item : list) {
    if (!item.is_number_integer() ||
        (item.is_number_unsigned() && item.get<uint64_t>() > INT64_MAX))
      return fail(path, key + " is " + jsonText(item) + ", expected a token id");
    int64_t id = item.get<int64_t>();
    if (id == -1)
      continue;
    if (Error error = checkTokenId(id, vocabSize, path, key))
      return error;
    if (!is_contained(ids, id))
      ids.push_back(id);
  }
  return Error::success();
}

static Expected<ModelFamily> readFamily(Fields &fields, StringRef path) {
  static constexpr StringLiteral supported = "supported are llama, mistral and qwen2";
  const json *value = fields.find("model_type");
  if (!value || !value->is_string())
    return fail(path, "model_type is " + (value ? jsonText(*value) : "missing") + ", " + supported);
  const std::string &type = value->get_ref<const std::string &>();
  std::optional<ModelFamily> family;
  StringRef architecture;
  if (type == "llama") {
    family = ModelFamily::Llama;
    architecture = "LlamaForCausalLM";
  } else if (type == "mistral") {
    family = ModelFamily::Mistral;
    architecture = "MistralForCausalLM";
  } else if (type == "qwen2") {
    family = ModelFamily::Qwen2;
    architecture = "Qwen2ForCausalLM";
  }
  if (!family)
    return fail(path, "model_type is " + quote(type) + ", " + supported);
  // The same model_type with another head (a classifier, a reward model) is another graph.
  if (const json *list = fields.find("architectures")) {
    if (!list->is_array() || list->size() != 1 || !(*list)[0].is_string() ||
        (*list)[0].get_ref<const std::string &>() != architecture)
      return fail(path, "architectures is " +
                            (list->is_array() && list->size() == 1 ? jsonText((*list)[0])
                                                                   : jsonText(*list)) +
                            ", expected " + architecture + " for model_type " + type);
  }
  return *family;
}

Expected<ModelConfig> sluice::configFromJson(StringRef text, StringRef path,
                                             std::vector<std::string> &warnings) {
  auto document = detail::parseJsonObject(text, path);
  if (!document)
    return document.takeError();
  FirstProblem problem;
  Fields fields(*document, path, "", problem);

  ModelConfig config;
  auto family = readFamily(fields, path);
  if (!family)
    return family.takeError();
  config.family = *family;
  if (const json *value = fields.find("quantization_config")) {
    std::string method = value->is_object()
                             ? value->value("quant_method", json())
                                   .dump(-1, ' ', false, json::error_handler_t::replace)
                             : jsonText(*value);
    return fail(path, "quantization_config has quant_method " + detail::sanitize(method) +
                          ", expected plain F32, F16 or BF16 weights");
  }
  std::string activation = fields.string("hidden_act", "silu");
  if (!problem && activation != "silu")
    fields.complain("hidden_act", "is " + quote(activation), "silu");

  config.vocabSize = fields.integer("vocab_size", 1, maxVocab);
  config.hiddenSize = fields.integer("hidden_size", 1, maxWidth);
  config.intermediateSize = fields.integer("intermediate_size", 1, 4 * maxWidth);
  config.layers = fields.integer("num_hidden_layers", 1, maxLayers);
  config.heads = fields.integer("num_attention_heads", 1, maxHeads);
  // Only Llama's default for a missing key is "as many as heads"; null means that everywhere.
  bool mayLack = config.family == ModelFamily::Llama || document->contains("num_key_value_heads");
  config.kvHeads = fields.integer("num_key_value_heads", 1, maxHeads,
                                  mayLack ? std::optional(config.heads) : std::nullopt);
  if (fields.find("head_dim")) {
    config.headDim = fields.integer("head_dim", 1, maxHeadDim);
  } else if (!problem) {
    config.headDim = config.hiddenSize / config.heads;
    if (config.hiddenSize % config.heads != 0)
      fields.complain("hidden_size", "is " + Twine(config.hiddenSize),
                      "a multiple of num_attention_heads (" + Twine(config.heads) +
                          ") where head_dim is missing");
  }
  config.normEps = static_cast<float>(fields.positive("rms_norm_eps", 1e-6));
  if (!problem && (config.normEps >= 1.0f || config.normEps <= 0.0f))
    fields.complain("rms_norm_eps", "is " + jsonText(*fields.find("rms_norm_eps")),
                    "a number between 0 and 1");
  config.tiedEmbeddings = fields.boolean("tie_word_embeddings", false);
  // Defaults: LlamaConfig, MistralConfig and Qwen2Config of transformers.
  int64_t defaultContext = config.family == ModelFamily::Llama     ? 2048
                           : config.family == ModelFamily::Mistral ? 131072
                                                                   : 32768;
  config.contextLength = fields.integer("max_position_embeddings", 1, maxPositions, defaultContext);

  std::optional<int64_t> window;
  switch (config.family) {
  case ModelFamily::Llama:
    if (bool bias = fields.boolean("attention_bias", false))
      config.qBias = config.kBias = config.vBias = config.oBias = bias;
    config.mlpBias = fields.boolean("mlp_bias", false);
    break;
  case ModelFamily::Mistral:
    // null is no window, a missing key the default window.
    if (!document->contains("sliding_window") || fields.find("sliding_window"))
      window = fields.integer("sliding_window", 1, maxPositions, 4096);
    break;
  case ModelFamily::Qwen2:
    config.qBias = config.kBias = config.vBias = true;
    if (fields.boolean("use_sliding_window", false) && fields.find("sliding_window"))
      window = fields.integer("sliding_window", 1, maxPositions);
    break;
  }
  if (problem)
    return problem.take();

  readRope(fields, path, config, problem);
  if (problem)
    return problem.take();
  if (Error relation = checkRelations(config, path, "num_attention_heads", "num_key_value_heads"))
    return std::move(relation);
  if (window && *window < config.contextLength) {
    config.slidingWindow = window;
    warnings.push_back((path + ": sliding_window " + Twine(*window) +
                        " is below max_position_embeddings " + Twine(config.contextLength) +
                        ": the context is limited to the window")
                           .str());
  }

  SmallVector<int64_t, 4> bos;
  if (Error ids = readTokenIds(fields, "bos_token_id", path, config.vocabSize, bos))
    return std::move(ids);
  if (!bos.empty())
    config.bosId = bos.front();
  if (Error ids = readTokenIds(fields, "eos_token_id", path, config.vocabSize, config.eosIds))
    return std::move(ids);
  config.name = sys::path::filename(sys::path::parent_path(path)).str();
  if (config.name.empty() || config.name == "." || config.name == "..")
    config.name = familyName(config.family).str();
  return config;
}

Error sluice::addGenerationConfig(StringRef text, StringRef path, ModelConfig &config) {
  auto document = detail::parseJsonObject(text, path);
  if (!document)
    return document.takeError();
  FirstProblem unused;
  Fields fields(*document, path, "", unused);
  return readTokenIds(fields, "eos_token_id", path, config.vocabSize, config.eosIds);
}

//===----------------------------------------------------------------------===//
// GGUF
//===----------------------------------------------------------------------===//

namespace {
class MetadataFields {
public:
  MetadataFields(const GGUFFile &file, StringRef arch, FirstProblem &problem)
      : file(file), arch(arch.str() + "."), problem(problem) {}

  std::string full(StringRef key) const { return arch + key.str(); }
  const GGUFValue *find(StringRef key) const { return file.find(full(key)); }

  int64_t integer(StringRef key, int64_t low, int64_t high,
                  std::optional<int64_t> fallback = std::nullopt) {
    const GGUFValue *value = find(key);
    if (!value) {
      if (!fallback)
        complain(key, "is missing", rangeText(low, high));
      return fallback.value_or(low);
    }
    std::optional<int64_t> number = value->asInteger();
    // Some writers give one number a layer.
    if (value->isArray()) {
      auto numbers = value->asIntegers(maxLayers);
      if (numbers && !numbers->empty()) {
        if (!all_equal(*numbers)) {
          complain(key, "differs by layer", "one number for all layers");
          return low;
        }
        number = numbers->front();
      }
    }
    if (number && *number >= low && *number <= high)
      return *number;
    complain(key,
             number ? "is " + std::to_string(*number)
                    : "is a value of type " + ggufTypeName(value->type()).str(),
             rangeText(low, high));
    return low;
  }

  double positive(StringRef key, std::optional<double> fallback = std::nullopt) {
    const GGUFValue *value = find(key);
    if (!value) {
      if (!fallback)
        complain(key, "is missing", "a number above 0");
      return fallback.value_or(1.0);
    }
    std::optional<double> number = value->asFloat();
    if (number && *number > 0 && std::isfinite(*number))
      return *number;
    complain(key,
             number ? "is " + numberText(*number)
                    : "is a value of type " + ggufTypeName(value->type()).str(),
             "a number above 0");
    return 1.0;
  }

  void complain(StringRef key, const Twine &found, const Twine &expected) {
    problem.set(file.file().path(), arch + key + " " + found + ", expected " + expected);
  }

private:
  const GGUFFile &file;
  std::string arch;
  FirstProblem &problem;
};
} // namespace

Expected<ModelConfig> sluice::configFromGGUF(const GGUFFile &file,
                                             std::vector<std::string> &warnings) {
  StringRef path = file.file().path();
  const GGUFValue *archValue = file.find("general.architecture");
  std::optional<StringRef> arch = archValue ? archValue->asString() : std::nullopt;
  if (!arch)
    return fail(path, "general.architecture is missing, expected a string");
  ModelConfig config;
  if (*arch == "llama")
    config.family = ModelFamily::Llama;
  else if (*arch == "qwen2")
    config.family = ModelFamily::Qwen2;
  else
    return fail(path,
                "general.architecture is " + quote(*arch) + ", supported are llama and qwen2");
  if (const GGUFValue *split = file.find("split.count"))
    if (std::optional<int64_t> count = split->asInteger(); count && *count > 1)
      return fail(path, "is one of " + Twine(*count) +
                            " parts of a split GGUF file (split.count), expected a whole one");

  FirstProblem problem;
  MetadataFields fields(file, *arch, problem);

  if (fields.integer("expert_count", 0, INT64_MAX, 0) > 0)
    fields.complain("expert_count", "is above 0: a mixture of experts is not supported", "0");
  config.hiddenSize = fields.integer("embedding_length", 1, maxWidth);
  config.intermediateSize = fields.integer("feed_forward_length", 1, 4 * maxWidth);
  config.layers = fields.integer("block_count", 1, maxLayers);
  config.heads = fields.integer("attention.head_count", 1, maxHeads);
  config.kvHeads = fields.integer("attention.head_count_kv", 1, maxHeads, config.heads);
  config.contextLength = fields.integer("context_length", 1, maxPositions);
  config.normEps = static_cast<float>(fields.positive("attention.layer_norm_rms_epsilon"));
  if (!problem && (config.normEps >= 1.0f || config.normEps <= 0.0f))
    fields.complain("attention.layer_norm_rms_epsilon", "is " + numberText(config.normEps),
                    "a number between 0 and 1");
  if (fields.find("attention.key_length")) {
    config.headDim = fields.integer("attention.key_length", 1, maxHeadDim);
  } else if (!problem) {
    config.headDim = config.hiddenSize / config.heads;
    if (config.hiddenSize % config.heads != 0)
      fields.complain("embedding_length", "is " + Twine(config.hiddenSize),
                      "a multiple of attention.head_count (" + Twine(config.heads) +
                          ") where attention.key_length is missing");
  }
  if (problem)
    return problem.take();
  for (StringRef key : {"attention.value_length", "rope.dimension_count"})
    if (int64_t size = fields.integer(key, 1, maxHeadDim, config.headDim);
        size != config.headDim && !problem)
      fields.complain(key, "is " + Twine(size), "the head size " + Twine(config.headDim));

  config.ropeTheta = fields.positive("rope.freq_base", 10000.0);
  if (const GGUFValue *value = fields.find("rope.scaling.type")) {
    std::optional<StringRef> type = value->asString();
    if (type && *type == "linear") {
      config.ropeScaling.kind = RopeScaling::Kind::Linear;
      config.ropeScaling.factor = fields.positive("rope.scaling.factor");
    } else if (!type || *type != "none") {
      fields.complain(
          "rope.scaling.type",
          "is " + (type ? quote(*type) : "a value of type " + ggufTypeName(value->type()).str()),
          "none or linear");
    }
  } else if (fields.find("rope.scale_linear")) { // before rope.scaling.type existed
    config.ropeScaling.kind = RopeScaling::Kind::Linear;
    config.ropeScaling.factor = fields.positive("rope.scale_linear");
  }
  if (problem)
    return problem.take();
  if (Error relation = checkRelations(config, path, fields.full("attention.head_count"),
                                      fields.full("attention.head_count_kv")))
    return std::move(relation);

  // Llama 3's scaling comes as divisors, worked out by whoever wrote the file.
  if (const TensorRef *factors = file.findTensor("rope_freqs.weight")) {
    std::string who = "tensor 'rope_freqs.weight'";
    if (factors->type != StorageType::F32 ||
        ArrayRef(factors->shape) != ArrayRef(config.headDim / 2))
      return fail(path, who + " is " + storageName(factors->type) + " " +
                            shapeText(factors->shape) + ", expected F32 " +
                            shapeText(config.headDim / 2));
    if (config.ropeScaling.kind != RopeScaling::Kind::None)
      return fail(path, who + " and " + fields.full("rope.scaling.type") +
                            " are both there, expected one of them");
    auto reader = TensorReader::open(*factors, file.sharedFile());
    if (!reader)
      return reader.takeError();
    config.ropeScaling.kind = RopeScaling::Kind::Factors;
    config.ropeScaling.factors.resize(config.headDim / 2);
    reader->readRow(0, config.ropeScaling.factors);
    for (float factor : config.ropeScaling.factors)
      if (!std::isfinite(factor) || factor <= 0)
        return fail(path, who + " holds " + numberText(factor) + ", expected numbers above 0");
  }

  // Qwen2's converter leaves vocab_size out; the embedding has it.
  const TensorRef *embedding = file.findTensor("token_embd.weight");
  std::optional<int64_t> rows;
  if (embedding && embedding->shape.size() == 2)
    rows = embedding->shape[0];
  config.vocabSize = fields.integer("vocab_size", 1, maxVocab, rows);
  if (config.vocabSize < 1 || config.vocabSize > maxVocab)
    problem.set(path, "tensor 'token_embd.weight' has " + Twine(config.vocabSize) +
                          " rows, expected 1 to " + Twine(maxVocab));
  if (int64_t window = fields.integer("attention.sliding_window", 0, maxPositions, 0);
      window > 0 && window < config.contextLength) {
    config.slidingWindow = window;
    warnings.push_back((path + ": " + fields.full("attention.sliding_window") + " " +
                        Twine(window) + " is below the context length " +
                        Twine(config.contextLength) + ": the context is limited to the window")
                           .str());
  }
  if (problem)
    return problem.take();

  config.tiedEmbeddings = !file.findTensor("output.weight");
  config.qBias = file.findTensor("blk.0.attn_q.bias");
  config.kBias = file.findTensor("blk.0.attn_k.bias");
  config.vBias = file.findTensor("blk.0.attn_v.bias");
  config.oBias = file.findTensor("blk.0.attn_output.bias");
  config.mlpBias = file.findTensor("blk.0.ffn_gate.bias") || file.findTensor("blk.0.ffn_up.bias") ||
                   file.findTensor("blk.0.ffn_down.bias");

  auto tokenId = [&](StringRef key, std::optional<int64_t> &id) -> Error {
    const GGUFValue *value = file.find(key);
    if (!value)
      return Error::success();
    id = value->asInteger();
    if (!id)
      return fail(path, key + " is a value of type " + ggufTypeName(value->type()) +
                            ", expected a token id");
    return checkTokenId(*id, config.vocabSize, path, key);
  };
  if (Error idError = tokenId("tokenizer.ggml.bos_token_id", config.bosId))
    return std::move(idError);
  for (StringRef key : {"tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id"}) {
    std::optional<int64_t> id;
    if (Error idError = tokenId(key, id))
      return std::move(idError);
    if (id && !is_contained(config.eosIds, *id))
      config.eosIds.push_back(*id);
  }
  const GGUFValue *name = file.find("general.name");
  config.name = name && name->asString() ? name->asString()->str() : sys::path::stem(path).str();
  return config;
}
