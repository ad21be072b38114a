// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// The small models of test/data/families (scripts/make-test-families), as they are and as GGUF
// files, and the logits that Hugging Face transformers computed for them.

#ifndef SLUICE_TEST_UNIT_COMPILED_FAMILYMODELS_H
#define SLUICE_TEST_UNIT_COMPILED_FAMILYMODELS_H

#include "../import/TestFiles.h"
#include "sluice/Formats/Encoding.h"

#include <cmath>
#include <fstream>
#include <map>

namespace sluice::test {

/// A model of the table in docs/families.md: the name of its folder, what it shows, and whether it
/// is tested as a GGUF file, too.
struct FamilyModel {
  const char *name, *shows;
  bool gguf;
};

inline const std::vector<FamilyModel> &familyModels() {
  static const std::vector<FamilyModel> models = {
      {"llama-linear", "linear scaling of positions, tied head", true},
      {"llama-llama3", "Llama 3's scaling (in GGUF rope_freqs)", true},
      {"llama-yarn", "YaRN", true},
      {"mistral", "sliding window", false},
      {"qwen2", "biases of q, k and v", true},
      {"qwen3", "norms of heads of q and k", true},
      {"gpt2", "layer norms, learned positions, transposed fused weights, GELU (tanh)", true},
      {"gpt_neox", "parallel residual, partial rotary, q, k and v head by head, GELU", true},
      {"gpt_neox-serial", "the same without parallel residual, whole heads rotated", true},
      {"phi3", "fused q, k, v and gate, up; sliding window", true},
      {"phi3-longrope", "LongRoPE", true},
      {"phi3-partial", "half of each head rotated", true},
      {"gemma", "embedding scale, gains less 1, GELU (tanh)", true},
      {"gemma2", "norms before and after, soft caps, alternating windows", true},
      {"gemma3", "norms of heads of q and k, two rotary bases", true},
      {"olmo2", "norms after, norms of whole rows of q and k", true},
      {"stablelm", "layer norms, a quarter of each head rotated, biases of q, k and v", true},
      {"granite", "multipliers, all biases", true},
      {"smollm3", "layers without rotary embedding", true},
  };
  return models;
}

inline std::string familyFolder(const std::string &name) { return dataFile("families/" + name); }

/// What transformers computed in float32: logits of the rows (positions) `rows` of `ids`.
struct FamilyGolden {
  std::vector<int32_t> ids;
  std::map<int64_t, std::vector<float>> logits;

  explicit FamilyGolden(const std::string &name) {
    nlohmann::json json = nlohmann::json::parse(std::ifstream(familyFolder(name) + "/golden.json"));
    ids = json["ids"].get<std::vector<int32_t>>();
    for (size_t i = 0; i < json["rows"].size(); ++i)
      logits[json["rows"][i].get<int64_t>()] = json["logits"][i].get<std::vector<float>>();
  }
};

/// A matrix or vector in float32.
struct FamilyTensor {
  std::vector<int64_t> shape;
  std::vector<float> values;

