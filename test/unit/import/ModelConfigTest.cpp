// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sluice/Import/ModelConfig.h"

#include "TestFiles.h"

#include "sluice/Import/GGUF.h"

#include <cmath>

using namespace sluice;
using namespace sluice::test;
using nlohmann::json;

static llvm::Expected<ModelConfig> fromJson(const json &document,
                                            std::vector<std::string> *warnings = nullptr) {
  std::vector<std::string> ignored;
  return configFromJson(document.dump(), "models/tiny/config.json", warnings ? *warnings : ignored);
}

static std::string jsonError(const json &document) { return message(fromJson(document)); }

static json with(json document, const char *key, json value) {
  document[key] = std::move(value);
  return document;
}

TEST(ConfigFromJson, Llama) {
  SLUICE_UNWRAP(config, fromJson(smallConfig()));
  EXPECT_EQ(config.family, ModelFamily::Llama);
  EXPECT_EQ(config.name, "tiny");
  EXPECT_EQ(config.vocabSize, 16);
  EXPECT_EQ(config.hiddenSize, 64);
  EXPECT_EQ(config.intermediateSize, 96);
  EXPECT_EQ(config.layers, 1);
  EXPECT_EQ(config.heads, 2);
  EXPECT_EQ(config.kvHeads, 1);
  EXPECT_EQ(config.headDim, 32);
  EXPECT_EQ(config.normEps, 1e-5f);
  EXPECT_EQ(config.ropeTheta, 500000.0);
  EXPECT_EQ(config.ropeScaling.kind, RopeScaling::Kind::None);
  EXPECT_EQ(config.contextLength, 128);
  EXPECT_EQ(config.bosId, 1);
  EXPECT_EQ(config.eosIds, (llvm::SmallVector<int64_t, 4>{2}));
  EXPECT_FALSE(config.qBias || config.oBias || config.mlpBias || config.tiedEmbeddings);
}

TEST(ConfigFromJson, HeadSizeNeedNotBeWidthOverHeads) {
  SLUICE_UNWRAP(config, fromJson(with(smallConfig(), "head_dim", 128)));
  EXPECT_EQ(config.headDim, 128);
  SLUICE_UNWRAP(null, fromJson(with(smallConfig(), "head_dim", nullptr)));
  EXPECT_EQ(null.headDim, 32);
}

TEST(ConfigFromJson, BiasesOfEachFamily) {
  SLUICE_UNWRAP(llama,
                fromJson(with(with(smallConfig(), "attention_bias", true), "mlp_bias", true)));
  EXPECT_TRUE(llama.qBias && llama.kBias && llama.vBias && llama.oBias && llama.mlpBias);
  SLUICE_UNWRAP(qwen, fromJson(smallConfig("qwen2")));
  EXPECT_EQ(qwen.family, ModelFamily::Qwen2);
  EXPECT_TRUE(qwen.qBias && qwen.kBias && qwen.vBias);
  EXPECT_FALSE(qwen.oBias || qwen.mlpBias || qwen.qkNorms);
}

TEST(ConfigFromJson, Qwen3) {
  SLUICE_UNWRAP(config, fromJson(smallConfig("qwen3")));
  EXPECT_EQ(config.family, ModelFamily::Qwen3);
  EXPECT_TRUE(config.qkNorms);
  EXPECT_FALSE(config.qBias || config.kBias || config.vBias || config.oBias || config.mlpBias);
  // Its configuration class has a default, whatever the width is.
  EXPECT_EQ(config.headDim, 128);
  SLUICE_UNWRAP(other, fromJson(with(smallConfig("qwen3"), "head_dim", 48)));
  EXPECT_EQ(other.headDim, 48);
  SLUICE_UNWRAP(biased, fromJson(with(smallConfig("qwen3"), "attention_bias", true)));
  EXPECT_TRUE(biased.qBias && biased.kBias && biased.vBias && biased.oBias);
  EXPECT_FALSE(biased.mlpBias);
}

