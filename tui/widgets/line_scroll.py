"""A scrolling widget whose rows are styled segments made on demand: painting and mouse selection."""

from __future__ import annotations

from itertools import pairwise

from rich.segment import Segment as RichSegment
from rich.style import Style as RichStyle
from textual.geometry import Offset, Region
from textual.scroll_view import ScrollView
from textual.selection import Selection
from textual.strip import Strip
from textual.style import Style

from ..render.glyphs import Glyphs, glyphs
from ..render.lines import STYLES, Row


class LineScroll(ScrollView, can_focus=True, inherit_bindings=False):
    """A subclass says how many rows there are and what stands in one; style names are those of `render.lines`."""

    ALLOW_SELECT = True
    DEFAULT_CSS = """
    LineScroll {
        width: 1fr;
        height: 1fr;
        overflow-x: hidden;
        overflow-y: scroll;
        scrollbar-size-vertical: 1;
    }
    """

    def __init__(self, *, id: str | None = None, classes: str | None = None) -> None:
        super().__init__(id=id, classes=classes)
        self._style_key: object = None
        self._styles: dict[str, RichStyle] = {}

    @property
    def total_rows(self) -> int:
        """Rows there are."""
        raise NotImplementedError

    def row_at(self, y: int) -> Row:
        """The row `y`, of any width; 0 <= y < total_rows."""
        raise NotImplementedError

    @property
    def glyphs(self) -> Glyphs:
        """The character table of the app."""
        return glyphs(bool(getattr(self.app, "ascii", False)))

    @property
    def _rows(self) -> int:
        return self.container_size.height

    @property
    def _columns(self) -> int:
        return max(0, self.container_size.width - self.scrollbar_size_vertical)

    def repaint_rows(self, first: int, last: int) -> None:
        """Paint rows `first` to `last` again, as far as they are in view."""
        top = round(self.scroll_y)
        first, last = max(first, top), min(last, top + self._rows - 1)
        if first <= last:
            self.refresh(Region(0, first - top, self._columns, last - first + 1))

    def render_line(self, y: int) -> Strip:
        y += self.scroll_offset.y
        base = self._style("text")
        if y >= self.total_rows:
            return Strip.blank(self._columns, base)
        segments = [RichSegment(text, self._style(name)) for text, name in self.row_at(y)]
        if (selection := self.text_selection) is not None and (span := selection.get_span(y)) is not None:
            segments = self._select(segments, span)
        # simplified: every segment costs its own style codes on the wire
        return Strip(segments).adjust_cell_length(self._columns, base).simplify().apply_offsets(0, y)

    def _select(self, segments: list[RichSegment], span: tuple[int, int]) -> list[RichSegment]:
        style = self.screen.get_component_rich_style("screen--selection")
        text = "".join(segment.text for segment in segments)
        start, end = span[0], len(text) if span[1] == -1 else span[1]
        out, at = [], 0
        for segment in segments:
            cuts = sorted(
                {0, len(segment.text), *(min(max(x - at, 0), len(segment.text)) for x in (start, end))}
            )
            for left, right in pairwise(cuts):
                inside = start <= at + left < end
                old = segment.style or RichStyle.null()
                out.append(RichSegment(segment.text[left:right], old + style if inside else old))
            at += len(segment.text)
        return out

    def get_selection(self, selection: Selection) -> tuple[str, str] | None:
        if not self.total_rows:
            return None
        first = selection.start.y if selection.start else 0
        last = min(selection.end.y if selection.end else self.total_rows, self.total_rows - 1)
        text = "\n".join("".join(part for part, _ in self.row_at(y)) for y in range(first, last + 1))
        moved = Selection(
            selection.start - Offset(0, first) if selection.start else None,
            selection.end - Offset(0, first) if selection.end else None,
        )
        return moved.extract(text), "\n"

    def selection_updated(self, selection: Selection | None) -> None:
        self.refresh()

    def _style(self, name: str) -> RichStyle:
        base = self.visual_style
        key = (self.app.current_theme.name, base)
        if self._style_key != key:
            self._style_key, self._styles = key, {}
        style = self._styles.get(name)
        if style is None:
            own = Style.parse(STYLES[name], self.app.theme_variables)
            style = (base + own).rich_style
            # the terminal's own colours cannot be blended
            if "%" in STYLES[name] and self.app.native_ansi_color:
                style += RichStyle(dim=True)
            self._styles[name] = style
        return style
