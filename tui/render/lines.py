"""Styled lines: what every renderer in this folder returns, and how words are fitted into them.

A style is a *name*; the widget that draws a line maps names to colours. So a theme switch re-colours without
rendering again, and no renderer knows what a terminal can show.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from rich.cells import cell_len, split_graphemes

Segment = tuple[str, str]  # (text without control characters, style name)
Row = list[Segment]

# Style names of messages and what each means in a theme (the syntax of Textual's `Style.parse`). Weight and
# slant repeat what colour says, for terminals without colours.
STYLES: dict[str, str] = {
    "text": "",
    "strong": "bold",
    "em": "italic",
    "strong.em": "bold italic",
    "strike": "strike",
    "code": "bold $accent",
    "link": "underline $primary",
    "link.url": "$foreground 68%",
    "heading1": "bold underline $primary",
    "heading2": "bold $primary",
    "heading3": "bold",
    "quote": "italic $foreground 80%",
    "quote.bar": "$secondary",
    "bullet": "$primary",
    "rule": "$foreground 40%",
    "table.rule": "$foreground 40%",
    "table.header": "bold",
    "code.box": "$foreground 40%",
    "code.box.selected": "bold $accent",
    "code.label": "$foreground 82%",
    "code.text": "",
    "code.keyword": "bold $primary",
    "code.name": "$secondary",
    "code.string": "$success",
    "code.number": "$warning",
    "code.comment": "italic $foreground 68%",
    "code.operator": "$foreground 80%",
    "author.user": "bold $secondary",
    "author.assistant": "bold $primary",
    "author.system": "bold $warning",
    "meta": "$foreground 68%",
    "status.bad": "bold $error",
    "status.wait": "italic $foreground 68%",
    "cursor": "$accent",
    "found": "reverse",
}


@dataclass(frozen=True, slots=True)
class Line:
    """One row of cells. `kind` is the block it belongs to; `code` numbers the code block it shows, or is -1."""

    segments: tuple[Segment, ...] = ()
    kind: str = "text"
    code: int = -1

    @property
    def plain(self) -> str:
        return "".join(text for text, _ in self.segments)


BLANK = Line(kind="blank")


# Closing punctuation never starts a row and opening punctuation never ends one; between other wide
# characters, which are written without spaces, a row may break anywhere.
_NO_START = frozenset("、。，．：；！？」』）】》〉〕］｝”’…—～ー·,.:;!?)]}%")
_NO_END = frozenset("「『（【《〈〔［｛“‘([{")
_PARTS = re.compile(r"\n| +|[^ \n]+")


def row_width(row: Iterable[Segment]) -> int:
    """Cells that a row takes."""
    return sum(cell_len(text) for text, _ in row)


def clip(text: str, width: int, ellipsis: str = "…") -> str:
    """`text` in at most `width` cells, the cut shown."""
    if cell_len(text) <= width:
        return text
    used, end = cell_len(ellipsis), 0
    for _, stop, cells in split_graphemes(text)[0]:
        if used + cells > width:
            break
        used, end = used + cells, stop
    return text[:end] + ellipsis if width > 0 else ""


def compact(row: Iterable[Segment]) -> Row:
    """The row with neighbours of one style joined and trailing spaces cut."""
    out: Row = []
    for text, style in row:
        if out and out[-1][1] == style:
            out[-1] = (out[-1][0] + text, style)
        elif text:
            out.append((text, style))
    while out:
        text, style = out[-1]
        if stripped := text.rstrip(" "):
            out[-1] = (stripped, style)
            break
        out.pop()
    return out


def fold(row: Iterable[Segment], width: int) -> list[Row]:
    """Cut a row every `width` cells, whatever stands there (code, over-long words). At least one row."""
    rows: list[Row] = [[]]
    used = 0
    for text, style in row:
        if text.isascii():
            while used + len(text) > width:
                head, text = text[: width - used], text[width - used :]
                if head:
                    rows[-1].append((head, style))
                rows.append([])
                used = 0
            if text:
                rows[-1].append((text, style))
                used += len(text)
            continue
        start = 0
        for begin, _, cells in split_graphemes(text)[0]:
            if used + cells > width and used:
                if begin > start:
                    rows[-1].append((text[start:begin], style))
                rows.append([])
                start, used = begin, 0
            used += cells
        rows[-1].append((text[start:], style))
    return rows


def _atoms(word: str) -> list[tuple[str, int, bool]]:
    """A word without spaces as (text, cells, is wide): runs of narrow characters and single wide ones."""
    if word.isascii():
        return [(word, len(word), False)]
    out: list[tuple[str, int, bool]] = []
    for start, end, cells in split_graphemes(word)[0]:
        wide = cells > 1
        if out and not wide and not out[-1][2]:
            text, width, _ = out[-1]
            out[-1] = (text + word[start:end], width + cells, False)
        else:
            out.append((word[start:end], cells, wide))
    return out


class _Wrapper:
    """Greedy filling of rows; the state is the row being filled and the word that may not be broken yet."""

    def __init__(self, width: int) -> None:
        self.width = width
        self.rows: list[Row] = []
        self.row: Row = []
        self.used = 0
        self.word: Row = []
        self.word_width = 0

    def flush(self) -> None:
        if not self.word:
            return
        if self.used + self.word_width > self.width and self.used:
            self.rows.append(compact(self.row))
            self.row, self.used = [], 0
        if self.word_width > self.width:
            *full, rest = fold(self.word, self.width)
            self.rows += full
            self.row, self.used = rest, row_width(rest)
        else:
            self.row += self.word
            self.used += self.word_width
        self.word, self.word_width = [], 0

    def add(self, row: Iterable[Segment]) -> None:
        last, last_wide = "", False
        for text, style in row:
            for part in _PARTS.findall(text):
                if part[0] == " ":
                    self.flush()
                    self.row.append((part, style))
                    self.used += len(part)
                    last, last_wide = " ", False
                elif part == "\n":
                    self.flush()
                    self.rows.append(compact(self.row))
                    self.row, self.used = [], 0
                    last, last_wide = " ", False
                else:
                    for atom, cells, wide in _atoms(part):
                        if (wide or last_wide) and last not in _NO_END and atom[0] not in _NO_START:
                            self.flush()
                        self.word.append((atom, style))
                        self.word_width += cells
                        last, last_wide = atom[-1], wide


def wrap(row: Iterable[Segment], width: int) -> list[Row]:
    """Fill rows of at most `width` cells, breaking at spaces, beside wide characters and at "\\n".

    The last row keeps its trailing spaces, so wrapping may go on from it: `wrap(a + b)` equals the rows of
    `wrap(a)` but the last, followed by `wrap(last row + b)`. At least one row.
    """
    wrapper = _Wrapper(width)
    wrapper.add(row)
    wrapper.flush()
    return [*wrapper.rows, wrapper.row]


def wrap_text(text: str, width: int, style: str) -> list[Row]:
    """Plain text in one style, its line breaks and indentation kept."""
    return [compact(row) for row in wrap([(text.expandtabs(4), style)], width)]
