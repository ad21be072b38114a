// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "Text.h"

#include "sluice-support/Text.h"

#include <utf8proc.h>

#include <algorithm>

namespace sluice::runtime::jinja {

using support::Utf8Char;
using support::Utf8Status;

namespace {

/// The next character; a byte that is none is not valid and one byte long.
Utf8Char nextCharacter(std::string_view text) {
  Utf8Char c = support::decodeUtf8(text);
  return c.status == Utf8Status::Valid ? c : Utf8Char{Utf8Status::Invalid, 1, 0};
}

/// The last character.
Utf8Char lastCharacter(std::string_view text) {
  size_t begin = text.size() - 1;
  while (begin > 0 && text.size() - begin < 4 && (text[begin] & 0xC0) == 0x80)
    --begin;
  Utf8Char c = support::decodeUtf8(text.substr(begin));
  if (c.status == Utf8Status::Valid && begin + c.length == text.size())
    return c;
  return {Utf8Status::Invalid, 1, 0};
}

template <typename F> void forEachCharacter(std::string_view text, F &&f) {
  while (!text.empty()) {
    Utf8Char c = nextCharacter(text);
    f(c, text.substr(0, c.length));
    text.remove_prefix(c.length);
  }
}

bool isLetter(uint32_t codePoint) {
  switch (utf8proc_category(static_cast<utf8proc_int32_t>(codePoint))) {
  case UTF8PROC_CATEGORY_LU:
  case UTF8PROC_CATEGORY_LL:
  case UTF8PROC_CATEGORY_LT:
  case UTF8PROC_CATEGORY_LM:
  case UTF8PROC_CATEGORY_LO:
    return true;
  default:
    return false;
  }
}

bool isDigit(uint32_t codePoint) {
  return utf8proc_category(static_cast<utf8proc_int32_t>(codePoint)) == UTF8PROC_CATEGORY_ND;
}

bool isCased(uint32_t codePoint) {
  switch (utf8proc_category(static_cast<utf8proc_int32_t>(codePoint))) {
  case UTF8PROC_CATEGORY_LU:
  case UTF8PROC_CATEGORY_LL:
  case UTF8PROC_CATEGORY_LT:
    return true;
  default:
    return false;
  }
}

template <typename F> bool all(std::string_view text, F &&is) {
  bool result = !text.empty();
  forEachCharacter(text, [&](Utf8Char c, std::string_view) {
    result = result && c.status == Utf8Status::Valid && is(c.codePoint);
  });
  return result;
}

enum class Case { Upper, Lower, Title };

void appendCased(std::string &out, Utf8Char c, std::string_view bytes, Case to) {
  if (c.status != Utf8Status::Valid) {
    out += bytes;
    return;
  }
  auto from = static_cast<utf8proc_int32_t>(c.codePoint);
  utf8proc_int32_t result = to == Case::Upper   ? utf8proc_toupper(from)
                            : to == Case::Lower ? utf8proc_tolower(from)
                                                : utf8proc_totitle(from);
  appendUtf8(out, static_cast<uint32_t>(result));
}

std::string cased(std::string_view text, Case to) {
  std::string out;
  out.reserve(text.size());
  forEachCharacter(text,
                   [&](Utf8Char c, std::string_view bytes) { appendCased(out, c, bytes, to); });
  return out;
}

template <typename F> std::string_view stripIf(std::string_view text, Side side, F &&goes) {
  while (side != Side::Right && !text.empty()) {
    Utf8Char c = nextCharacter(text);
    if (!goes(c, text.substr(0, c.length)))
      break;
    text.remove_prefix(c.length);
  }
  while (side != Side::Left && !text.empty()) {
    Utf8Char c = lastCharacter(text);
    if (!goes(c, text.substr(text.size() - c.length)))
      break;
    text.remove_suffix(c.length);
  }
  return text;
}

bool isSpaceCharacter(Utf8Char c) { return c.status == Utf8Status::Valid && isSpace(c.codePoint); }

} // namespace

bool isSpace(uint32_t c) {
  return (c >= 0x09 && c <= 0x0D) || (c >= 0x1C && c <= 0x20) || c == 0x85 || c == 0xA0 ||
         c == 0x1680 || (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F ||
         c == 0x205F || c == 0x3000;
}

bool isPrintable(uint32_t c) {
  if (c == ' ')
    return true;
  switch (utf8proc_category(static_cast<utf8proc_int32_t>(c))) {
  case UTF8PROC_CATEGORY_CC:
  case UTF8PROC_CATEGORY_CF:
  case UTF8PROC_CATEGORY_CS:
  case UTF8PROC_CATEGORY_CO:
  case UTF8PROC_CATEGORY_CN:
  case UTF8PROC_CATEGORY_ZL:
  case UTF8PROC_CATEGORY_ZP:
  case UTF8PROC_CATEGORY_ZS:
    return false;
  default:
    return true;
  }
}

bool isAllSpace(std::string_view text) {
  return all(text, [](uint32_t c) { return isSpace(c); });
}
bool isAllDigits(std::string_view text) { return all(text, isDigit); }
bool isAllLetters(std::string_view text) { return all(text, isLetter); }
bool isAllLettersOrDigits(std::string_view text) {
  return all(text, [](uint32_t c) { return isLetter(c) || isDigit(c); });
}

static bool hasOnlyCase(std::string_view text, utf8proc_category_t category) {
  bool any = false, only = true;
  forEachCharacter(text, [&](Utf8Char c, std::string_view) {
    if (c.status != Utf8Status::Valid || !isCased(c.codePoint))
      return;
    any = true;
    only = only && utf8proc_category(static_cast<utf8proc_int32_t>(c.codePoint)) == category;
  });
  return any && only;
}

bool isUpper(std::string_view text) { return hasOnlyCase(text, UTF8PROC_CATEGORY_LU); }
bool isLower(std::string_view text) { return hasOnlyCase(text, UTF8PROC_CATEGORY_LL); }

size_t characterCount(std::string_view text) {
  size_t count = 0;
  forEachCharacter(text, [&](Utf8Char, std::string_view) { ++count; });
  return count;
}

std::vector<size_t> characterOffsets(std::string_view text) {
  std::vector<size_t> offsets;
  offsets.reserve(text.size() + 1);
  size_t at = 0;
  forEachCharacter(text, [&](Utf8Char c, std::string_view) {
    offsets.push_back(at);
    at += c.length;
  });
  offsets.push_back(at);
  return offsets;
}

std::string_view strip(std::string_view text, Side side) {
  return stripIf(text, side, [](Utf8Char c, std::string_view) { return isSpaceCharacter(c); });
}

std::string_view strip(std::string_view text, Side side, std::string_view characters) {
  return stripIf(text, side, [&](Utf8Char, std::string_view bytes) {
    // Whole characters only: a byte in the middle of one is none.
    for (std::string_view rest = characters; !rest.empty();) {
      Utf8Char c = nextCharacter(rest);
      if (rest.substr(0, c.length) == bytes)
        return true;
      rest.remove_prefix(c.length);
    }
    return false;
  });
}

std::string toUpper(std::string_view text) { return cased(text, Case::Upper); }
std::string toLower(std::string_view text) { return cased(text, Case::Lower); }

std::string capitalized(std::string_view text) {
  std::string out;
  bool first = true;
  forEachCharacter(text, [&](Utf8Char c, std::string_view bytes) {
    appendCased(out, c, bytes, first ? Case::Title : Case::Lower);
    first = false;
  });
  return out;
}

std::string titled(std::string_view text) {
  std::string out;
  bool inWord = false;
  forEachCharacter(text, [&](Utf8Char c, std::string_view bytes) {
    appendCased(out, c, bytes, inWord ? Case::Lower : Case::Title);
    inWord = c.status == Utf8Status::Valid && isCased(c.codePoint);
  });
  return out;
}

std::string titledByWords(std::string_view text) {
  std::string out;
  bool inWord = false;
  forEachCharacter(text, [&](Utf8Char c, std::string_view bytes) {
    appendCased(out, c, bytes, inWord ? Case::Lower : Case::Upper);
    inWord =
        !isSpaceCharacter(c) && std::string_view("-({[<").find(bytes) == std::string_view::npos;
  });
  return out;
}

std::vector<std::string_view> splitLines(std::string_view text) {
  std::vector<std::string_view> lines;
  size_t begin = 0;
  for (size_t at = 0; at < text.size();) {
    Utf8Char c = nextCharacter(text.substr(at));
    uint32_t p = c.status == Utf8Status::Valid ? c.codePoint : 0;
    bool ends = (p >= 0x0A && p <= 0x0D) || (p >= 0x1C && p <= 0x1E) || p == 0x85 || p == 0x2028 ||
                p == 0x2029;
    size_t next = at + c.length;
    if (ends) {
      lines.push_back(text.substr(begin, at - begin));
      if (p == '\r' && next < text.size() && text[next] == '\n')
        ++next;
      begin = next;
    }
    at = next;
  }
  if (begin < text.size())
    lines.push_back(text.substr(begin));
  return lines;
}

std::vector<std::string_view> splitWords(std::string_view text, int64_t most, bool fromRight) {
  std::vector<std::string_view> words;
  Side side = fromRight ? Side::Right : Side::Left;
  text = strip(text, side);
  while (!text.empty()) {
    if (most >= 0 && static_cast<int64_t>(words.size()) == most) {
      words.push_back(text);
      text = {};
      break;
    }
    size_t length = 0;
    while (length < text.size()) {
      std::string_view rest =
          fromRight ? text.substr(0, text.size() - length) : text.substr(length);
      Utf8Char c = fromRight ? lastCharacter(rest) : nextCharacter(rest);
      if (isSpaceCharacter(c))
        break;
      length += c.length;
    }
    words.push_back(fromRight ? text.substr(text.size() - length) : text.substr(0, length));
    if (fromRight)
      text.remove_suffix(length);
    else
      text.remove_prefix(length);
    text = strip(text, side);
  }
  if (fromRight)
    std::reverse(words.begin(), words.end());
  return words;
}

void appendUtf8(std::string &out, uint32_t c) {
  if (c > 0x10FFFF || (c >= 0xD800 && c <= 0xDFFF))
    c = 0xFFFD;
  if (c < 0x80) {
    out += static_cast<char>(c);
    return;
  }
  int rest = c < 0x800 ? 1 : c < 0x10000 ? 2 : 3;
  out += static_cast<char>((0xFF << (7 - rest) & 0xFF) | c >> (6 * rest));
  while (rest-- > 0)
    out += static_cast<char>(0x80 | (c >> (6 * rest) & 0x3F));
}

} // namespace sluice::runtime::jinja
