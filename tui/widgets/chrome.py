"""The base of the lines around the chat: a `LineView` that makes its own rows from what it was last told."""

from __future__ import annotations

from ..render.glyphs import UNICODE, Glyphs
from ..render.rows import Row, fit
from .line_view import LineView


class Chrome(LineView):
    """A subclass gives `rows`; after a change of what they depend on, `redraw()` paints the difference."""

    DEFAULT_CSS = "Chrome { width: 1fr; height: 1; }"

    def __init__(self, *, glyphs: Glyphs = UNICODE, id: str | None = None) -> None:
        super().__init__(id=id)
        self.glyphs = glyphs

    def rows(self, width: int, height: int) -> list[Row]:
        """The rows to show in `width` x `height` cells; missing ones are blank."""
        raise NotImplementedError

    def redraw(self) -> None:
        """Show the current state; nothing is written to the terminal where nothing changed."""
        width, height = self.size
        if width > 0 and height > 0:
            rows = [fit(row, width) for row in self.rows(width, height)[:height]]
            self.set_rows(rows + [fit([], width)] * (height - len(rows)))

    def on_resize(self) -> None:
        self.redraw()
