"""`megawatch bench ledger`: what it costs to close an hour, and to write a month's statement.

The hour is closed at two sizes, so that the slope can be seen: nodes of 8 GPUs with full minutes,
leased to tenants by the hall, running jobs of which a fifth change hands at an odd second within
the hour (their raw rows are read). The statement is one tenant's of 200 over 2,976 quarters of five
workloads each, as a site of any size has them.
"""

import argparse
import json
import resource
import sys
import tempfile
import time
import zoneinfo
from pathlib import Path
from typing import Final

import numpy as np
from msgspec.structs import replace

from pipeline import rows
from pipeline.errors import Refuse
from pipeline.ledger import close as closing
from pipeline.ledger import contract_store, contracts, usage
from pipeline.ledger.cells import QUARTER_MS
from pipeline.ledger.check import check
from pipeline.records import Allocation, Gpu, Inventory, id64
from pipeline.settings import ClickHouse, Settings
from pipeline.store import Store, open_store

SITE: Final = "bench"
HOUR_MS: Final = 3_600_000
T0_MS: Final = 1_790_000_000_000 // HOUR_MS * HOUR_MS
GPUS: Final = 8
FLEET: Final = 220_000
FULL: Final = (5_500, 11_000)
QUICK: Final = (1_375, 2_750)
"""Nodes."""
_TENANTS: Final = 200
_JOB_NODES: Final = 16
_TERMS: Final = """
timezone = "UTC"
contracted_gpus = 8
contracted_kw = 10
price_per_gpu_hour = "2.00"
price_per_kwh = "0.10"
currency = "EUR"
availability_pct = 99
"""
_MINUTES: Final = """
INSERT INTO gpu_minutes (gpu, ts, site, version, ingested_at, rows, dt_ms, active_ms, energy_j,
    power_w_ms, power_w_dt_ms, power_w_max, util_gpu_pct_ms, util_gpu_pct_dt_ms)
SELECT gpu_id, toDateTime({t0}, 'UTC') + number * 60, site_id, 1, now(), 60, 60000, 60000, 30000,
    30000000, 60000, 500, 5400000, 60000
FROM inventory CROSS JOIN numbers(60) AS n
"""
_ROWS: Final = """
INSERT INTO gpu_samples (gpu, ts, node, site, dt_ms, energy_kind, energy_j_code, power_w_code,
    util_gpu_pct_code)
SELECT gpu_id, fromUnixTimestamp64Milli(minute * 60000 + number * 1000, 'UTC'), node_id, site_id,
    1000, 'counter', 500, 500, 90
FROM (SELECT DISTINCT node_id, arrayJoin([intDiv(toUnixTimestamp(from_ts), 60),
        intDiv(toUnixTimestamp(from_ts), 60) - 1, intDiv(toUnixTimestamp(from_ts), 60) + 1]) AS minute
    FROM allocations WHERE toUnixTimestamp(from_ts) >= {t0}) AS a
INNER JOIN inventory AS i USING (node_id) CROSS JOIN numbers(60) AS n
"""
_MONTH: Final = """
INSERT INTO ledger_holders (site, ts, tenant, workload, version, gpus, allocated_ms, energy_j,
    measured_ms, active_ms, util_gpu_pct_ms, util_gpu_pct_dt_ms, gap_ms_by_cause, util_ms_by_bin)
SELECT {site}, toDateTime({t0}, 'UTC') + 900 * intDiv(number, {each}), if(number % {tenants} = 0, {lab}, number % {tenants} + 2), number % 5,
    1, 220, 198000000, 99000000, 198000000, 190000000, 17000000000, 198000000,
    [0, 0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0, 0, 0, 0, 198000000]
FROM numbers({count})
"""
_PLACES: Final = """
INSERT INTO inventory (site, node, gpu_index, uuid, site_id, node_id, gpu_id, from_ts)
SELECT '{name}', toString(intDiv(number, 8)), number % 8, toString(number), {site},
    intDiv(number, 8), number, toDateTime({t0}, 'UTC')
FROM numbers({fleet})
"""
_CLOSES: Final = """
INSERT INTO ledger_closes (site, ts, version, state)
SELECT {site}, toDateTime({t0}, 'UTC') + 900 * number, 1, 'closed' FROM numbers(2976)
"""


