"""A LLaVA-Video folder as its authors store it (lmms-lab/LLaVA-Video-*-Qwen2), with tiny random weights,
and what it answers: tower and decoder by transformers 5.23.0; matrices, pooling, the learned rows, prompt
and splicing as LLaVA-NeXT's code has them, restated.

    python tests/golden/llava_video.py

Writes `answers/llava_video/` (a learned row behind every line, times told): the folder, `expected.json`, which also
has what it answers without times and as LLaVA-OneVision would be, and `expected.safetensors` with the features of
two frames for every place of the learned row and every pool, and the logits behind the prompt.
Needs `answers/video.mkv` (`answers.py`).
"""

import json
import math
import shutil

import numpy as np
import torch
import transformers as tf
from PIL import Image
from safetensors.torch import save_file

from answers import FRAMES, HERE, LEAST_MARGIN, NEW_TOKENS, QUESTION, RATE, TEXT, bytes_tokenizer, id_of, moving_square, randomise

SIDE, PATCH, WIDTH = 42, 14, 32
SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
# What Qwen2's tokenizer_config.json has.
TEMPLATE = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def chosen(total, rate, most, force):
    """Every rate-th frame, or `most` from end to end where these are more, or where it is forced; and their times."""
    step = round(rate)
    taken, times = list(range(0, total, step)), [i / step for i in range(0, total, step)]
    if len(taken) > most or force:
        taken = np.linspace(0, total - 1, most, dtype=int).tolist()
        times = [i / rate for i in taken]
    return taken, times


def pixels_of(frames):
    """[n, 3, side, side]: the square, whatever the frames' proportions."""
    squares = [np.asarray(Image.fromarray(f).resize((SIDE, SIDE), Image.BICUBIC), np.float32) for f in frames]
    return torch.from_numpy((np.stack(squares) / 255 - 0.5) / 0.5).permute(0, 3, 1, 2).contiguous().float()


def pooled(rows, mode, stride=2):
    """[n, side², width] -> [n, side'², width]"""
    n, length, width = rows.shape
    side = math.isqrt(length)
    grid = rows.transpose(1, 2).reshape(n, width, side, side)
    if mode == "bilinear":
        less = math.ceil(side / stride)
        grid = torch.nn.functional.interpolate(grid, size=[less, less], mode="bilinear")
    else:
        pool = dict(average=torch.nn.functional.avg_pool2d, max=torch.nn.functional.max_pool2d)[mode]
        grid = pool(grid, stride)
    return grid.flatten(2).transpose(1, 2)


def with_newline(rows, newline, where):
    """[n, side², width] -> [places, width]"""
    n, length, width = rows.shape
    side = math.isqrt(length)
    if where == "grid":
        lines = rows.reshape(n * side, side, width)
        return torch.cat([lines, newline.expand(n * side, 1, width)], 1).flatten(0, 1)
    if where == "frame":
        return torch.cat([rows, newline.expand(n, 1, width)], 1).flatten(0, 1)
    flat = rows.flatten(0, 1)
    return torch.cat([flat, newline[None]]) if where == "one_token" else flat


def told(seconds, times):
    places = ",".join(f"{t:.2f}s" for t in times)
    return (
        f"The video lasts for {seconds:.2f} seconds, and {len(times)} frames are uniformly sampled from it. "
        f"These frames are located at {places}.Please answer the following questions related to this video.\n"
    )


def prompt_of(words):
    return SYSTEM + f"<|im_start|>user\n<image>\n{words}{QUESTION}<|im_end|>\n<|im_start|>assistant\n"


def answer(llm, tokenizer, text, features):
    """The ids of the prompt, those drawn behind it, the margin, the logits behind the prompt."""
    ids, rows = [], []
    for i, part in enumerate(text.split("<image>")):
        if i > 0:
            ids += [len(tokenizer)] * len(features)
            rows.append(features)
        part = tokenizer(part, add_special_tokens=False).input_ids
        ids += part
        rows.append(llm.get_input_embeddings()(torch.tensor(part)))
    rows, drawn, margin, first = torch.cat(rows)[None], [], 9e9, None
    while len(drawn) < NEW_TOKENS:
        logits = llm(inputs_embeds=rows, use_cache=False).logits[0, -1]
        first = logits if first is None else first
        best = logits.topk(2)
        margin = min(margin, float(best.values[0] - best.values[1]))
        drawn.append(int(best.indices[0]))
        rows = torch.cat([rows, llm.get_input_embeddings()(best.indices[:1])[None]], 1)
    assert margin > LEAST_MARGIN, margin
    return dict(prompt_ids=ids, generated_ids=drawn, margin=margin), first


