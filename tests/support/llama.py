"""Small Llamas of random weights, made without transformers, for the real loader and engine."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

SPECIALS = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def config(
    *, vocab: int = 261, hidden: int = 64, inner: int = 96, layers: int = 2, context: int = 1024
) -> dict[str, Any]:
    """config.json of an untied Llama with 4 heads and 2 KV heads."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": vocab,
        "max_position_embeddings": context,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": "float32",
    }


def tensors(of: Mapping[str, Any], seed: int = 0) -> dict[str, Tensor]:
    """Random weights of a size that lets a few layers say different things."""
    generator = torch.Generator().manual_seed(seed)
    vocab, width, inner = of["vocab_size"], of["hidden_size"], of["intermediate_size"]

    def noise(rows: int, columns: int) -> Tensor:
        return torch.randn(rows, columns, generator=generator) * 1.2 / columns**0.5

    def gain() -> Tensor:
        return 1 + 0.1 * torch.randn(width, generator=generator)

    made = {
        "model.embed_tokens.weight": noise(vocab, width) * 4,
        "lm_head.weight": noise(vocab, width) * 4,
        "model.norm.weight": gain(),
    }
    for layer in range(of["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        for name, rows, columns in (
            ("self_attn.q_proj", width, width),
            ("self_attn.k_proj", width // 2, width),
            ("self_attn.v_proj", width // 2, width),
            ("self_attn.o_proj", width, width),
            ("mlp.gate_proj", inner, width),
            ("mlp.up_proj", inner, width),
            ("mlp.down_proj", width, inner),
        ):
            made[f"{at}{name}.weight"] = noise(rows, columns)
        made[f"{at}input_layernorm.weight"] = gain()
        made[f"{at}post_attention_layernorm.weight"] = gain()
    return made


def write(directory: Path, of: Mapping[str, Any], weights: Mapping[str, Tensor]) -> Path:
    """A checkpoint without a tokenizer."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(dict(of)))
    save_file(dict(weights), directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def write_llama(
    directory: Path, *, seed: int = 0, hidden: int = 64, layers: int = 2, context: int = 1024
) -> Path:
    """A whole model directory: weights, byte-level tokenizer of 261 tokens, chat template."""
    of = config(hidden=hidden, layers=layers, context=context)
    write(directory, of, tensors(of, seed))
    vocab = {token: number for number, token in enumerate(SPECIALS)}
    for symbol in sorted(pre_tokenizers.ByteLevel.alphabet()):
        vocab[symbol] = len(vocab)
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(SPECIALS)
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(
        json.dumps({"eos_token": "</s>", "bos_token": "<s>", "chat_template": TEMPLATE})
    )
    return directory
