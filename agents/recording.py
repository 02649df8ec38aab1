"""A recorded log in memory: one track per GPU, with the energy that its rows tell.

Standard library only: an agent has neither numpy nor pyarrow.
"""

import csv
import math
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Final

from agents.continuity import TRAPEZOID_MAX_MS
from agents.gathered import stored
from pipeline.catalog import ABSURD_POWER_W
from pipeline.errors import Refuse
from pipeline.formats import cells, contract
from pipeline.formats.contract import METRICS, Options
from pipeline.records import ENERGY_COUNTER, ENERGY_NONE, ENERGY_TRAPEZOID, Gpu

MAX_ROWS: Final = 2_000_000
MAX_LINE: Final = 1 << 20

_ABSURD_DW: Final = 10 * ABSURD_POWER_W
_IDENTITY: Final = ("node", "gpu", "uuid", "model", "serial", "pci_bus_id", "vbios")


@dataclass(frozen=True, slots=True)
class Row:
    """What the log says of a GPU at a time."""

    ts_ms: int
    metrics: Mapping[str, int]


@dataclass(slots=True)
class Track:
    """One GPU's rows in order of time.

    `energy_mj` is the energy from the track's beginning up to each row, `segment` the number of
    the unbroken stretch that the row is in; `hold_ms` is how long a row stands for what follows.
    """

    node: str
    gpu: Gpu
    rows: list[Row] = field(default_factory=list)
    times: list[int] = field(default_factory=list)
    energy_mj: list[float] = field(default_factory=list)
    segment: list[int] = field(default_factory=list)
    energy_kind: int = ENERGY_NONE
    hold_ms: int = TRAPEZOID_MAX_MS

    def finish(self) -> None:
        """Sort, keep the last of rows with one time, integrate."""
        by_time = {row.ts_ms: row for row in self.rows}
        self.rows = [by_time[ts] for ts in sorted(by_time)]
        self.times = [row.ts_ms for row in self.rows]
        gaps = [b - a for a, b in pairwise(self.times)]
        if gaps:
            self.hold_ms = max(TRAPEZOID_MAX_MS, min(2 * round(median(gaps)), 600_000))
        self.energy_kind, steps = _steps(self.rows)
        longest_ms = TRAPEZOID_MAX_MS if self.energy_kind == ENERGY_TRAPEZOID else self.hold_ms
        energy, segment = 0.0, 0
        for i, step in enumerate(steps):
            known = step is not None and gaps[i - 1] <= longest_ms
            segment += not known
            energy += step if step is not None and known else 0.0
            self.energy_mj.append(energy)
            self.segment.append(segment)

    def at(self, log_ms: float) -> int | None:
        """The row that is shown at a time of the log, None in a gap."""
        i = bisect_right(self.times, log_ms) - 1
        return i if i >= 0 and log_ms - self.times[i] <= self.hold_ms else None

    def silent(self, i: int) -> bool:
        """Whether nothing is known of the energy after row i."""
        return i + 1 == len(self.times) or self.segment[i + 1] != self.segment[i]

    def energy_at(self, i: int, log_ms: float) -> float:
        """Millijoules up to a time of the log that row i is shown at, between rows in proportion."""
        after = i + 1
        if self.silent(i):
            return self.energy_mj[i]
        share = (log_ms - self.times[i]) / (self.times[after] - self.times[i])
        return self.energy_mj[i] + share * (self.energy_mj[after] - self.energy_mj[i])


def _steps(rows: Sequence[Row]) -> tuple[int, list[float | None]]:
    """Millijoules since the row before, None where not known: as given, counted, or of the power."""
    for name, kind in (("energy_j", ENERGY_COUNTER), ("energy_counter_j", ENERGY_COUNTER)):
        values = [row.metrics.get(name) for row in rows]
        if any(value is not None for value in values):
            return kind, [
                None,
                *(_step(name, a, b) for a, b in pairwise(values)),
            ]
    steps: list[float | None] = [None]
    for before, after in pairwise(rows):
        a, b = before.metrics.get("power_w", -1), after.metrics.get("power_w", -1)
        good = 0 <= a <= _ABSURD_DW and 0 <= b <= _ABSURD_DW
        steps.append((a + b) * (after.ts_ms - before.ts_ms) / 20 if good else None)
    return ENERGY_TRAPEZOID, steps[: len(rows)]