TEST(ConfigFromJson, RopeScalingOldAndNewSpelling) {
  json llama3 = {{"rope_type", "llama3"},
                 {"factor", 8.0},
                 {"low_freq_factor", 1.0},
                 {"high_freq_factor", 4.0},
                 {"original_max_position_embeddings", 8192}};
  SLUICE_UNWRAP(old, fromJson(with(smallConfig(), "rope_scaling", llama3)));
  EXPECT_EQ(old.ropeScaling.kind, RopeScaling::Kind::Llama3);
  EXPECT_EQ(old.ropeScaling.factor, 8.0);
  EXPECT_EQ(old.ropeScaling.lowFreqFactor, 1.0);
  EXPECT_EQ(old.ropeScaling.highFreqFactor, 4.0);
  EXPECT_EQ(old.ropeScaling.originalContext, 8192);
  EXPECT_EQ(old.ropeTheta, 500000.0);

  json document = smallConfig();
  document.erase("rope_theta");
  llama3["rope_theta"] = 250000.0;
  SLUICE_UNWRAP(now, fromJson(with(document, "rope_parameters", llama3)));
  EXPECT_EQ(now.ropeScaling.kind, RopeScaling::Kind::Llama3);
  EXPECT_EQ(now.ropeTheta, 250000.0);

  SLUICE_UNWRAP(linear,
                fromJson(with(smallConfig(), "rope_scaling", {{"type", "linear"}, {"factor", 4}})));
  EXPECT_EQ(linear.ropeScaling.kind, RopeScaling::Kind::Linear);
  EXPECT_EQ(linear.ropeScaling.factor, 4.0);
  EXPECT_NE(
      jsonError(with(smallConfig(), "rope_scaling", {{"type", "dynamic"}, {"factor", 4}}))
          .find(
              "rope_scaling.type is 'dynamic', expected default, linear, llama3, yarn or longrope"),
      std::string::npos);
}

TEST(ConfigFromJson, SlidingWindows) {
  using Windows = llvm::SmallVector<int64_t>;
  auto windows = [](const nlohmann::json &config) {
    std::vector<std::string> warnings;
    llvm::Expected<ModelConfig> parsed = fromJson(config, &warnings);
    EXPECT_TRUE(static_cast<bool>(parsed));
    EXPECT_TRUE(warnings.empty());
    return parsed ? parsed->windows : Windows();
  };
  nlohmann::json mistral = with(smallConfig("mistral"), "num_hidden_layers", 2),
                 qwen = with(smallConfig("qwen2"), "num_hidden_layers", 2);
  EXPECT_EQ(windows(with(mistral, "sliding_window", nullptr)), Windows());
  // As long as the context: no window.
  EXPECT_EQ(windows(with(mistral, "sliding_window", 128)), Windows());
  EXPECT_EQ(windows(with(mistral, "sliding_window", 96)), Windows({96, 96}));
  // A missing key is the default of 4096.
  nlohmann::json longMistral = with(mistral, "max_position_embeddings", 8192);
  longMistral.erase("sliding_window");
  EXPECT_EQ(windows(longMistral), Windows({4096, 4096}));
  // Qwen2 writes a window that it does not use.
  qwen["sliding_window"] = 96;
  EXPECT_EQ(windows(with(qwen, "use_sliding_window", false)), Windows());
  qwen["use_sliding_window"] = true;
  EXPECT_EQ(windows(qwen), Windows({0, 0})); // max_window_layers is 28
  EXPECT_EQ(windows(with(qwen, "max_window_layers", 1)), Windows({0, 96}));
  nlohmann::json qwen3 =
      with(with(smallConfig("qwen3"), "num_hidden_layers", 2), "sliding_window", 96);
  qwen3["max_window_layers"] = 1;
  EXPECT_EQ(windows(qwen3), Windows());
  EXPECT_EQ(windows(with(qwen3, "use_sliding_window", true)), Windows({0, 96}));
  qwen["layer_types"] = {"sliding_attention", "full_attention"};
  EXPECT_EQ(windows(qwen), Windows({96, 0}));
  EXPECT_NE(jsonError(with(qwen, "layer_types", {"sliding_attention"}))
                .find("layer_types has 1 entries for 2 layers"),
            std::string::npos);
  EXPECT_NE(jsonError(with(qwen, "layer_types", {"sliding_attention", "chunked_attention"}))
                .find("expected full_attention or sliding_attention"),
            std::string::npos);
  EXPECT_NE(jsonError(with(mistral, "sliding_window", 0)).find("sliding_window"),
            std::string::npos);
}

