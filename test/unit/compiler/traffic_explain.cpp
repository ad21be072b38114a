// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sluice/Analysis/Explain.h"
#include "sluice/Transforms/Passes.h"

#include "mlir/Parser/Parser.h"
#include "mlir/Pass/PassManager.h"
#include "mlir/Transforms/Passes.h"
#include "llvm/Support/FormatVariadic.h"

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

using namespace mlir;
using namespace sluice;

namespace {

struct Shape {
  int64_t layers, width, mlp, heads, kvHeads, headDim, vocab, context = 64;
  bool gated = true;
  int64_t window = 0; ///< of every second layer
};

/// A model at stage model, as an importer writes it.
class ModelText {
public:
  explicit ModelText(const Shape &shape) : s(shape) {
    weight("token_embd", matrix(s.vocab, s.width));
    symbols += "model.cache @unused : !quantized.cache<1x1x1x2xf16>\n";
    std::string x = op("model.embedding %token, " + load("token_embd", matrix(s.vocab, s.width)) +
                       " : tensor<1xi32>, " + matrix(s.vocab, s.width) + " -> " + vector(s.width));
    for (int64_t i = 0; i < s.layers; ++i)
      x = layer(i, x);
    x = linear(norm(x, "output_norm"), "output", s.vocab, s.width);
    body += "return " + x + " : " + vector(s.vocab) + "\n";
  }
  std::string text() const {
    return "module @test {\n" + symbols +
           "func.func @decode(%token: tensor<1xi32>, %position: tensor<1xi32>) -> " +
           vector(s.vocab) + " {\n" + body + "}\n}\n";
  }

private:
  static std::string matrix(int64_t r, int64_t c) {
    return llvm::formatv("tensor<{0}x{1}xf16>", r, c);
  }
  static std::string vector(int64_t n) { return llvm::formatv("tensor<1x{0}xf32>", n); }
  void weight(const std::string &name, const std::string &type) {
    symbols += "model.weight @" + name + " : " + type + "\n";
  }
  std::string op(const std::string &text) {
    std::string name = "%v" + std::to_string(next++);
    body += name + " = " + text + "\n";
    return name;
  }
  std::string load(const std::string &name, const std::string &type) {
    return op("model.parameter @" + name + " : " + type);
  }
  std::string norm(const std::string &x, const std::string &name) {
    std::string type = llvm::formatv("tensor<{0}xf16>", s.width);
    weight(name, type);
    return op("model.rms_norm " + x + ", " + load(name, type) +
              " epsilon 1.0e-5 : " + vector(s.width) + ", " + type);
  }
  std::string linear(const std::string &x, const std::string &name, int64_t r, int64_t c) {
    weight(name, matrix(r, c));
    return op("model.linear " + x + ", " + load(name, matrix(r, c)) + " : " + vector(c) + ", " +
              matrix(r, c) + " -> " + vector(r));
  }
  std::string layer(int64_t i, std::string x) {
    std::string blk = "blk." + std::to_string(i) + ".";
    int64_t q = s.heads * s.headDim, kv = s.kvHeads * s.headDim;
    std::string caches[2];
    for (int j : {0, 1}) {
      caches[j] = (j ? "@cache.v." : "@cache.k.") + std::to_string(i);
      symbols +=
          "model.cache " + caches[j] +
          llvm::formatv(" : !quantized.cache<1x{0}x{1}x{2}xf16>\n", s.context, s.kvHeads, s.headDim)
              .str();
    }
    std::string n = norm(x, blk + "attn_norm");
    std::string rotary =
        " at %position head_dim " + std::to_string(s.headDim) + " <theta = 10000.0> : ";
    std::string query = linear(n, blk + "attn_q", q, s.width),
                key = linear(n, blk + "attn_k", kv, s.width),
                value = linear(n, blk + "attn_v", kv, s.width);
    query = op("model.rotary " + query + rotary + vector(q) + ", tensor<1xi32>");
    key = op("model.rotary " + key + rotary + vector(kv) + ", tensor<1xi32>");
    body += "model.cache_append " + caches[0] + ", " + key + " at %position : " + vector(kv) +
            ", tensor<1xi32>\n";
    body += "model.cache_append " + caches[1] + ", " + value + " at %position : " + vector(kv) +
            ", tensor<1xi32>\n";
    std::string y = op("model.attention " + query + ", " + caches[0] + ", " + caches[1] +
                       " at %position scale 0.125 " +
                       (s.window && i % 2 ? "window " + std::to_string(s.window) : "") + " : " +
                       vector(q) + ", tensor<1xi32>");
    x = op("arith.addf " + x + ", " + linear(y, blk + "attn_output", s.width, q) + " : " +
           vector(s.width));
    n = norm(x, blk + "ffn_norm");
    std::string up = linear(n, blk + "ffn_up", s.mlp, s.width);
    if (s.gated) {
      std::string gate =
          op("model.silu " + linear(n, blk + "ffn_gate", s.mlp, s.width) + " : " + vector(s.mlp));
      up = op("arith.mulf " + gate + ", " + up + " : " + vector(s.mlp));
    } else {
      up = op("model.silu " + up + " : " + vector(s.mlp));
    }
    return op("arith.addf " + x + ", " + linear(up, blk + "ffn_down", s.width, s.mlp) + " : " +
              vector(s.width));
  }

