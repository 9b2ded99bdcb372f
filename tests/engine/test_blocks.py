"""The block pool: ledger, eviction order, prefix index, owner map."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmtop.engine.blocks import BlockPool
from lmtop.engine.types import LmtopError, UsageError

SIZE = 4


def ids_of(*contents: int) -> list[int]:
    """Full blocks, each of one repeated id."""
    return [c for c in contents for _ in range(SIZE)]


def fill(pool: BlockPool, *contents: int, owner: str = "", cached: bool = True) -> list[int]:
    """Hold and publish a sequence as the scheduler does: its cached prefix first, then new blocks. Not
    `cached`: as one that was admitted before anything it could hit was published."""
    ids = ids_of(*contents)
    blocks = pool.match(ids, len(ids)) if cached else []
    pool.hold(blocks, owner)
    blocks += pool.allocate(len(contents) - len(blocks), owner) or []
    for i, block in enumerate(blocks):
        pool.publish(block, blocks[i - 1] if i else 0, ids[i * SIZE : (i + 1) * SIZE])
    return blocks


def test_the_null_block_is_never_handed_out_and_all_others_are() -> None:
    pool = BlockPool(8, SIZE)
    assert sorted(pool.allocate(7) or []) == [1, 2, 3, 4, 5, 6, 7]
    assert pool.allocate(1) is None
    assert (pool.free_count, pool.cached_count, pool.used_count) == (0, 0, 7)
    pool.check()


def test_a_pool_needs_one_block_beside_the_null_block() -> None:
    with pytest.raises(UsageError, match="KV blocks = 1"):
        BlockPool(1, SIZE)


def test_a_failed_allocation_takes_nothing() -> None:
    pool = BlockPool(4, SIZE)
    assert pool.allocate(4) is None
    assert pool.free_count == 3
    pool.check()


def test_freeing_twice_is_refused() -> None:
    pool = BlockPool(4, SIZE)
    blocks = pool.allocate(1) or []
    pool.free(blocks)
    with pytest.raises(LmtopError, match=f"block {blocks[0]} was freed twice"):
        pool.free(blocks)


def test_never_used_blocks_go_first_then_the_oldest_freed_tail_first() -> None:
    pool = BlockPool(8, SIZE)
    first = fill(pool, 1, 2)
    second = fill(pool, 3, 4)
    pool.free(first)
    pool.free(second)
    assert (pool.free_count, pool.cached_count) == (3, 4)
    fresh = pool.allocate(3) or []
    assert not set(fresh) & {*first, *second}
    assert [(pool.allocate(1) or [])[0] for _ in range(4)] == [*reversed(first), *reversed(second)]
    pool.check()


def test_a_hit_makes_a_block_the_newest_when_it_is_freed_again() -> None:
    pool = BlockPool(4, SIZE)
    old, new = fill(pool, 1), fill(pool, 2)
    pool.free(old)
    pool.free(new)
    pool.free(fill(pool, 1))
    assert pool.allocate(2) == [3, *new]


@pytest.mark.parametrize(
    ("limit", "hits"), [(0, 0), (SIZE - 1, 0), (SIZE, 1), (SIZE + 1, 1), (3 * SIZE - 1, 2), (99, 3)]
)
def test_match_returns_full_blocks_within_the_limit(limit: int, hits: int) -> None:
    pool = BlockPool(8, SIZE)
    blocks = fill(pool, 1, 2, 3)
    assert pool.match([*ids_of(1, 2, 3), 9], limit) == blocks[:hits]


def test_match_stops_at_the_first_difference() -> None:
    pool = BlockPool(8, SIZE)
    blocks = fill(pool, 1, 2, 3)
    assert pool.match(ids_of(1, 7, 3), 99) == blocks[:1]
    assert pool.match(ids_of(2, 3), 99) == []
    ids = ids_of(1, 2, 3)
    ids[2 * SIZE - 1] += 1
    assert pool.match(ids, 99) == blocks[:1]


def test_check_12_a_constant_hash_never_gives_a_wrong_hit() -> None:
    pool = BlockPool(32, SIZE, hash_fn=lambda data: b"same")
    fill(pool, 1, 2)
    fill(pool, 3, 2)
    fill(pool, 2)
    assert len(pool.match(ids_of(1), 99)) == 1
    for other in (ids_of(3, 2), ids_of(2), ids_of(2, 2), [9, *ids_of(1)]):
        assert pool.match(other, 99) == []
    pool.check()


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=4), min_size=1, max_size=12),
    st.sampled_from([1, 2, 3, 251]),
)
def test_check_12_with_many_collisions_a_hit_is_always_the_same_content(
    sequences: list[list[int]], buckets: int
) -> None:
    """Blocks carry the whole prefix they were computed after; a hit must carry exactly the one asked for."""
    pool = BlockPool(12, SIZE, hash_fn=lambda data: bytes([hash(data) % buckets]))
    computed: dict[int, list[int]] = {}
    for contents in sequences:
        ids = ids_of(*contents)
        hits = pool.match(ids, len(ids))
        for i, block in enumerate(hits):
            assert computed[block] == contents[: i + 1]
        blocks = fill(pool, *contents)
        for i in range(len(hits), len(blocks)):
            computed[blocks[i]] = contents[: i + 1]
        pool.check()
        pool.free(blocks)
        pool.check()


def test_check_12_another_salt_is_another_key() -> None:
    seen: dict[bytes, set[bytes]] = {b"kv=fp16": set(), b"kv=int8": set()}

    for salt, hashed in seen.items():

        def spy(data: bytes, hashed: set[bytes] = hashed) -> bytes:
            hashed.add(data)
            return data

        fill(BlockPool(4, SIZE, salt=salt, hash_fn=spy), 1, 2)
    one, two = seen.values()
    assert len(one) == len(two) == 3
    assert not one & two


def test_hashes_differ_between_pools_unless_injected() -> None:
    one, two = BlockPool(4, SIZE), BlockPool(4, SIZE)
    assert one._hash(b"x") != two._hash(b"x")
    assert len(one._hash(b"x")) == 16


def test_a_twin_block_takes_over_when_the_first_is_evicted() -> None:
    pool = BlockPool(8, SIZE)
    first, twin = pool.allocate(1) or [], pool.allocate(2) or []
    assert pool.publish(first[0], 0, ids_of(1))
    assert pool.publish(twin[0], 0, ids_of(1))
    assert pool.publish(twin[1], twin[0], ids_of(2))
    pool.free(first)
    assert pool.cached_count == 0  # redundant while the twin is held
    pool.check()
    pool.free(twin)
    assert pool.match(ids_of(1, 2), 99) == twin
    pool.check()


def test_a_cached_twin_makes_way_for_a_held_one() -> None:
    pool = BlockPool(8, SIZE)
    late = pool.allocate(1) or []
    pool.free(fill(pool, 1))
    assert pool.cached_count == 1
    assert pool.publish(late[0], 0, ids_of(1))
    assert pool.cached_count == 0
    assert pool.match(ids_of(1), 99) == late
    pool.check()


def test_a_block_is_published_once_and_only_while_held() -> None:
    pool = BlockPool(8, SIZE)
    blocks = pool.allocate(1) or []
    assert pool.publish(blocks[0], 0, ids_of(1))
    assert not pool.publish(blocks[0], 0, ids_of(2))
    private = pool.allocate(2) or []
    assert not pool.publish(private[1], private[0], ids_of(3)), "its parent is not indexed"
    pool.free(private)
    assert not pool.publish(private[0], 0, ids_of(4))
    pool.check()


def test_what_cannot_be_trusted_leaves_the_index_with_its_continuations() -> None:
    pool = BlockPool(16, SIZE)
    longer = fill(pool, 1, 2, 3)
    pool.free(longer)
    bad = fill(pool, 1, 2)
    pool.free(bad, keep=False)
    assert pool.match(ids_of(1, 2, 3), 99) == []
    assert (pool.free_count, pool.cached_count) == (15, 0)
    pool.check()


def test_what_others_hold_stays_when_one_holder_is_not_trusted() -> None:
    pool = BlockPool(16, SIZE)
    held = fill(pool, 1, 2)
    pool.free(fill(pool, 1, 2, 3), keep=False)
    assert pool.match(ids_of(1, 2, 3), 99) == held
    pool.check()


def owners(pool: BlockPool) -> list[int]:
    return list(memoryview(pool.snapshot(kv_map=True).owners).cast("H"))


def test_the_owner_map_says_who_holds_what() -> None:
    pool = BlockPool(8, SIZE)
    a = fill(pool, 1, 2, owner="A")
    b = fill(pool, 1, 3, owner="B")
    snapshot = pool.snapshot(kv_map=True)
    assert snapshot.sessions == ("A", "B")
    assert snapshot.free + snapshot.cached + snapshot.used == snapshot.total - 1
    assert owners(pool) == [0, 2, 2, 3, 0, 0, 0, 0]
    assert list(snapshot.shared) == [0, 2, 1, 1, 0, 0, 0, 0]
    pool.free(a)
    assert owners(pool) == [0, 2, 1, 3, 0, 0, 0, 0], "a shared block keeps its first label"
    pool.free(b)
    assert owners(pool) == [0, 1, 1, 1, 0, 0, 0, 0]
    assert pool.snapshot(kv_map=True).sessions == ("", "")
    assert pool.snapshot().owners == b""


def test_owner_slots_are_used_again() -> None:
    pool = BlockPool(8, SIZE)
    for i in range(1000):
        pool.free(fill(pool, i, owner=f"s{i}"))
    assert len(pool.snapshot(kv_map=True).sessions) == 1
    fill(pool, 1, owner="x")
    fill(pool, 2, owner="y")
    assert pool.snapshot(kv_map=True).sessions == ("x", "y")


def test_share_counts_saturate() -> None:
    pool = BlockPool(4, SIZE)
    blocks = pool.allocate(1) or []
    for _ in range(299):
        pool.hold(blocks)
    assert pool.snapshot(kv_map=True).shared[blocks[0]] == 255
    pool.check()
    for _ in range(300):
        pool.free(blocks)
    assert pool.free_count == 3
    pool.check()


@pytest.mark.parametrize("field", ["_free", "_cached"])
def test_check_names_a_wrong_count(field: str) -> None:
    pool = BlockPool(8, SIZE)
    setattr(pool, field, getattr(pool, field) + 1)
    with pytest.raises(LmtopError, match="KV block ledger"):
        pool.check()


@settings(max_examples=80, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["start", "twin", "free", "drop"]),
            st.lists(st.integers(0, 2), min_size=1, max_size=4),
            st.integers(0, 9),
        ),
        max_size=40,
    )
)
def test_the_ledger_holds_and_parents_outlive_children(steps: list[tuple[str, list[int], int]]) -> None:
    pool = BlockPool(14, SIZE)
    held: list[list[int]] = []
    for verb, contents, pick in steps:
        if verb in ("start", "twin") and len(contents) <= pool.available:
            blocks = fill(pool, *contents, owner=f"s{pick}", cached=verb == "start")
            assert len(blocks) == len(set(blocks)) == len(contents)
            held.append(blocks)
        elif verb in ("free", "drop") and held:
            pool.free(held.pop(pick % len(held)), keep=verb == "free")
        pool.check()
        assert pool.used_count == len({b for blocks in held for b in blocks})
