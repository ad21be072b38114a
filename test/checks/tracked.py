# Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""The files of the repository: what git tracks, or all files where the tree is no git checkout (a source archive)."""
import pathlib
import subprocess

ROOT = pathlib.Path(__file__).resolve().parents[2]
NOT_SOURCE = (".git", "build", ".cache", "__pycache__")


def run(command, check=True):
    return subprocess.run(command, cwd=ROOT, check=check, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def tracked_files(*suffixes):
    """Paths relative to the root, sorted, that end in one of the suffixes (all files if none are given)."""
    if (ROOT / ".git").exists():
        # safe.directory: the tests may run as another user than the one who cloned.
        listed = run(["git", "-c", "safe.directory=*", "ls-files", "-z"]).stdout.split("\0")
        paths = [path for path in listed if path and (ROOT / path).is_file()]
    else:
        paths = [
            str(path.relative_to(ROOT)) for path in ROOT.rglob("*")
            if path.is_file() and not any(part.startswith(NOT_SOURCE) for part in path.relative_to(ROOT).parts)
        ]
    return sorted(path for path in paths if not suffixes or path.endswith(suffixes))