  Shape s;
  std::string symbols, body;
  int next = 0;
};

class ExplainTest : public ::testing::Test {
protected:
  ExplainTest() {
    context.loadDialect<model::ModelDialect, quantized::QuantizedDialect, fused::FusedDialect,
                        arith::ArithDialect, func::FuncDialect>();
  }

  /// Stages quantized and fused of a model.
  std::pair<OwningOpRef<ModuleOp>, OwningOpRef<ModuleOp>> stages(const Shape &shape,
                                                                 const std::string &scheme) {
    OwningOpRef<ModuleOp> unfused = parseSourceString<ModuleOp>(ModelText(shape).text(), &context);
    EXPECT_TRUE(unfused);
    PassManager quantize(&context);
    quantize.addPass(createQuantizedQuantizeWeights({scheme}));
    EXPECT_TRUE(succeeded(quantize.run(*unfused)));
    OwningOpRef<ModuleOp> fused = unfused->clone();
    PassManager fuse(&context);
    fuse.addPass(createFusedFuseDequantize());
    fuse.addPass(createFusedMergeMatvecs());
    fuse.addPass(createFusedFusePrologues());
    fuse.addPass(createFusedFuseEpilogues());
    fuse.addPass(createCSEPass());
    EXPECT_TRUE(succeeded(fuse.run(*fused)));
    return {std::move(unfused), std::move(fused)};
  }

  Explanation explainModel(const Shape &shape, const std::string &scheme, int64_t positions = 512,
                           int64_t batch = 1, llvm::StringRef target = "h100") {
    auto [unfused, fused] = stages(shape, scheme);
    llvm::Expected<TargetDescription> description = loadTarget(target);
    EXPECT_TRUE(static_cast<bool>(description));
    llvm::Expected<Explanation> result = explain(*unfused, *fused, *description, positions, batch);
    EXPECT_TRUE(static_cast<bool>(result));
    return *result;
  }

