"""What a tenant has, uses and owes: what the operator sees of it, and the tenant itself.

Reads only what `pipeline/rbac.py` shows a tenant, under the same names.
"""

from typing import Final

from dashboards.panel import Page, Panel, Variable
from dashboards.sql import (
    LIVE,
    MEASURED_STEP_EDGE,
    SITE,
    SITE_VARIABLE,
    STEP_S,
    TENANT,
    asserted,
    contracts,
    power,
)

_MINE: Final = f"{SITE} AND {TENANT}"
_TERMS: Final = "tenant_id = toUInt64OrNull(${tenant:singlequote})"
_NOW: Final = f"""(SELECT toNullable(max(ts)) FROM power_seconds WHERE {_MINE}
    AND ts >= $__toTime - INTERVAL 1 MINUTE AND ts < least($__toTime, (SELECT until FROM settled))
    HAVING count() > 0)"""
_MINUTE: Final = f"""(SELECT toNullable(max(ts)) FROM tenant_minutes WHERE {_MINE}
    AND ts >= $__toTime - INTERVAL 3 MINUTE
    AND ts + INTERVAL 1 MINUTE <= least($__toTime, (SELECT until FROM settled))
    HAVING count() > 0)"""
_CLOSED: Final = "From the ledger: closed quarters alone."

_ZONE: Final = f"""ifNull((SELECT toNullable(timezone) FROM ({asserted(_TERMS)})
    ORDER BY from_ts DESC LIMIT 1), 'UTC') AS zone"""
"""WITH ...: of the tenant's newest contract."""
_MONTH: Final = f"""
{_ZONE},
closed AS
(
    SELECT * FROM ledger_use
    WHERE {_MINE} AND ts >= toDateTime(toStartOfMonth($__toTime, zone), zone)
        AND ts + INTERVAL 15 MINUTE <= $__toTime
),
period AS
(
    SELECT toDateTime(toStartOfMonth($__toTime, zone), zone) AS since,
        (SELECT max(ts) + INTERVAL 15 MINUTE FROM closed) AS until
),
contract AS
(
    SELECT * FROM ({asserted(_TERMS)})
    WHERE from_ts < (SELECT until FROM period)
        AND (until_ts IS NULL OR until_ts > greatest(from_ts, toDateTime64((SELECT since FROM period), 3)))
    ORDER BY from_ts DESC, selectors LIMIT 1
),
sums AS
(
    SELECT count() AS quarters, sum(allocated_ms) AS allocated, sum(measured_ms) AS measured,
        sum(active_ms) AS active, sum(util_gpu_pct_ms) AS util, sum(util_gpu_pct_dt_ms) AS known,
        sum(energy_j) + sum(bridged_j) AS joules, sum(bridged_j) AS bridged,
        sum(throttle_power_cap_ms) AS power_cap, sum(throttle_sw_thermal_ms) AS sw_thermal,
        sum(throttle_hw_thermal_ms) AS hw_thermal, sum(throttle_power_brake_ms) AS power_brake
    FROM closed
)
"""
"""The calendar month of the range's end, up to its last closed quarter, as `megawatch usage` has it."""
_CAUSES: Final = (
    ("power_cap", "power cap"), ("sw_thermal", "software thermal"),
    ("hw_thermal", "hardware thermal"), ("power_brake", "power brake"),
)  # fmt: skip
_UTILIZATIONS: Final = ", ".join(
    f"toFloat64(sum({name}_ms)) / nullIf(sum({name}_dt_ms), 0) AS `{title}`"
    for name, title in (
        ("util_gpu_pct", "GPU"),
        ("sm_active_pct", "multiprocessors"),
        ("tensor_active_pct", "tensor cores"),
    )
)


def _money(amount: str, price: str) -> str:
    """GPU-milliseconds or joules at a price per GPU-hour or kWh: both are 3.6 million to one."""
    whole = f"toDecimal256({amount}, 3) * {price}"
    return f"toFloat64(roundBankers(divideDecimal({whole}, toDecimal256(3600000, 0), 12), 2))"


