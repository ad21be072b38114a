// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sluice/Import/ModelBuilder.h"

#include "../TestFiles.h"

#include "mlir/Dialect/Func/IR/FuncOps.h"
#include "mlir/IR/Verifier.h"
#include "mlir/Parser/Parser.h"

using namespace mlir;
using namespace sluice;
using namespace sluice::test;

namespace {

std::string text(ModuleOp module, bool locations = false) {
  std::string result;
  llvm::raw_string_ostream os(result);
  OpPrintingFlags flags;
  if (locations)
    flags.enableDebugInfo();
  module->print(os, flags);
  return result;
}

/// Checks that `text` has all `parts`, one after the other.
void expectInOrder(StringRef text, ArrayRef<StringRef> parts) {
  StringRef rest = text;
  for (StringRef part : parts) {
    size_t at = rest.find(part);
    ASSERT_NE(at, StringRef::npos) << "no '" << part.str() << "' in\n" << rest.str();
    rest = rest.drop_front(at + part.size());
  }
}

int count(StringRef text, StringRef part) { return text.count(part); }

class ModelBuilderTest : public testing::Test {
protected:
  /// Writes a config.json alone.
  ModelFiles configOnly(const nlohmann::json &config) {
    folder.write("config.json", config.dump());
    auto files = openModel(folder / "config.json");
    if (!files)
      ADD_FAILURE() << llvm::toString(files.takeError());
    return files ? std::move(*files) : ModelFiles();
  }

  OwningOpRef<ModuleOp> import(const ModelFiles &files, const ImportOptions &options = {}) {
    auto module = importModel(context, files, options);
    if (!module) {
      ADD_FAILURE() << llvm::toString(module.takeError());
      return {};
    }
    EXPECT_TRUE(succeeded(verify(**module)));
    return std::move(*module);
  }

  OwningOpRef<ModuleOp> import(const std::string &path, const ImportOptions &options = {}) {
    auto files = openModel(path);
    if (!files) {
      ADD_FAILURE() << llvm::toString(files.takeError());
      return {};
    }
    return import(*files, options);
  }

