"""One vector of a picture from encoders that name what they see: `search/pictures.safetensors`.

    python tests/golden/picture_vectors.py

Made with transformers 5.23.0 and torch 2.15.0. `NAME.pooled` are the vectors of the golden pictures of
systems/NAME, as they come: ViT's class token behind the last norm, and what Dinov2Model and ResNetModel call
pooler_output. `NAME.frames` are those of the golden clip through the folder's processor, of length one (Pillow
resizes here, which differs from torchvision by one level of 255 at most). `dinov2.larger.*` are pictures of
another side than the folder's, for which transformers interpolates the positions.
"""

from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoImageProcessor, AutoModel

HERE = Path(__file__).parent
FRAMES = [Image.open(HERE / f"e2e/clip/frame_{i:03d}.png").convert("RGB") for i in range(5)]


def vectors(model, pixels):
    with torch.no_grad():
        out = model(pixel_values=pixels)
    if model.config.model_type == "vit":
        return out.last_hidden_state[:, 0]
    return out.pooler_output.flatten(1)


found = {}
for name in ("vit", "dinov2", "resnet"):
    folder = HERE / "systems" / name
    model = AutoModel.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    golden = load_file(folder / "expected.safetensors")["in.pixel_values"]
    found[f"{name}.pooled"] = vectors(model, golden)
    processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    seen = vectors(model, processor(FRAMES, return_tensors="pt")["pixel_values"])
    found[f"{name}.frames"] = seen / seen.norm(dim=-1, keepdim=True)
    if name == "dinov2":
        pixels = torch.randn(1, 3, 56, 56, generator=torch.Generator().manual_seed(3))
        found["dinov2.larger.pixels"] = pixels
        found["dinov2.larger.pooled"] = vectors(model, pixels)
save_file({k: v.contiguous() for k, v in found.items()}, HERE / "search" / "pictures.safetensors")
(HERE / "search" / "pictures.safetensors").chmod(0o644)
print({k: list(v.shape) for k, v in found.items()})
