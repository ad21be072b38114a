// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Reads Hugging Face's tokenizer.json, as the tokenizers library writes it
// (https://github.com/huggingface/tokenizers).

#include "Json.h"
#include "Utf8.h"

#include <algorithm>

namespace sluice::runtime::tokenizer {

static void readNormalizer(const JsonField &field, Data &data) {
  JsonField type = field.at("type");
  const std::string &kind = type.asString();
  Normalizer n;
  if (kind == "Sequence") {
    for (const JsonField &step : field.at("normalizers").elements()) {
      if (step.get().is_object() && step.find("normalizers"))
        step.fail("no sequence in a sequence");
      readNormalizer(step, data);
    }
    return;
  }
  if (kind == "Prepend") {
    n.kind = Normalizer::Kind::Prepend;
    n.content = field.at("prepend").asString();
  } else if (kind == "Replace") {
    n.kind = Normalizer::Kind::Replace;
    JsonField pattern = field.at("pattern");
    auto regex = pattern.find("Regex");
    n.isRegex = regex.has_value();
    n.pattern = regex ? regex->asString() : pattern.at("String").asString();
    n.content = field.at("content").asString();
  } else if (kind == "Strip") {
    n.kind = Normalizer::Kind::Strip;
    n.left = field.boolAt("strip_left", true);
    n.right = field.boolAt("strip_right", true);
  } else if (kind == "NFC") {
    n.kind = Normalizer::Kind::Nfc;
  } else if (kind == "NFD") {
    n.kind = Normalizer::Kind::Nfd;
  } else if (kind == "NFKC") {
    n.kind = Normalizer::Kind::Nfkc;
  } else if (kind == "NFKD") {
    n.kind = Normalizer::Kind::Nfkd;
  } else if (kind == "Lowercase") {
    n.kind = Normalizer::Kind::Lowercase;
  } else if (kind == "Precompiled") {
    n.kind = Normalizer::Kind::Precompiled;
    n.content = decodeBase64(field.at("precompiled_charsmap"));
  } else if (kind == "StripAccents") {
    n.kind = Normalizer::Kind::Replace;
    n.isRegex = true;
    n.pattern = "\\p{M}";
  } else if (kind == "Nmt") {
    n.kind = Normalizer::Kind::Replace;
    n.isRegex = true;
    n.pattern = "[\\x{01}-\\x{08}\\x{0B}\\x{0E}-\\x{1F}\\x{7F}\\x{8F}\\x{9F}]";
    data.normalizers.push_back(n);
    n.pattern =
        "[\\x{09}\\x{0A}\\x{0C}\\x{0D}\\x{1680}\\x{200B}-\\x{200F}\\x{2028}\\x{2029}\\x{2581}"
        "\\x{FEFF}\\x{FFFD}]";
    n.content = " ";
  } else {
    type.fail("Sequence, Prepend, Replace, Strip, Lowercase, StripAccents, Precompiled, Nmt, NFC, "
              "NFD, NFKC or NFKD");
  }
  data.normalizers.push_back(std::move(n));
}

static SplitBehavior readBehavior(const JsonField &field) {
  const std::string &name = field.asString();
  if (name == "Isolated")
    return SplitBehavior::Isolated;
  if (name == "Removed")
    return SplitBehavior::Removed;
  if (name == "MergedWithPrevious")
    return SplitBehavior::MergedWithPrevious;
  if (name == "MergedWithNext")
    return SplitBehavior::MergedWithNext;
  if (name == "Contiguous")
    return SplitBehavior::Contiguous;
  field.fail("Isolated, Removed, MergedWithPrevious, MergedWithNext or Contiguous");
}

/// Metaspace's prepend_scheme, or what add_prefix_space meant before there was one.
static PrependScheme readScheme(const JsonField &field) {
  auto scheme = field.find("prepend_scheme");
  if (!scheme)
    return field.boolAt("add_prefix_space", true) ? PrependScheme::Always : PrependScheme::Never;
  if (scheme->asString() == "always")
    return PrependScheme::Always;
  if (scheme->asString() == "first")
    return PrependScheme::First;
  if (scheme->asString() == "never")
    return PrependScheme::Never;
  scheme->fail("always, first or never");
}

static void readPreTokenizer(const JsonField &field, Data &data) {
  JsonField type = field.at("type");
  const std::string &kind = type.asString();
  PreTokenizer p;
  if (kind == "Sequence") {
    for (const JsonField &step : field.at("pretokenizers").elements()) {
      if (step.get().is_object() && step.find("pretokenizers"))
        step.fail("no sequence in a sequence");
      readPreTokenizer(step, data);
    }
    return;
  }
  if (kind == "Split") {
    JsonField pattern = field.at("pattern");
    auto regex = pattern.find("Regex");
    p.isRegex = regex.has_value();
    p.pattern = regex ? regex->asString() : pattern.at("String").asString();
    p.behavior = readBehavior(field.at("behavior"));
    p.invert = field.boolAt("invert", false);
  } else if (kind == "ByteLevel") {
    p.kind = PreTokenizer::Kind::ByteLevel;
    p.addPrefixSpace = field.boolAt("add_prefix_space", true);
    p.useRegex = field.boolAt("use_regex", true);
  } else if (kind == "Metaspace") {
    p.kind = PreTokenizer::Kind::Metaspace;
    p.replacement = field.stringAt("replacement", spaceSymbol.data());
    p.prepend = readScheme(field);
    p.split = field.boolAt("split", true);
  } else if (kind == "Digits") {
    p.pattern = "\\p{N}";
    p.behavior = field.boolAt("individual_digits", false) ? SplitBehavior::Isolated
                                                          : SplitBehavior::Contiguous;
  } else if (kind == "Punctuation") {
    p.pattern = "[!-/:-@\\[-`{-~]|\\p{P}";
    if (auto behavior = field.find("behavior"))
      p.behavior = readBehavior(*behavior);
  } else if (kind == "WhitespaceSplit") {
    p.pattern = "\\s";
    p.behavior = SplitBehavior::Removed;
  } else if (kind == "Whitespace") {
    // \w as Rust's regex crate has it, which is not Oniguruma's.
    constexpr const char *word = "\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}\\p{Join_Control}";
    p.pattern = std::string("[") + word + "]+|[^\\s" + word + "]+";
    p.behavior = SplitBehavior::Removed;
    p.invert = true;
  } else if (kind == "CharDelimiterSplit") {
    p.isRegex = false;
    p.pattern = field.at("delimiter").asString();
    p.behavior = SplitBehavior::Removed;
  } else {
    type.fail("Sequence, Split, ByteLevel, Metaspace, Digits, Punctuation, Whitespace, "
              "WhitespaceSplit or CharDelimiterSplit");
  }
  data.preTokenizers.push_back(std::move(p));
}

static void readDecoder(const JsonField &field, Data &data) {
  JsonField type = field.at("type");
  const std::string &kind = type.asString();
  if (kind == "Sequence") {
    for (const JsonField &step : field.at("decoders").elements()) {
      if (step.get().is_object() && step.find("decoders"))
        step.fail("no sequence in a sequence");
      readDecoder(step, data);
    }
  } else if (kind == "ByteLevel") {
    data.decoder.byteLevel = true;
  } else if (kind == "Replace") {
    JsonField from = field.at("pattern").at("String");
    if (from.asString().empty())
      from.fail("some text");
    data.decoder.replace.emplace_back(from.asString(), field.at("content").asString());
  } else if (kind == "Metaspace") {
    std::string replacement = field.stringAt("replacement", spaceSymbol.data());
    if (replacement.empty())
      field.at("replacement").fail("a character");
    data.decoder.replace.emplace_back(replacement, " ");
    data.decoder.stripSpace = readScheme(field) != PrependScheme::Never;
  } else if (kind == "Strip") {
    JsonField content = field.at("content");
    if (content.asString() != " ")
      content.fail("' '");
    data.decoder.stripSpace = field.at("start").asInt(0, 1) == 1;
    field.at("stop").asInt(0, 0);
  } else if (kind != "ByteFallback" && kind != "Fuse") {
    type.fail("Sequence, ByteLevel, Replace, Metaspace, Strip, ByteFallback or Fuse");
  }
}

/// Finds the tokens that the template puts before and after a text.
static void readPostProcessor(const JsonField &field, Data &data) {
  JsonField type = field.at("type");
  const std::string &kind = type.asString();
  if (kind == "Sequence") {
    for (const JsonField &step : field.at("processors").elements()) {
      if (step.get().is_object() && step.find("processors"))
        step.fail("no sequence in a sequence");
      readPostProcessor(step, data);
    }
  } else if (kind == "TemplateProcessing") {
    bool after = false;
    for (const JsonField &item : field.at("single").elements()) {
      if (item.find("Sequence")) {
        after = true;
        continue;
      }
      JsonField name = item.at("SpecialToken").at("id");
      JsonField tokens = field.at("special_tokens").at(name.asString());
      JsonField ids = tokens.at("ids");
      bool first = after ? data.closingId < 0 : !data.addBos;
      if (!first || ids.asArray().size() != 1)
        item.fail(after ? "one token after the text" : "one token before the text");
      int32_t id = asId(ids.elements()[0], data);
      (after ? data.closingId : data.bosId) = id;
      data.addBos |= !after;
    }
  } else if (kind != "ByteLevel") {
    type.fail("Sequence, TemplateProcessing or ByteLevel");
  }
}

static void readBpe(const JsonField &model, Data &data) {
  const std::string &name = model.getFile();
  JsonField vocabulary = model.at("vocab");
  const auto &entries = vocabulary.asObject();
  if (entries.empty())
    vocabulary.fail("at least one token");
  // Sized first, so that the ids' order does not matter.
  int64_t most = 4 * static_cast<int64_t>(entries.size()) + 65536;
  int64_t largest = 0;
  for (const auto &[text, id] : entries)
    largest =
        std::max(largest, JsonField(id, "model.vocab[" + quote(text) + "]", name).asInt(0, most));
  data.tokens.resize(largest + 1);
  data.types.resize(largest + 1, TokenType::Unused);
  for (const auto &[text, id] : entries)
    setToken(data, id.get<int64_t>(), text, TokenType::Normal, name);

  for (const char *key : {"continuing_subword_prefix", "end_of_word_suffix"})
    if (auto field = model.find(key); field && !field->asString().empty())
      field->fail("none: it is not supported");
  if (auto dropout = model.find("dropout"))
    if (!dropout->get().is_number() || dropout->get().get<double>() != 0)
      dropout->fail("none: it makes ids random");
  data.fuseUnknown = model.boolAt("fuse_unk", false);
  data.byteFallback = model.boolAt("byte_fallback", false);
  data.ignoreMerges = model.boolAt("ignore_merges", false);
  if (auto unknown = model.find("unk_token")) {
    auto it = entries.find(unknown->asString());
    if (it == entries.end())
      unknown->fail("a token of the vocabulary");
    data.unknownId = it->second.get<int32_t>();
    data.types[data.unknownId] = TokenType::Unknown;
  }

  std::vector<std::pair<std::string, std::string>> merges;
  for (const JsonField &merge : model.at("merges").elements()) {
    if (merge.get().is_string()) {
      const std::string &text = merge.asString();
      size_t space = text.find(' ', 1);
      if (space == std::string::npos || text.find(' ', space + 1) != std::string::npos)
        merge.fail("two tokens with a space between them");
      merges.emplace_back(text.substr(0, space), text.substr(space + 1));
    } else {
      const auto &both = merge.asArray();
      if (both.size() != 2 || !both[0].is_string() || !both[1].is_string())
        merge.fail("two tokens");
      merges.emplace_back(both[0].get<std::string>(), both[1].get<std::string>());
    }
  }
  data.merges = resolveMerges(data.tokens, merges, name);
}

/// Ids are places in the vocabulary, a list of pieces with their scores.
static void readUnigram(const JsonField &model, Data &data) {
  data.kind = Kind::Unigram;
  JsonField vocabulary = model.at("vocab");
  for (const JsonField &piece : vocabulary.elements()) {
    std::vector<JsonField> both = piece.elements();
    if (both.size() != 2 || !both[0].get().is_string() || both[0].asString().empty())
      piece.fail("a piece and its score");
    data.tokens.push_back(both[0].asString());
    data.scores.push_back(asFinite(both[1]));
  }
  if (data.tokens.empty())
    vocabulary.fail("at least one token");
  data.types.resize(data.tokens.size(), TokenType::Normal);
  data.unknownId = asId(model.at("unk_id"), data);
  data.types[data.unknownId] = TokenType::Unknown;
  data.byteFallback = model.boolAt("byte_fallback", false);
}

Data readHuggingFace(const JsonField &root) {
  const std::string &name = root.getFile();
  Data data;
  JsonField model = root.at("model");
  auto type = model.find("type");
  if (type && type->asString() == "Unigram")
    readUnigram(model, data);
  else if (!type || type->asString() == "BPE")
    readBpe(model, data);
  else
    type->fail("BPE or Unigram");

  if (auto added = root.find("added_tokens")) {
    for (const JsonField &field : added->elements()) {
      AddedToken token;
      const std::string &content = field.at("content").asString();
      JsonField id = field.at("id");
      token.special = field.boolAt("special", false);
      token.singleWord = field.boolAt("single_word", false);
      token.lstrip = field.boolAt("lstrip", false);
      token.rstrip = field.boolAt("rstrip", false);
      token.normalized = field.boolAt("normalized", !token.special);
      setToken(data, id.asInt(0, INT32_MAX), content,
               token.special ? TokenType::Control : TokenType::UserDefined, name);
      token.id = asId(id, data);
      data.added.push_back(token);
    }
  }

  if (auto field = root.find("normalizer"))
    readNormalizer(*field, data);
  if (auto field = root.find("pre_tokenizer"))
    readPreTokenizer(*field, data);
  if (auto field = root.find("decoder")) {
    readDecoder(*field, data);
  } else {
    // tokenizers would put spaces between all tokens here, which no model means.
    for (const PreTokenizer &p : data.preTokenizers)
      data.decoder.byteLevel |= p.kind == PreTokenizer::Kind::ByteLevel;
    if (!data.decoder.byteLevel)
      data.decoder.replace.emplace_back(spaceSymbol, " ");
  }
  // Without a template nothing is put before a text, as in transformers 5.
  data.addBos = false;
  if (auto field = root.find("post_processor"))
    readPostProcessor(*field, data);
  return data;
}

} // namespace sluice::runtime::tokenizer
