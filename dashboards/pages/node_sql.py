"""How the panels of one node read: by the ids of its GPUs first, then by time.

Up to RAW_S seconds of range every raw row counts; longer ranges are read from the minutes, where
they have the metric.
"""

from typing import Final

from pipeline.records import BAD_POWER

RAW_S: Final = 7200
HEARD_S: Final = 60
"""A GPU whose newest tick is older is not there now."""

TENANT_LINK: Final = "/d/megawatch-tenant?var-tenant=${__data.fields.tenant_id}"
WORKLOAD_LINK: Final = "/d/megawatch-workload?var-workload=${__data.fields.workload_id}"

OF_NODE: Final = "site_id = toUInt64OrZero(${site:singlequote}) AND node = ${node:singlequote}"
_IN_RANGE: Final = (
    f"{OF_NODE} AND from_ts <= $__toTime_ms AND (until_ts IS NULL OR until_ts > $__fromTime_ms)"
)
GPUS: Final = f"SELECT gpu_id, argMax(gpu_index, from_ts) AS gpu_index FROM inventory FINAL WHERE {_IN_RANGE} GROUP BY gpu_id"
"""The GPUs that the node had within the range, with their index."""
IN_NODE: Final = f"gpu IN (SELECT gpu_id FROM inventory WHERE {OF_NODE})"
"""Rows of tables that are ordered by GPU; what a GPU did on another node is among them."""
HERE: Final = f"{IN_NODE} AND node IN (SELECT node_id FROM inventory WHERE {OF_NODE})"
"""Of those, what it did here."""
SHORT: Final = f"toUnixTimestamp($__toTime) - toUnixTimestamp($__fromTime) <= {RAW_S}"
MINUTES_STEP: Final = "INTERVAL intDiv(greatest(60, $__interval_s) + 59, 60) * 60 second"
"""Whole minutes, or steps would hold now one minute, now two."""


def _by_gpu(parts: str, value: str) -> str:
    """Rows of (time, GPU's name, value) from parts of (time, id, total, ms)."""
    return f"""
SELECT time, concat('GPU ', toString(gpu_index)) AS gpu, {value} AS value
FROM ({parts}) AS s
INNER JOIN ({GPUS}) AS p ON s.id = p.gpu_id
WHERE ms > 0
ORDER BY time, gpu_index
"""


def _raw(metric: str, total: str, more: str) -> str:
    good = f"{metric} IS NOT NULL"
    if metric == "power_w":
        good += f" AND bitAnd(flags, {BAD_POWER}) = 0"
    return f"""
    SELECT $__timeInterval(ts) AS time, gpu AS id, toFloat64(sumIf({total}, {good})) AS total, sumIf(dt_ms, {good}) AS ms
    FROM gpu_samples WHERE {HERE} AND $__timeFilter_ms(ts){more} GROUP BY time, id"""


def _minutes(total: str, ms: str) -> str:
    return f"""
    SELECT toStartOfInterval(ts, {MINUTES_STEP}) AS time, gpu AS id, toFloat64(sum({total})) AS total, sum({ms}) AS ms
    FROM gpu_minutes FINAL WHERE {IN_NODE} AND $__timeFilter(ts) AND NOT ({SHORT}) GROUP BY time, id"""


def gauge(metric: str) -> str:
    """Each GPU's mean of a metric, weighted by time, from raw rows whatever the range."""
    return _by_gpu(_raw(metric, f"{metric} * dt_ms", ""), "total / ms")


def gauge_or_minutes(metric: str) -> str:
    """The same of a metric that the minutes have, and from them where the range is long."""
    parts = (
        _raw(metric, f"{metric} * dt_ms", f" AND {SHORT}"),
        _minutes(f"{metric}_ms", f"{metric}_dt_ms"),
    )
    return _by_gpu(" UNION ALL ".join(parts), "total / ms")


def rate(metric: str) -> str:
    """Each GPU's amount of a metric per second that was measured, from raw rows."""
    return _by_gpu(_raw(metric, metric, ""), "1000 * total / ms")


def gaps(edge: str) -> str:
    """Of each GPU of the node: its index, rows' seconds and newest, and its spans without rows.

    A span is (from, until) in ms, at least half a second long, within the time for which the
    inventory expects the GPU and up to `edge`. A row of up to a second stands for the time after
    its tick, a longer one also for the time before.
    """
    return f"""
SELECT gpu_index, lo, hi, rows, newest,
    arrayFilter(g -> g.2 - g.1 >= 500, arrayZip(
        arrayConcat([lo], arrayMap(r -> r.2, spans)), arrayConcat(arrayMap(r -> r.1, spans), [hi]))) AS gaps
FROM
(
    SELECT gpu_id, argMax(gpu_index, from_ts) AS gpu_index,
        greatest(min(toUnixTimestamp64Milli(from_ts)), toInt64(toUnixTimestamp($__fromTime)) * 1000) AS lo,
        least(max(ifNull(toUnixTimestamp64Milli(until_ts), 4102444800000)), toInt64(assumeNotNull(toUnixTimestamp({edge}))) * 1000) AS hi
    FROM inventory FINAL WHERE {_IN_RANGE} GROUP BY gpu_id
    HAVING hi > lo
) AS p
ANY LEFT JOIN
(
    SELECT gpu, count() AS rows, max(ts) AS newest,
        arraySort(groupArray((at + least(1000, dt) - dt, at + least(1000, dt)))) AS spans
    FROM
    (
        SELECT gpu, ts, toUnixTimestamp64Milli(ts) AS at, toInt64(dt_ms) AS dt
        FROM gpu_samples WHERE {HERE} AND ts >= $__fromTime AND ts < {edge}
    )
    GROUP BY gpu
) AS s ON p.gpu_id = s.gpu
"""
