# Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""Every source file has the license header, links and mentions of pages lead somewhere, and the tree stays small and speaks only of itself."""
import re
import sys

from tracked import ROOT, tracked_files

HEADER = ("Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.", "SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception")
SOURCES = (".cpp", ".c", ".h", ".td", ".py")
DATA = ("models/", "test/data/")
MAX_FILE_BYTES = 1_000_000
MAX_TREE_BYTES = 49_000_000
# Traces of where and how a file was made. Written in pieces, so that this file passes its own test.
FOREIGN = re.compile(r"/wor" r"k\b|\bshare" r"d/(gguf|models|text|facts|prototypes)|\bsub-?age" r"nts?\b|\bchat" r"bot\b|\bAI assis" r"tant\b"
                     r"|TEMPO" r"RARY|\bTO" r"DO\b|\bFIX" r"ME\b|\bXX" r"X\b")


def is_script(path):
    return path.startswith(("scripts/", ".ci/"))


def has_header(text):
    return all(line in "\n".join(text.split("\n", 6)[:6]) for line in HEADER)


def broken_links(path, text):
    for target in re.findall(r"\[[^\]\n]*\]\(([^)\s]+)\)", re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.S)):
        if not re.match(r"(https?:|mailto:|#)", target) and not (ROOT / path).parent.joinpath(target.split("#")[0]).exists():
            yield target


def main():
    findings, total = [], 0
    for path in tracked_files():
        size = (ROOT / path).stat().st_size
        total += size
        if path.startswith(DATA):
            continue
        if size > MAX_FILE_BYTES:
            findings.append(f"{path}: {size} bytes; only models/ and test/data/ may have files over {MAX_FILE_BYTES}")
            continue
        try:
            text = (ROOT / path).read_text()
        except UnicodeDecodeError:
            continue
        if (path.endswith(SOURCES) or is_script(path)) and not has_header(text):
            findings.append(f"{path}: no license header in its first lines (copy it from any other source file)")
        if path.endswith(".md"):
            findings += [f"{path}: link to {target}, which does not exist" for target in broken_links(path, text)]
        for number, line in enumerate(text.split("\n"), 1):
            for page in re.findall(r"\bdocs/[\w/-]+\.md\b", line):
                if not (ROOT / page).exists() and "ggml's " + page not in line:
                    findings.append(f"{path}:{number}: {page} does not exist")
            if match := FOREIGN.search(line):
                findings.append(f"{path}:{number}: '{match[0]}' does not belong in the repository")
    if total > MAX_TREE_BYTES:
        findings.append(f"the tree has {total} bytes, more than {MAX_TREE_BYTES}")
    print("\n".join(findings), end="\n" if findings else "")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