TEST(ConfigFromJson, EndTokens) {
  SLUICE_UNWRAP(config, fromJson(with(smallConfig(), "eos_token_id", {2, 3})));
  EXPECT_EQ(config.eosIds, (llvm::SmallVector<int64_t, 4>{2, 3}));
  EXPECT_EQ(message(addGenerationConfig(R"({"eos_token_id": [3, 5]})", "g.json", config)),
            "success");
  EXPECT_EQ(config.eosIds, (llvm::SmallVector<int64_t, 4>{2, 3, 5}));
  EXPECT_NE(message(addGenerationConfig(R"({"eos_token_id": 16})", "g.json", config))
                .find("g.json: eos_token_id is 16, expected a token of the vocabulary of 16"),
            std::string::npos);
  SLUICE_UNWRAP(none, fromJson(with(smallConfig(), "eos_token_id", nullptr)));
  EXPECT_TRUE(none.eosIds.empty());
}

TEST(ConfigFromJson, ArchitecturesMayBeEmptyOrSpelledTheOldWay) {
  for (const json &list : {json::array(), json::array({"LLaMAForCausalLM"}), json(nullptr)}) {
    SLUICE_UNWRAP(config, fromJson(with(smallConfig(), "architectures", list)));
    EXPECT_EQ(config.family, ModelFamily::Llama);
  }
}

TEST(ConfigFromJson, MissingKeyValueHeadsAreTheFamilysDefault) {
  auto kvHeads = [](const char *family, bool isNull) -> int64_t {
    json document = with(smallConfig(family), "num_attention_heads", 32);
    document["head_dim"] = 2;
    document.erase("num_key_value_heads");
    if (isNull)
      document["num_key_value_heads"] = nullptr;
    auto config = fromJson(document);
    if (config)
      return config->kvHeads;
    ADD_FAILURE() << family << ": " << llvm::toString(config.takeError());
    return 0;
  };
  EXPECT_EQ(kvHeads("mistral", false), 8);
  EXPECT_EQ(kvHeads("qwen2", false), 32);
  EXPECT_EQ(kvHeads("qwen3", false), 32);
  EXPECT_EQ(kvHeads("llama", false), 32);
  EXPECT_EQ(kvHeads("mistral", true), 32);
}

TEST(ConfigFromJson, ScalingFactorWithoutTypeWarns) {
  std::vector<std::string> warnings;
  SLUICE_UNWRAP(config, fromJson(with(smallConfig(), "rope_scaling", {{"factor", 4}}), &warnings));
  EXPECT_EQ(config.ropeScaling.kind, RopeScaling::Kind::None);
  ASSERT_EQ(warnings.size(), 1u);
  EXPECT_EQ(warnings[0], "models/tiny/config.json: rope_scaling has a factor but no rope_type: it "
                         "counts as default, which scales nothing");
  for (const json &scaling : {json{{"type", "linear"}, {"factor", 4}}, json{{"rope_theta", 1e4}}})
    EXPECT_EQ(message(fromJson(with(smallConfig(), "rope_parameters", scaling), &warnings)),
              "success");
  EXPECT_EQ(warnings.size(), 1u);
}

TEST(RopeScaling, HasTheNamesAndValuesOfTheDialect) {
  RopeScaling scaling;
  EXPECT_EQ(scaling.name(), "none");
  EXPECT_TRUE(scaling.values(/*context=*/64).empty());
  scaling.kind = RopeScaling::Kind::Linear;
  scaling.factor = 4.0;
  EXPECT_EQ(scaling.name(), "linear");
  EXPECT_EQ(scaling.values(/*context=*/64), (llvm::SmallVector<double>{4.0}));
  scaling.kind = RopeScaling::Kind::Llama3;
  scaling.originalContext = 8192;
  EXPECT_EQ(scaling.name(), "llama3");
  EXPECT_EQ(scaling.values(/*context=*/64), (llvm::SmallVector<double>{4.0, 1.0, 4.0, 8192.0}));
  scaling.kind = RopeScaling::Kind::Factors;
  scaling.factors = {2.0f, 3.0f};
  EXPECT_EQ(scaling.name(), "factors");
  EXPECT_EQ(scaling.values(/*context=*/64), (llvm::SmallVector<double>{2.0, 3.0}));
  scaling.kind = RopeScaling::Kind::LongRope;
  scaling.originalContext = 64;
  scaling.longFactors = {5.0f, 6.0f};
  EXPECT_EQ(scaling.name(), "factors");
  EXPECT_EQ(scaling.values(/*context=*/64), (llvm::SmallVector<double>{2.0, 3.0}));
  EXPECT_EQ(scaling.values(/*context=*/65), (llvm::SmallVector<double>{5.0, 6.0}));
  scaling.kind = RopeScaling::Kind::Yarn;
  EXPECT_EQ(scaling.name(), "yarn");
  EXPECT_EQ(scaling.values(/*context=*/64), (llvm::SmallVector<double>{4.0, 32.0, 1.0, 64.0}));
}

