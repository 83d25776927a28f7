"""What a system of tests/golden/systems/ answers: `answer.safetensors` in its folder.

    python tests/golden/vision_language.py qwen2_5_vl qwen3_vl

`gen.tokens` are the six most likely ids behind the golden prompt, `yarn.logits` those of the prompt when RoPE is
stretched by YaRN. Positions are given to the official code (transformers 5.23.0), those of the golden file and, behind
them, one more for each id: what it counts by itself behind a video is another rule.
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForImageTextToText

SYSTEMS = Path(__file__).parent / "systems"
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}


def open_model(folder, config):
    model = AutoModelForImageTextToText.from_pretrained(
        folder, config=config, attn_implementation="eager", dtype=torch.float32
    )
    return model.eval()


def logits(model, given, ids, positions):
    """ids `[n]`, positions `[3, n]` -> logits `[n, vocabulary]`."""
    types = torch.zeros_like(ids)
    types[ids == model.config.image_token_id] = 1
    types[ids == model.config.video_token_id] = 2
    pictures = {k: v for k, v in given.items() if k.startswith(("pixel_values", "image_grid", "video_grid"))}
    with torch.no_grad():
        out = model(
            input_ids=ids[None],
            attention_mask=torch.ones_like(ids)[None],
            mm_token_type_ids=types[None],
            position_ids=positions[:, None],
            use_cache=False,
            **pictures,
        )
    return out.logits[0]


def answer(name):
    folder = SYSTEMS / name
    golden = load_file(folder / "expected.safetensors")
    given = {k[3:]: v for k, v in golden.items() if k.startswith("in.")}
    model = open_model(folder, AutoConfig.from_pretrained(folder))
    prompt, placed = given["input_ids"][0], golden["out.position_ids"]
    ids, positions = prompt, placed
    found = logits(model, given, ids, positions)
    assert (found - golden["out.logits"][0]).abs().max() < 1e-5, "the folder's own logits are not met"
    for _ in range(6):
        best = logits(model, given, ids, positions)[-1].topk(2)
        assert best.values[0] - best.values[1] > 0.01, "too close to be told apart in f32"
        ids = torch.cat([ids, best.indices[:1]])
        positions = torch.cat([positions, positions.max() + torch.ones(3, 1, dtype=torch.int64)], dim=1)
    config = AutoConfig.from_pretrained(folder)
    config.text_config.rope_parameters |= YARN
    stretched = logits(open_model(folder, config), given, prompt, placed)
    assert (stretched - golden["out.logits"][0]).abs().max() > 0.01, "YaRN changes nothing"
    tensors = {"gen.tokens": ids[len(prompt):].contiguous(), "yarn.logits": stretched.contiguous()}
    save_file(tensors, folder / "answer.safetensors")
    print(name, tensors["gen.tokens"].tolist())


for name in sys.argv[1:]:
    answer(name)
