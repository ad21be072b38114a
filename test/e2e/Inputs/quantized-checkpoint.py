# Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""Makes a quantized checkpoint of the first layer of a Hugging Face folder, and what it stands for in float32:

    quantized-checkpoint.py SOURCE FOLDER SCHEME [OPTION=VALUE...]

writes FOLDER/quantized and FOLDER/values. SCHEME is gptq, gptq_v2, awq, awq-gemv, pack-quantized, int-quantized, fp8, nvfp4, mxfp4 or mxfp4-blocks. Options: bits=4|8; group=COLUMNS (0: a row); zeros=1 (zero points);
order=1 (columns are not in the order of their groups); scales=F16|BF16|F32; per=tensor|row|block (fp8); and, to make a file that is wrong, drop=TENSOR, config=JSON (merged into
quantization_config). Written against the formats' definitions, without Sluice's code.
"""

import bisect
import json
import math
import os
import random
import struct
import sys

source, folder, scheme, *rest = sys.argv[1:]
options = dict(option.split("=", 1) for option in rest)
bits, group = int(options.get("bits", 4)), int(options.get("group", 128))
with_zeros, with_order = options.get("zeros") == "1", options.get("order") == "1"
scale_type = options.get("scales", "F16")
low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
per_word = 32 // bits


def f32(values):
    return list(struct.unpack(f"<{len(values)}f", struct.pack(f"<{len(values)}f", *values)))


def rounded(x, dtype):
    """A number of a type, as a float."""
    if dtype == "F16":
        return struct.unpack("<e", struct.pack("<e", x))[0]
    word = struct.unpack("<I", struct.pack("<f", x))[0]
    if dtype == "BF16":
        word = (word + 0x7FFF + (word >> 16 & 1)) & 0xFFFF0000
    return struct.unpack("<f", struct.pack("<I", word))[0]


def stored(values, dtype):
    if dtype == "BF16":
        return b"".join(struct.pack("<f", x)[2:] for x in values)
    return struct.pack(f"<{len(values)}" + {"F16": "e", "F32": "f", "I32": "I", "I8": "b", "U8": "B", "I64": "q"}[dtype], *values)


def read_source():
    tensors = {}
    for name in sorted(os.listdir(source)):
        if not name.endswith(".safetensors"):
            continue
        with open(os.path.join(source, name), "rb") as file:
            data = file.read()
        size = struct.unpack_from("<Q", data)[0]
        for tensor, entry in json.loads(data[8 : 8 + size]).items():
            if tensor == "__metadata__" or (tensor.startswith("model.layers.") and not tensor.startswith("model.layers.0.")):
                continue
            begin, end = (8 + size + offset for offset in entry["data_offsets"])
            assert entry["dtype"] == "F16"
            tensors[tensor] = (entry["shape"], struct.unpack(f"<{(end - begin) // 2}e", data[begin:end]))
    return tensors


def write(path, tensors, config):
    os.makedirs(path)
    header, offset = {}, 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + len(data)]}
        offset += len(data)
    text = json.dumps(header).encode()
    with open(os.path.join(path, "model.safetensors"), "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, _, data in tensors.values():
            file.write(data)
    with open(os.path.join(path, "config.json"), "w") as file:
        json.dump(config, file)
    os.symlink(os.path.realpath(os.path.join(source, "tokenizer.model")), os.path.join(path, "tokenizer.model"))


def words(numbers):
    """Packs fields of `bits` bits into words, the first at the low end."""
    numbers = numbers + [0] * (-len(numbers) % per_word)
    return [sum(n << bits * i for i, n in enumerate(numbers[at : at + per_word])) for at in range(0, len(numbers), per_word)]


def transposed(rows):
    return [list(column) for column in zip(*rows)]


def flat(rows):
    return [x for row in rows for x in row]


def quantized_integers(stem, rows, columns, values):
    """q, zero point and scale of each row, group by group; and the group of each column."""
    width = group or columns
    groups = [column // width for column in range(columns)]
    if with_order:
        random.Random(stem).shuffle(groups)
    count = max(groups) + 1
    members = [[k for k in range(columns) if groups[k] == g] for g in range(count)]
    q, zeros, scales = [], [], []
    for n in range(rows):
        row = values[n * columns : (n + 1) * columns]
        row_q, row_zeros, row_scales = [0] * columns, [], []
        for ks in members:
            least, most = min(0.0, *(row[k] for k in ks)), max(0.0, *(row[k] for k in ks))
            scale = (most - least) / (high - low) if with_zeros else max(most, -least) / high
            scale = rounded(scale, scale_type)
            zero = min(max(low - round(least / scale), low), high) if with_zeros else 0
            for k in ks:
                row_q[k] = min(max(round(row[k] / scale) + zero, low), high)
            row_zeros.append(zero)
            row_scales.append(scale)
        q.append(row_q)
        zeros.append(row_zeros)
        scales.append(row_scales)
    dequantized = [(q[n][k] - zeros[n][groups[k]]) * scales[n][groups[k]] for n in range(rows) for k in range(columns)]
    return q, zeros, scales, groups, dequantized


def integer_tensors(stem, rows, columns, values):
    q, zeros, scales, groups, dequantized = quantized_integers(stem, rows, columns, values)
    count = len(scales[0])
    bias = 1 << (bits - 1)
    unsigned = [[x + bias for x in row] for row in q]
    unsigned_zeros = [[x + bias for x in row] for row in zeros]
    tensors = {}
    if scheme in ("gptq", "gptq_v2"):
        less = 1 if scheme == "gptq" else 0
        tensors["qweight"] = ("I32", [columns // per_word, rows], stored(flat(transposed([words(row) for row in unsigned])), "I32"))
        stored_zeros = [words([(x - less) % (1 << bits) for x in row]) for row in transposed(unsigned_zeros)]
        tensors["qzeros"] = ("I32", [count, rows // per_word], stored(flat(stored_zeros), "I32"))
        tensors["scales"] = (scale_type, [count, rows], stored(flat(transposed(scales)), scale_type))
        tensors["g_idx"] = ("I32", [columns], stored(groups, "I32"))
    elif scheme == "awq":

        def interleaved(row):
            order = (0, 2, 4, 6, 1, 3, 5, 7) if bits == 4 else (0, 2, 1, 3)
            return words(flat([[row[at + i] for i in order] for at in range(0, len(row), per_word)]))

        tensors["qweight"] = ("I32", [columns, rows // per_word], stored(flat([interleaved(row) for row in transposed(unsigned)]), "I32"))
        tensors["qzeros"] = ("I32", [count, rows // per_word], stored(flat([interleaved(row) for row in transposed(unsigned_zeros)]), "I32"))
        tensors["scales"] = (scale_type, [count, rows], stored(flat(transposed(scales)), scale_type))
    elif scheme == "awq-gemv":
        multiple = 8 * {32: 4, 64: 2}.get(group, 1)
        padded = -(-count // multiple) * multiple
        tensors["qweight"] = ("I32", [rows, columns // 8], stored(flat([words(row) for row in unsigned]), "I32"))
        tensors["qzeros"] = ("I32", [rows, padded // 8], stored(flat([words(row + [0] * (padded - count)) for row in unsigned_zeros]), "I32"))
        tensors["scales"] = (scale_type, [rows, padded], stored(flat([row + [0.0] * (padded - count) for row in scales]), scale_type))
    elif scheme == "int-quantized":
        tensors["weight"] = ("I8", [rows, columns], stored(flat(q), "I8"))
        tensors["weight_scale"] = (scale_type, [rows, count], stored(flat(scales), scale_type))
    else:
        tensors["weight_packed"] = ("I32", [rows, columns // per_word], stored(flat([words(row) for row in unsigned]), "I32"))
        tensors["weight_scale"] = (scale_type, [rows, count], stored(flat(scales), scale_type))
        tensors["weight_shape"] = ("I64", [2], stored([rows, columns], "I64"))
        if with_zeros:
            packed = transposed([words(row) for row in transposed(unsigned_zeros)])
            tensors["weight_zero_point"] = ("I32", [rows // per_word, count], stored(flat(packed), "I32"))
        if with_order:
            tensors["weight_g_idx"] = ("I32", [columns], stored(groups, "I32"))
    return tensors, dequantized


# The magnitudes of E4M3 (without NaN) and E2M1, by code.
e4m3 = [math.ldexp(8 + f, e - 10) if e else math.ldexp(f, -9) for e in range(16) for f in range(8)][:127]
e2m1 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]


def nearest(x, magnitudes):
    """The code of a number, its sign above the bits of the magnitude."""
    code = min(bisect.bisect_left(magnitudes, abs(x)), len(magnitudes) - 1)
    if code and abs(x) - magnitudes[code - 1] < magnitudes[code] - abs(x):
        code -= 1
    return code | (128 if magnitudes is e4m3 else 8) * (x < 0)


def value(code, magnitudes):
    sign = 128 if magnitudes is e4m3 else 8
    return -magnitudes[code - sign] if code >= sign else magnitudes[code]


def fp8_tensors(stem, rows, columns, values):
    per = options.get("per", "block")
    height, width = {"tensor": (rows, columns), "row": (1, columns), "block": (128, 128)}[per]
    down, across = -(-rows // height), -(-columns // width)
    greatest = [[0.0] * across for _ in range(down)]
    for i, x in enumerate(values):
        n, k = divmod(i, columns)
        greatest[n // height][k // width] = max(greatest[n // height][k // width], abs(x))
    scales = [[rounded(x / 448, scale_type) for x in row] for row in greatest]
    codes, dequantized = bytearray(), []
    for i, x in enumerate(values):
        n, k = divmod(i, columns)
        scale = scales[n // height][k // width]
        codes.append(nearest(x / scale, e4m3))
        dequantized.append(value(codes[-1], e4m3) * scale)
    name, shape = {"tensor": ("weight_scale", []), "row": ("weight_scale", [rows, 1]), "block": ("weight_scale_inv", [down, across])}[per]
    return {
        "weight": ("F8_E4M3", [rows, columns], bytes(codes)),
        name: (scale_type, shape, stored(flat(scales), scale_type)),
        # What Sluice does not need, since it rounds inputs to more bits.
        "input_scale": ("F32", [], stored([1.0], "F32")),
    }, dequantized


def fp4_tensors(stem, rows, columns, values):
    nv = scheme == "nvfp4"
    width = 16 if nv else 32
    divisor = rounded(448 * 6 / max(map(abs, values)), "F32") if nv else 1.0
    codes, scale_codes, dequantized = [], bytearray(), []
    for at in range(0, len(values), width):
        part = values[at : at + width]
        greatest = max(map(abs, part)) or 1.0
        if nv:
            scale_codes.append(nearest(greatest / 6 * divisor, e4m3) or 1)
            scale = e4m3[scale_codes[-1]] / divisor
        else:
            scale_codes.append(math.frexp(greatest / 6)[1] + 127)
            scale = math.ldexp(1.0, scale_codes[-1] - 127)
        own = [nearest(x / scale, e2m1) for x in part]
        codes += own
        dequantized += [value(code, e2m1) * scale for code in own]
    packed = bytes(codes[i] | codes[i + 1] << 4 for i in range(0, len(codes), 2))
    if scheme == "mxfp4-blocks":
        return {
            "weight_blocks": ("U8", [rows, columns // 32, 16], packed),
            "weight_scales": ("U8", [rows, columns // 32], bytes(scale_codes)),
        }, dequantized
    tensors = {"weight_packed": ("U8", [rows, columns // 2], packed)}
    tensors["weight_scale"] = ("F8_E4M3" if nv else "U8", [rows, columns // width], bytes(scale_codes))
    if nv:
        tensors["weight_global_scale"] = ("F32", [1], stored([divisor], "F32"))
        tensors["input_global_scale"] = ("F32", [1], stored([1.0], "F32"))
    return tensors, dequantized


def quantization_config():
    if scheme == "fp8":
        return {"quant_method": "fp8", "activation_scheme": "dynamic"} | ({} if "per" in options else {"weight_block_size": [128, 128]})
    if scheme == "mxfp4-blocks":
        return {"quant_method": "mxfp4"}
    if scheme in ("nvfp4", "mxfp4"):
        weights = {"num_bits": 4, "type": "float", "group_size": 16 if scheme == "nvfp4" else 32}
        return {"quant_method": "compressed-tensors", "format": scheme + "-pack-quantized", "config_groups": {"group_0": {"weights": weights}}}
    if scheme in ("gptq", "gptq_v2"):
        return {"quant_method": "gptq", "bits": bits, "group_size": group or -1, "desc_act": with_order, "sym": not with_zeros, "checkpoint_format": scheme}
    if scheme.startswith("awq"):
        version = "gemv" if scheme == "awq-gemv" else "gemm"
        return {"quant_method": "awq", "bits": bits, "group_size": group or -1, "zero_point": with_zeros, "version": version}
    weights = {"num_bits": bits, "type": "int", "symmetric": not with_zeros, "strategy": "group" if group else "channel", "group_size": group or None}
    groups = {"group_0": {"targets": ["Linear"], "weights": weights}}
    return {"quant_method": "compressed-tensors", "format": scheme, "config_groups": groups, "ignore": ["lm_head"], "quantization_status": "compressed"}


with open(os.path.join(source, "config.json")) as file:
    config = json.load(file)
config["num_hidden_layers"] = 1
quantized, plain = {}, {}
for name, (shape, values) in read_source().items():
    plain[name] = ("F32", shape, stored(values, "F32"))
    if "_proj." not in name or len(shape) == 1:
        quantized[name] = ("F16", shape, stored(values, "F16"))
        continue
    stem = name.removesuffix(".weight")
    make = fp8_tensors if scheme == "fp8" else fp4_tensors if "fp4" in scheme else integer_tensors
    tensors, dequantized = make(stem, *shape, values)
    quantized.update({f"{stem}.{part}": tensor for part, tensor in tensors.items()})
    plain[name] = ("F32", shape, stored(f32(dequantized), "F32"))
if "drop" in options:
    del quantized[options["drop"]]
write(os.path.join(folder, "values"), plain, config)
config["quantization_config"] = quantization_config() | json.loads(options.get("config", "{}"))
write(os.path.join(folder, "quantized"), quantized, config)