GPUS_NOW: Final = Panel(
    kind="stat",
    title="GPUs now",
    description=f"""Leased: by the contracts in force. Measured: GPUs held that were measured in the last
complete second. Active: with kernels running, mean of the last complete minute. {LIVE} No data:
nothing was measured in the last minute of the range; an empty figure: no contract, or no utilisation
is reported.""",
    sql=f"""
WITH {_NOW} AS second, {_MINUTE} AS minute
SELECT
    (SELECT toNullable(sum(contracted_gpus)) FROM ({contracts("second", _TERMS)}) HAVING count() > 0)
        AS leased,
    (SELECT sum(power_w_dt_ms) / 1000 FROM power_seconds WHERE {_MINE} AND ts = second) AS measured,
    (SELECT toNullable(sum(active_ms) / 60000) FROM tenant_minutes WHERE {_MINE} AND ts = minute
        HAVING sum(util_gpu_pct_dt_ms) > 0) AS active,
    if(leased > 0, measured / leased, NULL) AS `measured of leased`
WHERE second IS NOT NULL
""",
    columns={"measured of leased": "percentunit"},
    width=8,
    height=5,
)

POWER_NOW: Final = Panel(
    kind="stat",
    title="Power now",
    description=f"""Watts of the last complete second, beside what the contracts in force agree on.
{LIVE} No data: nothing was measured in the last minute of the range; empty: no contract.""",
    sql=f"""
WITH {_NOW} AS second
SELECT toFloat64(sum(power_w_ms)) / 1000 AS power,
    (SELECT toNullable(toFloat64(sum(contracted_kw)) * 1000) FROM ({contracts("second", _TERMS)})
        HAVING count() > 0) AS contracted,
    power / nullIf(contracted, 0) AS used
FROM power_seconds WHERE {_MINE} AND ts = second
HAVING count() > 0
""",
    unit="watt",
    columns={"used": "percentunit"},
    width=8,
    height=5,
)

UTILIZATION_NOW: Final = Panel(
    kind="stat",
    title="Utilisation now",
    description=f"""Means of the last complete minute over the GPUs that report them: time with at least
one kernel running, multiprocessors with work, tensor cores active (both Hopper and newer). {LIVE} No
data: no minute is complete among the last three of the range; empty: not reported.""",
    sql=f"""
WITH {_MINUTE} AS minute
SELECT {_UTILIZATIONS}
FROM tenant_minutes WHERE {_MINE} AND ts = minute
HAVING count() > 0
""",
    unit="percent",
    width=8,
    height=5,
)

_SO_FAR: Final = """The calendar month of the range's end (in the time zone of the newest contract, else
UTC), up to its last closed quarter, which is shown."""

MONTH_USE: Final = Panel(
    kind="stat",
    title="Use this month",
    description=f"""GPU-hours held, energy of the GPUs (measured, and bridged over gaps by counters), and the
measured share of the GPU-time held. {_SO_FAR} {_CLOSED} No data: no quarter of the month is closed.""",
    sql=f"""
WITH {_MONTH}
SELECT allocated / 3600000 AS `GPU-hours`,
    if(measured > 0 OR bridged > 0, toFloat64(joules) / 3600000, NULL) AS energy,
    if(allocated > 0, least(1, measured / allocated), NULL) AS coverage,
    toUnixTimestamp((SELECT until FROM period)) * 1000 AS until
FROM sums WHERE quarters > 0
""",
    columns={"energy": "kwatth", "coverage": "percentunit", "until": "dateTimeAsIso"},
    width=6,
    height=6,
)

MONTH_COST: Final = Panel(
    kind="stat",
    title="Cost this month",
    description=f"""GPU-hours held and kWh of the GPUs, times the prices of the contract that is in force at
the end, for the whole month so far, as `megawatch usage` of the same period has it: where contracts
followed each other within the month, the last one's prices hold for all of it. {_SO_FAR} {_CLOSED} No
data: no contract, or no quarter of the month is closed.""",
    sql=f"""
WITH {_MONTH}
SELECT {_money("allocated", "price_per_gpu_hour")} AS `of GPU-hours`,
    {_money("joules", "price_per_kwh")} AS `of energy`,
    round(`of GPU-hours` + `of energy`, 2) AS cost, currency,
    toUnixTimestamp((SELECT until FROM period)) * 1000 AS until
FROM sums CROSS JOIN contract WHERE quarters > 0
""",
    decimals=2,
    columns={"until": "dateTimeAsIso"},
    width=6,
    height=6,
)

