"""Does every sample arrive, once and soon? What the pipelines say of themselves, by ingest_log."""

from typing import Final

from dashboards.annotations import ALERTS
from dashboards.panel import BAD, WARN, Page, Panel

_LOG: Final = "FROM ingest_log WHERE kind = 'insert' AND $__timeFilter_ms(at)"
_RATE_S: Final = "greatest(10, $__interval_s)"
"""Inserts come every second or two: in shorter steps a rate jumps between twice itself and nothing."""
_STEP: Final = f"toStartOfInterval(at, toIntervalSecond({_RATE_S}))"
_STEP_S: Final = f"greatest(1, least(toUnixTimestamp(time) + {_RATE_S}, toUnixTimestamp($__toTime)) - greatest(toUnixTimestamp(time), toUnixTimestamp($__fromTime)))"
"""The seconds of the step that `time` begins which lie within the range."""
_LIVE: Final = "topic = 'samples' AND rows > 0"
_LAG_MS: Final = "toUnixTimestamp64Milli(at) - toUnixTimestamp64Milli({edge})"
_NO_INSERT: Final = "No data: nothing was inserted in the range."


def _rate(title: str, what: str, meaning: str, unit: str, where: str = "") -> Panel:
    return Panel(
        kind="timeseries",
        title=title,
        description=f"{meaning} Mean of each step of at least 10 s, from ingest_log. {_NO_INSERT}",
        sql=f"""
SELECT {_STEP} AS time, topic, sum({what}) / {_STEP_S} AS per_second
{_LOG}{where}
GROUP BY time, topic
ORDER BY time
""",
        unit=unit,
        min=0,
        label="topic",
        width=8,
    )


_NOW: Final = (
    Panel(
        kind="stat",
        title="Rows inserted",
        description="GPU rows a second over the last minute of the range, all lanes, from"
        " ingest_log. No data: no insert of samples in that minute.",
        sql="""
SELECT sum(rows) / 60 AS rows_per_second
FROM ingest_log
WHERE kind = 'insert' AND rows > 0 AND at > $__toTime_ms - INTERVAL 1 MINUTE AND at <= $__toTime_ms
HAVING count() > 0
""",
        unit="rowsps",
        width=4,
        height=4,
    ),
    Panel(
        kind="stat",
        title="Watermark age",
        description="How far the newest watermark lies behind the end of the range: everything"
        " before it has been heard from every live partition. From ingest_log of the last day of the"
        " range. No data: no pipeline has said one.",
        sql="""
SELECT (toUnixTimestamp64Milli($__toTime_ms) - toUnixTimestamp64Milli(max(watermark))) / 1000
    AS age_s
FROM ingest_log
WHERE kind = 'insert' AND at > $__toTime_ms - INTERVAL 1 DAY AND at <= $__toTime_ms
    AND toUnixTimestamp64Milli(watermark) > 0
HAVING count() > 0
""",
        unit="s",
        decimals=1,
        thresholds=((15, WARN), (60, BAD)),
        width=4,
        height=4,
    ),
    Panel(
        kind="stat",
        title="Sensor to query, p99",
        description="Age of the oldest tick of an insert when it could be queried, weighted by rows:"
        " an upper bound of every row's. Live lane, over the range, from ingest_log. " + _NO_INSERT,
        sql=f"""
SELECT quantileExactWeighted(0.99)({_LAG_MS.format(edge="from_ts")}, rows) / 1000 AS p99_s
{_LOG} AND {_LIVE}
HAVING count() > 0
""",
        unit="s",
        decimals=1,
        thresholds=((6, WARN), (30, BAD)),
        width=4,
        height=4,
    ),
    Panel(
        kind="stat",
        title="Messages missing",
        description="Messages missing in their streams when a later one came, over the range; some"
        " may have come after it. From ingest_log. " + _NO_INSERT,
        sql=f"SELECT sum(gaps) AS missing {_LOG} HAVING count() > 0",
        thresholds=((1, WARN),),
        width=4,
        height=4,
    ),
    Panel(
        kind="stat",
        title="Dead letters waiting",
        description="Messages that could not be read and were not replayed since, of all time, from"
        " dead_letters. 0 is counted, not assumed.",
        sql="SELECT count() AS waiting FROM dead_letters FINAL WHERE replayed_at IS NULL",
        thresholds=((1, BAD),),
        width=4,
        height=4,
    ),
    Panel(
        kind="stat",
        title="Disk in use",
        description="Of the tables of this database on this server, from system.parts.",
        sql="""
SELECT sum(bytes_on_disk) AS bytes FROM system.parts WHERE active AND database = currentDatabase()
HAVING count() > 0
""",
        unit="bytes",
        width=4,
        height=4,
    ),
)

_RATES: Final = (
    _rate(
        "Rows by topic", "rows", "GPU rows inserted a second; records of other topics are messages.",
        "rowsps", " AND topic IN ('samples', 'backfill')",
    ),
    _rate("Messages by topic", "messages", "Messages read a second.", "cps"),
    _rate("Bytes by topic", "bytes", "Bytes of messages a second, uncompressed.", "Bps"),
)  # fmt: skip

