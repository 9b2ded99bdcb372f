"""Rounding with error feedback."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lmtop.kernels.ops import Int4
from lmtop.kernels.reference import dequantise
from lmtop.quant.gptq import round_with_feedback
from lmtop.quant.int4 import quantise_rtn


def problem(seed: int, inputs: int = 320) -> tuple[Tensor, Tensor]:
    """A weight, and the Gram matrix of inputs that depend on each other."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2000, 40, generator=generator) @ torch.randn(40, inputs, generator=generator)
    x += 0.5 * torch.randn(2000, inputs, generator=generator)
    return torch.randn(24, inputs, generator=generator), x.T @ x


def error(weight: Tensor, layer: Int4, gram: Tensor) -> float:
    delta = (dequantise(layer, torch.float32) - weight).double()
    return float((delta @ gram.double() * delta).sum())


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("group", [32, 64, -1])
def test_the_error_of_the_output_falls_far_below_that_of_nearest(group: int, symmetric: bool) -> None:
    for seed in range(3):
        weight, gram = problem(seed)
        nearest = quantise_rtn(weight, None, group, symmetric)
        layer = round_with_feedback(weight, nearest, gram)
        assert error(weight, layer, gram) < 0.35 * error(weight, nearest, gram)
        assert layer.scales is nearest.scales and layer.zeros is nearest.zeros
        assert layer.codes.dtype == torch.uint8 and int(layer.codes.max()) <= 15


def test_inputs_that_do_not_depend_on_each_other_are_rounded_to_nearest() -> None:
    weight, _ = problem(0)
    nearest = quantise_rtn(weight, None, 64)
    layer = round_with_feedback(weight, nearest, torch.diag(torch.rand(320) + 0.5))
    assert float((layer.codes != nearest.codes).float().mean()) < 1e-3  # ties of the last bit


def test_a_gram_matrix_that_says_nothing_leaves_the_codes() -> None:
    weight, _ = problem(0)
    nearest = quantise_rtn(weight, None, 64)
    for gram in (torch.zeros(320, 320), torch.full((320, 320), float("nan"))):
        assert round_with_feedback(weight, nearest, gram) is nearest


def test_fewer_texts_than_inputs_still_work() -> None:
    weight, _ = problem(0)
    x = torch.randn(30, 320)
    nearest = quantise_rtn(weight, None, 64)
    layer = round_with_feedback(weight, nearest, x.T @ x)
    assert error(weight, layer, x.T @ x) < 0.2 * error(weight, nearest, x.T @ x)
