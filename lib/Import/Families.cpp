// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "Families.h"

#include "llvm/ADT/STLExtras.h"
#include "llvm/ADT/StringExtras.h"

using namespace llvm;
using namespace sluice;
using namespace sluice::detail;

//===----------------------------------------------------------------------===//
// Names of tensors
//===----------------------------------------------------------------------===//

static constexpr TensorNames llamaNames = {.tokenEmbedding = "model.embed_tokens",
                                           .outputNorm = "model.norm",
                                           .head = "lm_head",
                                           .layerPrefix = "model.layers.",
                                           .attnNorm = "input_layernorm",
                                           .q = "self_attn.q_proj",
                                           .k = "self_attn.k_proj",
                                           .v = "self_attn.v_proj",
                                           .o = "self_attn.o_proj",
                                           .mlpNorm = "post_attention_layernorm",
                                           .gate = "mlp.gate_proj",
                                           .up = "mlp.up_proj",
                                           .down = "mlp.down_proj"};

static constexpr TensorNames ggufNames = {.tokenEmbedding = "token_embd",
                                          .outputNorm = "output_norm",
                                          .head = "output",
                                          .layerPrefix = "blk.",
                                          .attnNorm = "attn_norm",
                                          .q = "attn_q",
                                          .k = "attn_k",
                                          .v = "attn_v",
                                          .o = "attn_output",
                                          .mlpNorm = "ffn_norm",
                                          .gate = "ffn_gate",
                                          .up = "ffn_up",
                                          .down = "ffn_down"};

/// `names`, changed by `change`.
template <typename Change> static constexpr TensorNames with(TensorNames names, Change change) {
  change(names);
  return names;
}

static constexpr auto joinQkv = [](TensorNames &n) { n.q = n.k = n.v = "attn_qkv"; };
static constexpr TensorNames ggufInterleaved =
    with(ggufNames, [](TensorNames &n) { n.ropeInterleaved = true; });
static constexpr TensorNames ggufJoined = with(ggufNames, joinQkv);
static constexpr TensorNames ggufGpt2 =
    with(ggufJoined, [](TensorNames &n) { n.positionEmbedding = "position_embd"; });
static constexpr TensorNames ggufPhi3 = with(ggufJoined, [](TensorNames &n) { n.gate = n.up; });
static constexpr TensorNames ggufPostNorms = with(ggufNames, [](TensorNames &n) {
  n.attnPostNorm = "post_attention_norm", n.mlpPostNorm = "post_ffw_norm";
  n.qNorm = "attn_q_norm", n.kNorm = "attn_k_norm";
});

static constexpr TensorNames ggufHeadNorms =
    with(ggufNames, [](TensorNames &n) { n.qNorm = "attn_q_norm", n.kNorm = "attn_k_norm"; });

static constexpr TensorNames gpt2Names = {.tokenEmbedding = "wte",
                                          .outputNorm = "ln_f",
                                          .head = "lm_head",
                                          .layerPrefix = "h.",
                                          .attnNorm = "ln_1",
                                          .q = "attn.c_attn",
                                          .k = "attn.c_attn",
                                          .v = "attn.c_attn",
                                          .o = "attn.c_proj",
                                          .mlpNorm = "ln_2",
                                          .gate = "",
                                          .up = "mlp.c_fc",
                                          .down = "mlp.c_proj",
                                          .positionEmbedding = "wpe",
                                          .transposed = true,
                                          .root = "transformer."};

static constexpr TensorNames neoXNames = {.tokenEmbedding = "gpt_neox.embed_in",
                                          .outputNorm = "gpt_neox.final_layer_norm",
                                          .head = "embed_out",
                                          .layerPrefix = "gpt_neox.layers.",
                                          .attnNorm = "input_layernorm",
                                          .q = "attention.query_key_value",
                                          .k = "attention.query_key_value",
                                          .v = "attention.query_key_value",
                                          .o = "attention.dense",
                                          .mlpNorm = "post_attention_layernorm",
                                          .gate = "",
                                          .up = "mlp.dense_h_to_4h",
                                          .down = "mlp.dense_4h_to_h",
                                          .qkvByHead = true};

static constexpr TensorNames phi3Names = with(llamaNames, [](TensorNames &n) {
  n.q = n.k = n.v = "self_attn.qkv_proj";
  n.gate = n.up = "mlp.gate_up_proj";
});

static constexpr TensorNames qwen3Names = with(
    llamaNames, [](TensorNames &n) { n.qNorm = "self_attn.q_norm", n.kNorm = "self_attn.k_norm"; });

static constexpr TensorNames gemma2Names = with(llamaNames, [](TensorNames &n) {
  n.attnPostNorm = "post_attention_layernorm", n.mlpPostNorm = "post_feedforward_layernorm";
  n.mlpNorm = "pre_feedforward_layernorm";
});

static constexpr TensorNames gemma3Names = with(gemma2Names, [](TensorNames &n) {
  n.qNorm = "self_attn.q_norm", n.kNorm = "self_attn.k_norm";
});

static constexpr TensorNames olmo2Names = with(llamaNames, [](TensorNames &n) {
  n.attnPostNorm = "post_attention_layernorm", n.mlpPostNorm = "post_feedforward_layernorm";
  n.qNorm = "self_attn.q_norm", n.kNorm = "self_attn.k_norm";
});

