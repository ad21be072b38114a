// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#ifndef SLUICE_RUNTIME_TOKENIZER_MODEL_H
#define SLUICE_RUNTIME_TOKENIZER_MODEL_H

#include "AddedTokens.h"
#include "PipelineEncoder.h"
#include "SentencePieceEncoder.h"

#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace sluice::runtime::tokenizer {

/// A tokenizer's data, checked, with the tables that encoding needs.
class Model {
public:
  /// Throws Error, starting with `name`, if the data contradict themselves.
  Model(Data data, const std::string &name);
  Model(const Model &) = delete;
  Model &operator=(const Model &) = delete;

  const Data &getData() const { return data; }

  void encode(std::string_view text, bool parseSpecial, std::vector<int32_t> &ids) const;

  /// The text of a token as the decoder has it. `bytes` is set if these are bytes of a longer
  /// sequence, in which characters may span tokens.
  std::string textOf(int32_t id, bool &bytes) const;

  std::optional<int32_t> find(std::string_view text) const { return vocabulary.find(text); }
  /// Throws Error if there is no such token.
  void check(int32_t id) const;

private:
  // In the order in which they refer to each other.
  Data data;
  Vocabulary vocabulary;
  Normalization normalization;
  AddedTokens added;
  /// The one for the data's kind.
  std::optional<SentencePieceEncoder> sentencePiece;
  std::optional<PipelineEncoder> pipeline;
};

} // namespace sluice::runtime::tokenizer

#endif // SLUICE_RUNTIME_TOKENIZER_MODEL_H
