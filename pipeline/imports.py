"""`megawatch import`: files into an open store, with a progress bar, for whoever asked."""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from pipeline import importer, rows
from pipeline.clock import Clock
from pipeline.commands import Context
from pipeline.decode import Columns
from pipeline.directory import Directory
from pipeline.formats.contract import Options, pairs
from pipeline.minutes import Minutes
from pipeline.progress import Bar
from pipeline.records import Allocation, Gpu, Inventory, Record, id64
from pipeline.store import Store
from pipeline.warm import warmed

IMPORTED: Final = 0
"""Stream of imported rows: they came without an agent's numbering."""
_FOREVER_MS: Final = 1 << 62
_KEYS: Final = np.dtype([("gpu", "<u8"), ("ts", "<i8")])

_IMPORTS: Final = {
    "samples": importer.import_samples,
    "meters": importer.import_meters,
    "allocations": importer.import_allocations,
    "inventory": importer.import_inventory,
}


def run(args: argparse.Namespace, context: Context) -> int:
    """Import and say what came of it."""
    options = Options(
        site=context.settings.site.name,
        rename=pairs(args.map, "--map"),
        constants=pairs(args.set, "--set"),
        format=args.format,
        keep_good=args.keep_good,
        ignore_extra=args.ignore_extra,
        zone=args.zone or context.settings.site.timezone,
    )
    files = [context.cwd / name for name in args.files]
    target = ImportStore(context.store, context.clock)
    bar = Bar("importing", context.err)
    try:
        report = _IMPORTS[args.what](target, files, options, bar)
    finally:
        bar.close()
    if args.what == "samples" and context.store.embedded:
        Minutes(context.store).fill(context.clock.now_ms(), None)
    for problem in report.problems:
        context.say(problem)
    context.say(
        f"{report.rows_read} rows read: {report.rows_inserted} new, {report.rows_known} known, "
        f"{report.rows_repeated} repeated, {report.rows_bad} bad"
    )
    if args.json:
        context.print(json.dumps(report.as_dict()))
    return 0


@dataclass(slots=True)
class ImportStore:
    """The store as an import sees it: importer.SampleStore."""

    store: Store
    clock: Clock
    _directory: Directory = field(init=False)

    def __post_init__(self) -> None:
        """Learn who held what, to stamp the rows."""
        self._directory = warmed(self.store, 0)

    def existing(
        self, gpus: NDArray[np.uint64], from_ms: int, until_ms: int
    ) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
        """(gpu, ts) of the rows of these GPUs in [from_ms, until_ms)."""
        raw = self.store.raw(
            "SELECT gpu, toUnixTimestamp64Milli(ts) FROM gpu_samples"
            " WHERE gpu IN {gpus:Array(UInt64)}"
            " AND ts >= fromUnixTimestamp64Milli({since:Int64}, 'UTC')"
            " AND ts < fromUnixTimestamp64Milli({until:Int64}, 'UTC')",
            "RowBinary",
            {"gpus": gpus.tolist(), "since": from_ms, "until": until_ms},
        )
        found = np.frombuffer(raw, _KEYS)
        return found["gpu"], found["ts"]

    def existing_meters(
        self, site: str, kind: str, meter: str, from_ms: int, until_ms: int
    ) -> NDArray[np.int64]:
        """Times of a meter's readings in [from_ms, until_ms)."""
        raw = self.store.raw(
            "SELECT toUnixTimestamp64Milli(ts) FROM meters"
            " WHERE site = {site:UInt64} AND kind = {kind:String} AND meter = {meter:String}"
            " AND ts >= fromUnixTimestamp64Milli({since:Int64}, 'UTC')"
            " AND ts < fromUnixTimestamp64Milli({until:Int64}, 'UTC')",
            "RowBinary",
            {"site": id64(site), "kind": kind, "meter": meter, "since": from_ms, "until": until_ms},
        )
        return np.frombuffer(raw, "<i8")

    def existing_allocations(self, site: str, node: str) -> Sequence[Allocation]:
        """The newest assertion of every allocation of a node."""
        return self._directory.claims(site, node)

    def insert_samples(self, columns: Columns, token: str) -> None:
        """Insert into gpu_samples with everything that the rows do not bring themselves."""
        now_ms = self.clock.now_ms()
        gpus, times = columns["gpu"].astype(np.uint64), columns["ts"].astype(np.int64)
        tenant, workload = self._directory.holders().at(gpus[:, None], times[:, None])
        count = len(times)
        self.store.insert(
            "gpu_samples",
            columns
            | {
                "tenant": tenant.reshape(-1), "workload": workload.reshape(-1),
                "stream": np.full(count, IMPORTED, np.uint64), "seq": np.zeros(count, np.uint64),
                "ingested_at": np.full(count, now_ms // 1000, np.uint32),
            },
            token,
        )  # fmt: skip
        row: rows.Row = {
            "at": now_ms, "kind": "import", "topic": token, "rows": count,
            "from_ts": int(times.min()), "until_ts": int(times.max()),
        }  # fmt: skip
        self.store.insert("ingest_log", rows.columns([row]), token)

    def insert_health(self, columns: Columns, token: str) -> None:
        """Insert into gpu_health."""
        count = len(columns["ts"])
        now_s = np.full(count, self.clock.now_ms() // 1000, np.uint32)
        self.store.insert("gpu_health", columns | {"ingested_at": now_s}, token)

    def insert_records(self, records: Sequence[Record]) -> None:
        """Insert inventory, allocations, meter readings."""
        now_ms = self.clock.now_ms()
        kept: list[Record] = []
        for record in records:
            if isinstance(record, Inventory):
                self._directory.learn(record)
                kept += _unknown_parts(record, self._known_intervals(record))
            else:
                kept.append(record)
                if isinstance(record, Allocation):
                    self._directory.claim(record)
        for table, block in rows.by_table(kept, now_ms).items():
            self.store.insert(table, block)

    def _known_intervals(self, record: Inventory) -> dict[str, list[tuple[int, int]]]:
        """When the inventory has each GPU on this node already."""
        out: dict[str, list[tuple[int, int]]] = {}
        for uuid, since, until in self.store.query(
            "SELECT uuid, toUnixTimestamp64Milli(from_ts), toUnixTimestamp64Milli(until_ts)"
            " FROM inventory FINAL WHERE site_id = {site:UInt64} AND node_id = {node:UInt64}",
            {"site": id64(record.site), "node": record.node_id},
        ).rows:
            out.setdefault(uuid, []).append((since, _FOREVER_MS if until is None else until))
        return out


def _unknown_parts(record: Inventory, known: dict[str, list[tuple[int, int]]]) -> list[Inventory]:
    """The parts of an interval that the inventory does not have, so that no GPU counts twice."""
    parts: dict[tuple[int, int], list[Gpu]] = {}
    for gpu in record.gpus:
        begin = record.from_ms
        end = _FOREVER_MS if record.until_ms is None else record.until_ms
        for since, until in sorted(known.get(gpu.uuid, [])):
            if since > begin:
                parts.setdefault((begin, min(since, end)), []).append(gpu)
            begin = max(begin, until)
            if begin >= end:
                break
        if begin < end:
            parts.setdefault((begin, end), []).append(gpu)
    return [
        msgspec.structs.replace(
            record, from_ms=begin, until_ms=None if end == _FOREVER_MS else end, gpus=tuple(gpus)
        )
        for (begin, end), gpus in parts.items()
        if begin < end
    ]
