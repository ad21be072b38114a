// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sluice-support/Text.h"

using namespace sluice::support;

Utf8Char sluice::support::decodeUtf8(std::string_view bytes) {
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

size_t sluice::support::validUtf8Prefix(std::string_view bytes) {
  size_t i = 0;
  while (i < bytes.size()) {
    Utf8Char c = decodeUtf8(bytes.substr(i));
    if (c.status != Utf8Status::Valid)
      break;
    i += c.length;
  }
  return i;
}

/// Whether a character may stand in a message as it is: no control character (C0, DEL, C1) and no
/// line or paragraph separator.
static bool isPrintable(uint32_t codePoint) {
  return codePoint >= 0x20 && !(codePoint >= 0x7F && codePoint < 0xA0) && codePoint != 0x2028 &&
         codePoint != 0x2029;
}

std::string sluice::support::printable(std::string_view text, size_t limit) {
  std::string result;
  for (size_t i = 0; i < text.size();) {
    Utf8Char c = decodeUtf8(text.substr(i));
    bool keep = c.status == Utf8Status::Valid && isPrintable(c.codePoint);
    if (i + c.length > limit)
      return result + "...";
    for (size_t end = i + c.length; i < end; ++i) {
      unsigned char byte = static_cast<unsigned char>(text[i]);
      if (keep)
        result += text[i];
      else
        result.append("\\x") += {"0123456789ABCDEF"[byte >> 4], "0123456789ABCDEF"[byte & 15]};
    }
  }
  return result;
}

std::string sluice::support::quote(std::string_view text, size_t limit) {
  return "'" + printable(text, limit) + "'";
}

std::string sluice::support::hexDigits(uint64_t value) {
  std::string digits(16, '0');
  for (int i = 15; i >= 0; --i, value >>= 4)
    digits[i] = "0123456789abcdef"[value & 15];
  return digits;
}
