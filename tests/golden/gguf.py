"""Tiny decoders as GGUF files, and what transformers gives for them; vocabularies as GGUF files, and their ids.

    python tests/golden/gguf.py

Writes NAME.gguf and NAME.safetensors (ids, logits), blocks.safetensors and tokenizers.json to tests/golden/gguf.
Made with gguf 0.19.0, transformers 5.23.0, tokenizers 0.23.3, sentencepiece 0.2.3 and torch 2.15.0 on a CPU.
"""

import json
import sys
from pathlib import Path

# The folder of this script has a name that it imports.
sys.path = [path for path in sys.path if Path(path or ".").resolve() != Path(__file__).resolve().parent]

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as T
from gguf import quants
from safetensors.torch import save_file
from sentencepiece import SentencePieceProcessor
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

HERE = Path(__file__).parent
OUT = HERE / "gguf"
OUT.mkdir(exist_ok=True)

SIZES = dict(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=512,
    rms_norm_eps=1e-5,
    initializer_range=0.3,
    attn_implementation="eager",
)
LLAMA_3 = dict(
    rope_type="llama3",
    rope_theta=10000.0,
    factor=4.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=16,
)
# As llama.cpp mixes types: another one for a part of the matrices.
MIXED = dict(
    attn_q=T.Q4_0,
    attn_k=T.Q4_1,
    attn_v=T.Q5_0,
    attn_output=T.Q5_1,
    ffn_gate=T.Q8_0,
    ffn_up=T.Q4_0,
    ffn_down=T.Q5_0,
    token_embd=T.Q8_0,
    output=T.Q4_1,
)
K = dict(
    attn_q=T.Q2_K,
    attn_k=T.Q3_K,
    attn_v=T.Q6_K,
    attn_output=T.Q5_K,
    ffn_gate=T.Q4_K,
    ffn_up=T.Q4_K,
    ffn_down=T.Q6_K,
    token_embd=T.Q6_K,
    output=T.Q4_K,
)
WIDE = dict(hidden_size=256, intermediate_size=256, num_hidden_layers=1, num_key_value_heads=1)


def all_as(kind):
    return {name: kind for name in MIXED}


CASES = {
    "llama_f32": (LlamaForCausalLM, LlamaConfig(**SIZES), all_as(T.F32)),
    "llama_f16": (LlamaForCausalLM, LlamaConfig(**SIZES), all_as(T.F16)),
    "llama_bf16": (LlamaForCausalLM, LlamaConfig(**SIZES), all_as(T.BF16)),
    "llama_mixed": (LlamaForCausalLM, LlamaConfig(**SIZES), MIXED),
    "llama_k": (LlamaForCausalLM, LlamaConfig(**(SIZES | WIDE)), K),
    "llama_3": (LlamaForCausalLM, LlamaConfig(**SIZES, rope_parameters=LLAMA_3), all_as(T.Q8_0)),
    "mixtral": (
        MixtralForCausalLM,
        MixtralConfig(**SIZES, num_local_experts=3, num_experts_per_tok=2, sliding_window=None),
        all_as(T.Q8_0),
    ),
    "qwen2_q4_0": (Qwen2ForCausalLM, Qwen2Config(**SIZES, tie_word_embeddings=True), all_as(T.Q4_0)),
    "qwen3_q8_0": (Qwen3ForCausalLM, Qwen3Config(**SIZES, head_dim=16), all_as(T.Q8_0)),
}
ARCHITECTURES = {"LlamaConfig": "llama", "MixtralConfig": "llama", "Qwen2Config": "qwen2", "Qwen3Config": "qwen3"}


def permuted(weight, heads):
    """Rows of each head from halves to adjacent pairs, as llama.cpp's converter orders them for LLaMA."""
    rows = weight.reshape(heads, 2, -1, *weight.shape[1:])
    return rows.swapaxes(1, 2).reshape(weight.shape)


