# Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""Compares the ids that `sluice run --token-ids` printed with a golden.json's."""

import json
import sys

ids = open(sys.argv[1]).read().split("\n")
golden = json.load(open(sys.argv[2]))["greedy_ids"]
if len(ids) != 2 or ids[1] != "":
    sys.exit(f"expected one line, found {len(ids) - 1}")
found = [int(word) for word in ids[0].split(" ")]
for index, (left, right) in enumerate(zip(found, golden)):
    if left != right:
        sys.exit(f"id {index} is {left}, expected {right}")
if len(found) != len(golden):
    sys.exit(f"{len(found)} ids, expected {len(golden)}")
