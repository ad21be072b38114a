// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Chooses a token from logits by filters and a seeded draw; likelihoods; stop strings.

#ifndef SLUICE_RUNTIME_SAMPLING_H
#define SLUICE_RUNTIME_SAMPLING_H

#include "sluice-runtime/Error.h"
#include "sluice-runtime/SamplingWords.h"

#include <cstdint>
#include <random>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace sluice::runtime {

/// How a token is chosen. The steps apply in this order, which is llama.cpp's default order:
/// repetition penalty, top-k, top-p, min-p, temperature, draw. Ties are broken by the lower id.
struct SamplingOptions {
  /// Logits are divided by it. 0 takes the largest logit (greedy; no filter can change that one)
  /// after the penalty. At least 0.
  float temperature = 0.8f;
  /// Keeps the k largest logits; 0 keeps all. At least 0.
  int topK = 40;
  /// Keeps the fewest most likely tokens whose probabilities reach p together; 1 keeps all. In
  /// (0, 1].
  float topP = 0.95f;
  /// Keeps tokens at least this fraction as likely as the likeliest; 0 keeps all. In [0, 1].
  float minP = 0.05f;
  /// Logits of recent tokens are divided by it if positive, else multiplied by it (Keskar et al.
  /// 2019, "CTRL", as llama.cpp and transformers have it). 1 changes nothing. Over 0.
  float repetitionPenalty = 1.0f;
  /// How many of the last tokens count as recent; 0 none, -1 all.
  int repetitionWindow = 64;
  /// The same seed and logits give the same tokens everywhere.
  uint64_t seed = 0;

  /// Throws an Error that names the option, its value and its range.
  void validate() const;
};

/// Draws tokens. One 64-bit random number is used up by each call that is not greedy.
class Sampler {
public:
  explicit Sampler(const SamplingOptions &options);

  /// Chooses an id in [0, logits.size()). `history` is all tokens so far, the prompt's included;
  /// ids in it that have no logit do not matter. Logits of -infinity are never drawn; NaN,
  /// +infinity, or nothing finite at all is an Error.
  int32_t sample(std::span<const float> logits, std::span<const int32_t> history);

  /// Whether the choice depends on earlier tokens, so that a device, which reads only logits,
  /// cannot make it.
  bool needsHistory() const {
    return options.repetitionPenalty != 1.0f && options.repetitionWindow != 0;
  }
  /// What a device needs to make the next choice in place of sample(). Uses up the random number
  /// that sample() would. Only if !needsHistory().
  sampling::SamplingWords nextWords();
  /// What nextWords() would return; uses up nothing.
  sampling::SamplingWords peekWords() const { return Sampler(*this).nextWords(); }

  const SamplingOptions &getOptions() const { return options; }

private:
  /// The next random number: every multiple of 2^11 has the same chance.
  uint64_t nextPoint();

  struct Candidate {
    float logit;
    int32_t id;
  };
  SamplingOptions options;
  std::mt19937_64 random;
  // Kept between calls so that a step does not allocate.
  std::vector<Candidate> candidates;
  std::vector<double> weights;
  std::vector<int32_t> recent;
};

/// The id of the largest logit, the first one of several. Errors are Sampler::sample's.
int32_t greedy(std::span<const float> logits);

/// -log(softmax(logits)[target]) in nats, summed in double precision. Throws an Error if target is
/// not in [0, logits.size()) or a logit is NaN or +infinity.
double negativeLogLikelihood(std::span<const float> logits, int32_t target);

/// KL(softmax(reference) || softmax(logits)) in nats, summed in double precision: at least 0,
/// exactly 0 for equal logits, infinity where `logits` rules out a token that `reference` does not.
/// Throws an Error if the sizes differ, or as negativeLogLikelihood does.
double klDivergence(std::span<const float> reference, std::span<const float> logits);

/// Finds stop strings in a text that arrives in parts, however it is cut: it stops at the first
/// byte that completes any of the strings (the longest, if one byte completes several).
class StopMatcher {
public:
  /// Throws an Error if a string is empty.
  explicit StopMatcher(std::vector<std::string> stops);

  /// Returns the text that may be written: all so far that cannot be the beginning of a stop
  /// string. Once a stop string was found, the text before it, and then nothing more.
  std::string add(std::string_view text);
  /// The text still held back when no more text will come.
  std::string finish();
  /// Whether a stop string was found.
  bool stopped() const { return found; }

private:
  std::vector<std::string> stops;
  std::string held;
  bool found = false;
};

} // namespace sluice::runtime

#endif // SLUICE_RUNTIME_SAMPLING_H
