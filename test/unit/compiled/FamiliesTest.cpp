// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// A small model of each family, compiled for this machine, against the logits that Hugging Face
// transformers computed for it in float32.

#include "Compiled.h"
#include "FamilyModels.h"
#include "sluice-runtime/Sampling.h"
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

/// Decodes tokens one by one, and then reads them many at a time: the logits are the same numbers.
void expectPromptsAlike(runtime::Session &session, std::span<const int32_t> ids) {
  std::vector<std::vector<float>> decoded;
  session.reset();
  for (int32_t id : ids) {
    std::span<const float> logits = session.decode(id);
    decoded.emplace_back(logits.begin(), logits.end());
  }
  ASSERT_GT(session.verifyChunk(), 1);
  const size_t vocabulary = decoded[0].size(), most = static_cast<size_t>(session.verifyChunk());
  session.reset();
  for (size_t first = 0; first < ids.size(); first += most) {
    std::span<const int32_t> part = ids.subspan(first, std::min(most, ids.size() - first));
    std::span<const float> rows = session.verify(part);
    for (size_t row = 0; row < part.size(); ++row)
      ASSERT_TRUE(
          std::ranges::equal(rows.subspan(row * vocabulary, vocabulary), decoded[first + row]))
          << "token " << first + row;
  }
  // And where only the last one's are computed.
  session.reset();
  session.append(ids);
  EXPECT_TRUE(std::ranges::equal(session.logits(), decoded.back()));
}

} // namespace

TEST_P(Families, LogitsAreThoseOfTransformers) {
  const Case &given = GetParam();
  FamilyGolden golden(given.model.name);
  Folder folder;
  std::string source = familySource(given.model.name, given.gguf, folder);
  for (const Format &format : kFormats) {
    SCOPED_TRACE(format.weights);
    Compiled compiled;
    bool readsPrompts = !given.gguf && &format == &kFormats[2];
    compiled.compile(source, format.weights, 64, "host", "", "", readsPrompts ? "16" : "none");
    if (HasFatalFailure())
      return;
    runtime::Session session(runtime::Artifact::open(compiled.artifact()));
    if (readsPrompts) {
      expectPromptsAlike(session, golden.ids);
      session.reset();
    }
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

// What is appended to caches of integers, and rotated, goes through attention's prologue; scores
// are capped after the sums of integers.
TEST(FamiliesCaches, MayBeIntegers) {
  for (const char *name : {"gemma2", "gemma3", "gpt_neox", "olmo2"}) {
    SCOPED_TRACE(name);
    FamilyGolden golden(name);
    Compiled compiled;
    compiled.compile(familyFolder(name), "f16", 64, "host", "int8-rot", "int8", "16");
    if (HasFatalFailure())
      return;
    runtime::Session session(runtime::Artifact::open(compiled.artifact()));
    expectPromptsAlike(session, golden.ids);
    session.reset();
    double worst = 0;
    for (auto [position, id] : llvm::enumerate(golden.ids)) {
      std::span<const float> logits = session.decode(id);
      if (auto found = golden.logits.find(position); found != golden.logits.end())
        worst = worse(worst, relativeError({logits.data(), logits.size()}, found->second));
    }
    RecordProperty(name, std::to_string(worst));
    EXPECT_LE(worst, 1e-2);
    EXPECT_GT(worst, 1e-3) << "8 bits lose more than 16";
  }
}

// The sample model of GPT-2: the ids that transformers continues a prompt with, and the mean
// negative log likelihood of the first 512 ids of the sample text after the first.
TEST(Gpt2, IsTheGoldenModel) {
  const std::string model = SLUICE_MODELS "/gpt2-4m";
  nlohmann::json golden = nlohmann::json::parse(std::ifstream(model + "/golden.json"));
  Compiled compiled;
  compiled.compile(model, "f16", 600, "host");
  if (HasFatalFailure())
    return;
  auto open = [&] { return runtime::Session(runtime::Artifact::open(compiled.artifact())); };

  std::vector<int32_t> prompt = golden["prompt_ids"], greedy = golden["greedy_ids"], found = prompt;
  ASSERT_EQ(greedy.size(), prompt.size() + 60);
  runtime::Session session = open();
  for (size_t i = 0; found.size() < greedy.size(); ++i) {
    std::span<const float> logits = session.decode(found[i]);
    if (i + 1 == found.size())
      found.push_back(std::max_element(logits.begin(), logits.end()) - logits.begin());
  }
  EXPECT_EQ(found, greedy);

  std::vector<int32_t> ids = golden["alice_first_513_ids"];
  runtime::Session fresh = open();
  double sum = 0;
  for (size_t i = 0; i + 1 < ids.size(); ++i)
    sum += runtime::negativeLogLikelihood(fresh.decode(ids[i]), ids[i + 1]);
  EXPECT_NEAR(sum / (ids.size() - 1), golden["alice_first_512_mean_nll_fp32"].get<double>(), 0.001);
}

// The table that people read is that of the tests.
TEST(FamiliesTable, IsThatOfTheDocs) {
  std::ifstream file(SLUICE_DOCS "/families.md");
  std::string text((std::istreambuf_iterator<char>(file)), {});
  for (const FamilyModel &model : familyModels()) {
    std::string row = "| `" + std::string(model.name) + "` | " + model.shows +
                      " | f32, f16, int8-g32; GPU f16 | " +
                      (model.gguf ? "f32, f16, int8-g32; GPU int8-g32 |" : "not in GGUF |");
    EXPECT_NE(text.find(row + "\n"), std::string::npos) << row;
  }
  size_t rows = 0;
  for (size_t at = 0; (at = text.find("\n| `", at)) != std::string::npos; ++at)
    ++rows;
  EXPECT_EQ(rows, familyModels().size());
}
