// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sluice/Import/ModelFiles.h"

#include "TestFiles.h"

#include "sluice/Formats/RopeTable.h"
#include "sluice/Import/TensorReader.h"

#include <cmath>

using namespace sluice;
using namespace sluice::test;
using nlohmann::json;

static const std::string sample = std::string(SLUICE_MODELS) + "/llama-4m";

/// Calls `visit` with every weight of a model.
template <typename Visit> static void forEachWeight(const Weights &weights, Visit visit) {
  visit(weights.tokenEmbedding);
  for (const LayerWeights &layer : weights.layers) {
    for (const Weight *weight : {&layer.attnNorm, &layer.q, &layer.k, &layer.v, &layer.o,
                                 &layer.mlpNorm, &layer.gate, &layer.up, &layer.down})
      visit(*weight);
    for (const std::optional<Weight> *weight :
         {&layer.qBias, &layer.kBias, &layer.vBias, &layer.oBias, &layer.qNorm, &layer.kNorm,
          &layer.gateBias, &layer.upBias, &layer.downBias})
      if (*weight)
        visit(**weight);
  }
  visit(weights.outputNorm);
  if (weights.head)
    visit(*weights.head);
}

TEST(OpenModel, ShardedSample) {
  SLUICE_UNWRAP(model, openModel(sample));
  EXPECT_EQ(model.format, ModelFiles::Format::HuggingFace);
  EXPECT_EQ(model.root, sample);
  EXPECT_EQ(model.config.name, "llama-4m");
  ASSERT_TRUE(model.weightsPresent);
  EXPECT_EQ(model.weights.layers.size(), 4u);
  EXPECT_TRUE(model.weights.head);
  EXPECT_EQ(model.weights.tokenEmbedding.tensor.file, "model-00001-of-00002.safetensors");
  EXPECT_EQ(model.weights.head->tensor.file, "model-00002-of-00002.safetensors");
  EXPECT_EQ(model.tokenizer.sentencePieceModel, sample + "/tokenizer.model");
  EXPECT_TRUE(model.tokenizer.huggingFaceJson.empty());
  EXPECT_TRUE(model.warnings.empty());
  uint64_t bytes = 0;
  forEachWeight(model.weights, [&](const Weight &weight) {
    bytes += weight.tensor.bytes;
    EXPECT_FALSE(weight.ropeInterleaved);
    EXPECT_EQ(message(TensorReader::open(weight.tensor, *model.files)), "success");
  });
  EXPECT_EQ(bytes, 8393216u); // the index's total_size
}

TEST(OpenModel, GGUFHasTheSameWeights) {
  SLUICE_UNWRAP(hf, openModel(sample));
  SLUICE_UNWRAP(gguf, openModel(dataFile("llama-4m.Q8_0.gguf")));
  EXPECT_EQ(gguf.format, ModelFiles::Format::GGUF);
  EXPECT_TRUE(gguf.warnings.empty());
  ASSERT_EQ(gguf.weights.layers.size(), hf.weights.layers.size());

  // Q8_0 is off by half a step (1/254 of a block's largest magnitude) and by the rounding of the
  // scale to f16 (2^-11 of the value); the rows are permuted where said.
  std::vector<std::pair<Weight, Weight>> pairs;
  forEachWeight(hf.weights, [&](const Weight &weight) { pairs.push_back({weight, {}}); });
  size_t next = 0;
  forEachWeight(gguf.weights, [&](const Weight &weight) { pairs[next++].second = weight; });
  ASSERT_EQ(next, pairs.size());
  int64_t headDim = hf.config.headDim;
  int interleaved = 0;
  for (const auto &[a, b] : pairs) {
    SLUICE_UNWRAP(ra, TensorReader::open(a.tensor, *hf.files));
    SLUICE_UNWRAP(rb, TensorReader::open(b.tensor, *gguf.files));
    ASSERT_EQ(a.tensor.shape, b.tensor.shape) << b.tensor.name;
    std::vector<float> rowA(ra.columns()), rowB(rb.columns());
    interleaved += b.ropeInterleaved;
    for (int64_t row = 0; row < ra.rows(); ++row) {
      int64_t stored = row;
      if (b.ropeInterleaved) {
        int64_t head = row / headDim, i = row % headDim, half = headDim / 2;
        stored = head * headDim + (i < half ? 2 * i : 2 * (i - half) + 1);
      }
      ra.readRow(row, rowA);
      rb.readRow(stored, rowB);
      float largest = 0, difference = 0;
      for (size_t i = 0; i < rowA.size(); ++i) {
        largest = std::max(largest, std::abs(rowA[i]));
        difference = std::max(difference, std::abs(rowA[i] - rowB[i]));
      }
      ASSERT_LE(difference, largest * (1.0f / 254 + 1.0f / 2048))
          << b.tensor.name << " row " << row;
    }
  }
  EXPECT_EQ(interleaved, 8); // q and k of four layers

  ASSERT_TRUE(gguf.tokenizer.gguf);
  const GgufTokenizer &tokenizer = *gguf.tokenizer.gguf;
  EXPECT_EQ(tokenizer.model, "llama");
  EXPECT_EQ(tokenizer.tokens.size(), 2048u);
  EXPECT_EQ(tokenizer.scores.size(), 2048u);
  EXPECT_EQ(tokenizer.types.size(), 2048u);
  EXPECT_EQ(tokenizer.tokens[1], "<s>");
  EXPECT_EQ(tokenizer.types[3], 6);
  EXPECT_EQ(tokenizer.bosId, 1);
  EXPECT_EQ(tokenizer.eosIds, std::vector<int64_t>{2});
  EXPECT_EQ(tokenizer.unknownId, 0);
  EXPECT_EQ(tokenizer.addBos, true);
  EXPECT_EQ(tokenizer.addEos, false);
  EXPECT_EQ(tokenizer.addSpacePrefix, std::nullopt);
  EXPECT_EQ(tokenizer.chatTemplate, "");
}

