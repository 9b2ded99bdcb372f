"""Linear layers for few tokens on CUDA (matvec.cu), with norm, bias, residual and SiLU fused: memory-bound products.

A call reads every weight once whatever the number of tokens. A token's result does not depend on its neighbours.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from ..launch import Kernel, load
from ..nvrtc import Unit, unit
from .w4 import PackedW4

MAX_TOKENS = 8  # of one launch
_COLUMN = 20  # COL of matvec.cu


@dataclass(frozen=True, slots=True)
class Norm:
    """An RMS norm to apply to x before a product. Make it with `fold_norm`.

    gain float32 [K]: the model's gain times 2**-e, all within [-1, 1] so that x times gain cannot overflow 16 bits;
    scale: 2**e."""

    gain: Tensor
    eps: float
    scale: float


def fold_norm(gain: Tensor, eps: float) -> Norm:
    """Prepare the norm with `gain` [K], once, when a model is loaded (synchronises)."""
    largest = float(gain.abs().max())
    exponent = math.frexp(largest)[1] if largest > 0 else 0
    return Norm((gain.float() * 2.0**-exponent).contiguous(), eps, 2.0**exponent)


@dataclass(frozen=True, slots=True)
class Cut:
    """How a matrix is cut: `warps` warps of a CTA read it `depth` chunks ahead, `cluster` CTAs share a tile of 16 rows,
    each with a part of the columns. `blocks` CTAs must fit an SM."""

    warps: int
    depth: int
    cluster: int = 1
    blocks: int = 2


class _Args(ctypes.Structure):
    """struct Args of matvec.cu."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("w", "pairs", "x", "gain", "bias", "residual", "y")),
        ("eps", ctypes.c_float),
        ("scale", ctypes.c_float),
        *((name, ctypes.c_int) for name in ("n", "N", "K", "ldy", "xstride", "silu", "out_float")),
    ]


@dataclass(frozen=True, slots=True)
class _Device:
    processors: int
    shared_sm: int
    shared_block: int
    hopper: bool  # sm_90 or later: bulk copies, clusters


@cache
def _device(index: int) -> _Device:
    facts = torch.cuda.get_device_properties(index)
    return _Device(
        facts.multi_processor_count,
        facts.shared_memory_per_multiprocessor,
        facts.shared_memory_per_multiprocessor - (1024 if facts.major >= 8 else 0),
        facts.major >= 9,
    )


def linear(
    x: Tensor,
    weight: Tensor | PackedW4,
    bias: Tensor | None = None,
    *,
    norm: Norm | None = None,
    residual: Tensor | None = None,
    silu: bool = False,
    out_float: bool = False,
) -> Tensor:
    """y = weight @ norm(x) + bias + residual for x [n, K], fp16 or bf16 -> [n, N].

    weight: [N, K] of x's dtype, or packed. silu: weight is gate | up fused, [2 * width, K] (packed with gate_up), and
    y = silu(gate) * up [n, width]. residual has y's shape, bias is [N]. out_float: y in float32. Dense shapes that the
    kernel cannot read (K not a multiple of 8, unaligned) go through torch."""
    if isinstance(weight, Tensor) and not _readable(x, weight):
        return _through_torch(x, weight, bias, norm, residual, silu, out_float)
    rows, columns, group = _shape(weight)
    device = _device(x.device.index)
    cut = choose_cut(rows, columns, group, device.hopper)
    y = torch.empty(
        x.shape[0],
        rows // 2 if silu else rows,
        dtype=torch.float32 if out_float else x.dtype,
        device=x.device,
    )
    step = most_tokens(cut, columns, group, norm is not None, device)
    for at in range(0, x.shape[0], step):  # once, unless shared memory has too little room for all tokens
        part = None if residual is None else residual[at : at + step]
        run(cut, x[at : at + step], weight, bias, norm, part, silu, y[at : at + step])
    return y


@cache
def choose_cut(rows: int, columns: int, group: int, hopper: bool) -> Cut:
    """How to cut a [rows, columns] matrix (group 0: dense). Independent of the number of tokens, on which no result
    may depend."""
    if not hopper:
        return Cut(8, 2)
    cluster = (
        2 if columns >= 8192 >= rows else 1
    )  # x of 8 tokens must fit; tall matrices are slower in clusters
    return Cut(16, 3 if group > 32 else 2, cluster)


def units(weights: Iterable[Tensor | PackedW4], dtype: torch.dtype, device: torch.device) -> tuple[Unit, ...]:
    """The units that `linear` needs for these weights and activations of `dtype`, to be compiled beforehand."""
    hopper = _device(device.index or 0).hopper
    found: dict[Unit, None] = {}
    for weight in weights:
        rows, columns, group = _shape(weight)
        found[cut_unit(choose_cut(rows, columns, group, hopper), group, dtype)] = None
    return tuple(found)


