// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Hyper-parameters from the metadata and the tensor list of a GGUF file. Defaults of missing keys
// are those of llama.cpp.

#include "Diagnostics.h"
#include "Families.h"
#include "ModelConfigChecks.h"

#include "sluice-support/NumberText.h"
#include "sluice/Import/GGUF.h"
#include "sluice/Import/ModelConfig.h"
#include "sluice/Import/TensorReader.h"

#include "llvm/ADT/STLExtras.h"
#include "llvm/Support/Path.h"

#include <cmath>

using namespace llvm;
using namespace sluice;
using sluice::detail::checkRelations;
using sluice::detail::checkTokenId;
using sluice::detail::fail;
using sluice::detail::FirstProblem;
using sluice::detail::quote;
using sluice::detail::rangeText;
using namespace sluice::detail::limits;
using sluice::support::numberText;

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

  /// A finite number above 0.
  double positive(StringRef key, std::optional<double> fallback = std::nullopt) {
    return real(key, fallback, "a number above 0", [](double x) { return x > 0; });
  }
  /// A finite number, 0 or above.
  double notNegative(StringRef key) {
    return real(key, std::nullopt, "a number of at least 0", [](double x) { return x >= 0; });
  }

  void complain(StringRef key, const Twine &found, const Twine &expected) {
    problem.set(file.file().path(), arch + key + " " + found + ", expected " + expected);
  }

private:
  double real(StringRef key, std::optional<double> fallback, StringRef expected,
              function_ref<bool(double)> accept) {
    const GGUFValue *value = find(key);
    if (!value) {
      if (!fallback)
        complain(key, "is missing", expected);
      return fallback.value_or(1.0);
    }
    std::optional<double> number = value->asFloat();
    if (number && std::isfinite(*number) && accept(*number))
      return *number;
    complain(key,
             number ? "is " + numberText(*number)
                    : "is a value of type " + ggufTypeName(value->type()).str(),
             expected);
    return 1.0;
  }

  const GGUFFile &file;
  std::string arch;
  FirstProblem &problem;
};
} // namespace

/// Parts of a split file but the first have neither architecture nor hyper-parameters.
static Error checkWhole(const GGUFFile &file) {
  auto integer = [&](StringRef key) {
    const GGUFValue *value = file.find(key);
    return value ? value->asInteger() : std::nullopt;
  };
  std::optional<int64_t> count = integer("split.count"), part = integer("split.no");
  if (!count || *count <= 1)
    return Error::success();
  std::string which = part ? "part " + std::to_string(*part + 1) : std::string("one");
  return fail(file.file().path(), "is " + which + " of the " + Twine(*count) +
                                      " parts of a split GGUF file, which are not supported: "
                                      "expected one file, as llama-gguf-split --merge makes it");
}

/// How positions are scaled, by the rules of llama.cpp: a factor without a type is linear, one of 0
/// counts as 1, and `rope.scale_linear` is what the factor was called before it had a type.
static void readRopeScaling(MetadataFields &fields, ModelConfig &config) {
  std::string type = "linear";
  if (const GGUFValue *value = fields.find("rope.scaling.type")) {
    std::optional<StringRef> text = value->asString();
    // The tensors of LongRoPE say all; a file that names it has them.
    if (!text || !is_contained({"linear", "none", "yarn", "longrope"}, *text))
      fields.complain(
          "rope.scaling.type",
          "is " + (text ? quote(*text) : "a value of type " + ggufTypeName(value->type()).str()),
          "none, linear, yarn or longrope");
    type = text.value_or("none").str();
  }
  if (type != "linear" && type != "yarn")
    return;
  StringRef key = "rope.scaling.factor";
  if (!fields.find(key) && fields.find("rope.scale_linear"))
    key = "rope.scale_linear";
  if (!fields.find(key) && !fields.find("rope.scaling.type"))
    return;
  double factor = fields.notNegative(key);
  if (factor == 0 || factor == 1)
    return;
  RopeScaling &scaling = config.ropeScaling;
  scaling.factor = factor;
  if (type == "linear") {
    scaling.kind = RopeScaling::Kind::Linear;
    return;
  }
  scaling.kind = RopeScaling::Kind::Yarn;
  scaling.betaFast = fields.positive("rope.scaling.yarn_beta_fast", 32.0);
  scaling.betaSlow = fields.positive("rope.scaling.yarn_beta_slow", 1.0);
  if (scaling.betaFast <= scaling.betaSlow)
    fields.complain("rope.scaling.yarn_beta_fast", "is " + numberText(scaling.betaFast),
                    "more than yarn_beta_slow (" + numberText(scaling.betaSlow) + ")");
  scaling.originalContext =
      fields.integer("rope.scaling.original_context_length", 1, maxPositions, config.contextLength);
  scaling.magnitude = fields.positive("rope.scaling.attn_factor", 1.0) *
                      (factor > 1 ? 0.1 * std::log(factor) + 1 : 1);
}

