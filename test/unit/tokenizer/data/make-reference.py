#!/usr/bin/env python3
# Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""Writes reference.json: what the SentencePiece, tokenizers and transformers libraries make of some texts.

Run by hand when a case is added; needs the Python packages sentencepiece, tokenizers, transformers and
protobuf. A case of a tokenizer.json is that file with a JSON merge patch (RFC 7386) on it, so that one
vocabulary serves for many configurations. "sets" hold what a file alone gives, "folders" what it gives
beside a tokenizer_config.json; "whole" are then the ids with what stands before and after a text.
"""

import json
import pathlib
import random
import shutil
import tempfile

import sentencepiece
import tokenizers
import transformers

here = pathlib.Path(__file__).parent
models = here / "../../../../models"

TEXTS = [
    "",
    " ",
    "   ",
    "\n",
    "Alice was beginning to get very tired of sitting by her sister on the bank.",
    "  two  spaces   and three ",
    "don't I'm WE'LL they'Re it's 'tis 'S 'LL x'\u017f",
    "line\nline\r\nline\n\n\nline \n tab\ttab\t\tend\t",
    "1 12 123 1234 12345678 3.14159 1,000,000 \uff11\uff12\uff13 \u00b2\u00bd \u0663\u0664",
    "na\u00efve caf\u00e9 cafe\u0301 A\u030angstr\u00f6m \ufb01x \ufb01ne \ufb02y \u2460 \u33cf",
    "\u4f60\u597d\uff0c\u4e16\u754c\u3002 \u65e5\u672c\u8a9e \ud55c\uad6d\uc5b4 \u1112\u1161\u11ab",
    "\u043f\u0440\u0438\u0432\u0435\u0442 \u043c\u0438\u0440 \u05e9\u05dc\u05d5\u05dd \u0645\u0631\u062d\u0628\u0627 \u0928\u092e\u0938\u094d\u0924\u0947 \u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35",
    "\U0001f600 \U0001f44d\U0001f3fd \U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f1e9\U0001f1ea\ufe0f",
    "a\u00a0b\u1680c\u180ed\u2003e\u2028f\u3000g\u0085h\ufeffi\u200bj",
    "\x00\x01\x1b[0m\x7f\x1c\x1d\x0b\x0c",
    "if (x >= 10) { return a[i++] != '\\0'; } // => done!!!",
    "<s>hello</s> <unk> <|endoftext|>x<|im_start|>user\n<|im_end|> <0x41> <ctl> [INST]",
    "\u2581the \u2581\u2581zz foo bar foo barfoo bar <sep><sep> thethe",
    "\ufffd \u2047 \u2026 \U0010fffd \U000e0041",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "                                                  x" + " " * 30,
    "<l> a  <l>b<r>  c <lr>  d <n>\u65e5\u672c word sword words word's xqz xq xqzz",
]
CHAT = [
    "<|user|>\n Hi <|end|>  \n<|user|>x</s>  y", "<start_of_turn>user\n\n  a    b<end_of_turn>\n<unused0> \n\n\n\n\n\n c", "a <mask> b<mask>  c word",
    " \n  \n\t x" + " " * 19 + "y <table></h1> \u0130\u03a3\u03a3 \u1e9e\u01c5 12345", "foo bar<sep>foofoo bar  foo", "\U0001d400\u0130z\u0301 \ufb01\u0301 e\u0301\u0327 \u1100\u1161\u11a8 \r\n x",
]
BYTES = [
    b"\xff",
    b"abc\xff\xfedef",
    b"\xe2\x82",
    b"caf\xc3",
    b"\xc3\x28 \xed\xa0\x80 \xf0\x9f\x98 \xf8\x88",
    b"\x80\xe4\xbd\xa0\xbd ok",
]


def fuzz(seed, count):
    rnd = random.Random(seed)
    corpus = (here / "alice-opening.txt").read_text()
    parts = ["'s", "'ll", " ", "  ", "\n", "\r\n", "\t", "12", "\u00bd", "the", "\u00e9", "e\u0301",
             "\u2581", "\ufb01", "<s>", "<|im_end|>", "==", "\u4f60", "\U0001f600", "\u3000", "word"]
    for _ in range(count):
        text = ""
        for _ in range(rnd.randrange(2, 14)):
            if rnd.random() < 0.6:
                text += rnd.choice(parts)
            else:
                at = rnd.randrange(len(corpus))
                text += corpus[at : at + rnd.randrange(1, 15)]
        yield text


def byte_level(*steps, regex=False):
    last = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": regex}
    return {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [*steps, last]}}


def split(pattern, behavior="Isolated", invert=False, kind="Regex"):
    return {"type": "Split", "pattern": {kind: pattern}, "behavior": behavior, "invert": invert}


LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
GPT4O = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def added():
    flags = ["single_word", "lstrip", "rstrip", "normalized", "special"]
    rows = [("<|endoftext|>", ["special"]), ("<|im_start|>", ["special"]), ("<|im_end|>", ["special"])]
    tokens = [(i, *row) for i, row in enumerate(rows)]
    extra = [("<l>", ["lstrip"]), ("<r>", ["rstrip"]), ("<lr>", ["lstrip", "rstrip", "special"]),
             ("word", ["single_word"]), ("<n>", ["normalized"]), ("\u65e5\u672c", ["normalized"]),
             ("xq", []), ("xqz", ["special"])]
    tokens += [(2048 + i, *row) for i, row in enumerate(extra)]
    return {"added_tokens": [{"id": i, "content": c, **{f: f in on for f in flags}} for i, c, on in tokens]}


def added_llama(*more):
    """Tokens from id 900 on, where hf-llama's vocabulary ends; those that it has keep theirs."""
    flags = ["single_word", "lstrip", "rstrip", "normalized", "special"]
    known = json.loads((here / "hf-llama/tokenizer.json").read_text())["model"]["vocab"]
    tokens = {name: (known[name], ["special"]) for name in ("<unk>", "<s>", "</s>")}
    new = iter(range(len(known), 1000))
    for name, on in more:
        tokens[name] = (known[name] if name in known else next(new), on)
    return {"added_tokens": [{"id": i, "content": c, **{f: f in on for f in flags}} for c, (i, on) in tokens.items()]}


