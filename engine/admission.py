"""Admission: what can run at all, who is next, what must stay free when it starts, and why the others wait."""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable, Iterator
from itertools import islice

from .blocks import BlockPool
from .sequence import Sequence
from .types import UsageError

LOOKAHEAD = 32  # sequences offered per plan; bounds the time of one plan under a long queue


def longest_text(seq: Sequence, pool: BlockPool, context_len: int) -> int:
    """Tokens that prompt and reply may reach together. UsageError, with both numbers, for a sequence that
    could never run: no token of reply fits the context, or the reply it asks for does not fit the pool."""
    n, asked = seq.n_prompt, seq.sampling.max_new_tokens
    if n == 0:
        raise UsageError("the prompt is empty: it must hold at least one token")
    if n >= context_len:
        raise UsageError(
            f"the prompt has {n} tokens and the context holds {context_len}, "
            "one of them for the reply: shorten the prompt or raise session_len"
        )
    # The last token's keys and values are never read, so it needs no position.
    need = pool.blocks_for(min(context_len, n + (asked or 1)) - 1)
    if need > pool.usable:
        raise UsageError(
            f"the prompt of {n} tokens and its reply need {need} KV blocks and the pool has "
            f"{pool.usable}: shorten them or raise cache_max_entry_count"
        )
    room = min(context_len, pool.usable * pool.block_size + 1)
    return room if asked is None else min(room, n + asked)


def place(seq: Sequence, pool: BlockPool, running: Iterable[Sequence], watermark: int, caching: bool) -> bool:
    """Take the blocks for all ids of a waiting sequence, cached ones first, if enough stay free for the rows
    to grow before anyone is preempted: `watermark` blocks per row.

    Each preemption doubles what a sequence leaves free when it starts, and what later ones leave for it.
    Measured with memory for 15 to 30 % of the demand: at most 6 preemptions of one sequence, where a constant
    watermark led to 10.
    """
    n = len(seq.ids)
    hits = pool.match(seq.ids, n - 1, seq.salt) if caching else []
    fresh = pool.blocks_for(n) - len(hits)
    seq.need = fresh + pool.idle(hits)
    seq.reserve = _headroom(seq, pool, pool.blocks_for(n), watermark << min(seq.preemptions, 8))
    for other in running:
        wanted = watermark << min(max(seq.preemptions, other.preemptions), 8)
        seq.reserve += _headroom(other, pool, len(other.blocks), wanted)
    if seq.need + seq.reserve > pool.available:
        return False
    pool.hold(hits, seq.owner)
    seq.blocks = hits + (pool.allocate(fresh, seq.owner) or [])
    seq.n_published = len(hits)
    seq.n_planned = seq.n_computed = len(hits) * pool.block_size
    return True


def _headroom(seq: Sequence, pool: BlockPool, held: int, wanted: int) -> int:
    """Blocks to leave for a row's growth, never more than it can still use."""
    return min(wanted, pool.blocks_for(seq.limit - 1) - held)


class WaitingQueue:
    """Ordered: preempted sequences, then those passed `max_skips` times, then the rest by priority; oldest
    first in each. Only the rest may be passed by a later one that fits where they do not."""

    def __init__(self, max_skips: int) -> None:
        self.max_skips = max_skips
        self._items: list[Sequence] = []

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self._items)

    @property
    def head(self) -> Sequence:
        return self._items[0]

    def add(self, seq: Sequence) -> None:
        insort(self._items, seq, key=self._rank)

    def remove(self, seq: Sequence) -> None:
        self._items.remove(seq)

    def candidates(self) -> Iterator[Sequence]:
        """Those that may be tried now, in order, up to and including the first that nobody may pass."""
        for seq in islice(self._items, LOOKAHEAD):
            yield seq
            if self._rank(seq)[0] < 2:
                return

    def note_passed_by(self, seq: Sequence) -> None:
        """`seq` got its first row: everything that arrived before it and still waits was passed."""
        passed = [other for other in self._items if other.order < seq.order]
        for other in passed:
            other.skipped += 1
        if any(other.skipped == self.max_skips for other in passed):
            self._items.sort(key=self._rank)

    def _rank(self, seq: Sequence) -> tuple[int, int, int]:
        if seq.preemptions:
            return 0, 0, seq.order
        if seq.skipped >= self.max_skips:
            return 1, 0, seq.order
        return 2, -seq.priority, seq.order

    # --- gauges --------------------------------------------------------------------------------------------

    def explain(self, pool: BlockPool, running: list[Sequence], slots: int) -> None:
        """Bring `wait_reason` up to date for all, from measured counts."""
        if not self._items:
            return
        held = [(seq.name, pool.exclusive(seq.blocks)) for seq in running]
        reading = next((seq.name for seq in running if seq.state == "prefill"), "")
        for seq in self._items:
            missing = seq.need + seq.reserve - pool.available
            if len(running) == slots:
                seq.wait_reason = f"all {slots} slots are busy"
            elif seq.need and missing > 0:
                seq.wait_reason = _needs(seq, pool.available, missing, held)
            elif seq is not self.head:
                seq.wait_reason = f"waits behind {self.head.name}"
            else:
                seq.wait_reason = f"waits for the prompt of {reading}" if reading else "starts next"


def _needs(seq: Sequence, available: int, missing: int, held: list[tuple[str, int]]) -> str:
    """`held`: each running sequence with the blocks that would come back if it ended."""
    spare = f" and {seq.reserve} spare" if seq.reserve else ""
    enough = [name for name, blocks in held if blocks >= missing]
    names = " or ".join(enough[:3]) or " and ".join(name for name, _ in held[:3])
    return f"needs {seq.need} blocks{spare}, {available} free" + (f": waits for {names}" if names else "")
