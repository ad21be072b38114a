// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Sluice's own tokenizer.json; README.md has the schema.

#include "Json.h"
#include "Utf8.h"

using nlohmann::json;
using nlohmann::ordered_json;

namespace sluice::runtime::tokenizer {

namespace {

template <typename T> struct Name {
  T value;
  const char *name;
};

constexpr Name<Kind> kinds[] = {{Kind::SentencePieceBpe, "sentencepiece-bpe"},
                                {Kind::SentencePieceUnigram, "sentencepiece-unigram"},
                                {Kind::Bpe, "bpe"},
                                {Kind::Unigram, "unigram"}};
constexpr Name<TokenType> types[] = {{TokenType::Unknown, "unknown"},
                                     {TokenType::Control, "control"},
                                     {TokenType::UserDefined, "user_defined"},
                                     {TokenType::Unused, "unused"},
                                     {TokenType::Byte, "byte"}};
constexpr Name<Normalizer::Kind> normalizerKinds[] = {
    {Normalizer::Kind::Prepend, "prepend"},
    {Normalizer::Kind::Replace, "replace"},
    {Normalizer::Kind::Strip, "strip"},
    {Normalizer::Kind::Lowercase, "lowercase"},
    {Normalizer::Kind::Precompiled, "precompiled"},
    {Normalizer::Kind::Nfc, "nfc"},
    {Normalizer::Kind::Nfd, "nfd"},
    {Normalizer::Kind::Nfkc, "nfkc"},
    {Normalizer::Kind::Nfkd, "nfkd"}};
constexpr Name<PreTokenizer::Kind> preTokenizerKinds[] = {
    {PreTokenizer::Kind::Split, "split"},
    {PreTokenizer::Kind::ByteLevel, "byte_level"},
    {PreTokenizer::Kind::Metaspace, "metaspace"}};
constexpr Name<SplitBehavior> behaviors[] = {
    {SplitBehavior::Isolated, "isolated"},
    {SplitBehavior::Removed, "removed"},
    {SplitBehavior::MergedWithPrevious, "merged_with_previous"},
    {SplitBehavior::MergedWithNext, "merged_with_next"},
    {SplitBehavior::Contiguous, "contiguous"}};
constexpr Name<PrependScheme> schemes[] = {{PrependScheme::Always, "always"},
                                           {PrependScheme::First, "first"},
                                           {PrependScheme::Never, "never"}};

template <typename T, size_t N> const char *nameOf(const Name<T> (&names)[N], T value) {
  for (const auto &n : names)
    if (n.value == value)
      return n.name;
  return "";
}

template <typename T, size_t N> T valueOf(const Name<T> (&names)[N], const JsonField &field) {
  std::string all;
  for (const auto &n : names) {
    if (field.asString() == n.name)
      return n.value;
    all += (all.empty() ? "" : ", ") + std::string(n.name);
  }
  field.fail("one of " + all);
}

std::string encodeBase64(std::string_view bytes) {
  std::string out;
  for (size_t i = 0; i < bytes.size(); i += 3) {
    size_t count = std::min<size_t>(3, bytes.size() - i);
    uint32_t group = 0;
    for (size_t k = 0; k < 3; ++k)
      group = group << 8 | (k < count ? static_cast<uint8_t>(bytes[i + k]) : 0);
    for (size_t k = 0; k < 4; ++k)
      out.push_back(k <= count ? base64Digits[group >> (18 - 6 * k) & 63] : '=');
  }
  return out;
}

} // namespace

std::string writeJson(const Data &data) {
  ordered_json root;
  root["format"] = "sluice-tokenizer";
  root["version"] = 1;
  root["kind"] = nameOf(kinds, data.kind);
  root["bos"] = data.bosId < 0 ? ordered_json() : ordered_json(data.bosId);
  root["eos"] = data.eosIds;
  root["add_bos"] = data.addBos;
  // Rare: written only if there is one.
  if (data.closingId >= 0)
    root["closing"] = data.closingId;
  root["unknown"] = data.unknownId < 0 ? ordered_json() : ordered_json(data.unknownId);
  root["byte_fallback"] = data.byteFallback;
  if (!data.namedTokens.empty())
    root["named_tokens"] = data.namedTokens;
  if (!data.chatTemplate.empty())
    root["chat_template"] = data.chatTemplate;
  if (isSentencePiece(data.kind)) {
    root["add_dummy_prefix"] = data.addDummyPrefix;
    root["remove_extra_whitespaces"] = data.removeExtraWhitespaces;
    root["escape_whitespaces"] = data.escapeWhitespaces;
    root["treat_whitespace_as_suffix"] = data.treatWhitespaceAsSuffix;
    root["unknown_surface"] = data.unknownSurface;
    root["charsmap"] = encodeBase64(data.charsmap);
  } else {
    if (data.kind == Kind::Bpe) {
      root["ignore_merges"] = data.ignoreMerges;
      root["fuse_unknown"] = data.fuseUnknown;
    }
    ordered_json &normalizers = root["normalizers"] = ordered_json::array();
    for (const Normalizer &n : data.normalizers) {
      ordered_json step;
      step["type"] = nameOf(normalizerKinds, n.kind);
      if (n.kind == Normalizer::Kind::Prepend)
        step["content"] = n.content;
      if (n.kind == Normalizer::Kind::Replace) {
        step[n.isRegex ? "regex" : "string"] = n.pattern;
        step["content"] = n.content;
      }
      if (n.kind == Normalizer::Kind::Precompiled)
        step["charsmap"] = encodeBase64(n.content);
      if (n.kind == Normalizer::Kind::Strip) {
        step["left"] = n.left;
        step["right"] = n.right;
      }
      normalizers.push_back(std::move(step));
    }
    ordered_json &preTokenizers = root["pre_tokenizers"] = ordered_json::array();
    for (const PreTokenizer &p : data.preTokenizers) {
      ordered_json step;
      step["type"] = nameOf(preTokenizerKinds, p.kind);
      if (p.kind == PreTokenizer::Kind::Split) {
        step[p.isRegex ? "regex" : "string"] = p.pattern;
        step["behavior"] = nameOf(behaviors, p.behavior);
        step["invert"] = p.invert;
      } else if (p.kind == PreTokenizer::Kind::ByteLevel) {
        step["add_prefix_space"] = p.addPrefixSpace;
        step["use_regex"] = p.useRegex;
      } else {
        step["replacement"] = p.replacement;
        step["prepend"] = nameOf(schemes, p.prepend);
        step["split"] = p.split;
      }
      preTokenizers.push_back(std::move(step));
    }
    ordered_json &decoder = root["decoder"];
    decoder["byte_level"] = data.decoder.byteLevel;
    decoder["replace"] = ordered_json::array();
    for (const auto &[from, to] : data.decoder.replace)
      decoder["replace"].push_back({from, to});
    decoder["strip_space"] = data.decoder.stripSpace;
  }
  ordered_json &added = root["added"] = ordered_json::array();
  for (const AddedToken &a : data.added) {
    ordered_json token;
    token["id"] = a.id;
    token["special"] = a.special;
    // The rest is rare: written only if set.
    if (a.singleWord)
      token["single_word"] = true;
    if (a.lstrip)
      token["lstrip"] = true;
    if (a.rstrip)
      token["rstrip"] = true;
    if (a.normalized)
      token["normalized"] = true;
    added.push_back(std::move(token));
  }
  ordered_json &typed = root["types"] = ordered_json::object();
  for (const auto &type : types)
    for (size_t i = 0; i < data.types.size(); ++i)
      if (data.types[i] == type.value)
        typed[type.name].push_back(i);
  root["tokens"] = data.tokens;
  if (data.kind == Kind::Bpe)
    root["merges"] = data.merges;
  else
    root["scores"] = data.scores;
  return root.dump() + "\n";
}

Data readOwnForm(const JsonField &root) {
  JsonField format = root.at("format");
  if (format.asString() != "sluice-tokenizer")
    format.fail("'sluice-tokenizer'");
  root.at("version").asInt(1, 1);

  Data data;
  data.kind = valueOf(kinds, root.at("kind"));
  JsonField tokens = root.at("tokens");
  for (const JsonField &token : tokens.elements())
    data.tokens.push_back(token.asString());
  if (data.tokens.empty() || data.tokens.size() > INT32_MAX)
    tokens.fail("at least one token");
  data.types.assign(data.tokens.size(), TokenType::Normal);
  JsonField typed = root.at("types");
  for (const auto &member : typed.asObject()) {
    json key = member.first;
    TokenType type = valueOf(types, JsonField(key, "a key of types", root.getFile()));
    for (const JsonField &id : typed.at(member.first).elements())
      data.types[asId(id, data)] = type;
  }
  for (const JsonField &field : root.at("added").elements()) {
    AddedToken token;
    token.id = asId(field.at("id"), data);
    token.special = field.at("special").asBool();
    token.singleWord = field.boolAt("single_word", false);
    token.lstrip = field.boolAt("lstrip", false);
    token.rstrip = field.boolAt("rstrip", false);
    token.normalized = field.boolAt("normalized", false);
    data.added.push_back(token);
  }
  if (auto bos = root.find("bos"))
    data.bosId = asId(*bos, data);
  for (const JsonField &eos : root.at("eos").elements())
    data.eosIds.push_back(asId(eos, data));
  data.addBos = root.at("add_bos").asBool();
  if (auto closing = root.find("closing"))
    data.closingId = asId(*closing, data);
  if (auto unknown = root.find("unknown"))
    data.unknownId = asId(*unknown, data);
  data.byteFallback = root.at("byte_fallback").asBool();
  if (auto named = root.find("named_tokens"))
    for (const auto &[name, token] : named->members())
      data.namedTokens[name] = token.asString();
  data.chatTemplate = root.stringAt("chat_template", "");
  if (data.kind != Kind::Bpe) {
    JsonField scores = root.at("scores");
    for (const JsonField &score : scores.elements()) {
      data.scores.push_back(asFinite(score));
      if (isSentencePiece(data.kind))
        data.scores.back() = static_cast<float>(data.scores.back());
    }
    if (data.scores.size() != data.tokens.size())
      scores.fail("one score for each of " + std::to_string(data.tokens.size()) + " tokens");
  }

  if (isSentencePiece(data.kind)) {
    data.addDummyPrefix = root.at("add_dummy_prefix").asBool();
    data.removeExtraWhitespaces = root.at("remove_extra_whitespaces").asBool();
    data.escapeWhitespaces = root.at("escape_whitespaces").asBool();
    data.treatWhitespaceAsSuffix = root.at("treat_whitespace_as_suffix").asBool();
    data.unknownSurface = root.at("unknown_surface").asString();
    data.charsmap = decodeBase64(root.at("charsmap"));
    return data;
  }

  if (data.kind == Kind::Bpe) {
    data.ignoreMerges = root.at("ignore_merges").asBool();
    data.fuseUnknown = root.at("fuse_unknown").asBool();
    for (const JsonField &merge : root.at("merges").elements()) {
      std::vector<JsonField> both = merge.elements();
      if (both.size() != 2)
        merge.fail("two ids");
      data.merges.emplace_back(asId(both[0], data), asId(both[1], data));
    }
  }
  auto readPattern = [](const JsonField &step, std::string &pattern, bool &isRegex) {
    auto regex = step.find("regex");
    isRegex = regex.has_value();
    pattern = regex ? regex->asString() : step.at("string").asString();
  };
  for (const JsonField &step : root.at("normalizers").elements()) {
    Normalizer n;
    n.kind = valueOf(normalizerKinds, step.at("type"));
    if (n.kind == Normalizer::Kind::Replace)
      readPattern(step, n.pattern, n.isRegex);
    if (n.kind == Normalizer::Kind::Replace || n.kind == Normalizer::Kind::Prepend)
      n.content = step.at("content").asString();
    if (n.kind == Normalizer::Kind::Precompiled)
      n.content = decodeBase64(step.at("charsmap"));
    if (n.kind == Normalizer::Kind::Strip) {
      n.left = step.at("left").asBool();
      n.right = step.at("right").asBool();
    }
    data.normalizers.push_back(std::move(n));
  }
  for (const JsonField &step : root.at("pre_tokenizers").elements()) {
    PreTokenizer p;
    p.kind = valueOf(preTokenizerKinds, step.at("type"));
    if (p.kind == PreTokenizer::Kind::Split) {
      readPattern(step, p.pattern, p.isRegex);
      p.behavior = valueOf(behaviors, step.at("behavior"));
      p.invert = step.at("invert").asBool();
    } else if (p.kind == PreTokenizer::Kind::ByteLevel) {
      p.addPrefixSpace = step.at("add_prefix_space").asBool();
      p.useRegex = step.at("use_regex").asBool();
    } else {
      p.replacement = step.at("replacement").asString();
      p.prepend = valueOf(schemes, step.at("prepend"));
      p.split = step.at("split").asBool();
    }
    data.preTokenizers.push_back(std::move(p));
  }
  JsonField decoder = root.at("decoder");
  data.decoder.byteLevel = decoder.at("byte_level").asBool();
  data.decoder.stripSpace = decoder.at("strip_space").asBool();
  for (const JsonField &pair : decoder.at("replace").elements()) {
    std::vector<JsonField> both = pair.elements();
    if (both.size() != 2 || !both[0].get().is_string() || both[0].asString().empty() ||
        !both[1].get().is_string())
      pair.fail("two strings, the first one not empty");
    data.decoder.replace.emplace_back(both[0].asString(), both[1].asString());
  }
  return data;
}

} // namespace sluice::runtime::tokenizer
