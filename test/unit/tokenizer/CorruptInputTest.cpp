// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "TestData.h"

using namespace sluice::runtime;
using namespace sluice::runtime::test;

namespace {

std::string key(int field, int wire) {
  return std::string(1, static_cast<char>(field << 3 | wire));
}
std::string varint(uint64_t value) {
  std::string out;
  for (; value >= 0x80; value >>= 7)
    out.push_back(static_cast<char>(value | 0x80));
  return out + static_cast<char>(value);
}
std::string bytesField(int field, const std::string &bytes) {
  return key(field, 2) + varint(bytes.size()) + bytes;
}
std::string numberField(int field, uint64_t value) {
  // Fields from 16 on have keys of two bytes.
  return varint(static_cast<uint64_t>(field) << 3) + varint(value);
}
std::string floatField(int field, uint32_t bits) {
  std::string out = key(field, 5);
  for (int i = 0; i < 4; ++i)
    out.push_back(static_cast<char>(bits >> 8 * i));
  return out;
}
std::string piece(const std::string &text, int type = 1) {
  return bytesField(1, bytesField(1, text) + floatField(2, 0) + numberField(3, type));
}
/// The smallest model that loads: an unknown token and a letter.
std::string smallModel(const std::string &more = "") {
  return piece("<unk>", 2) + piece("a") + bytesField(2, numberField(3, 2)) + more;
}

TEST(CorruptSentencePiece, TheSmallestModelLoads) {
  Tokenizer tokenizer = Tokenizer::fromSentencePiece(smallModel(), "m");
  EXPECT_EQ(tokenizer.encode("aab", false), (std::vector<int32_t>{0, 1, 1, 0}));
  EXPECT_EQ(tokenizer.bosId(), -1);
}

TEST(CorruptSentencePiece, EachFaultIsNamed) {
  struct Case {
    std::string bytes, message;
  };
  std::string nan = bytesField(1, bytesField(1, "x") + floatField(2, 0x7FC00000));
  std::vector<Case> cases = {
      {"", "m: not a SentencePiece model: it has no pieces"},
      {"\x0A", "m: not a SentencePiece model: the model at byte 0 has a number that is cut off"},
      {"\x0A\x05"
       "ab",
       "m: not a SentencePiece model: the model at byte 0 has a field of 5 bytes where only 2 are "
       "left"},
      {std::string("\x0A\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\x7F", 10),
       "m: not a SentencePiece model: the model at byte 0 has a field of 9223372036854775807 bytes "
       "where only 0 are left"},
      {std::string(12, '\xFF'),
       "m: not a SentencePiece model: the model at byte 0 has a number of more than 10 bytes"},
      {"\x0B",
       "m: not a SentencePiece model: the model at byte 0 has wire type 3, expected 0, 1, 2 or 5"},
      {std::string("\x02\x00", 2), "m: not a SentencePiece model: the model at byte 0 has field "
                                   "number 0, expected 1 to 536870911"},
      {smallModel(numberField(1, 7)), "m: not a SentencePiece model: the model at byte 32 has wire "
                                      "type 0 in field 1, expected a message"},
      {smallModel(bytesField(1, floatField(1, 0))),
       "m: not a SentencePiece model: a piece at byte 34 has wire type 5 in field 1, expected a "
       "string"},
      {smallModel(bytesField(1, bytesField(2, "x"))),
       "m: not a SentencePiece model: a piece at byte 34 has wire type 2 in field 2, expected a "
       "float"},
      {smallModel(piece("\xFF\xFE")),
       "m: not a SentencePiece model: a piece at byte 34 has '\\xFF\\xFE', expected valid UTF-8"},
      {smallModel(piece("")), "m: piece 2 is empty, expected some text"},
      {smallModel(piece("b", 9)), "m: piece 2 'b' has the type 9, expected 1 to 6"},
      {smallModel(nan), "m: piece 2 'x' has the score nan, expected a finite number"},
      {smallModel(piece("a")), "m: tokens 1 and 2 are both 'a'"},
      {smallModel(piece("<u>", 2)), "m: tokens 0 and 2 are both of type unknown, expected one"},
      {piece("a") + bytesField(2, numberField(3, 2)),
       "m: the unknown token is -1 and the token of that type -1, expected one and the same"},
      {smallModel(piece("xx", 6)), "m: byte token 2 is 'xx', expected <0x00> to <0xFF>"},
      {smallModel(bytesField(2, numberField(35, 1))),
       "m: there is no token <0x00>, expected one for each byte as byte_fallback is on"},
      {smallModel(bytesField(2, numberField(3, 3))),
       "m: model_type is 3 (WORD), expected 1 (UNIGRAM) or 2 (BPE)"},
      {smallModel(bytesField(2, numberField(3, 77))),
       "m: model_type is 77 (unknown), expected 1 (UNIGRAM) or 2 (BPE)"},
      {smallModel(bytesField(3, bytesField(2, "abc"))),
       "m: precompiled_charsmap of 3 bytes has a trie of 0 bytes, expected a multiple of 4 that "
       "leaves room for replacements"},
      {smallModel(bytesField(3, bytesField(2, std::string("\x04\x00\x00\x00"
                                                          "abcdxyz",
                                                          11)))),
       "m: the last replacement of precompiled_charsmap is not ended by a zero"},
      {smallModel(bytesField(5, bytesField(2, "abcd"))),
       "m: denormalizer_spec has a precompiled_charsmap of 4 bytes, expected none: it is not "
       "supported"},
  };
  for (const Case &c : cases)
    EXPECT_EQ(errorOf([&] { Tokenizer::fromSentencePiece(c.bytes, "m"); }), c.message);
}

/// A tokenizer.json that loads, with a merge patch on it.
std::string huggingFace(const char *patch = "{}") {
  json whole = json::parse(
      R"({"model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]},
      "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false}})");
  whole.merge_patch(json::parse(patch));
  return whole.dump();
}