def run(args: argparse.Namespace, _: Settings) -> int:
    """Measure, clean up, print one line of JSON."""
    sizes = QUICK if args.quick else FULL
    found: dict[str, object] = {}
    costs = []
    for nodes in sizes:
        _say(f"closing an hour of {nodes * GPUS:,} GPUs")
        with tempfile.TemporaryDirectory(prefix="megawatch-bench-") as folder:
            costs.append(_hour(Path(folder), nodes))
    slope = (costs[1] - costs[0]) / (sizes[1] - sizes[0])
    per_gpu = slope / GPUS
    found |= {
        "gpus": [nodes * GPUS for nodes in sizes],
        "close_hour_cpu_s": [round(cost, 2) for cost in costs],
        "fixed_cpu_s": round(costs[0] - slope * sizes[0], 2),
        "close_hour_cpu_s_220000": round(costs[1] + per_gpu * (FLEET - sizes[1] * GPUS), 1),
        "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10,
    }
    _say("a month's statement of one tenant of 200")
    with tempfile.TemporaryDirectory(prefix="megawatch-bench-") as folder:
        found |= _statement(Path(folder), quick=args.quick)
    print(json.dumps(found))
    return 0


def _hour(folder: Path, nodes: int) -> float:
    """CPU seconds of closing an hour; refuses to say if it does not prove."""
    store = open_store(ClickHouse(data=str(folder)))
    try:
        _fill(store, nodes)
        quarters = range(T0_MS, T0_MS + HOUR_MS, QUARTER_MS)
        begun = time.process_time()
        out = closing.close(store, SITE, ("import",), quarters, T0_MS + 2 * HOUR_MS)
        spent = time.process_time() - begun
        proof = check(store, SITE, T0_MS, T0_MS + HOUR_MS)
        if len(out) != 4 or any(o.state != "closed" for o in out) or proof.broken:
            raise Refuse(f"the hour did not close: {[*out, *proof.broken][:1]}")
        return spent
    finally:
        store.close()


def _fill(store: Store, nodes: int) -> None:
    halls = max(1, nodes // 140)
    made: list[rows.Row] = []
    claims: list[rows.Row] = []
    rng = np.random.default_rng(1)
    for n in range(nodes):
        place = Inventory(
            site=SITE, node=f"n{n}", hall=f"h{n % halls}", from_ms=T0_MS - 24 * HOUR_MS,
            gpus=tuple(Gpu(i, f"GPU-{n}-{i}") for i in range(GPUS)),
        )  # fmt: skip
        made += rows.inventory_rows(place, T0_MS)
        job = Allocation(
            site=SITE, source="import", tenant=f"account-{n % 97}", node=f"n{n}",
            workload=f"job-{n // _JOB_NODES}", from_ms=T0_MS - HOUR_MS,
        )  # fmt: skip
        change = T0_MS + int(rng.integers(60_000, HOUR_MS)) if n % 5 == 0 else None
        claims += rows.allocation_rows(replace(job, until_ms=change), T0_MS)
        if change is not None:
            later = Allocation(
                site=SITE, source="import", tenant=job.tenant, node=job.node,
                workload=f"next-{n // _JOB_NODES}", from_ms=change,
            )  # fmt: skip
            claims += rows.allocation_rows(later, T0_MS)
    store.insert("inventory", rows.columns(made))
    store.insert("allocations", rows.columns(claims))
    text = "".join(
        f'[[contract]]\ntenant = "lab-{h}"\nselect = [{{hall = "h{h}"}}]\n'
        f"from = 2020-01-01T00:00:00Z\n{_TERMS}\n"
        for h in range(halls)
    )
    contract_store.write(store, contracts.parse(text, "bench", SITE, T0_MS))
    store.command(_MINUTES.format(t0=T0_MS // 1000))
    store.command(_ROWS.format(t0=T0_MS // 1000))


def _statement(folder: Path, *, quick: bool) -> dict[str, object]:
    store = open_store(ClickHouse(data=str(folder)))
    try:
        site, each = id64(SITE), _TENANTS * 5
        store.command(_MONTH.format(
            site=site, t0=T0_MS // 1000, each=each, tenants=_TENANTS, count=2976 * each,
            lab=id64("", "lab"),
        ))  # fmt: skip
        store.command(_CLOSES.format(site=site, t0=T0_MS // 1000))
        store.command(_PLACES.format(name=SITE, site=site, t0=T0_MS // 1000, fleet=FLEET))
        lab = Allocation(site=SITE, source="import", tenant="lab", node="n", from_ms=T0_MS)
        store.insert("allocations", rows.columns(rows.allocation_rows(lab, T0_MS)))
        period = (T0_MS, T0_MS + 2976 * QUARTER_MS)
        took = []
        for _ in range(2 if quick else 5):
            begun = time.perf_counter()
            found = usage.statement(store, SITE, zoneinfo.ZoneInfo("UTC"), period, tenant="lab")
            took.append(time.perf_counter() - begun)
        if not found.tenants or len(found.tenants[0].curve) != 2976:
            raise Refuse("the statement is not of a month")
        return {"statement_month_s": round(float(np.median(took)), 3)}
    finally:
        store.close()


def _say(text: str) -> None:
    print(f"bench: {text}", file=sys.stderr, flush=True)
