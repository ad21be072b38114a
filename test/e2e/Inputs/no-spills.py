# Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""Checks that ptxas put every kernel of an artifact into registers: no-spills.py DIR KERNELS."""

import json
import sys

plan = json.load(open(sys.argv[1] + "/plan.json"))
launched = {launch["kernel"] for step in plan["steps"].values() for launch in step["launches"]}
kernels = plan.get("kernels", {})
if len(launched) < int(sys.argv[2]):
    sys.exit(f"{len(launched)} kernels are launched, expected at least {sys.argv[2]}")
for name in sorted(launched):
    if name not in kernels:
        sys.exit(f"{name}: ptxas said nothing of it")
    kernel = kernels[name]
    for key in ("stack_bytes", "spill_store_bytes", "spill_load_bytes"):
        if kernel[key] != 0:
            sys.exit(f"{name}: {key} is {kernel[key]}")
    if not 0 < kernel["registers"] <= 128:
        sys.exit(f"{name}: {kernel['registers']} registers")
