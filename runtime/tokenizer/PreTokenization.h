// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#ifndef SLUICE_RUNTIME_TOKENIZER_PRETOKENIZATION_H
#define SLUICE_RUNTIME_TOKENIZER_PRETOKENIZATION_H

#include "Data.h"
#include "Regex.h"

#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace sluice::runtime::tokenizer {

/// A part of a text on its way to becoming words.
struct Piece {
  std::string text;
  /// It starts where the whole text does.
  bool atStart;
  /// Bytes that are not UTF-8, which no step but the last one looks at.
  bool raw;
};

/// The steps that cut a text into words. Refers to the data, which have to outlive it.
class PreTokenization {
public:
  /// Throws Error, starting with `name`, if a pattern is wrong.
  PreTokenization(const Data &data, const std::string &name);

  /// Whether a step spells bytes as characters, so that any bytes can be words.
  bool spellsBytes() const { return byteLevel; }
  std::vector<Piece> apply(std::vector<Piece> pieces) const;

private:
  const std::vector<PreTokenizer> &steps;
  /// One per step that has a pattern.
  std::vector<std::optional<Regex>> patterns;
  bool byteLevel = false;
};

/// GPT-2's spelling of bytes as printable characters.
std::string spellBytes(std::string_view bytes);

} // namespace sluice::runtime::tokenizer

#endif // SLUICE_RUNTIME_TOKENIZER_PRETOKENIZATION_H
