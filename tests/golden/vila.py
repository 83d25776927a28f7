"""A VILA-1.5 folder as it stands on the hub (three parts in folders of their own), with tiny random
weights, and what it answers: towers and decoder by transformers 5.23.0, the connector of
NVlabs/VILA at 253d0a9 restated, prompt and splicing as that commit's `vicuna_v1` conversation.

    python tests/golden/vila.py

Writes `answers/vila15/`: the folder, `expected.json`, and `expected.safetensors` with the features
of the frames that were taken and the logits behind the prompt. Needs `answers/video.mkv` (`answers.py`).
"""

import json
import shutil

import torch
import transformers as tf
from safetensors.torch import load_file, save_file

from answers import HERE, LEAST_MARGIN, NEW_TOKENS, QUESTION, TEXT, bytes_tokenizer, id_of, moving_square, randomise

SIDE, TAKEN = 42, [0, 4, 8, 12]
TEMPLATE = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions. USER: {} ASSISTANT:"
)


class Downsample(torch.nn.Module):
    """Four neighbours become one token; the merged grid comes out column by column."""

    def forward(self, x):
        n, length, width = x.shape
        side = int(length**0.5)
        grid = x.view(n, side, side, width)
        grid = torch.nn.functional.pad(grid, (0, 0, 0, side % 2, 0, side % 2))
        half = grid.shape[1] // 2
        squares = grid.view(n, half, 2, half, 2, width)
        return squares.permute(0, 3, 1, 2, 4, 5).reshape(n, half * half, 4 * width)


def connector(width, out):
    norm, first = torch.nn.LayerNorm(4 * width), torch.nn.Linear(4 * width, out)
    return torch.nn.Sequential(Downsample(), norm, first, torch.nn.GELU(), torch.nn.Linear(out, out))


def embedded(llm, tokenizer, text, features):
    """Each part of the text is tokenised alone, features stand between."""
    rows, ids = [], [id_of(tokenizer, "<s>")]
    for i, part in enumerate(text.split("<image>")):
        if i > 0:
            rows.append(features[i - 1])
            ids += [len(tokenizer)] * len(features[i - 1])
        part = ([ids[0]] if i == 0 else []) + tokenizer(part, add_special_tokens=False).input_ids
        ids += part[1:] if i == 0 else part
        rows.append(llm.get_input_embeddings()(torch.tensor(part)))
    return torch.cat(rows)[None], ids


def main():
    frames = moving_square()
    tokenizer = bytes_tokenizer(["<s>", "</s>"], bos_token="<s>", eos_token="</s>")
    vision = tf.SiglipVisionConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2,
        image_size=SIDE, patch_size=14,
    )
    tower = randomise(tf.SiglipVisionModel(vision), 21)
    llm_config = tf.LlamaConfig(**TEXT, vocab_size=len(tokenizer), eos_token_id=id_of(tokenizer, "</s>"))
    llm = randomise(tf.LlamaForCausalLM(llm_config), 22)
    projector = randomise(connector(16, 32), 23)
    pictures = tf.SiglipImageProcessor(size={"height": SIDE, "width": SIDE})

    with torch.no_grad():
        pixels = pictures([frames[i] for i in TAKEN], return_tensors="pt")["pixel_values"]
        tokens = tower(pixels, output_hidden_states=True).hidden_states[-2]
        features = projector(tokens)
        text = TEMPLATE.format("<image>\n" * len(TAKEN) + QUESTION)
        rows, prompt = embedded(llm, tokenizer, text, features)
        drawn, margin, first = [], 9e9, None
        while len(drawn) < NEW_TOKENS:
            logits = llm(inputs_embeds=rows, use_cache=False).logits[0, -1]
            first = logits if first is None else first
            best = logits.topk(2)
            margin = min(margin, float(best.values[0] - best.values[1]))
            drawn.append(int(best.indices[0]))
            rows = torch.cat([rows, llm.get_input_embeddings()(best.indices[:1])[None]], 1)
    assert margin > LEAST_MARGIN, margin

    folder = HERE / "vila15"
    shutil.rmtree(folder, ignore_errors=True)
    llm.save_pretrained(folder / "llm")
    tokenizer.save_pretrained(folder / "llm")
    tower.save_pretrained(folder / "vision_tower")
    pictures.save_pretrained(folder / "vision_tower")
    of_hub(folder / "vision_tower" / "model.safetensors")
    (folder / "mm_projector").mkdir()
    save_file(
        {f"layers.{k}": v.detach().contiguous() for k, v in projector.state_dict().items()},
        folder / "mm_projector" / "model.safetensors",
    )
    projector_config = dict(
        architectures=["MultimodalProjector"], mm_projector_type="mlp_downsample", model_type="v2l_projector"
    )
    write(folder / "mm_projector" / "config.json", projector_config)
    config = dict(
        architectures=["LlavaLlamaModel"],
        model_type="llava_llama",
        llm_cfg=json.loads((folder / "llm" / "config.json").read_text()),
        vision_tower_cfg=json.loads((folder / "vision_tower" / "config.json").read_text()),
        mm_projector_cfg=projector_config,
        hidden_size=32,
        mm_hidden_size=16,
        image_aspect_ratio="resize",
        mm_vision_select_feature="cls_patch",
        mm_vision_select_layer=-2,
        mm_use_im_patch_token=False,
        mm_use_im_start_end=False,
        num_video_frames=8,
    )
    write(folder / "config.json", config)
    expected = dict(
        question=QUESTION, text=text, frames=TAKEN, prompt_ids=prompt, generated_ids=drawn, margin=margin
    )
    (folder / "expected.json").write_text(json.dumps(expected) + "\n")
    stages = {"in.pixel_values": pixels, "out.features": features, "out.logits": first}
    save_file({k: v.contiguous() for k, v in stages.items()}, folder / "expected.safetensors")
    print(len(prompt), drawn, f"margin {margin:.3f}", features.shape)


def of_hub(path):
    """transformers 5 leaves out the prefix that the hub's files have."""
    tensors = load_file(path)
    save_file({f"vision_model.{k.removeprefix('vision_model.')}": v for k, v in tensors.items()}, path)


def write(path, config):
    path.write_text(json.dumps(config, indent=2) + "\n")


main()
