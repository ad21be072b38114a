// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// config.json and generation_config.json of a Hugging Face folder. Defaults of missing keys are
// those of transformers' LlamaConfig, MistralConfig and Qwen2Config.

#include "Json.h"
#include "ModelConfigChecks.h"

#include "sluice-support/NumberText.h"
#include "sluice/Import/ModelConfig.h"

#include "llvm/ADT/STLExtras.h"
#include "llvm/Support/Path.h"

using namespace llvm;
using namespace sluice;
using nlohmann::json;
using sluice::detail::checkRelations;
using sluice::support::describeJson;
using sluice::support::JsonField;
using sluice::support::numberText;
using namespace sluice::detail::limits;

// The readers below throw what a JsonField does.

static void checkPartialRotary(const JsonField &fields) {
  if (fields.positiveAt("partial_rotary_factor", 1.0) != 1.0)
    fields.at("partial_rotary_factor")
        .failWith("makes the rotary embedding cover a part of each head, expected 1");
}

/// Rotary parameters are spread over the top level (rope_theta), `rope_scaling` and, since
/// transformers 5, `rope_parameters`, which holds both.
static void readRope(const JsonField &top, ModelConfig &config,
                     std::vector<std::string> &warnings) {
  config.ropeTheta = top.positiveAt("rope_theta", 10000.0);
  checkPartialRotary(top);
  for (const char *key : {"rope_scaling", "rope_parameters"}) {
    std::optional<JsonField> rope = top.find(key);
    if (!rope)
      continue;
    for (const auto &[name, member] : rope->members())
      if (member.get().is_object())
        member.failWith("is an object, expected the same rotary parameters for all layers");
    config.ropeTheta = rope->positiveAt("rope_theta", config.ropeTheta);
    checkPartialRotary(*rope);
    std::optional<JsonField> typeField = rope->find("rope_type");
    if (!typeField)
      typeField = rope->find("type");
    // Versions of transformers that take such a config at all take it as this does.
    if (!typeField && rope->find("factor"))
      warnings.push_back(top.getFile() + ": " + key +
                         " has a factor but no rope_type: it counts as default, which scales "
                         "nothing");
    std::string type = typeField ? typeField->asString() : "default";
    RopeScaling scaling;
    if (type == "linear") {
      scaling.kind = RopeScaling::Kind::Linear;
      scaling.factor = rope->at("factor").asPositive();
    } else if (type == "llama3") {
      scaling.kind = RopeScaling::Kind::Llama3;
      scaling.factor = rope->at("factor").asPositive();
      scaling.lowFreqFactor = rope->at("low_freq_factor").asPositive();
      scaling.highFreqFactor = rope->at("high_freq_factor").asPositive();
      scaling.originalContext = rope->at("original_max_position_embeddings").asInt(1, maxPositions);
      if (scaling.highFreqFactor <= scaling.lowFreqFactor)
        rope->at("high_freq_factor")
            .fail("more than low_freq_factor (" + numberText(scaling.lowFreqFactor) + ")");
    } else if (type != "default") {
      typeField->fail("default, linear or llama3");
    }
    if (scaling.kind != RopeScaling::Kind::None)
      config.ropeScaling = scaling;
  }
}

/// A token id or an array of them; null and -1 (which some configs have) mean none.
static void readTokenIds(const JsonField &top, std::string_view key, int64_t vocabSize,
                         SmallVectorImpl<int64_t> &ids) {
  std::optional<JsonField> field = top.find(key);
  if (!field)
    return;
  for (const JsonField &item :
       field->get().is_array() ? field->elements() : std::vector<JsonField>{*field}) {
    if (!item.get().is_number_integer())
      item.fail("a token id");
    if (item.get() == -1)
      continue;
    if (item.get() < 0 || item.get() >= vocabSize)
      item.fail("a token of the vocabulary of " + std::to_string(vocabSize));
    if (int64_t id = item.get().get<int64_t>(); !is_contained(ids, id))
      ids.push_back(id);
  }
}

static ModelFamily readFamily(const JsonField &top) {
  JsonField field = top.at("model_type");
  std::optional<ModelFamily> family;
  StringRef architecture;
  if (field.get() == "llama") {
    family = ModelFamily::Llama;
    architecture = "LlamaForCausalLM";
  } else if (field.get() == "mistral") {
    family = ModelFamily::Mistral;
    architecture = "MistralForCausalLM";
  } else if (field.get() == "qwen2") {
    family = ModelFamily::Qwen2;
    architecture = "Qwen2ForCausalLM";
  }
  if (!family)
    field.failWith("is " + describeJson(field.get()) + ", supported are llama, mistral and qwen2");
  // The same model_type with another head (a classifier, a reward model) is another graph. Configs
  // written before transformers had Llama spell it LLaMA; some have an empty list.
  std::optional<JsonField> list = top.find("architectures");
  if (list && !(list->get().is_array() && list->get().empty())) {
    const json &only =
        list->get().is_array() && list->get().size() == 1 ? list->get().front() : list->get();
    if (!only.is_string() || !architecture.equals_insensitive(only.get_ref<const std::string &>()))
      list->failWith("is " + describeJson(only) + ", expected " + architecture.str() +
                     " for model_type " + familyName(*family).str());
  }
  return *family;
}

