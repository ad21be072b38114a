// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "SentencePieceEncoder.h"

#include "Utf8.h"

#include <algorithm>
#include <queue>

namespace sluice::runtime::tokenizer {

SentencePieceEncoder::SentencePieceEncoder(const Data &data, const Vocabulary &vocabulary,
                                           const std::string &name)
    : data(data), vocabulary(vocabulary), charsmap(data.charsmap, name) {
  std::vector<bool> isAdded(data.tokens.size());
  for (const AddedToken &added : data.added)
    isAdded[added.id] = true;
  int32_t unknown = -1;
  for (size_t i = 0; i < data.tokens.size(); ++i) {
    if (data.tokens[i].empty())
      continue;
    auto id = static_cast<int32_t>(i);
    switch (data.types[i]) {
    case TokenType::UserDefined:
      if (!isAdded[i])
        userDefined.insert(data.tokens[i], id);
      [[fallthrough]];
    case TokenType::Normal:
    case TokenType::Unused:
      pieces.emplace(data.tokens[i], id);
      longestPiece = std::max(longestPiece, data.tokens[i].size());
      break;
    case TokenType::Unknown:
      if (unknown >= 0)
        throw Error(name + ": tokens " + std::to_string(unknown) + " and " + std::to_string(i) +
                    " are both of type unknown, expected one");
      unknown = id;
      break;
    case TokenType::Control:
    case TokenType::Byte:
      break;
    }
  }
  if (data.unknownId < 0 || data.unknownId != unknown)
    throw Error(name + ": the unknown token is " + std::to_string(data.unknownId) +
                " and the token of that type " + std::to_string(unknown) +
                ", expected one and the same");
  if (data.kind == Kind::SentencePieceUnigram)
    unigram.emplace(data, vocabulary, name);
}

/// Normalizer::Normalize of sentencepiece/src/normalizer.cc.
std::string SentencePieceEncoder::normalize(std::string_view text) const {
  // How many bytes are taken, and what stands for them.
  auto next = [&](std::string_view rest) -> std::pair<size_t, std::string_view> {
    if (auto [length, id] = userDefined.longestPrefix(rest); length > 0)
      return {length, rest.substr(0, length)};
    if (auto found = charsmap.longestPrefix(rest))
      return *found;
    Utf8Char c = decodeUtf8(rest);
    if (c.status != Utf8Status::Valid)
      return {1, replacementCharacter};
    return {c.length, rest.substr(0, c.length)};
  };
  std::string_view space = data.escapeWhitespaces ? spaceSymbol : std::string_view(" ");
  std::string out;
  if (data.removeExtraWhitespaces) {
    while (!text.empty()) {
      auto [taken, part] = next(text);
      if (part != " ")
        break;
      text.remove_prefix(taken);
    }
  }
  if (text.empty())
    return out;
  out.reserve(text.size() + text.size() / 2);
  if (data.addDummyPrefix && !data.treatWhitespaceAsSuffix)
    out += space;
  bool afterSpace = data.removeExtraWhitespaces;
  while (!text.empty()) {
    auto [taken, part] = next(text);
    while (afterSpace && part.starts_with(" "))
      part.remove_prefix(1);
    if (!part.empty()) {
      for (char c : part) {
        if (c == ' ')
          out += space;
        else
          out.push_back(c);
      }
      afterSpace = part.back() == ' ';
    }
    text.remove_prefix(taken);
    if (!data.removeExtraWhitespaces)
      afterSpace = false;
  }
  if (data.removeExtraWhitespaces)
    while (out.ends_with(space))
      out.resize(out.size() - space.size());
  if (data.addDummyPrefix && data.treatWhitespaceAsSuffix)
    out += space;
  return out;
}

/// Model::SampleEncode of sentencepiece/src/bpe_model.cc without sampling.
void SentencePieceEncoder::encode(std::string_view text, std::vector<int32_t> &ids) const {
  std::string normalized = normalize(text);
  if (unigram) {
    unigram->encode(normalized, ids);
    return;
  }
  struct Symbol {
    int32_t previous, next;
    bool frozen;
    std::string_view piece;
  };
  std::vector<Symbol> symbols;
  symbols.reserve(normalized.size());
  for (std::string_view rest = normalized; !rest.empty();) {
    auto [length, id] = userDefined.longestPrefix(rest);
    bool frozen = length > 0;
    if (!frozen)
      length = decodeUtf8(rest).length;
    auto index = static_cast<int32_t>(symbols.size());
    symbols.push_back({index - 1, index + 1, frozen, rest.substr(0, length)});
    rest.remove_prefix(length);
  }
  if (symbols.empty())
    return;
  symbols.back().next = -1;

  struct Candidate {
    float score;
    int32_t left, right;
    uint32_t size;
    bool operator<(const Candidate &other) const {
      return score < other.score || (score == other.score && left > other.left);
    }
  };
  std::vector<Candidate> storage;
  storage.reserve(symbols.size());
  std::priority_queue<Candidate> agenda(std::less<Candidate>(), std::move(storage));
  // Unused pieces are merged, since others go through them, but taken apart again at the end.
  std::unordered_map<std::string_view, std::pair<std::string_view, std::string_view>> unusedParts;
  auto consider = [&](int32_t left, int32_t right) {
    if (left < 0 || right < 0 || symbols[left].frozen || symbols[right].frozen)
      return;
    std::string_view piece(symbols[left].piece.data(),
                           symbols[left].piece.size() + symbols[right].piece.size());
    if (piece.size() > longestPiece)
      return;
    auto it = pieces.find(piece);
    if (it == pieces.end())
      return;
    agenda.push({static_cast<float>(data.scores[it->second]), left, right,
                 static_cast<uint32_t>(piece.size())});
    if (data.types[it->second] == TokenType::Unused)
      unusedParts[piece] = {symbols[left].piece, symbols[right].piece};
  };
  for (size_t i = 1; i < symbols.size(); ++i)
    consider(static_cast<int32_t>(i) - 1, static_cast<int32_t>(i));
  while (!agenda.empty()) {
    Candidate top = agenda.top();
    agenda.pop();
    Symbol &left = symbols[top.left], &right = symbols[top.right];
    // One of the two has been merged with something else since.
    if (left.piece.empty() || right.piece.empty() ||
        left.piece.size() + right.piece.size() != top.size)
      continue;
    left.piece = std::string_view(left.piece.data(), top.size);
    left.next = right.next;
    if (right.next >= 0)
      symbols[right.next].previous = top.left;
    right.piece = {};
    consider(left.previous, top.left);
    consider(top.left, left.next);
  }

  bool afterUnknown = false;
  // Pieces still to be put out, last one first.
  std::vector<std::string_view> stack;
  for (int32_t i = 0; i >= 0; i = symbols[i].next) {
    stack.push_back(symbols[i].piece);
    while (!stack.empty()) {
      std::string_view piece = stack.back();
      stack.pop_back();
      auto it = pieces.find(piece);
      int32_t id = it == pieces.end() ? data.unknownId : it->second;
      if (data.types[id] == TokenType::Unused) {
        if (auto parts = unusedParts.find(piece); parts != unusedParts.end()) {
          stack.push_back(parts->second.second);
          stack.push_back(parts->second.first);
          continue;
        }
      }
      bool unknown = id == data.unknownId;
      if (unknown && data.byteFallback) {
        for (char c : piece)
          ids.push_back(vocabulary.tokenOfByte(c));
      } else if (!unknown || !afterUnknown) {
        // A run of unknown characters is one token.
        ids.push_back(id);
      }
      afterUnknown = unknown;
    }
  }
}

} // namespace sluice::runtime::tokenizer
