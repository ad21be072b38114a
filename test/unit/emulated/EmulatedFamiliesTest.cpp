// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// A small model of each family, compiled for a GPU and run by the emulator, against the logits that
// Hugging Face transformers computed for it in float32.

#include "../compiled/Compiled.h"
#include "../compiled/FamilyModels.h"
#include "sluice-runtime/Session.h"
#include "sluice/Emulator/Emulator.h"

#include <gtest/gtest.h>

using namespace sluice;
using namespace sluice::test;

namespace {
struct Case {
  FamilyModel model;
  bool gguf;
  const char *weights;
  /// Of the logits, relative, L2.
  double tolerance;
  const char *keyCache = "", *valueCache = "";
};

/// Files of both kinds give the same module but for the places of weights, so each kind runs with
/// another format.
std::vector<Case> cases() {
  std::vector<Case> list;
  for (const FamilyModel &model : familyModels()) {
    list.push_back({model, false, "f16", 1e-3});
    if (model.gguf)
      list.push_back({model, true, "int8-g32", 2e-2});
    // Keys that a kernel of rows turned, and scores that are capped.
    if (llvm::is_contained({"olmo2", "gemma2"}, llvm::StringRef(model.name)))
      list.push_back({model, false, "f16", 1e-2, "int8-rot", "int8"});
  }
  return list;
}

class EmulatedFamilies : public testing::TestWithParam<Case> {
protected:
  static void SetUpTestSuite() { emulator::registerEmulatorDevice(); }
};
} // namespace

TEST_P(EmulatedFamilies, LogitsAreThoseOfTransformers) {
  const Case &given = GetParam();
  FamilyGolden golden(given.model.name);
  Folder folder;
  Compiled compiled;
  compiled.compile(familySource(given.model.name, given.gguf, folder), given.weights, 64, "h200",
                   given.keyCache, given.valueCache);
  if (HasFatalFailure())
    return;
  runtime::Session session(runtime::Artifact::open(compiled.artifact()), {"emulator", {}});
  double worst = 0;
  // Past the windows of those that have one; more would take the emulator long.
  constexpr size_t steps = 12;
  for (auto [position, id] : llvm::enumerate(llvm::ArrayRef(golden.ids).take_front(steps))) {
    std::span<const float> logits = session.decode(id);
    if (auto found = golden.logits.find(position); found != golden.logits.end())
      worst = worse(worst, relativeError({logits.data(), logits.size()}, found->second));
  }
  RecordProperty("logits", std::to_string(worst));
  EXPECT_LE(worst, given.tolerance);
  EXPECT_GT(worst, 0);
}

INSTANTIATE_TEST_SUITE_P(All, EmulatedFamilies, testing::ValuesIn(cases()), [](const auto &info) {
  std::string name = std::string(info.param.model.name) + (info.param.gguf ? "_GGUF" : "") +
                     (*info.param.keyCache ? "_int8_caches" : "");
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
});
