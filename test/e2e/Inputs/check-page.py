# Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""Checks a page of explain: check-page.py PAGE SECTION...: tags are balanced, ids are unique, the data is JSON whose
times add up, nothing outside the page is named, and it has exactly these sections."""

import json
import re
import sys
from html.parser import HTMLParser

VOID = {"meta", "link", "input", "br", "hr", "img"}


class Page(HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.ids, self.sections, self.data, self.rows = [], set(), [], "", 0

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        name = attributes.get("id")
        if name:
            assert name not in self.ids, f"two elements have the id {name}"
            self.ids.add(name)
            if tag == "section":
                self.sections.append(name)
        for key in ("src", "href"):
            assert attributes.get(key, "data:").startswith("data:"), f"{tag} names {attributes[key]}"
        self.rows += tag == "tr"
        if tag not in VOID:
            self.open.append((tag, name))

    def handle_endtag(self, tag):
        assert self.open and self.open[-1][0] == tag, f"</{tag}> closes {self.open[-1:]} at {self.getpos()}"
        self.open.pop()

    def handle_data(self, text):
        if self.open and self.open[-1] == ("script", "data"):
            self.data += text


text = open(sys.argv[1], encoding="utf-8").read()
page = Page()
page.feed(text)
page.close()
assert not page.open, page.open
assert not re.search(r"https?:|url\((?!#)|@import", text), "names something outside of it"
assert page.sections == sys.argv[2:], page.sections
assert page.rows > 30, page.rows
data = json.loads(page.data)
assert data["kernels"] and 1 <= data["context"] <= data["longest"], data["context"]
for kernel in data["kernels"]:
    assert len(kernel["seconds"]) == len(data["classes"]), kernel
    assert all(part >= 0 for pair in kernel["seconds"] for part in pair), kernel
step = sum(fixed + each * min(kernel["window"] or data["context"], data["context"])
           for kernel in data["kernels"] for fixed, each in kernel["seconds"]) + data["step_seconds"]
assert 1e-7 < step < 10, step
