"""Whole answers of transformers to a question about a video: folders as they stand on the hub,
with tiny random weights, a tokenizer, processors and a chat template.

    pip install torch==2.15.0 torchvision==0.29.2 transformers==5.23.0 av==18.1.0
    python tests/golden/answers.py

Writes `answers/video.mkv` (lossless, so that every decoder gives the same pixels) and, for each
system, `answers/<system>/`: the folder, and `expected.json` with the ids of the prompt, the frames
that were taken, and the ids that greedy decoding gives.
"""

import json
import os
import pathlib
import shutil
from fractions import Fraction

import av
import numpy as np
import torch
import transformers as tf
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

HERE = pathlib.Path(__file__).parent / "answers"
WIDTH, HEIGHT, FRAMES, RATE = 118, 86, 13, 4
QUESTION = "What moves?"
NEW_TOKENS = 6
LEAST_MARGIN = 0.02

TEXT = dict(
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=4096,
    bos_token_id=None,
    pad_token_id=None,
)
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for content in message['content'] %}"
    "{% if content['type'] == 'image' %}IMAGE"
    "{% elif content['type'] == 'video' %}VIDEO"
    "{% elif 'text' in content %}{{ content['text'] }}{% endif %}{% endfor %}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def moving_square():
    """[frames, height, width, 3] u8: a square that moves over a gradient, with noise."""
    noise = np.random.default_rng(3)
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    frames = []
    for i in range(FRAMES):
        frame = np.stack([2 * x, 3 * y, (x + y) * 1.2], -1) % 256
        frame += noise.normal(0, 6, frame.shape)
        frame[20 : 20 + 30, 7 * i : 7 * i + 30] = [250, 40, 60]
        frames.append(frame.clip(0, 255).astype(np.uint8))
    return np.stack(frames)


def write_video(frames, path):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "bgr0"
        stream.time_base = Fraction(1, RATE)
        for i, frame in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24").reformat(format="bgr0")
            picture.pts = i
            container.mux(stream.encode(picture))
        container.mux(stream.encode())


