# ruff: noqa: S608, statements are made of numbers and constants of this file
"""A site of any size written by SQL alone, for benchmarks of queries: all tables, and live seconds.

GPU number g is index g % 8 of node g / 8; nodes stand in TENANTS halls, each leased by one tenant.
Ids are hashes, as real ones, so that order on disk is nobody's order. Jobs take 16 nodes and half a
day; one job of the present is large. It is a healthy site: GPUs of a node are alike.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from pipeline.ledger import contract_store, contracts
from pipeline.records import id64
from pipeline.schema import coded
from pipeline.store import Store

SITE: Final = "bench"
TENANTS: Final = 200
FLUSH_S: Final = 4
HEALTH_MINUTES: Final = 10
DAY_S: Final = 86_400
_TERMS: Final = """
timezone = "UTC"
contracted_gpus = 8
contracted_kw = 10
price_per_gpu_hour = "2.00"
price_per_kwh = "0.10"
currency = "EUR"
availability_pct = 99
"""


@dataclass(frozen=True, slots=True)
class Extent:
    """How much of everything; `now_s` is where history ends and the live seconds begin."""

    gpus: int
    now_s: int
    samples_s: int
    gpu_minutes: int
    seconds_days: float
    minutes_days: int

    @property
    def nodes(self) -> int:
        """Of eight GPUs."""
        return self.gpus // 8

    @property
    def large_nodes(self) -> int:
        """Of the large job."""
        return max(1, min(512, self.nodes // 10))

    @property
    def samples_from_s(self) -> int:
        """A whole minute, so that rollups which history wrote and those of views do not meet."""
        return (self.now_s - self.samples_s) // 60 * 60


def fill(store: Store, extent: Extent) -> Iterator[str]:
    """Write everything, saying what comes next."""
    text = "".join(
        f'[[contract]]\ntenant = "lab-{h}"\nselect = [{{hall = "h{h}"}}]\n'
        f"from = 2020-01-01T00:00:00Z\n{_TERMS}\n"
        for h in range(TENANTS)
    )
    contract_store.write(store, contracts.parse(text, "bench", SITE, (extent.now_s - DAY_S) * 1000))
    for name, sql in _statements(extent):
        yield name
        store.command(sql)
    for at_s in range(extent.samples_from_s, extent.now_s, 10):
        until_s = min(at_s + 10, extent.now_s)
        yield f"gpu_samples, {extent.now_s - at_s} s left"
        store.command(samples(extent, at_s, until_s))


def _gpu(number: str) -> str:
    return f"sipHash64('gpu', {number})"


def _node(number: str) -> str:
    return f"sipHash64('node', toUInt64(intDiv({number}, 8)))"


def _hall(node: str, extent: Extent) -> str:
    return f"intDiv({node} * {TENANTS}, {extent.nodes})"


def _tenant(hall: str) -> str:
    ids = ", ".join(f"{id64('', f'lab-{h}')}" for h in range(TENANTS))
    return f"arrayElement([{ids}], toUInt32({hall}) + 1)"


def _job(node: str, extent: Extent) -> str:
    """Name of the job that a node runs now."""
    return f"if({node} < {extent.large_nodes}, 'large', concat('job-0-', toString(intDiv({node}, 16))))"


_MEASURED: Final = ", ".join(map(coded, (
    "power_w", "power_instant_w", "energy_j", "temp_gpu_c", "temp_mem_c", "util_gpu_pct",
    "util_mem_pct", "sm_active_pct", "tensor_active_pct", "dram_active_pct", "mem_used_mib",
    "clock_sm_mhz", "clock_mem_mhz", "pstate", "throttle_reasons", "throttle_power_cap_ms",
    "throttle_sw_thermal_ms", "throttle_hw_thermal_ms", "throttle_power_brake_ms", "pcie_tx_mib",
    "pcie_rx_mib", "nvlink_tx_mib", "nvlink_rx_mib",
)))  # fmt: skip


def samples(extent: Extent, from_s: int, until_s: int, phase: int | None = None) -> str:
    """Rows of every GPU and second of [from_s, until_s); of one node in four if it has a phase."""
    share = 1 if phase is None else FLUSH_S
    count, each = extent.gpus // 8 // share * 8 * (until_s - from_s), extent.gpus // 8 // share * 8
    number = f"(intDiv(number % {each}, 8) * {share} + {phase or 0}) * 8 + number % 8"
    return f"""
