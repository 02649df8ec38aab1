"""Is the site well, and whose megawatts are they?"""

from typing import Final

from dashboards.panel import Page, Panel
from dashboards.sql import SITE, SITE_VARIABLE, STEP_EDGE, STEP_S, power

POWER_BY_TENANT: Final = Panel(
    kind="timeseries",
    title="Power by tenant",
    description="Mean watts of each step, GPUs only, from the provisional stamp of live rows.",
    sql=f"""
WITH {STEP_EDGE} AS edge
SELECT $__timeInterval(ts) AS time, ifNull(any(name), toString(tenant)) AS tenant_name,
    toFloat64(sum(power_w_ms)) / 1000 / {STEP_S} AS watts
FROM ({power(SITE)}) AS p LEFT JOIN tenants ON tenants.id = p.tenant
GROUP BY time, tenant
ORDER BY time
""",
    unit="watt",
    min=0,
    label="tenant_name",
    stacked=True,
    width=16,
    height=10,
)

PAGES: Final = (
    Page(
        uid="megawatch-site",
        title="Site power",
        answers="How many megawatts the site draws now, whose they are, and what moved them.",
        variables=(SITE_VARIABLE,),
        rows=((POWER_BY_TENANT,),),
    ),
)
