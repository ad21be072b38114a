# Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""The ```mlir examples of the .td files parse and verify.

An example shows an operation without what surrounds it, so the surroundings are made here: statements go into a function, and what the
example does not define becomes an argument of it. The types of those arguments are learned from the parser: every unknown value starts as
an `index`, and where the parser says that a use expects another type, that type is taken and the example is parsed again. Symbols that the
example only uses are declared in front of it. The examples themselves are never changed, but for `// ...`, which is a comment.

usage: examples_parse.py SLUICE_OPT
"""
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
SEPARATOR = "// -----"
# Operations that stand in a module; all others go into a function.
MODULE_LEVEL = ("model.weight", "model.cache ", "model.rope_table", "quantized.packed", "plan.buffer", "plan.step", "func.func", "gpu.module ", "module ")


def fences(path):
    text = path.read_text()
    for match in re.finditer(r"^[ ]*```mlir\n(.*?)^[ ]*```", text, re.S | re.M):
        lines = match[1].split("\n")
        indent = min(len(line) - len(line.lstrip()) for line in lines if line.strip())
        yield text.count("\n", 0, match.start(1)) + 1, "\n".join(line[indent:] for line in lines).rstrip()


def statements(text):
    """Splits at lines that begin an operation at the margin (a region's tail such as `} epilogue {` continues one)."""
    result = []
    for line in text.split("\n"):
        begins = re.match(r"(%|[a-z_]+\.[a-z_]+|module\b|//)", line)
        if begins or not result:
            result.append(line)
        else:
            result[-1] += "\n" + line
    return [statement for statement in result if statement.strip() and not statement.startswith("//")]


class Example:
    def __init__(self, path, line, text):
        self.where, self.text = f"{path.relative_to(ROOT)}:{line}", text
        self.types = {}  # of the values that the example does not define
        self.errors = []

    def functions(self, body):
        """Groups statements so that no group defines a value twice (alternatives of one operation)."""
        groups, defined = [], set()
        for statement in body:
            results = re.match(r"((?:%[\w]+(?::\d+)?(?:, )?)+) = ", statement)
            names = set(re.findall(r"%\w+", results[1])) if results else set()
            if not groups or names & defined:
                groups.append([])
                defined = set()
            groups[-1].append(statement)
            defined |= names
        return groups

    def render(self):
        text = self.text
        if re.match(r"[#!]\w+\.", text):
            return "\n".join(f"module attributes {{sluice.example = {line}}} {{}}" for line in text.split("\n"))
        if text.startswith("fused.yield"):  # Ends a region; nothing to see alone.
            return ("func.func @f(%x: tensor<1x256xf32>, %w: tensor<768x256xf16>, %r: tensor<1x768xf16>) -> tensor<1x768xf16> {\n"
                    "%y = fused.matvec %x weights(%w) segments [768] : tensor<1x256xf32>, tensor<768x256xf16> -> tensor<1x768xf16>\n"
                    "epilogue {\n^bb0(%s: tensor<1x768xf32>):\n" + text + "\n}\nreturn %y : tensor<1x768xf16>\n}")
        parts = statements(text)
        top = [part for part in parts if part.startswith(MODULE_LEVEL)]
        body = [part for part in parts if not part.startswith(MODULE_LEVEL)]
        groups = self.functions(body)
        functions = []
        for number, group in enumerate(groups):
            joined = "\n".join(group)
            own = set(re.findall(r"(%\w+): ", joined))  # block arguments
            for results in re.findall(r"^\s*((?:%\w+(?::\d+)?(?:, )?)+) = ", joined, re.M):
                own.update(re.findall(r"%\w+", results))
            arguments = sorted(set(re.findall(r"%[a-zA-Z_]\w*", joined)) - own)
            listed = ", ".join(f"{name}: {self.types.get((number, name), 'index')}" for name in arguments)
            functions.append(f"func.func @example_{number}({listed}) {{\n{joined}\nreturn\n}}")
        return "\n".join(self.declarations(text) + top + functions)

    def declarations(self, text):
        defined = set(re.findall(r"(?:model\.weight|model\.cache|model\.rope_table|quantized\.packed|plan\.buffer|func\.func) @([\w.]+)", text))
        wanted = {}
        for name, of in re.findall(r"model\.parameter @([\w.]+) : (.*)", text):
            if "layout = " in of and "layout = blocks" not in of:
                wanted[name] = f"model.weight @{name}.source : tensor<1x1xf32>\nquantized.packed @{name} of [@{name}.source] : {of}"
            else:
                wanted[name] = f"model.weight @{name} : {of}"
        for pattern in (r"cache_append @([\w.]+)", r"caches \[@([\w.]+), @([\w.]+)\]", r"attention %\w+, @([\w.]+), @([\w.]+)"):
            for match in re.findall(pattern, text):
                for name in [match] if isinstance(match, str) else match:
                    # What a page table is for is made of pages.
                    paged = re.search(rf"@{re.escape(name)}\b.* pages %", text)
                    of = "66x32x2x64xf16, layout = lanes_keys" if paged else "1x2048x2x64xf16"
                    wanted[name] = f"model.cache @{name} : !quantized.cache<{of}>"
        for sources, of in re.findall(r"quantized\.packed @[\w.]+ of \[([^\]]*)\].*?: ([^\n]*)$", text, re.M):
            for name in re.findall(r"@([\w.]+)", sources):
                wanted.setdefault(name, f"model.weight @{name} : tensor<1x1xf32>")
        for name in re.findall(r"{source = @([\w.]+)}", text):
            wanted.setdefault(name, f"model.weight @{name}.source : tensor<1x1xf32>\nquantized.packed @{name} of [@{name}.source] : tensor<1x1xf32>")
        for buffers in re.findall(r"plan\.launch @[\w:@]+ \[([^\]]*)\]", text):
            for name in re.findall(r"@([\w.]+)", buffers):
                wanted.setdefault(name, f"plan.buffer @{name} input : tensor<1xi32> bytes 4")
        lines = [line for name, line in wanted.items() if name not in defined]
        kernels = sorted(set(re.findall(r"@kernels::@([\w.]+)", text)))
        if kernels and "module @kernels" not in text:
            functions = "\n".join(f"llvm.func @{name}(!llvm.ptr, i64, i64)" for name in kernels)
            lines.append(f"module @kernels {{\n{functions}\n}}")
        return lines


def parse(sluice_opt, examples):
    """Parses all examples in one run and gives each its errors, with the function that they are in."""
    text, starts = [], []
    for example in examples:
        starts.append(len(text) + 1)
        text += example.render().split("\n") + [SEPARATOR]
        example.errors = []
    run = subprocess.run([sluice_opt, "--split-input-file", "-o", "/dev/null", "-"], input="\n".join(text[:-1]), stderr=subprocess.PIPE, text=True)
    blamed = 0
    for line, message in re.findall(r"^\S*:(\d+):\d+: error: (.*)$", run.stderr, re.M):
        index = max(i for i, start in enumerate(starts) if start <= int(line))
        function = sum(part.startswith("func.func @example_") for part in text[starts[index] - 1:int(line)]) - 1
        examples[index].errors.append((function, message))
        blamed += 1
    if run.returncode and not blamed:
        raise SystemExit(f"{sluice_opt}: exit status {run.returncode}: {run.stderr.strip()[:500]}")


def main():
    sluice_opt = sys.argv[1]
    paths = sorted((ROOT / "dialects").glob("*/*.td")) + sorted((ROOT / "include/sluice").glob("*/Passes.td"))
    examples = [Example(path, line, text) for path in paths for line, text in fences(path)]
    findings = []
    pending = examples
    while pending:
        parse(sluice_opt, pending)
        retry = []
        for example in pending:
            learned = False
            for function, message in example.errors:
                match = re.match(r"use of value '(%\w+)' expects different type than prior uses: '(.*)' vs 'index'", message)
                if match and (function, match[1]) not in example.types:
                    example.types[(function, match[1])] = match[2]
                    learned = True
            if learned:
                retry.append(example)
            elif example.errors:
                findings += [f"{example.where}: {message}" for _, message in example.errors]
        pending = retry
    if not examples:
        findings.append("no examples found")
    print("\n".join(findings), end="\n" if findings else f"{len(examples)} examples parse\n")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
