// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Reads tokenizer.model: a ModelProto of
// https://github.com/google/sentencepiece/blob/master/src/sentencepiece_model.proto in protobuf's
// wire format (https://protobuf.dev/programming-guides/encoding).

#include "Data.h"
#include "Utf8.h"

#include <cmath>
#include <cstring>

namespace sluice::runtime::tokenizer {

namespace {

/// The fields of one message, one after the other. Nothing is read outside of `bytes`.
class WireReader {
public:
  WireReader(std::string_view bytes, size_t base, const char *message, const std::string &name)
      : bytes(bytes), base(base), message(message), name(name) {}

  /// Goes to the next field; false at the end.
  bool next() {
    if (at == bytes.size())
      return false;
    start = at;
    uint64_t key = readVarint();
    field = key >> 3;
    wire = key & 7;
    if (field == 0 || field > 0x1FFFFFFF)
      fail("field number " + std::to_string(field) + ", expected 1 to 536870911");
    switch (wire) {
    case 0:
      number = readVarint();
      break;
    case 1:
      number = readFixed(8);
      break;
    case 2: {
      uint64_t length = readVarint();
      if (length > bytes.size() - at)
        fail("a field of " + std::to_string(length) + " bytes where only " +
             std::to_string(bytes.size() - at) + " are left");
      payloadAt = at;
      payload = bytes.substr(at, length);
      at += length;
      break;
    }
    case 5:
      number = readFixed(4);
      break;
    default:
      fail("wire type " + std::to_string(wire) + ", expected 0, 1, 2 or 5");
    }
    return true;
  }

  uint64_t getField() const { return field; }

  int64_t getInt() const {
    expect(0, "a number");
    return static_cast<int64_t>(number);
  }
  bool getBool() const {
    expect(0, "a number");
    return number != 0;
  }
  float getFloat() const {
    expect(5, "a float");
    auto bits = static_cast<uint32_t>(number);
    float value;
    std::memcpy(&value, &bits, sizeof(value));
    return value;
  }
  std::string_view getBytes() const {
    expect(2, "bytes");
    return payload;
  }
  std::string getString() const {
    expect(2, "a string");
    if (validUtf8Prefix(payload) != payload.size())
      fail(quote(payload) + ", expected valid UTF-8");
    return std::string(payload);
  }
  WireReader getMessage(const char *message) const {
    expect(2, "a message");
    return WireReader(payload, base + payloadAt, message, name);
  }

  [[noreturn]] void fail(const std::string &what) const {
    throw Error(name + ": not a SentencePiece model: " + message + " at byte " +
                std::to_string(base + start) + " has " + what);
  }

private:
  void expect(unsigned wanted, const char *what) const {
    if (wire != wanted)
      fail("wire type " + std::to_string(wire) + " in field " + std::to_string(field) +
           ", expected " + what);
  }
  uint64_t readVarint() {
    uint64_t value = 0;
    for (unsigned shift = 0; shift < 64; shift += 7) {
      if (at == bytes.size())
        fail("a number that is cut off");
      auto byte = static_cast<uint8_t>(bytes[at++]);
      value |= static_cast<uint64_t>(byte & 0x7F) << shift;
      if (!(byte & 0x80))
        return value;
    }
    fail("a number of more than 10 bytes");
  }
  uint64_t readFixed(unsigned count) {
    if (bytes.size() - at < count)
      fail("a number that is cut off");
    uint64_t value = 0;
    for (unsigned i = 0; i < count; ++i)
      value |= static_cast<uint64_t>(static_cast<uint8_t>(bytes[at++])) << 8 * i;
    return value;
  }

