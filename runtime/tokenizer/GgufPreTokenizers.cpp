// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Which names there are, and which models have them, is defined by llama.cpp (src/llama-vocab.cpp).
// The patterns are those of the models' own tokenizer.json (or of their Python code), which
// llama.cpp's are rewritten from for an engine with fewer features.

#include "GgufPreTokenizers.h"

#include "Data.h"
#include "Utf8.h"

#include <algorithm>

namespace sluice::runtime::tokenizer {

// llama.cpp writes (?:'[sS]|'[tT]|...) for (?i:'s|'t|...): the former does not take U+017F for s.
#define CONTRACTIONS "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
#define SPACES "\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
#define SYMBOLS " ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|"
#define WORDS "[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|"
#define LLAMA3 CONTRACTIONS "|" WORDS "\\p{N}{1,3}|" SYMBOLS SPACES
#define QWEN2 CONTRACTIONS "|" WORDS "\\p{N}|" SYMBOLS SPACES

// GPT-4o's words: capitals are followed by small letters. LETTER ends each class of letters.
#define CASED(LETTER)                                                                              \
  "[^\\r\\n\\p{L}\\p{N}]?" LETTER("\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}") "*" LETTER(                \
      "\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}") "+"
#define CAPITALS(LETTER)                                                                           \
  "[^\\r\\n\\p{L}\\p{N}]?" LETTER("\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}") "+" LETTER(                \
      "\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}") "*"
#define ANY(CLASS) "[" CLASS "]"
#define NOT_HAN(CLASS) "(?:(?!\\p{Han})[" CLASS "])"
#define GPT4O_WORDS(LETTER) CASED(LETTER) CONTRACTIONS "?|" CAPITALS(LETTER) CONTRACTIONS "?|"
#define GPT4O_SYMBOLS " ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|"
#define GPT4O GPT4O_WORDS(ANY) "\\p{N}{1,3}|" GPT4O_SYMBOLS SPACES

#define CJK "\\x{4E00}-\\x{9FA5}"
#define KANA "\\x{3040}-\\x{309F}\\x{30A0}-\\x{30FF}"
// DeepSeek's and others': U+9FA5 ends CJK, and Samaritan to CJK and Hangul are one range each.
#define EASTERN "[" CJK "\\x{800}-\\x{4E00}\\x{AC00}-\\x{D7FF}]+"
#define DEEPSEEK3_WORDS                                                                            \
  "[!\"#$%&'()*+,\\-./"                                                                            \
  ":;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\\r\\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+|"

// The cased letters of the Unicode version that DeepSeek LLM's tokenizer was made with.
#define DEEPSEEK_LETTERS                                                                           \
  "A-Za-z\\x{B5}\\x{C0}-\\x{D6}\\x{D8}-\\x{F6}\\x{F8}-\\x{1BA}\\x{1BC}-\\x{1BF}"                   \
  "\\x{1C4}-\\x{293}\\x{295}-\\x{2AF}\\x{370}-\\x{373}\\x{376}\\x{377}\\x{37B}-\\x{37D}"           \
  "\\x{37F}\\x{386}\\x{388}-\\x{38A}\\x{38C}\\x{38E}-\\x{3A1}\\x{3A3}-\\x{3F5}"                    \
  "\\x{3F7}-\\x{481}\\x{48A}-\\x{52F}\\x{531}-\\x{556}\\x{10A0}-\\x{10C5}"                         \
  "\\x{13A0}-\\x{13F5}\\x{13F8}-\\x{13FD}\\x{1C90}-\\x{1CBA}\\x{1CBD}-\\x{1CBF}"                   \
  "\\x{1D00}-\\x{1D2B}\\x{1D6B}-\\x{1D77}\\x{1D79}-\\x{1D9A}\\x{1E00}-\\x{1F15}"                   \
  "\\x{1F18}-\\x{1F1D}\\x{1F20}-\\x{1F45}\\x{1F48}-\\x{1F4D}\\x{1F50}-\\x{1F57}\\x{1F59}"          \
  "\\x{1F5B}\\x{1F5D}\\x{1F5F}-\\x{1F7D}\\x{1F80}-\\x{1FB4}\\x{1FB6}-\\x{1FBC}\\x{1FBE}"           \
  "\\x{1FC2}-\\x{1FC4}\\x{1FC6}-\\x{1FCC}\\x{1FD0}-\\x{1FD3}\\x{1FD6}-\\x{1FDB}"                   \
  "\\x{1FE0}-\\x{1FEC}\\x{1FF2}-\\x{1FF4}\\x{1FF6}-\\x{1FFC}\\x{2102}\\x{2107}"                    \
  "\\x{210A}-\\x{2113}\\x{2115}\\x{2119}-\\x{211D}\\x{2124}\\x{2126}\\x{2128}"                     \
  "\\x{212A}-\\x{212D}\\x{212F}-\\x{2134}\\x{2139}\\x{213C}-\\x{213F}\\x{2145}-\\x{2149}"          \
  "\\x{214E}\\x{2183}\\x{2184}\\x{2C00}-\\x{2C7B}\\x{2C7E}-\\x{2CE4}\\x{2CEB}-\\x{2CEE}"           \
  "\\x{2CF2}\\x{2CF3}\\x{A640}-\\x{A66D}\\x{A680}-\\x{A69B}\\x{A722}-\\x{A76F}"                    \
  "\\x{A771}-\\x{A787}\\x{A78B}-\\x{A78E}\\x{AB70}-\\x{ABBF}\\x{FB00}-\\x{FB06}"                   \
  "\\x{FB13}-\\x{FB17}\\x{FF21}-\\x{FF3A}\\x{FF41}-\\x{FF5A}\\x{10400}-\\x{1044F}"                 \
  "\\x{104B0}-\\x{104D3}\\x{104D8}-\\x{104FB}\\x{10C80}-\\x{10CB2}\\x{10CC0}-\\x{10CF2}"           \
  "\\x{118A0}-\\x{118DF}\\x{1E900}-\\x{1E943}"

// In the class, ( | and ) are themselves, and what was meant as a group is none.
#define BLOOM " ?[^(\\s|.,!?\\x{2026}\\x{3002}\\x{FF0C}\\x{3001}\\x{964}\\x{6D4}\\x{60C})]+"

static constexpr GgufPreTokenizer all[] = {
    {"default", {"[\\p{P}\\$\\+<=>\\^~\\|]+", gpt2Pattern, "\\p{N}+", "[0-9][0-9][0-9]"}},
    {"gpt-2 phi-2 jina-es jina-de gigachat jina-v2-es jina-v2-de a.x-4.0 mellum modern-bert mpt "
     "olmo jais exaone4 trillion granite-docling",
     {gpt2Pattern}},
    {"llama3 llama-v3 llama-bpe falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano",
     {LLAMA3},
     true,
     true},
    {"dbrx smaug-bpe glm4 chatglm-bpe", {LLAMA3}},
    {"qwen2 deepseek-r1-qwen kormo f2llmv2 stablelm2 megrez hunyuan solar-open grok-2", {QWEN2}},
    {"qwen35",
     {CONTRACTIONS "|[^\\r\\n\\p{L}\\p{N}]?[\\p{L}\\p{M}]+|\\p{N}|"
                   " ?[^\\s\\p{L}\\p{M}\\p{N}]+[\\r\\n]*|" SPACES}},
    {"starcoder refact command-r smollm codeshell exaone minerva-7b mellum2",
     {"\\p{N}", gpt2Pattern}},
    {"falcon", {"[\\p{P}\\$\\+<=>\\^~\\|`]+", gpt2Pattern, "[0-9][0-9][0-9]"}},
    {"deepseek-llm",
     {"[\\r\\n]", "\\s?[" DEEPSEEK_LETTERS "]+",
      "\\s?[!-/:-~\\x{FF01}-\\x{FF0F}\\x{FF1A}-\\x{FF5E}\\x{2018}-\\x{201F}\\x{3000}-\\x{3002}]+",
      "\\s+$", EASTERN, "\\p{N}+"}},
    {"deepseek-coder", {"[\\r\\n]", "\\s?\\p{L}+", "\\s?\\p{P}+", EASTERN, "\\p{N}"}},
    {"deepseek-v3 hunyuan-dense joyai-llm hy_v4",
     {"\\p{N}{1,3}", "[" CJK KANA "]+", DEEPSEEK3_WORDS " ?[\\p{P}\\p{S}]+[\\r\\n]*|" SPACES}},
    {"spark2_5",
     {"\\p{N}{1,3}", "[" CJK KANA "]+",
      DEEPSEEK3_WORDS " ?[\\p{P}\\p{S}]+|[\\r\\n]|\\s+(?!\\S)|\\s+", "\\p{N}"}},
    {"youtu",
     {"[\\x{AC00}-\\x{D7A3}\\x{3131}-\\x{318E}]+|"
      "[\\x{FF01}\\x{2026}\\x{201C}\\x{201D}\\x{2018}\\x{2019}\\x{2014}\\x{FF1A}\\x{FF1B}\\x{FF0C}"
      "\\x{3001}-\\x{303F}\\x{FE30}-\\x{FE4F}]+|[\\x{3105}-\\x{312F}]+|[" CJK KANA "]+",
      GPT4O_WORDS(ANY) "\\p{N}|" GPT4O_SYMBOLS SPACES},
     true},
    {"gpt-4o llama4 kanana2 talkie minimax-m2", {GPT4O}},
    {"tiny_aya cohere2moe", {"\\d{1,3}(?=(?:\\d{3})*\\b)", GPT4O}},
    {"tekken", {CASED(ANY) "|" CAPITALS(ANY) "|\\p{N}|" GPT4O_SYMBOLS SPACES}, true, true},
    {"kimi-k2", {"\\p{Han}+|" GPT4O_WORDS(NOT_HAN) "\\p{N}{1,3}|" SYMBOLS SPACES}},
    {"poro-chat bloom gpt3-finnish", {BLOOM}},
    {"viking", {BLOOM, "\\p{N}"}},
    {"jais-2",
     {CONTRACTIONS "|" WORDS "\\p{N}{1,3}|" SYMBOLS
                   "\\s*[\\r\\n]+|\\s{512}(?!\\S)|\\s{256}(?!\\S)|\\s{128}(?!\\S)|\\s{64}(?!\\S)|"
                   "\\s{32}(?!\\S)|\\s{16}(?!\\S)|\\s{8}(?!\\S)|\\s{4}(?!\\S)|\\s{1,2}(?!\\S)|"
                   "\\s{1}"}},
    {"bailingmoe bailingmoe2 llada-moe",
     {"'(?i:[sdmt]|ll|ve|re)|[^\\r\\n\\p{L}\\p{N}]?+\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]++[\\r\\n]*|"
      "\\s*[\\r\\n]|\\s+(?!\\S)|\\s+"}},
    {"seed-coder", {CONTRACTIONS "|" WORDS "\\p{N}{1}| ?[^\\s\\p{L}\\p{N}\\r\\n]+|" SPACES}},
    {"ufakzeka", {WORDS "\\p{N}|" SYMBOLS SPACES}},
    {"exaone-moe",
     {CONTRACTIONS "|[^\\r\\n\\p{L}\\p{N}]?(?:\\p{L}\\p{M}*(?: \\p{L}\\p{M}*)*)+|\\p{N}|"
                   " ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]?|\\s*[\\r\\n]|\\s+(?!\\S)|\\s+"}},
    {"minicpm5", {"\\p{N}{1,3}", CONTRACTIONS "|" WORDS "\\p{N}+|" SYMBOLS SPACES}, true},
    {"laguna", {"[^\\n]+|[\\n]+", QWEN2}},
    {"chameleon",
     {"<sentinel:[0-9]+>", "(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z", "([\\t\\n]|    |  )", "\\p{N}",
      "[\\p{P}!-/:-@\\[-`{-~]", gpt2Pattern},
     false,
     true},
    {"gemma4", {"[^\\n]+|[\\n]+"}, false, false, true},
};

static bool hasName(std::string_view names, std::string_view name) {
  while (!names.empty()) {
    size_t end = std::min(names.find(' '), names.size());
    if (names.substr(0, end) == name)
      return true;
    names.remove_prefix(std::min(end + 1, names.size()));
  }
  return false;
}

const GgufPreTokenizer &findGgufPreTokenizer(const std::string &name, const std::string &file) {
  std::string_view wanted = name.empty() ? std::string_view("default") : std::string_view(name);
  std::string names;
  for (const GgufPreTokenizer &pre : all) {
    if (hasName(pre.names, wanted))
      return pre;
    names.append(names.empty() ? "" : " ").append(pre.names);
  }
  throw Error(file + ": tokenizer.ggml.pre is " + quote(name) + ", expected one of " + names);
}

} // namespace sluice::runtime::tokenizer
