// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sluice-runtime/Sampling.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <utility>

using namespace sluice::runtime;

namespace {

constexpr float infinity = std::numeric_limits<float>::infinity();
constexpr float nan = std::numeric_limits<float>::quiet_NaN();

/// Every filter off, so that a test turns on the one that it is about.
SamplingOptions plain(uint64_t seed = 1) {
  SamplingOptions options;
  options.temperature = 1.0f;
  options.topK = 0;
  options.topP = 1.0f;
  options.minP = 0.0f;
  options.seed = seed;
  return options;
}

std::vector<float> logsOf(std::vector<double> probabilities) {
  std::vector<float> logits;
  for (double p : probabilities)
    logits.push_back(static_cast<float>(std::log(p)));
  return logits;
}

/// Draws 20000 times and holds the counts against the probabilities by Pearson's statistic, which
/// has to stay below the mean + 6 standard deviations of its chi-squared distribution. Seeds are
/// fixed, so a test that passes once always does.
void expectDistribution(const SamplingOptions &options, const std::vector<float> &logits,
                        const std::vector<double> &expected,
                        const std::vector<int32_t> &history = {}) {
  constexpr int draws = 20000;
  Sampler sampler(options);
  std::vector<int> counts(logits.size());
  for (int i = 0; i < draws; ++i)
    ++counts.at(sampler.sample(logits, history));
  double statistic = 0;
  int freedom = -1;
  for (size_t i = 0; i < counts.size(); ++i) {
    if (expected[i] == 0) {
      EXPECT_EQ(counts[i], 0) << "token " << i << " is filtered out";
      continue;
    }
    ++freedom;
    double mean = expected[i] * draws;
    statistic += (counts[i] - mean) * (counts[i] - mean) / mean;
  }
  EXPECT_LE(statistic, freedom + 6 * std::sqrt(2.0 * std::max(freedom, 0)) + 1e-9);
}

template <typename F> std::string errorOf(F f) {
  try {
    f();
  } catch (const Error &e) {
    return e.what();
  }
  return "no error";
}

TEST(Sampler, DrawsFromSoftmax) {
  expectDistribution(plain(), logsOf({0.5, 0.25, 0.125, 0.125}), {0.5, 0.25, 0.125, 0.125});
}

TEST(Sampler, DistributionDoesNotDependOnAnOffsetOfTheLogits) {
  expectDistribution(plain(2), {1000.0f, 1000.0f + std::log(3.0f)}, {0.25, 0.75});
  expectDistribution(plain(3), {-1000.0f, -1000.0f + std::log(3.0f)}, {0.25, 0.75});
}

TEST(Sampler, TemperatureDividesLogits) {
  SamplingOptions options = plain();
  options.temperature = 0.5f; // squares the probabilities
  expectDistribution(options, logsOf({0.6, 0.3, 0.1}), {0.36 / 0.46, 0.09 / 0.46, 0.01 / 0.46});
  options.temperature = 2.0f; // takes their roots
  double sum = std::sqrt(0.6) + std::sqrt(0.3) + std::sqrt(0.1);
  expectDistribution(options, logsOf({0.6, 0.3, 0.1}),
                     {std::sqrt(0.6) / sum, std::sqrt(0.3) / sum, std::sqrt(0.1) / sum});
}

TEST(Sampler, TemperatureZeroTakesTheFirstMaximum) {
  SamplingOptions options = plain();
  options.temperature = 0.0f;
  Sampler sampler(options);
  EXPECT_EQ(sampler.sample(std::vector<float>{1, 3, 2, 3}, {}), 1);
  EXPECT_EQ(sampler.sample(std::vector<float>{-infinity, -5}, {}), 1);
  EXPECT_EQ(greedy(std::vector<float>{0.0f, -0.0f, 0.0f}), 0);
  // Filters do not matter to the maximum.
  SamplingOptions strict;
  strict.temperature = 0.0f;
  strict.topK = 1;
  EXPECT_EQ(Sampler(strict).sample(std::vector<float>{1, 3, 2, 3}, {}), 1);
}

TEST(Sampler, TopKKeepsTheKLargest) {
  SamplingOptions options = plain();
  options.topK = 2;
  expectDistribution(options, logsOf({0.1, 0.4, 0.2, 0.3}), {0, 4.0 / 7, 0, 3.0 / 7});
  options.topK = 100;
  expectDistribution(options, logsOf({0.1, 0.4, 0.2, 0.3}), {0.1, 0.4, 0.2, 0.3});
}

TEST(Sampler, TopKBreaksTiesByTheLowerId) {
  SamplingOptions options = plain();
  options.topK = 2;
  expectDistribution(options, {1, 1, 1, 1}, {0.5, 0.5, 0, 0});
  options.topK = 1;
  expectDistribution(options, {0, 7, 7, 7}, {0, 1, 0, 0});
}

TEST(Sampler, TopPKeepsTheFewestThatReachP) {
  SamplingOptions options = plain();
  options.topP = 0.6f;
  expectDistribution(options, logsOf({0.15, 0.5, 0.1, 0.25}), {0, 2.0 / 3, 0, 1.0 / 3});
  // The token that crosses p is kept, and the first one always is.
  options.topP = 0.8f;
  expectDistribution(options, logsOf({0.15, 0.5, 0.1, 0.25}),
                     {0.15 / 0.9, 0.5 / 0.9, 0, 0.25 / 0.9});
  options.topP = 1e-9f;
  expectDistribution(options, logsOf({0.15, 0.5, 0.1, 0.25}), {0, 1, 0, 0});
}

TEST(Sampler, TopPCountsProbabilitiesAfterTopK) {
  SamplingOptions options = plain();
  options.topK = 2;    // 0.5 and 0.3 become 0.625 and 0.375
  options.topP = 0.6f; // of which the first is enough
  expectDistribution(options, logsOf({0.5, 0.3, 0.2}), {1, 0, 0});
}

TEST(Sampler, MinPKeepsAFractionOfTheLikeliest) {
  SamplingOptions options = plain();
  options.minP = 0.45f;
  expectDistribution(options, logsOf({0.2, 0.5, 0.25, 0.05}), {0, 2.0 / 3, 1.0 / 3, 0});
  options.minP = 1.0f;
  expectDistribution(options, {2, 2, 1}, {0.5, 0.5, 0});
}

TEST(Sampler, FiltersCountBeforeTemperature) {
  SamplingOptions options = plain();
  options.temperature = 4.0f;
  options.minP = 0.3f; // 0.2 is below 0.3 * 0.8, whatever the temperature makes of it
  expectDistribution(options, logsOf({0.8, 0.2}), {1, 0});
}

TEST(Sampler, PenaltyDividesPositiveAndMultipliesNegativeLogits) {
  SamplingOptions options = plain();
  options.repetitionPenalty = 2.0f;
  std::vector<float> logits = {2, 1, -1, 1};
  double sum = std::exp(1) + std::exp(1) + std::exp(-2) + std::exp(1);
  // A token counts once, however often it occurred; ids without a logit are passed over.
  expectDistribution(options, logits,
                     {std::exp(1) / sum, std::exp(1) / sum, std::exp(-2) / sum, std::exp(1) / sum},
                     {0, 2, 0, 99, -4});
}

TEST(Sampler, PenaltyLooksBackOverItsWindow) {
  SamplingOptions options = plain();
  options.temperature = 0.0f;
  options.repetitionPenalty = 10.0f;
  std::vector<float> logits = {5, 4, 3};
  std::vector<int32_t> history = {0, 1, 2};
  options.repetitionWindow = 1;
  EXPECT_EQ(Sampler(options).sample(logits, history), 0);
  options.repetitionWindow = 3;
  EXPECT_EQ(Sampler(options).sample(logits, std::vector<int32_t>{0, 1, 1}), 2);
  options.repetitionWindow = 2;
  EXPECT_EQ(Sampler(options).sample(logits, std::vector<int32_t>{0, 1, 1}), 0);
  options.repetitionWindow = 0;
  EXPECT_EQ(Sampler(options).sample(logits, std::vector<int32_t>{0, 0, 0}), 0);
  options.repetitionWindow = -1;
  EXPECT_EQ(Sampler(options).sample(logits, std::vector<int32_t>{0, 1, 2, 2, 2}), 0);
  std::vector<int32_t> longHistory(1000, 2);
  longHistory[0] = 0;
  EXPECT_EQ(Sampler(options).sample(logits, longHistory), 1);
}

TEST(Sampler, MaskedTokensAreNeverDrawn) {
  expectDistribution(plain(), {-infinity, 0, -infinity, 0}, {0, 0.5, 0, 0.5});
}

TEST(Sampler, TheSameSeedGivesTheSameTokens) {
  std::vector<float> logits(100);
  for (size_t i = 0; i < logits.size(); ++i)
    logits[i] = static_cast<float>(i % 7);
  auto draw = [&](uint64_t seed) {
    Sampler sampler(plain(seed));
    std::vector<int32_t> ids;
    for (int i = 0; i < 50; ++i)
      ids.push_back(sampler.sample(logits, ids));
    return ids;
  };
  EXPECT_EQ(draw(42), draw(42));
  EXPECT_NE(draw(42), draw(43));
}

TEST(Sampler, DrawsAreTheUpperBitsOfTheStandardGenerator) {
  // The standard fixes the 10000th number of mt19937_64 seeded by 5489: 9981545732273789042, which
  // is 0.54110 of the range. With 100000 equal tokens it is token 54110.
  SamplingOptions options = plain(5489);
  Sampler sampler(options);
  std::vector<float> one = {0}, many(100000, 0.0f);
  for (int i = 0; i < 9999; ++i)
    sampler.sample(one, {});
  EXPECT_EQ(sampler.sample(many, {}), 54110);
}

TEST(Sampler, DefaultsAreLlamaCpps) {
  SamplingOptions options;
  EXPECT_EQ(options.temperature, 0.8f);
  EXPECT_EQ(options.topK, 40);
  EXPECT_EQ(options.topP, 0.95f);
  EXPECT_EQ(options.minP, 0.05f);
  EXPECT_EQ(options.repetitionPenalty, 1.0f);
  EXPECT_EQ(options.repetitionWindow, 64);
}

TEST(Sampler, WordsOfAGreedyChoiceAreZeros) {
  SamplingOptions options = plain();
  options.temperature = 0;
  options.topK = 40;
  options.topP = 0.5f;
  options.minP = 0.1f;
  Sampler sampler(options);
  for (int i = 0; i < 2; ++i) {
    sluice::sampling::SamplingWords words = sampler.nextWords(), zeros;
    EXPECT_EQ(std::memcmp(&words, &zeros, sizeof(words)), 0);
    unsigned char bytes[sizeof(words)] = {};
    EXPECT_EQ(std::memcmp(&words, bytes, sizeof(words)), 0);
  }
}

TEST(Sampler, WordsSayWhatTheOptionsAre) {
  SamplingOptions options = plain();
  options.temperature = 0.5f;
  options.topK = 7;
  options.topP = 0.75f;
  options.minP = 0.25f;
  sluice::sampling::SamplingWords words = Sampler(options).nextWords();
  EXPECT_FLOAT_EQ(words.sharpness, static_cast<float>(2 / std::log(2.0)));
  EXPECT_EQ(words.topK, 7);
  EXPECT_EQ(words.topP, 0.75f);
  EXPECT_FLOAT_EQ(words.logMinP, -std::log(4.0f));
  EXPECT_EQ(words.unused, 0u);
  // What keeps all tokens.
  words = Sampler(plain()).nextWords();
  EXPECT_EQ(words.topK, 0);
  EXPECT_EQ(words.topP, 1.0f);
  EXPECT_EQ(words.logMinP, -infinity);
}

TEST(Sampler, WordsHaveAFiniteSharpness) {
  for (float temperature : {std::numeric_limits<float>::denorm_min(), 1e-40f, 1e-38f, 1e30f,
                            std::numeric_limits<float>::max()}) {
    SamplingOptions options = plain();
    options.temperature = temperature;
    float sharpness = Sampler(options).nextWords().sharpness;
    EXPECT_TRUE(std::isfinite(sharpness)) << temperature;
    EXPECT_GT(sharpness, 0) << temperature;
  }
}

TEST(Sampler, WordsUseUpTheSameRandomNumber) {
  // As many equal tokens as show which number it was.
  const std::vector<float> logits(100000, 0.0f);
  Sampler host(plain(7)), device(plain(7));
  for (int i = 0; i < 5; ++i) {
    // With equal weights the token is the point's share of them all.
    uint64_t point = device.nextWords().point;
    EXPECT_EQ(point % (1 << 11), 0u);
    EXPECT_EQ(host.sample(logits, {}),
              static_cast<int32_t>(std::ldexp(static_cast<double>(point), -64) * 100000));
    EXPECT_EQ(host.sample(logits, {}), device.sample(logits, {}));
  }
}

TEST(Sampler, OnlyAPenaltyNeedsHistory) {
  SamplingOptions options;
  EXPECT_FALSE(Sampler(options).needsHistory());
  options.repetitionPenalty = 1.1f;
  EXPECT_TRUE(Sampler(options).needsHistory());
  options.repetitionWindow = 0;
  EXPECT_FALSE(Sampler(options).needsHistory());
  options.repetitionWindow = -1;
  EXPECT_TRUE(Sampler(options).needsHistory());
}

TEST(Sampler, GreedyLooksAtEveryLogit) {
  SamplingOptions options = plain();
  options.temperature = 0.0f;
  Sampler sampler(options);
  for (int size : {1, 15, 16, 17, 47, 64}) {
    std::vector<float> logits(size, -1.0f);
    for (int best = 0; best < size; ++best) {
      logits[best] = 2;
      EXPECT_EQ(sampler.sample(logits, {}), best) << size;
      // An equal one behind it changes nothing, whatever lies between them.
      for (int other = best + 1; other < size; ++other) {
        logits[other] = 2;
        EXPECT_EQ(sampler.sample(logits, {}), best) << size << " and " << other;
        logits[other] = -1;
      }
      // The first of two broken ones is told.
      logits[best] = nan;
      float last = std::exchange(logits.back(), infinity);
      EXPECT_EQ(errorOf([&] { sampler.sample(logits, {}); }),
                "the logit of token " + std::to_string(best) + " is " +
                    (best + 1 == size ? "+infinity" : "NaN") + ", expected a finite number");
      logits.back() = last;
      logits[best] = -1;
    }
  }
}

TEST(Sampler, BrokenLogitsAreErrors) {
  for (float temperature : {0.0f, 1.0f}) {
    SamplingOptions options = plain();
    options.temperature = temperature;
    Sampler sampler(options);
    EXPECT_EQ(errorOf([&] { sampler.sample(std::vector<float>{1, nan, 2}, {}); }),
              "the logit of token 1 is NaN, expected a finite number");
    EXPECT_EQ(errorOf([&] { sampler.sample(std::vector<float>{infinity}, {}); }),
              "the logit of token 0 is +infinity, expected a finite number");
    EXPECT_EQ(errorOf([&] { sampler.sample(std::vector<float>{-infinity, -infinity}, {}); }),
              "all 2 logits are -infinity, expected a finite number among them");
    EXPECT_EQ(errorOf([&] { sampler.sample({}, {}); }),
              "there are no logits to choose a token from");
  }
}

TEST(Sampler, OptionsAreValidated) {
  auto error = [](auto set) {
    SamplingOptions options;
    set(options);
    return errorOf([&] { Sampler sampler(options); });
  };
  EXPECT_EQ(error([](auto &o) { o.temperature = -0.5f; }),
            "sampling option temperature is -0.5, expected a finite number of at least 0");
  EXPECT_EQ(error([](auto &o) { o.temperature = nan; }),
            "sampling option temperature is nan, expected a finite number of at least 0");
  EXPECT_EQ(error([](auto &o) { o.topK = -1; }),
            "sampling option top-k is -1, expected at least 0 (0 keeps all)");
  EXPECT_EQ(error([](auto &o) { o.topP = 0; }),
            "sampling option top-p is 0, expected over 0 and at most 1");
  EXPECT_EQ(error([](auto &o) { o.topP = nan; }),
            "sampling option top-p is nan, expected over 0 and at most 1");
  EXPECT_EQ(error([](auto &o) { o.topP = std::nextafter(1.0f, 2.0f); }),
            "sampling option top-p is 1.0000001, expected over 0 and at most 1");
  EXPECT_EQ(error([](auto &o) { o.minP = 1.5f; }),
            "sampling option min-p is 1.5, expected at least 0 and at most 1");
  EXPECT_EQ(error([](auto &o) { o.repetitionPenalty = 0; }),
            "sampling option repetition-penalty is 0, expected a finite number over 0");
  EXPECT_EQ(error([](auto &o) { o.repetitionWindow = -2; }),
            "sampling option repetition-window is -2, expected at least -1 (-1 takes all tokens)");
}

TEST(NegativeLogLikelihood, IsExactAndStable) {
  EXPECT_NEAR(negativeLogLikelihood(logsOf({0.5, 0.25, 0.25}), 1), std::log(4.0), 1e-7);
  EXPECT_DOUBLE_EQ(negativeLogLikelihood(std::vector<float>{0, 0, 0, 0}, 3), std::log(4.0));
  // exp of these would overflow, or vanish.
  EXPECT_DOUBLE_EQ(negativeLogLikelihood(std::vector<float>{3e38f, 3e38f}, 0), std::log(2.0));
  EXPECT_DOUBLE_EQ(negativeLogLikelihood(std::vector<float>{-3e38f, -3e38f}, 0), std::log(2.0));
  EXPECT_DOUBLE_EQ(negativeLogLikelihood(std::vector<float>{0, 1000}, 0), 1000.0);
  EXPECT_EQ(negativeLogLikelihood(std::vector<float>{0, -infinity}, 1), infinity);
  // A million equal terms: float sums would be off in the third digit.
  EXPECT_NEAR(negativeLogLikelihood(std::vector<float>(1000000, 0.1f), 5), std::log(1e6), 1e-12);
}

TEST(NegativeLogLikelihood, Errors) {
  EXPECT_EQ(errorOf([] { negativeLogLikelihood(std::vector<float>{0, 1}, 2); }),
            "token 2 has no logit, there are 2");
  EXPECT_EQ(errorOf([] { negativeLogLikelihood(std::vector<float>{0, 1}, -1); }),
            "token -1 has no logit, there are 2");
  EXPECT_EQ(errorOf([] { negativeLogLikelihood(std::vector<float>{0, nan}, 0); }),
            "the logit of token 1 is NaN, expected a finite number");
}

TEST(KlDivergence, OfKnownDistributions) {
  // 1/2 ln 2 - 1/4 ln 2, and not symmetric: the other direction of the second pair is 0.143841.
  EXPECT_NEAR(klDivergence(logsOf({0.5, 0.25, 0.25}), logsOf({0.25, 0.25, 0.5})), std::log(2.0) / 4,
              1e-7);
  EXPECT_NEAR(klDivergence(logsOf({0.75, 0.25}), logsOf({0.5, 0.5})),
              0.75 * std::log(1.5) + 0.25 * std::log(0.5), 1e-7);
  EXPECT_NEAR(klDivergence(logsOf({0.5, 0.5}), logsOf({0.75, 0.25})),
              0.5 * std::log(2.0 / 3) + 0.5 * std::log(2.0), 1e-7);
  // An offset of all logits changes no distribution, and exp of these would overflow.
  EXPECT_NEAR(klDivergence(std::vector<float>{2000, 2000}, std::vector<float>{-3000, -3001}),
              0.5 * -std::log(1 / (1 + std::exp(-1.0)) * 2) +
                  0.5 * -std::log(std::exp(-1.0) / (1 + std::exp(-1.0)) * 2),
              1e-12);
  // A million terms: float sums would be off in the third digit.
  std::vector<float> one(1000000, 0.1f), two = one;
  for (size_t i = 0; i < two.size(); i += 2)
    two[i] = 1.1f;
  double step = static_cast<double>(1.1f) - static_cast<double>(0.1f);
  EXPECT_NEAR(klDivergence(one, two), std::log((1 + std::exp(step)) / 2) - step / 2, 1e-10);
}

TEST(KlDivergence, IsNeverNegativeAndExactlyZeroForEqualLogits) {
  std::mt19937 random(1);
  std::normal_distribution<float> normal(0, 5);
  std::vector<float> logits(997);
  for (int i = 0; i < 20; ++i) {
    for (float &logit : logits)
      logit = normal(random);
    EXPECT_EQ(klDivergence(logits, logits), 0.0);
    // The same distribution but for the rounding of the offset.
    std::vector<float> moved = logits;
    for (float &logit : moved)
      logit += 1.1f;
    double divergence = klDivergence(logits, moved);
    EXPECT_TRUE(divergence >= 0 && divergence < 1e-12) << divergence;
  }
}

TEST(KlDivergence, OfImpossibleTokens) {
  EXPECT_DOUBLE_EQ(klDivergence(std::vector<float>{0, -infinity}, std::vector<float>{0, 0}),
                   std::log(2.0));
  EXPECT_EQ(klDivergence(std::vector<float>{0, -infinity}, std::vector<float>{1, -infinity}), 0.0);
  EXPECT_EQ(klDivergence(std::vector<float>{0, 0}, std::vector<float>{0, -infinity}), infinity);
}

TEST(KlDivergence, Errors) {
  EXPECT_EQ(errorOf([] { klDivergence(std::vector<float>{0, 1}, std::vector<float>{0}); }),
            "the reference has 2 logits, expected as many as the model's 1");
  EXPECT_EQ(errorOf([] { klDivergence(std::vector<float>{0, nan}, std::vector<float>{0, 1}); }),
            "the logit of token 1 is NaN, expected a finite number");
  EXPECT_EQ(errorOf([] { klDivergence(std::vector<float>{0, 1}, std::vector<float>{nan, 1}); }),
            "the logit of token 0 is NaN, expected a finite number");
}

TEST(StopMatcher, HoldsBackWhatMayBeAStopString) {
  StopMatcher matcher({"\n\nUser:"});
  EXPECT_EQ(matcher.add("Hello\n"), "Hello");
  EXPECT_EQ(matcher.add("world\n\nUse"), "\nworld");
  EXPECT_EQ(matcher.add("ful\n"), "\n\nUseful");
  EXPECT_EQ(matcher.add("\nUser: hi"), "");
  EXPECT_TRUE(matcher.stopped());
  EXPECT_EQ(matcher.add("more"), "");
  EXPECT_EQ(matcher.finish(), "");
}

TEST(StopMatcher, FinishGivesWhatWasHeld) {
  StopMatcher matcher({"stop"});
  EXPECT_EQ(matcher.add("no sto"), "no ");
  EXPECT_EQ(matcher.finish(), "sto");
  EXPECT_FALSE(matcher.stopped());
}

TEST(StopMatcher, FindsOverlappingBeginnings) {
  StopMatcher matcher({"aab"});
  EXPECT_EQ(matcher.add("aaaab!"), "aa");
  EXPECT_TRUE(matcher.stopped());
}

TEST(StopMatcher, HowTheTextIsCutDoesNotMatter) {
  const std::vector<std::vector<std::string>> sets = {
      {"abc", "bcd"}, {"b", "abcab"}, {"ab", "b"}, {"xyz"}, {"caba", "ba"}, {"\xE2\x82\xAC!"}, {}};
  const std::vector<std::string> texts = {"abcabcab", "aabbccbcd", "xxyzz", "cabcaba",
                                          "1\xE2\x82\xAC\xE2\x82\xAC!2"};
  for (const auto &stops : sets)
    for (const std::string &text : texts) {
      // The definition, without streaming: the earliest end of a stop string, then the longest.
      size_t end = std::string::npos, begin = text.size();
      for (size_t e = 1; e <= text.size() && end == std::string::npos; ++e)
        for (const std::string &stop : stops)
          if (std::string_view(text).substr(0, e).ends_with(stop)) {
            end = e;
            begin = std::min(begin, e - stop.size());
          }
      for (size_t step = 1; step <= text.size(); ++step) {
        StopMatcher matcher(stops);
        std::string out;
        for (size_t i = 0; i < text.size(); i += step)
          out += matcher.add(std::string_view(text).substr(i, step));
        out += matcher.finish();
        EXPECT_EQ(out, text.substr(0, begin));
        EXPECT_EQ(matcher.stopped(), end != std::string::npos);
      }
    }
}

TEST(StopMatcher, AnEmptyStopStringIsAnError) {
  EXPECT_EQ(errorOf([] { StopMatcher matcher({"a", ""}); }),
            "a stop string is empty, expected at least one character");
}

} // namespace
