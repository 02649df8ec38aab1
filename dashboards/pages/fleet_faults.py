"""What the driver complains of: XIDs, memory, links, actions that wait, and the nodes worst off."""

from typing import Final

from dashboards.pages.fleet_sql import (
    HEALTH_S,
    HEARD,
    HEARD_S,
    HIDDEN,
    NODE_LINK,
    PLACES,
    SITE_ID,
    STATE,
    SUSPECTS,
    XID,
)
from dashboards.panel import WARN, Panel
from dashboards.sql import SITE
from pipeline import xids

_WAITS: Final = (
    "(s.recovery_action > 0 OR s.remap_pending > 0 OR s.remap_failure > 0"
    " OR s.retired_pages_pending > 0)"
)
_WAITING: Final = f"""
    SELECT gpu, state.1 AS action, state.2 AS pending, state.3 AS failed, state.4 AS pages
    FROM
    (
        SELECT gpu, argMax((recovery_action, remap_pending, remap_failure, retired_pages_pending), ts) AS state
        FROM gpu_health
        WHERE {STATE} AND gpu IN (SELECT gpu FROM gpu_health AS s WHERE {STATE} AND {_WAITS})
        GROUP BY gpu
    )
    WHERE action > 0 OR pending > 0 OR failed > 0 OR pages > 0"""
"""GPUs whose newest health says so; one that said so a while ago may have been helped."""
HANDS_NOW: Final = Panel(
    kind="stat",
    title="GPUs that wait for somebody",
    description=(
        f"GPUs whose newest health (gpu_health, last {HEALTH_S} complete seconds of the range) asks"
        " for an action: reset or reboot (recovery_action), a row remap that waits for a reset, one"
        " that failed, pages that wait to be retired. A figure is absent where no GPU reports it."
    ),
    sql=f"""
SELECT if(said.1, countIf(action > 0), NULL) AS recovery,
    if(said.2, countIf(pending > 0), NULL) AS remap_pending,
    if(said.3, countIf(failed > 0), NULL) AS remap_failed,
    if(said.4, countIf(pages > 0), NULL) AS pages_pending
FROM
(
    SELECT (count(recovery_action) > 0, count(remap_pending) > 0, count(remap_failure) > 0,
        count(retired_pages_pending) > 0) AS said
    FROM gpu_health WHERE {STATE} HAVING count() > 0
) AS r
LEFT JOIN ({_WAITING}) AS w ON 1
GROUP BY said
""",
    height=4,
    thresholds=((1, WARN),),
)
SLOWDOWN: Final = 0xE8
"""Clock event reasons that are no choice of anybody: hardware, thermal, power brake."""
WAITING: Final = Panel(
    kind="table",
    title="GPUs that wait for somebody",
    description=(
        f"Newest health of the last {HEALTH_S} complete seconds of the range (gpu_health): what the"
        " driver asks for, and remaps or page retirements that are open or have failed. No data:"
        " none, or no health."
    ),
    sql=f"""
SELECT p.node AS node, p.gpu_index AS gpu,
    transform(h.action, [1, 2, 3, 4, 5, 6, 7], ['reset GPU', 'reboot node', 'drain peer to peer',
        'drain and reset', 'reset IMEX domain', 'reset bus', 'reboot system'],
        if(h.action > 0, concat('action ', toString(h.action)), '')) AS recovery,
    h.pending AS remap_pending, h.failed AS remap_failed, h.pages AS pages_pending, {SITE_ID}
FROM ({PLACES}) AS p
ANY INNER JOIN ({_WAITING}) AS h ON p.gpu_id = h.gpu
ORDER BY h.failed DESC, h.action DESC, node, gpu
LIMIT 200
""",
    links=NODE_LINK,
    hidden=HIDDEN,
    no_value="nobody waits",
    height=9,
)
WORST_NODES: Final = Panel(
    kind="table",
    title="Worst nodes",
    description=(
        "Nodes with a complaint, in the order of: GPUs missing now (inventory, gpu_latest), fatal"
        " XIDs in the range (events), GPUs that wait for somebody (gpu_health), GPUs slowed now by"
        " heat, hardware or the power brake (gpu_latest), hardware XIDs. No data: no complaint."
    ),
    sql=f"""
WITH
    waiting AS (SELECT gpu FROM ({_WAITING})),
    slowed AS
    (
        SELECT gpu FROM gpu_latest WHERE {SITE} AND ts > now64(3) - INTERVAL {HEARD_S} SECOND
        GROUP BY gpu HAVING bitAnd(ifNull(argMax(tuple(throttle_reasons), ts).1, 0), {SLOWDOWN}) != 0
    )
SELECT n.node AS node, rack, missing_gpus, fatal_xids, waiting_gpus, slowed_gpus, hardware_xids, {SITE_ID}
FROM
(
    SELECT node, any(rack) AS rack, countIf(gpu_id NOT IN ({HEARD})) AS missing_gpus,
        countIf(gpu_id IN (waiting)) AS waiting_gpus, countIf(gpu_id IN (slowed)) AS slowed_gpus
    FROM ({PLACES}) GROUP BY node
) AS n
LEFT JOIN
(
    SELECT node, countIf(code IN {xids.codes("fatal")}) AS fatal_xids, countIf(code IN {xids.codes("hardware")}) AS hardware_xids
    FROM events FINAL WHERE {XID} GROUP BY node
) AS e ON n.node = e.node
WHERE missing_gpus + fatal_xids + waiting_gpus + slowed_gpus + hardware_xids > 0
ORDER BY missing_gpus DESC, fatal_xids DESC, waiting_gpus DESC, slowed_gpus DESC, hardware_xids DESC, node
LIMIT 50
""",
    links=NODE_LINK,
    hidden=HIDDEN,
    no_value="no complaint",
)

