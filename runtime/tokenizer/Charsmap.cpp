// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "Charsmap.h"

#include "sluice-runtime/Error.h"

namespace sluice::runtime::tokenizer {

Charsmap::Charsmap(std::string_view blob, const std::string &name) {
  if (blob.empty())
    return;
  auto word = [&](size_t at) {
    uint32_t value = 0;
    for (int i = 3; i >= 0; --i)
      value = value << 8 | static_cast<uint8_t>(blob[at + i]);
    return value;
  };
  uint32_t size = blob.size() < 4 ? 0 : word(0);
  if (blob.size() < 4 || size == 0 || size % 4 != 0 || size >= blob.size() - 4)
    throw Error(name + ": precompiled_charsmap of " + std::to_string(blob.size()) +
                " bytes has a trie of " + std::to_string(size) +
                " bytes, expected a multiple of 4 that leaves room for replacements");
  if (blob.back() != '\0')
    throw Error(name + ": the last replacement of precompiled_charsmap is not ended by a zero");
  units.resize(size / 4);
  for (size_t i = 0; i < units.size(); ++i)
    units[i] = word(4 + 4 * i);
  replacements = blob.substr(4 + size);
}

std::optional<std::pair<size_t, std::string_view>> Charsmap::prefix(std::string_view text,
                                                                    bool shortest) const {
  if (units.empty())
    return std::nullopt;
  // A unit of Darts-clone: bit 31 and bits 0 to 7 are the label, bit 8 says that a value follows,
  // bits 10 and up are the offset, shifted by 8 more if bit 9 is set. A value has bit 31 set.
  auto offset = [](uint32_t unit) { return (unit >> 10) << ((unit & (1u << 9)) >> 6); };
  std::optional<std::pair<size_t, std::string_view>> found;
  uint32_t node = offset(units[0]);
  // SentencePiece asks the trie for 32 results at most and takes the longest of these.
  int results = 0;
  for (size_t i = 0; i < text.size() && results < 32; ++i) {
    auto label = static_cast<uint8_t>(text[i]);
    node ^= label;
    if (node >= units.size() || (units[node] & 0x800000FFu) != label)
      break;
    bool hasValue = units[node] >> 8 & 1;
    node ^= offset(units[node]);
    if (!hasValue)
      continue;
    if (node >= units.size())
      break;
    uint32_t value = units[node] & 0x7FFFFFFFu;
    if (value >= replacements.size())
      break;
    ++results;
    found = {i + 1, std::string_view(replacements.c_str() + value)};
    if (shortest)
      break;
  }
  return found;
}

} // namespace sluice::runtime::tokenizer
