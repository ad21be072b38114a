// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "Model.h"

#include "Utf8.h"

#include <algorithm>
#include <cstdlib>
#include <queue>
#include <utf8proc.h>

namespace sluice::runtime::tokenizer {

void PrefixSet::insert(const std::string &text, int32_t id) {
  texts.push_back(std::make_unique<std::string>(text));
  if (!ids.emplace(*texts.back(), id).second)
    return;
  auto &byFirst = lengths[static_cast<uint8_t>(text[0])];
  auto it = std::lower_bound(byFirst.begin(), byFirst.end(), text.size(), std::greater<>());
  if (it == byFirst.end() || *it != text.size())
    byFirst.insert(it, text.size());
}

std::pair<size_t, int32_t> PrefixSet::longestPrefix(std::string_view text) const {
  if (text.empty())
    return {0, -1};
  for (size_t length : lengths[static_cast<uint8_t>(text[0])]) {
    if (length > text.size())
      continue;
    auto it = ids.find(text.substr(0, length));
    if (it != ids.end())
      return {length, it->second};
  }
  return {0, -1};
}

/// The byte of a token spelled <0x00> to <0xFF>, or -1.
static int byteOfSpelling(std::string_view text) {
  if (text.size() != 6 || text.substr(0, 3) != "<0x" || text[5] != '>')
    return -1;
  constexpr std::string_view digits = "0123456789ABCDEF";
  size_t high = digits.find(text[3]), low = digits.find(text[4]);
  return high == std::string_view::npos || low == std::string_view::npos
             ? -1
             : static_cast<int>(high * 16 + low);
}

static uint64_t pairKey(int32_t left, int32_t right) {
  return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
}

Model::Model(Data given, const std::string &name) : data(std::move(given)) {
  byteTokens.fill(-1);
  byteOfToken.assign(data.tokens.size(), -1);
  addedIndex.assign(data.tokens.size(), -1);
  bool sentencePiece = data.kind == Kind::SentencePieceBpe;

  idOf.reserve(data.tokens.size());
  for (size_t i = 0; i < data.tokens.size(); ++i) {
    const std::string &text = data.tokens[i];
    auto id = static_cast<int32_t>(i);
    if (text.empty()) {
      if (data.types[i] != TokenType::Unused)
        throw Error(name + ": token " + std::to_string(i) + " is empty, expected some text");
      continue;
    }
    if (validUtf8Prefix(text) != text.size())
      throw Error(name + ": token " + std::to_string(i) + " is " + quote(text) +
                  ", expected valid UTF-8");
    auto [it, isNew] = idOf.emplace(text, id);
    if (!isNew)
      throw Error(name + ": tokens " + std::to_string(it->second) + " and " + std::to_string(i) +
                  " are both " + quote(text));
    int byte = byteOfSpelling(text);
    bool isByte = sentencePiece ? data.types[i] == TokenType::Byte : data.byteFallback && byte >= 0;
    if (!isByte)
      continue;
    if (byte < 0)
      throw Error(name + ": byte token " + std::to_string(i) + " is " + quote(text) +
                  ", expected <0x00> to <0xFF>");
    byteTokens[byte] = id;
    byteOfToken[i] = static_cast<int16_t>(byte);
  }
  if (data.byteFallback)
    for (int b = 0; b < 256; ++b)
      if (byteTokens[b] < 0) {
        char spelling[8];
        std::snprintf(spelling, sizeof(spelling), "<0x%02X>", b);
        throw Error(name + ": there is no token " + spelling +
                    ", expected one for each byte as byte_fallback is on");
      }

  // What a file says twice is said once from here on.
  std::vector<int32_t> ends;
  for (int32_t id : data.eosIds)
    if (std::find(ends.begin(), ends.end(), id) == ends.end())
      ends.push_back(id);
  data.eosIds = std::move(ends);

  normalizerPatterns.resize(data.normalizers.size());
  for (size_t i = 0; i < data.normalizers.size(); ++i)
    if (data.normalizers[i].kind == Normalizer::Kind::Replace)
      normalizerPatterns[i].emplace(data.normalizers[i].pattern, !data.normalizers[i].isRegex,
                                    name + ": normalizer " + std::to_string(i));
  preTokenizerPatterns.resize(data.preTokenizers.size());
  for (size_t i = 0; i < data.preTokenizers.size(); ++i) {
    const PreTokenizer &p = data.preTokenizers[i];
    std::string where = name + ": pre-tokenizer " + std::to_string(i);
    if (p.kind == PreTokenizer::Kind::Split)
      preTokenizerPatterns[i].emplace(p.pattern, !p.isRegex, where);
    if (p.kind == PreTokenizer::Kind::Metaspace)
      preTokenizerPatterns[i].emplace(p.replacement, true, where);
    if (p.kind == PreTokenizer::Kind::ByteLevel) {
      byteLevel = true;
      if (p.useRegex)
        preTokenizerPatterns[i].emplace(gpt2Pattern, false, where);
    }
  }

  for (size_t i = 0; i < data.added.size(); ++i) {
    const AddedToken &added = data.added[i];
    if (data.tokens[added.id].empty())
      throw Error(name + ": added token " + std::to_string(added.id) + " is not in the vocabulary");
    if (addedIndex[added.id] >= 0)
      throw Error(name + ": token " + std::to_string(added.id) + " " +
                  quote(data.tokens[added.id]) + " is added twice");
    addedIndex[added.id] = static_cast<int32_t>(i);
    bool normalized = added.normalized && !data.normalizers.empty();
    std::string text = normalized ? normalize(data.tokens[added.id]) : data.tokens[added.id];
    if (!text.empty())
      (normalized ? addedNormalized : addedRaw).insert(text, added.id);
  }

  if (sentencePiece) {
    charsmap = Charsmap(data.charsmap, name);
    int32_t unknown = -1;
    for (size_t i = 0; i < data.tokens.size(); ++i) {
      if (data.tokens[i].empty())
        continue;
      auto id = static_cast<int32_t>(i);
      switch (data.types[i]) {
      case TokenType::UserDefined:
        if (addedIndex[i] < 0)
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
        [[fallthrough]];
      default:
        reserved.emplace(data.tokens[i], id);
      }
    }
    if (data.unknownId < 0 || data.unknownId != unknown)
      throw Error(name + ": the unknown token is " + std::to_string(data.unknownId) +
                  " and the token of that type " + std::to_string(unknown) +
                  ", expected one and the same");
    return;
  }

  merges.reserve(data.merges.size());
  for (size_t i = 0; i < data.merges.size(); ++i) {
    auto [left, right] = data.merges[i];
    auto it = idOf.find(data.tokens[left] + data.tokens[right]);
    if (it == idOf.end())
      throw Error(name + ": merge " + std::to_string(i) + " makes " +
                  quote(data.tokens[left] + data.tokens[right]) +
                  ", which is not in the vocabulary");
    // Of two the later one counts, as in the tokenizers library.
    merges[pairKey(left, right)] = {static_cast<int32_t>(i), it->second};
  }
}

std::optional<int32_t> Model::find(std::string_view text) const {
  auto it = idOf.find(text);
  return it == idOf.end() ? std::nullopt : std::optional(it->second);
}

void Model::check(int32_t id) const {
  if (id < 0 || static_cast<size_t>(id) >= data.tokens.size())
    throw Error("token id " + std::to_string(id) + " is not in the vocabulary of " +
                std::to_string(data.tokens.size()) + " tokens");
}

/// Cuts a text at its added tokens, as AddedVocabulary::find_matches of the tokenizers library.
std::vector<Model::Section> Model::splitAdded(std::string_view text, const PrefixSet &set,
                                              bool parseSpecial) const {
  std::vector<Section> sections;
  size_t begin = 0;
  for (size_t at = 0; !set.empty() && at < text.size();) {
    auto [length, id] = set.longestPrefix(text.substr(at));
    if (length == 0) {
      ++at;
      continue;
    }
    size_t start = at, end = at + length;
    at = end;
    const AddedToken &token = data.added[addedIndex[id]];
    if ((token.special && !parseSpecial) || start < begin)
      continue;
    auto before = [&](size_t end) {
      size_t first = end - 1;
      while (first > 0 && end - first < 4 && (text[first] & 0xC0) == 0x80)
        --first;
      Utf8Char c = decodeUtf8(text.substr(first, end - first));
      return c.status == Utf8Status::Valid && c.length == end - first
                 ? c
                 : Utf8Char{Utf8Status::Invalid, 1, 0};
    };
    if (token.singleWord) {
      if (start > 0) {
        Utf8Char c = before(start);
        if (c.status == Utf8Status::Valid && isWord(c.codePoint))
          continue;
      }
      if (end < text.size()) {
        Utf8Char c = decodeUtf8(text.substr(end));
        if (c.status == Utf8Status::Valid && isWord(c.codePoint))
          continue;
      }
    }
    while (token.lstrip && start > begin) {
      Utf8Char c = before(start);
      if (c.status != Utf8Status::Valid || !isWhitespace(c.codePoint))
        break;
      start -= c.length;
    }
    while (token.rstrip && end < text.size()) {
      Utf8Char c = decodeUtf8(text.substr(end));
      if (c.status != Utf8Status::Valid || !isWhitespace(c.codePoint))
        break;
      end += c.length;
    }
    if (begin < start)
      sections.push_back({-1, begin, start});
    sections.push_back({id, start, end});
    begin = end;
  }
  if (begin < text.size())
    sections.push_back({-1, begin, text.size()});
  return sections;
}

void Model::encode(std::string_view text, bool parseSpecial, std::vector<int32_t> &ids) const {
  constexpr size_t most = size_t(1) << 30;
  if (text.size() > most)
    throw Error("a text of " + std::to_string(text.size()) +
                " bytes is too long to encode, at most " + std::to_string(most) + " are expected");
  WordCache cache;
  for (const Section &s : splitAdded(text, addedRaw, parseSpecial)) {
    std::string_view part = text.substr(s.begin, s.end - s.begin);
    if (s.id >= 0)
      ids.push_back(s.id);
    else if (data.kind == Kind::SentencePieceBpe)
      encodeSentencePiece(part, ids);
    else
      encodeBpe(part, s.begin == 0, parseSpecial, cache, ids);
  }
}

//===----------------------------------------------------------------------===//
// SentencePiece
//===----------------------------------------------------------------------===//

/// Normalizer::Normalize of sentencepiece/src/normalizer.cc.
std::string Model::normalizeSentencePiece(std::string_view text) const {
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
void Model::encodeSentencePiece(std::string_view text, std::vector<int32_t> &ids) const {
  std::string normalized = normalizeSentencePiece(text);
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
    agenda.push({data.scores[it->second], left, right, static_cast<uint32_t>(piece.size())});
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
      int32_t id = data.unknownId;
      if (auto it = reserved.find(piece); it != reserved.end())
        id = it->second;
      else if (auto it = pieces.find(piece); it != pieces.end())
        id = it->second;
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
          ids.push_back(byteTokens[static_cast<uint8_t>(c)]);
      } else if (!unknown || !afterUnknown) {
        // A run of unknown characters is one token.
        ids.push_back(id);
      }
      afterUnknown = unknown;
    }
  }
}

