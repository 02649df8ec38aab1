"""Messages that could not be read: look at them, and try again once they can be."""

import datetime as dt
from dataclasses import dataclass

from pipeline import decode, rows
from pipeline.clock import Clock
from pipeline.errors import Reject
from pipeline.log import LogRecord, Partition
from pipeline.lookup import in_table
from pipeline.store import Store
from pipeline.topics import BACKFILL, LANES, decode_record
from pipeline.warm import warmed
from pipeline.writer import Batch, Writer

_AT_ONCE = 500


@dataclass(frozen=True, slots=True)
class Letter:
    """A message that waits; `at` is the broker's time."""

    topic: str
    partition: int
    offset: int
    at: str
    bytes: int
    reason: str


@dataclass(frozen=True, slots=True)
class Replayed:
    """What became of the dead letters that were tried again."""

    replayed: int
    rows: int
    still_bad: int


def waiting(store: Store, limit: int) -> list[Letter]:
    """The newest dead letters that nobody has replayed yet."""
    found = store.query(
        "SELECT topic, partition, offset, at, length(payload), reason FROM dead_letters FINAL"
        " WHERE replayed_at IS NULL ORDER BY at DESC LIMIT {limit:UInt32}",
        {"limit": limit},
    ).rows
    return [
        Letter(t, p, o, at.replace(tzinfo=dt.UTC).isoformat().replace("+00:00", "Z"), size, why)
        for t, p, o, at, size, why in found
    ]


def replay(store: Store, clock: Clock) -> Replayed:
    """Try every dead letter again: those that can be read now are inserted by row, once."""
    now_ms = clock.now_ms()
    directory = warmed(store, now_ms)
    writer = Writer(store, directory, clock)
    found = store.query(
        "SELECT topic, partition, offset, toUnixTimestamp64Milli(at), hex(key), hex(payload), version"
        " FROM dead_letters FINAL WHERE replayed_at IS NULL ORDER BY at, topic, partition, offset"
    ).rows
    replayed = inserted = bad = 0
    for start in range(0, len(found), _AT_ONCE):
        for topic, partition, offset, at_ms, key, payload, _ in found[start : start + _AT_ONCE]:
            record = LogRecord(offset, at_ms, bytes.fromhex(key), bytes.fromhex(payload))
            count = _again(writer, Partition(topic, partition), record)
            if count is None:
                bad += 1
                continue
            replayed, inserted = replayed + 1, inserted + count
            row: rows.Row = {
                "topic": topic, "partition": partition, "offset": offset, "at": at_ms,
                "reason": "", "key": record.key, "payload": record.value, "replayed_at": now_ms,
                "version": now_ms,
            }  # fmt: skip
            store.insert("dead_letters", rows.columns([row]))
    return Replayed(replayed, inserted, bad)


def _again(writer: Writer, partition: Partition, record: LogRecord) -> int | None:
    """Rows inserted of one message; None if it still cannot be read."""
    if partition.topic not in LANES:
        try:
            decode_record(partition.topic, record.value)
        except Reject:
            return None
        return writer.write(Batch(partition, [record]), 0).rows
    # What was ahead of its time then need not be now: judged by today's clock.
    checked = decode.check([record.value], [writer.clock.now_ms()], writer.directory.layouts)
    if checked.rejects:
        return None
    if in_table(writer.store, checked.headers, [record.value]):
        return 0
    lane = Partition(BACKFILL, partition.number)
    batch = Batch.of_samples(lane, [record], checked, ())
    return writer.write(batch, 0).rows
