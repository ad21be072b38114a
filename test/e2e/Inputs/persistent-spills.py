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
# Two encodings in a product, and layers that differ, as in files of Q4_K_M; then one encoding everywhere.
MIX = "q4_k,blk.0.attn_v=q6_k,blk.0.ffn_down=q6_k"
RECORDS = (MIX, "q4_k,*attn_v=q6_k", "q4_k", "iq4_xs", "int4-g32", "q6_k", "int8-g32", "q5_k", "q3_k", "q2_k", "q4_1", "q5_0", "q5_1", "iq4_nl", "mxfp4", "nvfp4", "iq3s-g32-n8", "iq2-g16-n8")
CACHES = (("f16", "f16"), ("int8", "int8"), ("int4-rot", "int4"))
FEW_RECORDS = {("Llama-3-8B", MIX, "f16"), ("Llama-3-8B", "iq4_xs", "int4-rot"), ("Llama-3-70B", MIX, "int4-rot")}
FEW = {("Llama-3-70B", "int8-g128", "f16"), ("Llama-3-70B", "int4-g128", "int4-rot"), ("Qwen3-32B", "int8-g128", "int4-rot")}

failed = False
for model, config in MODELS.items():
    path = os.path.join(folder, model)
    os.makedirs(path)
    json.dump(config, open(path + "/config.json", "w"))
    for weights in ("int4-g128", "int8-g128", *RECORDS):
        for keys, values in CACHES:
            # The ring's size and the addresses of stages depend on the positions as well.
            if everything:
                contexts = (512, 8192, 32768) if model == "Llama-3-8B" else (8192,)
            elif weights in RECORDS:
                contexts = (8192,) if (model, weights, keys) in FEW_RECORDS else ()
            else:
                contexts = (8192,) if model == "Llama-3-8B" or (model, weights, keys) in FEW else ()
            for context in contexts:
                options = ["--synthetic-weights", "--target", "h100", "--weights", weights, "--k-cache", keys, "--v-cache", values, "--context", str(context)]
                options += ["--prefill", "none", "--launch", "persistent", "-o", path + "/out"]
                subprocess.run([sluice, "compile", path + "/config.json"] + options, check=True)
                plan = json.load(open(path + "/out/plan.json"))
                if "layers" not in plan["kernels"]:
                    print(model, weights, keys + "/" + values, context, plan["steps"]["decode"]["launch"]["reason"], flush=True)
                    failed = True
                    continue
                kernel = plan["kernels"]["layers"]
                bytes = [kernel[key] for key in ("stack_bytes", "spill_store_bytes", "spill_load_bytes")]
                print(model, weights, keys + "/" + values, context, kernel["registers"], *bytes, flush=True)
                failed |= any(bytes)
sys.exit("spills" if failed else 0)