TEST(CorruptHuggingFace, EachFaultIsNamed) {
  ASSERT_EQ(Tokenizer::fromJson(huggingFace(), "t").encode("ab", false), std::vector<int32_t>{2});
  struct Case {
    const char *patch, *message;
  };
  const Case cases[] = {
      {R"({"model": null})", "t: model is missing"},
      {R"({"model": 5})", "t: model is 5, expected an object"},
      {R"({"model": {"type": "WordPiece"}})",
       "t: model.type is 'WordPiece', expected BPE or Unigram"},
      {R"({"model": {"type": "Unigram", "vocab": []}})",
       "t: model.vocab is an array of 0 elements, expected at least one token"},
      {R"({"model": {"type": "Unigram", "vocab": [["a"]]}})",
       "t: model.vocab[0] is an array of 1 elements, expected a piece and its score"},
      {R"({"model": {"type": "Unigram", "vocab": [["a", "b"]]}})",
       "t: model.vocab[0][1] is 'b', expected a finite number"},
      {R"({"model": {"type": "Unigram", "vocab": [["a", 1e300]]}})",
       "t: model.vocab[0][1] is 1e+300, expected a finite number"},
      {R"({"model": {"type": "Unigram", "vocab": [["a", -1]]}})", "t: model.unk_id is missing"},
      {R"({"model": {"type": "Unigram", "vocab": [["a", -1]], "unk_id": 1}})",
       "t: model.unk_id is 1, expected an integer from 0 to 0"},
      {R"({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AB"}})",
       "t: normalizer.precompiled_charsmap is 'AB', expected base64"},
      {R"({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}})",
       "t: normalizer 0: precompiled_charsmap of 3 bytes has a trie of 0 bytes, expected a "
       "multiple of 4 that leaves room for replacements"},
      {R"({"model": {"vocab": ["a"]}})",
       "t: model.vocab is an array of 1 elements, expected an object"},
      {R"({"model": {"vocab": {"a": "0"}}})",
       "t: model.vocab['a'] is '0', expected an integer from 0 to 65548"},
      {R"({"model": {"vocab": {"a": 0.5}}})",
       "t: model.vocab['a'] is 0.5, expected an integer from 0 to 65548"},
      {R"({"model": {"vocab": {"a": -1}}})",
       "t: model.vocab['a'] is -1, expected an integer from 0 to 65548"},
      {R"({"model": {"vocab": {"a": 4000000000000000000}}})",
       "t: model.vocab['a'] is 4000000000000000000, expected an integer from 0 to 65548"},
      {R"({"model": {"vocab": {"a": 18446744073709551615}}})",
       "t: model.vocab['a'] is 18446744073709551615, expected an integer from 0 to 65548"},
      {R"({"model": {"vocab": {"a": 1}}})", "t: id 1 belongs to both 'a' and 'b'"},
      {R"({"model": {"vocab": {"": 7}}})", "t: token 7 is empty, expected some text"},
      {R"({"model": {"merges": 1}})", "t: model.merges is 1, expected an array"},
      {R"({"model": {"merges": ["ab"]}})",
       "t: model.merges[0] is 'ab', expected two tokens with a space between them"},
      {R"({"model": {"merges": ["a b b"]}})",
       "t: model.merges[0] is 'a b b', expected two tokens with a space between them"},
      {R"({"model": {"merges": [["a"]]}})",
       "t: model.merges[0] is an array of 1 elements, expected two tokens"},
      {R"({"model": {"merges": ["a c"]}})",
       "t: merge 0 has the token 'c', which is not in the vocabulary"},
      {R"({"model": {"merges": ["b a"]}})",
       "t: merge 0 makes 'ba', which is not in the vocabulary"},
      {R"({"model": {"unk_token": "?"}})",
       "t: model.unk_token is '?', expected a token of the vocabulary"},
      {R"({"model": {"byte_fallback": true}})",
       "t: there is no token <0x00>, expected one for each byte as byte_fallback is on"},
      {R"({"model": {"byte_fallback": "yes"}})",
       "t: model.byte_fallback is 'yes', expected true or false"},
      {R"({"model": {"dropout": 0.1}})",
       "t: model.dropout is 0.1, expected none: it makes ids random"},
      {R"({"model": {"end_of_word_suffix": "</w>"}})",
       "t: model.end_of_word_suffix is '</w>', expected none: it is not supported"},
      {R"({"added_tokens": {}})", "t: added_tokens is an object of 0 members, expected an array"},
      {R"({"added_tokens": [{"id": 3}]})", "t: added_tokens[0].content is missing"},
      {R"({"added_tokens": [{"id": 0, "content": "x"}]})", "t: id 0 belongs to both 'a' and 'x'"},
      {R"({"added_tokens": [{"id": 3, "content": "a"}]})", "t: tokens 0 and 3 are both 'a'"},
      {R"({"added_tokens": [{"id": 1000000, "content": "x"}]})",
       "t: token 'x' has the id 1000000, expected 0 to 65548"},
      {R"({"added_tokens": [{"id": 0, "content": "a"}, {"id": 0, "content": "a"}]})",
       "t: token 0 'a' is added twice"},
      {R"({"normalizer": {"type": "BertNormalizer"}})",
       "t: normalizer.type is 'BertNormalizer', expected Sequence, Prepend, Replace, Strip, "
       "Lowercase, StripAccents, Precompiled, Nmt, NFC, NFD, NFKC or NFKD"},
      {R"({"normalizer": {"type": "Replace", "pattern": {"String": ""}, "content": "x"}})",
       "t: normalizer 0: the pattern is empty"},
      {R"({"pre_tokenizer": {"type": "BertPreTokenizer"}})",
       "t: pre_tokenizer.type is 'BertPreTokenizer', expected Sequence, Split, ByteLevel, "
       "Metaspace, Digits, Punctuation, Whitespace, WhitespaceSplit or CharDelimiterSplit"},
      {R"({"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(a"}, "behavior": "Isolated"}})",
       "t: pre-tokenizer 0: the pattern '(a' is not a regular expression: missing closing "
       "parenthesis"},
      {R"({"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "[a&&b]"}, "behavior": "Isolated"}})",
       "t: pre-tokenizer 0: the pattern '[a&&b]' uses && in a class, which is not supported"},
      {R"({"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "[a[^b]]"}, "behavior": "Isolated"}})",
       "t: pre-tokenizer 0: the pattern '[a[^b]]' uses a class inside of a class that is not just "
       "more members, which is not supported"},
      {R"x({"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(?m:a.b)"},
    "behavior" : "Isolated"
  }
})x",
       "t: pre-tokenizer 0: the pattern '(?m:a.b)' uses an option other than (?i), which is not "
       "supported"},
      {R"({"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "a"}, "behavior": "Sideways"}})",
       "t: pre_tokenizer.behavior is 'Sideways', expected Isolated, Removed, MergedWithPrevious, "
       "MergedWithNext or Contiguous"},
      {R"({"pre_tokenizer": {"type": "Metaspace", "replacement": ""}})",
       "t: pre-tokenizer 0: the pattern is empty"},
      {R"({"decoder": {"type": "WordPiece"}})",
       "t: decoder.type is 'WordPiece', expected Sequence, ByteLevel, Replace, Metaspace, Strip, "
       "ByteFallback or Fuse"},
      {R"({"decoder": {"type": "Strip", "content": "x", "start": 1, "stop": 0}})",
       "t: decoder.content is 'x', expected ' '"},
      {R"({"post_processor": {"type": "BertProcessing"}})",
       "t: post_processor.type is 'BertProcessing', expected Sequence, TemplateProcessing or "
       "ByteLevel"},
      {R"({"post_processor": {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>"}}], "special_tokens": {}}})",
       "t: post_processor.special_tokens.<s> is missing"},
      {R"({"post_processor": {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>"}}], "special_tokens": {"<s>": {"ids": [3]}}}})",
       "t: post_processor.special_tokens.<s>.ids[0] is 3, expected an integer from 0 to 2"},
      {R"({"post_processor": {"type": "TemplateProcessing", "single": [{"Sequence": {"id": "A"}}, {"SpecialToken": {"id": "a"}},
           {"SpecialToken": {"id": "a"}}], "special_tokens": {"a": {"ids": [0]}}}})",
       "t: post_processor.single[2] is an object of 1 members, expected one token after the text"},
  };
  for (const Case &c : cases)
    EXPECT_EQ(errorOf([&] { Tokenizer::fromJson(huggingFace(c.patch), "t"); }), c.message)
        << c.patch;
}

