"""The sample op alone: its random numbers exactly, its cuts against a plain float64 reading, its penalties."""

import math

import numpy as np
import pytest
import torch

from lmtop.kernels import sampling

CPU = torch.device("cpu")


def splitmix(z: int) -> int:
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % 2**64
    return z ^ (z >> 31)


def lowbias(x: int, key: int = 0) -> int:
    x = ((x ^ (x >> 16)) * 0x7FEB352D + key) % 2**32
    x = ((x ^ (x >> 15)) * 0x846CA68B) % 2**32
    return x ^ (x >> 16)


def expected_exponential(seed: int, position: int, token: int) -> float:
    """The documented formula, in Python's own integers."""
    stream = splitmix((seed + 0x9E3779B97F4A7C15) % 2**64)
    key = splitmix((stream + position * 0x9E3779B97F4A7C15) % 2**64)
    h = lowbias(lowbias(token) ^ key % 2**32, key >> 32) % 2**31
    return -math.log1p(-min((h + 0.5) / 2**31, 1 - 2.0**-24))


@pytest.mark.parametrize("seed", [0, 1, -1, 2**63 - 1, -(2**63), 0x1234_5678_9ABC])
def test_random_numbers_follow_the_documented_formula(seed: int) -> None:
    words = sampling.token_words(152_064, CPU)
    positions = [0, 1, 511, 131_071]
    keys = sampling.row_keys(torch.tensor([sampling.stream_of(seed)] * 4), torch.tensor(positions))
    numbers = sampling.exponentials(keys, words)
    for row, position in enumerate(positions):
        for token in (0, 1, 2, 777, 151_999, 152_063):
            assert numbers[row, token].item() == pytest.approx(
                expected_exponential(seed, position, token), rel=1e-6
            )


def test_exponentials_are_exponential_and_depend_on_every_part() -> None:
    words = sampling.token_words(1000, CPU)
    streams = torch.tensor([sampling.stream_of(seed) for seed in range(1000)])
    numbers = sampling.exponentials(sampling.row_keys(streams, torch.zeros(1000, dtype=torch.int64)), words)
    flat = numbers.double().flatten()
    assert flat.mean().item() == pytest.approx(1, abs=4e-3)
    assert flat.var().item() == pytest.approx(1, abs=1.2e-2)
    uniform = (-flat).exp()
    counts = torch.histc(uniform, 100, 0, 1)
    assert ((counts - 10_000) ** 2 / 10_000).sum().item() < 150  # chi-square with 99 degrees: p ~ 0.0007
    by_seed = (numbers - 1).double()
    assert abs((by_seed[1:] * by_seed[:-1]).mean().item()) < 4e-3  # neighbouring seeds
    assert abs((by_seed[:, 1:] * by_seed[:, :-1]).mean().item()) < 4e-3  # neighbouring tokens
    positions = torch.arange(1000)
    along = sampling.exponentials(sampling.row_keys(streams[:1].expand(1000).clone(), positions), words) - 1
    assert abs((along[1:] * along[:-1]).double().mean().item()) < 4e-3  # neighbouring positions


