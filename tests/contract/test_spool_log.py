"""The spool as the pipeline's log: order, marks, deletion, restarts, one thread beside another."""

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from pipeline.clock import ManualClock, SystemClock
from pipeline.log import Log, LogRecord, Mark, Partition
from pipeline.spool import Outgoing, Spool
from pipeline.spool_log import ALL_TOPICS, SpoolLog

SAMPLES = Partition("samples", 0)
EVENTS = Partition("events", 0)


@dataclass
class Ear:
    """A listener that remembers."""

    marks: list[dict[Partition, Mark | None]] = field(default_factory=list)
    gone: list[Partition] = field(default_factory=list)

    def assigned(self, marks: dict[Partition, Mark | None]) -> None:
        self.marks.append(marks)

    def revoked(self, partitions: Sequence[Partition]) -> None:
        self.gone += partitions


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    spool = Spool(tmp_path, 1 << 26, ManualClock())
    yield spool
    spool.close()


def put(spool: Spool, topic: str, *numbers: int) -> None:
    spool.append([Outgoing(topic, f"node-{n}", n, b"%d" % n) for n in numbers])


def values(records: Sequence[LogRecord]) -> list[int]:
    return [int(record.value) for record in records]


def opened(spool: Spool, ear: Ear | None = None) -> SpoolLog:
    return SpoolLog(spool, ear or Ear(), ManualClock())


def test_it_is_a_log(spool: Spool) -> None:
    """The protocol's type, and every topic but the dead letters is a partition of its own."""
    ear = Ear()
    log: Log = opened(spool, ear)
    assert log.poll(0) == {}
    assert ear.marks == [{Partition(topic, 0): None for topic in ALL_TOPICS}]
    log.close()
    assert set(ear.gone) == set(ear.marks[0])


def test_messages_come_once_in_order_with_their_time(spool: Spool) -> None:
    """Offsets grow, and at_ms is when the message was appended."""
    put(spool, "samples", 1, 2)
    put(spool, "events", 3)
    log = opened(spool)
    found = log.poll(0)
    assert {p: values(r) for p, r in found.items()} == {SAMPLES: [1, 2], EVENTS: [3]}
    assert found[SAMPLES][0].offset < found[SAMPLES][1].offset < found[EVENTS][0].offset
    assert found[SAMPLES][0].at_ms == ManualClock().now_ms()
    assert found[SAMPLES][0].key == b"node-1"
    assert log.poll(0) == {}
    put(spool, "samples", 4)
    assert values(log.poll(0)[SAMPLES]) == [4]
    log.close()


def test_reading_goes_on_from_the_marks_after_a_restart(spool: Spool) -> None:
    """An intent (with an end) keeps its rows for the replay; a mark without deletes them."""
    put(spool, "samples", 1, 2, 3, 4)
    put(spool, "events", 5)
    log = opened(spool)
    offsets = [r.offset for r in log.poll(0)[SAMPLES]]
    intent = Mark(offsets[1], offsets[3], (offsets[2],))
    log.commit({SAMPLES: intent})
    log.close()
    assert spool.depth().messages == 5

    ear = Ear()
    log = opened(spool, ear)
    assert values(log.poll(0)[SAMPLES]) == [2, 3, 4]
    assert ear.marks[0][SAMPLES] == intent
    assert ear.marks[0][EVENTS] is None
    log.commit({SAMPLES: Mark(offsets[3])})
    log.close()
    assert spool.depth().messages == 2

    ear = Ear()
    log = opened(spool, ear)
    assert {p: values(r) for p, r in log.poll(0).items()} == {SAMPLES: [4], EVENTS: [5]}
    assert ear.marks[0][SAMPLES] == Mark(offsets[3])
    log.close()


def test_marks_outlive_the_process(tmp_path: Path) -> None:
    """Also when every row is gone: offsets go on growing from the mark."""
    spool = Spool(tmp_path, 1 << 26, ManualClock())
    put(spool, "samples", 1)
    log = opened(spool)
    end = log.poll(0)[SAMPLES][0].offset + 1
    log.commit({SAMPLES: Mark(end)})
    log.close()
    assert spool.depth().messages == 0
    spool.close()
    spool = Spool(tmp_path, 1 << 26, ManualClock(1))
    put(spool, "samples", 2)
    log = opened(spool)
    assert log.poll(0)[SAMPLES][0].offset >= end
    log.close()
    spool.close()


def test_a_paused_partition_waits_and_loses_nothing(spool: Spool) -> None:
    """Others go on meanwhile; resumed, it goes on from where it stood."""
    log = opened(spool)
    log.poll(0)
    log.pause([SAMPLES])
    put(spool, "samples", 1)
    put(spool, "events", 2)
    assert {p: values(r) for p, r in log.poll(0).items()} == {EVENTS: [2]}
    put(spool, "samples", 3)
    put(spool, "events", 4)
    assert {p: values(r) for p, r in log.poll(0).items()} == {EVENTS: [4]}
    log.resume([SAMPLES])
    assert {p: values(r) for p, r in log.poll(0).items()} == {SAMPLES: [1, 3]}
    log.close()


