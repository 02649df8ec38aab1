"""Pieces of SQL of the workload's page: the rows of one job's GPUs in its time.

Rows are read by the job's GPUs, which the allocations and the inventory give, and by its time; the
stamps of live rows are not asked. A query over a range reads the seconds while they are at most
ROWS of GPUs times seconds, else the minutes; what needs raw seconds reads the newest of them.
"""

from typing import Final

from dashboards.sql import EDGE
from pipeline.queries import UNION
from pipeline.records import BAD_POWER

ROWS: Final = 2_000_000
"""Raw rows that one panel may read."""
RHYTHM_S: Final = 600
LEAST_S: Final = 30
"""Raw seconds that are read of a job of any size."""
SITE: Final = "toUInt64OrZero(${site:singlequote})"
WORKLOAD: Final = "toUInt64OrZero(${workload:singlequote})"
FOREVER: Final = "toDateTime64('2105-01-01 00:00:00', 3, 'UTC')"
CAUSES: Final = ("power_cap", "sw_thermal", "hw_thermal", "power_brake")

HELD: Final = f"""held AS
(
    SELECT node_id, source, gpus, from_ts, argMax(ifNull(until_ts, {FOREVER}), asserted_at) AS until_ts,
        argMax(account, asserted_at) AS account, any(tenant) AS tenant, any(workload) AS workload
    FROM allocations
    WHERE site_id = {SITE} AND workload_id = {WORKLOAD}
    GROUP BY node_id, source, tenant_id, gpus, from_ts
),
claims AS
(
    SELECT i.gpu_id AS gpu, i.node AS node, i.gpu_index AS gpu_index,
        toUnixTimestamp64Milli(greatest(h.from_ts, i.from_ts)) AS since,
        toUnixTimestamp64Milli(least(h.until_ts, ifNull(i.until_ts, {FOREVER}))) AS until
    FROM held AS h
    INNER JOIN
    (
        SELECT * FROM inventory FINAL
        WHERE site_id = {SITE} AND node_id IN (SELECT node_id FROM held)
    ) AS i ON i.node_id = h.node_id
    WHERE (empty(h.gpus) OR has(h.gpus, i.gpu_index)) AND until > since
),
(
    SELECT groupArray((gpu, of_node, number, spans))
    FROM
    (
        SELECT gpu, any(node) AS of_node, any(gpu_index) AS number, {UNION} AS spans
        FROM claims
        GROUP BY gpu
    )
) AS everyone,
mine AS
(
    SELECT one.1 AS gpu, one.2 AS of_node, one.3 AS number, one.4 AS spans
    FROM (SELECT arrayJoin(assumeNotNull(everyone)) AS one)
)"""
"""The job's GPUs, each with the spans (ms) in which it was the job's. As a scalar they are found
once, while a table that WITH names is found again at each use."""

FIRST_MINUTE_S: Final = (
    "assumeNotNull((SELECT if(count() = 0, 4102444800, toInt64(toUnixTimestamp(min(ts))) + 60)"
    " FROM gpu_minutes))"
)
"""Raw rows are dropped sooner than minutes: where only minutes reach, they are read."""
JOB: Final = f"""{HELD},
{EDGE} AS edge,
toInt64(toUnixTimestamp($__fromTime)) AS from_s,
toInt64(assumeNotNull(toUnixTimestamp(edge))) AS edge_s,
(
    SELECT (toInt64(count()), min(spans[1].1), max(spans[-1].2), sum(arraySum(s -> greatest(0,
        least(s.2, edge_s * 1000) - greatest(s.1, from_s * 1000)), spans)) / 1000)
    FROM mine
) AS job,
$__interval_s < 60 AND assumeNotNull(job.4) <= {ROWS}
    AND assumeNotNull((SELECT toInt64(toUnixTimestamp(min(ts))) FROM gpu_samples))
        <= greatest(from_s, intDiv(assumeNotNull(job.2), 1000), {FIRST_MINUTE_S}) AS raw,
if(raw, 1, 60) AS unit_s,
greatest($__interval_s, unit_s) AS step_s,
greatest(intDiv(from_s, unit_s), intDiv(assumeNotNull(job.2) + unit_s * 1000 - 1, unit_s * 1000)) * unit_s AS low_s,
least(intDiv(edge_s, unit_s), intDiv(assumeNotNull(job.3), unit_s * 1000)) * unit_s AS high_s"""
"""Of the range: whether its seconds are read or its minutes, and where the job's part lies."""

