# Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""Talks on a terminal and interrupts: interrupt-chat.py COMMAND..., whose answers have no end but that of the context."""

import os
import pty
import signal
import subprocess
import sys


class Talk:
    def __init__(self):
        def set_signals():
            # Whoever runs the tests may have ignored them.
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_DFL)

        self.terminal, theirs = pty.openpty()
        self.process = subprocess.Popen(sys.argv[1:], stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=set_signals)
        os.close(theirs)
        self.read_until(b"> ")

    def say(self, line):
        os.write(self.terminal, line + b"\n")

    def read_until(self, end):
        text = b""
        while not text.endswith(end):
            part = self.process.stdout.read(1)
            assert part, (text, self.process.stderr.read())
            text += part
        return text

    def end(self, number):
        self.process.send_signal(number)
        _, err = self.process.communicate(timeout=60)
        return self.process.returncode, err


whole = subprocess.run(sys.argv[1:], input=b"Alice was\n", stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
assert whole.returncode == 1 and b"is full" in whole.stderr, whole

# Ctrl-C ends an answer, which is not the program's end: another turn follows.
talk = Talk()
for turn in range(2):
    talk.say(b"Alice was")
    assert talk.process.stdout.read(1)
    talk.process.send_signal(signal.SIGINT)
    talk.read_until(b"\n> ")
# At the prompt there is no answer to end. That of neither turn filled the context.
assert talk.end(signal.SIGINT) == (-signal.SIGINT, b"")

# SIGTERM ends the program in the middle of an answer.
talk = Talk()
talk.say(b"Alice was")
assert talk.process.stdout.read(1)
assert talk.end(signal.SIGTERM) == (130, b"")

# The end of the input ends the program, and so does /quit.
for line in (b"\x04", b"/quit\n"):
    talk = Talk()
    os.write(talk.terminal, line)
    out, err = talk.process.communicate(timeout=60)
    assert (talk.process.returncode, err) == (0, b""), (talk.process.returncode, err)
    assert out == (b"\n" if line == b"\x04" else b""), out
