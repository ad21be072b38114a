// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Models compiled to artifacts that go away with the test, and how far numbers are apart.

#ifndef SLUICE_TEST_UNIT_COMPILED_COMPILED_H
#define SLUICE_TEST_UNIT_COMPILED_COMPILED_H

#include "../import/TestFiles.h"
#include "sluice/Pipelines/Compiler.h"

#include <cmath>
#include <fstream>

namespace sluice::test {

/// What compile() made of a model, in a folder that goes away.
struct Compiled {
  Folder folder;
  nlohmann::json plan;
  /// CompileOptions::launch.
  std::string launch;

  std::string artifact() const { return folder / "artifact"; }
  std::string stage(llvm::StringRef name) const { return folder / ("ir/" + name.str() + ".mlir"); }

  void compile(const std::string &model, const std::string &weights, int64_t context,
               const std::string &target, const std::string &keyCache = "",
               const std::string &valueCache = "", const std::string &prefill = "none",
               int64_t batch = 1, int64_t cachePages = 0) {
    CompileOptions options;
    options.model = model;
    options.weights = weights;
    options.context = context;
    options.target = target;
    options.keyCache = keyCache;
    options.valueCache = valueCache;
    // Steps of many tokens take longer to compile than all others; most tests decode.
    options.prefill = prefill;
    options.batch = batch;
    options.cachePages = cachePages;
    options.launch = launch;
    options.output = artifact();
    options.emitIr = folder / "ir";
    llvm::Error error = sluice::compile(options);
    ASSERT_FALSE(error) << llvm::toString(std::move(error));
    plan = nlohmann::json::parse(std::ifstream(artifact() + "/plan.json"));
  }

  std::string decision(const std::string &weight) const {
    for (const nlohmann::json &decision : plan["decisions"])
      if (decision["what"] == weight)
        return decision["decision"].get<std::string>() + ": " +
               decision["reason"].get<std::string>();
    return "none";
  }
};

/// |found - expected| / |expected|, Euclidean; NaN if there is one among them.
inline double relativeError(llvm::ArrayRef<float> found, llvm::ArrayRef<float> expected) {
  EXPECT_EQ(found.size(), expected.size());
  double difference = 0, norm = 0;
  for (auto [x, y] : llvm::zip(found, expected)) {
    difference += (double(x) - y) * (double(x) - y);
    norm += double(y) * y;
  }
  return std::sqrt(difference / norm);
}

/// The larger of two errors; NaN, which no tolerance lets pass, if one of them is.
inline double worse(double x, double y) { return std::isnan(x) || x > y ? x : y; }

} // namespace sluice::test

#endif // SLUICE_TEST_UNIT_COMPILED_COMPILED_H
