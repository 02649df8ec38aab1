"""Is the site well, and whose megawatts are they?"""

from typing import Final

from dashboards.annotations import ALERTS, ALLOCATIONS, DEPLOYS
from dashboards.pages.swings import MOVERS, RAMP, WORKLOAD_MOVERS
from dashboards.panel import Page, Panel
from dashboards.sql import (
    LIVE,
    MEASURED_EDGE,
    MEASURED_STEP_EDGE,
    NOW,
    SITE,
    SITE_VARIABLE,
    STEP_EDGE_BEYOND,
    STEP_S,
    TENANT_LINK,
    contracts,
    power,
    tenant_name,
)

_IN_FORCE: Final = contracts("second")
NOW_PANEL: Final = Panel(
    kind="stat",
    title="Power now",
    description=f"""Watts of the last complete second, and the measured share of the GPU-time that
the inventory expects of it. {LIVE} No data: nothing was measured in the last minute of the range;
no coverage: there is no inventory.""",
    sql=f"""
WITH {NOW} AS second,
(
    SELECT sum(delta * (1000 - greatest(0, toUnixTimestamp64Milli(at) - toUnixTimestamp(second) * 1000)))
    FROM expected_gpus WHERE {SITE} AND at < second + INTERVAL 1 SECOND
) AS expected_ms
SELECT toFloat64(sum(power_w_ms)) / 1000 AS power,
    if(expected_ms > 0, least(1, sum(power_w_dt_ms) / expected_ms), NULL) AS coverage
FROM power_seconds WHERE {SITE} AND ts = second
HAVING count() > 0
""",
    unit="watt",
    columns={"coverage": "percentunit"},
    width=8,
    height=5,
)

HEADROOM: Final = Panel(
    kind="stat",
    title="Headroom",
    description=f"""What the contracts in force agree on in kW, less the power now: negative if the
GPUs draw more. The contracts' sum is no limit of the grid or of the halls, which Megawatch does not
know. {LIVE} No data: no contract is in force, or nothing was measured in the last minute.""",
    sql=f"""
WITH {NOW} AS second,
    (SELECT toFloat64(sum(power_w_ms)) / 1000 FROM power_seconds WHERE {SITE} AND ts = second) AS watts
SELECT toFloat64(sum(contracted_kw)) * 1000 AS contracted, contracted - watts AS headroom,
    if(contracted > 0, watts / contracted, NULL) AS used
FROM ({_IN_FORCE})
HAVING count() > 0 AND second IS NOT NULL
""",
    unit="watt",
    columns={"used": "percentunit"},
    width=8,
    height=5,
)

PEAK: Final = Panel(
    kind="stat",
    title="Peak 15 minutes",
    description="""The highest mean power of the quarters of the clock that lie wholly in the range,
and when that one began. Live, by minutes; a statement's peak is from the ledger's energy. No data:
no whole quarter with rows lies in the range.""",
    sql=f"""
WITH {MEASURED_EDGE} AS edge
SELECT toFloat64(sum(power_w_ms)) / 900000 AS peak, toUnixTimestamp(quarter) * 1000 AS began
FROM tenant_minutes
WHERE {SITE} AND ts >= $__fromTime AND ts < edge
GROUP BY toStartOfFifteenMinutes(ts) AS quarter
HAVING quarter >= $__fromTime AND quarter + INTERVAL 15 MINUTE <= edge
ORDER BY peak DESC, began
LIMIT 1
""",
    unit="watt",
    columns={"began": "dateTimeAsIso"},
    width=8,
    height=5,
)

POWER_BY_TENANT: Final = Panel(
    kind="timeseries",
    title="Power by tenant",
    description=f"Mean watts of each step, as `megawatch power --by tenant`. {LIVE} "
    "No data: nothing was measured in the range.",
    sql=f"""
WITH {MEASURED_STEP_EDGE} AS edge
SELECT time, {tenant_name("p.tenant")} AS tenant_name, watts
FROM
(
    SELECT $__timeInterval(ts) AS time, tenant, toFloat64(sum(power_w_ms)) / 1000 / {STEP_S} AS watts
    FROM ({power(SITE)}) GROUP BY time, tenant
) AS p
LEFT JOIN tenants AS t ON t.id = p.tenant
ORDER BY time
""",
    unit="watt",
    min=0,
    label="tenant_name",
    stacked=True,
    width=16,
    height=10,
)

_STEP: Final = "greatest($__interval_s, 300)"

