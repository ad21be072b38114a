# Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""A template that puts a turn before a conversation: first-turn.py TEMPLATE ANSWER-FILE QUESTION."""

import json
import sys

template, answer, question = sys.argv[1:]
turn = [{"role": "user", "content": question}, {"role": "assistant", "content": open(answer, newline="").read().removesuffix("\n")}]
print("{%- set messages = " + json.dumps(turn, ensure_ascii=False) + " + messages %}" + open(template).read(), end="")
