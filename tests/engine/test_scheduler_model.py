"""Blocks + scheduler against a small model of memory: every interleaving of small cases, and random ones."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from support.fake_runner import Driver, expected, make_driver

from lmtop.engine.scheduler import Sequence
from lmtop.engine.types import SamplingParams, UsageError

EOS = frozenset({7})


def small_case(blocks: int) -> tuple[Driver, list[Sequence]]:
    """Two requests that share a full block of prompt, over two rows; one needs several chunks."""
    driver = make_driver(blocks=blocks, size=4, rows=2, chunk=6, context=32, watermark=0)
    prompts = [[1, 1, 1, 1, 2, 3, 4, 5, 6], [1, 1, 1, 1, 9, 8]]
    seqs = [
        Sequence(i, f"r{i}", prompt, SamplingParams(max_new_tokens=5), seed=i)
        for i, prompt in enumerate(prompts)
    ]
    for seq in seqs:
        driver.scheduler.add(seq)
    return driver, seqs


WANT = [
    expected(seq.ids, seq.sampling, seq.seed, 32) for seq in small_case(8)[1]
]  # what each gets when left alone


def apply(driver: Driver, action: str) -> bool:
    """One action of a word; False where it cannot happen, so that the word need not be played out."""
    verb, scheduler = action[0], driver.scheduler
    if verb == "P":
        return len(driver.outputs) < 2 and driver.launch()
    if verb == "C":
        return driver.commit()
    seq_id = int(action[1])
    if verb == "p":
        return scheduler.preempt(seq_id)
    if verb == "c":
        driver.cancel(seq_id)
    elif scheduler.finish(seq_id, "stop"):
        driver.ended[seq_id] = "stop"
    return True


def interleavings(length: int, others: int = 2, ahead: int = 0) -> Iterator[tuple[str, ...]]:
    """All words of `length` plans and commits, at most two plans ahead, with up to two other actions."""
    if length == 0:
        yield ()
        return
    nexts = [("P", others, ahead + 1)] if ahead < 2 else []
    nexts += [("C", others, ahead - 1)] if ahead else []
    nexts += [(verb + seq, others - 1, ahead) for verb in "cfp" for seq in "01"] if others else []
    for action, left, now_ahead in nexts:
        for rest in interleavings(length - 1, left, now_ahead):
            yield action, *rest


@pytest.mark.parametrize("blocks", [4, 8])
def test_check_14_every_interleaving_of_finish_cancel_and_preempt(blocks: int) -> None:
    """No token is lost, doubled or misrouted, whatever happens between a plan and its commit. With 4 blocks
    the two also preempt each other for want of memory."""
    played = 0
    for word in interleavings(8):
        driver, seqs = small_case(blocks)
        if not all(apply(driver, action) for action in word):
            continue
        played += 1
        driver.scheduler.check()
        driver.drain(most=200)
        for seq, want in zip(seqs, WANT, strict=True):
            got = driver.replies.get(seq.id, [])
            if driver.ended[seq.id] == "length":
                assert got == want, word
            else:
                assert got == want[: len(got)], word
        assert driver.scheduler.idle
        assert driver.scheduler.pool.used_count == 0, word
    assert played > 3000


class MemoryModel(RuleBasedStateMachine):
    """Random requests, cancels, preemptions, plans and commits. The model: a reply depends only on its own
    prompt and seed; blocks in use are those of running sequences, just enough for their positions."""

    def __init__(self) -> None:
        super().__init__()
        self.driver = make_driver()
        self.seqs: dict[int, Sequence] = {}

    @initialize(
        overlap=st.sampled_from([0, 1]),
        blocks=st.sampled_from([6, 9, 30]),
        rows=st.integers(1, 4),
        chunk=st.sampled_from([1, 3, 16]),
        caching=st.booleans(),
        max_skips=st.sampled_from([0, 2]),
    )
    def begin(self, overlap: int, blocks: int, rows: int, chunk: int, caching: bool, max_skips: int) -> None:
        self.driver = make_driver(
            blocks=blocks,
            size=4,
            rows=rows,
            chunk=chunk,
            context=40,
            overlap=overlap,
            eos=EOS,
            caching=caching,
            max_skips=max_skips,
        )
        self.max_skips = max_skips

    @rule(
        shared=st.sampled_from([0, 4, 5, 8]),
        tail=st.lists(st.integers(0, 2), min_size=1, max_size=6),
        new=st.one_of(st.none(), st.integers(1, 16)),
        priority=st.integers(0, 1),
    )
    def add(self, shared: int, tail: list[int], new: int | None, priority: int) -> None:
        sampling = SamplingParams(max_new_tokens=new)
        number = len(self.seqs)
        seq = Sequence(
            number, f"r{number}", [5] * shared + tail, sampling, seed=number % 2, priority=priority
        )
        pool = self.driver.scheduler.pool
        fits = pool.blocks_for(min(40, seq.n_prompt + (new or 1)) - 1) <= pool.usable
        try:
            self.driver.scheduler.add(seq)
            assert fits
        except UsageError:
            assert not fits
            return
        self.seqs[number] = seq

    @precondition(lambda self: self.seqs)
    @rule(data=st.data(), verb=st.sampled_from(["cancel", "finish", "fail", "preempt"]))
    def disturb(self, data: st.DataObject, verb: str) -> None:
        seq_id = data.draw(st.sampled_from(sorted(self.seqs)))
        act = getattr(self.driver.scheduler, verb)
        happened = act(seq_id, "stop") if verb == "finish" else act(seq_id)
        if happened and verb != "preempt":
            self.driver.ended[seq_id] = verb

    @rule(chunk=st.sampled_from([None, 1, 2]))
    def turn(self, chunk: int | None) -> None:
        self.driver.turn(chunk)

    @precondition(lambda self: len(self.driver.outputs) < 3)
    @rule()
    def launch(self) -> None:
        self.driver.launch()

    @rule()
    def commit(self) -> None:
        self.driver.commit()

    @invariant()
    def the_ledger_holds(self) -> None:
        scheduler = self.driver.scheduler
        scheduler.check()
        pool = scheduler.pool
        for seq in scheduler.running:
            assert len(seq.blocks) == pool.blocks_for(
                max(seq.n_planned, len(seq.ids) - (seq.state == "decode"))
            )
            assert seq.n_computed <= seq.n_planned <= len(seq.blocks) * pool.block_size
        assert pool.used_count == len({b for seq in scheduler.running for b in seq.blocks})
        assert all(s.skipped <= self.max_skips for s in scheduler.waiting)

    def teardown(self) -> None:
        self.driver.drain(most=2000)
        assert set(self.driver.ended) == set(self.seqs)
        assert self.driver.scheduler.pool.used_count == 0
        for seq in self.seqs.values():
            prompt, got = seq.ids[: seq.n_prompt], self.driver.replies.get(seq.id, [])
            want = expected(prompt, seq.sampling, seq.seed, seq.limit, eos=EOS)
            complete = self.driver.ended[seq.id] == ("stop" if want[-1] in EOS else "length")
            assert got == (want if complete else want[: len(got)])
            assert seq.cached_tokens % 4 == 0
            assert seq.cached_tokens < seq.n_prompt


TestMemoryModel = MemoryModel.TestCase
TestMemoryModel.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