METERS: Final = Panel(
    kind="timeseries",
    title="GPUs and meters",
    description="""Means of five minutes or more. Site and hall meters: raw readings, shown where every
meter of its kind that read in the range has read. Node meters: means of closed quarters, from the
ledger. GPUs: live, by minutes. The residual is the site's meters (its halls' if it has none, else the
nodes') less the GPUs: hosts, network, cooling, losses. No data: there are no meters of that kind.""",
    sql=f"""
WITH {MEASURED_EDGE} AS edge,
readings AS
(
    SELECT kind, time, sum(mean) AS watts, count() AS meters
    FROM
    (
        SELECT toString(kind) AS kind, meter, avg(toFloat64(watts)) AS mean,
            toStartOfInterval(toDateTime(ts), toIntervalSecond({_STEP})) AS time
        FROM meters FINAL
        WHERE {SITE} AND kind IN ('site', 'hall') AND watts >= 0
            AND ts >= toDateTime64($__fromTime, 3) AND ts < toDateTime64(edge, 3)
        GROUP BY kind, meter, time
    )
    GROUP BY kind, time
),
whole AS
(
    SELECT kind, time, watts
    FROM (SELECT *, max(meters) OVER (PARTITION BY kind) AS there FROM readings)
    WHERE meters = there
),
quarters AS
(
    SELECT ts, toFloat64(argMax(meter_energy_j, version)) / 900 AS watts
    FROM ledger_closes
    WHERE {SITE} AND state = 'closed' AND ts >= toStartOfFifteenMinutes($__fromTime) AND ts < edge
    GROUP BY ts
    HAVING watts > 0
)
SELECT time, max(gpus) AS `GPUs`, max(nodes) AS `node meters`, max(halls) AS `hall meters`,
    max(sites) AS `site meters`,
    coalesce(`site meters`, `hall meters`, `node meters`) - `GPUs` AS residual
FROM
(
    SELECT toStartOfInterval(ts, toIntervalSecond({_STEP})) AS time,
        toNullable(toFloat64(sum(power_w_ms)) / 1000 / {_STEP}) AS gpus,
        NULL AS nodes, NULL AS halls, NULL AS sites
    FROM tenant_minutes
    WHERE {SITE} AND ts >= toStartOfInterval($__fromTime, toIntervalSecond({_STEP})) AND ts < edge
    GROUP BY time
    UNION ALL
    SELECT time, NULL, NULL, if(kind = 'hall', watts, NULL), if(kind = 'site', watts, NULL) FROM whole
    UNION ALL
    SELECT toStartOfInterval(ts + INTERVAL arrayJoin([0, 300, 600]) SECOND, toIntervalSecond({_STEP})),
        NULL, avg(watts), NULL, NULL
    FROM quarters GROUP BY 1
)
WHERE time >= $__fromTime AND time + toIntervalSecond({_STEP}) <= edge
GROUP BY time
ORDER BY time
""",
    unit="watt",
)

COVERAGE: Final = Panel(
    kind="timeseries",
    title="Coverage",
    description="""The measured share of the GPU-time that the inventory expects, as `megawatch power`
has it; 0 where GPUs are expected and none was measured. Live. No data: the inventory expects nothing
in the range.""",
    sql=f"""
WITH {STEP_EDGE_BEYOND} AS edge, toStartOfInterval($__fromTime, INTERVAL $__interval_s second) AS first,
changes AS
(
    SELECT toStartOfInterval(greatest(toDateTime(at), first), INTERVAL $__interval_s second) AS time,
        sum(delta) AS gpus, sum(delta * ((toUnixTimestamp(time) + {STEP_S}) * 1000
            - greatest(toUnixTimestamp64Milli(at), toUnixTimestamp(first) * 1000))) AS expected_ms
    FROM expected_gpus WHERE {SITE} AND at < edge GROUP BY time
),
steps AS
(
    SELECT time, sum(gpus) AS come, sum(expected_ms) AS within_ms, sum(measured_ms) AS measured
    FROM
    (
        SELECT time, gpus, expected_ms, 0 AS measured_ms FROM changes
        UNION ALL
        SELECT $__timeInterval(ts) AS time, 0, 0, sum(power_w_dt_ms) FROM ({power(SITE)}) GROUP BY time
        UNION ALL
        SELECT toDateTime(arrayJoin(range(toUnixTimestamp(first), toUnixTimestamp(edge),
            $__interval_s))) AS time, 0, 0, 0
    )
    GROUP BY time
),
expected AS
(
    SELECT time, measured, within_ms + {STEP_S} * 1000 * ifNull(sum(come) OVER
        (ORDER BY time ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING), 0) AS expected_ms
    FROM steps
)
SELECT time, least(1, measured / expected_ms) AS coverage
FROM expected
WHERE expected_ms > 0
ORDER BY time
""",
    unit="percentunit",
    min=0,
    max=1,
    width=8,
    height=10,
)

TENANTS: Final = Panel(
    kind="table",
    title="Tenants",
    description=f"""Who draws what in the last complete second, and what the contracts in force lease.
{LIVE} An empty cell: nothing was measured, or there is no contract. No data: nothing was measured in
the last minute of the range.""",
    sql=f"""
WITH {NOW} AS second
SELECT any({tenant_name("r.id")}) AS tenant, max(watts) AS power,
    power / sum(power) OVER () AS share, max(seen) AS gpus_measured, max(gpus) AS gpus_leased,
    max(kw) * 1000 AS contracted, power / nullIf(contracted, 0) AS used,
    ${{site:singlequote}} AS site_id, toString(r.id) AS tenant_id
FROM
(
    SELECT tenant AS id, toNullable(toFloat64(sum(power_w_ms)) / 1000) AS watts,
        toNullable(sum(power_w_dt_ms) / 1000) AS seen, NULL AS gpus, NULL AS kw
    FROM power_seconds WHERE {SITE} AND ts = second GROUP BY tenant
    UNION ALL
    SELECT tenant_id, NULL, NULL, sum(contracted_gpus), toFloat64(sum(contracted_kw))
    FROM ({_IN_FORCE}) GROUP BY tenant_id
) AS r
LEFT JOIN tenants AS t ON t.id = r.id
GROUP BY r.id
ORDER BY power DESC NULLS LAST, tenant
LIMIT 200
""",
    columns={"power": "watt", "share": "percentunit", "contracted": "watt", "used": "percentunit"},
    links={"tenant": TENANT_LINK},
    hidden=("site_id", "tenant_id"),
    width=24,
    height=8,
)

PAGES: Final = (
    Page(
        uid="megawatch-site",
        title="Site power",
        answers="How many megawatts the site draws now, whose they are, and what moved them.",
        variables=(SITE_VARIABLE,),
        annotations=(ALERTS, DEPLOYS, ALLOCATIONS),
        rows=(
            (NOW_PANEL, HEADROOM, PEAK),
            (POWER_BY_TENANT, COVERAGE),
            (MOVERS, WORKLOAD_MOVERS),
            (RAMP, METERS),
            (TENANTS,),
        ),
    ),
)
