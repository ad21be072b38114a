# Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""Checks that ptxas spills nothing of the one kernel of a step, for shapes of known models: persistent-spills.py SLUICE INPUTS FOLDER [all]. Prints a line for each. Without "all", those that spilled before."""

import json
import os
import subprocess
import sys

sluice, inputs, folder, *everything = sys.argv[1:]
LLAMA = json.load(open(inputs + "/llama-3-8b/config.json"))
SMALL = {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "head_dim": 64}
LARGE = {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64}
MODELS = {
    "Llama-3-8B": LLAMA,
    "Llama-3.2-1B": LLAMA | SMALL,
    "Llama-3-70B": LLAMA | LARGE,
    "Qwen3-32B": json.load(open(inputs + "/qwen3-32b/config.json")),
}
CACHES = (("f16", "f16"), ("int8", "int8"), ("int4-rot", "int4"))
FEW = {("Llama-3-70B", "int8-g128", "f16"), ("Llama-3-70B", "int4-g128", "int4-rot"), ("Qwen3-32B", "int8-g128", "int4-rot")}

failed = False
for model, config in MODELS.items():
    path = os.path.join(folder, model)
    os.makedirs(path)
    json.dump(config, open(path + "/config.json", "w"))
    for weights in ("int4-g128", "int8-g128"):
        for keys, values in CACHES:
            # The ring's size and the addresses of stages depend on the positions as well.
            if everything:
                contexts = (512, 8192, 32768) if model == "Llama-3-8B" else (8192,)
            else:
                contexts = (8192,) if model == "Llama-3-8B" or (model, weights, keys) in FEW else ()
            for context in contexts:
                options = ["--synthetic-weights", "--target", "h100", "--weights", weights, "--k-cache", keys, "--v-cache", values, "--context", str(context)]
                options += ["--prefill", "none", "--launch", "persistent", "-o", path + "/out"]
                subprocess.run([sluice, "compile", path + "/config.json"] + options, check=True)
                kernel = json.load(open(path + "/out/plan.json"))["kernels"]["layers"]
                bytes = [kernel[key] for key in ("stack_bytes", "spill_store_bytes", "spill_load_bytes")]
                print(model, weights, keys + "/" + values, context, kernel["registers"], *bytes, flush=True)
                failed |= any(bytes)
sys.exit("spills" if failed else 0)