def test_lag_counts_what_was_not_returned(spool: Spool) -> None:
    """Per partition; what is returned but not committed is no lag."""
    log = opened(spool)
    log.poll(0)
    put(spool, "samples", 1, 2)
    assert log.lag()[SAMPLES] == 2
    assert log.lag()[EVENTS] == 0
    log.poll(0)
    assert log.lag()[SAMPLES] == 0
    log.close()


def test_a_poll_is_bounded_and_the_rest_follows(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By rows and by bytes, whatever waits."""
    monkeypatch.setattr("pipeline.spool_log._POLL_ROWS", 4)
    put(spool, "samples", *range(10))
    log = opened(spool)
    assert [values(log.poll(0)[SAMPLES]) for _ in range(3)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    monkeypatch.setattr("pipeline.spool_log._POLL_BYTES", 2)
    put(spool, "samples", 1, 2, 3)
    assert [values(log.poll(0)[SAMPLES]) for _ in range(2)] == [[1, 2], [3]]
    log.close()


def test_many_rows_are_deleted_in_steps(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of other topics in between stay."""
    monkeypatch.setattr("pipeline.spool_log._DELETE_ROWS", 3)
    for n in range(10):
        put(spool, "samples", n)
        put(spool, "events", n)
    log = opened(spool)
    last = log.poll(0)[SAMPLES][-1].offset
    log.commit({SAMPLES: Mark(last)})
    assert spool.depth().messages == 11
    log.close()


def test_a_replaced_file_is_read_on_from_where_it_stood(spool: Spool) -> None:
    """Row ids go on growing over the damage, so positions and marks stay valid."""
    put(spool, "samples", 1)
    log = opened(spool)
    old = log.poll(0)[SAMPLES][0]
    spool.report_damage()
    put(spool, "samples", 2)
    fresh = log.poll(0)[SAMPLES][0]
    assert fresh.value == b"2"
    assert fresh.offset > old.offset
    log.commit({SAMPLES: Mark(old.offset + 1)})
    assert spool.depth().messages == 1
    log.commit({SAMPLES: Mark(fresh.offset + 1)})
    assert spool.depth().messages == 0
    log.close()


def test_who_still_reads_the_replaced_file_does_not_harm_the_new_one(tmp_path: Path) -> None:
    """Its connection is closed after the new file was written to; nothing of that is lost."""
    spool = Spool(tmp_path, 1 << 26, ManualClock())
    put(spool, "samples", 1)
    log = opened(spool)
    log.poll(0)
    spool.report_damage()
    put(spool, "samples", 2, 3)
    log.close()
    put(spool, "samples", 4)
    spool.close()
    spool = Spool(tmp_path, 1 << 26, ManualClock())
    log = opened(spool)
    assert values(log.poll(0)[SAMPLES]) == [2, 3, 4]
    log.close()
    spool.close()


def test_a_poll_returns_as_soon_as_something_comes(tmp_path: Path) -> None:
    """It waits on the append, not on a timer."""
    clock = SystemClock()
    spool = Spool(tmp_path, 1 << 26, clock)
    log = SpoolLog(spool, Ear(), clock)
    log.poll(0)
    writer = threading.Timer(0.1, put, (spool, "samples", 7))
    begun = clock.monotonic_s()
    writer.start()
    found = log.poll(20)
    assert clock.monotonic_s() - begun < 10
    assert values(found[SAMPLES]) == [7]
    writer.join()
    log.close()
    spool.close()


def test_a_sampler_and_a_pipeline_in_two_threads(tmp_path: Path) -> None:
    """Appends go on while messages are polled, committed and deleted: each comes exactly once."""
    clock = SystemClock()
    spool = Spool(tmp_path, 1 << 26, clock)

    def write() -> None:
        for n in range(0, 600, 3):
            put(spool, "samples", n, n + 1, n + 2)

    writer = threading.Thread(target=write)
    log = SpoolLog(spool, Ear(), clock)
    writer.start()
    seen: list[int] = []
    until = clock.monotonic_s() + 30
    while len(seen) < 600 and clock.monotonic_s() < until:
        for partition, records in log.poll(0.5).items():
            first, end = records[0].offset, records[-1].offset + 1
            log.commit({partition: Mark(first, end)})
            seen += values(records)
            log.commit({partition: Mark(end)})
    writer.join()
    assert seen == list(range(600))
    assert spool.depth().messages == 0
    log.close()
    spool.close()
