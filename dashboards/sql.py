"""Pieces of SQL that several pages share.

`edge` is the end of what is complete: the range's end, or what the pipelines have settled. Steps of
less than a minute are read from the seconds, longer ones from the minutes; watts are watt-seconds
of a step over its seconds, as `megawatch power` has them, and never scaled up.
"""

from typing import Final

from dashboards.panel import Variable

SITE: Final = "site = toUInt64OrZero(${site:singlequote})"
TENANT: Final = "tenant = toUInt64OrNull(${tenant:singlequote})"

EDGE: Final = "least($__toTime, (SELECT until FROM settled))"
"""WITH ... AS edge, of seconds."""
STEP_EDGE: Final = f"if($__interval_s < 60, {EDGE}, toStartOfMinute({EDGE}))"
"""WITH ... AS edge, of the steps of POWER."""
STEP_S: Final = "greatest(1, least(toUnixTimestamp(time) + $__interval_s, toUnixTimestamp(edge)) - toUnixTimestamp(time))"
"""The seconds of a step that `time` begins."""


def power(where: str) -> str:
    """Rows of site, tenant and ts that have power and energy, at the resolution that a step needs.

    Needs `edge` from a WITH; the first step is read whole, also where the range begins within it.
    """
    columns = "site, tenant, ts, power_w_ms, power_w_dt_ms, energy_j, rows, dt_ms"
    since = "ts >= toStartOfInterval($__fromTime, INTERVAL $__interval_s second) AND ts < edge"
    return (
        f"SELECT {columns} FROM power_seconds WHERE $__interval_s < 60 AND {where} AND {since}"
        f" UNION ALL SELECT {columns} FROM tenant_minutes"
        f" WHERE $__interval_s >= 60 AND {where} AND {since}"
    )


SITE_VARIABLE: Final = Variable(
    name="site", label="Site", sql="SELECT toString(id), name FROM sites ORDER BY name"
)

NEWEST: Final = "(SELECT max(ts) + INTERVAL 1 SECOND FROM power_seconds)"
MEASURED_EDGE: Final = f"least({EDGE}, {NEWEST})"
"""WITH ... AS edge: EDGE, and no later than the newest second, as `megawatch power` has it."""
MEASURED_STEP_EDGE: Final = f"""if($__interval_s < 60 OR {MEASURED_EDGE} = {NEWEST}, {MEASURED_EDGE},
    toStartOfMinute({MEASURED_EDGE}))"""
"""The same of the steps of POWER: whole minutes, unless there is nothing behind them."""
STEP_EDGE_BEYOND: Final = (
    f"if($__interval_s < 60 OR {EDGE} >= {NEWEST}, {EDGE}, toStartOfMinute({EDGE}))"
)
"""STEP_EDGE, of steps that count also where nothing came: the last one whole if no row is behind."""
NOW: Final = f"""(SELECT toNullable(max(ts)) FROM power_seconds WHERE {SITE}
    AND ts >= $__toTime - INTERVAL 1 MINUTE AND ts < {EDGE} HAVING count() > 0)"""
"""The last complete second of the site; NULL if there is none in the range's last minute."""
TENANT_LINK: Final = (
    "/d/megawatch-tenant?var-site=${__data.fields.site_id}&var-tenant=${__data.fields.tenant_id}"
)
"""From a table with these hidden columns."""
LIVE: Final = "Live, by the provisional stamp of rows; GPUs only, never scaled up."
"""A description's word on where its watts are from."""


def contracts(at: str, where: str = "1") -> str:
    """Contracts of the site in force at a time: of each the newest assertion, none withdrawn."""
    return (
        f"SELECT * FROM ({asserted(where)}) WHERE from_ts <= {at}"
        f" AND (until_ts IS NULL OR (until_ts > {at} AND until_ts > from_ts))"
    )


def asserted(where: str = "1") -> str:
    """Contracts of the site, of each the newest assertion."""
    return (
        "SELECT * FROM contracts"
        " WHERE site IN (SELECT name FROM sites WHERE id = toUInt64OrZero(${site:singlequote}))"
        f" AND {where} ORDER BY site, tenant, from_ts, selectors, asserted_at DESC"
        " LIMIT 1 BY site, tenant, from_ts, selectors"
    )


def tenant_name(key: str) -> str:
    """The name of a tenant's id, of `tenants AS t` that was joined on it; the id in hex without one."""
    return f"if(t.name = '', leftPad(lower(hex({key})), 16, '0'), t.name)"


ALERT_PLACE: Final = """arrayStringConcat(arrayFilter(text -> text != '', arrayMap(
        name -> JSONExtractString(labels, name),
        ['site', 'hall', 'rack', 'pdu', 'node', 'gpu', 'meter', 'tenant', 'workload'])), ' ')"""
"""What an alert's labels name, from the largest to the smallest; names say what they are of."""
