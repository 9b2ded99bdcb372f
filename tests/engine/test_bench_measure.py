from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from statistics import median

import pytest
from support.llama import write_llama

from lmtop.engine.bench_measure import Bench, Cell, Sample, Stopped, middle
from lmtop.engine.client import Mailbox
from lmtop.engine.config import EngineConfig
from lmtop.engine.faults import Faults
from lmtop.engine.live import Live
from lmtop.engine.loader import load
from lmtop.engine.types import ModelError


class Watched(Bench):
    """Keeps (tokens of each row, rows that decode) after every step."""

    seen: list[tuple[list[int], int]]

    def _step(self, mailbox: Mailbox, lives: list[Live]) -> None:
        super()._step(mailbox, lives)
        decoding = sum(live.seq.state == "decode" for live in lives)
        self.seen.append(([live.seq.n_generated for live in lives], decoding))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llama(tmp_path_factory.mktemp("models") / "tiny", hidden=32, layers=1, context=256)


def bench(directory: Path, faults: str = "", **config: object) -> Watched:
    settings = {"max_batch_size": 3, "cache_block_seq_len": 16, "max_prefill_token_num": 16} | config
    made = Watched(load(EngineConfig(str(directory), **settings), faults=Faults(faults)))  # type: ignore[arg-type]
    made.seen = []
    return made


def test_the_clock_runs_while_all_rows_decode_and_no_longer(tiny: Path) -> None:
    made = bench(tiny)
    sample = made.run(Cell(batch=3, prompt=40), new_tokens=6)
    first = next(i for i, (tokens, _) in enumerate(made.seen) if all(tokens))
    timed = made.seen[first:]
    assert first >= 3  # 120 tokens in chunks of 16: the first row generates meanwhile
    assert len(timed) == 6
    assert all(decoding == 3 for _, decoding in timed)
    for (before, _), (after, _) in pairwise(timed):
        assert [b - a for a, b in zip(before, after, strict=True)] == [1, 1, 1]
    assert min(sample.decode_tps, sample.prefill_tps, sample.ttft_ms) > 0
    assert 0 < sample.step_ms_p50 <= sample.step_ms_p99
    # 5 steps of 3 tokens: no step is longer than the slowest
    assert sample.decode_tps >= 3e3 / sample.step_ms_p99


def test_afterwards_nothing_runs_and_nothing_is_reused(tiny: Path) -> None:
    made = bench(tiny)
    for _ in range(3):
        made.run(Cell(2, 40), 4)
    assert not made.loop.scheduler.running
    made.loop.scheduler.check()
    assert made.loop.scheduler.pool.snapshot().used == 0
    lives = [made._live(40, Mailbox()) for _ in range(4)]
    assert len({tuple(live.seq.ids) for live in lives}) == 4


def test_what_does_not_fit_is_told_before(tiny: Path) -> None:
    made = bench(tiny, session_len=128, cache_max_entry_count=12)
    assert made.problem(Cell(1, 100), 28) == ""
    assert made.problem(Cell(1, 100), 29) == "100 + 29 tokens; the context is 128"
    assert made.problem(Cell(3, 60), 4) == ""
    assert made.problem(Cell(3, 60), 5) == "needs 15 KV blocks of 12"


def test_it_stops_between_steps_and_ends_its_requests(tiny: Path) -> None:
    made = bench(tiny)
    made._stopped = lambda: len(made.seen) >= 5
    with pytest.raises(Stopped):
        made.run(Cell(2, 20), 100)
    assert len(made.seen) == 5
    assert not made.loop.scheduler.running


def test_a_failed_request_is_an_error(tiny: Path) -> None:
    made = bench(tiny, faults="logits@3:nan")
    with pytest.raises(ModelError, match="not a number"):
        made.run(Cell(2, 8), 20)
    assert not made.loop.scheduler.running


def test_a_request_that_is_refused_does_not_wait_forever(tiny: Path) -> None:
    with pytest.raises(Exception, match="context"):
        bench(tiny, session_len=64).run(Cell(1, 80), 4)


def test_warm_up_and_the_short_prompt(tiny: Path) -> None:
    made = bench(tiny)
    made.warm_up([Cell(1, 16), Cell(3, 64)])
    assert max(len(tokens) for tokens, _ in made.seen) == 3
    assert made.short_ttft_ms() > 0


def test_the_middle_is_the_median_of_each_figure() -> None:
    samples = [Sample(*(float(10 * i + j) for j in range(5))) for i in (3, 1, 2)]
    assert middle(samples) == Sample(20.0, 21.0, 22.0, 23.0, 24.0)
    assert middle(samples[:2]).decode_tps == median([30.0, 10.0])
