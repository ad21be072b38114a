// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Prompts that are read many tokens a step, against the same tokens decoded one by one: on the host
// both are the same numbers, bit for bit, for every encoding of weights and caches.

#include "Compiled.h"
#include "sluice-runtime/Drafts.h"

#include <gtest/gtest.h>

using namespace sluice;
using namespace sluice::test;

namespace {

const std::string kModel = SLUICE_MODELS "/llama-4m";

struct Formats {
  std::string weights, keys, values;
};

std::vector<int32_t> someTokens(size_t count) {
  std::vector<int32_t> ids = {1};
  while (ids.size() < count)
    ids.push_back(static_cast<int32_t>(3 + ids.size() * 7919 % 2000));
  return ids;
}

std::vector<float> copyOf(std::span<const float> logits) { return {logits.begin(), logits.end()}; }

class Prompt : public testing::TestWithParam<Formats> {};

} // namespace

TEST_P(Prompt, IsReadAsTokensAreDecoded) {
  Compiled compiled;
  const Formats &formats = GetParam();
  compiled.compile(kModel, formats.weights, 320, "host", formats.keys, formats.values, "64");
  auto artifact = runtime::Artifact::open(compiled.artifact());
  runtime::Session decoding(artifact), reading(artifact);
  ASSERT_EQ(reading.chunk(), 64);
  std::vector<int32_t> ids = someTokens(300);
  std::vector<std::vector<float>> expected;
  for (int32_t id : ids)
    expected.push_back(copyOf(decoding.decode(id)));
  for (size_t count : {1, 2, 31, 64, 65, 300}) {
    reading.reset();
    reading.append(std::span(ids).first(count));
    EXPECT_EQ(copyOf(reading.logits()), expected[count - 1]) << count << " tokens";
  }
  // The caches are the same too, so that what follows is.
  reading.reset();
  reading.append(std::span(ids).first(77));
  EXPECT_EQ(copyOf(reading.decode(ids[77])), expected[77]);
  // Every row of a step that gives all logits.
  std::span<const float> rows = reading.verify(std::span(ids).subspan(78, 37));
  const size_t vocabulary = expected[0].size();
  ASSERT_EQ(rows.size(), 37 * vocabulary);
  for (size_t row = 0; row < 37; ++row)
    EXPECT_EQ(copyOf(rows.subspan(row * vocabulary, vocabulary)), expected[78 + row]) << row;
}

static std::vector<Formats> allFormats() {
  // Of every kind of encoding one: how it is stored, its unit, its scale, its offset. That the
  // kernels of all are those of one token bit for bit is HostMatmulTest's.
  std::vector<Formats> all;
  for (const char *weights :
       {"f32",         "f16",       "bf16",     "fp8-g128",    "fp8-channel", "int8-channel",
        "int8-g32-zp", "int4-g128", "int3-g32", "int5-g32-n8", "int6-g64",    "iq4-g32-n8",
        "q4_1",        "q5_0",      "int8-g32", "q2_k",        "q3_k",        "q5_k",
        "q6_k",        "iq4_xs",    "mxfp4",    "nvfp4"})
    all.push_back({weights, "f16", "f16"});
  for (const char *cache : {"bf16", "fp8", "int8", "int8-h32", "int4", "int4-h64"})
    all.push_back({"int8-g128", cache, cache});
  all.push_back({"q4_k", "int4-rot", "int8"});
  return all;
}

INSTANTIATE_TEST_SUITE_P(Formats, Prompt, testing::ValuesIn(allFormats()), [](const auto &info) {
  std::string name = info.param.weights + "_" + info.param.keys + "_" + info.param.values;
  std::replace_if(name.begin(), name.end(), [](char c) { return !isalnum(c); }, '_');
  return name;
});

