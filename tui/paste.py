"""Pasted text is text, whatever it holds.

Textual 8.2.8 goes on looking for keys inside a bracketed paste: after an ESC there, up to 32 characters are typed
as keys, a line end among them as enter. `PasteParser` lets the paste's own end be the only ESC that the parser
sees. To be removed when upstream does the same.
"""

from __future__ import annotations

from collections.abc import Iterable

from textual._xterm_parser import XTermParser
from textual.drivers import linux_driver
from textual.message import Message

START, END = "\x1b[200~", "\x1b[201~"
ESCAPE_MARK = "\u241b"  # what `visible` makes of ESC


class PasteParser(XTermParser):
    """Textual's parser of terminal input, fed with pastes that hold no escape sequences."""

    def __init__(self, debug: bool = False) -> None:
        super().__init__(debug)
        self._pasting = False
        self._tail = ""  # outside a paste: the last characters, maybe the beginning of START; inside: of END

    def feed(self, data: str) -> Iterable[Message]:
        """Textual's messages for `data`; "" is the end of input."""
        if data and not (data := self._tame(data)):
            return ()
        return super().feed(data)

    def _tame(self, data: str) -> str:
        out: list[str] = []
        while data:
            out_part, data = self._inside(data) if self._pasting else self._outside(data)
            out.append(out_part)
        return "".join(out)

    def _outside(self, data: str) -> tuple[str, str]:
        """What goes on up to the start of a paste, and what comes after it."""
        seen = self._tail + data
        at = seen.find(START)
        if at < 0:
            self._tail = seen[-len(START) + 1 :]
            return data, ""
        end = at + len(START) - len(self._tail)
        self._pasting, self._tail = True, ""
        return data[:end], data[end:]

    def _inside(self, data: str) -> tuple[str, str]:
        """The paste up to its end, and what comes after it; the beginning of an end is held back."""
        seen, self._tail = self._tail + data, ""
        at = seen.find(END)
        if at >= 0:
            self._pasting = False
            return seen[:at].replace("\x1b", ESCAPE_MARK) + END, seen[at + len(END) :]
        keep = next((n for n in range(len(END) - 1, 0, -1) if seen.endswith(END[:n])), 0)
        self._tail = seen[len(seen) - keep :]
        return seen[: len(seen) - keep].replace("\x1b", ESCAPE_MARK), ""


def install() -> None:
    """Use `PasteParser` for the terminal's input in this process."""
    linux_driver.XTermParser = PasteParser  # type: ignore[attr-defined]
