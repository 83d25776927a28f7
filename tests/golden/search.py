"""What PyTorch finds among vectors, and how like texts transformers finds frames.

    python tests/golden/search.py

Writes tests/golden/search/. Made with transformers 5.23.0, torch 2.15.0 and Pillow, whose resizing differs
from torchvision by one level of 255 at most.
"""

import json
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import AutoImageProcessor, AutoModel

HERE = Path(__file__).parent
OUT = HERE / "search"
OUT.mkdir(exist_ok=True)
K = 20

# Part 1: vectors as a reel keeps them, queries, and the best of each by a stable sort.
torch.manual_seed(7)
unit = lambda x: x / x.norm(dim=-1, keepdim=True)
vectors = unit(torch.randn(700, 40)).half().float()
vectors[450] = vectors[33]  # of equal scores the earlier frame goes before
queries = torch.cat([unit(torch.randn(5, 40)), unit(vectors[33:34])])
scores = queries.double() @ vectors.double().T
best = torch.sort(scores, dim=1, descending=True, stable=True)
save_file(
    {
        "vectors": vectors,
        "queries": queries,
        "ids": best.indices[:, :K].contiguous(),
        "scores": best.values[:, :K].float().contiguous(),
    },
    OUT / "vectors.safetensors",
)

# Part 2: the frames of the golden clip and texts of numbered words. CLIP's texts stand
# between the ids 0 and 98, SigLIP's are filled up with the id 1.
TEXTS = [[69, 52, 68, 26], [5, 17], [96, 86, 40]]


def ids(name, words):
    if name == "clip":
        return [0, *words, 98]
    return words + [1] * (12 - len(words))


frames = [Image.open(p).convert("RGB") for p in sorted((HERE / "e2e/clip").glob("frame_*.png"))]
expected = {}
for name in ["clip", "siglip"]:
    model = AutoModel.from_pretrained(HERE / "systems" / name).eval()
    pixels = AutoImageProcessor.from_pretrained(HERE / "systems" / name)(frames, return_tensors="pt")
    with torch.no_grad():
        found = [model(input_ids=torch.tensor([ids(name, t)]), **pixels) for t in TEXTS]
    expected[name] = {
        "texts": [" ".join(f"w{w}" for w in t) for t in TEXTS],
        "cosines": [(f.image_embeds @ f.text_embeds.T).flatten().tolist() for f in found],
        "logits": [f.logits_per_image.flatten().tolist() for f in found],
    }
(OUT / "frames.json").write_text(json.dumps(expected, indent=1) + "\n")
