"""The vocabulary files of a model directory as backends of the `tokenizers` library.

tokenizer.json is read as it is; a bare SentencePiece tokenizer.model and tiktoken vocabularies are converted.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers

from .hfconfig import MIB, open_regular, parse_json, shown
from .sentencepiece import read_model, to_definition
from .specials import FAMILY_PREFIX, AddedPiece, SideFiles, sentencepiece_specials, tiktoken_specials
from .tiktoken import LLAMA3_PATTERN, QWEN_PATTERN, is_tiktoken, read_ranks
from .tiktoken import to_definition as tiktoken_definition
from .types import ModelError

TOKENIZER_CAP = 64 * MIB


@dataclass(slots=True)
class Source:
    """A backend before the directory's side files are applied, and what its own format says about specials."""

    backend: tokenizers.Tokenizer
    file: str
    bos_id: int | None = None
    eos_id: int | None = None
    prefix: tuple[int, ...] | None = None  # None: the bos token, if there is one


def read_source(directory: Path, family: str, side: SideFiles) -> Source:
    """The vocabulary in `directory`: tokenizer.json, else tokenizer.model, else *.tiktoken. `family` is in lower
    case. Raises ModelError."""
    names = ["tokenizer.json", "tokenizer.model"]
    names += sorted(path.name for path in directory.glob("*.tiktoken"))
    path = next((directory / name for name in names if (directory / name).exists()), None)
    if path is None:
        raise ModelError(
            f"{shown(directory.name)}: no tokenizer: tokenizer.json, tokenizer.model or *.tiktoken is needed"
        )
    data = _read_bytes(path)
    if path.name == "tokenizer.json":
        return _from_json(data, path.name, side)
    if path.suffix == ".tiktoken" or is_tiktoken(data):
        return _from_tiktoken(data, path.name, family, side)
    return _from_sentencepiece(data, path, family, side)


def _read_bytes(path: Path) -> bytes:
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > TOKENIZER_CAP:
            raise ModelError(
                f"{shown(path.name)}: {size:,} bytes; at most {TOKENIZER_CAP // MIB} MiB are accepted"
            )
        data = file.read(TOKENIZER_CAP + 1)
    if data.startswith(b"version https://git-lfs"):
        raise ModelError(f"{shown(path.name)}: only a git-lfs pointer; fetch the file itself (git lfs pull)")
    return data


def _backend(definition: str | bytes, file: str) -> tokenizers.Tokenizer:
    try:
        if isinstance(definition, bytes):
            definition = definition.decode()
        return tokenizers.Tokenizer.from_str(definition)
    except UnicodeDecodeError:
        raise ModelError(f"{file}: not valid UTF-8") from None
    except Exception as error:  # noqa: BLE001  # the library raises nothing narrower
        raise ModelError(f"{file}: not a usable tokenizer: {shown(str(error), 160)}") from None


def _from_json(data: bytes, file: str, side: SideFiles) -> Source:
    backend = _backend(data, file)
    backend.no_truncation()
    backend.no_padding()
    declared = _declared(data, file)
    present = backend.get_added_tokens_decoder()
    for index, text in declared.items():
        got = backend.token_to_id(text)
        if got != index:
            other = backend.id_to_token(index)
            clash = f"; {index} is {shown(other)!r}" if other is not None else ""
            raise ModelError(f"{file}: added token {shown(text)!r} cannot have id {index}{clash}")
    for piece in sorted(side.added(), key=lambda piece: piece.id):
        if piece.id not in present:
            token = tokenizers.AddedToken(
                piece.text,
                single_word=piece.single_word,
                lstrip=piece.lstrip,
                rstrip=piece.rstrip,
                normalized=False,
                special=piece.special,
            )
            backend.add_tokens([token])
        if backend.token_to_id(piece.text) != piece.id:
            other = backend.id_to_token(piece.id)
            raise ModelError(
                f"tokenizer_config.json: token {shown(piece.text)!r} cannot have id {piece.id}: "
                f"{file} has {shown(other)!r} there"
            )
    # The post-processor's frame is what it adds around an arbitrary token; what follows the text is left out.
    framed = backend.encode("a", add_special_tokens=True)
    first = next(
        (at for at, special in enumerate(framed.special_tokens_mask) if not special), len(framed.ids)
    )
    return Source(backend, file, prefix=tuple(framed.ids[:first]))


def _declared(data: bytes, file: str) -> dict[int, str]:
    """id -> text of the file's `added_tokens`: the library silently gives other ids where these are impossible."""
    result: dict[int, str] = {}
    at = re.search(rb'"added_tokens"\s*:\s*', data)
    if at is None:
        return result
    try:
        items, _ = json.JSONDecoder().raw_decode(data[at.end() :].decode())
    except (ValueError, RecursionError):
        items = parse_json(data, file).get("added_tokens")
    for item in items if isinstance(items, list) else ():
        index, text = item["id"], item["content"]
        if result.setdefault(index, text) != text:
            raise ModelError(
                f"{file}: tokens {shown(result[index])!r} and {shown(text)!r} have one id, {index}"
            )
    return result


