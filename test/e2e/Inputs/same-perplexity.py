# Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""Checks that two outputs of `sluice perplexity` agree: same-perplexity.py OUTPUT REFERENCE, to 1e-4 of the reference's."""

import re
import sys


def read(path):
    with open(path) as file:
        found = re.findall(r"^perplexity: (\d+\.\d{4})$", file.read(), re.M)
    if len(found) != 1:
        sys.exit(f"{path} has {len(found)} perplexities, expected one")
    return float(found[0])


found, reference = (read(path) for path in sys.argv[1:])
if abs(found / reference - 1) > 1e-4:
    sys.exit(f"the perplexity is {found}, expected {reference} to 1e-4 of it")
