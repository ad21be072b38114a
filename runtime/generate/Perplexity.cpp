// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sluice-runtime/Session.h"

#include <algorithm>
#include <cmath>

using namespace sluice::runtime;

namespace {

/// Divergence position by position; the variance by Welford's recurrence.
class DivergenceStatistics {
public:
  void add(std::span<const float> reference, std::span<const float> logits) {
    double value = klDivergence(reference, logits), delta = value - mean;
    count += 1;
    mean += delta / count;
    squares += delta * (value - mean);
    if (greedy(reference) == greedy(logits))
      same += 1;
  }
  Divergence result() const {
    return {mean, std::sqrt(squares / (count - 1) / count), same / count};
  }

private:
  double count = 0, mean = 0, same = 0;
  /// Sum of squared differences from the mean.
  double squares = 0;
};

} // namespace

static void checkWindow(Session &session, int64_t window, const char *whose) {
  int64_t context = session.artifact().model().contextLength;
  if (window < 4 || window > context)
    throw Error("the window is " + std::to_string(window) + " tokens, expected 4 to the " + whose +
                "'s context of " + std::to_string(context));
}

PerplexityResult sluice::runtime::perplexity(
    Session &session, std::span<const int32_t> ids, int32_t bosId, const PerplexityOptions &options,
    const std::function<bool(const PerplexityResult &, double)> &onToken, Session *reference) {
  checkWindow(session, options.window, "model");
  if (reference) {
    checkWindow(*reference, options.window, "reference");
    int64_t found = reference->artifact().model().vocabSize,
            expected = session.artifact().model().vocabSize;
    if (found != expected)
      throw Error("the reference's vocabulary has " + std::to_string(found) +
                  " tokens, expected the model's " + std::to_string(expected));
  }
  if (options.maxWindows < 0)
    throw Error("the number of windows is " + std::to_string(options.maxWindows) +
                ", expected at least 1, or 0 for all");
  int64_t windows = static_cast<int64_t>(ids.size()) / options.window;
  if (windows == 0)
    throw Error("the text has " + std::to_string(ids.size()) +
                " tokens, expected at least one window of " + std::to_string(options.window));
  if (options.maxWindows > 0)
    windows = std::min(windows, options.maxWindows);

  PerplexityResult result;
  double sum = 0;
  DivergenceStatistics divergence;
  int64_t first = options.window / 2;
  for (int64_t w = 0; w < windows; ++w) {
    std::span<const int32_t> window = ids.subspan(w * options.window, options.window);
    session.reset();
    if (reference)
      reference->reset();
    // The last token is only predicted.
    std::vector<int32_t> tokens(window.begin(), window.end());
    if (bosId >= 0)
      tokens[0] = bosId;
    for (int64_t i = 0; i + 1 < options.window; ++i) {
      if (i < first) {
        // As many at a time as a step takes.
        int64_t count = std::min(first - i, session.chunk());
        std::span<const int32_t> part = std::span(tokens).subspan(i, count);
        session.append(part);
        if (reference)
          reference->append(part);
        i += count - 1;
      } else {
        int64_t most = std::min(session.verifyChunk(),
                                reference ? reference->verifyChunk() : session.verifyChunk());
        int64_t count = std::min(options.window - 1 - i, most);
        std::span<const int32_t> part = std::span(tokens).subspan(i, count),
                                 targets = window.subspan(i + 1, count);
        for (double score : session.score(part, targets))
          sum += score;
        if (reference) {
          // Checks the logits, and says where they began to be wrong.
          (void)reference->score(part, targets);
          for (int64_t row = 0; row < count; ++row)
            divergence.add(reference->verified(row), session.verified(row));
        }
        i += count - 1;
      }
      double done = static_cast<double>(w * options.window + i) /
                    static_cast<double>(windows * options.window);
      if (onToken && !onToken(result, done))
        return result;
    }
    ++result.windows;
    result.tokens += options.window - 1 - first;
    result.meanNegativeLogLikelihood = sum / static_cast<double>(result.tokens);
    result.perplexity = std::exp(result.meanNegativeLogLikelihood);
    if (reference)
      result.divergence = divergence.result();
  }
  return result;
}
