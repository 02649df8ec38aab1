"""The embedded log: the agent's spool itself, read in place of Kafka by the same process.

Each topic is one partition and an offset is the id of a spool row. Marks are kept in the spool's
own file; rows that a mark has passed are deleted.
"""

import contextlib
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import msgspec

from pipeline.clock import Clock
from pipeline.log import Listener, LogRecord, Mark, Partition
from pipeline.spool import Spool, retrying
from pipeline.spool_file import transaction
from pipeline.topics import DEADLETTERS, TOPICS

ALL_TOPICS: Final = tuple(name for name in TOPICS if name != DEADLETTERS)
_POLL_ROWS: Final = 8192
_POLL_BYTES: Final = 32 << 20
_DELETE_ROWS: Final = 1000
"""Rows deleted in one transaction, so that the sampler never waits long for the write lock."""

Records = dict[Partition, list[LogRecord]]


class SpoolLog:
    """pipeline.log.Log over a spool: every topic's partition is ours from the first poll on.

    A spool counts what it drops itself: nothing of it is `skipped`.
    """

    def __init__(
        self, spool: Spool, listener: Listener, clock: Clock, topics: Sequence[str] = ALL_TOPICS
    ) -> None:
        self.skipped: dict[Partition, int] = {}
        self._spool = spool
        self._listener = listener
        self._clock = clock
        self._partitions = {topic: Partition(topic, 0) for topic in topics}
        self._positions: dict[Partition, int] = {}
        self._paused: set[Partition] = set()
        self._life = 0
        self._db: sqlite3.Connection | None = None

    def poll(self, timeout_s: float) -> Records:
        """New messages, waiting for the first one at most `timeout_s`. Raises Retry."""
        self._spool.wake.clear()
        found = self._read()
        if not found and timeout_s > 0:
            self._clock.wait(self._spool.wake, timeout_s)
            found = self._read()
        return found

    def commit(self, marks: dict[Partition, Mark]) -> None:
        """Make marks durable, then delete what they have passed. Raises Retry."""
        with self._connected() as db:
            with transaction(db):
                db.executemany(
                    "INSERT OR REPLACE INTO mark VALUES (?, ?, ?, ?)",
                    [_mark_row(partition, mark) for partition, mark in marks.items()],
                )
            for partition, mark in marks.items():
                if mark.end is None:
                    _delete(db, partition.topic, mark.offset)

    def pause(self, partitions: Sequence[Partition]) -> None:
        """Stop returning messages of these until resumed."""
        self._paused.update(partitions)

    def resume(self, partitions: Sequence[Partition]) -> None:
        """Undo pause."""
        self._paused.difference_update(partitions)

    def lag(self) -> dict[Partition, int]:
        """Messages that poll has not returned yet. Raises Retry."""
        with self._connected() as db:
            return {
                partition: db.execute(
                    "SELECT count(*) FROM message WHERE topic = ? AND id >= ?",
                    (partition.topic, position),
                ).fetchone()[0]
                for partition, position in self._positions.items()
            }

    def close(self) -> None:
        """Give the partitions back, while the listener may still commit; idempotent."""
        if self._positions:
            self._listener.revoked(tuple(self._positions))
        self._positions = {}
        self._disconnect()

    @contextlib.contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection]:
        """A connection to the present file: the writer may have replaced a damaged one.

        Positions and marks stay valid, since row ids go on growing from file to file.
        """
        if self._life != self._spool.life:
            self._disconnect()
        with retrying(self._spool):
            if self._db is None:
                self._life = self._spool.life
                self._db = self._spool.reader(durable=True)
            yield self._db

    def _read(self) -> Records:
        with self._connected() as db:
            if not self._positions:
                self._assign(db)
            active = {p.topic: at for p, at in self._positions.items() if p not in self._paused}
            if not active:
                return {}
            found: Records = {}
            rows = db.execute(
                "SELECT id, topic, at_ms, key, payload FROM message WHERE id >= ? "
                "ORDER BY id LIMIT ?",
                (min(active.values()), _POLL_ROWS),
            )
            size, last = 0, None
            for offset, topic, at_ms, key, payload in rows:
                last = offset
                if offset < active.get(topic, offset + 1):
                    continue
                record = LogRecord(offset, at_ms, key.encode(), payload)
                found.setdefault(self._partitions[topic], []).append(record)
                size += len(payload)
                if size >= _POLL_BYTES:
                    break
            rows.close()
        if last is not None:
            self._advance(active, last + 1)
        return found

    def _advance(self, active: Mapping[str, int], to: int) -> None:
        """All active topics have been read up to here, whether or not something was found."""
        for topic, at in active.items():
            self._positions[self._partitions[topic]] = max(at, to)

    def _assign(self, db: sqlite3.Connection) -> None:
        stored = {
            topic: Mark(offset, end, tuple(msgspec.json.decode(dropped, type=list[int])))
            for topic, offset, end, dropped in db.execute("SELECT * FROM mark")
        }
        marks = {partition: stored.get(topic) for topic, partition in self._partitions.items()}
        self._positions = {p: mark.offset if mark else 0 for p, mark in marks.items()}
        self._listener.assigned(marks)

    def _disconnect(self) -> None:
        if self._db is not None:
            self._db.close()
            self._db = None


def _mark_row(partition: Partition, mark: Mark) -> tuple[str, int, int | None, bytes]:
    return partition.topic, mark.offset, mark.end, msgspec.json.encode(mark.dropped)


def _delete(db: sqlite3.Connection, topic: str, below: int) -> None:
    """Delete a topic's rows below an id. By the primary key: the index is not in id order."""
    while True:
        ids = db.execute(
            "SELECT id FROM message NOT INDEXED WHERE id < ? AND topic = ? LIMIT ?",
            (below, topic, _DELETE_ROWS),
        ).fetchall()
        with transaction(db):
            db.executemany("DELETE FROM message WHERE id = ?", ids)
        if len(ids) < _DELETE_ROWS:
            return
