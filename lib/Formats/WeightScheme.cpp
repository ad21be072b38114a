// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sluice/Formats/WeightScheme.h"

#include "llvm/ADT/STLExtras.h"

using namespace llvm;
using namespace sluice::formats;

/// A format's encoding, or nothing for `keep`.
static Expected<std::optional<Encoding>> parseFormat(StringRef name) {
  if (name == "keep")
    return std::nullopt;
  if (std::optional<Encoding> encoding = Encoding::fromName(name))
    return encoding;
  return createStringError("unknown number format '" + name + "': expected keep, " +
                           encodingNames());
}

Expected<WeightScheme> WeightScheme::parse(StringRef text) {
  WeightScheme scheme;
  auto [first, rest] = text.split(',');
  Expected<std::optional<Encoding>> all = parseFormat(first);
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
    Expected<std::optional<Encoding>> format = parseFormat(name);
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

std::optional<Encoding> WeightScheme::formatOf(StringRef weight) const {
  for (const auto &[pattern, format] : reverse(others))
    if (pattern.match(weight))
      return format;
  return all;
}

bool WeightScheme::keepsAll() const {
  return !all && none_of(others, [](const auto &other) { return other.second.has_value(); });
}
