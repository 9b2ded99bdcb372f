"""The KV block pool: which blocks are free, cached or held, and the prefix index that finds cached ones.

Owner: the loop thread (`snapshot` copies plain bytes for others). Invariants, asserted by `check`:
- block 0 is the null block: pad rows write there, nobody is ever given it;
- free + cached + used == total - 1, where used blocks have refs >= 1, cached ones are indexed with refs 0;
- content has one node, found by hash(parent, ids) and believed only if the exact ids and the parent agree;
- a node with a cached block has no second block, and its parent is in the index (parents outlive children,
  because whoever holds a block holds its prefix too and frees it tail first).
"""

from __future__ import annotations

import hashlib
import os
from array import array
from collections.abc import Callable, Sequence
from heapq import heappop, heappush

from .types import KVSnapshot, LmtopError, UsageError

HashFn = Callable[[bytes], bytes]

_FREE, _CACHED, _FIRST_OWNER = 0, 1, 2


def seeded_hash() -> HashFn:
    """A 128-bit keyed BLAKE2b; the random key keeps outsiders from preparing collisions."""
    key = os.urandom(16)
    return lambda data: hashlib.blake2b(data, digest_size=16, key=key).digest()


class _Node:
    """One published content: the ids of one full block after the contents of `parent`."""

    __slots__ = ("blocks", "ids", "key", "parent")

    def __init__(self, key: bytes, parent: _Node | None, ids: bytes) -> None:
        self.key = key
        self.parent = parent
        self.ids = ids
        self.blocks: list[Block] = []


class Block:
    """One KV block; `prev`/`next` link it into the eviction order while nobody holds it."""

    __slots__ = ("id", "next", "node", "prev", "refs")

    def __init__(self, id: int) -> None:
        self.id = id
        self.refs = 0
        self.node: _Node | None = None
        self.prev: Block = self
        self.next: Block = self


