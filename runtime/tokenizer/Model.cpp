// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "Model.h"

#include "Utf8.h"

#include <algorithm>

namespace sluice::runtime::tokenizer {

/// What a file says twice is said once from here on.
static Data withoutRepeatedEnds(Data data) {
  std::vector<int32_t> ends;
  for (int32_t id : data.eosIds)
    if (std::find(ends.begin(), ends.end(), id) == ends.end())
      ends.push_back(id);
  data.eosIds = std::move(ends);
  return data;
}

Model::Model(Data given, const std::string &name)
    : data(withoutRepeatedEnds(std::move(given))), vocabulary(data, name),
      normalization(data, name), added(data, normalization, name) {
  if (isSentencePiece(data.kind))
    sentencePiece.emplace(data, vocabulary, name);
  else
    pipeline.emplace(data, vocabulary, normalization, added, name);
}

void Model::check(int32_t id) const {
  if (id < 0 || static_cast<size_t>(id) >= data.tokens.size())
    throw Error("token id " + std::to_string(id) + " is not in the vocabulary of " +
                std::to_string(data.tokens.size()) + " tokens");
}

void Model::encode(std::string_view text, bool parseSpecial, std::vector<int32_t> &ids) const {
  constexpr size_t most = size_t(1) << 30;
  if (text.size() > most)
    throw Error("a text of " + std::to_string(text.size()) +
                " bytes is too long to encode, at most " + std::to_string(most) + " are expected");
  PipelineEncoder::WordCache cache;
  for (const Section &s : added.split(text, parseSpecial)) {
    std::string_view part = text.substr(s.begin, s.end - s.begin);
    if (s.id >= 0)
      ids.push_back(s.id);
    else if (sentencePiece)
      sentencePiece->encode(part, ids);
    else
      pipeline->encode(part, s.begin == 0, parseSpecial, cache, ids);
  }
}

static void replaceString(std::string &text, std::string_view from, std::string_view to) {
  for (size_t at = text.find(from); at != std::string::npos; at = text.find(from, at + to.size()))
    text.replace(at, from.size(), to);
}

std::string Model::textOf(int32_t id, bool &bytes) const {
  std::string text = data.tokens[id];
  bytes = vocabulary.byteOf(id) >= 0;
  if (bytes)
    return std::string(1, static_cast<char>(vocabulary.byteOf(id)));
  if (isSentencePiece(data.kind)) {
    replaceString(text, spaceSymbol, " ");
    return text;
  }
  if (data.decoder.byteLevel) {
    bytes = true;
    // Added tokens are spelled as they are.
    if (added.contains(id))
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
  for (const auto &[from, to] : data.decoder.replace)
    replaceString(text, from, to);
  return text;
}

} // namespace sluice::runtime::tokenizer
