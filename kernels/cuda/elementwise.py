"""Row-wise kernels around the matrix products: gather, RMS norm, SiLU-mul, rotary tables.

All launch on torch's current stream, never synchronise, and may be captured once their unit is loaded (`units`).
Activations are contiguous, of one dtype, float16 or bfloat16.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..launch import Kernel, load
from ..nvrtc import Unit, unit

LONGEST_ROW = 16384  # numbers of an rms_norm row that fit the registers of one CTA
_THREADS = 256


@dataclass(frozen=True, slots=True)
class RotaryTable:
    """Frequencies of a rotary embedding, on the device.

    frequencies [rope_dim / 2] float32: radians per position. A row's length is max(its prompt, position + 1); beyond
    `original` positions `long` [rope_dim / 2], if given, replaces them (longrope), or with `stretch` > 0 their base
    grows by (stretch * length / original - stretch + 1) ^ (dim / (dim - 2)) (dynamic NTK; in the form of
    transformers/modeling_rope_utils.py). attention_factor multiplies cos and sin.
    """

    frequencies: Tensor
    long: Tensor | None = None
    original: int = 0
    stretch: float = 0.0
    attention_factor: float = 1.0

    @property
    def by_length(self) -> bool:
        return self.long is not None or self.stretch > 0


def units(dtype: torch.dtype) -> tuple[Unit, ...]:
    """What a model of this dtype needs."""
    return (_rows(dtype), unit("rotary.cu"))


def _rows(dtype: torch.dtype) -> Unit:
    return unit("elementwise.cu", DTYPE_BF16=dtype == torch.bfloat16)


def _kernel(like: Tensor, name: str) -> Kernel:
    return load(_rows(like.dtype), like.device).kernel(name)


def embed(table: Tensor, tokens: Tensor) -> Tensor:
    """Rows of table [V, hidden] at tokens [n] int32 or int64 -> [n, hidden]. Indices are not checked."""
    rows, width = tokens.shape[0], table.shape[1]
    out = torch.empty((rows, width), dtype=table.dtype, device=table.device)
    index = "i64" if tokens.dtype == torch.int64 else "i32"
    if rows == 0:
        return out
    if width % 8 == 0:
        kernel, count = _kernel(table, f"gather_{index}"), width // 8
    else:
        kernel, count = _kernel(table, f"gather_odd_{index}"), width
    kernel(rows, min(512, -(-count // 32) * 32), table, tokens, out, count, pdl=True)
    return out


def rms_norm(x: Tensor, gain: Tensor, eps: float) -> Tensor:
    """x [n, hidden] / sqrt(mean(x^2) + eps) * gain, gain [hidden] float32, sum in float32 -> [n, hidden]."""
    rows, width = x.shape
    out = torch.empty_like(x)
    if rows == 0:
        return out
    if width % 8 == 0 and width <= LONGEST_ROW:
        vectors = 2 if width <= LONGEST_ROW // 2 else 4  # 16-byte vectors of a row in one thread's registers
        threads = -(-width // (8 * vectors * 32)) * 32
        _kernel(x, f"rms_norm_{vectors}")(rows, threads, x, gain, out, width // 8, eps, pdl=True)
    else:
        _kernel(x, "rms_norm_odd")(rows, 512, x, gain, out, width, eps, pdl=True)
    return out


def silu_mul(gate_up: Tensor) -> Tensor:
    """[n, 2 * width] as gate | up -> silu(gate) * up, [n, width]."""
    rows, width = gate_up.shape[0], gate_up.shape[1] // 2
    out = torch.empty((rows, width), dtype=gate_up.dtype, device=gate_up.device)
    if rows == 0:
        return out
    name, count = ("silu_mul", width // 8) if width % 8 == 0 else ("silu_mul_odd", width)
    grid = (-(-count // _THREADS), rows, 1)
    _kernel(gate_up, name)(grid, _THREADS, gate_up, out, count, pdl=True)
    return out


def rotary(positions: Tensor, lengths: Tensor | None, table: RotaryTable) -> tuple[Tensor, Tensor]:
    """cos and sin, each float32 [n, rope_dim / 2], of positions [n] int32 times the table's frequencies. lengths [n]
    int32: the prompt length of each row's sequence; may be None unless `table.by_length`."""
    rows, pairs = positions.shape[0], table.frequencies.shape[0]
    if lengths is None and table.by_length:
        raise ValueError("rotary: this table's frequencies depend on the lengths, which were not given")
    cos, sin = torch.empty((2, rows, pairs), dtype=torch.float32, device=positions.device)
    if rows == 0:
        return cos, sin
    load(unit("rotary.cu"), positions.device).kernel("rotary")(
        -(-rows * pairs // 128),
        128,
        positions,
        lengths,
        table.frequencies,
        table.long,
        cos,
        sin,
        rows,
        pairs,
        table.original,
        table.stretch,
        table.attention_factor,
        pdl=True,
    )
    return cos, sin
