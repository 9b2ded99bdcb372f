"""One message of a transcript as lines: header, text, footer, gap."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import takewhile
from typing import Literal, NamedTuple

from ...engine.text import one_line, visible
from .glyphs import Glyphs
from .lines import BLANK, Line, Row, clip, compact, row_width, wrap, wrap_text
from .markdown import MarkdownStream

Status = Literal["complete", "partial", "stopped", "failed", "streaming"]
MEASURE = 92  # cells; longer rows are hard to read
_CARRY = 2000  # characters of an open line of plain text after which its full rows are final
_FOOTERS = {"partial": "interrupted", "stopped": "stopped", "failed": "failed"}


@dataclass(frozen=True, slots=True)
class Entry:
    """One message. `stats` is one line for the right end of the header; of a failed reply it is the reason."""

    id: int
    role: Literal["system", "user", "assistant"]
    author: str
    time: str
    text: str
    status: Status = "complete"
    stats: str = ""
    variant: str = ""


class Change(NamedTuple):
    """Cells [start, end) of a row of an entry, counted from the start of its text, must be painted again."""

    row: int
    start: int = 0
    end: int = 10_000


def difference(old: Line, new: Line) -> tuple[int, int]:
    """The cells in which two rows differ. They are painted alone: a token is few bytes, a row is hundreds."""
    same = list(takewhile(lambda pair: pair[0] == pair[1], zip(old.segments, new.segments, strict=False)))
    start = row_width(segment for segment, _ in same)
    rest = [line.segments[len(same)] if len(line.segments) > len(same) else ("", "") for line in (old, new)]
    (before, style), (after, new_style) = rest
    if style == new_style and before.isascii() and after.isascii():
        start += sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(before, after, strict=False)))
    return start, max(row_width(old.segments), row_width(new.segments))


class PlainStream:
    """Literal text with `MarkdownStream`'s interface: what a user wrote is shown as it was written."""

    def __init__(self, width: int) -> None:
        self._width = width
        self._open = ""
        self.committed: list[Line] = []
        self.code_blocks: list[str] = []

    def append(self, text: str) -> None:
        *lines, self._open = (self._open + visible(text)).split("\n")
        for line in lines:
            self.committed += self._wrapped(line)
        if len(self._open) > _CARRY:
            *rows, last = wrap([(self._open.expandtabs(4), "text")], self._width)
            self.committed += [Line(tuple(row)) for row in rows]
            self._open = "".join(text for text, _ in last)

    def tail(self) -> list[Line]:
        return self._wrapped(self._open) if self._open else []

    def finish(self) -> list[Line]:
        self.committed += self.tail()
        self._open = ""
        return self.committed

    def _wrapped(self, line: str) -> list[Line]:
        return [Line(tuple(row)) for row in wrap_text(line, self._width, "text")]


