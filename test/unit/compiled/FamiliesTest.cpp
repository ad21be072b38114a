// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// A small model of each family, compiled for this machine, against the logits that Hugging Face
// transformers computed for it in float32.

#include "Compiled.h"
#include "FamilyModels.h"
#include "sluice-runtime/Session.h"

#include <gtest/gtest.h>

using namespace sluice;
using namespace sluice::test;

namespace {

/// Formats, and how far logits may be from transformers' (relative, L2). Formats of 8 bits change
/// the model itself.
struct Format {
  const char *weights;
  double tolerance;
};
constexpr Format kFormats[] = {{"f32", 1e-3}, {"f16", 1e-3}, {"int8-g32", 2e-2}};

struct Case {
  FamilyModel model;
  bool gguf;
};

std::vector<Case> cases() {
  std::vector<Case> list;
  for (const FamilyModel &model : familyModels()) {
    list.push_back({model, false});
    if (model.gguf)
      list.push_back({model, true});
  }
  return list;
}

class Families : public testing::TestWithParam<Case> {};

} // namespace

TEST_P(Families, LogitsAreThoseOfTransformers) {
  const Case &given = GetParam();
  FamilyGolden golden(given.model.name);
  Folder folder;
  std::string source = familySource(given.model.name, given.gguf, folder);
  for (const Format &format : kFormats) {
    SCOPED_TRACE(format.weights);
    Compiled compiled;
    compiled.compile(source, format.weights, 64, "host");
    if (HasFatalFailure())
      return;
    runtime::Session session(runtime::Artifact::open(compiled.artifact()));
    double worst = 0;
    for (auto [position, id] : llvm::enumerate(golden.ids)) {
      std::span<const float> logits = session.decode(id);
      if (auto found = golden.logits.find(position); found != golden.logits.end())
        worst = worse(worst, relativeError({logits.data(), logits.size()}, found->second));
    }
    RecordProperty(format.weights, std::to_string(worst));
    EXPECT_LE(worst, format.tolerance);
    EXPECT_GT(worst, 0);
  }
}

INSTANTIATE_TEST_SUITE_P(All, Families, testing::ValuesIn(cases()), [](const auto &info) {
  std::string name = std::string(info.param.model.name) + (info.param.gguf ? "_GGUF" : "");
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
});