//===----------------------------------------------------------------------===//
// Hugging Face BPE
//===----------------------------------------------------------------------===//

static std::string normalizeUnicode(const std::string &text, Normalizer::Kind kind) {
  // Below U+00C0 every character is its own NFC and NFD; NFKC and NFKD only leave ASCII as it is.
  bool plain = std::all_of(text.begin(), text.end(), [](char c) { return !(c & 0x80); });
  if (plain)
    return text;
  bool compose = kind == Normalizer::Kind::Nfc || kind == Normalizer::Kind::Nfkc;
  bool compatibility = kind == Normalizer::Kind::Nfkc || kind == Normalizer::Kind::Nfkd;
  int options = UTF8PROC_STABLE | (compose ? UTF8PROC_COMPOSE : UTF8PROC_DECOMPOSE) |
                (compatibility ? UTF8PROC_COMPAT : 0);
  utf8proc_uint8_t *result = nullptr;
  utf8proc_ssize_t length = utf8proc_map(reinterpret_cast<const utf8proc_uint8_t *>(text.data()),
                                         static_cast<utf8proc_ssize_t>(text.size()), &result,
                                         static_cast<utf8proc_option_t>(options));
  std::unique_ptr<utf8proc_uint8_t, decltype(&std::free)> owner(result, std::free);
  if (length < 0)
    throw Error(std::string("a text can not be normalized: ") + utf8proc_errmsg(length));
  return std::string(reinterpret_cast<const char *>(result), static_cast<size_t>(length));
}

