"""What has been said about each quarter, as one number: if it changes, the quarter is closed anew.

Over the contracts, allocations, inventory and meters in force within the quarter, each clipped to
it: a job that ends later than it was expected to changes no quarter before its end.
"""

from typing import Final

from pipeline.ledger.cells import QUARTER_MS
from pipeline.records import id64
from pipeline.store import Store

_FOREVER: Final = "toDateTime64('2200-01-01 00:00:00', 3, 'UTC')"
_SQL: Final = f"""
SELECT q * {QUARTER_MS}, groupBitXor(said) FROM
(
    SELECT arrayJoin(range(
            toUInt64(intDiv(greatest(since, {{since:Int64}}), {QUARTER_MS})),
            toUInt64(intDiv(least(until, {{until:Int64}}) + {QUARTER_MS - 1}, {QUARTER_MS})))) AS q,
        cityHash64(
            what, greatest(since, q * {QUARTER_MS}), least(until, (q + 1) * {QUARTER_MS})) AS said
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
    SELECT toUInt64(intDiv(toUnixTimestamp64Milli(ts), {QUARTER_MS})) AS q,
        cityHash64('meters', count(), sum(watts), max(ingested_at))
    FROM meters FINAL WHERE site = {{site:UInt64}}
        AND ts >= fromUnixTimestamp64Milli({{since:Int64}}, 'UTC')
        AND ts < fromUnixTimestamp64Milli({{until:Int64}}, 'UTC')
    GROUP BY q
)
GROUP BY q
"""  # noqa: S608


def said(store: Store, site: str, from_ms: int, until_ms: int) -> dict[int, int]:
    """A number for each quarter in [from_ms, until_ms), whole quarters; absent: nothing was said."""
    found = store.query(
        _SQL, {"site": id64(site), "name": site, "since": from_ms, "until": until_ms}
    ).rows
    return {int(quarter): int(number) for quarter, number in found}
