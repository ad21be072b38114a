// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sluice/Formats/WeightScheme.h"

#include "llvm/ADT/STLExtras.h"

using namespace llvm;
using namespace sluice::formats;

Expected<WeightScheme::Format> WeightScheme::parseFormat(StringRef name) {
  if (name == "auto")
    return Format{.automatic = true, .encoding = {}};
  if (name == "keep")
    return Format{};
  if (std::optional<Encoding> encoding = Encoding::fromName(name))
    return Format{.automatic = false, .encoding = encoding};
  return createStringError("unknown number format '" + name + "': expected auto, keep, " +
                           encodingNames());
}

Expected<WeightScheme> WeightScheme::parse(StringRef text) {
  WeightScheme scheme;
  scheme.patterns = std::make_shared<const std::string>(text.str());
  auto [first, rest] = StringRef(*scheme.patterns).split(',');
  Expected<Format> all = parseFormat(first);
  if (!all)
    return all.takeError();
  scheme.all = *all;
  while (!rest.empty()) {
    StringRef entry;
    std::tie(entry, rest) = rest.split(',');
    auto [pattern, name] = entry.rsplit('=');
    if (pattern.empty() || !entry.contains('='))
      return createStringError("expected WEIGHT=FORMAT after the format of all weights, found '" +
                               entry + "'");
    Expected<Format> format = parseFormat(name);
    if (!format)
      return format.takeError();
    Expected<GlobPattern> glob = GlobPattern::create(pattern);
    if (!glob)
      return createStringError("bad pattern of weights '" + pattern +
                               "': " + toString(glob.takeError()));
    scheme.others.emplace_back(std::move(*glob), *format);
  }
  return scheme;
}

const WeightScheme::Format &WeightScheme::of(StringRef weight) const {
  for (const auto &[pattern, format] : reverse(others))
    if (pattern.match(weight))
      return format;
  return all;
}

bool WeightScheme::hasAutomatic() const {
  return all.automatic || any_of(others, [](const auto &other) { return other.second.automatic; });
}

bool WeightScheme::asksForNothing() const {
  return !all.encoding && none_of(others, [](const auto &other) { return other.second.encoding; });
}
