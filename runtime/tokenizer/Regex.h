// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#ifndef SLUICE_RUNTIME_TOKENIZER_REGEX_H
#define SLUICE_RUNTIME_TOKENIZER_REGEX_H

#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace sluice::runtime::tokenizer {

/// A pattern as Hugging Face's tokenizers write them (Oniguruma's Ruby syntax), run by PCRE2 with
/// Unicode properties. What the two read differently is translated, or refused where there is no
/// translation. Character classes are those of PCRE2's Unicode version.
class Regex {
public:
  /// With `literal` the pattern is a plain string. Throws Error; `where` starts the message.
  Regex(const std::string &pattern, bool literal, const std::string &where);

  /// Where the pattern matches in `text` (valid UTF-8), left to right, [begin, end), no match
  /// empty. Throws Error if a match takes more than ten million steps.
  std::vector<std::pair<size_t, size_t>> findAll(std::string_view text) const;

private:
  std::string pattern;
  bool literal;
  std::string where;
  std::shared_ptr<void> code;
};

} // namespace sluice::runtime::tokenizer

#endif // SLUICE_RUNTIME_TOKENIZER_REGEX_H
