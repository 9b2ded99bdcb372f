"""A paragraph that grows: rows leave it as soon as nothing that may follow can change them."""

from __future__ import annotations

import copy
from typing import Self

from .inline import parse_inline
from .lines import Row, compact, wrap

_ENOUGH = 400  # characters after which rows leave, where no delimiter is open
_TOO_MUCH = 2000  # characters after which they leave in any case; what is open there is shown as written


class Paragraph:
    """Source lines go in; rows come out. The last row and the last source line stay inside until `close`."""

    def __init__(self, width: int, style: str) -> None:
        self.width = width
        self.style = style
        self.lines = 0
        self._text = ""  # source not yet turned into rows
        self._last = 0  # where its last line starts
        self._carry: Row = []  # the row that the next text continues
        self._flushed = False

    def copy(self) -> Self:
        return copy.copy(self)

    @property
    def last_line(self) -> str:
        """The newest source line: a table's header, if a delimiter row follows."""
        return self._text[self._last :]

    @property
    def single_line(self) -> bool:
        """Whether all of it is one source line, which an underline may turn into a heading."""
        return self.lines == 1 and not self._flushed

    def drop_last(self) -> None:
        """Take the newest source line out again."""
        self._text = self._text[: self._last].rstrip("\n")
        self.lines -= 1

    def add(self, line: str, joined: bool = False, more: bool = False) -> list[Row]:
        """Append a source line, or a piece of a long one (`joined` to the last, `more` to come)."""
        if joined:
            self._text += line
        else:
            self._text += "\n" if self.lines and self._text else ""
            self._last = len(self._text)
            self._text += line.lstrip(" \t")
            self.lines += 1
        end = len(self._text) if joined or more else self._last
        if end <= _ENOUGH:
            return []
        row, balanced = parse_inline(self._text[:end], self.style)
        if not balanced and end <= _TOO_MUCH:
            return []
        *rows, self._carry = wrap(self._carry + row, self.width)
        self._text = self._text[end:]
        self._last = 0
        self._flushed = True
        return rows

    def text(self) -> str:
        return self._text

    def close(self, heal: bool = False) -> list[Row]:
        """The rest, as rows."""
        row, _ = parse_inline(self._text.rstrip(), self.style, heal)
        if not row and not self._carry:
            return []
        return [compact(line) for line in wrap(self._carry + row, self.width)]