TEST(OpenModel, GGUFCharacterMapIsBytesOfEitherSign) {
  Folder folder;
  GGUFBuilder gguf = smallLlamaGGUF();
  gguf.erase("general.name");
  gguf.string("general.name", "Phi-3 mini");
  gguf.array<uint8_t>("tokenizer.ggml.precompiled_charsmap", 0, {4, 0, 200, 255});
  SLUICE_UNWRAP(model, openModel(folder.write("u.gguf", gguf.build())));
  EXPECT_EQ(model.tokenizer.gguf->charsmap, std::string("\x04\x00\xC8\xFF", 4));
  EXPECT_EQ(model.tokenizer.gguf->name, "Phi-3 mini");
  gguf.erase("tokenizer.ggml.precompiled_charsmap");
  gguf.array<int8_t>("tokenizer.ggml.precompiled_charsmap", 1, {4, 0, -56, -1});
  SLUICE_UNWRAP(other, openModel(folder.write("i.gguf", gguf.build())));
  EXPECT_EQ(other.tokenizer.gguf->charsmap, model.tokenizer.gguf->charsmap);
}

TEST(OpenModel, Qwen2GGUFIsNotPermuted) {
  Folder folder;
  GGUFBuilder gguf = smallLlamaGGUF("qwen2");
  gguf.f32Tensor("blk.0.attn_q.bias", {64});
  gguf.f32Tensor("blk.0.attn_k.bias", {32});
  gguf.f32Tensor("blk.0.attn_v.bias", {32});
  SLUICE_UNWRAP(model, openModel(folder.write("q.gguf", gguf.build())));
  EXPECT_TRUE(model.weights.layers[0].qBias);
  forEachWeight(model.weights, [](const Weight &w) { EXPECT_FALSE(w.ropeInterleaved); });

  GGUFBuilder llama = smallLlamaGGUF("llama");
  llama.f32Tensor("blk.0.attn_q.bias", {64});
  SLUICE_UNWRAP(biased, openModel(folder.write("l.gguf", llama.build())));
  EXPECT_TRUE(biased.weights.layers[0].qBias->ropeInterleaved);
  EXPECT_FALSE(biased.weights.layers[0].kBias);
}