class BlockPool:
    """`total` blocks of `block_size` positions, block 0 included. `salt` separates contents that equal ids do
    not make equal (KV format, rope choice, adapter). `hash_fn` maps bytes to a key (tests inject bad ones)."""

    def __init__(self, total: int, block_size: int, salt: bytes = b"", hash_fn: HashFn | None = None) -> None:
        if total < 2:
            raise UsageError(f"KV blocks = {total}: must be at least 2 (one is the null block)")
        self.total = total
        self.block_size = block_size
        self._hash = hash_fn or seeded_hash()
        self._salt = salt
        self._roots: dict[int, _Node] = {}
        self._index: dict[bytes, _Node] = {}
        self._blocks = [Block(i) for i in range(total)]
        # Block 0 is never handed out, so it serves as the list's anchor: its `next` is evicted first.
        self._anchor = self._blocks[0]
        for block in self._blocks[1:]:
            self._link(block, before=self._anchor)
        self._free = total - 1
        self._cached = 0
        self._owners = array("H", bytes(2 * total))
        self._shared = bytearray(total)
        self._labels: list[str] = []
        self._owned: list[int] = []  # blocks that bear each label
        self._slot_of: dict[str, int] = {}
        self._vacant: list[int] = []

    # --- counts --------------------------------------------------------------------------------------------

    @property
    def usable(self) -> int:
        """Blocks that one sequence alone could hold."""
        return self.total - 1

    @property
    def free_count(self) -> int:
        """Blocks with no content worth keeping."""
        return self._free

    @property
    def cached_count(self) -> int:
        """Blocks nobody holds whose content the prefix index can still find."""
        return self._cached

    @property
    def used_count(self) -> int:
        """Blocks held by at least one sequence."""
        return self.total - 1 - self._free - self._cached

    @property
    def available(self) -> int:
        """Blocks that `allocate` could hand out: free ones and, by eviction, cached ones."""
        return self._free + self._cached

    def blocks_for(self, positions: int) -> int:
        """Blocks that hold so many positions."""
        return -(-positions // self.block_size)

    def idle(self, blocks: Sequence[int]) -> int:
        """How many of these nobody holds."""
        return sum(1 for b in blocks if not self._shared[b])

    def exclusive(self, blocks: Sequence[int]) -> int:
        """How many of these have one holder only, and come back when it ends."""
        return sum(1 for b in blocks if self._shared[b] == 1)

    # --- holding -------------------------------------------------------------------------------------------

    def _root(self, salt: int) -> _Node:
        """The node before the first block. Sequences of different salts never share a block."""
        root = self._roots.get(salt)
        if root is None:
            key = self._hash(self._salt + salt.to_bytes(8, "little"))
            root = self._roots[salt] = _Node(key, None, b"")
        return root

    def match(self, ids: Sequence[int], limit: int, salt: int = 0) -> list[int]:
        """The longest cached prefix of `ids`, in full blocks, of at most `limit` positions. Holds nothing."""
        size = self.block_size
        node, found = self._root(salt), []
        for start in range(0, min(limit, len(ids)) // size * size, size):
            data = array("I", ids[start : start + size]).tobytes()
            child = self._index.get(self._hash(node.key + data))
            if child is None or child.parent is not node or child.ids != data:
                break
            found.append(child.blocks[0].id)
            node = child
        return found

    def hold(self, blocks: Sequence[int], owner: str = "") -> None:
        """One more holder for each block; those that were cached now bear the label `owner`."""
        slot = -1
        for b in blocks:
            block = self._blocks[b]
            if not block.refs:
                self._unlink(block)
                self._cached -= 1
                slot = self._slot(owner) if slot < 0 else slot
                self._owned[slot] += 1
                self._owners[b] = _FIRST_OWNER + slot
            block.refs += 1
            self._shared[b] = min(block.refs, 255)

    def allocate(self, n: int, owner: str = "") -> list[int] | None:
        """`n` blocks of undefined content, free ones first, then the longest unused; None if too few."""
        if n > self._free + self._cached:
            return None
        if n == 0:
            return []
        slot = self._slot(owner)
        self._owned[slot] += n
        taken = []
        for _ in range(n):
            block = self._anchor.next
            self._unlink(block)
            if block.node is None:
                self._free -= 1
            else:
                self._cached -= 1
                self._detach(block)
            block.refs = 1
            self._owners[block.id] = _FIRST_OWNER + slot
            self._shared[block.id] = 1
            taken.append(block.id)
        return taken

    def publish(self, block: int, parent: int, ids: Sequence[int], salt: int = 0) -> bool:
        """Make a full, held block findable: it holds `ids` after the content of block `parent` (0: none).

        A second block of the same content joins the first one's node. False if the parent is not indexed or
        another content has the same hash: then this one stays private.
        """
        up = self._blocks[parent].node if parent else self._root(salt)
        mine = self._blocks[block]
        if up is None or mine.node is not None or not mine.refs:
            return False
        data = array("I", ids).tobytes()
        key = self._hash(up.key + data)
        node = self._index.get(key)
        if node is None:
            node = self._index[key] = _Node(key, up, data)
        elif node.parent is not up or node.ids != data:
            return False
        node.blocks.append(mine)
        mine.node = node
        if not node.blocks[0].refs:  # a cached twin is redundant now, and older than its children may be
            self._discard(node.blocks[0])
        return True

    def free(self, blocks: Sequence[int], keep: bool = True) -> None:
        """One holder less for each of a sequence's blocks, in table order. What nobody holds any more stays
        cached if it was published, unless `keep` is False (its content cannot be trusted)."""
        for b in reversed(blocks):
            block = self._blocks[b]
            if not block.refs:
                raise LmtopError(f"KV block {b} was freed twice: this is a bug")
            block.refs -= 1
            self._shared[b] = min(block.refs, 255)
            if not block.refs:
                self._give_back(block, keep)
        if not keep:
            self._discard_orphans()

    # --- gauges --------------------------------------------------------------------------------------------

    def snapshot(self, kv_map: bool = False) -> KVSnapshot:
        """The counts and, with `kv_map`, the owner of each block (entry 0 is the null block, always 0). A
        label stays on a shared block until its last holder leaves; labels no block bears are empty."""
        counts = (self.block_size, self.total, self._free, self._cached, self.used_count)
        if not kv_map:
            return KVSnapshot(*counts)
        return KVSnapshot(*counts, self._owners.tobytes(), bytes(self._shared), tuple(self._labels))

    def check(self) -> None:
        """Walk everything and raise LmtopError naming the first count that does not add up."""
        order = self._eviction_order()
        free = [b for b in order if b.node is None]
        cached = [b for b in order if b.node is not None]
        used = [b for b in self._blocks[1:] if b.refs]
        labels = [0] * len(self._labels)
        for block in used:
            labels[self._owners[block.id] - _FIRST_OWNER] += 1
        published = [b for b in self._blocks if b.node is not None]
        nodes = list(self._index.values())
        facts = {
            f"free {self._free}, counted {len(free)}": self._free == len(free),
            f"cached {self._cached}, counted {len(cached)}": self._cached == len(cached),
            f"free {len(free)} + cached {len(cached)} + used {len(used)} != {self.total - 1}": (
                len(free) + len(cached) + len(used) == self.total - 1
            ),
            "a block is held and evictable": not any(b.refs for b in order),
            "a free block comes after a cached one": order == free + cached,
            "the null block is in use": not self._anchor.refs and self._anchor.node is None,
            "the index and the blocks disagree": sorted(b.id for n in nodes for b in n.blocks)
            == [b.id for b in published]
            and all(b.node is n for n in nodes for b in n.blocks),
            "a cached block has a twin": all(len(b.node.blocks) == 1 for b in cached if b.node),
            "a node's parent is gone": all(
                n.parent in self._roots.values() or (n.parent and self._index.get(n.parent.key) is n.parent)
                for n in nodes
            ),
            "the owner map disagrees": labels == self._owned
            and all(self._owners[b.id] == _FREE for b in free)
            and all(self._owners[b.id] == _CACHED for b in cached),
            "the share counts disagree": all(self._shared[b.id] == min(b.refs, 255) for b in self._blocks),
        }
        for fact, holds in facts.items():
            if not holds:
                raise LmtopError(f"KV block ledger: {fact}: this is a bug")

    # --- inside --------------------------------------------------------------------------------------------

    def _link(self, block: Block, before: Block) -> None:
        block.prev, block.next = before.prev, before
        before.prev.next = before.prev = block

    def _unlink(self, block: Block) -> None:
        block.prev.next, block.next.prev = block.next, block.prev
        block.prev = block.next = block

    def _eviction_order(self) -> list[Block]:
        order, block = [], self._anchor.next
        while block is not self._anchor:
            order.append(block)
            block = block.next
        return order

    def _give_back(self, block: Block, keep: bool) -> None:
        """File a block that lost its last holder: last in line if it is the cached copy, else first."""
        slot = self._owners[block.id] - _FIRST_OWNER
        self._owned[slot] -= 1
        if not self._owned[slot]:
            del self._slot_of[self._labels[slot]]
            self._labels[slot] = ""
            heappush(self._vacant, slot)
        node = block.node
        if node is not None and keep and len(node.blocks) == 1:
            self._owners[block.id] = _CACHED
            self._cached += 1
            self._link(block, before=self._anchor)
            return
        if node is not None:
            self._detach(block)
        self._owners[block.id] = _FREE
        self._free += 1
        self._link(block, before=self._anchor.next)

    def _detach(self, block: Block) -> None:
        """Take a block out of its content's node; the last one takes the node out of the index."""
        node = block.node
        if node is None:
            return
        node.blocks.remove(block)
        block.node = None
        if not node.blocks:
            del self._index[node.key]

    def _discard(self, block: Block) -> None:
        """Turn a cached block into a free one."""
        self._unlink(block)
        self._detach(block)
        self._cached -= 1
        self._free += 1
        self._owners[block.id] = _FREE
        self._link(block, before=self._anchor.next)

    def _discard_orphans(self) -> None:
        """Discard cached blocks whose parent left the index; newest first meets parents before children."""
        for block in reversed(self._eviction_order()):
            parent = block.node and block.node.parent
            if parent and parent.parent is not None and self._index.get(parent.key) is not parent:
                self._discard(block)

    def _slot(self, label: str) -> int:
        slot = self._slot_of.get(label)
        if slot is None:
            if self._vacant:
                slot = heappop(self._vacant)
                self._labels[slot] = label
            else:
                slot = len(self._labels)
                self._labels.append(label)
                self._owned.append(0)
            self._slot_of[label] = slot
        return slot
