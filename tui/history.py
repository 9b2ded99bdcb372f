"""Conversations on disk: SQLite, messages as a parent-linked tree, full-text index beside them.

A reply's variants are siblings (same parent); a session's `head` names the leaf that is shown, so regenerating
copies nothing. Every write is one transaction. When a write fails because the disk is full or went away, work
goes on in a copy in memory and the same statements are retried on the file until they succeed, in order.
One thread uses a History. Text that is not valid UTF-8, on its way in or out, gets U+FFFD in its place.
"""

from __future__ import annotations

import json
import os
import secrets
import sqlite3
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import platformdirs
import psutil

from ..engine.faults import Faults
from ..engine.text import one_line
from ..engine.types import HistoryError
from .history_file import alive, connect, identify, journal_mode, migrate, set_aside
from .history_schema import MIGRATIONS

__all__ = ["History", "Hit", "MessageRow", "SessionRow", "default_path", "journal_mode"]

RETRY_S = 5.0
DOWN = ("disk is full", "disk i/o error", "readonly", "unable to open", "database is locked")

Mode = Literal["rw", "ro", "memory"]
Statement = tuple[str, Sequence[Any]]


@dataclass(frozen=True, slots=True)
class SessionRow:
    """One conversation. Times are seconds since 1970; `messages` counts all variants."""

    id: int
    title: str
    created: float
    updated: float
    model: str
    system: str
    sampling: dict[str, Any]
    draft: str
    head: int | None
    messages: int


@dataclass(frozen=True, slots=True)
class MessageRow:
    """One message. `siblings` are the variants at its place, oldest first, itself among them. `status` is
    complete, streaming, stopped, interrupted or failed."""

    id: int
    session: int
    parent: int | None
    role: str
    text: str
    status: str
    model: str
    stats: dict[str, Any]
    created: float
    siblings: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Hit:
    """A message that a search found, with a few words around the match."""

    session: int
    message: int
    excerpt: str


def default_path() -> Path:
    """`history.db` in the user's data directory."""
    return Path(platformdirs.user_data_dir("lmtop")) / "history.db"


