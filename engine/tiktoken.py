"""tiktoken vocabularies (one base64 token and its rank per line) as definitions for the `tokenizers` library.

QWen v1 ships them as qwen.tiktoken, Llama 3 and the original GLM-4 as tokenizer.model.
"""

from __future__ import annotations

import base64
import binascii
from typing import Any

from .detokenize import BYTE_TO_CHAR
from .types import ModelError

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# How text is cut into words before merging: QWen keeps each digit apart, Llama 3 and GLM-4 groups of three.
QWEN_PATTERN = _WORDS + r"\p{N}" + _REST
LLAMA3_PATTERN = _WORDS + r"\p{N}{1,3}" + _REST


def is_tiktoken(data: bytes) -> bool:
    """Whether a tokenizer.model is a tiktoken vocabulary and not a SentencePiece protobuf."""
    first = data[:4096].split(b"\n", 1)[0].split(b" ")
    return len(first) == 2 and first[1].strip().isdigit() and first[0].isascii()


def read_ranks(data: bytes, name: str) -> dict[bytes, int]:
    """Token bytes -> id. Raises ModelError."""
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(data.splitlines(), 1):
        if not line:
            continue
        try:
            token, rank = line.split()
            key, value = base64.b64decode(token, validate=True), int(rank)
        except (ValueError, binascii.Error):
            raise ModelError(f"{name}: line {number} is not a base64 token and its rank") from None
        if not key or key in ranks:
            raise ModelError(f"{name}: line {number}: token {key!r:.40} is empty or there twice")
        ranks[key] = value
    if len(set(ranks.values())) < len(ranks) or not ranks:
        raise ModelError(f"{name}: two tokens have the same rank, or there is none")
    return ranks


def to_definition(ranks: dict[bytes, int], pattern: str, nfc: bool) -> dict[str, Any]:
    """The content of a tokenizer.json that encodes as tiktoken does with these ranks and this word pattern.

    A token's rank is both its id and its merge priority, so every split into two tokens is a merge.
    """
    merges: list[tuple[int, int, int, str, str]] = []
    spelled = {token: "".join(BYTE_TO_CHAR[byte] for byte in token) for token in ranks}
    for token, rank in ranks.items():
        for cut in range(1, len(token)):
            left, right = ranks.get(token[:cut]), ranks.get(token[cut:])
            if left is not None and right is not None:
                merges.append((rank, left, right, spelled[token[:cut]], spelled[token[cut:]]))
    merges.sort()
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": {"type": "NFC"} if nfc else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": True,
            "vocab": {spelled[token]: rank for token, rank in ranks.items()},
            "merges": [[left, right] for _, _, _, left, right in merges],
        },
    }
