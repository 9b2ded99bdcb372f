"""`lmtop convert`: any model that loads, packed into the decoder's own order. `engine.converted` has the format.

Each matrix is read, fused and written before the next, so no more is held than while loading. The result grows in
<out>.converting and gets its name when it is whole.
"""

from __future__ import annotations

import errno
import json
import math
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..kernels.ops import Dense, Int4
from ..quant.formats_int import pack_words
from ..quant.int4 import in_format
from .config import GROUP
from .convert_shards import Shards
from .converted import FORMAT, MANIFEST, VERSION, sha256
from .fusing import Fused
from .hfconfig import name_some, shown
from .quantize_work import Work, check_target, copy_side_files, require_space, sync, write_whole
from .reading import DTYPES, READERS, Reader
from .roles import FUSED, Placed
from .spec import ModelFiles, read_spec
from .types import DeviceError, ModelError
from .weights import read_place

CPU = torch.device("cpu")
Key = tuple[int, str]  # (layer, role) of a tensor of the decoder
Stage = Callable[[str, float, int], None]  # what is being done, steps done, steps in all


@dataclass(frozen=True, slots=True)
class Job:
    """What is to be made. weights: "16", "int4" or "auto", int4 where the model has such codes. dtype: of plain
    matrices; "auto" leaves each in its stored type, so that it loads in any type as the original does. `release`
    makes it, `name` is what the model is called."""

    directory: Path
    out: Path
    name: str
    release: str
    weights: str = "auto"
    dtype: str = "auto"
    force: bool = False


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was made. before, after: bytes of weights; notices: what the user should know."""

    files: ModelFiles
    before: int
    after: int
    notices: tuple[str, ...]


def convert_model(job: Job, stage: Stage) -> Outcome:
    """Do the whole job. Raises UsageError, ModelError or DeviceError; then, and on a KeyboardInterrupt, nothing is
    left behind and an older `job.out` stays."""
    files = read_spec(job.directory)
    if files.converted:
        raise ModelError(f"{shown(job.name)}: is converted already; start from the original")
    check_target(job.out, job.directory, job.force)
    form = _Form(files, job)
    require_space(job.out.parent, form.nbytes(), f"converting {shown(job.name)}")
    work = Work(job.out, {"convert": files.digest}, ".converting")
    work.open()
    try:
        with _disk_full(), _no_memory():
            model, notices = _make(job, files, form, work.folder / "model", stage)
            made = read_spec(model)
            after = sum(path.stat().st_size for path in model.glob("lmtop-*.safetensors"))
            work.publish(model)
    finally:
        _clear(work)
    return Outcome(made, files.stored_bytes, after, notices)


def _clear(work: Work) -> None:
    """Remove the work folder; a model that was to be replaced goes back to its place."""
    replaced = work.folder / "replaced"
    if replaced.exists() and not work.out.exists():
        replaced.rename(work.out)
    work.discard()
    work.close()


class _Form:
    """In which type and format each tensor is stored."""

    def __init__(self, files: ModelFiles, job: Job) -> None:
        self._files = files
        self._own = own = any(layer >= 0 for layer, _ in files.int4)
        self.weights = job.weights if job.weights != "auto" else "int4" if own else "16"
        self._group = None if own else GROUP  # a matrix that a four-bit model leaves plain stays so
        self.made = getattr(
            torch, files.dtype if job.dtype == "auto" else job.dtype
        )  # of what is dequantised
        self._dtypes: dict[Key, torch.dtype] = {}
        for place in files.placed if job.dtype == "auto" else ():
            own_codes = place.part == "bias" and key_of(place) in files.int4
            if place.packed is None and not place.role.endswith("norm") and not own_codes:
                stored = DTYPES[place.tensor.dtype]
                self._dtypes[key_of(place)] = torch.promote_types(
                    self._dtypes.get(key_of(place), stored), stored
                )
        for place in files.placed:
            if place.packed is not None and key_of(place) in self._dtypes:  # fused with a plain one
                self._dtypes[key_of(place)] = torch.promote_types(self._dtypes[key_of(place)], self.made)

    def dtype(self, key: Key) -> torch.dtype:
        dtype: torch.dtype = self._dtypes.get(key, self.made)
        return dtype

    def matrix(self, key: Key, layer: Dense | Int4) -> Dense | Int4:
        """`layer` as it is stored. A head stays plain, unless it has codes."""
        group = None if key[1] == "lm_head" else self._group
        return in_format(layer, self.weights, self.dtype(key), group)

    def notices(self, plain: list[str]) -> tuple[str, ...]:
        """What the user should know of quantised weights that are stored otherwise; `plain`: the matrices whose codes
        could not be kept."""
        label, made = self._files.quantised, str(self.made).removeprefix("torch.")
        if label and self.weights == "16":
            return (f"{label} weights are stored dequantised, as {made}",)
        if label and not self._own:
            return (f"{label} weights were dequantised and rounded to int4 g{GROUP}",)
        if plain and self._own:
            why = "no kernel runs them, or what is fused with them is stored in another form"
            return (f"stored as {made}, not as {label} ({why}): {name_some(plain)}",)
        return ()

    def nbytes(self) -> int:
        """About what will be written."""
        total = 0
        for place in self._files.placed:
            key = key_of(place)
            rounded = key in self._files.int4 or (self._group and place.layer >= 0 and len(place.shape) == 2)
            if self.weights == "int4" and rounded:
                width = 0.5 + 3 / self._files.int4.get(key, GROUP)
            else:
                width = self.dtype(key).itemsize
            total += int(math.prod(place.shape) * width)
        return total


def key_of(place: Placed) -> Key:
    return place.layer, FUSED.get(place.role, place.role)


def _make(
    job: Job, files: ModelFiles, form: _Form, model: Path, stage: Stage
) -> tuple[Path, tuple[str, ...]]:
    """The finished directory, under another name still, and what the user should know."""
    shutil.rmtree(model, ignore_errors=True)
    model.mkdir()
    copy_side_files(job.directory, model)
    shutil.copyfile(job.directory / "config.json", model / "config.json")
    copied = {path.name: sha256(path) for path in sorted(model.iterdir())}
    with Shards(model) as shards:
        notices = _write(files, form, shards, lambda share: stage("converting", 100 * share, 100))
    whole, done = sum(path.stat().st_size for path in shards.paths), 0

    def step(count: int) -> None:
        nonlocal done
        done += count
        stage("checksums", 100 * done / whole, 100)

    facts = {path.name: {"bytes": path.stat().st_size, "sha256": sha256(path, step)} for path in shards.paths}
    document = {
        "format": FORMAT,
        "version": VERSION,
        "weights": form.weights,
        "dtype": job.dtype,
        "source": {
            "name": job.name,
            "weights": files.quantised or files.dtype,
            "digest": files.digest,
            "lmtop": job.release,
        },
        "shards": facts,
        "files": copied,
    }
    write_whole(model / MANIFEST, json.dumps(document, indent=1).encode() + b"\n")
    for path in (*model.iterdir(), model):
        sync(path)
    return model, notices


def _write(
    files: ModelFiles, form: _Form, shards: Shards, progress: Callable[[float], None]
) -> tuple[str, ...]:
    def keep(role: str, layer: Dense | Int4) -> Any:
        return layer

    fused = {dtype: Fused(files, dtype, CPU, keep) for dtype in {form.dtype(key_of(p)) for p in files.placed}}
    missing = Counter(map(key_of, files.placed))
    with ThreadPoolExecutor(READERS, "lmtop-read") as threads:
        reader = Reader(CPU, threads, files.stored_bytes, lambda share, text: progress(share), lambda: False)
        for place in files.placed:
            key = key_of(place)
            into = fused[form.dtype(key)]
            read_place(place, into, reader, CPU)
            missing[key] -= 1
            if not missing[key]:
                for name, tensor in _stored(key, into, form):
                    shards.add(name, tensor)
    told = form.notices([name for part in fused.values() for name in part.plain])
    return (*told, *(notice for part in fused.values() for notice in part.notices()))


def _stored(key: Key, fused: Fused, form: _Form) -> Iterator[tuple[str, Tensor]]:
    """(name, contents) of what is stored of a tensor of the decoder that is whole; it is given up here."""
    layer, role = key
    prefix = role if layer < 0 else f"layers.{layer}.{role}"
    linear: Dense | Int4
    if key in fused.linears:
        linear = form.matrix(key, fused.linears.pop(key))
    elif role == "lm_head" and fused.head is not None:
        linear, fused.head = form.matrix(key, fused.head), None
    else:
        linear = Dense(fused.tensors.pop((*key, "weight")), fused.tensors.pop((*key, "bias"), None))
    parts = {"weight": linear.weight} if isinstance(linear, Dense) else codes_of(linear)
    for part, tensor in parts.items():
        yield f"{prefix}.{part}", tensor
    if linear.bias is not None:
        yield f"{prefix}.bias", linear.bias


def codes_of(layer: Int4) -> Mapping[str, Tensor]:
    """The stored tensors of a four-bit matrix."""
    width = -(-layer.codes.shape[1] // 2)
    packed = pack_words(layer.codes, 4).view(torch.uint8)[:, :width]
    parts = {f"codes_g{layer.group}": packed, "scales": layer.scales, "zeros": layer.zeros}
    return parts if layer.order is None else {**parts, "order": layer.order.int()}


@contextmanager
def _disk_full() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ModelError(
                "the disk is full: nothing was kept; make room, or choose another --out"
            ) from None
        raise


@contextmanager
def _no_memory() -> Iterator[None]:
    from .runner import allocating

    try:
        with allocating():
            yield
    except MemoryError:
        raise DeviceError("out of memory: converting needs room for the model's largest matrix") from None
