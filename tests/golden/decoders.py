"""Tiny decoders with the switches that LLaMA's descendants have, as transformers computes them.

    python tests/golden/decoders.py

Writes config.json, model.safetensors and cases.safetensors to tests/golden/decoders/NAME.
Made with transformers 5.23.0 and torch 2.15.0 on a CPU.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

SIZES = dict(
    vocab_size=48,
    hidden_size=32,
    intermediate_size=40,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=512,
    rms_norm_eps=1e-5,
    initializer_range=0.3,
    attn_implementation="eager",
)


def scaled(kind, sizes={}, **more):
    """LLaMA with positions stretched by 4."""
    scaling = dict(rope_type=kind, factor=4.0, rope_theta=10000.0, **more)
    return LlamaForCausalLM, LlamaConfig(**(SIZES | sizes), rope_parameters=scaling)


def say_how_long(path):
    """What transformers stretches to the ids that it is given, we stretch to the longest context, which must be said."""
    config = json.loads(path.read_text())
    config["rope_parameters"]["original_max_position_embeddings"] = config["max_position_embeddings"]
    config["max_position_embeddings"] = 40
    path.write_text(json.dumps(config, indent=2) + "\n")


CASES = {
    "mistral": (MistralForCausalLM, MistralConfig(**SIZES, sliding_window=7)),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config(**SIZES, tie_word_embeddings=True)),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config(**SIZES, head_dim=12)),
    "llama_biases": (LlamaForCausalLM, LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True)),
    "llama_linear": scaled("linear"),
    "llama_llama3": scaled(
        "llama3", low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=16
    ),
    "llama_yarn": scaled("yarn", original_max_position_embeddings=128),
    # Made for 20 ids and given 40 at once.
    "llama_dynamic": scaled("dynamic", sizes=dict(max_position_embeddings=20)),
}

for seed, (name, (kind, config)) in enumerate(CASES.items()):
    torch.manual_seed(seed)
    out = Path(__file__).parent / "decoders" / name
    model = kind(config).eval()
    with torch.no_grad():
        for tensor in model.parameters():
            if tensor.dim() == 1:
                tensor.add_(torch.randn_like(tensor) * 0.2)
    model.save_pretrained(out)
    (out / "generation_config.json").unlink()
    if name == "llama_dynamic":
        say_how_long(out / "config.json")
    ids = torch.randint(0, 48, (1, 40))
    with torch.no_grad():
        logits = model(ids).logits
    save_file({"ids": ids[0].int(), "logits": logits[0].contiguous()}, out / "cases.safetensors")
    for file in out.iterdir():
        file.chmod(0o644)
