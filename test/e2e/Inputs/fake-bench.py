# Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""Prints what `bench --per-kernel --json` prints of the plan.json given, as far as explain reads it, without measuring."""

import json
import sys

plan = json.load(open(sys.argv[1]))
launches = plan["steps"]["decode"]["launches"]
print(json.dumps({
    "model": plan["model"]["name"], "device": "a stopwatch", "context": 100, "tokens_per_second": 100,
    "read_bandwidth": {"bytes_per_second": 1e10},
    "kernels": [{"label": launch["label"], "kernel": launch["kernel"], "seconds": 1e-4} for launch in launches],
}))
