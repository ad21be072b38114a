# Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""Copies a model file with other bytes in one tensor: sluice inspect --json FILE | poke.py COPY TENSOR OFFSET HEX"""

import json
import sys

copy, name, offset, text = sys.argv[1:]
listing = json.load(sys.stdin)
with open(listing["path"], "rb") as file:
    data = bytearray(file.read())
tensor = next(tensor for tensor in listing["tensors"] if tensor["name"] == name)
at = tensor["offset"] + int(offset)
data[at : at + len(text) // 2] = bytes.fromhex(text)
with open(copy, "wb") as file:
    file.write(data)
