// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "PrefixSet.h"

#include <algorithm>
#include <functional>

namespace sluice::runtime::tokenizer {

void PrefixSet::insert(const std::string &text, int32_t id) {
  texts.push_back(std::make_unique<std::string>(text));
  if (!ids.emplace(*texts.back(), id).second)
    return;
  auto &byFirst = lengths[static_cast<uint8_t>(text[0])];
  auto it = std::lower_bound(byFirst.begin(), byFirst.end(), text.size(), std::greater<>());
  if (it == byFirst.end() || *it != text.size())
    byFirst.insert(it, text.size());
}

std::pair<size_t, int32_t> PrefixSet::longestPrefix(std::string_view text) const {
  if (text.empty())
    return {0, -1};
  for (size_t length : lengths[static_cast<uint8_t>(text[0])]) {
    if (length > text.size())
      continue;
    auto it = ids.find(text.substr(0, length));
    if (it != ids.end())
      return {length, it->second};
  }
  return {0, -1};
}

} // namespace sluice::runtime::tokenizer
