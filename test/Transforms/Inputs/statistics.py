# Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""Writes a file of statistics of inputs that are alike and independent: statistics.py FILE NAME=COLUMNS[h]... (h: with a Hessian)"""

import json
import struct
import sys

tensors = {}
names = []
for entry in sys.argv[2:]:
    name, size = entry.split("=")
    columns = int(size.removesuffix("h"))
    names.append(name)
    tensors[name + ".moments"] = [1.0] * columns
    if size.endswith("h"):
        tensors[name + ".hessian"] = [float(i == j) for i in range(columns) for j in range(i + 1)]
metadata = {"format": "sluice statistics", "version": "1", "tokens": "1", "sensitivity_tokens": "0", "seed": "0", "weights": ";".join(names)}
header, data = {"__metadata__": metadata}, b""
for name, numbers in tensors.items():
    begin = len(data)
    data += struct.pack(f"<{len(numbers)}f", *numbers)
    header[name] = {"dtype": "F32", "shape": [len(numbers)], "data_offsets": [begin, len(data)]}
text = json.dumps(header).encode()
text += b" " * (-len(text) % 8)
with open(sys.argv[1], "wb") as file:
    file.write(struct.pack("<Q", len(text)) + text + data)
