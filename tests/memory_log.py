"""A log in memory that can die at any commit, for tests of what comes after."""

import time
from collections.abc import Sequence

from pipeline.log import Listener, LogRecord, Mark, Partition


class Died(BaseException):
    """The process is gone, at this very instant."""


class MemoryTopics:
    """What outlives a reader: messages and committed marks."""

    def __init__(self) -> None:
        self.records: dict[Partition, list[LogRecord]] = {}
        self.marks: dict[Partition, Mark] = {}

    def add(self, partition: Partition, value: bytes, at_ms: int, key: bytes = b"") -> int:
        records = self.records.setdefault(partition, [])
        records.append(LogRecord(len(records), at_ms, key, value))
        return len(records) - 1


class MemoryLog:
    """pipeline.log.Log over MemoryTopics; dies before or after the n-th commit if told so."""

    def __init__(
        self, topics: MemoryTopics, listener: Listener, *, die_at: int = -1, after: bool = True
    ) -> None:
        self.topics, self.listener = topics, listener
        self.die_at, self.after = die_at, after
        self.commits = 0
        self.skipped: dict[Partition, int] = {}
        self._at: dict[Partition, int] = {}
        self._paused: set[Partition] = set()

    def poll(self, timeout_s: float) -> dict[Partition, list[LogRecord]]:
        new = [p for p in self.topics.records if p not in self._at]
        if new:
            marks = {p: self.topics.marks.get(p) for p in new}
            self._at |= {p: mark.offset if mark else 0 for p, mark in marks.items()}
            self.listener.assigned(marks)
        out = {}
        for partition, at in self._at.items():
            found = self.topics.records[partition][at:]
            if found and partition not in self._paused:
                out[partition] = found
                self._at[partition] = at + len(found)
        if not out:
            time.sleep(min(timeout_s, 0.001))  # leaves the processor to the insert's thread
        return out

    def commit(self, marks: dict[Partition, Mark]) -> None:
        self.commits += 1
        if self.commits == self.die_at and not self.after:
            raise Died
        self.topics.marks |= marks
        if self.commits == self.die_at:
            raise Died

    def pause(self, partitions: Sequence[Partition]) -> None:
        self._paused |= set(partitions)

    def resume(self, partitions: Sequence[Partition]) -> None:
        self._paused -= set(partitions)

    def lag(self) -> dict[Partition, int]:
        return {p: len(self.topics.records[p]) - at for p, at in self._at.items()}

    def close(self) -> None:
        if self._at:
            self.listener.revoked(tuple(self._at))
