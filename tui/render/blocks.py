"""The block structure of Markdown, one source line at a time, without looking ahead.

`Blocks` is a state machine: a stack of containers (quotes, list items) and at most one open leaf (paragraph,
fence, table). Each line changes the state and may emit rows, which are final. The state is bounded, so it can
be copied to show what the text so far would look like if it ended here.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, Self

from .code import CodeBox
from .glyphs import Glyphs
from .inline import parse_inline
from .lines import Line, Row, Segment, compact, fold, row_width, wrap
from .paragraph import Paragraph
from .table import Table, table_start

_BULLETS = {False: "•◦▪", True: "*-+"}  # by ASCII or not, then by depth
_DEPTH = 12  # containers that are opened; what is nested deeper is text
_HEADING = re.compile(r"(#{1,6})(?:[ \t]+(.*?))??(?:[ \t]+#+)?[ \t]*$")
_RULE = re.compile(r"(?:(?:\*[ \t]*){3,}|(?:-[ \t]*){3,}|(?:_[ \t]*){3,})$")
_FENCE = re.compile(r"(`{3,}(?=[^`]*$)|~{3,})[ \t]*(\S*)")
_ITEM = re.compile(r"([-*+]|\d{1,9}[.)])(?=[ \t]|$)")
_UNSETTLED = re.compile(r"[ \t>]*(?:[-*+=_#`~|: \t]*|\d{1,3}[.)]?)$")
_UNDERLINE = re.compile(r"(=+|-+)[ \t]*$")


@dataclass(frozen=True, slots=True)
class Container:
    """A quote, or a list item whose text starts `indent` columns in. `marker` is the item's first prefix."""

    kind: Literal["quote", "item"]
    indent: int
    marker: Segment


@dataclass(frozen=True, slots=True)
class OpenFence:
    """What ends a fence, and how far its content is indented."""

    mark: str
    indent: int
    number: int


def indentation(line: str) -> int:
    """Columns of leading white space; a tab goes to the next multiple of four."""
    column = 0
    for char in line:
        if char == " ":
            column += 1
        elif char == "\t":
            column += 4 - column % 4
        else:
            break
    return column


def dedent(line: str, columns: int) -> str:
    """`line` without its first `columns` columns of white space; a tab that is cut leaves spaces."""
    column = 0
    for i, char in enumerate(line):
        if column >= columns or char not in " \t":
            return " " * (column - columns) + line[i:] if column > columns else line[i:]
        column += 1 if char == " " else 4 - column % 4
    return ""


