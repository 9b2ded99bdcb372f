"""A model whose every word is known: weights that make the next token a function of the last one.

Embeddings are random signs, attention and MLP add nothing, and the output layer answers each token's embedding
with its successor. So the real loader, engine, sampler and detokenizer run, and what they say is exact. The chat
template picks the reply: a message that contains a reply's name is answered with it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from lmtop.engine.detokenize import BYTE_TO_CHAR

HIDDEN = 256
HEADS = 4
FEED_FORWARD = 64
PIECE_BYTES = 5
WORD = r"\b[a-z]{4}\b"  # of `prose`
TURNS = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"


def prose(words: int, start: int = 0, paragraph: int = 70) -> str:
    """`words` different words of four letters, each a piece of its own with the space before it."""
    parts = [a + b for a in "bdfghklmnprstvz" for b in "aeiou"]
    text = []
    for n in range(start, start + words):
        space = "\n\n" if n > start and (n - start) % paragraph == 0 else " "
        text.append(f"{space}{parts[n * 7 % len(parts)]}{parts[n // len(parts) % len(parts)]}")
    return "".join(text)[1:]


PLACES = {word: n for n, word in enumerate(prose(1500).split())}


def said(text: str) -> int:
    """How far into `prose(1500)` the words of `text` reach."""
    return max((PLACES[word] + 1 for word in re.findall(WORD, text) if word in PLACES), default=0)


def pieces(text: str, taken: set[bytes]) -> list[bytes]:
    """`text` as UTF-8, cut every five bytes, wherever that is; each is said once, so one that is taken grows."""
    data, out, at = text.encode(), [], 0
    while at < len(data):
        end = min(at + PIECE_BYTES, len(data))
        while data[at:end] in taken and end < len(data):
            end += 1
        while data[at:end] in taken:  # the end: into the piece before it
            at -= len(out[-1])
            taken.remove(out.pop())
        taken.add(data[at:end])
        out.append(data[at:end])
        at = end
    return out


def write_parrot(
    directory: Path, replies: Mapping[str, str], endless: tuple[str, ...] = (), *, context: int = 8192
) -> Path:
    """Fill `directory` with a model that knows `replies` by name, and return it. Those named in `endless` start
    again after their last piece. The last reply is the one given when no name fits."""
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2}
    vocab |= {f"<|{name}|>": 3 + n for n, name in enumerate(replies)}
    specials = list(vocab)
    for char in BYTE_TO_CHAR.values():
        vocab[char] = len(vocab)
    taken = {bytes([byte]) for byte in range(256)}
    follows: dict[int, int] = {}
    for name, text in replies.items():
        last, first = vocab[f"<|{name}|>"], len(vocab)
        for piece in pieces(text, taken):
            token = vocab["".join(BYTE_TO_CHAR[byte] for byte in piece)] = len(vocab)
            follows[last] = token
            last = token
        follows[last] = first if name in endless else vocab["</s>"]
    directory.mkdir(parents=True, exist_ok=True)
    _write_tokenizer(directory, vocab, specials, list(replies))
    _write_weights(directory, len(vocab), follows, context)
    return directory


def _write_tokenizer(directory: Path, vocab: dict[str, int], specials: list[str], names: list[str]) -> None:
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(specials)
    tokenizer.save(str(directory / "tokenizer.json"))
    choice = "".join(
        f"{{% {'if' if n == 0 else 'elif'} '{name}' in messages[-1]['content'] %}}<|{name}|>"
        for n, name in enumerate(names[:-1])
    )
    choice += f"{{% else %}}<|{names[-1]}|>{{% endif %}}" if choice else f"<|{names[-1]}|>"
    template = f"{TURNS}{{% if add_generation_prompt %}}{choice}{{% endif %}}"
    settings = {"eos_token": "</s>", "bos_token": "<s>", "chat_template": template}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))


def _write_weights(directory: Path, size: int, follows: dict[int, int], context: int) -> None:
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN,
        "intermediate_size": FEED_FORWARD, "num_hidden_layers": 1, "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS, "vocab_size": size, "max_position_embeddings": context,
        "rms_norm_eps": 1e-5, "rope_theta": 1e4, "hidden_act": "silu", "tie_word_embeddings": False,
        "bos_token_id": 1, "eos_token_id": 2, "torch_dtype": "float32",
    }  # fmt: skip
    (directory / "config.json").write_text(json.dumps(config))
    generator = torch.Generator().manual_seed(0)
    embedding = torch.randint(0, 2, (size, HIDDEN), generator=generator).float() * 2 - 1
    output = torch.zeros(size, HIDDEN)
    for token, successor in follows.items():
        output[successor] += embedding[token] / 2  # a logit of HIDDEN / 2 for it, about 8 for any other
    layer = "model.layers.0"
    tensors = {
        "model.embed_tokens.weight": embedding,
        "lm_head.weight": output,
        "model.norm.weight": torch.ones(HIDDEN),
        f"{layer}.input_layernorm.weight": torch.ones(HIDDEN),
        f"{layer}.post_attention_layernorm.weight": torch.ones(HIDDEN),
        f"{layer}.mlp.gate_proj.weight": torch.zeros(FEED_FORWARD, HIDDEN),
        f"{layer}.mlp.up_proj.weight": torch.zeros(FEED_FORWARD, HIDDEN),
        f"{layer}.mlp.down_proj.weight": torch.zeros(HIDDEN, FEED_FORWARD),
    }
    tensors |= {f"{layer}.self_attn.{name}_proj.weight": torch.zeros(HIDDEN, HIDDEN) for name in "qkvo"}
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
