"""The line at the foot of a dialog: what each key does. A click on it does the same."""

from __future__ import annotations

from collections.abc import Sequence

from textual import events

from ..render.glyphs import UNICODE, Glyphs
from ..render.lines import Row, row_width
from .chrome import Chrome

Hint = tuple[str, str, str]  # key as people write it, what it does, action of the screen ("" for none)


class Hints(Chrome):
    """Hints side by side, as many as fit."""

    def __init__(
        self, hints: Sequence[Hint] = (), *, glyphs: Glyphs = UNICODE, id: str | None = None
    ) -> None:
        super().__init__(glyphs=glyphs, id=id)
        self._hints = hints
        self._at: list[tuple[int, int, str]] = []  # first cell, cell after the last, action

    def show(self, hints: Sequence[Hint]) -> None:
        """Show these instead."""
        if hints != self._hints:
            self._hints = hints
            self.redraw()

    def rows(self, width: int, height: int) -> list[Row]:
        row: Row = []
        self._at = []
        for key, text, action in self._hints:
            start = row_width(row)
            part: Row = [(f" {key} ", "key"), (f"{text}  ", "value")]
            if start + row_width(part) - 2 > width:
                break
            row += part
            self._at.append((start, row_width(row) - 1, action))
        return [row]

    async def on_click(self, event: events.Click) -> None:
        for first, last, action in self._at:
            if action and first <= event.x < last:
                await self.screen.run_action(action)