class Blocks:
    """See the module. `out` collects emitted lines, `codes` the text of each fenced block, in order."""

    def __init__(self, width: int, glyphs: Glyphs) -> None:
        self.width = width
        self.glyphs = glyphs
        self.out: list[Line] = []
        self.codes: list[list[str]] = []
        self._containers: tuple[Container, ...] = ()
        self._fresh = 0  # containers from here on have not shown their marker
        self._leaf: Paragraph | CodeBox | Table | None = None
        self._fence: OpenFence | None = None
        self._blank = False  # a blank line was seen since the last block
        self._any = False  # something was emitted

    def copy(self) -> Self:
        """A state of its own with empty `out`; the text of code blocks stays with the original."""
        other = copy.copy(self)
        other.out, other.codes = [], [[] for _ in self.codes]
        other._leaf = self._leaf.copy() if self._leaf is not None else None
        return other

    # --- lines in --------------------------------------------------------------------------------------------

    def line(self, text: str, more: bool = False) -> None:
        """Take a source line, or with `more` the first piece of a long one."""
        matched, rest = self._match(text)
        if isinstance(self._leaf, CodeBox):
            if matched == len(self._containers):
                self._code_line(rest, more)
                return
            self._close_leaf()
        if not rest.strip(" \t"):
            self._close_to(matched)
            self._blank = True
            return
        self._block(matched, rest, more)

    def piece(self, text: str, more: bool) -> None:
        """Take another piece of the long line that was begun with `line`."""
        if isinstance(self._leaf, CodeBox):
            self._emit(self._leaf.line(text, more, joined=True), "code", self._number)
        elif isinstance(self._leaf, Paragraph):
            self._emit(self._leaf.add(text, joined=True, more=more))
        elif text.strip(" \t"):
            self._paragraph(len(self._containers), text, more)

    def close(self, unfinished: bool = False) -> None:
        """End the text. `unfinished`: more is coming, so a fence stays open and delimiters are healed."""
        if unfinished and isinstance(self._leaf, CodeBox):
            self._emit(self._leaf.flush(), "code", self._number)
        elif unfinished and isinstance(self._leaf, Paragraph):
            self._emit(self._leaf.close(heal=True))
        else:
            self._close_to(0)

    def settled(self, text: str) -> bool:
        """Whether an unfinished line says enough to be shown; "-" may yet become an item, a rule, a heading."""
        if isinstance(self._leaf, CodeBox) and self._fence is not None:
            return set(text.strip(" \t")) != {self._fence.mark[0]}
        return _UNSETTLED.match(text) is None

    # --- containers ------------------------------------------------------------------------------------------

    def _match(self, text: str) -> tuple[int, str]:
        """How many open containers the line continues, and what it holds inside them."""
        rest = text
        blank = not text.strip(" \t")
        for i, container in enumerate(self._containers):
            if container.kind == "quote":
                inner = _after_quote(rest)
                if inner is None:
                    return i, rest
                rest, blank = inner, not inner.strip(" \t")
            elif blank or indentation(rest) >= container.indent:
                rest = dedent(rest, container.indent)
            else:
                return i, rest
        return len(self._containers), rest

    def _open(self, container: Container) -> None:
        self._containers = (*self._containers, container)

    def _begin(self, matched: int, apart: bool = False) -> None:
        """Make room for a new block inside the first `matched` containers: close the rest, leave a gap."""
        self._close_to(matched)
        if self._any and (self._blank or apart) and self._fresh >= len(self._containers):
            self._emit([[]], "blank")
        self._blank = False

    def _close_to(self, count: int) -> None:
        """Close the open leaf and the containers after the first `count`."""
        self._close_leaf()
        while len(self._containers) > count:
            if self._fresh < len(self._containers) and self._containers[-1].kind == "item":
                self._emit([[]])  # an item without text still shows its marker
            self._containers = self._containers[:-1]
            self._fresh = min(self._fresh, len(self._containers))

    def _close_leaf(self) -> None:
        leaf, self._leaf = self._leaf, None
        if isinstance(leaf, Paragraph):
            self._emit(leaf.close())
        elif isinstance(leaf, Table):
            self._emit(leaf.close(), "table")
        elif isinstance(leaf, CodeBox):
            self._emit([*leaf.flush(), *leaf.bottom()], "code", self._number)
            self._fence = None

    # --- blocks ----------------------------------------------------------------------------------------------

    def _block(self, matched: int, rest: str, more: bool) -> None:
        """A line that is not blank and not code: open what it opens, then give its text to a leaf."""
        start = matched
        while len(self._containers[:matched]) < _DEPTH:
            inside = self._leaf is not None and matched == len(self._containers)
            if indentation(rest) > 3 or (inside and not more and self._underline(rest)):
                break
            body = rest.lstrip(" \t")
            if not more and _RULE.match(body):
                break
            if (inner := _after_quote(rest)) is not None:
                self._begin(matched)
                self._open(Container("quote", 0, (f"{self.glyphs.vertical} ", "quote.bar")))
                rest = inner
            elif (item := self._item(matched, rest, inside)) is not None:
                self._begin(matched)
                container, rest = item
                self._open(container)
            else:
                break
            matched = len(self._containers)
            if not rest.strip(" \t"):
                return
        self._leaf_line(matched, rest, more, opened=matched > start)

    def _item(self, matched: int, rest: str, inside: bool) -> tuple[Container, str] | None:
        """The list item that the line starts, if any, and the text after its marker."""
        lead = indentation(rest)
        body = rest.lstrip(" \t")
        match = _ITEM.match(body)
        if match is None:
            return None
        marker, after = match.group(1), body[match.end() :]
        if (
            inside
            and isinstance(self._leaf, Paragraph)
            and (marker[:-1] not in ("", "1") or not after.strip())
        ):
            return None  # "in\n1984. It was" is no list
        gap = indentation(after)
        gap = gap if 0 < gap < 5 and after.strip(" \t") else 1
        bullets = _BULLETS[self.glyphs.ascii]
        level = sum(c.kind == "item" for c in self._containers[:matched])
        shown = marker if marker[-1] in ".)" else bullets[level % len(bullets)]
        return Container("item", lead + len(marker) + gap, (f" {shown} ", "bullet")), dedent(after, gap)

    def _leaf_line(self, matched: int, rest: str, more: bool, opened: bool) -> None:
        leaf = self._leaf if matched == len(self._containers) and not opened else None
        if more:
            self._paragraph(matched, rest, more)
        elif isinstance(leaf, Paragraph) and self._underline(rest):
            self._setext(leaf, rest)
        elif isinstance(leaf, Paragraph) and (aligns := table_start(leaf.last_line, rest)):
            header = leaf.last_line
            leaf.drop_last()
            self._begin(matched)
            self._leaf = Table(self._room(), header, aligns, self.glyphs)
        elif indentation(rest) > 3:
            self._indented(matched, rest)
        elif self._one_line(matched, rest.strip(" \t")) or self._open_fence(matched, rest):
            return
        elif isinstance(leaf, Table) and "|" in rest:
            self._emit(leaf.row(rest), "table")
        else:
            self._paragraph(matched, rest, more)

    def _underline(self, rest: str) -> bool:
        """Whether the line makes a heading of the paragraph so far, which must be one line."""
        leaf = self._leaf
        return (
            isinstance(leaf, Paragraph)
            and leaf.single_line
            and indentation(rest) < 4
            and _UNDERLINE.match(rest.strip(" \t")) is not None
        )

    def _setext(self, leaf: Paragraph, rest: str) -> None:
        self._leaf = None
        self._heading(1 if rest.strip().startswith("=") else 2, leaf.text())

    def _one_line(self, matched: int, body: str) -> bool:
        """A heading or a rule."""
        if heading := _HEADING.match(body):
            self._begin(matched, apart=True)
            self._heading(len(heading.group(1)), heading.group(2) or "")
            return True
        if _RULE.match(body):
            self._begin(matched)
            self._emit([[(self.glyphs.horizontal * self._room(), "rule")]], "rule")
            return True
        return False

    def _heading(self, level: int, text: str) -> None:
        row, _ = parse_inline(text.strip(), f"heading{min(level, 3)}")
        self._emit([compact(part) for part in wrap(row, self._room())], "heading")

    def _open_fence(self, matched: int, rest: str) -> bool:
        match = _FENCE.match(rest.strip(" \t"))
        if match is None:
            return False
        self._begin(matched)
        box = CodeBox(self._room(), match.group(2), self.glyphs)
        self._leaf = box
        self.codes.append(box.text)
        self._fence = OpenFence(match.group(1), indentation(rest), len(self.codes) - 1)
        self._emit(box.top(), "code", self._number)
        return True

    @property
    def _number(self) -> int:
        return self._fence.number if self._fence is not None else -1

    def _code_line(self, rest: str, more: bool) -> None:
        leaf, fence = self._leaf, self._fence
        assert isinstance(leaf, CodeBox) and fence is not None
        body = rest.strip(" \t")
        closing = set(body) == {fence.mark[0]} and len(body) >= len(fence.mark) and indentation(rest) < 4
        if closing and not more:
            self._close_leaf()
        else:
            text = dedent(rest, min(fence.indent, indentation(rest)))
            self._emit(leaf.line(text, more), "code", fence.number)

    def _indented(self, matched: int, rest: str) -> None:
        """Text four columns in: code without a frame, or the next line of a paragraph."""
        if isinstance(self._leaf, Paragraph):
            self._paragraph(matched, rest, more=False)
            return
        self._begin(matched)
        self._emit(fold([(dedent(rest, 4).expandtabs(4), "code.text")], self._room()), "indented")

    def _paragraph(self, matched: int, rest: str, more: bool) -> None:
        if not isinstance(self._leaf, Paragraph):  # else it goes on, also where a quote's ">" was left out
            self._begin(matched)
            quoted = any(c.kind == "quote" for c in self._containers)
            self._leaf = Paragraph(self._room(), "quote" if quoted else "text")
        self._emit(self._leaf.add(rest, more=more))

    # --- rows out --------------------------------------------------------------------------------------------

    def _shown(self) -> int:
        """How many containers are drawn: deep ones must leave half of the width to the text."""
        used = 0
        for i, container in enumerate(self._containers):
            used += row_width([container.marker])
            if used > self.width // 2:
                return i
        return len(self._containers)

    def _room(self) -> int:
        return self.width - row_width(c.marker for c in self._containers[: self._shown()])

    def _prefix(self) -> Row:
        row: Row = []
        for i, container in enumerate(self._containers[: self._shown()]):
            text, style = container.marker
            keep = container.kind == "quote" or i >= self._fresh
            row.append((text, style) if keep else (" " * row_width([container.marker]), "text"))
        self._fresh = len(self._containers)
        return row

    def _emit(self, rows: Iterable[Row], kind: str = "text", code: int = -1) -> None:
        for row in rows:
            self.out.append(Line(tuple(compact(self._prefix() + row)), kind, code))
            self._any = True


def _after_quote(line: str) -> str | None:
    """What follows a quote's ">" and one optional space, or None."""
    if indentation(line) > 3:
        return None
    body = line.lstrip(" \t")
    if not body.startswith(">"):
        return None
    return dedent(body[1:], 1) if body[1:2] in (" ", "\t") else body[1:]
