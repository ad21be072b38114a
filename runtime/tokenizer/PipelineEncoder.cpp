// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "PipelineEncoder.h"

#include "Utf8.h"

#include <queue>

namespace sluice::runtime::tokenizer {

static uint64_t pairKey(int32_t left, int32_t right) {
  return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
}

PipelineEncoder::PipelineEncoder(const Data &data, const Vocabulary &vocabulary,
                                 const Normalization &normalization, const AddedTokens &added,
                                 const std::string &name)
    : data(data), vocabulary(vocabulary), normalization(normalization), added(added),
      preTokenization(data, name) {
  if (data.kind == Kind::Unigram) {
    unigram.emplace(data, vocabulary, name);
    return;
  }
  isText.resize(data.tokens.size());
  for (size_t i = 0; i < data.tokens.size(); ++i)
    isText[i] = data.types[i] != TokenType::Control && data.types[i] != TokenType::Unknown &&
                vocabulary.byteOf(static_cast<int32_t>(i)) < 0;
  // A single character that merges build on is a letter of the alphabet, whatever else it is used
  // for (some models pad with "!"): without it the text could not be spelled.
  for (auto [left, right] : data.merges)
    for (int32_t id : {left, right})
      if (decodeUtf8(data.tokens[id]).length == data.tokens[id].size())
        isText[id] = true;

  merges.reserve(data.merges.size());
  for (size_t i = 0; i < data.merges.size(); ++i) {
    auto [left, right] = data.merges[i];
    std::string whole = data.tokens[left] + data.tokens[right];
    auto id = vocabulary.find(whole);
    if (!id)
      throw Error(name + ": merge " + std::to_string(i) + " makes " + quote(whole) +
                  ", which is not in the vocabulary");
    // Of two the later one counts, as in the tokenizers library.
    if (isText[*id])
      merges[pairKey(left, right)] = {static_cast<int32_t>(i), *id};
  }
}

std::optional<int32_t> PipelineEncoder::findText(std::string_view text) const {
  auto id = vocabulary.find(text);
  return id && isText[*id] ? id : std::nullopt;
}

void PipelineEncoder::encode(std::string_view text, bool atStart, bool parseSpecial,
                             WordCache &cache, std::vector<int32_t> &ids) const {
  // What is not UTF-8 goes around all steps that look at characters.
  std::vector<Piece> pieces;
  std::string given;
  auto encodePieces = [&] {
    for (Piece &piece : preTokenization.apply(std::move(pieces))) {
      if (piece.raw) {
        if (preTokenization.spellsBytes())
          encodeWord(spellBytes(piece.text), ids);
        else
          for (char c : piece.text)
            ids.push_back(vocabulary.tokenOfByte(c));
        continue;
      }
      // Words come back often, and long ones are not words.
      if (piece.text.size() > 64) {
        encodeWord(piece.text, ids);
        continue;
      }
      auto [it, isNew] = cache.try_emplace(std::move(piece.text));
      if (isNew)
        encodeWord(it->first, it->second);
      ids.insert(ids.end(), it->second.begin(), it->second.end());
    }
    pieces.clear();
  };
  auto addText = [&](bool first) {
    if (given.empty())
      return;
    std::string normalized = normalization.apply(given);
    for (const Section &s : added.splitNormalized(normalized, parseSpecial)) {
      if (s.id < 0) {
        pieces.push_back(
            {normalized.substr(s.begin, s.end - s.begin), first && s.begin == 0, false});
        continue;
      }
      encodePieces();
      ids.push_back(s.id);
    }
    given.clear();
  };
  bool first = atStart;
  while (!text.empty()) {
    size_t valid = validUtf8Prefix(text);
    given.append(text.substr(0, valid));
    text.remove_prefix(valid);
    if (text.empty())
      break;
    uint32_t length = decodeUtf8(text).length;
    if (preTokenization.spellsBytes() || data.byteFallback) {
      addText(first);
      pieces.push_back({std::string(text.substr(0, length)), false, true});
      first = false;
    } else {
      given.append(replacementCharacter);
    }
    text.remove_prefix(length);
  }
  addText(first);

  encodePieces();
}

/// BPE::tokenize_with_cache and Word::merge_all of the tokenizers library.
void PipelineEncoder::encodeWord(std::string_view word, std::vector<int32_t> &ids) const {
  if (unigram) {
    unigram->encode(word, ids);
    return;
  }
  if (data.ignoreMerges) {
    if (auto id = findText(word)) {
      ids.push_back(*id);
      return;
    }
  }
  struct Symbol {
    int32_t id, previous, next;
  };
  std::vector<Symbol> symbols;
  auto push = [&](int32_t id) {
    auto index = static_cast<int32_t>(symbols.size());
    symbols.push_back({id, index - 1, index + 1});
  };
  bool pendingUnknown = false;
  for (std::string_view rest = word; !rest.empty();) {
    std::string_view character = rest.substr(0, decodeUtf8(rest).length);
    rest.remove_prefix(character.size());
    if (auto id = findText(character)) {
      if (pendingUnknown)
        push(data.unknownId);
      pendingUnknown = false;
      push(*id);
    } else if (data.byteFallback) {
      for (char c : character)
        push(vocabulary.tokenOfByte(c));
    } else if (data.unknownId >= 0) {
      if (pendingUnknown && !data.fuseUnknown)
        push(data.unknownId);
      pendingUnknown = true;
    }
    // Without an unknown token the character is lost, as it is in the tokenizers library.
  }
  if (pendingUnknown)
    push(data.unknownId);
  if (symbols.empty())
    return;
  symbols.back().next = -1;

  struct Candidate {
    int32_t rank, left, id;
    bool operator<(const Candidate &other) const {
      return rank != other.rank ? rank > other.rank : left > other.left;
    }
  };
  std::priority_queue<Candidate> queue;
  auto consider = [&](int32_t left) {
    if (left < 0 || symbols[left].next < 0)
      return;
    auto it = merges.find(pairKey(symbols[left].id, symbols[symbols[left].next].id));
    if (it != merges.end())
      queue.push({it->second.rank, left, it->second.id});
  };
  for (size_t i = 0; i + 1 < symbols.size(); ++i)
    consider(static_cast<int32_t>(i));
  while (!queue.empty()) {
    Candidate top = queue.top();
    queue.pop();
    Symbol &left = symbols[top.left];
    // Merged away, or no longer the pair that was considered.
    if (left.id < 0 || left.next < 0)
      continue;
    auto it = merges.find(pairKey(left.id, symbols[left.next].id));
    if (it == merges.end() || it->second.id != top.id)
      continue;
    Symbol &right = symbols[left.next];
    left.id = top.id;
    right.id = -1;
    left.next = right.next;
    if (left.next >= 0)
      symbols[left.next].previous = top.left;
    consider(left.previous);
    consider(top.left);
  }
  for (int32_t i = 0; i >= 0; i = symbols[i].next)
    ids.push_back(symbols[i].id);
}

} // namespace sluice::runtime::tokenizer