/// What only some families have: multipliers, caps, layers without rotation.
static void readGraph(MetadataFields &fields, ModelConfig &config) {
  auto isTrue = [&](StringRef key, bool otherwise) {
    const GGUFValue *value = fields.find(key);
    std::optional<bool> flag = value ? value->asBool() : std::nullopt;
    if (value && !flag)
      fields.complain(key, "is a value of type " + ggufTypeName(value->type()), "a bool");
    return flag.value_or(otherwise);
  };
  auto rootOfWidth = [&] { return std::sqrt(static_cast<float>(config.hiddenSize)); };
  switch (config.family) {
  case ModelFamily::Llama:
  case ModelFamily::Mistral:
  case ModelFamily::Qwen2:
  case ModelFamily::Qwen3:
  case ModelFamily::Gpt2:
  case ModelFamily::Phi3:
  case ModelFamily::Olmo2:
    return;
  case ModelFamily::GptNeoX:
    config.parallelResidual = isTrue("use_parallel_residual", true);
    return;
  case ModelFamily::StableLm:
    if (isTrue("use_parallel_residual", false))
      fields.complain("use_parallel_residual", "is true", "false");
    return;
  case ModelFamily::Gemma:
    config.embeddingScale = rootOfWidth();
    return;
  case ModelFamily::Gemma2:
  case ModelFamily::Gemma3: {
    config.embeddingScale = rootOfWidth();
    bool isGemma2 = config.family == ModelFamily::Gemma2;
    if (isGemma2) {
      config.scoreCap = fields.positive("attn_logit_softcapping", 50.0);
      config.logitCap = fields.positive("final_logit_softcapping", 30.0);
    } else {
      config.localRopeTheta = fields.positive("rope.freq_base_swa", 10000.0);
    }
    // Files do not have the scale of scores. As llama.cpp has it: the models of 27B, of 46 and 62
    // layers, are those whose scale is not that of their heads.
    bool is27B = config.layers == (isGemma2 ? 46 : 62);
    int64_t scalar = is27B ? config.hiddenSize / config.heads : config.headDim;
    config.attentionScale = 1 / std::sqrt(static_cast<double>(scalar));
    return;
  }
  case ModelFamily::Granite:
    config.embeddingScale = fields.positive("embedding_scale", 1.0);
    config.residualScale = fields.positive("residual_scale", 1.0);
    config.attentionScale =
        fields.positive("attention.scale", 1 / std::sqrt(static_cast<double>(config.headDim)));
    config.logitScale = 1 / fields.positive("logit_scale", 1.0);
    return;
  case ModelFamily::SmolLm3:
    // As llama.cpp has it: every fourth layer.
    for (int64_t layer = 0; layer < config.layers; ++layer)
      config.withoutRotary.push_back((layer + 1) % 4 == 0);
    return;
  }
}

