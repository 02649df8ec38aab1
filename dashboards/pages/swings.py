"""What moves a site's power: panels of the page Site power."""

from typing import Final

from dashboards.panel import Panel
from dashboards.sql import LIVE, MEASURED_STEP_EDGE, NOW, SITE, TENANT_LINK, tenant_name
from pipeline.records import BAD_POWER

_WINDOWS: Final = (1, 5, 60)
"""Seconds over which ramps are shown."""


def _ramp(seconds: int) -> str:
    """MW/s since `seconds` before, where both were measured alike."""
    before = f"OVER (ORDER BY s RANGE BETWEEN {seconds} PRECEDING AND {seconds} PRECEDING)"
    return f"""if(count() {before} = 1
        AND abs(measured - any(measured) {before}) <= 0.01 * measured,
        (watts - any(watts) {before}) / {seconds} / 1000000, NULL) AS ramp_{seconds}"""


RAMP: Final = Panel(
    kind="timeseries",
    title="Ramp",
    description=f"""How fast the power changes over 1, 5 and 60 s: of each step the steepest, signed.
Only complete seconds are compared, and only if their measured GPU-time differs by at most 1 %:
GPUs that fall silent are no ramp (see Coverage). In steps of a minute and more, minutes are compared
and only 60 s is shown. {LIVE} No data: no two such seconds lie in the range.""",
    sql=f"""
WITH {MEASURED_STEP_EDGE} AS edge,
per AS
(
    SELECT toUnixTimestamp(ts) AS s, toFloat64(sum(power_w_ms)) / 1000 AS watts,
        toFloat64(sum(power_w_dt_ms)) AS measured
    FROM power_seconds
    WHERE $__interval_s < 60 AND {SITE} AND ts >= $__fromTime - INTERVAL 1 MINUTE AND ts < edge
    GROUP BY ts
    UNION ALL
    SELECT toUnixTimestamp(ts) AS s, toFloat64(sum(power_w_ms)) / 60000 AS watts,
        toFloat64(sum(power_w_dt_ms)) AS measured
    FROM tenant_minutes
    WHERE $__interval_s >= 60 AND {SITE} AND ts >= $__fromTime - INTERVAL 1 MINUTE
        AND ts < toStartOfMinute(edge)
    GROUP BY ts
),
ramps AS
(
    SELECT s, {", ".join(_ramp(seconds) for seconds in _WINDOWS)}
    FROM per
)
SELECT $__timeInterval(s) AS time,
    argMax(ramp_1, abs(ramp_1)) AS `over 1 s`, argMax(ramp_5, abs(ramp_5)) AS `over 5 s`,
    argMax(ramp_60, abs(ramp_60)) AS `over 60 s`
FROM ramps
WHERE s >= toUnixTimestamp($__fromTime)
GROUP BY time
HAVING isNotNull(`over 1 s`) OR isNotNull(`over 5 s`) OR isNotNull(`over 60 s`)
ORDER BY time
""",
    unit="MW/s",
)

_CHANGE: Final = """toFloat64(sum(if(ts < second, power_w_ms, 0))) / 1000 AS before,
        toFloat64(sum(if(ts = second, power_w_ms, 0))) / 1000 AS now, now - before AS change,
        sum(if(ts < second, power_w_dt_ms, 0)) / 1000 AS gpus_before,
        sum(if(ts = second, power_w_dt_ms, 0)) / 1000 AS gpus_now"""
_MOVED: Final = "before, now, change, gpus_before, gpus_now"

