// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// The sample model evaluated as a step of one kernel: sums in fixed point are close to float32's,
// and what they cannot hold becomes NaN.

#include "dialects/Fused/Fused.h"
#include "sluice/Pipelines/Compiler.h"
#include "sluice/Pipelines/Pipelines.h"
#include "sluice/Reference/Evaluator.h"

#include "mlir/Parser/Parser.h"

#include "gtest/gtest.h"

#include <cmath>
#include <filesystem>
#include <unistd.h>

using namespace sluice;
using reference::Tensor;
namespace fs = std::filesystem;

namespace {

class PersistentNumerics : public testing::Test {
protected:
  void SetUp() override {
    directory = fs::temp_directory_path() / ("sluice-persistent-" + std::to_string(getpid()));
    CompileOptions options;
    options.model = SLUICE_MODELS "/llama-4m";
    options.weights = "int8-g128";
    options.context = 64;
    options.output = (directory / "artifact").string();
    options.emitIr = (directory / "ir").string();
    fs::create_directories(directory);
    llvm::Error error = compile(options);
    ASSERT_FALSE(error) << llvm::toString(std::move(error));
    registerDialects(registry);
    context.appendDialectRegistry(registry);
    context.loadAllAvailableDialects();
    module = mlir::parseSourceFile<mlir::ModuleOp>((directory / "ir" / "3-fused.mlir").string(),
                                                   &context);
    ASSERT_TRUE(module);
  }
  void TearDown() override { fs::remove_all(directory); }

  void setSchedule(int64_t clusters, int64_t clusterBlocks, int64_t attentionClusters) {
    module->lookupSymbol("decode")->setAttr(
        "sluice.persistent",
        fused::PersistentScheduleAttr::get(&context, clusters, clusterBlocks, attentionClusters,
                                           /*warps=*/4, /*stages=*/4, /*attentionInFlight=*/2,
                                           /*mlpInFlight=*/2));
  }

  /// Logits of the last of these tokens.
  llvm::Expected<std::vector<float>> logits(llvm::ArrayRef<int32_t> tokens) {
    llvm::Expected<reference::FileWeights> weights = reference::FileWeights::open(*module);
    if (!weights)
      return weights.takeError();
    reference::Evaluator evaluator(*module, *weights);
    std::vector<float> last;
    for (auto [position, token] : llvm::enumerate(tokens)) {
      auto results = evaluator.call(
          "decode", {Tensor::ints({1}, {token}), Tensor::ints({1}, {int32_t(position)})});
      if (!results)
        return results.takeError();
      last = results->front().values;
    }
    return last;
  }

  mlir::DialectRegistry registry;
  mlir::MLIRContext context{mlir::MLIRContext::Threading::DISABLED};
  mlir::OwningOpRef<mlir::ModuleOp> module;
  fs::path directory;
};

double relativeError(llvm::ArrayRef<float> a, llvm::ArrayRef<float> b) {
  double difference = 0, norm = 0;
  for (auto [x, y] : llvm::zip_equal(a, b)) {
    difference += (double(x) - y) * (double(x) - y);
    norm += double(y) * y;
  }
  return std::sqrt(difference / norm);
}

} // namespace

TEST_F(PersistentNumerics, FixedPointIsCloseToFloat) {
  const int32_t tokens[] = {1, 404, 289, 1002, 77, 5, 1500, 320};
  auto expected = logits(tokens);
  ASSERT_TRUE(bool(expected)) << llvm::toString(expected.takeError());
  std::vector<std::vector<float>> found;
  for (auto [clusters, attention] : {std::pair(1, 1), {3, 2}, {6, 1}}) {
    setSchedule(clusters, 2, attention);
    auto values = logits(tokens);
    ASSERT_TRUE(bool(values)) << llvm::toString(values.takeError());
    double error = relativeError(*values, *expected);
    RecordProperty("clusters_" + std::to_string(clusters), std::to_string(error));
    // Measured: 8e-5 to 9e-5.
    EXPECT_LE(error, 2e-4) << clusters;
    EXPECT_GT(error, 0) << clusters;
    found.push_back(std::move(*values));
  }
  // How the sums are divided matters less than that.
  EXPECT_LE(relativeError(found[1], found[0]), 2e-4);
}

TEST_F(PersistentNumerics, WhatFixedPointDoesNotHoldIsNan) {
  setSchedule(3, 2, 2);
  // Gains of a norm so large that the MLP's inner values are beyond f16.
  struct Large : reference::WeightProvider {
    explicit Large(reference::WeightProvider &files) : files(files) {}
    llvm::Expected<reference::WeightValue> read(model::WeightOp weight) override {
      llvm::Expected<reference::WeightValue> value = files.read(weight);
      if (value && weight.getSymName() == "blk.0.ffn_norm")
        for (float &gain : std::get<Tensor>(*value).values)
          gain *= 1e6f;
      return value;
    }
    reference::WeightProvider &files;
  };
  llvm::Expected<reference::FileWeights> files = reference::FileWeights::open(*module);
  ASSERT_TRUE(bool(files)) << llvm::toString(files.takeError());
  Large weights(*files);
  reference::Evaluator evaluator(*module, weights);
  auto results = evaluator.call("decode", {Tensor::ints({1}, {1}), Tensor::ints({1}, {0})});
  ASSERT_TRUE(bool(results)) << llvm::toString(results.takeError());
  for (float logit : results->front().values)
    ASSERT_TRUE(std::isnan(logit));
}

TEST_F(PersistentNumerics, AScheduleThatDoesNotSuitIsAnError) {
  setSchedule(3, 2, 3);
  auto values = logits({1});
  ASSERT_FALSE(bool(values));
  EXPECT_EQ(llvm::toString(values.takeError()),
            "function 'decode': 2 key/value heads on 3 clusters");
}
