"""Activation-aware weight quantisation (Lin et al. 2023, https://arxiv.org/abs/2306.00978).

Inputs that carry large activations are multiplied by s before rounding, and whatever produces them is divided by s,
so that the model stays the same and the weights that matter are rounded more finely. s comes from a rule, or from a
search over rules for the least error of the layer's output; then each group's range is cut where that helps. Both
errors are taken from the Gram matrix of the inputs (`quant.calibrate`), that is over every calibration token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..kernels.ops import Int4
from ..kernels.reference import dequantise
from .calibrate import InputStats
from .int4 import encode, grid, quantise_rtn

ALPHAS = tuple(k / 20 for k in range(20))  # the grid of the paper's code and of LMDeploy's --search-scale
SHRINKS = tuple(1 - k / 20 for k in range(1, 11))  # of a group's range; the paper's code tries these
SMALLEST = 1e-4
# Rows of a matrix that rank the rules. On the built-in model the choice of 256 makes at most 0.8 % more error than that of
# all rows, of 64 up to 5 %; a CPU takes a minute for 1,024 rows of 8,192 inputs.
SEARCH_ROWS = {"cuda": 1024, "cpu": 256}
ROWS = 2048  # rows whose range is searched at a time: bounds the float32 workspace


@dataclass(frozen=True, slots=True)
class Scheme:
    """How a matrix is rounded: `group` inputs share a scale (-1: a whole row)."""

    group: int
    symmetric: bool = False

    def size(self, inputs: int) -> int:
        return inputs if self.group == -1 else self.group


@dataclass(frozen=True, slots=True)
class Smoothing:
    """The scales [in] float32 that a search chose, and the relative output error (sum of squares over that of the
    output) with them, with LMDeploy's rule and with none."""

    scales: Tensor
    error: float
    error_half: float
    error_plain: float


Pool = Callable[[Tensor], Tensor]


def unpooled(values: Tensor) -> Tensor:
    return values


def half_rule(weight: Tensor, absmax: Tensor, scheme: Scheme, pool: Pool = unpooled) -> Tensor:
    """LMDeploy's scales without a search, alpha = 0.5: (absmax(x) / mean |w|)^0.5, normalised. weight [out, in],
    absmax [in] -> [in] float32. `pool` makes inputs that must share a scale equal."""
    x, w = pool(absmax), pool(_column_size(weight, scheme))
    return _normalised(x.clamp_min(SMALLEST).sqrt() / w.clamp_min(SMALLEST).sqrt(), x)


def search(weight: Tensor, stats: InputStats, scheme: Scheme, pool: Pool = unpooled) -> Smoothing:
    """The scales of least output error among: the paper's grid, LMDeploy's rule, none. Needs `stats.gram`."""
    assert stats.gram is not None
    rows = _spread(weight, SEARCH_ROWS[weight.device.type]).float()
    size = _column_size(weight, scheme)
    whole = float(_quadratic(rows, stats.gram)) or 1.0
    plain = torch.ones_like(size)
    half = half_rule(weight, stats.absmax, scheme, pool)
    error_plain, error_half = (
        _scaled_error(rows, scales, stats.gram, scheme) / whole for scales in (plain, half)
    )
    best, least = (half, error_half) if error_half < error_plain else (plain, error_plain)
    for scales in _grid(pool(stats.absmean), pool(size)):
        error = _scaled_error(rows, scales, stats.gram, scheme) / whole
        if error < least:
            best, least = scales, error
    return Smoothing(best, least, error_half, error_plain)


def quantise(weight: Tensor, bias: Tensor | None, scheme: Scheme, gram: Tensor | None = None) -> Int4:
    """Round weight [out, in]; with the Gram matrix of its inputs each group's range is first cut where that lowers
    the error of the output."""
    if gram is None:
        return quantise_rtn(weight, bias, scheme.group, scheme.symmetric)
    size = scheme.size(weight.shape[1])
    blocks = _diagonal_blocks(gram, size)
    parts = [_cut(rows.float(), blocks, scheme) for rows in torch.split(weight, ROWS)]
    codes, scales, zeros = (torch.cat(column) for column in zip(*parts, strict=True))
    return Int4(codes, scales, zeros, size, bias)