//===----------------------------------------------------------------------===//
// The table
//===----------------------------------------------------------------------===//

static void isLlama(ModelConfig &) {}

static void isQwen2(ModelConfig &config) { config.qBias = config.kBias = config.vBias = true; }

static void isQwen3(ModelConfig &config) { config.qkNorms = true; }

/// Biases everywhere, layer norms, and an MLP without gate.
static void isGpt(ModelConfig &config) {
  config.norm = NormKind::Layer;
  config.normBias = true;
  config.gatedMlp = false;
  config.qBias = config.kBias = config.vBias = config.oBias = config.mlpBias = true;
}

static void isGpt2(ModelConfig &config) {
  isGpt(config);
  config.activation = Activation::GeluTanh;
  config.learnedPositions = true;
}

static void isGptNeoX(ModelConfig &config) {
  isGpt(config);
  config.activation = Activation::Gelu;
}

static void isGemma(ModelConfig &config) {
  config.norm = NormKind::RmsPlusOne;
  config.activation = Activation::GeluTanh;
}

static void isGemma2(ModelConfig &config) {
  isGemma(config);
  config.normPlaces = NormPlaces::Both;
}

static void isGemma3(ModelConfig &config) {
  isGemma2(config);
  config.qkNorms = true;
}

static void isOlmo2(ModelConfig &config) {
  config.normPlaces = NormPlaces::After;
  config.rowQkNorm = true;
}

static void isStableLm(ModelConfig &config) {
  config.norm = NormKind::Layer;
  config.normBias = true;
}

static constexpr Family table[] = {
    {ModelFamily::Llama, "llama", "LlamaForCausalLM", llamaNames, "llama", ggufInterleaved,
     isLlama},
    {ModelFamily::Mistral, "mistral", "MistralForCausalLM", llamaNames, "", ggufNames, isLlama},
    {ModelFamily::Qwen2, "qwen2", "Qwen2ForCausalLM", llamaNames, "qwen2", ggufNames, isQwen2},
    {ModelFamily::Qwen3, "qwen3", "Qwen3ForCausalLM", qwen3Names, "qwen3", ggufHeadNorms, isQwen3},
    {ModelFamily::Gpt2, "gpt2", "GPT2LMHeadModel", gpt2Names, "gpt2", ggufGpt2, isGpt2},
    {ModelFamily::GptNeoX, "gpt_neox", "GPTNeoXForCausalLM", neoXNames, "gptneox", ggufJoined,
     isGptNeoX},
    {ModelFamily::Phi3, "phi3", "Phi3ForCausalLM", phi3Names, "phi3", ggufPhi3, isLlama},
    {ModelFamily::Gemma, "gemma", "GemmaForCausalLM", llamaNames, "gemma", ggufNames, isGemma},
    {ModelFamily::Gemma2, "gemma2", "Gemma2ForCausalLM", gemma2Names, "gemma2", ggufPostNorms,
     isGemma2},
    {ModelFamily::Gemma3, "gemma3_text", "Gemma3ForCausalLM", gemma3Names, "gemma3", ggufPostNorms,
     isGemma3},
    {ModelFamily::Olmo2, "olmo2", "Olmo2ForCausalLM", olmo2Names, "olmo2", ggufPostNorms, isOlmo2},
    {ModelFamily::StableLm, "stablelm", "StableLmForCausalLM", llamaNames, "stablelm", ggufNames,
     isStableLm},
    {ModelFamily::Granite, "granite", "GraniteForCausalLM", llamaNames, "granite", ggufInterleaved,
     isLlama},
    {ModelFamily::SmolLm3, "smollm3", "SmolLM3ForCausalLM", llamaNames, "smollm3", ggufInterleaved,
     isLlama},
};

static constexpr bool tableIsInEnumOrder() {
  for (size_t i = 0; i < std::size(table); ++i)
    if (static_cast<size_t>(table[i].family) != i)
      return false;
  return true;
}
static_assert(tableIsInEnumOrder());

ArrayRef<Family> sluice::detail::families() { return table; }

const Family &sluice::detail::familyOf(ModelFamily family) {
  return table[static_cast<size_t>(family)];
}

std::string sluice::detail::familyNames(bool gguf) {
  std::vector<StringRef> names;
  for (const Family &family : table)
    if (StringRef name = gguf ? family.ggufName : family.name; !name.empty())
      names.push_back(name);
  return join(ArrayRef(names).drop_back(), ", ") + " and " + names.back().str();
}

StringRef sluice::detail::whyUnsupported(StringRef name) {
  constexpr StringLiteral mixtures[] = {
      "mixtral", "qwen2_moe",   "qwen2moe",    "qwen3_moe",   "qwen3moe",   "gpt_oss",
      "gpt-oss", "deepseek_v2", "deepseek2",   "deepseek_v3", "phimoe",     "olmoe",
      "dbrx",    "granitemoe",  "granite_moe", "llama4",      "llama4_text"};
  if (is_contained(mixtures, name))
    return "a mixture of experts, which is not supported";
  return "";
}
