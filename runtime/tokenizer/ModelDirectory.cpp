// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// What the files beside a tokenizer.json or tokenizer.model in a model's directory say about it.
// What they mean is defined by transformers (version 5).

#include "Json.h"
#include "Utf8.h"

#include "sluice-support/MappedFile.h"

#include <algorithm>
#include <unordered_map>

using nlohmann::json;

namespace sluice::runtime::tokenizer {

namespace {

/// Adds tokens to a tokenizer that has been read.
class TokenAdder {
public:
  TokenAdder(Data &data, bool fromJson) : data(data), fromJson(fromJson) {
    for (size_t i = 0; i < data.tokens.size(); ++i)
      ids.emplace(data.tokens[i], static_cast<int32_t>(i));
    for (size_t i = 0; i < data.added.size(); ++i)
      addedAt.emplace(data.added[i].id, i);
  }

  std::optional<int32_t> find(const std::string &content) const {
    auto it = content.empty() ? ids.end() : ids.find(content);
    return it == ids.end() ? std::nullopt : std::optional(it->second);
  }
  /// How it was added.
  std::optional<AddedToken> added(int32_t id) const {
    auto it = addedAt.find(id);
    return it == addedAt.end() ? std::nullopt : std::optional(data.added[it->second]);
  }

  /// A token that the vocabulary has already keeps its id there.
  void add(int64_t id, const std::string &content, AddedToken token, const std::string &file) {
    TokenType type = token.special ? TokenType::Control : TokenType::UserDefined;
    if (auto known = find(content)) {
      // SentencePiece finds its own pieces by itself, unless they are special.
      TokenType was = data.types[*known];
      if (!fromJson &&
          !(token.special && (was == TokenType::Normal || was == TokenType::UserDefined)))
        return;
      id = *known;
    }
    setToken(data, id, content, type, file);
    token.id = static_cast<int32_t>(id);
    ids.emplace(content, token.id);
    auto [it, isNew] = addedAt.emplace(token.id, data.added.size());
    if (isNew)
      data.added.push_back(token);
    else
      data.added[it->second] = token;
  }

private:
  Data &data;
  bool fromJson;
  std::unordered_map<std::string, int32_t> ids;
  /// By id, an index into data.added.
  std::unordered_map<int32_t, size_t> addedAt;
};

} // namespace

/// Reads a file of the directory if it is there.
static std::optional<json> readOptional(const std::filesystem::path &path) {
  std::error_code ec;
  if (!std::filesystem::exists(path, ec))
    return std::nullopt;
  support::MappedFile file(path.string(), maxFileBytes);
  return parseJson(file.text(), file.path());
}

static AddedToken readFlags(const JsonField &field, bool special) {
  AddedToken token;
  token.special = field.boolAt("special", special);
  token.singleWord = field.boolAt("single_word", false);
  token.lstrip = field.boolAt("lstrip", false);
  token.rstrip = field.boolAt("rstrip", false);
  token.normalized = field.boolAt("normalized", !token.special);
  return token;
}

/// added_tokens_decoder of tokenizer_config.json: an object of tokens by their ids. Its flags are
/// the ones that count.
static void readAddedTokensDecoder(const JsonField &tokens, TokenAdder &adder) {
  std::vector<std::pair<int64_t, JsonField>> byId;
  for (const auto &[key, value] : tokens.asObject()) {
    JsonField field(value, tokens.getPath() + "[" + quote(key) + "]", tokens.getFile());
    if (key.empty() || key.size() >= 10 || key.find_first_not_of("0123456789") != std::string::npos)
      field.fail("an id as its key");
    byId.emplace_back(std::stoll(key), field);
  }
  std::sort(byId.begin(), byId.end(),
            [](const auto &a, const auto &b) { return a.first < b.first; });
  for (const auto &[id, field] : byId)
    adder.add(id, field.at("content").asString(), readFlags(field, false), tokens.getFile());
}

/// Tokens that tokenizer_config.json names for a purpose are special.
static void readNamedTokens(const JsonField &root, TokenAdder &adder) {
  auto read = [&](const JsonField &field) {
    bool isObject = field.get().is_object();
    const std::string content = (isObject ? field.at("content") : field).asString();
    auto id = adder.find(content);
    if (!id)
      return;
    AddedToken token = adder.added(*id).value_or(isObject ? readFlags(field, true) : AddedToken());
    token.special = true;
    adder.add(*id, content, token, root.getFile());
  };
  for (const char *key : {"bos_token", "eos_token"})
    if (auto field = root.find(key))
      read(*field);
  for (const char *key : {"additional_special_tokens", "extra_special_tokens"}) {
    auto field = root.find(key);
    if (!field)
      continue;
    if (field->get().is_object()) {
      for (const auto &[name, value] : field->asObject())
        read(JsonField(value, field->getPath() + "." + name, field->getFile()));
    } else {
      for (const JsonField &token : field->elements())
        read(token);
    }
  }
}

/// Names that templates have for tokens, as transformers hands them over: those of a fixed set, and
/// those of extra_special_tokens if that has names. Null says that the model has no such token.
static void readTokenNames(Data &data, const std::optional<JsonField> &root) {
  static constexpr const char *purposes[] = {"bos_token", "eos_token", "unk_token", "sep_token",
                                             "pad_token", "cls_token", "mask_token"};
  auto add = [&](const std::string &name, const JsonField &field) {
    data.namedTokens[name] = (field.get().is_object() ? field.at("content") : field).asString();
  };
  // The ids of the model stand in for what is not said.
  nameTokensById(data);
  if (!root)
    return;
  for (const char *purpose : purposes) {
    if (auto field = root->find(purpose))
      add(purpose, *field);
    else if (root->get().contains(purpose))
      data.namedTokens.erase(purpose);
  }
  if (auto extra = root->find("extra_special_tokens"); extra && extra->get().is_object())
    for (const auto &[name, token] : extra->members())
      add(name, token);
}

/// The template of chats: a file of its own counts more than tokenizer_config.json, which has one,
/// or several by name.
static void readChatTemplate(Data &data, const std::filesystem::path &directory,
                             const std::optional<JsonField> &root) {
  std::filesystem::path file = directory / "chat_template.jinja";
  std::error_code ec;
  if (std::filesystem::exists(file, ec)) {
    data.chatTemplate = support::MappedFile(file.string(), maxFileBytes).text();
    return;
  }
  auto field = root ? root->find("chat_template") : std::nullopt;
  if (!field)
    return;
  if (!field->get().is_array()) {
    data.chatTemplate = field->asString();
    return;
  }
  for (const JsonField &named : field->elements())
    if (named.at("name").asString() == "default")
      data.chatTemplate = named.at("template").asString();
}

void readModelDirectory(Data &data, const std::filesystem::path &directory, bool fromJson) {
  std::string configName = (directory / "tokenizer_config.json").string();
  std::optional<json> config = readOptional(configName);
  std::optional<JsonField> root;
  if (config)
    root.emplace(*config, "", configName);

  TokenAdder adder(data, fromJson);
  std::string addedName = (directory / "added_tokens.json").string();
  std::optional<JsonField> decoder;
  if (root)
    decoder = root->find("added_tokens_decoder");
  if (decoder) {
    readAddedTokensDecoder(*decoder, adder);
  } else if (std::optional<json> added = readOptional(addedName)) {
    JsonField all(*added, "", addedName);
    for (const auto &[content, id] : all.asObject()) {
      AddedToken token;
      token.normalized = true;
      // What tokenizer.json says of its own tokens counts.
      auto known = adder.find(content);
      if (!known || !adder.added(*known))
        adder.add(JsonField(id, "[" + quote(content) + "]", addedName).asInt(0, INT32_MAX), content,
                  token, addedName);
    }
  }
  if (root && fromJson)
    readNamedTokens(*root, adder);

  auto idOfToken = [&](const JsonField &field) -> int32_t {
    auto id =
        adder.find(field.get().is_object() ? field.at("content").asString() : field.asString());
    if (!id)
      field.fail("a token of the vocabulary");
    return *id;
  };

  std::vector<int32_t> eosIds;
  bool bosFound = false;
  // The first that says something about the beginning is right; any of the ends ends a text.
  for (const char *file : {"generation_config.json", "config.json"}) {
    std::string fileName = (directory / file).string();
    std::optional<json> parsed = readOptional(fileName);
    if (!parsed)
      continue;
    JsonField field(*parsed, "", fileName);
    // -1 is how some models write "none".
    if (auto bos = field.find("bos_token_id"); bos && !bosFound && bos->get() != -1) {
      data.bosId = asId(*bos, data);
      bosFound = true;
    }
    if (auto eos = field.find("eos_token_id")) {
      if (eos->get().is_array()) {
        for (const JsonField &id : eos->elements())
          eosIds.push_back(asId(id, data));
      } else if (eos->get() != -1) {
        eosIds.push_back(asId(*eos, data));
      }
    }
  }
  if (root) {
    if (auto bos = root->find("bos_token"); bos && !bosFound)
      data.bosId = idOfToken(*bos);
    // The end that the tokenizer itself has, whatever else ends a text.
    int32_t end = data.eosIds.empty() ? -1 : data.eosIds.front();
    if (auto eos = root->find("eos_token")) {
      end = idOfToken(*eos);
      eosIds.push_back(end);
    }
    // A tokenizer.json says by its post-processor what stands before and after a text.
    for (const char *key : {"add_bos_token", "add_eos_token"}) {
      auto field = root->find(key);
      bool add = field && field->asBool();
      if (!field || fromJson)
        continue;
      if (key == std::string_view("add_bos_token"))
        data.addBos = add;
      else
        data.closingId = add ? end : -1;
    }
  }
  if (!eosIds.empty())
    data.eosIds = std::move(eosIds);
  readTokenNames(data, root);
  readChatTemplate(data, directory, root);
}

} // namespace sluice::runtime::tokenizer
