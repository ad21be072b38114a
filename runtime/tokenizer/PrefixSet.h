// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#ifndef SLUICE_RUNTIME_TOKENIZER_PREFIXSET_H
#define SLUICE_RUNTIME_TOKENIZER_PREFIXSET_H

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

namespace sluice::runtime::tokenizer {

/// Strings of which the longest that a text starts with can be found.
class PrefixSet {
public:
  /// `text` must not be empty. Of two that are equal the first one counts.
  void insert(const std::string &text, int32_t id);
  bool empty() const { return ids.empty(); }
  /// Length and id; the length is 0 if there is none.
  std::pair<size_t, int32_t> longestPrefix(std::string_view text) const;

private:
  std::unordered_map<std::string_view, int32_t> ids;
  /// Owns what `ids` refers to; a deque's or list's elements would do as well, a vector's not.
  std::vector<std::unique_ptr<std::string>> texts;
  /// By first byte, longest first.
  std::array<std::vector<size_t>, 256> lengths;
};

} // namespace sluice::runtime::tokenizer

#endif // SLUICE_RUNTIME_TOKENIZER_PREFIXSET_H
