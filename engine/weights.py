"""Streams a checkpoint into memory, tensor by tensor, straight into fused tensors in the decoder's own order.

Files are read, not mapped: a file that is replaced or cut later cannot hurt a loaded model. Beside the model
itself only staging buffers are held, and each matrix is handed to the backend as soon as it is whole. What is folded here: fused layouts are split and re-fused as q|k|v and
gate|up, interleaved rotary becomes rotate-half by reordering rows, NormHead rows are normalised once.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..kernels.ops import Dense
from .checkpoint import StoredTensor
from .families import Family
from .hfconfig import name_some, open_regular, shown
from .random_weights import NOWHERE, Noise
from .roles import Placed
from .spec import ModelFiles, Spec
from .types import Cancelled, ModelError

CHUNK_BYTES = 32 << 20  # staging buffer, and how often progress is told and a cancel is seen
# Threads that read a piece together. Out of the page cache of an H200's host into pinned memory, and on to the GPU:
# one 9.4 GB/s, two 16, four 25, eight 28.
READERS = 4
PART_BYTES = 4 << 20  # a smaller part is not worth another thread
SAMPLE = 4096  # numbers of each chunk that are looked at for NaN and infinity
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One block. attn_norm, mlp_norm [hidden] float32; qk_gain [H + K, D] float32 where q and k are normalised.
    The linear layers are the backend's (`kernels.ops.Ops.prepare`): qkv with rows q|k|v, gate_up gate|up."""

    attn_norm: Tensor
    qkv: Any
    qk_gain: Tensor | None
    o: Any
    mlp_norm: Tensor
    gate_up: Any
    down: Any


@dataclass(frozen=True, slots=True)
class Weights:
    """A loaded model. embed [vocab, hidden]; head may share its memory. `nbytes` counts shared memory once."""

    embed: Tensor
    layers: tuple[LayerWeights, ...]
    final_norm: Tensor
    head: Any
    nbytes: int
    notices: tuple[str, ...]


def load_weights(
    files: ModelFiles,
    dtype: torch.dtype,
    device: torch.device,
    progress: Callable[[float, str], None],
    cancelled: Callable[[], bool],
    prepare: Callable[[str, Dense], Any] = lambda role, layer: layer,
) -> Weights:
    """Load `files` as `dtype` (norm gains stay float32) onto `device`.

    `prepare(role, layer)` makes the backend's layer of a matrix; role is qkv, o, gate_up, down or lm_head, and the
    result has `nbytes`, or is a Dense. `progress(share, message)` is called about every 32 MiB, `cancelled()` asked as often. Raises Cancelled, or
    ModelError when a file no longer is what its header said.
    """
    fused = _Fused(files, dtype, device, prepare)
    staging = _Staging(device)
    noise = Noise(device) if files.directory == NOWHERE else None
    done, suspicious = 0, []
    with ThreadPoolExecutor(READERS, "lmtop-read") as readers:
        for place in files.placed:
            tensor = place.tensor
            target, rows = fused.target(place)
            finite = True
            pieces = noise.rows(tensor) if noise else _chunks(tensor, staging, readers)
            for first, chunk in pieces:
                if cancelled():
                    raise Cancelled
                finite &= _looks_finite(chunk)
                if isinstance(rows, int):
                    target[rows + first : rows + first + len(chunk)].copy_(chunk, non_blocking=True)
                else:
                    where = rows[first : first + len(chunk)].to(device)
                    moved = chunk.to(device=device, non_blocking=True)
                    target.index_copy_(0, where, moved.to(target.dtype))
                staging.sent()
                done += chunk.nbytes
                progress(done / files.stored_bytes, f"reading {shown(tensor.path.name)}")
            if not finite:
                suspicious.append(tensor.name)
            fused.placed(place)
    notices = (f"The weights hold NaN or infinity in {name_some(suspicious)}.",) if suspicious else ()
    return fused.finish(notices)


