"""Model folders as others leave them, changed in one place, and what transformers makes of each.

    pip install torch==2.15.0 torchvision==0.29.2 transformers==5.24.0 av==18.1.0
    python tests/golden/folders.py

Writes `folders.json`: changes of the folders in `answers/`, `decoders/` and `tokenizer/`, each with the ids of the
prompt and of the answer (ended by the ids that end it), the last logits, or the ids of some texts. `files` are JSON
files with keys that are set (a path with dots) or removed ("-"), or texts, or removed (null); `tensors` are tensors that are copied,
removed, or turned around, by the ends of their names.
"""

import copy
import json
import pathlib
import shutil
import struct
import sys
import tempfile

import av
import numpy as np
import torch
import transformers as tf

GOLDEN = pathlib.Path(__file__).parent
QUESTION = "What moves?"
NEW_TOKENS = 6
# The frames that those are shown which do not choose.
TAKEN = [0, 4, 8, 12]
REMOVED = "-"


def video():
    with av.open(str(GOLDEN / "answers/video.mkv")) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


# What is changed.


def set_key(config, path, value):
    *parents, last = path.split(".")
    for key in parents:
        config = config.setdefault(key, {})
    if value == REMOVED:
        config.pop(last, None)
    else:
        config[last] = value


def change_file(path, change):
    if change is None:
        path.unlink(missing_ok=True)
    elif isinstance(change, str):
        path.write_bytes(change.encode())
    else:
        config = json.loads(path.read_text()) if path.exists() else {}
        for key, value in change.items():
            set_key(config, key, copy.deepcopy(value))
        path.write_text(json.dumps(config, indent=1))


def read_tensors(path):
    data = path.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + size])
    header.pop("__metadata__", None)
    at = 8 + size
    ranges = {name: entry["data_offsets"] for name, entry in header.items()}
    return {n: (header[n]["dtype"], header[n]["shape"], data[at + a : at + b]) for n, (a, b) in ranges.items()}


def write_tensors(path, tensors):
    header, data = {}, b""
    for name, (dtype, shape, stored) in tensors.items():
        header[name] = dict(dtype=dtype, shape=shape, data_offsets=[len(data), len(data) + len(stored)])
        data += stored
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def change_tensors(path, changes):
    tensors = read_tensors(path)
    name = lambda end: next(n for n in tensors if n.endswith(end))
    for change in changes:
        if "copy" in change:
            source, target = change["copy"]
            try:
                target = name(target)
            except StopIteration:
                pass
            tensors[target] = tensors[name(source)]
        if "remove" in change:
            tensors.pop(name(change["remove"]))
        if "reverse" in change:
            dtype, shape, stored = tensors[name(change["reverse"])]
            numbers = np.frombuffer(stored, np.float32)[::-1]
            tensors[name(change["reverse"])] = (dtype, shape, numbers.tobytes())
    write_tensors(path, tensors)


def changed(case, into):
    folder = pathlib.Path(into) / "folder"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(GOLDEN / case["of"], folder)
    for name, change in case.get("files", {}).items():
        change_file(folder / name, change)
    if "tensors" in case:
        change_tensors(folder / "model.safetensors", case["tensors"])
    return folder


# What transformers makes of it.


def conversation(content):
    return [{"role": "user", "content": [*content, {"type": "text", "text": QUESTION}]}]


def prompt(processor, content):
    return processor.apply_chat_template(conversation(content), add_generation_prompt=True)


def of_images(processor, frames):
    text = prompt(processor, [{"type": "image"}] * len(TAKEN))
    return processor(images=[frames[i] for i in TAKEN], text=text, return_tensors="pt")


def tensor(frames):
    return torch.from_numpy(frames).permute(0, 3, 1, 2)


def of_video(processor, frames):
    text = prompt(processor, [{"type": "video"}])
    return processor(videos=[tensor(frames[TAKEN])], text=text, return_tensors="pt")


