"""Whole folders of the systems under `systems/` with other switches and sizes, as transformers computes them.

    python tests/golden/variants.py

Writes `systems/NAME_SWITCHES`: config.json as transformers 5 writes it, config_v4.json as the hub has it,
model.safetensors, expected.safetensors with the names that `systems/NAME` has.
Made with transformers 5.23.0 and torch 2.15.0 on a CPU.
"""

import copy
import json
import shutil
from pathlib import Path

import torch
import transformers as tf
from safetensors.torch import load_file, save_file

HERE = Path(__file__).parent / "systems"
TEXT = dict(
    vocab_size=53, hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=6,
    num_key_value_heads=1, max_position_embeddings=256,
)
VISION = dict(
    hidden_size=24, intermediate_size=36, num_hidden_layers=3, num_attention_heads=3, image_size=24, patch_size=8,
)
IMAGE = 50


def randomised(model, seed):
    torch.manual_seed(seed)
    for name, weight in sorted(model.named_parameters()):
        noise = torch.randn(weight.shape)
        if weight.dim() < 2:
            weight.data = (1 if "norm" in name and "weight" in name else 0) + 0.2 * noise
        else:
            weight.data = noise * (1.2 / weight[0].numel() ** 0.5)
    for name, value in dict(logit_scale=1.5, logit_bias=-0.5).items():
        if hasattr(model, name):
            getattr(model, name).data = torch.full_like(getattr(model, name), value)
    return model.eval()


def of_hub(config):
    """As transformers 4 wrote it."""
    config = copy.deepcopy(config)
    for part in [config, *(v for v in config.values() if isinstance(v, dict))]:
        rope = part.pop("rope_parameters", None)
        if rope:
            part["rope_theta"] = rope.pop("rope_theta", 10000.0)
            kind = rope.get("rope_type", "default")
            plain = kind == "default" and set(rope) == {"rope_type"}
            part["rope_scaling"] = None if plain else rope | ({"type": "mrope"} if "mrope_section" in rope else {})
    config["torch_dtype"] = config.pop("dtype", "float32")
    return config


def hub_name(name):
    """transformers 5 leaves prefixes out that the hub's files have."""
    return name.replace("vision_tower.", "vision_tower.vision_model.", 1) if name.startswith("vision_tower.e") else name


def save(name, model, expected, rename=lambda name: name):
    folder = HERE / name
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config_v4.json").write_text(json.dumps(of_hub(config), indent=2) + "\n")
    tensors = load_file(folder / "model.safetensors")
    save_file({rename(k): v for k, v in tensors.items()}, folder / "model.safetensors")
    save_file({k: v.detach().contiguous() for k, v in expected.items()}, folder / "expected.safetensors")
    (folder / "model.safetensors").chmod(0o644)
    (folder / "expected.safetensors").chmod(0o644)
    print(name, sum(f.stat().st_size for f in folder.iterdir()), sorted(expected))


def classifier(name, kind, config, seed):
    model = randomised(kind(config), seed)
    pixels = torch.randn(2, 3, config.image_size, config.image_size)
    out = model(pixels, output_hidden_states=True)
    hidden = out.hidden_states
    expected = {"in.pixel_values": pixels, "out.logits": out.logits}
    expected |= {"mid.embeddings": hidden[0], "mid.layer0": hidden[1], "mid.last_layer": hidden[-1]}
    save(name, model, expected)


def answers(model, given, expected):
    """Logits, the first layer, and six greedy steps behind the first row."""
    kept = {}
    text = getattr(model.model, "language_model", model.model)
    hook = lambda key: lambda _m, _i, out: kept.update({key: out[0] if isinstance(out, tuple) else out})
    hooks = [text.layers[0].register_forward_hook(hook("mid.layer0")), text.norm.register_forward_hook(hook("mid.final_norm"))]
    expected["out.logits"] = model(**given).logits
    expected |= kept
    for h in hooks:
        h.remove()
    ids, drawn, logits = given["input_ids"][:1], [], []
    for _ in range(6):
        step = model(**{**given, "input_ids": ids, "attention_mask": torch.ones_like(ids)}, use_cache=False).logits[0, -1]
        logits.append(step)
        drawn.append(int(step.argmax()))
        ids = torch.cat([ids, torch.tensor([[drawn[-1]]])], 1)
    expected |= {"gen.tokens": torch.tensor(drawn), "gen.logits": torch.stack(logits)}
    return expected


def decoder(name, kind, config, seed):
    model = randomised(kind(config), seed)
    ids = torch.randint(3, 50, (2, 17))
    save(name, model, answers(model, dict(input_ids=ids), {"in.input_ids": ids}))


def dual(name, kind, config, seed, ends=None):
    model = randomised(kind(config), seed)
    length = config.text_config.max_position_embeddings
    ids, pixels = torch.randint(4, 50, (3, length)), torch.randn(2, 3, 24, 24)
    if ends is not None:
        ids[0, 3], ids[1, length - 1], ids[2, 5] = ends, ends, ends
    vision = model.vision_model(pixels, output_hidden_states=True)
    text = model.text_model(input_ids=ids)
    out = model(input_ids=ids, pixel_values=pixels)
    expected = {
        "in.input_ids": ids, "in.pixel_values": pixels, "mid.text_last": text.last_hidden_state,
        "out.image_embeds": out.image_embeds, "out.text_embeds": out.text_embeds,
        "out.logits_per_image": out.logits_per_image,
    }
    if kind is tf.CLIPModel:
        expected |= {
            "mid.text_pooled": model.text_projection(text.pooler_output),
            "mid.vision_last": vision.hidden_states[-1], "mid.vision_penultimate": vision.hidden_states[-2],
        }
    else:
        expected["mid.vision_last"] = vision.last_hidden_state
    save(name, model, expected)


