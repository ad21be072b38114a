// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#ifndef SLUICE_RUNTIME_TOKENIZER_UTF8_H
#define SLUICE_RUNTIME_TOKENIZER_UTF8_H

#include "sluice-support/Text.h"

#include <array>
#include <cstdint>
#include <string>
#include <string_view>

namespace sluice::runtime::tokenizer {

using support::decodeUtf8;
using support::quote;
using support::Utf8Char;
using support::Utf8Status;
using support::validUtf8Prefix;

void appendUtf8(std::string &out, uint32_t codePoint);

/// U+FFFD.
inline constexpr std::string_view replacementCharacter = "\xEF\xBF\xBD";
/// U+2581, which stands for a space in SentencePiece's vocabularies.
inline constexpr std::string_view spaceSymbol = "\xE2\x96\x81";

/// Unicode's White_Space property.
bool isWhitespace(uint32_t codePoint);
/// What \w matches (UTS #18, annex C): alphabetic, a mark, decimal digit, connector or joiner.
bool isWord(uint32_t codePoint);

/// GPT-2's reversible spelling of bytes as printable characters (its bytes_to_unicode): byte b is
/// the character byteCharacters()[b].
const std::array<uint16_t, 256> &byteCharacters();
/// The byte that a character of that spelling stands for, or -1.
int byteOfCharacter(uint32_t codePoint);

} // namespace sluice::runtime::tokenizer

#endif // SLUICE_RUNTIME_TOKENIZER_UTF8_H
