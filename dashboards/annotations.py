"""Moments that every page can draw over its time series."""

from typing import Final

from dashboards.panel import BAD, GOOD, WARN, Annotation
from dashboards.sql import ALERT_PLACE

ALERTS: Final = Annotation(
    name="Alerts",
    sql=f"""
SELECT at AS time, trim(concat(rule, ' ', toString(state), ' ', {ALERT_PLACE})) AS text
FROM alert_history
WHERE $__timeFilter_ms(at) AND state IN ('firing', 'resolved')
ORDER BY at DESC
LIMIT 200
""",  # noqa: S608
    color=BAD,
)
"""Alerts as they begin and end, of all sites: their history has no column for it."""
DEPLOYS: Final = Annotation(
    name="Agent versions",
    sql="""
SELECT min(greatest(from_ts, asserted_at)) AS time,
    concat('agents ', agent_version, ' begin: ', toString(uniqExact(node_id)), ' nodes by now') AS text
FROM inventory
WHERE site_id = toUInt64OrZero(${site:singlequote}) AND agent_version != ''
GROUP BY agent_version
HAVING $__timeFilter_ms(time)
ORDER BY time DESC
LIMIT 50
""",
    color=GOOD,
)
"""The first node of the site that runs a version of the agent."""
ALLOCATIONS: Final = Annotation(
    name="Allocations",
    sql="""
SELECT $__timeInterval(from_ts) AS time,
    concat(if(uniqExact(tenant_id) = 1, any(tenant), concat(toString(uniqExact(tenant_id)), ' tenants')), ': ',
        toString(count()), ' allocations begin on ', toString(uniqExact(node_id)), ' nodes') AS text
FROM allocations
WHERE site_id = toUInt64OrZero(${site:singlequote}) AND tenant_id != 0 AND $__timeFilter_ms(from_ts)
GROUP BY time
ORDER BY time DESC
LIMIT 200
""",
    color=WARN,
)
"""Where allocations begin, those of a step together."""
