"""The KV block pool as a map of letters: A-Z a session's blocks, a-z those of a shared prefix.

Three zooms. `used` groups the allocated blocks by session, then the cached ones, and leaves the free ones to a
number; `pool` adds the free ones, so that the map is the whole pool; `physical` keeps the allocator's order,
which shows fragmentation. Each cell stands for up to `per_cell` blocks.

In `used` and `pool` every cell has one owner and a group's cells hold all of its blocks, so cells summed by
owner equal the snapshot's counts at any scale. In `physical` a cell shows what most of its blocks are; with one
block per cell the same sums hold. Each session begins a row of its own while there is room: a block that
comes or goes then changes one row, not every row after it.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...engine.text import one_line
from ...engine.types import KVSnapshot
from .glyphs import Glyphs
from .rows import Row

Zoom = Literal["used", "pool", "physical"]
ZOOMS: tuple[Zoom, ...] = ("used", "pool", "physical")

FREE, CACHED, FIRST_SESSION = 0, 1, 2  # codes of KVSnapshot.owners
OWNER_STYLES = 12

Letters = Mapping[str, tuple[str, str]]


class OwnerPalette:
    """A letter and a style for each living session; neither changes until the session is released."""

    def __init__(self) -> None:
        self._taken: dict[str, int] = {}

    def letter(self, session: str) -> tuple[str, str]:
        """(letter A-Z, style owner.0 to owner.11). The 27th living session and later ones share `*`."""
        at = self._taken.get(session)
        if at is None:
            used = set(self._taken.values())
            at = next(i for i in range(len(used) + 1) if i not in used)
            self._taken[session] = at
        return (chr(ord("A") + at) if at < 26 else "*"), f"owner.{at % OWNER_STYLES}"

    def release(self, session: str) -> None:
        """The session is gone: its letter may be given to the next one."""
        self._taken.pop(session, None)

    def release_others(self, beginning: str, living: Collection[str]) -> None:
        """Those whose name begins so and are not `living` are gone."""
        for session in [name for name in self._taken if name.startswith(beginning) and name not in living]:
            self.release(session)

    def letters(self, sessions: Iterable[str]) -> dict[str, tuple[str, str]]:
        """The letters of these sessions, in one mapping."""
        return {session: self.letter(session) for session in sessions}


@dataclass(frozen=True, slots=True)
class Group:
    """Blocks of one kind: an owner code of `KVSnapshot`, held by one sequence or shared by several."""

    owner: int
    shared: bool
    blocks: int


class Run(NamedTuple):
    """Neighbouring cells of one group on one row: `blocks` blocks, from index `first` of `KVMap.order`."""

    group: int
    cells: int
    first: int
    blocks: int


@dataclass(frozen=True, slots=True)
class KVMap:
    """A laid-out map. `groups` counts every usable block of the pool; `rows` hold runs from the left, without gaps;
    `order` are the ids of the blocks in the order in which the runs count them. `hidden` groups found no
    room: only their numbers can be shown."""

    zoom: Zoom
    per_cell: int
    groups: tuple[Group, ...]
    rows: tuple[tuple[Run, ...], ...]
    order: NDArray[np.intp]
    hidden: int = 0

    def at(self, x: int, y: int) -> tuple[Group, NDArray[np.intp]] | None:
        """The group and the block ids of a cell; None beyond the map."""
        if not 0 <= y < len(self.rows) or x < 0:
            return None
        for run in self.rows[y]:
            if x < run.cells:
                first = run.first + x * self.per_cell
                end = min(first + self.per_cell, run.first + run.blocks)
                return self.groups[run.group], self.order[first:end]
            x -= run.cells
        return None


def usable(kv: KVSnapshot) -> int:
    """Blocks that can hold text."""
    return kv.free + kv.cached + kv.used


def layout(kv: KVSnapshot, zoom: Zoom, width: int, height: int) -> KVMap:
    """Lay the pool out on `height` rows of `width` cells (both at least 1). `kv` must hold the map. The pad
    blocks at the pool's beginning hold no text and are left out."""
    pads = kv.total - usable(kv)
    owners = np.frombuffer(kv.owners, dtype="<u2").astype(np.intp)[pads:]
    shared = np.frombuffer(kv.shared, dtype=np.uint8)[pads:] > 1 if kv.shared else np.zeros(len(owners), bool)
    # a block's group as a number that sorts: sessions with their own blocks first, then cached, then free
    cached = 2 * max(FIRST_SESSION + len(kv.sessions), int(owners.max(initial=0)) + 1)
    keys = np.where(
        owners >= FIRST_SESSION, owners * 2 + shared, np.where(owners == CACHED, cached, cached + 2)
    )
    counts = np.bincount(keys) if len(keys) else np.zeros(0, np.intp)
    present = np.flatnonzero(counts)
    groups = tuple(
        Group(int(key) // 2, bool(key % 2), int(counts[key]))
        if key < cached
        else Group(CACHED if key == cached else FREE, False, int(counts[key]))
        for key in present
    )
    if zoom == "physical":
        number = np.zeros(len(counts), np.intp)
        number[present] = np.arange(len(present))
        laid_out = _physical(number[keys] if len(keys) else keys, groups, width, height)
        return replace(laid_out, order=laid_out.order + pads)
    order = np.argsort(keys.astype(np.uint32), kind="stable") + pads
    shown = [group for group in groups if zoom == "pool" or group.owner != FREE]
    return _grouped(zoom, order, groups, shown, width, height)


def _steps() -> Iterator[int]:
    """Blocks per cell to choose from: coarse enough that a growing pool seldom changes the scale."""
    for decade in itertools.count():
        yield from (
            step * 10**decade // 10
            for step in (10, 12, 15, 20, 25, 30, 40, 50, 60, 80)
            if decade or not step % 10
        )


def _grouped(
    zoom: Zoom,
    order: NDArray[np.intp],
    groups: tuple[Group, ...],
    shown: list[Group],
    width: int,
    height: int,
) -> KVMap:
    owners = [list(found) for _, found in itertools.groupby(shown, key=lambda group: group.owner)]
    own_rows = 2 * len(owners) <= height

    def rows_at(scale: int) -> int:
        cells = [sum(-(-group.blocks // scale) for group in found) for found in owners]
        return sum(-(-n // width) for n in cells) if own_rows else -(-sum(cells) // width)

    largest = max((group.blocks for group in shown), default=1)
    per_cell = next(scale for scale in _steps() if rows_at(scale) <= height or scale >= largest)
    rows: list[list[Run]] = [[]]
    left, first = width, 0
    for found in owners:
        if own_rows and left < width:
            rows.append([])
            left = width
        for group in found:
            done = 0
            while done < group.blocks:
                if not left:
                    rows.append([])
                    left = width
                cells = min(left, -(-(group.blocks - done) // per_cell))
                blocks = min(cells * per_cell, group.blocks - done)
                rows[-1].append(Run(groups.index(group), cells, first + done, blocks))
                left, done = left - cells, done + blocks
            first += group.blocks
    seen = {run.group for row in rows[:height] for run in row}
    kept = tuple(tuple(row) for row in rows[:height])
    return KVMap(zoom, per_cell, groups, kept, order, len(shown) - len(seen))


def _physical(numbers: NDArray[np.intp], groups: tuple[Group, ...], width: int, height: int) -> KVMap:
    total = len(numbers)
    per_cell = next(scale for scale in _steps() if -(-total // scale) <= width * height)
    n_cells = -(-total // per_cell)
    cells = numbers
    if per_cell > 1:
        kinds = max(1, len(groups))
        votes = np.bincount(np.arange(total) // per_cell * kinds + numbers, minlength=n_cells * kinds)
        cells = votes.reshape(n_cells, kinds).argmax(axis=1)  # a tie goes to the session, not to free
    change = np.diff(cells, prepend=-1) != 0
    change[::width] = True  # a row begins a run
    begins = np.flatnonzero(change)
    ends = np.append(begins[1:], n_cells)
    firsts = begins * per_cell
    blocks = np.minimum(ends * per_cell, total) - firsts
    fields = (cells[begins], ends - begins, firsts, blocks)
    runs = [Run(*run) for run in zip(*(field.tolist() for field in fields), strict=True)]
    cuts = np.searchsorted(begins, np.arange(0, n_cells + width, width)).tolist()
    rows = [tuple(runs[a:b]) for a, b in itertools.pairwise(cuts) if a < b]
    return KVMap("physical", per_cell, groups, tuple(rows), np.arange(total))


def look(group: Group, sessions: Sequence[str], letters: Letters, glyphs: Glyphs) -> tuple[str, str]:
    """The glyph and the style of a group's cells; a session without a letter shows as `?`."""
    if group.owner == FREE:
        return glyphs.free, "kv.free"
    if group.owner == CACHED:
        return glyphs.medium, "kv.cached"
    letter, style = letters.get(_session(group, sessions), ("?", "dim"))
    return (letter.lower() if group.shared else letter), style


def _session(group: Group, sessions: Sequence[str]) -> str:
    at = group.owner - FIRST_SESSION
    return sessions[at] if at < len(sessions) else ""


def map_rows(
    kvmap: KVMap, sessions: Sequence[str], width: int, letters: Letters, glyphs: Glyphs
) -> list[Row]:
    """The map as rows of exactly `width` cells, as many as it needs."""
    looks = [look(group, sessions, letters, glyphs) for group in kvmap.groups]
    rows = []
    for runs in kvmap.rows:
        row = [(looks[run.group][0] * run.cells, looks[run.group][1]) for run in runs]
        blank = width - sum(run.cells for run in runs)
        rows.append([*row, (" " * blank, "")] if blank else row)
    return rows


def cell_info(kvmap: KVMap, kv: KVSnapshot, x: int, y: int, labels: Mapping[str, str]) -> str:
    """One line on a cell: block ids, owner (its label where `labels` knows the session) and holders."""
    found = kvmap.at(x, y)
    if found is None:
        return ""
    group, blocks = found
    first, last = int(blocks.min()), int(blocks.max())
    where = f"block {first}" if len(blocks) == 1 else f"{len(blocks)} blocks {first}-{last}"
    mostly = "mostly " if kvmap.zoom == "physical" and len(blocks) > 1 else ""
    if group.owner in (FREE, CACHED):
        return f"{where}: {mostly}{'free' if group.owner == FREE else 'cached, evictable'}"
    session = _session(group, kv.sessions)
    holders = max((kv.shared[block] for block in blocks.tolist() if block < len(kv.shared)), default=1)
    held = f"{max(1, holders)} holder{'s' if holders > 1 else ''}"
    return f"{where}: {mostly}{one_line(labels.get(session) or session or 'unnamed', 40)}, {held}"
