// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// A tokenizer from the metadata of a GGUF file. What the keys mean is defined by llama.cpp
// (src/llama-vocab.cpp).

#include "Data.h"
#include "GgufPreTokenizers.h"
#include "Utf8.h"

#include <algorithm>
#include <cmath>

namespace sluice::runtime::tokenizer {

Data readGguf(const GgufTokenizer &gguf, const std::string &name) {
  Data data;
  if (gguf.model != "llama" && gguf.model != "gpt2")
    throw Error(name + ": tokenizer.ggml.model is " + quote(gguf.model) +
                ", expected 'llama' or 'gpt2'");
  bool sentencePiece = gguf.model == "llama";
  data.kind = sentencePiece ? Kind::SentencePieceBpe : Kind::Bpe;
  size_t count = gguf.tokens.size();
  if (count == 0 || count > INT32_MAX)
    throw Error(name + ": tokenizer.ggml.tokens has " + std::to_string(count) +
                " tokens, expected at least one");
  auto expectCount = [&](const char *key, size_t found) {
    if (found != count)
      throw Error(name + ": " + key + " has " + std::to_string(found) +
                  " elements, expected one for each of " + std::to_string(count) + " tokens");
  };
  data.tokens = gguf.tokens;
  data.types.assign(count, TokenType::Normal);
  if (!gguf.types.empty())
    expectCount("tokenizer.ggml.token_type", gguf.types.size());
  for (size_t i = 0; i < gguf.types.size(); ++i) {
    if (gguf.types[i] < 0 || gguf.types[i] > 6)
      throw Error(name + ": tokenizer.ggml.token_type of token " + std::to_string(i) + " is " +
                  std::to_string(gguf.types[i]) + ", expected 0 to 6");
    // 0 is "undefined", which some writers put for a normal token.
    data.types[i] = static_cast<TokenType>(std::max(gguf.types[i], 1));
  }
  // An id that has no token.
  for (size_t i = 0; i < count; ++i)
    if (data.tokens[i].empty())
      data.types[i] = TokenType::Unused;
  auto checkId = [&](const char *key, int64_t id) {
    if (id < 0 || static_cast<uint64_t>(id) >= count)
      throw Error(name + ": " + key + " is " + std::to_string(id) + ", expected 0 to " +
                  std::to_string(count - 1));
    return static_cast<int32_t>(id);
  };
  if (gguf.bosId)
    data.bosId = checkId("tokenizer.ggml.bos_token_id", *gguf.bosId);
  if (gguf.unknownId)
    data.unknownId = checkId("tokenizer.ggml.unknown_token_id", *gguf.unknownId);
  for (int64_t id : gguf.eosIds)
    data.eosIds.push_back(checkId("tokenizer.ggml.eos_token_id", id));

  auto unknown = std::find(data.types.begin(), data.types.end(), TokenType::Unknown);
  if (sentencePiece && data.unknownId < 0)
    data.unknownId =
        unknown == data.types.end() ? 0 : static_cast<int32_t>(unknown - data.types.begin());
  if (sentencePiece && unknown == data.types.end())
    data.types[data.unknownId] = TokenType::Unknown;

  for (size_t i = 0; i < count; ++i) {
    TokenType &type = data.types[i];
    // Converters have left such tokens among the normal ones.
    if ((type == TokenType::Normal || type == TokenType::UserDefined) &&
        isEndByText(data.tokens[i]))
      type = TokenType::Control;
    bool special = type == TokenType::Control || type == TokenType::Unknown;
    // A user defined token is cut out of the text as it was given, before SentencePiece sees it:
    // the text after it starts anew. A tokenizer.model's own user defined pieces are not.
    if (!special && type != TokenType::UserDefined)
      continue;
    AddedToken token;
    token.id = static_cast<int32_t>(i);
    token.special = special;
    data.added.push_back(token);
  }

  if (sentencePiece) {
    expectCount("tokenizer.ggml.scores", gguf.scores.size());
    data.scores = gguf.scores;
    for (size_t i = 0; i < count; ++i)
      if (!std::isfinite(data.scores[i]))
        throw Error(name + ": tokenizer.ggml.scores of token " + std::to_string(i) + " is " +
                    std::to_string(data.scores[i]) + ", expected a finite number");
    // The ids that Llama's first converters took for granted.
    auto isControl = [&](size_t id) { return id < count && data.types[id] == TokenType::Control; };
    if (!gguf.bosId && isControl(1))
      data.bosId = 1;
    if (gguf.eosIds.empty() && isControl(2))
      data.eosIds.push_back(2);
    data.addBos = gguf.addBos.value_or(true);
    data.addDummyPrefix = gguf.addSpacePrefix.value_or(true);
    data.removeExtraWhitespaces = gguf.removeExtraWhitespaces.value_or(false);
    data.byteFallback =
        std::find(data.types.begin(), data.types.end(), TokenType::Byte) != data.types.end();
    if (gguf.addEos.value_or(false) && !data.eosIds.empty())
      data.closingId = data.eosIds.front();
    return data;
  }

  if (gguf.merges.empty())
    throw Error(name + ": tokenizer.ggml.merges is missing or empty, expected the merges of the "
                       "tokenizer 'gpt2'");
  if (gguf.pre.empty())
    data.warnings.push_back(name + ": tokenizer.ggml.pre is missing: text is cut into words by "
                                   "'default', which may not be how the model was trained");
  if (gguf.addEos.value_or(false) && !data.eosIds.empty())
    data.closingId = data.eosIds.front();
  const GgufPreTokenizer &pre = findGgufPreTokenizer(gguf.pre, name);
  data.addBos = gguf.addBos.value_or(pre.addBos);
  data.ignoreMerges = pre.ignoreMerges;
  for (const char *pattern : pre.patterns) {
    if (!pattern)
      break;
    PreTokenizer split;
    split.pattern = pattern;
    data.preTokenizers.push_back(std::move(split));
  }
  PreTokenizer bytes;
  bytes.kind = PreTokenizer::Kind::ByteLevel;
  data.preTokenizers.push_back(std::move(bytes));
  data.decoder.byteLevel = true;
  std::vector<std::pair<std::string, std::string>> merges;
  merges.reserve(gguf.merges.size());
  for (size_t i = 0; i < gguf.merges.size(); ++i) {
    const std::string &text = gguf.merges[i];
    size_t space = text.find(' ', 1);
    if (space == std::string::npos || space + 1 == text.size())
      throw Error(name + ": tokenizer.ggml.merges[" + std::to_string(i) + "] is " + quote(text) +
                  ", expected two tokens with a space between them");
    merges.emplace_back(text.substr(0, space), text.substr(space + 1));
  }
  data.merges = resolveMerges(data.tokens, merges, name);
  return data;
}

} // namespace sluice::runtime::tokenizer