  MLIRContext context;
  Folder folder;
};

TEST_F(ModelBuilderTest, BuildsTheWholeLlamaGraph) {
  std::string path = std::string(SLUICE_MODELS) + "/llama-4m";
  OwningOpRef<ModuleOp> module = import(path);
  ASSERT_TRUE(module);
  std::string whole = text(*module);
  expectInOrder(
      whole,
      {"module @\"llama-4m\" attributes {model.config = {architecture = \"llama\", "
       "bos_id = 1 : i64, context_length = 2048 : i64, eos_ids = array<i64: 2>, head_dim = 64 : "
       "i64, "
       "heads = 4 : i64, hidden_size = 256 : i64, intermediate_size = 768 : i64, kv_heads = 2 : "
       "i64, "
       "layers = 4 : i64, max_context_length = 2048 : i64, norm_epsilon = 1.000000e-05 : f64, "
       "vocab_size = 2048 : i64}, model.source = \"",
       path,
       "\"}",
       "model.weight @token_embd : tensor<2048x256xf16> from \"model-0000",
       "tensor \"model.embed_tokens.weight\" at ",
       "size 1048576\n",
       "model.weight @blk.0.attn_norm : tensor<256xf16>",
       "model.weight @blk.0.attn_q : tensor<256x256xf16> from",
       "tensor \"model.layers.0.self_attn.q_proj.weight\" at ",
       "size 131072\n",
       "model.weight @blk.0.attn_k : tensor<128x256xf16>",
       "model.weight @blk.0.attn_v : tensor<128x256xf16>",
       "model.cache @cache.k.0 : !quantized.cache<1x2048x2x64xf16>",
       "model.cache @cache.v.0 : !quantized.cache<1x2048x2x64xf16>",
       "model.weight @blk.0.attn_output : tensor<256x256xf16>",
       "model.weight @blk.0.ffn_norm : tensor<256xf16>",
       "model.weight @blk.0.ffn_gate : tensor<768x256xf16>",
       "model.weight @blk.0.ffn_up : tensor<768x256xf16>",
       "model.weight @blk.0.ffn_down : tensor<256x768xf16>",
       "model.weight @blk.3.ffn_down",
       "model.weight @output_norm : tensor<256xf16>",
       "model.weight @output : tensor<2048x256xf16>",
       "func.func @decode(%arg0: tensor<1xi32>, %arg1: tensor<1xi32>) -> tensor<1x2048xf32> {",
       "%0 = model.parameter @token_embd : tensor<2048x256xf16>",
       "%1 = model.embedding %arg0, %0 :",
       "%2 = model.parameter @blk.0.attn_norm :",
       "%3 = model.rms_norm %1, %2 epsilon 1.000000e-05 :",
       "%4 = model.parameter @blk.0.attn_q :",
       "%5 = model.linear %3, %4 : tensor<1x256xf32>, tensor<256x256xf16> -> tensor<1x256xf32>",
       "%6 = model.parameter @blk.0.attn_k :",
       "%7 = model.linear %3, %6 :",
       "%8 = model.parameter @blk.0.attn_v :",
       "%9 = model.linear %3, %8 :",
       "%10 = model.rotary %5 at %arg1 head_dim 64 <theta = 1.000000e+04>",
       "%11 = model.rotary %7 at %arg1 head_dim 64 <theta = ",
       "model.cache_append @cache.k.0, %11 at %arg1 :",
       "model.cache_append @cache.v.0, %9 at %arg1 :",
       "%12 = model.attention %10, @cache.k.0, @cache.v.0 at %arg1 scale 1.250000e-01 :",
       "%13 = model.parameter @blk.0.attn_output :",
       "%14 = model.linear %12, %13 :",
       "%15 = arith.addf %1, %14 : tensor<1x256xf32>",
       "%16 = model.parameter @blk.0.ffn_norm :",
       "%17 = model.rms_norm %15, %16 epsilon",
       "%18 = model.parameter @blk.0.ffn_gate :",
       "%19 = model.linear %17, %18 :",
       "%20 = model.parameter @blk.0.ffn_up :",
       "%21 = model.linear %17, %20 :",
       "%22 = model.silu %19 : tensor<1x768xf32>",
       "%23 = arith.mulf %22, %21 : tensor<1x768xf32>",
       "%24 = model.parameter @blk.0.ffn_down :",
       "%25 = model.linear %23, %24 :",
       "%26 = arith.addf %15, %25 : tensor<1x256xf32>",
       "model.cache_append @cache.k.3",
       "model.parameter @output_norm",
       "model.parameter @output :",
       "-> tensor<1x2048xf32>",
       "return"});
  EXPECT_EQ(count(whole, "model.weight"), 4 * 9 + 3);
  EXPECT_EQ(count(whole, "model.cache @"), 8);
  EXPECT_EQ(count(whole, "interleaved"), 0);
}

TEST_F(ModelBuilderTest, LocatesOperationsByName) {
  OwningOpRef<ModuleOp> module = import(std::string(SLUICE_MODELS) + "/llama-4m");
  ASSERT_TRUE(module);
  std::vector<std::string> names;
  module->walk([&](Operation *op) {
    auto name = dyn_cast<NameLoc>(op->getLoc());
    ASSERT_TRUE(name) << op->getName().getStringRef().str();
    if (isa<model::LinearOp, model::AttentionOp>(op))
      names.push_back(name.getName().str());
  });
  EXPECT_EQ(ArrayRef(names).take_front(9),
            ArrayRef<std::string>({"blk.0.attn_q", "blk.0.attn_k", "blk.0.attn_v", "blk.0.attn",
                                   "blk.0.attn_output", "blk.0.ffn_gate", "blk.0.ffn_up",
                                   "blk.0.ffn_down", "blk.1.attn_q"}));
  EXPECT_EQ(names.back(), "output");
}

TEST_F(ModelBuilderTest, KeepsGGUFBlocksBehindDequantize) {
  OwningOpRef<ModuleOp> module = import(dataFile("llama-4m.Q8_0.gguf"));
  ASSERT_TRUE(module);
  std::string whole = text(*module);
  expectInOrder(
      whole,
      {"model.weight @token_embd : !quantized.tensor<2048x256xi8, group = 32, layout = blocks> "
       "from "
       "\"llama-4m.Q8_0.gguf\" tensor \"token_embd.weight\" at ",
       "size 557056\n", "model.weight @blk.0.attn_norm : tensor<256xf32>",
       "model.weight @blk.0.attn_q : !quantized.tensor<256x256xi8, group = 32, layout = blocks>",
       "size 69632 interleaved 64\n",
       "model.weight @blk.0.attn_k : !quantized.tensor<128x256xi8, group = 32, layout = blocks>",
       "size 34816 interleaved 64\n",
       "%0 = model.parameter @token_embd : !quantized.tensor<2048x256xi8, group = 32, layout = "
       "blocks>",
       "%1 = quantized.dequantize %0 : !quantized.tensor<2048x256xi8, group = 32, layout = blocks> "
       "to "
       "tensor<2048x256xf32>",
       "%2 = model.embedding %arg0, %1"});
  EXPECT_EQ(count(whole, "interleaved 64"), 8);
  // Every matrix is dequantized where it is used.
  EXPECT_EQ(count(whole, "quantized.dequantize"), 4 * 7 + 2);
}

TEST_F(ModelBuilderTest, RefersToTheTensorsThatTheFilesHave) {
  auto files = openModel(dataFile("llama-4m.Q8_0.gguf"));
  ASSERT_TRUE(static_cast<bool>(files));
  OwningOpRef<ModuleOp> module = import(*files);
  ASSERT_TRUE(module);

  // Through the text, as a stage that was written to a file.
  OwningOpRef<ModuleOp> parsed = parseSourceString<ModuleOp>(text(*module), &context);
  ASSERT_TRUE(parsed);
  EXPECT_EQ(text(*parsed), text(*module));
  SLUICE_UNWRAP(root, weightRoot(*parsed));
  EXPECT_EQ(root, files->root);
  auto check = [&](StringRef name, const Weight &weight) {
    auto op = parsed->lookupSymbol<model::WeightOp>(name);
    ASSERT_TRUE(op);
    SLUICE_UNWRAP(located, weightInFile(op));
    const TensorRef &ref = located.tensor;
    EXPECT_EQ(ref.name, weight.tensor.name);
    EXPECT_EQ(ref.file, weight.tensor.file);
    EXPECT_EQ(ref.type, weight.tensor.type);
    EXPECT_EQ(ref.shape, weight.tensor.shape);
    EXPECT_EQ(ref.offset, weight.tensor.offset);
    EXPECT_EQ(ref.bytes, weight.tensor.bytes);
  };
  check("token_embd", files->weights.tokenEmbedding);
  check("blk.2.attn_k", files->weights.layers[2].k);
  check("blk.3.ffn_norm", files->weights.layers[3].mlpNorm);
  check("output", *files->weights.head);
}

TEST_F(ModelBuilderTest, FindsTheFolderOfTheWeights) {
  auto root = [&](StringRef source) {
    OwningOpRef<ModuleOp> module = ModuleOp::create(UnknownLoc::get(&context));
    (*module)->setAttr("model.source", StringAttr::get(&context, source));
    auto result = weightRoot(*module);
    return result ? *result : llvm::toString(result.takeError());
  };
  EXPECT_EQ(root(folder.str()), folder.str());
  EXPECT_EQ(root(folder.write("m.gguf", "")), folder.str());
  EXPECT_EQ(root(folder / "gone"), folder / "gone: the module's model.source cannot be opened: "
                                            "No such file or directory");
  OwningOpRef<ModuleOp> module = ModuleOp::create(UnknownLoc::get(&context));
  EXPECT_EQ(message(weightRoot(*module)),
            "the module has no model.source: its weights cannot be found");
}

TEST_F(ModelBuilderTest, NormalisesHeadsBeforeTheyTurn) {
  nlohmann::json config = smallConfig("qwen3");
  config["head_dim"] = 48;
  OwningOpRef<ModuleOp> module = import(configOnly(config));
  ASSERT_TRUE(module);
  expectInOrder(text(*module),
                {"architecture = \"qwen3\"", "model.weight @blk.0.attn_q : tensor<96x64xf16>\n",
                 "model.weight @blk.0.attn_q_norm : tensor<48xf16>\n",
                 "model.weight @blk.0.attn_k_norm : tensor<48xf16>\n",
                 "%11 = model.rms_norm %5, %10 epsilon 1.000000e-05 head_dim 48 : tensor<1x96xf32>",
                 "%13 = model.rms_norm %7, %12 epsilon 1.000000e-05 head_dim 48 : tensor<1x48xf32>",
                 "model.rotary %11", "model.rotary %13"});
}

TEST_F(ModelBuilderTest, GivesSyntheticWeightsToAConfigAlone) {
  nlohmann::json config = smallConfig("qwen2");
  config["tie_word_embeddings"] = true;
  OwningOpRef<ModuleOp> module = import(configOnly(config));
  ASSERT_TRUE(module);
  std::string whole = text(*module);
  // Qwen2 has biases on q, k and v; a tied head has no weight of its own.
  expectInOrder(
      whole,
      {"architecture = \"qwen2\"", "model.weight @token_embd : tensor<16x64xf16>\n",
       "model.weight @blk.0.attn_q : tensor<64x64xf16>\n",
       "model.weight @blk.0.attn_q.bias : tensor<64xf16>\n",
       "model.weight @blk.0.attn_k.bias : tensor<32xf16>\n",
       "model.weight @blk.0.attn_v.bias : tensor<32xf16>\n", "%4 = model.parameter @blk.0.attn_q :",
       "%5 = model.parameter @blk.0.attn_q.bias : tensor<64xf16>",
       "%6 = model.linear %3, %4 bias %5 : tensor<1x64xf32>, tensor<64x64xf16>, "
       "tensor<64xf16> -> tensor<1x64xf32>",
       "model.parameter @output_norm", "model.parameter @token_embd", "-> tensor<1x16xf32>"});
  EXPECT_EQ(count(whole, ".bias : tensor<64xf16>\n"), 2);
  EXPECT_EQ(count(whole, "@token_embd :"), 3);
  EXPECT_EQ(count(whole, "@output :"), 0);
  auto weight = module->lookupSymbol<model::WeightOp>("blk.0.attn_q");
  EXPECT_EQ(message(weightInFile(weight)),
            "weight 'blk.0.attn_q' is synthetic: there is no file to read it from");
}

TEST_F(ModelBuilderTest, CarriesRotaryScaling) {
  nlohmann::json config = smallConfig();
  config["rope_scaling"] = {{"rope_type", "llama3"},
                            {"factor", 8.0},
                            {"low_freq_factor", 1.0},
                            {"high_freq_factor", 4.0},
                            {"original_max_position_embeddings", 64}};
  OwningOpRef<ModuleOp> module = import(configOnly(config));
  ASSERT_TRUE(module);
  expectInOrder(text(*module),
                {"<theta = 5.000000e+05, llama3 = [8.000000e+00, 1.000000e+00, 4.000000e+00, "
                 "6.400000e+01]>"});

  config["rope_scaling"] = {{"rope_type", "linear"}, {"factor", 2.0}};
  module = import(configOnly(config));
  ASSERT_TRUE(module);
  expectInOrder(text(*module), {"<theta = 5.000000e+05, linear = [2.000000e+00]>"});
}

TEST_F(ModelBuilderTest, CarriesRotaryFactorsOfGGUF) {
  GGUFBuilder gguf = smallLlamaGGUF();
  gguf.f32Tensor("rope_freqs.weight", {16}, 2.5f);
  OwningOpRef<ModuleOp> module = import(folder.write("m.gguf", gguf.build()));
  ASSERT_TRUE(module);
  std::string whole = text(*module);
  EXPECT_EQ(count(whole, "2.500000e+00"), 2 * 16);
  expectInOrder(whole, {"interleaved 32", "<theta = 5.000000e+05, factors = [2.500000e+00, "});
}

TEST_F(ModelBuilderTest, ChoosesTheContext) {
  nlohmann::json config = smallConfig();
  config["max_position_embeddings"] = 131072;
  ModelFiles files = configOnly(config);
  auto caches = [&](ImportOptions options) {
    OwningOpRef<ModuleOp> module = import(files, options);
    auto cache = module->lookupSymbol<model::CacheOp>("cache.v.0");
    return std::string(StringRef(text(*module))
                               .contains("context_length = " +
                                         std::to_string(cache.getCacheType().getPositions()) + " :")
                           ? ""
                           : "config differs ") +
           std::to_string(cache.getCacheType().getPositions());
  };
  EXPECT_EQ(caches({}), "4096");
  EXPECT_EQ(caches({.context = 131072}), "131072");
  EXPECT_EQ(caches({.context = 1}), "1");
  EXPECT_EQ(message(importModel(context, files, {.context = 131073})),
            files.path + ": context must be at most the model's 131072 positions, found 131073");
  EXPECT_EQ(message(importModel(context, files, {.context = 0})),
            "context must be at least 1, found 0");
  config["max_position_embeddings"] = 100;
  files = configOnly(config);
  EXPECT_EQ(caches({}), "100");
}

TEST_F(ModelBuilderTest, MakesStepsOfSeveralRows) {
  ModelFiles files = configOnly(smallConfig());
  OwningOpRef<ModuleOp> module = import(files, {.context = 8, .tokens = 8});
  ASSERT_TRUE(module);
  expectInOrder(text(*module),
                {"@decode(%arg0: tensor<8xi32>, %arg1: tensor<8xi32>) -> tensor<8x16xf32>",
                 "model.linear %3, %4 : tensor<8x64xf32>"});
  EXPECT_EQ(message(importModel(context, files, {.context = 8, .tokens = 9})),
            "rows of a step must be 1 to the context's 8, found 9");
  EXPECT_EQ(message(importModel(context, files, {.context = 128, .tokens = 0})),
            "rows of a step must be 1 to the context's 128, found 0");
}

TEST_F(ModelBuilderTest, RefusesTypesThatNoFileHolds) {
  context.loadDialect<model::ModelDialect>();
  auto module = parseSourceString<ModuleOp>(
      R"(model.weight @w : !quantized.tensor<2x128xi8, group = 128> from "m.gguf" tensor "w" at 0 size 260)",
      &context);
  ASSERT_TRUE(module);
  EXPECT_EQ(message(weightInFile(module->lookupSymbol<model::WeightOp>("w"))),
            "weight 'w': no model file holds the type !quantized.tensor<2x128xi8, group = 128>");
}

} // namespace