def bytes_tokenizer(specials, **named):
    """One token a byte, and special tokens behind them."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE({c: i for i, c in enumerate(letters)}, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens([AddedToken(s, special=True, normalized=False) for s in specials])
    return tf.PreTrainedTokenizerFast(tokenizer_object=inner, **named)


def id_of(tokenizer, token):
    return tokenizer.convert_tokens_to_ids(token)


def randomise(model, seed):
    """Weights large enough that what is seen decides what is said."""
    generator = torch.Generator().manual_seed(seed)
    for name, weight in sorted(model.named_parameters()):
        noise = torch.randn(weight.shape, generator=generator)
        if weight.dim() == 1:
            weight.data = 1 + 0.1 * noise if "norm" in name and "weight" in name else 0.1 * noise
        else:
            weight.data = noise * (1.5 / weight[0].numel() ** 0.5)
    return model.eval()


def after_the_largest(ids, model, grid, seconds, video_id, merge, per_second):
    """Positions of three components: text behind a video goes on behind its largest."""
    positions, place, step = [], 0, 0
    h, w = grid[0][1] // merge, grid[0][2] // merge
    is_video = [i == video_id for i in ids]
    at = 0
    while at < len(ids):
        if not is_video[at]:
            positions.append([place] * 3)
            place, at = place + 1, at + 1
            continue
        run = at
        while run < len(ids) and is_video[run]:
            run += 1
        first, largest = place, place
        for i in range(run - at):
            t = int(i // (h * w) * seconds * per_second)
            here = [first + t, first + i % (h * w) // w, first + i % w]
            largest = max(largest, *here)
            positions.append(here)
        place, at = largest + 1, run
    return torch.tensor(positions).T[:, None, :]


def greedy(model, inputs, positions=None):
    """Ids by whole forward passes, and the least distance between the best and the second."""
    drawn, margin = [], 9e9
    start = inputs["input_ids"].shape[1]
    with torch.no_grad():
        while len(drawn) < NEW_TOKENS:
            given = dict(inputs)
            if positions is not None:
                more = len(drawn)
                tail = positions.max() + 1 + torch.arange(more)
                tail = tail[None, None].expand(3, 1, more)
                given["position_ids"] = torch.cat([positions, tail], -1)
            best = model(**given, use_cache=False).logits[0, -1].topk(2)
            margin = min(margin, float(best.values[0] - best.values[1]))
            drawn.append(int(best.indices[0]))
            new = torch.tensor([[drawn[-1]]])
            inputs["input_ids"] = torch.cat([inputs["input_ids"], new], 1)
            for mask in ("attention_mask", "mm_token_type_ids", "token_type_ids"):
                if mask in inputs:
                    fill = torch.full_like(new, 1 if mask == "attention_mask" else 0)
                    inputs[mask] = torch.cat([inputs[mask], fill], 1)
    assert inputs["input_ids"].shape[1] == start + NEW_TOKENS
    return drawn, margin


def save(name, model, processor, text_of_frames, inputs, taken, positions=None):
    folder = HERE / name
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    for stray in ("generation_config.json",):
        (folder / stray).unlink(missing_ok=True)
    prompt = inputs["input_ids"][0].tolist()
    follow_up = further_question(processor)
    ids, margin = greedy(model, dict(inputs), positions)
    assert margin > LEAST_MARGIN, (name, margin)
    expected = dict(
        question=QUESTION,
        text=text_of_frames,
        frames=taken,
        prompt_ids=prompt,
        generated_ids=ids,
        follow_up_ids=follow_up,
        margin=margin,
    )
    (folder / "expected.json").write_text(json.dumps(expected) + "\n")
    print(name, len(prompt), ids, f"margin {margin:.3f}", sorted(os.listdir(folder)))


def further_question(processor):
    """Ids that stand behind an answer when "And then?" is asked."""
    said = lambda role, text: {"role": role, "content": [{"type": "text", "text": text}]}
    turns = [said("user", "?"), said("assistant", "@"), said("user", "And then?")]
    text = processor.apply_chat_template(turns, add_generation_prompt=True)
    return processor.tokenizer(text.split("@")[1], add_special_tokens=False)["input_ids"]


def ask(content):
    return [{"role": "user", "content": [*content, {"type": "text", "text": QUESTION}]}]


def llava(frames, seed):
    tokenizer = bytes_tokenizer(
        ["<s>", "</s>", "<image>", "<pad>"], bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    template = (
        "{% for message in messages %}{% if message['role'] == 'user' %}USER: {% else %}ASSISTANT: {% endif %}"
        "{% for content in message['content'] %}{% if content['type'] == 'image' %}<image>\n"
        "{% elif content['type'] == 'text' %}{{ content['text'] }}{% endif %}{% endfor %} {% endfor %}"
        "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
    )
    vision = dict(
        hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=2,
        image_size=28, patch_size=14, projection_dim=32,
    )
    config = tf.LlavaConfig(
        vision_config=tf.CLIPVisionConfig(**vision),
        text_config=tf.LlamaConfig(**TEXT, vocab_size=len(tokenizer), eos_token_id=id_of(tokenizer, "</s>")),
        image_token_index=id_of(tokenizer, "<image>"),
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )
    model = randomise(tf.LlavaForConditionalGeneration(config), seed)
    pictures = tf.CLIPImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    processor = tf.LlavaProcessor(
        pictures, tokenizer, patch_size=14, vision_feature_select_strategy="default",
        num_additional_image_tokens=1, chat_template=template,
    )
    taken = [0, 4, 8, 12]
    text = processor.apply_chat_template(ask([{"type": "image"}] * len(taken)), add_generation_prompt=True)
    inputs = processor(images=[frames[i] for i in taken], text=text, return_tensors="pt")
    save("llava15", model, processor, text, inputs, taken)


def onevision(frames, seed):
    tokenizer = bytes_tokenizer(
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "<video>"],
        eos_token="<|im_end|>", pad_token="<|endoftext|>",
    )
    template = CHATML.replace("IMAGE", "<image>\n").replace("VIDEO", "<video>\n")
    side = 42
    vision = dict(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        image_size=side, patch_size=14, vision_use_head=False,
    )
    config = tf.LlavaOnevisionConfig(
        vision_config=tf.SiglipVisionConfig(**vision),
        text_config=tf.Qwen2Config(**TEXT, vocab_size=len(tokenizer), eos_token_id=id_of(tokenizer, "<|im_end|>")),
        image_token_index=id_of(tokenizer, "<image>"),
        video_token_index=id_of(tokenizer, "<video>"),
        image_grid_pinpoints=[[side, side]],
    )
    model = randomise(tf.LlavaOnevisionForConditionalGeneration(config), seed)
    size = {"height": side, "width": side}
    processor = tf.LlavaOnevisionProcessor(
        tf.LlavaOnevisionImageProcessor(size=size, image_grid_pinpoints=[[side, side]]), tokenizer,
        tf.LlavaOnevisionVideoProcessor(size=size),
        num_image_tokens=9, vision_feature_select_strategy="full", chat_template=template,
    )
    taken = [0, 4, 8, 12]
    text = processor.apply_chat_template(ask([{"type": "video"}]), add_generation_prompt=True)
    video = torch.from_numpy(frames[taken]).permute(0, 3, 1, 2)
    inputs = processor(videos=[video], text=text, return_tensors="pt")
    save("llava_onevision", model, processor, text, inputs, taken)


def internvl(frames, seed):
    tokenizer = bytes_tokenizer(
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>", "<video>"],
        eos_token="<|im_end|>", pad_token="<|endoftext|>",
        extra_special_tokens={
            "start_image_token": "<img>", "end_image_token": "</img>",
            "context_image_token": "<IMG_CONTEXT>", "video_token": "<video>",
        },
    )
    template = CHATML.replace("IMAGE", "<IMG_CONTEXT>\n").replace("VIDEO", "<video>\n")
    side = 56
    config = tf.InternVLConfig(
        vision_config=dict(
            hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
            image_size=[side, side], patch_size=[14, 14], attention_bias=True,
        ),
        text_config=tf.Qwen2Config(**TEXT, vocab_size=len(tokenizer), eos_token_id=id_of(tokenizer, "<|im_end|>")),
        image_token_id=id_of(tokenizer, "<IMG_CONTEXT>"),
    )
    model = randomise(tf.InternVLForConditionalGeneration(config), seed)
    size = {"height": side, "width": side}
    processor = tf.InternVLProcessor(
        tf.GotOcr2ImageProcessor(size=size), tokenizer, tf.InternVLVideoProcessor(size=size, num_frames=5),
        image_seq_length=4, chat_template=template,
    )
    text = processor.apply_chat_template(ask([{"type": "video"}]), add_generation_prompt=True)
    inputs, taken = sampled(processor, frames, text, num_frames=5)
    save("internvl", model, processor, text, inputs, taken)


def qwen_tokenizer():
    return bytes_tokenizer(
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>",
         "<|image_pad|>", "<|video_pad|>"],
        eos_token="<|im_end|>", pad_token="<|endoftext|>",
        extra_special_tokens={
            "image_token": "<|image_pad|>", "video_token": "<|video_pad|>",
            "vision_bos_token": "<|vision_start|>", "vision_eos_token": "<|vision_end|>",
        },
    )


def qwen_template():
    image = "<|vision_start|><|image_pad|><|vision_end|>"
    return CHATML.replace("IMAGE", image).replace("VIDEO", image.replace("image", "video"))


def qwen_ids(tokenizer):
    return dict(
        image_token_id=id_of(tokenizer, "<|image_pad|>"),
        video_token_id=id_of(tokenizer, "<|video_pad|>"),
        vision_start_token_id=id_of(tokenizer, "<|vision_start|>"),
        vision_end_token_id=id_of(tokenizer, "<|vision_end|>"),
    )


def sampled(processor, frames, text, **choice):
    """Inputs for the video with the frames that the video processor takes itself."""
    video = torch.from_numpy(frames).permute(0, 3, 1, 2)
    metadata = dict(total_num_frames=FRAMES, fps=RATE, duration=FRAMES / RATE, frames_indices=list(range(FRAMES)))
    given = processor(
        videos=[video], text=text, return_tensors="pt", do_sample_frames=True, **choice,
        video_metadata=[metadata], return_metadata=True,
    )
    if "video_metadata" in given:
        seen = given.pop("video_metadata")
    else:
        seen = processor.video_processor(
            videos=[video], do_sample_frames=True, video_metadata=[metadata], return_metadata=True, **choice
        )["video_metadata"]
    taken = [int(i) for i in seen[0].frames_indices]
    return given, taken


def qwen2_5(frames, seed):
    tokenizer = qwen_tokenizer()
    config = tf.Qwen2_5_VLConfig(
        text_config=dict(
            **TEXT, vocab_size=len(tokenizer), eos_token_id=id_of(tokenizer, "<|im_end|>"),
            rope_parameters=dict(rope_type="default", rope_theta=1e6, mrope_section=[2, 1, 1]),
        ),
        vision_config=dict(
            depth=3, hidden_size=32, num_heads=2, intermediate_size=48, out_hidden_size=32,
            patch_size=14, window_size=56, fullatt_block_indexes=[1], tokens_per_second=2,
        ),
        **qwen_ids(tokenizer),
    )
    model = randomise(tf.Qwen2_5_VLForConditionalGeneration(config), seed)
    video = tf.Qwen2VLVideoProcessor(size={"shortest_edge": 4 * 28 * 28, "longest_edge": 16 * 28 * 28})
    processor = tf.Qwen2_5_VLProcessor(
        tf.Qwen2VLImageProcessor(), tokenizer, video, chat_template=qwen_template()
    )
    text = processor.apply_chat_template(ask([{"type": "video"}]), add_generation_prompt=True)
    inputs, taken = sampled(processor, frames, text, fps=2)
    seconds = float(inputs["second_per_grid_ts"][0])
    ids = inputs["input_ids"][0].tolist()
    positions = after_the_largest(
        ids, model, inputs["video_grid_thw"].tolist(), seconds, config.video_token_id, 2, 2
    )
    save("qwen2_5_vl", model, processor, text, inputs, taken, positions)


def qwen3(frames, seed):
    tokenizer = qwen_tokenizer()
    config = tf.Qwen3VLConfig(
        text_config=dict(
            **TEXT, head_dim=8, vocab_size=len(tokenizer), eos_token_id=id_of(tokenizer, "<|im_end|>"),
            rope_parameters=dict(
                rope_type="default", rope_theta=5e6, mrope_section=[2, 1, 1], mrope_interleaved=True
            ),
        ),
        vision_config=dict(
            depth=3, hidden_size=32, num_heads=2, intermediate_size=48, out_hidden_size=32, patch_size=16,
            num_position_embeddings=16, deepstack_visual_indexes=[0, 1],
        ),
        **qwen_ids(tokenizer),
    )
    model = randomise(tf.Qwen3VLForConditionalGeneration(config), seed)
    video = tf.Qwen3VLVideoProcessor(size={"shortest_edge": 4 * 32 * 32, "longest_edge": 64 * 32 * 32})
    processor = tf.Qwen3VLProcessor(
        tf.Qwen2VLImageProcessor(patch_size=16), tokenizer, video, chat_template=qwen_template()
    )
    text = processor.apply_chat_template(ask([{"type": "video"}]), add_generation_prompt=True)
    # transformers 4.57.1, the first with this model, puts the groups in place of all three tokens;
    # 5.23.0 leaves the outer two around them.
    alone = text.replace("<|vision_start|><|video_pad|><|vision_end|>", "<|video_pad|>")
    inputs, taken = sampled(processor, frames, alone, fps=2)
    save("qwen3_vl", model, processor, text, inputs, taken)


if __name__ == "__main__":
    HERE.mkdir(exist_ok=True)
    frames = moving_square()
    write_video(frames, HERE / "video.mkv")
    for make, seed in ((llava, 1), (onevision, 2), (qwen2_5, 3), (qwen3, 4), (internvl, 6)):
        make(frames, seed)
