# Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""Checks the order and the figures of `explain --recommend --json`."""

import json
import sys

choices = json.load(open(sys.argv[1]))["recommended"]
fitting = [choice for choice in choices if choice["fits"]]
others = choices[len(fitting):]
assert fitting and others and not any(choice["fits"] for choice in others)
speeds = [choice["tokens_per_second"] for choice in fitting]
assert speeds == sorted(speeds, reverse=True), speeds
planned = next(choice for choice in fitting if choice["weights"] == "planned")
assert planned["tokens_per_second"] > 0.999 * speeds[0], (planned, speeds[0])
errors = [choice["divergence"] for choice in others]
assert errors == sorted(errors), errors
by_name = {(choice["weights"], choice["k_cache"]): choice for choice in choices}
assert len(by_name) == len({(c["weights"], c["k_cache"]) for c in choices})
int8, f16 = by_name["int8-g128", "f16"], by_name["f16", "f16"]
assert int8["bits_per_weight"] == 8.125 and f16["bits_per_weight"] == 16, (int8, f16)
assert int8["bytes"] < f16["bytes"] and 0 == f16["divergence"] < int8["divergence"]
