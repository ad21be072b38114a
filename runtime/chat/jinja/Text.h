// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Text as Python's str has it: counted in characters, with Unicode's white space and cases. Bytes
// that are not UTF-8 count as one character each and stay what they are.

#ifndef SLUICE_RUNTIME_CHAT_JINJA_TEXT_H
#define SLUICE_RUNTIME_CHAT_JINJA_TEXT_H

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace sluice::runtime::jinja {

/// str.isspace of one character.
bool isSpace(uint32_t codePoint);
/// str.isprintable of one character.
bool isPrintable(uint32_t codePoint);
/// Whether the text has characters, and all are white space, digits, letters, or either of the
/// last two.
bool isAllSpace(std::string_view text);
bool isAllDigits(std::string_view text);
bool isAllLetters(std::string_view text);
bool isAllLettersOrDigits(std::string_view text);
/// Whether the text has letters with case, and all of them are upper (lower) case.
bool isUpper(std::string_view text);
bool isLower(std::string_view text);

size_t characterCount(std::string_view text);
/// The offset of each character, and the end.
std::vector<size_t> characterOffsets(std::string_view text);

enum class Side { Left, Right, Both };
/// str.strip and its like; without `characters` white space goes.
std::string_view strip(std::string_view text, Side side);
std::string_view strip(std::string_view text, Side side, std::string_view characters);

std::string toUpper(std::string_view text);
std::string toLower(std::string_view text);
/// The first character in title case, all others in lower case.
std::string capitalized(std::string_view text);
/// str.title: each run of letters capitalized.
std::string titled(std::string_view text);
/// Jinja's filter title, whose words begin after white space, hyphens and opening brackets.
std::string titledByWords(std::string_view text);

/// str.splitlines without line ends.
std::vector<std::string_view> splitLines(std::string_view text);
/// Parts between runs of white space; at most `most` cuts, from the right if told so.
std::vector<std::string_view> splitWords(std::string_view text, int64_t most, bool fromRight);

/// Appends a character in UTF-8; U+FFFD for what is none.
void appendUtf8(std::string &out, uint32_t codePoint);

} // namespace sluice::runtime::jinja

#endif // SLUICE_RUNTIME_CHAT_JINJA_TEXT_H
