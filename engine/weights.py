"""Loads a checkpoint, tensor by tensor, into the decoder's own order.

Files are read, not mapped: a file that is replaced or cut later cannot hurt a loaded model. Beside the model
itself only staging buffers and one matrix's stored tensors are held, and each matrix is handed to the backend as soon
as it is whole.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..kernels.ops import Dense, Int4
from .fusing import Fused
from .reading import READERS, Reader
from .roles import Placed
from .spec import ModelFiles, Spec

SAMPLE = 4096  # numbers of each chunk that are looked at for NaN and infinity


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
    """A loaded model. embed [vocab, hidden]; head may share its memory. `nbytes` counts shared memory once.
    `plain`: matrices that have four-bit codes and had to be dequantised."""

    embed: Tensor
    layers: tuple[LayerWeights, ...]
    final_norm: Tensor
    head: Any
    nbytes: int
    notices: tuple[str, ...]
    plain: tuple[str, ...] = ()


def load_weights(
    files: ModelFiles,
    dtype: torch.dtype,
    device: torch.device,
    progress: Callable[[float, str], None],
    cancelled: Callable[[], bool],
    prepare: Callable[[str, Dense | Int4], Any] = lambda role, layer: layer,
) -> Weights:
    """Load `files` as `dtype` (norm gains stay float32) onto `device`.

    `prepare(role, layer)` makes the backend's layer of a matrix; role is qkv, o, gate_up, down or lm_head, the layer
    an Int4 where the checkpoint has four-bit codes that the kernels can run (`ModelFiles.int4`), and the result has
    `nbytes`, or is a Dense. `progress(share, message)` is called for each piece that is read, `cancelled()` asked as often.
    Raises Cancelled, or ModelError when a file no longer is what its header said or holds no numbers that make sense.
    """
    fused = Fused(files, dtype, device, prepare)
    with ThreadPoolExecutor(READERS, "lmtop-read") as threads:
        reader = Reader(device, threads, files.stored_bytes, progress, cancelled)
        for place in files.placed:
            read_place(place, fused, reader, device)
    return _finish(files.spec, fused, prepare)


def read_place(place: Placed, fused: Fused, reader: Reader, device: torch.device) -> None:
    """Read what is stored there into the decoder's tensors."""
    if place.packed is not None:
        fused.quantised(place, {part: reader.whole(tensor) for part, tensor in place.parts.items()})
    else:
        _read_plain(place, fused, reader, device)
    fused.placed(place)


def _read_plain(place: Placed, fused: Fused, reader: Reader, device: torch.device) -> None:
    target, rows = fused.target(place)
    finite = True
    for first, piece in reader.pieces(place.tensor):
        finite &= _looks_finite(piece)
        if isinstance(rows, int):
            target[rows + first : rows + first + len(piece)].copy_(piece, non_blocking=True)
        else:
            where = rows[first : first + len(piece)].to(device)
            moved = piece.to(device=device, non_blocking=True)
            target.index_copy_(0, where, moved.to(target.dtype))
    if not finite:
        fused.suspect(place)


def _looks_finite(chunk: Tensor) -> bool:
    flat = chunk.reshape(-1)
    return bool(torch.isfinite(flat[:: max(1, flat.numel() // SAMPLE)]).all())


def _finish(spec: Spec, fused: Fused, prepare: Callable[[str, Dense | Int4], Any]) -> Weights:
    take, linears = fused.tensors, fused.linears
    embed = take[-1, "embed", "weight"]
    head: Dense | Int4
    if fused.head is not None:
        head = fused.head
    else:
        weight = embed if spec.tied else take[-1, "lm_head", "weight"]
        if spec.norm_head:
            weight = _normalised(weight.clone() if spec.tied else weight)
        head = Dense(weight, take.get((-1, "lm_head", "bias")))
    last = prepare("lm_head", head)
    if not isinstance(last, Dense):
        take.pop((-1, "lm_head", "weight"), None)
    layers = tuple(_layer(i, spec, fused) for i in range(spec.layers))
    tensors = [*take.values(), *([last.weight] if isinstance(last, Dense) else [])]
    nbytes = sum(tensor.nbytes for tensor in {id(tensor): tensor for tensor in tensors}.values())
    nbytes += sum(_nbytes(linear) for linear in linears.values())
    nbytes += 0 if isinstance(last, Dense) else _nbytes(last)
    return Weights(
        embed, layers, take[-1, "final_norm", "weight"], last, nbytes, fused.notices(), tuple(fused.plain)
    )


def _layer(layer: int, spec: Spec, fused: Fused) -> LayerWeights:
    take, linears = fused.tensors, fused.linears
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
