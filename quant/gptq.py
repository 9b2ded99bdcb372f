"""Rounding with error feedback: GPTQ (Frantar et al. 2022, https://arxiv.org/abs/2210.17323).

Inputs are rounded one after the other, and the error that each leaves in the layer's output is made good, as far as
it can be, by those not rounded yet. Scales and zero points are given and stay (its "static groups"), so the inputs
can be taken in the order of their weight in the output, whatever group they are in.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..kernels.ops import Int4

BLOCK = 128  # inputs whose errors are handed on together
DAMPING = 0.01  # of the mean diagonal; more where that is not enough


def round_with_feedback(weight: Tensor, layer: Int4, gram: Tensor) -> Int4:
    """`layer` with other codes: those of weight [out, in] float32, of whose inputs `gram` [in, in] is the sum of x x^T,
    on the scales and zero points that `layer` has. `layer` itself where the matrix cannot be inverted."""
    order = torch.argsort(gram.diagonal(), descending=True)
    factor = _inverse_factor(gram[order][:, order])
    if factor is None:
        return layer
    rest = weight.float()[:, order]
    scales, zeros = layer.scales.float(), layer.zeros.float()
    groups = (order // layer.group).tolist()
    codes = torch.empty_like(layer.codes)
    inputs = len(groups)
    at = order.tolist()
    for first in range(0, inputs, BLOCK):
        last = min(first + BLOCK, inputs)
        block, local = rest[:, first:last].clone(), factor[first:last, first:last]
        errors = torch.empty_like(block)
        for i in range(last - first):
            scale, zero = scales[:, groups[first + i]], zeros[:, groups[first + i]]
            column = block[:, i]
            code = (column / scale + zero).round_().clamp_(0, 15)
            codes[:, at[first + i]] = code.to(torch.uint8)
            errors[:, i] = (column - (code - zero) * scale) / local[i, i]
            block[:, i + 1 :].addr_(errors[:, i], local[i, i + 1 :], alpha=-1)
        rest[:, last:].addmm_(errors, factor[first:last, last:], alpha=-1)
    return Int4(codes, layer.scales, layer.zeros, layer.group, layer.bias)


def _inverse_factor(gram: Tensor) -> Tensor | None:
    """The upper Cholesky factor of the inverse of `gram`, damped as much as it takes; None when nothing helps."""
    mean = gram.diagonal().mean()
    if not bool(torch.isfinite(mean)) or float(mean) <= 0:
        return None
    for damping in (DAMPING, 10 * DAMPING, 100 * DAMPING):
        damped = gram + torch.eye(len(gram), device=gram.device) * (damping * mean)
        lower, failed = torch.linalg.cholesky_ex(damped)
        if int(failed):
            continue
        upper: Tensor
        upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
        if not int(failed) and bool(torch.isfinite(upper).all()):
            return upper
    return None
