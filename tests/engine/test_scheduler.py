"""The scheduler's contract: tests named after the sentences of its docstring, and its refusals and views."""

from __future__ import annotations

import pytest
from support.fake_runner import Driver, expected, make_driver

from lmtop.engine.scheduler import Sequence
from lmtop.engine.types import LmtopError, SamplingParams, StepOutput, UsageError


def request(id: int, n_prompt: int, new: int | None = 8, first: int = 0, **fields: object) -> Sequence:
    """A sequence whose prompt is n_prompt ids counting up from `first`."""
    sampling = SamplingParams(max_new_tokens=new)
    prompt = [(first + i) % 64 for i in range(n_prompt)]
    return Sequence(id, f"r{id}", prompt, sampling, seed=id, label="ABCDEFGH"[id % 8], **fields)  # type: ignore[arg-type]


def reply_of(seq: Sequence, limit: int = 256, eos: frozenset[int] = frozenset()) -> list[int]:
    return expected(seq.ids[: seq.n_prompt], seq.sampling, seq.seed, limit, eos=eos)


def add(driver: Driver, *seqs: Sequence) -> None:
    for seq in seqs:
        driver.scheduler.add(seq)


# --- the sentences -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("overlap", [0, 1])
def test_1_a_sequence_holds_a_row_and_blocks_exactly_while_it_runs(overlap: int) -> None:
    driver = make_driver(rows=1, overlap=overlap)
    first, second = request(0, 10), request(1, 10, first=30)
    add(driver, first, second)
    assert (first.row, first.blocks, first.state) == (-1, [], "waiting")
    driver.turn()
    assert (first.row, len(first.blocks)) == (0, 3)
    assert (second.row, second.blocks) == (-1, [])
    driver.drain()
    for seq in (first, second):
        assert (seq.row, seq.blocks, seq.state) == (-1, [], "done")
        assert driver.replies[seq.id] == reply_of(seq)
    assert driver.scheduler.pool.used_count == 0
    driver.scheduler.check()


def test_2_every_position_a_plan_computes_has_its_block() -> None:
    driver = make_driver(size=4)
    seq = request(0, 4, new=20)
    add(driver, seq)
    for _ in range(10):
        plan = driver.scheduler.plan(0.0)
        assert plan is not None
        for work in (*plan.decode, *plan.prefill):
            assert len(seq.blocks) * 4 >= work.start + work.count
        driver.outputs.append(driver.runner.execute(plan))
        driver.commit()


def test_3_a_plan_needs_counts_only() -> None:
    driver = make_driver()
    seq = request(0, 6, new=4)
    add(driver, seq)
    works = []
    for _ in range(4):
        plan = driver.scheduler.plan(0.0)
        assert plan is not None
        works += [(w.start, w.count, w.tokens, w.samples) for w in (*plan.decode, *plan.prefill)]
        driver.outputs.append(driver.runner.execute(plan))
    assert works == [(0, 6, tuple(range(6)), True), *((p, 1, (), True) for p in (6, 7, 8))]
    assert driver.scheduler.plan(0.0) is None, "the length is known before any token is"
    assert driver.scheduler.in_flight == 4
    while driver.commit():
        pass
    assert driver.replies[0] == reply_of(seq)
    assert driver.ended[0] == "length"


def test_3_steps_commit_in_the_order_planned() -> None:
    driver = make_driver()
    add(driver, request(0, 6))
    with pytest.raises(LmtopError, match="step 0 was committed, none was due"):
        driver.scheduler.commit(StepOutput(0, ()))
    driver.launch()
    driver.launch()
    with pytest.raises(LmtopError, match="step 1 was committed, 0 was due"):
        driver.scheduler.commit(driver.outputs[1])
    with pytest.raises(LmtopError, match="drew 0 tokens"):
        driver.scheduler.commit(StepOutput(0, ()))


@pytest.mark.parametrize("verb", ["finish", "cancel", "fail", "preempt"])
def test_4_a_result_with_an_old_epoch_is_dropped(verb: str) -> None:
    driver = make_driver()
    seq, other = request(0, 6), request(1, 6, first=20)
    add(driver, seq, other)
    driver.launch()
    end = getattr(driver.scheduler, verb)
    assert end(0, "stop") if verb == "finish" else end(0)
    assert (seq.row, seq.blocks) == (-1, [])
    driver.scheduler.check()
    driver.commit()
    assert 0 not in driver.replies
    assert len(driver.replies[1]) == 1
    driver.drain()
    assert driver.replies[1] == reply_of(other)
    assert driver.replies.get(0, []) == (reply_of(seq) if verb == "preempt" else [])


