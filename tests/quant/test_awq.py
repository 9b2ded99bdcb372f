"""AWQ's arithmetic: statistics, the search, the cut of ranges, the stored layout."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lmtop.kernels.reference import dequantise
from lmtop.quant.awq import Scheme, half_rule, quantise, rounded, search
from lmtop.quant.awq_layout import pack
from lmtop.quant.calibrate import InputStats
from lmtop.quant.int4 import quantise_rtn


def matrix(seed: int, outputs: int = 48, inputs: int = 128) -> tuple[Tensor, Tensor]:
    """A weight, and inputs [tokens, in] that depend on each other and of which a few channels are large."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(outputs, inputs, generator=generator) * 0.05
    mix = torch.randn(inputs, inputs, generator=generator) / inputs**0.5
    x = torch.randn(300, inputs, generator=generator) @ mix
    x[:, torch.randperm(inputs, generator=generator)[:6]] *= 12
    return weight, x


def counted(x: Tensor, gram: bool = True) -> InputStats:
    stats = InputStats.empty(x.shape[1], x.device, gram)
    for part in x.split(77):
        stats.add(part)
    return stats


def output_error(weight: Tensor, other: Tensor, x: Tensor) -> float:
    return float((x.double() @ (other - weight).double().T).square().sum())


def test_statistics_are_those_of_all_tokens_together() -> None:
    _, x = matrix(0)
    stats = counted(x)
    assert stats.count == 300 and stats.usable
    torch.testing.assert_close(stats.absmax, x.abs().amax(0))
    torch.testing.assert_close(stats.absmean, x.abs().mean(0))
    assert stats.gram is not None
    torch.testing.assert_close(stats.gram, x.T @ x, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("gram", [True, False])
@pytest.mark.parametrize("spoil", [float("nan"), float("inf")])
def test_one_number_that_is_none_makes_statistics_unusable(gram: bool, spoil: float) -> None:
    _, x = matrix(0)
    x[200, 5] = spoil
    assert not counted(x, gram).usable
    assert not InputStats.empty(4, torch.device("cpu"), gram).usable  # nothing was counted


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("group", [32, 64, 128, -1])
def test_the_search_is_never_worse_than_both_rules_and_tells_its_real_error(
    group: int, symmetric: bool
) -> None:
    scheme, better = Scheme(group, symmetric), 0
    for seed in range(10):
        weight, x = matrix(seed)
        found = search(weight, counted(x), scheme)
        whole = float((x.double() @ weight.double().T).square().sum())

        def error(
            scales: Tensor,
            weight: Tensor = weight,
            x: Tensor = x,
            scheme: Scheme = scheme,
            whole: float = whole,
        ) -> float:
            return output_error(weight, rounded(weight * scales, scheme) / scales, x) / whole

        assert found.error == pytest.approx(error(found.scales), rel=1e-3)
        assert found.error_half == pytest.approx(
            error(half_rule(weight, counted(x).absmax, scheme)), rel=1e-3
        )
        assert found.error_plain == pytest.approx(error(torch.ones(128)), rel=1e-3)
        assert found.error <= min(found.error_half, found.error_plain)
        better += found.error < found.error_half
    assert better >= 9


def test_inputs_that_share_a_scale_get_the_same() -> None:
    weight, x = matrix(3)

    def pool(values: Tensor) -> Tensor:
        return values.view(2, 2, 32).mean(1, keepdim=True).expand(-1, 2, -1).reshape(-1)

    scheme = Scheme(64)
    for scales in (
        search(weight, counted(x), scheme, pool).scales,
        half_rule(weight, x.abs().amax(0), scheme, pool),
    ):
        heads = scales.view(2, 2, 32)
        assert torch.equal(heads[:, 0], heads[:, 1]) and not torch.equal(heads[0], heads[1])


def test_channels_without_input_keep_their_scale_and_all_scales_are_usable() -> None:
    weight, x = matrix(4)
    x[:, 7] = 0
    weight[:, 9] = 0
    found = search(weight, counted(x), Scheme(32))
    for scales in (found.scales, half_rule(weight, x.abs().amax(0), Scheme(32))):
        assert scales[7] == 1 and bool(torch.isfinite(scales).all()) and bool((scales > 0).all())


@pytest.mark.parametrize("symmetric", [False, True])
def test_cutting_ranges_lowers_the_error_of_the_output(symmetric: bool) -> None:
    scheme = Scheme(32, symmetric)
    for seed in range(5):
        weight, x = matrix(seed)
        weight[torch.rand(weight.shape, generator=torch.Generator().manual_seed(seed)) < 0.02] *= 4
        stats = counted(x)
        plain = output_error(weight, rounded(weight, scheme), x)
        cut = quantise(weight, None, scheme, stats.gram)
        assert output_error(weight, dequantise(cut, torch.float32), x) < plain
        # with inputs that do not depend on each other, each group's choice is the best for the whole
        diagonal = torch.diag(stats.gram.diagonal()) if stats.gram is not None else None
        alone = dequantise(quantise(weight, None, scheme, diagonal), torch.float32) - weight
        before = rounded(weight, scheme) - weight
        groups = (it.square() * stats.gram.diagonal() for it in (alone, before) if stats.gram is not None)
        now, then = (it.view(48, -1, 32).sum(-1) for it in groups)
        assert bool((now <= then * 1.0001).all())


def test_without_a_gram_matrix_it_is_round_to_nearest() -> None:
    weight, _ = matrix(5)
    bias = torch.randn(48)
    got, want = quantise(weight, bias, Scheme(64)), quantise_rtn(weight, bias, 64)
    assert torch.equal(got.codes, want.codes) and torch.equal(got.scales, want.scales) and got.bias is bias


@pytest.mark.parametrize(("group", "outputs"), [(32, 8), (64, 40), (128, 16), (-1, 24)])
def test_the_stored_words_hold_each_code_where_autoawq_puts_it(group: int, outputs: int) -> None:
    layer = quantise_rtn(torch.randn(outputs, 128), None, group)
    stored = pack(layer)
    groups = layer.scales.shape[1]
    assert stored["qweight"].dtype == stored["qzeros"].dtype == torch.int32
    assert stored["qweight"].shape == (128, outputs // 8) and stored["qzeros"].shape == (groups, outputs // 8)
    assert stored["scales"].dtype == torch.float16 and torch.equal(stored["scales"], layer.scales.T)
    # AutoAWQ, awq/modules/linear/gemm.py: order_map = [0, 2, 4, 6, 1, 3, 5, 7], shifted by 4 bits each
    for word in range(outputs // 8):
        for place, output in enumerate([0, 2, 4, 6, 1, 3, 5, 7]):
            codes = stored["qweight"][:, word] >> 4 * place & 15
            assert torch.equal(codes, layer.codes[word * 8 + output].int())
            zeros = stored["qzeros"][:, word] >> 4 * place & 15
            assert torch.equal(zeros, layer.zeros[word * 8 + output].int())
