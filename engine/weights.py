"""Streams a checkpoint into memory, tensor by tensor, straight into fused tensors in the decoder's own order.

Files are read, not mapped: a file that is replaced or cut later cannot hurt a loaded model. Beside the model
itself only one staging buffer is held. What is folded here: fused layouts are split and re-fused as q|k|v and
gate|up, interleaved rotary becomes rotate-half by reordering rows, NormHead rows are normalised once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO

import torch
import torch.nn.functional as F
from torch import Tensor

from ..kernels.ops import Dense
from .checkpoint import StoredTensor
from .families import Family
from .hfconfig import name_some, open_regular, shown
from .roles import Placed
from .spec import ModelFiles, Spec
from .types import Cancelled, ModelError

CHUNK_BYTES = 32 << 20  # staging buffer, and how often progress is told and a cancel is seen
SAMPLE = 4096  # numbers of each chunk that are looked at for NaN and infinity
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One block. attn_norm, mlp_norm [hidden] float32; qkv rows q|k|v; gate_up rows gate|up; qk_gain [H + K, D]
    float32 where q and k are normalised."""

    attn_norm: Tensor
    qkv: Dense
    qk_gain: Tensor | None
    o: Dense
    mlp_norm: Tensor
    gate_up: Dense
    down: Dense


@dataclass(frozen=True, slots=True)
class Weights:
    """A loaded model. embed [vocab, hidden]; head may share its memory. `nbytes` counts shared memory once."""

    embed: Tensor
    layers: tuple[LayerWeights, ...]
    final_norm: Tensor
    head: Dense
    nbytes: int
    notices: tuple[str, ...]


def load_weights(
    files: ModelFiles,
    dtype: torch.dtype,
    device: torch.device,
    progress: Callable[[float, str], None],
    cancelled: Callable[[], bool],
) -> Weights:
    """Load `files` as `dtype` (norm gains stay float32) onto `device`.

    `progress(share, message)` is called about every 32 MiB, `cancelled()` asked as often. Raises Cancelled, or
    ModelError when a file no longer is what its header said.
    """
    fused = _Fused(files, dtype, device)
    staging = torch.empty(CHUNK_BYTES, dtype=torch.uint8)
    done, suspicious = 0, []
    for place in files.placed:
        tensor = place.tensor
        target, rows = fused.target(place)
        finite = True
        for first, chunk in _chunks(tensor, staging):
            if cancelled():
                raise Cancelled
            finite &= _looks_finite(chunk)
            if isinstance(rows, int):
                target[rows + first : rows + first + len(chunk)].copy_(chunk)
            else:
                where = rows[first : first + len(chunk)].to(device)
                target.index_copy_(0, where, chunk.to(device=device, dtype=target.dtype))
            done += chunk.nbytes
            progress(done / files.stored_bytes, f"reading {shown(tensor.path.name)}")
        if not finite:
            suspicious.append(tensor.name)
    notices = (f"The weights hold NaN or infinity in {name_some(suspicious)}.",) if suspicious else ()
    return fused.finish(notices)


def _chunks(tensor: StoredTensor, staging: Tensor) -> Iterator[tuple[int, Tensor]]:
    """(first row, rows) of a stored tensor, piece by piece; each piece is valid until the next is asked for."""
    dtype = DTYPES[tensor.dtype]
    shape = tensor.shape[1:]
    row_bytes = math.prod(shape) * dtype.itemsize
    with open_regular(tensor.path) as file:
        file.seek(tensor.offset)
        step = max(1, staging.nbytes // max(1, row_bytes))
        for first in range(0, tensor.shape[0], step):
            count = min(step, tensor.shape[0] - first)
            if count * row_bytes > staging.nbytes:  # one row longer than the buffer
                staging = torch.empty(count * row_bytes, dtype=torch.uint8)
            piece = staging[: count * row_bytes]
            _read_into(file, piece, tensor)
            yield first, piece.view(dtype).view(count, *shape)


def _read_into(file: IO[bytes], piece: Tensor, tensor: StoredTensor) -> None:
    view = memoryview(piece.numpy())  # type: ignore[arg-type]  # an ndarray is a buffer
    while len(view):
        got = file.readinto(view)  # type: ignore[attr-defined]
        if not got:
            raise ModelError(f"{shown(tensor.path.name)}: the file became shorter while it was read")
        view = view[got:]


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


class _Fused:
    """The decoder's tensors while they are being filled."""

    def __init__(self, files: ModelFiles, dtype: torch.dtype, device: torch.device) -> None:
        self._spec = files.spec
        self._dtype, self._device = dtype, device
        self._tensors: dict[tuple[int, str, str], Tensor] = {}
        self._rows = {role: _head_rows(files.spec, files.layout, role) for role in ("q", "k", "v", "qkv")}
        self._width = {
            place.layer: place.tensor.shape[1]
            for place in files.placed
            if place.role == "down" and place.part == "weight"
        }

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
        layers = tuple(self._layer(i) for i in range(spec.layers))
        tensors = {id(tensor): tensor for tensor in (*take.values(), head.weight)}
        nbytes = sum(tensor.nbytes for tensor in tensors.values())
        return Weights(embed, layers, take[-1, "final_norm", "weight"], head, nbytes, notices)

    def _layer(self, layer: int) -> LayerWeights:
        take, spec = self._tensors, self._spec

        def dense(role: str) -> Dense:
            return Dense(take[layer, role, "weight"], take.get((layer, role, "bias")))

        gain = None
        if spec.qk_norm:
            q, k = take[layer, "q_norm", "weight"], take[layer, "k_norm", "weight"]
            gain = torch.cat((q.expand(spec.heads, -1), k.expand(spec.kv_heads, -1)))
        return LayerWeights(
            attn_norm=take[layer, "attn_norm", "weight"],
            qkv=dense("qkv"),
            qk_gain=gain,
            o=dense("o"),
            mlp_norm=take[layer, "mlp_norm", "weight"],
            gate_up=dense("gate_up"),
            down=dense("down"),
        )


def _normalised(weight: Tensor) -> Tensor:
    """Rows of unit length, in place and a slice at a time (Baichuan 2's NormHead)."""
    for rows in torch.split(weight, 4096):
        rows.copy_(F.normalize(rows.float()))
    return weight
