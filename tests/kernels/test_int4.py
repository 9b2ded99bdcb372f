"""Round to nearest, and the linear layer that runs on its codes."""

from __future__ import annotations

import pytest
import torch

from lmtop.kernels import reference
from lmtop.quant.int4 import quantise_rtn


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize(("inputs", "group"), [(256, 128), (96, 32), (100, 64), (172, -1)])
def test_weights_come_back_within_half_a_step(inputs: int, group: int, symmetric: bool) -> None:
    weight = torch.randn(24, inputs) * torch.logspace(-2, 1, 24).unsqueeze(1)
    layer = quantise_rtn(weight, None, group, symmetric)
    assert int(layer.codes.max()) <= 15
    size = inputs if group == -1 else group
    step = layer.scales.float().repeat_interleave(size, 1)[:, :inputs]
    error = (reference.dequantise(layer, torch.float32) - weight).abs()
    # a whole step where the zero point had to be rounded as well
    assert bool((error <= step * (0.51 if symmetric else 1.02)).all())


def test_a_group_of_zeros_stays_zero() -> None:
    layer = quantise_rtn(torch.zeros(2, 128), None, 128)
    assert reference.dequantise(layer, torch.float32).abs().max() == 0


def test_linear_is_the_product_with_the_dequantised_weight() -> None:
    bias, residual = torch.randn(24), torch.randn(3, 24)
    layer = quantise_rtn(torch.randn(24, 100), bias, 32)
    x = torch.randn(3, 100)
    want = x @ reference.dequantise(layer, torch.float32).T + bias + residual
    assert torch.allclose(reference.linear(x, layer, residual), want, atol=1e-5)
