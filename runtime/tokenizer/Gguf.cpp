// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// A tokenizer from the metadata of a GGUF file. What the keys mean is defined by llama.cpp
// (src/llama-vocab.cpp).

#include "Data.h"
#include "GgufPreTokenizers.h"
#include "Utf8.h"

#include <algorithm>
#include <cctype>
#include <cmath>

namespace sluice::runtime::tokenizer {

Data readGguf(const GgufTokenizer &gguf, const std::string &name) {
  Data data;
  bool isUnigram = gguf.model == "t5";
  bool sentencePiece = isUnigram || gguf.model == "llama";
  if (!sentencePiece && gguf.model != "gpt2" && gguf.model != "gemma4")
    throw Error(name + ": tokenizer.ggml.model is " + quote(gguf.model) +
                ", expected 'llama', 'gpt2', 'gemma4' or 't5'");
  data.kind = !sentencePiece ? Kind::Bpe
              : isUnigram    ? Kind::SentencePieceUnigram
                             : Kind::SentencePieceBpe;
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
  if (gguf.paddingId)
    data.namedTokens["pad_token"] =
        data.tokens[checkId("tokenizer.ggml.padding_token_id", *gguf.paddingId)];
  data.chatTemplate = gguf.chatTemplate;

  data.byteFallback =
      std::find(data.types.begin(), data.types.end(), TokenType::Byte) != data.types.end();
  auto unknown = std::find(data.types.begin(), data.types.end(), TokenType::Unknown);
  if (sentencePiece && data.unknownId < 0)
    data.unknownId = unknown == data.types.end()
                         ? (isUnigram ? 2 : 0)
                         : static_cast<int32_t>(unknown - data.types.begin());
  if (sentencePiece && unknown == data.types.end())
    data.types[data.unknownId] = TokenType::Unknown;

  // Phi-3's files do not say that its added tokens take the white space after them along; llama.cpp
  // knows them by the model's name.
  std::string modelName = gguf.name;
  std::transform(modelName.begin(), modelName.end(), modelName.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  bool takesSpaceAlong =
      modelName.find("phi-3") != std::string::npos || modelName.find("phi3") != std::string::npos;
  auto keepsSpace = [](std::string_view text) {
    return text == "<unk>" || text == "<s>" || text == "<|endoftext|>";
  };
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
    token.rstrip = takesSpaceAlong && !keepsSpace(data.tokens[i]);
    data.added.push_back(token);
  }

  if (sentencePiece) {
    expectCount("tokenizer.ggml.scores", gguf.scores.size());
    data.scores.assign(gguf.scores.begin(), gguf.scores.end());
    for (size_t i = 0; i < count; ++i)
      if (!std::isfinite(data.scores[i]))
        throw Error(name + ": tokenizer.ggml.scores of token " + std::to_string(i) + " is " +
                    std::to_string(data.scores[i]) + ", expected a finite number");
    // The ids that the first converters of Llama and T5 took for granted.
    auto isControl = [&](size_t id) { return id < count && data.types[id] == TokenType::Control; };
    if (!gguf.bosId && !isUnigram && isControl(1))
      data.bosId = 1;
    int32_t end = isUnigram ? 1 : 2;
    if (gguf.eosIds.empty() && isControl(end))
      data.eosIds.push_back(end);
    data.addBos = gguf.addBos.value_or(!isUnigram);
    data.addDummyPrefix = gguf.addSpacePrefix.value_or(!isUnigram);
    data.removeExtraWhitespaces = gguf.removeExtraWhitespaces.value_or(false);
    data.charsmap = gguf.charsmap;
    if (gguf.addEos.value_or(isUnigram) && !data.eosIds.empty())
      data.closingId = data.eosIds.front();
    return data;
  }

  if (gguf.merges.empty())
    throw Error(name +
                ": tokenizer.ggml.merges is missing or empty, expected the merges of the "
                "tokenizer " +
                quote(gguf.model));
  if (gguf.pre.empty() && gguf.model == "gpt2")
    data.warnings.push_back(name + ": tokenizer.ggml.pre is missing: text is cut into words by "
                                   "'default', which may not be how the model was trained");
  if (gguf.addEos.value_or(false) && !data.eosIds.empty())
    data.closingId = data.eosIds.front();
  const GgufPreTokenizer &pre =
      findGgufPreTokenizer(gguf.model == "gemma4" ? gguf.model : gguf.pre, name);
  data.addBos = gguf.addBos.value_or(pre.addBos);
  data.ignoreMerges = pre.ignoreMerges;
  for (const char *pattern : pre.patterns) {
    if (!pattern)
      break;
    PreTokenizer split;
    split.pattern = pattern;
    data.preTokenizers.push_back(std::move(split));
  }
  if (pre.plainText) {
    Normalizer spaces;
    spaces.kind = Normalizer::Kind::Replace;
    spaces.pattern = " ";
    spaces.content = spaceSymbol;
    data.normalizers.push_back(std::move(spaces));
    data.decoder.replace.emplace_back(spaceSymbol, " ");
    // By what they are called, as llama.cpp finds them: files have them as normal tokens.
    data.byteFallback =
        std::find(data.tokens.begin(), data.tokens.end(), "<0x00>") != data.tokens.end();
  } else {
    PreTokenizer bytes;
    bytes.kind = PreTokenizer::Kind::ByteLevel;
    data.preTokenizers.push_back(std::move(bytes));
    data.decoder.byteLevel = true;
    data.byteFallback = false;
  }
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
