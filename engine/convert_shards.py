"""Safetensors files that are written while their contents are made: the header's room is left, and filled at the end."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import IO, Any, Self

import torch
from torch import Tensor

from .converted import HEADER_BYTES
from .quantize_work import SHARD_BYTES

DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int32: "I32",
    torch.uint8: "U8",
}


class Shards:
    """Tensors in files lmtop-00001.safetensors and following in `folder`, each of at most `SHARD_BYTES`, unless one
    tensor is larger. `paths` are whole once the block is left."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file: IO[bytes] | None = None
        self._entries: dict[str, Any] = {}
        self._at = self._length = 0  # of data; of the header, at most
        self.paths: list[Path] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self._finish()
        elif self._file is not None:
            self._file.close()

    def add(self, name: str, tensor: Tensor) -> None:
        """Append a tensor."""
        if self._file is not None and self._at + tensor.nbytes > SHARD_BYTES:
            self._finish()
        span = [self._at, self._at + tensor.nbytes]
        entry = {"dtype": DTYPES[tensor.dtype], "shape": [*tensor.shape], "data_offsets": span}
        length = len(_json({name: entry}))
        if self._file is not None and self._length + length > HEADER_BYTES - 8:
            self._finish()
            entry["data_offsets"] = [0, tensor.nbytes]
        if self._file is None:
            self._begin()
        assert self._file is not None
        data = memoryview(tensor.contiguous().view(torch.uint8).numpy()).cast("B")  # type: ignore[arg-type]
        self._file.write(data)
        self._entries[name] = entry
        self._length += length
        self._at += tensor.nbytes

    def _begin(self) -> None:
        path = self._folder / f"lmtop-{len(self.paths) + 1:05}.safetensors"
        self.paths.append(path)
        self._file = path.open("wb")
        self._file.write(bytes(HEADER_BYTES))
        self._entries, self._at, self._length = {}, 0, 0

    def _finish(self) -> None:
        if self._file is None:
            return
        with self._file as file:
            file.seek(0)
            file.write(_header(self._entries))
        self._file = None
        self._at = 0


def _header(entries: dict[str, Any]) -> bytes:
    """The header of a file, with spaces up to `HEADER_BYTES`, as the format allows."""
    text = _json(entries).ljust(HEADER_BYTES - 8)
    return struct.pack("<Q", len(text)) + text


def _json(entries: dict[str, Any]) -> bytes:
    return json.dumps(entries, separators=(",", ":")).encode()