@cache
def cut_unit(cut: Cut, group: int, dtype: torch.dtype) -> Unit:
    """The unit for a cut and weights in groups of `group` columns (0: dense)."""
    return unit(
        "matvec.cu",
        W4=group > 0,
        GROUP=group or 128,
        NT=1,  # 16 tokens at once would not fit the shared memory
        WARPS=cut.warps,
        DEPTH=cut.depth,
        CLUSTER=cut.cluster,
        BLOCKS=cut.blocks,
        DTYPE_BF16=dtype == torch.bfloat16,
    )


@cache
def _kernel(wanted: Unit, index: int) -> Kernel:
    kernel = load(wanted, torch.device("cuda", index)).kernel("matvec")
    return kernel.max_shared(_device(index).shared_block)


def _shape(weight: Tensor | PackedW4) -> tuple[int, int, int]:
    """(rows, columns, group), group 0 for a dense matrix."""
    if isinstance(weight, PackedW4):
        return weight.rows, weight.columns, weight.group
    return weight.shape[0], weight.shape[1], 0


@cache
def shared_bytes(cut: Cut, columns: int, group: int, norm: bool, tokens: int) -> int:
    """Shared memory of a CTA: `Layout` of matvec.cu."""
    width = 128 if group else 64
    chunks = -(-columns // width)
    held = width * -(-chunks // cut.cluster)
    padded = 8 * -(-tokens // 8)
    slot = 1024 + 128 // group * 256 if group else 2048
    size = 512 + cut.warps * cut.depth * slot + cut.warps * padded * 4 + 2 * cut.warps * tokens * _COLUMN * 4
    if cut.cluster > 1:
        size += 2 * cut.cluster * tokens * _COLUMN * 4
    if norm:
        size += held * 4
    if group:
        size += held // group * padded * 4
    return size + tokens * (held * 2 + (16 if group else 64))


@cache
def most_tokens(cut: Cut, columns: int, group: int, norm: bool, device: _Device) -> int:
    """How many tokens one launch can take."""
    for tokens in (MAX_TOKENS, 4, 2, 1):
        if shared_bytes(cut, columns, group, norm, tokens) <= device.shared_block:
            return tokens
    raise ValueError(f"a matrix with {columns} columns does not fit the shared memory of this GPU")


def run(
    cut: Cut,
    x: Tensor,
    weight: Tensor | PackedW4,
    bias: Tensor | None,
    norm: Norm | None,
    residual: Tensor | None,
    silu: bool,
    y: Tensor,
) -> None:
    """One launch: `linear` into y."""
    rows, columns, group = _shape(weight)
    device = _device(x.device.index)
    tokens = x.shape[0]
    words = weight.words if isinstance(weight, PackedW4) else weight
    args = _Args(
        words.data_ptr(),
        weight.pairs.data_ptr() if isinstance(weight, PackedW4) else None,
        x.data_ptr(),
        norm.gain.data_ptr() if norm else None,
        None if bias is None else bias.data_ptr(),
        None if residual is None else residual.data_ptr(),
        y.data_ptr(),
        norm.eps if norm else 0.0,
        norm.scale if norm else 1.0,
        tokens,
        rows,
        columns,
        y.shape[1],
        x.stride(0),
        int(silu),
        int(y.dtype == torch.float32),
    )
    kernel = _kernel(cut_unit(cut, group, x.dtype), x.device.index)
    shared = shared_bytes(cut, columns, group, norm is not None, tokens)
    if device.hopper:
        # Two CTAs fit an SM, this kernel's and the next one's, and every SM gets one, with or without work: the two
        # kernels so share the SMs evenly. Fewer or smaller CTAs double up (measured: 27.5 -> 18.8 us a 1.8B layer).
        shared = max(shared, device.shared_sm // 2 - 1024)
        grid = device.processors // cut.cluster * cut.cluster
    else:
        tiles = -(-rows // 16) if not silu else -(-rows // 2 // 8)
        grid = min(device.processors * max(1, min(cut.blocks, device.shared_sm // (shared + 1024))), tiles)
    kernel(grid, 32 * (cut.warps + (1 if cut.cluster > 1 else 2)), args, shared=shared, pdl=True)


def _readable(x: Tensor, weight: Tensor) -> bool:
    return (
        weight.is_contiguous()
        and weight.dtype == x.dtype
        and weight.shape[1] % 8 == 0
        and x.stride(0) % 8 == 0
        and weight.data_ptr() % 16 == 0
        and x.data_ptr() % 16 == 0
    )


def _through_torch(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    norm: Norm | None,
    residual: Tensor | None,
    silu: bool,
    out_float: bool,
) -> Tensor:
    if norm is not None:
        x = F.rms_norm(x.float(), (x.shape[1],), norm.gain * norm.scale, norm.eps).to(x.dtype)
    y = torch.mm(x, weight.t()) if bias is None else torch.addmm(bias, x, weight.t())
    if silu:
        gate, up = y.chunk(2, -1)
        y = F.silu(gate) * up
    if residual is not None:
        y = y + residual
    return y.float() if out_float else y
