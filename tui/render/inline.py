"""Inline Markdown: emphasis, code spans and links of one stretch of paragraph text, as styled segments.

A dialect of CommonMark chosen for streams. Whatever is not understood stays as it was written; HTML and
links to anything but http(s) are such text. `*` may open or close beside any non-space, because the
CommonMark rule leaves Chinese and Japanese emphasis unclosed next to full-width punctuation.
"""

from __future__ import annotations

import html
import re

from ...engine.text import visible
from .lines import Row

STRONG, EM, STRIKE, CODE, LINK, URL = 1, 2, 4, 8, 16, 32
_MAX_OPEN = 64  # delimiters remembered; beyond that they are text, so that hostile input stays linear

_TOKEN = re.compile(
    r"\\[!-/:-@\[-`{-~]|\\\n| {2,}\n|\n"
    r"|`+|\*+|_+|~~"
    r"|!?\[|\]"
    r"|<https?://[^\s<>]+>|https?://[^\s<>`*]+"
    r"|&(?:[A-Za-z][A-Za-z0-9]{1,30}|#\d{1,7}|#[xX][0-9A-Fa-f]{1,6});"
)
_TARGET = re.compile(
    r"\(\s*<?([^\s()<>]*(?:\([^\s()<>]*\)[^\s()<>]*)*)>?(?:\s+(?:\"[^\"\n]*\"|'[^'\n]*'))?\s*\)"
)
_URL_END = re.compile(r"[.,;:!?'\")\]]+$")


class _Parser:
    """One pass from left to right. `nodes` are [text, flags]; a delimiter's node holds its unused characters."""

    def __init__(self, text: str) -> None:
        self.text = text.replace("\t", " ")
        self.nodes: list[list[str | int]] = []
        self.open: list[tuple[str, int]] = []  # (delimiter character, node index)
        self.brackets: list[tuple[int, int]] = []  # (node index, start of the text in the source)
        self.balanced = True

    def put(self, text: str, flags: int = 0) -> None:
        if text:
            self.nodes.append([text, flags])

    def mark(self, start: int, flags: int) -> None:
        for node in self.nodes[start:]:
            node[1] = int(node[1]) | flags

    def parse(self) -> None:
        text, pos = self.text, 0
        while match := _TOKEN.search(text, pos):
            self.put(text[pos : match.start()])
            pos = self.token(match.group(), match.start(), match.end())
        self.put(text[pos:])

    def token(self, token: str, start: int, end: int) -> int:
        """Handle one token; returns where to go on."""
        first = token[0]
        if first == "\\":
            self.put(token[1])
        elif token == "\n":
            self.put(" ")
        elif first == " ":
            self.put("\n")
        elif first == "`":
            return self.code_span(token, end)
        elif first in "*_~":
            self.delimiter(token, start, end)
        elif token in ("[", "!["):
            self.brackets.append((len(self.nodes), end))
            del self.brackets[:-_MAX_OPEN]
            self.put(token)
        elif first == "]":
            return self.link(end)
        elif first == "<":
            self.put(token[1:-1], LINK)
        elif first == "h":
            trailing = _URL_END.search(token)
            url = token[: trailing.start()] if trailing else token
            self.put(url, LINK)
            return start + len(url)
        else:
            self.put(" ".join(visible(html.unescape(token)).splitlines()).replace("\t", " "))
        return end

    def code_span(self, ticks: str, end: int) -> int:
        close = re.compile(rf"(?<!`){ticks}(?!`)").search(self.text, end)
        if close is None:
            self.balanced = False
            self.put(ticks)
            return end
        body = self.text[end : close.start()].replace("\n", " ")
        if len(body) > 2 and body[0] == body[-1] == " " and body.strip():
            body = body[1:-1]
        self.put(body, CODE)
        return close.end()

    def delimiter(self, run: str, start: int, end: int) -> None:
        before = self.text[start - 1] if start else " "
        after = self.text[end] if end < len(self.text) else " "
        opens, closes = not after.isspace(), not before.isspace()
        if run[0] == "_":
            opens = opens and not (before.isalnum() or before == "_")
            closes = closes and not (after.isalnum() or after == "_")
        left = self.close(run) if closes else run
        if left:
            if opens:
                self.open.append((left[0], len(self.nodes)))
                del self.open[:-_MAX_OPEN]
            self.put(left)

    def close(self, run: str) -> str:
        """Match a closing run against the open delimiters; returns what is left of it."""
        while run:
            found = next((i for i in range(len(self.open) - 1, -1, -1) if self.open[i][0] == run[0]), -1)
            if found < 0:
                break
            node = self.open[found][1]
            opener = str(self.nodes[node][0])
            size = 2 if len(opener) > 1 and len(run) > 1 else 1
            self.mark(node + 1, STRIKE if run[0] == "~" else STRONG if size == 2 else EM)
            self.nodes[node][0] = opener[size:]
            run = run[size:]
            del self.open[found + bool(opener[size:]) :]
        return run

    def link(self, end: int) -> int:
        target = _TARGET.match(self.text, end)
        if not self.brackets or target is None:
            if self.brackets:
                self.brackets.pop()
            self.put("]")
            return end
        node, begin = self.brackets.pop()
        url = target.group(1)
        if not url.lower().startswith(("http://", "https://")):
            self.put("]")
            return end
        label = self.text[begin : end - 1]
        self.nodes[node][0] = ""
        self.mark(node, LINK)
        if label.strip() != url:
            self.put(f" ({url})" if label else url, URL)
        return target.end()

    def heal(self) -> None:
        """Show what is open at the end of unfinished text as if its closing mark had come."""
        for char, node in self.open:
            run = str(self.nodes[node][0])
            if char in "*_~" and len(run) == 2:
                self.nodes[node][0] = ""
                self.mark(node + 1, STRIKE if char == "~" else STRONG)
        ticks = next(
            (i for i, node in enumerate(self.nodes) if set(str(node[0])) == {"`"} and not node[1]), -1
        )
        if ticks >= 0:
            self.nodes[ticks][0] = ""
            self.mark(ticks + 1, CODE)


_EMPHASIS = {0: "text", STRONG: "strong", EM: "em", STRONG | EM: "strong.em"}


def _style(flags: int, base: str) -> str:
    if flags & URL:
        return "link.url"
    if flags & LINK:
        return "link"
    if flags & CODE:
        return "code"
    if base not in ("text", "quote"):
        return base
    if flags & STRIKE:
        return "strike"
    return _EMPHASIS[flags & (STRONG | EM)] if flags else base


def parse_inline(text: str, base: str = "text", heal: bool = False) -> tuple[Row, bool]:
    """Segments of `text`, which is already visible; a soft break is a space, a hard one "\\n".

    Also tells whether nothing was left open, so that no later text could change these segments. `heal` closes
    what is open, for the tail of a stream. Time is linear in practice and O(64 n) at worst per call.
    """
    parser = _Parser(text)
    parser.parse()
    balanced = parser.balanced and not parser.open and not parser.brackets
    if heal and not balanced:
        parser.heal()
    return [(str(node), _style(int(flags), base)) for node, flags in parser.nodes if node], balanced
