// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Hyper-parameters from the metadata and the tensor list of a GGUF file. Defaults of missing keys
// are those of llama.cpp.

#include "Diagnostics.h"
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
  bool isLinear = true;
  if (const GGUFValue *value = fields.find("rope.scaling.type")) {
    std::optional<StringRef> type = value->asString();
    isLinear = type && *type == "linear";
    if (!isLinear && (!type || *type != "none"))
      fields.complain(
          "rope.scaling.type",
          "is " + (type ? quote(*type) : "a value of type " + ggufTypeName(value->type()).str()),
          "none or linear");
  }
  if (!isLinear)
    return;
  StringRef key = "rope.scaling.factor";
  if (!fields.find(key) && fields.find("rope.scale_linear"))
    key = "rope.scale_linear";
  if (!fields.find(key) && !fields.find("rope.scaling.type"))
    return;
  double factor = fields.notNegative(key);
  if (factor == 0 || factor == 1)
    return;
  config.ropeScaling.kind = RopeScaling::Kind::Linear;
  config.ropeScaling.factor = factor;
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
  ModelConfig config;
  if (*arch == "llama")
    config.family = ModelFamily::Llama;
  else if (*arch == "qwen2")
    config.family = ModelFamily::Qwen2;
  else if (*arch == "qwen3")
    config.family = ModelFamily::Qwen3;
  else
    return fail(path, "general.architecture is " + quote(*arch) +
                          ", supported are llama, qwen2 and qwen3");
  config.qkNorms = config.family == ModelFamily::Qwen3;

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
  readRopeScaling(fields, config);
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
      return fail(path, who + " and a linear scaling of positions are both there, expected one of "
                              "them");
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

  // Qwen's converters leave vocab_size out; the embedding has it.
  const TensorRef *embedding = file.findTensor("token_embd.weight");
  std::optional<int64_t> rows;
  if (embedding && embedding->shape.size() == 2)
    rows = embedding->shape[0];
  config.vocabSize = fields.integer("vocab_size", 1, maxVocab, rows);
  if (config.vocabSize < 1 || config.vocabSize > maxVocab)
    problem.set(path, "tensor 'token_embd.weight' has " + Twine(config.vocabSize) +
                          " rows, expected 1 to " + Twine(maxVocab));
  int64_t window = fields.integer("attention.sliding_window", 0, maxPositions, 0);
  if (window > 0 && window < config.contextLength)
    config.windows.assign(config.layers, window);
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
