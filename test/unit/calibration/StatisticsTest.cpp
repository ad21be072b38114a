// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sluice/Calibration/Statistics.h"

#include "test/unit/import/TestFiles.h"

using namespace sluice;
using namespace sluice::calibration;
using namespace sluice::test;

namespace {

/// Two weights that read one input of 2 columns, one that reads an input of 3.
Statistics smallStatistics(bool withHessians = true) {
  Statistics statistics;
  auto hessian = [&](std::vector<float> packed) {
    return withHessians ? packed : std::vector<float>();
  };
  size_t narrow = statistics.addInput({4, 9}, hessian({4, 2, 9}));
  size_t wide = statistics.addInput({1, 2, 3}, hessian({1, 0, 2, 0.5f, -1, 3}));
  statistics.addWeight("blk.0.attn_q", narrow, 0.5);
  statistics.addWeight("blk.0.attn_k", narrow);
  statistics.addWeight("output", wide, 0.25);
  statistics.source = {"some/model", 4096, 1024, "00112233445566ff", 7};
  statistics.keys = {{"int8", "int4-rot"}, {0.125f, 2, 0.25f, 4}};
  statistics.values = {{"int8"}, {0.5f, 1}};
  return statistics;
}

TEST(Statistics, SurvivesAFile) {
  Folder folder;
  ASSERT_EQ(message(smallStatistics().write(folder / "stats")), "success");
  SLUICE_UNWRAP(read, Statistics::read(folder / "stats"));
  EXPECT_EQ(read.weights().vec(),
            (std::vector<std::string>{"blk.0.attn_q", "blk.0.attn_k", "output"}));
  ASSERT_TRUE(read.find("blk.0.attn_k"));
  EXPECT_EQ(read.find("blk.0.attn_k")->input, read.find("blk.0.attn_q")->input);
  EXPECT_EQ(read.find("blk.0.attn_k")->sensitivity, std::nullopt);
  EXPECT_EQ(read.find("blk.0.attn_q")->sensitivity, 0.5);
  EXPECT_EQ(read.find("blk.0.attn_v"), nullptr);
  EXPECT_EQ(read.inputOf("blk.0.attn_k")->moments.vec(), (std::vector<float>{4, 9}));
  EXPECT_EQ(read.inputOf("output")->hessian.vec(), (std::vector<float>{1, 0, 2, 0.5f, -1, 3}));
  EXPECT_TRUE(read.hasHessians());
  EXPECT_EQ(read.cacheLoss(1, true, "int4-rot"), 4);
  EXPECT_EQ(read.cacheLoss(1, false, "int8"), 1);
  EXPECT_EQ(read.cacheLoss(1, false, "fp8"), std::nullopt);
  EXPECT_EQ(read.cacheLoss(2, true, "int8"), std::nullopt);
  EXPECT_EQ(read.source.model, "some/model");
  EXPECT_EQ(read.source.tokens, 4096);
  EXPECT_EQ(read.source.sensitivityTokens, 1024);
  EXPECT_EQ(read.source.text, "00112233445566ff");
  EXPECT_EQ(read.source.seed, 7U);
}

TEST(Statistics, HessiansAreOptional) {
  Folder folder;
  ASSERT_EQ(message(smallStatistics(false).write(folder / "stats")), "success");
  SLUICE_UNWRAP(read, Statistics::read(folder / "stats"));
  EXPECT_FALSE(read.hasHessians());
  EXPECT_TRUE(read.inputOf("output")->hessian.empty());
}

TEST(Statistics, OutputErrorIsTheTrace) {
  Statistics statistics = smallStatistics();
  // Rows (1, -1) and (0, 2) of W - Q: 4 - 2*2 + 9, and 4*9.
  std::vector<float> weight = {3, 0, 1, 5}, rounded = {2, 1, 1, 3};
  const InputStatistics &input = *statistics.inputOf("blk.0.attn_q");
  EXPECT_DOUBLE_EQ(outputError(weight, rounded, input), 9 + 36);
  // |W|^2 = 35, tr(H) / K = 6.5.
  EXPECT_DOUBLE_EQ(whiteNoiseError(weight, input), 35 * 6.5);
  EXPECT_DOUBLE_EQ(relativeError(weight, rounded, input), 45 / (35 * 6.5));
  Statistics diagonal = smallStatistics(false);
  EXPECT_DOUBLE_EQ(outputError(weight, rounded, *diagonal.inputOf("blk.0.attn_q")), 13 + 36);
}

TEST(Statistics, RefusesWhatIsNone) {
  Folder folder;
  EXPECT_EQ(message(Statistics::read(folder.write("text", "no statistics at all"))),
            folder / "text: is neither a file of statistics nor an importance matrix in GGUF form");
  std::string other = folder.write("other", SafetensorsBuilder().add("a", {2}).build());
  EXPECT_EQ(message(Statistics::read(other)),
            other + ": is no file of statistics: it lacks the format 'sluice statistics'");
  SafetensorsBuilder builder;
  builder.header["__metadata__"] = {{"format", "sluice statistics"}, {"version", "9"}};
  std::string version = folder.write("version", builder.add("a", {2}).build());
  EXPECT_EQ(message(Statistics::read(version)),
            version + ": has version '9' of statistics, expected 1");
  builder.header["__metadata__"] = {
      {"format", "sluice statistics"}, {"version", "1"}, {"tokens", "4"},
      {"sensitivity_tokens", "0"},     {"seed", "0"},    {"weights", "output"}};
  std::string missing = folder.write("missing", builder.build());
  EXPECT_EQ(message(Statistics::read(missing)), missing + ": lacks the tensor 'output.moments'");
  builder.header["__metadata__"]["tokens"] = "many";
  std::string number = folder.write("number", builder.build());
  EXPECT_EQ(message(Statistics::read(number)),
            number + ": metadata tokens is 'many', expected a number");
}

GGUFBuilder smallImatrix() {
  GGUFBuilder gguf;
  gguf.string("general.type", "imatrix");
  gguf.strings("imatrix.datasets", {"a.txt"});
  gguf.f32Tensor("blk.0.attn_qkv.weight.in_sum2", {3, 1}, 8);
  gguf.f32Tensor("blk.0.attn_qkv.weight.counts", {1, 1}, 4);
  gguf.f32Tensor("output.weight.in_sum2", {2, 1}, 6);
  gguf.f32Tensor("output.weight.counts", {1, 1}, 3);
  gguf.f32Tensor("blk.0.ffn_gate_exps.weight.in_sum2", {2, 2}, 6);
  gguf.f32Tensor("blk.0.ffn_gate_exps.weight.counts", {1, 2}, 3);
  return gguf;
}

TEST(Statistics, ReadsImportanceMatrices) {
  Folder folder;
  SLUICE_UNWRAP(read, Statistics::read(folder.write("imatrix.gguf", smallImatrix().build())));
  for (const char *name : {"blk.0.attn_q", "blk.0.attn_k", "blk.0.attn_v"}) {
    ASSERT_TRUE(read.inputOf(name)) << name;
    EXPECT_EQ(read.inputOf(name)->moments.vec(), (std::vector<float>{2, 2, 2}));
  }
  EXPECT_EQ(read.inputOf("output")->moments.vec(), (std::vector<float>{2, 2}));
  EXPECT_EQ(read.inputOf("blk.0.ffn_gate_exps"), nullptr);
  EXPECT_EQ(read.source.tokens, 4);
  EXPECT_FALSE(read.hasHessians());
  EXPECT_FALSE(read.hasSensitivities());
}

TEST(Statistics, RefusesBadImportanceMatrices) {
  Folder folder;
  std::string model = folder.write("model.gguf", smallLlamaGGUF().build());
  EXPECT_EQ(message(Statistics::read(model)),
            model + ": is a GGUF file but no importance matrix (general.type is not 'imatrix')");
  GGUFBuilder gguf = smallImatrix();
  gguf.find("output.weight.counts")->name = "output.weight.other";
  std::string counts = folder.write("counts.gguf", gguf.build());
  EXPECT_EQ(message(Statistics::read(counts)),
            counts + ": lacks the tensor 'output.weight.counts'");
  gguf = smallImatrix();
  gguf.find("output.weight.counts")->bytes = Bytes().put(0.0f).data;
  std::string zero = folder.write("zero.gguf", gguf.build());
  EXPECT_EQ(message(Statistics::read(zero)),
            zero + ": tensors of 'output.weight' hold what is no sum of squares");
}

} // namespace
