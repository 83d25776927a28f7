"""What a system of tests/golden/systems/ answers: `answer.safetensors` in its folder.

    python tests/golden/vision_language.py qwen2_vl qwen2_5_vl qwen3_vl

The folder of qwen2_vl is made here as well, with random weights.

`gen.tokens` are the six most likely ids behind the golden prompt, `yarn.logits` those of the prompt when RoPE is
stretched by YaRN. Positions are given to the official code (transformers 5.23.0), those of the golden file and, behind
them, one more for each id: what it counts by itself behind a video is another rule.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForImageTextToText, Qwen2VLConfig, Qwen2VLForConditionalGeneration

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


TEXT = dict(
    vocab_size=101,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=512,
    initializer_range=0.2,
    rms_norm_eps=1e-6,
    rope_parameters={"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 1, 1]},
)
VISION = dict(depth=2, embed_dim=32, hidden_size=32, num_heads=4, mlp_ratio=2, patch_size=4, initializer_range=0.2)
IMAGE, VIDEO = 97, 98


def positions_of(ids, grids):
    """ids `[n]` -> `[3, n]` by the rule of transformers 4.49: text goes on behind the highest component."""
    columns = []
    while len(columns) < len(ids):
        first = 1 + max((max(c) for c in columns), default=-1)
        if ids[len(columns)] in (IMAGE, VIDEO):
            t, h, w = grids[ids[len(columns)]]
            columns += [(first + k, first + y, first + x) for k in range(t) for y in range(h // 2) for x in range(w // 2)]
        else:
            columns.append((first,) * 3)
    return torch.tensor(columns).T.contiguous()


def make_qwen2_vl():
    folder = SYSTEMS / "qwen2_vl"
    config = Qwen2VLConfig(text_config=TEXT, vision_config=VISION, image_token_id=IMAGE, video_token_id=VIDEO,
                           vision_start_token_id=95, vision_end_token_id=96, attn_implementation="eager")
    torch.manual_seed(0)
    model = Qwen2VLForConditionalGeneration(config).eval()
    with torch.no_grad():
        for tensor in model.parameters():
            if tensor.dim() == 1:
                tensor.add_(torch.randn_like(tensor) * 0.2)
    model.save_pretrained(folder)
    grids = {IMAGE: (1, 4, 6), VIDEO: (5, 4, 4)}
    ids = [18, 54, 95] + [IMAGE] * 6 + [96, 74, 95] + [VIDEO] * 20 + [96, 62, 50, 14]
    positions = positions_of(ids, grids)
    ids = torch.tensor(ids)
    given = {
        "input_ids": ids[None],
        "pixel_values": torch.randn(24, 96),
        "image_grid_thw": torch.tensor([grids[IMAGE]]),
        "pixel_values_videos": torch.randn(80, 96),
        "video_grid_thw": torch.tensor([grids[VIDEO]]),
    }
    types = (ids == IMAGE).int() + 2 * (ids == VIDEO).int()
    pictures = {k: v for k, v in given.items() if "grid" in k}
    later, _ = model.model.get_rope_index(given["input_ids"], mm_token_type_ids=types[None], **pictures)
    first = []
    model.model.language_model.layers[0].register_forward_hook(lambda _m, _i, out: first.append(out))
    with torch.no_grad():
        video = model.model.get_video_features(given["pixel_values_videos"], given["video_grid_thw"])
        picture = model.model.get_image_features(given["pixel_values"], given["image_grid_thw"])
    expected = {"in." + k: v for k, v in given.items()} | {
        "mid.video_embeds": torch.cat(list(video.pooler_output)),
        "mid.image_embeds": torch.cat(list(picture.pooler_output)),
        "out.position_ids": positions,
        "alt.position_ids_transformers5": later[:, 0].contiguous(),
        "out.logits": logits(model, given, ids, positions)[None],
    }
    expected["mid.layer0"] = first[0][0] if isinstance(first[0], tuple) else first[0]
    save_file(expected, folder / "expected.safetensors")
    write_hub_layout(folder)


def write_hub_layout(folder):
    """`config_v4.json`: the decoder's keys at the top, as in Qwen/Qwen2-VL-7B-Instruct."""
    config = json.loads((folder / "config.json").read_text())
    text, vision = config.pop("text_config"), config["vision_config"]
    rope = text.pop("rope_parameters")
    del text["model_type"]
    config |= text
    config |= {"rope_theta": rope["rope_theta"], "rope_scaling": {"type": "mrope", "mrope_section": rope["mrope_section"]}}
    for late in ["initializer_range", "rope_parameters"]:
        vision.pop(late, None)
    vision["in_chans"] = vision.pop("in_channels")
    (folder / "config_v4.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "generation_config.json").unlink(missing_ok=True)
    for file in folder.iterdir():
        file.chmod(0o644)


for name in sys.argv[1:]:
    if name == "qwen2_vl":
        make_qwen2_vl()
    answer(name)
    (SYSTEMS / name / "answer.safetensors").chmod(0o644)
