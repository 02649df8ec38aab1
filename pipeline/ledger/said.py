"""What has been said about each quarter, as one number: if it changes, the quarter is closed anew.

Over the contracts, allocations and inventory in force within the quarter, each clipped to it (a job
that ends later than it was expected to changes no quarter before its end), and how many readings
there are of meters.
"""

from typing import Final

from pipeline.ledger.cells import QUARTER_MS
from pipeline.records import id64
from pipeline.store import Store

_FOREVER: Final = "toDateTime64('2200-01-01 00:00:00', 3, 'UTC')"
# An interval says the same of every quarter that it covers whole: it is noted where those begin and
# where they end, and XOR between the two takes it in and out again. Its cut ends are noted apart.
_SQL: Final = f"""
WITH
    greatest(since, {{since:Int64}}) AS a, least(until, {{until:Int64}}) AS b,
    intDiv(a + {QUARTER_MS - 1}, {QUARTER_MS}) AS first, intDiv(b, {QUARTER_MS}) AS last
SELECT note.1 AS q, note.2 AS lasts, groupBitXor(note.3) FROM
(
    SELECT arrayJoin(multiIf(
        first > last, [(last, 0, cityHash64(what, a, b))],
        arrayConcat(
            [(first, 1, what), (last, 1, what)],
            if(a % {QUARTER_MS} = 0, [], [(first - 1, 0, cityHash64(what, a, first))]),
            if(b % {QUARTER_MS} = 0, [], [(last, 0, cityHash64(what, last, b))])))) AS note
    FROM
    (
        SELECT cityHash64('allocation', source, tenant_id, workload_id, node_id, gpus,
                argMax(share_ppm, asserted_at)) AS what,
            toUnixTimestamp64Milli(from_ts) AS since,
            toUnixTimestamp64Milli(
                ifNull(argMax(tuple(until_ts), asserted_at).1, {_FOREVER})) AS until
        FROM allocations WHERE site_id = {{site:UInt64}}
        GROUP BY source, tenant_id, workload_id, node_id, gpus, from_ts
        UNION ALL
        SELECT cityHash64('inventory', node_id, gpu_id, gpu_index), toUnixTimestamp64Milli(from_ts),
            toUnixTimestamp64Milli(ifNull(until_ts, {_FOREVER}))
        FROM inventory FINAL WHERE site_id = {{site:UInt64}}
        UNION ALL
        SELECT cityHash64('contract', tenant_id, selectors), toUnixTimestamp64Milli(from_ts),
            toUnixTimestamp64Milli(
                ifNull(argMax(tuple(until_ts), asserted_at).1, {_FOREVER}))
        FROM contracts WHERE site = {{name:String}} GROUP BY tenant_id, selectors, from_ts
    )
    WHERE since < {{until:Int64}} AND until > {{since:Int64}} AND until > since
    UNION ALL
    SELECT (toInt64(intDiv(toUnixTimestamp(ts) * 1000, {QUARTER_MS})), 0,
        cityHash64('meters', sum(readings)))
    FROM ledger_sources WHERE site = {{site:UInt64}}
        AND ts >= toDateTime(intDiv({{since:Int64}}, 1000), 'UTC')
        AND ts < toDateTime(intDiv({{until:Int64}}, 1000), 'UTC')
    GROUP BY ts
)
GROUP BY q, lasts
"""  # noqa: S608


def said(store: Store, site: str, from_ms: int, until_ms: int) -> dict[int, int]:
    """A number for each quarter in [from_ms, until_ms), whole quarters."""
    begun: dict[int, int] = {}
    alone: dict[int, int] = {}
    for quarter, lasts, number in store.query(
        _SQL, {"site": id64(site), "name": site, "since": from_ms, "until": until_ms}
    ).rows:
        (begun if lasts else alone)[quarter] = number
    out = {}
    standing = 0
    for quarter in range(from_ms // QUARTER_MS, until_ms // QUARTER_MS):
        standing ^= begun.get(quarter, 0)
        out[quarter * QUARTER_MS] = standing ^ alone.get(quarter, 0)
    return out
