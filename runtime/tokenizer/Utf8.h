// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#ifndef SLUICE_RUNTIME_TOKENIZER_UTF8_H
#define SLUICE_RUNTIME_TOKENIZER_UTF8_H

#include <array>
#include <cstdint>
#include <string>
#include <string_view>

namespace sluice::runtime::tokenizer {

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
void appendUtf8(std::string &out, uint32_t codePoint);
/// Length of the longest valid prefix.
size_t validUtf8Prefix(std::string_view bytes);

/// U+FFFD.
inline constexpr std::string_view replacementCharacter = "\xEF\xBF\xBD";
/// U+2581, which stands for a space in SentencePiece's vocabularies.
inline constexpr std::string_view spaceSymbol = "\xE2\x96\x81";

/// Unicode's White_Space property.
bool isWhitespace(uint32_t codePoint);
/// What \w matches (UTS #18, annex C): alphabetic, a mark, decimal digit, connector or joiner.
bool isWord(uint32_t codePoint);

/// For messages: in quotes, one printable line, at most some 60 bytes.
std::string inQuotes(std::string_view text);

/// GPT-2's reversible spelling of bytes as printable characters (its bytes_to_unicode): byte b is
/// the character byteCharacters()[b].
const std::array<uint16_t, 256> &byteCharacters();
/// The byte that a character of that spelling stands for, or -1.
int byteOfCharacter(uint32_t codePoint);

} // namespace sluice::runtime::tokenizer

#endif // SLUICE_RUNTIME_TOKENIZER_UTF8_H