TEST(ConfigFromJson, ScalesOfFamilies) {
  json gemma = with(smallConfig(), "model_type", "gemma2");
  gemma["architectures"] = {"Gemma2ForCausalLM"};
  SLUICE_UNWRAP(capped, fromJson(with(gemma, "query_pre_attn_scalar", 144)));
  EXPECT_NEAR(capped.attentionScale, 1 / 12.0, 1e-12);
  EXPECT_EQ(capped.embeddingScale, 8.0);
  EXPECT_EQ(capped.scoreCap, 50.0);
  SLUICE_UNWRAP(free, fromJson(with(gemma, "attn_logit_softcapping", nullptr)));
  EXPECT_EQ(free.scoreCap, 0.0);

  json yarn = {{"rope_type", "yarn"}, {"factor", 4}, {"original_max_position_embeddings", 64}};
  SLUICE_UNWRAP(usual, fromJson(with(smallConfig(), "rope_scaling", yarn)));
  EXPECT_NEAR(usual.ropeScaling.magnitude, 0.1 * std::log(4.0) + 1, 1e-12);
  yarn["mscale"] = 1.0;
  yarn["mscale_all_dim"] = 1.0;
  SLUICE_UNWRAP(even, fromJson(with(smallConfig(), "rope_scaling", yarn)));
  EXPECT_EQ(even.ropeScaling.magnitude, 1.0);
  yarn["attention_factor"] = 1.5;
  SLUICE_UNWRAP(given, fromJson(with(smallConfig(), "rope_scaling", yarn)));
  EXPECT_EQ(given.ropeScaling.magnitude, 1.5);
}

namespace {
struct BadConfig {
  const char *key;
  json value;
  const char *expected;
};
void PrintTo(const BadConfig &bad, std::ostream *os) { *os << bad.key << " " << bad.value; }
} // namespace

class BadConfigs : public testing::TestWithParam<BadConfig> {};

TEST_P(BadConfigs, AreNamedInOneLine) {
  std::string error = jsonError(with(smallConfig(), GetParam().key, GetParam().value));
  EXPECT_EQ(error.find("models/tiny/config.json: "), 0u) << error;
  EXPECT_NE(error.find(GetParam().expected), std::string::npos) << error;
  EXPECT_EQ(error.find('\n'), std::string::npos) << error;
}

