# Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""Compares Sluice's Jinja with Jinja itself, set up as transformers does: chat-templates.py RENDER FOLDER|CASES...

A FOLDER has templates of model families, which are rendered for conversations. CASES is a Python file with a list
`cases` of (template, variables). Where Jinja raises an error, Sluice has to give one, too.
"""

import datetime
import json
import os
import runpy
import subprocess
import sys
import time

import jinja2
import jinja2.ext
import jinja2.sandbox

render, *sources = sys.argv[1:]
NOW = int(time.time())


class Generation(jinja2.ext.Extension):
    """transformers' tag around what the assistant says; it has no effect on the text."""

    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_same"), [], [], body).set_lineno(line)

    def _same(self, caller):
        return caller()


def raise_exception(message):
    raise jinja2.exceptions.TemplateError(message)


def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


environment = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols])
environment.filters["tojson"] = tojson
environment.globals["raise_exception"] = raise_exception
environment.globals["strftime_now"] = lambda form: datetime.datetime.fromtimestamp(NOW).strftime(form)

TURNS = [
    {"role": "user", "content": " What is  a sluice? "},
    {"role": "assistant", "content": "<think>\nA gate.\n</think>\n\nA gate for water: \"écluse\" <&>.\n"},
    {"role": "user", "content": "And in\ntwo lines?"},
    {"role": "assistant", "content": "One.\nTwo. \U0001f6b0"},
    {"role": "user", "content": "Thanks."},
]
SYSTEM = {"role": "system", "content": "  Be brief.\nBe kind. "}
TOOL = {"type": "function", "function": {"name": "look", "description": "Sieht \"nach\"", "parameters": {"type": "object", "required": ["what"], "properties": {"what": {"type": "string"}, "where": {"type": "array", "items": {"type": ["string", "null"]}}, "depth": {"type": "object", "properties": {"least": {"type": "number"}}}}}}}

conversations = [TURNS[:1], TURNS[:2], TURNS[:3], TURNS[:5], [SYSTEM, *TURNS[:1]], [SYSTEM, *TURNS[:4]], [SYSTEM, *TURNS], [TURNS[0], TURNS[2]], [TURNS[1]]]
settings = [{"tools": None}, {"tools": None, "enable_thinking": False}, {"tools": [TOOL]}]


def family_cases(folder):
    names = sorted(name for name in os.listdir(folder) if name.endswith(".jinja"))
    assert len(names) >= 10, names
    for name in names:
        with open(os.path.join(folder, name)) as file:
            template = file.read()
        for messages in conversations:
            for add_generation_prompt in (False, True):
                for setting in settings:
                    yield template, dict(setting, messages=messages, documents=None, add_generation_prompt=add_generation_prompt, bos_token="<s>", eos_token="</s>"), name


cases = []
for source in sources:
    if os.path.isdir(source):
        cases += family_cases(source)
    else:
        cases += [(template, variables, os.path.basename(source)) for template, variables in runpy.run_path(source)["cases"]]

requests = "".join(json.dumps({"template": template, "variables": variables, "now": NOW}) + "\n" for template, variables, _ in cases)
answers = subprocess.run([render], input=requests, stdout=subprocess.PIPE, check=True, text=True).stdout.splitlines()
assert len(answers) == len(cases)

texts = errors = wrong = 0
for (template, variables, name), line in zip(cases, answers):
    answer = json.loads(line)
    try:
        expected = environment.from_string(template).render(**variables)
        texts += 1
        right = answer.get("text") == expected
    except Exception as error:
        expected = error
        errors += 1
        right = "error" in answer
    if not right:
        wrong += 1
        print(f"{name}: {template if len(template) < 300 else json.dumps(variables)}\n  Jinja:  {expected!r}\n  Sluice: {answer.get('text', answer.get('error'))!r}")
print(f"{texts} texts and {errors} errors, {wrong} wrong")
sys.exit(wrong > 0)
