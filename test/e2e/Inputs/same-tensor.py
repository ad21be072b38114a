# Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""Fails unless two safetensors files have the same bytes in the tensors of these names:

    same-tensor.py FILE FILE NAME...
"""

import json
import struct
import sys

first, second, *names = sys.argv[1:]


def read(path):
    with open(path, "rb") as file:
        data = file.read()
    start = 8 + struct.unpack_from("<Q", data)[0]
    entries = json.loads(data[8:start])
    return [data[start + entries[name]["data_offsets"][0] : start + entries[name]["data_offsets"][1]] for name in names]


if read(first) != read(second):
    sys.exit(f"{first} and {second} differ")