INSTANTIATE_TEST_SUITE_P(
    Keys, BadConfigs,
    testing::Values(
        BadConfig{"model_type", "mamba", "model_type is 'mamba', supported are llama, mistral"},
        BadConfig{"model_type", "mixtral",
                  "model_type is 'mixtral', a mixture of experts, which is not supported"},
        BadConfig{"model_type", "gpt_oss", "model_type is 'gpt_oss', a mixture of experts"},
        BadConfig{"num_local_experts", 8, "num_local_experts is above 0: a mixture of experts"},
        BadConfig{"model_type", nullptr, "model_type is missing"},
        BadConfig{"model_type", "bad\nname", "model_type is 'bad\\x0Aname'"},
        BadConfig{"architectures",
                  {"LlamaForSequenceClassification"},
                  "architectures is 'LlamaForSequenceClassification', expected LlamaForCausalLM"},
        BadConfig{"hidden_act", "relu",
                  "hidden_act is 'relu', expected silu, gelu, gelu_new or gelu_pytorch_tanh"},
        BadConfig{"vocab_size", 0, "vocab_size is 0, expected an integer from 1"},
        BadConfig{"vocab_size", -7, "vocab_size is -7"},
        BadConfig{"vocab_size", 1e9, "vocab_size is 1000000000.0"},
        BadConfig{"hidden_size", "64", "hidden_size is '64'"},
        BadConfig{"hidden_size", nullptr, "hidden_size is missing"},
        BadConfig{"hidden_size", UINT64_MAX, "hidden_size is 18446744073709551615"},
        BadConfig{"hidden_size", 63, "hidden_size is 63, expected a multiple"},
        BadConfig{"intermediate_size", int64_t(1) << 40, "intermediate_size is 1099511627776"},
        BadConfig{"num_hidden_layers", 1 << 20, "num_hidden_layers is 1048576"},
        BadConfig{"num_key_value_heads", 3, "num_key_value_heads is 3, expected a divisor"},
        BadConfig{"num_attention_heads", 64, "the head size is 1, expected an even number"},
        BadConfig{"rms_norm_eps", 0.0, "rms_norm_eps is 0.0, expected a number above 0"},
        BadConfig{"rms_norm_eps", 2.0, "rms_norm_eps is 2.0, expected a number between 0 and 1"},
        BadConfig{"rms_norm_eps", 1e-60, "rms_norm_eps is 1e-60"},
        BadConfig{"rope_theta", -1.0, "rope_theta is -1.0"},
        BadConfig{"rope_scaling", 3, "rope_scaling is 3, expected an object"},
        BadConfig{"rope_scaling", {{"rope_type", "linear"}}, "rope_scaling.factor is missing"},
        BadConfig{"rope_parameters",
                  {{"full_attention", json::object()}},
                  "rope_parameters.full_attention is an object, expected the same"},
        BadConfig{"rope_scaling",
                  {{"rope_type", "llama3"},
                   {"factor", 8},
                   {"low_freq_factor", 4},
                   {"high_freq_factor", 4},
                   {"original_max_position_embeddings", 8192}},
                  "rope_scaling.high_freq_factor is 4, expected more than low_freq_factor (4)"},
        BadConfig{"partial_rotary_factor", 0.5, "partial_rotary_factor makes"},
        BadConfig{"max_position_embeddings", 0, "max_position_embeddings is 0"},
        BadConfig{"tie_word_embeddings", 1, "tie_word_embeddings is 1, expected true or false"},
        BadConfig{"bos_token_id", 16, "bos_token_id is 16, expected a token"},
        BadConfig{"eos_token_id", "2", "eos_token_id is '2', expected a token id"},
        BadConfig{"quantization_config",
                  {{"quant_method", "hqq"}},
                  "quantization_config.quant_method is 'hqq', expected gptq, awq,"},
        BadConfig{"quantization_config",
                  {{"quant_method", "gptq"}, {"bits", 3}, {"group_size", 128}},
                  "quantization_config.bits is 3, expected 4 or 8"},
        BadConfig{"quantization_config",
                  {{"quant_method", "gptq"}, {"bits", 4}, {"group_size", 48}},
                  "quantization_config.group_size is 48, expected 32, 64, 128, 256 or -1"},
        BadConfig{"quantization_config",
                  {{"quant_method", "gptq"}, {"bits", 4}, {"checkpoint_format", "marlin"}},
                  "quantization_config.checkpoint_format is 'marlin', expected gptq or gptq_v2"},
        BadConfig{"quantization_config",
                  {{"quant_method", "awq"}, {"bits", 4}, {"version", "gemv_fast"}},
                  "quantization_config.version is 'gemv_fast', expected gemm or gemv"},
        BadConfig{"quantization_config",
                  {{"quant_method", "awq"}, {"bits", 8}, {"version", "gemv"}},
                  "quantization_config.bits is 8, expected 4"},
        BadConfig{"quantization_config",
                  {{"quant_method", "compressed-tensors"}, {"format", "marlin-24"}},
                  "quantization_config.format is 'marlin-24', expected pack-quantized"},
        BadConfig{"quantization_config",
                  {{"quant_method", "fp8"}, {"weight_block_size", {64, 128}}},
                  "quantization_config.weight_block_size is not [128, 128]"}));

namespace {
/// A key that makes the graph of a family another one, which is refused.
struct BadFamily {
  const char *family, *architecture, *key;
  json value;
  const char *expected;
};
void PrintTo(const BadFamily &bad, std::ostream *os) { *os << bad.family << " " << bad.key; }

class BadFamilies : public testing::TestWithParam<BadFamily> {};
} // namespace

