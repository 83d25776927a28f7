"""Writes tests/golden/llama/layers.safetensors: the output of every decoder
block, computed in float64 by NumPy alone from llama/weights.safetensors.

An implementation of its own, so that it can be wrong in its own way: it first
asserts that its logits agree with the official ones in llama/cases.safetensors
within the tolerances of manifest.json. Needs numpy; run it anywhere:

    python tests/golden/decoder_layers.py
"""

import json
import struct
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
EVERY = 4  # positions kept: 0, 4, 8, ...
CASES = ("plain", "packed_restart")


def read(path):
    """name -> array; bf16 widened to float32."""
    data = path.read_bytes()
    (n,) = struct.unpack_from("<Q", data)
    kinds = {"F32": "<f4", "I32": "<i4", "U8": "u1", "BF16": "<u2"}
    tensors = {}
    for name, info in json.loads(data[8 : 8 + n]).items():
        if name == "__metadata__":
            continue
        start, end = (8 + n + offset for offset in info["data_offsets"])
        array = np.frombuffer(data[start:end], kinds[info["dtype"]])
        if info["dtype"] == "BF16":
            array = (array.astype(np.uint32) << 16).view(np.float32)
        tensors[name] = array.reshape(info["shape"])
    return tensors


def write(path, tensors):
    header, blobs, at = {}, [], 0
    for name, array in sorted(tensors.items()):
        blob = np.ascontiguousarray(array, "<f4").tobytes()
        header[name] = {"dtype": "F32", "shape": list(array.shape), "data_offsets": [at, at + len(blob)]}
        blobs.append(blob)
        at += len(blob)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(blobs))


def rms_norm(x, weight, eps):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * weight


def rope(x, positions, theta):
    """x [t, heads, d]; adjacent pairs; the table by the rule of lwm/llama.py."""
    d = x.shape[-1]
    frequencies = 1.0 / float(theta) ** (np.arange(0, d, 2) / d)
    angles = np.outer(positions.astype(np.float64), frequencies).astype(np.float32)
    cos, sin = np.cos(angles)[:, None].astype(np.float64), np.sin(angles)[:, None].astype(np.float64)
    a, b = x[..., 0::2], x[..., 1::2]
    return np.stack([a * cos - b * sin, a * sin + b * cos], -1).reshape(x.shape)


def attention(q, k, v, visible):
    scores = np.einsum("qhd,khd->hqk", q, k) / np.sqrt(q.shape[-1])
    scores = np.where(visible, scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return np.einsum("hqk,khd->qhd", weights, v)


def forward(params, config, ids, vision, segments, positions):
    """name -> output of every step, in float64."""
    heads, eps, theta = config["num_attention_heads"], config["rms_norm_eps"], config["theta"]
    layer = {name.split("scan_decoder/")[1]: value for name, value in params.items() if "scan_decoder/" in name}
    text, codes = params["transformer/wte/embedding"], params["transformer/vte/embedding"]
    x = np.where(vision[:, None] > 0, codes[np.where(vision > 0, ids, 0)], text[np.where(vision > 0, 0, ids)])
    steps = {"embedding": x}
    place = np.arange(len(ids))
    visible = (place[None] <= place[:, None]) & (segments[None] == segments[:, None])
    for i in range(config["num_hidden_layers"]):
        w = {name: value[i] for name, value in layer.items()}
        n = rms_norm(x, w["attention_norm/kernel"], eps)
        q, k, v = ((n @ w[f"attention/{name}/kernel"]).reshape(len(ids), heads, -1) for name in ("wq", "wk", "wv"))
        mixed = attention(rope(q, positions, theta), rope(k, positions, theta), v, visible)
        x = x + mixed.reshape(len(ids), -1) @ w["attention/wo/kernel"]
        steps[f"layers.{i}.attention"] = x
        n = rms_norm(x, w["ffn_norm/kernel"], eps)
        gate = n @ w["feed_forward/w1/kernel"]
        x = x + (gate / (1 + np.exp(-gate)) * (n @ w["feed_forward/w3/kernel"])) @ w["feed_forward/w2/kernel"]
        steps[f"layers.{i}"] = x
    steps["norm"] = rms_norm(x, params["transformer/ln_f/kernel"], eps)
    return steps


def main():
    manifest = json.loads((HERE / "manifest.json").read_text())
    tolerances = {t["tensor"]: t["tol"] for t in manifest["tensors"] if t["file"] == "llama/cases.safetensors" and "tol" in t}
    config = json.loads((HERE / "llama/config.json").read_text())
    params = {name: value.astype(np.float64) for name, value in read(HERE / "llama/weights.safetensors").items()}
    cases = read(HERE / "llama/cases.safetensors")
    kept = {}
    for case in CASES:
        inputs = (cases[f"{case}.{name}"][0] for name in ("input_ids", "vision_masks", "segment_ids", "position_ids"))
        steps = forward(params, config, *inputs)
        for head, kernel in (("vision_logits", "vision_head/kernel"), ("text_logits", "lm_head/kernel")):
            error = np.abs(steps["norm"] @ params[kernel] - cases[f"{case}.{head}"][0]).max()
            assert error <= tolerances[f"{case}.{head}"], (case, head, error)
            print(f"{case}.{head}: within {error:.2e} of the official logits")
        kept |= {f"{case}.{name}": value[::EVERY] for name, value in steps.items()}
    write(HERE / "llama/layers.safetensors", kept)


if __name__ == "__main__":
    main()
