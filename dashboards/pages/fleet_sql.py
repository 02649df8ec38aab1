"""What the panels of the fleet share: where GPUs are, which were heard, their latest health.

Written for 220,000 GPUs: what is now comes from `gpu_latest`, what was from `gpu_minutes`,
`tenant_minutes` and `events`; never from raw rows. `gpu_health` has a row of each GPU a minute, and
one at once when something changes: a GPU's state is its newest row of the last HEALTH_S seconds, and
counters over the range are read only of the SUSPECTS GPUs whose counters are highest at its end.
"""

from typing import Final

from dashboards.sql import EDGE, SITE

HEARD_S: Final = 60
"""A GPU whose newest tick is older is missing."""
HEALTH_S: Final = 75
"""Every GPU that is heard has a row of health in it: a minute, a message's 4 s, and some to spare."""
SUSPECTS: Final = 100
RACKS: Final = 40
SAMPLE: Final = 25_000

AT: Final = "least(now64(3, 'UTC'), $__toTime_ms)"
OF_SITE: Final = "site_id = toUInt64OrZero(${site:singlequote})"
IN_FORCE: Final = f"{OF_SITE} AND from_ts <= now64(3) AND (until_ts IS NULL OR until_ts > now64(3))"
PLACES: Final = f"SELECT gpu_id, node, rack, hall, gpu_index FROM inventory FINAL WHERE {IN_FORCE}"
"""Where GPUs are that the inventory has in force now."""
HEARD: Final = (
    f"SELECT gpu FROM gpu_latest WHERE {SITE} AND ts > now64(3) - INTERVAL {HEARD_S} SECOND"
)
STATE: Final = f"{SITE} AND ts > {EDGE} - INTERVAL {HEALTH_S} SECOND AND ts <= {EDGE}"
XID: Final = f"{SITE} AND kind = 'xid' AND $__timeFilter_ms(ts)"
MINUTES_STEP_S: Final = "intDiv(greatest(60, $__interval_s) + 59, 60) * 60"
"""Whole minutes, or steps would hold now one minute, now two."""
NODE_LINK: Final = {
    "node": "/d/megawatch-node?var-site=${__data.fields.site_id}&var-node=${__data.fields.node}"
}
SITE_ID: Final = "${site:singlequote} AS site_id"
HIDDEN: Final = ("site_id",)
