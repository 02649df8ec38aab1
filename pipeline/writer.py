"""One batch of one partition into its tables, under one token."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipeline import decode, rows
from pipeline.catalog import ABSURD_POWER_W, FAST_BY_NAME, NULL_CODE
from pipeline.clock import Clock
from pipeline.decode import Columns
from pipeline.directory import HORIZON_MS, Directory
from pipeline.errors import Reject
from pipeline.ledger import contract_store
from pipeline.log import LogRecord, Partition
from pipeline.records import (
    BAD_POWER,
    FLAG_ABSURD_ENERGY,
    FLAG_ABSURD_POWER,
    FLAG_CLOCK_SUSPECT,
    FLAG_NEGATIVE_POWER,
    Allocation,
    Inventory,
    Record,
)
from pipeline.store import Store
from pipeline.thin import Thin
from pipeline.topics import BACKFILL, LANES, SAMPLES, decode_record
from pipeline.warm import allocations

CLOCK_SUSPECT_MS: Final = 60_000
LATEST_EVERY_MS: Final = 5_000
FORGET_EVERY_MS: Final = 3_600_000
CONTRACTS_EVERY_MS: Final = 30_000
TOLD_LATE_MS: Final = 3_600_000
"""How late an allocation may come into the store and still stamp rows before the next start."""
_LATEST: Final = (
    "gpu", "ts", "node", "site", "tenant", "workload", "flags",
    "power_w", "temp_gpu_c", "util_gpu_pct", "mem_used_mib", "throttle_reasons",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Batch:
    """Consecutive messages of a partition, [first, last]; those at `dropped` were seen before."""

    partition: Partition
    records: Sequence[LogRecord]
    dropped: tuple[int, ...] = ()
    gaps: int = 0
    good: Sequence[LogRecord] = ()  # samples only: what is to be decoded, with its headers
    headers: NDArray[np.void] = field(default_factory=lambda: np.empty(0, decode.HEADER_DTYPE))
    rejects: Sequence[tuple[LogRecord, str]] = ()

    @classmethod
    def of_samples(
        cls,
        partition: Partition,
        records: Sequence[LogRecord],
        checked: decode.Checked,
        dropped: tuple[int, ...],
    ) -> "Batch":
        """A batch of messages that carry samples, less those that were seen before."""
        good, headers = [records[i] for i in checked.positions], checked.headers
        if dropped:
            gone = set(dropped)
            kept = [k for k, record in enumerate(good) if record.offset not in gone]
            good, headers = [good[k] for k in kept], headers[kept]
        return cls(
            partition,
            records,
            dropped,
            good=good,
            headers=headers,
            rejects=[(records[i], reason) for i, reason in checked.rejects if i < len(records)],
        )

    @property
    def token(self) -> str:
        """The same for every repetition of this insert, and for no other.

        A topic that was made anew numbers from 0 again, so the token also looks at the messages.
        """
        first, last = self.records[0], self.records[-1]
        mark = zlib.crc32(last.value, zlib.crc32(first.value))
        topic, number = self.partition
        return f"{topic}/{number}/{first.offset}-{last.offset}/{mark:08x}"


@dataclass(frozen=True, slots=True)
class Written:
    """What became of a batch; times are sample times in ms, 0 without rows."""

    messages: int = 0
    rows: int = 0
    duplicates: int = 0
    rejected: int = 0
    bytes: int = 0
    from_ms: int = 0
    until_ms: int = 0


@dataclass(slots=True)
class Totals:
    """Counted since the start."""

    messages: int = 0
    rows: int = 0
    duplicates: int = 0
    rejected: int = 0
    gaps: int = 0
    bytes: int = 0
    inserts: int = 0
    retries: int = 0
    insert_s: float = 0.0
    by_topic: dict[str, int] = field(default_factory=dict)

    def add(self, batch: Batch, done: Written) -> None:
        """Count a batch that is in the store."""
        self.messages += done.messages
        self.rows += done.rows
        self.duplicates += done.duplicates
        self.rejected += done.rejected
        self.gaps += batch.gaps
        self.bytes += done.bytes
        self.inserts += 1
        topic = batch.partition.topic
        self.by_topic[topic] = self.by_topic.get(topic, 0) + done.rows


@dataclass(slots=True)
class Writer:
    """Decodes, validates, stamps and inserts; what it keeps between batches changes no value."""

    store: Store
    directory: Directory
    clock: Clock
    latest_at_ms: int = 0
    _latest: dict[str, Columns] = field(default_factory=dict)
    _learned_of: str = ""
    _forgot_ms: int = 0
    _leased_ms: int = 0
    _thin: Thin = field(default_factory=Thin)
    _records: list[Record] = field(default_factory=list)
    _bad_records: list[tuple[LogRecord, str]] = field(default_factory=list)

    def write(self, batch: Batch, watermark_ms: int) -> Written:
        """Insert a batch once, however often it is called. Raises Retry when the store is away."""
        now_ms = self.clock.now_ms()
        self._renew_leases(now_ms)
        if batch.partition.topic in LANES:
            done = self._write_samples(batch, now_ms)
            self._write_dead_letters(batch, batch.rejects, now_ms)
        else:
            done = self._write_records(batch, now_ms)
        self._log(batch, done, watermark_ms)
        self._forget(now_ms)
        return done

    def _write_samples(self, batch: Batch, now_ms: int) -> Written:
        good = batch.good
        size = sum(len(r.value) for r in batch.records)
        base = Written(len(batch.records), 0, len(batch.dropped), len(batch.rejects), size)
        if not good:
            return base
        self._thin.undo()  # of a try that failed: it is judged again
        blocks = decode.decode(
            [r.value for r in good], batch.headers, self.directory.layouts,
            self.directory.holders(), self._thin.worth,
        )  # fmt: skip
        samples = blocks.samples
        judge_values(samples)
        if batch.partition.topic == SAMPLES:
            _flag_clocks(samples, batch.headers, np.array([r.at_ms for r in good]))
        for table, block in (
            ("gpu_samples", samples),
            ("gpu_health", blocks.health),
            ("slice_samples", blocks.slices),
        ):
            if block:
                stamped = block | {"ingested_at": _constant(now_ms // 1000, block)}
                self.store.insert(table, stamped, batch.token)
        self._thin.settle()
        count = len(samples["ts"])
        if not count:
            return base
        if batch.partition.topic != BACKFILL:
            self._latest[batch.token] = last_ticks(samples)
            if now_ms - self.latest_at_ms >= LATEST_EVERY_MS:
                self.latest_at_ms = now_ms
                self.flush_latest()
        times = samples["ts"]
        return Written(
            base.messages, count, base.duplicates, base.rejected, size,
            int(times.min()), int(times.max()),
        )  # fmt: skip

    def flush_latest(self) -> None:
        """Write the newest tick of every GPU that was heard since the last time."""
        if self._latest:
            kept = self._latest.values()
            self.store.insert(
                "gpu_latest",
                newest({name: np.concatenate([b[name] for b in kept]) for name in _LATEST}),
            )
            self._latest.clear()

    def _write_records(self, batch: Batch, now_ms: int) -> Written:
        if self._learned_of != batch.token:
            # Once per batch: when the insert is tried again the directory would find nothing new.
            self._records, self._bad_records = self._read(batch)
            self._learned_of = batch.token
        for table, block in rows.by_table(self._records, now_ms).items():
            self.store.insert(table, block, batch.token)
        self._write_dead_letters(batch, self._bad_records, now_ms)
        size = sum(len(r.value) for r in batch.records)
        return Written(len(batch.records), 0, 0, len(self._bad_records), size)

    def _renew_leases(self, now_ms: int) -> None:
        """Contracts are imported into the store, not sent over the log: look there now and then.

        So are allocations where there is no broker, from files and from Slurm's feed.
        """
        if now_ms - self._leased_ms >= CONTRACTS_EVERY_MS:
            self._leased_ms = now_ms
            self.directory.lease(contract_store.read(self.store))
            if self.store.embedded:
                late_ms = now_ms - TOLD_LATE_MS
                for claim in allocations(self.store, now_ms - HORIZON_MS, late_ms):
                    self.directory.claim(claim)

    def _forget(self, now_ms: int) -> None:
        """Now and then: what no row can need any more, or it would gather for ever."""
        if now_ms - self._forgot_ms >= FORGET_EVERY_MS:
            self._forgot_ms = now_ms
            self.directory.forget_before(now_ms - HORIZON_MS)
            self._thin.forget_before(now_ms - FORGET_EVERY_MS)

    def _read(self, batch: Batch) -> tuple[list[Record], list[tuple[LogRecord, str]]]:
        records: list[Record] = []
        rejects: list[tuple[LogRecord, str]] = []
        for item in batch.records:
            try:
                records += self._learned(decode_record(batch.partition.topic, item.value))
            except Reject as error:
                rejects.append((item, str(error)))
        return records, rejects

    def _learned(self, record: Record) -> Sequence[Record]:
        """What is to be stored of a record once the directory knows it."""
        if isinstance(record, Inventory):
            return self.directory.learn(record)
        if isinstance(record, Allocation):
            self.directory.claim(record)
        return [record]

    def _write_dead_letters(
        self, batch: Batch, rejects: Sequence[tuple[LogRecord, str]], now_ms: int
    ) -> None:
        found: list[rows.Row] = [
            {
                "topic": batch.partition.topic, "partition": batch.partition.number,
                "offset": record.offset, "at": record.at_ms, "reason": reason,
                "key": record.key, "payload": record.value, "replayed_at": None,
                "version": now_ms,
            }
            for record, reason in rejects
        ]  # fmt: skip
        if found:
            self.store.insert("dead_letters", rows.columns(found), batch.token)

    def _log(self, batch: Batch, done: Written, watermark_ms: int) -> None:
        """Say what was inserted; `at` is when its rows could be queried."""
        row: rows.Row = {
            "at": self.clock.now_ms(), "kind": "insert", "topic": batch.partition.topic,
            "partition": batch.partition.number, "first": batch.records[0].offset,
            "last": batch.records[-1].offset, "messages": done.messages, "rows": done.rows,
            "duplicates": done.duplicates, "rejected": done.rejected, "gaps": batch.gaps,
            "bytes": done.bytes, "from_ts": done.from_ms, "until_ts": done.until_ms,
            "watermark": watermark_ms,
        }  # fmt: skip
        self.store.insert("ingest_log", rows.columns([row]), batch.token)


def judge_values(samples: Columns) -> None:
    """Flag negative and absurd readings, in place: they are kept, and left out of every sum."""
    power = samples["power_w"].astype(np.int32, copy=False)
    null = FAST_BY_NAME["power_w"].null_code
    limit = ABSURD_POWER_W * FAST_BY_NAME["power_w"].scale
    flags = samples["flags"].astype(np.uint16, copy=False) & ~np.uint16(
        BAD_POWER | FLAG_ABSURD_ENERGY | FLAG_CLOCK_SUSPECT
    )
    flags |= np.where((power < 0) & (power != null), np.uint16(FLAG_NEGATIVE_POWER), np.uint16(0))
    flags |= np.where(power > limit, np.uint16(FLAG_ABSURD_POWER), np.uint16(0))
    energy = samples["energy_j"].astype(np.uint32, copy=False)
    missing = NULL_CODE["u4"]
    # Millijoules beyond the absurd power for the whole of dt_ms: W x ms = mJ.
    absurd = (energy != missing) & (energy > ABSURD_POWER_W * samples["dt_ms"].astype(np.uint64))
    if absurd.any():
        flags |= np.where(absurd, np.uint16(FLAG_ABSURD_ENERGY), np.uint16(0))
        samples["energy_j"] = np.where(absurd, np.uint32(missing), energy)
    samples["flags"] = flags


def _flag_clocks(samples: Columns, headers: NDArray[np.void], at_ms: NDArray[np.int64]) -> None:
    """Flag live rows of nodes whose clock is far behind the broker's."""
    last = headers["t0_ms"] + (headers["ticks"].astype(np.int64) - 1) * headers["period_ms"]
    suspect = np.abs(at_ms - last) > CLOCK_SUSPECT_MS + headers["ticks"] * headers["period_ms"]
    if suspect.any():
        mine = np.isin(samples["node"], headers["node"][suspect])
        samples["flags"] = samples["flags"] | np.where(
            mine, np.uint16(FLAG_CLOCK_SUSPECT), np.uint16(0)
        )


def last_ticks(samples: Columns) -> Columns:
    """Every GPU's last row of a message, without sorting: such rows lie together."""
    gpu, seq = samples["gpu"], samples["seq"]
    last = np.append((gpu[1:] != gpu[:-1]) | (seq[1:] != seq[:-1]), True)
    return {name: samples[name][last] for name in _LATEST}


def newest(samples: Columns) -> Columns:
    """The newest row of every GPU."""
    order = np.lexsort((samples["ts"], samples["gpu"]))
    gpu = samples["gpu"][order]
    last = order[np.append(gpu[1:] != gpu[:-1], True)]
    return {name: samples[name][last] for name in _LATEST}


def _constant(value: int, like: Columns) -> NDArray[np.uint32]:
    return np.full(len(next(iter(like.values()))), value, np.uint32)