INSERT INTO gpu_samples (gpu, ts, node, site, tenant, workload, stream, seq, dt_ms, energy_kind,
    ingested_at, {_MEASURED})
SELECT {_gpu("g")}, toDateTime64({from_s} + intDiv(number, {each}), 3, 'UTC'), {_node("g")},
    {id64(SITE)}, {_tenant(_hall("n", extent))}, sipHash64('job', {_job("n", extent)}),
    {_node("g")}, intDiv({from_s} + intDiv(number, {each}), {FLUSH_S}), 1000, 'counter', now(),
    300 + r % 4000 / 10, 300 + r % 4000 / 10, 300 + r % 4000 / 10, 40 + r % 30, 50 + r % 30,
    r % 100, r % 80, r % 1000 / 10, r % 700 / 10, r % 600 / 10, 60000 + r % 64, 1980 - r % 2 * 15,
    2619, 0, if(r % 50 = 0, 4, 0), if(r % 50 = 0, 100, 0), 0, 0, 0, r % 300, r % 200, r % 4000,
    r % 4000
FROM
(
    SELECT number, toUInt64({number}) AS g, intDiv(g, 8) AS n, rand() AS r FROM numbers({count})
)"""


def latest(extent: Extent, at_s: int) -> str:
    """The newest tick of every GPU."""
    return f"""
INSERT INTO gpu_latest (gpu, ts, node, site, tenant, workload, power_w, temp_gpu_c, util_gpu_pct,
    mem_used_mib, throttle_reasons)
SELECT {_gpu("g")}, toDateTime64({at_s}, 3, 'UTC'), {_node("g")}, {id64(SITE)},
    {_tenant(_hall("n", extent))}, sipHash64('job', {_job("n", extent)}),
    400 + intHash64(n) % 200 + rand() % 400 / 10, 45 + intHash64(n) % 20 + rand() % 5,
    90 + rand() % 10, 60000, 0
FROM (SELECT number AS g, intDiv(g, 8) AS n FROM numbers({extent.gpus}))"""


def logged(extent: Extent, at_s: int, until_s: int, count: int) -> str:
    """`count` inserts, a second apart, the last of them at `until_s` with a watermark at `at_s`."""
    return f"""
INSERT INTO ingest_log (at, kind, topic, first, last, messages, rows, bytes, from_ts, until_ts,
    watermark)
