# Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""Makes a GGUF file whose matrices are random blocks: random-blocks-gguf.py IN OUT TYPE...

Metadata and vectors are IN's. The head has the last type; the other matrices have all types in turn, in the file's order.
Super-blocks' scales are such that weights have a deviation of about 1/16.
"""

import random
import struct
import sys

source, target, *types = sys.argv[1:]
# ggml's number, bytes of a block of 256, what the f16 is multiplied by on average, where it is (Q8_K: an f32 at 0).
TYPES = {
    "Q8_K": (15, 292, 74, 0),
    "IQ2_XXS": (16, 66, 56, 0),
    "IQ2_XS": (17, 74, 56, 0),
    "IQ2_S": (22, 82, 56, 0),
    "IQ3_XXS": (18, 98, 160, 0),
    "IQ3_S": (21, 110, 160, 0),
    "IQ1_S": (19, 50, 8, 0),
    "IQ1_M": (29, 56, 8, None),
    "TQ1_0": (34, 54, 0.8, 52),
    "TQ2_0": (35, 66, 0.8, 64),
}
SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
data = open(source, "rb").read()
rng = random.Random(14)


def end_of(kind, at):
    if kind == 8:
        return at + 8 + struct.unpack_from("<Q", data, at)[0]
    if kind != 9:
        return at + SIZES[kind]
    element, length = struct.unpack_from("<IQ", data, at)
    at += 12
    for _ in range(length):
        at = end_of(element, at)
    return at


def block(name):
    _, size, factor, place = TYPES[name]
    out = bytearray(rng.randbytes(size))
    d = rng.choice((-1, 1)) * rng.uniform(0.5, 1.5) / 16 / factor
    if name == "Q8_K":
        out[:4] = struct.pack("<f", d)
    elif place is None:  # in the high four bits of the last four words
        bits = struct.unpack("<H", struct.pack("<e", d))[0]
        for word in range(4):
            out[49 + 2 * word] = out[49 + 2 * word] & 15 | (bits >> 4 * word & 15) << 4
    else:
        out[place : place + 2] = struct.pack("<e", d)
    return bytes(out)


tensors, count = struct.unpack_from("<QQ", data, 8)
at = 24
for _ in range(count):
    at = end_of(8, at)
    at = end_of(struct.unpack_from("<I", data, at)[0], at + 4)
metadata_end = at
infos = []
for _ in range(tensors):
    name_end = end_of(8, at)
    rank = struct.unpack_from("<I", data, name_end)[0]
    dims = struct.unpack_from(f"<{rank}Q", data, name_end + 4)
    kind, offset = struct.unpack_from("<IQ", data, name_end + 4 + 8 * rank)
    infos.append((data[at + 8 : name_end].decode(), data[at:name_end], dims, kind, offset))
    at = name_end + 4 + 8 * rank + 12
start = at + -at % 32

out, payload, turn = data[:metadata_end], b"", 0
for name, encoded, dims, kind, offset in infos:
    if len(dims) == 1:
        assert kind == 0  # F32
        content = data[start + offset : start + offset + 4 * dims[0]]
    else:
        chosen = types[-1] if name == "output.weight" else types[turn % len(types)]
        turn += name != "output.weight"
        kind = TYPES[chosen][0]
        content = b"".join(block(chosen) for _ in range(dims[0] * dims[1] // 256))
    payload += b"\0" * (-len(payload) % 32)
    out += encoded + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, len(payload))
    payload += content
open(target, "wb").write(out + b"\0" * (-len(out) % 32) + payload)
