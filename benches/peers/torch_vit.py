"""CLIP's and SigLIP's vision encoders in transformers, as a peer of `cargo bench --bench vit -- --peer`.

The first request for a folder writes into it what both programs read: `config.json`, `model.safetensors`
with random weights, and `case.safetensors` with pixels and this peer's tokens and vectors. Every request is
answered with the seconds of one run. Protocol: benches/README.md.
Needs torch (CPU), transformers, safetensors.
"""

import json
import sys
import time
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}
TEXT = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 1,
    "max_position_embeddings": 8, "bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2,
}
VISION = {
    "clip-l-14-336": {
        "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
        "image_size": 336, "patch_size": 14, "hidden_act": "quick_gelu", "projection_dim": 768,
    },
    "siglip-so400m-14-384": {
        "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16,
        "image_size": 384, "patch_size": 14, "hidden_act": "gelu_pytorch_tanh",
    },
}


def build(request: dict) -> torch.nn.Module:
    torch.manual_seed(1)
    vision = VISION[request["model"]] | ({"num_hidden_layers": request["layers"]} if request["layers"] else {})
    if request["model"].startswith("clip"):
        config = transformers.CLIPConfig(vision_config=vision, text_config=TEXT, projection_dim=768)
        return transformers.CLIPModel(config).eval()
    text = TEXT | {"projection_size": vision["hidden_size"]}
    config = transformers.SiglipConfig(vision_config=vision, text_config=text)
    return transformers.SiglipModel(config).eval()


class Case:
    def __init__(self, request: dict):
        folder, dtype = Path(request["folder"]), DTYPES[request["dtype"]]
        model = build(request).to(dtype)
        model.save_pretrained(folder)
        self.folder = request["folder"]
        self.vision = model.vision_model
        side = self.vision.config.image_size
        pixels = torch.randn(request["pictures"], 3, side, side)
        self.pixels = pixels.to(dtype)
        tensors = {}
        # The weights as they are stored, the arithmetic in f32: what ours must agree with.
        with torch.inference_mode():
            wide = self.vision.float()(self.pixels.float())
        tensors["tokens"], tensors["vectors"] = wide.last_hidden_state, wide.pooler_output
        tensors["pixels"] = self.pixels.float()
        self.vision = self.vision.to(dtype)
        save_file({name: t.contiguous() for name, t in tensors.items()}, folder / "case.safetensors")

    def seconds(self, threads: int) -> float:
        torch.set_num_threads(threads)
        with torch.inference_mode():
            start = time.perf_counter()
            self.vision(self.pixels)
            return time.perf_counter() - start


case = None
for line in sys.stdin:
    request = json.loads(line)
    if case is None or case.folder != request["folder"]:
        case = Case(request)
    name = f"torch {torch.__version__.split('+')[0]}, transformers {transformers.__version__}, sdpa"
    print(json.dumps({"peer": name, "seconds": case.seconds(request["threads"])}), flush=True)
