"""SentencePiece `tokenizer.model` files as definitions for the `tokenizers` library.

The file is one protobuf message (sentencepiece_model.proto): field 1 the pieces (text, score, type), 2 the trainer's
settings, 3 the normaliser's. A reader of the wire format is enough for it, so protobuf is no dependency.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from .hfconfig import shown
from .types import ModelError

SPACE = "\u2581"  # how SentencePiece writes a space inside pieces
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
_UNIGRAM, _BPE = 1, 2


@dataclass(slots=True)
class SentencePieceModel:
    """What a tokenizer.model says. `pieces` are (text, score, type) by id; an id of -1 is "none"."""

    pieces: list[tuple[str, float, int]] = field(default_factory=list)
    algorithm: int = _UNIGRAM
    byte_fallback: bool = False
    space_as_suffix: bool = False
    unk_id: int = 0
    bos_id: int = 1
    eos_id: int = 2
    pad_id: int = -1
    charsmap: bytes = b""
    dummy_prefix: bool = True
    remove_extra_spaces: bool = True
    escape_spaces: bool = True


def read_model(data: bytes, name: str) -> SentencePieceModel:
    """Parse a tokenizer.model. `name` is what errors call the file. Raises ModelError."""
    model = SentencePieceModel()
    try:
        for number, value in _fields(data):
            if number == 1:
                model.pieces.append(_piece(_bytes(value)))
            elif number == 2:
                _trainer(model, _bytes(value))
            elif number == 3:
                _normalizer(model, _bytes(value))
    except (ValueError, struct.error) as error:
        raise ModelError(f"{name}: not a SentencePiece model: {shown(str(error))}") from None
    if not model.pieces:
        raise ModelError(f"{name}: not a SentencePiece model: it holds no pieces")
    if model.algorithm not in (_UNIGRAM, _BPE):
        raise ModelError(f"{name}: SentencePiece model type {model.algorithm} is neither BPE nor unigram")
    if model.space_as_suffix or not model.escape_spaces:
        raise ModelError(f"{name}: this SentencePiece treatment of spaces is not supported")
    return model


def to_definition(model: SentencePieceModel, name: str) -> dict[str, Any]:
    """The content of a tokenizer.json that encodes and decodes as `model` does. Raises ModelError."""
    texts: dict[str, int] = {}
    for index, text in enumerate(_vocabulary(model)):
        if texts.setdefault(text, index) != index:
            raise ModelError(f"{name}: tokens {texts[text]} and {index} have the same text {shown(text)!r}")
    has_user_defined = any(kind == USER_DEFINED for _, _, kind in model.pieces)
    decoders: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if model.dummy_prefix:
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    # A normaliser would put the dummy prefix behind each user-defined piece as well; this puts it in front only.
    metaspace = {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": "first", "split": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added(model, list(texts)),
        "normalizer": {"type": "Sequence", "normalizers": _normalizers(model, not has_user_defined)},
        "pre_tokenizer": metaspace if model.dummy_prefix and has_user_defined else None,
        "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": _bpe(model, texts) if model.algorithm == _BPE else _unigram(model, list(texts)),
    }


# --- conversion --------------------------------------------------------------------------------------------


def _vocabulary(model: SentencePieceModel) -> Iterator[str]:
    """The text of each id. Unused pieces never match text; user-defined ones match it before normalisation."""
    for index, (text, _, kind) in enumerate(model.pieces):
        if kind == UNUSED or (text == "\0" and model.byte_fallback):  # the library treats NUL so
            yield f"<unused_{index}>"
        else:
            yield text.replace(SPACE, " ") if kind == USER_DEFINED else text


def _added(model: SentencePieceModel, texts: list[str]) -> list[dict[str, Any]]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return [
        {"id": index, "content": texts[index], **flags, "special": kind != USER_DEFINED}
        for index, (_, _, kind) in enumerate(model.pieces)
        if kind in (UNKNOWN, CONTROL, USER_DEFINED)
    ]


def _normalizers(model: SentencePieceModel, prepend: bool) -> list[dict[str, Any]]:
    steps: list[dict[str, Any]] = []
    if model.charsmap:
        charsmap = base64.b64encode(model.charsmap).decode()
        steps.append({"type": "Precompiled", "precompiled_charsmap": charsmap})
    if model.remove_extra_spaces:
        steps.append({"type": "Replace", "pattern": {"Regex": "^ +| +$"}, "content": ""})
        steps.append({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "})
    if model.dummy_prefix and prepend:
        steps.append({"type": "Prepend", "prepend": SPACE})
    steps.append({"type": "Replace", "pattern": {"String": " "}, "content": SPACE})
    return steps


def _bpe(model: SentencePieceModel, texts: dict[str, int]) -> dict[str, Any]:
    """Every split of a piece into two pieces is a merge; the better the piece's score, the earlier it is."""
    scores = {text: score for text, score, kind in model.pieces if kind == NORMAL and text in texts}
    merges: list[tuple[float, int, int, str, str]] = []
    for text, score in scores.items():
        for cut in range(1, len(text)):
            left, right = text[:cut], text[cut:]
            if left in scores and right in scores:
                merges.append((-score, texts[left], texts[right], left, right))
    merges.sort()
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": _unknown(model, list(texts)),
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": True,
        "byte_fallback": model.byte_fallback,
        "ignore_merges": False,
        "vocab": texts,
        "merges": [[left, right] for _, _, _, left, right in merges],
    }


