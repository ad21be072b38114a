# Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""Checks what `sluice perplexity` printed: perplexity.py OUTPUT (REFERENCE PERCENT | max LIMIT | kl LOW HIGH).

The first two look at the last line, kl at the divergence from the model after --against."""

import re
import sys

lines = open(sys.argv[1]).read().rstrip("\n").split("\n")
if sys.argv[2] == "kl":
    low, high = float(sys.argv[3]), float(sys.argv[4])
    found = [m for line in lines[:-1] if (m := re.fullmatch(r"kl divergence: (\d+\.\d+) \+- (\d+\.\d+) nats", line))]
    if len(found) != 1:
        sys.exit(f"the output has {len(found)} divergences, expected one before the perplexity")
    if not low <= float(found[0][1]) <= high:
        sys.exit(f"the divergence {found[0][1]} is not between {low} and {high}")
    sys.exit()
line = lines[-1]
match = re.fullmatch(r"perplexity: (\d+\.\d{4})", line)
if not match:
    sys.exit(f"the last line is '{line}'")
value = float(match[1])
if sys.argv[2] == "max":
    limit = float(sys.argv[3])
    if value > limit:
        sys.exit(f"perplexity {value} is above {limit}")
else:
    reference, percent = float(sys.argv[2]), float(sys.argv[3])
    if abs(value / reference - 1) * 100 > percent:
        sys.exit(f"perplexity {value} is not within {percent}% of {reference}")