TEST(CorruptJson, EachFaultIsNamed) {
  struct Case {
    std::string text, message;
  };
  const Case cases[] = {
      {"", "t: is empty, expected JSON"},
      {"{\"model\": ",
       "t: not valid JSON: parse error at line 1, column 11: syntax error while parsing "
       "value - unexpected end of input; expected '[', '{', or a literal"},
      {"[]", "t: is an array of 0 elements, expected an object"},
      {"{}", "t: model is missing"},
      {R"({"format": "other"})", "t: format is 'other', expected 'sluice-tokenizer'"},
      {R"({"format": "sluice-tokenizer"})", "t: version is missing"},
      {R"({"format": "sluice-tokenizer", "version": 2})",
       "t: version is 2, expected an integer from 1 to 1"},
      {R"({"format": "sluice-tokenizer", "version": 1, "kind": "wordpiece"})",
       "t: kind is 'wordpiece', expected one of sentencepiece-bpe, sentencepiece-unigram, bpe, "
       "unigram"},
  };
  for (const Case &c : cases)
    EXPECT_EQ(errorOf([&] { Tokenizer::fromJson(c.text, "t"); }), c.message);
  std::string message = errorOf([] { Tokenizer::fromJson("{\"a\": \"\xFF\n\"}", "t"); });
  EXPECT_TRUE(message.starts_with("t: not valid JSON: parse error at line 1, column 8: "))
      << message;
  EXPECT_EQ(message.find('\n'), std::string::npos);
  // Deep nesting must not run into the stack's end.
  EXPECT_EQ(errorOf([] { Tokenizer::fromJson(std::string(2'000'000, '['), "t"); }),
            "t: JSON is nested deeper than 32 levels");
  EXPECT_EQ(errorOf([] {
              Tokenizer::fromJson(std::string(200'000, '[') + std::string(200'000, ']'), "t");
            }),
            "t: JSON is nested deeper than 32 levels");
}

TEST(CorruptOwnForm, EachFaultIsNamed) {
  std::string bpe = Tokenizer::fromJson(huggingFace(), "t").toJson();
  std::string sentencePiece = Tokenizer::fromSentencePiece(smallModel(), "m").toJson();
  struct Case {
    const std::string &base;
    const char *patch, *message;
  };
  const Case cases[] = {
      {bpe, R"({"tokens": []})",
       "t: tokens is an array of 0 elements, expected at least one token"},
      {bpe, R"({"tokens": ["a", 5]})", "t: tokens[1] is 5, expected a string"},
      {bpe, R"({"tokens": ["a", "b", "a"]})", "t: tokens 0 and 2 are both 'a'"},
      {bpe, R"({"tokens": ["a", "b", ""]})", "t: token 2 is empty, expected some text"},
      {bpe, R"({"types": {"strange": [1]}})",
       "t: a key of types is 'strange', expected one of unknown, control, user_defined, unused, "
       "byte"},
      {bpe, R"({"types": {"control": [3]}})",
       "t: types.control[0] is 3, expected an integer from 0 to 2"},
      {bpe, R"({"merges": [[0]]})", "t: merges[0] is an array of 1 elements, expected two ids"},
      {bpe, R"({"merges": [[0, 3]]})", "t: merges[0][1] is 3, expected an integer from 0 to 2"},
      {bpe, R"({"merges": [[1, 1]]})", "t: merge 0 makes 'bb', which is not in the vocabulary"},
      {bpe, R"({"bos": 3})", "t: bos is 3, expected an integer from 0 to 2"},
      {bpe, R"({"eos": 1})", "t: eos is 1, expected an array"},
      {bpe, R"({"add_bos": null})", "t: add_bos is missing"},
      {bpe, R"({"added": [{"id": 0, "special": 1}]})",
       "t: added[0].special is 1, expected true or false"},
      {bpe, R"({"normalizers": [{"type": "upper"}]})",
       "t: normalizers[0].type is 'upper', expected one of prepend, replace, strip, lowercase, "
       "precompiled, nfc, nfd, "
       "nfkc, nfkd"},
      {bpe,
       R"({"pre_tokenizers": [{"type": "split", "regex": "+", "behavior": "isolated", "invert": false}]})",
       "t: pre-tokenizer 0: the pattern '+' is not a regular expression: quantifier does not "
       "follow a repeatable item"},
      {bpe, R"({"decoder": {"replace": [["", "x"]]}})",
       "t: decoder.replace[0] is an array of 2 elements, expected two strings, the first one not "
       "empty"},
      {sentencePiece, R"({"scores": [0]})",
       "t: scores is an array of 1 elements, expected one score for each of 2 tokens"},
      {sentencePiece, R"({"scores": [0, "1"]})", "t: scores[1] is '1', expected a finite number"},
      {sentencePiece, R"({"scores": [0, 1e300]})",
       "t: scores[1] is 1e+300, expected a finite number"},
      {sentencePiece, R"({"unknown": 1})",
       "t: the unknown token is 1 and the token of that type 0, expected one and the same"},
      {sentencePiece, R"({"unknown": null})",
       "t: the unknown token is -1 and the token of that type 0, expected one and the same"},
      {sentencePiece, R"({"charsmap": "A"})", "t: charsmap is 'A', expected base64"},
      {sentencePiece, R"({"charsmap": "A=BC"})", "t: charsmap is 'A=BC', expected base64"},
      {sentencePiece, R"({"charsmap": "AAAAAA=="})",
       "t: precompiled_charsmap of 4 bytes has a trie of 0 bytes, expected a multiple of 4 that "
       "leaves room for replacements"},
  };
  for (const Case &c : cases) {
    json whole = json::parse(c.base);
    whole.merge_patch(json::parse(c.patch));
    EXPECT_EQ(errorOf([&] { Tokenizer::fromJson(whole.dump(), "t"); }), c.message) << c.patch;
  }
}

TEST(CorruptGguf, EachFaultIsNamed) {
  struct Case {
    const char *fixture;
    void (*change)(GgufTokenizer &);
    const char *message;
  };
  const char *llama = "llama-4m.gguf.json", *gpt2 = "gpt2-4m.gguf.json";
  const Case cases[] = {
      {llama, [](auto &g) { g.model = "bert"; },
       "g: tokenizer.ggml.model is 'bert', expected 'llama', 'gpt2', 'gemma4' or 't5'"},
      {llama, [](auto &g) { g.model = "t5", g.charsmap = "abc"; },
       "g: precompiled_charsmap of 3 bytes has a trie of 0 bytes, expected a multiple of 4 that "
       "leaves room for replacements"},
      {gpt2, [](auto &g) { g.model = "gemma4", g.merges.clear(); },
       "g: tokenizer.ggml.merges is missing or empty, expected the merges of the tokenizer "
       "'gemma4'"},
      {llama, [](auto &g) { g.tokens.clear(); },
       "g: tokenizer.ggml.tokens has 0 tokens, expected at least one"},
      {llama, [](auto &g) { g.scores.pop_back(); },
       "g: tokenizer.ggml.scores has 2047 elements, expected one for each of 2048 tokens"},
      {llama, [](auto &g) { g.types.push_back(1); },
       "g: tokenizer.ggml.token_type has 2049 elements, expected one for each of 2048 tokens"},
      {llama, [](auto &g) { g.types[7] = 99; },
       "g: tokenizer.ggml.token_type of token 7 is 99, expected 0 to 6"},
      {llama, [](auto &g) { g.scores[9] = -__builtin_inff(); },
       "g: tokenizer.ggml.scores of token 9 is -inf, expected a finite number"},
      {llama, [](auto &g) { g.bosId = 2048; },
       "g: tokenizer.ggml.bos_token_id is 2048, expected 0 to 2047"},
      {llama, [](auto &g) { g.eosIds = {-1}; },
       "g: tokenizer.ggml.eos_token_id is -1, expected 0 to 2047"},
      {llama, [](auto &g) { g.tokens[300] = g.tokens[301]; }, "g: tokens 300 and 301 are both"},
      {llama, [](auto &g) { g.tokens[300] = "\xC3"; },
       "g: token 300 is '\\xC3', expected valid UTF-8"},
      {llama, [](auto &g) { g.tokens[5] = "x!"; },
       "g: byte token 5 is 'x!', expected <0x00> to <0xFF>"},
      {llama, [](auto &g) { g.types[5] = 1; },
       "g: there is no token <0x02>, expected one for each byte as byte_fallback is on"},
      {gpt2, [](auto &g) { g.merges.clear(); },
       "g: tokenizer.ggml.merges is missing or empty, expected the merges of the tokenizer 'gpt2'"},
      {gpt2, [](auto &g) { g.pre = "elvish"; },
       "g: tokenizer.ggml.pre is 'elvish', expected one of default gpt-2 "},
      {gpt2, [](auto &g) { g.merges[3] = "abc"; },
       "g: tokenizer.ggml.merges[3] is 'abc', expected two tokens with a space between them"},
      {gpt2, [](auto &g) { g.merges[3] = "zq zq"; },
       "g: merge 3 has the token 'zq', which is not in the vocabulary"},
      {gpt2, [](auto &g) { g.merges[3] = "z z"; },
       "g: merge 3 makes 'zz', which is not in the vocabulary"},
  };
  for (const Case &c : cases) {
    GgufTokenizer gguf = readGgufFixture(c.fixture);
    c.change(gguf);
    std::string message = errorOf([&] { Tokenizer::fromGguf(gguf, "g"); });
    EXPECT_EQ(message.substr(0, std::string(c.message).size()), c.message);
    EXPECT_EQ(message.find('\n'), std::string::npos);
  }
}

TEST(CorruptFiles, EachFaultIsNamed) {
  TemporaryFolder folder;
  std::string at = folder.path.string();
  auto load = [&](const std::string &name) {
    return errorOf([&] { Tokenizer::fromFile(folder.path / name); });
  };
  EXPECT_EQ(load("nothing"), at + "/nothing: cannot be opened: No such file or directory");
  EXPECT_EQ(errorOf([&] { Tokenizer::fromFile(folder.path); }),
            at + ": has neither tokenizer.json nor tokenizer.model");
  folder.write("model.gguf", "GGUF\x03");
  EXPECT_EQ(load("model.gguf"), at + "/model.gguf: is a GGUF file, expected a tokenizer");
  folder.write("empty.json", "");
  EXPECT_EQ(load("empty.json"), at + "/empty.json: is empty, expected JSON");
  folder.write("empty", "");
  EXPECT_EQ(load("empty"), at + "/empty: not a SentencePiece model: it has no pieces");

  folder.write("tokenizer.json", huggingFace());
  auto reload = [&](const std::string &name, const std::string &bytes) {
    folder.write(name, bytes);
    std::string message = errorOf([&] { Tokenizer::fromFile(folder.path); });
    std::filesystem::remove(folder.path / name);
    return message;
  };
  EXPECT_EQ(reload("config.json", R"({"eos_token_id": 3})"),
            at + "/config.json: eos_token_id is 3, expected an integer from 0 to 2");
  EXPECT_EQ(reload("config.json", R"({"eos_token_id": ["</s>"]})"),
            at + "/config.json: eos_token_id[0] is '</s>', expected an integer from 0 to 2");
  EXPECT_EQ(reload("generation_config.json", "[1]"),
            at + "/generation_config.json: is an array of 1 elements, expected an object");
  EXPECT_TRUE(reload("generation_config.json", "{")
                  .starts_with(at + "/generation_config.json: not valid JSON: "));
  EXPECT_EQ(reload("tokenizer_config.json", R"({"bos_token": "<s>"})"),
            at + "/tokenizer_config.json: bos_token is '<s>', expected a token of the vocabulary");
  EXPECT_EQ(reload("tokenizer_config.json", R"({"add_bos_token": 1})"),
            at + "/tokenizer_config.json: add_bos_token is 1, expected true or false");
  std::filesystem::remove(folder.path / "tokenizer.json");
  folder.write("tokenizer.model", smallModel());
  EXPECT_EQ(reload("added_tokens.json", R"({"x": 70000})"),
            at + "/added_tokens.json: token 'x' has the id 70000, expected 0 to 65544");
  EXPECT_EQ(reload("tokenizer_config.json", R"({"added_tokens_decoder": {"x": {"content": "y"}}})"),
            at + "/tokenizer_config.json: added_tokens_decoder['x'] is an object of 1 members, "
                 "expected an id as its key");
  folder.write("tokenizer.json", huggingFace());
  EXPECT_EQ(reload("tokenizer_config.json", R"({"added_tokens_decoder": {"1": {"content": "y"}}})"),
            at + "/tokenizer_config.json: id 1 belongs to both 'b' and 'y'");
  EXPECT_EQ(reload("tokenizer_config.json", R"({"added_tokens_decoder": {"9": {}}})"),
            at + "/tokenizer_config.json: added_tokens_decoder['9'].content is missing");
  EXPECT_EQ(reload("tokenizer_config.json", R"({"additional_special_tokens": [5]})"),
            at + "/tokenizer_config.json: additional_special_tokens[0] is 5, expected a string");
}

TEST(CorruptFiles, AnythingEitherLoadsAndWorksOrIsOneError) {
  uint32_t state = 7;
  auto next = [&](size_t n) { return (state = state * 1664525 + 1013904223) / 16 % n; };
  auto attempt = [&](const std::string &bytes, bool isJson) {
    try {
      Tokenizer tokenizer =
          isJson ? Tokenizer::fromJson(bytes, "x") : Tokenizer::fromSentencePiece(bytes, "x");
      std::vector<int32_t> ids =
          tokenizer.encode("The quick\tbrown \xE4\xBD\xA0\xFF fox, \xEF\xAC\x81x", true, true);
      tokenizer.decode(ids);
      Tokenizer::fromJson(tokenizer.toJson(), "y");
      return true;
    } catch (const Error &e) {
      std::string message = e.what();
      EXPECT_TRUE(message.starts_with("x: ")) << message;
      EXPECT_EQ(message.find('\n'), std::string::npos) << message;
      EXPECT_LT(message.size(), 400u) << message;
      return false;
    }
  };
  int loaded = 0, refused = 0;
  std::string model = readAll(dataPath("sp-rules.model"));
  std::pair<std::string, bool> inputs[] = {
      {model, false},
      {readAll(dataPath("sp-unigram-bytes.model")), false},
      {Tokenizer::fromSentencePiece(model, "x").toJson(), true},
      {readAll(dataPath("hf-unigram/tokenizer.json")), true},
      {readAll(dataPath("hf-llama/tokenizer.json")), true}};
  for (const auto &[original, isJson] : inputs) {
    for (int round = 0; round < 120; ++round) {
      std::string bytes = original;
      if (round % 4 == 0)
        bytes.resize(next(bytes.size()));
      else
        for (size_t flips = 1 + next(3); flips > 0; --flips)
          bytes[next(bytes.size())] ^= static_cast<char>(1 << next(8));
      ++(attempt(bytes, isJson) ? loaded : refused);
    }
    // Also where the structure is: the first bytes, and the character map at the model's end.
    for (size_t i = 0; i < 40; ++i) {
      std::string bytes = original;
      bytes[i] ^= static_cast<char>(0x80 >> next(8));
      ++(attempt(bytes, isJson) ? loaded : refused);
      bytes = original;
      bytes[bytes.size() - 1 - next(1100)] ^= static_cast<char>(1 << next(8));
      ++(attempt(bytes, isJson) ? loaded : refused);
    }
  }
  EXPECT_GT(loaded, 50);
  EXPECT_GT(refused, 100);
}

TEST(RegexLimits, AnExplodingPatternIsAnErrorAndNoHang) {
  Tokenizer tokenizer = Tokenizer::fromJson(
      huggingFace(
          R"({"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(a|aa|b?a)+c"}, "behavior": "Isolated"}})"),
      "t");
  std::string message = errorOf([&] { tokenizer.encode(std::string(200, 'a') + "!c", false); });
  EXPECT_EQ(message, "t: pre-tokenizer 0: the pattern '(a|aa|b?a)+c' gave up at byte 0 of 202 of a "
                     "text: match limit exceeded");
}

TEST(RegexLimits, EmptyMatchesAreNoSplits) {
  Tokenizer tokenizer = Tokenizer::fromJson(
      huggingFace(
          R"({"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "x*"}, "behavior": "Isolated"}})"),
      "t");
  EXPECT_EQ(tokenizer.encode("ab", false), (std::vector<int32_t>{2}));
}

} // namespace
