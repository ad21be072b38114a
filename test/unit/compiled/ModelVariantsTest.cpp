// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Small models of many shapes, compiled in many formats, against the reference evaluator.

#include "Compiled.h"
#include "RandomModels.h"
#include "sluice-runtime/Session.h"
#include "sluice/Pipelines/Pipelines.h"
#include "sluice/Reference/Evaluator.h"

#include "mlir/Parser/Parser.h"
#include "llvm/Support/Regex.h"
#include "llvm/TargetParser/Host.h"

#include <gtest/gtest.h>

using namespace sluice;
using namespace sluice::test;
using reference::Tensor;

namespace {

/// The logits of a stage's file, token by token.
void evaluate(const std::string &path, const std::vector<int32_t> &tokens,
              std::vector<std::vector<float>> &logits) {
  mlir::DialectRegistry registry;
  registerDialects(registry);
  mlir::MLIRContext context(registry, mlir::MLIRContext::Threading::DISABLED);
  context.loadAllAvailableDialects();
  auto module = mlir::parseSourceFile<mlir::ModuleOp>(path, &context);
  ASSERT_TRUE(module) << path;
  SLUICE_UNWRAP(weights, reference::FileWeights::open(*module));
  reference::Evaluator evaluator(*module, weights);
  for (auto [position, token] : llvm::enumerate(tokens)) {
    SLUICE_UNWRAP(results,
                  evaluator.call("decode", {Tensor::ints({1}, {token}),
                                            Tensor::ints({1}, {static_cast<int32_t>(position)})}));
    ASSERT_EQ(results.size(), 1u);
    logits.emplace_back(results[0].values.begin(), results[0].values.end());
  }
}

/// The largest distance of any step's logits (relative, L2).
double worstError(const std::vector<std::vector<float>> &found,
                  const std::vector<std::vector<float>> &expected) {
  EXPECT_EQ(found.size(), expected.size());
  double worst = 0;
  for (auto [x, y] : llvm::zip(found, expected))
    worst = worse(worst, relativeError(x, y));
  return worst;
}

struct Variant {
  RandomModel model;
  std::vector<std::string> formats;
  int64_t context = 32;
  int64_t tokens = 8;
  std::string target = "host";
  /// Weight and what plan.json says of it ("int8-g32: ..."), a regular expression; for formats[0].
  std::vector<std::pair<std::string, std::string>> decisions = {};
  /// As a GGUF of this type.
  std::optional<uint32_t> gguf = std::nullopt;
};

class ModelVariants : public testing::TestWithParam<Variant> {};

/// How far logits may be from the evaluated model, and from the evaluated kernels, which make the
/// same roundings: about twice what was measured. Rounding to bf16 moves a number 8 times as far as
/// rounding to f16.
struct Tolerance {
  double model, kernels;
};
Tolerance tolerance(const Variant &variant, llvm::StringRef format) {
  bool bf16 = format == "bf16" || (format == "keep" && variant.model.dtype == "BF16");
  return bf16 ? Tolerance{2e-2, 6e-3} : Tolerance{4e-3, 2.5e-3};
}

} // namespace

