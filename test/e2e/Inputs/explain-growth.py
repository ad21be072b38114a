# Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""Checks that a step of a model reads the same weights at two contexts, and twice the cache at twice the context."""

import json
import subprocess
import sys


def explain(context):
    command = [sys.argv[1], "explain", sys.argv[2], "--weights", "int8-g128", "--target", "h100", "--context", str(context)]
    return json.loads(subprocess.run(command + ["--json"], check=True, capture_output=True).stdout)["fused"]["total"]


short, long = explain(1000), explain(2000)
for name in ("weights", "scales", "activations", "written"):
    assert short[name] == long[name] > 0, (name, short, long)
for name in ("keys", "values"):
    assert 2 * short[name] == long[name] > 0, (name, short, long)
