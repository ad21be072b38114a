// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// A module from text, weights from arrays, and the numbers that come out.

#ifndef SLUICE_TEST_UNIT_REFERENCE_REFERENCETEST_H
#define SLUICE_TEST_UNIT_REFERENCE_REFERENCETEST_H

#include "dialects/Fused/Fused.h"
#include "sluice/Reference/Evaluator.h"

#include "mlir/Dialect/Arith/IR/Arith.h"
#include "mlir/Dialect/Func/IR/FuncOps.h"
#include "mlir/IR/MLIRContext.h"
#include "mlir/Parser/Parser.h"

#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <vector>

namespace sluice::reference {

using Floats = std::vector<float>;
using Ints = std::vector<int32_t>;

class ReferenceTest : public testing::Test {
protected:
  ReferenceTest() {
    context.loadDialect<mlir::arith::ArithDialect, mlir::func::FuncDialect, model::ModelDialect,
                        quantized::QuantizedDialect, fused::FusedDialect>();
  }

  /// Parses a module; `load` it before anything else.
  void load(llvm::StringRef text) {
    module = mlir::parseSourceString<mlir::ModuleOp>(text, &context);
    ASSERT_TRUE(module) << text.str();
    evaluator = std::make_unique<Evaluator>(*module, weights);
  }

  /// Loads a module around one function `@f` with this signature and body.
  void loadFunction(llvm::StringRef symbols, llvm::StringRef signature, llvm::StringRef body) {
    load((symbols + "\nfunc.func @f" + signature + " {\n" + body + "\n}").str());
  }

  /// The first result of `@f`, or a failed test.
  Tensor call(llvm::ArrayRef<Tensor> arguments = {}) {
    if (!evaluator)
      return {};
    auto results = evaluator->call("f", arguments);
    if (!results) {
      ADD_FAILURE() << llvm::toString(results.takeError());
      return {};
    }
    return results->empty() ? Tensor() : results->front();
  }

  std::string error(llvm::ArrayRef<Tensor> arguments = {}) {
    auto results = evaluator->call("f", arguments);
    return results ? "success" : llvm::toString(results.takeError());
  }

  static void expectNear(llvm::ArrayRef<float> actual, llvm::ArrayRef<double> expected,
                         double relative = 1e-6) {
    ASSERT_EQ(actual.size(), expected.size());
    for (size_t i = 0; i < actual.size(); ++i)
      EXPECT_NEAR(actual[i], expected[i], relative * std::max(1e-30, std::fabs(expected[i]))) << i;
  }

  static Tensor floats(llvm::ArrayRef<int64_t> shape, Floats values) {
    return Tensor::floats(shape, std::move(values));
  }
  static Tensor ints(Ints values) {
    return Tensor::ints({static_cast<int64_t>(values.size())}, std::move(values));
  }

  mlir::MLIRContext context;
  ArrayWeights weights;
  mlir::OwningOpRef<mlir::ModuleOp> module;
  std::unique_ptr<Evaluator> evaluator;
};

} // namespace sluice::reference

#endif // SLUICE_TEST_UNIT_REFERENCE_REFERENCETEST_H
