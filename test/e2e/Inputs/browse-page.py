# Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""Loads a page in headless Chromium: browse-page.py PAGE PROFILE FIGURE...: its console stays empty, it asks no network
for anything, and each of the figures is drawn."""

import json
import os
import re
import subprocess
import sys

page, profile, figures = sys.argv[1], sys.argv[2], sys.argv[3:]
os.makedirs(profile)
log = os.path.join(profile, "net.json")
result = subprocess.run(
    ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
     "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-extensions",
     f"--user-data-dir={profile}", f"--log-net-log={log}", "--enable-logging=stderr", "--window-size=1240,2000",
     "--virtual-time-budget=2000", "--dump-dom", "file://" + os.path.abspath(page)],
    capture_output=True, text=True, timeout=300, check=True)
console = [line for line in result.stderr.splitlines() if ":CONSOLE" in line]
assert not console, "\n".join(console)

dom = result.stdout
assert re.search(r"<body[^>]* data-drawn=\"\d", dom), "the script did not come to its end"
for figure in figures:
    drawn = re.search(rf'<figure id="{figure}">(.*?)</figure>', dom, re.S)
    assert drawn, f"no figure {figure}"
    shapes = re.findall(r"<(path|rect|circle|text|line)\b", drawn.group(1))
    assert len(shapes) > 10, f"{figure} has {len(shapes)} shapes"
    assert not re.search(r"NaN|Infinity|undefined", drawn.group(1)), f"{figure} has a number that is none"

# The log may be cut off where the browser ended.
text = open(log, encoding="utf-8").read().rstrip().rstrip(",")
try:
    events = json.loads(text)["events"]
except ValueError:
    events = json.loads(text + "]}")["events"]
asked = {event["params"]["url"] for event in events
         if "url" in event.get("params", {}) and event["params"].get("initiator", "not an origin") != "not an origin"}
assert not any(url.startswith(("http", "ws")) for url in asked), asked
