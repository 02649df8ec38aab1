"""What do the GPUs of one node do, second by second, and who holds them?"""

from typing import Final

from dashboards.annotations import ALERTS, DEPLOYS
from dashboards.pages.node_records import COVERAGE, EVENTS, GAPS, HEALTH, HOLDERS
from dashboards.pages.node_sql import (
    GPUS,
    HEARD_S,
    HERE,
    IN_NODE,
    MINUTES_STEP,
    OF_NODE,
    RAW_S,
    SHORT,
    TENANT_LINK,
    WORKLOAD_LINK,
    gauge,
    gauge_or_minutes,
    rate,
)
from dashboards.panel import Page, Panel, Variable
from dashboards.sql import EDGE, SITE, SITE_VARIABLE
from pipeline.records import BAD_POWER

_REASONS: Final = {
    0x1: "idle", 0x2: "application clocks", 0x4: "power cap", 0x8: "hardware slowdown",
    0x10: "sync boost", 0x20: "software thermal", 0x40: "hardware thermal", 0x80: "power brake",
    0x100: "display",
}  # fmt: skip
"""Bits of throttle_reasons."""
_RAW: Final = "Raw rows (gpu_samples): a mean of each step, weighted by time."
_RAW_OR_MINUTES: Final = (
    f"Raw rows (gpu_samples) up to {RAW_S // 3600} h of range, minutes (gpu_minutes) beyond: a mean"
    " of each step, weighted by time."
)


def _lines(
    title: str, sql: str, meaning: str, unit: str, top: float | None = None, *, width: int = 8
) -> Panel:
    """A line for each GPU; `top`: the range of values is [0, top]."""
    return Panel(
        kind="timeseries",
        title=title,
        description=f"{meaning} No data: no rows in the range, or the GPU does not report it.",
        sql=sql,
        label="gpu",
        unit=unit,
        min=None if top is None else 0,
        max=top,
        width=width,
        height=7,
    )


