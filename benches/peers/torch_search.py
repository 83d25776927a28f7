"""Exact search in PyTorch, as a peer of `cargo bench --bench search -- --peer`: one product of all vectors
with the query, then `topk`.

The first request for a reel reads its vectors into memory, where they stay as f32: CPU kernels of f16 are
slower. Every request is answered with what was found and the seconds of one search.
Needs torch (CPU), numpy.
"""

import json
import sys
import time

import numpy
import torch

RECORD_HEAD = 24  # bytes of a reel's record before its numbers
DTYPES = {"f16": numpy.float16, "f32": numpy.float32}


def vectors(request: dict) -> torch.Tensor:
    with open(request["reel"], "rb") as reel:
        reel.seek(8)
        header_bytes = int.from_bytes(reel.read(4), "little")
    record = numpy.dtype([("head", "V", RECORD_HEAD), ("vector", DTYPES[request["dtype"]], request["width"])])
    records = numpy.memmap(request["reel"], dtype=record, mode="r", offset=12 + header_bytes)
    return torch.from_numpy(records["vector"].astype(numpy.float32))


reel, rows = None, None
for line in sys.stdin:
    request = json.loads(line)
    torch.set_num_threads(request["threads"])
    if reel != request["reel"]:
        reel, rows = request["reel"], vectors(request)
    query = torch.tensor(request["query"], dtype=torch.float32)
    start = time.perf_counter()
    with torch.inference_mode():
        best = torch.topk(rows @ query, request["top"])
    seconds = time.perf_counter() - start
    found = list(zip(best.indices.tolist(), best.values.tolist()))
    name = f"torch {torch.__version__.split('+')[0]}, f32 in memory"
    print(json.dumps({"peer": name, "seconds": seconds, "found": found}), flush=True)
