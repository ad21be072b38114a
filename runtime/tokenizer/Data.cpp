// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "Data.h"

#include "Utf8.h"

#include <unordered_map>

namespace sluice::runtime::tokenizer {

void setToken(Data &data, int64_t id, const std::string &content, TokenType type,
              const std::string &name) {
  // Ids may have holes, but a single far one must not make room for millions.
  int64_t most = 4 * static_cast<int64_t>(data.tokens.size()) + 65536;
  if (id < 0 || id > most)
    throw Error(name + ": token " + quote(content) + " has the id " + std::to_string(id) +
                ", expected 0 to " + std::to_string(most));
  if (content.empty())
    throw Error(name + ": token " + std::to_string(id) + " is empty, expected some text");
  if (static_cast<size_t>(id) >= data.tokens.size()) {
    data.tokens.resize(id + 1);
    data.types.resize(id + 1, TokenType::Unused);
    if (data.kind != Kind::Bpe)
      data.scores.resize(id + 1);
  }
  std::string &text = data.tokens[id];
  if (!text.empty() && text != content)
    throw Error(name + ": id " + std::to_string(id) + " belongs to both " + quote(text) + " and " +
                quote(content));
  text = content;
  data.types[id] = type;
}

void nameTokensById(Data &data) {
  auto name = [&](const char *purpose, int32_t id) {
    if (id >= 0)
      data.namedTokens.emplace(purpose, data.tokens[static_cast<size_t>(id)]);
  };
  name("bos_token", data.bosId);
  name("eos_token", data.eosIds.empty() ? -1 : data.eosIds.front());
  name("unk_token", data.unknownId);
}

std::vector<std::pair<int32_t, int32_t>>
resolveMerges(const std::vector<std::string> &tokens,
              const std::vector<std::pair<std::string, std::string>> &merges,
              const std::string &name) {
  std::unordered_map<std::string_view, int32_t> ids;
  for (size_t i = 0; i < tokens.size(); ++i)
    ids.emplace(tokens[i], static_cast<int32_t>(i));
  std::vector<std::pair<int32_t, int32_t>> pairs;
  pairs.reserve(merges.size());
  for (size_t i = 0; i < merges.size(); ++i) {
    auto idOf = [&](const std::string &text) {
      auto it = text.empty() ? ids.end() : ids.find(text);
      if (it == ids.end())
        throw Error(name + ": merge " + std::to_string(i) + " has the token " + quote(text) +
                    ", which is not in the vocabulary");
      return it->second;
    };
    pairs.emplace_back(idOf(merges[i].first), idOf(merges[i].second));
  }
  return pairs;
}

} // namespace sluice::runtime::tokenizer
