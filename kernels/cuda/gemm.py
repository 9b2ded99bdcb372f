"""Matrix products for more tokens than the GEMV takes: our own tiles where they are ahead, cuBLAS elsewhere.

Weights are the A operand of the tensor cores and tokens the B operand, so that few tokens waste nothing and packed
4-bit weights go from memory to the tensor cores in the order in which they are stored (`w4.py`).
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from ..launch import Kernel, LaunchError, load
from ..nvrtc import Unit, unit
from . import elementwise
from .tensor_map import Map, rows_and_columns
from .w4 import PackedW4

STEP = 128  # columns of a weight that one step of the pipeline takes
TILES = 1 << 16  # output tiles that one launch can have: counters in the workspace


@dataclass(frozen=True, slots=True)
class Tiling:
    """One compiled shape of the kernel: `tokens` by 128 * `blocks64` features a tile, `stages` of the pipeline; `split`
    thread blocks of a cluster share the columns of a tile (wgmma only). hopper: wgmma, else mma.sync."""

    tokens: int
    blocks64: int
    stages: int
    split: int = 1
    hopper: bool = True

    @property
    def features(self) -> int:
        return 128 * self.blocks64

    def unit(self, dtype: torch.dtype, group: int) -> Unit:
        """group 0: plain weights."""
        shape = {"GROUP": group, "BN": self.tokens, "MB": self.blocks64, "STAGES": self.stages}
        bf16 = dtype == torch.bfloat16
        if self.hopper:
            return unit("gemm_wgmma.cu", DTYPE_BF16=bf16, W4=group > 0, SPLIT=self.split, **shape)
        return unit("gemm_mma.cu", DTYPE_BF16=bf16, **shape)

    def threads(self, group: int) -> int:
        """Of a thread block: FOLD and WIDE of gemm_wgmma.cu."""
        if not self.hopper:
            return 256
        fold = group >= 64 and self.blocks64 == 1 and self.tokens <= 128
        return 384 if self.tokens * self.blocks64 * (2 if fold else 1) >= 256 else 288

    def shared(self, group: int) -> int:
        """Bytes of dynamic shared memory: what the kernels lay out, aligned to 1,024, and what turns a tile."""
        weights = self.features * (64 + 4 * 128 // group if group else 256)
        stage = -(-(256 * self.tokens + weights) // 1024) * 1024
        return 1024 + self.stages * stage + 2 * 16 * 68 * 4 + 16 * self.stages + 32


class _Product(ctypes.Structure):
    """`struct Product` of gemm_tile.cuh."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("bias", "residual", "out")),
        *((name, ctypes.c_int) for name in ("n", "rows", "steps", "silu", "wide_out")),
    ]


class _Pointers(ctypes.Structure):
    """`struct Weights` and `struct Workspace` of gemm_mma.cu."""

    _fields_ = [("first", ctypes.c_void_p), ("second", ctypes.c_void_p)]


@dataclass(frozen=True, slots=True)
class Device:
    processors: int
    capability: int  # 90 is compute capability 9.0


@cache
def device_of(index: int) -> Device:
    major, minor = torch.cuda.get_device_capability(index)
    return Device(torch.cuda.get_device_properties(index).multi_processor_count, 10 * major + minor)


