// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#ifndef SLUICE_RUNTIME_TOKENIZER_ADDEDTOKENS_H
#define SLUICE_RUNTIME_TOKENIZER_ADDEDTOKENS_H

#include "Data.h"
#include "Normalization.h"
#include "PrefixSet.h"

#include <string>
#include <string_view>
#include <vector>

namespace sluice::runtime::tokenizer {

/// A part of a text: an added token, or what lies between two of them.
struct Section {
  /// -1 for text.
  int32_t id;
  size_t begin, end;
};

/// Finds the tokens that are taken out of a text before anything else happens to it. Refers to the
/// data, which have to outlive it.
class AddedTokens {
public:
  /// Throws Error, starting with `name`, if a token is added twice or is not in the vocabulary.
  AddedTokens(const Data &data, const Normalization &normalization, const std::string &name);

  bool contains(int32_t id) const { return index[id] >= 0; }

  /// The sections of a text as it was given. With `parseSpecial` special tokens are found too.
  std::vector<Section> split(std::string_view text, bool parseSpecial) const {
    return split(text, asGiven, parseSpecial);
  }
  /// The same for the tokens that are found in normalized text only.
  std::vector<Section> splitNormalized(std::string_view text, bool parseSpecial) const {
    return split(text, normalized, parseSpecial);
  }

private:
  std::vector<Section> split(std::string_view text, const PrefixSet &set, bool parseSpecial) const;

  const std::vector<AddedToken> &tokens;
  PrefixSet asGiven, normalized;
  /// By id, an index into `tokens` or -1.
  std::vector<int32_t> index;
};

} // namespace sluice::runtime::tokenizer

#endif // SLUICE_RUNTIME_TOKENIZER_ADDEDTOKENS_H