MONTH_DELIVERED: Final = Panel(
    kind="stat",
    title="Delivered this month",
    description=f"""GPUs that were there (mean of measured GPU-time) against those of the contract in force
at the end, and the share of the contracted GPU-time against what was promised. {_SO_FAR} {_CLOSED} No
data: no contract, or no quarter of the month is closed.""",
    sql=f"""
WITH {_MONTH}
SELECT measured / lasted_ms AS delivered, contracted_gpus AS contracted,
    if(contracted_gpus > 0, 100 * least(1, measured / (contracted_gpus * lasted_ms)), NULL)
        AS availability,
    toFloat64(availability_pct) AS promised
FROM
(
    SELECT *, toUnixTimestamp64Milli(least(toDateTime64(until, 3), ifNull(until_ts, toDateTime64(until, 3))))
        - toUnixTimestamp64Milli(greatest(toDateTime64(since, 3), from_ts)) AS lasted_ms
    FROM sums CROSS JOIN contract CROSS JOIN period WHERE quarters > 0
)
""",
    columns={"availability": "percent", "promised": "percent"},
    width=6,
    height=6,
)

MONTH_LOST: Final = Panel(
    kind="stat",
    title="Idle and slowed this month",
    description=f"""GPU-hours held without a kernel running, and GPU-hours in which clocks were held down,
by cause (causes may overlap; what a GPU does not report counts as not slowed). {_SO_FAR} {_CLOSED} No
data: no quarter of the month is closed; no idle time: no utilisation is reported.""",
    sql=f"""
WITH {_MONTH}
SELECT if(known > 0, (known - active) / 3600000, NULL) AS idle,
    {", ".join(f"{name} / 3600000 AS `{title}`" for name, title in _CAUSES)}
FROM sums WHERE quarters > 0 AND measured > 0
""",
    unit="suffix:h",
    decimals=1,
    width=6,
    height=6,
)

POWER: Final = Panel(
    kind="timeseries",
    title="Power",
    description=f"""Mean watts of each step, and what the contracts in force at the range's end agree on.
{LIVE} No data: nothing was measured in the range.""",
    sql=f"""
WITH {MEASURED_STEP_EDGE} AS edge,
    (SELECT toNullable(toFloat64(sum(contracted_kw)) * 1000) FROM ({contracts("edge", _TERMS)})
        HAVING count() > 0) AS agreed
SELECT $__timeInterval(ts) AS time, toFloat64(sum(power_w_ms)) / 1000 / {STEP_S} AS power,
    agreed AS contracted
FROM ({power(_MINE)})
GROUP BY time
ORDER BY time
""",
    unit="watt",
    min=0,
)

_MINUTES: Final = f"""FROM tenant_minutes
WHERE {_MINE} AND ts >= toStartOfMinute($__fromTime)
    AND ts + INTERVAL 1 MINUTE <= least($__toTime, (SELECT until FROM settled))
GROUP BY toStartOfInterval(ts, toIntervalSecond(greatest(60, $__interval_s))) AS time"""
"""Whole minutes, by steps of a minute or more."""

UTILIZATION: Final = Panel(
    kind="timeseries",
    title="Utilisation",
    description=f"""Means over the GPUs that report them: time with at least one kernel running,
multiprocessors with work, tensor cores active (both Hopper and newer). {LIVE} No data: no whole minute
lies in the range, or none is reported.""",
    sql=f"""
SELECT time, {_UTILIZATIONS}
{_MINUTES}
ORDER BY time
""",
    unit="percent",
    min=0,
    max=100,
)

SLOWED: Final = Panel(
    kind="timeseries",
    title="Slowed, by cause",
    description=f"""The share of the measured GPU-time in which clocks were held down (causes may overlap;
what a GPU does not report counts as not slowed). {LIVE} No data: no whole minute lies in the range.""",
    sql=f"""
SELECT time, {", ".join(f"sum(throttle_{name}_ms) / sum(dt_ms) AS `{title}`" for name, title in _CAUSES)}
{_MINUTES}
HAVING sum(dt_ms) > 0
ORDER BY time
""",
    unit="percentunit",
    min=0,
)


