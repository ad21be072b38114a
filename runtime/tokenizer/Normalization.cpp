// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "Normalization.h"

#include "Utf8.h"

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <string_view>
#include <utf8proc.h>

namespace sluice::runtime::tokenizer {

Normalization::Normalization(const Data &data, const std::string &name)
    : steps(data.normalizers), patterns(steps.size()) {
  for (size_t i = 0; i < steps.size(); ++i)
    if (steps[i].kind == Normalizer::Kind::Replace)
      patterns[i].emplace(steps[i].pattern, !steps[i].isRegex,
                          name + ": normalizer " + std::to_string(i));
}

static std::string normalizeUnicode(const std::string &text, Normalizer::Kind kind) {
  // Below U+00C0 every character is its own NFC and NFD; NFKC and NFKD only leave ASCII as it is.
  bool plain = std::all_of(text.begin(), text.end(), [](char c) { return !(c & 0x80); });
  if (plain)
    return text;
  bool compose = kind == Normalizer::Kind::Nfc || kind == Normalizer::Kind::Nfkc;
  bool compatibility = kind == Normalizer::Kind::Nfkc || kind == Normalizer::Kind::Nfkd;
  int options = UTF8PROC_STABLE | (compose ? UTF8PROC_COMPOSE : UTF8PROC_DECOMPOSE) |
                (compatibility ? UTF8PROC_COMPAT : 0);
  utf8proc_uint8_t *result = nullptr;
  utf8proc_ssize_t length = utf8proc_map(reinterpret_cast<const utf8proc_uint8_t *>(text.data()),
                                         static_cast<utf8proc_ssize_t>(text.size()), &result,
                                         static_cast<utf8proc_option_t>(options));
  std::unique_ptr<utf8proc_uint8_t, decltype(&std::free)> owner(result, std::free);
  if (length < 0)
    throw Error(std::string("a text can not be normalized: ") + utf8proc_errmsg(length));
  return std::string(reinterpret_cast<const char *>(result), static_cast<size_t>(length));
}

static std::string replaceAll(const std::string &text,
                              const std::vector<std::pair<size_t, size_t>> &matches,
                              std::string_view by) {
  std::string out;
  size_t at = 0;
  for (auto [begin, end] : matches) {
    out.append(text, at, begin - at).append(by);
    at = end;
  }
  return out.append(text, at);
}

std::string Normalization::apply(std::string text) const {
  for (size_t i = 0; i < steps.size(); ++i) {
    const Normalizer &n = steps[i];
    switch (n.kind) {
    case Normalizer::Kind::Prepend:
      if (!text.empty())
        text = n.content + text;
      break;
    case Normalizer::Kind::Replace:
      text = replaceAll(text, patterns[i]->findAll(text), n.content);
      break;
    case Normalizer::Kind::Strip: {
      size_t begin = 0, end = 0;
      bool seen = false;
      for (size_t at = 0; at < text.size();) {
        Utf8Char c = decodeUtf8(std::string_view(text).substr(at));
        at += c.length;
        if (isWhitespace(c.codePoint)) {
          if (!seen)
            begin = at;
        } else {
          seen = true;
          end = at;
        }
      }
      if (!n.left)
        begin = 0;
      if (!n.right)
        end = text.size();
      text = begin < end ? text.substr(begin, end - begin) : std::string();
      break;
    }
    default:
      text = normalizeUnicode(text, n.kind);
    }
  }
  return text;
}

} // namespace sluice::runtime::tokenizer
