// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Small models of any shape with random weights, as Hugging Face directories and GGUF files.

#ifndef SLUICE_TEST_UNIT_COMPILED_RANDOMMODELS_H
#define SLUICE_TEST_UNIT_COMPILED_RANDOMMODELS_H

#include "../import/TestFiles.h"
#include "sluice/Formats/Encoding.h"

#include <cmath>
#include <random>

namespace sluice::test {

struct RandomModel {
  std::string name;
  std::string family = "llama";
  int64_t hidden = 64, mlp = 96, layers = 2, heads = 2, kvHeads = 1, headDim = 32, vocab = 96;
  int64_t context = 128;
  /// A sliding window, 0 for none: of all layers (mistral) or of the second half (qwen2, qwen3).
  int64_t window = 0;
  bool tied = false, attentionBias = false, mlpBias = false;
  double theta = 10000;
  nlohmann::json ropeScaling = nullptr;
  /// Of the safetensors: F16, BF16 or F32.
  std::string dtype = "F16";
  /// Safetensors files that the tensors are dealt out to.
  int shards = 1;

  bool qkvBias() const { return attentionBias || family == "qwen2"; }
};

struct RandomTensor {
  std::string name;
  std::vector<int64_t> shape;
  std::vector<float> values;
};

/// Every tensor under its Hugging Face name. Logits come out with a spread of about 1, and
/// attention weights far from uniform, so that errors of either show.
inline std::vector<RandomTensor> randomTensors(const RandomModel &model) {
  std::mt19937 engine(20240);
  std::vector<RandomTensor> tensors;
  auto add = [&](const std::string &name, std::vector<int64_t> shape, float mean, float deviation) {
    std::normal_distribution<float> normal(mean, deviation);
    int64_t count = 1;
    for (int64_t dim : shape)
      count *= dim;
    RandomTensor tensor{name, std::move(shape), std::vector<float>(count)};
    for (float &value : tensor.values)
      value = normal(engine);
    tensors.push_back(std::move(tensor));
  };
  auto linear = [&](const std::string &stem, int64_t rows, int64_t columns, bool bias,
                    float gain = 1) {
    add(stem + ".weight", {rows, columns}, 0, gain / std::sqrt(static_cast<float>(columns)));
    if (bias)
      add(stem + ".bias", {rows}, 0, 0.3f);
  };
  add("model.embed_tokens.weight", {model.vocab, model.hidden}, 0, 0.5f);
  int64_t width = model.heads * model.headDim, kvWidth = model.kvHeads * model.headDim;
  for (int64_t layer = 0; layer < model.layers; ++layer) {
    std::string prefix = "model.layers." + std::to_string(layer) + ".";
    add(prefix + "input_layernorm.weight", {model.hidden}, 1, 0.2f);
    linear(prefix + "self_attn.q_proj", width, model.hidden, model.qkvBias(), 1.5f);
    linear(prefix + "self_attn.k_proj", kvWidth, model.hidden, model.qkvBias(), 1.5f);
    linear(prefix + "self_attn.v_proj", kvWidth, model.hidden, model.qkvBias());
    linear(prefix + "self_attn.o_proj", model.hidden, width, model.attentionBias);
    if (model.family == "qwen3") {
      add(prefix + "self_attn.q_norm.weight", {model.headDim}, 1.5f, 0.3f);
      add(prefix + "self_attn.k_norm.weight", {model.headDim}, 1.5f, 0.3f);
    }
    add(prefix + "post_attention_layernorm.weight", {model.hidden}, 1, 0.2f);
    linear(prefix + "mlp.gate_proj", model.mlp, model.hidden, model.mlpBias);
    linear(prefix + "mlp.up_proj", model.mlp, model.hidden, model.mlpBias);
    linear(prefix + "mlp.down_proj", model.hidden, model.mlp, model.mlpBias);
  }
  add("model.norm.weight", {model.hidden}, 1, 0.2f);
  if (!model.tied)
    linear("lm_head", model.vocab, model.hidden, false);
  return tensors;
}

inline void putFloat(Bytes &bytes, float value, const std::string &dtype) {
  if (dtype == "F32")
    bytes.put(value);
  else
    bytes.put(dtype == "F16" ? formats::floatToF16(value) : formats::floatToBf16(value));
}

/// config.json and safetensors (with an index, if sharded); no tokenizer.
inline void writeHuggingFace(const RandomModel &model, const Folder &folder) {
  nlohmann::json config = smallConfig(model.family);
  config.update({{"vocab_size", model.vocab},
                 {"hidden_size", model.hidden},
                 {"intermediate_size", model.mlp},
                 {"num_hidden_layers", model.layers},
                 {"num_attention_heads", model.heads},
                 {"num_key_value_heads", model.kvHeads},
                 {"head_dim", model.headDim},
                 {"max_position_embeddings", model.context},
                 {"rope_theta", model.theta},
                 {"rope_scaling", model.ropeScaling},
                 {"tie_word_embeddings", model.tied}});
  if (model.family == "llama" || model.family == "qwen3")
    config.update({{"attention_bias", model.attentionBias}, {"mlp_bias", model.mlpBias}});
  if (model.window)
    config.update({{"sliding_window", model.window},
                   {"use_sliding_window", true},
                   {"max_window_layers", model.layers / 2}});
  folder.write("config.json", config.dump());

  struct Shard {
    nlohmann::ordered_json header = nlohmann::ordered_json::object();
    Bytes data;
  };
  std::vector<Shard> shards(model.shards);
  nlohmann::json weightMap = nlohmann::json::object();
  auto fileName = [&](size_t shard) {
    if (model.shards == 1)
      return std::string("model.safetensors");
    char name[64];
    snprintf(name, sizeof(name), "model-%05zu-of-%05d.safetensors", shard + 1, model.shards);
    return std::string(name);
  };
  size_t next = 0;
  for (const RandomTensor &tensor : randomTensors(model)) {
    size_t index = next++ % shards.size();
    Shard &shard = shards[index];
    size_t begin = shard.data.data.size();
    for (float value : tensor.values)
      putFloat(shard.data, value, model.dtype);
    shard.header[tensor.name] = {{"dtype", model.dtype},
                                 {"shape", tensor.shape},
                                 {"data_offsets", {begin, shard.data.data.size()}}};
    weightMap[tensor.name] = fileName(index);
  }
  for (auto [index, shard] : llvm::enumerate(shards)) {
    std::string header = shard.header.dump();
    folder.write(fileName(index),
                 Bytes().put<uint64_t>(header.size()).data + header + shard.data.data);
  }
  if (model.shards > 1)
    folder.write(
        "model.safetensors.index.json",
        nlohmann::json{{"metadata", nlohmann::json::object()}, {"weight_map", weightMap}}.dump());
}

/// A GGUF whose matrices have the type `type` (0 F32, 1 F16, 2 Q4_0, 8 Q8_0; norms and biases are
/// F32). Quantized blocks hold random elements. Returns its path.
inline std::string writeGGUF(const RandomModel &model, uint32_t type, const Folder &folder) {
  std::string prefix = model.family + ".";
  GGUFBuilder gguf = smallLlamaGGUF(model.family);
  gguf.tensors.clear();
  for (const char *key :
       {"context_length", "embedding_length", "block_count", "feed_forward_length",
        "attention.head_count", "attention.head_count_kv", "rope.freq_base"})
    gguf.erase(prefix + key);
  for (const char *key : {"tokens", "scores", "token_type"})
    gguf.erase(std::string("tokenizer.ggml.") + key);
  gguf.u32(prefix + "context_length", model.context);
  gguf.u32(prefix + "embedding_length", model.hidden);
  gguf.u32(prefix + "block_count", model.layers);
  gguf.u32(prefix + "feed_forward_length", model.mlp);
  gguf.u32(prefix + "attention.head_count", model.heads);
  gguf.u32(prefix + "attention.head_count_kv", model.kvHeads);
  gguf.u32(prefix + "attention.key_length", model.headDim);
  gguf.u32(prefix + "attention.value_length", model.headDim);
  gguf.u32(prefix + "rope.dimension_count", model.headDim);
  gguf.f32(prefix + "rope.freq_base", model.theta);
  std::vector<std::string> tokens;
  for (int64_t i = 0; i < model.vocab; ++i)
    tokens.push_back("t" + std::to_string(i));
  gguf.strings("tokenizer.ggml.tokens", tokens);
  gguf.array<float>("tokenizer.ggml.scores", 6, std::vector<float>(model.vocab, -1.0f));
  gguf.array<int32_t>("tokenizer.ggml.token_type", 5, std::vector<int32_t>(model.vocab, 1));

  auto ggufName = [](std::string name) {
    const std::pair<const char *, const char *> parts[] = {{"model.embed_tokens", "token_embd"},
                                                           {"model.norm", "output_norm"},
                                                           {"lm_head", "output"},
                                                           {"model.layers.", "blk."},
                                                           {"input_layernorm", "attn_norm"},
                                                           {"self_attn.q_proj", "attn_q"},
                                                           {"self_attn.k_proj", "attn_k"},
                                                           {"self_attn.v_proj", "attn_v"},
                                                           {"self_attn.o_proj", "attn_output"},
                                                           {"self_attn.q_norm", "attn_q_norm"},
                                                           {"self_attn.k_norm", "attn_k_norm"},
                                                           {"post_attention_layernorm", "ffn_norm"},
                                                           {"mlp.gate_proj", "ffn_gate"},
                                                           {"mlp.up_proj", "ffn_up"},
                                                           {"mlp.down_proj", "ffn_down"}};
    for (auto [from, to] : parts)
      if (size_t at = name.find(from); at != std::string::npos)
        name.replace(at, std::strlen(from), to);
    return name;
  };
  std::mt19937 engine(7);
  for (const RandomTensor &tensor : randomTensors(model)) {
    bool matrix = tensor.shape.size() == 2;
    std::vector<uint64_t> dims(tensor.shape.rbegin(), tensor.shape.rend());
    Bytes bytes;
    if (!matrix || type < 2) {
      for (float value : tensor.values)
        putFloat(bytes, value, matrix && type == 1 ? "F16" : "F32");
    } else {
      float largest = type == 8 ? 127 : 8, deviation = 1 / std::sqrt(float(tensor.shape[1]));
      for (size_t block = 0; block < tensor.values.size() / 32; ++block) {
        bytes.put(formats::floatToF16(deviation / largest * (1 + (engine() % 256) / 256.0f)));
        for (int i = 0; i < (type == 8 ? 32 : 16); ++i)
          bytes.put<uint8_t>(engine());
      }
    }
    gguf.tensors.push_back(
        {ggufName(tensor.name), dims, matrix ? type : 0, bytes.data, std::nullopt});
  }
  return folder.write("model.gguf", gguf.build());
}

} // namespace sluice::test

#endif // SLUICE_TEST_UNIT_COMPILED_RANDOMMODELS_H
