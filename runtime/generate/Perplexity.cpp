// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sluice-runtime/Session.h"

#include <algorithm>
#include <cmath>

using namespace sluice::runtime;

PerplexityResult
sluice::runtime::perplexity(Session &session, std::span<const int32_t> ids, int32_t bosId,
                            const PerplexityOptions &options,
                            const std::function<bool(const PerplexityResult &, double)> &onToken) {
  int64_t context = session.artifact().model().contextLength;
  if (options.window < 4 || options.window > context)
    throw Error("the window is " + std::to_string(options.window) +
                " tokens, expected 4 to the model's context of " + std::to_string(context));
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
  int64_t first = options.window / 2;
  for (int64_t w = 0; w < windows; ++w) {
    std::span<const int32_t> window = ids.subspan(w * options.window, options.window);
    session.reset();
    // The last token is only predicted.
    for (int64_t i = 0; i + 1 < options.window; ++i) {
      int32_t token = i == 0 && bosId >= 0 ? bosId : window[i];
      if (i < first)
        session.append(token);
      else
        sum += session.score(token, window[i + 1]);
      double done = static_cast<double>(w * options.window + i) /
                    static_cast<double>(windows * options.window);
      if (onToken && !onToken(result, done))
        return result;
    }
    ++result.windows;
    result.tokens += options.window - 1 - first;
    result.meanNegativeLogLikelihood = sum / static_cast<double>(result.tokens);
    result.perplexity = std::exp(result.meanNegativeLogLikelihood);
  }
  return result;
}
