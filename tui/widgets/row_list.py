"""A list of rows, one of them marked: the base of the lists in dialogs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, TypeVar

from textual import events
from textual.message import Message

from ..render.glyphs import UNICODE, Glyphs
from ..render.lines import Row
from ..render.rows import fit
from .chrome import Chrome

Item = TypeVar("Item")


class RowList(Chrome, Generic[Item]):
    """Items, one marked. The dialog's keys move the mark; a click marks, a click on the marked one chooses."""

    class Marked(Message):
        """Another item is marked now, or none."""

    class Chosen(Message):
        """The marked item is to be used."""

    def __init__(self, *, glyphs: Glyphs = UNICODE, id: str | None = None) -> None:
        super().__init__(glyphs=glyphs, id=id)
        self._items: Sequence[Item] = ()
        self._absent = ""
        self._at = 0
        self._top = 0

    def item_row(self, item: Item, width: int) -> Row:
        """One item in at most `width` cells."""
        raise NotImplementedError

    @property
    def marked(self) -> Item | None:
        """The marked item."""
        return self._items[self._at] if self._at < len(self._items) else None

    def show(self, items: Sequence[Item], absent: str = "", at: int = 0) -> None:
        """List these, the one at `at` marked; `absent` stands there when there are none."""
        self._items, self._absent, self._at, self._top = items, absent, at, 0
        self.redraw()
        self.post_message(self.Marked())

    def move(self, step: int) -> None:
        """Move the mark, not beyond either end."""
        at = max(0, min(len(self._items) - 1, self._at + step))
        if at != self._at:
            self._at = at
            self.redraw()
            self.post_message(self.Marked())

    def rows(self, width: int, height: int) -> list[Row]:
        if not self._items:
            return [[(f"  {self._absent}", "dim")]]
        self._top = max(min(self._top, self._at), self._at - height + 1)
        hidden = len(self._items) - height
        rows = []
        for place, item in enumerate(self._items[self._top : self._top + height], self._top):
            row = self.item_row(item, width - 2)
            if place == self._at:
                row = [(text, "selected") for text, _ in row]
            mark: Row = [(f"{self.glyphs.pointer} " if place == self._at else "  ", "key")]
            rows.append([*mark, *fit(row, width - 2, "selected" if place == self._at else "")])
        if hidden > 0 and self._top + height < len(self._items):
            more = f" {self.glyphs.down} {len(self._items) - self._top - height} more"
            rows[-1] = [*fit(rows[-1], width - len(more)), (more, "accent")]
        return rows

    def on_click(self, event: events.Click) -> None:
        place = self._top + event.y
        if place == self._at and self._items:
            self.post_message(self.Chosen())
        elif place < len(self._items):
            self.move(place - self._at)

    def on_mouse_scroll_down(self) -> None:
        self.move(1)

    def on_mouse_scroll_up(self) -> None:
        self.move(-1)
