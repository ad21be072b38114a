// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Model files made by the tests: byte builders, small synthetic models, and a folder that goes
// away.

#ifndef SLUICE_TEST_UNIT_IMPORT_TESTFILES_H
#define SLUICE_TEST_UNIT_IMPORT_TESTFILES_H

#include "llvm/ADT/SmallString.h"
#include "llvm/Support/Error.h"
#include "llvm/Support/FileSystem.h"
#include "llvm/Support/Path.h"
#include "llvm/Support/raw_ostream.h"

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include <cstring>
#include <string>
#include <utility>
#include <vector>

namespace sluice::test {

inline std::string dataFile(llvm::StringRef name) {
  return std::string(SLUICE_TEST_DATA) + "/" + name.str();
}

/// A fresh folder, removed with what is in it.
class Folder {
public:
  Folder() { EXPECT_FALSE(llvm::sys::fs::createUniqueDirectory("sluice-import", path)); }
  Folder(const Folder &) = delete;
  ~Folder() { llvm::sys::fs::remove_directories(path); }

  std::string str() const { return path.str().str(); }
  std::string operator/(llvm::StringRef name) const { return str() + "/" + name.str(); }

  /// Returns the full path.
  std::string write(llvm::StringRef name, llvm::StringRef bytes) const {
    std::string full = *this / name;
    std::error_code ec;
    llvm::raw_fd_ostream os(full, ec);
    EXPECT_FALSE(ec) << ec.message();
    os << bytes;
    return full;
  }

private:
  llvm::SmallString<128> path;
};

/// The message of a failure, or "success".
template <typename T> std::string message(llvm::Expected<T> result) {
  return result ? "success" : llvm::toString(result.takeError());
}
inline std::string message(llvm::Error error) {
  return error ? llvm::toString(std::move(error)) : "success";
}

/// The value, or a failed test and an exception-free abort of it.
#define SLUICE_UNWRAP(name, expression)                                                            \
  auto name##OrError = (expression);                                                               \
  ASSERT_TRUE(static_cast<bool>(name##OrError)) << llvm::toString(name##OrError.takeError());      \
  auto &name = *name##OrError

/// Bytes put together by hand.
struct Bytes {
  std::string data;
  template <typename T> Bytes &put(T value) {
    char raw[sizeof(T)];
    std::memcpy(raw, &value, sizeof(T));
    data.append(raw, sizeof(T));
    return *this;
  }
  Bytes &string(llvm::StringRef text) {
    put<uint64_t>(text.size());
    data += text;
    return *this;
  }
};

/// Writes GGUF as the format's description says, right or wrong as the test wants it.
class GGUFBuilder {
public:
  uint32_t version = 3;
  uint64_t alignment = 32;
  /// Instead of the true counts.
  std::optional<uint64_t> claimedValues, claimedTensors;

  struct Tensor {
    std::string name;
    std::vector<uint64_t> dims; // innermost first
    uint32_t type;
    std::string bytes;
    std::optional<uint64_t> offset; // instead of the next free one
  };
  std::vector<Tensor> tensors;

  template <typename T> void value(llvm::StringRef key, uint32_t type, T number) {
    values.push_back({key.str(), Bytes().put(type).put(number).data});
  }
  void u32(llvm::StringRef key, uint32_t number) { value<uint32_t>(key, 4, number); }
  void f32(llvm::StringRef key, float number) { value<float>(key, 6, number); }
  void boolean(llvm::StringRef key, uint8_t flag) { value<uint8_t>(key, 7, flag); }
  void string(llvm::StringRef key, llvm::StringRef text) {
    values.push_back({key.str(), Bytes().put<uint32_t>(8).string(text).data});
  }
  void strings(llvm::StringRef key, const std::vector<std::string> &list) {
    Bytes bytes;
    bytes.put<uint32_t>(9).put<uint32_t>(8).put<uint64_t>(list.size());
    for (const std::string &text : list)
      bytes.string(text);
    values.push_back({key.str(), bytes.data});
  }
  template <typename T> void array(llvm::StringRef key, uint32_t type, const std::vector<T> &list) {
    Bytes bytes;
    bytes.put<uint32_t>(9).put(type).template put<uint64_t>(list.size());
    for (T number : list)
      bytes.put(number);
    values.push_back({key.str(), bytes.data});
  }
  /// Type number and value as they are.
  void raw(llvm::StringRef key, std::string bytes) { values.push_back({key.str(), bytes}); }
  void erase(llvm::StringRef key) {
    llvm::erase_if(values, [&](const auto &entry) { return entry.first == key; });
  }

  Tensor *find(llvm::StringRef name) {
    for (Tensor &tensor : tensors)
      if (tensor.name == name)
        return &tensor;
    return nullptr;
  }
  void f32Tensor(llvm::StringRef name, std::vector<uint64_t> dims, float fill = 0.5f) {
    uint64_t count = 1;
    for (uint64_t dim : dims)
      count *= dim;
    Bytes bytes;
    for (uint64_t i = 0; i < count; ++i)
      bytes.put(fill);
    tensors.push_back({name.str(), std::move(dims), 0, bytes.data, std::nullopt});
  }

  std::string build() const {
    Bytes out;
    out.data = "GGUF";
    out.put(version)
        .put<uint64_t>(claimedTensors.value_or(tensors.size()))
        .put<uint64_t>(claimedValues.value_or(values.size()));
    for (const auto &[key, bytes] : values)
      out.string(key).data += bytes;
    uint64_t offset = 0;
    std::string payload;
    for (const Tensor &tensor : tensors) {
      out.string(tensor.name).put<uint32_t>(tensor.dims.size());
      for (uint64_t dim : tensor.dims)
        out.put(dim);
      payload.resize((payload.size() + alignment - 1) / alignment * alignment, '\0');
      offset = payload.size();
      payload += tensor.bytes;
      out.put(tensor.type).put(tensor.offset.value_or(offset));
    }
    out.data.resize((out.data.size() + alignment - 1) / alignment * alignment, '\0');
    return out.data + payload;
  }

private:
  std::vector<std::pair<std::string, std::string>> values;
};

/// A Llama GGUF of 1 layer, 64 wide, 2 heads of 32, 1 KV head, MLP 96, 16 tokens, in float32.
inline GGUFBuilder smallLlamaGGUF(llvm::StringRef arch = "llama") {
  GGUFBuilder gguf;
  std::string prefix = arch.str() + ".";
  gguf.string("general.architecture", arch);
  gguf.string("general.name", "small");
  gguf.u32(prefix + "context_length", 128);
  gguf.u32(prefix + "embedding_length", 64);
  gguf.u32(prefix + "block_count", 1);
  gguf.u32(prefix + "feed_forward_length", 96);
  gguf.u32(prefix + "attention.head_count", 2);
  gguf.u32(prefix + "attention.head_count_kv", 1);
  gguf.f32(prefix + "attention.layer_norm_rms_epsilon", 1e-5f);
  gguf.f32(prefix + "rope.freq_base", 500000.0f);
  std::vector<std::string> tokens;
  for (int i = 0; i < 16; ++i)
    tokens.push_back("t" + std::to_string(i));
  gguf.string("tokenizer.ggml.model", "llama");
  gguf.strings("tokenizer.ggml.tokens", tokens);
  gguf.array<float>("tokenizer.ggml.scores", 6, std::vector<float>(16, -1.0f));
  gguf.array<int32_t>("tokenizer.ggml.token_type", 5, std::vector<int32_t>(16, 1));
  gguf.u32("tokenizer.ggml.bos_token_id", 1);
  gguf.u32("tokenizer.ggml.eos_token_id", 2);
  gguf.boolean("tokenizer.ggml.add_bos_token", 1);
  gguf.f32Tensor("token_embd.weight", {64, 16});
  gguf.f32Tensor("blk.0.attn_norm.weight", {64});
  gguf.f32Tensor("blk.0.attn_q.weight", {64, 64});
  gguf.f32Tensor("blk.0.attn_k.weight", {64, 32});
  gguf.f32Tensor("blk.0.attn_v.weight", {64, 32});
  gguf.f32Tensor("blk.0.attn_output.weight", {64, 64});
  gguf.f32Tensor("blk.0.ffn_norm.weight", {64});
  gguf.f32Tensor("blk.0.ffn_gate.weight", {64, 96});
  gguf.f32Tensor("blk.0.ffn_up.weight", {64, 96});
  gguf.f32Tensor("blk.0.ffn_down.weight", {96, 64});
  gguf.f32Tensor("output_norm.weight", {64});
  gguf.f32Tensor("output.weight", {64, 16});
  return gguf;
}

/// A safetensors file of zeros; `header` can be edited before build().
class SafetensorsBuilder {
public:
  nlohmann::ordered_json header = nlohmann::ordered_json::object();
  uint64_t dataBytes = 0;

  SafetensorsBuilder &add(const std::string &name, const std::vector<int64_t> &shape,
                          const std::string &dtype = "F16", uint64_t elementBytes = 2) {
    uint64_t bytes = elementBytes;
    for (int64_t dim : shape)
      bytes *= static_cast<uint64_t>(dim);
    header[name] = {
        {"dtype", dtype}, {"shape", shape}, {"data_offsets", {dataBytes, dataBytes + bytes}}};
    dataBytes += bytes;
    return *this;
  }
  std::string build() const { return build(header.dump()); }
  std::string build(const std::string &text) const {
    return Bytes().put<uint64_t>(text.size()).data + text + std::string(dataBytes, '\0');
  }
};

/// The hyper-parameters of smallLlamaGGUF() as a config.json.
inline nlohmann::json smallConfig(const std::string &family = "llama") {
  return {{"architectures",
           {family == "llama"     ? "LlamaForCausalLM"
            : family == "mistral" ? "MistralForCausalLM"
            : family == "qwen2"   ? "Qwen2ForCausalLM"
                                  : "Qwen3ForCausalLM"}},
          {"model_type", family},
          {"hidden_act", "silu"},
          {"vocab_size", 16},
          {"hidden_size", 64},
          {"intermediate_size", 96},
          {"num_hidden_layers", 1},
          {"num_attention_heads", 2},
          {"num_key_value_heads", 1},
          {"max_position_embeddings", 128},
          {"rms_norm_eps", 1e-5},
          {"rope_theta", 500000.0},
          {"bos_token_id", 1},
          {"eos_token_id", 2},
          {"tie_word_embeddings", false}};
}

/// Name and shape of each tensor that smallConfig() needs, biases and norms of heads aside.
inline std::vector<std::pair<std::string, std::vector<int64_t>>> smallTensors() {
  std::string layer = "model.layers.0.";
  return {{"model.embed_tokens.weight", {16, 64}},
          {layer + "input_layernorm.weight", {64}},
          {layer + "self_attn.q_proj.weight", {64, 64}},
          {layer + "self_attn.k_proj.weight", {32, 64}},
          {layer + "self_attn.v_proj.weight", {32, 64}},
          {layer + "self_attn.o_proj.weight", {64, 64}},
          {layer + "post_attention_layernorm.weight", {64}},
          {layer + "mlp.gate_proj.weight", {96, 64}},
          {layer + "mlp.up_proj.weight", {96, 64}},
          {layer + "mlp.down_proj.weight", {64, 96}},
          {"model.norm.weight", {64}},
          {"lm_head.weight", {16, 64}}};
}

inline SafetensorsBuilder smallSafetensors() {
  SafetensorsBuilder builder;
  for (const auto &[name, shape] : smallTensors())
    builder.add(name, shape);
  return builder;
}

} // namespace sluice::test

#endif // SLUICE_TEST_UNIT_IMPORT_TESTFILES_H