class History:
    """An open history. Use `History.open`; mode "memory" keeps nothing, "ro" refuses writes silently."""

    def __init__(self, db: sqlite3.Connection, path: Path | None, mode: Mode, notice: str = "") -> None:
        self.mode: Mode = mode
        self.notice = notice
        self.notify: Callable[[str], None] = lambda text: (
            None
        )  # told when saving stops and when it works again
        self._path = path
        self._db = db
        self._pending: list[list[Statement]] = []  # transactions that the file does not have yet
        self._tried = 0.0
        self._faults = Faults.from_environment()
        self._owner = f"{os.getpid()}:{psutil.Process().create_time():.0f}"

    # --- opening -------------------------------------------------------------------------------------------

    @classmethod
    def open(
        cls, path: Path | None, require: bool = False, migrations: Sequence[str] = MIGRATIONS
    ) -> History:
        """Open (or make) the database at `path`; None keeps the conversation in memory only.

        HistoryError for a file that is not ours, or newer than this program: it is left as it is. A damaged
        file is set aside and its readable messages are kept. A place that cannot be used gives a history in
        memory with a notice, or HistoryError when `require`.
        """
        if path is None:
            return cls._memory("", migrations)
        try:
            return cls._open_file(path, migrations)
        except (OSError, sqlite3.OperationalError) as error:
            what = str(error)
            if isinstance(error, FileExistsError | NotADirectoryError):
                what = "its folder is not a directory"
            elif isinstance(error, OSError) and error.strerror:
                what = error.strerror  # str(error) would name the path again
            reason = f"history off: {one_line(str(path), 120)}: {one_line(what, 120)}"
            if require:
                raise HistoryError(reason) from None
            return cls._memory(f"{reason}; this conversation will not be saved", migrations)

    @classmethod
    def _memory(cls, notice: str, migrations: Sequence[str]) -> History:
        db = connect(":memory:")
        migrate(db, None, migrations)
        return cls(db, None, "memory", notice)

    @classmethod
    def _open_file(cls, path: Path, migrations: Sequence[str]) -> History:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if path.is_dir():
            raise HistoryError(f"{one_line(str(path), 120)}: is a directory; name a file with --history-file")
        if not path.exists():
            path.touch(mode=0o600)
        notice = ""
        if not os.access(path, os.W_OK) or not os.access(path.parent, os.W_OK):
            db = connect(f"{path.absolute().as_uri()}?mode=ro&immutable=1", uri=True)
            identify(db, path, len(migrations))
            return cls(db, path, "ro", f"history is read-only: {one_line(str(path), 120)}")
        try:
            db = connect(str(path))
            identify(db, path, len(migrations))
            migrate(db, path, migrations)
            if db.execute("PRAGMA quick_check(1)").fetchone()[0] != "ok":
                raise sqlite3.DatabaseError("the file is damaged")
        except sqlite3.OperationalError:
            raise
        except sqlite3.DatabaseError as error:
            db, notice = set_aside(path, error, migrations)
        history = cls(db, path, "rw", notice)
        history._end_orphans()
        return history

    def _end_orphans(self) -> None:
        """Replies that a process left unfinished are interrupted; those of a living one are its own."""
        rows = self._db.execute("SELECT id, owner FROM messages WHERE status = 'streaming'").fetchall()
        dead = [row["id"] for row in rows if not alive(row["owner"])]
        if dead:
            self._write([("UPDATE messages SET status = 'interrupted' WHERE id = ?", (id,)) for id in dead])

    # --- sessions ------------------------------------------------------------------------------------------

    def sessions(self, limit: int = 500, offset: int = 0) -> list[SessionRow]:
        """The conversations, the most recently changed first."""
        rows = self._db.execute(
            "SELECT s.*, (SELECT count(*) FROM messages m WHERE m.session = s.id) AS messages"
            " FROM sessions s ORDER BY s.updated DESC, s.id DESC LIMIT ? OFFSET ?",
            (limit, offset),
        )
        return [_session(row) for row in rows]

    def create_session(
        self, title: str = "", model: str = "", system: str = "", sampling: Mapping[str, Any] | None = None
    ) -> SessionRow:
        """A new, empty conversation."""
        id, now, settings = _new_id(), time.time(), json.dumps(dict(sampling or {}))
        values = (id, _storable(title), now, now, model, _storable(system), settings)
        columns = "id, title, created, updated, model, system, sampling"
        self._write([(f"INSERT INTO sessions ({columns}) VALUES (?, ?, ?, ?, ?, ?, ?)", values)])
        return SessionRow(id, title, now, now, model, system, dict(sampling or {}), "", None, 0)

    def update_session(self, session: int, **fields: Any) -> None:
        """Set any of title, model, system, sampling and draft. All but the draft bring the session to the top."""
        unknown = set(fields) - {"title", "model", "system", "sampling", "draft"}
        if unknown:
            raise HistoryError(f"a session has no {', '.join(sorted(unknown))}: this is a bug")
        if "sampling" in fields:
            fields["sampling"] = json.dumps(dict(fields["sampling"]))
        if set(fields) - {"draft"}:
            fields["updated"] = time.time()
        names = ", ".join(f"{name} = ?" for name in fields)
        values = [_storable(v) if isinstance(v, str) else v for v in fields.values()]
        self._write([(f"UPDATE sessions SET {names} WHERE id = ?", (*values, session))])

    def delete_session(self, session: int) -> None:
        """Remove a conversation and all its messages."""
        self._write([("DELETE FROM sessions WHERE id = ?", (session,))])

    # --- messages ------------------------------------------------------------------------------------------

    def add_message(
        self,
        session: int,
        parent: int | None,
        role: str,
        text: str,
        status: str = "complete",
        model: str = "",
        stats: Mapping[str, Any] | None = None,
    ) -> int:
        """Append below `parent` (None: at the root), make it the session's head, and return its id."""
        id, now = _new_id(), time.time()
        owner = self._owner if status == "streaming" else ""
        values = (
            id,
            session,
            parent,
            role,
            _storable(text),
            status,
            model,
            json.dumps(dict(stats or {})),
            now,
            owner,
        )
        columns = "id, session, parent, role, text, status, model, stats, created, owner"
        self._write(
            [
                (f"INSERT INTO messages ({columns}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", values),
                ("UPDATE sessions SET head = ?, updated = ? WHERE id = ?", (id, now, session)),
            ]
        )
        return id

    def update_message(
        self,
        message: int,
        *,
        text: str | None = None,
        status: str | None = None,
        stats: Mapping[str, Any] | None = None,
    ) -> None:
        """Replace what is given. The full-text index follows once the message is no longer streaming."""
        fields: dict[str, Any] = {}
        if text is not None:
            fields["text"] = _storable(text)
        if status is not None:
            fields["status"] = status
        if stats is not None:
            fields["stats"] = json.dumps(dict(stats))
        names = ", ".join(f"{name} = ?" for name in fields)
        self._write([(f"UPDATE messages SET {names} WHERE id = ?", (*fields.values(), message))])

    def path(self, session: int) -> list[MessageRow]:
        """The messages from the root to the session's head."""
        by_parent: dict[int | None, list[int]] = {}
        rows: dict[int, sqlite3.Row] = {}
        query = "SELECT * FROM messages WHERE session = ? ORDER BY created, id"
        for row in self._db.execute(query, (session,)):
            rows[row["id"]] = row
            by_parent.setdefault(row["parent"], []).append(row["id"])
        head = self._db.execute("SELECT head FROM sessions WHERE id = ?", (session,)).fetchone()
        at = head["head"] if head is not None else None
        path: list[MessageRow] = []
        while at is not None and (row := rows.pop(at, None)) is not None:
            path.append(_message(row, tuple(by_parent[row["parent"]])))
            at = row["parent"]
        return path[::-1]

    def set_head(self, session: int, message: int) -> None:
        """Show the newest leaf below `message`."""
        leaf: int = message
        query = "SELECT id FROM messages WHERE parent = ? ORDER BY created DESC, id DESC LIMIT 1"
        while (row := self._db.execute(query, (leaf,)).fetchone()) is not None:
            leaf = row["id"]
        self._write([("UPDATE sessions SET head = ? WHERE id = ?", (leaf, session))])

    def prompts(self, limit: int = 200) -> list[str]:
        """The newest prompts of the user, newest first, each once."""
        rows = self._db.execute(
            "SELECT text, max(created) AS last FROM messages WHERE role = 'user' GROUP BY text"
            " ORDER BY last DESC LIMIT ?",
            (limit,),
        )
        return [row["text"] for row in rows]

    def search(self, query: str, limit: int = 50) -> list[Hit]:
        """Messages that contain `query` (any case, part of a word counts), newest first."""
        query = _storable(query).replace("\0", "").strip()
        if len(query) >= 3:  # the index holds trigrams
            quoted = '"' + query.replace('"', '""') + '"'
            rows = self._db.execute(
                "SELECT m.session, m.id, snippet(messages_text, 0, '', '', '…', 12) AS excerpt"
                " FROM messages_text JOIN messages m ON m.id = messages_text.rowid"
                " WHERE messages_text MATCH ? ORDER BY m.created DESC LIMIT ?",
                (quoted, limit),
            )
        else:
            pattern = "%" + query.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_") + "%"
            rows = self._db.execute(
                "SELECT session, id, substr(text, 1, 80) AS excerpt FROM messages"
                " WHERE text LIKE ? ESCAPE '\\' AND ? <> '' ORDER BY created DESC LIMIT ?",
                (pattern, query, limit),
            )
        return [Hit(row["session"], row["id"], row["excerpt"]) for row in rows]

    # --- writing -------------------------------------------------------------------------------------------

    @property
    def unsaved(self) -> int:
        """Transactions that are in memory only."""
        return len(self._pending)

    def retry(self) -> None:
        """Try again to save what the file does not have yet; at most every `RETRY_S` seconds."""
        if self._pending and time.monotonic() - self._tried >= RETRY_S:
            self._flush()

    def close(self) -> None:
        """Save what is left, if it can be, and close the file."""
        if self._pending:
            self._flush()
        with suppress(sqlite3.Error):
            self._db.close()

    def _write(self, statements: Sequence[Statement]) -> None:
        if self.mode == "ro":
            return
        if self._pending:
            self._apply(self._db, statements)
            self._pending.append(list(statements))
            self.retry()
            return
        try:
            self._apply(self._db, statements, "db.commit")
        except sqlite3.OperationalError as error:
            if self.mode == "memory" or not any(text in str(error).lower() for text in DOWN):
                raise
            self._go_on_in_memory(statements, error)

    def _apply(self, db: sqlite3.Connection, statements: Iterable[Statement], point: str = "") -> None:
        """One transaction: all or nothing."""
        db.execute("BEGIN IMMEDIATE")
        try:
            for sql, values in statements:
                db.execute(sql, values)
            if point and self._faults(point) == "full":
                raise sqlite3.OperationalError("database or disk is full")
            db.execute("COMMIT")
        except BaseException:
            with suppress(sqlite3.Error):
                db.execute("ROLLBACK")
            raise

    def _go_on_in_memory(self, statements: Sequence[Statement], error: Exception) -> None:
        copy = connect(":memory:")
        self._db.backup(copy)
        self._db.close()
        self._db = copy
        self._apply(copy, statements)
        self._pending = [list(statements)]
        self._tried = time.monotonic()
        self.notify(f"not saved: {one_line(str(error), 80)}; trying again every {RETRY_S:.0f} s")

    def _flush(self) -> None:
        self._tried = time.monotonic()
        try:
            disk = connect(str(self._path))
            try:
                for statements in list(self._pending):
                    self._apply(disk, statements, "db.commit")
                    self._pending.pop(0)
            except BaseException:
                disk.close()
                raise
        except sqlite3.Error:
            return
        self._db.close()
        self._db = disk
        self.notify("saved again: everything is on disk")


# --- helpers -----------------------------------------------------------------------------------------------


def _new_id() -> int:
    """Unique without asking the database, ascending with time: a write that waits keeps its id."""
    return (time.time_ns() // 1000) << 10 | secrets.randbits(10)


def _storable(text: str) -> str:
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _json(text: str) -> dict[str, Any]:
    with suppress(ValueError, RecursionError):
        value = json.loads(text)
        if isinstance(value, dict):
            return value
    return {}


def _session(row: sqlite3.Row) -> SessionRow:
    values = dict(row)
    values["sampling"] = _json(values["sampling"])
    return SessionRow(**values)


def _message(row: sqlite3.Row, siblings: tuple[int, ...]) -> MessageRow:
    values = dict(row)
    del values["owner"]
    text = values["text"]
    values["text"] = text if isinstance(text, str) else "(this message could not be read)"
    return MessageRow(**{**values, "stats": _json(values["stats"])}, siblings=siblings)