def _unigram(model: SentencePieceModel, texts: list[str]) -> dict[str, Any]:
    return {
        "type": "Unigram",
        "unk_id": model.unk_id if 0 <= model.unk_id < len(texts) else None,
        "vocab": [[text, model.pieces[index][1]] for index, text in enumerate(texts)],
        "byte_fallback": model.byte_fallback,
    }


def _unknown(model: SentencePieceModel, texts: list[str]) -> str | None:
    kinds = (index for index, piece in enumerate(model.pieces) if piece[2] == UNKNOWN)
    index = next(kinds, None)
    return None if index is None else texts[index]


# --- wire format -------------------------------------------------------------------------------------------


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(field number, value) of a protobuf message: an unsigned int for varints, bytes for everything else."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        wire = key & 7
        if wire == 0:
            value, at = _varint(data, at)
            yield key >> 3, value
            continue
        if wire == 2:
            size, at = _varint(data, at)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise ValueError(f"wire type {wire} at byte {at}")
        if size > len(data) - at:
            raise ValueError("the file is cut short")
        yield key >> 3, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    result = shift = 0
    while at < len(data) and shift < 70:
        byte = data[at]
        result |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return result, at
        shift += 7
    raise ValueError("the file is cut short")


def _bytes(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise ValueError("a number where a message was expected")  # noqa: TRY004
    return value


def _int(value: int | bytes) -> int:
    if isinstance(value, bytes):
        raise ValueError("bytes where a number was expected")  # noqa: TRY004
    return value - (1 << 64) if value >> 63 else value


def _piece(data: bytes) -> tuple[str, float, int]:
    text, score, kind = "", 0.0, NORMAL
    for number, value in _fields(data):
        if number == 1:
            text = _bytes(value).decode()
        elif number == 2:
            (score,) = struct.unpack("<f", _bytes(value))
        elif number == 3:
            kind = _int(value)
    return text, score, kind


def _trainer(model: SentencePieceModel, data: bytes) -> None:
    for number, value in _fields(data):
        if number == 3:
            model.algorithm = _int(value)
        elif number == 24:
            model.space_as_suffix = bool(_int(value))
        elif number == 35:
            model.byte_fallback = bool(_int(value))
        elif number == 40:
            model.unk_id = _int(value)
        elif number == 41:
            model.bos_id = _int(value)
        elif number == 42:
            model.eos_id = _int(value)
        elif number == 43:
            model.pad_id = _int(value)


def _normalizer(model: SentencePieceModel, data: bytes) -> None:
    for number, value in _fields(data):
        if number == 2:
            model.charsmap = _bytes(value)
        elif number == 3:
            model.dummy_prefix = bool(_int(value))
        elif number == 4:
            model.remove_extra_spaces = bool(_int(value))
        elif number == 5:
            model.escape_spaces = bool(_int(value))
