"""Which GPU holds a job back? A panel of the page Workload."""

from typing import Final

from dashboards.pages.workload_sql import (
    ALL,
    LEAST_S,
    NEWEST,
    NONE,
    OF_JOB,
    SITE,
    WATTS,
    mean,
    newest,
)
from dashboards.panel import Panel

STRAGGLERS: Final = Panel(
    kind="table",
    title="Stragglers",
    description="The 30 GPUs that lie furthest below their peers: the least of power, utilisation,"
    " multiprocessor activity and clock against the job's median, worst first. Means over the newest"
    f" raw seconds of the range, {LEAST_S} or as many as make {NEWEST:,} rows of gpu_samples; empty is not"
    " reported." + NONE,
    sql=f"""
WITH {newest("greatest(1, edge_s - from_s)", ALL)},
(
    SELECT groupArray((gpu, of_median, watts, median_watts, gpu_busy, median_busy, sm_active,
        median_sm, clock_hz))
    FROM
    (
        SELECT *, quantile(0.5)(watts) OVER () AS median_watts,
            quantile(0.5)(gpu_busy) OVER () AS median_busy,
            quantile(0.5)(sm_active) OVER () AS median_sm,
            quantile(0.5)(clock_hz) OVER () AS median_clock,
            arrayMin(arrayFilter(r -> isFinite(r), arrayMap(r -> ifNull(r, inf), [
                watts / nullIf(median_watts, 0), gpu_busy / nullIf(median_busy, 0),
                sm_active / nullIf(median_sm, 0), clock_hz / nullIf(median_clock, 0)]))) * 100
                AS of_median
        FROM
        (
            SELECT gpu, {WATTS} AS watts, {mean("util_gpu_pct")} AS gpu_busy,
                {mean("sm_active_pct")} AS sm_active, 1e6 * {mean("clock_sm_mhz")} AS clock_hz
            FROM seconds
            GROUP BY gpu
        )
        ORDER BY of_median
        LIMIT 30
    )
) AS worst,
worst_gpus AS (SELECT arrayJoin(assumeNotNull(worst)) AS w, w.1 AS gpu)
SELECT toString({SITE}) AS site_id, n.name AS node, m.number AS gpu_index, w.2 AS of_median,
    w.3 AS watts, w.4 AS median_watts, w.5 AS gpu_busy, w.6 AS median_busy, w.7 AS sm_active,
    w.8 AS median_sm, w.9 AS clock_hz, hottest_c, throttled_pct, seconds
FROM worst_gpus AS o
INNER JOIN
(
    SELECT gpu, max(temp_gpu_c) AS hottest_c, 100 * sum(greatest(throttle_power_cap_ms,
        throttle_sw_thermal_ms, throttle_hw_thermal_ms, throttle_power_brake_ms)) / sum(dt_ms)
        AS throttled_pct, sum(dt_ms) / 1000 AS seconds
    FROM seconds
    WHERE gpu IN (SELECT gpu FROM worst_gpus)
    GROUP BY gpu
) AS more ON more.gpu = o.gpu
INNER JOIN mine AS m ON m.gpu = o.gpu
LEFT JOIN (SELECT node_id, any(node) AS name FROM allocations WHERE {OF_JOB} GROUP BY node_id) AS n
    ON n.node_id = m.of_node
ORDER BY of_median
""",
    columns={
        "of_median": "percent", "watts": "watt", "median_watts": "watt", "gpu_busy": "percent",
        "median_busy": "percent", "sm_active": "percent", "median_sm": "percent",
        "clock_hz": "hertz", "hottest_c": "celsius", "throttled_pct": "percent", "seconds": "s",
    },
    links={
        "node": "/d/megawatch-node?var-site=${__data.fields.site_id}&var-node=${__data.fields.node}"
    },
    hidden=("site_id",),
    width=24,
    height=10,
)  # fmt: skip
