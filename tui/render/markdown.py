"""Markdown as it streams: lines that are final, and a tail that is rendered again.

The text is taken in source lines, and a source line that is too long in pieces of fixed size. The state after
a piece depends on the text alone and never on how it was cut into fragments, so a streamed text and the same
text given at once end in the same lines. What has been committed never changes.
"""

from __future__ import annotations

from collections.abc import Sequence

from ...engine.text import visible
from .blocks import Blocks
from .glyphs import UNICODE, Glyphs
from .lines import Line

_PIECE = 1000  # characters; a longer source line is never a heading, a table row, a fence: it is plain text
_NARROWEST = 12  # cells below which text is cut by the widget instead of wrapped


class MarkdownStream:
    """Lines of a growing Markdown text at `width` cells.

    `append` costs time in proportion to its text. `committed + tail()` shows the text so far; `tail` costs
    time in proportion to the open block's rows, a bounded number. After `finish` nothing more may come.
    """

    def __init__(self, width: int, glyphs: Glyphs = UNICODE) -> None:
        self._blocks = Blocks(max(width, _NARROWEST), glyphs)
        self._open = ""  # the source line without its end
        self._pieces = 0  # of that line, already taken
        self._return = False  # a "\r" that may be half of "\r\n"

    @property
    def committed(self) -> Sequence[Line]:
        """Final lines, in order; the list grows in place."""
        return self._blocks.out

    @property
    def code_blocks(self) -> list[str]:
        """The text of each fenced block so far, complete lines only."""
        return ["".join(lines).removesuffix("\n") for lines in self._blocks.codes]

    def append(self, text: str) -> None:
        """Take the next fragment."""
        if self._return:
            text, self._return = "\r" + text, False
        if text.endswith("\r"):
            text, self._return = text[:-1], True
        *lines, self._open = (self._open + visible(text.replace("\r\n", "\n"))).split("\n")
        for line in lines:
            self._take(self._take_pieces(line), more=False)
            self._pieces = 0
        self._open = self._take_pieces(self._open)

    def tail(self) -> list[Line]:
        """Lines of what is not committed, as far as it can be told; they may change."""
        blocks = self._blocks.copy()
        if self._pieces:
            blocks.piece(self._open, more=False)
        elif self._open and blocks.settled(self._open):
            blocks.line(self._open)
        blocks.close(unfinished=True)
        return blocks.out

    def finish(self) -> list[Line]:
        """End the text; returns all its lines."""
        if self._return:
            self._return = False
            self._open += visible("\r")
        if self._open or self._pieces:
            self._take(self._open, more=False)
        self._open, self._pieces = "", 0
        self._blocks.close()
        return self._blocks.out

    def _take_pieces(self, line: str) -> str:
        """Take full pieces while more of the line follows; returns the rest of it."""
        start = 0
        while len(line) - start > _PIECE:
            self._take(line[start : start + _PIECE], more=True)
            start += _PIECE
        return line[start:]

    def _take(self, text: str, more: bool) -> None:
        if self._pieces:
            self._blocks.piece(text, more)
        else:
            self._blocks.line(text, more)
        self._pieces += more


def render_markdown(text: str, width: int, glyphs: Glyphs = UNICODE) -> list[Line]:
    """All lines of a complete text."""
    stream = MarkdownStream(width, glyphs)
    stream.append(text)
    return stream.finish()
