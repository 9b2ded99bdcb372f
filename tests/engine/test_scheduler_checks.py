"""Acceptance checks of blocks + scheduler over the fake runner, at the sizes users will meet."""

from __future__ import annotations

import gc
import random
import time
from collections import Counter

import pytest
from support.fake_runner import Driver, expected, make_driver

from lmtop.engine.scheduler import Sequence
from lmtop.engine.types import RowOutput, SamplingParams, StepOutput, UsageError

EOS = frozenset({7})


def sequence(id: int, prompt: list[int], new: int, seed: int | None = None) -> Sequence:
    return Sequence(
        id, f"r{id}", prompt, SamplingParams(max_new_tokens=new), seed=id if seed is None else seed
    )


def random_sequence(rng: random.Random, id: int, longest: int, new: int) -> Sequence:
    """Half of the prompts share one of three beginnings, as chats share a system prompt."""
    shared = [rng.choice((1, 2, 3))] * rng.choice((0, longest // 2))
    prompt = shared + [rng.randrange(64) for _ in range(rng.randint(1, longest - len(shared)))]
    return sequence(id, prompt, rng.randint(1, new))


def check_replies(
    driver: Driver, seqs: list[Sequence], context: int = 256, eos: frozenset[int] = EOS
) -> None:
    for seq in seqs:
        want = expected(seq.ids[: seq.n_prompt], seq.sampling, seq.seed, context, eos=eos)
        assert driver.replies[seq.id] == want


@pytest.mark.parametrize("overlap", [0, 1])
@pytest.mark.parametrize("hit", [0, 63, 64, 65, 199, 200])
def test_check_11_prefix_hits_follow_the_floor_rule(hit: int, overlap: int) -> None:
    n = 200
    driver = make_driver(blocks=32, size=64, chunk=512, context=1024, overlap=overlap, eos=EOS)
    prompt = [random.Random(1).randrange(64) for _ in range(n)]
    driver.scheduler.add(sequence(0, [*prompt[:hit], *(1 + x for x in prompt[hit:])], 8))
    driver.drain()
    before = driver.runner.positions
    second = sequence(1, prompt, 8)
    driver.scheduler.add(second)
    driver.turn()
    assert second.cached_tokens == min(hit, n - 1) // 64 * 64
    assert driver.runner.positions - before == n - second.cached_tokens
    driver.drain()
    check_replies(driver, [second], 1024)


def test_check_11_a_prompt_of_full_blocks_still_computes_one_token() -> None:
    driver = make_driver(blocks=32, size=64, chunk=512, context=1024)
    prompt = [random.Random(2).randrange(64) for _ in range(128)]
    seqs = [sequence(i, list(prompt), 4, seed=0) for i in range(2)]
    for seq in seqs:
        driver.scheduler.add(seq)
        driver.drain()
    assert [seq.cached_tokens for seq in seqs] == [0, 64]
    assert driver.replies[0] == driver.replies[1]


def test_check_11_without_prefix_caching_nothing_is_hit() -> None:
    driver = make_driver(caching=False)
    for i in range(2):
        driver.scheduler.add(sequence(i, list(range(20)), 4, seed=0))
        driver.drain()
    assert driver.runner.positions == 2 * (20 + 3)
    assert driver.scheduler.pool.cached_count == 0


@pytest.mark.parametrize("overlap", [0, 1])
@pytest.mark.parametrize("seed", range(4))
def test_check_13_preemption_with_a_pool_for_30_percent_of_demand(seed: int, overlap: int) -> None:
    rng = random.Random(seed)
    seqs = [random_sequence(rng, i, 60, 120) for i in range(200)]
    rows, size = 16, 4
    mean = sum(s.n_prompt + (s.sampling.max_new_tokens or 0) for s in seqs) / len(seqs) / size
    driver = make_driver(blocks=int(0.3 * rows * mean), size=size, rows=rows, overlap=overlap)
    for seq in seqs:
        driver.scheduler.add(seq)
    driver.drain(most=50_000)
    check_replies(driver, seqs, eos=frozenset())
    preemptions = [s.preemptions for s in seqs]
    assert sum(preemptions) > 50, "the pool was not short"
    assert max(preemptions) <= 5
    driver.scheduler.check()
    assert driver.scheduler.pool.used_count == 0


def test_e8_two_sequences_growing_past_the_pool_both_end_with_their_own_text() -> None:
    driver = make_driver(blocks=12, size=4, rows=2, overlap=1, watermark=0)
    seqs = [sequence(0, list(range(16)), 30), sequence(1, list(range(20, 36)), 30)]
    for seq in seqs:
        driver.scheduler.add(seq)
    driver.drain()
    assert [s.preemptions for s in seqs] == [0, 1]
    check_replies(driver, seqs[1:])


@pytest.mark.parametrize("overlap", [0, 1])
def test_check_15_ten_thousand_mixed_requests_leave_nothing_behind(overlap: int) -> None:
    """20 % cancelled at random times, 5 % too long, 5 % of non-finite logits; a queue of at most 128."""
    rng = random.Random(15)
    driver = make_driver(blocks=150, size=4, rows=8, context=64, overlap=overlap, eos=EOS, poison=63)
    scheduler, pool = driver.scheduler, driver.scheduler.pool
    turn = refused = 0
    to_cancel: dict[int, list[int]] = {}
    for i in range(10_000):
        kind = rng.random()
        seq = random_sequence(rng, i, 24, 12)
        seq.ids[:] = [t % 62 for t in seq.ids]
        if kind < 0.05:
            seq = sequence(i, [1] * rng.randint(64, 200), 4)
        elif kind < 0.10:
            seq.ids[-1] = 63
        elif kind < 0.40:  # some of them end first
            to_cancel.setdefault(turn + rng.randint(1, 100), []).append(i)
        try:
            scheduler.add(seq)
        except UsageError:
            refused += 1
        while len(scheduler.waiting) >= 128 or (rng.random() < 0.2 and not scheduler.idle):
            driver.turn()
            turn += 1
            for victim in to_cancel.pop(turn, ()):
                driver.cancel(victim)
        if i % 100 == 0:
            scheduler.check()
    driver.drain()
    scheduler.check()
    assert pool.free_count + pool.cached_count == pool.usable
    assert scheduler.idle
    ends = Counter(driver.ended.values())
    assert sum(ends.values()) + refused == 10_000
    assert set(ends) == {"stop", "length", "cancelled", "failed"}
    assert ends["cancelled"] > 1800
    assert min(refused, ends["failed"]) > 300
    del seq
    gc.collect()
    assert not [o for o in gc.get_objects() if isinstance(o, Sequence)], "ended sequences are kept"


def test_check_17_a_request_larger_than_the_pool_is_refused_at_once() -> None:
    driver = make_driver(blocks=10, size=64, context=100_000)
    started = time.thread_time()
    with pytest.raises(UsageError, match=r"need 782 KV blocks and the pool has 10"):
        driver.scheduler.add(sequence(0, [1] * 50_000, 8))
    assert time.thread_time() - started < 0.1
    assert driver.scheduler.idle


def test_check_17_a_pool_full_of_cached_sessions_makes_room() -> None:
    driver = make_driver(blocks=40, size=4, context=256)
    for i in range(10):
        driver.scheduler.add(sequence(i, [i] * 14, 3))
        driver.drain()
    assert driver.scheduler.pool.cached_count == 40
    large = sequence(10, [20] * 140, 20)
    driver.scheduler.add(large)
    assert driver.drain(most=100) <= 30
    check_replies(driver, [large])
    driver.scheduler.check()


@pytest.mark.parametrize(("size", "length"), [(4, 200), (64, 100_000)])
@pytest.mark.parametrize("max_skips", [0, 3, 16])
def test_check_19_a_long_prompt_among_short_ones_is_passed_at_most_max_skips_times(
    max_skips: int, size: int, length: int
) -> None:
    blocks, context = -(-length // size) + 10, length + 56
    driver = make_driver(blocks, size, 8, 16 * size, context, overlap=1, max_skips=max_skips)
    for i in range(8):
        driver.scheduler.add(sequence(i, [i] * (4 * size), 10 + i))
    driver.turn()
    long = sequence(8, [9] * length, 8)
    driver.scheduler.add(long)
    started = []
    for i in range(9, 400):
        seq = sequence(i, [i % 64] * (3 * size), 12)
        driver.scheduler.add(seq)
        started.append(seq)
        driver.turn()
        if long.started is not None:
            break
    passed = [s for s in started if s.started is not None and s.started < (long.started or 0)]
    assert long.started is not None, "starved"
    assert len(passed) == long.skipped == max_skips, "it was passed as often as allowed, and no more"
    driver.drain()
    check_replies(driver, [long], context)


def test_check_19_higher_priorities_pass_at_most_max_skips_times_too() -> None:
    driver = make_driver(rows=1, max_skips=4)
    low = sequence(0, [1] * 4, 2)
    driver.scheduler.add(sequence(99, [2] * 4, 2))
    driver.turn()
    driver.scheduler.add(low)
    for i in range(1, 20):
        seq = sequence(i, [i] * 4, 2)
        seq.priority = 5
        driver.scheduler.add(seq)
    driver.drain()
    assert low.skipped == 4
    assert list(driver.ended).index(0) == 5


@pytest.mark.parametrize(("rows", "budget_us"), [(1, 100), (8, 250), (64, 2000)])
def test_check_27_host_time_of_plan_and_commit(rows: int, budget_us: float) -> None:
    """Bounds for a busy machine; an idle one is several times faster. Best of many rounds of 32 steps."""
    driver = make_driver(blocks=64 * rows, size=64, rows=rows, context=2048, chunk=4096)
    scheduler = driver.scheduler
    for i in range(rows):
        scheduler.add(sequence(i, [i] * 8, 1500))
    driver.turn()
    best = float("inf")
    gc.collect()
    for _ in range(20):
        spent = 0.0
        for _ in range(32):
            t0 = time.thread_time()
            plan = scheduler.plan(0.0)
            t1 = time.thread_time()
            assert plan is not None
            output = StepOutput(plan.step, tuple(RowOutput(w.seq, w.epoch, 1) for w in plan.decode))
            t2 = time.thread_time()
            scheduler.commit(output)
            spent += time.thread_time() - t2 + t1 - t0
        best = min(best, spent / 32)
    print(f"plan + commit at {rows} rows: {best * 1e6:.1f} us")
    assert best * 1e6 < budget_us