static std::string replaceAll(const std::string &text,
                              const std::vector<std::pair<size_t, size_t>> &matches,
                              std::string_view by) {
  std::string out;
  size_t at = 0;
  for (auto [begin, end] : matches) {
    out.append(text, at, begin - at).append(by);
    at = end;
  }
  return out.append(text, at);
}

std::string Model::normalize(std::string text) const {
  for (size_t i = 0; i < data.normalizers.size(); ++i) {
    const Normalizer &n = data.normalizers[i];
    switch (n.kind) {
    case Normalizer::Kind::Prepend:
      if (!text.empty())
        text = n.content + text;
      break;
    case Normalizer::Kind::Replace:
      text = replaceAll(text, normalizerPatterns[i]->findAll(text), n.content);
      break;
    case Normalizer::Kind::Strip: {
      size_t begin = 0, end = 0;
      bool seen = false;
      for (size_t at = 0; at < text.size();) {
        Utf8Char c = decodeUtf8(std::string_view(text).substr(at));
        at += c.length;
        if (isWhitespace(c.codePoint)) {
          if (!seen)
            begin = at;
        } else {
          seen = true;
          end = at;
        }
      }
      if (!n.left)
        begin = 0;
      if (!n.right)
        end = text.size();
      text = begin < end ? text.substr(begin, end - begin) : std::string();
      break;
    }
    default:
      text = normalizeUnicode(text, n.kind);
    }
  }
  return text;
}