XIDS_OVER_TIME: Final = Panel(
    kind="timeseries",
    title="XIDs by tier",
    description=(
        "XIDs (events) of each step. Application: the job's own fault, the GPU is well. Driver:"
        " software speaks of itself. Hardware: works on, act at the next window. Fatal: reset,"
        " reboot or repair now. Unlisted: a code that our table lacks. No data: none was reported."
    ),
    sql=f"""
SELECT $__timeInterval(ts) AS time, {xids.sql("tier")} AS tier, count() AS xids
FROM events FINAL
WHERE {XID}
GROUP BY time, tier
ORDER BY time, tier
""",
    label="tier",
    min=0,
    decimals=0,
    width=12,
    no_value="none reported",
)
XID_CODES: Final = Panel(
    kind="table",
    title="XIDs by code",
    description=(
        "XIDs in the range (events), worst tier first, with what NVIDIA's catalogue says to do."
        " No data: none was reported."
    ),
    sql=f"""
SELECT code AS xid, {xids.sql("name")} AS meaning, {xids.sql("tier")} AS tier, count() AS events,
    uniqExact(e.gpu) AS gpus, uniqExact(e.node) AS nodes, max(e.ts) AS last,
    argMax(e.node, e.ts) AS node, {xids.sql("action")} AS action, {SITE_ID}
FROM events AS e FINAL
WHERE {XID}
GROUP BY code
ORDER BY indexOf({list(reversed(xids.TIERS))}, tier) = 0, indexOf({list(reversed(xids.TIERS))}, tier), events DESC, xid
""",
    width=24,
    links=NODE_LINK,
    hidden=HIDDEN,
    no_value="none reported",
)


def _suspects(total: str) -> str:
    """Rows of the GPUs whose counters stand highest, with the newest time at the range's beginning."""
    return f"""
    SELECT *, maxIf(ts, ts <= $__fromTime_ms) OVER (PARTITION BY gpu) AS base
    FROM gpu_health
    WHERE {SITE} AND ts >= $__fromTime_ms - INTERVAL {HEALTH_S} SECOND AND ts <= $__toTime_ms
        AND gpu IN
        (
            SELECT gpu FROM gpu_health WHERE {STATE} AND {total} > 0
            GROUP BY gpu ORDER BY max({total}) DESC LIMIT {SUSPECTS}
        )"""


def _increases(title: str, counters: dict[str, str], what: str) -> Panel:
    """Worst first: by how much counters of the GPUs that stand highest grew over the range.

    Within one life of the driver a counter grows, and a later life began at 0. A source that knows
    of no lives shows a reset as a fall: then what is sure is counted, on both sides of it.
    """
    each = ",\n        ".join(
        f"argMin({c}, ts) AS {c}_first, argMax({c}, ts) AS {c}_last, min({c}) AS {c}_min, max({c}) AS {c}_max"
        for c in counters
    )
    grown = ",\n        ".join(
        f"""sum(if({c}_first > {c}_min OR {c}_last < {c}_max,
            {c}_last - {c}_min + if({c}_last < {c}_max, {c}_max - {c}_first, 0), {c}_last - {c}_first)
            + if(life = 1, 0, {c}_first)) AS {c}_grown"""
        for c in counters
    )
    named = ", ".join(f"{c}_grown AS {name}" for c, name in counters.items())
    total = " + ".join(f"ifNull({c}, 0)" for c in counters)
    return Panel(
        kind="table",
        title=title,
        description=(
            f"{what} The range's increase of each counter (gpu_health), over driver reloads too, of"
            f" the {SUSPECTS} GPUs whose counters stand highest in the last {HEALTH_S} complete seconds"
            f" of the range; since the newest health at its beginning, {HEALTH_S} s old at most. Who is not here has grown less since its last reset than the last of them"
            " stands. Empty: not reported. No data: no errors, or no health in the range."
        ),
        sql=f"""
SELECT p.node AS node, p.gpu_index AS gpu, {named}, {SITE_ID}
FROM ({PLACES}) AS p
ANY INNER JOIN
(
    SELECT gpu, {grown}
    FROM
    (
        SELECT *, row_number() OVER (PARTITION BY gpu ORDER BY begun) AS life
        FROM
        (
            SELECT gpu, min(ts) AS begun, {each}
            FROM
            (
                {_suspects(total)}
            )
            WHERE ts >= base
            GROUP BY gpu, boot_epoch, driver_epoch
        )
    )
    GROUP BY gpu
) AS g ON p.gpu_id = g.gpu
WHERE {" + ".join(f"ifNull({c}_grown, 0)" for c in counters)} > 0
ORDER BY {", ".join(f"ifNull({c}_grown, 0) DESC" for c in counters)}, node, gpu
LIMIT 50
""",
        links=NODE_LINK,
        hidden=HIDDEN,
        no_value="no errors",
        height=9,
    )


MEMORY_ERRORS: Final = _increases(
    "Memory errors, worst GPUs",
    {
        "ecc_uncorrected_volatile": "uncorrected",
        "remap_uncorrected_rows": "remapped_uncorrected",
        "remap_corrected_rows": "remapped_corrected",
        "retired_pages_dbe": "retired_pages",
        "ecc_corrected_volatile": "corrected",
    },
    "ECC errors, remapped rows and retired pages.",
)
LINK_ERRORS: Final = _increases(
    "Link errors, worst GPUs",
    {
        "nvlink_recovery_errors": "nvlink_recoveries",
        "nvlink_replay_errors": "nvlink_replays",
        "nvlink_crc_errors": "nvlink_crc",
        "pcie_replays": "pcie_replays",
    },
    "NVLink recoveries, replays and CRC errors, PCIe replays.",
)