  MLIRContext context;
};

constexpr Shape llama7b{.layers = 32,
                        .width = 4096,
                        .mlp = 11008,
                        .heads = 32,
                        .kvHeads = 32,
                        .headDim = 128,
                        .vocab = 32000};

std::string printed(const Explanation &explanation) {
  std::string text;
  llvm::raw_string_ostream os(text);
  printExplanation(explanation, os);
  return text;
}

TEST_F(ExplainTest, Llama2_7B) {
  Explanation e = explainModel(llama7b, "int8-g128");
  EXPECT_EQ(e.layers, 32);
  // 3 * 4096 * 11008 and 4 * 4096^2 bytes: 135.3 and 67.1 MB.
  EXPECT_EQ(e.layer.mlpWeights, 135266304.0);
  EXPECT_EQ(e.layer.attentionWeights, 67108864.0);
  EXPECT_EQ(e.layer.mlpScales, 135266304.0 / 128 * 2);
  EXPECT_EQ(e.layer.attentionScales, 67108864.0 / 128 * 2);
  // 270.5 MFLOP, about 38 KB, 2.0 FLOP a byte.
  EXPECT_EQ(e.layer.mlpOperations, 270532608.0);
  EXPECT_EQ(e.layer.mlpActivations, 38400.0);
  EXPECT_NEAR(e.layer.intensity, 2.0, 0.005);
  EXPECT_NEAR(*e.target.ridge(), 295, 0.5);

  // Every step reads all weights once, each position's keys and values once.
  EXPECT_EQ(e.fused.total.weights, int64_t(32) * (135266304 + 67108864) + int64_t(32000) * 4096);
  EXPECT_EQ(e.fused.total.keys, int64_t(32) * 4096 * 2 * 512);
  EXPECT_EQ(e.fused.total.values, int64_t(32) * 4096 * 2 * 512);
  EXPECT_EQ(e.fused[ModelPart::Head].weights, int64_t(32000) * 4096);
  EXPECT_EQ(e.fused[ModelPart::AttentionCache].written,
            32 * 2 * 4096 * 2 + 32 * 4096 * 2); // appended, and results
  EXPECT_EQ(e.fused[ModelPart::Norms].bytes(1), 65 * 4096 * 2);
  EXPECT_EQ(e.fused.kernels, 2 + 32 * 5);
  int64_t bytes = e.fused.total.bytes(1);
  EXPECT_EQ(e.fusedFloor.bytes, bytes);
  EXPECT_DOUBLE_EQ(e.fusedFloor.seconds, static_cast<double>(bytes) / 3.15e12);
  EXPECT_TRUE(e.fusedFloor.boundByMemory);

  // Before fusing, each int8 weight is read, written as float32 and read again.
  EXPECT_EQ(e.unfused.total.weights, 5 * e.fused.total.weights);
  EXPECT_EQ(e.unfused.total.scales, e.fused.total.scales);
  EXPECT_GT(e.unfused.total.written, 4 * e.fused.total.weights);
  EXPECT_EQ(e.unfused[ModelPart::Mlp].weights, 5 * e.fused[ModelPart::Mlp].weights);
  EXPECT_EQ(e.unfused[ModelPart::AttentionProjections].weights,
            5 * e.fused[ModelPart::AttentionProjections].weights);
  EXPECT_GT(e.unfused.total.activations, e.fused.total.activations);
  // Two operations for each weight in the product, two in the pass that dequantizes it.
  EXPECT_EQ(e.unfused.total.operations, 2 * e.fused.total.operations);
  EXPECT_EQ(e.unfused.total.operationsPerPosition, e.fused.total.operationsPerPosition);

  std::string text = printed(e);
  for (llvm::StringRef expected :
       {"MLP 135.3 MB, attention projections 67.1 MB of weights", "270.5 MFLOP", "38.4 KB",
        "2.0 FLOP a byte", "ridge at 295 FLOP a byte"})
    EXPECT_NE(text.find(expected.str()), std::string::npos) << expected.str() << "\n" << text;
  EXPECT_EQ(text, printed(explainModel(llama7b, "int8-g128")));
}

TEST_F(ExplainTest, Gpt2Widths) {
  // Two matrices in the MLP, 768 wide: 4.72 and 2.36 MB.
  Explanation e = explainModel({.layers = 12,
                                .width = 768,
                                .mlp = 3072,
                                .heads = 12,
                                .kvHeads = 12,
                                .headDim = 64,
                                .vocab = 50257,
                                .gated = false},
                               "int8-g128");
  EXPECT_EQ(e.layer.mlpWeights, 4718592.0);
  EXPECT_EQ(e.layer.attentionWeights, 2359296.0);
  std::string text = printed(e);
  EXPECT_NE(text.find("MLP 4.72 MB, attention projections 2.36 MB"), std::string::npos) << text;
}

TEST_F(ExplainTest, Llama3_8BFloor) {
  // 7.62 GB a token with int8, group 128, f16 scales: 1.62 to 1.66 ms on an H200.
  Explanation e = explainModel({.layers = 32,
                                .width = 4096,
                                .mlp = 14336,
                                .heads = 32,
                                .kvHeads = 8,
                                .headDim = 128,
                                .vocab = 128256},
                               "int8-g128", 1, 1, "h200");
  EXPECT_NEAR(static_cast<double>(e.fused.total.weights + e.fused.total.scales), 7.62e9, 0.01e9);
  EXPECT_NEAR(e.fusedFloor.seconds, 1.64e-3, 0.02e-3);
  EXPECT_NEAR(e.fusedFloor.tokensPerSecond, 610, 10);
}

TEST_F(ExplainTest, EveryOtherLayerHasAWindow) {
  Shape shape = llama7b;
  shape.layers = 4;
  Explanation all = explainModel(shape, "int8-g128", 2048);
  shape.window = 512;
  Explanation some = explainModel(shape, "int8-g128", 2048);
  int64_t position = int64_t(4096) * 2;
  EXPECT_EQ(all.fused.total.keys, 4 * 2048 * position);
  EXPECT_EQ(some.fused.total.keys, 2 * (2048 + 512) * position);
  EXPECT_EQ(some.unfused.total.values, 2 * (2048 + 512) * position);
  EXPECT_EQ(all.fusedFloor.bytes - some.fusedFloor.bytes, 2 * 2 * (2048 - 512) * position);
  EXPECT_EQ(all.fusedFloor.operations - some.fusedFloor.operations, 2 * (2048 - 512) * 4 * 4096);
  // A context within the window is read whole.
  EXPECT_EQ(explainModel(shape, "int8-g128", 300).fused.total.keys, 4 * 300 * position);
}

TEST_F(ExplainTest, BatchReadsWeightsOnce) {
  Shape shape{
      .layers = 2, .width = 256, .mlp = 512, .heads = 4, .kvHeads = 2, .headDim = 64, .vocab = 512};
  Explanation one = explainModel(shape, "int4-g64-zp", 100),
              eight = explainModel(shape, "int4-g64-zp", 100, 8);
  EXPECT_EQ(eight.fused.total.weights, one.fused.total.weights);
  EXPECT_EQ(eight.fused.total.scales, one.fused.total.scales);
  EXPECT_EQ(eight.fused.total.keys, 8 * one.fused.total.keys);
  EXPECT_EQ(eight.fused.total.operations, 8 * one.fused.total.operations);
  EXPECT_EQ(eight.fused.total.written, 8 * one.fused.total.written);
  EXPECT_EQ(eight.fused[ModelPart::Norms].activations, one.fused[ModelPart::Norms].activations);
  EXPECT_EQ(eight.unfused[ModelPart::Mlp].weights, one.unfused[ModelPart::Mlp].weights);
  EXPECT_GT(eight.fusedFloor.tokensPerSecond, 3 * one.fusedFloor.tokensPerSecond);
  // Half a byte an element; an f16 scale and an int8 zero point for 64 of them.
  EXPECT_EQ(one.fused.total.scales, one.fused.total.weights * 2 / 64 * 3);
  EXPECT_EQ(one.formats.front().first, "int4-g64-zp");
  EXPECT_EQ(one.dequantizeToF32->parameterBytes, 3);
  EXPECT_EQ(one.dequantizeToF32->elementBytes, 0.5);
}

TEST_F(ExplainTest, LargeBatchIsBoundByOperations) {
  Explanation e = explainModel(llama7b, "int8-g128", 1, 4096);
  EXPECT_FALSE(e.fusedFloor.boundByMemory);
  EXPECT_DOUBLE_EQ(e.fusedFloor.seconds, static_cast<double>(e.fusedFloor.operations) / 989e12);
}

TEST_F(ExplainTest, Json) {
  Explanation e = explainModel({.layers = 1,
                                .width = 256,
                                .mlp = 512,
                                .heads = 4,
                                .kvHeads = 2,
                                .headDim = 64,
                                .vocab = 512},
                               "f16", 10);
  nlohmann::json json = explanationJson(e);
  EXPECT_EQ(json["weights"].size(), 1u);
  EXPECT_TRUE(json["weights"].contains("f16"));
  EXPECT_FALSE(json.contains("dequantize_pass"));
  EXPECT_EQ(json["fused"]["total"]["bytes"], e.fused.total.bytes(1));
  EXPECT_EQ(json["fused"]["total"]["keys"], 10 * 2 * 64 * 2);
  int64_t sum = 0;
  for (const auto &part : json["fused"]["parts"])
    sum += part["bytes"].get<int64_t>();
  EXPECT_EQ(sum, e.fused.total.bytes(1));
  EXPECT_EQ(json["target"]["name"], "h100");
}

TEST_F(ExplainTest, Errors) {
  auto [unfused, fused] = stages({.layers = 1,
                                  .width = 256,
                                  .mlp = 512,
                                  .heads = 4,
                                  .kvHeads = 2,
                                  .headDim = 64,
                                  .vocab = 512},
                                 "f16");
  llvm::Expected<TargetDescription> target = loadTarget("h100");
  ASSERT_TRUE(static_cast<bool>(target));
  auto message = [&](ModuleOp a, ModuleOp b, int64_t positions, int64_t batch) {
    llvm::Expected<Explanation> result = explain(a, b, *target, positions, batch);
    return result ? std::string() : llvm::toString(result.takeError());
  };
  EXPECT_EQ(message(*unfused, *fused, 0, 1), "context is 0, expected 1 to 2147483648");
  EXPECT_EQ(message(*unfused, *fused, 1, -3), "batch is -3, expected 1 to 2147483648");
  OwningOpRef<ModuleOp> empty = ModuleOp::create(UnknownLoc::get(&context));
  EXPECT_EQ(message(*unfused, *empty, 1, 1), "the module has no function @decode to explain");
}

TEST(DequantizePass, Arithmetic) {
  // 2B / (5B + 8) to float32, 2B / (3B + 8) to 16 bits.
  DequantizePass wide{.block = 64}, narrow{.block = 64, .resultBytes = 2};
  EXPECT_DOUBLE_EQ(wide.intensity(), 128.0 / 328);
  EXPECT_DOUBLE_EQ(narrow.intensity(), 128.0 / 200);
  EXPECT_NEAR(wide.intensity(), 0.39, 0.005);
  EXPECT_NEAR(narrow.intensity(), 0.64, 0.005);
  EXPECT_DOUBLE_EQ(wide.intensityLimit(), 0.4);
  EXPECT_NEAR(narrow.intensityLimit(), 0.67, 0.005);
  EXPECT_DOUBLE_EQ(wide.overhead(), 0.125);
  EXPECT_NEAR((DequantizePass{.block = 2048}.overhead()), 0.004, 0.0005);
  EXPECT_NEAR((DequantizePass{.block = 1e9}.intensity()), 0.4, 1e-6);
}

} // namespace
