// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#ifndef SLUICE_RUNTIME_TOKENIZER_VOCABULARY_H
#define SLUICE_RUNTIME_TOKENIZER_VOCABULARY_H

#include "Data.h"

#include <array>
#include <optional>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace sluice::runtime::tokenizer {

/// The tokens by their text, and which of them stand for single bytes. Refers to the data, which
/// have to outlive it.
class Vocabulary {
public:
  /// Throws Error, starting with `name`, if two tokens are equal, one is not UTF-8, or a byte that
  /// byte fallback needs has none.
  Vocabulary(const Data &data, const std::string &name);

  std::optional<int32_t> find(std::string_view text) const;
  /// The token <0x..> of a byte, or -1.
  int32_t tokenOfByte(char byte) const { return byteTokens[static_cast<uint8_t>(byte)]; }
  /// The byte that such a token stands for, or -1.
  int byteOf(int32_t id) const { return byteOfToken[id]; }

private:
  std::unordered_map<std::string_view, int32_t> idOf;
  std::array<int32_t, 256> byteTokens;
  std::vector<int16_t> byteOfToken;
};

} // namespace sluice::runtime::tokenizer

#endif // SLUICE_RUNTIME_TOKENIZER_VOCABULARY_H