TEST_P(ModelVariants, LogitsMatchTheReference) {
  const Variant &variant = GetParam();
  llvm::StringMap<bool> cpu = llvm::sys::getHostCPUFeatures();
  if (llvm::StringRef(variant.target).contains("avx512") && !cpu.lookup("avx512f"))
    GTEST_SKIP() << "this CPU has no AVX-512";
  if (llvm::StringRef(variant.target).contains("vnni") && !cpu.lookup("avx512vnni"))
    GTEST_SKIP() << "this CPU has no AVX-512 VNNI";
  Folder source;
  std::string model = source.str();
  if (variant.gguf)
    model = writeGGUF(variant.model, *variant.gguf, source);
  else
    writeHuggingFace(variant.model, source);

  std::mt19937 engine(3);
  std::vector<int32_t> tokens;
  for (int64_t i = 0; i < variant.tokens; ++i)
    tokens.push_back(engine() % variant.model.vocab);
  tokens.back() = variant.model.vocab - 1;

  for (const std::string &format : variant.formats) {
    SCOPED_TRACE(format);
    Compiled compiled;
    compiled.compile(model, format, variant.context, variant.target);
    if (HasFatalFailure())
      return;
    std::vector<std::vector<float>> found, quantized, scheduled;
    runtime::Session session(runtime::Artifact::open(compiled.artifact()));
    for (int32_t token : tokens) {
      std::span<const float> logits = session.decode(token);
      found.emplace_back(logits.begin(), logits.end());
    }
    EXPECT_EQ(found.front().size(), static_cast<size_t>(variant.model.vocab));
    // The model layer by layer on its quantized weights, and its fused kernels, which round as the
    // compiled ones do.
    evaluate(compiled.stage("2-quantized"), tokens, quantized);
    evaluate(compiled.stage("4-scheduled"), tokens, scheduled);
    double ofModel = worstError(found, quantized), ofKernels = worstError(found, scheduled);
    RecordProperty(format, std::to_string(ofModel) + " " + std::to_string(ofKernels));
    EXPECT_LE(ofModel, tolerance(variant, format).model);
    EXPECT_LE(ofKernels, tolerance(variant, format).kernels);
    if (format == variant.formats.front())
      for (const auto &[weight, expected] : variant.decisions)
        EXPECT_TRUE(llvm::Regex(expected).match(compiled.decision(weight)))
            << weight << ": " << compiled.decision(weight);
  }
}

static RandomModel shaped(std::string name, int64_t heads, int64_t kvHeads, int64_t headDim,
                          int64_t hidden, int64_t mlp, int64_t vocab = 96) {
  RandomModel model;
  model.name = std::move(name);
  model.heads = heads, model.kvHeads = kvHeads, model.headDim = headDim;
  model.hidden = hidden, model.mlp = mlp, model.vocab = vocab;
  return model;
}

template <typename Change> static RandomModel with(RandomModel model, Change change) {
  change(model);
  return model;
}

