// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "AddedTokens.h"

#include "Utf8.h"

namespace sluice::runtime::tokenizer {

AddedTokens::AddedTokens(const Data &data, const Normalization &normalization,
                         const std::string &name)
    : tokens(data.added) {
  index.assign(data.tokens.size(), -1);
  for (size_t i = 0; i < tokens.size(); ++i) {
    const AddedToken &added = tokens[i];
    const std::string &given = data.tokens[added.id];
    if (given.empty())
      throw Error(name + ": added token " + std::to_string(added.id) + " is not in the vocabulary");
    if (index[added.id] >= 0)
      throw Error(name + ": token " + std::to_string(added.id) + " " + quote(given) +
                  " is added twice");
    index[added.id] = static_cast<int32_t>(i);
    bool isNormalized = added.normalized && !normalization.empty();
    std::string text = isNormalized ? normalization.apply(given) : given;
    if (!text.empty())
      (isNormalized ? normalized : asGiven).insert(text, added.id);
  }
}

/// As AddedVocabulary::find_matches of the tokenizers library.
std::vector<Section> AddedTokens::split(std::string_view text, const PrefixSet &set,
                                        bool parseSpecial) const {
  std::vector<Section> sections;
  size_t begin = 0;
  for (size_t at = 0; !set.empty() && at < text.size();) {
    auto [length, id] = set.longestPrefix(text.substr(at));
    if (length == 0) {
      ++at;
      continue;
    }
    size_t start = at, end = at + length;
    at = end;
    const AddedToken &token = tokens[index[id]];
    if ((token.special && !parseSpecial) || start < begin)
      continue;
    auto before = [&](size_t end) {
      size_t first = end - 1;
      while (first > 0 && end - first < 4 && (text[first] & 0xC0) == 0x80)
        --first;
      Utf8Char c = decodeUtf8(text.substr(first, end - first));
      return c.status == Utf8Status::Valid && c.length == end - first
                 ? c
                 : Utf8Char{Utf8Status::Invalid, 1, 0};
    };
    if (token.singleWord) {
      if (start > 0) {
        Utf8Char c = before(start);
        if (c.status == Utf8Status::Valid && isWord(c.codePoint))
          continue;
      }
      if (end < text.size()) {
        Utf8Char c = decodeUtf8(text.substr(end));
        if (c.status == Utf8Status::Valid && isWord(c.codePoint))
          continue;
      }
    }
    while (token.lstrip && start > begin) {
      Utf8Char c = before(start);
      if (c.status != Utf8Status::Valid || !isWhitespace(c.codePoint))
        break;
      start -= c.length;
    }
    while (token.rstrip && end < text.size()) {
      Utf8Char c = decodeUtf8(text.substr(end));
      if (c.status != Utf8Status::Valid || !isWhitespace(c.codePoint))
        break;
      end += c.length;
    }
    if (begin < start)
      sections.push_back({-1, begin, start});
    sections.push_back({id, start, end});
    begin = end;
  }
  if (begin < text.size())
    sections.push_back({-1, begin, text.size()});
  return sections;
}

} // namespace sluice::runtime::tokenizer
