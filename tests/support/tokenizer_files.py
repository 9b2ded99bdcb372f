"""Tokenizer directories made on the spot: byte-level JSON, SentencePiece models, tiktoken ranks."""

from __future__ import annotations

import base64
import io
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

from lmtop.engine.detokenize import BYTE_TO_CHAR

CORPUS = [
    "the quick brown fox jumps over the lazy dog",
    "the model keeps its keys and values in blocks of tokens",
    "hello world, hello there: numbers 12345 and 3.14",
    "def f(x): return x * 2 + 1",
    "你好，世界 这是一个模型",
    "naïve café über straße",
]
SPECIALS = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<think>", "</think>"]


def byte_level(directory: Path, chat_template: str | None = None, **changes: Any) -> Path:
    """A tokenizer.json with 7 added tokens (the last two not special), 256 byte symbols and a few merges."""
    directory.mkdir(parents=True, exist_ok=True)
    vocab = {text: i for i, text in enumerate(SPECIALS)}
    for char in BYTE_TO_CHAR.values():
        vocab[char] = len(vocab)
    merges = [["t", "h"], ["th", "e"], ["l", "l"], ["e", "ll"], ["h", "ell"], ["hell", "o"]]
    for left, right in merges:
        vocab[left + right] = len(vocab)
    byte = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    definition: dict[str, Any] = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": i, "content": text, **flags, "special": i < 5} for i, text in enumerate(SPECIALS)
        ],
        "normalizer": None,
        "pre_tokenizer": byte,
        "post_processor": None,
        "decoder": byte,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocab,
            "merges": merges,
        },
    }
    for key, value in changes.items():
        holder = definition["model"] if key in definition["model"] else definition
        holder[key] = value
    (directory / "tokenizer.json").write_text(json.dumps(definition))
    config = {"bos_token": "<s>", "eos_token": "<|im_end|>", "tokenizer_class": "TokenizersBackend"}
    if chat_template is not None:
        config["chat_template"] = chat_template
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return directory


def sentencepiece_model(directory: Path, **options: Any) -> Path:
    """Train a tokenizer.model on the corpus above. Needs the `sentencepiece` package."""
    import sentencepiece

    directory.mkdir(parents=True, exist_ok=True)
    model = io.BytesIO()
    settings = {"vocab_size": 340, "hard_vocab_limit": False, "minloglevel": 9} | options
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS * 8), model_writer=model, **settings
    )
    (directory / "tokenizer.model").write_bytes(model.getvalue())
    return directory


def tiktoken_ranks() -> dict[bytes, int]:
    """The 256 bytes and the merges of the corpus' commonest pairs, as tiktoken learns them."""
    ranks = {bytes([byte]): byte for byte in range(256)}
    words = [[bytes([byte]) for byte in text.encode()] for text in CORPUS]
    while len(ranks) < 400:
        counts: dict[bytes, int] = {}
        for word in words:
            for left, right in pairwise(word):
                counts[left + right] = counts.get(left + right, 0) + 1
        best = max(counts, key=lambda pair: (counts[pair], pair))
        ranks[best] = len(ranks)
        words = [merged(word, best) for word in words]
    return ranks


def merged(word: list[bytes], pair: bytes) -> list[bytes]:
    """`word` with each neighbouring two that spell `pair` joined, from the left."""
    result: list[bytes] = []
    for part in word:
        if result and result[-1] + part == pair:
            result[-1] = pair
        else:
            result.append(part)
    return result


def tiktoken_file(path: Path, ranks: dict[bytes, int]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = (f"{base64.b64encode(token).decode()} {rank}\n" for token, rank in ranks.items())
    path.write_text("".join(lines))
    return path.parent