/// PreTokenizedString::split with a pattern: SplitDelimiterBehavior of the tokenizers library.
void Model::split(const Piece &piece, const Regex &regex, SplitBehavior behavior, bool invert,
                  std::vector<Piece> &out) const {
  struct Part {
    size_t begin, end;
    bool isMatch;
  };
  std::vector<Part> parts;
  size_t at = 0;
  for (auto [begin, end] : regex.findAll(piece.text)) {
    if (at < begin)
      parts.push_back({at, begin, invert});
    parts.push_back({begin, end, !invert});
    at = end;
  }
  if (at < piece.text.size())
    parts.push_back({at, piece.text.size(), invert});
  std::vector<Part> kept;
  bool previousMatch = false;
  switch (behavior) {
  case SplitBehavior::Isolated:
    kept = std::move(parts);
    break;
  case SplitBehavior::Removed:
    for (const Part &part : parts)
      if (!part.isMatch)
        kept.push_back(part);
    break;
  case SplitBehavior::Contiguous:
    for (const Part &part : parts) {
      if (!kept.empty() && kept.back().isMatch == part.isMatch)
        kept.back().end = part.end;
      else
        kept.push_back(part);
    }
    break;
  case SplitBehavior::MergedWithPrevious:
    for (const Part &part : parts) {
      if (part.isMatch && !previousMatch && !kept.empty())
        kept.back().end = part.end;
      else
        kept.push_back(part);
      previousMatch = part.isMatch;
    }
    break;
  case SplitBehavior::MergedWithNext:
    for (auto part = parts.rbegin(); part != parts.rend(); ++part) {
      if (part->isMatch && !previousMatch && !kept.empty())
        kept.back().begin = part->begin;
      else
        kept.push_back(*part);
      previousMatch = part->isMatch;
    }
    std::reverse(kept.begin(), kept.end());
    break;
  }
  for (const Part &part : kept)
    out.push_back({piece.text.substr(part.begin, part.end - part.begin),
                   piece.atStart && part.begin == 0, false});
}

static std::string spellBytes(std::string_view bytes) {
  std::string out;
  out.reserve(bytes.size() + bytes.size() / 2);
  for (char c : bytes)
    appendUtf8(out, byteCharacters()[static_cast<uint8_t>(c)]);
  return out;
}