TEST(PromptSteps, TakeWhatTheyAreMadeFor) {
  Compiled compiled;
  compiled.compile(kModel, "int8-g128", 100, "host", "", "", "16,64");
  auto artifact = runtime::Artifact::open(compiled.artifact());
  const runtime::Plan &plan = artifact->plan();
  auto stepName = [&](int64_t tokens) {
    auto step = plan.stepFor(tokens);
    return step ? plan.steps[*step].name : std::string("none");
  };
  EXPECT_EQ(stepName(1), "decode");
  EXPECT_EQ(stepName(2), "prefill_16");
  EXPECT_EQ(stepName(16), "prefill_16");
  EXPECT_EQ(stepName(17), "prefill_64");
  EXPECT_EQ(stepName(65), "none");
  runtime::Session session(artifact);
  EXPECT_EQ(session.verifyChunk(), 64);
  std::vector<int32_t> ids = someTokens(101);
  try {
    session.append(ids);
    FAIL() << "101 tokens are in a context of 100";
  } catch (const runtime::Error &error) {
    EXPECT_STREQ(error.what(), "the context is full: position 100 of a context of 100; compile the "
                               "model with a longer one (--context)");
  }
  EXPECT_EQ(session.position(), 0);
  ids.resize(100);
  ids[50] = 100000;
  EXPECT_THROW(session.append(ids), runtime::Error);
  EXPECT_EQ(session.position(), 0);
  ids[50] = 5;
  session.append(ids);
  EXPECT_EQ(session.position(), 100);
  EXPECT_EQ(session.tokens().size(), 100u);
  EXPECT_THROW((void)session.verify(std::span(ids).first(65)), runtime::Error);
}

TEST(Drafts, GiveTheSameTokens) {
  Compiled compiled, small;
  compiled.compile(kModel, "int8-g128", 400, "host", "", "", "16,64");
  small.compile(kModel, "int4-g32", 400, "host", "", "", "16");
  auto artifact = runtime::Artifact::open(compiled.artifact());
  runtime::Session session(artifact), draft(runtime::Artifact::open(small.artifact()));
  // A prompt that repeats itself, so that there is something to look up.
  std::vector<int32_t> prompt = someTokens(20), once = prompt;
  for (int i = 0; i < 4; ++i)
    prompt.insert(prompt.end(), once.begin() + 1, once.end());
  runtime::PromptLookup lookup;
  runtime::ModelDrafter model(draft, *artifact);
  for (float temperature : {0.0f, 0.8f}) {
    runtime::GenerateOptions options;
    options.maxTokens = 120;
    options.ignoreEos = true;
    options.sampling.temperature = temperature;
    options.sampling.seed = 7;
    runtime::GenerateResult expected = generate(session, prompt, options);
    int64_t position = session.position();
    for (runtime::Drafter *drafter :
         {static_cast<runtime::Drafter *>(&lookup), static_cast<runtime::Drafter *>(&model)}) {
      session.reset();
      options.drafter = drafter;
      runtime::GenerateResult found = generate(session, prompt, options);
      EXPECT_EQ(found.ids, expected.ids);
      EXPECT_EQ(session.position(), position);
      EXPECT_LE(found.accepted, found.guessed);
      EXPECT_GT(found.guessed, 0);
    }
    session.reset();
  }
}

TEST(Drafts, LookupGoesOnAsTheLatestOccurrence) {
  runtime::PromptLookup lookup;
  std::vector<int32_t> history = {1, 2, 3, 4, 9, 2, 3, 5, 6, 2, 3};
  EXPECT_EQ(lookup.propose(history, 2), (std::vector<int32_t>{5, 6}));
  EXPECT_EQ(lookup.propose(history, 10), (std::vector<int32_t>{5, 6, 2, 3}));
  EXPECT_EQ(lookup.propose(history, 0), (std::vector<int32_t>{}));
  EXPECT_EQ(lookup.propose(std::vector<int32_t>{1}, 4), (std::vector<int32_t>{}));
  EXPECT_EQ(lookup.propose(std::vector<int32_t>{1, 2, 3}, 4), (std::vector<int32_t>{}));
  // A longer run counts more than a later one.
  std::vector<int32_t> longer = {1, 2, 3, 7, 8, 2, 3, 9, 1, 2, 3};
  EXPECT_EQ(lookup.propose(longer, 1), (std::vector<int32_t>{7}));
}

