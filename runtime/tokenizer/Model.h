// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#ifndef SLUICE_RUNTIME_TOKENIZER_MODEL_H
#define SLUICE_RUNTIME_TOKENIZER_MODEL_H

#include "Charsmap.h"
#include "Data.h"
#include "Regex.h"

#include <array>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace sluice::runtime::tokenizer {

/// Strings of which the longest that a text starts with can be found.
class PrefixSet {
public:
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

  std::optional<int32_t> find(std::string_view text) const;
  /// Throws Error if there is no such token.
  void check(int32_t id) const;

private:
  /// A part of a text between added tokens.
  struct Piece {
    std::string text;
    /// It starts where the whole text does.
    bool atStart;
    /// Bytes that are not UTF-8, which no step but the last one looks at.
    bool raw;
  };
  struct Section {
    /// -1 for text.
    int32_t id;
    size_t begin, end;
  };

  std::vector<Section> splitAdded(std::string_view text, const PrefixSet &set,
                                  bool parseSpecial) const;
  void encodeSentencePiece(std::string_view text, std::vector<int32_t> &ids) const;
  std::string normalizeSentencePiece(std::string_view text) const;

  using WordCache = std::unordered_map<std::string, std::vector<int32_t>>;
  void encodeBpe(std::string_view text, bool atStart, bool parseSpecial, WordCache &cache,
                 std::vector<int32_t> &ids) const;
  std::string normalize(std::string text) const;
  std::vector<Piece> preTokenize(std::vector<Piece> pieces) const;
  void encodeWord(std::string_view word, std::vector<int32_t> &ids) const;
  void split(const Piece &piece, const Regex &regex, SplitBehavior behavior, bool invert,
             std::vector<Piece> &out) const;

  Data data;
  std::unordered_map<std::string_view, int32_t> idOf;
  /// Added tokens that are looked for in the text as given, and in the normalized one.
  PrefixSet addedRaw, addedNormalized;
  /// By id, an index into data.added or -1.
  std::vector<int32_t> addedIndex;
  /// By byte: the token <0x..>, or -1; and by id: the byte, or -1.
  std::array<int32_t, 256> byteTokens;
  std::vector<int16_t> byteOfToken;
  bool byteLevel = false;

  // SentencePiece.
  Charsmap charsmap;
  PrefixSet userDefined;
  /// Pieces that text may become, and pieces that it may not (control, unknown, byte).
  std::unordered_map<std::string_view, int32_t> pieces, reserved;
  size_t longestPiece = 0;

  // Bpe.
  struct Merge {
    int32_t rank, id;
  };
  /// By left id << 32 | right id.
  std::unordered_map<uint64_t, Merge> merges;
  /// One for each normalizer and pre-tokenizer that has a pattern.
  std::vector<std::optional<Regex>> normalizerPatterns, preTokenizerPatterns;
};

} // namespace sluice::runtime::tokenizer

#endif // SLUICE_RUNTIME_TOKENIZER_MODEL_H
