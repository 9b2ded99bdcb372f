"""Continuous batching: who computes what in the next step, and what a finished step means.

States: waiting -> prefill -> decode -> done; preemption leads from prefill or decode back to waiting; finish,
cancel and fail lead from anywhere to done.

Owner: the loop thread alone. No torch, no clock, no randomness: plans are plain integers that depend only on
the calls made. If this text and the code disagree, that is a bug. Tests are named after these sentences:
 1. A sequence holds a row and blocks exactly while it runs (prefill or decode).
 2. Every position a plan computes has its block before the plan is returned.
 3. A plan needs counts only, so plan(n + 1) may be made before commit(n); steps commit in the order planned.
 4. A result with an old epoch is dropped; finish, cancel, fail and preempt raise the epoch and free at once.
    (All KV reads and writes run on one stream, so a reused block is not written before its old readers.)
 5. A block is published once it is full and the step that filled it has committed.
 6. The oldest running sequence is never preempted; the victim is the youngest of the lowest priority.
 7. A preempted sequence resumes before anything else is admitted, with the same tokens and the same seed.
 8. A waiting sequence is passed by later arrivals at most `max_skips` times.
 9. When nothing runs and nothing is in flight, the head of the queue starts or fails; nothing spins.
10. free + cached + used == total - 1 at any time.
"""

from __future__ import annotations

from bisect import insort
from collections import deque
from heapq import heappop, heappush
from typing import Protocol

from .admission import WaitingQueue, longest_text, place
from .blocks import BlockPool
from .sequence import Committed, Sequence
from .types import (
    FinishReason,
    LmtopError,
    RowOutput,
    RowStart,
    StepOutput,
    StepPlan,
    TableDiff,
    Work,
)

__all__ = ["Committed", "Scheduler", "Sequence"]


class RopeLengths(Protocol):
    """What lengths mean to rotary embeddings that depend on them; see `engine.rope`."""

    def salt(self, prompt_len: int) -> int: ...
    def regime(self, length: int) -> int: ...


