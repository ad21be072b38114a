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
    if kernel["registers"] <= 0:
        sys.exit(f"{name}: {kernel['registers']} registers")

# Attention and the product after it are on a multiprocessor together: 65536 registers, given to a warp in units of 256.
for step in plan["steps"].values():
    for launch, following in zip(step["launches"], step["launches"][1:]):
        if launch["kernel"].startswith("attention_"):
            taken = sum(-(-kernels[l["kernel"]]["registers"] * 32 // 256) * 256 * (l["block"] // 32) for l in (launch, following))
            if taken > 65536:
                sys.exit(f"{launch['kernel']} and {following['kernel']} take {taken} registers together")
