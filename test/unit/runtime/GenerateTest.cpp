// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sluice-runtime/sluice.h"
#include "test/unit/runtime/TestArtifact.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <map>
#include <set>

using namespace sluice::runtime;
using namespace sluice::runtime::test;
using nlohmann::json;
namespace sampling = sluice::sampling;

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

// ---- Who chooses the next token ----

class Next : public testing::Test {
protected:
  Next() { options.topK = 11; }
  Session open() {
    made.write(directory.path());
    return Session(Artifact::open(directory.path()), SessionOptions{"cpu", {2}});
  }
  static sampling::SamplingWords wordsIn(Session &session) {
    sampling::SamplingWords words;
    std::vector<std::byte> bytes = session.readBuffer("sampling");
    EXPECT_EQ(bytes.size(), sizeof(words));
    std::memcpy(&words, bytes.data(), sizeof(words));
    return words;
  }
  static void expectEqual(const sampling::SamplingWords &a, const sampling::SamplingWords &b) {
    EXPECT_EQ(std::memcmp(&a, &b, sizeof(a)), 0);
  }
  void drawFromAll() {
    options.temperature = 30;
    options.topK = 0;
    options.topP = 1;
    options.minP = 0;
  }
  /// What the host takes after `token`.
  int32_t onHost(Sampler &sampler, int32_t token) {
    std::vector<float> logits;
    for (int64_t v = 0; v < made.vocabSize(); ++v)
      logits.push_back((v == TestArtifact::next(token) ? 10.0f : 0.0f) + TestArtifact::bias(v));
    return sampler.sample(logits, history);
  }

  TemporaryDirectory directory;
  TestArtifact made;
  SamplingOptions options;
  std::vector<int32_t> history = {TestArtifact::bos, 5};
};

TEST_F(Next, TheDeviceChoosesFromTheSamplersWords) {
  made.addSampling();
  Session session = open();
  Sampler sampler(options), same(options);
  for (int32_t token : {5, 9, 20}) {
    // Its kernel takes top-k for the token.
    EXPECT_EQ(session.next(token, sampler, history), 11);
    sampling::SamplingWords words = wordsIn(session);
    expectEqual(words, same.nextWords());
    EXPECT_FLOAT_EQ(words.sharpness, 1.442695f / 0.8f);
    EXPECT_EQ(words.topK, 11);
    EXPECT_EQ(words.topP, 0.95f);
    EXPECT_FLOAT_EQ(words.logMinP, std::log(0.05f));
    EXPECT_NE(words.point, 0u);
    EXPECT_EQ(logitsOf(session)[TestArtifact::next(token)],
              10 + TestArtifact::bias(TestArtifact::next(token)));
  }
  EXPECT_EQ(session.position(), 3);
  // A step that is measured chooses as the last one did.
  sampling::SamplingWords words = wordsIn(session);
  session.profile(7);
  expectEqual(wordsIn(session), words);
  // Greedy sends zeros, and the words of the step before are not left there.
  options.temperature = 0;
  Sampler greedy(options);
  EXPECT_EQ(session.next(5, greedy, history), 0);
  expectEqual(wordsIn(session), {});
}

TEST_F(Next, GenerationAsksTheDevice) {
  made.addSampling();
  Session session = open();
  GenerateOptions generation;
  generation.sampling = options;
  generation.maxTokens = 3;
  EXPECT_EQ(generate(session, history, generation).ids, (std::vector<int32_t>{11, 11, 11}));
  // Steps in the middle of a prompt choose nothing that is of use, and use up no number.
  Sampler same(options);
  same.nextWords();
  same.nextWords();
  expectEqual(wordsIn(session), same.nextWords());
}

TEST_F(Next, TheHostChoosesWhereEarlierTokensMatter) {
  made.addSampling();
  Session session = open();
  drawFromAll();
  options.repetitionPenalty = 1.5f;
  Sampler sampler(options), same(options);
  for (int i = 0; i < 10; ++i)
    EXPECT_EQ(session.next(5, sampler, history), onHost(same, 5));
  expectEqual(wordsIn(session), {});
  // Not so with a window of none.
  options.topK = 12;
  options.repetitionWindow = 0;
  Sampler without(options);
  EXPECT_EQ(session.next(5, without, history), 12);
}

TEST_F(Next, TheHostChoosesWhereTheStepDoesNot) {
  Session session = open();
  drawFromAll();
  Sampler sampler(options), same(options);
  std::set<int32_t> chosen;
  for (int i = 0; i < 10; ++i) {
    int32_t next = session.next(5, sampler, history);
    EXPECT_EQ(next, onHost(same, 5));
    chosen.insert(next);
  }
  EXPECT_GT(chosen.size(), 1u);
}

