"""Pieces of SQL of the workload's page: the rows of one job's GPUs in its time.

Rows are read by the job's GPUs, which the allocations and the inventory give, and by its time; the
stamps of live rows are not asked. A query over a range reads the seconds while they are at most
ROWS of GPUs times seconds, else the minutes; what needs raw seconds reads the newest of them.

Tables are ordered by GPU, and ids are hashes: the GPUs of a large job lie in nearly every granule,
so that each column costs as if it were read of the whole site. What is true of the mean GPU is
therefore read of FEW of them, those of the lowest ids: a sample that lies together.
"""

from typing import Final

from dashboards.sql import EDGE
from pipeline.queries import UNION
from pipeline.records import BAD_POWER

ROWS: Final = 500_000
"""Raw rows that a panel over the range may read."""
RHYTHM_S: Final = 600
FEW: Final = 256
"""GPUs that stand for the mean one."""
NEWEST: Final = FEW * RHYTHM_S
"""Raw rows that a panel of the newest seconds may read, unless LEAST_S seconds are more."""
MANY: Final = 1024
"""GPUs that stand for all in shares and spreads."""
ALL: Final = 1_000_000
"""GPUs: more than any job has."""
LEAST_S: Final = 30
"""Raw seconds that are read of a job of any size."""
SITE: Final = "toUInt64OrZero(${site:singlequote})"
WORKLOAD: Final = "toUInt64OrZero(${workload:singlequote})"
FOREVER: Final = "toDateTime64('2105-01-01 00:00:00', 3, 'UTC')"
NONE: Final = " No data: nothing was measured on the job's GPUs in the range."
"""A description's word on an empty panel."""
CAUSES: Final = ("power_cap", "sw_thermal", "hw_thermal", "power_brake")

OF_JOB: Final = f"site_id = {SITE} AND workload_id = {WORKLOAD}"
HELD: Final = f"""held AS
(
    SELECT node_id, source, gpus, from_ts, argMax(ifNull(until_ts, {FOREVER}), asserted_at) AS until_ts,
        argMax(account, asserted_at) AS account, any(tenant) AS tenant, any(workload) AS workload
    FROM allocations
    WHERE {OF_JOB}
    GROUP BY node_id, source, tenant_id, gpus, from_ts
),
claims AS
(
    SELECT i.gpu_id AS gpu, i.node_id AS node, i.gpu_index AS gpu_index,
        toUnixTimestamp64Milli(greatest(h.from_ts, i.from_ts)) AS since,
        toUnixTimestamp64Milli(least(h.until_ts, ifNull(i.until_ts, {FOREVER}))) AS until
    FROM held AS h
    INNER JOIN
    (
        SELECT gpu_id, node_id, gpu_index, from_ts, until_ts FROM inventory FINAL
        WHERE site_id = {SITE} AND node_id IN (SELECT node_id FROM held)
    ) AS i ON i.node_id = h.node_id
    WHERE (empty(h.gpus) OR has(h.gpus, i.gpu_index)) AND until > since
),
(
    SELECT arraySort(groupArray((gpu, of_node, number, spans)))
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
"""The job's GPUs by id, each with the spans (ms) in which it was the job's. As a scalar they are found
once, while a table that WITH names is found again at each use."""

FIRST_MINUTE_S: Final = (
    "assumeNotNull((SELECT if(count() = 0, 4102444800, toInt64(toUnixTimestamp(min(ts))) + 60)"
    " FROM gpu_minutes))"
)
"""Raw rows are dropped sooner than minutes: where only minutes reach, they are read."""
_RANGE: Final = f"""{HELD},
{EDGE} AS edge,
toInt64(toUnixTimestamp($__fromTime)) AS from_s,
toInt64(assumeNotNull(toUnixTimestamp(edge))) AS edge_s,
(
    SELECT (toInt64(count()), min(spans[1].1), max(spans[-1].2), sum(arraySum(s -> greatest(0,
        least(s.2, edge_s * 1000) - greatest(s.1, from_s * 1000)), spans)) / 1000)
    FROM mine
) AS job"""
_READ: Final = """(
    SELECT (groupArrayIf(gpu, throughout), arrayFlatten(groupArrayIf(
        arrayMap(s -> (gpu, s.1, s.2), spans), NOT throughout)))
    FROM
    (
        SELECT *, arrayExists(s -> s.1 <= low_s * 1000 AND s.2 >= high_s * 1000, spans) AS throughout
        FROM chosen
    )
) AS among,
whole AS (SELECT arrayJoin(assumeNotNull(among).1) AS gpu),
partly AS
(
    SELECT one.1 AS gpu, one.2 AS since, one.3 AS until
    FROM (SELECT arrayJoin(assumeNotNull(among).2) AS one)
)"""
"""GPUs that are read from low_s to high_s: most were the job's all the time, which needs no look at
each row."""


def job(gpus: int) -> str:
    """WITH ...: whether the seconds of the range are read or its minutes, and where the job's are.

    `gpus` of the job are read at most, those of the lowest ids.
    """
    return f"""{_RANGE},