TEST_P(BadFamilies, AreNamedInOneLine) {
  const BadFamily &bad = GetParam();
  json config = with(smallConfig(), "model_type", bad.family);
  config["architectures"] = {bad.architecture};
  config["layer_norm_eps"] = 1e-5;
  for (auto [gpt2, other] :
       {std::pair("n_embd", "hidden_size"), std::pair("n_head", "num_attention_heads"),
        std::pair("n_layer", "num_hidden_layers")})
    config[gpt2] = config[other];
  EXPECT_TRUE(static_cast<bool>(fromJson(config))) << jsonError(config);
  std::string error = jsonError(with(config, bad.key, bad.value));
  EXPECT_NE(error.find(bad.expected), std::string::npos) << error;
  EXPECT_EQ(error.find('\n'), std::string::npos) << error;
}

INSTANTIATE_TEST_SUITE_P(
    Keys, BadFamilies,
    testing::Values(
        BadFamily{"gpt2", "GPT2LMHeadModel", "scale_attn_by_inverse_layer_idx", true,
                  "scale_attn_by_inverse_layer_idx is true, expected false"},
        BadFamily{"gpt2", "GPT2LMHeadModel", "add_cross_attention", true,
                  "add_cross_attention is true, expected false"},
        BadFamily{"stablelm", "StableLmForCausalLM", "qk_layernorm", true,
                  "qk_layernorm is true, expected false"},
        BadFamily{"stablelm", "StableLmForCausalLM", "use_parallel_residual", true,
                  "use_parallel_residual is true, expected false"},
        BadFamily{"gpt_neox", "GPTNeoXForCausalLM", "rotary_pct", 0.1,
                  "rotary_pct makes the rotary embedding cover 3 of a head's 32 elements"},
        BadFamily{"gpt_neox", "GPTNeoXForCausalLM", "rotary_pct", 1.5,
                  "rotary_pct makes the rotary embedding cover more than each head"},
        BadFamily{"gemma", "GemmaForCausalLM", "use_bidirectional_attention", true,
                  "use_bidirectional_attention is true, expected false"},
        BadFamily{"gemma2", "Gemma2ForCausalLM", "attn_logit_softcapping", -1,
                  "attn_logit_softcapping is -1, expected a number above 0"},
        BadFamily{"gemma2",
                  "Gemma2ForCausalLM",
                  "layer_types",
                  {"linear_attention"},
                  "layer_types[0] is 'linear_attention', expected full_attention or"},
        BadFamily{"phi3",
                  "Phi3ForCausalLM",
                  "rope_scaling",
                  {{"type", "longrope"}, {"short_factor", {1, 2}}, {"long_factor", {1, 2}}},
                  "rope_scaling.short_factor has 2 entries for 16 rotary pairs"},
        BadFamily{"phi3",
                  "Phi3ForCausalLM",
                  "rope_scaling",
                  {{"type", "yarn"}, {"factor", 2}},
                  "rope_scaling.original_max_position_embeddings is missing"},
        BadFamily{"olmo2",
                  "Olmo2ForCausalLM",
                  "rope_scaling",
                  {{"type", "yarn"},
                   {"factor", 2},
                   {"original_max_position_embeddings", 64},
                   {"truncate", false}},
                  "rope_scaling.truncate is false, expected true"},
        BadFamily{"granite", "GraniteForCausalLM", "logits_scaling", 0,
                  "logits_scaling is 0, expected a number above 0"},
        BadFamily{"smollm3", "SmolLM3ForCausalLM", "no_rope_layers", json::array(),
                  "no_rope_layers has 0 entries for 1 layers"}));

//===----------------------------------------------------------------------===//
// GGUF
//===----------------------------------------------------------------------===//

static llvm::Expected<ModelConfig> fromGGUF(const GGUFBuilder &gguf,
                                            std::vector<std::string> *warnings = nullptr) {
  Folder folder;
  auto file = GGUFFile::open(folder.write("model.gguf", gguf.build()));
  if (!file)
    return file.takeError();
  std::vector<std::string> ignored;
  return configFromGGUF(*file, warnings ? *warnings : ignored);
}