Expected<ModelConfig> sluice::configFromGGUF(const GGUFFile &file,
                                             std::vector<std::string> &warnings) {
  StringRef path = file.file().path();
  if (Error split = checkWhole(file))
    return std::move(split);
  const GGUFValue *archValue = file.find("general.architecture");
  std::optional<StringRef> arch = archValue ? archValue->asString() : std::nullopt;
  if (!arch)
    return fail(path, "general.architecture is missing, expected a string");
  const sluice::detail::Family *family = nullptr;
  for (const sluice::detail::Family &known : sluice::detail::families())
    if (!known.ggufName.empty() && *arch == known.ggufName)
      family = &known;
  if (!family) {
    if (StringRef why = sluice::detail::whyUnsupported(*arch); !why.empty())
      return fail(path, "general.architecture is " + quote(*arch) + ", " + why);
    return fail(path, "general.architecture is " + quote(*arch) + ", supported are " +
                          sluice::detail::familyNames(/*gguf=*/true));
  }
  ModelConfig config;
  config.family = family->family;
  family->describe(config);

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
  StringRef epsilon = config.norm == NormKind::Layer ? "attention.layer_norm_epsilon"
                                                     : "attention.layer_norm_rms_epsilon";
  config.normEps = static_cast<float>(fields.positive(epsilon));
  if (!problem && (config.normEps >= 1.0f || config.normEps <= 0.0f))
    fields.complain(epsilon, "is " + numberText(config.normEps), "a number between 0 and 1");
  // Converters add the 1 to the gains.
  if (config.norm == NormKind::RmsPlusOne)
    config.norm = NormKind::Rms;
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
  if (int64_t size = fields.integer("attention.value_length", 1, maxHeadDim, config.headDim);
      size != config.headDim && !problem)
    fields.complain("attention.value_length", "is " + Twine(size),
                    "the head size " + Twine(config.headDim));
  bool isPartial =
      is_contained({ModelFamily::GptNeoX, ModelFamily::StableLm, ModelFamily::Phi3}, config.family);
  int64_t rotated = fields.integer("rope.dimension_count", 1, maxHeadDim, config.headDim);
  if (rotated != config.headDim && isPartial)
    config.rotaryDims = rotated;
  else if (rotated != config.headDim && !problem)
    fields.complain("rope.dimension_count", "is " + Twine(rotated),
                    "the head size " + Twine(config.headDim));
  if (problem)
    return problem.take();
  readGraph(fields, config);

  config.ropeTheta =
      fields.positive("rope.freq_base", config.family == ModelFamily::Gemma3 ? 1000000.0 : 10000.0);
  if (!config.learnedPositions)
    readRopeScaling(fields, config);
  if (problem)
    return problem.take();
  if (Error relation = checkRelations(config, path, fields.full("attention.head_count"),
                                      fields.full("attention.head_count_kv")))
    return std::move(relation);

  // Llama 3's scaling comes as divisors, worked out by whoever wrote the file, LongRoPE's as two
  // lists of them.
  int64_t pairs = (config.rotaryDims ? config.rotaryDims : config.headDim) / 2;
  auto readFactors = [&](StringRef name, std::vector<float> &result) -> Error {
    const TensorRef *factors = file.findTensor(name);
    if (!factors)
      return Error::success();
    std::string who = "tensor " + quote(name);
    if (factors->type != StorageType::F32 || ArrayRef(factors->shape) != ArrayRef(pairs))
      return fail(path, who + " is " + storageName(factors->type) + " " +
                            shapeText(factors->shape) + ", expected F32 " + shapeText(pairs));
    if (config.ropeScaling.kind != RopeScaling::Kind::None)
      return fail(path, who + " and a " + config.ropeScaling.name() +
                            " scaling of positions are both there, expected one of them");
    auto reader = TensorReader::open(*factors, file.sharedFile());
    if (!reader)
      return reader.takeError();
    result.resize(pairs);
    reader->readRow(0, result);
    for (float factor : result)
      if (!std::isfinite(factor) || factor <= 0)
        return fail(path, who + " holds " + numberText(factor) + ", expected numbers above 0");
    return Error::success();
  };
  std::vector<float> factors, shortFactors, longFactors;
  for (auto [name, list] : {std::pair("rope_freqs.weight", &factors),
                            std::pair("rope_factors_short.weight", &shortFactors),
                            std::pair("rope_factors_long.weight", &longFactors)})
    if (Error error = readFactors(name, *list))
      return std::move(error);
  if (shortFactors.empty() != longFactors.empty() || (!factors.empty() && !longFactors.empty()))
    return fail(path, "has tensors of rotary factors that do not belong together, expected "
                      "rope_freqs alone, or rope_factors_short and rope_factors_long");
  if (!factors.empty()) {
    config.ropeScaling.kind = RopeScaling::Kind::Factors;
    config.ropeScaling.factors = std::move(factors);
  }
  if (!longFactors.empty()) {
    config.ropeScaling.kind = RopeScaling::Kind::LongRope;
    config.ropeScaling.factors = std::move(shortFactors);
    config.ropeScaling.longFactors = std::move(longFactors);
    config.ropeScaling.originalContext = fields.integer("rope.scaling.original_context_length", 1,
                                                        maxPositions, config.contextLength);
    config.ropeScaling.magnitude = fields.positive("rope.scaling.attn_factor", 1.0);
  }

  // Qwen's converters leave vocab_size out; the embedding has it.
  const TensorRef *embedding = file.findTensor("token_embd.weight");
  std::optional<int64_t> rows;
  if (embedding && embedding->shape.size() == 2)
    rows = embedding->shape[0];
  config.vocabSize = fields.integer("vocab_size", 1, maxVocab, rows);
  if (config.vocabSize < 1 || config.vocabSize > maxVocab)
    problem.set(path, "tensor 'token_embd.weight' has " + Twine(config.vocabSize) +
                          " rows, expected 1 to " + Twine(maxVocab));
  // Every how-manieth layer does not slide, as llama.cpp has it; 0: all do.
  int64_t period = config.family == ModelFamily::Gemma2   ? 2
                   : config.family == ModelFamily::Gemma3 ? 6
                                                          : 0;
  auto slides = [&](int64_t layer) { return !period || (layer + 1) % period != 0; };
  for (int64_t layer = 0; layer < config.layers && config.family == ModelFamily::Gemma3; ++layer)
    config.localRotary.push_back(slides(layer));
  int64_t window = fields.integer("attention.sliding_window", 0, maxPositions, period ? 4096 : 0);
  for (int64_t layer = 0; layer < config.layers && window && window < config.contextLength; ++layer)
    config.windows.push_back(slides(layer) ? window : 0);
  if (problem)
    return problem.take();

  config.tiedEmbeddings = !file.findTensor("output.weight");
  const sluice::detail::TensorNames &names = family->gguf;
  auto hasBias = [&](StringRef name) {
    return !name.empty() && file.findTensor(("blk.0." + name + ".bias").str());
  };
  config.qBias = hasBias(names.q);
  config.kBias = hasBias(names.k);
  config.vBias = hasBias(names.v);
  config.oBias = hasBias(names.o);
  config.mlpBias = hasBias(names.gate) || hasBias(names.up) || hasBias(names.down);

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
