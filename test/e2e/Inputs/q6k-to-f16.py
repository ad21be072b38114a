# Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""Rewrites a GGUF file with its Q6_K tensors as F16: q6k-to-f16.py IN OUT.

The quantizer of llama.cpp makes the embedding of a "Q4_0" file Q6_K, a type that is not read yet.
"""

import struct
import sys

SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
STRING, ARRAY = 8, 9
F16, Q6_K = 1, 14
ALIGNMENT, BLOCK, BLOCK_BYTES = 32, 256, 210

data = open(sys.argv[1], "rb").read()
tensors, pairs = struct.unpack_from("<QQ", data, 8)


def skip(kind, at):
    if kind == STRING:
        return at + 8 + struct.unpack_from("<Q", data, at)[0]
    if kind != ARRAY:
        return at + SIZES[kind]
    element, length = struct.unpack_from("<IQ", data, at)
    at += 12
    for _ in range(length):
        at = skip(element, at)
    return at


def dequantize(block):
    """The 256 numbers of a block: low nibbles, high pairs of bits, scales of 16, one factor."""
    scales = struct.unpack_from("<16b", block, 192)
    factor = struct.unpack_from("<e", block, 208)[0]
    for half in range(2):
        for quarter in range(4):
            for i in range(32):
                low = block[64 * half + 32 * (quarter % 2) + i] >> (4 * (quarter // 2)) & 15
                high = block[128 + 32 * half + i] >> (2 * quarter) & 3
                yield factor * scales[8 * half + 2 * quarter + i // 16] * ((high << 4 | low) - 32)


at = 24
for _ in range(pairs):
    at = skip(STRING, at)
    at = skip(struct.unpack_from("<I", data, at)[0], at + 4)
head, infos = data[:at], []
for _ in range(tensors):
    name, at = data[at : skip(STRING, at)], skip(STRING, at)
    rank = struct.unpack_from("<I", data, at)[0]
    shape = struct.unpack_from(f"<{rank}Q", data, at + 4)
    kind, offset = struct.unpack_from("<IQ", data, at + 4 + 8 * rank)
    at += 16 + 8 * rank
    infos.append((name, shape, kind, offset))
start = -(-at // ALIGNMENT) * ALIGNMENT
ends = sorted(offset for _, _, _, offset in infos) + [len(data) - start]

body = b""
for name, shape, kind, offset in infos:
    contents = data[start + offset : start + next(end for end in ends if end > offset)]
    if kind == Q6_K:
        elements = 1
        for size in shape:
            elements *= size
        numbers = []
        for block in range(elements // BLOCK):
            numbers += dequantize(contents[block * BLOCK_BYTES : (block + 1) * BLOCK_BYTES])
        kind, contents = F16, struct.pack(f"<{elements}e", *numbers)
    head += name + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, len(body))
    body += contents + bytes(-len(contents) % ALIGNMENT)
open(sys.argv[2], "wb").write(head + bytes(-len(head) % ALIGNMENT) + body)
