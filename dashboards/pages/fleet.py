"""Which GPUs are missing, frozen, hot, slowed or failing, and on which nodes?"""

from typing import Final

from dashboards.annotations import ALERTS, DEPLOYS
from dashboards.pages.fleet_faults import (
    HANDS_NOW,
    LINK_ERRORS,
    MEMORY_ERRORS,
    WAITING,
    WORST_NODES,
    XID_CODES,
    XIDS_OVER_TIME,
)
from dashboards.pages.fleet_sql import (
    AT,
    HEARD,
    HEARD_S,
    HIDDEN,
    IN_FORCE,
    MINUTES_STEP_S,
    NODE_LINK,
    OF_SITE,
    PLACES,
    RACKS,
    SAMPLE,
    SITE_ID,
)
from dashboards.panel import Page, Panel
from dashboards.sql import EDGE, SITE, SITE_VARIABLE

GPUS_NOW: Final = Panel(
    kind="stat",
    title="GPUs now",
    description=(
        "Expected: in the inventory in force now. Seen: of those, with a tick of the last"
        f" {HEARD_S} s (gpu_latest), whatever the range. Missing: the rest, also when not they but"
        " their agents or the pipeline are silent. Unlisted: seen without an inventory. No data:"
        " the site has no inventory."
    ),
    sql=f"""
SELECT uniqExact(gpu_id) AS expected, uniqExactIf(gpu_id, gpu_id IN ({HEARD})) AS seen,
    expected - seen AS missing,
    (SELECT uniqExact(gpu) FROM ({HEARD})) - seen AS unlisted
FROM inventory FINAL
WHERE {IN_FORCE}
HAVING expected > 0
""",
    height=4,
)
MISSING_RACKS: Final = Panel(
    kind="table",
    title="Missing GPUs by rack",
    description=(
        f"Racks with GPUs that the inventory expects now and that sent no tick for {HEARD_S} s;"
        " dark_nodes are those of which nothing came. No data: nothing is missing, or there is no"
        " inventory."
    ),
    sql=f"""
SELECT hall, rack, sum(missing) AS missing_gpus, sum(expected) AS expected_gpus,
    countIf(missing > 0) AS nodes, countIf(missing = expected) AS dark_nodes
FROM
(
    SELECT any(hall) AS hall, rack, node, count() AS expected, countIf(gpu_id NOT IN ({HEARD})) AS missing
    FROM ({PLACES}) GROUP BY rack, node
)
GROUP BY hall, rack
HAVING missing_gpus > 0
ORDER BY missing_gpus DESC, rack
LIMIT 50
""",
    width=10,
    no_value="none missing",
)
MISSING_NODES: Final = Panel(
    kind="table",
    title="Missing GPUs by node",
    description=(
        "As by rack, with the indices of the missing GPUs and when one of them was last seen"
        " (gpu_latest; empty: never). No data: nothing is missing, or there is no inventory."
    ),
    sql=f"""
SELECT rack, p.node AS node, count() AS missing_gpus,
    arrayStringConcat(arraySort(groupArray(gpu_index)), ' ') AS gpus,
    max(if(l.gpu = 0, NULL, l.ts)) AS last_seen, {SITE_ID}
FROM (SELECT * FROM ({PLACES}) WHERE gpu_id NOT IN ({HEARD})) AS p
ANY LEFT JOIN (SELECT gpu, max(ts) AS ts FROM gpu_latest WHERE {SITE} GROUP BY gpu) AS l
    ON p.gpu_id = l.gpu
GROUP BY rack, node
ORDER BY missing_gpus DESC, node
LIMIT 200
""",
    width=14,
    links=NODE_LINK,
    hidden=HIDDEN,
    no_value="none missing",
)
FROZEN: Final = Panel(
    kind="table",
    title="Frozen GPUs",
    description=(
        "Ticks come, but nothing moves: power is the same to 0.1 W in every tick of at least two of"
        " the last five minutes of the range, and the energy counter, where there is one, stands"
        " still over them (gpu_minutes, a minute or two behind). A source that repeats old values looks so;"
        " an idle GPU does not, unless its sensor is coarse and it has no counter. No data: none,"
        " or no minutes are there."
    ),
    sql=f"""
SELECT p.node AS node, p.gpu_index AS gpu, f.power AS power_w, f.minutes AS minutes, {SITE_ID}
FROM ({PLACES}) AS p
ANY INNER JOIN
(
    SELECT m.gpu AS gpu, toFloat64(any(power_w_min)) AS power, uniqExact(ts) AS minutes
    FROM gpu_minutes AS m
    WHERE {SITE} AND ts > {AT} - INTERVAL 6 MINUTE AND ts <= {AT} AND rows >= 3
        AND power_w_min = power_w_max
    GROUP BY gpu
    HAVING minutes >= 2 AND min(power_w_min) = max(power_w_max)
        AND ifNull(max(energy_counter_last_j) <= min(energy_counter_first_j), 1)
) AS f ON p.gpu_id = f.gpu
ORDER BY node, gpu
LIMIT 200
""",
    columns={"power_w": "watt"},
    links=NODE_LINK,
    hidden=HIDDEN,
    no_value="none frozen",
)
RACK_HEAT: Final = Panel(
    kind="heatmap",
    title=f"Temperature of the {RACKS} hottest racks",
    description=(
        "Mean GPU temperature of a rack and step, weighted by time (gpu_minutes), over all its GPUs,"
        f" or on sites of more than {2 * SAMPLE} over those of a sample of the site's, taken by id."
        " The racks are those whose mean is highest in the last minutes of the range, by where GPUs"
        " are now. No data: no GPU reports a temperature, or no minutes are there yet."
    ),
    sql=f"""
WITH (SELECT intDiv(18446744073709551615, greatest(1, intDiv(uniqExact(gpu_id), {SAMPLE}))) FROM inventory WHERE {OF_SITE}) AS top,
hottest AS
(
    SELECT rack FROM ({PLACES} AND gpu_id <= top) AS p
    INNER JOIN
    (
        SELECT gpu, sum(temp_gpu_c_ms) AS c_ms, sum(temp_gpu_c_dt_ms) AS ms FROM gpu_minutes
        WHERE {SITE} AND gpu <= top AND ts > {AT} - INTERVAL 5 MINUTE AND ts <= {AT} GROUP BY gpu
    ) AS m ON p.gpu_id = m.gpu
    GROUP BY rack HAVING sum(ms) > 0 ORDER BY sum(c_ms) / sum(ms) DESC LIMIT {RACKS}
)
SELECT time, rack, sum(c_ms) / sum(ms) AS temp_c
FROM
(
    SELECT toStartOfInterval(ts, INTERVAL {MINUTES_STEP_S} second) AS time, gpu,
        sum(temp_gpu_c_ms) AS c_ms, sum(temp_gpu_c_dt_ms) AS ms
    FROM gpu_minutes
    WHERE {SITE} AND $__timeFilter(ts)
        AND gpu IN (SELECT gpu_id FROM ({PLACES} AND gpu_id <= top) WHERE rack IN (hottest))
    GROUP BY time, gpu
) AS m
INNER JOIN ({PLACES} AND gpu_id <= top) AS p ON m.gpu = p.gpu_id
GROUP BY time, rack
HAVING sum(ms) > 0
ORDER BY time, rack
""",
    unit="celsius",
    label="rack",
    width=14,
    height=12,
)
HOTTEST: Final = Panel(
    kind="table",
    title="GPUs hotter than their peers, now",
    description=(
        "GPUs furthest above the median temperature of their node (with fewer than four GPUs: of"
        f" their rack), by ticks of the last {HEARD_S} s (gpu_latest), whatever the range. Compare"
        " power: a busy GPU among idle ones is hot too. No data: no GPU reports a temperature."
    ),
    sql=f"""
SELECT h.node AS node, place.1 AS gpu, place.2 AS temp_c, peers_c, place.2 - peers_c AS above_c,
    if(isNaN(place.3), NULL, place.3) AS power_w, {SITE_ID}
FROM
(
    SELECT node, members, if(length(members.1) >= 4, node_c,
        arrayReduce('medianExact', groupArrayArray(members.2) OVER (PARTITION BY rack))) AS peers_c
    FROM
    (
        SELECT rack, node, (groupArray(gpu_index), groupArray(temp),
            groupArray(ifNull(power, nan))) AS members,
            medianExact(temp) AS node_c
        FROM ({PLACES}) AS p
        ANY INNER JOIN
        (
            SELECT gpu, argMax(temp_gpu_c, ts) AS temp, toFloat64(argMax(tuple(power_w), ts).1) AS power
            FROM gpu_latest
            WHERE {SITE} AND ts > now64(3) - INTERVAL {HEARD_S} SECOND AND temp_gpu_c IS NOT NULL
            GROUP BY gpu
        ) AS l ON p.gpu_id = l.gpu
        GROUP BY rack, node
    )
) AS h
ARRAY JOIN arrayZip(members.1, members.2, members.3) AS place
WHERE above_c > 0
ORDER BY above_c DESC, node, gpu
LIMIT 30
""",
    columns=dict.fromkeys(("temp_c", "peers_c", "above_c"), "celsius") | {"power_w": "watt"},
    links=NODE_LINK,
    hidden=HIDDEN,
    width=10,
    height=12,
)
THROTTLING: Final = Panel(
    kind="timeseries",
    title="GPUs slowed, by cause",
    description=(
        "GPU-seconds of slowing per second: how many GPUs on average were slowed by the power cap,"
        " by software or hardware thermal protection, by the power brake (tenant_minutes). A GPU"
        " slowed for two reasons counts in both. A source that does not report them adds nothing."
        " No data: no minutes in the range."
    ),
    sql=f"""
WITH toStartOfMinute({EDGE}) AS edge
SELECT time, power_cap / ms AS power_cap, sw_thermal / ms AS sw_thermal, hw_thermal / ms AS hw_thermal,
    power_brake / ms AS power_brake
FROM
(
    SELECT toStartOfInterval(ts, INTERVAL {MINUTES_STEP_S} second) AS time,
        1000 * (least(toUnixTimestamp(time) + {MINUTES_STEP_S}, toUnixTimestamp(edge)) - toUnixTimestamp(time)) AS ms,
        sum(throttle_power_cap_ms) AS power_cap, sum(throttle_sw_thermal_ms) AS sw_thermal,
        sum(throttle_hw_thermal_ms) AS hw_thermal, sum(throttle_power_brake_ms) AS power_brake
    FROM tenant_minutes
    WHERE {SITE} AND ts >= toStartOfInterval($__fromTime, INTERVAL {MINUTES_STEP_S} second) AND ts < edge
    GROUP BY time
)
ORDER BY time
""",
    min=0,
    width=12,
)
PAGES: Final = (
    Page(
        uid="megawatch-fleet",
        title="Fleet health",
        answers="Which GPUs are missing, frozen, hot, slowed or failing, and where to send somebody.",
        variables=(SITE_VARIABLE,),
        annotations=(ALERTS, DEPLOYS),
        rows=(
            (GPUS_NOW, HANDS_NOW),
            (WORST_NODES, WAITING),
            (MISSING_RACKS, MISSING_NODES),
            (RACK_HEAT, HOTTEST),
            (THROTTLING, XIDS_OVER_TIME),
            (XID_CODES,),
            (MEMORY_ERRORS, LINK_ERRORS),
            (FROZEN,),
        ),
        refresh="30s",
    ),
)