def _from_tiktoken(data: bytes, file: str, family: str, side: SideFiles) -> Source:
    ranks = read_ranks(data, shown(file))
    qwen = file.endswith(".tiktoken")
    definition = tiktoken_definition(ranks, QWEN_PATTERN if qwen else LLAMA3_PATTERN, nfc=qwen)
    _add_pieces(definition, [*tiktoken_specials("qwen" if qwen else family, len(ranks)), *side.added()], file)
    backend = _backend(json.dumps(definition), shown(file))
    return Source(backend, shown(file), prefix=_family_prefix(backend, family))


def _from_sentencepiece(data: bytes, path: Path, family: str, side: SideFiles) -> Source:
    file = shown(path.name)
    model = read_model(data, file)
    definition = to_definition(model, file)
    texts = {text: index for index, text in enumerate(_texts(definition))}
    name = f"{path.parent.absolute()} {side.config.get('_name_or_path', '')}".casefold()
    _add_pieces(definition, [*sentencepiece_specials(family, texts, side, name), *side.added()], file)
    backend = _backend(json.dumps(definition), file)
    count = len(model.pieces)
    bos = model.bos_id if 0 <= model.bos_id < count else None
    eos = model.eos_id if 0 <= model.eos_id < count else None
    return Source(backend, file, bos, eos, _family_prefix(backend, family))


def _family_prefix(backend: tokenizers.Tokenizer, family: str) -> tuple[int, ...] | None:
    for texts in FAMILY_PREFIX.get(family, ()):
        ids = [index for text in texts if (index := backend.token_to_id(text)) is not None]
        if len(ids) == len(texts):
            return tuple(ids)
    return None


def _texts(definition: Mapping[str, Any]) -> list[str]:
    vocab = definition["model"]["vocab"]
    return [text for text, _ in vocab] if isinstance(vocab, list) else list(vocab)


def _add_pieces(definition: dict[str, Any], pieces: Iterable[AddedPiece], file: str) -> None:
    """Give each piece its id in a converted vocabulary: rename what is there, or append. Later ones win."""
    vocab = definition["model"]["vocab"]
    by_id = (
        dict(enumerate(_texts(definition))) if isinstance(vocab, list) else {i: t for t, i in vocab.items()}
    )
    by_text = {text: index for index, text in by_id.items()}
    merged = {text for pair in definition["model"].get("merges", ()) for text in (*pair, "".join(pair))}
    added = {token["id"]: token for token in definition["added_tokens"]}
    for piece in pieces:
        if by_text.get(piece.text, piece.id) != piece.id:
            raise ModelError(
                f"{file}: token {shown(piece.text)!r} has two ids, {by_text[piece.text]} and {piece.id}"
            )
        old = by_id.get(piece.id)
        if old is not None and old != piece.text:
            if old in merged:
                raise ModelError(
                    f"{file}: two tokens have id {piece.id}: {shown(old)!r} and {shown(piece.text)!r}"
                )
            del by_text[old]
        by_id[piece.id], by_text[piece.text] = piece.text, piece.id
        added[piece.id] = {
            "id": piece.id,
            "content": piece.text,
            "single_word": piece.single_word,
            "lstrip": piece.lstrip,
            "rstrip": piece.rstrip,
            "normalized": False,
            "special": piece.special,
        }
    definition["added_tokens"] = [added[index] for index in sorted(added)]
    if isinstance(vocab, list):
        if set(by_id) != set(range(len(by_id))):
            raise ModelError(f"{file}: added token ids leave a gap behind the {len(vocab)} pieces")
        scores = dict(enumerate(score for _, score in vocab))
        definition["model"]["vocab"] = [[by_id[i], scores.get(i, 0.0)] for i in range(len(by_id))]
    else:
        definition["model"]["vocab"] = by_text


def check_ids(backend: tokenizers.Tokenizer, file: str, vocab_rows: int) -> None:
    """Every id has one text and a row of the embedding."""
    texts: dict[int, str] = {}
    for text, index in backend.get_vocab(with_added_tokens=True).items():
        if texts.setdefault(index, text) != text:
            raise ModelError(
                f"{file}: tokens {shown(texts[index])!r} and {shown(text)!r} have one id, {index}"
            )
    highest = max(texts, default=-1)
    if highest >= vocab_rows:
        raise ModelError(
            f"{file}: token {shown(texts[highest])!r} has id {highest}; the model has only {vocab_rows} rows"
        )
    if highest < 0:
        raise ModelError(f"{file}: it holds no tokens")