SELECT toDateTime64({until_s}, 3, 'UTC') - number, 'insert', 'samples', number, number,
    {extent.nodes // FLUSH_S}, {extent.gpus}, {extent.gpus * 110},
    toDateTime64({at_s - FLUSH_S}, 3, 'UTC') - number, toDateTime64({at_s}, 3, 'UTC') - number,
    toDateTime64({at_s}, 3, 'UTC') - number
FROM numbers({count})"""


def _statements(extent: Extent) -> Iterator[tuple[str, str]]:
    yield from _places(extent)
    yield from _told(extent)
    yield from _history(extent)
    yield "gpu_latest", latest(extent, extent.now_s)
    yield "ingest_log", logged(extent, extent.now_s - 1, extent.now_s, DAY_S)


def _places(extent: Extent) -> Iterator[tuple[str, str]]:
    """Inventory, allocations, health."""
    now, site, nodes = extent.now_s, id64(SITE), extent.nodes
    hall = _hall("n", extent)
    yield (
        "inventory",
        f"""
INSERT INTO inventory (site, node, hall, row, rack, pdu, gpu_index, uuid, model, site_id, node_id,
    gpu_id, from_ts, source, agent_version, driver_version, asserted_at)
SELECT '{SITE}', concat('n', toString(n)), concat('h', toString({hall})), toString(intDiv(n, 64)),
    concat('r', toString(intDiv(n, 4))), concat('p', toString(intDiv(n, 32))), g % 8,
    concat('GPU-', toString(g)), 'H200', {site}, {_node("g")}, {_gpu("g")}, toDateTime({now - 40 * DAY_S}),
    'agent', '0.1.0', '570.133.20', toDateTime({now - 40 * DAY_S})
FROM (SELECT number AS g, intDiv(g, 8) AS n FROM numbers({extent.gpus}))""",
    )
    halves = extent.minutes_days * 2
    yield (
        "allocations",
        f"""
INSERT INTO allocations (site, source, tenant, workload, account, node, from_ts, until_ts,
    asserted_at, site_id, node_id, tenant_id, workload_id)
SELECT '{SITE}', 'slurm', concat('lab-', toString({hall})),
    if(k = 0, {_job("n", extent)}, concat('job-', toString(k), '-', toString(intDiv(n, 16)))) AS job,
    'research', concat('n', toString(n)), toDateTime({now - 7200}) - k * 43200
        - if(job = 'large', 0, 1800), if(k = 0, NULL, toDateTime({now - 7200}) - (k - 1) * 43200 - 1800),
    toDateTime({now - 7200}) - k * 43200, {site}, sipHash64('node', n), {_tenant(hall)},
    sipHash64('job', job)
FROM (SELECT toUInt64(number % {nodes}) AS n, intDiv(number, {nodes}) AS k FROM numbers({nodes * halves}))""",
    )
    yield (
        "gpu_health",
        # A row per GPU and minute, at a second of the minute that is the GPU's own.
        f"""
INSERT INTO gpu_health (gpu, ts, node, site, energy_counter_j, power_limit_w, power_limit_default_w,
    power_limit_max_w, mem_total_mib, ecc_corrected_volatile, ecc_uncorrected_volatile, pcie_replays,
    remap_pending, remap_failure, recovery_action, mig_mode)
SELECT {_gpu("g")}, toDateTime64({now} - intHash64(g) % 60 - 60 * intDiv(number, {extent.gpus}), 3, 'UTC'),
    {_node("g")}, {site}, 1000000, 700, 700, 700, 143771, 0, 0, 0, 0, 0, 0, 0
FROM (SELECT number, toUInt64(number % {extent.gpus}) AS g FROM numbers({extent.gpus * HEALTH_MINUTES}))""",
    )


def _told(extent: Extent) -> Iterator[tuple[str, str]]:
    """Meters and events."""
    now, site, nodes = extent.now_s, id64(SITE), extent.nodes
    yield (
        "meters",
        f"""
INSERT INTO meters (site, meter, kind, ts, watts, ingested_at)
SELECT {site}, concat('n', toString(number % {nodes})), 'node',
    toDateTime({now} - 60 * intDiv(number, {nodes})), 6000 + rand() % 1000, now()
FROM numbers({nodes * 60})
UNION ALL SELECT {site}, concat('h', toString(number % {TENANTS})), 'hall',
    toDateTime({now} - 5 * intDiv(number, {TENANTS})), {extent.gpus / TENANTS * 1000} + rand() % 1000, now()
FROM numbers({TENANTS * 720})
UNION ALL SELECT {site}, '{SITE}', 'site', toDateTime({now} - number), {extent.gpus * 1000} + rand() % 1000,
    now()
FROM numbers(3600)""",
    )
    yield (
        "events",
        f"""
INSERT INTO events (site, node, ts, kind, gpu, uuid, code, count, detail, ingested_at)
SELECT {site}, concat('n', toString(number % {nodes})), toDateTime({now} - 60 * number), 'xid',
    {_gpu("toUInt64(number % 64 * 8)")}, concat('GPU-', toString(number % 64 * 8)), 31, 1, '', now()
FROM numbers({extent.minutes_days * 1440})""",
    )


def _history(extent: Extent) -> Iterator[tuple[str, str]]:
    """Rollups and the ledger."""
    now, site = extent.now_s, id64(SITE)
    begun, each = extent.samples_from_s, extent.gpus // TENANTS
    tenant = _tenant(f"number % {TENANTS}")
    yield (
        "power_seconds",
        f"""
INSERT INTO power_seconds (site, tenant, ts, ingested_at, power_w_ms, power_w_dt_ms, energy_j, rows, dt_ms)
SELECT {site}, {tenant}, toDateTime({begun - 1} - intDiv(number, {TENANTS})), now(),
    {each} * (450 + rand() % 100) * 1000, {each} * 1000, {each} * 500, {each}, {each} * 1000
FROM numbers({int(extent.seconds_days * DAY_S) * TENANTS})""",
    )
    yield (
        "tenant_minutes",
        f"""
INSERT INTO tenant_minutes (site, tenant, ts, ingested_at, power_w_ms, power_w_dt_ms, power_w_min,
    power_w_max, energy_j, temp_gpu_c_ms, temp_gpu_c_dt_ms, temp_gpu_c_max, util_gpu_pct_ms,
    util_gpu_pct_dt_ms, sm_active_pct_ms, sm_active_pct_dt_ms, rows, dt_ms, active_ms)
SELECT {site}, {tenant}, toDateTime({begun - 60} - 60 * intDiv(number, {TENANTS})), now(),
    {each} * (450 + rand() % 100) * 60000, {each} * 60000, 90, 700, {each} * 30000, {each} * 3300000,
    {each} * 60000, 70, {each} * 5400000, {each} * 60000, {each} * 3600000, {each} * 60000, {each} * 60,
    {each} * 60000, {each} * 55000
FROM numbers({extent.minutes_days * 1440 * TENANTS})""",
    )
    yield (
        "gpu_minutes",
        f"""
INSERT INTO gpu_minutes (gpu, ts, site, version, ingested_at, rows, dt_ms, active_ms, energy_j,
    power_w_ms, power_w_dt_ms, power_w_max, temp_gpu_c_ms, temp_gpu_c_dt_ms, temp_gpu_c_max,
    util_gpu_pct_ms, util_gpu_pct_dt_ms)
SELECT {_gpu(f"toUInt64(number % {extent.gpus})")}, toDateTime({now // 60 * 60 - 60} - 60 * intDiv(number, {extent.gpus})),
    {site}, 1, now(), 60, 60000, 60000, 60 * (450 + intHash64(number) % 100),
    60000 * (450 + intHash64(number) % 100), 60000, 700, 3300000, 60000, 70, 5400000, 60000
FROM numbers({extent.gpus * extent.gpu_minutes})""",
    )
    quarters = extent.minutes_days * 96
    yield (
        "ledger_holders",
        f"""
INSERT INTO ledger_holders (site, ts, tenant, workload, version, gpus, allocated_ms, energy_j,
    measured_ms, active_ms, util_gpu_pct_ms, util_gpu_pct_dt_ms, gap_ms_by_cause, util_ms_by_bin)
SELECT {site}, toDateTime({begun // 900 * 900}) - 900 * intDiv(number, {TENANTS * 5}), {tenant},
    sipHash64('job', concat('job-', toString(intDiv(number, {TENANTS * 5 * 48})), '-', toString(number % {TENANTS * 5}))),
    1, 220, 198000000, 99000000, 198000000, 190000000, 17000000000, 198000000,
    [0, 0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0, 0, 0, 0, 198000000]
FROM numbers({quarters * TENANTS * 5})""",
    )
    yield (
        "ledger_closes",
        f"""
INSERT INTO ledger_closes (site, ts, version, state)
SELECT {site}, toDateTime({begun // 900 * 900}) - 900 * number, 1, 'closed' FROM numbers({quarters})""",
    )
