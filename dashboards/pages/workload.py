"""How does one job run over its GPUs: its power, its rhythm, and which GPU holds it back?"""

from typing import Final

from dashboards.annotations import ALERTS, DEPLOYS
from dashboards.pages.stragglers import STRAGGLERS
from dashboards.pages.workload_sql import (
    ALL,
    CAUSES,
    EXPECTED,
    FEW,
    FOREVER,
    GOOD,
    HELD,
    LEAST_S,
    MANY,
    MEASURED,
    NONE,
    RHYTHM_S,
    ROWS,
    SHARES,
    SITE,
    STEP_S,
    TIME,
    WATTS,
    WORKLOAD,
    job,
    mean,
    newest,
)
from dashboards.panel import BAD, WARN, Page, Panel, Variable
from dashboards.sql import SITE_VARIABLE

_LONG: Final = (
    f" Raw seconds, or whole minutes of the job where those would be more than {ROWS:,} rows."
)
_MANY: Final = (
    f" Of {MANY:,} of its GPUs (those of the lowest ids, which is chance) if it has more."
)

WHO: Final = Panel(
    kind="table",
    title="Job",
    description="Who runs it and on how many GPUs over all its life, as the schedulers said last;"
    " until is empty while it runs. From allocations and inventory. No data: no such job.",
    sql=f"""
WITH {HELD}
SELECT any(h.workload) AS job, any(h.tenant) AS tenant, any(h.account) AS account,
    arrayStringConcat(arraySort(groupUniqArray(h.source)), ', ') AS said_by,
    min(h.from_ts) AS since, if(max(h.until_ts) = {FOREVER}, NULL, max(h.until_ts)) AS until,
    uniqExact(h.node_id) AS nodes, (SELECT count() FROM mine) AS gpus
FROM held AS h
HAVING count() > 0
""",
    width=24,
    height=4,
)
NOW: Final = Panel(
    kind="table",
    title="Newest second",
    description="Watts of the job in the newest complete second of the range, the sum over the GPUs"
    " that were measured and never scaled up, beside how many of its GPUs those are. From"
    " gpu_samples." + NONE,
    sql=f"""
WITH {newest(str(LEAST_S), ALL)}
SELECT toDateTime(toUnixTimestamp(ts), 'UTC') AS second,
    sumIf(toFloat64(power_w) * least(dt_ms, 1000), {GOOD}) / 1000 AS watts,
    uniqExact(gpu) AS gpus_measured,
    (SELECT countIf(arrayExists(s -> s.1 < high_s * 1000 AND s.2 >= high_s * 1000, spans)) FROM mine)
        AS gpus_held
FROM seconds
GROUP BY second
ORDER BY second DESC
LIMIT 1
""",
    columns={"watts": "watt"},
    width=9,
    height=4,
)
ENERGY: Final = Panel(
    kind="stat",
    title="Energy",
    description="Measured energy in the range, GPUs only, from their counters where they have them."
    + _LONG + NONE,
    sql=f"""
WITH {job(ALL)},
{MEASURED}
SELECT sum(joules) / 3600 AS energy_wh
FROM measured
HAVING count(joules) > 0
""",
    unit="watth",
    width=4,
    height=4,
)  # fmt: skip
LEDGER: Final = Panel(
    kind="stat",
    title="Energy so far, by the ledger",
    description="Measured and bridged energy of all closed quarters of the job, whatever the range,"
    " from ledger_holders. No data: no quarter of it is closed yet.",
    sql=f"""
WITH {HELD}
SELECT toFloat64(sum(energy_j + bridged_j)) / 3600 AS energy_wh
FROM ledger_holders
WHERE site = {SITE} AND workload = {WORKLOAD}
    AND ts >= (SELECT toStartOfFifteenMinutes(toDateTime(min(from_ts))) FROM held)
    AND (ts, version) IN
    (
        SELECT ts, max(version) FROM ledger_closes
        WHERE site = {SITE} AND state = 'closed'
            AND ts >= (SELECT toStartOfFifteenMinutes(toDateTime(min(from_ts))) FROM held)
        GROUP BY ts
    )
HAVING count() > 0
""",
    unit="watth",
    width=4,
    height=4,
)
COVERED: Final = Panel(
    kind="stat",
    title="Coverage of the range",
    description="Measured GPU-time over the GPU-time that the job held in the range, up to what has"
    " settled." + _LONG + " No data: the job held nothing in the range.",
    sql=f"""
WITH {job(ALL)},
{MEASURED},
{EXPECTED}
SELECT 100 * least(1, (SELECT sum(dt_ms) FROM measured) / sum(held_ms)) AS coverage_pct
FROM expected
HAVING sum(held_ms) > 0
""",
    unit="percent",
    decimals=2,
    width=3,
    height=4,
)
SLOWED: Final = Panel(
    kind="stat",
    title="Throttled",
    description="Share of the measured GPU-time in which clocks were held down, by power cap, heat"
    " or power brake; causes may overlap, the longest of each row counts." + _LONG + _MANY + NONE,
    sql=f"""
WITH {job(MANY)},
{MEASURED}
SELECT 100 * sum(least(toFloat64(dt_ms), greatest({", ".join(f"ifNull(throttle_{c}_ms, 0)" for c in CAUSES)})))
    / sum(dt_ms) AS throttled_pct
FROM measured
WHERE {" OR ".join(f"isNotNull(throttle_{c}_ms)" for c in CAUSES)}
HAVING sum(dt_ms) > 0
""",
    unit="percent",
    decimals=2,
    thresholds=((1, WARN), (10, BAD)),
    width=4,
    height=4,
)