def pictures(name, kind, config, seed, places, rename):
    """Two pictures in a prompt of text, `places` rows of features each."""
    model = randomised(kind(config), seed)
    pixels = torch.randn(2, 3, 24, 24)
    ids = torch.cat([torch.randint(3, 50, (n,)) for n in (3, 2, 4)])
    ids = torch.cat([ids[:3], torch.full((places,), IMAGE), ids[3:5], torch.full((places,), IMAGE), ids[5:]])[None]
    given = dict(input_ids=ids, pixel_values=pixels, attention_mask=torch.ones_like(ids))
    save(name, model, answers(model, given, {"in.input_ids": ids, "in.pixel_values": pixels}), rename)


@torch.no_grad()
def main():
    llama3 = dict(
        rope_type="llama3", rope_theta=5e5, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
        original_max_position_embeddings=16,
    )
    decoder(
        "llama_mqa_tied", tf.LlamaForCausalLM,
        tf.LlamaConfig(**TEXT, tie_word_embeddings=True, attention_bias=True, mlp_bias=True, rope_parameters=llama3), 1,
    )
    decoder(
        "llama_linear_wide", tf.LlamaForCausalLM,
        tf.LlamaConfig(**TEXT, head_dim=8, rope_parameters=dict(rope_type="linear", factor=4.0, rope_theta=1e4)), 2,
    )
    decoder(
        "mixtral_mqa", tf.MixtralForCausalLM,
        tf.MixtralConfig(**TEXT, num_local_experts=5, num_experts_per_tok=3, tie_word_embeddings=True), 3,
    )
    classifier(
        "vit_no_bias", tf.ViTForImageClassification,
        tf.ViTConfig(**VISION, qkv_bias=False, hidden_act="gelu_new", num_labels=5), 4,
    )
    inner = VISION.copy()
    inner.pop("intermediate_size")
    classifier(
        "dinov2_swiglu", tf.Dinov2ForImageClassification,
        tf.Dinov2Config(**inner, mlp_ratio=2, use_swiglu_ffn=True, qkv_bias=False, num_labels=5), 5,
    )
    text = dict(vocab_size=53, hidden_size=20, intermediate_size=28, num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=9)
    dual(
        "clip_end", tf.CLIPModel,
        tf.CLIPConfig(
            text_config=dict(**text, eos_token_id=51, hidden_act="gelu"),
            vision_config=VISION | dict(hidden_act="gelu"), projection_dim=16,
        ), 6, ends=51,
    )
    dual(
        "siglip_wide", tf.SiglipModel,
        tf.SiglipConfig(text_config=text | dict(projection_size=24, hidden_act="gelu"), vision_config=VISION), 7,
    )
    pictures(
        "llava15_full", tf.LlavaForConditionalGeneration,
        tf.LlavaConfig(
            vision_config=tf.CLIPVisionConfig(**VISION, hidden_act="gelu"),
            text_config=tf.LlamaConfig(**TEXT, tie_word_embeddings=True, attention_bias=True),
            image_token_index=IMAGE, vision_feature_layer=-1, vision_feature_select_strategy="full",
            multimodal_projector_bias=False, projector_hidden_act="gelu_new", tie_word_embeddings=True,
        ), 8, 10, hub_name,
    )
    seen = VISION | dict(image_size=[32, 32], patch_size=[8, 8])
    for name, seed, more in [
        ("internvl_rms", 9, dict(norm_type="rms_norm", use_qk_norm=True, attention_bias=False)),
        ("internvl_last_norm", 10, dict(use_mean_pooling=False, attention_bias=True)),
    ]:
        model = tf.InternVLConfig(
            vision_config=seen | more, text_config=tf.Qwen2Config(**TEXT, tie_word_embeddings=seed == 9),
            image_token_id=IMAGE, tie_word_embeddings=seed == 9,
        )
        wide(name, model, seed)
    video("llava_onevision_tied", 11)


def wide(name, config, seed):
    """InternVL, whose pictures have an even number of patches a side."""
    model = randomised(tf.InternVLForConditionalGeneration(config), seed)
    pixels = torch.randn(2, 3, 32, 32)
    ids = torch.cat([torch.randint(3, 50, (3,)), torch.full((8,), IMAGE), torch.randint(3, 50, (4,))])[None]
    given = dict(input_ids=ids, pixel_values=pixels, attention_mask=torch.ones_like(ids))
    save(name, model, answers(model, given, {"in.input_ids": ids, "in.pixel_values": pixels}))


def video(name, seed):
    config = tf.LlavaOnevisionConfig(
        vision_config=tf.SiglipVisionConfig(**(VISION | dict(image_size=40)), vision_use_head=False),
        text_config=tf.Qwen2Config(**TEXT, tie_word_embeddings=True),
        image_token_index=IMAGE, video_token_index=IMAGE + 1, tie_word_embeddings=True, multimodal_projector_bias=False,
        projector_hidden_act="gelu_new", image_grid_pinpoints=[[40, 40]],
    )
    model = randomised(tf.LlavaOnevisionForConditionalGeneration(config), seed)
    pixels = torch.randn(1, 3, 3, 40, 40)
    # 5x5 patches become 3x3; one learned row behind three frames.
    ids = torch.cat([torch.randint(3, 50, (3,)), torch.full((28,), IMAGE + 1), torch.randint(3, 50, (4,))])[None]
    given = dict(input_ids=ids, pixel_values_videos=pixels, attention_mask=torch.ones_like(ids))
    save(name, model, answers(model, given, {"in.input_ids": ids, "in.pixel_values_videos": pixels}), hub_name)


main()