TEST(Drafts, PolicyStopsWhatDoesNotPay) {
  runtime::DraftPolicy policy(8);
  EXPECT_EQ(policy.wanted(), 0) << "there is nothing to compare guesses with";
  policy.decoded(1.0);
  EXPECT_EQ(policy.wanted(), 8);
  policy.verified(1.5, 6);
  EXPECT_EQ(policy.wanted(), 8);
  int64_t tries = 0;
  for (int step = 0; step < 1000; ++step) {
    if (policy.wanted()) {
      policy.verified(1.5, 0);
      ++tries;
    } else {
      policy.decoded(1.0);
    }
  }
  EXPECT_LT(tries, 25);
  // It is taken up again where it pays again.
  while (!policy.wanted())
    ;
  for (int i = 0; i < 8; ++i)
    policy.verified(1.5, 8);
  EXPECT_EQ(policy.wanted(), 8);

  // Where a step with guesses takes as long as four tokens, all that fail cost less than 3%.
  runtime::DraftPolicy dear(7);
  dear.decoded(1.0);
  double spent = 0;
  for (int step = 0; step < 600; ++step) {
    if (dear.wanted()) {
      dear.verified(4.0, 0);
      spent += 3.0;
    } else {
      dear.decoded(1.0);
    }
  }
  EXPECT_GT(spent, 0);
  EXPECT_LE(spent, 0.03 * 600);

  // Also right guesses stop where their steps take longer than their tokens would.
  runtime::DraftPolicy slow(1);
  slow.decoded(1.0);
  slow.verified(2.5, 1);
  EXPECT_EQ(slow.wanted(), 0);
}

TEST(SessionState, GoesOnBitForBit) {
  for (const char *cache : {"f16", "int8", "int4-h32"}) {
    Compiled compiled;
    compiled.compile(kModel, "int8-g128", 200, "host", cache, cache, "64");
    auto artifact = runtime::Artifact::open(compiled.artifact());
    runtime::Session whole(artifact), first(artifact), second(artifact);
    std::vector<int32_t> ids = someTokens(120);
    std::string path = compiled.folder / "state.safetensors";
    whole.append(std::span(ids).first(70));
    first.append(std::span(ids).first(70));
    first.save(path);
    second.append(ids); // what it had before does not matter
    second.load(path);
    EXPECT_EQ(second.position(), 70);
    EXPECT_TRUE(std::equal(second.tokens().begin(), second.tokens().end(), ids.begin()));
    for (size_t i = 70; i < 120; ++i)
      ASSERT_EQ(copyOf(second.decode(ids[i])), copyOf(whole.decode(ids[i]))) << i;
    // A prompt that begins alike goes on from there.
    second.load(path);
    ids[60] = 4;
    EXPECT_EQ(second.rewind(ids), 60);
  }
}

TEST(SessionState, RefusesWhatIsNotItsOwn) {
  Compiled compiled, other;
  compiled.compile(kModel, "int8-g128", 100, "host");
  other.compile(kModel, "int4-g32", 100, "host");
  std::string path = compiled.folder / "state.safetensors";
  runtime::Session session(runtime::Artifact::open(compiled.artifact()));
  session.append(std::vector<int32_t>{1, 2, 3});
  session.save(path);
  auto message = [](auto &&act) -> std::string {
    try {
      act();
    } catch (const runtime::Error &error) {
      return error.what();
    }
    return "no error";
  };
  runtime::Session wrong(runtime::Artifact::open(other.artifact()));
  EXPECT_NE(message([&] { wrong.load(path); }).find("is of the artifact with checksum"),
            std::string::npos);
  EXPECT_EQ(wrong.position(), 0);
  std::string bytes;
  {
    std::ifstream file(path, std::ios::binary);
    bytes.assign(std::istreambuf_iterator<char>(file), {});
  }
  for (size_t length : {size_t(0), size_t(7), size_t(100), bytes.size() - 1}) {
    std::ofstream(path, std::ios::binary).write(bytes.data(), length);
    EXPECT_NE(message([&] { session.load(path); }), "no error") << length;
    EXPECT_EQ(session.position(), 0);
  }
  EXPECT_NE(message([&] { session.load(path + ".missing"); }), "no error");
  EXPECT_NE(
      message([&] { session.save(compiled.folder / "no/such/file"); }).find("cannot be written"),
      std::string::npos);
  session.seek(5);
  EXPECT_NE(message([&] { session.save(path); }).find("has skipped positions"), std::string::npos);
}
