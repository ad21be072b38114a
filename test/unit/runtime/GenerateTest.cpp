// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sluice-runtime/sluice.h"
#include "test/unit/runtime/TestArtifact.h"

#include <gtest/gtest.h>

#include <cmath>

using namespace sluice::runtime;
using namespace sluice::runtime::test;

namespace {

class Generate : public testing::Test {
protected:
  Generate() {
    TestArtifact().write(directory.path());
    artifact = Artifact::open(directory.path());
    session = std::make_unique<Session>(artifact, SessionOptions{"cpu", {2}});
    options.sampling.temperature = 0;
  }
  std::vector<int32_t> encode(std::string_view text) {
    return artifact->tokenizer().encode(text, true);
  }

  TemporaryDirectory directory;
  std::shared_ptr<const Artifact> artifact;
  std::unique_ptr<Session> session;
  GenerateOptions options;
};

TEST_F(Generate, StopsAtTheNumberOfTokens) {
  options.maxTokens = 5;
  std::vector<std::string> parts;
  std::vector<int32_t> seen;
  GenerateCallbacks callbacks;
  callbacks.onText = [&](std::string_view text) {
    parts.emplace_back(text);
    return true;
  };
  callbacks.onToken = [&](int32_t id, bool isPrompt) {
    seen.push_back(isPrompt ? -id : id);
    return true;
  };
  GenerateResult result = generate(*session, encode("c"), options, callbacks);
  EXPECT_EQ(result.text, "defgh");
  EXPECT_EQ(parts, (std::vector<std::string>{"d", "e", "f", "g", "h"}));
  EXPECT_EQ(seen, (std::vector<int32_t>{-1, -6, 7, 8, 9, 10, 11}));
  EXPECT_EQ(result.ids, (std::vector<int32_t>{7, 8, 9, 10, 11}));
  EXPECT_EQ(result.reason, FinishReason::Length);
  // The last token was not decoded: nobody asked what follows.
  EXPECT_EQ(session->position(), 6);
}

TEST_F(Generate, NoTokensAtAll) {
  options.maxTokens = 0;
  GenerateResult result = generate(*session, encode("abc"), options);
  EXPECT_TRUE(result.ids.empty());
  EXPECT_EQ(session->position(), 4);
}

TEST_F(Generate, EndsWithTheModelsText) {
  options.maxTokens = -1;
  GenerateResult result = generate(*session, encode("x"), options);
  EXPECT_EQ(result.text, "yz");
  EXPECT_EQ(result.ids, (std::vector<int32_t>{28, 29, TestArtifact::eos}));
  EXPECT_EQ(result.reason, FinishReason::Eos);
}

TEST_F(Generate, GoesOnAfterTheEndWhenTold) {
  options.ignoreEos = true;
  options.maxTokens = 6;
  GenerateResult result = generate(*session, encode("x"), options);
  EXPECT_EQ(result.text, "yzabc");
  EXPECT_EQ(result.ids[2], TestArtifact::eos);
}

TEST_F(Generate, EndsBeforeAStopText) {
  options.stops = {"kq", "ijk"};
  std::string streamed;
  GenerateCallbacks callbacks;
  callbacks.onText = [&](std::string_view text) {
    streamed += text;
    return true;
  };
  GenerateResult result = generate(*session, encode("f"), options, callbacks);
  EXPECT_EQ(result.text, "gh");
  EXPECT_EQ(streamed, "gh");
  EXPECT_EQ(result.ids.size(), 5u);
  EXPECT_EQ(result.reason, FinishReason::Stop);
}

TEST_F(Generate, GivesBackWhatOnlyLookedLikeAStopText) {
  options.stops = {"ijx"};
  options.maxTokens = 4;
  EXPECT_EQ(generate(*session, encode("f"), options).text, "ghij");
}

TEST_F(Generate, EndsWhereTheContextEnds) {
  options.maxTokens = -1;
  options.ignoreEos = true;
  GenerateResult result = generate(*session, encode("a"), options);
  EXPECT_EQ(result.reason, FinishReason::Context);
  EXPECT_EQ(session->position(), TestArtifact::context);
  EXPECT_EQ(static_cast<int64_t>(result.ids.size()), TestArtifact::context - 2 + 1);
  // And nothing fits any more.
  EXPECT_THROW(generate(*session, encode("a"), options), Error);
}

TEST_F(Generate, GoesOnInTheSameSequence) {
  options.maxTokens = 2;
  EXPECT_EQ(generate(*session, encode("a"), options).text, "bc");
  EXPECT_EQ(generate(*session, artifact->tokenizer().encode("k", false), options).text, "lm");
  EXPECT_EQ(session->position(), 5);
}

TEST_F(Generate, CallbacksCanEndIt) {
  GenerateCallbacks callbacks;
  callbacks.onText = [](std::string_view text) { return text != "d"; };
  GenerateResult result = generate(*session, encode("a"), options, callbacks);
  EXPECT_EQ(result.text, "bcd");
  EXPECT_EQ(result.reason, FinishReason::Cancelled);
  session->reset();
  callbacks = {};
  callbacks.onToken = [](int32_t, bool) { return false; };
  result = generate(*session, encode("abc"), options, callbacks);
  EXPECT_EQ(session->position(), 1);
  EXPECT_EQ(result.reason, FinishReason::Cancelled);
}

TEST_F(Generate, TheSeedDecides) {
  options.sampling = {};
  options.sampling.temperature = 30;
  options.sampling.topK = 0;
  options.sampling.topP = 1;
  options.sampling.minP = 0;
  options.ignoreEos = true;
  options.maxTokens = 20;
  auto run = [&](uint64_t seed) {
    options.sampling.seed = seed;
    session->reset();
    return generate(*session, encode("a"), options).ids;
  };
  EXPECT_EQ(run(1), run(1));
  EXPECT_NE(run(1), run(2));
}

TEST_F(Generate, RefusesBadInput) {
  auto message = [&](std::vector<int32_t> prompt) {
    try {
      generate(*session, prompt, options);
    } catch (const Error &e) {
      return std::string(e.what());
    }
    return std::string("no error");
  };
  EXPECT_EQ(message({}), "the prompt has no tokens, expected at least one");
  EXPECT_NE(message({1, 5000}).find("token 5000 of the prompt"), std::string::npos);
  EXPECT_NE(message(std::vector<int32_t>(49, 5)).find("49 tokens, but only 48 positions"),
            std::string::npos);
  options.maxTokens = -2;
  EXPECT_NE(message({1}).find("-2"), std::string::npos);
  EXPECT_EQ(session->position(), 0);
}

/// The mean over the same tokens, from the definition.
TEST_F(Generate, PerplexityIsLlamaCppsDefinition) {
  constexpr int64_t window = 10;
  std::vector<int32_t> ids = encode("abcdeffghijklmaopqrstuvwxyzabzdefg");
  ASSERT_EQ(ids.size(), 35u);
  double sum = 0;
  int64_t count = 0;
  for (int64_t w = 0; w < 3; ++w)
    for (int64_t i = window / 2; i < window - 1; ++i) {
      int32_t token = ids[w * window + i], target = ids[w * window + i + 1];
      double normaliser = 0;
      auto logit = [&](int64_t v) {
        return (v == TestArtifact::next(token) ? 10.0 : 0.0) + TestArtifact::bias(v);
      };
      for (int64_t v = 0; v < artifact->model().vocabSize; ++v)
        normaliser += std::exp(logit(v));
      sum += std::log(normaliser) - logit(target);
      ++count;
    }
  PerplexityResult result = perplexity(*session, ids, TestArtifact::bos, {window, 0});
  EXPECT_EQ(result.windows, 3);
  EXPECT_EQ(result.tokens, 12);
  EXPECT_EQ(result.tokens, count);
  EXPECT_NEAR(result.meanNegativeLogLikelihood, sum / static_cast<double>(count), 1e-6);
  EXPECT_NEAR(result.perplexity, std::exp(sum / static_cast<double>(count)), 1e-5);
  // The first token of each window was replaced.
  EXPECT_EQ(session->readBufferAsFloat("cache")[0], TestArtifact::embedding(TestArtifact::bos, 0));
  // Not so for a model without one.
  perplexity(*session, ids, -1, {window, 0});
  EXPECT_EQ(session->readBufferAsFloat("cache")[0], TestArtifact::embedding(ids[2 * window], 0));
  EXPECT_EQ(perplexity(*session, ids, 1, {window, 2}).windows, 2);
  int calls = 0;
  perplexity(*session, ids, 1, {window, 0}, [&](const PerplexityResult &, double done) {
    EXPECT_TRUE(done >= 0 && done <= 1);
    return ++calls < 5;
  });
  EXPECT_EQ(calls, 5);
  EXPECT_THROW(perplexity(*session, std::span(ids).first(9), 1, {window, 0}), Error);
  EXPECT_THROW(perplexity(*session, ids, 1, {49, 0}), Error);
  EXPECT_THROW(perplexity(*session, ids, 1, {3, 0}), Error);
  EXPECT_THROW(perplexity(*session, ids, 1, {window, -1}), Error);
}

TEST(CApi, WholeLife) {
  TemporaryDirectory directory;
  TestArtifact().write(directory.path());
  sluice_artifact *artifact = nullptr;
  ASSERT_EQ(sluice_artifact_open(directory.path().c_str(), &artifact), SLUICE_OK)
      << sluice_last_error();
  sluice_model_info info;
  ASSERT_EQ(sluice_artifact_model_info(artifact, &info), SLUICE_OK);
  EXPECT_STREQ(info.name, "letters");
  EXPECT_STREQ(info.target, "host");
  EXPECT_EQ(info.context_length, TestArtifact::context);
  ASSERT_EQ(info.eos_count, 1u);
  EXPECT_EQ(info.eos_ids[0], TestArtifact::eos);

  int32_t ids[2];
  size_t count = 0;
  ASSERT_EQ(sluice_tokenize(artifact, "abc", 3, 1, ids, 2, &count), SLUICE_OK);
  EXPECT_EQ(count, 4u);
  EXPECT_EQ(ids[0], TestArtifact::bos);
  EXPECT_EQ(ids[1], 4);
  const int32_t letters[] = {4, 5, 6};
  char text[3];
  size_t bytes = 0;
  ASSERT_EQ(sluice_detokenize(artifact, letters, 3, text, sizeof(text), &bytes), SLUICE_OK);
  EXPECT_STREQ(text, "ab");
  EXPECT_EQ(bytes, 3u);

  sluice_session *session = nullptr;
  sluice_session_options options = {"cpu", 2};
  ASSERT_EQ(sluice_session_create(artifact, &options, &session), SLUICE_OK) << sluice_last_error();
  // The session keeps what it needs.
  sluice_artifact_free(artifact);
  const float *logits = nullptr;
  ASSERT_EQ(sluice_session_decode(session, 4, &logits), SLUICE_OK);
  EXPECT_GT(logits[5], 9);
  EXPECT_EQ(sluice_session_position(session), 1);
  EXPECT_EQ(sluice_session_decode(session, -7, &logits), SLUICE_ERROR);
  EXPECT_NE(std::string(sluice_last_error()).find("token -7"), std::string::npos);
  EXPECT_EQ(sluice_session_position(session), 1);
  ASSERT_EQ(sluice_session_reset(session), SLUICE_OK);

  sluice_generate_options generation;
  sluice_generate_options_init(&generation);
  generation.temperature = 0;
  generation.max_tokens = 10;
  const char *stops[] = {"fg"};
  generation.stops = stops;
  generation.stop_count = 1;
  std::string streamed;
  auto append = [](const char *part, size_t length, void *user) {
    static_cast<std::string *>(user)->append(part, length);
    return 0;
  };
  sluice_generate_result result;
  ASSERT_EQ(sluice_generate_text(session, "b", &generation, append, &streamed, &result), SLUICE_OK);
  EXPECT_EQ(streamed, "cde");
  EXPECT_EQ(result.reason, SLUICE_FINISH_STOP);
  EXPECT_EQ(result.prompt_tokens, 2);
  EXPECT_EQ(result.tokens, 5);
  auto refuse = [](const char *, size_t, void *) { return 1; };
  ASSERT_EQ(sluice_generate(session, letters, 1, nullptr, refuse, nullptr, &result), SLUICE_OK);
  EXPECT_EQ(result.reason, SLUICE_FINISH_CANCELLED);
  generation.top_p = 7;
  EXPECT_EQ(sluice_generate(session, letters, 1, &generation, nullptr, nullptr, nullptr),
            SLUICE_ERROR);
  EXPECT_NE(std::string(sluice_last_error()).find("top-p"), std::string::npos);
  sluice_session_free(session);
  sluice_session_free(nullptr);
  sluice_artifact_free(nullptr);
}

extern "C" const char *runExample(const char *directory);

TEST(CApi, WorksFromC) {
  TemporaryDirectory directory;
  TestArtifact().write(directory.path());
  EXPECT_STREQ(runExample(directory.path().c_str()), "bcde");
}

TEST(CApi, ErrorsAreCodesAndText) {
  sluice_artifact *artifact = nullptr;
  EXPECT_EQ(sluice_artifact_open("/nonexistent/model", &artifact), SLUICE_ERROR);
  EXPECT_STREQ(sluice_last_error(), "/nonexistent/model: there is no such directory");
  EXPECT_EQ(artifact, nullptr);
  EXPECT_EQ(sluice_artifact_open(nullptr, &artifact), SLUICE_ERROR);
  EXPECT_STREQ(sluice_last_error(), "argument directory is NULL");
  EXPECT_EQ(sluice_session_create(nullptr, nullptr, nullptr), SLUICE_ERROR);
  EXPECT_EQ(sluice_session_decode(nullptr, 0, nullptr), SLUICE_ERROR);
  EXPECT_EQ(sluice_generate_text(nullptr, "a", nullptr, nullptr, nullptr, nullptr), SLUICE_ERROR);
  EXPECT_EQ(sluice_session_position(nullptr), 0);
}

} // namespace
