#!/usr/bin/env python3
# Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""Writes pre-tokenizers.json: where the tokenizers library cuts texts, for each name of a GGUF file's tokenizer.ggml.pre.

Run by hand when a name is added; needs the Python package tokenizers. The steps are those of the models' tokenizer.json
(of kimi-k2 its Python code); those of "default" and "falcon" llama.cpp's. "cuts" are the lengths of the words in bytes.
"""

import json
import pathlib

import tokenizers
from tokenizers import Regex, pre_tokenizers

here = pathlib.Path(__file__).parent

TEXTS = [
    "Alice was beginning to get very tired of sitting by her sister on the bank.",
    "  two  spaces   and three ",
    "don't I'm WE'LL they'Re it's 'tis 'S 'LL x'\u017f x'\u212a SHE'D we'VE",
    "line\nline\r\nline\n\n\nline \n tab\ttab\t\tend\t\n  \n",
    "1 12 123 1234 12345678 3.14159 1,000,000 \uff11\uff12\uff13\uff14 \u00b2\u00bd\u00be\u00b9 \u0663\u0664\u0665\u0666 \u2167 4e5x 77\u0301",
    "na\u00efve caf\u00e9 cafe\u0301 A\u030angstr\u00f6m \ufb01x \u00aa\u00ba \u01bb\u01c0 \u02b0\u0294 \u10d0\u1c90 \u2d00 \u00b5\u2126\u212a\u1f5f\u1f7d\u1fbe\u1fd3",
    "\u4f60\u597d\uff0c\u4e16\u754c\u3002\u300c\u5f15\u300d \u65e5\u672c\u8a9e\u3067\u3059\u30ab\u30bf\u30ab\u30ca\uff76\uff85 \ud55c\uad6d\uc5b4 \u1112\u1161\u11ab\u3131 \u3105\u3106 \u9fa5\u9fa6\u3400\U00020000\u3005\u3007",
    "\u043f\u0440\u0438\u0432\u0435\u0442 \u043c\u0438\u0440 \u05e9\u05b8\u05dc\u05d5\u05b9\u05dd \u0645\u064e\u0631\u062d\u0628\u0627\u060c \u0928\u092e\u0938\u094d\u0924\u0947\u0964 \u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35 \u0785\u07a6",
    "\U0001f600 \U0001f44d\U0001f3fd \U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f1e9\U0001f1ea\ufe0f\u20e3 a\U0001f600b",
    "a\u00a0b\u1680c\u180ed\u2003e\u2028f\u3000g\u0085h\ufeffi\u200bj \u00a0\u3000 x",
    "\x00\x01\x1b[0m\x7f\x1c\x1d\x0b\x0c \x0b\x0c\n",
    "if (x >= 10) { return a[i++] != '\\0'; } // => done!!! /path/to/file.cpp\n/* $5 + \u20ac6 = ~`x|^_` <a@b.c> */\n",
    "XMLHttpRequest iPhone getUserName \u01c5x \u00c9COLE \u00e9Cole O'Neill 4You \u4e2dABCdef\u6587",
    "\u2018a\u2019 \u201cb\u201d \u2014c\u2026 \uff01\uff1a\uff1b\uff1f\uff5e \ufe30\ufe4f \u300a\u300b \u00ab\u00bb \u2026\u2026",
    "                                                                   x" + " " * 37,
    "<sentinel:12> IMGIMGABCZ <s>hello</s><|im_end|> \ufffd \ue000 \U000e0041 \U0010fffd \u0378",
    "a b c de \u0e01\u0e49 \u0e02 f  g h\n", "abc!\n\n def?/\n\nghi\r\n\r\n", "#include\n\n\n    int  x\t= 0;\n\t\treturn;",
]

CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
LLAMA3 = CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2 = LLAMA3.replace("{1,3}", "")
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
UPPER, LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"


def words(end, less=""):
    return rf"[^\r\n\p{{L}}\p{{N}}]?[{UPPER}{less}]*[{LOWER}{less}]+{end}|[^\r\n\p{{L}}\p{{N}}]?[{UPPER}{less}]+[{LOWER}{less}]*{end}|"


GPT4O = words(CONTRACTIONS + "?") + r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# Without U+017F, which (?i:'s) takes, too; llama.cpp's names mean the letters that are written.
PLAIN = "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
# The cased letters as the models' file has them; some are written as their numbers since editors normalize them.
CASED = (
    "A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-\u1f7dᾀ-ᾴᾶ-ᾼ\u1fbeῂ-ῄῆ-ῌῐ-\u1fd3ῖ-\u1fdbῠ-Ῥῲ-ῴῶ-ῼ"
    "ℂℇℊ-ℓℕℙ-ℝℤ\u2126ℨ\u212a-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃"
)
EASTERN = "[一-龥ࠀ-一가-\ud7ff]+"
DEEPSEEK3 = r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
BLOOM = " ?[^(\\s|[.,!?…。，、।۔،])]+"
HAN = r"&&[^\p{Han}]"

STEPS = {
    "default": [r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"],
    "gpt-2": [GPT2],
    "llama-bpe": [LLAMA3],
    "dbrx": [LLAMA3],
    "qwen2": [QWEN2],
    "stablelm2": [QWEN2],
    "qwen35": [CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"],
    "smollm": ["digits", GPT2],
    "starcoder": ["digits", GPT2],
    "refact": ["digits", GPT2],
    "falcon": [r"[\p{P}\$\+<=>\^~\|`]+", GPT2, "[0-9][0-9][0-9]"],
    "deepseek-llm": [r"[\r\n]", rf"\s?[{CASED}]+", r"\s?[!-/:-~！-／：-～‘-‟\u3000-。]+", r"\s+$", EASTERN, r"\p{N}+"],
    "deepseek-coder": [r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", EASTERN, "digits"],
    "deepseek-v3": [r"\p{N}{1,3}", "[一-龥\u3040-ゟ゠-ヿ]+", DEEPSEEK3],
    "spark2_5": [r"\p{N}{1,3}", "[一-龥\u3040-ゟ゠-ヿ]+", DEEPSEEK3.replace(r"+[\r\n]*|\s*[\r\n]+|", r"+|[\r\n]|"), r"\p{N}"],
    "youtu": ["[가-힣ㄱ-ㆎ]+|[！…“”‘’—：；，、-〿︰-﹏]+|[ㄅ-ㄯ]+|[一-龥\u3040-ゟ゠-ヿ]+", GPT4O.replace("{1,3}", "")],
    "gpt-4o": [GPT4O],
    "tiny_aya": [r"\d{1,3}(?=(?:\d{3})*\b)", GPT4O],
    "tekken": [words("") + r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"],
    "kimi-k2": [r"[\p{Han}]+|" + words(CONTRACTIONS + "?", HAN) + r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"],
    "bloom": [BLOOM],
    "viking": [BLOOM, "digits"],
    "jais-2": [LLAMA3.replace(r"\s+(?!\S)|\s+", "|".join(rf"\s{{{n}}}(?!\S)" for n in (512, 256, 128, 64, 32, 16, 8, 4)) + r"|\s{1,2}(?!\S)|\s{1}")],
    "bailingmoe": [r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"],
    "seed-coder": [CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+"],
    "ufakzeka": [QWEN2[len(CONTRACTIONS) + 1 :]],
    "exaone-moe": [CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+"],
    "minicpm5": [r"\p{N}{1,3}", LLAMA3.replace("{1,3}", "+")],
    "laguna": [r"[^\n]+|[\n]+", QWEN2],
    "chameleon": ["<sentinel:[0-9]+>", "(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z", r"([\t\n]|    |  )", "digits", "punctuation", GPT2],
}

NAMED = {"digits": pre_tokenizers.Digits(individual_digits=True), "punctuation": pre_tokenizers.Punctuation()}

names = []
for name, patterns in STEPS.items():
    steps = [NAMED.get(p) or pre_tokenizers.Split(Regex(p.replace(CONTRACTIONS, PLAIN)), "isolated") for p in patterns]
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
    library = pre_tokenizers.Sequence(steps)
    names.append((name, [[len(word) for word, _ in library.pre_tokenize_str(text)] for text in TEXTS]))

with open(here / "pre-tokenizers.json", "w", encoding="utf-8") as out:
    out.write('{"made_by": "tokenizers %s",\n"texts": %s,\n"names": [\n' % (tokenizers.__version__, json.dumps(TEXTS)))
    out.write(",\n".join(json.dumps({"pre": n, "cuts": c}, separators=(",", ":")) for n, c in names) + "]}\n")
