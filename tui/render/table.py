"""Markdown tables whose rows are final soon after they arrive.

Column widths are chosen from the header and the first rows, then kept; a later cell that is wider wraps
inside its column. So a row costs the same wherever it stands, and nothing is cut off.
"""

from __future__ import annotations

import copy
import re
from itertools import zip_longest
from typing import Literal, Self

from .glyphs import Glyphs
from .inline import parse_inline
from .lines import Row, compact, row_width, wrap

_SAMPLE = 8  # rows that are looked at before the widths are fixed
_MIN_COLUMN = 4
_DELIMITER = re.compile(r"\s*:?-+:?\s*$")
_CELL_END = re.compile(r"(?<!\\)\|")
Align = Literal["left", "right", "center"]


def split_cells(line: str) -> list[str]:
    """The cells of a table line; "\\|" is a bar inside a cell."""
    text = line.strip().removeprefix("|")
    if text.endswith("|") and not text.endswith("\\|"):
        text = text[:-1]
    return [cell.strip().replace("\\|", "|") for cell in _CELL_END.split(text)]


def table_start(header: str, delimiter: str) -> list[Align] | None:
    """The alignments when `delimiter` makes a table of the line before it, else None."""
    if "|" not in header or not re.fullmatch(r"[\s|:-]+", delimiter):
        return None
    cells = split_cells(delimiter)
    if len(cells) != len(split_cells(header)) or not all(_DELIMITER.match(cell) for cell in cells):
        return None
    return [_align(cell) for cell in cells]


def _align(cell: str) -> Align:
    if cell.endswith(":"):
        return "center" if cell.startswith(":") else "right"
    return "left"


def fit_columns(natural: list[int], room: int) -> list[int] | None:
    """Widths of at most `room` cells together: the widest columns give first. None when they cannot fit."""
    if sum(natural) <= room:
        return natural
    if sum(min(width, _MIN_COLUMN) for width in natural) > room:
        return None
    cap = max(cap for cap in range(_MIN_COLUMN, room + 1) if sum(min(w, cap) for w in natural) <= room)
    widths = [min(width, cap) for width in natural]
    spare = room - sum(widths)
    for i, width in enumerate(natural):
        if width > cap and spare:
            widths[i] += 1
            spare -= 1
    return widths


class Table:
    """Rows go in as source lines and come out as screen rows, at once or with the eighth row."""

    def __init__(self, width: int, header: str, aligns: list[Align], glyphs: Glyphs) -> None:
        self.width = width
        self.glyphs = glyphs
        self.aligns = aligns
        self._held: list[str] = [header]
        self._widths: list[int] | None = None
        self._plain = False

    def copy(self) -> Self:
        other = copy.copy(self)
        other._held = self._held.copy()
        return other

    def row(self, line: str) -> list[Row]:
        """Take a body row; returns the screen rows that are final now."""
        if self._plain or self._widths is not None:
            return self._render(line, "text")
        self._held.append(line)
        return self.close() if len(self._held) > _SAMPLE else []

    def close(self) -> list[Row]:
        """Fix the widths from what was seen, and return what was held back."""
        if self._plain or self._widths is not None:
            return []
        natural = [1] * len(self.aligns)
        for line in self._held:
            for i, cell in enumerate(self._cells(line)):
                natural[i] = max(natural[i], row_width(parse_inline(cell)[0]))
        self._widths = fit_columns(natural, self.width - 3 * len(natural) + 1)
        self._plain = self._widths is None
        header, *body = self._held
        rows = self._render(header, "table.header")
        if self._widths is not None:
            g = self.glyphs
            joint = g.horizontal + g.cross + g.horizontal
            bars = joint.join(g.horizontal * width for width in self._widths)
            rows.append([(g.horizontal + bars + g.horizontal, "table.rule")])
        for line in body:
            rows += self._render(line, "text")
        self._held = []
        return rows

    def _cells(self, line: str) -> list[str]:
        cells = split_cells(line)[: len(self.aligns)]
        return cells + [""] * (len(self.aligns) - len(cells))

    def _render(self, line: str, style: str) -> list[Row]:
        if self._widths is None:  # more columns than fit: the source is more legible than slivers
            return [compact(row) for row in wrap([(line.strip().expandtabs(4), style)], self.width)]
        columns = [
            [compact(part) for part in wrap(parse_inline(cell, style)[0], width)]
            for cell, width in zip(self._cells(line), self._widths, strict=True)
        ]
        return [self._join(parts, self._widths) for parts in zip_longest(*columns, fillvalue=[])]

    def _join(self, parts: tuple[Row, ...], widths: list[int]) -> Row:
        row: Row = [(" ", "text")]
        for i, (part, width, align) in enumerate(zip(parts, widths, self.aligns, strict=True)):
            if i:
                row.append((f" {self.glyphs.vertical} ", "table.rule"))
            pad = width - row_width(part)
            left = pad if align == "right" else pad // 2 if align == "center" else 0
            row += [(" " * left, "text"), *part, (" " * (pad - left), "text")]
        return compact(row)
