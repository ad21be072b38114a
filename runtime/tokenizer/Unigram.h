// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#ifndef SLUICE_RUNTIME_TOKENIZER_UNIGRAM_H
#define SLUICE_RUNTIME_TOKENIZER_UNIGRAM_H

#include "Data.h"
#include "Vocabulary.h"

#include <array>
#include <string_view>
#include <vector>

namespace sluice::runtime::tokenizer {

/// Cuts a text into the pieces whose scores add up to most. A path is extended from left to right;
/// of equal ones the first one found stays. With Kind::SentencePieceUnigram sums are rounded as the
/// SentencePiece library does, with Kind::Unigram as Hugging Face's: which of two splits with
/// nearly equal sums wins depends on it. Refers to data and vocabulary, which have to outlive it.
class Unigram {
public:
  /// Throws Error, starting with `name`, if there is no unknown token.
  Unigram(const Data &data, const Vocabulary &vocabulary, const std::string &name);

  /// Appends the ids of `text`, which is normalized and valid UTF-8.
  void encode(std::string_view text, std::vector<int32_t> &ids) const;

private:
  /// Calls `found(length, id)` for each piece that `text` starts with, shortest first.
  template <typename F> void forEachPrefix(std::string_view text, F found) const;

  const Data &data;
  const Vocabulary &vocabulary;
  struct Piece {
    std::string_view text;
    int32_t id;
  };
  /// What text may become, sorted by bytes; and where those of each first byte begin.
  std::vector<Piece> pieces;
  std::array<size_t, 257> firstOf;
  bool isSingle;
  /// By id; what a piece adds to a path's sum.
  std::vector<double> scores;
  double unknownScore;
};

} // namespace sluice::runtime::tokenizer

#endif // SLUICE_RUNTIME_TOKENIZER_UNIGRAM_H
