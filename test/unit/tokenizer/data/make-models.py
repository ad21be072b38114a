#!/usr/bin/env python3
# Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""Trains small tokenizers from alice-opening.txt: sp-unigram-*.model, sp-gemma.model and hf-unigram/tokenizer.json.

Run by hand; needs the Python packages sentencepiece (0.2.1 reads and 0.2.3 made the files here), protobuf and tokenizers (0.23.3).
"""

import io
import json
import pathlib

import sentencepiece
import tokenizers
from sentencepiece import sentencepiece_model_pb2
from tokenizers import models, trainers

here = pathlib.Path(__file__).parent
lines = (here / "alice-opening.txt").read_text().splitlines()
rules = sentencepiece_model_pb2.ModelProto()
rules.ParseFromString((here / "sp-rules.model").read_bytes())


def train(**options):
    writer = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(lines), model_writer=writer, minloglevel=2, num_threads=1,
                                             hard_vocab_limit=False, normalization_rule_name="identity", **options)
    model = sentencepiece_model_pb2.ModelProto()
    model.ParseFromString(writer.getvalue())
    return model


def write(name, model):
    (here / f"{name}.model").write_bytes(model.SerializeToString(deterministic=True))


# Byte fallback, and the character map of sp-rules.model.
model = train(model_type="unigram", vocab_size=520, byte_fallback=True)
model.normalizer_spec.precompiled_charsmap = rules.normalizer_spec.precompiled_charsmap
write("sp-unigram-bytes", model)
# User defined and unused pieces; spaces are kept, and belong to the word before them.
model = train(model_type="unigram", vocab_size=220, user_defined_symbols=["<sep>", "foo bar", "foo", "\u2581\u2581"],
              treat_whitespace_as_suffix=True, remove_extra_whitespaces=False)
for piece in model.pieces[40:200:7]:
    piece.type = piece.UNUSED
write("sp-unigram-symbols", model)
# As Gemma's: no dummy prefix, every space and line feed kept, runs of them and the marks of a chat user defined pieces.
runs = ["\n" * n for n in range(1, 6)] + ["\u2581" * n for n in range(2, 9)]
model = train(model_type="bpe", vocab_size=600, byte_fallback=True, split_digits=True, add_dummy_prefix=False,
              remove_extra_whitespaces=False, allow_whitespace_only_pieces=True, pad_id=0, eos_id=1, bos_id=2, unk_id=3,
              control_symbols=["<start_of_turn>", "<end_of_turn>"], user_defined_symbols=["<mask>", *runs, "<table>", "</h1>"])
write("sp-gemma", model)

library = tokenizers.Tokenizer(models.Unigram())
library.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
library.train_from_iterator(lines, trainers.UnigramTrainer(vocab_size=400, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False))
library.normalizer = tokenizers.normalizers.Sequence([
    tokenizers.normalizers.Precompiled(rules.normalizer_spec.precompiled_charsmap), tokenizers.normalizers.Replace(tokenizers.Regex(" {2,}"), " ")])
library.decoder = tokenizers.decoders.Metaspace()
(here / "hf-unigram").mkdir(exist_ok=True)
whole = json.loads(library.to_str())
(here / "hf-unigram/tokenizer.json").write_text(json.dumps(whole, ensure_ascii=False, separators=(",", ":")) + "\n")
