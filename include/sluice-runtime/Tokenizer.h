// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Converts text to token ids and back. Two families are supported: SentencePiece, and Hugging
// Face's tokenizers, each with BPE (symbols merged by score or by rank) and Unigram (pieces with
// the best sum of scores). Either can come from its own file, from a GGUF file's metadata, or from
// Sluice's own tokenizer.json.

#ifndef SLUICE_RUNTIME_TOKENIZER_H
#define SLUICE_RUNTIME_TOKENIZER_H

#include "sluice-runtime/Error.h"

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace sluice::runtime {

namespace tokenizer {
class Model;
} // namespace tokenizer

/// The tokenizer.ggml.* keys of a GGUF file, as they stand there. The reader of GGUF files fills
/// it; a key that the file does not have stays empty.
struct GgufTokenizer {
  /// general.name, by which Phi-3 is known: its added tokens take the white space after them along.
  std::string name;
  /// tokenizer.ggml.model: "llama" (SentencePiece BPE), "t5" (SentencePiece Unigram), "gpt2"
  /// (byte-level BPE) or "gemma4" (BPE of characters).
  std::string model;
  /// tokenizer.ggml.pre: which pre-tokenizer a "gpt2" model uses. Empty means "default", with a
  /// warning.
  std::string pre;
  /// tokenizer.ggml.tokens, in the order of their ids.
  std::vector<std::string> tokens;
  /// tokenizer.ggml.scores: one per token, needed by "llama" and "t5".
  std::vector<float> scores;
  /// tokenizer.ggml.token_type: one per token. 0 and 1 normal, 2 unknown, 3 control, 4 user
  /// defined, 5 unused, 6 byte. Empty means that all are normal.
  std::vector<int32_t> types;
  /// tokenizer.ggml.merges: "left right" in the order of their ranks; "gpt2" and "gemma4"
  /// need at least one.
  std::vector<std::string> merges;
  /// tokenizer.ggml.precompiled_charsmap of "t5": SentencePiece's bytes.
  std::string charsmap;
  /// tokenizer.ggml.bos_token_id and unknown_token_id.
  std::optional<int64_t> bosId, unknownId;
  /// tokenizer.ggml.eos_token_id, eot_token_id and eom_token_id, those that are there.
  std::vector<int64_t> eosIds;
  /// tokenizer.ggml.add_bos_token, add_eos_token, add_space_prefix and remove_extra_whitespaces.
  /// The token that add_eos_token adds is the first of eosIds.
  std::optional<bool> addBos, addEos, addSpacePrefix, removeExtraWhitespaces;
  /// tokenizer.ggml.padding_token_id.
  std::optional<int64_t> paddingId;
  /// tokenizer.chat_template.
  std::string chatTemplate;
};

/// An immutable tokenizer. Copies share their tables; all members may be called from several
/// threads at once. Every function that reads input throws Error.
class Tokenizer {
public:
  /// Reads a file by its content (tokenizer.model, Hugging Face's tokenizer.json or Sluice's own)
  /// or, given a directory, its tokenizer.json or else its tokenizer.model. For a directory that
  /// is a Hugging Face model, generation_config.json, config.json and tokenizer_config.json, where
  /// present, say which ids begin and end a text; chat_template.jinja or else tokenizer_config.json
  /// has the template of its chats.
  static Tokenizer fromFile(const std::filesystem::path &path);

  /// Reads Sluice's own form or Hugging Face's tokenizer.json. `name` stands in error messages.
  static Tokenizer fromJson(std::string_view text, const std::string &name);

  /// Reads a SentencePiece model (the bytes of tokenizer.model).
  static Tokenizer fromSentencePiece(std::string_view bytes, const std::string &name);

  /// Takes the metadata of a GGUF file.
  static Tokenizer fromGguf(const GgufTokenizer &gguf, const std::string &name);

  /// Sluice's own form, schema in runtime/tokenizer/README.md: the same tokenizer always gives the
  /// same bytes, and fromJson gives back a tokenizer equal in all that it does.
  std::string toJson() const;

  /// The ids of `text`, which may hold any bytes: what is not valid UTF-8 becomes byte tokens
  /// (Hugging Face BPE) or, as SentencePiece has it, U+FFFD. With `addBos` the ids start with
  /// bosId() if there is one. With `parseSpecial` the names of control tokens in the text, such as
  /// <|im_end|>, become these tokens; without it they are ordinary text.
  std::vector<int32_t> encode(std::string_view text, bool addBos, bool parseSpecial = false) const;

  /// The ids of a whole text, with what this model's texts have before and after them.
  std::vector<int32_t> encodeWhole(std::string_view text, bool parseSpecial = false) const;

  /// The text of `ids`, always valid UTF-8 (bytes that are not become U+FFFD). Control tokens have
  /// no text. An id outside of the vocabulary is an Error.
  std::string decode(std::span<const int32_t> ids) const;

  /// The token that starts a text, or -1.
  int32_t bosId() const;
  /// Whether this model's texts start with bosId(). Where nothing in the model says so: yes for
  /// SentencePiece, no for a tokenizer.json.
  bool addsBos() const;
  /// The token that stands after each whole text, which a prompt that goes on does not have; or -1,
  /// as for most models.
  int32_t closingId() const;
  /// What had to be assumed when the files were read, one line each. The own form keeps none.
  const std::vector<std::string> &warnings() const;
  /// The tokens that end a text: first those that the model names, then those that end one by their
  /// text in every model (such as <|im_end|>). Each once; may be empty.
  const std::vector<int32_t> &eosIds() const;
  /// The model's own template of chats in Jinja (see Chat.h), not checked; empty if it has none.
  const std::string &chatTemplate() const;
  /// Tokens by what they are for, as templates name them: "bos_token" is "<s>", ...
  const std::map<std::string, std::string> &namedTokens() const;
  /// Ids are in [0, vocabSize()). A model may have more rows of logits than that.
  int32_t vocabSize() const;
  /// A token as the vocabulary spells it (U+2581 for a space, or byte-level characters).
  const std::string &tokenText(int32_t id) const;
  /// The id of a token so spelled.
  std::optional<int32_t> tokenId(std::string_view text) const;
  /// Whether the token is a control token, which has no text of its own.
  bool isControl(int32_t id) const;

private:
  friend class StreamDecoder;
  explicit Tokenizer(std::shared_ptr<const tokenizer::Model> model) : model(std::move(model)) {}
  std::shared_ptr<const tokenizer::Model> model;
};

/// Decodes one token at a time. What it returns, put together, is what Tokenizer::decode gives for
/// all ids at once, and each part is complete UTF-8: the bytes of a character that spans tokens
/// are held back until it is whole.
class StreamDecoder {
public:
  /// With `continuation` the ids go on from a text that has been written already, so the space
  /// that belongs to a first word is kept.
  explicit StreamDecoder(Tokenizer tokenizer, bool continuation = false)
      : tokenizer(std::move(tokenizer)), atStart(!continuation) {}

  /// The text that is complete with this id; may be empty.
  std::string add(int32_t id);
  /// What is left of an incomplete character (as U+FFFD). The decoder is then at an end.
  std::string finish();

private:
  friend class Tokenizer;
  void flush(std::string &out, bool final);

  Tokenizer tokenizer;
  /// Bytes of a character that is not complete yet.
  std::string pending;
  /// No text has been written yet, so a leading space is the tokenizer's and not the text's.
  bool atStart;
};

} // namespace sluice::runtime

#endif // SLUICE_RUNTIME_TOKENIZER_H