# --- which tiling ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Cost:
    """Microseconds of a tiling on an H200: one step of one tile, and what comes before and after the steps."""

    tiling: Tiling
    step: float
    ends: float

    def __call__(self, tokens: int, rows: int, columns: int, processors: int) -> float:
        tiling = self.tiling
        tiles = -(-rows // tiling.features) * -(-tokens // tiling.tokens)
        # Clusters of three leave some multiprocessors of each cluster of the chip unused.
        room = processors if tiling.split < 3 else processors * 9 // 10
        waves = -(-tiles * tiling.split // room)
        if tiling.split > 1 and waves > 1:  # nothing hides the ends of a cluster
            return float("inf")
        return waves * (-(-columns // (STEP * tiling.split)) * self.step + self.ends)


# From `tests/gpu/bench_gemm.py tilings`; tilings that never won are not here.
COSTS_W4 = (
    Cost(Tiling(32, 1, 10, 1), 0.39, 1.4),
    Cost(Tiling(32, 1, 10, 2), 0.5, 3.5),
    Cost(Tiling(32, 1, 10, 3), 0.38, 4.2),
    Cost(Tiling(64, 1, 8, 1), 0.48, 1.5),
    Cost(Tiling(64, 1, 8, 2), 0.52, 4.1),
    Cost(Tiling(64, 1, 8, 3), 0.505, 5.2),
    Cost(Tiling(128, 1, 5, 1), 0.86, 2.0),
    Cost(Tiling(128, 1, 5, 2), 0.72, 5.3),
    Cost(Tiling(128, 1, 5, 3), 0.685, 5.8),
    Cost(Tiling(128, 2, 4, 1), 1.5, 2.5),
    Cost(Tiling(128, 2, 4, 2), 1.52, 4.0),
)
COSTS_PLAIN = (
    Cost(Tiling(64, 1, 4, 1), 0.92, 1.3),
    Cost(Tiling(64, 1, 4, 2), 0.7, 4.5),
    Cost(Tiling(64, 1, 4, 3), 0.79, 3.6),
)
# Where we are ahead of cuBLAS with plain weights (us a layer of an 8B: 17 tokens 142 : 119, 32 130 : 120, 64 121 : 123,
# which also spares silu's kernel).
PLAIN_TOKENS = range(49, 65)
MMA_TOKENS = 64  # up to here our mma.sync kernel is taken; beyond, weights are unpacked for cuBLAS
_MMA = Tiling(64, 1, 3, hopper=False)  # 85 KiB of shared memory: what every chip since sm_80 has
_MMA_SMALL = Tiling(64, 1, 2, hopper=False)  # sm_75 has 64 KiB


def choose(tokens: int, weight: Tensor | PackedW4, device: Device) -> Tiling | None:
    """The tiling for x [tokens, K] @ weight.T; None is cuBLAS."""
    packed = isinstance(weight, PackedW4)
    rows, columns = (weight.rows, weight.columns) if isinstance(weight, PackedW4) else weight.shape
    if columns % 8 or not tokens:  # rows of x are not aligned to 16 bytes
        return None
    if device.capability == 90:
        if not packed and tokens not in PLAIN_TOKENS:
            return None
        costs = COSTS_W4 if packed else COSTS_PLAIN
        return min(costs, key=lambda cost: cost(tokens, rows, columns, device.processors)).tiling
    if not packed or tokens > MMA_TOKENS:
        return None
    return _MMA_SMALL if device.capability < 80 else _MMA


def units(weights: Iterable[Tensor | PackedW4], dtype: torch.dtype, device: torch.device) -> tuple[Unit, ...]:
    """The units that `linear` needs for these weights and activations of `dtype`, to be compiled beforehand."""
    here = device_of(device.index or 0)
    found: dict[Unit, None] = {}
    for weight in weights:
        group = weight.group if isinstance(weight, PackedW4) else 0
        for tokens in (17, 24, 32, 33, 48, 64, 65, 96, 128, 129, 192, 256, 512, 1024, 2048, 4096, 8192):
            tiling = choose(tokens, weight, here)
            if tiling is not None:
                found[tiling.unit(dtype, group)] = None
            elif group:
                found[_dequantiser(dtype, group)] = None
    return tuple(found)


def _dequantiser(dtype: torch.dtype, group: int) -> Unit:
    return unit("dequant.cu", DTYPE_BF16=dtype == torch.bfloat16, GROUP=group)


# --- launching ------------------------------------------------------------------------------------------------


@cache
def workspace(index: int) -> tuple[Tensor, Tensor]:
    """Partial sums and counters of the mma.sync kernel on CUDA device `index`, made once, not inside a graph capture.
    Products on different streams must not share them."""
    if torch.cuda.is_current_stream_capturing():
        raise LaunchError("the workspace of the matrix products must be made before a graph is captured")
    device = torch.device("cuda", index)
    partial = torch.empty(2 * device_of(index).processors * 256 * 64, dtype=torch.float32, device=device)
    return partial, torch.zeros(TILES, dtype=torch.int32, device=device)


@cache
def _kernel(tiling: Tiling, dtype: torch.dtype, group: int, index: int) -> Kernel:
    kernel = load(tiling.unit(dtype, group), torch.device("cuda", index)).kernel("gemm")
    return kernel.max_shared(tiling.shared(group))


def tiled(
    x: Tensor,
    weight: Tensor | PackedW4,
    bias: Tensor | None,
    tiling: Tiling,
    *,
    residual: Tensor | None = None,
    silu: bool = False,
    out_float: bool = False,
) -> Tensor:
    """`linear` by our kernel."""
    packed = weight if isinstance(weight, PackedW4) else None
    group = packed.group if packed else 0
    rows = packed.rows if packed else weight.shape[0]  # type: ignore[union-attr]
    n, columns = x.shape
    out = torch.empty(
        n, rows // 2 if silu else rows, dtype=torch.float32 if out_float else x.dtype, device=x.device
    )
    steps = -(-columns // STEP)
    pointers = [t.data_ptr() if t is not None else None for t in (bias, residual, out)]
    product = _Product(*pointers, n, rows, steps, int(silu), int(out_float))
    # Of a plain gate | up matrix a tile takes 64 rows of each half.
    feature_tiles = -(-rows // 128) if silu and not packed else -(-rows // tiling.features)
    tiles = feature_tiles * -(-n // tiling.tokens)
    kernel = _kernel(tiling, x.dtype, group, x.device.index)
    shared = tiling.shared(group)
    processors = device_of(x.device.index).processors
    if tiling.hopper:
        source = _packed_maps(packed, tiling) if packed else rows_and_columns(weight, 64, 64)  # type: ignore[arg-type]
        blocks = tiles * tiling.split
        if tiling.split == 1:  # a block takes tiles in turn
            blocks = min(tiles, processors)
        threads = tiling.threads(group)
        tokens = rows_and_columns(x, 64, tiling.tokens)
        kernel(blocks, threads, tokens, source, product, feature_tiles, shared=shared, pdl=True)
    else:
        assert packed is not None
        weights = _Pointers(packed.words.data_ptr(), packed.pairs.data_ptr())
        partial = _Pointers(*(t.data_ptr() for t in workspace(x.device.index)))
        blocks = min(tiles * steps, processors)
        kernel(blocks, 256, x, weights, product, partial, feature_tiles, columns, shared=shared, pdl=True)
    return out


def _packed_maps(packed: PackedW4, tiling: Tiling) -> Map:
    """`struct Weights` of gemm_wgmma.cu: all 16-row tiles of one step of a tile are one box."""
    tiles = packed.words.shape[0]
    words = rows_and_columns(packed.words.view(tiles, -1), 256, tiling.features // 16, swizzled=False)
    pairs = rows_and_columns(
        packed.pairs.view(tiles, -1), 2048 // packed.group, tiling.features // 16, swizzled=False
    )
    return (ctypes.c_uint64 * 32)(*words, *pairs)


def linear(
    x: Tensor,
    weight: Tensor | PackedW4,
    bias: Tensor | None = None,
    *,
    residual: Tensor | None = None,
    silu: bool = False,
    out_float: bool = False,
) -> Tensor:
    """x [n, K] @ weight.T + bias + residual -> [n, rows] in x's dtype, or float32.

    silu: weight is gate over up (packed with `gate_up`) and the result silu(gate) * up, [n, rows / 2]. bias [rows] and
    residual [n, features] have x's dtype. Sums are float32 and rounded once, but cuBLAS' before silu.
    """
    if isinstance(weight, PackedW4) and weight.gate_up != silu:
        raise ValueError("a matrix packed with gate_up is for silu, and no other is")
    tiling = choose(x.shape[0], weight, device_of(x.device.index))
    if tiling is not None:
        return tiled(x, weight, bias, tiling, residual=residual, silu=silu, out_float=out_float)
    if isinstance(weight, PackedW4):
        weight = dequantise(weight, torch.empty(weight.rows, weight.columns, dtype=x.dtype, device=x.device))
    return _cublas(x, weight, bias, residual, silu, out_float)


def _cublas(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, silu: bool, out_float: bool
) -> Tensor:
    turned = weight.t()
    if silu:
        y = elementwise.silu_mul(torch.mm(x, turned) if bias is None else torch.addmm(bias, x, turned))
        y = y if residual is None else y + residual
        return y.float() if out_float else y
    extras = [extra for extra in (bias, residual) if extra is not None]
    if out_float or len(extras) > 1:
        wide = torch.mm(x, turned, out_dtype=torch.float32)
        for extra in extras:
            wide += extra
        return wide if out_float else wide.to(x.dtype)
    return torch.addmm(extras[0], x, turned) if extras else torch.mm(x, turned)


def dequantise(packed: PackedW4, out: Tensor) -> Tensor:
    """The weights of `packed` in their original order of rows, into out [rows, columns], fp16 or bf16; returns out."""
    group = packed.group
    kernel = load(_dequantiser(out.dtype, group), out.device).kernel("dequant")
    tiles, steps = packed.words.shape[0], packed.words.shape[1] // 2
    kernel(
        (-(-steps // 8), tiles, 1),
        256,
        packed.words,
        packed.pairs,
        out,
        packed.rows,
        packed.columns,
        steps,
        int(packed.gate_up),
        pdl=True,
    )
    return out
