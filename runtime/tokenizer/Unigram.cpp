// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "Unigram.h"

#include "Utf8.h"

#include <algorithm>
#include <cfloat>
#include <limits>

namespace sluice::runtime::tokenizer {

Unigram::Unigram(const Data &data, const Vocabulary &vocabulary, const std::string &name)
    : data(data), vocabulary(vocabulary), isSingle(data.kind == Kind::SentencePieceUnigram),
      scores(data.scores) {
  if (data.unknownId < 0)
    throw Error(name + ": there is no unknown token, expected one for what no piece spells");
  double least = isSingle ? FLT_MAX : std::numeric_limits<double>::infinity();
  // Not the lowest number: SentencePiece starts from the smallest positive one.
  float most = FLT_MIN;
  for (size_t i = 0; i < data.tokens.size(); ++i) {
    TokenType type = data.types[i];
    // tokenizers looks at all pieces, SentencePiece at the normal ones.
    if (!isSingle || type == TokenType::Normal) {
      least = std::min(least, scores[i]);
      most = std::max(most, static_cast<float>(scores[i]));
    }
    bool isText = type == TokenType::Normal || type == TokenType::UserDefined;
    auto id = static_cast<int32_t>(i);
    if (isText && !data.tokens[i].empty() && vocabulary.byteOf(id) < 0)
      pieces.push_back({data.tokens[i], id});
  }
  constexpr double penalty = 10;
  unknownScore = isSingle ? static_cast<float>(least - penalty) : least - penalty;
  // The bonus with which SentencePiece prefers user defined pieces to all others.
  if (isSingle)
    for (size_t i = 0; i < data.tokens.size(); ++i)
      if (data.types[i] == TokenType::UserDefined)
        scores[i] = static_cast<double>(static_cast<float>(data.tokens[i].size()) * most) - 0.1;

  std::sort(pieces.begin(), pieces.end(),
            [](const Piece &a, const Piece &b) { return a.text < b.text; });
  size_t at = 0;
  for (int byte = 0; byte <= 256; ++byte) {
    while (at < pieces.size() && static_cast<uint8_t>(pieces[at].text[0]) < byte)
      ++at;
    firstOf[byte] = at;
  }
}

template <typename F> void Unigram::forEachPrefix(std::string_view text, F found) const {
  auto first = static_cast<uint8_t>(text[0]);
  auto begin = pieces.begin() + static_cast<ptrdiff_t>(firstOf[first]);
  auto end = pieces.begin() + static_cast<ptrdiff_t>(firstOf[first + 1]);
  for (size_t length = 1; begin != end; ++length) {
    // Those that are left start with the first `length` bytes; one that is no longer comes first.
    if (begin->text.size() == length) {
      found(length, begin->id);
      ++begin;
    }
    if (length == text.size())
      break;
    auto next = static_cast<uint8_t>(text[length]);
    auto byteOf = [&](const Piece &piece) { return static_cast<uint8_t>(piece.text[length]); };
    begin = std::lower_bound(begin, end, next,
                             [&](const Piece &p, uint8_t byte) { return byteOf(p) < byte; });
    end = std::upper_bound(begin, end, next,
                           [&](uint8_t byte, const Piece &p) { return byte < byteOf(p); });
  }
}

/// Model::EncodeOptimized of sentencepiece/src/unigram_model.cc and Unigram::encode_optimized of
/// the tokenizers library.
void Unigram::encode(std::string_view text, std::vector<int32_t> &ids) const {
  /// The best path that ends at a position: its last piece.
  struct Node {
    int64_t begin = -1;
    double sum = 0;
    int32_t id = -1;
  };
  std::vector<Node> ends(text.size() + 1);
  for (size_t at = 0; at < text.size();) {
    double before = ends[at].sum;
    size_t character = decodeUtf8(text.substr(at)).length;
    bool isSpelled = false;
    auto consider = [&](size_t length, int32_t id, double sum) {
      Node &node = ends[at + length];
      if (node.begin >= 0 && !(sum > node.sum))
        return;
      // SentencePiece compares in 64 bits and keeps 32.
      node = {static_cast<int64_t>(at), isSingle ? static_cast<float>(sum) : sum, id};
    };
    forEachPrefix(text.substr(at), [&](size_t length, int32_t id) {
      consider(length, id, scores[id] + before);
      isSpelled |= length == character;
    });
    if (!isSpelled) {
      double sum = unknownScore + before;
      consider(character, data.unknownId, isSingle ? static_cast<float>(sum) : sum);
    }
    at += character;
  }

  std::vector<std::pair<size_t, size_t>> path;
  for (size_t end = text.size(); end > 0;) {
    auto begin = static_cast<size_t>(ends[end].begin);
    path.emplace_back(begin, end);
    end = begin;
  }
  bool afterUnknown = false;
  for (auto it = path.rbegin(); it != path.rend(); ++it) {
    auto [begin, end] = *it;
    int32_t id = ends[end].id;
    bool unknown = id == data.unknownId;
    if (unknown && data.byteFallback) {
      for (char c : text.substr(begin, end - begin))
        ids.push_back(vocabulary.tokenOfByte(c));
    } else if (!unknown || !afterUnknown) {
      // A run of unknown characters is one token.
      ids.push_back(id);
    }
    afterUnknown = unknown;
  }
}

} // namespace sluice::runtime::tokenizer
