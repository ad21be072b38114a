// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// config.json and generation_config.json of a Hugging Face folder. Defaults of missing keys are
// those of transformers' configuration classes.

#include "Families.h"
#include "Json.h"
#include "ModelConfigChecks.h"

#include "sluice-support/NumberText.h"
#include "sluice/Import/ModelConfig.h"

#include "llvm/ADT/STLExtras.h"
#include "llvm/Support/Path.h"

#include <cmath>

using namespace llvm;
using namespace sluice;
using nlohmann::json;
using sluice::detail::checkRelations;
using sluice::support::describeJson;
using sluice::support::JsonField;
using sluice::support::numberText;
using namespace sluice::detail::limits;

// The readers below throw what a JsonField does.

/// How many elements of a head are rotated, where `key` says which part of it.
static void readPartialRotary(const JsonField &fields, std::string_view key, ModelConfig &config) {
  std::optional<JsonField> field = fields.find(key);
  if (!field)
    return;
  double part = field->asPositive();
  bool isPartial =
      is_contained({ModelFamily::GptNeoX, ModelFamily::StableLm, ModelFamily::Phi3}, config.family);
  if (part > 1 || (part != 1 && !isPartial))
    field->failWith("makes the rotary embedding cover " +
                    std::string(part > 1 ? "more than" : "a part of") + " each head, expected 1");
  config.rotaryDims = part == 1 ? 0 : static_cast<int64_t>(config.headDim * part);
  if (part != 1 && (config.rotaryDims < 2 || config.rotaryDims % 2))
    field->failWith("makes the rotary embedding cover " + std::to_string(config.rotaryDims) +
                    " of a head's " + std::to_string(config.headDim) +
                    " elements, expected an even number");
}

static double yarnMagnitude(double factor, double scale = 1) {
  return factor <= 1 ? 1 : 0.1 * scale * std::log(factor) + 1;
}

static std::vector<float> readFactors(const JsonField &field, int64_t pairs) {
  std::vector<float> factors;
  for (const JsonField &element : field.elements(pairs))
    factors.push_back(static_cast<float>(element.asPositive()));
  if (static_cast<int64_t>(factors.size()) != pairs)
    field.failWith("has " + std::to_string(factors.size()) + " entries for " +
                   std::to_string(pairs) + " rotary pairs");
  return factors;
}

/// The context that a scaling starts from: of the scaling, or of the whole configuration (Phi-3).
static int64_t readOriginalContext(const JsonField &top, const JsonField &rope) {
  constexpr const char *key = "original_max_position_embeddings";
  std::optional<JsonField> field = rope.find(key);
  if (!field)
    field = top.find(key);
  return (field ? *field : rope.at(key)).asInt(1, maxPositions);
}

static RopeScaling readScaling(const JsonField &top, const JsonField &rope,
                               const JsonField &typeField, const std::string &type,
                               const ModelConfig &config) {
  RopeScaling scaling;
  if (type == "linear") {
    scaling.kind = RopeScaling::Kind::Linear;
    scaling.factor = rope.at("factor").asPositive();
  } else if (type == "llama3") {
    scaling.kind = RopeScaling::Kind::Llama3;
    scaling.factor = rope.at("factor").asPositive();
    scaling.lowFreqFactor = rope.at("low_freq_factor").asPositive();
    scaling.highFreqFactor = rope.at("high_freq_factor").asPositive();
    scaling.originalContext = rope.at("original_max_position_embeddings").asInt(1, maxPositions);
    if (scaling.highFreqFactor <= scaling.lowFreqFactor)
      rope.at("high_freq_factor")
          .fail("more than low_freq_factor (" + numberText(scaling.lowFreqFactor) + ")");
  } else if (type == "yarn") {
    scaling.kind = RopeScaling::Kind::Yarn;
    scaling.factor = rope.at("factor").asPositive();
    scaling.betaFast = rope.positiveAt("beta_fast", 32);
    scaling.betaSlow = rope.positiveAt("beta_slow", 1);
    if (scaling.betaFast <= scaling.betaSlow)
      rope.at("beta_fast").fail("more than beta_slow (" + numberText(scaling.betaSlow) + ")");
    if (!rope.boolAt("truncate", true))
      rope.at("truncate").fail("true");
    scaling.originalContext = readOriginalContext(top, rope);
    scaling.magnitude = yarnMagnitude(scaling.factor);
    if (rope.find("mscale") && rope.find("mscale_all_dim"))
      scaling.magnitude = yarnMagnitude(scaling.factor, rope.at("mscale").asPositive()) /
                          yarnMagnitude(scaling.factor, rope.at("mscale_all_dim").asPositive());
    scaling.magnitude = rope.positiveAt("attention_factor", scaling.magnitude);
  } else if (type == "longrope" || type == "su") {
    scaling.kind = RopeScaling::Kind::LongRope;
    int64_t pairs = (config.rotaryDims ? config.rotaryDims : config.headDim) / 2;
    scaling.factors = readFactors(rope.at("short_factor"), pairs);
    scaling.longFactors = readFactors(rope.at("long_factor"), pairs);
    scaling.originalContext = readOriginalContext(top, rope);
    double factor = static_cast<double>(config.contextLength) / scaling.originalContext;
    if (factor > 1 && scaling.originalContext > 1)
      scaling.magnitude = std::sqrt(1 + std::log(factor) / std::log(scaling.originalContext));
    scaling.magnitude = rope.positiveAt("attention_factor", scaling.magnitude);
  } else if (type != "default") {
    typeField.fail("default, linear, llama3, yarn or longrope");
  }
  return scaling;
}

