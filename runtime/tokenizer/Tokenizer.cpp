// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sluice-runtime/Tokenizer.h"

#include "Data.h"
#include "Model.h"
#include "Utf8.h"

#include "sluice-support/MappedFile.h"

#include <algorithm>

namespace sluice::runtime {

using tokenizer::Data;
using tokenizer::isSentencePiece;
using tokenizer::Model;
using tokenizer::TokenType;

static std::shared_ptr<const Model> build(Data data, const std::string &name) {
  return std::make_shared<const Model>(std::move(data), name);
}

/// What a file alone does not say.
static void finish(Data &data) {
  tokenizer::nameTokensById(data);
  tokenizer::addEndsByText(data);
}

Tokenizer Tokenizer::fromJson(std::string_view text, const std::string &name) {
  bool isOwn;
  Data data = tokenizer::readJson(text, name, isOwn);
  if (!isOwn)
    finish(data);
  return Tokenizer(build(std::move(data), name));
}

Tokenizer Tokenizer::fromSentencePiece(std::string_view bytes, const std::string &name) {
  Data data = tokenizer::readSentencePiece(bytes, name);
  finish(data);
  return Tokenizer(build(std::move(data), name));
}

Tokenizer Tokenizer::fromGguf(const GgufTokenizer &gguf, const std::string &name) {
  Data data = tokenizer::readGguf(gguf, name);
  finish(data);
  return Tokenizer(build(std::move(data), name));
}

Tokenizer Tokenizer::fromFile(const std::filesystem::path &path) {
  std::error_code ec;
  bool isDirectory = std::filesystem::is_directory(path, ec);
  std::filesystem::path file = path;
  if (isDirectory) {
    file = path / "tokenizer.json";
    if (!std::filesystem::exists(file, ec))
      file = path / "tokenizer.model";
    if (!std::filesystem::exists(file, ec))
      throw Error(path.string() + ": has neither tokenizer.json nor tokenizer.model");
  }
  std::string name = file.string();
  support::MappedFile mapped(name, tokenizer::maxFileBytes);
  std::string_view bytes = mapped.text();
  if (bytes.starts_with("GGUF"))
    throw Error(name + ": is a GGUF file, expected a tokenizer");
  // A SentencePiece model begins with a line feed, which is the key of its first piece; the length
  // that follows is that of a whole piece, in practice never that of an opening brace (123).
  size_t first = bytes.find_first_not_of(" \t\r\n");
  bool isJson =
      first != std::string::npos && (bytes[first] == '{' || bytes.starts_with("\xEF\xBB\xBF"));
  if (!isJson && file.extension() == ".json")
    isJson = true;
  bool isOwn = false;
  Data data =
      isJson ? tokenizer::readJson(bytes, name, isOwn) : tokenizer::readSentencePiece(bytes, name);
  if (isDirectory && !isOwn) {
    tokenizer::readModelDirectory(data, path, isJson);
    tokenizer::addEndsByText(data);
  } else if (!isOwn) {
    finish(data);
  }
  return Tokenizer(build(std::move(data), name));
}

std::string Tokenizer::toJson() const { return tokenizer::writeJson(model->getData()); }

std::vector<int32_t> Tokenizer::encode(std::string_view text, bool addBos,
                                       bool parseSpecial) const {
  std::vector<int32_t> ids;
  if (addBos && bosId() >= 0)
    ids.push_back(bosId());
  model->encode(text, parseSpecial, ids);
  return ids;
}

std::vector<int32_t> Tokenizer::encodeWhole(std::string_view text, bool parseSpecial) const {
  std::vector<int32_t> ids = encode(text, addsBos(), parseSpecial);
  if (closingId() >= 0)
    ids.push_back(closingId());
  return ids;
}

std::string Tokenizer::decode(std::span<const int32_t> ids) const {
  StreamDecoder decoder(*this);
  std::string text;
  for (int32_t id : ids)
    text += decoder.add(id);
  return text + decoder.finish();
}

int32_t Tokenizer::bosId() const { return model->getData().bosId; }
bool Tokenizer::addsBos() const { return model->getData().bosId >= 0 && model->getData().addBos; }
int32_t Tokenizer::closingId() const { return model->getData().closingId; }
const std::vector<std::string> &Tokenizer::warnings() const { return model->getData().warnings; }
const std::vector<int32_t> &Tokenizer::eosIds() const { return model->getData().eosIds; }
const std::string &Tokenizer::chatTemplate() const { return model->getData().chatTemplate; }
const std::map<std::string, std::string> &Tokenizer::namedTokens() const {
  return model->getData().namedTokens;
}
int32_t Tokenizer::vocabSize() const {
  return static_cast<int32_t>(model->getData().tokens.size());
}
const std::string &Tokenizer::tokenText(int32_t id) const {
  model->check(id);
  return model->getData().tokens[id];
}
std::optional<int32_t> Tokenizer::tokenId(std::string_view text) const { return model->find(text); }
bool Tokenizer::isControl(int32_t id) const {
  model->check(id);
  return model->getData().types[id] == TokenType::Control;
}

/// Moves what is complete from `pending` to `out`, with U+FFFD for what can not become a character:
/// one for each maximal subpart if characters are spelled in bytes, as text decoders do, or one for
/// each byte if bytes are the exception, as SentencePiece does.
void StreamDecoder::flush(std::string &out, bool final) {
  const Data &data = tokenizer.model->getData();
  bool bySubpart = !isSentencePiece(data.kind) && data.decoder.byteLevel;
  size_t at = 0;
  while (at < pending.size()) {
    auto c = tokenizer::decodeUtf8(std::string_view(pending).substr(at));
    if (c.status == tokenizer::Utf8Status::Valid) {
      out.append(pending, at, c.length);
      at += c.length;
      continue;
    }
    if (c.status == tokenizer::Utf8Status::Truncated && !final)
      break;
    out += tokenizer::replacementCharacter;
    at += bySubpart ? c.length : 1;
  }
  pending.erase(0, at);
}

std::string StreamDecoder::add(int32_t id) {
  const Model &model = *tokenizer.model;
  const Data &data = model.getData();
  model.check(id);
  std::string out;
  bool bytes;
  std::string text = model.textOf(id, bytes);
  TokenType type = data.types[id];
  if (!isSentencePiece(data.kind)) {
    // Control tokens are taken out before the decoder sees anything.
    if (type == TokenType::Control)
      return out;
    if (bytes) {
      pending += text;
      flush(out, false);
    } else {
      flush(out, true);
      if (data.decoder.stripSpace && atStart && out.empty() && text.starts_with(' ')) {
        text.erase(0, 1);
        atStart = false;
      }
      out += text;
    }
    atStart = atStart && out.empty();
    return out;
  }

  // SentencePieceProcessor::Decode of sentencepiece/src/sentencepiece_processor.cc.
  if (bytes) {
    pending += text;
    flush(out, false);
    atStart = atStart && out.empty();
    return out;
  }
  flush(out, true);
  atStart = atStart && out.empty();
  if (type == TokenType::Control)
    return out;
  if (type == TokenType::Unknown) {
    out += data.unknownSurface;
  } else {
    bool stripped = atStart && (data.addDummyPrefix || data.removeExtraWhitespaces) &&
                    data.tokens[id].starts_with(tokenizer::spaceSymbol);
    if (stripped) {
      text.erase(0, 1);
      // All leading space goes if the encoder removes it as well.
      atStart = data.removeExtraWhitespaces;
    }
    out += text;
  }
  atStart = atStart && out.empty();
  return out;
}

std::string StreamDecoder::finish() {
  std::string out;
  flush(out, true);
  return out;
}

} // namespace sluice::runtime
