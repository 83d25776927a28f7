"""A tiny Mistral with a sliding window, as transformers computes it.

    python tests/golden/mistral.py

Writes config.json, model.safetensors and cases.safetensors to tests/golden/mistral.
Made with transformers 5.23.0 and torch 2.15.0 on a CPU.
"""

from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import MistralConfig, MistralForCausalLM

torch.manual_seed(3)
out = Path(__file__).parent / "mistral"
config = MistralConfig(
    vocab_size=48,
    hidden_size=32,
    intermediate_size=40,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=512,
    rms_norm_eps=1e-5,
    sliding_window=7,
    initializer_range=0.3,
    attn_implementation="eager",
)
model = MistralForCausalLM(config).eval()
model.save_pretrained(out)
(out / "generation_config.json").unlink()
ids = torch.randint(0, 48, (1, 40))
with torch.no_grad():
    logits = model(ids).logits
save_file({"ids": ids[0].int(), "logits": logits[0].contiguous()}, out / "cases.safetensors")
