# Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""Every tracked C and C++ file is as clang-format and .clang-format have it.

usage: formatted.py CLANG_FORMAT
"""
import concurrent.futures
import os
import re
import sys

from tracked import ROOT, run, tracked_files


def check(clang_format, files):
    errors = run([clang_format, "--dry-run", "-Werror", *files], check=False).stderr
    return re.findall(r"^(\S+?):(\d+):\d+: error: code should be clang-formatted", errors, re.M)


def main():
    os.chdir(ROOT)
    files = tracked_files(".cpp", ".c", ".h")
    with concurrent.futures.ThreadPoolExecutor() as pool:
        results = pool.map(lambda part: check(sys.argv[1], part), [files[i::8] for i in range(8)])
    lines = {}
    for result in results:
        for path, line in result:
            lines.setdefault(path, []).append(line)
    for path, found in sorted(lines.items()):
        print(f"{path}:{found[0]}: not formatted ({len(found)} places); run clang-format-22 -i {path}")
    return 1 if lines or not files else 0


if __name__ == "__main__":
    sys.exit(main())
