// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "Vocabulary.h"

#include "Utf8.h"

#include <cstdio>

namespace sluice::runtime::tokenizer {

/// The byte of a token spelled <0x00> to <0xFF>, or -1.
static int byteOfSpelling(std::string_view text) {
  if (text.size() != 6 || text.substr(0, 3) != "<0x" || text[5] != '>')
    return -1;
  constexpr std::string_view digits = "0123456789ABCDEF";
  size_t high = digits.find(text[3]), low = digits.find(text[4]);
  return high == std::string_view::npos || low == std::string_view::npos
             ? -1
             : static_cast<int>(high * 16 + low);
}

Vocabulary::Vocabulary(const Data &data, const std::string &name) {
  byteTokens.fill(-1);
  byteOfToken.assign(data.tokens.size(), -1);
  bool sentencePiece = isSentencePiece(data.kind);
  idOf.reserve(data.tokens.size());
  for (size_t i = 0; i < data.tokens.size(); ++i) {
    const std::string &text = data.tokens[i];
    auto id = static_cast<int32_t>(i);
    if (text.empty()) {
      if (data.types[i] != TokenType::Unused)
        throw Error(name + ": token " + std::to_string(i) + " is empty, expected some text");
      continue;
    }
    if (validUtf8Prefix(text) != text.size())
      throw Error(name + ": token " + std::to_string(i) + " is " + quote(text) +
                  ", expected valid UTF-8");
    auto [it, isNew] = idOf.emplace(text, id);
    if (!isNew)
      throw Error(name + ": tokens " + std::to_string(it->second) + " and " + std::to_string(i) +
                  " are both " + quote(text));
    int byte = byteOfSpelling(text);
    bool isByte = sentencePiece ? data.types[i] == TokenType::Byte : data.byteFallback && byte >= 0;
    if (!isByte)
      continue;
    if (byte < 0)
      throw Error(name + ": byte token " + std::to_string(i) + " is " + quote(text) +
                  ", expected <0x00> to <0xFF>");
    byteTokens[byte] = id;
    byteOfToken[i] = static_cast<int16_t>(byte);
  }
  if (data.byteFallback)
    for (int b = 0; b < 256; ++b)
      if (byteTokens[b] < 0) {
        char spelling[8];
        std::snprintf(spelling, sizeof(spelling), "<0x%02X>", b);
        throw Error(name + ": there is no token " + spelling +
                    ", expected one for each byte as byte_fallback is on");
      }
}

std::optional<int32_t> Vocabulary::find(std::string_view text) const {
  auto it = idOf.find(text);
  return it == idOf.end() ? std::nullopt : std::optional(it->second);
}

} // namespace sluice::runtime::tokenizer
