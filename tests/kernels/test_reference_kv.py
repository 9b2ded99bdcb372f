"""The quantised cache: what it stores, and that attention sees exactly that."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lmtop.kernels import ops, reference
from lmtop.kernels.reference_kv import QuantisedKV, dequantise, quantise
from lmtop.quant.kv import kv_bytes_per_token

H, K, D, SIZE = 6, 2, 16, 4
BITS = {"int8": 8, "int4": 4}


def still(positions: Tensor, lengths: Tensor | int) -> tuple[Tensor, Tensor]:
    return torch.ones(1, 1, D), torch.zeros(1, 1, D)


@pytest.mark.parametrize("bits", [8, 4])
def test_a_number_comes_back_within_half_a_step(bits: int) -> None:
    x = torch.randn(50, 2 * K, D) * torch.logspace(-3, 3, 50).view(-1, 1, 1)
    codes, params = quantise(x, bits)
    assert codes.shape == (50, 2 * K, D * bits // 8)
    step = params[..., :1].float()
    # the rounding of scale and minimum to float16 shifts the grid a little
    slack = step / 2 + (2**bits * step + params[..., 1:].float().abs()) * 2**-11
    assert bool(((dequantise(codes, params, bits) - x).abs() <= slack).all())


@pytest.mark.parametrize("bits", [8, 4])
def test_equal_numbers_have_no_scale(bits: int) -> None:
    codes, params = quantise(torch.full((1, 1, D), 2.5), bits)
    assert params.flatten().tolist() == [0.0, 2.5]
    assert codes.max() == 0
    assert dequantise(codes, params, bits).unique().tolist() == [2.5]


def test_even_numbers_lie_in_low_nibbles() -> None:
    codes, _ = quantise(torch.arange(16.0).view(1, 1, 16), 4)
    assert codes.flatten().tolist() == [i | (i + 1) << 4 for i in range(0, 16, 2)]


@pytest.mark.parametrize("kv", ["int8", "int4"])
def test_attention_sees_what_is_stored(kv: str) -> None:
    like = torch.zeros(0)
    cache = reference.new_cache(6, SIZE, K, D, like, kv)
    assert isinstance(cache, QuantisedKV)
    assert cache.nbytes == 6 * SIZE * kv_bytes_per_token(1, K, D, kv)
    params, table = ops.AttentionParams(D**-0.5), torch.tensor([3, 1, 5])
    qkv = torch.randn(9, (H + 2 * K) * D)
    chunk = reference.plan_prefill(still, [ops.Chunk(0, 9, 9, table)], cache, (None,))
    got = reference.attend(qkv.clone(), H, chunk, cache, params, None, 1e-6)
    stored = dequantise(*quantise(qkv.view(9, -1, D)[:, H:], BITS[kv]), BITS[kv])
    plain = reference.new_cache(6, SIZE, K, D, like)
    swapped = torch.cat((qkv.view(9, -1, D)[:, :H], stored), 1).view(9, -1)
    want = reference.attend(swapped, H, chunk, plain, params, None, 1e-6)
    assert torch.allclose(got, want, atol=1e-6)
    step = reference.plan_decode(still, torch.tensor([9]), 0, table[None], None, cache, (None,))
    last = torch.randn(1, (H + 2 * K) * D)
    got = reference.attend(last.clone(), H, step, cache, params, None, 1e-6)
    stored = dequantise(*quantise(last.view(1, -1, D)[:, H:], BITS[kv]), BITS[kv])
    want = reference.attend(
        torch.cat((last.view(1, -1, D)[:, :H], stored), 1).view(1, -1), H, step, plain, params, None, 1e-6
    )
    assert torch.allclose(got, want, atol=1e-6)