def column(values: list[float], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.tensor(values, dtype=dtype)[:, None]


def support(
    scores: torch.Tensor, top_k: int, top_p: float | None, log_min_p: float | None = None, draws: int = 3000
) -> set[int]:
    """What `draw_filtered` ever draws from one row of scores."""
    vocab = scores.shape[0]
    keys = sampling.row_keys(torch.zeros(draws, dtype=torch.int64), torch.arange(draws))
    drawn = sampling.draw_filtered(
        scores.expand(draws, vocab),
        keys,
        sampling.token_words(vocab, CPU),
        column([top_k] * draws, torch.int64),
        None if top_p is None else column([top_p] * draws, torch.float64),
        None if log_min_p is None else column([log_min_p] * draws),
    )
    return set(drawn.tolist())


@pytest.mark.parametrize("vocab", [16, 2000])
def test_ties_at_the_cut_keep_the_lowest_ids(vocab: int) -> None:
    scores = torch.full((vocab,), -30.0)
    scores[[14, 3, 11, 7, 5]] = torch.tensor([0.0, -0.1, -0.1, -0.1, -0.1])
    assert support(scores, 3, None) == {14, 3, 5}
    assert support(scores, vocab, 0.5) == {14, 3, 5}  # 0.216 + 2 * 0.196 passes 0.5
    assert support(scores, 2, 0.99) == {14, 3}


def test_a_tie_wider_than_the_candidates_is_still_cut_at_the_lowest_ids() -> None:
    assert support(torch.zeros(5000), 4, None, draws=300) == {0, 1, 2, 3}
    assert support(torch.zeros(5000), 5000, 0.00079, draws=300) == {0, 1, 2, 3}


@pytest.mark.parametrize("by", ["top_k", "top_p"])
@pytest.mark.parametrize("kept", [255, 256, 257, 4096, 4097, 33_000])
def test_sets_of_every_width_are_cut_at_the_exact_place(kept: int, by: str) -> None:
    """The luckiest token stands just outside the cut and the second just inside: one place off either way would
    be drawn. The widths lie around those at which the op looks for the cut."""
    vocab = 140_000
    words = sampling.token_words(vocab, CPU)
    keys = sampling.row_keys(torch.tensor([7]), torch.tensor([kept]))
    luck = sampling.exponentials(keys, words)[0].argsort()
    order = torch.randperm(vocab, generator=torch.Generator().manual_seed(kept))
    order = order[(order != luck[0]) & (order != luck[1])]
    order = torch.cat((order[: kept - 1], luck[[1, 0]], order[kept - 1 :]))
    ranked = -torch.arange(vocab, dtype=torch.float32) / 1e6
    scores = torch.empty(1, vocab)
    scores[0, order] = ranked
    mass = np.cumsum(np.exp(ranked.double().numpy()))
    top_p = None
    if by == "top_p":
        top_p = column([(mass[kept - 1] + mass[kept - 2]) / 2 / mass[-1]], torch.float64)
    top_k = column([kept if by == "top_k" else vocab], torch.int64)
    assert sampling.draw_filtered(scores, keys, words, top_k, top_p, None).item() == luck[1].item()


def test_penalties_match_their_formulas() -> None:
    logits = torch.tensor([[2.0, -2.0, 2.0, -2.0, 1.0]])
    seen = torch.tensor([[True, True, False, False, True]])
    counts = torch.tensor([[0.0, 2.0, 0.0, 0.0, 1.0]])
    out = sampling.penalise(logits, seen, counts, column([2.0]), column([0.5]), column([0.25]))
    assert out.tolist() == [[1.0, -4.0 - 0.5 - 0.5, 2.0, -2.0, 0.5 - 0.5 - 0.25]]


def test_logprobs_are_the_raw_log_softmax() -> None:
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(1)) * 5
    wide = logits.double()
    reference = wide - wide.exp().sum(-1, keepdim=True).log()
    chosen, values, ids = sampling.logprobs(logits, torch.tensor([4, 0, 49]), 20)
    assert chosen.tolist() == pytest.approx(reference[range(3), [4, 0, 49]].tolist(), abs=1e-5)
    for row in range(3):
        assert values[row].tolist() == sorted(values[row].tolist(), reverse=True)
        assert values[row].tolist() == pytest.approx(reference[row, ids[row]].tolist(), abs=1e-5)
        assert ids[row].tolist() == reference[row].argsort(descending=True)[:20].tolist()


@pytest.mark.parametrize("top_k", [300, 1000, 5000])
def test_top_p_after_a_wide_top_k_counts_the_whole_of_it(top_k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mass that top-p is a share of is that of all k, though the cut lies among the first candidates."""
    scores = torch.randn(64, 20_000, generator=torch.Generator().manual_seed(3)) * 0.3
    scores -= scores.amax(-1, keepdim=True)
    keys = sampling.row_keys(torch.arange(64), torch.arange(64))
    words = sampling.token_words(20_000, CPU)
    args = (
        scores,
        keys,
        words,
        torch.full((64, 1), top_k),
        torch.full((64, 1), 0.5, dtype=torch.float64),
        None,
    )
    drawn = sampling.draw_filtered(*args)
    monkeypatch.setattr(sampling, "_WIDTHS", ())  # sort the whole row at once
    assert torch.equal(drawn, sampling.draw_filtered(*args))
