// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Guesses of the tokens that come next. One step computes the logits behind several guessed tokens
// at about the price of one token's, because it reads the weights once; those that the sampler
// would have chosen anyway are kept (Leviathan et al., 2023, "speculative decoding").

#ifndef SLUICE_RUNTIME_DRAFTS_H
#define SLUICE_RUNTIME_DRAFTS_H

#include "sluice-runtime/Session.h"

namespace sluice::runtime {

class Drafter {
public:
  virtual ~Drafter();
  /// Guesses up to `most` tokens that follow `history`, which has at least one; perhaps none.
  virtual std::vector<int32_t> propose(std::span<const int32_t> history, int64_t most) = 0;
};

/// Looks for what followed the last time when the last tokens were the same ("prompt lookup
/// decoding", Saxena, 2023): for texts that repeat or quote themselves.
class PromptLookup final : public Drafter {
public:
  /// The longest and the shortest run of tokens that is looked for.
  static constexpr size_t kLongest = 4, kShortest = 2;
  std::vector<int32_t> propose(std::span<const int32_t> history, int64_t most) override;
};

/// Lets another, smaller model of the same vocabulary go on greedily. The session is its own.
class ModelDrafter final : public Drafter {
public:
  /// An Error if the vocabularies differ in size.
  ModelDrafter(Session &draft, const Artifact &model);
  std::vector<int32_t> propose(std::span<const int32_t> history, int64_t most) override;

private:
  Session &draft;
};

/// Decides how many tokens are worth guessing: a step of many tokens takes longer than one of a
/// token, and its guesses may all be wrong. It measures both, and guesses only while that has paid;
/// now and then it tries again.
class DraftPolicy {
public:
  explicit DraftPolicy(int64_t most) : most(most) {}
  /// Tokens to guess now, 0 to `most`; 0 before a token's step was measured.
  int64_t wanted();
  /// A token's step took so long.
  void decoded(double seconds);
  /// A step with guesses, and what made them, took so long; `accepted` of them were right.
  void verified(double seconds, int64_t accepted);
  /// Nothing was guessed although it was wanted: that costs nothing.
  void nothing() { waited = 0; }

private:
  int64_t most;
  /// Seconds of a token's step, and of one with guesses; moving averages, 0 before the first.
  double decodeSeconds = 0, verifySeconds = 0;
  /// Guesses of a step that were right, a moving average.
  double accepted = 1;
  /// Steps without a guess since the last try, and how many there have to be.
  int64_t waited = 0, pause = 0;
};

} // namespace sluice::runtime

#endif // SLUICE_RUNTIME_DRAFTS_H
