"""PyTorch's scaled_dot_product_attention, as a peer of `longreel bench kernels --peer`.

Reads one request a line, answers each with one line (benches/README.md).
Needs torch (CPU): pip install torch --index-url https://download.pytorch.org/whl/cpu
"""

import json
import sys
import time

import torch
from torch.nn.functional import scaled_dot_product_attention

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}
PEER = f"torch {torch.__version__.split('+')[0]} scaled_dot_product_attention"


def answer(request: dict) -> dict:
    op, dtype = request["op"], DTYPES.get(request["dtype"])
    if op not in ("attend", "decode") or dtype is None:
        return {"skip": f"{op} {request['dtype']} is not an operation of this peer"}
    torch.set_num_threads(request["threads"])
    s, d, heads, kv_heads = (request[name] for name in ("s", "d", "heads", "kv_heads"))
    rows = s if op == "attend" else 1
    q = torch.randn(1, heads, rows, d, dtype=dtype)
    k, v = (torch.randn(1, kv_heads, s, d, dtype=dtype) for _ in range(2))
    start = time.perf_counter()
    with torch.inference_mode():
        for _ in range(request["runs"]):
            scaled_dot_product_attention(
                q, k, v, is_causal=op == "attend", enable_gqa=heads != kv_heads
            )
    seconds = (time.perf_counter() - start) / request["runs"]
    return {"peer": PEER, "seconds": seconds}


for line in sys.stdin:
    print(json.dumps(answer(json.loads(line))), flush=True)
