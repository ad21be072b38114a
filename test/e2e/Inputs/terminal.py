# Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""Runs a command whose standard error is a terminal, and writes what it says there to FILE: terminal.py FILE COMMAND..."""

import os
import pty
import subprocess
import sys
import threading

ours, theirs = pty.openpty()
said = bytearray()


def read():
    try:
        while part := os.read(ours, 4096):
            said.extend(part)
    except OSError:  # nobody has the other end any more
        pass


process = subprocess.Popen(sys.argv[2:], stderr=theirs)
os.close(theirs)
reader = threading.Thread(target=read)
reader.start()
status = process.wait()
reader.join()
with open(sys.argv[1], "wb") as file:
    file.write(said)
sys.exit(status)
