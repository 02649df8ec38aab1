"""Everything in one process: a source, its spool, the pipeline, the store, and a status block."""

import json
import logging
import sys
import threading
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

from msgspec.structs import replace

from agents import agent
from agents.sampler import Snapshot
from agents.source import Source
from pipeline import queries, rows
from pipeline.clock import Clock
from pipeline.errors import Refuse
from pipeline.owner import Owner, Run
from pipeline.records import Record
from pipeline.service import Service
from pipeline.settings import Settings
from pipeline.spool import Spool
from pipeline.spool_log import SpoolLog
from pipeline.store import Store
from pipeline.table import render
from pipeline.warm import allocations

_log: Final = logging.getLogger("megawatch.up")

STATUS_EVERY_S: Final = 2.0
LOG_EVERY_S: Final = 10.0
DRAIN_S: Final = 60.0
TENANTS: Final = 8
COMPLETE: Final = 0.99
"""Coverage from which a second is shown as the watts of now."""


@dataclass(slots=True)
class Counted:
    """What the source gave, counted apart from everything that came after."""

    rows: int = 0
    gpus: int = 0
    first_ms: int = 0
    newest_ms: int = 0
    by_tick: list[int] = field(default_factory=list)

    def on_reading(self, snapshot: Snapshot) -> None:
        """Count the rows of a tick: those that were sampled."""
        dt_ms = snapshot.reading.fast[0]
        present = len(dt_ms) - array("I", dt_ms.tobytes()).count(0)
        self.rows += present
        self.gpus = sum(len(i.gpus) for i in snapshot.inventories)
        self.first_ms = self.first_ms or snapshot.tick_ms
        self.newest_ms = snapshot.tick_ms

    def on_record(self, record: Record) -> None:
        """Records are not counted here."""


@dataclass(frozen=True, slots=True)
class Options:
    """How `megawatch up` was called."""

    data: Path
    duration_s: float | None
    as_json: bool
    console: str
    """Address of the page of dashboards."""


class Beside(Protocol):
    """What else runs over the same store; stopping is idempotent."""

    def start(self) -> None:
        """Begin."""

    def stop(self) -> None:
        """End within seconds."""


def run(
    settings: Settings,
    source: Source,
    store: Store,
    options: Options,
    serve: Run,
    beside: Beside,
    stop: threading.Event,
    clock: Clock,
) -> int:
    """Run until stopped or the duration is over; everything sampled is in the store then."""
    spool = agent.open_spool(settings, clock)
    counted = Counted()
    before = _rows(store)
    _end_claims(store, source.name, clock.now_ms())
    service = Service(settings, store, lambda who: SpoolLog(spool, who, clock), clock)
    owner = Owner(options.data, serve)
    sampling = _Sampling(settings, source, spool, counted, clock)
    begun_s = clock.monotonic_s()
    shown = _Display(store.another(), counted, service, settings, options.console, clock)
    try:
        service.start()
        sampling.start()
        beside.start()
        while not (stop.is_set() or sampling.ended.is_set() or service.stopping.is_set()):
            left = _left(options.duration_s, clock.monotonic_s() - begun_s)
            if left <= 0:
                break
            clock.wait(stop, min(left, 0.5))
            shown.turn()
        sampling.stop()
        beside.stop()
        drained = service.stop(DRAIN_S if options.duration_s else 3.0, flush=True)
        failed = sampling.failure or service.failed
        if failed is not None:
            raise failed
        if not drained:
            _log.warning("not everything was ingested; the rest is in the spool for the next start")
        if options.as_json:
            print(json.dumps(_summary(store, counted, before)), flush=True)
        else:
            shown.last()
    finally:
        sampling.stop()
        beside.stop()
        owner.close()
        shown.close()
        spool.close()
    return 0


def _end_claims(store: Store, source: str, now_ms: int) -> None:
    """A source that starts anew begins its claims anew: what it left open ended with its rows."""
    ended_ms = queries.span(store).until_ms
    ends = [
        replace(claim, until_ms=max(claim.from_ms, ended_ms), asserted_at_ms=now_ms)
        for claim in allocations(store, ended_ms)
        if claim.source == source and claim.until_ms is None
    ]
    for table, block in rows.by_table(ends, now_ms).items():
        store.insert(table, block)


def _left(duration_s: float | None, gone_s: float) -> float:
    return 1.0 if duration_s is None else duration_s - gone_s