POWER: Final = Panel(
    kind="timeseries",
    title="Power of the job",
    description="Mean watts of each step, the sum over the job's GPUs, never scaled up for GPUs that"
    " were not measured: see the coverage." + _LONG + NONE,
    sql=f"""
WITH {job(ALL)},
{MEASURED}
SELECT {TIME}, sum(product) / 1000 / {STEP_S} AS watts
FROM measured
GROUP BY step
ORDER BY time
""",
    unit="watt",
    min=0,
    height=9,
)
SPREAD: Final = Panel(
    kind="timeseries",
    title="Power per GPU: least, median, most",
    description="Mean watts of each GPU and step; drawn are the lowest, the median and the highest"
    " GPU of each step, not every GPU." + _LONG + _MANY + NONE,
    sql=f"""
WITH {job(MANY)},
{MEASURED}
SELECT {TIME}, min(watts) AS least, quantile(0.5)(watts) AS median, max(watts) AS most
FROM (SELECT step, gpu, sum(product) / sum(product_ms) AS watts FROM measured
    GROUP BY step, gpu HAVING sum(product_ms) > 0)
GROUP BY step
ORDER BY time
""",
    unit="watt",
    min=0,
    height=9,
)
COVERAGE: Final = Panel(
    kind="timeseries",
    title="Coverage",
    description="Measured GPU-time over the GPU-time that the job held, step by step; 0 where none"
    " of its GPUs was measured." + _LONG + " No data: the job held nothing then.",
    sql=f"""
WITH {job(ALL)},
{MEASURED},
{EXPECTED}
SELECT {TIME}, 100 * least(1, ifNull(m.had_ms, 0) / held_ms) AS coverage_pct
FROM expected AS e
LEFT JOIN (SELECT step, sum(dt_ms) AS had_ms FROM measured GROUP BY step) AS m USING (step)
ORDER BY time
""",
    unit="percent",
    min=0,
    max=100,
)
THROTTLING: Final = Panel(
    kind="timeseries",
    title="Throttling by cause",
    description="Share of the measured GPU-time in which each cause held clocks down; causes may"
    " overlap." + _LONG + _MANY + NONE,
    sql=f"""
WITH {job(MANY)},
{MEASURED}
SELECT {TIME}, {SHARES}
FROM measured
GROUP BY step
HAVING sum(dt_ms) > 0
ORDER BY time
""",
    unit="percent",
    min=0,
)  # fmt: skip

