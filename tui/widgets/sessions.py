"""The session list, with each session's live state, and the same as one line of tabs for narrow screens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from textual import events
from textual.message import Message

from ..keys import bindings
from ..render import format
from ..render.glyphs import UNICODE, Glyphs
from ..render.rows import Row, cut, fit, footing, framed, heading, row_width, spread
from ..sessions import ChatSession
from .chrome import Chrome

SPIN = "◐◓◑◒"


@dataclass(frozen=True, slots=True)
class SessionLine:
    """One session as the list shows it. `style` and `letter` are those of its KV blocks."""

    id: int
    name: str
    letter: str
    style: str
    glyph: str
    state: str
    state_style: str
    detail: str = ""


def session_line(
    session: ChatSession,
    letter: tuple[str, str],
    current: bool,
    spin: int,
    blocks: int,
    context: int | None,
    g: Glyphs,
) -> SessionLine:
    """`session` for the list. `spin` counts half seconds, `blocks` are its KV blocks, `context` is the model's
    length in tokens."""
    glyph, state, style = "", "", "dim"
    reply, last = session.reply, session.last_reply
    if reply is not None:
        if reply.phase in ("held", "queued"):
            glyph, style = g.queued, "warn"
            state = f"q{reply.place}" if reply.place else ""
        else:
            glyph, style = (g.busy if g.ascii else SPIN[spin % len(SPIN)]), "ok"
            if reply.phase == "decode":
                state = f"{format.count(reply.tps)}t/s" if reply.tps else ""
            else:
                state = f"{100 * reply.done // reply.total}%" if reply.total else ""
    elif last is not None and last.status == "failed" and session.unseen:
        glyph, style = g.failed, "bad"
    elif session.draft and not current:
        glyph, state, style = g.draft, "draft", "label"
    elif session.unseen and not current:
        answered = last is None or last.status == "complete"
        glyph, style = (g.done, "ok") if answered else (g.stopped, "label")
    used = session.context_used
    detail = f"{format.count(blocks)} blk  " if blocks else ""
    if used and context:
        detail += f"{format.tokens(used)}/{format.tokens(context)} ctx"
    return SessionLine(session.id, session.name, *letter, glyph, state, style, detail)


LineOf = Callable[[ChatSession], SessionLine]


def _place(sessions: Sequence[ChatSession], session_id: int) -> int | None:
    return next((i for i, session in enumerate(sessions) if session.id == session_id), None)


class SessionList(Chrome, can_focus=True):
    """Two rows for a session that has something to say, one for the others. Arrow keys move, enter opens."""

    BINDINGS = bindings("sessions")

    DEFAULT_CSS = "SessionList { height: 1fr; }"

    @dataclass
    class Chosen(Message):
        """The user wants to see this session."""

        id: int

    def __init__(self, *, glyphs: Glyphs = UNICODE, id: str | None = None) -> None:
        super().__init__(glyphs=glyphs, id=id)
        self._sessions: Sequence[ChatSession] = ()
        self._line: LineOf
        self._current = 0
        self._cursor = 0  # the id of the session the keys act on
        self._top = 0
        self._at: list[int] = []  # screen row -> session id, 0 for none

    def show(self, sessions: Sequence[ChatSession], line: LineOf, current: int) -> None:
        """`line` is asked only for the sessions in view; `current` is an id."""
        self._sessions, self._line = sessions, line
        if current != self._current or _place(sessions, self._cursor) is None:
            self._current = self._cursor = current
        self.redraw()

    @property
    def cursor(self) -> int:
        """Id of the session under the cursor."""
        return self._cursor

    def move(self, step: int) -> None:
        at = _place(self._sessions, self._cursor)
        if at is not None:
            self._cursor = self._sessions[max(0, min(len(self._sessions) - 1, at + step))].id
            self.redraw()

    def on_focus(self) -> None:
        self.redraw()

    def on_blur(self) -> None:
        self._cursor = self._current
        self.redraw()

    def on_click(self, event: events.Click) -> None:
        if 0 <= event.y < len(self._at) and self._at[event.y]:
            self.post_message(self.Chosen(self._at[event.y]))

    def rows(self, width: int, height: int) -> list[Row]:
        g = self.glyphs
        inner, room = width - 2, height - 2
        if self._sessions:
            self._scroll_to_cursor(inner, room)
        body: list[Row] = []
        self._at = [0]
        shown = 0
        for place in range(self._top, len(self._sessions)):
            block = self._block(place, inner)
            if len(body) + len(block) > room:
                break
            body += block
            shown += 1
            self._at += [self._sessions[place].id] * len(block)
        body += [[] for _ in range(room - len(body))]
        title: Row = [("sessions", "title")]
        if shown < len(self._sessions):
            title.append((f" {len(self._sessions)}", "label"))
        rows = [heading(title, width, g, first=True), *(framed(row, width, g) for row in body)]
        return [*rows, footing(width, g)]

    def _scroll_to_cursor(self, width: int, room: int) -> None:
        at = _place(self._sessions, self._cursor) or 0
        first, used = at, 0  # the highest top that still has the cursor in view
        while first >= 0 and (used := used + len(self._block(first, width))) <= room:
            first -= 1
            if first < self._top - 1:
                break
        self._top = min(max(self._top, first + 1), at)

    def _block(self, place: int, width: int) -> list[Row]:
        g, line = self.glyphs, self._line(self._sessions[place])
        current = line.id == self._current
        pointer = g.pointer if current else " "
        style = "selected" if self.has_focus and line.id == self._cursor else "title" if current else ""
        end: Row = [(f" {line.glyph} {line.state}".rstrip() + " ", line.state_style)] if line.glyph else []
        number = f"{place + 1:<{len(str(len(self._sessions)))}} "
        room = width - row_width(end) - 1 - len(number)
        start: Row = [(pointer, "accent"), (number, "dim"), (cut(line.name, room, g), style)]
        rows = [spread(start, end, width)]
        if current or line.state:
            detail = f" {line.detail}" if line.detail else ""
            rows.append(fit([("   ", ""), (line.letter, line.style), (detail, "dim")], width))
        return rows


class SessionTabs(Chrome):
    """Sessions in one line, the current one always in sight."""

    def __init__(self, *, glyphs: Glyphs = UNICODE, id: str | None = None) -> None:
        super().__init__(glyphs=glyphs, id=id)
        self._sessions: Sequence[ChatSession] = ()
        self._line: LineOf
        self._current = 0
        self._at: list[tuple[int, int, int]] = []  # first cell, cell after the last, session id

    def show(self, sessions: Sequence[ChatSession], line: LineOf, current: int) -> None:
        """`line` is asked only for the sessions in view; `current` is an id."""
        self._sessions, self._line, self._current = sessions, line, current
        self.redraw()

    def on_click(self, event: events.Click) -> None:
        for first, last, session in self._at:
            if first <= event.x < last:
                self.post_message(SessionList.Chosen(session))

    def rows(self, width: int, height: int) -> list[Row]:
        g = self.glyphs
        tabs = self._tabs_around(
            _place(self._sessions, self._current) or 0, width - len("  | +999 more (F2)")
        )
        row: Row = [(" ", "")]
        self._at = []
        for place, tab in sorted(tabs.items()):
            if self._at:
                row.append((f" {g.vertical} ", "frame"))
            start = row_width(row)
            row += tab
            self._at.append((start, row_width(row), self._sessions[place].id))
        hidden = len(self._sessions) - len(tabs)
        if hidden:
            row += [(f" {g.vertical} ", "frame"), (f"+{hidden} more (F2)", "label")]
        return [fit(row, width)]

    def _tabs_around(self, at: int, room: int) -> dict[int, Row]:
        """The tab at `at` and its neighbours, as many as `room` cells hold, by place."""
        tabs: dict[int, Row] = {}
        candidates = [at]
        while candidates:
            place = candidates.pop(0)
            if not 0 <= place < len(self._sessions):
                continue
            tab = self._tab(place)
            room -= row_width(tab) + (3 if tabs else 0)
            if room < 0 and tabs:
                break
            tabs[place] = tab
            candidates = [max(tabs) + 1, min(tabs) - 1]
        return tabs

    def _tab(self, place: int) -> Row:
        g, line = self.glyphs, self._line(self._sessions[place])
        current = line.id == self._current
        name = cut(line.name, 24 if current else 16, g)
        state = f" {line.glyph}{line.state}" if line.glyph else ""
        if cell_len(state) > 10:
            state = f" {line.glyph}"
        return [
            (f"{place + 1}", "dim"),
            (g.pointer if current else " ", "accent"),
            (name, "title" if current else "label"),
            (state, line.state_style),
        ]
