"""`megawatch bench query` in the small: what it fills is a site, and every panel answers on it."""

import json
import time
from pathlib import Path
from typing import Any, cast

import pytest

from dashboards import bench
from dashboards.pages import PAGES
from pipeline import queries
from pipeline.bench import site as bench_site
from pipeline.bench.site import SITE, Extent
from pipeline.store import Store


def tiny() -> Extent:
    """Forty nodes, minutes instead of days."""
    return Extent(gpus=320, now_s=int(time.time()), samples_s=60, gpu_minutes=5,
                  seconds_days=0.002, minutes_days=1)  # fmt: skip


def one(store: Store, sql: str) -> Any:
    return store.query(sql).rows[0][0]


def test_what_is_filled_hangs_together(store: Store) -> None:
    extent = tiny()
    told = list(bench_site.fill(store, extent))
    assert told[0] == "inventory"
    assert one(store, "SELECT name FROM sites") == SITE
    assert one(store, "SELECT uniqExact(gpu_id) FROM inventory") == extent.gpus
    seconds = extent.now_s - extent.samples_from_s
    assert one(store, "SELECT count() FROM gpu_samples") == extent.gpus * seconds
    for table in ("gpu_samples", "gpu_latest", "gpu_minutes", "gpu_health"):
        strange = f"SELECT count() FROM {table} WHERE gpu NOT IN (SELECT gpu_id FROM inventory)"
        assert one(store, strange) == 0, table
    assert (
        one(store, "SELECT count() FROM power_seconds WHERE tenant NOT IN (SELECT id FROM tenants)")
        == 0
    )
    large = one(store, "SELECT id FROM workloads WHERE name = 'large'")
    held = one(store, f"SELECT uniqExact(gpu) FROM gpu_samples WHERE workload = {large}")
    assert held == extent.large_nodes * 8
    twice = "SELECT count() - uniqExact(site, tenant, ts) FROM (SELECT * FROM tenant_minutes FINAL)"
    assert one(store, twice) == 0
    newest = queries.power(store, extent.now_s * 1000 - 2000, extent.now_s * 1000, 1, "site")
    assert [round(p.coverage or 0, 6) for p in newest] == [1.0, 1.0]
    assert 300 * extent.gpus <= newest[0].watts <= 700 * extent.gpus


def test_a_live_second_is_a_quarter_of_the_nodes_with_four_ticks(store: Store) -> None:
    extent = tiny()
    for second in range(4):
        at_s = extent.now_s + second
        store.command(bench_site.samples(extent, at_s - 4, at_s, at_s % 4))
    found = store.query("SELECT count(), uniqExact(gpu), uniqExact(node), max(n) FROM"
                        " (SELECT *, count() OVER (PARTITION BY gpu, ts) AS n FROM gpu_samples)").rows[0]  # fmt: skip
    assert tuple(found) == (extent.gpus * 4, extent.gpus, extent.nodes, 1)


@pytest.mark.slow
def test_every_panel_is_asked_and_none_fails(tmp_path: Path) -> None:
    found = bench.measure(tmp_path, tiny(), 2, 1)
    json.dumps(found)
    assert found["failed_panels"] == {}
    assert found["panels"] == sum(bool(p.sql) for page in PAGES for row in page.rows for p in row)
    assert found["live_rows_per_s"]
    for name in bench.BUDGETS:
        p50, p99 = cast("list[float]", found[name])
        assert 0 < p50 <= p99
