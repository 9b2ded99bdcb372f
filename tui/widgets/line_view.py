"""A widget drawn row by row, which repaints only the cells that changed."""

from __future__ import annotations

from collections.abc import Sequence

from rich.segment import Segment as RichSegment
from rich.style import Style as RichStyle
from textual.geometry import Region
from textual.strip import Strip
from textual.style import Style
from textual.theme import Theme
from textual.widget import Widget

from ..render.lines import Row, row_width
from ..render.styles import GAUGE_STYLES


def changed_cells(old: Row, new: Row) -> tuple[int, int] | None:
    """First and past-the-last cell in which two rows differ, by whole segments; None when they are equal."""
    if old == new:
        return None
    width = row_width(new)
    if row_width(old) != width:
        return 0, max(width, row_width(old))
    same = next(
        (i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), min(len(old), len(new))
    )
    room = min(len(old), len(new)) - same
    tail = next((i for i in range(room) if old[-1 - i] != new[-1 - i]), room)
    return row_width(new[:same]), width - row_width(new[len(new) - tail :])


class LineView(Widget):
    """Shows rows of (text, style name). `rows_written` counts the rows that any `set_rows` changed."""

    def __init__(self, *, id: str | None = None, classes: str | None = None) -> None:
        super().__init__(id=id, classes=classes, markup=False)
        self._rows: list[Row] = []
        self._styles: dict[str, RichStyle] = {}
        self.rows_written = 0

    def on_mount(self) -> None:
        self.app.theme_changed_signal.subscribe(self, self._theme_changed)

    def _theme_changed(self, theme: Theme) -> None:
        self._styles.clear()
        self.refresh()

    def notify_style_update(self) -> None:
        self._styles.clear()
        super().notify_style_update()

    def set_rows(self, rows: Sequence[Row]) -> int:
        """Show these rows; the number of rows that differ from what was shown."""
        old, self._rows = self._rows, list(rows)
        blank: Row = []
        dirty = []
        for y in range(max(len(old), len(rows))):
            before = old[y] if y < len(old) else blank
            after = rows[y] if y < len(rows) else blank
            if span := changed_cells(before, after):
                dirty.append(Region(span[0], y, span[1] - span[0], 1))
        if dirty:
            self.rows_written += len(dirty)
            self.refresh(*dirty)
        return len(dirty)

    @property
    def text(self) -> str:
        """What is shown, as plain text."""
        return "\n".join("".join(text for text, _ in row) for row in self._rows)

    def render_line(self, y: int) -> Strip:
        base = self._style("")
        row = self._rows[y] if y < len(self._rows) else []
        strip = Strip([RichSegment(text, self._style(name)) for text, name in row])
        return strip.adjust_cell_length(self.size.width, base)

    def _style(self, name: str) -> RichStyle:
        found = self._styles.get(name)
        if found is None:
            spec = GAUGE_STYLES.get(name, "")
            style = self.visual_style + Style.parse(spec) if spec else self.visual_style
            found = style.rich_style
            if "%" in spec and self.app.native_ansi_color:  # the terminal's own colours cannot be blended
                found += RichStyle(dim=True)
            self._styles[name] = found
        return found
