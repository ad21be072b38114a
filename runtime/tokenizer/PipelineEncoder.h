// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#ifndef SLUICE_RUNTIME_TOKENIZER_PIPELINEENCODER_H
#define SLUICE_RUNTIME_TOKENIZER_PIPELINEENCODER_H

#include "AddedTokens.h"
#include "PreTokenization.h"
#include "Unigram.h"
#include "Vocabulary.h"

#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace sluice::runtime::tokenizer {

/// Hugging Face's pipeline: normalizes a text, cuts it into words and makes tokens of each, by
/// merging by rank (BPE) or by the best sum of scores (Unigram). Refers to what it is made of,
/// which has to outlive it.
class PipelineEncoder {
public:
  /// Throws Error, starting with `name`, if a merge makes no token or a pattern is wrong.
  PipelineEncoder(const Data &data, const Vocabulary &vocabulary,
                  const Normalization &normalization, const AddedTokens &added,
                  const std::string &name);

  /// The ids of words that a text has had already.
  using WordCache = std::unordered_map<std::string, std::vector<int32_t>>;
  /// Appends the ids of `text`, which may hold any bytes. `atStart`: the whole text starts here.
  void encode(std::string_view text, bool atStart, bool parseSpecial, WordCache &cache,
              std::vector<int32_t> &ids) const;

private:
  /// The token of a word or character, unless it is one that text does not become.
  std::optional<int32_t> findText(std::string_view text) const;
  void encodeWord(std::string_view word, std::vector<int32_t> &ids) const;

  const Data &data;
  const Vocabulary &vocabulary;
  const Normalization &normalization;
  const AddedTokens &added;
  PreTokenization preTokenization;
  /// For Kind::Unigram; what follows is for Kind::Bpe.
  std::optional<Unigram> unigram;
  struct Merge {
    int32_t rank, id;
  };
  /// By left id << 32 | right id.
  std::unordered_map<uint64_t, Merge> merges;
  /// By id: whether text becomes this token by itself. Special tokens are found on demand only.
  std::vector<bool> isText;
};

} // namespace sluice::runtime::tokenizer

#endif // SLUICE_RUNTIME_TOKENIZER_PIPELINEENCODER_H