TEST(OpenModel, Qwen3FromBothFormats) {
  SLUICE_UNWRAP(hf, openModel(SLUICE_MODELS "/qwen3-4m"));
  EXPECT_TRUE(hf.warnings.empty());
  EXPECT_EQ(hf.config.headDim, 128);
  EXPECT_EQ(hf.config.hiddenSize, 256);
  EXPECT_TRUE(hf.config.tiedEmbeddings && !hf.weights.head);
  ASSERT_EQ(hf.weights.layers.size(), 4u);
  for (const LayerWeights &layer : hf.weights.layers) {
    ASSERT_TRUE(layer.qNorm && layer.kNorm);
    EXPECT_EQ(llvm::ArrayRef(layer.qNorm->tensor.shape), llvm::ArrayRef<int64_t>(128));
    EXPECT_EQ(llvm::ArrayRef(layer.q.tensor.shape), llvm::ArrayRef<int64_t>({512, 256}));
  }
  EXPECT_EQ(hf.weights.layers[2].kNorm->tensor.name, "model.layers.2.self_attn.k_norm.weight");

  Folder folder;
  GGUFBuilder gguf = smallLlamaGGUF("qwen3");
  gguf.f32Tensor("blk.0.attn_q_norm.weight", {32});
  gguf.f32Tensor("blk.0.attn_k_norm.weight", {32});
  SLUICE_UNWRAP(model, openModel(folder.write("q.gguf", gguf.build())));
  ASSERT_TRUE(model.weights.layers[0].qNorm && model.weights.layers[0].kNorm);
  EXPECT_EQ(model.weights.layers[0].kNorm->tensor.name, "blk.0.attn_k_norm.weight");
  forEachWeight(model.weights, [](const Weight &w) { EXPECT_FALSE(w.ropeInterleaved); });
}

TEST(OpenModel, SingleFileWithExtras) {
  Folder folder;
  folder.write("config.json", smallConfig().dump());
  folder.write("tokenizer.json", "{}");
  SafetensorsBuilder tensors = smallSafetensors();
  tensors.add("model.layers.0.self_attn.rotary_emb.inv_freq", {16}, "F32", 4);
  tensors.add("some.extra", {3});
  folder.write("model.safetensors", tensors.build());
  SLUICE_UNWRAP(model, openModel(folder.str()));
  EXPECT_TRUE(model.weightsPresent);
  EXPECT_EQ(model.tokenizer.huggingFaceJson, folder / "tokenizer.json");
  ASSERT_EQ(model.warnings.size(), 1u);
  EXPECT_EQ(model.warnings[0], (folder / "model.safetensors") +
                                   ": tensor 'some.extra' is not part of the model and ignored");
}

TEST(OpenModel, ShardedWithBiasesAndTiedHead) {
  Folder folder;
  json config = smallConfig("qwen2");
  config["tie_word_embeddings"] = true;
  folder.write("config.json", config.dump());
  folder.write("generation_config.json", R"({"eos_token_id": [2, 7]})");
  SafetensorsBuilder shards[2];
  json map = json::object();
  int next = 0;
  auto add = [&](const std::string &name, const std::vector<int64_t> &shape) {
    shards[next % 2].add(name, shape, "BF16");
    map[name] = next % 2 ? "b.safetensors" : "a.safetensors";
    ++next;
  };
  for (const auto &[name, shape] : smallTensors())
    if (name != "lm_head.weight")
      add(name, shape);
  for (const char *part : {"q", "k", "v"})
    add("model.layers.0.self_attn." + std::string(part) + "_proj.bias", {*part == 'q' ? 64 : 32});
  folder.write("a.safetensors", shards[0].build());
  folder.write("b.safetensors", shards[1].build());
  folder.write("model.safetensors.index.json", json{{"weight_map", map}}.dump());

  SLUICE_UNWRAP(model, openModel(folder.str()));
  EXPECT_FALSE(model.weights.head);
  EXPECT_TRUE(model.config.tiedEmbeddings);
  EXPECT_EQ(model.config.eosIds, (llvm::SmallVector<int64_t, 4>{2, 7}));
  ASSERT_TRUE(model.weights.layers[0].vBias);
  EXPECT_EQ(model.weights.layers[0].vBias->tensor.type, StorageType::BF16);
  EXPECT_EQ(model.weights.layers[0].vBias->tensor.shape[0], 32);
  EXPECT_FALSE(model.weights.layers[0].oBias);
  EXPECT_TRUE(model.warnings.empty());
}