_RECENT: Final = (
    f" Raw seconds: the newest {RHYTHM_S} of the range, of {FEW} of its GPUs (those of the lowest"
    " ids, which is chance) if it has more. From gpu_samples."
)
RHYTHM: Final = Panel(
    kind="timeseries",
    title="Step rhythm: power",
    description="Watts of the mean GPU of the job, second by second. Power is an average over 1 s:"
    " steps shorter than 2 s cannot be seen." + _RECENT + NONE,
    sql=f"""
WITH {newest(str(RHYTHM_S), FEW)}
SELECT toDateTime(toUnixTimestamp(ts), 'UTC') AS time, {WATTS} AS watts
FROM seconds
GROUP BY time
HAVING isNotNull(watts)
ORDER BY time
""",
    unit="watt",
    width=9,
)
BUSY: Final = Panel(
    kind="timeseries",
    title="Step rhythm: utilisation",
    description="Means over the job's GPUs, second by second: time with a kernel running,"
    " multiprocessors with work, tensor cores active (the last two from Hopper on)." + _RECENT
    + NONE,
    sql=f"""
WITH {newest(str(RHYTHM_S), FEW)}
SELECT toDateTime(toUnixTimestamp(ts), 'UTC') AS time, {mean("util_gpu_pct")} AS gpu_busy,
    {mean("sm_active_pct")} AS sm_active, {mean("tensor_active_pct")} AS tensor_active
FROM seconds
GROUP BY time
ORDER BY time
""",
    unit="percent",
    min=0,
    max=100,
    width=9,
)  # fmt: skip
PERIOD: Final = Panel(
    kind="table",
    title="Oscillation",
    description="The period after which the power of the mean GPU repeats itself best, by its"
    " correlation with itself: the shortest peak of at least nine tenths of the highest one, from 2 s"
    " to a third of the seconds read; periods of 2 s and less cannot be told from averages over 1 s."
    " Swing: the middle nine tenths of its watts. Empty: no peak above 0.3, or a second is missing."
    + _RECENT,
    sql=f"""
WITH {newest(str(RHYTHM_S), FEW)},
line AS
(
    SELECT groupArray(watts) AS watts, max(at_s) - min(at_s) + 1 = count() AS whole
    FROM
    (
        SELECT toUnixTimestamp(ts) AS at_s, assumeNotNull({WATTS}) AS watts
        FROM seconds
        GROUP BY at_s
        HAVING sumIf(dt_ms, {GOOD}) > 0
        ORDER BY at_s
    )
),
waves AS
(
    SELECT watts, arrayMap(w -> w - arrayAvg(watts), watts) AS wave,
        arrayMap(lag -> arraySum(arrayMap((a, b) -> a * b, arrayResize(wave, length(wave) - lag),
            arraySlice(wave, lag + 1))) / sqrt(1e-9 + arraySum(a -> a * a, arrayResize(wave,
            length(wave) - lag)) * arraySum(a -> a * a, arraySlice(wave, lag + 1))),
            range(least(200, intDiv(length(wave), 3)) + 2)) AS alike,
        arrayFilter(lag -> alike[lag + 1] > 0.3 AND alike[lag + 1] >= alike[lag]
            AND alike[lag + 1] >= alike[lag + 2], range(3, greatest(3, length(alike) - 1))) AS peaks,
        arrayFirst(lag -> alike[lag + 1] >= 0.9 * arrayMax(p -> alike[p + 1], peaks), peaks) AS best
    FROM line
    WHERE whole AND length(watts) >= {LEAST_S}
)
SELECT if(empty(peaks), NULL, best) AS period_s, if(empty(peaks), NULL, alike[best + 1]) AS likeness,
    arrayReduce('quantile(0.95)', watts) - arrayReduce('quantile(0.05)', watts) AS swing_w,
    length(watts) AS seconds_read
FROM waves
""",
    columns={"period_s": "s", "likeness": "percentunit", "swing_w": "watt", "seconds_read": "s"},
    width=6,
)
PAGES: Final = (
    Page(
        uid="megawatch-workload",
        title="Workload",
        answers="How one job runs: its power and energy, its rhythm, and which GPU holds it back.",
        variables=(
            SITE_VARIABLE,
            Variable(
                name="workload",
                label="Workload",
                sql=f"""
SELECT toString(id), name
FROM workloads
WHERE site = {SITE}
ORDER BY first_ts DESC, name
LIMIT 300
""",
            ),
        ),
        annotations=(ALERTS, DEPLOYS),
        rows=(
            (WHO,),
            (NOW, ENERGY, LEDGER, COVERED, SLOWED),
            (POWER, SPREAD),
            (STRAGGLERS,),
            (RHYTHM, BUSY, PERIOD),
            (THROTTLING, COVERAGE),
        ),
    ),
)