def _bucket(ts: str) -> str:
    """A quarter of an hour, or a day of the contract's time zone where the range is long."""
    return f"""if($__toTime <= $__fromTime + INTERVAL 2 DAY, toStartOfFifteenMinutes({ts}),
        toDateTime(toStartOfDay({ts}, zone), 'UTC'))"""


def _by_bucket(provisional: str, closed: str) -> str:
    """What the minutes have and what the ledger has, by bucket; a bucket without rows has neither."""
    since = _bucket("toDateTime($__fromTime)")
    return f"""
WITH {_ZONE}
SELECT time, max(live) AS provisional, max(sure) AS closed
FROM
(
    SELECT {_bucket("ts")} AS time, toNullable({provisional}) AS live, NULL AS sure
    FROM tenant_minutes WHERE {_MINE} AND ts >= {since} AND ts < $__toTime GROUP BY time
    UNION ALL
    SELECT {_bucket("ts")} AS time, NULL, {closed}
    FROM ledger_use WHERE {_MINE} AND ts >= {since} AND ts < $__toTime GROUP BY time
)
GROUP BY time
ORDER BY time
"""


_BUCKETS: Final = """By quarter of an hour, by day where the range is longer than two; the last one still
grows. Provisional: live, by the stamp of rows. Closed: from the ledger, which is what is paid;"""

ENERGY: Final = Panel(
    kind="timeseries",
    title="Energy, provisional and closed",
    description=f"""Energy of the GPUs. {_BUCKETS} it also has what counters tell of gaps. No data: nothing was
measured, or no quarter is closed.""",
    sql=_by_bucket(
        "toFloat64(sum(energy_j)) / 3600000", "toFloat64(sum(energy_j) + sum(bridged_j)) / 3600000"
    ),
    unit="kwatth",
    min=0,
)

GPU_HOURS: Final = Panel(
    kind="timeseries",
    title="GPU-hours, provisional and closed",
    description=f"""Provisional: measured GPU-hours. {_BUCKETS} GPU-hours held, measured or not. No data:
nothing was measured, or no quarter is closed.""",
    sql=_by_bucket("sum(dt_ms) / 3600000", "sum(allocated_ms) / 3600000"),
    unit="suffix:h",
    min=0,
)

DELIVERED: Final = Panel(
    kind="timeseries",
    title="GPUs delivered",
    description=f"""GPUs held and GPUs measured, means of quarters or longer steps, and those that the
contracts in force at the range's end lease. {_CLOSED} No data: no quarter of the range is closed.""",
    sql=f"""
WITH (SELECT toNullable(sum(contracted_gpus)) FROM ({contracts("$__toTime", _TERMS)})
    HAVING count() > 0) AS leased
SELECT toStartOfInterval(ts, toIntervalSecond(greatest(900, $__interval_s))) AS time,
    sum(allocated_ms) / (900000 * uniqExact(ts)) AS held,
    sum(measured_ms) / (900000 * uniqExact(ts)) AS measured, leased AS contracted
FROM ledger_use
WHERE {_MINE} AND ts >= toStartOfFifteenMinutes($__fromTime) AND ts < $__toTime
GROUP BY time
ORDER BY time
""",
    min=0,
)

PAGES: Final = (
    Page(
        uid="megawatch-tenant",
        title="Tenant",
        answers="What a tenant holds, uses and owes, and what it was given of what it leases.",
        variables=(
            SITE_VARIABLE,
            Variable(
                name="tenant",
                label="Tenant",
                sql=f"""
SELECT toString(id), name FROM tenants
WHERE id > 1 AND (id IN (SELECT tenant FROM tenant_minutes WHERE {SITE})
    OR id IN (SELECT tenant_id FROM ({asserted()})))
ORDER BY name
""",
            ),
        ),
        rows=(
            (GPUS_NOW, POWER_NOW, UTILIZATION_NOW),
            (MONTH_USE, MONTH_COST, MONTH_DELIVERED, MONTH_LOST),
            (POWER, UTILIZATION),
            (ENERGY, GPU_HOURS),
            (DELIVERED, SLOWED),
        ),
        since="now-24h",
        refresh="1m",
    ),
)
