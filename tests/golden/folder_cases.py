"""The changes of folders.py."""

LLAVA, ONEVISION, INTERNVL, QWEN3 = (f"answers/{n}" for n in ("llava15", "llava_onevision", "internvl", "qwen3_vl"))
YARN = "decoders/llama_yarn"
CLIP_IMAGES = dict(
    crop_size={"height": 28, "width": 28}, do_center_crop=True, do_convert_rgb=True, do_normalize=True, do_rescale=True,
    do_resize=True, image_mean=[0.48145466, 0.4578275, 0.40821073], image_processor_type="CLIPImageProcessor",
    image_std=[0.26862954, 0.26130258, 0.27577711], resample=3, rescale_factor=0.00392156862745098,
    size={"shortest_edge": 28},
)
CRLF = (
    "{% for message in messages %}\r\n{% if message['role'] == 'user' %}USER: {% else %}ASSISTANT: {% endif %}\r\n"
    "{% for content in message['content'] %}{% if content['type'] == 'image' %}<image>\r\n\r\n"
    "{% elif content['type'] == 'text' %}{{ content['text'] }}\r{% endif %}{% endfor %}\r\n{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{{ '\\r\\n' }}{% endif %}\r\n"
)


def of(folder, tensors=None, **files):
    files = {name.replace("__", "."): change for name, change in files.items()}
    case = dict(of=folder)
    if files:
        case["files"] = files
    if tensors:
        case["tensors"] = tensors
    return case


def images(folder=LLAVA, **change):
    return of(folder, processor_config__json={f"image_processor.{k}": v for k, v in change.items()})


def videos(folder, **change):
    return of(folder, processor_config__json={f"video_processor.{k}": v for k, v in change.items()})


def config(folder=LLAVA, **change):
    return of(folder, config__json={k.replace("__", "."): v for k, v in change.items()})


def tied(folder=LLAVA, *tensors, **flags):
    flags = flags or dict(tie_word_embeddings=True, text_config__tie_word_embeddings=True)
    return dict(config(folder, **flags), tensors=list(tensors))


def rope(**change):
    """`rope_parameters` of a decoder, whole."""
    return config(YARN, rope_parameters=dict(rope_theta=10000.0, rope_type="yarn", factor=4.0, **change))


SAME_HEAD = dict(copy=["embed_tokens.weight", "lm_head.weight"])
OTHER_HEAD = dict(reverse="lm_head.weight")
LINEAR = {"type": "linear", "factor": 4.0}
ADDED = {"<|im_start|>": 352, "<|im_end|>": 353, "<x>": 354}

DECODER = {
    str(id): {
        "content": token, "special": token != "<x>", "normalized": False, "lstrip": False,
        "rstrip": token == "<|im_end|>", "single_word": False,
    }
    for token, id in ADDED.items()
}


def words(model_type, **change):
    """The tokenizer of `tokenizer/`, in the folder of a model."""
    files = {"tokenizer_config__json": {"legacy": "-"}}
    files["config__json"] = {"model_type": model_type}
    for key, value in change.items():
        if key.endswith("__json"):
            files[key] = value
        else:
            files["tokenizer_config__json"][key] = value
    return of("tokenizer", **files)


def of_texts(**files):
    """The tokenizer.json of a model, whose table has no rows for more tokens."""
    return dict(of(LLAVA, **files), texts=[])


