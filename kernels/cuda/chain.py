"""What lies between two attentions, in one launch (chain.cu): up to four products of few tokens, one after the other.

The weights of a product stream to shared memory while the ones before it are still being computed.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from ..launch import Kernel, load
from ..nvrtc import Unit, unit
from .matvec import Norm
from .tensor_map import column_blocks
from .w4 import PackedW4

MAX_TOKENS = 2  # the kernel takes 8 (packed: 4), but from three on a launch for each product is faster
_MOST = 4  # products, MOST of chain.cu
_WARPS, _THREADS = 16, 608
_COLUMN = 20  # COL
_STAGES = range(4, 17)  # of the ring
_ROOM = 200 << 10  # bytes of shared memory beside which the attention before and after it finds its own
_ROOM_TIGHT = 226 << 10  # if that makes the ring too short
_MAIL_ROOM = 1 << 20  # bytes of what one chain passes on


@dataclass(frozen=True, slots=True)
class Product:
    """One product of a chain: y = weight @ norm(x) + bias + residual, or silu(gate) * up of its two halves."""

    weight: Tensor | PackedW4
    bias: Tensor | None = None
    norm: Norm | None = None
    silu: bool = False

    @property
    def group(self) -> int:
        """Columns of a group, 0 for a dense matrix."""
        return self.weight.group if isinstance(self.weight, PackedW4) else 0

    @property
    def size(self) -> tuple[int, int]:
        """(rows, columns)"""
        if isinstance(self.weight, PackedW4):
            return self.weight.rows, self.weight.columns
        return self.weight.shape[0], self.weight.shape[1]

    @property
    def width(self) -> int:
        """Numbers that it gives for a token."""
        return self.size[0] // 2 if self.silu else self.size[0]


class _Phase(ctypes.Structure):
    """`struct Phase` of chain.cu."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("words", "pairs", "x", "gain", "bias", "residual", "y")),
        ("eps", ctypes.c_float),
        ("scale", ctypes.c_float),
        *(
            (name, ctypes.c_int)
            for name in ("N", "K", "ldy", "xstride", "silu", "out_float", "mail_in", "mail_out", "mail_added")
        ),
    ]


class _Chain(ctypes.Structure):
    """`struct Chain` of chain.cu."""

    _fields_ = [
        ("phases", _Phase * _MOST),
        ("mail", ctypes.c_void_p),
        ("state", ctypes.c_void_p),
        *(
            (name, ctypes.c_int)
            for name in ("mail_room", "mail_used", "count", "n", "stages", "window", "most_stages", "gains")
        ),
    ]


def chain_unit(group: int, dtype: torch.dtype) -> Unit:
    """The unit for weights in groups of `group` columns (0: dense)."""
    return unit("chain.cu", PACKED=group > 0, GROUP=group or 128, DTYPE_BF16=dtype == torch.bfloat16)


def units(weights: Iterable[Tensor | PackedW4], dtype: torch.dtype, device: torch.device) -> tuple[Unit, ...]:
    """The units that chains of these weights need on this device, to be compiled beforehand."""
    if torch.cuda.get_device_capability(device) != (9, 0):
        return ()
    groups = {weight.group if isinstance(weight, PackedW4) else 0 for weight in weights}
    return tuple(chain_unit(group, dtype) for group in sorted(groups))