std::vector<Model::Piece> Model::preTokenize(std::vector<Piece> pieces) const {
  for (size_t i = 0; i < data.preTokenizers.size(); ++i) {
    const PreTokenizer &p = data.preTokenizers[i];
    std::vector<Piece> out;
    out.reserve(pieces.size());
    for (Piece &piece : pieces) {
      if (piece.raw) {
        out.push_back(std::move(piece));
        continue;
      }
      switch (p.kind) {
      case PreTokenizer::Kind::Split:
        split(piece, *preTokenizerPatterns[i], p.behavior, p.invert, out);
        break;
      case PreTokenizer::Kind::ByteLevel: {
        if (p.addPrefixSpace && !piece.text.starts_with(' '))
          piece.text.insert(0, " ");
        size_t first = out.size();
        if (p.useRegex)
          split(piece, *preTokenizerPatterns[i], SplitBehavior::Isolated, false, out);
        else
          out.push_back(std::move(piece));
        for (; first < out.size(); ++first)
          out[first].text = spellBytes(out[first].text);
        break;
      }
      case PreTokenizer::Kind::Metaspace: {
        std::string text;
        for (char c : piece.text) {
          if (c == ' ')
            text += p.replacement;
          else
            text.push_back(c);
        }
        if ((p.prepend == PrependScheme::Always ||
             (p.prepend == PrependScheme::First && piece.atStart)) &&
            !text.starts_with(p.replacement))
          text.insert(0, p.replacement);
        piece.text = std::move(text);
        if (p.split)
          split(piece, *preTokenizerPatterns[i], SplitBehavior::MergedWithNext, false, out);
        else
          out.push_back(std::move(piece));
        break;
      }
      }
    }
    pieces = std::move(out);
  }
  return pieces;
}

void Model::encodeBpe(std::string_view text, bool atStart, bool parseSpecial, WordCache &cache,
                      std::vector<int32_t> &ids) const {
  // What is not UTF-8 goes around all steps that look at characters.
  std::vector<Piece> pieces;
  std::string given;
  auto encodePieces = [&] {
    for (Piece &piece : preTokenize(std::move(pieces))) {
      if (piece.raw) {
        if (byteLevel)
          encodeWord(spellBytes(piece.text), ids);
        else
          for (char c : piece.text)
            ids.push_back(byteTokens[static_cast<uint8_t>(c)]);
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
    std::string normalized = normalize(given);
    for (const Section &s : splitAdded(normalized, addedNormalized, parseSpecial)) {
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
    if (byteLevel || data.byteFallback) {
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
void Model::encodeWord(std::string_view word, std::vector<int32_t> &ids) const {
  if (data.ignoreMerges) {
    if (auto it = idOf.find(word); it != idOf.end()) {
      ids.push_back(it->second);
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
    auto it = idOf.find(character);
    if (it != idOf.end()) {
      if (pendingUnknown)
        push(data.unknownId);
      pendingUnknown = false;
      push(it->second);
    } else if (data.byteFallback) {
      for (char c : character)
        push(byteTokens[static_cast<uint8_t>(c)]);
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

//===----------------------------------------------------------------------===//
// Decoding
//===----------------------------------------------------------------------===//

static void replaceString(std::string &text, std::string_view from, std::string_view to) {
  for (size_t at = text.find(from); at != std::string::npos; at = text.find(from, at + to.size()))
    text.replace(at, from.size(), to);
}

std::string Model::textOf(int32_t id, bool &bytes) const {
  std::string text = data.tokens[id];
  bytes = byteOfToken[id] >= 0;
  if (bytes)
    return std::string(1, static_cast<char>(byteOfToken[id]));
  if (data.kind == Kind::SentencePieceBpe) {
    replaceString(text, spaceSymbol, " ");
    return text;
  }
  if (data.decoder.byteLevel) {
    bytes = true;
    // Added tokens are spelled as they are.
    if (addedIndex[id] >= 0)
      return text;
    std::string out;
    for (std::string_view rest = text; !rest.empty();) {
      Utf8Char c = decodeUtf8(rest);
      int byte = byteOfCharacter(c.codePoint);
      if (byte < 0)
        return text;
      out.push_back(static_cast<char>(byte));
      rest.remove_prefix(c.length);
    }
    return out;
  }
  if (addedIndex[id] < 0)
    for (const auto &[from, to] : data.decoder.replace)
      replaceString(text, from, to);
  return text;
}

} // namespace sluice::runtime::tokenizer