def _step(name: str, before: int | None, after: int | None) -> float | None:
    if name == "energy_j":
        return after
    return after - before if before is not None and after is not None and after >= before else None


@dataclass(frozen=True, slots=True)
class Recording:
    """The tracks, node by node, GPU by GPU, and how many rows were bad and left out."""

    tracks: Sequence[Track]
    rows_bad: int


def load(files: Sequence[Path], options: Options, node: str) -> Recording:
    """What CSV files hold; rows that name no node are of `node`. Raises Refuse."""
    tracks: dict[str, Track] = {}
    count = bad = 0
    for path in files:
        for where, cell in _rows(path, options, node):
            try:
                track, row = _row(cell, options, tracks)
            except ValueError as error:
                bad += 1
                if not options.keep_good:
                    raise Refuse(f"{where}: {error}") from error
                continue
            track.rows.append(row)
            count += 1
            if count > MAX_ROWS:
                raise Refuse(f"{path}: more than {MAX_ROWS:,} rows to replay: cut the recording")
    found = sorted(
        (track for track in tracks.values() if track.rows),
        key=lambda track: (track.node, track.gpu.index),
    )
    for track in found:
        track.finish()
    if not found:
        raise Refuse("replay: the recording has no rows")
    return Recording(found, bad)


def _rows(path: Path, options: Options, node: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Where each row stands, and its cells by our names; none where its width is wrong."""
    try:
        with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
            reader = csv.reader(iter(lambda: file.readline(MAX_LINE), ""))
            header = next(reader, [])
            at = contract.resolve(header, contract.SAMPLES, options, str(path))
            have = {*at, *options.constants}
            contract.require(have, ("ts",), header, str(path))
            if "uuid" not in have:
                contract.require(have, ("gpu",), header, str(path))
            default = {"node": options.constants.get("node", node)}
            for record in reader:
                if record and record != header:
                    whole = len(record) == len(header)
                    found = {ours: record[i].strip() for ours, i in at.items()} if whole else {}
                    yield f"{path}: line {reader.line_num}", found and default | found
    except OSError as error:
        raise Refuse(f"cannot read {path}: {error.strerror}") from error
    except csv.Error as error:
        raise Refuse(f"{path}: is no CSV: {error}") from error


def _row(cell: Mapping[str, str], options: Options, tracks: dict[str, Track]) -> tuple[Track, Row]:
    """A row and its track. Raises ValueError, which names the column and the value."""
    if not cell:
        raise ValueError("it has more or fewer values than the header")
    ts_ms = cells.time_ms(cell["ts"], cells.zone(options.zone))
    if not cells.OLDEST_MS <= ts_ms < cells.NEWEST_MS:
        raise ValueError(f"ts {cell['ts'][:40]!r} is no time in ISO 8601 or epoch milliseconds")
    who = {name: cell.get(name, options.constants.get(name, "")) for name in _IDENTITY}
    if not who["node"] or not all(cells.is_name(value) for value in who.values()):
        raise ValueError("node, gpu or uuid is no printable name")
    if not (cells.is_index(who["gpu"]) or (who["uuid"] and not who["gpu"])):
        raise ValueError(f"gpu {who['gpu'][:40]!r} is no index from 0 to {cells.MAX_INDEX}")
    key = who["uuid"] or f"{who['node']}/{int(who['gpu'])}"
    if key not in tracks:
        index = int(who["gpu"] or len(tracks))
        gpu = Gpu(
            index=index, uuid=key, model=who["model"], serial=who["serial"],
            pci_bus_id=who["pci_bus_id"], vbios=who["vbios"],
        )  # fmt: skip
        tracks[key] = Track(who["node"], gpu)
    metrics = {}
    for name in METRICS.keys() & cell.keys():
        number = _number(name, cell[name])
        if number is not None:
            metrics[name] = number
    return tracks[key], Row(ts_ms, metrics)


def _number(name: str, text: str) -> int | None:
    metric = METRICS[name]
    try:
        value = cells.number(text, cells.UNIT_SIGNS.get(metric.unit, ""))
        number = stored(metric, value)
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{name} {text[:40]!r} is no number") from error
    if number is None and not math.isnan(value):
        raise ValueError(f"{name} {text[:40]!r} is more than {name} can hold")
    return number
