# Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""Makes a variant of a Hugging Face folder with an index: model-variant.py SOURCE FOLDER CHANGE...

A change is KEY=JSON for config.json (KEY= removes the key), or +TENSOR=COUNT for a vector of zeros in a shard of its own.
The other files are links to those of SOURCE.
"""

import json
import os
import struct
import sys

source, folder, *changes = sys.argv[1:]
os.makedirs(folder)
for name in os.listdir(source):
    os.symlink(os.path.join(os.path.realpath(source), name), os.path.join(folder, name))


def edit(name, change):
    path = os.path.join(folder, name)
    with open(path) as file:
        document = json.load(file)
    os.remove(path)  # the link
    change(document)
    with open(path, "w") as file:
        json.dump(document, file)


def edit_config(config):
    for key, value in (change.split("=", 1) for change in changes if change[0] != "+"):
        config.pop(key, None)
        if value:
            config[key] = json.loads(value)


edit("config.json", edit_config)
tensors = dict(change[1:].split("=", 1) for change in changes if change[0] == "+")
if tensors:
    header, size = {}, 0
    for name, count in tensors.items():
        header[name] = {"dtype": "F16", "shape": [int(count)], "data_offsets": [size, size + 2 * int(count)]}
        size += 2 * int(count)
    text = json.dumps(header).encode()
    with open(os.path.join(folder, "added.safetensors"), "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text + bytes(size))
    edit("model.safetensors.index.json", lambda index: index["weight_map"].update(dict.fromkeys(tensors, "added.safetensors")))
