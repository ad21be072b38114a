// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Text in messages. What a file holds may be anything; a message is one short line of UTF-8.

#ifndef SLUICE_SUPPORT_TEXT_H
#define SLUICE_SUPPORT_TEXT_H

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace sluice::support {

enum class Utf8Status { Valid, Invalid, Truncated };

/// What stands at the start of some bytes.
struct Utf8Char {
  Utf8Status status;
  /// Bytes of the character; of the maximal subpart (Unicode 15, table 3-8) if it is invalid; all
  /// that is left if it is truncated. At least 1.
  uint32_t length;
  /// Of a valid character.
  uint32_t codePoint;
};

/// `bytes` must not be empty.
Utf8Char decodeUtf8(std::string_view bytes);
/// Length of the longest valid prefix.
size_t validUtf8Prefix(std::string_view bytes);

/// The text with control characters, line separators and bytes that are not UTF-8 written as \xNN,
/// cut (with "..." at the end) before the character that would pass `limit` bytes of the text.
std::string printable(std::string_view text, size_t limit = 80);

/// The same between single quotes.
std::string quote(std::string_view text, size_t limit = 80);

/// Sixteen lowercase hexadecimal digits.
std::string hexDigits(uint64_t value);

} // namespace sluice::support

#endif // SLUICE_SUPPORT_TEXT_H
