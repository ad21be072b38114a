// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sluice-runtime/Sampling.h"

#include "sluice-support/NumberText.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>

using namespace sluice::runtime;
namespace support = sluice::support;

template <typename T> static void require(bool ok, const char *option, T value, const char *range) {
  if (!ok)
    throw Error(std::string("sampling option ") + option + " is " + support::numberText(value) +
                ", expected " + range);
}

void SamplingOptions::validate() const {
  require(std::isfinite(temperature) && temperature >= 0, "temperature", temperature,
          "a finite number of at least 0");
  require(topK >= 0, "top-k", topK, "at least 0 (0 keeps all)");
  require(topP > 0 && topP <= 1, "top-p", topP, "over 0 and at most 1");
  require(minP >= 0 && minP <= 1, "min-p", minP, "at least 0 and at most 1");
  require(std::isfinite(repetitionPenalty) && repetitionPenalty > 0, "repetition-penalty",
          repetitionPenalty, "a finite number over 0");
  require(repetitionWindow >= -1, "repetition-window", repetitionWindow,
          "at least -1 (-1 takes all tokens)");
}

/// The largest logit. NaN and +infinity are signs of a broken kernel or model, so they are never
/// sampled around.
static float checkedMaximum(std::span<const float> logits) {
  if (logits.empty())
    throw Error("there are no logits to choose a token from");
  constexpr float infinity = std::numeric_limits<float>::infinity();
  // Of every 16th logit each, so that no comparison waits for the one before. The second condition
  // is true for NaN as well.
  constexpr size_t lanes = 16;
  float maxima[lanes];
  std::fill_n(maxima, lanes, -infinity);
  int isBroken[lanes] = {};
  auto look = [&](size_t lane, float logit) {
    maxima[lane] = maxima[lane] < logit ? logit : maxima[lane];
    isBroken[lane] |= !(logit < infinity);
  };
  size_t whole = logits.size() / lanes * lanes;
  for (size_t i = 0; i < whole; i += lanes)
    for (size_t lane = 0; lane < lanes; ++lane)
      look(lane, logits[i + lane]);
  for (size_t i = whole; i < logits.size(); ++i)
    look(i - whole, logits[i]);
  if (std::any_of(std::begin(isBroken), std::end(isBroken), [](int broken) { return broken; })) {
    auto broken =
        std::find_if(logits.begin(), logits.end(), [](float l) { return !(l < infinity); });
    throw Error("the logit of token " + std::to_string(broken - logits.begin()) + " is " +
                (std::isnan(*broken) ? "NaN" : "+infinity") + ", expected a finite number");
  }
  return *std::max_element(std::begin(maxima), std::end(maxima));
}

static float checkedFiniteMaximum(std::span<const float> logits) {
  float maximum = checkedMaximum(logits);
  if (std::isinf(maximum))
    throw Error("all " + std::to_string(logits.size()) +
                " logits are -infinity, expected a finite number among them");
  return maximum;
}

int32_t sluice::runtime::greedy(std::span<const float> logits) {
  float maximum = checkedFiniteMaximum(logits);
  return static_cast<int32_t>(std::find(logits.begin(), logits.end(), maximum) - logits.begin());
}

double sluice::runtime::negativeLogLikelihood(std::span<const float> logits, int32_t target) {
  if (target < 0 || static_cast<size_t>(target) >= logits.size())
    throw Error("token " + std::to_string(target) + " has no logit, there are " +
                std::to_string(logits.size()));
  double maximum = checkedFiniteMaximum(logits);
  double sum = 0;
  for (float logit : logits)
    sum += std::exp(logit - maximum);
  return std::log(sum) - (logits[target] - maximum);
}

double sluice::runtime::klDivergence(std::span<const float> reference,
                                     std::span<const float> logits) {
  if (reference.size() != logits.size())
    throw Error("the reference has " + std::to_string(reference.size()) +
                " logits, expected as many as the model's " + std::to_string(logits.size()));
  double referenceMaximum = checkedFiniteMaximum(reference), maximum = checkedFiniteMaximum(logits);
  // The logarithms of both normalising sums do not depend on the token, so they are subtracted once
  // and not from each term.
  double referenceSum = 0, sum = 0, weighted = 0;
  for (size_t i = 0; i < logits.size(); ++i) {
    double referenceExponent = reference[i] - referenceMaximum, exponent = logits[i] - maximum;
    double weight = std::exp(referenceExponent);
    referenceSum += weight;
    sum += std::exp(exponent);
    // 0 * log(0) is 0 here.
    if (weight > 0)
      weighted += weight * (referenceExponent - exponent);
  }
  // Rounding can make the result for almost equal distributions negative.
  return std::max(0.0, weighted / referenceSum - (std::log(referenceSum) - std::log(sum)));
}

Sampler::Sampler(const SamplingOptions &options) : options(options), random(options.seed) {
  options.validate();
}

uint64_t Sampler::nextPoint() {
  // The distributions of the standard library differ between implementations; mt19937_64 itself
  // does not. 53 bits are what a double holds.
  return random() >> 11 << 11;
}

