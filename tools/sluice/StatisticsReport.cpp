// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "StatisticsReport.h"

#include "llvm/Support/Format.h"

#include <nlohmann/json.hpp>
#include <numeric>

using namespace sluice;
using namespace sluice::driver;
using calibration::CacheLosses;
using calibration::InputStatistics;
using calibration::Statistics;
using nlohmann::ordered_json;

static double meanSquare(const InputStatistics &input) {
  return std::accumulate(input.moments.begin(), input.moments.end(), 0.0) /
         static_cast<double>(input.columns());
}

static void printLosses(llvm::StringRef title, const CacheLosses &losses, llvm::raw_ostream &os) {
  size_t count = losses.formats.size();
  if (count == 0)
    return;
  os << "\n" << llvm::left_justify(title, 8);
  for (const std::string &format : losses.formats)
    os << llvm::right_justify(format, 14);
  os << "\n";
  auto row = [&](const std::string &name, auto nats) {
    os << "  " << llvm::left_justify(name, 6);
    for (size_t i = 0; i < count; ++i)
      os << llvm::format("%14.4f", 1000 * nats(i));
    os << "\n";
  };
  std::vector<double> sums(count);
  for (size_t first = 0; first < losses.nats.size(); first += count) {
    row(std::to_string(first / count), [&](size_t i) { return losses.nats[first + i]; });
    for (size_t i = 0; i < count; ++i)
      sums[i] += losses.nats[first + i];
  }
  row("all", [&](size_t i) { return sums[i]; });
}

void driver::printStatistics(const Statistics &statistics, llvm::raw_ostream &os) {
  const calibration::StatisticsSource &source = statistics.source;
  os << "statistics of " << source.model << " from " << source.tokens << " tokens";
  if (!source.text.empty())
    os << " of a text with xxh3 " << source.text;
  if (source.sensitivityTokens)
    os << "; sensitivities from " << source.sensitivityTokens << ", seed " << source.seed;
  os << "\n\n"
     << llvm::left_justify("weight", 28) << llvm::right_justify("columns", 9)
     << llvm::right_justify("Hessian", 9) << llvm::right_justify("mean square", 13)
     << llvm::right_justify("sensitivity", 13) << "\n";
  for (const std::string &name : statistics.weights()) {
    const calibration::WeightStatistics &weight = *statistics.find(name);
    const InputStatistics &input = statistics.input(weight);
    os << "  " << llvm::left_justify(name, 26)
       << llvm::right_justify(std::to_string(input.columns()), 9)
       << llvm::right_justify(input.hessian.empty() ? "no" : "yes", 9)
       << llvm::format("%13.4g", meanSquare(input));
    if (weight.sensitivity)
      os << llvm::format("%13.4f", *weight.sensitivity);
    os << "\n";
  }
  if (!statistics.keys.formats.empty() || !statistics.values.formats.empty())
    os << "\nlosses of cached keys and values, by layer, in 1e-3 nats a token\n";
  printLosses("keys", statistics.keys, os);
  printLosses("values", statistics.values, os);
}

static ordered_json lossesJson(const CacheLosses &losses) {
  ordered_json layers = ordered_json::array();
  size_t count = losses.formats.size();
  for (size_t first = 0; count && first < losses.nats.size(); first += count)
    layers.push_back(
        std::vector<float>(losses.nats.begin() + static_cast<ptrdiff_t>(first),
                           losses.nats.begin() + static_cast<ptrdiff_t>(first + count)));
  return {{"formats", losses.formats}, {"nats", std::move(layers)}};
}

ordered_json driver::statisticsJson(const Statistics &statistics) {
  const calibration::StatisticsSource &source = statistics.source;
  ordered_json weights = ordered_json::array();
  for (const std::string &name : statistics.weights()) {
    const calibration::WeightStatistics &weight = *statistics.find(name);
    const InputStatistics &input = statistics.input(weight);
    weights.push_back({{"name", name},
                       {"input", weight.input},
                       {"columns", input.columns()},
                       {"mean_square", meanSquare(input)},
                       {"hessian", !input.hessian.empty()}});
    if (weight.sensitivity)
      weights.back()["sensitivity"] = *weight.sensitivity;
  }
  return {{"format", "sluice statistics"},
          {"model", source.model},
          {"tokens", source.tokens},
          {"sensitivity_tokens", source.sensitivityTokens},
          {"text_xxh3", source.text},
          {"seed", source.seed},
          {"weights", std::move(weights)},
          {"keys", lossesJson(statistics.keys)},
          {"values", lossesJson(statistics.values)}};
}
