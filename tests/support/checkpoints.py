"""Whole model directories of real sizes with random weights, written to disk without a GPU."""

from __future__ import annotations

import json
import math
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import IO

import numpy as np

from lmtop.engine.random_weights import SHAPES, random_files
from lmtop.engine.roles import Placed
from lmtop.engine.spec import ModelFiles

DEMO = Path(__file__).parents[2] / "engine" / "demo" / "model"
ENDING = 2  # the demo's <|im_end|>
NOISE = 1 << 24
LINE_EVERY = 30  # tokens, in the mean: random text has paragraphs too


Content = Callable[[IO[bytes], int], None]  # writes so many bytes


def write_checkpoint(directory: Path, shape: str) -> Path:
    """A Llama of a built-in `shape` (or of the config.json at that path) in float16, with the built-in model's
    template and its tokenizer, grown to the shape's vocabulary."""
    files = _begin(directory, shape, {})
    writer = _Writer()
    for place in files.placed:
        writer.add_plain(place)
    writer.write(directory / "model.safetensors")
    return directory


def write_quantised(
    directory: Path, shape: str, method: str, group: int = 128, act_order: bool = False
) -> Path:
    """The same with four-bit matrices in its layers, of the layout that `method` ("awq" or "gptq") writes. With
    `act_order` matrices of the same inputs share an order, as they do where they see the same activations."""
    said = {"quant_method": method, "bits": 4, "group_size": group, "version": "gemm", "sym": True}
    files = _begin(directory, shape, {"quantization_config": {**said, "desc_act": act_order}})
    writer = _Writer()
    for place in files.placed:
        if place.layer < 0 or len(place.shape) == 1:
            writer.add_plain(place)
            continue
        rows, columns = place.shape
        name, groups = place.tensor.name.removesuffix("weight"), columns // group
        words = (columns, rows // 8) if method == "awq" else (columns // 8, rows)
        zeros = 0x77777777 if method == "gptq" else -0x77777778  # the middle
        writer.add(f"{name}qweight", "I32", words, writer.bits)
        writer.add(f"{name}qzeros", "I32", (groups, rows // 8), _same(np.int32(zeros)))
        writer.add(f"{name}scales", "F16", (groups, rows), _same(np.float16(0.02 / 4.6)))
        if method == "gptq":
            order = np.random.default_rng(columns).permutation(columns) if act_order else np.arange(columns)
            writer.add(f"{name}g_idx", "I32", (columns,), _all((order // group).astype(np.int32)))
    writer.write(directory / "model.safetensors")
    return directory


def _begin(directory: Path, shape: str, more: dict[str, object]) -> ModelFiles:
    directory.mkdir(parents=True, exist_ok=True)
    files = random_files(shape)
    config = dict(SHAPES.get(shape) or json.loads(Path(shape).read_text()))
    config |= {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "eos_token_id": ENDING, **more}
    (directory / "config.json").write_text(json.dumps(config))
    _write_tokenizer(directory, files.spec.vocab)
    return files


class _Writer:
    """A safetensors file: headers first, then the contents, which are made while they are written."""

    def __init__(self) -> None:
        generator = np.random.default_rng(0)
        noise = generator.standard_normal(NOISE, dtype=np.float32)
        self._noise = (noise * np.float32(0.02)).astype(np.float16)
        self._bits = generator.integers(-(2**31), 2**31, NOISE // 2, dtype=np.int32)
        self._header: dict[str, object] = {}
        self._contents: list[tuple[int, Content]] = []
        self._at = 0

    def add(self, name: str, dtype: str, shape: tuple[int, ...], content: Content) -> None:
        size = math.prod(shape) * (4 if dtype == "I32" else 2)
        offsets = [self._at, self._at + size]
        self._header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": offsets}
        self._contents.append((size, content))
        self._at += size

    def add_plain(self, place: Placed) -> None:
        gain = len(place.shape) == 1
        content = _same(np.float16(1)) if gain else lambda file, size: _repeat(file, self._noise, size)
        self.add(place.tensor.name, "F16", place.shape, content)

    def bits(self, file: IO[bytes], size: int) -> None:
        """Any codes."""
        _repeat(file, self._bits, size)

    def write(self, path: Path) -> None:
        text = json.dumps(self._header).encode()
        text += b" " * (-len(text) % 8)
        with path.open("wb", buffering=0) as file:
            _all(np.frombuffer(struct.pack("<Q", len(text)) + text, np.uint8))(file, 0)
            for size, content in self._contents:
                content(file, size)


def _all(values: np.ndarray) -> Content:
    def write(file: IO[bytes], size: int) -> None:
        view = memoryview(values).cast("B")
        while len(view):
            view = view[file.write(view) :]

    return write


def _same(value: np.generic) -> Content:
    return lambda file, size: _all(np.full(size // value.itemsize, value))(file, size)


def _repeat(file: IO[bytes], values: np.ndarray, size: int) -> None:
    count = size // values.itemsize
    while count:
        piece = values[: min(count, len(values) - count % 1009)]  # another beginning for each tensor's rest
        _all(piece)(file, 0)
        count -= len(piece)


def _write_tokenizer(directory: Path, vocab: int) -> None:
    """The demo's files; ids beyond its vocabulary are made-up words, every thirtieth one ends a line."""
    for name in ("tokenizer_config.json", "generation_config.json"):
        shutil.copy(DEMO / name, directory / name)
    tokenizer = json.loads((DEMO / "tokenizer.json").read_text())
    words = tokenizer["model"]["vocab"]
    for token in range(len(words), vocab):
        syllables = np.base_repr(token, 26).lower().translate(str.maketrans("0123456789", "qrstuvwxyz"))
        words[("Ċ" if token % LINE_EVERY == 0 else "Ġ") + f"{syllables}{token % 7}"] = token
    assert len(words) == vocab, (len(words), vocab)
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer))


def drop_from_page_cache(path: Path) -> None:
    """The next reader gets the file from the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    os.fdatasync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)