  int64_t rows() const { return shape[0]; }
  int64_t width() const { return static_cast<int64_t>(values.size()) / rows(); }
  /// Row r becomes row order(r) of what there was; of a vector, element r.
  template <typename Order> void permute(Order order) {
    std::vector<float> old = values;
    for (int64_t row = 0; row < rows(); ++row)
      std::copy_n(old.begin() + order(row) * width(), width(), values.begin() + row * width());
  }
  void transpose() {
    std::vector<float> old = values;
    int64_t height = rows(), columns = width();
    for (int64_t row = 0; row < height; ++row)
      for (int64_t column = 0; column < columns; ++column)
        values[column * height + row] = old[row * columns + column];
    std::swap(shape[0], shape[1]);
  }
};

inline std::map<std::string, FamilyTensor> readFamilyTensors(const std::string &name) {
  std::ifstream file(familyFolder(name) + "/model.safetensors", std::ios::binary);
  std::string bytes((std::istreambuf_iterator<char>(file)), {});
  uint64_t size;
  std::memcpy(&size, bytes.data(), 8);
  std::map<std::string, FamilyTensor> tensors;
  nlohmann::json header = nlohmann::json::parse(bytes.substr(8, size));
  for (const auto &[key, entry] : header.items()) {
    if (key == "__metadata__")
      continue;
    FamilyTensor tensor{entry["shape"], {}};
    size_t begin = 8 + size + entry["data_offsets"][0].get<size_t>(),
           end = 8 + size + entry["data_offsets"][1].get<size_t>();
    for (size_t at = begin; at < end; at += 2) {
      uint16_t half;
      std::memcpy(&half, bytes.data() + at, 2);
      tensor.values.push_back(formats::f16ToFloat(half));
    }
    tensors[key] = std::move(tensor);
  }
  return tensors;
}

/// Writes a model of test/data/families as llama.cpp's converter does: its names and keys, its
/// order of rows, its gains; matrices in F16. Returns the file's path.
inline std::string writeFamilyGGUF(const std::string &name, const Folder &folder) {
  nlohmann::json config = nlohmann::json::parse(std::ifstream(familyFolder(name) + "/config.json"));
  std::string type = config["model_type"];
  auto get = [&](const char *key, auto otherwise) -> decltype(otherwise) {
    return config.contains(key) && !config[key].is_null() ? config[key].get<decltype(otherwise)>()
                                                          : otherwise;
  };
  bool isGpt2 = type == "gpt2", isNeoX = type == "gpt_neox", isGemma = type.starts_with("gemma");
  uint32_t hidden = get(isGpt2 ? "n_embd" : "hidden_size", 0u),
           heads = get(isGpt2 ? "n_head" : "num_attention_heads", 0u),
           kvHeads = get("num_key_value_heads", heads),
           layers = get(isGpt2 ? "n_layer" : "num_hidden_layers", 0u),
           dim = get("head_dim", hidden / heads);
  std::string arch = isNeoX ? "gptneox" : type == "gemma3_text" ? "gemma3" : type;
  std::string prefix = arch + ".";
  bool isLayerNorm = isGpt2 || isNeoX || type == "stablelm";
  float epsilon = get(isGpt2        ? "layer_norm_epsilon"
                      : isLayerNorm ? "layer_norm_eps"
                                    : "rms_norm_eps",
                      1e-5f);

  GGUFBuilder gguf;
  gguf.string("general.architecture", arch);
  gguf.string("tokenizer.ggml.model", "no_vocab");
  gguf.u32(prefix + "context_length", get(isGpt2 ? "n_positions" : "max_position_embeddings", 0u));
  gguf.u32(prefix + "embedding_length", hidden);
  gguf.u32(prefix + "block_count", layers);
  gguf.u32(prefix + "feed_forward_length", isGpt2 ? 4 * hidden : get("intermediate_size", 0u));
  gguf.u32(prefix + "attention.head_count", heads);
  gguf.u32(prefix + "attention.head_count_kv", kvHeads);
  gguf.f32(prefix +
               (isLayerNorm ? "attention.layer_norm_epsilon" : "attention.layer_norm_rms_epsilon"),
           epsilon);
  if (config.contains("head_dim")) {
    gguf.u32(prefix + "attention.key_length", dim);
    gguf.u32(prefix + "attention.value_length", dim);
  }
  if (isNeoX || type == "stablelm")
    gguf.boolean(prefix + "use_parallel_residual", get("use_parallel_residual", false));
  if (get("sliding_window", 0u))
    gguf.u32(prefix + "attention.sliding_window", get("sliding_window", 0u));
  if (type == "gemma2") {
    gguf.f32(prefix + "attn_logit_softcapping", get("attn_logit_softcapping", 0.0f));
    gguf.f32(prefix + "final_logit_softcapping", get("final_logit_softcapping", 0.0f));
  }
  if (type == "granite") {
    gguf.f32(prefix + "embedding_scale", get("embedding_multiplier", 1.0f));
    gguf.f32(prefix + "residual_scale", get("residual_multiplier", 1.0f));
    gguf.f32(prefix + "attention.scale", get("attention_multiplier", 1.0f));
    gguf.f32(prefix + "logit_scale", get("logits_scaling", 1.0f));
  }
  std::vector<std::pair<std::string, std::vector<float>>> factors;
  if (config.contains("rope_parameters")) {
    nlohmann::json rope = config["rope_parameters"];
    // What a file of Gemma 3 does not say of its local layers is the same for all models.
    if (rope.contains("full_attention"))
      rope = nlohmann::json(rope["full_attention"]);
    float part = rope.value("partial_rotary_factor", 1.0f);
    gguf.u32(prefix + "rope.dimension_count", static_cast<uint32_t>(dim * part));
    gguf.f32(prefix + "rope.freq_base", rope["rope_theta"].get<float>());
    std::string scaling = rope["rope_type"];
    if (scaling == "linear" || scaling == "yarn") {
      gguf.string(prefix + "rope.scaling.type", scaling);
      gguf.f32(prefix + "rope.scaling.factor", rope["factor"].get<float>());
    }
    if (rope.contains("original_max_position_embeddings"))
      gguf.u32(prefix + "rope.scaling.original_context_length",
               rope["original_max_position_embeddings"].get<uint32_t>());
    if (scaling == "yarn") {
      gguf.f32(prefix + "rope.scaling.yarn_beta_fast", rope["beta_fast"].get<float>());
      gguf.f32(prefix + "rope.scaling.yarn_beta_slow", rope["beta_slow"].get<float>());
    }
    if (scaling == "longrope") {
      double original = rope["original_max_position_embeddings"].get<double>(),
             longer = get("max_position_embeddings", 0.0) / original;
      gguf.f32(prefix + "rope.scaling.attn_factor",
               static_cast<float>(std::sqrt(1 + std::log(longer) / std::log(original))));
      factors = {{"rope_factors_short", rope["short_factor"]},
                 {"rope_factors_long", rope["long_factor"]}};
    }
    if (scaling == "llama3") {
      // As convert_hf_to_gguf.py works them out.
      std::vector<float> list;
      double factor = rope["factor"], low = rope["low_freq_factor"],
             high = rope["high_freq_factor"], original = rope["original_max_position_embeddings"];
      for (uint32_t i = 0; i < dim; i += 2) {
        double wavelength =
            2 * M_PI * std::pow(rope["rope_theta"].get<double>(), static_cast<double>(i) / dim);
        double smooth = (original / wavelength - low) / (high - low);
        list.push_back(static_cast<float>(wavelength < original / high ? 1
                                          : wavelength > original / low
                                              ? factor
                                              : 1 / ((1 - smooth) / factor + smooth)));
      }
      factors = {{"rope_freqs", list}};
    }
  }

  bool hasPostNorms = arch == "gemma2" || arch == "gemma3" || type == "olmo2";
  const std::vector<std::pair<std::string, std::string>> names = {
      {"transformer.h.", "blk."},
      {"transformer.", ""},
      {"wte", "token_embd"},
      {"wpe", "position_embd"},
      {"ln_f", "output_norm"},
      {"ln_1", "attn_norm"},
      {"ln_2", "ffn_norm"},
      {"attn.c_attn", "attn_qkv"},
      {"attn.c_proj", "attn_output"},
      {"mlp.c_fc", "ffn_up"},
      {"mlp.c_proj", "ffn_down"},
      {"gpt_neox.embed_in", "token_embd"},
      {"gpt_neox.final_layer_norm", "output_norm"},
      {"gpt_neox.layers.", "blk."},
      {"embed_out", "output"},
      {"attention.query_key_value", "attn_qkv"},
      {"attention.dense", "attn_output"},
      {"mlp.dense_h_to_4h", "ffn_up"},
      {"mlp.dense_4h_to_h", "ffn_down"},
      {"model.embed_tokens", "token_embd"},
      {"model.norm", "output_norm"},
      {"lm_head", "output"},
      {"model.layers.", "blk."},
      {"input_layernorm", "attn_norm"},
      {"pre_feedforward_layernorm", "ffn_norm"},
      {"post_feedforward_layernorm", "post_ffw_norm"},
      {"post_attention_layernorm", hasPostNorms ? "post_attention_norm" : "ffn_norm"},
      {"self_attn.qkv_proj", "attn_qkv"},
      {"self_attn.q_proj", "attn_q"},
      {"self_attn.k_proj", "attn_k"},
      {"self_attn.v_proj", "attn_v"},
      {"self_attn.o_proj", "attn_output"},
      {"self_attn.q_norm", "attn_q_norm"},
      {"self_attn.k_norm", "attn_k_norm"},
      {"mlp.gate_up_proj", "ffn_up"},
      {"mlp.gate_proj", "ffn_gate"},
      {"mlp.up_proj", "ffn_up"},
      {"mlp.down_proj", "ffn_down"}};
  bool isPermuted = type == "llama" || type == "granite" || type == "smollm3";
  for (auto [original, tensor] : readFamilyTensors(name)) {
    std::string key = original;
    for (const auto &[from, to] : names)
      if (size_t at = key.find(from); at != std::string::npos)
        key.replace(at, from.size(), to);
    bool isMatrix = tensor.shape.size() == 2, isQ = key.find("attn_q.") != std::string::npos,
         isK = key.find("attn_k.") != std::string::npos;
    if (isGpt2 && isMatrix && key.starts_with("blk."))
      tensor.transpose();
    if (isNeoX && key.find("attn_qkv") != std::string::npos)
      tensor.permute([&](int64_t row) {
        int64_t which = row / (heads * dim), head = row / dim % heads;
        return (head * 3 + which) * dim + row % dim;
      });
    if (isPermuted && (isQ || isK))
      tensor.permute([&](int64_t row) {
        int64_t inHead = row % dim;
        return row - inHead + inHead / 2 + inHead % 2 * (dim / 2);
      });
    if (isGemma && !isMatrix)
      for (float &value : tensor.values)
        value += 1;
    Bytes bytes;
    for (float value : tensor.values)
      if (isMatrix)
        bytes.put(formats::floatToF16(value));
      else
        bytes.put(value);
    gguf.tensors.push_back({key, std::vector<uint64_t>(tensor.shape.rbegin(), tensor.shape.rend()),
                            isMatrix ? 1u : 0u, bytes.data, std::nullopt});
  }
  for (const auto &[key, list] : factors) {
    Bytes bytes;
    for (float value : list)
      bytes.put(value);
    gguf.tensors.push_back({key + ".weight", {list.size()}, 0, bytes.data, std::nullopt});
  }
  return folder.write("model.gguf", gguf.build());
}

/// The model's folder, or its GGUF file in `folder`.
inline std::string familySource(const std::string &name, bool gguf, const Folder &folder) {
  return gguf ? writeFamilyGGUF(name, folder) : familyFolder(name);
}

} // namespace sluice::test

#endif // SLUICE_TEST_UNIT_COMPILED_FAMILYMODELS_H
