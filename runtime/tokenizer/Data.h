// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// What a tokenizer is, independent of the file that it came from.

#ifndef SLUICE_RUNTIME_TOKENIZER_DATA_H
#define SLUICE_RUNTIME_TOKENIZER_DATA_H

#include "sluice-runtime/Tokenizer.h"

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace sluice::runtime::tokenizer {

/// Numbered as in SentencePiece's ModelProto and in GGUF.
enum class TokenType : uint8_t {
  Normal = 1,
  Unknown = 2,
  Control = 3,
  UserDefined = 4,
  Unused = 5,
  Byte = 6
};

/// A token that is found in the text before anything else happens to it.
struct AddedToken {
  int32_t id = 0;
  /// Only found on demand (parseSpecial); decodes to nothing.
  bool special = false;
  /// Only found where no word character touches it.
  bool singleWord = false;
  /// Takes the white space before or after it along.
  bool lstrip = false, rstrip = false;
  /// Found in the normalized text instead of the given one.
  bool normalized = false;
};

/// A change of the text before it is cut. Names and meaning are those of tokenizer.json.
struct Normalizer {
  enum class Kind { Prepend, Replace, Strip, Lowercase, Precompiled, Nfc, Nfd, Nfkc, Nfkd };
  Kind kind = Kind::Nfc;
  /// Replace: what is found; a regular expression or a plain string.
  std::string pattern;
  bool isRegex = false;
  /// Prepend, Replace: what is put there. Precompiled: SentencePiece's precompiled_charsmap.
  std::string content;
  /// Strip: which sides lose their white space.
  bool left = false, right = false;
};

enum class SplitBehavior { Isolated, Removed, MergedWithPrevious, MergedWithNext, Contiguous };
enum class PrependScheme { Always, First, Never };

/// A step that cuts the text. Names and meaning are those of tokenizer.json.
struct PreTokenizer {
  enum class Kind { Split, ByteLevel, Metaspace };
  Kind kind = Kind::Split;
  /// Split.
  std::string pattern;
  bool isRegex = true, invert = false;
  SplitBehavior behavior = SplitBehavior::Isolated;
  /// ByteLevel.
  bool addPrefixSpace = false, useRegex = false;
  /// Metaspace.
  std::string replacement;
  PrependScheme prepend = PrependScheme::Always;
  bool split = true;
};

/// How ids become text in Hugging Face's kinds; SentencePiece has one way.
struct Decoder {
  /// Tokens are spelled in byte characters.
  bool byteLevel = false;
  /// What each token's text has replaced.
  std::vector<std::pair<std::string, std::string>> replace;
  /// One space at the very start is dropped.
  bool stripSpace = false;
};

/// The first two are SentencePiece's, the others Hugging Face's.
enum class Kind { SentencePieceBpe, SentencePieceUnigram, Bpe, Unigram };

inline bool isSentencePiece(Kind kind) {
  return kind == Kind::SentencePieceBpe || kind == Kind::SentencePieceUnigram;
}

struct Data {
  Kind kind = Kind::Bpe;
  /// By id. An empty text of type Unused is an id that nothing has.
  std::vector<std::string> tokens;
  /// By id, same length.
  std::vector<TokenType> types;
  std::vector<AddedToken> added;
  int32_t bosId = -1, unknownId = -1;
  std::vector<int32_t> eosIds;
  bool addBos = true;
  /// The token that stands after each whole text, or -1.
  int32_t closingId = -1;
  /// Characters without a token become their bytes' tokens, <0x00> to <0xFF>.
  bool byteFallback = false;
  /// The template of chats in Jinja, or empty.
  std::string chatTemplate;
  /// Texts of tokens by what they are for, "bos_token" say.
  std::map<std::string, std::string> namedTokens;

  /// By id, same length as tokens; not for Kind::Bpe. SentencePiece's have 32 bits.
  std::vector<double> scores;

  // SentencePiece only: the fields of its NormalizerSpec and TrainerSpec.
  bool addDummyPrefix = true, removeExtraWhitespaces = true, escapeWhitespaces = true,
       treatWhitespaceAsSuffix = false;
  /// SentencePiece's precompiled_charsmap; empty for the identity.
  std::string charsmap;
  std::string unknownSurface = " \xE2\x81\x87 ";

  // Bpe only.
  /// By rank: ids of the left and right part.
  std::vector<std::pair<int32_t, int32_t>> merges;
  bool ignoreMerges = false, fuseUnknown = false;

  // Bpe and Unigram.
  std::vector<Normalizer> normalizers;
  std::vector<PreTokenizer> preTokenizers;
  Decoder decoder;

  /// What a reader had to assume, one line each. Not a part of the tokenizer.
  std::vector<std::string> warnings;
};

/// Readers. `name` starts each error's message.
Data readSentencePiece(std::string_view bytes, const std::string &name);
/// Either form of tokenizer.json; `isOwn` is set to whether it was the own one.
Data readJson(std::string_view text, const std::string &name, bool &isOwn);
Data readGguf(const GgufTokenizer &gguf, const std::string &name);
/// What other files of the directory say: tokens that were added, and which begin and end a text.
/// `fromJson` tells whether the data come from a tokenizer.json or a tokenizer.model.
void readModelDirectory(Data &data, const std::filesystem::path &directory, bool fromJson);

/// Whether a token with this text ends a text in every model that has it.
bool isEndByText(std::string_view text);
/// Adds the tokens of which that is true to those that end a text.
void addEndsByText(Data &data);

/// Names the tokens that begin and end a text and the unknown one by their ids.
void nameTokensById(Data &data);

/// Writes the own form.
std::string writeJson(const Data &data);

/// What a tokenizer's file is refused beyond; the largest in use have some 30 MB.
inline constexpr uint64_t maxFileBytes = uint64_t(512) << 20;

/// Pairs of token texts as pairs of ids, each checked to be a merge of this vocabulary.
std::vector<std::pair<int32_t, int32_t>>
resolveMerges(const std::vector<std::string> &tokens,
              const std::vector<std::pair<std::string, std::string>> &merges,
              const std::string &name);

/// Gives `id` the text `content`; makes room for it. Throws Error if the id has another text, or is
/// further out than any vocabulary that these files describe could reach.
void setToken(Data &data, int64_t id, const std::string &content, TokenType type,
              const std::string &name);

/// GPT-2's pre-tokenizer, which ByteLevel with use_regex stands for.
inline constexpr const char *gpt2Pattern =
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";

} // namespace sluice::runtime::tokenizer

#endif // SLUICE_RUNTIME_TOKENIZER_DATA_H