class _Sampling:
    """The agent in a thread of its own, with the spool as its only outlet."""

    def __init__(
        self, settings: Settings, source: Source, spool: Spool, counted: Counted, clock: Clock
    ) -> None:
        self.ended = threading.Event()
        self.failure: Exception | None = None
        self._stop = threading.Event()

        def body() -> None:
            try:
                agent.run(settings, source, None, self._stop, clock, spool, observers=[counted])
            except Refuse as error:
                self.failure = error
            finally:
                self.ended.set()

        self._thread = threading.Thread(target=body, name="agent", daemon=True)

    def start(self) -> None:
        """Begin to sample."""
        self._thread.start()

    def stop(self) -> None:
        """End with a last flush; idempotent."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(10)


def _rows(store: Store) -> int:
    count: int = store.query("SELECT count() FROM gpu_samples").rows[0][0]
    return count


def _summary(store: Store, counted: Counted, before: int) -> dict[str, object]:
    """What came of a run, proved by SQL: nothing here is what the pipeline says of itself."""
    ingested = _rows(store) - before
    span = {"since": counted.first_ms, "until": counted.newest_ms + 1000}
    distinct = store.query(
        "SELECT uniqExact(gpu, ts), sum(dt_ms) FROM gpu_samples"
        " WHERE ts >= fromUnixTimestamp64Milli({since:Int64}, 'UTC')"
        " AND ts < fromUnixTimestamp64Milli({until:Int64}, 'UTC')",
        span,
    ).rows[0]
    seconds = max(1, span["until"] - span["since"])
    newest = queries.power(store, counted.newest_ms - 10_000, counted.newest_ms + 1000, 1, "site")
    return {
        "gpus": counted.gpus,
        "rows_ingested": ingested,
        "rows_lost": counted.rows - distinct[0],
        "rows_duplicated": ingested - distinct[0],
        "coverage": round(distinct[1] / (seconds * counted.gpus), 6) if counted.gpus else None,
        "watts": round(newest[-1].watts, 1) if newest else None,
        "energy_raw_mj": queries.energy_mj(store, "gpu_samples"),
        "energy_rollups_mj": {
            table: queries.energy_mj(store, table)
            for table in ("power_seconds", "tenant_minutes", "gpu_minutes")
        },
    }


def settled(seconds: Sequence[queries.Power]) -> queries.Power | None:
    """The newest that is as complete as any of them: what is dark never comes, the rest still may."""
    best = max((second.coverage or 0 for second in seconds), default=0)
    whole = [second for second in seconds if (second.coverage or 0) >= COMPLETE * best]
    return whole[-1] if whole else None


class _Display:
    """One live block on a terminal, one log line per interval elsewhere."""

    def __init__(
        self,
        store: Store,
        counted: Counted,
        service: Service,
        settings: Settings,
        console: str,
        clock: Clock,
    ) -> None:
        self._console = console
        self._store, self._counted, self._service = store, counted, service
        self._settings, self._clock = settings, clock
        self._tty = sys.stderr.isatty()
        if not self._tty:  # where the block would show it
            print(f"look  {console}", file=sys.stderr, flush=True)
        self._next_s = clock.monotonic_s() + 1
        self._patience_s = clock.monotonic_s() + 15
        self._rows = (clock.monotonic_s(), 0)
        self._height = 0
        self._shown_ms = 0

    def close(self) -> None:
        self._store.close()

    def turn(self) -> None:
        """Say how things are, if it is time to."""
        now_s = self._clock.monotonic_s()
        if now_s < self._next_s or not self._service.ingest.totals.rows:
            return
        if not self._height and now_s < self._patience_s and not self._has_whole_second():
            self._next_s = now_s + 0.5
            return
        self._next_s = now_s + (STATUS_EVERY_S if self._tty else LOG_EVERY_S)
        if self._tty:
            self._block()
        else:
            self.last()

    def last(self) -> None:
        """One line."""
        facts = self._facts()
        print("  ".join(f"{name} {value}" for name, value in facts), file=sys.stderr, flush=True)

    def _block(self) -> None:
        text = render(["megawatch", ""], [*self._facts(), *self._tenants(), *self._where()])
        lines = text.split("\n")
        up = f"\x1b[{self._height}F" if self._height else ""
        print(up + "\n".join(f"{line}\x1b[K" for line in lines), file=sys.stderr, flush=True)
        self._height = len(lines)

    def _seconds(self) -> list[queries.Power]:
        """The newest of them, in order."""
        until = self._counted.newest_ms + 1000
        return queries.power(self._store, until - 15_000, until, 1, "site")

    def _has_whole_second(self) -> bool:
        return any((second.coverage or 0) >= COMPLETE for second in self._seconds())

    def _facts(self) -> list[tuple[str, str]]:
        now = settled(self._seconds())
        self._shown_ms = now.ts_ms if now else 0
        then_s, rows_then = self._rows
        now_s, rows = self._clock.monotonic_s(), self._service.ingest.totals.rows
        self._rows = (now_s, rows)
        age_s = (self._clock.now_ms() - now.ts_ms) / 1000 if now else 0.0
        coverage = f"{now.coverage:.1%}" if now and now.coverage is not None else "unknown"
        return [
            ("GPUs", f"{self._counted.gpus:,}"),
            ("power", f"{_watts(now.watts)} (coverage {coverage})" if now else "no watts yet"),
            ("rows/s", f"{(rows - rows_then) / max(0.001, now_s - then_s):,.0f}"),
            ("lag", f"{age_s:.1f} s"),
        ]

    def _tenants(self) -> list[tuple[str, str]]:
        """Of the very second whose watts are shown, so that they add up."""
        found = queries.power(self._store, self._shown_ms, self._shown_ms + 1000, 1, "tenant")
        largest = sorted(found, key=lambda p: -p.watts)[:TENANTS]
        return [(f"  {p.tenant}", _watts(p.watts)) for p in largest]

    def _where(self) -> list[tuple[str, str]]:
        data = self._settings.clickhouse.data
        return [
            ("look", self._console),
            ("ask", f"megawatch power --data {data} --by tenant"),
            ("metrics", f"http://{self._settings.agent.listen}/metrics"),
        ]


def _watts(watts: float) -> str:
    for unit, size in (("MW", 1e6), ("kW", 1e3)):
        if abs(watts) >= size:
            return f"{watts / size:,.3f} {unit}"
    return f"{watts:,.1f} W"
