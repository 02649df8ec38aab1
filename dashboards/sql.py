"""Pieces of SQL that several pages share.

`edge` is the end of what is complete: the range's end, or what the pipelines have settled. Steps of
less than a minute are read from the seconds, longer ones from the minutes; watts are watt-seconds
of a step over its seconds, as `megawatch power` has them, and never scaled up.
"""

from typing import Final

from dashboards.panel import Variable

SITE: Final = "site = toUInt64(${site:singlequote})"
TENANT: Final = "tenant = toUInt64(${tenant:singlequote})"

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
