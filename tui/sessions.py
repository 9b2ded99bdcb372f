"""The conversations, outside of any widget: what they are, and their list in step with the history.

One view is told what changed. It may be absent: sessions live while another screen, or none, is shown.
"""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from ..engine.text import one_line
from ..engine.types import ModelState, SamplingParams
from . import sampling as sampling_settings
from .history import MessageRow, SessionRow
from .store import Store

TITLE_LENGTH = 80
Level = Literal["info", "warning", "error"]
Phase = Literal["held", "queued", "prefill", "decode"]


@dataclass(slots=True, eq=False)
class Turn:
    """One message on a session's path. `id` is the database's, None while (or if) it could not be saved."""

    key: int
    role: Literal["user", "assistant"]
    text: str
    status: str
    created: float
    model: str = ""
    stats: dict[str, Any] = field(default_factory=dict)
    id: int | None = None
    siblings: tuple[int, ...] = ()


@dataclass(slots=True, eq=False)
class Reply:
    """A reply that is being generated."""

    request: str
    turn: Turn
    phase: Phase = "queued"
    done: int = 0
    total: int = 0
    tps: float = 0.0  # 0: not measured
    place: int = 0  # in the queue, from 1; 0: not waiting
    reason: str = ""
    saver: asyncio.TimerHandle | None = None


@dataclass(slots=True, eq=False)
class ChatSession:
    """One conversation: `turns` is the path from the root to the head of its message tree."""

    id: int
    title: str = ""
    system: str = ""
    sampling: SamplingParams = field(default_factory=SamplingParams)
    draft: str = ""
    turns: list[Turn] = field(default_factory=list)
    loaded: bool = False
    unseen: bool = False
    reply: Reply | None = None

    @property
    def name(self) -> str:
        return self.title or "new chat"

    @property
    def last_reply(self) -> Turn | None:
        return next((turn for turn in reversed(self.turns) if turn.role == "assistant"), None)

    @property
    def context_used(self) -> int:
        """Tokens of the context that the newest answered request filled."""
        for turn in reversed(self.turns):
            if "prompt_tokens" in turn.stats and "completion_tokens" in turn.stats:
                return int(turn.stats["prompt_tokens"]) + int(turn.stats["completion_tokens"])
        return 0


class View(Protocol):
    """Who shows the sessions."""

    def turns_changed(self, session: ChatSession) -> None: ...
    def turn_added(self, session: ChatSession, turn: Turn) -> None: ...
    def reply_waiting(self, session: ChatSession, turn: Turn, text: str) -> None: ...
    def reply_text(self, session: ChatSession, turn: Turn, text: str) -> None: ...
    def reply_ended(self, session: ChatSession, turn: Turn) -> None: ...
    def sessions_changed(self) -> None: ...
    def model_changed(self, state: ModelState) -> None: ...
    def notice(self, text: str, level: Level = "info") -> None: ...


class NullView:
    """Nobody looks."""

    def turns_changed(self, session: ChatSession) -> None:
        """The path changed as a whole."""

    def turn_added(self, session: ChatSession, turn: Turn) -> None:
        """One message more at the end."""

    def reply_waiting(self, session: ChatSession, turn: Turn, text: str) -> None:
        """Why there is no text yet."""

    def reply_text(self, session: ChatSession, turn: Turn, text: str) -> None:
        """`text` was appended to the turn."""

    def reply_ended(self, session: ChatSession, turn: Turn) -> None:
        """The turn's text, status and statistics are final."""

    def sessions_changed(self) -> None:
        """A title, a state or the order."""

    def model_changed(self, state: ModelState) -> None:
        """Loaded, loading, failed, gone."""

    def notice(self, text: str, level: Level = "info") -> None:
        """Something to tell the user once."""


