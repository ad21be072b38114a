// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#ifndef SLUICE_RUNTIME_TOKENIZER_CHARSMAP_H
#define SLUICE_RUNTIME_TOKENIZER_CHARSMAP_H

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace sluice::runtime::tokenizer {

/// SentencePiece's precompiled_charsmap: the length of a double-array trie in bytes (4 bytes,
/// little endian), the trie (of the Darts-clone library), then the replacements, each ended by NUL,
/// which the trie's values point into.
class Charsmap {
public:
  Charsmap() = default;
  /// An empty blob is the identity. Throws Error.
  Charsmap(std::string_view blob, const std::string &name);

  /// The longest key that `text` starts with: its length and what stands for it.
  std::optional<std::pair<size_t, std::string_view>> longestPrefix(std::string_view text) const {
    return prefix(text, false);
  }
  /// The shortest.
  std::optional<std::pair<size_t, std::string_view>> shortestPrefix(std::string_view text) const {
    return prefix(text, true);
  }

private:
  std::optional<std::pair<size_t, std::string_view>> prefix(std::string_view text,
                                                            bool shortest) const;

  std::vector<uint32_t> units;
  std::string replacements;
};

} // namespace sluice::runtime::tokenizer

#endif // SLUICE_RUNTIME_TOKENIZER_CHARSMAP_H
