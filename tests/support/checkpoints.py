"""Whole model directories of real sizes with random weights, written to disk without a GPU."""

from __future__ import annotations

import json
import math
import os
import shutil
import struct
from pathlib import Path
from typing import IO

import numpy as np

from lmtop.engine.random_weights import SHAPES, random_files

DEMO = Path(__file__).parents[2] / "engine" / "demo" / "model"
ENDING = 2  # the demo's <|im_end|>
NOISE = 1 << 24
LINE_EVERY = 30  # tokens, in the mean: random text has paragraphs too


def write_checkpoint(directory: Path, shape: str) -> Path:
    """A Llama of a built-in `shape` (or of the config.json at that path) in float16, with the built-in model's
    template and its tokenizer, grown to the shape's vocabulary."""
    directory.mkdir(parents=True, exist_ok=True)
    files = random_files(shape)
    config = dict(SHAPES.get(shape) or json.loads(Path(shape).read_text()))
    config |= {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "eos_token_id": ENDING}
    (directory / "config.json").write_text(json.dumps(config))
    _write_tokenizer(directory, files.spec.vocab)
    header: dict[str, object] = {}
    at = 0
    for place in files.placed:
        size = 2 * math.prod(place.tensor.shape)
        header[place.tensor.name] = {
            "dtype": "F16",
            "shape": list(place.tensor.shape),
            "data_offsets": [at, at + size],
        }
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    noise = np.random.default_rng(0).standard_normal(NOISE, dtype=np.float32)
    noise = (noise * np.float32(0.02)).astype(np.float16)
    with (directory / "model.safetensors").open("wb", buffering=0) as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for place in files.placed:
            count = math.prod(place.tensor.shape)
            if len(place.tensor.shape) == 1:
                file.write(np.ones(count, np.float16).data)
            else:
                _write_noise(file, noise, count)
    return directory


def _write_noise(file: IO[bytes], noise: np.ndarray, count: int) -> None:
    while count:
        piece = noise[: min(count, NOISE - count % 1009)]  # another beginning for each tensor's rest
        view = memoryview(piece).cast("B")
        while len(view):
            view = view[file.write(view) :]
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
