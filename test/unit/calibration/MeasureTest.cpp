// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sluice/Calibration/Measure.h"

#include "CalibrationTest.h"

#include "sluice/Formats/Quantizer.h"
#include "sluice/Pipelines/Compiler.h"

#include "llvm/Support/MemoryBuffer.h"

using namespace sluice;
using namespace sluice::calibration;
using namespace sluice::test;

namespace {

/// Ids of the sample text, as llama-4m has them.
const std::vector<int32_t> &sampleIds() {
  static const std::vector<int32_t> ids = [] {
    auto tokenizer = modelTokenizer(SLUICE_MODELS "/llama-4m");
    EXPECT_TRUE(static_cast<bool>(tokenizer)) << llvm::toString(tokenizer.takeError());
    auto text = llvm::MemoryBuffer::getFile(SLUICE_TEST_DATA "/alice.txt");
    EXPECT_TRUE(static_cast<bool>(text));
    return tokenizer->encodeWhole((*text)->getBuffer().take_front(8000).str());
  }();
  return ids;
}

Statistics measured(const std::string &model, const MeasureOptions &options) {
  Folder folder;
  auto files = openModel(model);
  EXPECT_TRUE(static_cast<bool>(files)) << llvm::toString(files.takeError());
  auto summary = measure(*files, folder / "stats", options);
  EXPECT_TRUE(static_cast<bool>(summary)) << llvm::toString(summary.takeError());
  auto statistics = Statistics::read(folder / "stats");
  EXPECT_TRUE(static_cast<bool>(statistics)) << llvm::toString(statistics.takeError());
  return std::move(*statistics);
}

MeasureOptions llamaOptions() {
  MeasureOptions options;
  options.tokens = sampleIds();
  options.bosId = 1;
  options.statisticsTokens = options.sensitivityTokens = 512;
  return options;
}

/// Of llama-4m on the first window of the sample text.
const Statistics &llama() {
  static const Statistics statistics = measured(SLUICE_MODELS "/llama-4m", llamaOptions());
  return statistics;
}

std::vector<int32_t> firstWindow() {
  std::vector<int32_t> tokens(sampleIds().begin(), sampleIds().begin() + calibrationWindow);
  tokens[0] = 1;
  return tokens;
}

TEST(Measure, KeepsWhatProductsRead) {
  const Statistics &statistics = llama();
  EXPECT_EQ(statistics.weights().size(), 29U);
  EXPECT_EQ(statistics.inputs().size(), 17U);
  EXPECT_EQ(statistics.source.tokens, 512);

  ForwardModel model(SLUICE_MODELS "/llama-4m", calibrationWindow);
  std::vector<int32_t> tokens = firstWindow();
  ASSERT_EQ(message(model.pass->load(0, tokens)), "success");
  std::shared_ptr<const Tensor> input;
  ForwardHooks hooks;
  hooks.product = [&](model::LinearOp op, const std::shared_ptr<const Tensor> &value, Tensor &) {
    if (model.pass->weightOf(op).getSymName() == "blk.0.attn_k")
      input = value;
  };
  model.pass->run(nullptr, tokens, hooks);
  const InputStatistics &kept = *statistics.inputOf("blk.0.attn_k");
  ASSERT_EQ(kept.columns(), 256);
  ASSERT_EQ(kept.hessian.size(), packedSize(256));
  for (auto [i, j] : {std::pair(0, 0), {1, 0}, {17, 5}, {255, 255}, {255, 3}, {100, 99}}) {
    double sum = 0;
    for (int64_t row = 0; row < input->rows(); ++row)
      sum += static_cast<double>(input->row(row)[i]) * input->row(row)[j];
    double mean = sum / static_cast<double>(input->rows());
    EXPECT_NEAR(kept.hessian[packedIndex(i, j)], mean,
                1e-5 * std::sqrt(kept.moments[i] * kept.moments[j]));
    if (i == j)
      EXPECT_FLOAT_EQ(kept.moments[i], static_cast<float>(mean));
  }
}

TEST(Measure, LossIsProportionalToTheErrorOfAWeight) {
  MeasureOptions options = llamaOptions();
  options.noise = 0.01;
  options.hessians = false;
  Statistics smaller = measured(SLUICE_MODELS "/llama-4m", options);
  for (const std::string &name : llama().weights())
    EXPECT_NEAR(*smaller.find(name)->sensitivity / *llama().find(name)->sensitivity, 1, 0.06)
        << name;
}

TEST(Measure, RoundsDoNotChangeTheResult) {
  MeasureOptions options = llamaOptions();
  options.hessians = false;
  options.streamBytes = 20 << 20; // a dozen streams
  Statistics rounds = measured(SLUICE_MODELS "/llama-4m", options);
  for (const std::string &name : llama().weights())
    EXPECT_EQ(rounds.find(name)->sensitivity, llama().find(name)->sensitivity) << name;
  EXPECT_EQ(rounds.keys.nats, llama().keys.nats);
  EXPECT_EQ(rounds.values.nats, llama().values.nats);
}

TEST(Measure, FinerCachesLoseLess) {
  for (int64_t layer = 0; layer < 4; ++layer)
    for (bool isKey : {true, false}) {
      auto loss = [&](llvm::StringRef format) { return *llama().cacheLoss(layer, isKey, format); };
      EXPECT_GT(loss("int8"), 0);
      EXPECT_LT(loss("int8"), loss("fp8") / 5);
      EXPECT_LT(loss("fp8"), loss("int4-h32"));
      EXPECT_LT(loss("int4-h32"), loss("int4"));
    }
  EXPECT_LT(*llama().cacheLoss(1, true, "int4-rot"), *llama().cacheLoss(1, true, "int4"));
  EXPECT_EQ(llama().cacheLoss(1, false, "int4-rot"), std::nullopt);
}

/// Those of files but for one weight.
struct OneOther : WeightRows {
  OneOther(WeightRows &files, llvm::StringRef name, llvm::ArrayRef<float> other)
      : files(files), name(name), other(other) {}
  llvm::Error read(model::WeightOp weight, int64_t first,
                   llvm::MutableArrayRef<float> rows) override {
    if (weight.getSymName() != name)
      return files.read(weight, first, rows);
    llvm::copy(other.slice(first * 256, rows.size()), rows.begin());
    return llvm::Error::success();
  }
  WeightRows &files;
  llvm::StringRef name;
  llvm::ArrayRef<float> other;
};

/// What sensitivities are for: they predict the loss of a quantized weight.
TEST(Measure, PredictsTheLossOfAQuantizedWeight) {
  std::vector<int32_t> tokens = firstWindow();
  ForwardModel model(SLUICE_MODELS "/llama-4m", calibrationWindow);
  ReferenceLogits reference(model.logits(tokens));
  for (const std::string &name : {std::string("blk.0.ffn_up"), std::string("blk.2.attn_v")}) {
    auto op = model.module->lookupSymbol<model::WeightOp>(name);
    int64_t rows = llvm::cast<mlir::RankedTensorType>(op.getType()).getDimSize(0);
    std::vector<float> weight(rows * 256), rounded(weight.size());
    ASSERT_EQ(message(model.weights->read(op, 0, weight)), "success");
    formats::Encoding format = *formats::Encoding::fromName("int4-g64");
    formats::EncodedRows encoded(format, rows, 256);
    for (int64_t row = 0; row < rows; ++row) {
      auto values = llvm::ArrayRef(weight).slice(row * 256, 256);
      ASSERT_EQ(message(formats::quantizeRow(values, format, encoded.numbers(row))), "success");
      formats::dequantizeRow(format, encoded.row(row),
                             llvm::MutableArrayRef(rounded).slice(row * 256, 256));
    }
    double predicted =
        *llama().find(name)->sensitivity * relativeError(weight, rounded, *llama().inputOf(name));
    OneOther weights(*model.weights, name, rounded);
    auto pass = ForwardPass::create(*model.module, weights);
    ASSERT_TRUE(static_cast<bool>(pass));
    std::shared_ptr<Tensor> state;
    for (size_t segment = 0; segment < pass->segments(); ++segment) {
      ASSERT_EQ(message(pass->load(segment, tokens)), "success");
      state = pass->run(state, tokens);
    }
    double loss = 0;
    for (int64_t row = 0; row < reference.rows(); ++row)
      loss += reference.divergence(row, state->row(row)) / static_cast<double>(reference.rows());
    EXPECT_NEAR(predicted / loss, 1, 0.2) << name;
  }
}

TEST(Measure, WorksForEveryFamily) {
  std::error_code ec;
  for (llvm::sys::fs::directory_iterator it(SLUICE_TEST_DATA "/families", ec), end;
       it != end && !ec; it.increment(ec)) {
    SCOPED_TRACE(it->path());
    std::vector<int32_t> tokens(128);
    for (size_t i = 0; i < tokens.size(); ++i)
      tokens[i] = static_cast<int32_t>(7 * i % 60);
    MeasureOptions options;
    options.tokens = tokens;
    Statistics statistics = measured(it->path(), options);
    EXPECT_EQ(statistics.source.tokens, 128);
    EXPECT_TRUE(statistics.hasSensitivities());
    for (const std::string &name : statistics.weights())
      EXPECT_GT(*statistics.find(name)->sensitivity, 0) << name;
  }
}

TEST(Measure, SaysWhatIsWrong) {
  Folder folder;
  auto files = openModel(SLUICE_MODELS "/llama-4m");
  ASSERT_TRUE(static_cast<bool>(files));
  MeasureOptions options = llamaOptions();
  options.tokens = options.tokens.take_front(511);
  EXPECT_EQ(message(measure(*files, folder / "stats", options)),
            "the text has 511 tokens, expected at least one window of 512");
  EXPECT_FALSE(llvm::sys::fs::exists(folder / "stats"));
  std::vector<int32_t> tokens(512, 5000);
  options.tokens = tokens;
  EXPECT_EQ(message(measure(*files, folder / "stats", options)),
            "token 5000 is outside the table of 2048");
  std::error_code ec;
  for (llvm::sys::fs::directory_iterator it(folder.str(), ec), end; it != end && !ec;
       it.increment(ec))
    ADD_FAILURE() << "a part of a file was left: " << it->path();
}

} // namespace
