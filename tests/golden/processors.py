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
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
    SiglipImageProcessor,
    ViTImageProcessor,
)
from transformers.video_processing_utils import BaseVideoProcessor
from transformers.video_utils import VideoMetadata

# Where arange has more than 32768 numbers, its rounding depends on how threads share them.
torch.set_num_threads(1)

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


SMALL = dict(patch_size=3, merge_size=2)
VIDEOS = {
    "qwen2": Qwen2VLVideoProcessor(**SMALL, size={"shortest_edge": 100, "longest_edge": 500}),
    "qwen2_capped": Qwen2VLVideoProcessor(
        **SMALL,
        size={"shortest_edge": 100, "longest_edge": 2000},
        cap_pixels_per_frame=True,
        max_video_tokens=40,
    ),
    "qwen2_three_frames": Qwen2VLVideoProcessor(
        patch_size=2, merge_size=3, temporal_patch_size=3, resample=2, min_pixels=100, max_pixels=400
    ),
    "qwen2_picture": Qwen2VLImageProcessor(**SMALL, size={"shortest_edge": 100, "longest_edge": 500}),
    "qwen3": Qwen3VLVideoProcessor(**SMALL, size={"shortest_edge": 400, "longest_edge": 1500}),
    "qwen3_capped": Qwen3VLVideoProcessor(
        **SMALL,
        size={"shortest_edge": 100, "longest_edge": 4000},
        cap_pixels_per_frame=True,
        max_video_tokens=6,
    ),
}


def videos():
    """Patches of small videos, step after step."""
    cases, tensors = [], {}
    for name, processor in VIDEOS.items():
        for n, width, height in [(1, 20, 13), (2, 9, 31), (3, 40, 25), (5, 5, 7), (4, 3, 60)]:
            if name.startswith("qwen3") and n == 1 or "picture" in name and n > 1:
                continue
            frames = torch.from_numpy(noise(n, height, width, 3, seed=n)).permute(0, 3, 1, 2)
            if "picture" in name:
                made = processor(frames[0], input_data_format="channels_first", return_tensors="pt")
                rows, grid = made["pixel_values"], made["image_grid_thw"]
            else:
                made = processor([frames], do_sample_frames=False, input_data_format="channels_first", return_tensors="pt")
                rows, grid = made["pixel_values_videos"], made["video_grid_thw"]
            key = f"{name}_{n}x{width}x{height}"
            tensors[key] = rows.contiguous()
            case = dict(name=key, processor=name, frames=n, width=width, height=height)
            cases.append(dict(**case, grid=grid[0].tolist()))
    save_file(tensors, OUT / "videos.safetensors")
    configs = {n: json.loads(p.to_json_string()) for n, p in VIDEOS.items()}
    write("videos.json", dict(configs=configs, cases=cases))


def sizes():
    """The sizes that frames of many videos are brought to; null where the video is refused."""
    whole = BaseVideoProcessor.resize
    BaseVideoProcessor.resize = lambda self, image, size, **_: (size.height, size.width)
    processors = {
        "qwen2": Qwen2VLVideoProcessor(),
        "qwen2_capped": Qwen2VLVideoProcessor(cap_pixels_per_frame=True),
        "qwen2_hub": Qwen2VLVideoProcessor(min_pixels=3136, max_pixels=12845056),
        "qwen3": Qwen3VLVideoProcessor(),
        "qwen3_hub": Qwen3VLVideoProcessor(size={"shortest_edge": 4096, "longest_edge": 25165824}),
        "qwen3_capped": Qwen3VLVideoProcessor(cap_pixels_per_frame=True),
    }
    shapes = [(1, 1), (20000, 3), (600, 3), (601, 3), (28, 14), (42, 70), (640, 360), (1920, 1080)]
    shapes += [(1080, 1920), (3840, 2160), (333, 777), (98, 126), (16, 400), (7680, 4320), (350, 5000)]
    cases = []
    for name, processor in processors.items():
        for width, height in shapes:
            for n in [2, 3, 5, 32, 767]:
                video = torch.empty(1, n, 3, height, width, dtype=torch.uint8, device="meta")
                try:
                    size = processor.resize(
                        video,
                        size=processor.size,
                        resample=3,
                        factor=processor.patch_size * processor.merge_size,
                        temporal_factor=2,
                        cap_pixels_per_frame=processor.cap_pixels_per_frame,
                    )
                except ValueError:
                    size = None
                cases.append([name, n, width, height, size])
    BaseVideoProcessor.resize = whole
    configs = {n: json.loads(p.to_json_string()) for n, p in processors.items()}
    lines = ",\n  ".join(json.dumps(case) for case in cases)
    text = f'{{"configs": {json.dumps(configs)},\n "cases": [\n  {lines}]}}\n'
    (OUT / "sizes.json").write_text(text)


def stride(total, rate, wanted, most):
    """LLaVA-Video's own rule (LLaVA-NeXT, `load_video`), restated."""
    numbers = list(range(0, total, round(rate / wanted)))
    return np.linspace(0, total - 1, most, dtype=int) if len(numbers) > most else np.array(numbers)


def frames():
    """Which frames are chosen; of many, a checksum."""
    rates = [1.0, 5.0, 7.5, 12.0, 24.0, 30000 / 1001, 25.0, 59.94, 60.0]
    totals = [2, 3, 4, 5, 7, 10, 31, 64, 100, 301, 897, 1234, 5000, 30001, 107892, 1000003]
    qwen2 = Qwen2VLVideoProcessor()
    internvl, onevision = InternVLVideoProcessor(), LlavaOnevisionVideoProcessor()
    rules = {
        "qwen2": lambda m: qwen2.sample_frames(m, fps=2),
        "qwen2 of 9": lambda m: qwen2.sample_frames(m, num_frames=9),
        "qwen2 at 3.3 to 5000": lambda m: qwen2.sample_frames(m, fps=3.3, min_frames=6, max_frames=5000),
        "qwen3": lambda m: Qwen3VLVideoProcessor().sample_frames(m),
        "qwen3 of 48": lambda m: Qwen3VLVideoProcessor(fps=None).sample_frames(m, num_frames=48),
        "onevision of 32": lambda m: onevision.sample_frames(m, num_frames=32),
        "onevision at 1": lambda m: onevision.sample_frames(m, fps=1),
        "internvl of 8": lambda m: internvl.sample_frames(m, num_frames=8),
        "internvl at 1": lambda m: internvl.sample_frames(m, fps=1),
        "vila of 8": lambda m: np.linspace(0, m.total_num_frames - 1, 8, dtype=int),
        "llava video": lambda m: stride(m.total_num_frames, m.fps, 1, 64),
    }
    lines = []
    for name, rule in rules.items():
        for total in totals:
            for rate in rates[:1] if " of " in name else rates:
                metadata = VideoMetadata(total_num_frames=total, fps=rate)
                try:
                    numbers = [int(i) for i in rule(metadata)]
                except (ValueError, ZeroDivisionError):
                    continue
                if numbers[-1] >= total:
                    continue
                case = dict(rule=name, total=total, rate=rate, n=len(numbers))
                case["numbers"] = numbers[:10]
                case["sum"] = sum((i + 1) * number for i, number in enumerate(numbers))
                if name.startswith("qwen3") and len(numbers) < 12:
                    times = Qwen3VLProcessor._calculate_timestamps(None, list(numbers), rate, 2)
                    case["times"] = [f"<{time:.1f} seconds>" for time in times]
                lines.append(json.dumps(case))
    (OUT / "frames.json").write_text("[\n " + ",\n ".join(lines) + "\n]\n")


pictures()
videos()
sizes()
frames()
