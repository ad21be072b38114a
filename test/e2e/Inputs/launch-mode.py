# Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""Prints how an artifact's decode step is launched, and what was compared: launch-mode.py DIR."""

import json
import sys

steps = json.load(open(sys.argv[1] + "/plan.json"))["steps"]
launch = steps["decode"].get("launch")
if launch is None:
    print(*steps, "nothing compared")
    sys.exit()
predicted = launch["predicted"]
print(launch["mode"], *steps, "one" if predicted["persistent"] < predicted["graph"] else "graph", "at", predicted["positions"], "reason", launch["reason"])
