// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// What the evaluator does around the operations: weights, caches, hooks, errors.

#include "ReferenceTest.h"

using namespace mlir;
using namespace sluice;
using namespace sluice::reference;

namespace {

using EvaluatorTest = ReferenceTest;

/// Counts how often weights are read.
class CountingWeights : public WeightProvider {
public:
  explicit CountingWeights(WeightProvider &inner) : inner(inner) {}
  llvm::Expected<WeightValue> read(model::WeightOp weight) override {
    ++reads;
    return inner.read(weight);
  }
  int reads = 0;

private:
  WeightProvider &inner;
};

TEST_F(EvaluatorTest, UndoesInterleavedRows) {
  // Two heads of 4 rows: file rows 0, 1, 2, 3 are rows 0, 2, 1, 3 of the head.
  loadFunction("model.weight @w : tensor<8x1xf16> interleaved 4\n"
               "model.weight @b : tensor<8xf32> interleaved 4\n"
               "model.weight @q : !quantized.tensor<4x32xi8, group = 32> interleaved 4",
               "() -> (tensor<8x1xf16>, tensor<8xf32>, tensor<4x32xf32>)", R"(
    %w = model.parameter @w : tensor<8x1xf16>
    %b = model.parameter @b : tensor<8xf32>
    %q = model.parameter @q : !quantized.tensor<4x32xi8, group = 32>
    %d = quantized.dequantize %q : !quantized.tensor<4x32xi8, group = 32> to tensor<4x32xf32>
    return %w, %b, %d : tensor<8x1xf16>, tensor<8xf32>, tensor<4x32xf32>)");
  weights.set("w", floats({8, 1}, {0, 2, 1, 3, 10, 12, 11, 13}));
  weights.set("b", floats({8}, {0, 2, 1, 3, 10, 12, 11, 13}));
  QuantizedMatrix q;
  q.encoding = {formats::Encoding::Element::I8, 32};
  q.rows = 4;
  q.columns = 32;
  for (int8_t row : {0, 2, 1, 3}) {
    q.q.insert(q.q.end(), 32, row);
    q.scales.push_back(formats::floatToF16(row + 1));
  }
  weights.set("q", q);
  auto results = evaluator->call("f", {});
  ASSERT_TRUE(static_cast<bool>(results)) << llvm::toString(results.takeError());
  EXPECT_EQ((*results)[0].values, (Floats{0, 1, 2, 3, 10, 11, 12, 13}));
  EXPECT_EQ((*results)[1].values, (Floats{0, 1, 2, 3, 10, 11, 12, 13}));
  for (int row = 0; row < 4; ++row)
    EXPECT_EQ((*results)[2].row(row)[row], row * (row + 1));
}

TEST_F(EvaluatorTest, ReadsWeightsOnce) {
  loadFunction("model.weight @w : tensor<2x2xf32>", "(%x: tensor<1x2xf32>) -> tensor<1x2xf32>", R"(
    %w = model.parameter @w : tensor<2x2xf32>
    %v = model.parameter @w : tensor<2x2xf32>
    %a = model.linear %x, %w : tensor<1x2xf32>, tensor<2x2xf32> -> tensor<1x2xf32>
    %b = model.linear %a, %v : tensor<1x2xf32>, tensor<2x2xf32> -> tensor<1x2xf32>
    return %b : tensor<1x2xf32>)");
  weights.set("w", floats({2, 2}, {0, 2, 1, 0}));
  CountingWeights counting(weights);
  evaluator = std::make_unique<Evaluator>(*module, counting);
  EXPECT_EQ(call({floats({1, 2}, {1, 3})}).values, (Floats{2, 6}));
  EXPECT_EQ(call({floats({1, 2}, {5, 0})}).values, (Floats{10, 0}));
  EXPECT_EQ(counting.reads, 1);
}

TEST_F(EvaluatorTest, KeepsCachesFromStepToStep) {
  // The mean of all values so far: all scores are equal.
  loadFunction("model.cache @k : !quantized.cache<1x4x1x1xf16>\nmodel.cache @v : "
               "!quantized.cache<1x4x1x1xf16>",
               "(%x: tensor<1x1xf32>, %p: tensor<1xi32>) -> tensor<1x1xf32>", R"(
    %zero = arith.constant dense<0.0> : tensor<1x1xf32>
    model.cache_append @k, %zero at %p : tensor<1x1xf32>, tensor<1xi32>
    model.cache_append @v, %x at %p : tensor<1x1xf32>, tensor<1xi32>
    %r = model.attention %x, @k, @v at %p scale 1.0 : tensor<1x1xf32>, tensor<1xi32>
    return %r : tensor<1x1xf32>)");
  EXPECT_EQ(call({floats({1, 1}, {8}), ints({0})}).values, Floats{8});
  EXPECT_EQ(call({floats({1, 1}, {4}), ints({1})}).values, Floats{6});
  EXPECT_EQ(call({floats({1, 1}, {3}), ints({2})}).values, Floats{5});
  evaluator->resetCaches();
  EXPECT_EQ(call({floats({1, 1}, {3}), ints({2})}).values, Floats{1});
}

TEST_F(EvaluatorTest, HookSeesEveryOperation) {
  loadFunction("model.weight @w : tensor<1x1xf32>\nmodel.cache @k : !quantized.cache<1x4x1x1xf16>",
               "(%x: tensor<1x1xf32>, %p: tensor<1xi32>) -> tensor<1x1xf16>", R"(
    %w = model.parameter @w : tensor<1x1xf32>
    %r = fused.matvec %x weights(%w) segments [1] : tensor<1x1xf32>, tensor<1x1xf32> -> tensor<1x1xf16>
    prologue {
    ^bb0(%in: tensor<1x1xf32>):
      %n = arith.addf %in, %in : tensor<1x1xf32>
      fused.yield %n : tensor<1x1xf32>
    } epilogue {
    ^bb0(%s: tensor<1x1xf32>):
      model.cache_append @k, %s at %p : tensor<1x1xf32>, tensor<1xi32>
      %h = arith.truncf %s : tensor<1x1xf32> to tensor<1x1xf16>
      fused.yield %h : tensor<1x1xf16>
    }
    return %r : tensor<1x1xf16>)");
  weights.set("w", floats({1, 1}, {3}));
  std::vector<std::string> seen;
  evaluator->setHook([&](mlir::Operation *op, ArrayRef<EvaluatedValue> results) {
    std::string line = op->getName().getStringRef().str();
    for (const EvaluatedValue &result : results)
      line += " " + std::to_string(result.tensor->values[0]);
    if (isa<fused::MatvecOp>(op))
      line += " of " + std::to_string(evaluator->lookup(op->getOperand(0)).tensor->values[0]);
    seen.push_back(line);
  });
  std::vector<std::string> expected = {"model.parameter 3.000000", "arith.addf 10.000000",
                                       "model.cache_append", "arith.truncf 30.000000",
                                       "fused.matvec 30.000000 of 5.000000"};
  call({floats({1, 1}, {5}), ints({3})});
  EXPECT_EQ(seen, expected);
  EXPECT_EQ(evaluator->cache("k")->values.values, (Floats{0, 0, 0, 30}));
  // Weights that are known are still seen.
  seen.clear();
  call({floats({1, 1}, {5}), ints({3})});
  EXPECT_EQ(seen, expected);
}

TEST_F(EvaluatorTest, ErrorsNameTheOperation) {
  loadFunction("", "(%x: tensor<1x1xf32>) -> tensor<1x1xf32>", R"(
    %r = arith.remf %x, %x : tensor<1x1xf32> loc("blk.7.oddity")
    return %r : tensor<1x1xf32>)");
  EXPECT_EQ(error({floats({1, 1}, {1})}),
            "arith.remf (blk.7.oddity): the operation has no semantics in "
            "the reference evaluator");

  loadFunction("model.weight @w : tensor<1x1xf32>", "(%x: tensor<1x1xf32>) -> tensor<1x1xf32>", R"(
    %w = model.parameter @w : tensor<1x1xf32>
    %r = fused.matvec %x weights(%w) segments [1] : tensor<1x1xf32>, tensor<1x1xf32> -> tensor<1x1xf32>
    epilogue {
    ^bb0(%s: tensor<1x1xf32>):
      %d = arith.remf %s, %s : tensor<1x1xf32>
      fused.yield %d : tensor<1x1xf32>
    }
    return %r : tensor<1x1xf32>)");
  EXPECT_EQ(error({floats({1, 1}, {1})}), "model.parameter: weight 'w' was not given");
  weights.set("w", floats({1, 1}, {1}));
  EXPECT_EQ(error({floats({1, 1}, {1})}),
            "arith.remf: the operation has no semantics in the reference evaluator");
}

TEST_F(EvaluatorTest, ChecksWeightsAgainstTheirTypes) {
  loadFunction("model.weight @w : tensor<2x32xf16>\n"
               "model.weight @q : !quantized.tensor<2x32xi8, group = 32, layout = blocks>",
               "() -> ()", "return");
  auto message = [&](StringRef name) {
    auto value = evaluator->symbol(name);
    return value ? "success" : llvm::toString(value.takeError());
  };
  std::string wrongPlain =
      "weight 'w' is declared as tensor<2x32xf16>, but another shape or format was read";
  weights.set("w", floats({2, 31}, Floats(62, 1)));
  EXPECT_EQ(message("w"), wrongPlain);
  QuantizedMatrix q;
  q.encoding = {formats::Encoding::Element::I4, 32};
  q.rows = 2;
  q.columns = 32;
  q.q.resize(64);
  q.scales.resize(2);
  weights.set("w", q);
  EXPECT_EQ(message("w"), wrongPlain);
  weights.set("q", q);
  EXPECT_EQ(message("q"),
            "weight 'q' is declared as !quantized.tensor<2x32xi8, group = 32, layout = blocks>, "
            "but another shape or format was read");
  q.encoding.element = formats::Encoding::Element::I8;
  weights.set("q", q);
  EXPECT_EQ(message("q"), "success");
}

TEST_F(EvaluatorTest, ChecksItsCaller) {
  loadFunction("", "(%x: tensor<1x2xf32>, %p: tensor<1xi32>) -> ()", "return");
  EXPECT_EQ(llvm::toString(evaluator->call("g", {}).takeError()), "the module has no function 'g'");
  EXPECT_EQ(error({}), "function 'f' takes 2 arguments, found 0");
  EXPECT_EQ(error({floats({2, 1}, {1, 2}), ints({0})}),
            "argument 0 of function 'f' must be a tensor<1x2xf32>");
  EXPECT_EQ(error({floats({1, 2}, {1, 2}), floats({1}, {0})}),
            "argument 1 of function 'f' must be a tensor<1xi32>");
  EXPECT_EQ(error({floats({1, 2}, {1, 2}), ints({0})}), "success");
}

} // namespace