TEST(ConfigFromGGUF, Llama) {
  SLUICE_UNWRAP(config, fromGGUF(smallLlamaGGUF()));
  EXPECT_EQ(config.family, ModelFamily::Llama);
  EXPECT_EQ(config.name, "small");
  EXPECT_EQ(config.vocabSize, 16);
  EXPECT_EQ(config.hiddenSize, 64);
  EXPECT_EQ(config.intermediateSize, 96);
  EXPECT_EQ(config.layers, 1);
  EXPECT_EQ(config.heads, 2);
  EXPECT_EQ(config.kvHeads, 1);
  EXPECT_EQ(config.headDim, 32);
  EXPECT_EQ(config.normEps, 1e-5f);
  EXPECT_EQ(config.ropeTheta, 500000.0);
  EXPECT_EQ(config.contextLength, 128);
  EXPECT_EQ(config.bosId, 1);
  EXPECT_EQ(config.eosIds, (llvm::SmallVector<int64_t, 4>{2}));
  EXPECT_FALSE(config.tiedEmbeddings || config.qBias || config.mlpBias);
}

TEST(ConfigFromGGUF, Qwen3HasNormsAndAnyHeadSize) {
  GGUFBuilder gguf = smallLlamaGGUF("qwen3");
  gguf.u32("qwen3.attention.key_length", 48);
  gguf.u32("qwen3.attention.value_length", 48);
  SLUICE_UNWRAP(config, fromGGUF(gguf));
  EXPECT_EQ(config.family, ModelFamily::Qwen3);
  EXPECT_TRUE(config.qkNorms);
  EXPECT_EQ(config.headDim, 48);
  SLUICE_UNWRAP(llama, fromGGUF(smallLlamaGGUF()));
  EXPECT_FALSE(llama.qkNorms);
  gguf.erase("qwen3.attention.value_length");
  gguf.u32("qwen3.attention.value_length", 32);
  EXPECT_NE(
      message(fromGGUF(gguf)).find("qwen3.attention.value_length is 32, expected the head size 48"),
      std::string::npos);
}

TEST(ConfigFromGGUF, TensorsTellTiedHeadBiasesAndFactors) {
  GGUFBuilder gguf = smallLlamaGGUF("qwen2");
  llvm::erase_if(gguf.tensors, [](const auto &tensor) { return tensor.name == "output.weight"; });
  gguf.f32Tensor("blk.0.attn_q.bias", {64});
  gguf.f32Tensor("blk.0.attn_k.bias", {32});
  gguf.f32Tensor("blk.0.attn_v.bias", {32});
  gguf.f32Tensor("rope_freqs.weight", {16}, 4.0f);
  SLUICE_UNWRAP(config, fromGGUF(gguf));
  EXPECT_EQ(config.family, ModelFamily::Qwen2);
  EXPECT_TRUE(config.tiedEmbeddings);
  EXPECT_TRUE(config.qBias && config.kBias && config.vBias);
  EXPECT_FALSE(config.oBias);
  EXPECT_EQ(config.ropeScaling.kind, RopeScaling::Kind::Factors);
  EXPECT_EQ(config.ropeScaling.factors, std::vector<float>(16, 4.0f));
}

TEST(ConfigFromGGUF, NumbersGivenForEachLayer) {
  GGUFBuilder gguf = smallLlamaGGUF();
  gguf.erase("llama.attention.head_count_kv");
  gguf.array<uint32_t>("llama.attention.head_count_kv", 4, {1, 1});
  SLUICE_UNWRAP(config, fromGGUF(gguf));
  EXPECT_EQ(config.kvHeads, 1);
  gguf.erase("llama.attention.head_count_kv");
  gguf.array<uint32_t>("llama.attention.head_count_kv", 4, {1, 2});
  EXPECT_NE(message(fromGGUF(gguf)).find("llama.attention.head_count_kv differs by layer"),
            std::string::npos);
}

TEST(ConfigFromGGUF, LinearScalingOldAndNewKey) {
  GGUFBuilder gguf = smallLlamaGGUF();
  gguf.f32("llama.rope.scale_linear", 2.0f);
  SLUICE_UNWRAP(old, fromGGUF(gguf));
  EXPECT_EQ(old.ropeScaling.kind, RopeScaling::Kind::Linear);
  EXPECT_EQ(old.ropeScaling.factor, 2.0);
  gguf.string("llama.rope.scaling.type", "linear");
  gguf.f32("llama.rope.scaling.factor", 4.0f);
  SLUICE_UNWRAP(now, fromGGUF(gguf));
  EXPECT_EQ(now.ropeScaling.factor, 4.0);
}

