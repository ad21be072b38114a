// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// config.json and generation_config.json of a Hugging Face folder. Defaults of missing keys are
// those of transformers' LlamaConfig, MistralConfig and Qwen2Config.

#include "Diagnostics.h"
#include "Json.h"
#include "ModelConfigChecks.h"

#include "sluice-support/NumberText.h"
#include "sluice/Import/ModelConfig.h"

#include "llvm/ADT/STLExtras.h"
#include "llvm/ADT/StringExtras.h"
#include "llvm/Support/Path.h"

#include <cmath>

using namespace llvm;
using namespace sluice;
using nlohmann::json;
using sluice::detail::checkRelations;
using sluice::detail::checkTokenId;
using sluice::detail::fail;
using sluice::detail::FirstProblem;
using sluice::detail::jsonText;
using sluice::detail::limitToWindow;
using sluice::detail::quote;
using sluice::detail::rangeText;
using namespace sluice::detail::limits;
using sluice::support::numberText;

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
static void readRope(Fields &top, StringRef path, ModelConfig &config, FirstProblem &problem,
                     std::vector<std::string> &warnings) {
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
    // Versions of transformers that take such a config at all take it as this does.
    if (rope.find("factor") && !rope.find("rope_type") && !rope.find("type"))
      warnings.push_back((path + ": " + key +
                          " has a factor but no rope_type: it counts as default, which scales "
                          "nothing")
                             .str());
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
  // The same model_type with another head (a classifier, a reward model) is another graph. Configs
  // written before transformers had Llama spell it LLaMA; some have an empty list.
  const json *list = fields.find("architectures");
  if (list && !(list->is_array() && list->empty())) {
    const json *only = list->is_array() && list->size() == 1 ? &list->front() : list;
    if (!only->is_string() ||
        !architecture.equals_insensitive(only->get_ref<const std::string &>()))
      return fail(path, "architectures is " + jsonText(*only) + ", expected " + architecture +
                            " for model_type " + type);
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
  // null means as many as heads; a missing key does for Llama only.
  int64_t defaultKvHeads = config.heads;
  if (!document->contains("num_key_value_heads") && config.family != ModelFamily::Llama)
    defaultKvHeads = config.family == ModelFamily::Mistral ? 8 : 32;
  config.kvHeads = fields.integer("num_key_value_heads", 1, maxHeads, defaultKvHeads);
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

  readRope(fields, path, config, problem, warnings);
  if (problem)
    return problem.take();
  if (Error relation = checkRelations(config, path, "num_attention_heads", "num_key_value_heads"))
    return std::move(relation);
  if (window)
    limitToWindow(config, *window, path, "sliding_window", "max_position_embeddings", warnings);

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
