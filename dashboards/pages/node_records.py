"""What was written down about one node: health, holders, events, gaps."""

from typing import Final

from dashboards.pages.fleet_sql import HEALTH_S
from dashboards.pages.node_sql import GPUS, HERE, OF_NODE, TENANT_LINK, WORKLOAD_LINK, gaps
from dashboards.panel import Panel
from dashboards.sql import EDGE, SITE
from pipeline import xids

_FOREVER: Final = "toDateTime64('2200-01-01 00:00:00', 3, 'UTC')"

HEALTH: Final = Panel(
    kind="table",
    title="Health",
    description=(
        "Newest health of each GPU in the last hour of the range (gpu_health), and in no less than"
        f" its last {HEALTH_S} s: counters since the driver was loaded (volatile, links) or of the"
        " board's life (remapped, retired), limits, and what the driver asks for. Empty: not"
        " reported. No data: no health then."
    ),
    sql=f"""
SELECT gpu_index AS gpu, h.* EXCEPT (gpu)
FROM ({GPUS}) AS p
INNER JOIN
(
    SELECT gpu, max(s.ts) AS newest, argMax(tuple(ecc_uncorrected_volatile), s.ts).1 AS ecc_uncorrected,
        argMax(tuple(ecc_corrected_volatile), s.ts).1 AS ecc_corrected,
        argMax(tuple(remap_uncorrected_rows), s.ts).1 AS remapped_uncorrected,
        argMax(tuple(remap_corrected_rows), s.ts).1 AS remapped_corrected,
        argMax(tuple(s.remap_pending), s.ts).1 AS remap_pending, argMax(tuple(remap_failure), s.ts).1 AS remap_failed,
        argMax(tuple(retired_pages_dbe), s.ts).1 AS retired_pages, argMax(tuple(s.pcie_replays), s.ts).1 AS pcie_replays,
        argMax(tuple(nvlink_crc_errors), s.ts).1 AS nvlink_crc, argMax(tuple(nvlink_replay_errors), s.ts).1 AS nvlink_replays,
        argMax(tuple(nvlink_recovery_errors), s.ts).1 AS nvlink_recoveries,
        argMax(tuple(s.recovery_action), s.ts).1 AS recovery_action, toFloat64(argMax(tuple(s.power_limit_w), s.ts).1) AS power_limit_w,
        argMax(tuple(s.mig_mode), s.ts).1 AS mig_mode
    FROM gpu_health AS s
    WHERE {HERE} AND ts <= $__toTime AND ts >= least(
        $__toTime - INTERVAL {HEALTH_S} SECOND, greatest($__fromTime, $__toTime - INTERVAL 1 HOUR))
    GROUP BY gpu
) AS h ON p.gpu_id = h.gpu
ORDER BY gpu_index
""",
    columns={"power_limit_w": "watt"},
    width=24,
    height=9,
)
HOLDERS: Final = Panel(
    kind="table",
    title="Who holds it",
    description=(
        "Allocations of the node that touch the range, as last asserted (allocations); gpus: NVML"
        " indices, or all. Empty until: until further notice. No data: nobody was said to hold it."
    ),
    sql=f"""
SELECT tenant, workload, account, if(empty(gpus), 'all', arrayStringConcat(arrayMap(g -> toString(g), gpus), ' ')) AS held,
    from_ts AS since, if(ends = {_FOREVER}, NULL, ends) AS until, source,
    toString(t) AS tenant_id, toString(w) AS workload_id
FROM
(
    SELECT tenant, workload, argMax(account, asserted_at) AS account, gpus, from_ts, source,
        argMax(ifNull(until_ts, {_FOREVER}), asserted_at) AS ends, tenant_id AS t, workload_id AS w
    FROM allocations
    WHERE {OF_NODE} AND tenant_id != 0 AND from_ts <= $__toTime_ms
    GROUP BY source, tenant, workload, gpus, from_ts, t, w
)
WHERE ends > $__fromTime_ms
ORDER BY since DESC, tenant
LIMIT 100
""",
    links={"tenant": TENANT_LINK, "workload": WORKLOAD_LINK},
    hidden=("tenant_id", "workload_id"),
    width=12,
)
EVENTS: Final = Panel(
    kind="table",
    title="Events",
    description=(
        "What the node's agent and kernel log reported in the range, newest first (events), and for"
        " XIDs their tier and what to do. Empty gpu: the whole node. No data: nothing reported."
    ),
    sql=f"""
SELECT ts AS at, kind, if(e.gpu = 0, NULL, toNullable(p.gpu_index)) AS gpu, if(kind = 'xid', toNullable(code), NULL) AS xid,
    if(kind = 'xid', {xids.sql("name")}, '') AS meaning, if(kind = 'xid', {xids.sql("tier")}, '') AS tier, detail,
    if(kind = 'xid', {xids.sql("action")}, '') AS action
FROM events AS e FINAL
ANY LEFT JOIN (SELECT gpu_id, any(gpu_index) AS gpu_index FROM inventory WHERE {OF_NODE} GROUP BY gpu_id) AS p ON e.gpu = p.gpu_id
WHERE {SITE} AND e.node = ${{node:singlequote}} AND $__timeFilter_ms(ts)
ORDER BY at DESC
LIMIT 200
""",
    width=12,
    no_value="nothing reported",
)
COVERAGE: Final = Panel(
    kind="table",
    title="Coverage",
    description=(
        "Of each GPU: seconds for which the inventory expects it in the range, seconds without rows"
        " (gpu_samples), the longest gap, the newest row. Up to what the pipelines have settled."
        " No data: the inventory expects no GPU in the range."
    ),
    sql=f"""
SELECT gpu_index AS gpu, (hi - lo) / 1000 AS expected_s, arraySum(g -> g.2 - g.1, gaps) / 1000 AS without_rows_s,
    100 * (1 - without_rows_s / expected_s) AS coverage_pct, arrayMax(g -> g.2 - g.1, gaps) / 1000 AS longest_gap_s,
    rows, if(rows = 0, NULL, newest) AS newest_row
FROM ({gaps(EDGE)})
ORDER BY gpu_index
""",
    columns=dict.fromkeys(("expected_s", "without_rows_s", "longest_gap_s"), "s")
    | {"coverage_pct": "percent"},
)
GAPS: Final = Panel(
    kind="table",
    title="Gaps",
    description=(
        "Spans of half a second or more in which a GPU that was expected has no row (inventory,"
        " gpu_samples), newest first; GPUs that are missing together stand in one row."
        " No data: none, or the inventory expects no GPU."
    ),
    sql=f"""
SELECT fromUnixTimestamp64Milli(gap.1, 'UTC') AS since, fromUnixTimestamp64Milli(gap.2, 'UTC') AS until,
    (gap.2 - gap.1) / 1000 AS gap_s, arrayStringConcat(arraySort(groupArray(gpu_index)), ' ') AS gpus
FROM ({gaps(EDGE)})
ARRAY JOIN gaps AS gap
GROUP BY gap
ORDER BY gap.1 DESC, gap.2 DESC
LIMIT 200
""",
    columns={"gap_s": "s"},
    no_value="none",
)