@cache
def stages(columns: tuple[int, ...], longest_gain: int, group: int, tokens: int) -> int:
    """Stages of the ring for products of so many columns, 0 if they do not fit the shared memory of sm_90."""
    fixed = _fixed_bytes(columns, longest_gain, group, tokens)
    for room in (_ROOM, _ROOM_TIGHT):
        count = min((room - fixed) // _stage_bytes(group), _STAGES[-1])
        if count >= (_STAGES[0] + 2 if room == _ROOM else _STAGES[0]):
            return count
    return 0


def _step(group: int) -> int:
    """Columns of a stage."""
    return 2048 if group else 512


def _stage_bytes(group: int) -> int:
    return 16384 + (2048 // group * 64 if group else 0)


@cache
def _fixed_bytes(columns: tuple[int, ...], longest_gain: int, group: int, tokens: int) -> int:
    """Shared memory of a CTA but the ring: `Layout` of chain.cu."""
    step = _step(group)
    rows = -(-max(columns) // step)
    size = 1024 + _MOST * _WARPS * 32 + 2 * _WARPS * tokens * _COLUMN * 4 + longest_gain * 4
    if group:
        size += rows * (2048 // group) * 32
    return size + tokens * (rows * step * 2 + 64)


def can(products: Sequence[Product], tokens: int, dtype: torch.dtype) -> bool:
    """Whether these can be one launch: on sm_90, all dense or all packed alike, in shapes that it can read."""
    first = products[0].weight
    device = first.words.device if isinstance(first, PackedW4) else first.device
    if tokens > MAX_TOKENS or torch.cuda.get_device_capability(device) != (9, 0):
        return False
    if len({product.group for product in products}) > 1:
        return False
    for product in products:
        weight = product.weight
        if product.size[1] % (8 if isinstance(weight, PackedW4) else 64):
            return False
        if isinstance(weight, Tensor) and not (
            weight.is_contiguous() and weight.dtype == dtype and weight.data_ptr() % 16 == 0
        ):
            return False
    passed = sum(product.width for product in products[:-1])
    if passed * tokens * 2 > _MAIL_ROOM or any(product.width % 8 for product in products[:-1]):
        return False
    return _ring(products, tokens) > 0


def _ring(products: Sequence[Product], tokens: int) -> int:
    columns = tuple(product.size[1] for product in products)
    return stages(columns, _longest_gain(products), products[0].group, tokens)


def _longest_gain(products: Sequence[Product]) -> int:
    return max([product.size[1] for product in products if product.norm is not None], default=0)


@cache
def _mail(index: int) -> tuple[Tensor, Tensor]:
    """Two empty mailboxes, and the state of each CTA: what the launches on one stream share. Made before any capture."""
    device = torch.device("cuda", index)
    mail = torch.full((2, _MAIL_ROOM // 4), -1, dtype=torch.int32, device=device)
    return mail, torch.zeros(_processors(index), 2, dtype=torch.int32, device=device)


@cache
def _kernel(group: int, dtype: torch.dtype, index: int) -> Kernel:
    kernel = load(chain_unit(group, dtype), torch.device("cuda", index)).kernel("chain")
    return kernel.max_shared(227 << 10)


@cache
def _processors(index: int) -> int:
    return torch.cuda.get_device_properties(index).multi_processor_count


def run(
    products: Sequence[Product], x: Tensor, residuals: Sequence[Tensor | int | None], out_float: bool = False
) -> list[Tensor]:
    """The products one after the other, each of what the one before it gave: x [n, K] -> one [n, rows] each.

    residuals: added to each product's result; a number stands for the result of that product. out_float: the
    last result in float32. The caller has asked `can`; rows of x are aligned to 16 bytes."""
    tokens, index, dtype = x.shape[0], x.device.index, x.dtype
    chain, outs, passed = _Chain(), list[Tensor](), 0
    boxes = (ctypes.c_uint64 * (16 * _MOST))()
    for at, (product, residual) in enumerate(zip(products, residuals, strict=True)):
        wide = out_float and at == len(products) - 1
        y = torch.empty(tokens, product.width, dtype=torch.float32 if wide else dtype, device=x.device)
        added = outs[residual] if isinstance(residual, int) else residual
        chain.phases[at] = _phase(product, x, added, y)
        chain.phases[at].mail_in = passed - x.nbytes if at else -1
        chain.phases[at].mail_out = passed if at < len(products) - 1 else -1
        chain.phases[at].mail_added = chain.phases[residual].mail_out if isinstance(residual, int) else -1
        passed += y.nbytes if at < len(products) - 1 else 0
        if isinstance(product.weight, Tensor):
            boxes[16 * at : 16 * at + 16] = list(column_blocks(product.weight, 8, 8))
        outs.append(y)
        x = y
    group, columns = products[0].group, tuple(product.size[1] for product in products)
    # stages under way: unpacking wants its x soonest, a single product waits for none
    window = 5 if len(products) == 1 else 3 if group else 4
    mail, state = _mail(index)
    chain.mail, chain.state = mail.data_ptr(), state.data_ptr()
    chain.mail_room, chain.mail_used, chain.window = _MAIL_ROOM, passed, window
    chain.count, chain.n, chain.gains = len(products), tokens, _longest_gain(products)
    chain.stages, chain.most_stages = _ring(products, tokens), -(-max(columns) // _step(group))
    shared = _fixed_bytes(columns, chain.gains, group, tokens) + chain.stages * _stage_bytes(group)
    kernel = _kernel(group, dtype, index)
    kernel(_processors(index), _THREADS, chain, boxes, shared=shared, pdl=True)
    return outs


def _phase(product: Product, x: Tensor, residual: Tensor | None, y: Tensor) -> _Phase:
    weight, norm = product.weight, product.norm
    return _Phase(
        weight.words.data_ptr() if isinstance(weight, PackedW4) else weight.data_ptr(),
        weight.pairs.data_ptr() if isinstance(weight, PackedW4) else None,
        x.data_ptr(),
        norm.gain.data_ptr() if norm else None,
        None if product.bias is None else product.bias.data_ptr(),
        None if residual is None else residual.data_ptr(),
        y.data_ptr(),
        norm.eps if norm else 0.0,
        norm.scale if norm else 1.0,
        *(
            *product.size,
            y.shape[1],
            x.stride(0),
            int(product.silu),
            int(y.dtype == torch.float32),
            -1,
            -1,
            -1,
        ),
    )