def test_5_a_block_is_published_once_full_and_committed() -> None:
    driver = make_driver(size=4, chunk=6)
    seq = request(0, 10)
    add(driver, seq)
    pool = driver.scheduler.pool
    driver.launch()
    assert pool.match(seq.ids, 99) == []
    driver.commit()
    assert pool.match(seq.ids, 99) == seq.blocks[:1]  # positions 0-5: one full block
    driver.launch()
    driver.commit()
    assert pool.match(seq.ids, 99) == seq.blocks[:2]  # 0-9


def test_5_not_while_its_step_is_in_flight() -> None:
    driver = make_driver(size=4, chunk=4)
    seq = request(0, 14)
    add(driver, seq)
    for _ in range(3):
        driver.launch()
    driver.commit()
    assert driver.scheduler.pool.match(seq.ids, 99) == seq.blocks[:1]


def test_6_the_oldest_is_never_preempted_and_the_youngest_of_the_lowest_priority_is() -> None:
    driver = make_driver(blocks=13, size=4, rows=4, watermark=0)
    old, high = request(0, 8, new=24), request(1, 8, new=24, first=16, priority=1)
    low, lowest = request(2, 8, new=24, first=32), request(3, 8, new=24, first=48, priority=-1)
    for seq in (old, high, low, lowest):  # one at a time: they would queue by priority
        add(driver, seq)
        driver.launch()
    preempted: list[int] = []
    for _ in range(200):
        before = {s.id for s in driver.scheduler.running}
        driver.turn()
        preempted += sorted(before - {s.id for s in driver.scheduler.running} - set(driver.ended))
    assert preempted[:3] == [3, 2, 1]
    assert old.preemptions == 0
    for seq in (old, high, low, lowest):
        assert driver.replies[seq.id] == reply_of(seq)


def test_6_of_equals_the_youngest_is_the_victim() -> None:
    driver = make_driver(blocks=9, size=4, rows=3, watermark=0)
    seqs = [request(i, 8, new=12, first=16 * i) for i in range(3)]
    add(driver, *seqs)
    while not any(s.preemptions for s in seqs):
        driver.turn()
    assert [s.preemptions for s in seqs] == [0, 0, 1]


@pytest.mark.parametrize("committed", [False, True])
def test_6_a_victim_that_was_planned_already_leaves_the_plan(committed: bool) -> None:
    """Sequence 1 is older than 2 but of lower priority: it is planned, and given the last block, before 2
    finds none left and takes its place. It does not come back in the same plan."""
    driver = make_driver(blocks=8, size=4, rows=3, watermark=0)
    seqs = [
        request(i, n, new=12, first=16 * i, priority=p) for i, (n, p) in enumerate([(9, 0), (7, -1), (8, 1)])
    ]
    for seq in seqs:
        add(driver, seq)
        driver.launch()
    while committed and driver.commit():
        pass
    plan = driver.scheduler.plan(0.0)
    assert plan is not None
    assert [s.preemptions for s in seqs] == [0, 1, 0]
    assert [w.seq for w in plan.decode] == [0, 2]
    assert [d.row for d in plan.tables] == [seqs[2].row]
    assert not plan.starts
    driver.outputs.append(driver.runner.execute(plan))
    driver.drain()
    for seq in seqs:
        assert driver.replies[seq.id] == reply_of(seq)


def test_7_a_preempted_sequence_resumes_first_with_the_same_tokens() -> None:
    driver = make_driver(rows=2)
    seqs = [request(i, 9, first=10 * i) for i in range(4)]
    add(driver, *seqs)
    for _ in range(3):
        driver.turn()
    assert driver.scheduler.preempt(1)
    assert not driver.scheduler.preempt(1), "it does not run"
    assert [s.id for s in driver.scheduler.waiting] == [1, 2, 3]
    plan = driver.scheduler.plan(0.0)
    assert plan is not None
    start = plan.starts[0]
    assert (start.seq, start.seed, start.n_prompt) == (1, 1, 9)
    assert start.history == tuple(seqs[1].ids)
    assert len(start.history) == 9 + 3
    assert plan.prefill[0].start == 8, "its full blocks were found again"
    assert seqs[1].cached_tokens == 0, "what it found again was its own"
    driver.outputs.append(driver.runner.execute(plan))
    driver.drain()
    for seq in seqs:
        assert driver.replies[seq.id] == reply_of(seq)


def test_9_the_head_starts_or_fails_when_nothing_runs() -> None:
    driver = make_driver(blocks=8, size=4)
    stolen = driver.scheduler.pool.allocate(5)
    assert stolen
    fits, cannot = request(1, 6, new=4, first=40), request(0, 20, new=4)
    add(driver, cannot, fits)
    driver.drain(most=50)
    assert driver.ended[0] == ("needs 5 KV blocks, 3 of 8 are free and nothing runs that could free more")
    assert driver.replies[1] == reply_of(fits)