TEST_F(Next, WhatTheDeviceCannotChooseIsTheSamplersError) {
  auto message = [&](Session &session) {
    Sampler sampler(options);
    try {
      session.next(5, sampler, history);
    } catch (const Error &e) {
      return std::string(e.what());
    }
    return std::string("no error");
  };
  made.addSampling();
  {
    options.topK = 1000;
    Session session = open();
    EXPECT_EQ(message(session), "the device chose token 1000 of a vocabulary of 286");
  }
  json &launches = made.plan["steps"]["decode"]["launches"];
  json spoil = launches.back();
  spoil["kernel"] = "spoil";
  spoil["arguments"] = {"logits"};
  launches.insert(launches.end() - 1, spoil);
  Session session = open();
  EXPECT_EQ(message(session),
            "the logit of token 0 is NaN, expected a finite number; the first result that is not "
            "finite is element 0 of buffer \"logits\" (f32), NaN, of kernel \"spoil\" for "
            "\"choose\"");
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

/// The reference predicts another token after "f" and after "p" and prefers others a little.
TEST_F(Generate, DivergenceIsTheDefinition) {
  constexpr int64_t window = 10;
  std::vector<int32_t> ids = encode("abcdeffghijklmaopqrstuvwxyzabzdefg");
  std::map<int32_t, int32_t> otherNext;
  std::map<int64_t, float> otherBias;
  TestArtifact other;
  for (auto [token, following] : {std::pair('f', 'b'), {'p', 's'}}) {
    int32_t id = TestArtifact::letterA + token - 'a';
    otherNext[id] = TestArtifact::letterA + following - 'a';
    other.setNext(id, otherNext[id]);
  }
  for (int32_t id : {0, 5, 30, 150}) {
    otherBias[id] = static_cast<float>(60 + id / 2) / 256;
    other.setBias(id, static_cast<uint8_t>(60 + id / 2));
  }
  TemporaryDirectory otherDirectory;
  other.write(otherDirectory.path());
  Session reference(Artifact::open(otherDirectory.path()), {"cpu", {1}});

  std::vector<double> divergences;
  int64_t same = 0;
  for (int64_t w = 0; w < 3; ++w)
    for (int64_t i = window / 2; i < window - 1; ++i) {
      int32_t token = ids[w * window + i];
      int32_t next = TestArtifact::next(token);
      auto found = otherNext.find(token);
      int32_t referenceNext = found == otherNext.end() ? next : found->second;
      same += next == referenceNext;
      auto logit = [&](int64_t v) { return (v == next ? 10.0 : 0.0) + TestArtifact::bias(v); };
      auto referenceLogit = [&](int64_t v) {
        auto bias = otherBias.find(v);
        return (v == referenceNext ? 10.0 : 0.0) +
               (bias == otherBias.end() ? TestArtifact::bias(v) : bias->second);
      };
      double normaliser = 0, referenceNormaliser = 0, sum = 0;
      for (int64_t v = 0; v < artifact->model().vocabSize; ++v) {
        normaliser += std::exp(logit(v));
        referenceNormaliser += std::exp(referenceLogit(v));
      }
      for (int64_t v = 0; v < artifact->model().vocabSize; ++v) {
        double p = std::exp(referenceLogit(v)) / referenceNormaliser;
        sum += p * (std::log(p) - std::log(std::exp(logit(v)) / normaliser));
      }
      divergences.push_back(sum);
    }
  double count = static_cast<double>(divergences.size()), mean = 0, squares = 0;
  for (double divergence : divergences)
    mean += divergence / count;
  for (double divergence : divergences)
    squares += (divergence - mean) * (divergence - mean);

  PerplexityResult alone = perplexity(*session, ids, TestArtifact::bos, {window, 0});
  EXPECT_FALSE(alone.divergence);
  PerplexityResult result =
      perplexity(*session, ids, TestArtifact::bos, {window, 0}, {}, &reference);
  EXPECT_EQ(result.tokens, 12);
  EXPECT_EQ(result.meanNegativeLogLikelihood, alone.meanNegativeLogLikelihood);
  ASSERT_TRUE(result.divergence);
  // Some positions differ much, the others little: "effg", "aopq" and "xyza" are scored.
  EXPECT_EQ(same, 9);
  EXPECT_GT(mean, 0.1);
  EXPECT_NEAR(result.divergence->mean, mean, 1e-6);
  EXPECT_NEAR(result.divergence->standardError, std::sqrt(squares / (count - 1) / count), 1e-6);
  EXPECT_DOUBLE_EQ(result.divergence->sameFirstChoice, static_cast<double>(same) / count);
  // The reference's windows start with an empty sequence and the same first token, too.
  EXPECT_EQ(reference.position(), window - 1);
  EXPECT_EQ(reference.readBufferAsFloat("cache")[0], TestArtifact::embedding(TestArtifact::bos, 0));
}

TEST_F(Generate, DivergenceFromTheSameModelIsZero) {
  std::vector<int32_t> ids = encode("abcdeffghijklmaopqrstuvwxyzabzdefg");
  Session reference(artifact, {"cpu", {1}});
  PerplexityResult result = perplexity(*session, ids, 1, {10, 0}, {}, &reference);
  ASSERT_TRUE(result.divergence);
  EXPECT_EQ(result.divergence->mean, 0.0);
  EXPECT_EQ(result.divergence->standardError, 0.0);
  EXPECT_EQ(result.divergence->sameFirstChoice, 1.0);
  // One token has no spread.
  result = perplexity(*session, ids, 1, {4, 1}, {}, &reference);
  EXPECT_EQ(result.tokens, 1);
  EXPECT_TRUE(std::isnan(result.divergence->standardError));
}

TEST_F(Generate, DivergenceNeedsTheSameVocabularyAndContext) {
  std::vector<int32_t> ids = encode("abcdeffghijklmaopqrstuvwxyzabzdefg");
  auto message = [&](TestArtifact made) {
    TemporaryDirectory directory;
    made.write(directory.path());
    Session reference(Artifact::open(directory.path()), {"cpu", {1}});
    try {
      perplexity(*session, ids, 1, {10, 0}, {}, &reference);
    } catch (const Error &error) {
      return std::string(error.what());
    }
    return std::string();
  };
  EXPECT_EQ(message(TestArtifact(3)),
            "the reference's vocabulary has 289 tokens, expected the model's 286");
  TestArtifact shorter;
  shorter.plan["model"]["context_length"] = 9;
  for (json &buffer : shorter.plan["buffers"])
    if (buffer["name"] == "cache") {
      buffer["shape"][0] = 9;
      buffer["bytes"] = 9 * TestArtifact::hidden * 4;
    }
  EXPECT_EQ(message(shorter),
            "the window is 10 tokens, expected 4 to the reference's context of 9");
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
