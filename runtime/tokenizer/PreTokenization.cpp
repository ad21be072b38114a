// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "PreTokenization.h"

#include "Utf8.h"

#include <algorithm>

namespace sluice::runtime::tokenizer {

PreTokenization::PreTokenization(const Data &data, const std::string &name)
    : steps(data.preTokenizers), patterns(steps.size()) {
  for (size_t i = 0; i < steps.size(); ++i) {
    const PreTokenizer &p = steps[i];
    std::string where = name + ": pre-tokenizer " + std::to_string(i);
    if (p.kind == PreTokenizer::Kind::Split)
      patterns[i].emplace(p.pattern, !p.isRegex, where);
    if (p.kind == PreTokenizer::Kind::Metaspace)
      patterns[i].emplace(p.replacement, true, where);
    if (p.kind == PreTokenizer::Kind::ByteLevel) {
      byteLevel = true;
      if (p.useRegex)
        patterns[i].emplace(gpt2Pattern, false, where);
    }
  }
}

/// PreTokenizedString::split with a pattern: SplitDelimiterBehavior of the tokenizers library.
static void split(const Piece &piece, const Regex &regex, SplitBehavior behavior, bool invert,
                  std::vector<Piece> &out) {
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

std::string spellBytes(std::string_view bytes) {
  std::string out;
  out.reserve(bytes.size() + bytes.size() / 2);
  for (char c : bytes)
    appendUtf8(out, byteCharacters()[static_cast<uint8_t>(c)]);
  return out;
}

std::vector<Piece> PreTokenization::apply(std::vector<Piece> pieces) const {
  for (size_t i = 0; i < steps.size(); ++i) {
    const PreTokenizer &p = steps[i];
    std::vector<Piece> out;
    out.reserve(pieces.size());
    for (Piece &piece : pieces) {
      if (piece.raw) {
        out.push_back(std::move(piece));
        continue;
      }
      switch (p.kind) {
      case PreTokenizer::Kind::Split:
        split(piece, *patterns[i], p.behavior, p.invert, out);
        break;
      case PreTokenizer::Kind::ByteLevel: {
        if (p.addPrefixSpace && !piece.text.starts_with(' '))
          piece.text.insert(0, " ");
        size_t first = out.size();
        if (p.useRegex)
          split(piece, *patterns[i], SplitBehavior::Isolated, false, out);
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
          split(piece, *patterns[i], SplitBehavior::MergedWithNext, false, out);
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

} // namespace sluice::runtime::tokenizer