def test_9_the_head_does_not_fail_while_a_step_is_in_flight() -> None:
    driver = make_driver(blocks=8, size=4)
    add(driver, request(0, 6), request(1, 28, new=2, first=20))
    driver.launch()
    assert driver.scheduler.pool.allocate(3)
    driver.cancel(0)
    assert not driver.launch()
    assert 1 not in driver.ended
    driver.commit()
    assert not driver.launch()
    assert "needs 7 KV blocks, 5 of 8 are free" in driver.ended[1]


def test_9_a_row_that_alone_cannot_grow_fails_and_the_next_one_runs() -> None:
    driver = make_driver(blocks=4, size=4, rows=1)
    grows, waits = request(0, 6, new=9), request(1, 3, new=4, first=30)
    add(driver, grows, waits)
    driver.turn()
    stolen = driver.scheduler.pool.allocate(2)
    assert stolen
    driver.drain(most=50)
    assert "needs 3 KV blocks, 0 of 4 are free" in driver.ended[0]
    assert driver.replies[1] == reply_of(waits)


def test_10_the_ledger_is_checked_in_both_directions() -> None:
    driver = make_driver()
    add(driver, request(0, 6))
    driver.turn()
    lost = driver.scheduler.pool.allocate(1) or []
    with pytest.raises(LmtopError, match="blocks are held by nobody"):
        driver.scheduler.check()
    driver.scheduler.pool.free(lost)
    driver.scheduler.check()


# --- refusals and ends -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n_prompt", "new", "message"),
    [
        (0, 8, "the prompt is empty"),
        (48, 8, "the prompt has 48 tokens and the context holds 48"),
        (33, None, "the prompt of 33 tokens and its reply need 9 KV blocks and the pool has 8"),
        (30, 12, "the prompt of 30 tokens and its reply need 11 KV blocks and the pool has 8"),
    ],
)
def test_what_could_never_run_is_refused_with_both_numbers(
    n_prompt: int, new: int | None, message: str
) -> None:
    driver = make_driver(blocks=8, size=4, context=48)
    with pytest.raises(UsageError, match=message):
        driver.scheduler.add(request(0, n_prompt, new=new))
    assert driver.scheduler.idle


@pytest.mark.parametrize(("n_prompt", "new", "length"), [(32, None, 1), (20, None, 13), (25, 8, 8)])
def test_what_just_fits_runs_to_the_end_of_pool_or_reply(n_prompt: int, new: int | None, length: int) -> None:
    driver = make_driver(blocks=8, size=4, context=48)
    add(driver, request(0, n_prompt, new=new))
    driver.drain()
    assert len(driver.replies[0]) == length
    assert driver.ended[0] == "length"


def test_the_context_ends_a_reply() -> None:
    driver = make_driver(context=20)
    add(driver, request(0, 15, new=64))
    driver.drain()
    assert len(driver.replies[0]) == 5


def stop_case(eos: frozenset[int], **fields: object) -> tuple[list[int], str]:
    driver = make_driver(eos=eos)
    sampling = SamplingParams(max_new_tokens=12, **fields)  # type: ignore[arg-type]
    add(driver, Sequence(0, "r", [1, 2, 3], sampling, seed=5))
    driver.drain()
    return driver.replies[0], driver.ended[0]


def test_eos_and_stop_tokens_end_a_reply_after_min_new_tokens() -> None:
    free = expected([1, 2, 3], SamplingParams(max_new_tokens=12), 5, 256)
    third = free[2]
    cut = free.index(third) + 1
    assert stop_case(frozenset({third})) == (free[:cut], "stop")
    assert stop_case(frozenset(), stop_token_ids=(third,)) == (free[:cut], "stop")
    assert stop_case(frozenset({third}), ignore_eos=True) == (free, "length")
    assert stop_case(frozenset({third}), ignore_eos=True, stop_token_ids=(third,)) == (free[:cut], "stop")
    assert stop_case(frozenset({third}), min_new_tokens=cut - 1) == (free[:cut], "stop")
    later = stop_case(frozenset({third}), min_new_tokens=cut)[0]
    assert len(later) > cut


def test_e2_a_row_of_nonfinite_logits_fails_alone_and_leaves_no_cached_block() -> None:
    driver = make_driver(poison=63, chunk=6)
    seqs = [request(i, 9, first=i * 12) for i in range(3)]
    bad = Sequence(3, "bad", [*range(40, 48), 63, *range(5)], SamplingParams(max_new_tokens=8), seed=3)
    add(driver, *seqs, bad)
    driver.drain()
    assert driver.ended[3] == "failed"
    assert 3 not in driver.replies
    for seq in seqs:
        assert driver.replies[seq.id] == reply_of(seq)
    assert driver.scheduler.pool.match(bad.ids, 99) == []
    driver.scheduler.check()