_LAGS: Final = (
    Panel(
        kind="timeseries",
        title="Lag and freshness of the live lane",
        description="Seconds from a tick to the moment when its rows could be queried, weighted by"
        " rows: `newest` for the last tick of each insert (lag), `oldest` for its first one, which"
        " waited longest in its message (freshness, an upper bound). From ingest_log. "
        + _NO_INSERT,
        sql=f"""
SELECT $__timeInterval(at) AS time,
    quantileExactWeighted(0.5)({_LAG_MS.format(edge="until_ts")}, rows) / 1000 AS newest_p50,
    quantileExactWeighted(0.99)({_LAG_MS.format(edge="until_ts")}, rows) / 1000 AS newest_p99,
    quantileExactWeighted(0.5)({_LAG_MS.format(edge="from_ts")}, rows) / 1000 AS oldest_p50,
    quantileExactWeighted(0.99)({_LAG_MS.format(edge="from_ts")}, rows) / 1000 AS oldest_p99
{_LOG} AND {_LIVE}
GROUP BY time
ORDER BY time
""",
        unit="s",
        min=0,
    ),
    Panel(
        kind="timeseries",
        title="Age of watermark and minutes",
        description="How far the newest watermark was behind when each insert was done, the most of"
        " each step, and how far behind the newest filled minute was. From ingest_log. No data: no"
        " insert, or no filling, in the step.",
        sql="""
SELECT $__timeInterval(at) AS time, if(kind = 'fill', 'newest filled minute', 'watermark') AS behind,
    max(greatest(0, toUnixTimestamp64Milli(at)
        - toUnixTimestamp64Milli(if(kind = 'fill', until_ts, watermark)))) / 1000 AS age_s
FROM ingest_log
WHERE $__timeFilter_ms(at)
    AND (kind = 'fill' OR kind = 'insert' AND toUnixTimestamp64Milli(watermark) > 0)
GROUP BY time, behind
ORDER BY time
""",
        unit="s",
        min=0,
        label="behind",
    ),
)

_WORK: Final = (
    Panel(
        kind="timeseries",
        title="Gaps, duplicates, rejected",
        description="Messages of each step: missing when a later one came, read before, or refused"
        " (dead letters). Zeros are counted. From ingest_log. " + _NO_INSERT,
        sql=f"""
SELECT $__timeInterval(at) AS time, sum(gaps) AS missing, sum(duplicates) AS duplicates,
    sum(rejected) AS rejected
{_LOG}
GROUP BY time
ORDER BY time
""",
        min=0,
        width=8,
    ),
    Panel(
        kind="timeseries",
        title="Inserts a minute",
        description="Inserts by topic, as a rate per minute; each makes parts that must be merged."
        " From ingest_log. " + _NO_INSERT,
        sql=f"""
SELECT {_STEP} AS time, topic, 60 * count() / {_STEP_S} AS per_minute
{_LOG}
GROUP BY time, topic
ORDER BY time
""",
        unit="cpm",
        min=0,
        label="topic",
        width=8,
    ),
    Panel(
        kind="timeseries",
        title="Rows per insert",
        description="Mean rows of the inserts that had any; inserts of less than 100,000 rows cost"
        " double on a large site. From ingest_log. " + _NO_INSERT,
        sql=f"""
SELECT $__timeInterval(at) AS time, topic, sum(rows) / count() AS rows_per_insert
{_LOG} AND rows > 0
GROUP BY time, topic
ORDER BY time
""",
        min=0,
        label="topic",
        width=8,
    ),
)

_FILLS: Final = (
    Panel(
        kind="timeseries",
        title="Minutes filled",
        description="Minutes of gpu_minutes computed in each step, touched ones again. From"
        " ingest_log. No data: nothing was filled.",
        sql="""
SELECT $__timeInterval(at) AS time, sum(rows) AS minutes
FROM ingest_log
WHERE kind = 'fill' AND $__timeFilter_ms(at)
GROUP BY time
ORDER BY time
""",
        min=0,
    ),
    Panel(
        kind="table",
        title="Imports",
        description="The last imports of the range, from ingest_log. No data: none.",
        sql="""
SELECT at AS time, topic AS import, rows, from_ts AS first_sample, until_ts AS last_sample
FROM ingest_log
WHERE kind = 'import' AND $__timeFilter_ms(at)
ORDER BY at DESC
LIMIT 50
""",
    ),
)