def rounded(weight: Tensor, scheme: Scheme) -> Tensor:
    """What weight [out, in] is after rounding, float32."""
    return dequantise(quantise_rtn(weight, None, scheme.group, scheme.symmetric), torch.float32)


def _grid(x: Tensor, w: Tensor) -> Iterator[Tensor]:
    for alpha in ALPHAS:
        yield _normalised(x.pow(alpha) / (w.pow(1 - alpha) + SMALLEST), x)


def _normalised(scales: Tensor, x: Tensor) -> Tensor:
    """Scales around 1; inputs that are never there, or scales that no number can hold, stay as they are."""
    scales = scales.clamp_min(SMALLEST)
    scales = scales / (scales.max() * scales.min()).sqrt()
    return torch.where(torch.isfinite(scales) & (scales > 0) & (x > 0), scales, 1.0)


def _column_size(weight: Tensor, scheme: Scheme) -> Tensor:
    """Mean over outputs of |w| relative to the largest of its group, [in] float32."""
    outputs, inputs = weight.shape
    total = torch.zeros(inputs, dtype=torch.float32, device=weight.device)
    for rows in torch.split(weight, ROWS):
        groups = rows.float().abs().view(len(rows), -1, scheme.size(inputs))
        total += (groups / groups.amax(-1, keepdim=True).clamp_min(1e-12)).view(len(rows), inputs).sum(0)
    return total / outputs


def _scaled_error(rows: Tensor, scales: Tensor, gram: Tensor, scheme: Scheme) -> float:
    error = rounded(rows * scales, scheme).div_(scales).sub_(rows)
    return float(_quadratic(error, gram))


def _quadratic(rows: Tensor, gram: Tensor) -> Tensor:
    """trace(R G R^T) of R [n, in]."""
    return torch.mm(rows, gram).mul_(rows).sum()


def _spread(weight: Tensor, count: int) -> Tensor:
    """At most `count` rows, evenly spread."""
    if len(weight) <= count:
        return weight
    return weight[torch.linspace(0, len(weight) - 1, count, device=weight.device).long()]


def _diagonal_blocks(gram: Tensor, size: int) -> Tensor:
    """[groups, size, size]: the Gram matrix of each group's inputs."""
    groups = gram.shape[0] // size
    at = torch.arange(groups, device=gram.device)
    return gram.view(groups, size, groups, size)[at, :, at, :]


def _cut(rows: Tensor, blocks: Tensor, scheme: Scheme) -> tuple[Tensor, Tensor, Tensor]:
    """Codes [n, in], scales and zero points [n, groups] of rows [n, in], the range of each group being cut to the share
    of its largest magnitude that makes the least error."""
    groups = rows.view(len(rows), *blocks.shape[:2]).transpose(0, 1).contiguous()  # [groups, n, size]

    def error(scale: Tensor, zero: Tensor) -> Tensor:
        delta = encode(groups, scale, zero).sub_(zero.unsqueeze(-1))
        delta.mul_(scale.float().unsqueeze(-1)).sub_(groups)
        return torch.bmm(delta, blocks).mul_(delta).sum(-1)

    low, high = groups.amin(-1), groups.amax(-1)
    limit = torch.maximum(-low, high)
    scale, zero = grid(low, high, scheme.symmetric)
    least = error(scale, zero)
    for share in SHRINKS:
        bound = limit * share
        narrow, shifted = grid(low.maximum(-bound), high.minimum(bound), scheme.symmetric)
        now = error(narrow, shifted)
        better = now < least
        least = torch.where(better, now, least)
        scale, zero = torch.where(better, narrow, scale), torch.where(better, shifted, zero)
    codes = encode(groups, scale, zero).to(torch.uint8).transpose(0, 1).reshape(rows.shape)
    return codes, scale.t().contiguous(), zero.t().contiguous()