static void readSizes(const JsonField &top, ModelConfig &config) {
  config.vocabSize = top.at("vocab_size").asInt(1, maxVocab);
  config.hiddenSize = top.at("hidden_size").asInt(1, maxWidth);
  config.intermediateSize = top.at("intermediate_size").asInt(1, 4 * maxWidth);
  config.layers = top.at("num_hidden_layers").asInt(1, maxLayers);
  config.heads = top.at("num_attention_heads").asInt(1, maxHeads);
  // null means as many as heads; a missing key does for Llama only.
  int64_t defaultKvHeads = config.heads;
  if (!top.get().contains("num_key_value_heads") && config.family != ModelFamily::Llama)
    defaultKvHeads = config.family == ModelFamily::Mistral ? 8 : 32;
  config.kvHeads = top.intAt("num_key_value_heads", 1, maxHeads, defaultKvHeads);
  if (std::optional<JsonField> headDim = top.find("head_dim")) {
    config.headDim = headDim->asInt(1, maxHeadDim);
  } else {
    config.headDim = config.hiddenSize / config.heads;
    if (config.hiddenSize % config.heads != 0)
      top.at("hidden_size")
          .fail("a multiple of num_attention_heads (" + std::to_string(config.heads) +
                ") where head_dim is missing");
  }
  int64_t defaultContext = config.family == ModelFamily::Llama     ? 2048
                           : config.family == ModelFamily::Mistral ? 131072
                                                                   : 32768;
  config.contextLength = top.intAt("max_position_embeddings", 1, maxPositions, defaultContext);
}

/// Sets the biases that the layers have.
static void readBiases(const JsonField &top, ModelConfig &config) {
  if (config.family == ModelFamily::Qwen2)
    config.qBias = config.kBias = config.vBias = true;
  if (config.family != ModelFamily::Llama)
    return;
  config.qBias = config.kBias = config.vBias = config.oBias = top.boolAt("attention_bias", false);
  config.mlpBias = top.boolAt("mlp_bias", false);
}

static void readWindows(const JsonField &top, ModelConfig &config) {
  bool isMistral = config.family == ModelFamily::Mistral;
  if (!isMistral &&
      (config.family != ModelFamily::Qwen2 || !top.boolAt("use_sliding_window", false)))
    return;
  // null is no window.
  if (top.get().contains("sliding_window") && !top.find("sliding_window"))
    return;
  int64_t window = top.intAt("sliding_window", 1, maxPositions, 4096);
  if (window >= config.contextLength)
    return;
  config.windows.assign(config.layers, window);
  if (isMistral)
    return;
  std::optional<JsonField> types = top.find("layer_types");
  if (!types) {
    int64_t full = top.intAt("max_window_layers", 0, maxPositions, 28);
    std::fill_n(config.windows.begin(), std::min(full, config.layers), 0);
    return;
  }
  std::vector<JsonField> elements = types->elements(config.layers);
  if (static_cast<int64_t>(elements.size()) != config.layers)
    types->failWith("has " + std::to_string(elements.size()) + " entries for " +
                    std::to_string(config.layers) + " layers");
  for (auto [type, layer] : zip_equal(elements, config.windows)) {
    if (type.asString() == "full_attention")
      layer = 0;
    else if (type.asString() != "sliding_attention")
      type.fail("full_attention or sliding_attention");
  }
}

static ModelConfig readConfig(const JsonField &top, std::vector<std::string> &warnings) {
  ModelConfig config;
  config.family = readFamily(top);
  if (std::optional<JsonField> quantization = top.find("quantization_config"))
    config.quantization = QuantizationConfig::read(*quantization);
  if (top.stringAt("hidden_act", "silu") != "silu")
    top.at("hidden_act").fail("silu");
  readSizes(top, config);
  config.normEps = static_cast<float>(top.positiveAt("rms_norm_eps", 1e-6));
  if (config.normEps >= 1.0f || config.normEps <= 0.0f)
    top.at("rms_norm_eps").fail("a number between 0 and 1");
  config.tiedEmbeddings = top.boolAt("tie_word_embeddings", false);
  readBiases(top, config);
  readRope(top, config, warnings);
  SmallVector<int64_t, 4> bos;
  readTokenIds(top, "bos_token_id", config.vocabSize, bos);
  if (!bos.empty())
    config.bosId = bos.front();
  readTokenIds(top, "eos_token_id", config.vocabSize, config.eosIds);
  readWindows(top, config);
  return config;
}

Expected<ModelConfig> sluice::configFromJson(StringRef text, StringRef path,
                                             std::vector<std::string> &warnings) {
  auto document = detail::parseJsonObject(text, path);
  if (!document)
    return document.takeError();
  std::string file = path.str();
  auto config = toExpected([&] { return readConfig(JsonField(*document, "", file), warnings); });
  if (!config)
    return config.takeError();
  if (Error relation = checkRelations(*config, path, "num_attention_heads", "num_key_value_heads"))
    return std::move(relation);
  config->name = sys::path::filename(sys::path::parent_path(path)).str();
  if (config->name.empty() || config->name == "." || config->name == "..")
    config->name = familyName(config->family).str();
  return config;
}

Error sluice::addGenerationConfig(StringRef text, StringRef path, ModelConfig &config) {
  auto document = detail::parseJsonObject(text, path);
  if (!document)
    return document.takeError();
  std::string file = path.str();
  return toExpected([&] {
    readTokenIds(JsonField(*document, "", file), "eos_token_id", config.vocabSize, config.eosIds);
  });
}
