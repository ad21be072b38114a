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
    : steps(data.normalizers), patterns(steps.size()), charsmaps(steps.size()) {
  for (size_t i = 0; i < steps.size(); ++i) {
    std::string where = name + ": normalizer " + std::to_string(i);
    if (steps[i].kind == Normalizer::Kind::Replace)
      patterns[i].emplace(steps[i].pattern, !steps[i].isRegex, where);
    if (steps[i].kind == Normalizer::Kind::Precompiled)
      charsmaps[i] = Charsmap(steps[i].content, where);
  }
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

static std::string lowercase(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  while (!text.empty()) {
    Utf8Char c = decodeUtf8(text);
    text.remove_prefix(c.length);
    // The only letter that has two small ones by Unicode's SpecialCasing wherever it stands.
    if (c.codePoint == 0x130)
      out += "i\xCC\x87";
    else
      appendUtf8(
          out, static_cast<uint32_t>(utf8proc_tolower(static_cast<utf8proc_int32_t>(c.codePoint))));
  }
  return out;
}

/// Precompiled::normalize_string of the spm_precompiled crate: a short grapheme that starts with a
/// key is replaced as a whole by what stands for the shortest such key.
static std::string precompiled(std::string_view text, const Charsmap &charsmap) {
  std::string out;
  out.reserve(text.size());
  while (!text.empty()) {
    Utf8Char c = decodeUtf8(text);
    size_t length = c.length;
    utf8proc_int32_t state = 0;
    for (auto last = static_cast<utf8proc_int32_t>(c.codePoint); length < text.size();) {
      Utf8Char next = decodeUtf8(text.substr(length));
      auto codePoint = static_cast<utf8proc_int32_t>(next.codePoint);
      if (utf8proc_grapheme_break_stateful(last, codePoint, &state))
        break;
      last = codePoint;
      length += next.length;
    }
    std::string_view grapheme = text.substr(0, length);
    text.remove_prefix(length);
    auto whole = grapheme.size() < 6 ? charsmap.shortestPrefix(grapheme) : std::nullopt;
    if (whole) {
      out += whole->second;
      continue;
    }
    while (!grapheme.empty()) {
      std::string_view character = grapheme.substr(0, decodeUtf8(grapheme).length);
      grapheme.remove_prefix(character.size());
      auto found = charsmap.shortestPrefix(character);
      out += found ? found->second : character;
    }
  }
  return out;
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
    case Normalizer::Kind::Lowercase:
      text = lowercase(text);
      break;
    case Normalizer::Kind::Precompiled:
      text = precompiled(text, charsmaps[i]);
      break;
    default:
      text = normalizeUnicode(text, n.kind);
    }
  }
  return text;
}

} // namespace sluice::runtime::tokenizer
