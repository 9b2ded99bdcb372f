"""The sampler against a float64 reading of its documented order (checks 7, 21, 22; E2)."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lmtop.engine.sampler import Sampled, Sampler
from lmtop.engine.types import GREEDY, RowStart, SamplingParams

CPU = torch.device("cpu")
EOS = 1
DRAWS = 100_000


def neutral(**changes: object) -> SamplingParams:
    return dataclasses.replace(SamplingParams(temperature=1.0, top_p=1.0), **changes)


def start(
    row: int, sampling: SamplingParams, seed: int = 0, history: tuple[int, ...] = (0,), n_prompt: int = 1
) -> RowStart:
    return RowStart(
        row=row, seq=row, sampling=sampling, seed=seed, history=history, n_prompt=n_prompt, rope_len=n_prompt
    )


def sampler_of(vocab: int, *starts: RowStart) -> Sampler:
    sampler = Sampler(max((s.row for s in starts), default=0) + 1, vocab, CPU, (EOS,))
    for item in starts:
        sampler.start(item)
    return sampler


def draw_many(logits: np.ndarray, item: RowStart, draws: int = DRAWS) -> np.ndarray:
    """Counts [vocab] of tokens drawn at `draws` different positions of one row."""
    vocab, first = len(logits), len(item.history)
    sampler = sampler_of(vocab, item)
    table = torch.from_numpy(logits.astype(np.float32)).repeat(draws, 1)
    positions = torch.arange(first, first + draws)
    tokens = sampler.sample(table, (item.row,) * draws, positions).tokens
    return np.bincount(tokens.numpy(), minlength=vocab)


def probabilities(logits: np.ndarray, item: RowStart, position: int) -> tuple[np.ndarray, float]:
    """Probability of each token, written from the semantics in float64, and how close the nearest decision
    (a cut, a tie) was: a float32 sampler may decide otherwise within rounding."""
    p = item.sampling
    x = logits.astype(np.float32).astype(np.float64)
    for token, bias in p.logit_bias:
        x[token] += bias
    if position - item.n_prompt < p.min_new_tokens:
        for token in {EOS, *p.stop_token_ids} if not p.ignore_eos else set(p.stop_token_ids):
            x[token] = -np.inf
    for token in set(item.history):
        x[token] = x[token] / p.repetition_penalty if x[token] > 0 else x[token] * p.repetition_penalty
    for token in set(item.history[item.n_prompt :]):
        x[token] -= p.presence_penalty + p.frequency_penalty * item.history[item.n_prompt :].count(token)
    if p.temperature == 0:
        ordered = np.sort(x)
        return np.eye(len(x))[int(np.argmax(x))], ordered[-1] - ordered[-2]
    x = (x - x.max()) / p.temperature
    ranked = sorted(range(len(x)), key=lambda token: (-x[token], token))
    margin = 1.0
    if 0 < p.top_k < len(x):
        margin = min(margin, x[ranked[p.top_k - 1]] - x[ranked[p.top_k]])
        ranked = ranked[: p.top_k]
    if p.top_p < 1:
        share = np.exp(x[ranked]) / np.exp(x[ranked]).sum()
        reached = np.cumsum(share)
        margin = min(margin, np.abs(reached - p.top_p).min())
        ranked = ranked[: int((reached < p.top_p).sum()) + 1]
    if p.min_p > 0:
        margin = min(margin, np.abs(x[ranked] - math.log(p.min_p)).min())
        ranked = [token for token in ranked if x[token] >= math.log(p.min_p)]
    result = np.zeros(len(x))
    result[ranked] = np.exp(x[ranked]) / np.exp(x[ranked]).sum()
    return result, margin


def chi_square_p(counts: np.ndarray, expected: np.ndarray) -> float:
    """p-value; bins below 8 expected draws are joined."""
    order = np.argsort(expected)
    rare = order[np.cumsum(expected[order]) < 8]
    keep = np.setdiff1d(np.flatnonzero(expected), rare)
    observed, wanted = list(counts[keep]), list(expected[keep])
    if len(rare) and expected[rare].sum() > 0:
        observed[0] += counts[rare].sum()
        wanted[0] += expected[rare].sum()
    if len(observed) < 2:
        return 1.0
    statistic = sum((o - w) ** 2 / w for o, w in zip(observed, wanted, strict=True))
    half = torch.tensor((len(observed) - 1) / 2, dtype=torch.float64)
    return torch.special.gammaincc(half, torch.tensor(statistic / 2, dtype=torch.float64)).item()


def assert_distributed(logits: np.ndarray, item: RowStart, draws: int = DRAWS) -> None:
    expected, _ = probabilities(logits, item, len(item.history))
    counts = draw_many(logits, item, draws)
    assert set(np.flatnonzero(counts)) <= set(np.flatnonzero(expected))
    assert set(np.flatnonzero(expected * draws > 30)) <= set(np.flatnonzero(counts))
    assert chi_square_p(counts, expected * draws) > 0.001


def some_logits(vocab: int, seed: int, scale: float = 2.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, scale, vocab)


HISTORY = (3, 4, 4, 5, 5, 6, 6, 6)  # prompt 3 4 4 5, output 5 6 6 6

CASES = {
    "temperature": neutral(temperature=0.6),
    "hot": neutral(temperature=1.9),
    "top_k": neutral(top_k=7),
    "top_p": neutral(top_p=0.8),
    "min_p": neutral(min_p=0.05),
    "repetition": neutral(repetition_penalty=1.4),
    "presence": neutral(presence_penalty=1.2),
    "frequency": neutral(frequency_penalty=-0.4),
    "bias": neutral(logit_bias=((2, 3.0), (9, -100.0), (2, -1.0))),
    "min_new": neutral(min_new_tokens=10**6, stop_token_ids=(8,)),
    "combined": SamplingParams(
        temperature=0.8, top_k=20, top_p=0.93, min_p=0.01, repetition_penalty=1.2, presence_penalty=0.3,
        frequency_penalty=0.2, logit_bias=((2, 3.0), (11, 1.5)), min_new_tokens=10**6,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_check_21_each_parameter_distributes_as_float64(name: str) -> None:
    item = start(0, CASES[name], seed=11, history=HISTORY, n_prompt=4)
    assert_distributed(some_logits(32, 5), item)


def test_check_21_a_million_draws() -> None:
    item = start(0, SamplingParams(temperature=0.9, top_k=24, top_p=0.95, min_p=0.005), seed=2)
    assert_distributed(some_logits(40, 6), item, 1_000_000)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    params=st.builds(
        SamplingParams,
        temperature=st.sampled_from([0.0, 0.3, 0.7, 1.0, 1.6]),
        top_k=st.integers(0, 30),
        top_p=st.sampled_from([0.2, 0.5, 0.9, 0.99, 1.0]),
        min_p=st.sampled_from([0.0, 0.0, 0.02, 0.3]),
        repetition_penalty=st.sampled_from([1.0, 0.7, 1.3]),
        presence_penalty=st.sampled_from([0.0, -0.5, 1.0]),
        frequency_penalty=st.sampled_from([0.0, 0.3]),
        logit_bias=st.lists(st.tuples(st.integers(0, 23), st.floats(-5, 5)), max_size=3).map(tuple),
        min_new_tokens=st.sampled_from([0, 10**6]),
        ignore_eos=st.booleans(),
    ),
    seed=st.integers(-(2**63), 2**63 - 1),
    history=st.lists(st.integers(0, 23), min_size=2, max_size=12).map(tuple),
)
def test_check_21_any_combination(params: SamplingParams, seed: int, history: tuple[int, ...]) -> None:
    logits, item = some_logits(24, seed % 1000), start(0, params, seed, history, n_prompt=2)
    assume(probabilities(logits, item, len(history))[1] > 1e-5)
    assert_distributed(logits, item, 30_000)


def test_a_large_vocabulary_takes_the_same_decisions() -> None:
    """Above the widths that are sorted whole: nucleus and top-k support as float64 has it."""
    logits = some_logits(6000, 3, scale=1.0)
    logits[:5] += 9
    for params in (neutral(top_p=0.6), neutral(top_k=300, top_p=0.9), neutral(top_p=0.97), neutral(top_k=5)):
        assert_distributed(logits, start(0, params, seed=4), 1500)


def test_draws_of_positions_and_seeds_are_independent() -> None:
    vocab, draws = 8, 400_000
    flat = torch.zeros(draws, vocab)
    by_position = sampler_of(vocab, start(0, neutral(), seed=9)).sample(
        flat, (0,) * draws, torch.arange(draws)
    )
    few = 1000
    starts = [start(row, neutral(), seed=row) for row in range(few)]
    by_seed = sampler_of(vocab, *starts).sample(
        torch.zeros(few, vocab), tuple(range(few)), torch.ones(few).long()
    )
    for tokens, lags in ((by_position.tokens.numpy(), (1, 2, 64)), (by_seed.tokens.numpy(), (1,))):
        for lag in lags:
            pairs = np.bincount(tokens[lag:] * vocab + tokens[:-lag], minlength=vocab**2)
            assert chi_square_p(pairs, np.full(vocab**2, pairs.sum() / vocab**2)) > 0.001


# --- check 7: nothing but the row itself matters -------------------------------------------------------------


def varied(row: int) -> SamplingParams:
    return SamplingParams(
        temperature=(0.0, 0.7, 1.3)[row % 3],
        top_k=(0, 5, 40, 3000)[row % 4],
        top_p=(1.0, 0.9, 0.5, 0.99, 1.0)[row % 5],
        min_p=(0.0, 0.05)[row % 2],
        repetition_penalty=(1.0, 1.3)[row % 7 == 0],
        frequency_penalty=(0.0, 0.5)[row % 11 == 0],
        logit_bias=((row, 2.5),) if row % 6 == 0 else (),
        min_new_tokens=3 if row % 8 == 0 else 0,
        logprobs=2 if row % 9 == 0 else None,
    )


@pytest.mark.parametrize("vocab", [100, 5000])
def test_check_07_same_token_alone_and_among_63_in_any_order(vocab: int) -> None:
    generator = torch.Generator().manual_seed(vocab)
    logits = torch.randn(64, vocab, generator=generator) * 3
    positions = torch.randint(9, 300, (64,), generator=generator)
    starts = [start(row, varied(row), seed=row * 7, history=HISTORY, n_prompt=4) for row in range(64)]

    def tokens(rows: list[int]) -> dict[int, int]:
        sampled = sampler_of(vocab, *starts).sample(logits[rows].clone(), tuple(rows), positions[rows])
        return dict(zip(rows, sampled.tokens.tolist(), strict=True))

    together = tokens(list(range(64)))
    assert len(set(together.values())) > 20
    alone = {row: token for r in range(64) for row, token in tokens([r]).items()}
    assert alone == together
    for seed in range(3):
        order = torch.randperm(64, generator=torch.Generator().manual_seed(seed)).tolist()
        assert tokens(order) == together
        some = order[:5]
        assert tokens(some) == {row: together[row] for row in some}


def test_greedy_takes_the_lowest_of_equals_whatever_the_batch() -> None:
    logits = torch.zeros(3, 5000)
    logits[1, [4000, 77, 4999]] = 1.0
    logits[2, 4999] = 1.0
    sampler = sampler_of(5000, *(start(row, GREEDY) for row in range(3)))
    assert sampler.sample(logits, (0, 1, 2), torch.ones(3).long()).tokens.tolist() == [0, 77, 4999]


def test_penalties_follow_what_was_drawn_and_restart_with_the_row() -> None:
    params = SamplingParams(temperature=0.0, top_p=1.0, presence_penalty=2.0)
    sampler = sampler_of(4, start(0, params), start(1, GREEDY))
    logits = torch.tensor([[3.0, 2.5, 2.0, 1.5]] * 2)

    def step(position: int) -> list[int]:
        return sampler.sample(logits.clone(), (0, 1), torch.tensor([position] * 2)).tokens.tolist()

    assert [step(p) for p in (1, 2, 3, 4)] == [[0, 0], [1, 0], [2, 0], [3, 0]]
    sampler.start(start(0, params, history=(3, 3, 0, 1), n_prompt=2))  # resumed: 0 and 1 are its output
    assert step(4) == [2, 0]
    sampler.start(start(0, params, history=(3, 3, 0, 1), n_prompt=4))  # a prompt does not count
    assert step(4) == [0, 0]


def test_a_row_that_starts_again_has_its_own_parameters_and_seed() -> None:
    flat = torch.zeros(1, 1000)

    def token(sampler: Sampler) -> int:
        return int(sampler.sample(flat.clone(), (0,), torch.tensor([5])).tokens.item())

    expected = [token(sampler_of(1000, start(0, neutral(top_k=500), seed))) for seed in (1, 2)]
    sampler = sampler_of(1000, start(0, neutral(top_k=500), 1))
    drawn = [token(sampler)]
    sampler.start(start(0, neutral(top_k=500), 2))
    drawn.append(token(sampler))
    sampler.start(start(0, GREEDY))
    assert drawn == expected
    assert expected[0] != expected[1]
    assert token(sampler) == 0


def test_min_new_tokens_holds_back_every_ending_id_until_then() -> None:
    params = SamplingParams(temperature=0.0, top_p=1.0, min_new_tokens=2, stop_token_ids=(2, 99))
    sampler = sampler_of(4, start(0, params, history=(0, 0, 0), n_prompt=3))
    logits = torch.tensor([[0.0, 9.0, 8.0, 1.0]])
    drawn = [sampler.sample(logits.clone(), (0,), torch.tensor([p])).tokens.item() for p in (3, 4, 5)]
    assert drawn == [3, 3, EOS]


def test_tiny_temperature_is_greedy_and_never_breaks() -> None:
    for temperature in (1e-30, 1e-6, 1e-5, 1e-4):
        sampler = sampler_of(6, start(0, neutral(temperature=temperature)))
        sampled = sampler.sample(
            torch.tensor([[-1e4, 1e4, 3.0, -math.inf, 9999.0, 0.0]]), (0,), torch.ones(1).long()
        )
        assert sampled.tokens.tolist() == [1]
        assert sampled.finite.tolist() == [True]


# --- check 22 and E2 -----------------------------------------------------------------------------------------


def test_check_22_logprobs_are_raw_whatever_the_filters() -> None:
    logits = torch.randn(3, 60, generator=torch.Generator().manual_seed(3)) * 4
    wide = logits.double().numpy()
    reference = wide - np.log(np.exp(wide).sum(-1, keepdims=True))
    params = [
        SamplingParams(top_k=1, logprobs=20, logit_bias=((5, 50.0),)),
        GREEDY,
        SamplingParams(temperature=1.0, logprobs=0, repetition_penalty=2.0),
    ]
    sampler = sampler_of(60, *(start(row, p, history=(1, 2)) for row, p in enumerate(params)))
    sampled = sampler.sample(logits.clone(), (0, 1, 2), torch.full((3,), 2))
    found = sampled.logprobs
    assert found is not None
    assert found.at == (0, 2)
    assert found.counts == (20, 0)
    assert sampled.tokens[0] == 5  # the bias chose it, its log-probability is the model's
    for i, row in enumerate(found.at):
        assert found.chosen[i].item() == pytest.approx(reference[row, sampled.tokens[row]], abs=1e-5)
    assert found.ids[0].tolist() == np.argsort(-reference[0])[:20].tolist()
    assert found.values[0].tolist() == pytest.approx(np.sort(reference[0])[::-1][:20].tolist(), abs=1e-5)


def test_logprobs_of_a_vocabulary_smaller_than_asked() -> None:
    sampler = sampler_of(3, start(0, neutral(logprobs=20)))
    found = sampler.sample(torch.tensor([[1.0, 3.0, 2.0]]), (0,), torch.ones(1).long()).logprobs
    assert found is not None
    assert found.ids.tolist() == [[1, 2, 0]]


@pytest.mark.parametrize(
    "params", [GREEDY, SamplingParams(), neutral(min_p=0.1), neutral(logprobs=3, top_k=2)]
)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("vocab", [50, 2000])
def test_e2_a_bad_row_is_told_and_changes_no_other(params: SamplingParams, bad: float, vocab: int) -> None:
    clean = torch.randn(4, vocab, generator=torch.Generator().manual_seed(8)) * 3
    clean[:, 3] = -math.inf  # a mask is not an error

    def sample(logits: torch.Tensor) -> Sampled:
        sampler = sampler_of(vocab, *(start(row, params, seed=row) for row in range(4)))
        return sampler.sample(logits.clone(), (0, 1, 2, 3), torch.full((4,), 5))

    reference = sample(clean)
    assert reference.finite.all()
    for spoil in (slice(17, 18), slice(None)):
        spoiled = clean.clone()
        spoiled[2, spoil] = bad
        sampled = sample(spoiled)
        assert sampled.finite.tolist() == [True, True, False, True]
        others = [0, 1, 3]
        assert sampled.tokens[others].tolist() == reference.tokens[others].tolist()
        assert 0 <= sampled.tokens[2] < vocab


def test_a_row_without_any_possible_token_is_not_finite() -> None:
    sampler = sampler_of(4, start(0, neutral()), start(1, GREEDY))
    sampled = sampler.sample(torch.full((2, 4), -math.inf), (0, 1), torch.ones(2).long())
    assert sampled.finite.tolist() == [False, False]
    assert (sampled.tokens < 4).all()