@pytest.mark.parametrize("turns", [0, 1, 2, 3, 6, 40])
@pytest.mark.parametrize("overlap", [0, 1])
def test_e14_cancel_at_any_time_and_twice_is_idempotent(turns: int, overlap: int) -> None:
    """Before the start, during prefill chunks, while decoding, after the end."""
    driver = make_driver(chunk=5, overlap=overlap)
    seq, other = request(0, 14), request(1, 6, first=30)
    add(driver, seq, other)
    for _ in range(turns):
        driver.turn()
    open_before = 0 not in driver.ended
    assert driver.scheduler.cancel(0) is open_before
    assert not driver.scheduler.cancel(0)
    assert not driver.scheduler.finish(0, "stop")
    assert not driver.scheduler.fail(0)
    assert not driver.scheduler.preempt(0)
    assert seq.finish_reason == ("cancelled" if open_before else "length")
    driver.scheduler.check()
    driver.drain()
    assert driver.replies[1] == reply_of(other)
    assert driver.scheduler.pool.used_count == 0


def test_e14_cancel_while_preempted() -> None:
    driver = make_driver()
    add(driver, request(0, 9), request(1, 9, first=30))
    driver.launch()
    driver.scheduler.preempt(0)
    assert driver.scheduler.cancel(0)
    assert not driver.scheduler.cancel(0)
    driver.drain()
    assert set(driver.replies) == {1}


def test_abandoned_steps_are_computed_again() -> None:
    driver = make_driver(overlap=1, chunk=5)
    seqs = [request(i, 9, first=20 * i) for i in range(3)]
    add(driver, *seqs)
    for _ in range(5):
        driver.turn()
    driver.outputs.clear()
    driver.scheduler.abandon()
    assert (driver.scheduler.in_flight, driver.scheduler.running) == (0, ())
    assert driver.scheduler.pool.used_count == 0
    assert driver.scheduler.pool.match(seqs[0].ids, 8), "what had committed is found again"
    driver.scheduler.check()
    driver.drain()
    for seq in seqs:
        assert driver.replies[seq.id] == reply_of(seq)


def test_a_sequence_is_added_once() -> None:
    driver = make_driver()
    add(driver, request(0, 4))
    with pytest.raises(LmtopError, match="sequence 0 was added twice"):
        driver.scheduler.add(request(0, 4))


# --- prefill and views -------------------------------------------------------------------------------------


def test_short_prompts_share_a_chunk_and_a_long_one_is_split() -> None:
    driver = make_driver(chunk=16, rows=4)
    add(driver, request(0, 5), request(1, 6, first=10), request(2, 20, first=20))
    plan = driver.scheduler.plan(0.0)
    assert plan is not None
    assert [(w.seq, w.start, w.count, w.samples) for w in plan.prefill] == [
        (0, 0, 5, True),
        (1, 0, 6, True),
        (2, 0, 5, False),
    ]
    second = driver.scheduler.plan(0.0, chunk_tokens=8)
    assert second is not None
    assert [w.seq for w in second.decode] == [0, 1]
    assert [(w.seq, w.start, w.count, w.samples) for w in second.prefill] == [(2, 5, 8, False)]


def test_priority_orders_the_queue() -> None:
    driver = make_driver(rows=1)
    add(
        driver, request(0, 4), request(1, 4, priority=1), request(2, 4, priority=2), request(3, 4, priority=1)
    )
    assert [s.id for s in driver.scheduler.waiting] == [2, 1, 3, 0]


def test_wait_reasons_name_numbers_and_neighbours() -> None:
    driver = make_driver(blocks=10, size=4, rows=3, chunk=4, watermark=0)
    add(driver, request(0, 22), request(1, 30, first=9), request(2, 30, first=30))
    assert [s.wait_reason for s in driver.scheduler.waiting] == [
        "starts next",
        "waits behind A",
        "waits behind A",
    ]
    driver.turn()
    assert driver.scheduler.waiting[0].wait_reason == "waits for the prompt of A"
    for _ in range(6):
        driver.turn()
    assert driver.scheduler.waiting[0].wait_reason == "needs 8 blocks, 4 free: waits for A"
    driver = make_driver(rows=1)
    add(driver, request(0, 4), request(1, 4, first=30))
    driver.turn()
    assert driver.scheduler.waiting[0].wait_reason == "all 1 slots are busy"
