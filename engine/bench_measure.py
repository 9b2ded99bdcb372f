"""Measuring a loaded engine: a batch of equal prompts through the real loop, on the calling thread.

All rows decode together while decoding is timed: the clock starts when the last row has its first token and stops
after a given number of steps, and requests end only after that.
"""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import median

from .client import Mailbox
from .generate import KINDS
from .inference import inference
from .live import Live
from .loader import Engine
from .local import encode_request
from .loop import EngineLoop
from .types import GREEDY, Failed, LmtopError, Request

SHORT_PROMPT = 8
SHORT_RUNS = 5


@dataclass(frozen=True, slots=True)
class Cell:
    """One measurement: `batch` requests of `prompt` tokens each."""

    batch: int
    prompt: int


@dataclass(frozen=True, slots=True)
class Sample:
    """What one cell showed. Rates in tokens/s of all rows together; the first token's time is the median over the
    rows, each from submission. 0.0: nothing was measured."""

    decode_tps: float
    prefill_tps: float
    ttft_ms: float
    step_ms_p50: float
    step_ms_p99: float


class Stopped(Exception):
    """The person does not want to wait any longer."""


class Bench:
    """One loaded engine and its loop. `stopped` is asked between steps; when it says so, Stopped is raised."""

    def __init__(self, engine: Engine, stopped: Callable[[], bool] = lambda: False) -> None:
        self.engine = engine
        self.loop = EngineLoop(engine)
        self._stopped = stopped
        self._numbers = itertools.count(1)
        self._random = random.Random(0)

    def problem(self, cell: Cell, new_tokens: int) -> str:
        """Why `cell` cannot be measured on this engine; "" when it can."""
        plan, tokens = self.engine.plan, cell.prompt + new_tokens
        if tokens > plan.context_len:
            return f"{cell.prompt} + {new_tokens} tokens; the context is {plan.context_len}"
        blocks = cell.batch * -(-tokens // plan.block_size)
        if blocks >= plan.num_blocks:
            return f"needs {blocks} KV blocks of {plan.num_blocks - 1}"
        return ""

    def warm_up(self, cells: list[Cell]) -> None:
        """What the first request of a kind pays for: libraries loaded, the prefill rate known, memory touched."""
        self.run(Cell(1, max(cell.prompt for cell in cells)), 4)
        for batch in sorted({cell.batch for cell in cells}):
            self.run(Cell(batch, SHORT_PROMPT), 4)

    def short_ttft_ms(self) -> float:
        """Milliseconds from submission to the first token of a prompt of 8 tokens, nothing else running."""
        return median(self.run(Cell(1, SHORT_PROMPT), 2).ttft_ms for _ in range(SHORT_RUNS))

    @inference
    def run(self, cell: Cell, new_tokens: int) -> Sample:
        """Measure `cell` over `new_tokens` steps. LmtopError when a request fails."""
        mailbox = Mailbox()
        lives = [self._live(cell.prompt, mailbox) for _ in range(cell.batch)]
        submitted = min(live.submitted for live in lives)
        for live in lives:
            self.loop.submit(live)
        while any(live.first is None for live in lives):
            self._step(mailbox, lives)
        times = [time.perf_counter()]
        tokens = sum(live.seq.n_generated for live in lives)
        while len(times) < new_tokens and all(live.seq.state == "decode" for live in lives):
            self._step(mailbox, lives)
            times.append(time.perf_counter())
        tokens = sum(live.seq.n_generated for live in lives) - tokens
        self._end(lives)
        firsts = [live.first or 0.0 for live in lives]
        steps = sorted(1e3 * (after - before) for before, after in itertools.pairwise(times))
        seconds = times[-1] - times[0]
        return Sample(
            decode_tps=tokens / seconds if seconds > 0 else 0.0,
            prefill_tps=cell.batch * cell.prompt / max(max(firsts) - submitted, 1e-9),
            ttft_ms=1e3 * median(first - live.submitted for first, live in zip(firsts, lives, strict=True)),
            step_ms_p50=steps[len(steps) // 2] if steps else 0.0,
            step_ms_p99=steps[int(len(steps) * 0.99)] if steps else 0.0,
        )

    def _live(self, prompt: int, mailbox: Mailbox) -> Live:
        """A request of its own random tokens, so that none begins like another in the prefix cache."""
        number = next(self._numbers)
        ids = tuple(self._random.randrange(self.engine.tokenizer.vocab_size) for _ in range(prompt))
        request = Request(f"bench-{number}", prompt_ids=ids, sampling=replace(GREEDY, ignore_eos=True))
        return encode_request(self.engine, request, mailbox, number, time.monotonic())

    def _step(self, mailbox: Mailbox, lives: list[Live]) -> None:
        if self._stopped():
            self._end(lives)
            raise Stopped
        worked = self.loop.step()
        if not worked or any(live.seq.state == "done" and live.seq.finish_reason is None for live in lives):
            self._end(lives)
            for event in mailbox.drain():
                if isinstance(event, Failed):
                    raise KINDS.get(event.code, LmtopError)(event.message)
            raise LmtopError("the engine has nothing to do, but not every request was answered")

    def _end(self, lives: list[Live]) -> None:
        for live in lives:
            self.loop.cancel(live.request.id)
        while self.loop.step():
            pass


def middle(samples: list[Sample]) -> Sample:
    """The median of each figure."""
    return Sample(
        *(
            median(getattr(sample, name) for sample in samples)
            for name in ("decode_tps", "prefill_tps", "ttft_ms", "step_ms_p50", "step_ms_p99")
        )
    )