class _Staging:
    """Buffers that file contents pass through. For a GPU there are two, pinned, so that one is filled while the
    other is still being copied."""

    def __init__(self, device: torch.device) -> None:
        self._pinned = device.type == "cuda"
        self._buffers = [self._new(CHUNK_BYTES) for _ in range(2 if self._pinned else 1)]
        self._events: list[torch.cuda.Event | None] = [None, None]
        self._at = 0

    def _new(self, nbytes: int) -> Tensor:
        return torch.empty(nbytes, dtype=torch.uint8, pin_memory=self._pinned)

    def take(self, nbytes: int) -> Tensor:
        """A buffer that may be overwritten, its first `nbytes` bytes."""
        if nbytes > self._buffers[self._at].nbytes:  # one row longer than the buffer
            self._buffers[self._at] = self._new(nbytes)
        event = self._events[self._at]
        if event is not None:
            event.synchronize()
        return self._buffers[self._at][:nbytes]

    def sent(self) -> None:
        """The copy out of the buffer taken last is queued."""
        if self._pinned:
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record()
            self._events[self._at] = event
            self._at = 1 - self._at


def _chunks(tensor: StoredTensor, staging: _Staging, readers: Executor) -> Iterator[tuple[int, Tensor]]:
    """(first row, rows) of a stored tensor, piece by piece; each piece is valid until the next is asked for."""
    dtype = DTYPES[tensor.dtype]
    shape = tensor.shape[1:]
    row_bytes = math.prod(shape) * dtype.itemsize
    with open_regular(tensor.path) as file:
        step = max(1, CHUNK_BYTES // max(1, row_bytes))
        for first in range(0, tensor.shape[0], step):
            count = min(step, tensor.shape[0] - first)
            piece = staging.take(count * row_bytes)
            _read_into(file.fileno(), tensor.offset + first * row_bytes, piece, tensor, readers)
            yield first, piece.view(dtype).view(count, *shape)


def _read_into(descriptor: int, offset: int, piece: Tensor, tensor: StoredTensor, readers: Executor) -> None:
    """Fill `piece` from `offset` of the file on. Returns, or raises, when no thread writes to it any more."""
    view = memoryview(piece.numpy())  # type: ignore[arg-type]  # an ndarray is a buffer

    def read(start: int, end: int) -> None:
        while start < end:
            got = os.preadv(descriptor, [view[start:end]], offset + start)
            if not got:
                raise ModelError(f"{shown(tensor.path.name)}: the file became shorter while it was read")
            start += got

    size = max(PART_BYTES, -(-len(view) // READERS))
    parts = [
        readers.submit(read, start, min(start + size, len(view))) for start in range(size, len(view), size)
    ]
    try:
        read(0, min(size, len(view)))
    finally:
        wait(parts)
    for part in parts:
        part.result()


def _looks_finite(chunk: Tensor) -> bool:
    flat = chunk.reshape(-1)
    return bool(torch.isfinite(flat[:: max(1, flat.numel() // SAMPLE)]).all())


def _head_rows(spec: Spec, layout: Family, role: str) -> Tensor:
    """Row of the fused q|k|v tensor for each row of a stored q, k, v or qkv tensor."""
    queries, keys = spec.heads, spec.kv_heads
    parts = {
        "q": range(queries),
        "k": range(queries, queries + keys),
        "v": range(queries + keys, queries + 2 * keys),
    }
    if role != "qkv":
        heads = list(parts[role])
    elif layout.qkv == "concat":
        heads = list(range(queries + 2 * keys))
    else:
        share = queries // keys
        groups = ([*range(g * share, (g + 1) * share), queries + g, queries + keys + g] for g in range(keys))
        heads = [head for group in groups for head in group]
    plain = torch.arange(spec.head_dim)
    turned = plain.clone()
    if layout.interleaved:  # pair (2i, 2i + 1) becomes (i, i + dim / 2)
        pairs = torch.arange(spec.rope.dim).view(2, -1).t().reshape(-1)
        turned[: spec.rope.dim] = pairs
    within = [turned if head < queries + keys else plain for head in heads]
    return torch.cat([head * spec.head_dim + rows for head, rows in zip(heads, within, strict=True)])


_FUSED = {"q": "qkv", "k": "qkv", "v": "qkv", "gate": "gate_up", "up": "gate_up"}
_MATRICES = ("qkv", "o", "gate_up", "down")


class _Fused:
    """The decoder's tensors while they are being filled."""

    def __init__(
        self,
        files: ModelFiles,
        dtype: torch.dtype,
        device: torch.device,
        prepare: Callable[[str, Dense], Any],
    ) -> None:
        self._spec = files.spec
        self._dtype, self._device, self._prepare = dtype, device, prepare
        self._tensors: dict[tuple[int, str, str], Tensor] = {}
        self._linears: dict[tuple[int, str], Any] = {}
        self._rows = {role: _head_rows(files.spec, files.layout, role) for role in ("q", "k", "v", "qkv")}
        self._width = {
            place.layer: place.tensor.shape[1]
            for place in files.placed
            if place.role == "down" and place.part == "weight"
        }
        self._missing = Counter((place.layer, _FUSED.get(place.role, place.role)) for place in files.placed)

    def placed(self, place: Placed) -> None:
        """A stored tensor is in; the layer it completes goes to the backend."""
        key = (place.layer, _FUSED.get(place.role, place.role))
        self._missing[key] -= 1
        if not self._missing[key] and key[1] in _MATRICES:
            weight, bias = self._tensors.pop((*key, "weight")), self._tensors.pop((*key, "bias"), None)
            self._linears[key] = self._prepare(key[1], Dense(weight, bias))

    def target(self, place: Placed) -> tuple[Tensor, int | Tensor]:
        """The tensor that a stored one goes into, and where its rows go: from a first row on, or one by one."""
        role, tail = place.role, place.tensor.shape[1:]
        if role in self._rows:
            rows = self._rows[role]
            total = (self._spec.heads + 2 * self._spec.kv_heads) * self._spec.head_dim
            straight = bool((rows.diff() == 1).all())
            return self._get(place, "qkv", (total, *tail)), int(rows[0]) if straight else rows
        if role in ("gate", "up", "gate_up"):
            width = self._width[place.layer]
            return self._get(place, "gate_up", (2 * width, *tail)), width if role == "up" else 0
        return self._get(place, role, place.tensor.shape), 0

    def _get(self, place: Placed, role: str, shape: tuple[int, ...]) -> Tensor:
        key = (place.layer, role, place.part)
        if key not in self._tensors:
            dtype = torch.float32 if role.endswith("norm") else self._dtype
            make = torch.zeros if place.part == "bias" else torch.empty  # a fused bias may be stored in part
            self._tensors[key] = make(shape, dtype=dtype, device=self._device)
        return self._tensors[key]

    def finish(self, notices: tuple[str, ...]) -> Weights:
        take = self._tensors
        spec = self._spec
        embed = take[-1, "embed", "weight"]
        head = Dense(embed if spec.tied else take[-1, "lm_head", "weight"], take.get((-1, "lm_head", "bias")))
        if spec.norm_head:
            head = Dense(_normalised(head.weight.clone() if spec.tied else head.weight), head.bias)
        last = self._prepare("lm_head", head)
        if not isinstance(last, Dense):
            take.pop((-1, "lm_head", "weight"), None)
        layers = tuple(self._layer(i) for i in range(spec.layers))
        tensors = [*take.values(), *(head.weight,) * isinstance(last, Dense)]
        nbytes = sum(tensor.nbytes for tensor in {id(tensor): tensor for tensor in tensors}.values())
        nbytes += sum(_nbytes(linear) for linear in self._linears.values())
        nbytes += 0 if isinstance(last, Dense) else _nbytes(last)
        return Weights(embed, layers, take[-1, "final_norm", "weight"], last, nbytes, notices)

    def _layer(self, layer: int) -> LayerWeights:
        take, spec, linears = self._tensors, self._spec, self._linears
        gain = None
        if spec.qk_norm:
            q, k = take[layer, "q_norm", "weight"], take[layer, "k_norm", "weight"]
            gain = torch.cat((q.expand(spec.heads, -1), k.expand(spec.kv_heads, -1)))
        return LayerWeights(
            attn_norm=take[layer, "attn_norm", "weight"],
            qkv=linears[layer, "qkv"],
            qk_gain=gain,
            o=linears[layer, "o"],
            mlp_norm=take[layer, "mlp_norm", "weight"],
            gate_up=linears[layer, "gate_up"],
            down=linears[layer, "down"],
        )


def _nbytes(linear: Any) -> int:
    """Bytes of a backend's layer."""
    if isinstance(linear, Dense):
        return linear.weight.nbytes + (0 if linear.bias is None else linear.bias.nbytes)
    return int(linear.nbytes)


def _normalised(weight: Tensor) -> Tensor:
    """Rows of unit length, in place and a slice at a time (Baichuan 2's NormHead)."""
    for rows in torch.split(weight, 4096):
        rows.copy_(F.normalize(rows.float()))
    return weight