def metaspace(scheme, cut):
    return {"normalizer": None,
            "pre_tokenizer": {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": scheme, "split": cut}}


VARIANTS = [
    ("qwen3-4m", "as it is", {}),
    ("qwen3-4m", "nfc", {"normalizer": {"type": "NFC"}}),
    ("qwen3-4m", "nfkc and strip", {"normalizer": {"type": "Sequence", "normalizers": [
        {"type": "NFKC"}, {"type": "Strip", "strip_left": True, "strip_right": False}]}}),
    ("qwen3-4m", "nfd", {"normalizer": {"type": "NFD"}}),
    ("qwen3-4m", "llama-3", {**byte_level(split(LLAMA3)), "model": {"ignore_merges": True}}),
    ("qwen3-4m", "gpt-4o", byte_level(split(GPT4O))),
    ("qwen3-4m", "added tokens", added()),
    ("qwen3-4m", "added tokens, nfc", {**added(), "normalizer": {"type": "NFC"}}),
    ("gpt2-4m", "as it is", {}),
    ("gpt2-4m", "prefix space", {"pre_tokenizer": {"add_prefix_space": True}}),
    ("gpt2-4m", "digits", byte_level({"type": "Digits", "individual_digits": True}, regex=True)),
    ("gpt2-4m", "contiguous digits", byte_level({"type": "Digits", "individual_digits": False})),
    ("gpt2-4m", "punctuation", byte_level({"type": "Punctuation", "behavior": "Contiguous"}, regex=True)),
    ("gpt2-4m", "white space", byte_level({"type": "WhitespaceSplit"})),
    ("gpt2-4m", "string", byte_level(split("the", "MergedWithPrevious", kind="String"))),
    ("gpt2-4m", "isolated inverted", byte_level(split(r"[aeiou ]|\d+", "Isolated", True))),
    ("gpt2-4m", "removed", byte_level(split(r"[aeiou ]|\d+", "Removed"))),
    ("gpt2-4m", "merged with previous", byte_level(split(r"[aeiou ]|\d+", "MergedWithPrevious"))),
    ("gpt2-4m", "merged with next", byte_level(split(r"[aeiou ]|\d+", "MergedWithNext"))),
    ("gpt2-4m", "contiguous", byte_level(split(r"[aeiou ]|\d+", "Contiguous"))),
    ("hf-llama", "as it is", {}),
    ("hf-llama", "metaspace first", metaspace("first", False)),
    ("hf-llama", "metaspace always", metaspace("always", True)),
    ("hf-llama", "metaspace never", metaspace("never", True)),
    ("hf-llama", "fused unknown", {**metaspace("always", True), "model": {"byte_fallback": False}}),
    ("hf-llama", "unknown", {**metaspace("always", True), "model": {"byte_fallback": False, "fuse_unk": False}}),
    ("hf-llama", "nothing for the unknown", {**metaspace("always", True), "model": {"byte_fallback": False, "unk_token": None}}),
    ("hf-llama", "regex replaced", {"normalizer": {"type": "Sequence", "normalizers": [
        {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": "\u2581"}, {"type": "Prepend", "prepend": "\u2581"}]}}),
    ("gpt2-4m", "lower case, no accents", {"normalizer": {"type": "Sequence", "normalizers": [
        {"type": "NFD"}, {"type": "StripAccents"}, {"type": "Lowercase"}, {"type": "Nmt"}]}}),
    ("gpt2-4m", "whitespace", byte_level({"type": "Whitespace"})),
    ("gpt2-4m", "delimiter", byte_level({"type": "CharDelimiterSplit", "delimiter": "e"})),
    ("gpt2-4m", "words", byte_level(split(r"\b\w+\b|[\w ]\B", "MergedWithNext"))),
    ("gpt2-4m", "scripts and classes in classes", byte_level(split(r"\p{Han}+|[^(\s|[.,!?])]+|\p{^Latin}|\P{Greek}"))),
    ("hf-llama", "phi-3", added_llama(("<|user|>", ["rstrip", "special"]), ("<|end|>", ["rstrip", "special"]), ("</s>", ["rstrip", "special"]))),
    ("hf-llama", "gemma", {**added_llama(*[("\n" * n, []) for n in range(1, 5)], *[("\u2581" * n, []) for n in range(2, 9)],
                                         ("<start_of_turn>", ["special"]), ("<unused0>", [])),
                           "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"},
                           "pre_tokenizer": split(" ", "MergedWithPrevious", kind="String"),
                           "decoder": {"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "},
                                                                        {"type": "ByteFallback"}, {"type": "Fuse"}]}}),
    ("hf-unigram", "as it is", {}),
    ("hf-unigram", "no normalizer, one word", {"normalizer": None, "pre_tokenizer": {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "never", "split": False}}),
    ("hf-unigram", "white space split, added tokens", {
        "normalizer": {"type": "NFKC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always", "split": True}]},
        "added_tokens": [{"id": i, "content": c, "single_word": False, "lstrip": c == "<mask>", "rstrip": False, "normalized": False, "special": c != "word"}
                         for i, c in enumerate(["<pad>", "</s>", "<unk>"])] + [
            {"id": 290 + i, "content": c, "single_word": False, "lstrip": c == "<mask>", "rstrip": False, "normalized": False, "special": c != "word"}
            for i, c in enumerate(["<mask>", "word"])]}),
]


FIRST_WITH_CHAT = [name for _, name, _ in VARIANTS].index("lower case, no accents")


def merged(base, patch):
    if not isinstance(patch, dict):
        return patch
    result = dict(base) if isinstance(base, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merged(result.get(key), value)
    return result


sets = []
for number, (base, name, patch) in enumerate(VARIANTS):
    whole = merged(json.loads((here / base / "tokenizer.json").read_text()), patch)
    # The library wants these keys to be there.
    for key in ("normalizer", "pre_tokenizer", "post_processor", "decoder"):
        whole.setdefault(key, None)
    whole["model"].setdefault("unk_token", None)
    library = tokenizers.Tokenizer.from_str(json.dumps(whole))
    cases = []
    for text in [*TEXTS, *(CHAT if number >= FIRST_WITH_CHAT else []), *fuzz(number, 6)]:
        by_special = []
        for special in (False, True):
            library.encode_special_tokens = not special
            by_special.append(library.encode(text, add_special_tokens=False).ids)
        for special in (False, True):
            if special and by_special[0] == by_special[1]:
                continue
            # The library finds a special piece in plain text, too.
            if not special and base == "hf-unigram" and any(piece in text for piece in ("<pad>", "</s>", "<unk>")):
                continue
            ids = by_special[special]
            cases.append({"text": text, "special": special, "ids": ids,
                          "decoded": library.decode(ids, skip_special_tokens=True)})
    sets.append({"name": f"{base}, {name}", "file": f"{base}/tokenizer.json", "patch": patch, "cases": cases})

files = ["sp-rules", "sp-suffix", "sp-symbols", "sp-unknown", "sp-unused", "sp-unigram", "sp-unigram-bytes", "sp-unigram-symbols", "sp-gemma"]
for number, path in enumerate([models / "llama-4m/tokenizer.model", *(here / f"{f}.model" for f in files)]):
    library = sentencepiece.SentencePieceProcessor(model_file=str(path))
    cases = []
    for text in [*TEXTS, *BYTES, *(CHAT if number > 5 else []), *fuzz(100 + number, 6)]:
        ids = library.encode(text)
        case = {"hex": text.hex()} if isinstance(text, bytes) else {"text": text}
        cases.append({**case, "special": False, "ids": ids, "decoded": library.decode(ids)})
    file = "models/llama-4m/tokenizer.model" if number == 0 else path.name
    sets.append({"name": file, "file": file, "cases": cases})



def token(content, *flags):
    return {"content": content, **{f: f in flags for f in ("single_word", "lstrip", "rstrip", "normalized", "special")}}


def template(before, after):
    item = lambda name: {"SpecialToken": {"id": name, "type_id": 0}}
    single = [*map(item, before), {"Sequence": {"id": "A", "type_id": 0}}, *map(item, after)]
    ids = {"<|endoftext|>": 0, "<|im_end|>": 2}
    return {"post_processor": {"type": "TemplateProcessing", "single": single, "pair": single + [{"Sequence": {"id": "B", "type_id": 1}}],
                               "special_tokens": {n: {"id": n, "ids": [ids[n]], "tokens": [n]} for n in {*before, *after}}}}


FOLDER_TEXTS = [
    "", "Alice was beginning", "<|im_start|>user", "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant",
    "Hello <|im_start|> user", "a<|im_start|>b", "a<tool>   b <tool>c", "x <new> y<new>z", "the other of the  the",
    "<s>one</s> two<unk>three", "<|endoftext|><|im_end|>",
]
TOOL = {"added_tokens": [*added()["added_tokens"][:3], {"id": 2048, **token("<tool>")}]}
NAMES = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|endoftext|>", "eos_token": "<|im_end|>"}
LLAMA = {"tokenizer_class": "LlamaTokenizer", "legacy": True, "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
CHAT = {"added_tokens_decoder": {"2048": token("<|im_end|>", "special"), "2049": token("<|im_start|>")}}
FOLDERS = [
    ("qwen3-4m", "no post-processor", {"post_processor": None}, NAMES),
    ("qwen3-4m", "no post-processor, add_bos_token", {"post_processor": None}, {**NAMES, "add_bos_token": True, "add_eos_token": True}),
    ("qwen3-4m", "a beginning, no add_bos_token", template(["<|endoftext|>"], []), {**NAMES, "add_bos_token": False}),
    ("qwen3-4m", "a beginning and an end", template(["<|endoftext|>"], ["<|im_end|>"]), NAMES),
    ("qwen3-4m", "a new token", TOOL, {**NAMES, "added_tokens_decoder": {"2049": token("<new>", "special")}}),
    ("qwen3-4m", "other flags", TOOL, {**NAMES, "added_tokens_decoder": {"2048": token("<tool>", "rstrip")}}),
    ("qwen3-4m", "becomes special", TOOL, {**NAMES, "added_tokens_decoder": {"2048": token("<tool>", "special")}}),
    ("qwen3-4m", "known under another id", TOOL, {**NAMES, "added_tokens_decoder": {"2050": token("<tool>", "lstrip")}}),
    ("qwen3-4m", "a token of the vocabulary", TOOL, {**NAMES, "added_tokens_decoder": {"300": token("the", "single_word")}}),
    ("qwen3-4m", "named tokens", TOOL, {**NAMES, "eos_token": "<tool>", "additional_special_tokens": ["er", "<|im_start|>"]}),
    ("llama-4m", "added tokens", {}, {**LLAMA, **CHAT, "add_bos_token": True}),
    ("llama-4m", "an end", {}, {**LLAMA, "add_bos_token": True, "add_eos_token": True}),
    ("llama-4m", "no beginning", {}, {**LLAMA, "add_bos_token": False}),
]

folders = []
for base, name, patch, config in FOLDERS:
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        if base == "llama-4m":
            shutil.copy(models / base / "tokenizer.model", folder)
        else:
            whole = merged(json.loads((here / base / "tokenizer.json").read_text()), patch)
            for key in ("normalizer", "pre_tokenizer", "post_processor", "decoder"):
                whole.setdefault(key, None)
            (folder / "tokenizer.json").write_text(json.dumps(whole))
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
        (folder / "config.json").write_text('{"model_type": "llama"}')
        library = transformers.AutoTokenizer.from_pretrained(folder)
    cases = []
    for text in FOLDER_TEXTS:
        # After an added token transformers drops the dummy prefix before a space; SentencePiece and llama.cpp keep both.
        if base == "llama-4m" and "> " in text:
            continue
        for special in (False, True):
            # It finds a special token of the vocabulary in plain text, too, where it can be merged.
            if not special and name == "named tokens":
                continue
            library.backend_tokenizer.encode_special_tokens = not special
            ids = library.backend_tokenizer.encode(text, add_special_tokens=False).ids
            case = {"text": text, "special": special, "ids": ids, "decoded": library.decode(ids, skip_special_tokens=True)}
            if special:
                case["whole"] = library.encode(text)
            cases.append(case)
    file = f"models/{base}/tokenizer.model" if base == "llama-4m" else f"{base}/tokenizer.json"
    folders.append({"name": f"{base}, {name}", "file": file, "patch": patch, "config": config, "cases": cases})

with open(here / "reference.json", "w", encoding="utf-8") as out:
    out.write('{"made_by": "tokenizers %s, sentencepiece %s, transformers %s"' % (tokenizers.__version__, sentencepiece.__version__, transformers.__version__))
    for key, list_of_sets in (("sets", sets), ("folders", folders)):
        out.write(',\n"%s": [\n' % key)
        for i, s in enumerate(list_of_sets):
            cases = s.pop("cases")
            out.write((",\n" if i else "") + json.dumps(s, ensure_ascii=True)[:-1] + ', "cases": [\n')
            out.write(",\n".join(json.dumps(c, ensure_ascii=True, separators=(",", ":")) for c in cases))
            out.write("]}")
        out.write("\n]")
    out.write("}\n")
