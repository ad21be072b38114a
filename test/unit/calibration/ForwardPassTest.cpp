// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "CalibrationTest.h"

#include "sluice-runtime/Sampling.h"
#include "sluice/Reference/Evaluator.h"

#include <random>

using namespace sluice;
using namespace sluice::calibration;
using namespace sluice::test;

namespace {

double relativeError(llvm::ArrayRef<float> actual, llvm::ArrayRef<float> expected) {
  double difference = 0, norm = 0;
  for (auto [a, e] : llvm::zip_equal(actual, expected)) {
    difference += (static_cast<double>(a) - e) * (static_cast<double>(a) - e);
    norm += static_cast<double>(e) * e;
  }
  return std::sqrt(difference / norm);
}

/// The logits of the reference evaluator with caches that round nothing.
std::vector<float> referenceLogits(ForwardModel &model, llvm::ArrayRef<int32_t> tokens) {
  for (auto cache : model.module->getOps<model::CacheOp>())
    cache.setType(cache.getCacheType().withEncoding({formats::CacheEncoding::Element::F32}));
  auto weights = reference::FileWeights::open(*model.module);
  EXPECT_TRUE(static_cast<bool>(weights)) << llvm::toString(weights.takeError());
  reference::Evaluator evaluator(*model.module, *weights);
  auto rows = static_cast<int64_t>(tokens.size());
  std::vector<int32_t> positions(rows);
  std::iota(positions.begin(), positions.end(), 0);
  auto results = evaluator.call(
      "decode", {Tensor::ints({rows}, tokens.vec()), Tensor::ints({rows}, std::move(positions))});
  EXPECT_TRUE(static_cast<bool>(results)) << llvm::toString(results.takeError());
  return results->front().values;
}

std::vector<int32_t> randomTokens(const ForwardPass &pass) {
  std::mt19937 random(1);
  std::vector<int32_t> tokens(pass.window());
  for (int32_t &token : tokens)
    token = static_cast<int32_t>(random() % pass.vocabulary());
  return tokens;
}

class ForwardPassOf : public testing::TestWithParam<std::string> {};

std::vector<std::string> models() {
  std::vector<std::string> paths = {
      SLUICE_MODELS "/llama-4m", SLUICE_MODELS "/qwen3-4m", SLUICE_MODELS "/gpt2-4m",
      SLUICE_TEST_DATA "/llama-4m.Q4_K_M.gguf", SLUICE_TEST_DATA "/qwen3-4m.Q4_0.gguf"};
  std::error_code ec;
  for (llvm::sys::fs::directory_iterator it(SLUICE_TEST_DATA "/families", ec), end;
       it != end && !ec; it.increment(ec))
    paths.push_back(it->path());
  llvm::sort(paths);
  return paths;
}

TEST_P(ForwardPassOf, HasTheReferencesLogits) {
  // All that the small models have.
  int64_t window = llvm::StringRef(GetParam()).contains("families") ? 64 : 20;
  ForwardModel model(GetParam(), window);
  ASSERT_TRUE(model.pass);
  std::vector<int32_t> tokens = randomTokens(*model.pass);
  std::vector<float> expected = referenceLogits(model, tokens);
  Tensor logits = model.logits(tokens);
  ASSERT_EQ(logits.values.size(), expected.size());
  EXPECT_LT(relativeError(logits.values, expected), 2e-6);
}

INSTANTIATE_TEST_SUITE_P(All, ForwardPassOf, testing::ValuesIn(models()), [](const auto &info) {
  std::string name = llvm::sys::path::filename(info.param).str();
  for (char &c : name)
    if (!llvm::isAlnum(c))
      c = '_';
  return name;
});

TEST(ForwardPass, SkipsWhatIsOutsideOfAWindow) {
  ForwardModel model(SLUICE_MODELS "/llama-4m", 150);
  ASSERT_TRUE(model.pass);
  model.module->walk([](model::AttentionOp op) {
    op.setWindow(20);
    op.setSoftCap(llvm::APFloat(5.0));
  });
  std::vector<int32_t> tokens = randomTokens(*model.pass);
  EXPECT_LT(relativeError(model.logits(tokens).values, referenceLogits(model, tokens)), 2e-6);
}

TEST(ForwardPass, IsCutAtTheResidualStream) {
  ForwardModel model(SLUICE_MODELS "/llama-4m", 8);
  ASSERT_TRUE(model.pass);
  // Attention and MLP of four layers, and the head.
  ASSERT_EQ(model.pass->segments(), 9U);
  EXPECT_FALSE(model.pass->isByRow(0));
  EXPECT_TRUE(model.pass->isByRow(8));
  auto count = [&](size_t segment) {
    return llvm::count_if(model.pass->operations(segment),
                          [](mlir::Operation *op) { return llvm::isa<model::LinearOp>(op); });
  };
  EXPECT_EQ(count(0), 4);
  EXPECT_EQ(count(1), 3);
  EXPECT_EQ(count(8), 1);
}

TEST(ForwardPass, HooksSeeAndChangeProductsAndCaches) {
  ForwardModel model(SLUICE_MODELS "/llama-4m", 8);
  ASSERT_TRUE(model.pass);
  std::vector<int32_t> tokens = {1, 5, 7, 11, 13, 17, 19, 23};
  ASSERT_FALSE(model.pass->load(0, tokens));
  std::vector<std::string> seen;
  ForwardHooks hooks;
  hooks.product = [&](model::LinearOp op, const std::shared_ptr<const Tensor> &input, Tensor &) {
    EXPECT_EQ(input->rows(), 8);
    seen.push_back(model.pass->weightOf(op).getSymName().str());
  };
  hooks.append = [&](model::CacheAppendOp op, Tensor &rows) {
    seen.push_back(op.getCache().str());
    rows.values.assign(rows.values.size(), 0);
  };
  auto plain = model.pass->run(nullptr, tokens), changed = model.pass->run(nullptr, tokens, hooks);
  EXPECT_EQ(seen, (std::vector<std::string>{"blk.0.attn_q", "blk.0.attn_k", "blk.0.attn_v",
                                            "cache.k.0", "cache.v.0", "blk.0.attn_output"}));
  EXPECT_NE(plain->values, changed->values);
}

TEST(ForwardPass, RefusesTokensOutsideTheVocabulary) {
  ForwardModel model(SLUICE_MODELS "/llama-4m", 8);
  ASSERT_TRUE(model.pass);
  EXPECT_EQ(message(model.pass->load(0, {1, 99999})), "token 99999 is outside the table of 2048");
}

TEST(ReferenceLogits, DivergeAsTheyDoInDouble) {
  std::mt19937 random(3);
  std::normal_distribution<float> normal;
  Tensor logits = Tensor::zeros({1, 3000});
  for (float &x : logits.values)
    x = 3 * normal(random);
  ReferenceLogits reference(logits);
  EXPECT_EQ(reference.divergence(0, logits.values), 0);
  for (float size : {1e-3f, 1e-2f, 0.3f, 4.0f}) {
    std::vector<float> other = logits.values;
    for (float &x : other)
      x += size * normal(random) + 2;
    double expected = runtime::klDivergence(logits.values, other);
    EXPECT_NEAR(reference.divergence(0, other), expected, 2e-3 * expected) << size;
  }
}

} // namespace