/// Rotary parameters are spread over the top level (rope_theta), `rope_scaling` and, since
/// transformers 5, `rope_parameters`, which holds both.
static void readRope(const JsonField &top, double defaultTheta, ModelConfig &config,
                     std::vector<std::string> &warnings) {
  config.ropeTheta = top.positiveAt("rope_theta", top.positiveAt("rotary_emb_base", defaultTheta));
  bool isPartial = config.family == ModelFamily::GptNeoX || config.family == ModelFamily::StableLm;
  bool says = top.find("rotary_pct") || top.find("partial_rotary_factor");
  for (const char *key : {"rope_scaling", "rope_parameters"})
    if (std::optional<JsonField> rope = top.find(key); rope && rope->get().is_object())
      says |= rope->find("partial_rotary_factor").has_value();
  // What the configuration classes of these families have where files say nothing.
  if (isPartial && !says)
    config.rotaryDims = config.headDim / 4;
  readPartialRotary(top, "rotary_pct", config);
  readPartialRotary(top, "partial_rotary_factor", config);
  for (const char *key : {"rope_scaling", "rope_parameters"}) {
    std::optional<JsonField> rope = top.find(key);
    if (!rope)
      continue;
    if (std::optional<JsonField> full = rope->find("full_attention");
        full && config.family == ModelFamily::Gemma3) {
      std::optional<JsonField> local = rope->find("sliding_attention");
      if (local && local->stringAt("rope_type", "default") != "default")
        local->at("rope_type").fail("default");
      if (local)
        config.localRopeTheta = local->positiveAt("rope_theta", config.localRopeTheta);
      rope = full;
    }
    for (const auto &[name, member] : rope->members())
      if (member.get().is_object())
        member.failWith("is an object, expected the same rotary parameters for all layers");
    config.ropeTheta = rope->positiveAt("rope_theta", config.ropeTheta);
    readPartialRotary(*rope, "partial_rotary_factor", config);
    std::optional<JsonField> typeField = rope->find("rope_type");
    if (!typeField)
      typeField = rope->find("type");
    // Versions of transformers that take such a config at all take it as this does.
    if (!typeField && rope->find("factor"))
      warnings.push_back(top.getFile() + ": " + key +
                         " has a factor but no rope_type: it counts as default, which scales "
                         "nothing");
    if (!typeField)
      continue;
    RopeScaling scaling = readScaling(top, *rope, *typeField, typeField->asString(), config);
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
  const sluice::detail::Family *family = nullptr;
  for (const sluice::detail::Family &known : sluice::detail::families())
    if (field.get() == known.name.str())
      family = &known;
  if (!family) {
    std::string name = field.get().is_string() ? field.get().get<std::string>() : "";
    if (StringRef why = sluice::detail::whyUnsupported(name); !why.empty())
      field.failWith("is " + describeJson(field.get()) + ", " + why.str());
    field.failWith("is " + describeJson(field.get()) + ", supported are " +
                   sluice::detail::familyNames(/*gguf=*/false));
  }
  // The same model_type with another head (a classifier, a reward model) is another graph. Configs
  // written before transformers had Llama spell it LLaMA; some have an empty list.
  std::optional<JsonField> list = top.find("architectures");
  if (list && !(list->get().is_array() && list->get().empty())) {
    const json &only =
        list->get().is_array() && list->get().size() == 1 ? list->get().front() : list->get();
    if (!only.is_string() ||
        !family->architecture.equals_insensitive(only.get_ref<const std::string &>()))
      list->failWith("is " + describeJson(only) + ", expected " + family->architecture.str() +
                     " for model_type " + family->name.str());
  }
  return family->family;
}

namespace {
/// What a configuration class calls things, and what it has where a file says nothing.
struct ConfigClass {
  const char *hidden = "hidden_size", *layers = "num_hidden_layers", *heads = "num_attention_heads",
             *intermediate = "intermediate_size", *positions = "max_position_embeddings",
             *normEps = "rms_norm_eps", *activation = "hidden_act";
  int64_t contextLength = 2048;
  /// 0: as many as heads; the width over the heads.
  int64_t kvHeads = 0, headDim = 0;
  double eps = 1e-6, theta = 10000;
  bool tied = false;
};
} // namespace

static ConfigClass configClass(ModelFamily family) {
  switch (family) {
  case ModelFamily::Llama:
  case ModelFamily::Granite:
    return {};
  case ModelFamily::Mistral:
    return {.contextLength = 131072, .kvHeads = 8};
  case ModelFamily::Qwen2:
    return {.contextLength = 32768, .kvHeads = 32};
  case ModelFamily::Qwen3:
    return {.contextLength = 32768, .kvHeads = 32, .headDim = 128};
  case ModelFamily::Gpt2:
    return {.hidden = "n_embd",
            .layers = "n_layer",
            .heads = "n_head",
            .intermediate = "n_inner",
            .positions = "n_positions",
            .normEps = "layer_norm_epsilon",
            .activation = "activation_function",
            .contextLength = 1024,
            .eps = 1e-5,
            .tied = true};
  case ModelFamily::GptNeoX:
    return {.normEps = "layer_norm_eps", .eps = 1e-5};
  case ModelFamily::StableLm:
    return {.normEps = "layer_norm_eps", .contextLength = 4096, .eps = 1e-5};
  case ModelFamily::Phi3:
    return {.contextLength = 4096, .eps = 1e-5};
  case ModelFamily::Gemma:
    return {.contextLength = 8192, .kvHeads = 16, .headDim = 256, .tied = true};
  case ModelFamily::Gemma2:
    return {.activation = "hidden_activation",
            .contextLength = 8192,
            .kvHeads = 4,
            .headDim = 256,
            .tied = true};
  case ModelFamily::Gemma3:
    return {.activation = "hidden_activation",
            .contextLength = 131072,
            .kvHeads = 4,
            .headDim = 256,
            .theta = 1e6,
            .tied = true};
  case ModelFamily::Olmo2:
    return {.eps = 1e-5};
  case ModelFamily::SmolLm3:
    return {.contextLength = 32768, .kvHeads = 4, .theta = 2e6, .tied = true};
  }
  llvm_unreachable("all families have a configuration class");
}

static void readSizes(const JsonField &top, const ConfigClass &names, ModelConfig &config) {
  config.vocabSize = top.at("vocab_size").asInt(1, maxVocab);
  config.hiddenSize = top.at(names.hidden).asInt(1, maxWidth);
  config.intermediateSize =
      config.family == ModelFamily::Gpt2
          ? top.intAt(names.intermediate, 1, 4 * maxWidth, 4 * config.hiddenSize)
          : top.at(names.intermediate).asInt(1, 4 * maxWidth);
  config.layers = top.at(names.layers).asInt(1, maxLayers);
  config.heads = top.at(names.heads).asInt(1, maxHeads);
  config.kvHeads = config.heads;
  bool hasKvHeads = config.family != ModelFamily::Gpt2 && config.family != ModelFamily::GptNeoX;
  // null means as many as heads.
  if (hasKvHeads) {
    bool isNull = top.get().contains("num_key_value_heads");
    config.kvHeads = top.intAt("num_key_value_heads", 1, maxHeads,
                               isNull || !names.kvHeads ? config.heads : names.kvHeads);
  }
  if (std::optional<JsonField> headDim = top.find("head_dim")) {
    config.headDim = headDim->asInt(1, maxHeadDim);
  } else if (names.headDim) {
    config.headDim = names.headDim;
  } else {
    config.headDim = config.hiddenSize / config.heads;
    if (config.hiddenSize % config.heads != 0)
      top.at(names.hidden)
          .fail("a multiple of " + std::string(names.heads) + " (" + std::to_string(config.heads) +
                ") where head_dim is missing");
  }
  config.contextLength = top.intAt(names.positions, 1, maxPositions, names.contextLength);
}

static void readActivation(const JsonField &top, const ConfigClass &names, ModelConfig &config) {
  std::optional<JsonField> field = top.find(names.activation);
  if (!field)
    return;
  std::string name = field->asString();
  // Old configurations of Gemma say gelu and mean its approximation, with which it was trained.
  bool isGemma =
      is_contained({ModelFamily::Gemma, ModelFamily::Gemma2, ModelFamily::Gemma3}, config.family);
  if (name == "silu" || name == "swish")
    config.activation = Activation::Silu;
  else if (name == "gelu_new" || name == "gelu_pytorch_tanh" || (name == "gelu" && isGemma))
    config.activation = Activation::GeluTanh;
  else if (name == "gelu")
    config.activation = Activation::Gelu;
  else
    field->fail("silu, gelu, gelu_new or gelu_pytorch_tanh");
}

/// A key that makes another graph if it is not `expected`.
static void demand(const JsonField &top, const char *key, bool expected) {
  if (top.boolAt(key, expected) != expected)
    top.at(key).fail(expected ? "true" : "false");
}

/// What only some families have: biases, multipliers, caps.
static void readGraph(const JsonField &top, ModelConfig &config) {
  auto positive = [&](const char *key, double otherwise) { return top.positiveAt(key, otherwise); };
  auto attentionBias = [&](bool otherwise) {
    config.qBias = config.kBias = config.vBias = config.oBias =
        top.boolAt("attention_bias", otherwise);
  };
  switch (config.family) {
  case ModelFamily::Llama:
  case ModelFamily::SmolLm3:
    attentionBias(false);
    config.mlpBias = top.boolAt("mlp_bias", false);
    return;
  case ModelFamily::Mistral:
  case ModelFamily::Qwen2:
  case ModelFamily::Phi3:
    return;
  case ModelFamily::Granite:
    attentionBias(false);
    config.mlpBias = top.boolAt("mlp_bias", false);
    config.embeddingScale = positive("embedding_multiplier", 1);
    config.residualScale = positive("residual_multiplier", 1);
    config.attentionScale = positive("attention_multiplier", 1);
    config.logitScale = 1 / positive("logits_scaling", 1);
    return;
  case ModelFamily::Gpt2:
    demand(top, "scale_attn_by_inverse_layer_idx", false);
    demand(top, "add_cross_attention", false);
    if (!top.boolAt("scale_attn_weights", true))
      config.attentionScale = 1;
    return;
  case ModelFamily::GptNeoX:
    attentionBias(true);
    config.parallelResidual = top.boolAt("use_parallel_residual", true);
    return;
  case ModelFamily::Gemma2:
  case ModelFamily::Gemma3: {
    config.attentionScale = 1 / std::sqrt(positive("query_pre_attn_scalar", 256));
    // null is no cap; a missing key is the class's.
    bool caps = config.family == ModelFamily::Gemma2;
    auto cap = [&](const char *key, double otherwise) {
      return positive(key, caps && !top.get().contains(key) ? otherwise : 0);
    };
    config.scoreCap = cap("attn_logit_softcapping", 50);
    config.logitCap = cap("final_logit_softcapping", 30);
    if (!caps)
      config.localRopeTheta = positive("rope_local_base_freq", 10000);
    [[fallthrough]];
  }
  case ModelFamily::Gemma:
    demand(top, "use_bidirectional_attention", false);
    attentionBias(false);
    config.embeddingScale = std::sqrt(static_cast<float>(config.hiddenSize));
    return;
  case ModelFamily::Olmo2:
  case ModelFamily::Qwen3:
    attentionBias(false);
    return;
  case ModelFamily::StableLm:
    demand(top, "qk_layernorm", false);
    demand(top, "use_parallel_residual", false);
    config.qBias = config.kBias = config.vBias = top.boolAt("use_qkv_bias", false);
    return;
  }
}

/// Of each layer, whether its attention slides; `period` is every how-manieth does not where the
/// file does not list them.
static SmallVector<bool> readSlidingLayers(const JsonField &top, const ModelConfig &config,
                                           int64_t period) {
  SmallVector<bool> slides;
  std::optional<JsonField> types = top.find("layer_types");
  if (!types) {
    for (int64_t layer = 0; layer < config.layers; ++layer)
      slides.push_back((layer + 1) % period != 0);
    return slides;
  }
  std::vector<JsonField> elements = types->elements(config.layers);
  if (static_cast<int64_t>(elements.size()) != config.layers)
    types->failWith("has " + std::to_string(elements.size()) + " entries for " +
                    std::to_string(config.layers) + " layers");
  for (const JsonField &type : elements) {
    slides.push_back(type.asString() == "sliding_attention");
    if (!slides.back() && type.asString() != "full_attention")
      type.fail("full_attention or sliding_attention");
  }
  return slides;
}

static void readWindows(const JsonField &top, ModelConfig &config) {
  ModelFamily family = config.family;
  bool isSwitched =
      is_contained({ModelFamily::Qwen2, ModelFamily::Qwen3, ModelFamily::SmolLm3}, family);
  bool isForAll = family == ModelFamily::Mistral || family == ModelFamily::Phi3;
  bool isAlternating = family == ModelFamily::Gemma2 || family == ModelFamily::Gemma3;
  if (!isForAll && !isAlternating && !(isSwitched && top.boolAt("use_sliding_window", false)))
    return;
  SmallVector<bool> slides(config.layers, true);
  if (isAlternating) {
    int64_t period =
        family == ModelFamily::Gemma2 ? 2 : top.intAt("sliding_window_pattern", 1, maxLayers, 6);
    slides = readSlidingLayers(top, config, period);
  } else if (isSwitched && top.find("layer_types")) {
    slides = readSlidingLayers(top, config, /*period=*/1);
  } else if (isSwitched) {
    int64_t full = top.intAt("max_window_layers", 0, maxPositions, 28);
    std::fill_n(slides.begin(), std::min(full, config.layers), false);
  }
  if (family == ModelFamily::Gemma3)
    config.localRotary = slides;
  // null is no window, and so is a missing key of Phi-3.
  if (!top.find("sliding_window") &&
      (top.get().contains("sliding_window") || family == ModelFamily::Phi3))
    return;
  int64_t window = top.intAt("sliding_window", 1, maxPositions, 4096);
  if (window >= config.contextLength)
    return;
  for (bool slide : slides)
    config.windows.push_back(slide ? window : 0);
}

/// Which layers are not rotated: those with a 0, or every few-th.
static void readLayersWithoutRotary(const JsonField &top, ModelConfig &config) {
  if (config.family != ModelFamily::SmolLm3)
    return;
  if (std::optional<JsonField> list = top.find("no_rope_layers")) {
    for (const JsonField &rotates : list->elements(config.layers))
      config.withoutRotary.push_back(rotates.asInt(0, 1) == 0);
    if (static_cast<int64_t>(config.withoutRotary.size()) != config.layers)
      list->failWith("has " + std::to_string(config.withoutRotary.size()) + " entries for " +
                     std::to_string(config.layers) + " layers");
    return;
  }
  int64_t interval = top.intAt("no_rope_layer_interval", 1, maxLayers, 4);
  for (int64_t layer = 0; layer < config.layers; ++layer)
    config.withoutRotary.push_back((layer + 1) % interval == 0);
}

static ModelConfig readConfig(const JsonField &top, std::vector<std::string> &warnings) {
  ModelConfig config;
  config.family = readFamily(top);
  sluice::detail::familyOf(config.family).describe(config);
  ConfigClass names = configClass(config.family);
  if (std::optional<JsonField> quantization = top.find("quantization_config"))
    config.quantization = QuantizationConfig::read(*quantization);
  for (const char *key : {"num_experts", "num_local_experts", "n_routed_experts"})
    if (top.intAt(key, 0, INT64_MAX, 0) > 0)
      top.at(key).failWith("is above 0: a mixture of experts is not supported");
  readActivation(top, names, config);
  readSizes(top, names, config);
  config.normEps = static_cast<float>(top.positiveAt(names.normEps, names.eps));
  if (config.normEps >= 1.0f || config.normEps <= 0.0f)
    top.at(names.normEps).fail("a number between 0 and 1");
  config.tiedEmbeddings = top.boolAt("tie_word_embeddings", names.tied);
  readGraph(top, config);
  if (!config.learnedPositions)
    readRope(top, names.theta, config, warnings);
  SmallVector<int64_t, 4> bos;
  readTokenIds(top, "bos_token_id", config.vocabSize, bos);
  if (!bos.empty())
    config.bosId = bos.front();
  readTokenIds(top, "eos_token_id", config.vocabSize, config.eosIds);
  readWindows(top, config);
  readLayersWithoutRotary(top, config);
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
  if (Error relation =
          checkRelations(*config, path, configClass(config->family).heads, "num_key_value_heads"))
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
