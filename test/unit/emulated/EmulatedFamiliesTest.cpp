// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// A small model of each family, compiled for a GPU and run by the emulator, against the logits that
// Hugging Face transformers computed for it in float32.

#include "../compiled/Compiled.h"
#include "../compiled/FamilyModels.h"
#include "sluice-runtime/Session.h"
#include "sluice/Emulator/Emulator.h"

#include <gtest/gtest.h>
#include <random>

using namespace sluice;
using namespace sluice::test;

namespace {
struct Case {
  FamilyModel model;
  bool gguf;
  const char *weights;
  /// Of the logits, relative, L2.
  double tolerance;
  const char *keyCache = "", *valueCache = "";
};

/// Files of both kinds give the same module but for the places of weights, so each kind runs with
/// another format.
std::vector<Case> cases() {
  std::vector<Case> list;
  for (const FamilyModel &model : familyModels()) {
    list.push_back({model, false, "f16", 1e-3});
    if (model.gguf)
      list.push_back({model, true, "int8-g32", 2e-2});
    // Keys that a kernel of rows turned, and scores that are capped.
    if (llvm::is_contained({"olmo2", "gemma2"}, llvm::StringRef(model.name)))
      list.push_back({model, false, "f16", 1e-2, "int8-rot", "int8"});
  }
  return list;
}

class EmulatedFamilies : public testing::TestWithParam<Case> {
protected:
  static void SetUpTestSuite() { emulator::registerEmulatorDevice(); }
};
} // namespace

TEST_P(EmulatedFamilies, LogitsAreThoseOfTransformers) {
  const Case &given = GetParam();
  FamilyGolden golden(given.model.name);
  Folder folder;
  Compiled compiled;
  compiled.compile(familySource(given.model.name, given.gguf, folder), given.weights, 64, "h200",
                   given.keyCache, given.valueCache);
  if (HasFatalFailure())
    return;
  runtime::Session session(runtime::Artifact::open(compiled.artifact()), {"emulator", {}});
  double worst = 0;
  // Past the windows of those that have one; more would take the emulator long.
  constexpr size_t steps = 12;
  for (auto [position, id] : llvm::enumerate(llvm::ArrayRef(golden.ids).take_front(steps))) {
    std::span<const float> logits = session.decode(id);
    if (auto found = golden.logits.find(position); found != golden.logits.end())
      worst = worse(worst, relativeError({logits.data(), logits.size()}, found->second));
  }
  RecordProperty("logits", std::to_string(worst));
  EXPECT_LE(worst, given.tolerance);
  EXPECT_GT(worst, 0);
}

INSTANTIATE_TEST_SUITE_P(All, EmulatedFamilies, testing::ValuesIn(cases()), [](const auto &info) {
  std::string name = std::string(info.param.model.name) + (info.param.gguf ? "_GGUF" : "") +
                     (*info.param.keyCache ? "_int8_caches" : "");
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
});

/// An OLMo 2 of one layer with random weights, `hidden` wide, with heads of 128.
static void writeOlmo2(int64_t hidden, const Folder &folder) {
  constexpr int64_t inner = 64, vocab = 64;
  folder.write("config.json", nlohmann::json{{"model_type", "olmo2"},
                                             {"architectures", {"Olmo2ForCausalLM"}},
                                             {"vocab_size", vocab},
                                             {"hidden_size", hidden},
                                             {"intermediate_size", inner},
                                             {"num_hidden_layers", 1},
                                             {"num_attention_heads", hidden / 128},
                                             {"max_position_embeddings", 64}}
                                  .dump());
  std::mt19937 engine(5);
  nlohmann::json header;
  Bytes data;
  auto add = [&](const std::string &name, std::vector<int64_t> shape) {
    bool isGain = shape.size() == 1;
    float deviation = isGain ? 0.2f : 1 / std::sqrt(static_cast<float>(shape.back()));
    std::normal_distribution<float> normal(isGain ? 1.0f : 0.0f, deviation);
    size_t begin = data.data.size();
    for (int64_t i = 0, count = isGain ? shape[0] : shape[0] * shape[1]; i < count; ++i)
      data.put(formats::floatToF16(normal(engine)));
    header[name + ".weight"] = {
        {"dtype", "F16"}, {"shape", shape}, {"data_offsets", {begin, data.data.size()}}};
  };
  const std::string layer = "model.layers.0.";
  add("model.embed_tokens", {vocab, hidden});
  for (const char *name : {"q_proj", "k_proj", "v_proj", "o_proj"})
    add(layer + "self_attn." + name, {hidden, hidden});
  for (const char *name : {"self_attn.q_norm", "self_attn.k_norm", "post_attention_layernorm",
                           "post_feedforward_layernorm"})
    add(layer + name, {hidden});
  add(layer + "mlp.gate_proj", {inner, hidden});
  add(layer + "mlp.up_proj", {inner, hidden});
  add(layer + "mlp.down_proj", {hidden, inner});
  add("model.norm", {hidden});
  add("lm_head", {vocab, hidden});
  std::string text = header.dump();
  folder.write("model.safetensors", Bytes().put<uint64_t>(text.size()).data + text + data.data);
}

// Rows that are more than a thread of a block has one element of, and no multiple of the threads.
TEST(EmulatedRows, MayBeWide) {
  emulator::registerEmulatorDevice();
  Folder folder;
  writeOlmo2(640, folder);
  Compiled forHost, forGpu;
  forHost.compile(folder.str(), "f16", 64, "host");
  forGpu.compile(folder.str(), "f16", 64, "h200");
  if (HasFatalFailure())
    return;
  runtime::Session host(runtime::Artifact::open(forHost.artifact())),
      emulated(runtime::Artifact::open(forGpu.artifact()), {"emulator", {}});
  double worst = 0;
  for (int32_t id : {3, 60, 7}) {
    std::span<const float> found = emulated.decode(id), expected = host.decode(id);
    worst = worse(worst,
                  relativeError({found.data(), found.size()}, {expected.data(), expected.size()}));
  }
  RecordProperty("logits", std::to_string(worst));
  EXPECT_LE(worst, 7e-4);
  EXPECT_GT(worst, 0);
}
