#!/usr/bin/env python3
# Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""Writes a GGUF file of Llama-3.2-1B's shape with random blocks, to run the same file by Sluice and by llama.cpp.

benchmarks/random-gguf.py TOKENIZER.gguf OUT.gguf Q8_0|Q4_0 takes the tokenizer of a Llama model's file
(test/data/llama-4m.Q8_0.gguf) and fills its vocabulary up. Needs the packages gguf and numpy of PyPI. Then, in turn:

    llama-bench -m OUT.gguf -t 2 -p 64 -n 32 -r 3
    build/bin/sluice compile OUT.gguf --weights keep --context 1024 -o DIR
    build/bin/sluice-run bench DIR --context 48 --prompt 64 -n 32 --repeat 3
"""
import sys

import gguf
import numpy

VOCABULARY, WIDTH, INNER, LAYERS, HEADS, KV_HEADS, DIM = 128256, 2048, 8192, 16, 32, 8, 64
# Scales that give elements a standard deviation of 0.02: of int8 of all values it is 74, of nibbles 4.6.
SCALES = {"Q8_0": 0.02 / 74, "Q4_0": 0.02 / 4.6}
SHAPE = {
    "block_count": LAYERS,
    "embedding_length": WIDTH,
    "feed_forward_length": INNER,
    "attention.head_count": HEADS,
    "attention.head_count_kv": KV_HEADS,
    "attention.key_length": DIM,
    "attention.value_length": DIM,
    "rope.dimension_count": DIM,
    "context_length": 2048,
    "vocab_size": VOCABULARY,
}
FILLED = {"tokenizer.ggml.tokens": lambda i: f"<random {i}>", "tokenizer.ggml.scores": lambda i: -1e4, "tokenizer.ggml.token_type": lambda i: 1}


def copy_metadata(source, writer, file_type):
    shape = {f"llama.{key}": value for key, value in SHAPE.items()} | {"general.file_type": file_type}
    for name, field in gguf.GGUFReader(source).fields.items():
        if name.startswith("GGUF.") or name == "general.architecture":
            continue
        kind, value = field.types[0], shape.get(name, field.contents())
        if name in FILLED:
            value = list(value) + [FILLED[name](i) for i in range(VOCABULARY - len(value))]
        writer.add_key_value(name, value, kind, sub_type=field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None)


def main(source, target, name):
    kind = gguf.GGMLQuantizationType[name]
    elements, size = gguf.GGML_QUANT_SIZES[kind]
    random = numpy.random.default_rng(1)
    writer = gguf.GGUFWriter(target, "llama")
    copy_metadata(source, writer, gguf.LlamaFileType["MOSTLY_" + name])

    def matrix(name_, rows, columns):
        blocks = random.integers(0, 256, (rows * columns // elements, size), dtype=numpy.uint8)
        blocks[:, :2] = numpy.full(len(blocks), SCALES[name], numpy.float16).view(numpy.uint8).reshape(-1, 2)
        writer.add_tensor(name_, blocks.reshape(rows, -1), raw_dtype=kind)

    matrix("token_embd.weight", VOCABULARY, WIDTH)
    writer.add_tensor("output_norm.weight", numpy.ones(WIDTH, numpy.float32))
    for layer in range(LAYERS):
        for norm in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{layer}.{norm}.weight", numpy.ones(WIDTH, numpy.float32))
        for weight, rows, columns in (
            ("attn_q", HEADS * DIM, WIDTH),
            ("attn_k", KV_HEADS * DIM, WIDTH),
            ("attn_v", KV_HEADS * DIM, WIDTH),
            ("attn_output", WIDTH, HEADS * DIM),
            ("ffn_gate", INNER, WIDTH),
            ("ffn_up", INNER, WIDTH),
            ("ffn_down", WIDTH, INNER),
        ):
            matrix(f"blk.{layer}.{weight}.weight", rows, columns)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    if len(sys.argv) != 4 or sys.argv[3] not in SCALES:
        sys.exit("usage: benchmarks/random-gguf.py TOKENIZER.gguf OUT.gguf Q8_0|Q4_0")
    main(*sys.argv[1:])