MOVERS: Final = Panel(
    kind="table",
    title="Who moved the power in the last 60 s",
    description=f"""Each tenant's watts in the last complete second and in the one 60 s before it; the
changes add up to the first row, the site's. GPUs are those that were measured: if they changed,
part of the change is not known. {LIVE} No data: one of the two seconds has no rows.""",
    sql=f"""
WITH {NOW} AS second
SELECT tenant_name AS tenant, {_MOVED}, toString(site) AS site_id, toString(id) AS tenant_id
FROM
(
    SELECT site, p.tenant AS id, any({tenant_name("p.tenant")}) AS tenant_name, 0 AS total,
        {_CHANGE}
    FROM power_seconds AS p LEFT JOIN tenants AS t ON t.id = p.tenant
    WHERE {SITE} AND ts IN (second, second - INTERVAL 1 MINUTE)
    GROUP BY site, p.tenant
    UNION ALL
    SELECT site, 0 AS id, '(site)' AS tenant_name, 1 AS total,
        {_CHANGE}
    FROM power_seconds
    WHERE {SITE} AND ts IN (second, second - INTERVAL 1 MINUTE)
    GROUP BY site
)
WHERE 2 = (SELECT uniqExact(ts) FROM power_seconds
    WHERE {SITE} AND ts IN (second, second - INTERVAL 1 MINUTE))
ORDER BY total DESC, abs(change) DESC, id
LIMIT 51
""",
    columns={"before": "watt", "now": "watt", "change": "watt"},
    links={"tenant": TENANT_LINK},
    hidden=("site_id", "tenant_id"),
    width=12,
    height=9,
)

WORKLOAD_MOVERS: Final = Panel(
    kind="table",
    title="What ran on the GPUs that moved it",
    description=f"""The change of each GPU over the same 60 s, under the workload that it has now (or
had last): a job that began has the rise of its GPUs, those of one that ended run nothing. Changes
add up to the first row, the site's. {LIVE} Raw rows of two seconds. No data: one of the two seconds
has no rows.""",
    sql=f"""
WITH {NOW} AS second, second - INTERVAL 1 MINUTE AS earlier,
per_gpu AS
(
    SELECT gpu, argMax(s.tenant, s.ts) AS tenant, argMax(s.workload, s.ts) AS workload,
        sum(if(s.ts < second, toFloat64(assumeNotNull(power_w)) * dt_ms, 0)) / 1000 AS before,
        sum(if(s.ts >= second, toFloat64(assumeNotNull(power_w)) * dt_ms, 0)) / 1000 AS now
    FROM gpu_samples AS s
    WHERE {SITE}
        AND s.ts >= toDateTime64(earlier, 3) AND s.ts < toDateTime64(second, 3) + INTERVAL 1 SECOND
        AND (s.ts < toDateTime64(earlier, 3) + INTERVAL 1 SECOND OR s.ts >= toDateTime64(second, 3))
        AND isNotNull(power_w) AND bitAnd(flags, {BAD_POWER}) = 0
    GROUP BY gpu
),
ranked AS
(
    SELECT tenant, workload, count() AS gpus, sum(before) AS was, sum(now) AS is,
        row_number() OVER (ORDER BY abs(is - was) DESC, workload, tenant) AS place
    FROM per_gpu GROUP BY tenant, workload
)
SELECT if(place = 0, '(site)', if(place > 15, '(others)', any({tenant_name("tenant_id")}))) AS tenant,
    if(place = 0, '', if(place > 15, '', any(w.workload_name))) AS workload,
    sum(gpus) AS gpus, sum(was) AS before, sum(is) AS now, now - before AS change
FROM
(
    SELECT tenant AS tenant_id, workload AS workload_id, gpus, was, is,
        arrayJoin([0, least(place, 16)]) AS place
    FROM ranked
) AS r
LEFT JOIN tenants AS t ON t.id = r.tenant_id
LEFT JOIN
(
    SELECT workload_id AS id, any(workload) AS workload_name FROM allocations
    WHERE site_id = toUInt64OrZero(${{site:singlequote}}) AND workload_id != 0
        AND (until_ts IS NULL OR until_ts > toDateTime64(earlier, 3))
    GROUP BY workload_id
) AS w ON w.id = r.workload_id
WHERE 2 = (SELECT uniqExact(ts) FROM power_seconds
    WHERE {SITE} AND ts IN (second, second - INTERVAL 1 MINUTE))
GROUP BY place
ORDER BY place
""",
    columns={"before": "watt", "now": "watt", "change": "watt"},
    width=12,
    height=9,
)
