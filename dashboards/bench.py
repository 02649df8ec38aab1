"""`megawatch bench query`: how long people wait for answers about a site of 220,000 GPUs.

A store of that size is written by SQL (pipeline/bench/site.py). Then, while a thread goes on inserting every
GPU's seconds at the pace of the site, the three queries that have budgets are asked again and again,
and every panel of every dashboard as it is when its page is opened. Times are those of the client.
"""

import argparse
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from dashboards.macros import Span, expand
from dashboards.pages import PAGES
from dashboards.panel import Page
from pipeline.bench import site as bench_site
from pipeline.bench.site import FLUSH_S, SITE, Extent
from pipeline.errors import Retry
from pipeline.records import id64
from pipeline.settings import ClickHouse, Settings
from pipeline.store import Store, open_store

FLEET: Final = 220_000
QUICK: Final = 22_000
POINTS: Final = 1000
"""Pixels of a panel, of which Grafana makes its interval."""
BUDGETS: Final = {
    "site_now_ms": (
        50,
        (
            "SELECT toFloat64(sum(power_w_ms)) / 1000 FROM power_seconds WHERE site = {site:UInt64}"
            " AND ts = (SELECT until FROM settled) - INTERVAL 1 SECOND"
        ),
    ),
    "tenant_energy_24h_ms": (
        100,
        (
            "SELECT tenant, sum(energy_j) FROM tenant_minutes WHERE site = {site:UInt64}"
            " AND ts >= now() - INTERVAL 24 HOUR GROUP BY tenant"
        ),
    ),
    "tenant_energy_30d_ms": (
        200,
        (
            "SELECT tenant, sum(energy_j) FROM tenant_minutes WHERE site = {site:UInt64}"
            " AND ts >= now() - INTERVAL 30 DAY GROUP BY tenant"
        ),
    ),
}
"""Milliseconds at the 99th percentile under ingest, and the query."""
_SINCE_S: Final = {"m": 60, "h": 3600, "d": 86_400, "M": 30 * 86_400}


def run(args: argparse.Namespace, _: Settings) -> int:
    """Measure, clean up, print one line of JSON."""
    gpus = args.gpus or (QUICK if args.quick else FLEET)
    extent = Extent(
        gpus=gpus // 32 * 32, now_s=int(time.time()), samples_s=60 if args.quick else 120,
        gpu_minutes=10 if args.quick else 60, seconds_days=0.1 if args.quick else 1.0,
        minutes_days=3 if args.quick else 30,
    )  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="megawatch-bench-") as folder:
        found = measure(Path(folder), extent, *((20, 2) if args.quick else (100, 5)))
    print(json.dumps(found))
    return 0


def measure(folder: Path, extent: Extent, asks: int, panel_asks: int) -> dict[str, object]:
    """Fill, ask under ingest so many times each, and say how long it took; in ms, p50 and p99."""
    store = open_store(ClickHouse(data=str(folder)))
    try:
        begun = time.perf_counter()
        for what in bench_site.fill(store, extent):
            _say(what)
        filled_s = time.perf_counter() - begun
        with _ingesting(store, extent) as live:
            live.wait(FLUSH_S + 2)
            budgets = _budgets(store, asks)
            panels, failed = _panels(store, panel_asks)
        worst = sorted(panels, key=lambda p: -p.times[-1])[:10]
        return {
            "gpus": extent.gpus, "filled_s": round(filled_s), "rows": _rows(store),
            **{name: _percentiles(times) for name, times in budgets.items()},
            "budgets_ms": {name: budget for name, (budget, _) in BUDGETS.items()},
            "panels": len(panels),
            "panels_ms": _percentiles([t for panel in panels for t in panel.times]),
            "asks": [asks, panel_asks],
            "worst_panels": {panel.name: _percentiles(panel.times) for panel in worst},
            "failed_panels": failed,
            "live_rows_per_s": round(live.rows / live.seconds), "live_late_s": round(live.late_s, 1),
            "load": [round(load, 1) for load in os.getloadavg()], "cores": os.cpu_count(),
        }  # fmt: skip
    finally:
        store.close()


# -- ingest beside ------------------------------------------------------------------------------