GOOD: Final = f"isNotNull(power_w) AND bitAnd(flags, {BAD_POWER}) = 0"
THROTTLED: Final = ", ".join(f"throttle_{c}_ms" for c in CAUSES)
_PARTS: Final = ", ".join(
    f"toFloat64(throttle_{c}_ms) * dt_ms / s.dt_ms AS throttle_{c}_ms" for c in CAUSES
)
_WHOLE: Final = ", ".join(f"toFloat64(throttle_{c}_ms)" for c in CAUSES)
MEASURED: Final = f"""measured AS
(
    SELECT gpu, intDiv(at_s, step_s) * step_s AS step, at_s, product, product_ms, joules, dt_ms,
        {THROTTLED}
    FROM
    (
        SELECT gpu, toInt64(toUnixTimestamp(s.ts)) - piece AS at_s,
            toInt64(least(1000, s.dt_ms - 1000 * piece)) AS dt_ms,
            if({GOOD}, toFloat64(power_w) * dt_ms, 0) AS product, if({GOOD}, dt_ms, 0) AS product_ms,
            toFloat64(energy_j) * dt_ms / s.dt_ms AS joules,
            {_PARTS}
        FROM
        (
            SELECT *, arrayJoin(range(intDiv(dt_ms + 999, 1000))) AS piece FROM gpu_samples
            WHERE raw AND gpu IN (SELECT gpu FROM mine)
                AND ts >= toDateTime(low_s) AND ts < toDateTime(high_s)
        ) AS s
        WHERE at_s >= low_s
        UNION ALL
        SELECT gpu, toInt64(toUnixTimestamp(ts)) AS at_s, toInt64(dt_ms), toFloat64(power_w_ms),
            toInt64(power_w_dt_ms), toFloat64(energy_j), {_WHOLE}
        FROM gpu_minutes FINAL
        WHERE NOT raw AND gpu IN (SELECT gpu FROM mine)
            AND ts >= toDateTime(low_s) AND ts < toDateTime(high_s)
    ) AS m INNER JOIN mine USING (gpu)
    WHERE arrayExists(
        s -> at_s * 1000 >= s.1 AND (at_s + unit_s) * 1000 - if(raw, 999, 0) <= s.2, spans)
)"""
"""Rows of the job alone; of minutes those that were wholly its. A row of more than a second, as after
a missed tick, also stands for the seconds before its own."""
SHARES: Final = ", ".join(
    f"100 * sum(throttle_{c}_ms) / nullIf(sumIf(dt_ms, isNotNull(throttle_{c}_ms)), 0) AS {c}"
    for c in CAUSES
)
TIME: Final = "toDateTime(step, 'UTC') AS time"
STEP_S: Final = "greatest(1, least(step + step_s, high_s) - greatest(step, low_s))"

EXPECTED: Final = """expected AS
(
    SELECT step, sum(gpus * arraySum(s -> greatest(0, least(s.2, least(step + step_s, high_s) * 1000)
        - greatest(s.1, greatest(step, low_s) * 1000)), spans)) AS held_ms
    FROM
    (
        SELECT spans, count() AS gpus,
            arrayJoin(range(intDiv(low_s, step_s), intDiv(greatest(low_s, high_s - 1), step_s) + 1))
                * step_s AS step
        FROM mine
        WHERE high_s > low_s
        GROUP BY spans
    )
    GROUP BY step
    HAVING held_ms > 0
)"""
"""GPU-time that the job held, step by step."""


def newest(limit_s: str) -> str:
    """WITH ...: rows of the newest raw seconds of the job in the range, so many that ROWS suffice."""
    return f"""{JOB},
least(edge_s, intDiv(job.3, 1000)) AS last_s,
greatest({LEAST_S}, least({limit_s}, intDiv({ROWS}, greatest(1, job.1)))) AS window_s,
greatest(from_s, intDiv(job.2 + 999, 1000), last_s - window_s) AS first_s,
seconds AS
(
    SELECT * FROM gpu_samples INNER JOIN mine USING (gpu)
    WHERE gpu IN (SELECT gpu FROM mine) AND ts >= toDateTime(first_s) AND ts < toDateTime(last_s)
        AND arrayExists(
            s -> toUnixTimestamp64Milli(ts) >= s.1 AND toUnixTimestamp64Milli(ts) < s.2, spans)
)"""


def mean(metric: str) -> str:
    """Time-weighted; NULL where it was never said."""
    return (
        f"sumIf(toFloat64({metric}) * dt_ms, isNotNull({metric}))"
        f" / nullIf(sumIf(dt_ms, isNotNull({metric})), 0)"
    )


WATTS: Final = (
    f"sumIf(toFloat64(power_w) * dt_ms, {GOOD}) / nullIf(toFloat64(sumIf(dt_ms, {GOOD})), 0)"
)