TEST(ConfigFromGGUF, FactorWithoutTypeIsLinearAndZeroIsOne) {
  GGUFBuilder gguf = smallLlamaGGUF();
  gguf.f32("llama.rope.scaling.factor", 4.0f);
  SLUICE_UNWRAP(untyped, fromGGUF(gguf));
  EXPECT_EQ(untyped.ropeScaling.kind, RopeScaling::Kind::Linear);
  EXPECT_EQ(untyped.ropeScaling.factor, 4.0);

  gguf.string("llama.rope.scaling.type", "none");
  SLUICE_UNWRAP(none, fromGGUF(gguf));
  EXPECT_EQ(none.ropeScaling.kind, RopeScaling::Kind::None);

  for (const char *key : {"llama.rope.scaling.factor", "llama.rope.scale_linear"}) {
    GGUFBuilder zero = smallLlamaGGUF();
    zero.f32(key, 0.0f);
    SLUICE_UNWRAP(untypedZero, fromGGUF(zero));
    EXPECT_EQ(untypedZero.ropeScaling.kind, RopeScaling::Kind::None) << key;
    zero.string("llama.rope.scaling.type", "linear");
    SLUICE_UNWRAP(typedZero, fromGGUF(zero));
    EXPECT_EQ(typedZero.ropeScaling.kind, RopeScaling::Kind::None) << key;
  }
}

TEST(ConfigFromGGUF, BadScalingFactors) {
  GGUFBuilder gguf = smallLlamaGGUF();
  gguf.f32("llama.rope.scaling.factor", -1.5f);
  EXPECT_NE(message(fromGGUF(gguf))
                .find("llama.rope.scaling.factor is -1.5, expected a number of at least 0"),
            std::string::npos);
  gguf.erase("llama.rope.scaling.factor");
  gguf.string("llama.rope.scaling.type", "linear");
  EXPECT_NE(message(fromGGUF(gguf)).find("llama.rope.scaling.factor is missing"),
            std::string::npos);
}

TEST(ConfigFromGGUF, LaterPartsOfASplitFileSayWhatTheyAre) {
  GGUFBuilder gguf;
  gguf.value<uint16_t>("split.no", 2, 1);
  gguf.value<uint16_t>("split.count", 2, 3);
  EXPECT_NE(message(fromGGUF(gguf))
                .find("is part 2 of the 3 parts of a split GGUF file, which are "
                      "not supported: expected one file"),
            std::string::npos);
  GGUFBuilder whole = smallLlamaGGUF();
  whole.value<uint16_t>("split.no", 2, 0);
  whole.value<uint16_t>("split.count", 2, 1);
  EXPECT_EQ(message(fromGGUF(whole)), "success");
}

TEST(ConfigFromGGUF, TheSampleEqualsItsHuggingFaceConfig) {
  std::vector<std::string> warnings;
  SLUICE_UNWRAP(gguf, GGUFFile::open(dataFile("llama-4m.Q8_0.gguf")));
  SLUICE_UNWRAP(a, configFromGGUF(gguf, warnings));
  std::string path = std::string(SLUICE_MODELS) + "/llama-4m/config.json";
  SLUICE_UNWRAP(text, mapFile(path));
  SLUICE_UNWRAP(b, configFromJson(text->text(), path, warnings));
  EXPECT_EQ(a.name, b.name);
  EXPECT_EQ(a.vocabSize, b.vocabSize);
  EXPECT_EQ(a.hiddenSize, b.hiddenSize);
  EXPECT_EQ(a.intermediateSize, b.intermediateSize);
  EXPECT_EQ(a.layers, b.layers);
  EXPECT_EQ(a.heads, b.heads);
  EXPECT_EQ(a.kvHeads, b.kvHeads);
  EXPECT_EQ(a.headDim, b.headDim);
  EXPECT_EQ(a.normEps, b.normEps);
  EXPECT_EQ(a.ropeTheta, b.ropeTheta);
  EXPECT_EQ(a.contextLength, b.contextLength);
  EXPECT_EQ(a.tiedEmbeddings, b.tiedEmbeddings);
  EXPECT_EQ(a.bosId, b.bosId);
  EXPECT_EQ(a.eosIds, b.eosIds);
  EXPECT_TRUE(warnings.empty());
}