sluice::sampling::SamplingWords Sampler::nextWords() {
  sluice::sampling::SamplingWords words;
  if (options.temperature == 0.0f)
    return words;
  double sharpness = std::numbers::log2e / static_cast<double>(options.temperature);
  words.sharpness = static_cast<float>(std::clamp<double>(
      sharpness, std::numeric_limits<float>::denorm_min(), std::numeric_limits<float>::max()));
  words.topK = options.topK;
  words.topP = options.topP;
  words.logMinP = std::log(options.minP);
  words.point = nextPoint();
  return words;
}

int32_t Sampler::sample(std::span<const float> logits, std::span<const int32_t> history) {
  if (options.temperature == 0.0f && !needsHistory())
    return greedy(logits);
  checkedFiniteMaximum(logits);
  candidates.clear();
  candidates.reserve(logits.size());
  for (size_t i = 0; i < logits.size(); ++i)
    candidates.push_back({logits[i], static_cast<int32_t>(i)});

  if (needsHistory()) {
    size_t window = options.repetitionWindow < 0
                        ? history.size()
                        : std::min<size_t>(history.size(), options.repetitionWindow);
    recent.assign(history.end() - window, history.end());
    std::sort(recent.begin(), recent.end());
    recent.erase(std::unique(recent.begin(), recent.end()), recent.end());
    for (int32_t id : recent) {
      if (id < 0 || static_cast<size_t>(id) >= candidates.size())
        continue;
      float &logit = candidates[id].logit;
      logit = logit > 0 ? logit / options.repetitionPenalty : logit * options.repetitionPenalty;
      // A tiny penalty can carry a large logit over the edge of float, where softmax has no value.
      logit = std::clamp(logit, -std::numeric_limits<float>::infinity(),
                         std::numeric_limits<float>::max());
    }
  }

  auto better = [](const Candidate &a, const Candidate &b) {
    return a.logit != b.logit ? a.logit > b.logit : a.id < b.id;
  };
  if (options.temperature == 0.0f)
    return std::min_element(candidates.begin(), candidates.end(), better)->id;

  // Masked tokens could otherwise be drawn when rounding leaves nothing else.
  std::erase_if(candidates, [](const Candidate &c) { return std::isinf(c.logit); });
  if (candidates.empty())
    throw Error("the repetition penalty leaves no logit finite");

  if (options.topK > 0 && static_cast<size_t>(options.topK) < candidates.size()) {
    std::nth_element(candidates.begin(), candidates.begin() + (options.topK - 1), candidates.end(),
                     better);
    candidates.resize(options.topK);
  }
  std::sort(candidates.begin(), candidates.end(), better);
  double maximum = candidates.front().logit;

  if (options.topP < 1.0f) {
    weights.clear();
    double total = 0;
    for (const Candidate &c : candidates)
      total += weights.emplace_back(std::exp(c.logit - maximum));
    double sum = 0;
    size_t kept = 0;
    while (kept < candidates.size() && sum < options.topP * total)
      sum += weights[kept++];
    candidates.resize(std::max<size_t>(kept, 1));
  }

  if (options.minP > 0.0f) {
    double least = maximum + std::log(static_cast<double>(options.minP));
    auto end = std::find_if(candidates.begin() + 1, candidates.end(),
                            [&](const Candidate &c) { return c.logit < least; });
    candidates.erase(end, candidates.end());
  }

  weights.clear();
  double total = 0;
  for (const Candidate &c : candidates)
    total += weights.emplace_back(std::exp((c.logit - maximum) / options.temperature));
  double point = static_cast<double>(nextPoint()) * 0x1p-64 * total;
  for (size_t i = 0; i + 1 < candidates.size(); ++i) {
    if (point < weights[i])
      return candidates[i].id;
    point -= weights[i];
  }
  // Rounding may let `point` pass the sum; the last token that has a weight takes it.
  size_t last = candidates.size() - 1;
  while (last > 0 && weights[last] == 0)
    --last;
  return candidates[last].id;
}

StopMatcher::StopMatcher(std::vector<std::string> stops) : stops(std::move(stops)) {
  for (const std::string &stop : this->stops)
    if (stop.empty())
      throw Error("a stop string is empty, expected at least one character");
}

std::string StopMatcher::add(std::string_view text) {
  std::string out;
  for (char c : text) {
    if (found)
      break;
    held.push_back(c);
    // What is held is always the beginning of some stop string, so a completed one is its end.
    size_t matched = 0;
    for (const std::string &stop : stops)
      if (held.ends_with(stop))
        matched = std::max(matched, stop.size());
    if (matched) {
      out.append(held, 0, held.size() - matched);
      held.clear();
      found = true;
      break;
    }
    // Keep the longest end that a stop string may still continue.
    size_t keep = 0;
    for (const std::string &stop : stops) {
      size_t longest = std::min(stop.size() - 1, held.size());
      for (size_t n = longest; n > keep; --n)
        if (std::string_view(held).substr(held.size() - n) == std::string_view(stop).substr(0, n)) {
          keep = n;
          break;
        }
    }
    out.append(held, 0, held.size() - keep);
    held.erase(0, held.size() - keep);
  }
  return out;
}

std::string StopMatcher::finish() {
  std::string out;
  out.swap(held);
  return out;
}
