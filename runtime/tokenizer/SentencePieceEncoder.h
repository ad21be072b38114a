// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#ifndef SLUICE_RUNTIME_TOKENIZER_SENTENCEPIECEENCODER_H
#define SLUICE_RUNTIME_TOKENIZER_SENTENCEPIECEENCODER_H

#include "Charsmap.h"
#include "PrefixSet.h"
#include "Unigram.h"
#include "Vocabulary.h"

#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace sluice::runtime::tokenizer {

/// SentencePiece: normalizes a text, then merges the neighbours whose union has the best score
/// until none is left (BPE), or takes the pieces with the best sum of scores (Unigram). Refers to
/// data and vocabulary, which have to outlive it.
class SentencePieceEncoder {
public:
  /// Throws Error, starting with `name`, if the character map is wrong or there is not one unknown
  /// token.
  SentencePieceEncoder(const Data &data, const Vocabulary &vocabulary, const std::string &name);

  /// Appends the ids of `text`, which may hold any bytes.
  void encode(std::string_view text, std::vector<int32_t> &ids) const;

private:
  std::string normalize(std::string_view text) const;

  const Data &data;
  const Vocabulary &vocabulary;
  Charsmap charsmap;
  /// Pieces that are found before anything is merged.
  PrefixSet userDefined;
  /// What text may become: not control, unknown and byte tokens.
  std::unordered_map<std::string_view, int32_t> pieces;
  size_t longestPiece = 0;
  /// For Kind::SentencePieceUnigram.
  std::optional<Unigram> unigram;
};

} // namespace sluice::runtime::tokenizer

#endif // SLUICE_RUNTIME_TOKENIZER_SENTENCEPIECEENCODER_H
