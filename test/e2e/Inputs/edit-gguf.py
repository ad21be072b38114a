# Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""Changes the metadata of a GGUF file: edit-gguf.py IN OUT EDIT...

  KEY=JSON           sets a value: a string, a bool, an integer (u32), or a list of strings (not empty)
  KEY[INDEX]=JSON    sets an element of an array of strings or of i32
  -KEY               removes it
  --without-tensors  ends the file where the metadata end
"""

import json
import re
import struct
import sys

SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
U32, I32, BOOL, STRING, ARRAY = 4, 5, 7, 8, 9

source, target, *edits = sys.argv[1:]
data = open(source, "rb").read()
at = 24
tensors, count = struct.unpack_from("<QQ", data, 8)


def string(text):
    encoded = text.encode()
    return struct.pack("<Q", len(encoded)) + encoded


def end_of(kind, at):
    if kind == STRING:
        return at + 8 + struct.unpack_from("<Q", data, at)[0]
    if kind != ARRAY:
        return at + SIZES[kind]
    element, length = struct.unpack_from("<IQ", data, at)
    at += 12
    for _ in range(length):
        at = end_of(element, at)
    return at


def packed(value):
    if isinstance(value, bool):
        return struct.pack("<IB", BOOL, value)
    if isinstance(value, int):
        return struct.pack("<II", U32, value)
    if isinstance(value, str):
        return struct.pack("<I", STRING) + string(value)
    return struct.pack("<IIQ", ARRAY, STRING, len(value)) + b"".join(map(string, value))


def with_element(value, index, new):
    """An array's value, kind first, with another element."""
    _, element, length = struct.unpack_from("<IIQ", value)
    if element == I32:
        return value[: 16 + 4 * index] + struct.pack("<i", new) + value[20 + 4 * index :]
    assert element == STRING and index < length
    at = 16
    for _ in range(index):
        at += 8 + struct.unpack_from("<Q", value, at)[0]
    return value[:at] + string(new) + value[at + 8 + struct.unpack_from("<Q", value, at)[0] :]


metadata = {}
for _ in range(count):
    length = struct.unpack_from("<Q", data, at)[0]
    key = data[at + 8 : at + 8 + length].decode()
    at += 8 + length
    end = end_of(struct.unpack_from("<I", data, at)[0], at + 4)
    metadata[key] = data[at:end]
    at = end

infos = at
for _ in range(tensors):
    at = end_of(STRING, at)
    at += 4 + 8 * struct.unpack_from("<I", data, at)[0] + 4 + 8
alignment = 32
tensor_data = (at + alignment - 1) // alignment * alignment

with_tensors = True
for edit in edits:
    if edit == "--without-tensors":
        with_tensors = False
    elif edit.startswith("-"):
        del metadata[edit[1:]]
    else:
        key, value = edit.split("=", 1)
        element = re.fullmatch(r"(.*)\[(\d+)\]", key)
        if element:
            metadata[element[1]] = with_element(metadata[element[1]], int(element[2]), json.loads(value))
        else:
            metadata[key] = packed(json.loads(value))

out = data[:8] + struct.pack("<QQ", tensors, len(metadata))
out += b"".join(string(key) + value for key, value in metadata.items())
if with_tensors:
    out += data[infos:at]
    out += b"\0" * (-len(out) % alignment) + data[tensor_data:]
open(target, "wb").write(out)
