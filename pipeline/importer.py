"""Recorded history into the store, each row once: what is there already is left alone.

Idempotent by row: before an insert the store is asked for the (gpu, ts) that it has, GPU by GPU
and hour by hour, so that importing the same again, or more of the same, changes nothing that is
there. No insert touches more than MAX_HOURS partitions.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import Final, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from pipeline.clock import Clock, SystemClock
from pipeline.errors import Refuse
from pipeline.formats import samples, series, tables
from pipeline.formats.contract import Options
from pipeline.formats.readers import Faults
from pipeline.formats.samples import Array, Columns, Progress
from pipeline.formats.series import HOUR_MS, Samples
from pipeline.records import Allocation, MeterReading, Record, id64

CHUNK_ROWS: Final = 500_000
MAX_HOURS: Final = 50
MAX_GPU_HOURS: Final = 1000
"""GPUs × hours that the store is asked about at once: 3.6 million rows at 1 Hz."""
METER_ROWS: Final = 50_000
DAY_MS: Final = 24 * HOUR_MS
MAX_DAYS: Final = 50 * 28
"""Meter readings are partitioned by month."""


class SampleStore(Protocol):
    """What an import needs of the store."""

    def existing(
        self, gpus: NDArray[np.uint64], from_ms: int, until_ms: int
    ) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
        """(gpu, ts) of the rows of these GPUs in [from_ms, until_ms), in any order."""
        ...

    def existing_meters(
        self, site: str, kind: str, meter: str, from_ms: int, until_ms: int
    ) -> NDArray[np.int64]:
        """Times of the readings of a meter in [from_ms, until_ms)."""
        ...

    def existing_allocations(self, site: str, node: str) -> Sequence[Allocation]:
        """The newest assertion of every allocation of a node."""
        ...

    def insert_samples(self, columns: Columns, token: str) -> None:
        """Insert into gpu_samples, stamping holders; a token's repetition changes nothing."""
        ...

    def insert_health(self, columns: Columns, token: str) -> None:
        """Insert into gpu_health."""
        ...

    def insert_records(self, records: Sequence[Record]) -> None:
        """Insert inventory, allocations, meter readings."""
        ...


@dataclass(frozen=True, slots=True)
class ImportReport:
    """What an import did. read = inserted + known + repeated + bad.

    `known` were in the store, `repeated` stood in the files more than once, `hours` is how many
    hour partitions the inserted rows touch; `problems` names the first bad rows.
    """

    rows_read: int
    rows_inserted: int
    rows_known: int
    rows_repeated: int
    rows_bad: int
    hours: int = 0
    gpus: int = 0
    from_ms: int | None = None
    until_ms: int | None = None
    problems: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, object]:
        """For --json."""
        return asdict(self)


def silent(_done: int, _total: int) -> None:
    """Progress that nobody watches."""


