// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sluice-runtime/Drafts.h"

#include <algorithm>

using namespace sluice::runtime;

Drafter::~Drafter() = default;

std::vector<int32_t> PromptLookup::propose(std::span<const int32_t> history, int64_t most) {
  if (most < 1)
    return {};
  for (size_t length = std::min(kLongest, history.size() - 1); length >= kShortest; --length) {
    std::span<const int32_t> last = history.last(length);
    // The latest occurrence that something follows.
    std::span<const int32_t> before = history.first(history.size() - 1);
    auto found = std::find_end(before.begin(), before.end(), last.begin(), last.end());
    if (found == before.end())
      continue;
    auto begin = found + static_cast<int64_t>(length);
    auto end =
        begin + std::min<int64_t>(most, history.end() - history.begin() - (begin - before.begin()));
    return {begin, end};
  }
  return {};
}

ModelDrafter::ModelDrafter(Session &draft, const Artifact &model) : draft(draft) {
  int64_t found = draft.artifact().model().vocabSize, expected = model.model().vocabSize;
  if (found != expected)
    throw Error(draft.artifact().planName() + ": has a vocabulary of " + std::to_string(found) +
                " tokens, expected the model's " + std::to_string(expected) +
                ": it cannot guess for it");
}

std::vector<int32_t> ModelDrafter::propose(std::span<const int32_t> history, int64_t most) {
  std::vector<int32_t> guesses;
  int64_t room = draft.artifact().model().contextLength - static_cast<int64_t>(history.size());
  most = std::min(most, room);
  if (most < 1)
    return guesses;
  // What it guessed wrong is dropped, what it has not seen is read.
  std::span<const int32_t> rest = history.subspan(static_cast<size_t>(draft.rewind(history)));
  Sampler greedily({.temperature = 0});
  const size_t chunk = static_cast<size_t>(draft.chunk());
  if (rest.size() > chunk) {
    size_t first = rest.size() - chunk;
    draft.append(rest.first(first));
    rest = rest.subspan(first);
  }
  guesses.push_back(draft.next(rest, greedily, history));
  while (static_cast<int64_t>(guesses.size()) < most)
    guesses.push_back(draft.next(guesses.back(), greedily, history));
  return guesses;
}

/// How much the latest measurement counts.
static constexpr double kWeight = 0.25;
/// Steps without a guess between two tries, at most: so many, or as many more as keep what a try
/// that fails takes longer than a token to this part of the time. The first pause is a quarter.
static constexpr int64_t kLongestPause = 64;
static constexpr double kCost = 0.02;

static void average(double &value, double sample) {
  value = value == 0 ? sample : value + kWeight * (sample - value);
}

int64_t DraftPolicy::wanted() {
  if (decodeSeconds == 0)
    return 0;
  if (waited < pause) {
    ++waited;
    return 0;
  }
  return most;
}

void DraftPolicy::decoded(double seconds) { average(decodeSeconds, seconds); }

void DraftPolicy::verified(double seconds, int64_t right) {
  average(verifySeconds, seconds);
  accepted += kWeight * (static_cast<double>(right) - accepted);
  waited = 0;
  bool pays = (1 + accepted) * decodeSeconds > verifySeconds;
  auto longest =
      std::max(kLongestPause, static_cast<int64_t>((verifySeconds / decodeSeconds - 1) / kCost));
  pause = pays ? 0 : std::clamp(2 * pause, longest / 4, longest);
}