_REFUSED: Final = (
    Panel(
        kind="table",
        title="Dead letters",
        description="Messages that could not be read, by reason: how many wait and how many were"
        " replayed. Of the range, from dead_letters; `megawatch deadletters list` shows them one by"
        " one. No data: none.",
        sql="""
SELECT topic, reason, countIf(replayed_at IS NULL) AS waiting, countIf(replayed_at IS NOT NULL)
    AS replayed, sum(length(payload)) AS bytes, min(at) AS first, max(at) AS last
FROM dead_letters FINAL
WHERE $__timeFilter_ms(at)
GROUP BY topic, reason
ORDER BY waiting DESC, last DESC
LIMIT 100
""",
        columns={"bytes": "bytes"},
    ),
    Panel(
        kind="table",
        title="What agents and drivers said",
        description="Events of the range by kind: XIDs, lost GPUs, driver reloads, drops of the"
        " agents' spools. From events. No data: none was said.",
        sql="""
SELECT kind, uniqExact(node) AS nodes, sum(count) AS times, max(ts) AS last,
    argMax(detail, ts) AS last_detail
FROM events FINAL
WHERE $__timeFilter_ms(ts)
GROUP BY kind
ORDER BY times DESC
LIMIT 50
""",
    ),
)

_IN_FORCE: Final = "inventory FINAL WHERE from_ts <= now64(3) AND ifNull(until_ts > now64(3), 1)"
_HEARD: Final = f"""
    SELECT toString(i.site_id) AS site_id, i.site AS site, i.node AS node, i.gpus AS gpus,
        l.heard AS heard
    FROM
    (
        SELECT site, site_id, node, node_id, count() AS gpus FROM {_IN_FORCE}
        GROUP BY site, site_id, node, node_id
    ) AS i
    LEFT JOIN (SELECT node, max(toNullable(ts)) AS heard FROM gpu_latest GROUP BY node) AS l
        ON l.node = i.node_id
"""
_NODE: Final = "/d/megawatch-node?var-site=${__data.fields.site_id}&var-node=${__data.fields.node}"
_SILENT: Final = "heard IS NULL OR heard < now64(3) - INTERVAL 1 MINUTE"

_AGENTS: Final = (
    Panel(
        kind="stat",
        title="Nodes in force, and silent",
        description="Nodes that the inventory expects now, and those of them without a sample of"
        " the last minute. From inventory and gpu_latest, now and not at the range's end. No data:"
        " no inventory.",
        sql=f"""
SELECT count() AS nodes, countIf({_SILENT}) AS silent
FROM ({_HEARD})
HAVING nodes > 0
""",
        width=4,
    ),
    Panel(
        kind="table",
        title="Nodes not heard for a minute",
        description="Nodes that the inventory expects now and that sent no live sample for a minute,"
        " the longest silent first, at most 200; `last_heard` is empty where nothing was ever heard."
        " From inventory and gpu_latest. No data: all are heard, or there is no inventory.",
        sql=f"""
SELECT site_id, site, node, gpus, heard AS last_heard,
    if(heard IS NULL, NULL, toUnixTimestamp64Milli(now64(3)) - toUnixTimestamp64Milli(heard)) / 1000
        AS silent_s
FROM ({_HEARD})
WHERE {_SILENT}
ORDER BY heard ASC NULLS FIRST, node
LIMIT 200
""",
        columns={"silent_s": "s"},
        links={"node": _NODE},
        hidden=("site_id",),
        width=10,
        no_value="all are heard",
    ),
    Panel(
        kind="table",
        title="Agents and drivers by version",
        description="Nodes and GPUs that the inventory expects now, by the versions that they named."
        " Empty: not said. From inventory.",
        sql=f"""
SELECT site, agent_version, driver_version, uniqExact(node_id) AS nodes, count() AS gpus
FROM {_IN_FORCE}
GROUP BY site, agent_version, driver_version
ORDER BY nodes DESC
LIMIT 100
""",
        width=10,
    ),
)

_STORED: Final = (
    Panel(
        kind="table",
        title="Tables",
        description="Rows, active parts, and bytes on disk and per row of every table of this"
        " database on this server. From system.parts. Rows not merged yet count as they lie.",
        sql="""
SELECT table, sum(p.rows) AS rows, count() AS parts, uniqExact(partition_id) AS partitions,
    sum(bytes_on_disk) AS on_disk, sum(data_uncompressed_bytes) AS uncompressed,
    sum(bytes_on_disk) / nullIf(sum(p.rows), 0) AS bytes_per_row
FROM system.parts AS p
WHERE active AND database = currentDatabase()
GROUP BY table
ORDER BY on_disk DESC
""",
        columns={"on_disk": "bytes", "uncompressed": "bytes", "bytes_per_row": "decbytes"},
        width=16,
        height=10,
    ),
    Panel(
        kind="bargauge",
        title="Disks",
        description="How full the disks of the server are, whoever fills them. From system.disks.",
        sql="""
SELECT name AS disk, 100 * (1 - unreserved_space / total_space) AS used_pct
FROM system.disks
WHERE total_space > 0
ORDER BY used_pct DESC
""",
        unit="percent",
        min=0,
        max=100,
        thresholds=((80, WARN), (92, BAD)),
        height=10,
        width=8,
    ),
)

PAGES: Final = (
    Page(
        uid="megawatch-pipeline",
        title="Pipeline",
        answers="Whether every sample arrives, once and soon, and what the store costs.",
        annotations=(ALERTS,),
        rows=(_NOW, _RATES, _LAGS, _WORK, _FILLS, _REFUSED, _AGENTS, _STORED),
    ),
)