$__interval_s < 60 AND assumeNotNull(job.4) <= {ROWS}
    AND assumeNotNull((SELECT toInt64(toUnixTimestamp(min(ts))) FROM gpu_samples))
        <= greatest(from_s, intDiv(assumeNotNull(job.2), 1000), {FIRST_MINUTE_S}) AS raw,
if(raw, 1, 60) AS unit_s,
greatest($__interval_s, unit_s) AS step_s,
greatest(intDiv(from_s, unit_s), intDiv(assumeNotNull(job.2) + unit_s * 1000 - 1, unit_s * 1000)) * unit_s AS low_s,
least(intDiv(edge_s, unit_s), intDiv(assumeNotNull(job.3), unit_s * 1000)) * unit_s AS high_s,
chosen AS (SELECT * FROM mine LIMIT {gpus}),
{_READ}"""


GOOD: Final = f"isNotNull(power_w) AND bitAnd(flags, {BAD_POWER}) = 0"
THROTTLED: Final = ", ".join(f"throttle_{c}_ms" for c in CAUSES)
_PARTS: Final = ", ".join(
    f"toFloat64(throttle_{c}_ms) * dt_ms / s.dt_ms AS throttle_{c}_ms" for c in CAUSES
)
_WHOLE: Final = ", ".join(f"toFloat64(argMax(m.throttle_{c}_ms, version))" for c in CAUSES)
_IN_TIME: Final = "ts >= toDateTime(low_s) AND ts < toDateTime(high_s)"


def _rows(gpus: str) -> str:
    """Seconds or minutes of the GPUs. A minute that was filled again counts by its newest version."""
    return f"""
        SELECT gpu, toInt64(toUnixTimestamp(s.ts)) - piece AS at_s,
            toInt64(least(1000, s.dt_ms - 1000 * piece)) AS dt_ms,
            if({GOOD}, toFloat64(power_w) * dt_ms, 0) AS product, if({GOOD}, dt_ms, 0) AS product_ms,
            toFloat64(energy_j) * dt_ms / s.dt_ms AS joules,
            {_PARTS}
        FROM
        (
            SELECT gpu, ts, dt_ms, flags, power_w, energy_j, {THROTTLED},
                arrayJoin(range(intDiv(dt_ms + 999, 1000))) AS piece
            FROM gpu_samples
            WHERE raw AND gpu IN (SELECT gpu FROM {gpus}) AND {_IN_TIME}
        ) AS s
        WHERE at_s >= low_s
        UNION ALL
        SELECT gpu, toInt64(toUnixTimestamp(m.ts)) AS at_s, toInt64(argMax(m.dt_ms, version)),
            toFloat64(argMax(power_w_ms, version)), toInt64(argMax(power_w_dt_ms, version)),
            toFloat64(argMax(energy_j, version)), {_WHOLE}
        FROM gpu_minutes AS m
        WHERE NOT raw AND gpu IN (SELECT gpu FROM {gpus}) AND {_IN_TIME}
        GROUP BY gpu, m.ts"""


_COLUMNS: Final = f"""gpu, intDiv(at_s, step_s) * step_s AS step, at_s, product, product_ms, joules,
        dt_ms, {THROTTLED}"""
MEASURED: Final = f"""measured AS
(
    SELECT {_COLUMNS} FROM ({_rows("whole")}
    )
    UNION ALL
    SELECT {_COLUMNS} FROM ({_rows("partly")}
    ) AS m INNER JOIN partly USING (gpu)
    WHERE at_s * 1000 >= since AND (at_s + unit_s) * 1000 - if(raw, 999, 0) <= until
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


_SECONDS: Final = (
    "gpu", "ts", "dt_ms", "flags", "power_w", "temp_gpu_c", "util_gpu_pct", "sm_active_pct",
    "tensor_active_pct", "clock_sm_mhz", *(f"throttle_{c}_ms" for c in CAUSES),
)  # fmt: skip
"""Columns of the newest seconds; what a panel does not use is not read."""


def _listed(of: str) -> str:
    return ", ".join(f"{of}.{name} AS {name}" for name in _SECONDS)


def newest(limit_s: str, gpus: int) -> str:
    """WITH ...: rows of so many of the job's GPUs, of its newest raw seconds in the range.

    `limit_s` of them, or so many that NEWEST suffices.
    """
    return f"""{_RANGE},
least(edge_s, intDiv(job.3, 1000)) AS high_s,
greatest({LEAST_S}, least({limit_s}, intDiv({NEWEST}, greatest(1, least({gpus}, job.1))))) AS window_s,
greatest(from_s, intDiv(job.2 + 999, 1000), high_s - window_s) AS low_s,
chosen AS (SELECT * FROM mine LIMIT {gpus}),
{_READ},
seconds AS
(
    SELECT {_listed("s")} FROM gpu_samples AS s
    WHERE gpu IN (SELECT gpu FROM whole) AND {_IN_TIME}
    UNION ALL
    SELECT {_listed("s")} FROM gpu_samples AS s INNER JOIN partly AS p ON s.gpu = p.gpu
    WHERE s.gpu IN (SELECT gpu FROM partly) AND {_IN_TIME}
        AND toUnixTimestamp64Milli(ts) >= since AND toUnixTimestamp64Milli(ts) < until
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
