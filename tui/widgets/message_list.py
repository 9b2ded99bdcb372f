"""A scrolling list of messages that costs what is in view: lines are made on demand, nothing is in the DOM."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import count

from textual.geometry import Region, Size
from textual.reactive import var
from textual.timer import Timer

from ..render.entry import MEASURE, Change, Entry, EntryView, Status, estimate_height
from ..render.heights import Heights
from ..render.lines import Row
from .line_scroll import LineScroll

_SLICE_CHARS = 16_000  # characters laid out at once; the rest of a huge message follows in idle slices
_SLICE_S = 0.006
_SLICE_EVERY_S = 0.02
_VIEWS = 256  # messages kept as lines
_EXACT = 4000  # newest messages whose height is measured ahead; older ones when they come into view


class MessageList(LineScroll):
    """Entries, their heights and lines, and a scroll position that stays where the reader left it.

    While `follow` the end stays in view; scrolling up pauses that, and `new_below` counts the rows that have
    arrived out of sight since. The position is kept as (message, row), so that a resize keeps the message.
    """

    follow: var[bool] = var(True)
    new_below: var[int] = var(0)
    jump_scroll: var[bool] = var(False)

    def __init__(self, *, id: str | None = None, classes: str | None = None) -> None:
        super().__init__(id=id, classes=classes)
        self._entries: list[Entry] = []
        self._index: dict[int, int] = {}
        self._views: OrderedDict[int, EntryView] = OrderedDict()
        self._heights = Heights()
        self._exact = bytearray()  # per entry: whether its height is measured
        self._laid = Size(0, 0)  # the size that the layout was made for
        self._anchor: tuple[int, int, int] | None = None  # (entry id, row, its height then) at the top
        self._moving = False  # the position changes by our own doing
        self._seen = 0  # rows there were when following was paused
        self._slices: Timer | None = None
        self._ahead: dict[int, int] = {}  # heights measured ahead, applied together
        self._ahead_next = -1

    # --- entries ---------------------------------------------------------------------------------------------

    def set_entries(self, entries: Sequence[Entry]) -> None:
        """Show these messages, from the end. Cost does not depend on how much text there is above."""
        self._entries = list(entries)
        self._views.clear()
        self._anchor = None
        self.follow = True
        self._reindex()
        self._relay()

    def begin(self, entry: Entry) -> None:
        """Add a message at the end. One's own is scrolled to."""
        self._index[entry.id] = len(self._entries)
        self._entries.append(entry)
        self._heights.append(estimate_height(entry, self._measure_width))
        self._exact.append(0)
        if entry.role == "user":
            self.follow = True
        if not self._laid:
            return
        self._measure(len(self._entries) - 1)
        self._move(self._end_row(jump=True) if self.follow else round(self.scroll_y))
        self.refresh()

    def stream(self, entry_id: int, text: str) -> None:
        """Append a fragment to a streaming message; an unknown id is ignored (it was removed meanwhile)."""
        index = self._index.get(entry_id)
        if index is not None and text:
            self._changed(index, self._view(index).append(text, _SLICE_CHARS))

    def set_waiting(self, entry_id: int, text: str) -> None:
        """What a streaming message shows while it has no text, such as "prefill 43 %"."""
        index = self._index.get(entry_id)
        if index is not None:
            self._changed(index, self._view(index).wait(text))

    def end(
        self, entry_id: int, text: str | None = None, status: Status = "complete", stats: str = ""
    ) -> None:
        """A streaming message is over. `text`, where given, replaces what was streamed if it differs."""
        index = self._index.get(entry_id)
        if index is None:
            return
        view = self._view(index)
        final = view.text if text is None else text
        entry = replace(self._entries[index], text=final, status=status, stats=stats)
        if final != view.text:
            self.update(entry)
            return
        self._entries[index] = entry
        view.end(entry)
        self._changed(index, map(Change, range(max(view.height, self._heights[index]))))

    def update(self, entry: Entry) -> None:
        """Replace a message by its id."""
        index = self._index.get(entry.id)
        if index is None:
            return
        self._entries[index] = entry
        old = self._heights[index]
        self._views.pop(entry.id, None)
        if self._laid:
            self._changed(index, map(Change, range(max(self._view(index).height, old))))

    def drop(self, entry_id: int) -> None:
        """Take a message out."""
        index = self._index.get(entry_id)
        if index is None:
            return
        keep = self._top()
        del self._entries[index], self._exact[index]
        self._heights.pop(index)
        self._views.pop(entry_id, None)
        self._ahead.clear()
        self._reindex()
        self._anchor = keep if keep and keep[0] != entry_id else None
        self._settle()
        self.refresh()

    @property
    def entries(self) -> Sequence[Entry]:
        """The messages; of a streaming one the text is as far as it was when it began."""
        return self._entries

    def entry(self, entry_id: int) -> Entry | None:
        """A message with all its text so far."""
        index = self._index.get(entry_id)
        if index is None:
            return None
        entry = self._entries[index]
        return replace(entry, text=self._view(index).text) if entry.status == "streaming" else entry

    def code_blocks(self, entry_id: int) -> list[str]:
        """The text of each fenced block of a message, in order."""
        index = self._index.get(entry_id)
        if index is None:
            return []
        view = self._view(index)
        while not view.fed:
            self._changed(index, view.feed(_SLICE_CHARS))
        return view.code_blocks

    # --- layout ----------------------------------------------------------------------------------------------

    @property
    def _indent(self) -> int:
        return 3 if self._columns >= 40 else 1

    @property
    def _measure_width(self) -> int:
        return min(MEASURE, max(1, self._columns - self._indent - 1))

    def _reindex(self) -> None:
        self._index = {entry.id: i for i, entry in enumerate(self._entries)}

    def _relay(self) -> None:
        """Forget all heights and lines (other entries, another width) and lay out what is in view."""
        streaming = [view for view in self._views.values() if view.entry.status == "streaming"]
        self._views.clear()
        width = self._measure_width
        self._heights = Heights(estimate_height(entry, width) for entry in self._entries)
        self._exact = bytearray(len(self._entries))
        for old in streaming:
            if (index := self._index.get(old.entry.id)) is not None:
                self._entries[index] = replace(self._entries[index], text=old.text)
                self._view(index).wait(old.waiting)
        self._ahead.clear()
        self._ahead_next = len(self._entries) - 1
        self._settle()
        self._schedule()
        self.refresh()

    def _view(self, index: int) -> EntryView:
        entry = self._entries[index]
        view = self._views.get(entry.id)
        if view is None:
            view = self._views[entry.id] = EntryView(
                entry, self._measure_width, self.glyphs, self._indent - 1
            )
            view.feed(_SLICE_CHARS)
            if not view.fed:
                self._schedule()
            self._prune()
        else:
            self._views.move_to_end(entry.id)
        return view

    def _prune(self) -> None:
        if len(self._views) > _VIEWS:
            for key in list(self._views)[: len(self._views) - _VIEWS]:
                if self._views[key].entry.status != "streaming" and self._views[key].fed:
                    del self._views[key]

    def _measure(self, index: int) -> None:
        self._heights[index] = self._view(index).height
        self._exact[index] = 1

    def _fill(self, indexes: Iterable[int], rows: int) -> None:
        """Measure entries, in this order, until they fill `rows`."""
        for index in indexes:
            if rows <= 0:
                return
            self._measure(index)
            rows -= self._heights[index]

    def _settle(self) -> None:
        """Measure what is in view and put the position where it belongs."""
        self._laid = self.container_size
        if not self._laid or not self._entries:
            self._move(0)
            return
        last = len(self._entries) - 1
        index = self._index.get(self._anchor[0], last) if self._anchor else last
        if self.follow or self._anchor is None:
            self._fill(range(last, -1, -1), self._rows)
            self._move(self._end_row())
            return
        _, row, height = self._anchor
        self._measure(index)
        self._fill(range(index, last + 1), self._rows + row)
        if self._heights.total - self._heights.start(index) < self._rows + row:
            self._fill(range(last, -1, -1), self._rows)
        row = min(row * self._heights[index] // max(height, 1), self._heights[index] - 1)
        self._move(min(self._heights.start(index) + row, self._end_row()))

    def _end_row(self, jump: bool = False) -> int:
        """The position that shows the end. With `jump` blank rows are left below, to be filled before the
        next move: a move repaints every row, so over a slow line few of them are worth more than smooth ones."""
        end = max(0, self._heights.total - self._rows)
        if not jump:
            return end
        here = round(self.scroll_y)
        if here >= end:
            return here
        step = self._rows - 4 if self.jump_scroll else min(12, self._rows // 3)
        return end + max(0, step - 1)

    def _move(self, row: int) -> None:
        """Go to a position that is right for the present heights."""
        self._moving = True
        try:
            self.virtual_size = Size(self._columns, max(self._heights.total, row + self._rows))
            self.scroll_to(y=row, animate=False, force=True)
        finally:
            self._moving = False
        self._count_below()

    def _count_below(self) -> None:
        if self.follow:
            self._seen = self._heights.total
        in_view = round(self.scroll_y) + self._rows
        self.new_below = max(0, self._heights.total - max(self._seen, in_view))

    def _changed(self, index: int, changes: Iterable[Change]) -> None:
        """Cells of an entry changed, and perhaps its height: repaint those, move as little as possible."""
        view = self._views[self._entries[index].id]
        if not view.fed:
            self._schedule()
        grown = view.height - self._heights[index]
        keep = self._top()
        self._heights[index] = view.height
        self._exact[index] = 1
        if not self._laid:
            return
        if grown and index + 1 < len(self._entries):  # later messages move
            if not self.follow:
                self._anchor = keep
            self._settle()
            self.refresh()
            return
        self._repaint(index, changes)
        if grown:
            jump = view.entry.status == "streaming"
            self._move(self._end_row(jump) if self.follow else round(self.scroll_y))

    def _top(self) -> tuple[int, int, int] | None:
        """The message at the top of the view, the row of it that is there, and its height."""
        if not self._entries or not len(self._heights):
            return None
        index, row = self._heights.find(round(self.scroll_y))
        return self._entries[index].id, row, self._heights[index]

    def _repaint(self, index: int, changes: Iterable[Change]) -> None:
        top = self._heights.start(index) - round(self.scroll_y)
        dirty = []
        for row, start, end in changes:
            if 0 <= top + row < self._rows:
                left = min(start + self._indent, self._columns) if start else 0
                right = min(end + self._indent, self._columns)
                dirty.append(Region(left, top + row, right - left, 1))
        if dirty:
            self.refresh(*dirty)

    def watch_scroll_y(self, old_value: float, new_value: float) -> None:
        super().watch_scroll_y(old_value, new_value)
        if self._moving or not self._entries or self._laid != self.container_size:
            return  # our own doing, or the clamp of a resize that is settled right after
        row = round(new_value)
        if self.follow:
            self._seen = self._heights.total
        self.follow = new_value > old_value and row >= self._end_row()
        self._show_from(row)

    def _show_from(self, row: int) -> None:
        """Measure what is in view from `row` on, keeping what is already measured where it is."""
        for _ in range(8):
            first, within = self._heights.find(row)
            last, _ = self._heights.find(row + self._rows)
            unknown = [i for i in range(first, last + 1) if not self._exact[i]]
            if not unknown:
                break
            fixed = next((i for i in range(first, last + 1) if self._exact[i]), -1)
            offset = self._heights.start(fixed) - row if fixed >= 0 else -within
            for i in unknown:
                self._measure(i)
            row = max(0, self._heights.start(fixed if fixed >= 0 else first) - offset)
        if not self.follow:
            row = min(row, self._end_row())
        self._move(row)
        self._anchor = self._top()

    def on_resize(self) -> None:
        if self.container_size.width != self._laid.width:
            self._relay()
        elif self.container_size != self._laid:
            self._settle()

    # --- idle work -------------------------------------------------------------------------------------------

    def _schedule(self) -> None:
        if self._slices is None and self.is_attached:
            self._slices = self.set_timer(_SLICE_EVERY_S, self._slice)

    def _slice(self) -> None:
        """Lay out more of huge messages, then measure messages that are not in view."""
        self._slices = None
        until = time.perf_counter() + _SLICE_S
        for view in [view for view in self._views.values() if not view.fed]:
            if (index := self._index.get(view.entry.id)) is not None:
                self._changed(index, view.feed(_SLICE_CHARS))
                self._schedule()
                if time.perf_counter() > until:
                    return
        if self._laid and self._entries:
            self._measure_ahead(until)

    def _measure_ahead(self, until: float) -> None:
        first = max(0, len(self._entries) - _EXACT)
        for index in count(self._ahead_next, -1):
            self._ahead_next = index
            if index < first:
                break
            if time.perf_counter() > until:
                self._schedule()
                return
            if not self._exact[index]:
                view = EntryView(self._entries[index], self._measure_width, self.glyphs, self._indent - 1)
                view.feed(_SLICE_CHARS)
                self._ahead[index] = view.height
        if self._ahead:
            top, row = self._heights.find(round(self.scroll_y))
            pad = round(self.scroll_y) - self._heights.start(top)
            for index, height in self._ahead.items():
                if not self._exact[index]:
                    self._heights[index] = height
                    self._exact[index] = 1
            self._ahead.clear()
            self._move(self._heights.start(top) + max(row, pad))

    # --- rows ------------------------------------------------------------------------------------------------

    @property
    def total_rows(self) -> int:
        return self._heights.total

    def row_at(self, y: int) -> Row:
        index, row = self._heights.find(y)
        line = self._view(index).line(row)
        margin = 1 if line.kind == "header" else self._indent
        return [(" " * margin, "text"), *line.segments]
