"""The reader's side of a spool that is shipped elsewhere: what waits, by lane, and what is done."""

import sqlite3
from collections.abc import Collection, Sequence
from typing import Final, NamedTuple

from pipeline.spool import Spool, retrying
from pipeline.spool_file import transaction
from pipeline.topics import SAMPLES, TOPICS

RECORD_TOPICS: Final = tuple(t.name for t in TOPICS.values() if t.record is not None)


class Stored(NamedTuple):
    """A message that waits, under the id by which it is taken out."""

    id: int
    topic: str
    key: str
    t_ms: int
    payload: bytes


class Outbox:
    """What waits in a spool. All calls come from one thread and raise Retry for a bad disk."""

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._life = 0
        self._db: sqlite3.Connection | None = None

    def live(self, since_ms: int, limit: int) -> list[int]:
        """Ids of sample messages whose newest tick is at or after `since_ms`, oldest first."""
        return self._ids("topic = ? AND t_ms >= ? ORDER BY t_ms, id", (SAMPLES, since_ms, limit))

    def backlog(self, before_ms: int, limit: int) -> list[int]:
        """Ids of sample messages whose newest tick is before `before_ms`, oldest first."""
        return self._ids("topic = ? AND t_ms < ? ORDER BY t_ms, id", (SAMPLES, before_ms, limit))

    def records(self, limit: int) -> list[int]:
        """Ids of JSON records, in the order in which they were appended."""
        marks = ", ".join("?" * len(RECORD_TOPICS))
        return self._ids(f"topic IN ({marks}) ORDER BY id", (*RECORD_TOPICS, limit))

    def fetch(self, message_id: int) -> Stored | None:
        """One message; None if it is gone (the spool was full)."""
        with retrying(self._spool):
            row = (
                self._connected()
                .execute(
                    "SELECT id, topic, key, t_ms, payload FROM message WHERE id = ?", (message_id,)
                )
                .fetchone()
            )
        return Stored(*row) if row else None

    def remove(self, ids: Collection[int]) -> None:
        """Take acknowledged messages out, all or none.

        Not forced to the disk: after a power loss some are shipped twice, and recognised.
        """
        with retrying(self._spool):
            db = self._connected()
            with transaction(db):
                db.executemany("DELETE FROM message WHERE id = ?", [(i,) for i in ids])

    def close(self) -> None:
        """Idempotent."""
        if self._db is not None:
            self._db.close()
            self._db = None

    def _ids(self, where: str, values: Sequence[str | int]) -> list[int]:
        with retrying(self._spool):
            rows = self._connected().execute(
                f"SELECT id FROM message WHERE {where} LIMIT ?",  # noqa: S608, texts of this module
                values,
            )
            return [row[0] for row in rows]

    def _connected(self) -> sqlite3.Connection:
        """The present file: the writer may have replaced a damaged one."""
        if self._life != self._spool.life:
            self.close()
        if self._db is None:
            self._life = self._spool.life
            self._db = self._spool.reader(durable=False)
        return self._db
