"""Random matrices for the GPU's product tests, and what a product of them is, in float64."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lmtop.kernels.cuda.w4 import PackedW4, pack_w4

EPS = 1e-5


def matrix(
    rows: int,
    columns: int,
    group: int,
    dtype: torch.dtype,
    gate_up: bool = False,
    scale: tuple[float, float] = (0.002, 0.01),
) -> tuple[Tensor | PackedW4, Tensor]:
    """A random matrix on the GPU (group 0: dense), and its meaning in float64. `scale`: the least of a group of codes,
    and how much more there may be."""
    if not group:
        weight = (torch.randn(rows, columns, device="cuda") / columns**0.5).to(dtype)
        return weight, weight.double()
    codes = torch.randint(0, 16, (rows, columns), dtype=torch.uint8, device="cuda")
    scales = (torch.rand(rows, columns // group, device="cuda") * scale[1] + scale[0]).half()
    zeros = torch.randint(0, 17, scales.shape, dtype=torch.uint8, device="cuda")
    wide = [x.double().repeat_interleave(group, 1) for x in (scales, zeros)]
    return pack_w4(codes, scales, zeros, gate_up=gate_up), (codes - wide[1]) * wide[0]


def expected(
    x: Tensor, meaning: Tensor, gain: Tensor | None, bias: Tensor | None, residual: Tensor | None, silu: bool
) -> Tensor:
    """Norm with `gain`, product, bias, silu(gate) * up, residual."""
    wide = x.double()
    if gain is not None:
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + EPS) * gain.double()
    y = wide @ meaning.t()
    if bias is not None:
        y += bias.double()
    if silu:
        gate, up = y.chunk(2, -1)
        y = F.silu(gate) * up
    return y if residual is None else y + residual.double()


def poison() -> None:
    """Fill the memory that the next allocations will get with NaN."""
    blocks = [torch.full((size,), float("nan"), device="cuda") for size in (64, 4096, 65536, 1 << 19)]
    del blocks
