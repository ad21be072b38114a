# Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""Checks the last line of `sluice perplexity`: perplexity.py OUTPUT (REFERENCE PERCENT | max LIMIT)."""

import re
import sys

line = open(sys.argv[1]).read().rstrip("\n").split("\n")[-1]
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
