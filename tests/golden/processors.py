"""What transformers' own processors make of pictures, videos and chats.

    python tests/golden/processors.py

Writes tests/golden/processors/. Made with transformers 5.23.0, torch 2.15.0, torchvision 0.29.2,
tokenizers 0.23.3 and NumPy 2.4.6 on a CPU with AVX2.
"""

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import (
    BitImageProcessor,
    CLIPImageProcessor,
    ConvNextImageProcessor,
    DeiTImageProcessor,
    GotOcr2ImageProcessor,
    InternVLVideoProcessor,
    LlavaImageProcessor,
    LlavaOnevisionVideoProcessor,
    SiglipImageProcessor,
    ViTImageProcessor,
)

OUT = Path(__file__).parent / "processors"
OUT.mkdir(exist_ok=True)


def noise(*shape, seed=0):
    """Bytes that tests/numerics/processors.rs makes too."""
    i = np.arange(np.prod(shape), dtype=np.uint64)
    mixed = ((i + np.uint64(seed)) * np.uint64(2654435761)) % np.uint64(1 << 32)
    return (mixed >> np.uint64(24)).astype(np.uint8).reshape(shape)


IMAGENET = dict(image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225])
EDGE = dict(size={"shortest_edge": 12}, crop_size={"height": 12, "width": 12})
SQUARE = dict(size={"height": 12, "width": 12})
PICTURES = {
    "clip": CLIPImageProcessor(**EDGE),
    "clip_more_crop": CLIPImageProcessor(size={"shortest_edge": 9}, crop_size={"height": 12, "width": 14}),
    "clip_no_crop": CLIPImageProcessor(size={"shortest_edge": 7}, do_center_crop=False),
    "clip_no_resize": CLIPImageProcessor(do_resize=False, crop_size={"height": 12, "width": 12}),
    "rescale_only": CLIPImageProcessor(**EDGE, do_normalize=False),
    "normalize_only": CLIPImageProcessor(**EDGE, do_rescale=False),
    "siglip": SiglipImageProcessor(**SQUARE),
    "vit": ViTImageProcessor(**SQUARE),
    "deit": DeiTImageProcessor(size={"height": 14, "width": 15}, crop_size={"height": 12, "width": 12}),
    "dinov2": BitImageProcessor(size={"shortest_edge": 14}, crop_size={"height": 12, "width": 12}, **IMAGENET),
    "llava": LlavaImageProcessor(**EDGE),
    "llava_pad": LlavaImageProcessor(**EDGE, do_pad=True),
    "internvl": GotOcr2ImageProcessor(**SQUARE, **IMAGENET),
    "resnet": ConvNextImageProcessor(size={"shortest_edge": 12}, crop_pct=0.875, **IMAGENET),
    "onevision_video": LlavaOnevisionVideoProcessor(**SQUARE),
    "internvl_video": InternVLVideoProcessor(size={"height": 12, "width": 16}, resample=2),
}
SIZES = [(1, 1), (12, 12), (31, 17), (16, 45), (9, 200), (640, 3)]


def pictures():
    cases, tensors = [], {}
    for name, processor in PICTURES.items():
        config = json.loads(processor.to_json_string())
        for width, height in SIZES:
            picture = torch.from_numpy(noise(height, width, 3, seed=width))
            if "video" in name:
                made = processor([picture[None]], input_data_format="channels_last", return_tensors="pt")
                pixels = made["pixel_values_videos"][0, 0]
            else:
                made = processor(picture, input_data_format="channels_last", return_tensors="pt")
                pixels = made["pixel_values"][0]
            if pixels.numel() > 3000:
                continue
            key = f"{name}_{width}x{height}"
            tensors[key] = pixels.contiguous()
            cases.append(dict(name=key, processor=name, width=width, height=height))
    save_file(tensors, OUT / "pictures.safetensors")
    configs = {n: json.loads(p.to_json_string()) for n, p in PICTURES.items()}
    write("pictures.json", dict(configs=configs, cases=cases))


def write(name, value):
    (OUT / name).write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n")


pictures()
