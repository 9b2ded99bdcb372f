"""The schema of the history, as steps: step n brings a database of version n to n + 1. Never edit a step.

Statements of a step are separated by `;;` because triggers hold semicolons.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing, suppress
from pathlib import Path

APPLICATION_ID = 0x6C6D7470  # "lmtp"

MIGRATIONS = (
    """
    CREATE TABLE sessions (
        id INTEGER PRIMARY KEY,
        title TEXT NOT NULL DEFAULT '',
        created REAL NOT NULL,
        updated REAL NOT NULL,
        model TEXT NOT NULL DEFAULT '',
        system TEXT NOT NULL DEFAULT '',
        sampling TEXT NOT NULL DEFAULT '{}',
        draft TEXT NOT NULL DEFAULT '',
        head INTEGER
    );;
    CREATE INDEX sessions_updated ON sessions (updated);;
    CREATE TABLE messages (
        id INTEGER PRIMARY KEY,
        session INTEGER NOT NULL REFERENCES sessions (id) ON DELETE CASCADE,
        parent INTEGER,
        role TEXT NOT NULL,
        text TEXT NOT NULL,
        status TEXT NOT NULL,
        model TEXT NOT NULL DEFAULT '',
        stats TEXT NOT NULL DEFAULT '{}',
        created REAL NOT NULL,
        owner TEXT NOT NULL DEFAULT ''
    );;
    CREATE INDEX messages_session ON messages (session, created);;
    CREATE INDEX messages_parent ON messages (parent);;
    CREATE INDEX messages_streaming ON messages (status) WHERE status = 'streaming';;
    CREATE VIRTUAL TABLE messages_text USING fts5 (text, tokenize = 'trigram');;
    CREATE TRIGGER messages_added AFTER INSERT ON messages WHEN new.status <> 'streaming' BEGIN
        INSERT INTO messages_text (rowid, text) VALUES (new.id, new.text);
    END;;
    CREATE TRIGGER messages_changed AFTER UPDATE OF text, status ON messages
    WHEN new.status <> 'streaming' BEGIN
        DELETE FROM messages_text WHERE rowid = new.id;
        INSERT INTO messages_text (rowid, text) VALUES (new.id, new.text);
    END;;
    CREATE TRIGGER messages_removed AFTER DELETE ON messages BEGIN
        DELETE FROM messages_text WHERE rowid = old.id;
    END
    """,
)


def salvage(damaged: Path, into: sqlite3.Connection) -> int:
    """Copy every row that can still be read, and return the number of messages. Never raises."""
    kept = 0
    with (
        suppress(sqlite3.Error),
        closing(sqlite3.connect(f"{damaged.absolute().as_uri()}?mode=ro", uri=True)) as old,
    ):
        old.text_factory = lambda data: data.decode("utf-8", "replace")
        into.execute("PRAGMA foreign_keys = OFF")
        for table in ("sessions", "messages"):
            with suppress(sqlite3.Error):
                cursor = old.execute(f"SELECT * FROM {table}")
                names = [column[0] for column in cursor.description]
                insert = f"INSERT OR IGNORE INTO {table} ({', '.join(names)}) VALUES ({', '.join('?' * len(names))})"
                for row in cursor:
                    with suppress(sqlite3.Error):
                        into.execute(insert, row)
                        kept += table == "messages"
    into.execute("PRAGMA foreign_keys = ON")
    return kept
