# Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""A pass has one name: its def, its .cpp file, its argument, its lit test (which runs it) and its heading in docs/passes.

Every pass also describes itself with an example of what it does (before ==> after).
"""
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]


def kebab(name):
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", name).lower()


def check(area, name, argument, description, findings):
    where = f"include/sluice/{area}/Passes.td: {name}"
    if kebab(name) != argument:
        findings.append(f"{where}: argument is '{argument}', the name gives '{kebab(name)}'")
    if not list((ROOT / "lib" / area).rglob(name + ".cpp")):
        findings.append(f"{where}: no {name}.cpp under lib/{area}")
    if "==>" not in description:
        findings.append(f"{where}: the description has no example (before ==> after)")
    tests = list((ROOT / "test").rglob(argument + ".mlir"))
    if not tests:
        findings.append(f"{where}: no lit test {argument}.mlir under test/")
    runs = [line for test in tests for line in test.read_text().splitlines() if "RUN:" in line or line.startswith("// RUN")]
    if tests and not any(re.search(rf"[-\s(,'\"]{re.escape(argument)}\b(?!-)", line) for line in runs):
        findings.append(f"{where}: no RUN line of {tests[0].relative_to(ROOT)} names {argument}")
    page = ROOT / f"docs/passes/{area}.md"
    if not page.exists() or f"### `-{argument}`\n" not in page.read_text():
        findings.append(f"{where}: docs/passes/{area}.md has no heading for {argument}; run scripts/generate-docs")


def main():
    findings, count = [], 0
    for path in sorted((ROOT / "include/sluice").glob("*/Passes.td")):
        text = path.read_text()
        for part in re.split(r"(?m)^(?=def )", text)[1:]:
            match = re.match(r'def (\w+)\s*:\s*(?:Interface)?Pass<"([^"]+)"', part)
            if not match:
                findings.append(f"{path.relative_to(ROOT)}: cannot read '{part.splitlines()[0]}'")
                continue
            count += 1
            description = re.search(r"description\s*=\s*\[\{(.*?)\}\];", part, re.S)
            check(path.parent.name, match[1], match[2], description[1] if description else "", findings)
    if not count:
        findings.append("include/sluice/*/Passes.td: no passes found")
    print("\n".join(findings), end="\n" if findings else "")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
