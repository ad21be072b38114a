// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Whole models against what Hugging Face transformers computed from the same weights (golden.json).

#include "ReferenceTest.h"

#include "sluice/Import/ModelBuilder.h"

#include "llvm/Support/MemoryBuffer.h"

#include <nlohmann/json.hpp>

#include <algorithm>
#include <cmath>

using namespace sluice;
using namespace sluice::reference;

namespace {

nlohmann::json golden() {
  auto buffer = llvm::MemoryBuffer::getFile(SLUICE_MODELS "/llama-4m/golden.json");
  EXPECT_TRUE(static_cast<bool>(buffer));
  return nlohmann::json::parse((*buffer)->getBuffer().str());
}

/// A model with its files, ready for steps.
class ReferenceModel {
public:
  explicit ReferenceModel(const std::string &path, ImportOptions options = {}) {
    auto files = openModel(path);
    EXPECT_TRUE(static_cast<bool>(files)) << llvm::toString(files.takeError());
    auto imported = importModel(context, *files, options);
    EXPECT_TRUE(static_cast<bool>(imported)) << llvm::toString(imported.takeError());
    module = std::move(*imported);
    auto opened = FileWeights::open(*module);
    EXPECT_TRUE(static_cast<bool>(opened)) << llvm::toString(opened.takeError());
    weights = std::make_unique<FileWeights>(std::move(*opened));
    evaluator = std::make_unique<Evaluator>(*module, *weights);
  }

  Tensor decode(std::vector<int32_t> tokens, std::vector<int32_t> positions) {
    int64_t rows = tokens.size();
    auto results = evaluator->call("decode", {Tensor::ints({rows}, std::move(tokens)),
                                              Tensor::ints({rows}, std::move(positions))});
    if (!results) {
      ADD_FAILURE() << llvm::toString(results.takeError());
      return {};
    }
    return results->front();
  }

  /// The logits of each id, given all before it.
  std::vector<std::vector<float>> logits(llvm::ArrayRef<int> ids) {
    evaluator->resetCaches();
    std::vector<std::vector<float>> result;
    for (auto [position, id] : llvm::enumerate(ids))
      result.push_back(decode({id}, {static_cast<int32_t>(position)}).values);
    return result;
  }

  mlir::MLIRContext context;
  mlir::OwningOpRef<mlir::ModuleOp> module;
  std::unique_ptr<FileWeights> weights;
  std::unique_ptr<Evaluator> evaluator;
};

int best(llvm::ArrayRef<float> logits) { return llvm::max_element(logits) - logits.begin(); }

/// Negative log likelihood of `id`, in nats.
double surprise(llvm::ArrayRef<float> logits, int id) {
  double greatest = *llvm::max_element(logits), sum = 0;
  for (float logit : logits)
    sum += std::exp(logit - greatest);
  return greatest + std::log(sum) - logits[id];
}

/// Mean surprise at ids 1 .. n-1, given all before.
double meanSurprise(ReferenceModel &model, llvm::ArrayRef<int> ids) {
  std::vector<std::vector<float>> logits = model.logits(ids.drop_back());
  double sum = 0;
  for (auto [row, id] : llvm::zip(logits, ids.drop_front()))
    sum += surprise(row, id);
  return sum / static_cast<double>(logits.size());
}

double relativeError(llvm::ArrayRef<float> actual, llvm::ArrayRef<float> expected) {
  double difference = 0, norm = 0;
  for (auto [a, e] : llvm::zip_equal(actual, expected)) {
    difference += (a - e) * (a - e);
    norm += e * e;
  }
  return std::sqrt(difference / norm);
}

TEST(ReferenceModelTest, ContinuesGreedilyAsTransformers) {
  ReferenceModel model(SLUICE_MODELS "/llama-4m");
  std::vector<int> ids = golden()["greedy_ids"];
  size_t prompt = golden()["prompt_ids"].size();
  std::vector<std::vector<float>> logits = model.logits(llvm::ArrayRef(ids).drop_back());
  for (size_t i = prompt; i < ids.size(); ++i)
    EXPECT_EQ(best(logits[i - 1]), ids[i]) << "id " << i;
}

TEST(ReferenceModelTest, HasTheLikelihoodOfTransformers) {
  ReferenceModel model(SLUICE_MODELS "/llama-4m");
  std::vector<int> ids = golden()["alice_first_513_ids"];
  double expected = golden()["alice_first_512_mean_nll_fp32"];
  ASSERT_NEAR(expected, 3.777131, 1e-6);
  double actual = meanSurprise(model, ids);
  EXPECT_NEAR(actual, expected, 1e-4);
  // The golden value has float32 noise of its own: in double, and with a cache that rounds nothing,
  // it is 3.7771142.
  EXPECT_NEAR(actual, 3.7771142, 1e-5);
}

TEST(ReferenceModelTest, BlocksOfAGGUFAreCloseToTheFloats) {
  // The GGUF's q and k have their rows interleaved and its weights 8 bits.
  ReferenceModel floats(SLUICE_MODELS "/llama-4m"), blocks(SLUICE_TEST_DATA "/llama-4m.Q8_0.gguf");
  std::vector<int> ids = golden()["prompt_ids"];
  std::vector<std::vector<float>> expected = floats.logits(ids), actual = blocks.logits(ids);
  for (size_t i = 0; i < ids.size(); ++i)
    EXPECT_LT(relativeError(actual[i], expected[i]), 0.02) << "id " << i;
  EXPECT_GT(relativeError(actual[0], expected[0]), 1e-5);
}

TEST(ReferenceModelTest, RowsOfAStepAreTokensOfOneText) {
  ReferenceModel one(SLUICE_MODELS "/llama-4m", {.context = 16});
  ReferenceModel four(SLUICE_MODELS "/llama-4m", {.context = 16, .tokens = 4});
  std::vector<int> ids = golden()["prompt_ids"];
  std::vector<std::vector<float>> expected = one.logits(llvm::ArrayRef(ids).take_front(8));
  four.decode({ids.begin(), ids.begin() + 4}, {0, 1, 2, 3});
  Tensor logits = four.decode({ids.begin() + 4, ids.begin() + 8}, {4, 5, 6, 7});
  for (int row = 0; row < 4; ++row)
    EXPECT_EQ(logits.row(row), llvm::ArrayRef(expected[4 + row])) << row;
  auto outside = one.evaluator->call("decode", {Tensor::ints({1}, {1}), Tensor::ints({1}, {16})});
  EXPECT_EQ(llvm::toString(outside.takeError()),
            "model.cache_append (cache.k.0): position 16 is outside the cache of 16");
}

} // namespace
