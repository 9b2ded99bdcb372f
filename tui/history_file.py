"""Opening the history's file: connection, schema steps, damaged files."""

from __future__ import annotations

import secrets
import shutil
import sqlite3
import time
from collections.abc import Sequence
from contextlib import closing, suppress
from pathlib import Path

import psutil

from ..engine.faults import Faults
from ..engine.text import one_line
from ..engine.types import HistoryError
from .history_schema import APPLICATION_ID, salvage

BUSY_MS = 5000


def journal_mode() -> str:
    """WAL only where SQLite is free of the WAL-reset bug of 3.7.0 to 3.51.2, which two instances can meet."""
    major, minor, patch = sqlite3.sqlite_version_info[:3]
    fixed = {50: 7, 44: 6}.get(minor, 10**6) if (major, minor) < (3, 51) else 3 if minor == 51 else 0
    return "wal" if patch >= fixed and major >= 3 else "delete"


def connect(target: str, uri: bool = False) -> sqlite3.Connection:
    db = sqlite3.connect(target, uri=uri, isolation_level=None, check_same_thread=False)
    db.row_factory = sqlite3.Row
    db.text_factory = lambda data: data.decode("utf-8", "replace")
    db.execute(f"PRAGMA busy_timeout = {BUSY_MS}")
    db.execute("PRAGMA foreign_keys = ON")
    db.execute("PRAGMA mmap_size = 0")
    db.execute("PRAGMA synchronous = FULL")
    return db


def identify(db: sqlite3.Connection, path: Path, known: int) -> None:
    """HistoryError for another program's database or a newer lmtop's. DatabaseError if it is none at all."""
    application = db.execute("PRAGMA application_id").fetchone()[0]
    version = db.execute("PRAGMA user_version").fetchone()[0]
    tables = db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    name = one_line(str(path), 120)
    if tables and application != APPLICATION_ID:
        raise HistoryError(f"{name}: belongs to another program; name another file with --history-file")
    if version > known:
        raise HistoryError(
            f"{name}: written by a newer lmtop (schema {version}, this one knows {known}); update lmtop, "
            "or name another file with --history-file"
        )


def migrate(db: sqlite3.Connection, path: Path | None, migrations: Sequence[str]) -> None:
    """Bring the schema up to date, in one transaction, after a backup copy of a file that has content."""
    if path is not None:
        db.execute(f"PRAGMA journal_mode = {journal_mode()}")
    version = db.execute("PRAGMA user_version").fetchone()[0]
    if version == len(migrations):
        return
    faults = Faults.from_environment()
    if path is not None and version > 0:
        with closing(sqlite3.connect(path.with_name(f"{path.name}.backup-{version}"))) as backup:
            db.backup(backup)
        faults("db.backup")
    db.execute("BEGIN EXCLUSIVE")
    try:
        version = db.execute("PRAGMA user_version").fetchone()[0]  # another instance may have been faster
        for script in migrations[version:]:
            for statement in script.split(";;"):
                db.execute(statement)
                faults("db.migrate")
        db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        db.execute(f"PRAGMA user_version = {len(migrations)}")
        faults("db.migrated")
        db.execute("COMMIT")
    except BaseException:
        with suppress(sqlite3.Error):
            db.execute("ROLLBACK")
        raise


def set_aside(path: Path, error: Exception, migrations: Sequence[str]) -> tuple[sqlite3.Connection, str]:
    """Keep a damaged file under another name and start a new one with the messages that can still be read."""
    aside = path.with_name(f"{path.name}.corrupt-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}")
    shutil.move(path, aside)
    for suffix in ("-wal", "-journal", "-shm"):
        with suppress(FileNotFoundError):
            shutil.move(f"{path}{suffix}", f"{aside}{suffix}")
    path.touch(mode=0o600)
    db = connect(str(path))
    migrate(db, path, migrations)
    kept = salvage(aside, db)
    return db, (
        f"the history was damaged ({one_line(str(error), 60)}): {kept} messages recovered, "
        f"the old file is kept as {one_line(aside.name, 80)}"
    )


def alive(owner: str) -> bool:
    pid, _, started = owner.partition(":")
    with suppress(psutil.Error, ValueError):
        return f"{psutil.Process(int(pid)).create_time():.0f}" == started
    return False