def parts(name):
    """Name in the file of a tensor of transformers, without and with its ending."""
    for old, new in [
        ("model.embed_tokens", "token_embd"),
        ("model.norm", "output_norm"),
        ("lm_head", "output"),
        ("model.layers.", "blk."),
        ("input_layernorm", "attn_norm"),
        ("post_attention_layernorm", "ffn_norm"),
        ("self_attn.q_norm", "attn_q_norm"),
        ("self_attn.k_norm", "attn_k_norm"),
        ("self_attn.q_proj", "attn_q"),
        ("self_attn.k_proj", "attn_k"),
        ("self_attn.v_proj", "attn_v"),
        ("self_attn.o_proj", "attn_output"),
        ("mlp.gate_proj", "ffn_gate"),
        ("mlp.up_proj", "ffn_up"),
        ("mlp.down_proj", "ffn_down"),
        ("mlp.gate.", "ffn_gate_inp."),
    ]:
        name = name.replace(old, new)
    return name


def random_blocks(kind, shape, seed):
    """Any bits, with scales that keep weights near those of an initialisation."""
    random = np.random.default_rng(seed)
    weights, size = gguf.GGML_QUANT_SIZES[kind]
    data = random.integers(0, 256, (shape[0], shape[1] // weights, size), dtype=np.uint8)
    scale, places = {
        T.Q2_K: (2e-3, [80, 82]),
        T.Q3_K: (5e-4, [108]),
        T.Q4_K: (2e-4, [0, 2]),
        T.Q5_K: (1e-4, [0, 2]),
        T.Q6_K: (5e-5, [208]),
    }[kind]
    for at in places:
        drawn = (scale * random.uniform(0.5, 1.5, data.shape[:2])).astype(np.float16)
        data[..., at : at + 2] = drawn[..., None].view(np.uint8)
    return data.reshape(shape[0], -1)


def stored(name, weight, kinds, seed):
    """A tensor's bytes in the file, and its type there."""
    part = name.split(".")[-2]
    kind = kinds.get(part.removesuffix("_exps"), T.F32) if weight.ndim > 1 else T.F32
    if kind in (T.Q2_K, T.Q3_K, T.Q4_K, T.Q5_K, T.Q6_K):
        return random_blocks(kind, weight.shape, seed), kind
    return quants.quantize(weight, kind), kind


def tensors_of(model, architecture):
    """Names and weights, as llama.cpp's converter has them."""
    config, found = model.config, {}
    for name, tensor in model.state_dict().items():
        name, weight = parts(name), tensor.float().numpy()
        if name == "output.weight" and config.tie_word_embeddings:
            continue
        if architecture == "llama" and ".attn_q." in name:
            weight = permuted(weight, config.num_attention_heads)
        if architecture == "llama" and ".attn_k." in name:
            weight = permuted(weight, config.num_key_value_heads)
        if name.endswith("experts.gate_up_proj"):
            gate, up = np.split(weight, 2, axis=1)
            block = name.split(".mlp.")[0]
            found[f"{block}.ffn_gate_exps.weight"], found[f"{block}.ffn_up_exps.weight"] = gate, up
        elif name.endswith("experts.down_proj"):
            found[name.split(".mlp.")[0] + ".ffn_down_exps.weight"] = weight
        else:
            found[name] = weight
    return found


def write_model(name, model, kinds, with_more=lambda writer: None):
    """NAME.gguf; the weights that it stands for, by name."""
    config = model.config
    architecture = ARCHITECTURES[type(config).__name__]
    writer = gguf.GGUFWriter(OUT / f"{name}.gguf", architecture)
    writer.add_vocab_size(config.vocab_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if head_dim * config.num_attention_heads != config.hidden_size:
        writer.add_key_length(head_dim)
        writer.add_value_length(head_dim)
    if architecture == "llama":
        writer.add_rope_dimension_count(head_dim)
    if hasattr(config, "num_local_experts"):
        writer.add_expert_count(config.num_local_experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
    with_more(writer)
    meant = {}
    for seed, (key, weight) in enumerate(tensors_of(model, architecture).items()):
        data, kind = stored(key, weight, kinds, seed)
        raw = kind if kind not in (T.F32, T.F16) else None
        writer.add_tensor(key, data, raw_dtype=raw)
        meant[key] = quants.dequantize(data, kind).reshape(weight.shape) if kind not in (T.F32, T.F16) else data
    if config.rope_parameters["rope_type"] == "llama3":
        plain = 1.0 / config.rope_parameters["rope_theta"] ** (np.arange(0, head_dim, 2) / head_dim)
        turned = model.model.rotary_emb.inv_freq.double().numpy()
        writer.add_tensor("rope_freqs.weight", (plain / turned).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return meant


def put_back(model, meant):
    """Gives the model the weights that its file stands for."""
    architecture = ARCHITECTURES[type(model.config).__name__]
    state = model.state_dict()
    for key, tensor in state.items():
        name = parts(key)
        if name == "output.weight" and model.config.tie_word_embeddings:
            continue
        block = name.split(".mlp.")[0]
        if name.endswith("experts.gate_up_proj"):
            pair = [meant[f"{block}.ffn_{part}_exps.weight"] for part in ("gate", "up")]
            weight = np.concatenate(pair, axis=1)
        elif name.endswith("experts.down_proj"):
            weight = meant[f"{block}.ffn_down_exps.weight"]
        else:
            weight = meant[name]
        heads = {"attn_q": model.config.num_attention_heads, "attn_k": model.config.num_key_value_heads}
        heads = heads.get(name.split(".")[-2])
        if architecture == "llama" and heads:
            weight = weight.reshape(heads, -1, 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)
        tensor.copy_(torch.from_numpy(np.ascontiguousarray(weight, dtype=np.float32)))
    return model


def fresh(seed, kind, config):
    torch.manual_seed(seed)
    model = kind(config).eval()
    with torch.no_grad():
        for tensor in model.parameters():
            if tensor.dim() == 1:
                tensor.add_(torch.randn_like(tensor) * 0.2)
    return model


@torch.no_grad()
def write_models():
    for seed, (name, (kind, config, kinds)) in enumerate(CASES.items()):
        model = fresh(seed, kind, config)
        model = put_back(model, write_model(name, model, kinds))
        ids = torch.randint(0, config.vocab_size, (1, 40))
        logits = model(ids).logits[0]
        if name not in ("llama_3", "mixtral"):
            # A reader of its own; it knows neither divided frequencies nor these experts, and not Qwen3's key_length.
            known = dict(config=config) if "qwen3" in name else {}
            read = AutoModelForCausalLM.from_pretrained(
                OUT, gguf_file=f"{name}.gguf", dtype=torch.float32, attn_implementation="eager", **known
            )
            apart = (read(ids).logits[0] - logits).abs().max().item()
            print(f"{name}: transformers' reader is {apart:.1e} away")
            assert apart < 1e-4, name
        save_file({"ids": ids[0].int(), "logits": logits.contiguous()}, OUT / f"{name}.safetensors")


def write_blocks():
    """Blocks of every type that gguf can read, and the weights that they stand for."""
    out = {}
    for kind in (T.Q4_0, T.Q4_1, T.Q5_0, T.Q5_1, T.Q8_0):
        weight = np.random.default_rng(int(kind)).normal(size=(3, 64)).astype(np.float32)
        out[kind.name] = quants.quantize(weight, kind)
    for kind in (T.Q2_K, T.Q3_K, T.Q4_K, T.Q5_K, T.Q6_K):
        out[kind.name] = random_blocks(kind, (3, 512), int(kind))
    tensors = {}
    for name, data in out.items():
        tensors[name] = torch.from_numpy(data)
        tensors[f"{name}.weights"] = torch.from_numpy(quants.dequantize(data, T[name]))
    save_file(tensors, OUT / "blocks.safetensors")


WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
MODERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}DIGITS| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CUTS = {
    "default": [r"[\p{P}\$\+<=>\^~\|]+", WORDS, r"\p{N}+", "[0-9][0-9][0-9]"],
    "gpt-2": [WORDS],
    "llama-bpe": [MODERN.replace("DIGITS", "{1,3}")],
    "qwen2": [MODERN.replace("DIGITS", "")],
}
TEXTS = [
    "",
    " ",
    "Hello, world!",
    "It's HE'LL they'Ve 12345 0.5",
    "  two  spaces\n\n\tand a tab \r\n end  ",
    "naïve café cafe\u0301 Ångström",
    "日本語のテキスト 中文 한국어 ไทย",
    "emoji 🙂🙂 ½ ⅷ ٣٤ §$+<=>^~|",
    "<|begin|>a<|end|> b<tool>c <|none|>",
    "x = [i**2 for i in range(10)]  # comment",
]


def trained(name):
    """A small BPE over bytes, cut as `name` says."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=name == "llama-bpe"))
    splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in CUTS[name]]
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*splits, bytes_])
    tokenizer.decoder = decoders.ByteLevel()
    if name == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([__doc__, *TEXTS, (HERE / "decoders.py").read_text()], trainer)
    tokenizer.add_special_tokens(["<|begin|>", "<|end|>"])
    tokenizer.add_tokens(["<tool>"])
    return tokenizer


def add_bpe(writer, tokenizer, name):
    kept = json.loads(tokenizer.to_str())
    added = {token["content"]: token["special"] for token in kept["added_tokens"]}
    vocab = sorted(tokenizer.get_vocab(), key=tokenizer.token_to_id)
    types = {True: gguf.TokenType.CONTROL, False: gguf.TokenType.USER_DEFINED}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(name)
    writer.add_token_list(vocab)
    writer.add_token_types([types[added[t]] if t in added else gguf.TokenType.NORMAL for t in vocab])
    writer.add_token_merges([" ".join(merge) for merge in kept["model"]["merges"]])
    writer.add_bos_token_id(tokenizer.token_to_id("<|begin|>"))
    writer.add_eos_token_id(tokenizer.token_to_id("<|end|>"))


def write_alone(name, add):
    """A file with a vocabulary and no tensors."""
    writer = gguf.GGUFWriter(OUT / f"{name}.gguf", "llama")
    add(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


def write_tokenizers():
    cases = {}
    for name in CUTS:
        tokenizer = trained(name)
        write_alone(f"bpe_{name}", lambda writer: add_bpe(writer, tokenizer, name))
        # llama.cpp puts the first token before a text of this kind where the file says nothing.
        begin = [tokenizer.token_to_id("<|begin|>")] if name == "llama-bpe" else []
        ids = [begin + tokenizer.encode(text, add_special_tokens=False).ids for text in TEXTS]
        decoded = [tokenizer.decode(one, skip_special_tokens=True) for one in ids]
        cases[f"bpe_{name}"] = dict(texts=TEXTS, ids=ids, decoded=decoded)
    processor = SentencePieceProcessor(str(HERE / "tokenizer/tokenizer.model"))

    def add_pieces(writer):
        ids = range(processor.vocab_size())
        kinds = [
            gguf.TokenType.UNKNOWN if processor.is_unknown(i)
            else gguf.TokenType.CONTROL if processor.is_control(i)
            else gguf.TokenType.BYTE if processor.is_byte(i)
            else gguf.TokenType.NORMAL
            for i in ids
        ]
        writer.add_tokenizer_model("llama")
        writer.add_token_list([processor.id_to_piece(i) for i in ids])
        writer.add_token_scores([processor.get_score(i) for i in ids])
        writer.add_token_types(kinds)
        writer.add_bos_token_id(processor.bos_id())
        writer.add_eos_token_id(processor.eos_id())
        writer.add_unk_token_id(processor.unk_id())

    write_alone("pieces", add_pieces)
    (OUT / "tokenizers.json").write_text(json.dumps(cases, ensure_ascii=False, indent=1) + "\n")


TEMPLATE = (
    "{% for message in messages %}<|begin|>{{ message.role }}\n{{ message.content }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|begin|>assistant\n{% endif %}"
)


@torch.no_grad()
def write_chat():
    """One whole file: weights, vocabulary and template; what it answers."""
    tokenizer = trained("qwen2")
    sizes = SIZES | dict(vocab_size=tokenizer.get_vocab_size())
    model = fresh(77, Qwen2ForCausalLM, Qwen2Config(**sizes))

    def add_text(writer):
        add_bpe(writer, tokenizer, "qwen2")
        writer.add_chat_template(TEMPLATE)

    model = put_back(model, write_model("chat", model, all_as(T.Q8_0), add_text))
    prompt = "<|begin|>user\nWhat moves?<|end|>\n<|begin|>assistant\n"
    ids = tokenizer.encode(prompt, add_special_tokens=False).ids
    eos = tokenizer.token_to_id("<|end|>")
    said, margin = list(ids), 1e9
    for _ in range(12):
        best = model(torch.tensor([said])).logits[0, -1].topk(2)
        margin = min(margin, (best.values[0] - best.values[1]).item())
        said.append(best.indices[0].item())
        if said[-1] == eos:
            break
    expected = dict(prompt_ids=ids, generated_ids=said[len(ids) :], margin=margin)
    (OUT / "chat.json").write_text(json.dumps(expected) + "\n")
    print("chat:", expected)


write_models()
write_blocks()
write_tokenizers()
write_chat()
for file in OUT.iterdir():
    file.chmod(0o644)