class Scheduler:
    """Plans steps over `max_batch` rows and the blocks of `pool`.

    `max_prefill_tokens` bounds one step's prompt positions, `context_len` prompt + reply. `watermark` blocks
    per running row stay unallocated when a sequence is admitted (see `admission.place`).
    """

    def __init__(
        self,
        pool: BlockPool,
        max_batch: int,
        max_prefill_tokens: int,
        context_len: int,
        eos_ids: frozenset[int],
        prefix_caching: bool = True,
        max_skips: int = 16,
        watermark: int = 2,
        rope: RopeLengths | None = None,
    ) -> None:
        self.pool = pool
        self.rope = rope
        self.max_batch = max_batch
        self.max_prefill_tokens = max_prefill_tokens
        self.context_len = context_len
        self.eos_ids = eos_ids
        self.prefix_caching = prefix_caching
        self.watermark = watermark
        self._sequences: dict[int, Sequence] = {}
        self._queue = WaitingQueue(max_skips)
        self._running: list[Sequence] = []  # oldest first
        self._free_rows = list(range(max_batch))  # a heap: low rows first
        self._steps: deque[tuple[int, tuple[Work, ...]]] = deque()  # planned, not committed
        self._failures: list[tuple[Sequence, str]] = []
        self._step = 0
        self._arrivals = 0
        self._stuck = False  # the queue was tried in vain and nothing has changed since

    # --- requests ------------------------------------------------------------------------------------------

    def add(self, seq: Sequence) -> None:
        """Queue a new sequence. UsageError, with both numbers, if it could never run: no token of reply fits
        the context, or the reply it asks for does not fit an empty pool."""
        if seq.id in self._sequences:
            raise LmtopError(f"sequence {seq.id} was added twice: this is a bug")
        seq.limit = longest_text(seq, self.pool, self.context_len)
        eos = frozenset[int]() if seq.sampling.ignore_eos else self.eos_ids
        seq.stop_ids = eos.union(seq.sampling.stop_token_ids)
        self._set_rope_length(seq)
        seq.order = self._arrivals
        self._arrivals += 1
        self._sequences[seq.id] = seq
        self._queue.add(seq)
        self._stuck = False

    def get(self, seq_id: int) -> Sequence | None:
        """The sequence, unless it is done or unknown."""
        return self._sequences.get(seq_id)

    def finish(self, seq_id: int, reason: FinishReason) -> bool:
        """End a sequence whose reply is complete and free what it holds. False if it already ended."""
        seq = self._sequences.get(seq_id)
        if seq is None:
            return False
        seq.finish_reason = reason
        self._end(seq)
        return True

    def cancel(self, seq_id: int) -> bool:
        """End a sequence nobody waits for any more, in whatever state. False if it already ended."""
        return self.finish(seq_id, "cancelled")

    def fail(self, seq_id: int) -> bool:
        """End a sequence whose computed state cannot be trusted: its blocks leave the prefix index too."""
        seq = self._sequences.get(seq_id)
        if seq is None:
            return False
        self._end(seq, keep=False)
        return True

    def preempt(self, seq_id: int) -> bool:
        """Take row and blocks from a running sequence and queue it again. False if it is not running."""
        seq = self._sequences.get(seq_id)
        if seq is None or seq.row < 0:
            return False
        self._leave(seq)
        seq.preemptions += 1
        seq.state = "waiting"
        self._queue.add(seq)
        return True

    def abandon(self) -> None:
        """The steps in flight will never commit: preempt everything that runs and forget them. What earlier
        steps published stays cached."""
        self._steps.clear()
        for seq in tuple(self._running):
            self.preempt(seq.id)

    # --- steps ---------------------------------------------------------------------------------------------

    def plan(self, now: float, chunk_tokens: int | None = None) -> StepPlan | None:
        """The next step: one position of every decoding row, then prompt positions up to `chunk_tokens`
        (default and most: `max_prefill_tokens`). None if there is nothing to compute before a commit."""
        budget = min(chunk_tokens or self.max_prefill_tokens, self.max_prefill_tokens)
        n_waiting = len(self._queue)
        decode, tables = self._plan_decode()
        prefill: list[Work] = []
        starts: list[RowStart] = []
        for seq in self._running:
            if seq.state == "prefill" and budget > 0:
                budget -= self._plan_chunk(seq, budget, prefill)
        may_admit = len(self._queue) == n_waiting  # else memory ran out just now
        while may_admit and budget > 0 and self._queue:
            admitted = self._admit(now)
            if admitted is not None:
                starts.append(self._row_start(admitted))
                tables.append(TableDiff(admitted.row, 0, tuple(admitted.blocks)))
                budget -= self._plan_chunk(admitted, budget, prefill)
            elif self._running or self._steps:
                break
            else:
                self._fail_head()
        if not decode and not prefill:
            return None
        plan = StepPlan(self._step, tuple(starts), tuple(tables), tuple(decode), tuple(prefill))
        self._steps.append((self._step, plan.decode + plan.prefill))
        self._step += 1
        return plan

    def commit(self, output: StepOutput) -> list[Committed]:
        """Apply the oldest planned step's result: publish, append tokens, end what is complete. Rows that
        were finished, cancelled or preempted since the plan are dropped."""
        if not self._steps or self._steps[0][0] != output.step:
            expected = self._steps[0][0] if self._steps else "none"
            raise LmtopError(f"step {output.step} was committed, {expected} was due: this is a bug")
        works = self._steps.popleft()[1]
        if len(output.rows) != sum(w.samples for w in works):
            raise LmtopError(f"step {output.step} drew {len(output.rows)} tokens: this is a bug")
        committed = []
        for row in output.rows:  # before anything of these rows is published
            seq = self._sequences.get(row.seq)
            if not row.finite and seq is not None and seq.epoch == row.epoch:
                self.fail(seq.id)
                committed.append(Committed(seq, row.token, None, row, failed=True))
        size = self.pool.block_size
        for work in works:
            seq = self._sequences.get(work.seq)
            if seq is not None and seq.epoch == work.epoch:
                seq.n_computed = work.start + work.count
                if seq.n_computed >= (seq.n_published + 1) * size and self.prefix_caching:
                    self._publish(seq)
        for row in output.rows:
            seq = self._sequences.get(row.seq)
            if seq is not None and seq.epoch == row.epoch:
                committed.append(self._append(seq, row))
        return committed

    def take_failures(self) -> list[tuple[Sequence, str]]:
        """Sequences that `plan` had to fail since the last call, each with the reason for its user."""
        failures, self._failures = self._failures, []
        return failures

    # --- views ---------------------------------------------------------------------------------------------

    @property
    def idle(self) -> bool:
        """Nothing waits, runs or is in flight."""
        return not self._sequences and not self._steps

    @property
    def in_flight(self) -> int:
        """Steps planned and not committed."""
        return len(self._steps)

    @property
    def running(self) -> tuple[Sequence, ...]:
        """The sequences that hold a row, oldest first."""
        return tuple(self._running)

    @property
    def decoding(self) -> bool:
        """Whether some sequence decodes."""
        return any(seq.state == "decode" for seq in self._running)

    @property
    def waiting(self) -> tuple[Sequence, ...]:
        """The queue, head first, with each `wait_reason` brought up to date."""
        self._queue.explain(self.pool, self._running, self.max_batch)
        return tuple(self._queue)

    def check(self) -> None:
        """Assert the ledger: the pool's own, and that holders, rows and states agree. LmtopError if not."""
        self.pool.check()
        holders = [0] * self.pool.total
        for seq in self._running:
            for block in seq.blocks:
                holders[block] += 1
        rows = sorted([*self._free_rows, *(seq.row for seq in self._running)])
        shared = self.pool.snapshot(kv_map=True).shared
        facts = {
            "blocks are held by nobody who runs, or not by all": all(
                s == min(h, 255) for s, h in zip(shared, holders, strict=True)
            ),
            "rows were lost or given twice": rows == list(range(self.max_batch)),
            "a running sequence is in no running state": all(
                s.state in ("prefill", "decode") for s in self._running
            ),
            "a waiting sequence holds something": all(
                s.state == "waiting" and not s.blocks and s.row < 0 for s in self._queue
            ),
            "a sequence is lost": sorted(self._sequences)
            == sorted(s.id for s in (*self._running, *self._queue)),
        }
        for fact, holds in facts.items():
            if not holds:
                raise LmtopError(f"scheduler ledger: {fact}: this is a bug")

    # --- decode --------------------------------------------------------------------------------------------

    def _plan_decode(self) -> tuple[list[Work], list[TableDiff]]:
        size = self.pool.block_size
        ready: list[Sequence] = []
        grown: list[Sequence] = []
        for seq in tuple(self._running):  # oldest first: they get memory first
            if seq.state != "decode" or len(seq.ids) + seq.inflight >= seq.limit:
                continue
            if seq.n_planned == len(seq.blocks) * size:
                if not self._extend(seq):
                    continue
                grown.append(seq)
            ready.append(seq)
        works = []
        for seq in ready:
            if seq.state == "decode":  # not preempted for another row's sake
                works.append(Work(seq.id, seq.epoch, seq.row, seq.n_planned, 1, (), True))
                seq.n_planned += 1
                seq.inflight += 1
        tables = [TableDiff(s.row, len(s.blocks) - 1, (s.blocks[-1],)) for s in grown if s.row >= 0]
        return works, tables

    def _extend(self, seq: Sequence) -> bool:
        """One more block for a row, preempting others if need be. False if the row itself had to go."""
        while (got := self.pool.allocate(1, seq.owner)) is None:
            younger = self._running[1:]
            if not younger:
                self._fail(seq, self.pool.blocks_for(len(seq.ids)))
                return False
            victim = min(younger, key=lambda s: (s.priority, -s.order))
            self.preempt(victim.id)
            if victim is seq:
                return False
        seq.blocks += got
        return True

    # --- prefill and admission -----------------------------------------------------------------------------

    def _plan_chunk(self, seq: Sequence, budget: int, works: list[Work]) -> int:
        """Add the next positions of a prompt to the step; returns how many."""
        start = seq.n_planned
        end = min(start + budget, len(seq.ids))
        last = end == len(seq.ids)
        works.append(
            Work(seq.id, seq.epoch, seq.row, start, end - start, tuple(seq.ids[start:end]), samples=last)
        )
        seq.n_planned = end
        if last:
            seq.state = "decode"
            seq.inflight += 1
        return end - start

    def _admit(self, now: float) -> Sequence | None:
        """Give a row and blocks to the first waiting sequence that may go and fits."""
        if self._stuck or not self._free_rows:
            return None
        for seq in self._queue.candidates():
            if place(seq, self.pool, self._running, self.watermark, self.prefix_caching):
                self._start(seq, now)
                return seq
        self._stuck = True
        return None

    def _start(self, seq: Sequence, now: float) -> None:
        self._queue.remove(seq)
        seq.row = heappop(self._free_rows)
        seq.state = "prefill"
        insort(self._running, seq, key=lambda s: s.order)
        if seq.started is None:
            seq.started = now
            seq.cached_tokens = seq.n_computed
            self._queue.note_passed_by(seq)

    def _row_start(self, seq: Sequence) -> RowStart:
        return RowStart(seq.row, seq.id, seq.sampling, seq.seed, tuple(seq.ids), seq.n_prompt, seq.rope_len)

    # --- results and ends ----------------------------------------------------------------------------------

    def _publish(self, seq: Sequence) -> None:
        size = self.pool.block_size
        for i in range(seq.n_published, seq.n_computed // size):
            parent = seq.blocks[i - 1] if i else 0
            self.pool.publish(seq.blocks[i], parent, seq.ids[i * size : (i + 1) * size], seq.salt)
        seq.n_published = seq.n_computed // size

    def _append(self, seq: Sequence, row: RowOutput) -> Committed:
        seq.inflight -= 1
        seq.ids.append(row.token)
        finished: FinishReason | None = None
        if row.token in seq.stop_ids and seq.n_generated > seq.sampling.min_new_tokens:
            finished = "stop"
        elif len(seq.ids) >= seq.limit:
            finished = "length"
        if finished:
            self.finish(seq.id, finished)
        elif self.rope is not None and self.rope.regime(len(seq.ids)) != seq.regime:
            seq.rope_len = len(seq.ids)  # its cached keys have the wrong frequencies from here on
            self._set_rope_length(seq)
            self.preempt(seq.id)
        return Committed(seq, row.token, finished, row)

    def _set_rope_length(self, seq: Sequence) -> None:
        if self.rope is not None:
            seq.salt, seq.regime = self.rope.salt(seq.rope_len), self.rope.regime(seq.rope_len)

    def _leave(self, seq: Sequence, keep: bool = True) -> None:
        """Leave the running set or the queue; results of steps in flight no longer count."""
        seq.epoch += 1
        seq.inflight = 0
        self._stuck = False
        if seq.row < 0:
            self._queue.remove(seq)
            return
        self._running.remove(seq)
        heappush(self._free_rows, seq.row)
        self.pool.free(seq.blocks, keep)
        seq.row = -1
        seq.blocks = []
        seq.n_planned = seq.n_computed = seq.n_published = 0

    def _end(self, seq: Sequence, keep: bool = True) -> None:
        self._leave(seq, keep)
        seq.state = "done"
        del self._sequences[seq.id]

    def _fail_head(self) -> None:
        seq = self._queue.head
        self._fail(seq, seq.need or self.pool.blocks_for(len(seq.ids)))

    def _fail(self, seq: Sequence, need: int) -> None:
        """Forward progress: nothing that runs could make room, so say so and go on with the others."""
        reason = f"needs {need} KV blocks, {self.pool.available} of {self.pool.usable} are free"
        self._failures.append((seq, f"{reason} and nothing runs that could free more"))
        self.fail(seq.id)
