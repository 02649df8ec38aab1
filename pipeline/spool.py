"""The outbox on disk: what an agent measured survives crashes, power loss and a day of outage.

One SQLite file in WAL mode, written by one thread: a tick's messages are one transaction and one
fsync. A message gets its stream and sequence number in the transaction that stores it, so a
number is used once. The outbox is bounded: the oldest message goes first, and is counted.
Readers (pipeline/outbox.py when Kafka carries, pipeline/spool_log.py when the spool itself is the
log) have connections of their own, so that neither waits for the other.
"""

import contextlib
import logging
import secrets
import sqlite3
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Final

from pipeline.clock import Clock
from pipeline.errors import Refuse, Retry, Unavailable
from pipeline.spool_file import connect, create, lock_folder, reason, transaction, used_bytes

log = logging.getLogger(__name__)

MIN_BYTES: Final = 1 << 20
_EVICT_BATCH: Final = 8
_IDS_PER_MS: Final = 1000
"""Row ids of a new file begin at its birth in microseconds: a later file never reuses one."""


@dataclass(frozen=True, slots=True)
class Stream:
    """One life of a node in one spool; `dropped` counts its messages that were thrown away."""

    id: int
    next_seq: int = 0
    dropped: int = 0
    last_tick_ms: int = 0


Encode = Callable[[Stream], bytes]
"""Makes a message of the stream's next number and its count of drops."""


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A message to keep: samples of the node `key` as `Encode`, a record as its bytes."""

    topic: str
    key: str
    t_ms: int
    payload: bytes | Encode


@dataclass(frozen=True, slots=True)
class Depth:
    """What waits in a spool; `oldest_ms` is when the oldest message was appended."""

    messages: int
    size_bytes: int
    oldest_ms: int | None


class Spool:
    """The writer's side; one process has a folder, one thread at a time appends.

    `drops` counts thrown away messages by reason, `life` grows when a damaged file was replaced,
    `wake` is set after each append for the one reader that waits on it.
    """

    def __init__(self, folder: Path, max_bytes: int, clock: Clock) -> None:
        if max_bytes < MIN_BYTES:
            raise Refuse(f"spool of {max_bytes} bytes: [agent] spool_max_mib is at least 1")
        self.path: Final = folder / "spool.sqlite"
        self.wake: Final = threading.Event()
        self.drops: Final[Counter[str]] = Counter()
        self.life = 1
        self._max_bytes = max_bytes
        self._clock = clock
        self._damaged = threading.Event()
        self._swapping = threading.Lock()
        self._streams: dict[str, Stream] = {}
        self._last_id = 0
        self._db: sqlite3.Connection | None = None
        self._lock = lock_folder(folder)
        try:
            self._first_open()
        except BaseException:
            self.close()
            raise

    @property
    def streams(self) -> Mapping[str, Stream]:
        """The stream of each node, by hostname."""
        return MappingProxyType(self._streams)

    def renew_streams(self) -> None:
        """Begin new streams: the clock went back too far for their ticks to go on."""
        self._streams = {}

    def append(self, items: Sequence[Outgoing]) -> int:
        """Store all or none, durably; returns how many are in. Never raises for a bad disk."""
        assert not self._lock.closed, "the spool was closed"
        for attempt in (1, 2):
            try:
                if self._damaged.is_set():
                    self._replace()
                self._store(items)
            except (sqlite3.DatabaseError, OSError) as error:
                why = reason(error)
                if why == "corrupt" and attempt == 1:
                    self._damaged.set()
                    continue
                self._lose(items, why)
                log.warning("spool %s: dropped %d messages: %s", self.path, len(items), error)
                return 0
            self.wake.set()
            return len(items)
        return 0

    def report_damage(self) -> None:
        """A reader found the file corrupt: the writer replaces it at its next append."""
        self._damaged.set()

    def reader(self, *, durable: bool) -> sqlite3.Connection:
        """A connection of its own to the present file, for any thread; good for this `life`."""
        with self._swapping:
            return connect(self.path, durable=durable)

    def depth(self) -> Depth:
        """What waits now; safe from any thread. Raises Unavailable."""
        try:
            with contextlib.closing(self.reader(durable=False)) as db:
                count = db.execute("SELECT count(*) FROM message").fetchone()[0]
                oldest = db.execute("SELECT at_ms FROM message ORDER BY id LIMIT 1").fetchone()
                return Depth(count, used_bytes(db), oldest[0] if oldest else None)
        except sqlite3.Error as error:
            raise Unavailable(f"spool {self.path}: {error}") from error

    def close(self) -> None:
        """Leave the folder to others; idempotent."""
        self._disconnect()
        self._lock.close()

    def _first_open(self) -> None:
        try:
            self._connected()
        except sqlite3.DatabaseError as error:
            why = reason(error)
            if why == "corrupt":
                self._damaged.set()
                self.append(())
            elif why != "disk_full":
                raise Refuse(
                    f"cannot open spool {self.path}: {error}; make the folder that [agent] spool "
                    "names writable"
                ) from error

    def _connected(self) -> sqlite3.Connection:
        if self._db is not None:
            return self._db
        db = connect(self.path, durable=True)
        try:
            create(db, self.path, max(self._last_id, self._clock.now_ms() * _IDS_PER_MS))
            stored = db.execute("SELECT node, id, next_seq, dropped, last_tick_ms FROM stream")
            # What is in memory is newer: it counts drops that a full disk could not take.
            self._streams = {node: Stream(*rest) for node, *rest in stored} | self._streams
        except BaseException:
            db.close()
            raise
        self._db = db
        return db

    def _disconnect(self) -> None:
        if self._db is not None:
            self._db.close()
            self._db = None

    def _store(self, items: Sequence[Outgoing]) -> None:
        db = self._connected()
        now_ms = self._clock.now_ms()
        streams = dict(self._streams)
        rows = [_row(item, streams, now_ms) for item in items]
        with transaction(db):
            db.executemany(
                "INSERT INTO message (topic, key, t_ms, at_ms, stream, payload) "
                "VALUES (?, ?, ?, ?, ?, ?)",
                rows,
            )
            if rows:
                self._last_id = db.execute("SELECT last_insert_rowid()").fetchone()[0]
            evicted = self._evict(db, streams)
            nodes = {item.key for item in items if callable(item.payload)} | set(evicted)
            db.executemany(
                "INSERT OR REPLACE INTO stream VALUES (?, ?, ?, ?, ?)",
                [_stream_row(node, streams[node]) for node in nodes if node in streams],
            )
        self._streams = streams
        if evicted:
            self.drops["overflow"] += evicted.total()

    def _evict(self, db: sqlite3.Connection, streams: dict[str, Stream]) -> Counter[str]:
        """Delete the oldest messages until the bound holds; returns how many of each node."""
        evicted: Counter[str] = Counter()
        while used_bytes(db) > self._max_bytes:
            oldest = db.execute(
                "SELECT id, key, stream FROM message ORDER BY id LIMIT ?", (_EVICT_BATCH,)
            ).fetchall()
            if not oldest:
                break
            db.execute("DELETE FROM message WHERE id <= ?", (oldest[-1][0],))
            for _, node, stream_id in oldest:
                evicted[node] += 1
                stream = streams.get(node)
                if stream is not None and stream.id == stream_id:
                    streams[node] = replace(stream, dropped=stream.dropped + 1)
        return evicted

    def _lose(self, items: Sequence[Outgoing], reason: str) -> None:
        """Count what could not be stored; its numbers are used up, so the gap shows it."""
        self.drops[reason] += len(items)
        for item in items:
            if callable(item.payload):
                stream = _advanced(self._streams.get(item.key) or _new_stream(), item.t_ms)
                self._streams[item.key] = replace(stream, dropped=stream.dropped + 1)

    def _replace(self) -> None:
        """Move the damaged file aside (the last one is kept) and begin anew."""
        lost = _count(self.path)
        self._disconnect()
        with self._swapping:  # nobody opens the file while its parts have different names
            for tail in ("", "-wal", "-shm"):
                with contextlib.suppress(FileNotFoundError):
                    Path(f"{self.path}{tail}").replace(f"{self.path}.corrupt{tail}")
        log.error("spool %s was damaged: moved aside to %s.corrupt", self.path, self.path.name)
        self.drops["corrupt"] += lost
        self._streams = {}
        self._damaged.clear()
        self.life += 1
        self._connected()


@contextlib.contextmanager
def retrying(spool: Spool) -> Iterator[None]:
    """A reader's errors as Retry; damage is reported to the writer, which repairs it."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        if reason(error) == "corrupt":
            spool.report_damage()
        raise Retry(f"spool {spool.path}: {error}") from error


def _row(
    item: Outgoing, streams: dict[str, Stream], now_ms: int
) -> tuple[str, str, int, int, int | None, bytes]:
    if isinstance(item.payload, bytes):
        return item.topic, item.key, item.t_ms, now_ms, None, item.payload
    stream = streams.get(item.key) or _new_stream()
    payload = item.payload(stream)
    streams[item.key] = _advanced(stream, item.t_ms)
    return item.topic, item.key, item.t_ms, now_ms, stream.id, payload


def _new_stream() -> Stream:
    return Stream(secrets.randbits(63) | 1)  # SQLite's integers are signed


def _advanced(stream: Stream, tick_ms: int) -> Stream:
    return replace(stream, next_seq=stream.next_seq + 1, last_tick_ms=tick_ms)


def _stream_row(node: str, stream: Stream) -> tuple[str, int, int, int, int]:
    return node, stream.id, stream.next_seq, stream.dropped, stream.last_tick_ms


def _count(path: Path) -> int:
    """Messages in a damaged file, as far as its index still says; at least 1."""
    try:
        with contextlib.closing(connect(path, durable=False)) as db:
            return max(1, int(db.execute("SELECT count(*) FROM message").fetchone()[0]))
    except sqlite3.Error:
        return 1
