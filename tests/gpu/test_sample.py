"""The CUDA sampler against the torch sampler on the same logits, and on its own promises."""

import math
import random

import numpy as np
import pytest
import torch

from lmtop.engine.sampler import Sampled, Sampler
from lmtop.engine.types import RowStart, SamplingParams
from lmtop.kernels import sampling as ops

if not torch.cuda.is_available():
    pytest.skip("needs a CUDA GPU", allow_module_level=True)

from lmtop.kernels.cuda.sample import Drawn, Results, RowParams, SamplerState, Variant, sample

DEVICE = torch.device("cuda")
EOS = (1,)
KINDS = ("plain", "ties", "flat", "masked", "clustered", "nan", "inf")


@pytest.fixture(autouse=True)
def whole_sort(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference without its short cuts."""
    monkeypatch.setattr(ops, "_WIDTHS", ())


def some_params(r: random.Random, vocab: int) -> SamplingParams:
    return SamplingParams(
        temperature=r.choice([0, 0.1, 0.7, 1, 2]),
        top_k=r.choice([0, 0, 1, 5, 40, 300, 3000]),
        top_p=r.choice([1, 0.01, 0.5, 0.9, 0.9, 0.99, 0.9999999, 1 - 1e-12]),
        min_p=r.choice([0, 0, 0.05, 1]),
        repetition_penalty=r.choice([1, 1, 1.3, 0.7]),
        presence_penalty=r.choice([0, 0, 0.5]),
        frequency_penalty=r.choice([0, 0, 0.3, -0.2]),
        logit_bias=tuple(
            (token, r.uniform(-5, 5))
            for token in r.sample(range(vocab + 3), min(vocab, r.choice([0, 0, 3, 1024])))
        ),
        min_new_tokens=r.choice([0, 5]),
        stop_token_ids=(3, vocab - 1),
        ignore_eos=r.random() < 0.5,
        logprobs=r.choice([None, 0, 20]),
    )


def some_start(r: random.Random, row: int, vocab: int) -> RowStart:
    history = tuple(r.randrange(min(vocab, 60)) for _ in range(12))
    return RowStart(row, row, some_params(r, vocab), r.randrange(-(2**63), 2**63), history, 5, 5)


def row_params(start: RowStart) -> RowParams:
    p = start.sampling
    ending = {*p.stop_token_ids, *(() if p.ignore_eos else EOS)} if p.min_new_tokens else set()
    return RowParams(
        seed=start.seed,
        temperature=p.temperature,
        top_k=p.top_k,
        top_p=p.top_p,
        min_p=p.min_p,
        repetition_penalty=p.repetition_penalty,
        presence_penalty=p.presence_penalty,
        frequency_penalty=p.frequency_penalty,
        logit_bias=p.logit_bias,
        ending_ids=tuple(ending),
        free_from=start.n_prompt + p.min_new_tokens,
        logprobs=p.logprobs is not None,
        history=start.history,
        n_prompt=start.n_prompt,
    )


def some_logits(kind: str, batch: int, vocab: int, seed: int) -> torch.Tensor:
    generator = torch.Generator(DEVICE).manual_seed(seed)
    logits = torch.randn(batch, vocab, device=DEVICE, generator=generator)
    logits *= (2 ** (torch.arange(batch, device=DEVICE) % 6 - 2.0))[:, None]
    if kind == "ties":
        logits.round_()
    elif kind == "flat":
        logits.zero_()
    elif kind == "masked":
        logits[torch.rand(logits.shape, device=DEVICE, generator=generator) < 0.9] = -math.inf
        logits[0] = -math.inf
    elif kind == "clustered":
        logits = logits.sort(-1, descending=True).values
    elif kind in ("nan", "inf"):
        logits[batch // 2, vocab // 3] = math.nan if kind == "nan" else math.inf
    return logits


class Bench:
    """One state with a results buffer and last tokens; `draw` is a step on poisoned outputs."""

    def __init__(self, max_rows: int, vocab: int, capacity: int | None = None) -> None:
        self.state = SamplerState(max_rows, vocab, DEVICE, capacity)
        self.results = Results(self.state.capacity, DEVICE)
        self.last_token = torch.full((max_rows + 1,), -7, dtype=torch.int64, device=DEVICE)
        self.last_token[max_rows] = 0

    def draw(
        self, logits: torch.Tensor, rows: list[int], positions: torch.Tensor, variant: Variant | None = None
    ) -> Drawn:
        self.results.device.fill_(-99)
        self.state.work["partials"].fill_(-1)
        variant = variant or self.state.variant(rows)
        index = torch.tensor(rows, dtype=torch.int32, device=DEVICE)
        at = (positions - 1).to(torch.int32)
        sample(self.state, logits, index, at, self.last_token, self.results.device, ahead=1, variant=variant)
        self.results.fetch(0, len(rows), variant.logprobs)
        return self.results.read(0, len(rows), variant.logprobs)


def check_logprobs(got: Drawn, want: Sampled, logits: torch.Tensor) -> None:
    if want.logprobs is None:
        return
    assert got.chosen is not None
    assert got.ids is not None
    assert got.values is not None
    count = min(20, logits.shape[1])
    wide = logits.double()
    logs = (wide - wide.logsumexp(-1, keepdim=True)).cpu().numpy()
    order = logits.sort(dim=-1, descending=True, stable=True).indices[:, :count].cpu().numpy()
    for i in want.logprobs.at:
        if got.finite[i]:
            assert got.chosen[i] == pytest.approx(logs[i, got.tokens[i]], abs=2e-5, rel=2e-6)
            assert got.ids[i, :count].tolist() == order[i].tolist()
            assert got.values[i, :count] == pytest.approx(logs[i, order[i]], abs=2e-5, rel=2e-6)


def differing(kind: str, vocab: int, seed: int, batch: int, steps: int) -> tuple[list[object], int]:
    """(rows whose tokens differ from the reference's, tokens drawn) over some steps of random rows, with padding."""
    r = random.Random(seed)
    bench, reference = Bench(batch + 3, vocab, batch + 1), Sampler(batch + 3, vocab, DEVICE, EOS)
    rows = r.sample(range(batch + 3), batch)
    starts = [some_start(r, row, vocab) for row in rows]
    for row, start in zip(rows, starts, strict=True):
        reference.start(start)
        bench.state.set_row(row, row_params(start))
    differences: list[object] = []
    drawn = 0
    for step in range(steps):
        logits = some_logits(kind, batch + 1, vocab, seed * 100 + step)
        logits[batch] = math.nan
        before = logits.clone()
        positions = torch.tensor([r.randrange(6, 14) for _ in range(batch)] + [0], device=DEVICE)
        want = reference.sample(logits[:batch].clone(), tuple(rows), positions[:batch])
        got = bench.draw(logits, [*rows, batch + 3], positions)
        assert torch.equal(logits.view(torch.int32), before.view(torch.int32))
        assert got.finite[batch]
        assert bench.last_token[batch + 3] == 0
        finite = want.finite.cpu().numpy()
        assert got.finite[:batch].tolist() == finite.tolist()
        assert ((got.tokens >= 0) & (got.tokens < vocab)).all()
        assert bench.last_token[rows].tolist() == got.tokens[:batch].tolist()
        check_logprobs(got, want, logits)
        tokens = want.tokens.cpu().numpy()
        for i in np.flatnonzero((got.tokens[:batch] != tokens) & finite):
            pair = [int(got.tokens[i]), int(tokens[i])]
            differences.append((pair, logits[i, pair].tolist(), starts[i]))
        drawn += int(finite.sum())
        # tallies follow the tokens drawn; after a difference both would go their own ways
        if differences:
            break
    return differences, drawn


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("vocab", [7, 512, 5003, 32_000, 128_256, 152_064])
def test_names_the_token_of_the_reference(vocab: int, kind: str) -> None:
    for seed in range(3):
        differences, _ = differing(kind, vocab, seed, 33, 3)
        assert not differences


def test_same_token_alone_among_63_and_in_any_order() -> None:
    vocab, r = 128_256, random.Random(5)
    logits = some_logits("plain", 64, vocab, 9)
    positions = torch.randint(9, 300, (64,), device=DEVICE)
    params = [row_params(some_start(r, row, vocab)) for row in range(64)]
    bench = Bench(64, vocab)

    def tokens(order: list[int]) -> dict[int, tuple[int, float]]:
        for row in order:
            bench.state.set_row(row, params[row])
        drawn = bench.draw(logits[order], order, positions[order], Variant(True, True))
        assert drawn.chosen is not None
        return {row: (int(drawn.tokens[i]), float(drawn.chosen[i])) for i, row in enumerate(order)}

    together = tokens(list(range(64)))
    for row in range(64):
        assert tokens([row]) == {row: together[row]}
    for seed in range(3):
        order = random.Random(seed).sample(range(64), 64)
        assert tokens(order) == together
        assert tokens(order[:13]) == {row: together[row] for row in order[:13]}


CASES = {
    "temperature": SamplingParams(temperature=0.6, top_p=1),
    "top_k": SamplingParams(temperature=1, top_k=7, top_p=1),
    "top_p": SamplingParams(temperature=1, top_p=0.8),
    "min_p": SamplingParams(temperature=1, top_p=1, min_p=0.05),
    "combined": SamplingParams(temperature=0.9, top_k=24, top_p=0.95, min_p=0.005),
}


def distribution(logits: np.ndarray, p: SamplingParams) -> np.ndarray:
    """Probability of each token, float64, from the documented order."""
    scores = (logits.astype(np.float64) - logits.max()) / p.temperature
    ranked = np.argsort(-scores, kind="stable")
    ranked = ranked[: p.top_k or None]
    share = np.exp(scores[ranked]) / np.exp(scores[ranked]).sum()
    if p.top_p < 1:
        ranked = ranked[: int((np.cumsum(share) < p.top_p).sum()) + 1]
    if p.min_p > 0:
        ranked = ranked[scores[ranked] >= math.log(p.min_p)]
    result = np.zeros(len(logits))
    result[ranked] = np.exp(scores[ranked]) / np.exp(scores[ranked]).sum()
    return result


@pytest.mark.parametrize("name", CASES)
def test_draws_are_distributed_as_float64_has_it(name: str) -> None:
    vocab, batch, times = 40, 500, 400
    logits = np.random.default_rng(3).normal(0, 1, vocab).astype(np.float32)
    start = RowStart(0, 0, CASES[name], 77, (0,), 1, 1)
    bench = Bench(1, vocab, batch)
    bench.state.set_row(0, row_params(start))
    table = torch.from_numpy(logits).to(DEVICE).repeat(batch, 1)
    counts = np.zeros(vocab)
    for time in range(times):
        positions = torch.arange(batch, device=DEVICE) + 1 + time * batch
        counts += np.bincount(bench.draw(table, [0] * batch, positions).tokens, minlength=vocab)
    expected = distribution(logits, CASES[name]) * counts.sum()
    assert (counts[expected == 0] == 0).all()
    often = expected > 8
    statistic = ((counts - expected)[often] ** 2 / expected[often]).sum()
    half = torch.tensor((often.sum() - 1) / 2, dtype=torch.float64)
    p_value = torch.special.gammaincc(half, torch.tensor(statistic / 2, dtype=torch.float64)).item()
    assert p_value > 0.001


def test_equals_are_equals_whatever_their_sign() -> None:
    bench = Bench(2, 600)
    logits = torch.full((2, 600), -1.0, device=DEVICE)
    logits[:, 300] = -0.0
    logits[:, 500] = 0.0
    bench.state.set_row(0, RowParams(0))
    bench.state.set_row(1, RowParams(0, temperature=1.0, top_k=1))
    assert bench.draw(logits, [0, 1], torch.tensor([5, 5], device=DEVICE)).tokens.tolist() == [300, 300]


def test_biases_of_one_token_add_up_and_endings_wait() -> None:
    bench = Bench(1, 8)
    wanted = RowParams(0, logit_bias=((2, 3.0), (9, 50.0), (2, -1.0)), ending_ids=(5, 99), free_from=7)
    bench.state.set_row(0, wanted)
    logits = torch.tensor([[0.0, 1.9, 0.0, 0.0, 0.0, 9.0, 0.0, 0.0]], device=DEVICE)
    drawn = [int(bench.draw(logits, [0], torch.tensor([p], device=DEVICE)).tokens[0]) for p in (5, 6, 7)]
    assert drawn == [2, 2, 5]


def test_one_captured_step_serves_rows_that_change() -> None:
    """Greedy, plain and filtered rows through the same graph, with the tokens of a launch outside it."""
    vocab, batch, r = 32_000, 8, random.Random(1)
    bench = Bench(batch, vocab)
    logits = some_logits("plain", batch, vocab, 4)
    rows = torch.arange(batch, dtype=torch.int32, device=DEVICE)
    positions = torch.full((batch,), 9, dtype=torch.int32, device=DEVICE)
    last_token, buffer = bench.last_token, bench.results.device
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        sample(bench.state, logits, rows, positions, last_token, buffer, ahead=1)
    for turn in range(12):
        for row in range(batch):
            kind = r.choice([(0.0, 0, 1.0), (0.8, 0, 1.0), (0.8, 40, 0.9), (1.0, 0, 0.9)])
            bench.state.set_row(row, RowParams(turn * 100 + row, *kind))
        logits.copy_(some_logits("plain", batch, vocab, turn))
        positions.fill_(turn)
        buffer.fill_(-99)
        graph.replay()
        replayed = buffer[: 4 * batch].view(batch, 4)[:, 0].tolist()
        assert last_token[:batch].tolist() == replayed
        eager = bench.draw(logits, list(range(batch)), (positions + 1).long())
        assert eager.tokens.tolist() == replayed


def test_penalties_follow_what_was_drawn_and_restart_with_the_row() -> None:
    bench = Bench(2, 4)
    params = RowParams(0, presence_penalty=2.0, history=(0,), n_prompt=1)
    logits = torch.tensor([[3.0, 2.5, 2.0, 1.5]] * 2, device=DEVICE)

    def step() -> list[int]:
        return bench.draw(logits, [0, 1], torch.tensor([5, 5], device=DEVICE)).tokens.tolist()

    bench.state.set_row(0, params)
    bench.state.set_row(1, RowParams(0))
    assert [step() for _ in range(4)] == [[0, 0], [1, 0], [2, 0], [3, 0]]
    bench.state.set_row(0, RowParams(0, presence_penalty=2.0, history=(3, 3, 0, 1), n_prompt=2))
    assert step() == [2, 0]
    bench.state.set_row(0, RowParams(0))
    assert bench.state.variant([0, 1]) == Variant()
    assert step() == [0, 0]
