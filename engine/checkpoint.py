"""The tensors of a checkpoint, from the headers of its safetensors files; no weight is read and no torch imported.

Layout of a file (https://github.com/huggingface/safetensors): 8 bytes little-endian header length n, n bytes of
JSON {name: {dtype, shape, data_offsets: [begin, end]}}, then the data, which the offsets must tile exactly.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from .hfconfig import INDEX_CAP, MIB, name_some, open_regular, parse_json, quoted, read_json, shown
from .types import ModelError

HEADER_CAP = 32 * MIB
DTYPE_BYTES = {
    **dict.fromkeys(("F64", "I64", "U64"), 8),
    **dict.fromkeys(("F32", "I32", "U32"), 4),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 2),
    **dict.fromkeys(("I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2"), 1),
}
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_GGUF = "GGUF weights are not supported; use the model's safetensors checkpoint, or one in AWQ or GPTQ"
_ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar", ".zst")


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor of a shard: `offset` is the absolute byte position of its data, row-major, in `path`."""

    name: str
    path: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


def check_directory(directory: Path) -> None:
    """Refuse, with the way out, what is no model directory."""
    if not directory.is_dir():
        if directory.is_file() and directory.suffix.lower() in _ARCHIVES:
            raise ModelError(f"{shown(directory.name)}: archives are not accepted; unpack it")
        if directory.is_file() and directory.suffix.lower() == ".gguf":
            raise ModelError(f"{shown(directory.name)}: {_GGUF}")
        raise ModelError(f"{shown(str(directory), 200)}: no such model directory")
    if not (directory / "config.json").exists() and next(directory.glob("*.gguf"), None):
        raise ModelError(f"{shown(str(directory), 200)}: {_GGUF}")
    if not (directory / "config.json").exists():
        raise ModelError(f"{shown(str(directory), 200)}: no config.json")


def read_tensors(directory: Path, named: Iterable[str] = ()) -> tuple[StoredTensor, ...]:
    """Every tensor of the checkpoint in `directory`, shard by shard in file order; of the shards `named`, where any
    are. Raises ModelError."""
    wanted: dict[str, str] = {}
    shards = list(named)
    if not shards and (directory / "model.safetensors.index.json").exists():
        wanted = _read_index(directory / "model.safetensors.index.json")
        shards = sorted(set(wanted.values()))
        absent = [shard for shard in shards if not (directory / shard).exists()]
        if absent:
            raise ModelError(f"shards missing: {name_some(absent)}")
    elif not shards:
        shards = _unindexed_shards(directory)
    tensors: dict[str, StoredTensor] = {}
    for shard in shards:
        for tensor in read_header(directory / shard):
            if tensor.name in tensors:
                raise ModelError(f"{shown(shard)}: tensor {shown(tensor.name)} is in two shards")
            tensors[tensor.name] = tensor
    lacking = [
        name for name, shard in wanted.items() if name not in tensors or tensors[name].path.name != shard
    ]
    if lacking:
        raise ModelError(f"model.safetensors.index.json: not in the shard it names: {name_some(lacking)}")
    return tuple(tensors.values())


def _read_index(path: Path) -> dict[str, str]:
    weight_map = read_json(path, INDEX_CAP).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelError(f"{path.name}: weight_map: must be an object that names each tensor's shard")
    for shard in weight_map.values():
        plain = isinstance(shard, str) and shard.endswith(".safetensors") and not re.search(r"[/\\\0]", shard)
        if not plain:
            raise ModelError(
                f"{path.name}: shard name must be a plain file name ending in .safetensors, not {quoted(shard)}"
            )
    return weight_map


def _unindexed_shards(directory: Path) -> list[str]:
    if (directory / "model.safetensors").exists():
        return ["model.safetensors"]
    for pattern in ("model*.safetensors", "gptq_model*.safetensors"):  # as AutoGPTQ named its files
        if shards := sorted(path.name for path in directory.glob(pattern)):
            return shards
    if any(next(directory.glob(pattern), None) for pattern in _PICKLES):
        raise ModelError("pickle weights are not supported; convert to safetensors")
    if next(directory.glob("*.gguf"), None):
        raise ModelError(_GGUF)
    raise ModelError(f"{shown(str(directory), 200)}: no model.safetensors")


def read_header(path: Path) -> list[StoredTensor]:
    """The tensors of one safetensors file in the order of their data. Reads the header only."""

    def bad(what: str) -> NoReturn:
        raise ModelError(f"{shown(path.name)}: {what}")

    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        prefix = file.read(8)
        if prefix == b"version ":
            bad("git-LFS pointer: fetch the real file")
        length = int.from_bytes(prefix, "little")
        if len(prefix) < 8 or length < 2:
            bad("not a safetensors file")
        if length > HEADER_CAP:
            bad(f"not a safetensors file: header of {length:,} bytes; at most {HEADER_CAP // MIB} MiB")
        if 8 + length > size:
            bad("file does not match its header")
        data = file.read(length)
    start = 8 + length
    header = _parse_header(data, shown(path.name))
    tensors = [_tensor(path, start, name, entry) for name, entry in header.items() if name != "__metadata__"]
    tensors.sort(key=lambda tensor: (tensor.offset, tensor.nbytes))
    at = start
    for tensor in tensors:
        if tensor.offset != at:
            bad(f"tensor {shown(tensor.name)}: data_offsets leave a gap or overlap")
        at += tensor.nbytes
    if at != size:
        bad(f"file does not match its header: {size:,} bytes, the header tells {at:,}")
    return tensors


def _parse_header(data: bytes, name: str) -> dict[str, Any]:
    """The header's object; a name stored twice is refused, since readers disagree on which one counts."""
    header = parse_json(data, f"{name}: header", unique=True)
    metadata = header.get("__metadata__", {})
    if not isinstance(metadata, dict):
        raise ModelError(f"{name}: header: __metadata__ must be an object")
    return header


def _tensor(path: Path, start: int, name: str, entry: object) -> StoredTensor:
    def bad(what: str) -> NoReturn:
        raise ModelError(f"{shown(path.name)}: tensor {shown(name)}: {what}")

    def naturals(key: str, what: str) -> list[int]:
        value = entry.get(key) if isinstance(entry, dict) else None
        if not isinstance(value, list) or not all(type(x) is int and 0 <= x < 1 << 63 for x in value):
            bad(f"{key} {shown(value, 60)} is not {what}")
        return value

    if not isinstance(entry, dict):
        bad("must be described by an object")
    dtype = entry.get("dtype")
    if not isinstance(dtype, str) or dtype not in DTYPE_BYTES:
        bad(f"unknown dtype {shown(dtype, 20)}")
    shape, span = naturals("shape", "a list of sizes"), naturals("data_offsets", "a range")
    if len(shape) > 8:
        bad(f"has {len(shape)} dimensions")
    if len(span) != 2 or span[0] > span[1]:
        bad(f"data_offsets {shown(span, 60)} is not a range")
    nbytes = math.prod(shape) * DTYPE_BYTES[dtype]
    if nbytes != span[1] - span[0]:
        bad(
            f"shape {shown(shape, 60)} of {dtype} needs {nbytes:,} bytes, data_offsets give {span[1] - span[0]:,}"
        )
    return StoredTensor(name, path, dtype, tuple(shape), start + span[0], nbytes)
