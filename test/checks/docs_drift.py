# Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""The committed pages under docs/dialects and docs/passes are what scripts/generate-docs writes."""
import pathlib
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]


def pages(folder):
    return {
        path.relative_to(folder): path.read_text()
        for part in ("dialects", "passes")
        for path in (folder / part).glob("*.md")
    }


def main():
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([ROOT / "scripts/generate-docs", folder], check=True)
        wanted = pages(pathlib.Path(folder))
    found = pages(ROOT / "docs")
    findings = []
    for path in sorted(wanted.keys() | found.keys()):
        if path not in wanted:
            findings.append(f"docs/{path}: no .td file describes it; remove it or teach scripts/generate-docs about it")
        elif path not in found:
            findings.append(f"docs/{path}: missing; run scripts/generate-docs")
        elif found[path] != wanted[path]:
            lines = zip(found[path].split("\n") + [""], wanted[path].split("\n") + [""])
            line = next((n for n, (a, b) in enumerate(lines, 1) if a != b), 0)
            findings.append(f"docs/{path}:{line}: differs from the .td files; run scripts/generate-docs")
    print("\n".join(findings), end="\n" if findings else "")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