TEST(OpenModel, Llama3ScalingFromBothFormats) {
  Folder folder;
  json config = smallConfig();
  config["rope_scaling"] = {{"rope_type", "llama3"},
                            {"factor", 8.0},
                            {"low_freq_factor", 1.0},
                            {"high_freq_factor", 4.0},
                            {"original_max_position_embeddings", 64}};
  folder.write("config.json", config.dump());
  folder.write("model.safetensors", smallSafetensors().build());
  SLUICE_UNWRAP(hf, openModel(folder.str()));

  // What convert_hf_to_gguf.py stores: plain frequency over scaled frequency.
  auto frequencies = [](const ModelConfig &config, const RopeScaling &scaling) {
    return llvm::cantFail(formats::ropeFrequencies(config.ropeTheta, config.headDim, scaling.name(),
                                                   scaling.values(/*context=*/64)));
  };
  auto scaled = frequencies(hf.config, hf.config.ropeScaling),
       unscaled = frequencies(hf.config, {});
  GGUFBuilder gguf = smallLlamaGGUF();
  Bytes factors;
  for (int i = 0; i < 16; ++i)
    factors.put(static_cast<float>(unscaled[i] / scaled[i]));
  gguf.tensors.push_back({"rope_freqs.weight", {16}, 0, factors.data, std::nullopt});
  SLUICE_UNWRAP(model, openModel(folder.write("m.gguf", gguf.build())));
  EXPECT_TRUE(model.warnings.empty());
  EXPECT_EQ(model.config.ropeScaling.kind, RopeScaling::Kind::Factors);
  auto fromFactors = frequencies(model.config, model.config.ropeScaling);
  EXPECT_NE(scaled, unscaled);
  for (int i = 0; i < 16; ++i)
    EXPECT_NEAR(fromFactors[i], scaled[i], 1e-7 * scaled[i]);
}

TEST(OpenModel, ConfigAloneHasNoWeights) {
  Folder folder;
  std::string path = folder.write("config.json", smallConfig().dump());
  SLUICE_UNWRAP(file, openModel(path));
  EXPECT_FALSE(file.weightsPresent);
  EXPECT_EQ(file.weightsAbsentReason, path + ": is a config alone, without weights");
  EXPECT_EQ(file.config.hiddenSize, 64);
  EXPECT_TRUE(file.tokenizer.empty());

  folder.write("pytorch_model.bin", "x");
  SLUICE_UNWRAP(directory, openModel(folder.str()));
  EXPECT_FALSE(directory.weightsPresent);
  EXPECT_EQ(directory.weightsAbsentReason,
            folder.str() + ": no model.safetensors or model.safetensors.index.json "
                           "(pytorch_model.bin is not read)");
}

/// A folder of the small model whose embedding and head are `embedding` and `head` all over.
static std::string withHead(const Folder &folder, bool tied, char embedding, char head) {
  json config = smallConfig();
  config["tie_word_embeddings"] = tied;
  folder.write("config.json", config.dump());
  SafetensorsBuilder tensors = smallSafetensors();
  std::string bytes = tensors.build();
  size_t data = bytes.size() - tensors.dataBytes;
  for (auto [name, fill] :
       {std::pair("model.embed_tokens.weight", embedding), std::pair("lm_head.weight", head)}) {
    auto offsets = tensors.header[name]["data_offsets"];
    for (uint64_t i = offsets[0]; i < offsets[1]; ++i)
      bytes[data + i] = fill;
  }
  folder.write("model.safetensors", bytes);
  return folder.str();
}

TEST(OpenModel, AHeadThatDiffersFromTheTiedEmbeddingIsUsed) {
  Folder folder;
  SLUICE_UNWRAP(model, openModel(withHead(folder, true, 1, 2)));
  ASSERT_TRUE(model.weights.head);
  EXPECT_EQ(model.weights.head->tensor.name, "lm_head.weight");
  EXPECT_FALSE(model.config.tiedEmbeddings);
  ASSERT_EQ(model.warnings.size(), 1u);
  EXPECT_EQ(model.warnings[0],
            (folder / "model.safetensors") +
                ": tensor 'lm_head.weight' differs from 'model.embed_tokens.weight' although "
                "tie_word_embeddings is true: it is used as the head");
}

TEST(OpenModel, ACopyOfTheTiedEmbeddingIsLeftOut) {
  Folder folder;
  SLUICE_UNWRAP(model, openModel(withHead(folder, true, 3, 3)));
  EXPECT_FALSE(model.weights.head);
  EXPECT_TRUE(model.config.tiedEmbeddings);
  EXPECT_TRUE(model.warnings.empty());
  SLUICE_UNWRAP(untied, openModel(withHead(folder, false, 3, 3)));
  EXPECT_TRUE(untied.weights.head);
  EXPECT_TRUE(untied.warnings.empty());
}