NODE_VARIABLE: Final = Variable(
    name="node",
    label="Node",
    sql="SELECT DISTINCT node FROM inventory WHERE site_id = toUInt64OrZero(${site:singlequote}) ORDER BY node",
)
IDENTITY: Final = Panel(
    kind="table",
    title="Node",
    description=(
        "Where the node stands, what is in it, which driver and agent it runs: its newest"
        " inventory. No data: the node has no inventory."
    ),
    sql=f"""
SELECT node, rack, row, hall, pdu, uniqExact(uuid) AS gpus, any(model) AS model, driver_version,
    agent_version, source, min(from_ts) AS since
FROM inventory FINAL
WHERE {OF_NODE} AND from_ts = (SELECT max(from_ts) FROM inventory WHERE {OF_NODE})
GROUP BY node, rack, row, hall, pdu, driver_version, agent_version, source
""",
    width=14,
    height=4,
)
NOW: Final = Panel(
    kind="stat",
    title="Now",
    description=(
        f"GPUs of the inventory in force, how many of them sent a tick in the last {HEARD_S} s, and"
        " of those ticks (gpu_latest) the sum of power and the highest temperature. No data: the"
        " node has no inventory; power and temperature are absent where no GPU reports them."
    ),
    sql=f"""
SELECT count() AS gpus, countIf(heard) AS seen, sumIf(toFloat64(l.power), heard) AS gpus_w, maxIf(l.temp, heard) AS hottest_c
FROM
(
    SELECT DISTINCT gpu_id FROM inventory FINAL
    WHERE {OF_NODE} AND from_ts <= now64(3) AND (until_ts IS NULL OR until_ts > now64(3))
) AS p
ANY LEFT JOIN
(
    SELECT gpu, argMax(tuple(if(bitAnd(flags, {BAD_POWER}) = 0, power_w, NULL)), ts).1 AS power,
        argMax(tuple(temp_gpu_c), ts).1 AS temp, 1 AS heard
    FROM gpu_latest WHERE {IN_NODE} AND ts > now64(3) - INTERVAL {HEARD_S} SECOND GROUP BY gpu
) AS l ON p.gpu_id = l.gpu
HAVING gpus > 0
""",
    columns={"gpus_w": "watt", "hottest_c": "celsius"},
    width=10,
    height=4,
)
_NAMED_REASONS: Final = (
    "arrayStringConcat(arrayFilter((name, bit) -> bitAnd(ifNull(l.reasons, 0), bit) != 0,"
    f" {list(_REASONS.values())}, {list(_REASONS)}), ', ')"
)
SIDE_BY_SIDE: Final = Panel(
    kind="table",
    title="GPUs side by side",
    description=(
        "Each GPU's newest tick (gpu_latest), however old: see its time. The holder is the live"
        " stamp, which is provisional; statements go by allocations. Empty: not reported, or never"
        " heard. No data: the node had no GPUs in the range."
    ),
    sql=f"""
SELECT p.gpu_index AS gpu, if(l.gpu = 0, NULL, l.newest) AS newest, toFloat64(l.power) AS power_w, l.temp AS temp_c,
    l.util AS util_pct, l.memory AS mem_used_mib, {_NAMED_REASONS} AS clocks_limited_by,
    if(l.gpu = 0, '', ifNull(t.name, toString(l.tenant))) AS tenant, ifNull(w.name, '') AS workload,
    i.uuid AS uuid, i.model AS model, toString(l.tenant) AS tenant_id, toString(l.workload) AS workload_id
FROM ({GPUS}) AS p
ANY LEFT JOIN
(
    SELECT gpu, max(ts) AS newest, argMax(tenant, ts) AS tenant, argMax(workload, ts) AS workload,
        argMax(tuple(power_w), ts).1 AS power, argMax(tuple(temp_gpu_c), ts).1 AS temp,
        argMax(tuple(util_gpu_pct), ts).1 AS util, argMax(tuple(mem_used_mib), ts).1 AS memory,
        argMax(tuple(throttle_reasons), ts).1 AS reasons
    FROM gpu_latest WHERE {IN_NODE} GROUP BY gpu
) AS l ON p.gpu_id = l.gpu
ANY LEFT JOIN (SELECT gpu_id, uuid, model FROM inventory WHERE {OF_NODE}) AS i ON p.gpu_id = i.gpu_id
ANY LEFT JOIN (SELECT id, toNullable(name) AS name FROM tenants) AS t ON l.tenant = t.id
ANY LEFT JOIN
(
    SELECT id, toNullable(name) AS name FROM workloads
    WHERE id IN (SELECT workload FROM gpu_latest WHERE {IN_NODE})
) AS w ON l.workload = w.id
ORDER BY p.gpu_index
""",
    columns={
        "power_w": "watt", "temp_c": "celsius", "util_pct": "percent", "mem_used_mib": "mbytes",
    },
    links={"tenant": TENANT_LINK, "workload": WORKLOAD_LINK},
    hidden=("tenant_id", "workload_id"),
    width=24,
    height=9,
)  # fmt: skip
METER: Final = Panel(
    kind="timeseries",
    title="The node's meter and its GPUs",
    description=(
        "Mean watts, minute by minute or longer, of the node's own meter (meters), of its GPUs"
        f" together (gpu_samples up to {RAW_S // 3600} h of range, gpu_minutes beyond), and what is"
        " left: processors, fans, losses. The sum is never scaled up for missing GPUs; the residual"
        " is only drawn where 99 % of all GPUs' time is measured. The newest step is that of the"
        " last whole minute. No data: no rows; no meter line: the node has no meter."
    ),
    sql=f"""
WITH toStartOfMinute({EDGE}) AS edge
SELECT time, meter_w, gpus_w, if(measured_ms >= 990 * step_s * (SELECT count() FROM ({GPUS})), meter_w - gpus_w, NULL) AS residual_w
FROM
(
    SELECT time, toInt64(least(toUnixTimestamp(time + {MINUTES_STEP}), toUnixTimestamp(edge))) - toUnixTimestamp(time) AS step_s,
        max(metered_w) AS meter_w, sum(ms) AS measured_ms, if(measured_ms = 0, NULL, sum(w_ms) / 1000 / step_s) AS gpus_w
    FROM
    (
        SELECT toStartOfInterval(toDateTime(ts), {MINUTES_STEP}) AS time, toFloat64(sum(power_w * dt_ms)) AS w_ms,
            sum(dt_ms) AS ms, CAST(NULL, 'Nullable(Float64)') AS metered_w
        FROM gpu_samples
        WHERE {HERE} AND {SHORT} AND ts >= toStartOfInterval($__fromTime, {MINUTES_STEP}) AND ts < edge
            AND power_w IS NOT NULL AND bitAnd(flags, {BAD_POWER}) = 0
        GROUP BY time
        UNION ALL
        SELECT toStartOfInterval(ts, {MINUTES_STEP}) AS time, toFloat64(sum(power_w_ms)), sum(power_w_dt_ms), NULL
        FROM gpu_minutes FINAL
        WHERE {IN_NODE} AND NOT ({SHORT}) AND ts >= toStartOfInterval($__fromTime, {MINUTES_STEP}) AND ts < edge
        GROUP BY time
        UNION ALL
        SELECT toStartOfInterval(toDateTime(ts), {MINUTES_STEP}) AS time, 0, 0, toFloat64(avg(watts))
        FROM meters FINAL
        WHERE {SITE} AND kind = 'node' AND meter = ${{node:singlequote}}
            AND ts >= toStartOfInterval($__fromTime, {MINUTES_STEP}) AND ts < edge
        GROUP BY time
    )
    GROUP BY time
)
ORDER BY time
""",
    unit="watt",
    width=16,
    height=9,
)
ENERGY: Final = Panel(
    kind="bargauge",
    title="Energy over the range",
    description=(
        "Energy of each GPU that was measured within the range: raw rows, or minutes where it is"
        f" longer than {RAW_S // 3600} h. Energy over gaps is not in it. No data: no rows, or"
        " energy is not reported."
    ),
    sql=f"""
SELECT concat('GPU ', toString(gpu_index)) AS gpu, toFloat64(s.joules) AS energy_j
FROM
(
    SELECT gpu AS id, sum(energy_j) AS joules, count(energy_j) AS known FROM gpu_samples
    WHERE {HERE} AND {SHORT} AND $__timeFilter_ms(ts) GROUP BY id
    UNION ALL
    SELECT gpu, sum(energy_j), countIf(energy_j != 0 OR energy_counter_last_j IS NOT NULL) FROM gpu_minutes FINAL
    WHERE {IN_NODE} AND NOT ({SHORT}) AND $__timeFilter(ts) GROUP BY gpu
) AS s
INNER JOIN ({GPUS}) AS p ON s.id = p.gpu_id
WHERE known > 0
ORDER BY gpu_index
""",
    unit="joule",
    width=8,
    height=9,
    min=0,
)
_CAUSES: Final = ("power_cap", "sw_thermal", "hw_thermal", "power_brake")
_SLOWED: Final = ", ".join(f"toFloat64(throttle_{c}_ms) AS {c}" for c in _CAUSES)
THROTTLING: Final = Panel(
    kind="timeseries",
    title="GPU time slowed, by cause",
    description=(
        "Share of the GPUs' measured time in which clocks were held back by the power cap, by"
        " software or hardware thermal protection, or by the power brake. Raw rows, or minutes"
        f" beyond {RAW_S // 3600} h of range. Causes overlap; a GPU that does not report adds"
        " nothing. No data: no rows."
    ),
    sql=f"""
SELECT time, {", ".join(f"100 * sum({c}) / sum(dt_ms) AS {c}" for c in _CAUSES)}
FROM
(
    SELECT $__timeInterval(ts) AS time, dt_ms, {_SLOWED}
    FROM gpu_samples WHERE {HERE} AND {SHORT} AND $__timeFilter_ms(ts)
    UNION ALL
    SELECT toStartOfInterval(ts, {MINUTES_STEP}) AS time, dt_ms, {_SLOWED}
    FROM gpu_minutes FINAL WHERE {IN_NODE} AND NOT ({SHORT}) AND $__timeFilter(ts)
)
GROUP BY time
ORDER BY time
""",
    unit="percent",
    min=0,
    width=8,
    height=7,
)
_POWER: Final = _lines("Power", gauge_or_minutes("power_w"), _RAW_OR_MINUTES, "watt")
_UTILISATION: Final = _lines(
    "Utilisation", gauge_or_minutes("util_gpu_pct"),
    f"Time with at least one kernel running. {_RAW_OR_MINUTES}", "percent", 100,
)  # fmt: skip
_HEAT: Final = (
    _lines("GPU temperature", gauge_or_minutes("temp_gpu_c"), _RAW_OR_MINUTES, "celsius"),
    _lines("Memory temperature", gauge("temp_mem_c"), _RAW, "celsius"),
    _lines("Thermal margin", gauge("temp_margin_c"), f"To the nearest slowdown. {_RAW}", "celsius"),
)
_ACTIVITY: Final = tuple(
    _lines(title, gauge(metric), f"{meaning} {_RAW}", "percent", 100)
    for title, metric, meaning in (
        ("SM activity", "sm_active_pct", "Multiprocessors with work."),
        ("Tensor activity", "tensor_active_pct", "Time in which tensor cores work."),
        ("DRAM activity", "dram_active_pct", "Memory bandwidth in use."),
    )
)
_CLOCKS: Final = (
    _lines("Multiprocessor clock", gauge("clock_sm_mhz"), f"In MHz. {_RAW}", "rotmhz"),
    _lines("Memory clock", gauge("clock_mem_mhz"), f"In MHz. {_RAW}", "rotmhz"),
    _lines("Memory used", gauge("mem_used_mib"), _RAW, "mbytes"),
)
_TRAFFIC: Final = tuple(
    _lines(title, rate(metric), "Raw rows (gpu_samples), per measured second.", "MiBs", width=6)
    for title, metric in (
        ("PCIe sent", "pcie_tx_mib"),
        ("PCIe received", "pcie_rx_mib"),
        ("NVLink sent", "nvlink_tx_mib"),
        ("NVLink received", "nvlink_rx_mib"),
    )
)

PAGES: Final = (
    Page(
        uid="megawatch-node",
        title="Node and GPU",
        answers="Everything of one node: its GPUs side by side, down to raw seconds, and who holds them.",
        variables=(SITE_VARIABLE, NODE_VARIABLE),
        annotations=(ALERTS, DEPLOYS),
        rows=(
            (IDENTITY, NOW),
            (SIDE_BY_SIDE,),
            (METER, ENERGY),
            (_POWER, _UTILISATION, THROTTLING),
            _HEAT,
            _ACTIVITY,
            _CLOCKS,
            _TRAFFIC,
            (HEALTH,),
            (HOLDERS, EVENTS),
            (COVERAGE, GAPS),
        ),
        since="now-15m",
    ),
)
