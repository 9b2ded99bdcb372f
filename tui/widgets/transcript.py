"""The transcript: a message list with a cursor over messages and code blocks, and a search."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.segment import Segment
from textual.reactive import var
from textual.strip import Strip

from ..render.entry import Entry
from ..render.lines import Row
from .empty import empty_rows
from .message_list import MessageList

__all__ = ["Entry", "Transcript"]


class Transcript(MessageList):
    """Keys are bound by the screen, from the table of commands, to the actions below.

    `cursor` is the index of the selected message, `block` that of the selected code block within it; -1 when
    none is.
    """

    cursor: var[int] = var(-1)
    block: var[int] = var(-1)

    def __init__(self, *, id: str | None = None, classes: str | None = None) -> None:
        super().__init__(id=id, classes=classes)
        self._needle = ""
        self._hit: tuple[int, int] | None = None  # (entry id, row) of the match that was jumped to

    def set_entries(self, entries: Sequence[Entry]) -> None:
        super().set_entries(entries)
        self.cursor = -1
        self._hit = None

    def drop(self, entry_id: int) -> None:
        chosen = self.selected
        super().drop(entry_id)
        self.cursor = -1 if chosen is None else self._index.get(chosen.id, -1)

    # --- what is selected ------------------------------------------------------------------------------------

    @property
    def selected(self) -> Entry | None:
        """The message under the cursor, with all its text so far."""
        return self.entry(self._entries[self.cursor].id) if 0 <= self.cursor < len(self._entries) else None

    def selected_text(self) -> str:
        """What "copy" means now: the selected code block, else the selected message, else the last reply."""
        entry = self.selected or next((e for e in reversed(self._entries) if e.role == "assistant"), None)
        if entry is None:
            return ""
        blocks = self.code_blocks(entry.id) if self.block >= 0 else []
        whole = self.entry(entry.id) or entry
        return blocks[self.block] if self.block < len(blocks) and blocks else whole.text

    def select(self, entry_id: int) -> None:
        """Put the cursor on a message and bring it into view; an unknown id is ignored."""
        index = self._index.get(entry_id)
        if index is not None:
            self.cursor, self.block = index, -1
            self._reveal(index, 0)

    def action_cursor_next(self) -> None:
        self._move_cursor(1)

    def action_cursor_prev(self) -> None:
        self._move_cursor(-1)

    def action_next_block(self) -> None:
        """Select the next code block: of the message under the cursor, else of the newest that has one."""
        candidates = [self.cursor] if self.cursor >= 0 else range(len(self._entries) - 1, -1, -1)
        for index in candidates:
            blocks = self.code_blocks(self._entries[index].id)
            if blocks:
                self.cursor, self.block = index, (self.block + 1) % len(blocks)
                view = self._view(index)
                self._reveal(
                    index, next(row for row in range(view.height) if view.line(row).code == self.block)
                )
                return

    def _move_cursor(self, step: int) -> None:
        if not self._entries:
            return
        last = len(self._entries) - 1
        if self.cursor < 0:
            middle, _ = self._heights.find(round(self.scroll_y) + self._rows // 2)
            self.cursor = last if self.follow else middle
        else:
            self.cursor = min(max(self.cursor + step, 0), last)
        self.block = -1
        self._reveal(self.cursor, 0)

    def watch_cursor(self, old: int, new: int) -> None:
        self.block = -1
        self._repaint_entry(old)
        self._repaint_entry(new)

    def watch_block(self) -> None:
        self._repaint_entry(self.cursor)

    def _repaint_entry(self, index: int) -> None:
        if 0 <= index < len(self._entries):
            start = self._heights.start(index)
            self.repaint_rows(start, start + self._heights[index] - 1)

    # --- scrolling -------------------------------------------------------------------------------------------

    def action_line_down(self) -> None:
        self._scroll_by(1)

    def action_line_up(self) -> None:
        self._scroll_by(-1)

    def action_half_down(self) -> None:
        self._scroll_by(max(1, self._rows // 2))

    def action_half_up(self) -> None:
        self._scroll_by(-max(1, self._rows // 2))

    def action_page_down(self) -> None:
        self._scroll_by(max(1, self._rows - 1))

    def action_page_up(self) -> None:
        self._scroll_by(-max(1, self._rows - 1))

    def action_home(self) -> None:
        self.scroll_to(y=0, animate=False)

    def action_end(self) -> None:
        """Show the end, and follow it."""
        self.follow = True
        self._settle()

    def _scroll_by(self, rows: int) -> None:
        self.scroll_to(y=round(self.scroll_y) + rows, animate=False)

    def _reveal(self, index: int, row: int, above: int = 0) -> None:
        """Bring a row of an entry into view, where it is not, with `above` rows before it."""
        if not self._laid:
            return
        self._measure(index)
        target = self._heights.start(index) + row
        if not round(self.scroll_y) <= target < round(self.scroll_y) + self._rows:
            position = max(0, target - above)
            self.follow = self.follow and position >= self._end_row()
            self._show_from(min(position, self._end_row()))
            self.refresh()

    # --- search ----------------------------------------------------------------------------------------------

    def find(self, text: str) -> int:
        """Mark `text` wherever it stands (case ignored) and go to the next place from the top of the view, or
        the first; returns in how many messages it occurs. An empty text ends the search."""
        self._needle, self._hit = text.casefold(), None
        self.refresh()
        hits = sum(1 for _ in self._hits(range(len(self._entries)))) if text else 0
        if hits:
            self.action_find_next()
        return hits

    def action_find_next(self) -> None:
        self._step(1)

    def action_find_previous(self) -> None:
        self._step(-1)

    def _hits(self, indexes: range) -> Iterator[int]:
        """The entries that hold the searched text, in the order of `indexes`."""
        for index in indexes:
            entry = self._entries[index]
            text = self._view(index).text if entry.status == "streaming" else entry.text
            if self._needle in text.casefold():
                yield index

    def _matches(self, index: int) -> list[int]:
        """The rows of an entry that hold the searched text; row 0 where it is broken over two rows."""
        view = self._view(index)
        rows = [row for row in range(1, view.height) if self._needle in view.line(row).plain.casefold()]
        return rows or [0]

    def _step(self, step: int) -> None:
        if not self._needle or not self._entries:
            return
        here = self._index.get(self._hit[0], -1) if self._hit else -1
        row = self._hit[1] if self._hit and here >= 0 else -1
        if here < 0:
            here, row = self._heights.find(round(self.scroll_y))
            row -= 1  # the first row in view counts
        total = len(self._entries)
        order = (
            [*range(here, total), *range(here)]
            if step > 0
            else [*range(here, -1, -1), *range(total - 1, here, -1)]
        )
        for at, index in enumerate([*order, here]):
            if next(self._hits(range(index, index + 1)), None) is None:
                continue
            for found in self._matches(index)[::step]:
                if at or (found - row) * step > 0:
                    self._hit = (self._entries[index].id, found)
                    self.cursor = index
                    self._reveal(index, found, above=self._rows // 3)
                    self.refresh()
                    return

    # --- rows ------------------------------------------------------------------------------------------------

    def render_line(self, y: int) -> Strip:
        if self._entries:
            return super().render_line(y)
        rows = empty_rows(self._columns, self._rows)
        strip = Strip([Segment(text, self._style(name)) for text, name in (rows[y] if y < len(rows) else [])])
        return strip.adjust_cell_length(self._columns, self._style("text"))

    def row_at(self, y: int) -> Row:
        row = super().row_at(y)
        index, within = self._heights.find(y)
        if index == self.cursor:
            margin, style = row[0]
            row[:1] = [(self.glyphs.cursor, "cursor"), (margin[1:], style)]
            if self.block >= 0 and self._view(index).line(within).code == self.block:
                row = [(text, "code.box.selected" if name == "code.box" else name) for text, name in row]
        return mark(row, self._needle) if self._needle else row


def mark(row: Row, needle: str) -> Row:
    """The row with each place where `needle` (casefolded) stands in the style "found"."""
    text = "".join(part for part, _ in row)
    folded = text.casefold()
    if len(folded) != len(text) or needle not in folded:
        return row
    inside = bytearray(len(text))
    start = folded.find(needle)
    while start >= 0:
        inside[start : start + len(needle)] = b"\1" * len(needle)
        start = folded.find(needle, start + len(needle))
    out: Row = []
    at = 0
    for part, style in row:
        begin = 0
        for i in range(1, len(part) + 1):
            if i == len(part) or inside[at + i] != inside[at + begin]:
                out.append((part[begin:i], "found" if inside[at + begin] else style))
                begin = i
        at += len(part)
    return out