def of_sampled(processor, frames, **choice):
    text = prompt(processor, [{"type": "video"}])
    # See answers.py on what 4.57 puts in place of all three tokens.
    if isinstance(processor, tf.Qwen3VLProcessor):
        text = text.replace("<|vision_start|><|video_pad|><|vision_end|>", "<|video_pad|>")
    n = len(frames)
    metadata = dict(total_num_frames=n, fps=4, duration=n / 4, frames_indices=list(range(n)))
    return processor(
        videos=[tensor(frames)], text=text, return_tensors="pt", do_sample_frames=True, video_metadata=[metadata],
        **choice,
    )


ASKED = {
    "answers/llava15": of_images,
    "answers/llava_onevision": of_video,
    "answers/internvl": lambda processor, frames: of_sampled(processor, frames, num_frames=5),
    "answers/qwen3_vl": lambda processor, frames: of_sampled(processor, frames, fps=2),
}


def answer(folder, case, frames):
    processor = tf.AutoProcessor.from_pretrained(folder)
    model = tf.AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    inputs = ASKED[case["of"]](processor, frames)
    ends = model.generation_config.eos_token_id
    ends = ends if isinstance(ends, list) else [ends]
    given, drawn, margin = dict(inputs), [], 9e9
    with torch.no_grad():
        while len(drawn) < NEW_TOKENS:
            best = model(**given, use_cache=False).logits[0, -1].topk(2)
            margin = min(margin, float(best.values[0] - best.values[1]))
            drawn.append(int(best.indices[0]))
            if drawn[-1] in ends:
                break
            new = torch.tensor([[drawn[-1]]])
            given["input_ids"] = torch.cat([given["input_ids"], new], 1)
            for mask in ("attention_mask", "mm_token_type_ids", "token_type_ids"):
                if mask in given:
                    fill = torch.full_like(new, 1 if mask == "attention_mask" else 0)
                    given[mask] = torch.cat([given[mask], fill], 1)
    return dict(prompt_ids=inputs["input_ids"][0].tolist(), generated_ids=drawn, margin=round(margin, 4))


def logits(folder):
    model = tf.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    ids = torch.tensor([[(7 * i + 3) % 48 for i in range(40)]])
    with torch.no_grad():
        last = model(ids).logits[0, -1]
    return dict(last_logits=[float(f"{x:.6g}") for x in last])


TEXTS = [
    "<|im_start|>user\nhello<|im_end|>\n",
    "hello <|im_start|> the  <|im_end|>world",
    "a<img>b</s>c<s> d",
    "<|im_start|><|im_end|> the<x>y",
    "the <x> the<x>the",
    "What moves? What  moves",
]


def ids(folder):
    tokenizer = tf.AutoTokenizer.from_pretrained(folder)
    return dict(texts=[[t, tokenizer(t, add_special_tokens=False)["input_ids"]] for t in TEXTS])


def made(case, frames, into):
    folder = changed(case, into)
    if "texts" not in case and case["of"] in ASKED:
        return answer(folder, case, frames)
    return logits(folder) if case["of"].startswith("decoders") else ids(folder)


sys.path.insert(0, str(GOLDEN))
from folder_cases import CASES  # noqa: E402

if __name__ == "__main__":
    frames, cases = video(), []
    only = sys.argv[1:]
    with tempfile.TemporaryDirectory() as into:
        for name, case in CASES.items():
            if only and not any(o in name for o in only):
                continue
            try:
                case = dict(name=name, **(case | made(case, frames, into)))
            except Exception as error:
                case = dict(name=name, **case, refused=f"{type(error).__name__}: {error}"[:300])
            print(name, {k: case[k] for k in ("generated_ids", "margin", "refused") if k in case}, len(case.get("prompt_ids", [])), [t[1] for t in case.get("texts", [])])
            cases.append(case)
    if not only:
        lines = ",\n".join(json.dumps(case) for case in cases)
        (GOLDEN / "folders.json").write_text(f"[\n{lines}\n]\n")