static std::vector<Variant> variants() {
  std::vector<Variant> list;
  // Heads: size, and how many share keys and values.
  list.push_back({shaped("Heads16", 4, 4, 16, 64, 96), {"int8-g32", "f16"}});
  list.push_back({shaped("Heads32", 4, 2, 32, 128, 160), {"int4-g32", "bf16"}});
  list.push_back({shaped("Heads64", 3, 1, 64, 96, 128), {"int8-g64", "f16"}});
  list.push_back({shaped("Heads80", 2, 2, 80, 160, 320), {"int8-channel", "f32"}});
  list.push_back({shaped("Heads96", 4, 2, 96, 96, 192), {"int4-g32-zp", "f16"}});
  list.push_back({shaped("Heads128", 2, 1, 128, 128, 256), {"int8-g128", "int4-g128-zp"}});
  list.push_back({shaped("Heads8", 6, 3, 8, 48, 64), {"int8-channel", "f16"}});
  list.push_back({shaped("Heads2", 3, 1, 2, 32, 32), {"f32", "int8-g32"}});
  list.push_back({shaped("Heads36", 2, 1, 36, 72, 100), {"f16", "int8-channel-zp"}});
  list.push_back({shaped("OneHead", 1, 1, 64, 64, 64), {"int4-g64"}});
  list.push_back({shaped("SevenHeadsShareOne", 7, 1, 16, 112, 96), {"f16", "int8-g32"}});
  list.push_back({shaped("SixteenHeadsShareOne", 16, 1, 16, 64, 96), {"f16"}});
  // heads * headDim and hidden.
  list.push_back({shaped("HeadsWiderThanModel", 4, 2, 64, 96, 128), {"f16", "int8-g32"}});
  list.push_back({shaped("HeadsNarrowerThanModel", 2, 1, 16, 192, 96), {"f16", "int4-g64-zp"}});
  // Widths that groups do not divide: a row's last group is shorter.
  list.push_back({shaped("ShortGroupsOf64", 2, 1, 48, 96, 160, 259),
                  {"int8-g64", "int4-g64"},
                  32,
                  8,
                  "host",
                  {{"blk.0.attn_q", "^int8-g64: asked for"},
                   {"blk.0.ffn_down", "^int8-g64: asked for"},
                   {"output", "^int8-g64: asked for"}}});
  list.push_back({shaped("ShortGroupsOf32", 5, 5, 20, 100, 100), {"int8-g32", "int4-g32-zp"}});
  list.push_back({shaped("ShortGroupsOf128", 2, 1, 88, 320, 344, 1000),
                  {"int8-g128", "int4-g128-zp", "int4-g256"},
                  32,
                  8,
                  "host",
                  {{"blk.1.attn_k", "^int8-g128: asked for"},
                   {"blk.1.attn_output", "^int8-g128: asked for"},
                   {"blk.1.ffn_down", "^int8-g128: asked for"}}});
  list.push_back({shaped("ChannelOfOddWidths", 2, 1, 22, 172, 344, 259),
                  {"int8-channel", "int4-channel", "int8-channel-zp", "int4-channel-zp"},
                  32,
                  8,
                  "host",
                  {{"blk.0.ffn_down", "^int8-channel: asked for"}}});
  list.push_back({shaped("FloatsOfOddWidths", 1, 1, 10, 31, 45, 17), {"f16", "bf16", "f32"}});
  list.push_back({shaped("ChannelOfPrimeWidths", 1, 1, 10, 31, 45, 17), {"int8-channel"}});
  list.push_back({shaped("ChannelOfPrimeWidths4", 1, 1, 10, 31, 45, 17), {"int4-channel-zp"}});
  list.push_back({shaped("Groups256", 4, 2, 64, 256, 512), {"int8-g256", "int4-g256-zp"}});
  // Every format.
  list.push_back({shaped("EveryInt8", 4, 2, 64, 256, 256, 259),
                  {"int8-g32-zp", "int8-g64-zp", "int8-g128-zp", "int8-g256-zp"}});
  list.push_back({shaped("EveryInt4", 4, 2, 64, 256, 256, 259),
                  {"int4-g32-zp", "int4-g64", "int4-g128", "int4-g256"}});
  list.push_back({shaped("Keep", 2, 1, 32, 64, 96), {"keep", "auto"}});
  // What a config.json may ask for.
  RandomModel plain = shaped("", 4, 2, 32, 128, 192, 100);
  list.push_back({with(plain, [](RandomModel &m) { m.name = "Tied", m.tied = true; }),
                  {"int8-g64", "f16", "keep"}});
  list.push_back({with(plain, [](RandomModel &m) { m.name = "Qwen2", m.family = "qwen2"; }),
                  {"int8-g64", "f16"}});
  list.push_back(
      {with(plain,
            [](RandomModel &m) { m.name = "AllBiases", m.attentionBias = m.mlpBias = true; }),
       {"int4-g32-zp", "f16"}});
  list.push_back(
      {with(plain, [](RandomModel &m) { m.name = "AttentionBias", m.attentionBias = true; }),
       {"int8-g128"}});
  list.push_back({with(plain,
                       [](RandomModel &m) {
                         m.name = "Llama3Rope";
                         m.theta = 500000;
                         m.ropeScaling = {{"rope_type", "llama3"},
                                          {"factor", 8.0},
                                          {"low_freq_factor", 1.0},
                                          {"high_freq_factor", 4.0},
                                          {"original_max_position_embeddings", 32}};
                       }),
                  {"f16"},
                  100,
                  70});
  list.push_back({with(plain,
                       [](RandomModel &m) {
                         m.name = "LinearRope";
                         m.ropeScaling = {{"type", "linear"}, {"factor", 2.5}};
                       }),
                  {"f16"}});
  list.push_back({with(plain, [](RandomModel &m) { m.name = "Theta1e6", m.theta = 1e6; }),
                  {"int8-g32"},
                  0,
                  20});
  list.push_back(
      {with(plain, [](RandomModel &m) { m.name = "Bf16File", m.dtype = "BF16", m.shards = 3; }),
       {"keep", "int8-g64"}});
  list.push_back(
      {with(plain, [](RandomModel &m) { m.name = "F32File", m.dtype = "F32", m.shards = 2; }),
       {"keep", "int4-g64", "bf16"}});
  list.push_back({with(plain, [](RandomModel &m) { m.name = "OneLayer", m.layers = 1; }), {"f16"}});
  // Positions: one, and more than attention takes at once.
  list.push_back({with(plain, [](RandomModel &m) { m.name = "OnePosition"; }), {"int8-g64"}, 1, 1});
  list.push_back({with(plain, [](RandomModel &m) { m.name = "ModelOfOnePosition", m.context = 1; }),
                  {"f16"},
                  0,
                  1});
  list.push_back(
      {with(plain, [](RandomModel &m) { m.name = "ManyPositions"; }), {"int8-g64"}, 101, 101});
  // Windows: of all layers, of the last one; less than a tile of positions and more.
  list.push_back(
      {with(plain, [](RandomModel &m) { m.name = "Mistral", m.family = "mistral", m.window = 7; }),
       {"int8-g64", "f16"},
       80,
       30});
  list.push_back(
      {with(plain,
            [](RandomModel &m) { m.name = "Qwen2OfWindows", m.family = "qwen2", m.window = 70; }),
       {"f16"},
       101,
       101});
  // Norms of q and k, whose heads are any part of the width.
  list.push_back({with(shaped("Qwen3", 4, 2, 64, 128, 192, 100),
                       [](RandomModel &m) { m.family = "qwen3", m.tied = true, m.theta = 1e6; }),
                  {"int8-g64", "f16", "bf16"},
                  70,
                  40});
  list.push_back(
      {with(shaped("Qwen3OfBiasesAndWindows", 6, 3, 20, 96, 128),
            [](RandomModel &m) { m.family = "qwen3", m.attentionBias = true, m.window = 33; }),
       {"f16"},
       70,
       70});
  // Instruction sets.
  for (const char *isa : {"host-avx2", "host-avx512", "host-avx512-vnni"}) {
    std::string suffix = isa;
    std::replace(suffix.begin(), suffix.end(), '-', '_');
    list.push_back({with(shaped("Target_" + suffix, 4, 2, 40, 160, 352, 259),
                         [](RandomModel &m) { m.family = "qwen2"; }),
                    {"int8-g32", "int4-g32-zp", "f16", "bf16", "f32"},
                    32,
                    8,
                    isa});
    list.push_back({with(shaped("Qwen3Target_" + suffix, 4, 2, 40, 160, 352, 259),
                         [](RandomModel &m) { m.family = "qwen3"; }),
                    {"int8-g32"},
                    32,
                    8,
                    isa});
  }
  // GGUF, with its rows of q and k in its own order.
  for (auto [name, type] : {std::pair("F32", 0u), {"F16", 1u}, {"Q4_0", 2u}, {"Q8_0", 8u}})
    list.push_back({shaped(std::string("Gguf") + name, 4, 2, 32, 96, 160, 259),
                    {"keep", "int8-g32-zp", "f16"},
                    32,
                    8,
                    "host",
                    {},
                    type});
  list.push_back({with(shaped("GgufQwen3", 4, 2, 48, 96, 160, 259),
                       [](RandomModel &m) { m.family = "qwen3", m.tied = true; }),
                  {"keep", "int4-g32"},
                  32,
                  8,
                  "host",
                  {},
                  2});
  list.push_back({with(shaped("GgufQwen2", 4, 2, 32, 96, 160, 259),
                       [](RandomModel &m) { m.family = "qwen2", m.tied = true; }),
                  {"keep", "int4-g32"},
                  32,
                  8,
                  "host",
                  {},
                  8});
  return list;
}

INSTANTIATE_TEST_SUITE_P(Shapes, ModelVariants, testing::ValuesIn(variants()),
                         [](const auto &info) { return info.param.model.name; });