  std::string_view bytes, payload;
  size_t base, at = 0, start = 0, payloadAt = 0;
  const char *message;
  const std::string &name;
  uint64_t field = 0, number = 0;
  unsigned wire = 0;
};

} // namespace

Data readSentencePiece(std::string_view bytes, const std::string &name) {
  Data data;
  // The defaults are the .proto's.
  int64_t modelType = 1;
  std::string bosPiece = "<s>", eosPiece = "</s>";
  WireReader model(bytes, 0, "the model", name);
  while (model.next()) {
    switch (model.getField()) {
    case 1: {
      WireReader piece = model.getMessage("a piece");
      std::string text;
      float score = 0;
      int64_t type = 1;
      while (piece.next()) {
        if (piece.getField() == 1)
          text = piece.getString();
        else if (piece.getField() == 2)
          score = piece.getFloat();
        else if (piece.getField() == 3)
          type = piece.getInt();
      }
      std::string which = name + ": piece " + std::to_string(data.tokens.size());
      if (text.empty())
        throw Error(which + " is empty, expected some text");
      if (!std::isfinite(score))
        throw Error(which + " " + quote(text) + " has the score " + std::to_string(score) +
                    ", expected a finite number");
      if (type < 1 || type > 6)
        throw Error(which + " " + quote(text) + " has the type " + std::to_string(type) +
                    ", expected 1 to 6");
      data.tokens.push_back(std::move(text));
      data.scores.push_back(score);
      data.types.push_back(static_cast<TokenType>(type));
      break;
    }
    case 2: {
      WireReader trainer = model.getMessage("trainer_spec");
      while (trainer.next()) {
        switch (trainer.getField()) {
        case 3:
          modelType = trainer.getInt();
          break;
        case 24:
          data.treatWhitespaceAsSuffix = trainer.getBool();
          break;
        case 35:
          data.byteFallback = trainer.getBool();
          break;
        case 44:
          data.unknownSurface = trainer.getString();
          break;
        case 46:
          bosPiece = trainer.getString();
          break;
        case 47:
          eosPiece = trainer.getString();
          break;
        }
      }
      break;
    }
    case 3: {
      WireReader normalizer = model.getMessage("normalizer_spec");
      while (normalizer.next()) {
        switch (normalizer.getField()) {
        case 2:
          data.charsmap = normalizer.getBytes();
          break;
        case 3:
          data.addDummyPrefix = normalizer.getBool();
          break;
        case 4:
          data.removeExtraWhitespaces = normalizer.getBool();
          break;
        case 5:
          data.escapeWhitespaces = normalizer.getBool();
          break;
        }
      }
      break;
    }
    case 5: {
      WireReader denormalizer = model.getMessage("denormalizer_spec");
      while (denormalizer.next())
        if (denormalizer.getField() == 2 && !denormalizer.getBytes().empty())
          throw Error(name + ": denormalizer_spec has a precompiled_charsmap of " +
                      std::to_string(denormalizer.getBytes().size()) +
                      " bytes, expected none: it is not supported");
      break;
    }
    }
  }
  if (data.tokens.empty())
    throw Error(name + ": not a SentencePiece model: it has no pieces");
  if (modelType != 1 && modelType != 2) {
    const char *type = modelType == 3 ? "WORD" : modelType == 4 ? "CHAR" : "unknown";
    throw Error(name + ": model_type is " + std::to_string(modelType) + " (" + type +
                "), expected 1 (UNIGRAM) or 2 (BPE)");
  }
  data.kind = modelType == 1 ? Kind::SentencePieceUnigram : Kind::SentencePieceBpe;
  for (size_t i = 0; i < data.tokens.size(); ++i) {
    auto id = static_cast<int32_t>(i);
    bool isControl = data.types[i] == TokenType::Control;
    if (!isControl && data.types[i] != TokenType::Unknown)
      continue;
    if (!isControl && data.unknownId < 0)
      data.unknownId = id;
    if (isControl && data.tokens[i] == bosPiece)
      data.bosId = id;
    if (isControl && data.tokens[i] == eosPiece)
      data.eosIds.push_back(id);
    AddedToken control;
    control.id = id;
    control.special = true;
    data.added.push_back(control);
  }
  return data;
}

} // namespace sluice::runtime::tokenizer