class EntryView:
    """The lines of an entry at a width. Row 0 is the header, the last row is blank.

    Text is laid out at most `feed`'s limit at a time, so that a huge message cannot hold up the screen.
    """

    def __init__(self, entry: Entry, width: int, glyphs: Glyphs, outdent: int = 0) -> None:
        self.entry = entry
        self.width = width
        self.header_width = width + outdent  # the header starts so many cells before the text
        self.glyphs = glyphs
        self.waiting = ""
        self._fragments = [entry.text]
        self._queue = entry.text.replace("\r\n", "\n")
        self._next = 0  # of the queue
        self._stream = MarkdownStream(width, glyphs) if entry.role == "assistant" else PlainStream(width)
        self._body: list[Line] = []
        self._final = 0  # lines of the body that are committed
        self._header = self._make_header()
        self._footer = self._make_footer()

    @property
    def text(self) -> str:
        """Everything received, as it was sent."""
        if len(self._fragments) > 1:
            self._fragments = ["".join(self._fragments)]
        return self._fragments[0]

    @property
    def fed(self) -> bool:
        """Whether all text received so far is laid out."""
        return self._next >= len(self._queue)

    @property
    def height(self) -> int:
        return 2 + len(self._body) + len(self._footer)

    @property
    def code_blocks(self) -> list[str]:
        return self._stream.code_blocks

    def line(self, row: int) -> Line:
        """Line `row`; blank outside of the entry."""
        if row <= 0:
            return self._header if row == 0 else BLANK
        row -= 1
        if row < len(self._body):
            return self._body[row]
        row -= len(self._body)
        return self._footer[row] if row < len(self._footer) else BLANK

    def append(self, text: str, limit: int) -> list[Change]:
        """Take a fragment; returns what changed."""
        self._fragments.append(text)
        self._queue = self._queue[self._next :] + text
        self._next = 0
        return self.feed(limit)

    def feed(self, limit: int) -> list[Change]:
        """Lay out up to `limit` characters more; returns what changed."""
        end = min(len(self._queue), self._next + limit)
        if end > self._next:
            self._stream.append(self._queue[self._next : end])
            self._next = end
        return self._refresh()

    def wait(self, text: str) -> list[Change]:
        """Show `text` while there is nothing else to show; returns what changed."""
        self.waiting = text
        return self._refresh()

    def end(self, entry: Entry) -> None:
        """The reply is over; `entry` has its final status and statistics."""
        self.entry = entry
        self._header, self._footer = self._make_header(), self._make_footer()
        self._refresh()

    def _refresh(self) -> list[Change]:
        """Bring the body up to date; returns what changed."""
        open_ended = self.entry.status == "streaming" or not self.fed
        stream = self._stream
        tail = stream.tail() if open_ended else []
        if not open_ended:
            stream.finish()
        new = [*stream.committed[self._final :], *tail]
        if self.entry.status == "streaming":
            if any(line.segments for line in new):
                new[-1] = Line(
                    (*new[-1].segments, (self.glyphs.cursor, "cursor")), new[-1].kind, new[-1].code
                )
            elif not self._final:
                mark = self.glyphs.plain(visible(self.waiting)) or self.glyphs.ellipsis
                new = [Line(((clip(mark, self.width), "status.wait"),), "wait")]
        old = self._body[self._final :]
        first = self._final
        changed = [
            Change(first + 1 + i, *difference(old[i] if i < len(old) else BLANK, line))
            for i, line in enumerate(new)
            if i >= len(old) or old[i] != line
        ]
        self._body[first:] = new
        self._final = len(stream.committed)
        if self.entry.status == "streaming" and not tail:
            self._final = max(0, self._final - 1)  # the cursor stands on it
        if len(new) != len(old):  # what follows has moved
            below = range(first + 1 + len(new), max(self.height, self.height + len(old) - len(new)))
            changed += [Change(row) for row in below]
        return changed

    def _make_header(self) -> Line:
        entry, plain = self.entry, self.glyphs.plain
        left: Row = [(clip(plain(one_line(entry.author)), self.header_width // 2), f"author.{entry.role}")]
        left += [(f" {plain(one_line(part))}", "meta") for part in (entry.time, entry.variant) if part]
        room = self.header_width - row_width(left) - 2
        stats = "" if entry.status == "failed" else clip(plain(one_line(entry.stats)), room)
        gap = self.header_width - row_width(left) - row_width([(stats, "")])
        return Line(tuple(compact([*left, (" " * max(0, gap), "meta"), (stats, "meta")])), "header")

    def _make_footer(self) -> list[Line]:
        word = _FOOTERS.get(self.entry.status)
        if word is None:
            return []
        failed = self.entry.status == "failed"
        reason = f": {one_line(self.entry.stats, 1000)}" if failed and self.entry.stats else ""
        mark = self.glyphs.failed if failed else self.glyphs.stopped
        style = "status.bad" if failed else "meta"
        text = self.glyphs.plain(f"{mark} {word}{reason}")
        return [Line(tuple(row), "status") for row in wrap_text(text, self.width, style)]


def estimate_height(entry: Entry, width: int) -> int:
    """About how many rows an entry takes, without laying it out."""
    text = entry.text
    return 2 + text.count("\n") + len(text) // max(width, 1) + (entry.status in _FOOTERS) + bool(text)
