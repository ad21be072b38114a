# Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""Interrupts a command after various times: interrupt.py [--ignored | --speaks] FOLDER COMMAND...

The command runs in FOLDER, where its temporary files go to, too. Whatever happens, it ends with
the signal, its own clean-up done: FOLDER is empty afterwards, unless the command was faster.
With --ignored it is started with the signals ignored, as nohup does, and must succeed. With
--speaks times count from its first line of stderr: an interpreter that is interrupted while it
starts answers for itself."""

import os
import shutil
import signal
import subprocess
import sys
import time

arguments = sys.argv[1:]
ignored, speaks = arguments[0] == "--ignored", arguments[0] == "--speaks"
folder, *command = arguments[ignored or speaks :]
folder = os.path.abspath(folder)


def set_signals():
    # Whoever runs the tests may have ignored them.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN if ignored else signal.SIG_DFL)


stopped = 0
for number, delay in [
    (signal.SIGINT, 0.1),
    (signal.SIGTERM, 0.2),
    (signal.SIGHUP, 0.3),
    (signal.SIGINT, 0.4),
    (signal.SIGTERM, 0.05),
]:
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=dict(os.environ, TMPDIR=folder),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE if speaks else None,
        preexec_fn=set_signals,
    )
    said = process.stderr.readline() if speaks else b""
    time.sleep(delay)
    process.send_signal(number)
    said += process.communicate()[1] or b""
    status = process.returncode
    if ignored and status:
        sys.exit(f"status {status} after signal {number}, which was ignored")
    if status == 0:
        continue
    # A run that has begun to speak ends by itself, with the status that a shell would show.
    if status not in (-number, 128 + signal.SIGINT):
        sys.exit(f"{said.decode()}status {status} after signal {number}")
    if os.listdir(folder):
        sys.exit(f"signal {number} after {delay} s left {os.listdir(folder)}")
    stopped += 1
if not stopped and not ignored:
    sys.exit("no signal came in time")