@dataclass(slots=True)
class _Live:
    """What the live thread has done."""

    rows: int = 0
    seconds: float = 0.001
    late_s: float = 0.0
    failure: BaseException | None = None

    def wait(self, seconds: float) -> None:
        """Let it run alone for a while."""
        time.sleep(seconds)


@contextmanager
def _ingesting(store: Store, extent: Extent) -> Iterator[_Live]:
    """A second's rows every second, as a quarter of the nodes with four ticks each."""
    live, stop, mine = _Live(), threading.Event(), store.another()

    def body() -> None:
        try:
            begun = time.time()
            tick_s = int(begun)
            while not stop.is_set():
                stop.wait(max(0.0, tick_s + 1 - time.time()))
                tick_s += 1
                _insert_second(mine, extent, tick_s)
                live.rows += extent.gpus
                live.seconds = time.time() - begun
                live.late_s = max(live.late_s, time.time() - tick_s - 1)
        except Retry as error:
            live.failure = error

    thread = threading.Thread(target=body, name="live", daemon=True)
    thread.start()
    try:
        yield live
    finally:
        stop.set()
        thread.join()
        mine.close()
    if live.failure is not None:
        raise live.failure


def _insert_second(store: Store, extent: Extent, tick_s: int) -> None:
    phase = tick_s % FLUSH_S
    store.command(bench_site.samples(extent, tick_s - FLUSH_S, tick_s, phase))
    if phase == 0:
        store.command(bench_site.latest(extent, tick_s - 1))
    store.command(bench_site.logged(extent, tick_s - 1, tick_s, 1))


# -- asking -------------------------------------------------------------------------------------


def _budgets(store: Store, times: int) -> dict[str, list[float]]:
    out = {}
    for name, (_, sql) in BUDGETS.items():
        _say(f"asking {name}")

        def ask(sql: str = sql) -> object:
            return store.query(sql, {"site": id64(SITE)}).rows

        out[name] = [_took_ms(ask) for _ in range(times)]
    return out


@dataclass(frozen=True, slots=True)
class _Asked:
    name: str
    times: list[float]


def _panels(store: Store, times: int) -> tuple[list[_Asked], dict[str, str]]:
    """Every panel as its page opens it, and those that failed with what was said."""
    asked, failed = [], {}
    for page in PAGES:
        values = _chosen(store, page)
        for panel in (panel for row in page.rows for panel in row if panel.sql):
            name = f"{page.title}: {panel.title} ({panel.kind})"
            _say(f"asking {name}")

            def ask(
                sql: str = panel.sql, page: Page = page, values: Mapping[str, str] = values
            ) -> object:
                query = expand(sql, _span(page), values)
                return store.query(query.sql, query.parameters).rows

            try:
                asked.append(_Asked(name, sorted(_took_ms(ask) for _ in range(times))))
            except Retry as error:
                failed[name] = str(error)[:200]
    return asked, failed


def _chosen(store: Store, page: Page) -> dict[str, str]:
    """What a page's variables stand at when it is opened: each query's first answer."""
    values: dict[str, str] = {}
    for variable in page.variables:
        query = expand(variable.sql, _span(page), values)
        found = store.query(query.sql, query.parameters).rows
        values[variable.name] = str(found[0][0]) if found else ""
    return values


def _span(page: Page) -> Span:
    """The page's own range until now, as `now-6h` has it."""
    length_s = int(page.since[4:-1]) * _SINCE_S[page.since[-1]]
    now_ms = int(time.time()) * 1000
    return Span(now_ms - length_s * 1000, now_ms, -(-length_s // POINTS))


def _took_ms(ask: Callable[[], object]) -> float:
    begun = time.perf_counter()
    ask()
    return (time.perf_counter() - begun) * 1000


def _percentiles(times: list[float]) -> list[float]:
    return [round(float(np.percentile(times, p)), 1) for p in (50, 99)]


def _rows(store: Store) -> dict[str, int]:
    return {
        row[0]: int(row[1])
        for row in store.query(
            "SELECT name, total_rows FROM system.tables WHERE database = currentDatabase()"
            " AND total_rows > 1000000 ORDER BY name"
        ).rows
    }


def _say(text: str) -> None:
    print(f"bench: {text}", file=sys.stderr, flush=True)
