"""A runner without a model: its KV store is a list, its next token a hash of what it reads back through the
block tables. Any wrong block, stale read or misrouted row therefore changes the tokens.

`execute` runs at once, in launch order, as a device stream would; tests delay the commit, not the step.
"""

from __future__ import annotations

from collections.abc import Sequence

from lmtop.engine.blocks import BlockPool
from lmtop.engine.scheduler import Scheduler
from lmtop.engine.types import RowOutput, RowStart, SamplingParams, StepOutput, StepPlan, Work

_MASK = 2**61 - 1


def _entry(token: int, position: int, before: int) -> int:
    return hash((token, position, before)) & _MASK


def _draw(entries: list[int], seed: int, vocab: int) -> int:
    return hash((seed, *entries)) % vocab


def expected(
    prompt: Sequence[int],
    sampling: SamplingParams,
    seed: int,
    limit: int,
    vocab: int = 64,
    eos: frozenset[int] = frozenset(),
) -> list[int]:
    """The reply that one request alone, with no cache, must get; `limit` is the longest prompt + reply."""
    stops = sampling.stop_token_ids if sampling.ignore_eos else eos.union(sampling.stop_token_ids)
    entries: list[int] = []
    for position, token in enumerate(prompt):
        entries.append(_entry(token, position, entries[-1] if entries else 0))
    reply: list[int] = []
    most = min(limit - len(prompt), sampling.max_new_tokens or limit)
    while len(reply) < most:
        reply.append(_draw(entries, seed, vocab))
        if reply[-1] in stops and len(reply) > sampling.min_new_tokens:
            break
        entries.append(_entry(reply[-1], len(entries), entries[-1]))
    return reply


class FakeRunner:
    """Executes plans over `max_batch` rows and `total` blocks of `block_size` positions. A token of `poison`
    in a row's text makes that row's logits not finite."""

    def __init__(
        self, max_batch: int, total: int, block_size: int, vocab: int = 64, poison: int | None = None
    ) -> None:
        self.block_size = block_size
        self.vocab = vocab
        self.poison = poison
        self.positions = 0  # computed so far
        self._kv = [0] * (total * block_size)
        self._bad = [False] * (total * block_size)  # this position saw the poison, or read one that did
        self._tables: list[list[int]] = [[] for _ in range(max_batch)]
        self._starts: list[RowStart | None] = [None] * max_batch
        self._last: list[int | None] = [None] * max_batch  # the row's newest token, "on the device"

    def execute(self, plan: StepPlan) -> StepOutput:
        """Run one step; refuses plans that no device could run as meant."""
        for start in plan.starts:
            self._starts[start.row] = start
            self._tables[start.row] = []
            self._last[start.row] = None
        for diff in plan.tables:
            table = self._tables[diff.row]
            assert diff.first == len(table), "a table diff leaves a hole or rewrites an entry"
            assert 0 not in diff.blocks, "the null block was handed out"
            table += diff.blocks
        works = (*plan.decode, *plan.prefill)
        assert works, "an empty plan"
        assert len({w.row for w in works}) == len(works), "two works for one row"
        written: set[int] = set()
        rows = [out for w in works if (out := self._run(w, written)) is not None]
        return StepOutput(plan.step, tuple(rows))

    def _run(self, work: Work, written: set[int]) -> RowOutput | None:
        start, table, size = self._starts[work.row], self._tables[work.row], self.block_size
        assert start is not None and start.seq == work.seq, "the row belongs to another sequence"
        tokens: Sequence[int | None] = work.tokens or (self._last[work.row],)
        assert len(tokens) == work.count
        for position, token in enumerate(tokens, work.start):
            assert token is not None, "a decode work before any token was drawn"
            slot = table[position // size] * size + position % size
            before = table[(position - 1) // size] * size + (position - 1) % size
            assert slot not in written, "two rows write one position"
            written.add(slot)
            self._kv[slot] = _entry(token, position, self._kv[before] if position else 0)
            self._bad[slot] = token == self.poison or (position > 0 and self._bad[before])
        self.positions += work.count
        if not work.samples:
            return None
        length = work.start + work.count
        entries: list[int] = []
        for block in table[: -(-length // size)]:
            entries += self._kv[block * size : (block + 1) * size]
        token = _draw(entries[:length], start.seed, self.vocab)
        self._last[work.row] = token
        return RowOutput(work.seq, work.epoch, token, finite=not self._bad[slot])


class Driver:
    """Drives a scheduler and a FakeRunner as the loop does, with `overlap` steps planned ahead of the commit,
    and collects what each request was given."""

    def __init__(self, scheduler: Scheduler, runner: FakeRunner, overlap: int = 0) -> None:
        self.scheduler = scheduler
        self.runner = runner
        self.overlap = overlap
        self.outputs: list[StepOutput] = []
        self.replies: dict[int, list[int]] = {}
        self.ended: dict[int, str] = {}
        self.now = 0.0

    def launch(self, chunk_tokens: int | None = None) -> bool:
        """Plan and execute one step; False if there was nothing to plan."""
        self.now += 1.0
        plan = self.scheduler.plan(self.now, chunk_tokens)
        for seq, message in self.scheduler.take_failures():
            assert seq.id not in self.ended
            self.ended[seq.id] = message
        if plan is None:
            return False
        self.outputs.append(self.runner.execute(plan))
        return True

    def commit(self) -> bool:
        """Commit the oldest executed step; False if none is left."""
        if not self.outputs:
            return False
        for seq, token, finished, row, failed in self.scheduler.commit(self.outputs.pop(0)):
            assert seq.id not in self.ended, "a token after the end"
            assert row.seq == seq.id
            if failed:
                self.ended[seq.id] = "failed"
                continue
            self.replies.setdefault(seq.id, []).append(token)
            if finished:
                self.ended[seq.id] = finished
        return True

    def cancel(self, seq_id: int) -> None:
        if self.scheduler.cancel(seq_id):
            self.ended[seq_id] = "cancelled"

    def turn(self, chunk_tokens: int | None = None) -> bool:
        """One turn of the loop: launch, then commit what is older than `overlap` steps; False when idle."""
        launched = self.launch(chunk_tokens)
        while len(self.outputs) > (self.overlap if launched else 0):
            self.commit()
        return launched or not self.scheduler.idle

    def drain(self, most: int = 100_000) -> int:
        """Turns until everything ended; fails after `most`, which is how a spin shows."""
        for turns in range(most):
            if not self.turn():
                return turns
        raise AssertionError(f"not idle after {most} turns")


def make_driver(
    blocks: int = 64,
    size: int = 4,
    rows: int = 4,
    chunk: int = 64,
    context: int = 256,
    overlap: int = 0,
    eos: frozenset[int] = frozenset(),
    poison: int | None = None,
    caching: bool = True,
    **options: int,
) -> Driver:
    """A driver over a pool of `blocks` usable blocks."""
    pool = BlockPool(blocks + 1, size)
    scheduler = Scheduler(pool, rows, chunk, context, eos, prefix_caching=caching, **options)
    return Driver(scheduler, FakeRunner(rows, blocks + 1, size, poison=poison), overlap)