def main():
    frames = moving_square()
    tokenizer = bytes_tokenizer(
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    tokenizer.chat_template = TEMPLATE
    sizes = dict(
        hidden_size=16, intermediate_size=24, num_attention_heads=2, image_size=SIDE, patch_size=PATCH,
    )
    tower = randomise(tf.SiglipVisionModel(tf.SiglipVisionConfig(**sizes, num_hidden_layers=3)), 31)
    # More rows than the tokenizer has tokens, as Qwen2's are.
    llm_config = tf.Qwen2Config(**TEXT, vocab_size=len(tokenizer) + 5, eos_token_id=id_of(tokenizer, "<|im_end|>"))
    llm = randomise(tf.Qwen2ForCausalLM(llm_config), 62)
    projector = torch.nn.Sequential(torch.nn.Linear(16, WIDTH), torch.nn.GELU(), torch.nn.Linear(WIDTH, WIDTH))
    projector = randomise(projector, 33)
    newline = torch.randn(WIDTH, generator=torch.Generator().manual_seed(34))

    taken, times = chosen(FRAMES, RATE, 64, False)
    stages = {}
    with torch.no_grad():
        pixels = pixels_of([frames[i] for i in taken])
        # The last layer is deleted: what the one before gives is the last hidden state.
        rows = projector(tower(pixel_values=pixels, output_hidden_states=True).hidden_states[-2])
        # Of the first two frames.
        stages["in.pixel_values"] = pixels[:2]
        for mode in ("bilinear", "average", "max"):
            stages[f"out.grid.{mode}"] = with_newline(pooled(rows[:2], mode), newline, "grid")
        for where in ("one_token", "frame", "no_token"):
            stages[f"out.{where}.bilinear"] = with_newline(pooled(rows[:2], "bilinear"), newline, where)
        video = with_newline(pooled(rows, "bilinear"), newline, "grid")
        text = prompt_of(told(FRAMES / RATE, times))
        expected, stages["out.logits"] = answer(llm, tokenizer, text, video)
        silent, _ = answer(llm, tokenizer, prompt_of(""), video)
        onevision, _ = answer(llm, tokenizer, prompt_of(""), with_newline(pooled(rows, "bilinear"), newline, "one_token"))
        # As many frames as there may be, of a longer video than the golden one: numbers only.
        numbers = [
            dict(total=total, rate=rate, force=force, taken=chosen(total, rate, 64, force)[0])
            for total, rate in [(13, 4.0), (3000, 25.0), (1800, 30000 / 1001), (250, 25.0), (9, 0.6)]
            for force in (False, True)
            if round(rate) > 0 and (total >= 64 or not force)
        ]
    behind = "<|im_end|>\n<|im_start|>user\nAnd then?<|im_end|>\n<|im_start|>assistant\n"

    folder = HERE / "llava_video"
    shutil.rmtree(folder, ignore_errors=True)
    tokenizer.save_pretrained(folder)
    tokenizer_config = json.loads((folder / "tokenizer_config.json").read_text())
    # transformers 5 writes it to a file of its own; on the hub it stands here.
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    tokenizer_config["chat_template"] = TEMPLATE
    write(folder / "tokenizer_config.json", tokenizer_config)
    tensors = {k: v for k, v in llm.state_dict().items()}
    tensors |= {f"model.mm_projector.{k}": v for k, v in projector.state_dict().items()}
    tensors["model.image_newline"] = newline
    for name, tensor in tower.state_dict().items():
        name = name.removeprefix("vision_model.")
        if not name.startswith(("head.", "encoder.layers.2.")):
            tensors[f"model.vision_tower.vision_tower.vision_model.{name}"] = tensor
    save_file({k: v.contiguous() for k, v in tensors.items()}, folder / "model.safetensors")
    config = dict(
        architectures=["LlavaQwenForCausalLM"],
        model_type="llava_qwen",
        **{k: v for k, v in TEXT.items() if not k.endswith("_token_id")},
        vocab_size=llm_config.vocab_size,
        eos_token_id=llm_config.eos_token_id,
        hidden_act="silu",
        rms_norm_eps=llm_config.rms_norm_eps,
        rope_theta=llm_config.rope_parameters["rope_theta"],
        rope_scaling=None,
        use_sliding_window=False,
        sliding_window=131072,
        max_window_layers=28,
        tie_word_embeddings=False,
        image_aspect_ratio="anyres_max_9",
        add_faster_video=False,
        add_time_instruction=False,
        force_sample=False,
        mm_hidden_size=16,
        mm_newline_position="grid",
        mm_patch_merge_type="spatial_unpad",
        mm_projector_type="mlp2x_gelu",
        mm_resampler_type=None,
        mm_spatial_pool_mode="bilinear",
        mm_spatial_pool_stride=2,
        mm_use_im_patch_token=False,
        mm_use_im_start_end=False,
        mm_vision_select_feature="patch",
        mm_vision_select_layer=-2,
        mm_vision_tower="google/siglip-so400m-patch14-384",
        # LLaVA-NeXT's own code has the sizes of one tower as constants.
        vision_config=dict(**sizes, num_hidden_layers=2),
        torch_dtype="float32",
    )
    write(folder / "config.json", config)
    expected = dict(
        question=QUESTION, text=text, frames=taken, **expected, follow_up_ids=tokenizer(behind).input_ids,
        without_times=silent, as_onevision=onevision, frame_numbers=numbers,
    )
    (folder / "expected.json").write_text(json.dumps(expected) + "\n")
    save_file({k: v.contiguous() for k, v in stages.items()}, folder / "expected.safetensors")
    print(taken, times, len(expected["prompt_ids"]), expected["generated_ids"], expected["margin"])


def write(path, config):
    path.write_text(json.dumps(config, indent=2) + "\n")


main()