CASES = {
    "unchanged llava": of(LLAVA),
    "unchanged onevision": of(ONEVISION),
    "unchanged internvl": of(INTERNVL),
    "unchanged qwen3": of(QWEN3),
    # Pictures.
    "image_processor: mean": images(image_mean=[0.0, 0.0, 0.0]),
    "image_processor: std": images(image_std=[0.5, 0.5, 0.5]),
    "image_processor: bilinear": images(resample=2),
    "image_processor: size and crop": images(size={"shortest_edge": 40}),
    "image_processor: size squashed": images(size={"height": 28, "width": 28}),
    "image_processor: rescale factor": images(rescale_factor=0.01),
    "image_processor: no normalization": images(do_normalize=False),
    "image_processor: no rescaling": images(do_rescale=False),
    "image_processor: pad": images(do_pad=True, image_processor_type="LlavaImageProcessor"),
    "image_processor before preprocessor_config": of(
        LLAVA,
        processor_config__json={"image_processor.image_mean": [0.0, 0.0, 0.0]},
        preprocessor_config__json=dict(CLIP_IMAGES, image_mean=[1.0, 1.0, 1.0]),
    ),
    "preprocessor_config where processor_config has none": of(
        LLAVA,
        processor_config__json={"image_processor": "-"},
        preprocessor_config__json=dict(CLIP_IMAGES, image_mean=[0.0, 0.0, 0.0]),
    ),
    "video_processor: mean": videos(ONEVISION, image_mean=[0.1, 0.2, 0.3]),
    "video_processor: std": videos(ONEVISION, image_std=[0.9, 0.8, 0.7]),
    "video_processor: rescale": videos(ONEVISION, rescale_factor=0.01),
    "image_processor is not for a video": images(ONEVISION, image_mean=[0.0, 0.0, 0.0]),
    "video_preprocessor_config behind video_processor": of(
        ONEVISION, video_preprocessor_config__json={"image_mean": [0.0, 0.0, 0.0]}
    ),
    "video_preprocessor_config": of(
        ONEVISION,
        processor_config__json={"video_processor": "-"},
        video_preprocessor_config__json={
            "video_processor_type": "LlavaOnevisionVideoProcessor", "size": {"height": 42, "width": 42},
            "image_mean": [0.1, 0.2, 0.3],
        },
        preprocessor_config__json={"size": {"height": 42, "width": 42}, "image_mean": [0.0, 0.0, 0.0]},
    ),
    "preprocessor_config of a video": of(
        ONEVISION,
        processor_config__json={"video_processor": "-"},
        preprocessor_config__json={
            "image_processor_type": "LlavaOnevisionImageProcessor", "size": {"height": 42, "width": 42},
            "image_mean": [0.0, 0.1, 0.2], "image_grid_pinpoints": [[42, 42]],
        },
    ),
    "internvl video mean": videos(INTERNVL, image_mean=[0.3, 0.2, 0.6]),
    "internvl video resample": videos(INTERNVL, resample=2),
    "qwen3 video mean": videos(QWEN3, image_mean=[0.1, 0.2, 0.3]),
    "qwen3 video size": videos(QWEN3, size={"shortest_edge": 4096, "longest_edge": 6 * 32 * 32}),
    "qwen3 video resample": videos(QWEN3, resample=2),
    # What ends an answer.
    "eos in config": config(eos_token_id=22),
    "eos in text_config": config(text_config__eos_token_id=22),
    "eos list in text_config": config(text_config__eos_token_id=[257, 22]),
    "eos at the top before text_config": config(eos_token_id=22, text_config__eos_token_id=4),
    "eos null at the top": of(LLAVA, config__json={"text_config.eos_token_id": 22, "eos_token_id": None}),
    "generation_config before config": of(
        LLAVA, config__json={"text_config.eos_token_id": 4}, generation_config__json={"eos_token_id": [22]}
    ),
    # Tied embeddings.
    "tied, the same head stored": tied(LLAVA, SAME_HEAD),
    "tied, another head stored": tied(LLAVA, OTHER_HEAD),
    "tied at the top only": tied(LLAVA, dict(remove="lm_head.weight"), tie_word_embeddings=True),
    "tied in text_config only": tied(
        LLAVA, dict(remove="lm_head.weight"), tie_word_embeddings=False, text_config__tie_word_embeddings=True
    ),
    "tied, only the head stored": tied(LLAVA, dict(remove="embed_tokens.weight")),
    "onevision tied, another head stored": tied(ONEVISION, OTHER_HEAD),
    "internvl tied by default": config(INTERNVL, tie_word_embeddings="-", text_config__tie_word_embeddings=False),
    "internvl tied by default, another head stored": tied(INTERNVL, SAME_HEAD, OTHER_HEAD, tie_word_embeddings="-"),
    "qwen3 tied, another head stored": tied(QWEN3, OTHER_HEAD),
    "decoder tied, another head stored": tied(YARN, OTHER_HEAD, tie_word_embeddings=True),
    "decoder tied, only the head stored": tied(YARN, dict(remove="embed_tokens.weight"), tie_word_embeddings=True),
    # Positions.
    "rope_scaling beside rope_parameters": config(text_config__rope_scaling=LINEAR),
    "rope_scaling takes rope_theta away": config(
        text_config__rope_scaling=LINEAR, text_config__rope_parameters={"rope_theta": 500.0, "rope_type": "default"}
    ),
    "rope_scaling, rope_theta beside it": config(
        text_config__rope_scaling=LINEAR, text_config__rope_theta=700.0,
        text_config__rope_parameters={"rope_theta": 500.0, "rope_type": "default"},
    ),
    "rope_scaling with its rope_theta": config(
        text_config__rope_scaling=dict(LINEAR, rope_theta=900.0), text_config__rope_theta=700.0
    ),
    "rope_theta in rope_parameters before the one beside": config(
        text_config__rope_theta=700.0, text_config__rope_parameters={"rope_theta": 500.0, "rope_type": "default"}
    ),
    "rope_theta beside rope_parameters without": config(
        text_config__rope_theta=700.0, text_config__rope_parameters={"rope_type": "linear", "factor": 2.0}
    ),
    "rope_scaling empty": config(
        text_config__rope_scaling={}, text_config__rope_parameters={"rope_theta": 500.0, "rope_type": "default"}
    ),
    "rope_type before type": config(text_config__rope_scaling={"type": "dynamic", "rope_type": "linear", "factor": 3.0}),
    "qwen3 yarn beside rope_parameters": config(
        QWEN3,
        text_config__rope_scaling=dict(
            rope_type="yarn", factor=4.0, original_max_position_embeddings=1024, mrope_section=[2, 1, 1],
            mrope_interleaved=True,
        ),
    ),
    "qwen3 mscale": config(
        QWEN3,
        text_config__rope_parameters=dict(
            rope_type="yarn", rope_theta=5e6, factor=4.0, original_max_position_embeddings=64, mrope_section=[2, 1, 1],
            mrope_interleaved=True, mscale=1.5, mscale_all_dim=0.5, truncate=False,
        ),
    ),
    "onevision yarn": config(
        ONEVISION,
        text_config__rope_scaling=dict(type="yarn", factor=4.0, original_max_position_embeddings=64),
    ),
    "internvl linear": config(INTERNVL, text_config__rope_scaling=LINEAR),
    "yarn: mscale and mscale_all_dim": rope(original_max_position_embeddings=128, mscale=1.3, mscale_all_dim=0.7),
    "yarn: equal mscales": rope(original_max_position_embeddings=128, mscale=1.0, mscale_all_dim=1.0),
    "yarn: mscale alone": rope(original_max_position_embeddings=128, mscale=1.3),
    "yarn: mscale of 0": rope(original_max_position_embeddings=128, mscale=0.0, mscale_all_dim=0.7),
    "yarn: attention_factor before mscale": rope(
        original_max_position_embeddings=128, mscale=1.3, mscale_all_dim=0.7, attention_factor=1.2
    ),
    "yarn: not truncated": rope(original_max_position_embeddings=128, truncate=False),
    "yarn: truncated as said": rope(original_max_position_embeddings=128, truncate=True),
    "yarn: no original length": rope(),
    "yarn: original length beside": config(
        YARN,
        rope_parameters=dict(rope_theta=10000.0, rope_type="yarn", factor=4.0, original_max_position_embeddings=128),
        original_max_position_embeddings=64,
    ),
    "yarn: finetuned": rope(original_max_position_embeddings=128, finetuned=True),
    "yarn: factor null": config(
        YARN, rope_parameters=dict(rope_theta=10000.0, rope_type="yarn", factor=None, original_max_position_embeddings=128)
    ),
    "yarn: betas of 0": rope(original_max_position_embeddings=128, beta_fast=0, beta_slow=0),
    "yarn: betas": rope(original_max_position_embeddings=128, beta_fast=8, beta_slow=2),
    "yarn: as rope_scaling": config(
        YARN, rope_parameters="-", rope_theta=5000.0,
        rope_scaling=dict(type="yarn", factor=2.0, original_max_position_embeddings=64, finetuned=True, mscale=1.1,
                          mscale_all_dim=0.4),
    ),
    "llama3: no original length": config(
        YARN,
        rope_parameters=dict(rope_theta=10000.0, rope_type="llama3", factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0),
    ),
    "linear: keys of others": config(
        YARN,
        rope_parameters=dict(rope_theta=10000.0, rope_type="linear", factor=4.0, original_max_position_embeddings=64,
                             finetuned=True),
    ),
    "default: a factor": config(YARN, rope_parameters=dict(rope_theta=10000.0, rope_type="default", factor=4.0)),
    # Templates.
    "crlf in a template": of(LLAVA, chat_template__jinja=CRLF),
    "crlf in chat_template.json": of(LLAVA, chat_template__jinja=None, chat_template__json={"chat_template": CRLF}),
    # Added tokens, beside a SentencePiece file.
    "added_tokens.json of a llama": words("llama", added_tokens__json=ADDED),
    "added_tokens.json of a llava": words("llava", added_tokens__json=ADDED),
    "added_tokens.json of a mistral": words("mistral", added_tokens__json=ADDED),
    "added_tokens.json, legacy": words("llama", legacy=True, added_tokens__json=ADDED),
    "added_tokens.json of a llava, not legacy": words("llava", legacy=False, added_tokens__json=ADDED),
    "added_tokens.json and special_tokens_map.json": words(
        "llama", added_tokens__json=ADDED,
        special_tokens_map__json={
            "additional_special_tokens": ["<|im_start|>"], "eos_token": "<|im_end|>",
            "pad_token": {"content": "<pad>", "lstrip": False, "normalized": True, "rstrip": False, "single_word": False},
        },
    ),
    "added_tokens_decoder": words("llama", added_tokens_decoder=DECODER),
    "added_tokens_decoder of a llava": words("llava", added_tokens_decoder=DECODER),
    "added_tokens_decoder before the other files": words(
        "llama", added_tokens_decoder=DECODER, added_tokens__json={"<y>": 352},
        special_tokens_map__json={"eos_token": "<y>"},
    ),
    "additional_special_tokens in special_tokens_map.json": words(
        "llama", special_tokens_map__json={"additional_special_tokens": ["<|im_start|>"], "pad_token": "<img>"}
    ),
    "additional_special_tokens": words("llama", additional_special_tokens=["<|im_start|>", "<|im_end|>"]),
    "a pad token of its own": words("llama", pad_token="<img>"),
    "an image token of its own": words("llava", pad_token="<x>", image_token="<img>"),
    "a placeholder renamed": words(
        "llava", added_tokens_decoder={"300": {"content": "<|im_start|>", "special": True}}
    ),
    "no prefix": words("llama", add_prefix_space=False, added_tokens_decoder=DECODER),
    # Added tokens, beside a tokenizer.json.
    "tokenizer.json and added_tokens.json": of_texts( added_tokens__json={"What ": 260, "<x>": 261}),
    "tokenizer.json and added_tokens_decoder": of_texts(
        tokenizer_config__json={
            "added_tokens_decoder": {"260": {"content": "moves", "lstrip": True, "special": True, "normalized": False,
                                             "rstrip": False, "single_word": False}}
        },
    ),
    "tokenizer.json and extra special tokens": of_texts(
        tokenizer_config__json={"additional_special_tokens": ["What"], "mask_token": "moves"}
    ),
}