def import_samples(
    store: SampleStore, files: Sequence[Path], options: Options, progress: Progress = silent
) -> ImportReport:
    """Import GPU samples. Raises Refuse on a bad row (unless told to keep the good ones)."""
    history = series.joined(samples.load(files, options, progress))
    hours: set[int] = set()
    known = inserted = 0
    named = False
    for chunk in chunks(history.fast):
        new = ~_known(store, chunk)
        known += int(len(new) - new.sum())
        if not new.any():
            continue
        if not named:
            store.insert_records(history.inventories)
            named = True
        fresh = series.filled({name: column[new] for name, column in chunk.items()})
        health = _matching(history.health, fresh)
        if health:
            store.insert_health(health, _token("health", health))
        store.insert_samples(fresh, _token("samples", fresh))
        inserted += len(fresh["ts"])
        hours.update(np.unique(fresh["ts"].astype(np.int64) // HOUR_MS).tolist())
        progress(known + inserted, history.rows)
    return _report(history, inserted, known, len(hours))


def chunks(columns: Columns) -> Iterator[Columns]:
    """Cuts of rows sorted by hour: at most CHUNK_ROWS rows of at most MAX_HOURS hours each."""
    hour = columns["ts"].astype(np.int64) // HOUR_MS
    first_of_hour = np.flatnonzero(np.diff(hour, prepend=hour[:1] - 1)) if len(hour) else hour
    start = 0
    while start < len(hour):
        later = first_of_hour[np.searchsorted(first_of_hour, start, side="right") :]
        stop = int(later[MAX_HOURS - 1]) if len(later) >= MAX_HOURS else len(hour)
        stop = min(stop, start + CHUNK_ROWS)
        yield {name: column[start:stop] for name, column in columns.items()}
        start = stop


def _known(store: SampleStore, chunk: Columns) -> NDArray[np.bool_]:
    """Which rows of a chunk the store has."""
    gpu, ts = chunk["gpu"].astype(np.uint64), chunk["ts"].astype(np.int64)
    out = np.zeros(len(ts), np.bool_)
    for rows in _questions(gpu, ts):
        mine, when = gpu[rows], ts[rows]
        gpus = np.unique(mine)
        low, high = int(when.min()), int(when.max())
        have_gpu, have_ts = store.existing(gpus, low, high + 1)
        if len(have_ts):
            out[rows] = np.isin(_keys(gpus, mine, when, low), _keys(gpus, have_gpu, have_ts, low))
    return out


def _questions(gpu: NDArray[np.uint64], ts: NDArray[np.int64]) -> Iterator[slice]:
    """Slices of a chunk with at most MAX_GPU_HOURS; all of it if that is little."""
    hour = ts // HOUR_MS
    span = int(hour[-1] - hour[0]) + 1
    if span * len(np.unique(gpu)) <= MAX_GPU_HOURS:
        yield slice(0, len(ts))
        return
    change = np.ones(len(ts), np.bool_)
    change[1:] = (hour[1:] != hour[:-1]) | (gpu[1:] != gpu[:-1])
    starts = np.flatnonzero(change)
    for _, run in groupby(starts.tolist(), key=lambda at: int(hour[at])):
        while piece := list(islice(run, MAX_GPU_HOURS)):
            end = int(np.searchsorted(starts, piece[-1], side="right"))
            yield slice(piece[0], int(starts[end]) if end < len(starts) else len(ts))


def _keys(gpus: Array, gpu: Array, ts: NDArray[np.int64], low: int) -> NDArray[np.int64]:
    """(gpu, ts) as one integer: 2^42 ms are more than a century."""
    return (np.searchsorted(gpus, gpu).astype(np.int64) << 42) + (ts - low)


def _matching(health: Columns, fresh: Columns) -> Columns:
    """The slow rows that belong to these fast ones; none is an empty block."""
    if not health:
        return {}
    ts = health["ts"].astype(np.int64)
    low, high = int(fresh["ts"].min()), int(fresh["ts"].max())
    near = np.flatnonzero((ts >= low) & (ts <= high))
    gpus = np.unique(np.concatenate((health["gpu"][near], fresh["gpu"])))
    wanted = _keys(gpus, fresh["gpu"], fresh["ts"].astype(np.int64), low)
    at = near[np.isin(_keys(gpus, health["gpu"][near], ts[near], low), wanted)]
    return {name: column[at] for name, column in health.items()} if len(at) else {}


def _token(table: str, columns: Columns) -> str:
    """The same rows have the same token: a repetition after a crash is known by it."""
    digest = hashlib.sha256(table.encode())
    for name in sorted(columns):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(columns[name]).tobytes())
    return f"import/{table}/{digest.hexdigest()[:32]}"


def _report(history: Samples, inserted: int, known: int, hours: int) -> ImportReport:
    ts = history.fast["ts"].astype(np.int64)
    return ImportReport(
        rows_read=history.rows_read, rows_inserted=inserted, rows_known=known,
        rows_repeated=history.rows_repeated, rows_bad=history.bad.count, hours=hours,
        gpus=len(np.unique(history.fast["gpu"])), from_ms=int(ts.min()) if len(ts) else None,
        until_ms=int(ts.max()) + 1 if len(ts) else None, problems=history.bad.sentences,
    )  # fmt: skip


def import_meters(
    store: SampleStore, files: Sequence[Path], options: Options, progress: Progress = silent
) -> ImportReport:
    """Import meter readings, each (kind, meter, ts) once. Raises Refuse on a bad row."""
    bad = Faults()
    found = list(tables.meters(files, options, progress, bad))
    _refuse_bad(bad, options)
    unique = {(r.site, r.kind, r.meter, r.ts_ms): r for r in found}
    inserted, hours = 0, set[int]()
    by_meter = groupby(sorted(unique.values(), key=_meter_key), key=lambda r: _meter_key(r)[:3])
    fresh: list[MeterReading] = []
    for (site, kind, meter), readings in by_meter:
        mine = list(readings)
        low, high = mine[0].ts_ms, mine[-1].ts_ms
        have = set(store.existing_meters(site, kind, meter, low, high + 1).tolist())
        fresh += [reading for reading in mine if reading.ts_ms not in have]
    fresh.sort(key=lambda reading: reading.ts_ms)
    for part in _meter_chunks(fresh):
        store.insert_records(part)
        inserted += len(part)
        hours.update(reading.ts_ms // HOUR_MS for reading in part)
        progress(inserted, len(fresh))
    return ImportReport(
        rows_read=len(found) + bad.count, rows_inserted=inserted,
        rows_known=len(unique) - inserted, rows_repeated=len(found) - len(unique),
        rows_bad=bad.count, hours=len(hours), problems=bad.sentences,
    )  # fmt: skip


def _meter_key(reading: MeterReading) -> tuple[str, str, str, int]:
    return reading.site, reading.kind, reading.meter, reading.ts_ms


def _meter_chunks(readings: Sequence[MeterReading]) -> Iterator[Sequence[MeterReading]]:
    """Cuts of readings in order of time: METER_ROWS, and MAX_DAYS from first to last."""
    start = 0
    while start < len(readings):
        until_ms = readings[start].ts_ms + MAX_DAYS * DAY_MS
        stop = start
        while stop < min(len(readings), start + METER_ROWS) and readings[stop].ts_ms < until_ms:
            stop += 1
        yield readings[start:stop]
        start = stop


def import_allocations(
    store: SampleStore,
    files: Sequence[Path],
    options: Options,
    progress: Progress = silent,
    clock: Clock | None = None,
) -> ImportReport:
    """Import allocations, asserted now; what the store knows so already is not said again."""
    bad = Faults()
    found = list(tables.allocations(files, options, progress, bad))
    _refuse_bad(bad, options)
    unique = list(dict.fromkeys(found))
    now_ms = (clock or SystemClock()).now_ms()
    have = {
        msgspec.structs.replace(known, asserted_at_ms=0)
        for site, node in sorted({(a.site, a.node) for a in unique})
        for known in store.existing_allocations(site, node)
    }
    fresh = [msgspec.structs.replace(a, asserted_at_ms=now_ms) for a in unique if a not in have]
    if fresh:
        store.insert_records(fresh)
    return _of_records(len(found), len(unique), len(fresh), bad)


def import_inventory(
    store: SampleStore, files: Sequence[Path], options: Options, progress: Progress = silent
) -> ImportReport:
    """Import who stands where; a repetition replaces itself."""
    bad = Faults()
    found = tables.inventory(files, options, progress, bad)
    _refuse_bad(bad, options)
    _refuse_collisions([(record.site, gpu.uuid) for record in found for gpu in record.gpus])
    if found:
        store.insert_records(found)
    gpus = sum(len(record.gpus) for record in found)
    return _of_records(gpus, gpus, gpus, bad)


def _refuse_bad(bad: Faults, options: Options) -> None:
    if not options.keep_good:
        bad.refuse()


def _refuse_collisions(names: Sequence[tuple[str, str]]) -> None:
    by_id: dict[int, tuple[str, str]] = {}
    for name in names:
        other = by_id.setdefault(id64(*name), name)
        if other != name:
            raise Refuse(f"GPUs {name[1]} and {other[1]} have the same id: rename one of them")


def _of_records(read: int, unique: int, inserted: int, bad: Faults) -> ImportReport:
    return ImportReport(
        rows_read=read + bad.count, rows_inserted=inserted, rows_known=unique - inserted,
        rows_repeated=read - unique, rows_bad=bad.count, problems=bad.sentences,
    )  # fmt: skip
