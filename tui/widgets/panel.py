"""Some rows of a dialog, shown as they are told."""

from __future__ import annotations

from collections.abc import Sequence

from ..render.glyphs import UNICODE, Glyphs
from ..render.lines import Row
from ..render.rows import fit
from .chrome import Chrome


class Panel(Chrome):
    """Rows of style names; those that do not fit are not shown, the last one that does ends in an ellipsis."""

    def __init__(self, *, glyphs: Glyphs = UNICODE, id: str | None = None) -> None:
        super().__init__(glyphs=glyphs, id=id)
        self._told: Sequence[Row] = ()

    def show(self, rows: Sequence[Row]) -> None:
        """Show these rows."""
        self._told = rows
        self.redraw()

    def rows(self, width: int, height: int) -> list[Row]:
        g = self.glyphs
        shown = [[(g.plain(text), style) for text, style in row] for row in self._told[:height]]
        if len(self._told) > height and shown:
            shown[-1] = [*fit(shown[-1], width - 1), (g.ellipsis, shown[-1][-1][1])]
        return shown
