"""Rows of an exact width: cut, padded, framed."""

from __future__ import annotations

from collections.abc import Iterable

from rich.cells import cell_len, set_cell_size

from .glyphs import Glyphs
from .lines import Row, Segment, clip, row_width

__all__ = [
    "Row",
    "Segment",
    "cut",
    "fit",
    "footing",
    "framed",
    "heading",
    "left",
    "right",
    "row_width",
    "spread",
]


def fit(row: Iterable[Segment], width: int, style: str = "") -> Row:
    """The row cut or padded with blanks to exactly `width` cells; neighbours of one style are joined."""
    out: Row = []
    left = width
    for text, name in row:
        if left <= 0:
            break
        cells = cell_len(text)
        if cells > left:
            text, cells = set_cell_size(text, left), left
        left -= cells
        if not text:
            continue
        if out and out[-1][1] == name:
            out[-1] = (out[-1][0] + text, name)
        else:
            out.append((text, name))
    if left > 0:
        out.append((" " * left, style))
    return out


def cut(text: str, width: int, glyphs: Glyphs) -> str:
    """`text` in at most `width` cells and in the characters of `glyphs`, with an ellipsis where it was cut."""
    return clip(glyphs.plain(text), max(0, width), glyphs.ellipsis)


def left(text: str, width: int, glyphs: Glyphs) -> str:
    """`text` cut and padded to exactly `width` cells."""
    return set_cell_size(cut(text, width, glyphs), max(0, width))


def right(text: str, width: int, glyphs: Glyphs) -> str:
    """`text` cut to `width` cells and pushed to the right end of them."""
    text = cut(text, width, glyphs)
    return " " * max(0, width - cell_len(text)) + text


def spread(start: Row, end: Row, width: int) -> Row:
    """`start` at the left, `end` at the right; `end` keeps its place when both do not fit."""
    room = max(0, width - row_width(end))
    return fit([*fit(start, room), *end], width)


def heading(title: Row, width: int, glyphs: Glyphs, first: bool = False) -> Row:
    """The rule above a section of a frame: `├ title ───┤`, or the frame's own top edge when `first`."""
    begin, end = (glyphs.top_left, glyphs.top_right) if first else (glyphs.tee_left, glyphs.tee_right)
    inner = max(0, width - 2)
    body = fit([(" ", "frame"), *title, (" ", "frame")], min(inner, row_width(title) + 2), "frame")
    rule = glyphs.horizontal * (inner - row_width(body))
    return fit([(begin, "frame"), *body, (rule + end, "frame")], width)


def framed(row: Row, width: int, glyphs: Glyphs) -> Row:
    """The row between the two sides of a frame."""
    side = (glyphs.vertical, "frame")
    return [side, *fit(row, max(0, width - 2)), side]


def footing(width: int, glyphs: Glyphs) -> Row:
    """The frame's bottom edge."""
    return fit([(glyphs.bottom_left + glyphs.horizontal * (width - 2) + glyphs.bottom_right, "frame")], width)
