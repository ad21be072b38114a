// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#ifndef SLUICE_TEST_UNIT_CALIBRATION_CALIBRATIONTEST_H
#define SLUICE_TEST_UNIT_CALIBRATION_CALIBRATIONTEST_H

#include "sluice/Calibration/ForwardPass.h"
#include "sluice/Import/ModelBuilder.h"
#include "test/unit/import/TestFiles.h"

namespace sluice::test {

/// A model's module for windows of text, and what runs it.
struct ForwardModel {
  ForwardModel(const std::string &path, int64_t window) {
    auto files = openModel(path);
    EXPECT_TRUE(static_cast<bool>(files)) << llvm::toString(files.takeError());
    auto imported = importModel(context, *files, {.context = window, .tokens = window});
    EXPECT_TRUE(static_cast<bool>(imported)) << llvm::toString(imported.takeError());
    module = std::move(*imported);
    auto opened = calibration::FileWeightRows::open(*module);
    EXPECT_TRUE(static_cast<bool>(opened)) << llvm::toString(opened.takeError());
    weights = std::move(*opened);
    auto made = calibration::ForwardPass::create(*module, *weights);
    EXPECT_TRUE(static_cast<bool>(made)) << llvm::toString(made.takeError());
    if (made)
      pass.emplace(std::move(*made));
  }

  /// Of all tokens of a window.
  calibration::Tensor logits(llvm::ArrayRef<int32_t> tokens) {
    std::shared_ptr<calibration::Tensor> state;
    for (size_t segment = 0; segment < pass->segments(); ++segment) {
      EXPECT_EQ(message(pass->load(segment, tokens)), "success");
      state = pass->run(state, tokens);
    }
    return std::move(*state);
  }

  mlir::MLIRContext context;
  mlir::OwningOpRef<mlir::ModuleOp> module;
  std::unique_ptr<calibration::FileWeightRows> weights;
  std::optional<calibration::ForwardPass> pass;
};

} // namespace sluice::test

#endif // SLUICE_TEST_UNIT_CALIBRATION_CALIBRATIONTEST_H
