"""What `lmtop convert` writes: a model directory in the decoder's own order, for loading at disk speed.

Layout, version 1. Beside copies of the model's config.json, tokenizer, template and licence files lie

 lmtop-00001.safetensors, ...   the weights, under the decoder's names: embed, final_norm, lm_head (absent where the
     embedding serves) and layers.<i>. + attn_norm, qkv, q_norm, k_norm, o, mlp_norm, gate_up, down, with
       .weight      a matrix [out, in] in the type it is stored in, or the gain of a norm, float32
       .bias        [out]
       .codes_g<n>  uint8 [out, ceil(in / 2)]: codes 0..15 of column 2j in the low half of byte j, of 2j + 1 in the
                    high half; n inputs (32, 64 or 128) share a scale; with
       .scales      float16 [out, ceil(in / n)],
       .zeros       uint8 of the same shape: w = scale * (code - zero), and where inputs were reordered
       .order       int32 [in]: column c of the codes multiplies input order[c]
     Rows of qkv are those of q, k and v, head by head, of gate_up those of gate, then of up; rotary pairs are
     (i, i + dim / 2). A header fills `HEADER_BYTES`, so that the data begin on a page and may be mapped.
 lmtop.json   {"format": "lmtop", "version": 1, "weights": "16" or "int4", "dtype": type that was asked for or "auto",
     "source": {"name", "weights", "digest", "lmtop"}: what it was made from and by which release,
     "shards": {name: {"bytes", "sha256"}}, "files": {name of a copied file: its sha256}}

The names keep other programs from taking these for a checkpoint of theirs. Every load checks version, names, sizes,
headers and shapes; contents only `lmtop convert --check`. Standard library only.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

from ..quant.formats import Scheme
from .families import Family
from .hfconfig import INDEX_CAP, MIB, open_regular, quoted, read_json, shown
from .types import ModelError

FORMAT, VERSION = "lmtop", 1
MANIFEST = "lmtop.json"
SCHEME = Scheme("lmtop", ("lmtop",), (4,))
HEADER_BYTES = 1 << 17  # of a shard, the length in front included
READ_BYTES = 8 * MIB
_SHARD = re.compile(r"lmtop-\d{5}\.safetensors")


@dataclass(frozen=True, slots=True)
class Manifest:
    """lmtop.json. shards: (bytes, sha256) by file name; files: sha256 of each copied file; source: what it was made
    from."""

    shards: Mapping[str, tuple[int, str]]
    files: Mapping[str, str]
    source: Mapping[str, Any]


def layout_of(family: Family) -> Family:
    """How a converted model of `family` stores its tensors."""
    return replace(family, rules=(), qkv="concat", interleaved=False)


def read_manifest(directory: Path) -> Manifest | None:
    """The manifest of a converted model, its shards checked by name and size; None where `directory` is none. Raises
    ModelError naming what is damaged, missing or newer."""
    path = directory / MANIFEST
    if not path.exists():
        if next(directory.glob("lmtop-*.safetensors"), None):
            raise ModelError(f"{shown(str(directory), 200)}: is a converted model without its {MANIFEST}")
        return None
    document = read_json(path, INDEX_CAP)
    version = document.get("version")
    if document.get("format") != FORMAT or type(version) is not int or version < 1:
        _bad("is not what lmtop convert writes")
    if version > VERSION:
        _bad(
            f"format {version} is newer than this lmtop, which reads {VERSION}; update lmtop or convert again"
        )
    manifest = Manifest(
        _shards(document),
        {str(name): str(digest) for name, digest in _mapping(document, "files").items()},
        _mapping(document, "source"),
    )
    for name, (size, _) in manifest.shards.items():
        _check_size(directory / name, size)
    return manifest


def _mapping(document: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = document.get(key)
    return value if isinstance(value, dict) else _bad(f"{key}: must be an object")


def _shards(document: Mapping[str, Any]) -> dict[str, tuple[int, str]]:
    shards: dict[str, tuple[int, str]] = {}
    for name, facts in _mapping(document, "shards").items():
        if _SHARD.fullmatch(name) is None:
            _bad(f"shards: {quoted(name)} is no name of a shard")
        size = facts.get("bytes") if isinstance(facts, dict) else None
        digest = facts.get("sha256") if isinstance(facts, dict) else None
        if type(size) is not int or not isinstance(digest, str):
            _bad(f"shards: {name}: must tell bytes and sha256")
        shards[name] = size, digest
    return shards or _bad("shards: there are none")


def _check_size(path: Path, size: int) -> None:
    if not path.exists():
        raise ModelError(f"shards missing: {path.name}; convert the model again")
    with open_regular(path) as file:
        found = file.seek(0, 2)
    if found != size:
        raise ModelError(
            f"{path.name}: {found:,} bytes, {MANIFEST} tells {size:,}: damaged; convert the model again"
        )


def _bad(what: str) -> NoReturn:
    raise ModelError(f"{MANIFEST}: {what}")


def sha256(path: Path, progress: Callable[[int], None] = lambda count: None) -> str:
    """Of a file's contents, in hexadecimal; `progress` gets the bytes of each piece."""
    digest = hashlib.sha256()
    with open_regular(path) as file:
        while data := file.read(READ_BYTES):
            digest.update(data)
            progress(len(data))
    return digest.hexdigest()


def check_contents(directory: Path, progress: Callable[[float], None]) -> tuple[Manifest, list[str]]:
    """Compare every file with its checksum. Raises ModelError naming a shard whose contents changed; returns the
    names of copied files that did, since people may edit those, or that are gone."""
    manifest = read_manifest(directory)
    if manifest is None:
        raise ModelError(f"{shown(str(directory), 200)}: is no converted model: there is no {MANIFEST}")
    whole, done = sum(size for size, _ in manifest.shards.values()), 0

    def step(count: int) -> None:
        nonlocal done
        done += count
        progress(done / whole)

    for name, (_, digest) in manifest.shards.items():
        if sha256(directory / name, step) != digest:
            raise ModelError(
                f"{name}: its contents are not what was written (sha256); convert the model again"
            )
    changed = [
        name
        for name, digest in manifest.files.items()
        if "/" in name or not (directory / name).is_file() or sha256(directory / name) != digest
    ]
    return manifest, changed
