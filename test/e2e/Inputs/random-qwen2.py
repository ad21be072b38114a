# Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""Writes a small Qwen2 model (biases of q, k and v, tied head) with random weights:
random-qwen2.py FOLDER [hidden=96] [mlp=176] [head_dim=24] ... [up_proj.weight=1000]; the last multiplies all tensors whose names end so"""

import json
import os
import random
import struct
import sys

folder = sys.argv[1]
sizes = {"hidden": 96, "mlp": 176, "layers": 2, "heads": 4, "kv_heads": 2, "head_dim": 24, "vocab": 259}
factors = {}
for argument in sys.argv[2:]:
    name, value = argument.split("=")
    if name in sizes:
        sizes[name] = int(value)
    else:
        factors[name] = float(value)
hidden, mlp, layers, heads, kv_heads, head_dim, vocab = sizes.values()
config = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_act": "silu",
    "vocab_size": vocab,
    "hidden_size": hidden,
    "intermediate_size": mlp,
    "num_hidden_layers": layers,
    "num_attention_heads": heads,
    "num_key_value_heads": kv_heads,
    "head_dim": head_dim,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "tie_word_embeddings": True,
}
shapes = {"model.embed_tokens.weight": [vocab, hidden], "model.norm.weight": [hidden]}
for layer in range(layers):
    prefix = f"model.layers.{layer}."
    for name, rows in (("q", heads * head_dim), ("k", kv_heads * head_dim), ("v", kv_heads * head_dim)):
        shapes[f"{prefix}self_attn.{name}_proj.weight"] = [rows, hidden]
        shapes[f"{prefix}self_attn.{name}_proj.bias"] = [rows]
    shapes[prefix + "self_attn.o_proj.weight"] = [hidden, heads * head_dim]
    shapes[prefix + "mlp.gate_proj.weight"] = shapes[prefix + "mlp.up_proj.weight"] = [mlp, hidden]
    shapes[prefix + "mlp.down_proj.weight"] = [hidden, mlp]
    shapes[prefix + "input_layernorm.weight"] = [hidden]
    shapes[prefix + "post_attention_layernorm.weight"] = [hidden]

generator = random.Random(1)
header, data = {}, bytearray()
for name, shape in shapes.items():
    count = shape[0] * (shape[1] if len(shape) > 1 else 1)
    begin = len(data)
    factor = next((f for end, f in factors.items() if name.endswith(end)), 1.0)
    data += struct.pack(f"<{count}f", *(factor * generator.gauss(0, 0.1) for _ in range(count)))
    header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [begin, len(data)]}
text = json.dumps(header).encode()
os.makedirs(folder, exist_ok=True)
with open(os.path.join(folder, "config.json"), "w") as file:
    json.dump(config, file)
with open(os.path.join(folder, "model.safetensors"), "wb") as file:
    file.write(struct.pack("<Q", len(text)) + text + data)
