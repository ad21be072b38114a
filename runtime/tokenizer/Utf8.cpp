// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "Utf8.h"

#include <cstdio>
#include <utf8proc.h>

namespace sluice::runtime::tokenizer {

Utf8Char decodeUtf8(std::string_view bytes) {
  auto byte = [&](size_t i) { return static_cast<uint8_t>(bytes[i]); };
  uint8_t first = byte(0);
  if (first < 0x80)
    return {Utf8Status::Valid, 1, first};
  uint32_t length = first >= 0xC2 && first <= 0xDF   ? 2
                    : first >= 0xE0 && first <= 0xEF ? 3
                    : first >= 0xF0 && first <= 0xF4 ? 4
                                                     : 0;
  if (length == 0)
    return {Utf8Status::Invalid, 1, 0};
  // The second byte's range keeps out overlong forms, surrogates and what is over U+10FFFF.
  uint8_t low = first == 0xE0 ? 0xA0 : first == 0xF0 ? 0x90 : 0x80;
  uint8_t high = first == 0xED ? 0x9F : first == 0xF4 ? 0x8F : 0xBF;
  uint32_t codePoint = first & (0xFF >> (length + 1));
  for (uint32_t i = 1; i < length; ++i) {
    if (i >= bytes.size())
      return {Utf8Status::Truncated, i, 0};
    if (byte(i) < low || byte(i) > high)
      return {Utf8Status::Invalid, i, 0};
    codePoint = codePoint << 6 | (byte(i) & 0x3F);
    low = 0x80;
    high = 0xBF;
  }
  return {Utf8Status::Valid, length, codePoint};
}

void appendUtf8(std::string &out, uint32_t codePoint) {
  auto put = [&](uint32_t byte) { out.push_back(static_cast<char>(byte)); };
  if (codePoint < 0x80) {
    put(codePoint);
  } else if (codePoint < 0x800) {
    put(0xC0 | codePoint >> 6);
    put(0x80 | (codePoint & 0x3F));
  } else if (codePoint < 0x10000) {
    put(0xE0 | codePoint >> 12);
    put(0x80 | (codePoint >> 6 & 0x3F));
    put(0x80 | (codePoint & 0x3F));
  } else {
    put(0xF0 | codePoint >> 18);
    put(0x80 | (codePoint >> 12 & 0x3F));
    put(0x80 | (codePoint >> 6 & 0x3F));
    put(0x80 | (codePoint & 0x3F));
  }
}

size_t validUtf8Prefix(std::string_view bytes) {
  size_t i = 0;
  while (i < bytes.size()) {
    Utf8Char c = decodeUtf8(bytes.substr(i));
    if (c.status != Utf8Status::Valid)
      break;
    i += c.length;
  }
  return i;
}

bool isWhitespace(uint32_t c) {
  return (c >= 0x9 && c <= 0xD) || c == 0x20 || c == 0x85 || c == 0xA0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F ||
         c == 0x3000;
}

bool isWord(uint32_t c) {
  // U+200C and U+200D join; the ranges are letters in circles and squares, which are alphabetic
  // too.
  if (c == 0x200C || c == 0x200D || (c >= 0x24B6 && c <= 0x24E9) ||
      (c >= 0x1F130 && c <= 0x1F149) || (c >= 0x1F150 && c <= 0x1F169) ||
      (c >= 0x1F170 && c <= 0x1F189))
    return true;
  switch (utf8proc_category(static_cast<utf8proc_int32_t>(c))) {
  case UTF8PROC_CATEGORY_LU:
  case UTF8PROC_CATEGORY_LL:
  case UTF8PROC_CATEGORY_LT:
  case UTF8PROC_CATEGORY_LM:
  case UTF8PROC_CATEGORY_LO:
  case UTF8PROC_CATEGORY_MN:
  case UTF8PROC_CATEGORY_MC:
  case UTF8PROC_CATEGORY_ME:
  case UTF8PROC_CATEGORY_ND:
  case UTF8PROC_CATEGORY_NL:
  case UTF8PROC_CATEGORY_PC:
    return true;
  default:
    return false;
  }
}

std::string inQuotes(std::string_view text) {
  std::string out = "'";
  size_t i = 0;
  while (i < text.size() && out.size() < 48) {
    Utf8Char c = decodeUtf8(text.substr(i));
    if (c.status == Utf8Status::Valid && c.codePoint >= 0x20 && c.codePoint != 0x7F &&
        !(c.codePoint >= 0x80 && c.codePoint < 0xA0) && c.codePoint != 0x2028 &&
        c.codePoint != 0x2029) {
      out.append(text, i, c.length);
      i += c.length;
      continue;
    }
    char buffer[8];
    std::snprintf(buffer, sizeof(buffer), "\\x%02X", static_cast<uint8_t>(text[i++]));
    out += buffer;
  }
  return out + (i < text.size() ? "...'" : "'");
}

const std::array<uint16_t, 256> &byteCharacters() {
  static const std::array<uint16_t, 256> table = [] {
    std::array<uint16_t, 256> t{};
    uint16_t next = 256;
    for (int b = 0; b < 256; ++b) {
      bool printable = (b >= '!' && b <= '~') || (b >= 0xA1 && b <= 0xAC) || b >= 0xAE;
      t[b] = printable ? static_cast<uint16_t>(b) : next++;
    }
    return t;
  }();
  return table;
}

int byteOfCharacter(uint32_t codePoint) {
  // The 68 bytes that do not stand for themselves are the characters from U+0100 on.
  static const std::array<int16_t, 256 + 68> table = [] {
    std::array<int16_t, 256 + 68> t;
    t.fill(-1);
    for (int b = 0; b < 256; ++b)
      t[byteCharacters()[b]] = static_cast<int16_t>(b);
    return t;
  }();
  return codePoint < table.size() ? table[codePoint] : -1;
}

} // namespace sluice::runtime::tokenizer