class Sessions:
    """All conversations: new ones first, then those of earlier runs by last use. The order does not change
    while the program runs, so a session keeps its number. Every method runs on the event loop.

    `sampling` and `system` are what a new session starts with.
    """

    def __init__(self, store: Store, sampling: SamplingParams, system: str = "") -> None:
        self.all: list[ChatSession] = []
        self.view: View = NullView()
        self.store = store
        self.sampling = sampling
        self.system = system
        self._read = 0  # rows of the history's list
        self._keys = itertools.count(1)
        self._unsaved = itertools.count(-1, -1)  # ids of sessions that the history refused

    async def open(self, page: int = 200) -> bool:
        """Read the next page of sessions, newest first; whether there may be more."""
        rows = await self.store.attempt(self.store.history.sessions, page, self._read)
        known = {session.id for session in self.all}
        self.all += [self._from_row(row) for row in rows or [] if row.id not in known]
        self._read += len(rows or [])
        self.view.sessions_changed()
        return len(rows or []) == page

    def _from_row(self, row: SessionRow) -> ChatSession:
        return ChatSession(
            row.id,
            one_line(row.title, TITLE_LENGTH),
            row.system,
            sampling_settings.from_dict(row.sampling, self.sampling),
            row.draft,
            loaded=row.messages == 0,
        )

    async def create(self, title: str = "") -> ChatSession:
        """A new session at the top of the list. Without a title, a session that is still empty is used again."""
        empty = next((s for s in self.all if s.loaded and not s.turns and not s.title and not s.draft), None)
        if empty is not None and not title:
            self.all.remove(empty)
            self.all.insert(0, empty)
            self.view.sessions_changed()
            return empty
        row = await self.store.attempt(
            self.store.history.create_session,
            title=title,
            system=self.system,
            sampling=sampling_settings.to_dict(self.sampling),
        )
        session = (
            self._from_row(row)
            if row is not None
            else ChatSession(next(self._unsaved), title, self.system, self.sampling, loaded=True)
        )
        session.loaded = True
        self.all.insert(0, session)
        self.view.sessions_changed()
        return session

    async def load(self, session: ChatSession) -> None:
        """Read the session's messages, once."""
        if not session.loaded:
            session.loaded = True
            await self._reload(session)

    async def _reload(self, session: ChatSession) -> None:
        rows = await self.store.attempt(self.store.history.path, session.id)
        session.turns = [self._turn(row) for row in rows or [] if row.role in ("user", "assistant")]
        self.view.turns_changed(session)

    def _turn(self, row: MessageRow) -> Turn:
        return Turn(
            self.new_key(),
            "user" if row.role == "user" else "assistant",
            row.text,
            row.status,
            row.created,
            row.model,
            dict(row.stats),
            row.id,
            row.siblings,
        )

    async def delete(self, session: ChatSession) -> None:
        """Remove a session and all its messages. Its reply must have been stopped."""
        self.all.remove(session)
        self.view.sessions_changed()
        await self.store.attempt(self.store.history.delete_session, session.id)

    def update(self, session: ChatSession, **fields: Any) -> None:
        """Change and save `title`, `system`, `draft` or `sampling` of a session."""
        for name, value in fields.items():
            setattr(session, name, value)
        if "sampling" in fields:
            fields["sampling"] = sampling_settings.to_dict(fields["sampling"])
        if session.id > 0:
            self.store.post(self.store.history.update_session, session.id, **fields)
        if "draft" not in fields:
            self.view.sessions_changed()

    @property
    def generating(self) -> list[ChatSession]:
        return [session for session in self.all if session.reply is not None]

    async def switch_variant(self, session: ChatSession, turn: Turn, step: int) -> bool:
        """Show the sibling of `turn` that is `step` further; False where there is none."""
        if turn.id not in turn.siblings:
            return False
        at = turn.siblings.index(turn.id) + step
        if not 0 <= at < len(turn.siblings):
            return False
        await self.store.attempt(self.store.history.set_head, session.id, turn.siblings[at])
        await self._reload(session)
        return True

    def new_key(self) -> int:
        """An id for a turn on the screen, whether or not the database knows it."""
        return next(self._keys)
