"""The file of a spool: its tables, its connections, its lock, and what its errors mean."""

import contextlib
import fcntl
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Final, TextIO

from pipeline.errors import Refuse

SCHEMA_VERSION: Final = 1

# t_ms is the newest tick of a message, at_ms when it was appended; stream is NULL for records.
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS message (
  id INTEGER PRIMARY KEY AUTOINCREMENT, topic TEXT NOT NULL, key TEXT NOT NULL,
  t_ms INTEGER NOT NULL, at_ms INTEGER NOT NULL, stream INTEGER, payload BLOB NOT NULL);
CREATE INDEX IF NOT EXISTS message_lane ON message (topic, t_ms);
CREATE TABLE IF NOT EXISTS stream (
  node TEXT PRIMARY KEY, id INTEGER NOT NULL, next_seq INTEGER NOT NULL,
  dropped INTEGER NOT NULL, last_tick_ms INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS mark (
  topic TEXT PRIMARY KEY, offset INTEGER NOT NULL, end INTEGER, dropped TEXT NOT NULL
) WITHOUT ROWID;
"""
_REASONS: Final = {
    sqlite3.SQLITE_FULL: "disk_full",
    sqlite3.SQLITE_CORRUPT: "corrupt",
    sqlite3.SQLITE_NOTADB: "corrupt",
    sqlite3.SQLITE_BUSY: "busy",
}


def connect(path: Path, *, durable: bool) -> sqlite3.Connection:
    """A connection to a spool file; `durable` commits are on the disk before they return."""
    db = sqlite3.connect(path, timeout=5, isolation_level=None, check_same_thread=False)
    try:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
        db.execute("PRAGMA journal_size_limit = 16777216")
        db.execute("PRAGMA cache_size = -1024")
    except BaseException:
        db.close()
        raise
    return db


@contextlib.contextmanager
def transaction(db: sqlite3.Connection) -> Iterator[None]:
    """All or nothing; takes the write lock at once, so that it cannot fail half way for it."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        # A full disk rolls back by itself.
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


def create(db: sqlite3.Connection, path: Path, first_id: int) -> None:
    """Make the tables of a new file; Refuse those of a newer version."""
    version = db.execute("PRAGMA user_version").fetchone()[0]
    if version > SCHEMA_VERSION:
        raise Refuse(
            f"spool {path} was written by a newer Megawatch (format {version}, this one knows "
            f"{SCHEMA_VERSION}): upgrade, or move the folder away"
        )
    if version == SCHEMA_VERSION:
        return
    with transaction(db):
        for statement in _SCHEMA.split(";"):
            db.execute(statement)
        db.execute("INSERT INTO sqlite_sequence VALUES ('message', ?)", (first_id,))
        db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


def lock_folder(folder: Path) -> TextIO:
    """Hold the folder for this process until the file is closed. Raises Refuse."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / "lock").open("a+")
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.seek(0)
        holder = file.read().strip() or "unknown"
        file.close()
        raise Refuse(
            f"spool folder {folder} is in use by process {holder}: stop that one, or name another "
            "folder in [agent] spool"
        ) from error
    except OSError as error:
        raise Refuse(
            f"cannot use spool folder {folder}: {error.strerror}; make it writable or name another "
            "in [agent] spool"
        ) from error
    with contextlib.suppress(OSError):  # the number is only for people; a full disk may refuse it
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
    return file


def used_bytes(db: sqlite3.Connection) -> int:
    """Bytes of the file in use, free pages left out."""
    pages, free, size = (
        db.execute(f"PRAGMA {name}").fetchone()[0]
        for name in ("page_count", "freelist_count", "page_size")
    )
    return int((pages - free) * size)


def reason(error: Exception) -> str:
    """Why a write was lost: disk_full, corrupt, busy or disk_error; raises what is our mistake."""
    if isinstance(error, OSError):
        return "disk_error"
    code = getattr(error, "sqlite_errorcode", None)
    if code is None:
        raise error  # a mistake of ours, not of the disk
    return _REASONS.get(code & 0xFF, "disk_error")