TEST(OpenModel, TrailingBytesAndUnneededUnknownTypesLoad) {
  Folder folder;
  folder.write("config.json", smallConfig().dump());
  SafetensorsBuilder tensors = smallSafetensors();
  tensors.add("packed.extra", {3}, "F4", 1);
  folder.write("model.safetensors", tensors.build() + std::string(100, 'x'));
  SLUICE_UNWRAP(hf, openModel(folder.str()));
  ASSERT_EQ(hf.warnings.size(), 2u);
  EXPECT_EQ(hf.warnings[0],
            (folder / "model.safetensors") + ": 100 bytes follow the last tensor and are ignored");
  EXPECT_NE(hf.warnings[1].find("'packed.extra' is not part of the model"), std::string::npos);

  GGUFBuilder gguf = smallLlamaGGUF();
  gguf.tensors.insert(gguf.tensors.begin() + 2,
                      {"packed.extra", {64, 2}, 200, std::string(96, 'x'), std::nullopt});
  std::string path = folder.write("m.gguf", gguf.build() + std::string(100, 'x'));
  SLUICE_UNWRAP(model, openModel(path));
  EXPECT_EQ(model.weights.layers[0].q.tensor.shape[0], 64);
  ASSERT_EQ(model.warnings.size(), 2u);
  EXPECT_NE(model.warnings[0].find("'packed.extra' is not part of the model"), std::string::npos);
  EXPECT_EQ(model.warnings[1], path + ": 100 bytes follow the last tensor and are ignored");
  // The last tensor of a file may be the unknown one.
  std::rotate(gguf.tensors.begin() + 2, gguf.tensors.begin() + 3, gguf.tensors.end());
  EXPECT_EQ(message(openModel(folder.write("last.gguf", gguf.build()))), "success");
}

TEST(OpenModel, TheIndexMayNameWhatNobodyNeeds) {
  Folder folder;
  folder.write("config.json", smallConfig().dump());
  folder.write("a.safetensors", smallSafetensors().build());
  json map = {{"ghost", "a.safetensors"}, {"spirit", "gone.safetensors"}};
  for (const auto &[name, shape] : smallTensors())
    map[name] = "a.safetensors";
  std::string index =
      folder.write("model.safetensors.index.json", json{{"weight_map", map}}.dump());
  SLUICE_UNWRAP(model, openModel(folder.str()));
  EXPECT_EQ(model.warnings,
            (std::vector<std::string>{
                index + ": names the shard 'gone.safetensors', which is missing and not needed",
                index + ": names 1 tensor that is in no shard and not needed, such as 'ghost'"}));
}

TEST(OpenModel, ACopyInAnotherShardIsIgnored) {
  Folder folder;
  folder.write("config.json", smallConfig().dump());
  folder.write("a.safetensors", smallSafetensors().build());
  SafetensorsBuilder other;
  other.add("lm_head.weight", {16, 64});
  std::string path = folder.write("b.safetensors", other.add("extra", {1}).build());
  json map = {{"extra", "b.safetensors"}};
  for (const auto &[name, shape] : smallTensors())
    map[name] = "a.safetensors";
  folder.write("model.safetensors.index.json", json{{"weight_map", map}}.dump());
  SLUICE_UNWRAP(model, openModel(folder.str()));
  EXPECT_EQ(model.weights.head->tensor.file, "a.safetensors");
  ASSERT_EQ(model.warnings.size(), 2u);
  EXPECT_EQ(model.warnings[0].find(path + ": tensor 'lm_head.weight' is ignored: "), 0u);
}

TEST(OpenModel, ManyExtrasAreSummedUp) {
  Folder folder;
  folder.write("config.json", smallConfig().dump());
  SafetensorsBuilder tensors = smallSafetensors();
  for (int i = 0; i < 20; ++i)
    tensors.add("extra." + std::to_string(i), {1});
  folder.write("model.safetensors", tensors.build());
  SLUICE_UNWRAP(model, openModel(folder.str()));
  ASSERT_EQ(model.warnings.size(), 17u);
  EXPECT_NE(model.warnings.back().find("4 more tensors are not part"), std::string::npos);
}
