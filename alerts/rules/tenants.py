"""What tenants were promised, and what their jobs make of it."""

from typing import Final

from alerts.rule import Rule, Signal

WINDOW_S: Final = 6 * 3600
EDGE: Final = "toStartOfMinute($at)"
"""Up to here minutes are complete."""
_FRESH: Final = "ts > $at - 60 AND ts <= $at + 60"


def _burn(seconds: int) -> str:
    """How many times faster than allowed the availability's budget is spent over a window."""
    begun = f"greatest(toUnixTimestamp($at) - toUnixTimestamp($at) % 60 - {seconds}, any(begun_s))"
    wanted = f"1000. * any(gpus) * (toUnixTimestamp($at) - toUnixTimestamp($at) % 60 - {begun})"
    delivered = f"sumIf(dt_ms, {EDGE} - {seconds} <= ts AND toUnixTimestamp(ts) >= begun_s)"
    allowed = "nullIf(1 - any(availability) / 100, 0)"
    return f"(1 - least(1, {delivered} / nullIf({wanted}, 0))) / {allowed}"


MINUTES: Final = Signal(
    name="tenant_minutes",
    every_s=60,
    clock="data",
    labels={"site": "of_site", "tenant": "of_tenant"},
    names={"site": "sites", "tenant": "tenants"},
    present="count()",
    with_="""WITH leases AS (
    SELECT sites.id AS lease_site, tenant_id AS lease_tenant, sum(of_gpus) AS gpus, sum(of_kw) AS kw,
        max(of_availability) AS availability, toUnixTimestamp(max(from_ts)) AS begun_s
    FROM
    (
        SELECT site, tenant_id, from_ts, selectors, argMax(contracted_gpus, asserted_at) AS of_gpus,
            argMax(toFloat64(contracted_kw), asserted_at) AS of_kw,
            argMax(toFloat64(availability_pct), asserted_at) AS of_availability,
            argMax(ifNull(until_ts, toDateTime64('2200-01-01 00:00:00', 3, 'UTC')), asserted_at) AS ends
        FROM contracts GROUP BY site, tenant_id, from_ts, selectors
        HAVING from_ts <= $at - 600 AND ends > $at
    ) AS c INNER JOIN sites ON sites.name = c.site
    GROUP BY lease_site, lease_tenant)""",
    source=f"""(
    SELECT site AS of_site, tenant AS of_tenant, ts, toFloat64(sum(power_w_ms)) AS power_w_ms,
        sum(m.dt_ms) AS dt_ms, sum(m.active_ms) AS active_ms
    FROM tenant_minutes AS m WHERE ts >= {EDGE} - {WINDOW_S} AND ts < {EDGE}
    GROUP BY of_site, of_tenant, ts
    UNION ALL SELECT lease_site, lease_tenant, {EDGE} - 60, 0, 0, 0 FROM leases
) AS m
LEFT JOIN leases ON lease_site = of_site AND lease_tenant = of_tenant""",  # noqa: S608
)
_LAST5: Final = f"ts >= {EDGE} - 300"

JOBS: Final = Signal(
    name="jobs",
    every_s=120,
    clock="data",
    labels={"site": "of_site", "tenant": "of_tenant", "workload": "of_workload"},
    names={"site": "sites", "tenant": "tenants", "workload": "workloads"},
    present=f"count() + (SELECT count() FROM gpu_latest WHERE {_FRESH})",  # noqa: S608
    source=f"""(
        SELECT site AS of_site, tenant AS of_tenant, workload AS of_workload, count() AS gpus,
            countIf(util_gpu_pct = 0) AS idle, countIf(isNotNull(util_gpu_pct)) AS told
        FROM gpu_latest FINAL WHERE {_FRESH} AND workload > 1
        GROUP BY of_site, of_tenant, of_workload HAVING idle > 0
    ) AS j""",  # noqa: S608
)

RULES: Final = (
    Rule(
        name="TenantOverContract",
        question="Does a tenant draw more kilowatts than its contract grants?",
        severity="ticket",
        scope="tenant",
        signal=MINUTES,
        value=f"100 * sumIf(power_w_ms, {_LAST5}) / 300e3 / nullIf(any(kw) * 1000, 0)",
        unit="%",
        above=100,
        for_s=300,
        keep_firing_s=300,
        page="tenant",
        tenant_visible=True,
        summary="{tenant} on {site}: GPUs draw {value} % of the contracted kilowatts, mean of 5 min",
    ),
    Rule(
        name="TenantUnderDelivered",
        question="Does a tenant get fewer GPUs than it pays for?",
        severity="ticket",
        scope="tenant",
        signal=MINUTES,
        value=f"100 * sumIf(dt_ms, {_LAST5}) / 300e3 / nullIf(any(gpus), 0)",
        unit="%",
        below=98,
        for_s=600,
        keep_firing_s=300,
        page="tenant",
        tenant_visible=True,
        summary="{tenant} on {site}: {value} % of the contracted GPUs are there",
    ),
    Rule(
        name="TenantSlaBurnFast",
        question="Is a tenant's availability being spent so fast that somebody must act now?",
        severity="page",
        scope="tenant",
        signal=MINUTES,
        value=f"least({_burn(3600)}, {_burn(300)})",
        unit="times",
        above=14.4,
        for_s=120,
        keep_firing_s=300,
        page="tenant",
        summary="{tenant} on {site}: availability is spent {value} times faster than the contract allows",
    ),
    Rule(
        name="TenantSlaBurnSlow",
        question="Will a tenant's availability be missed this month, at the rate of the last six hours?",
        severity="ticket",
        scope="tenant",
        signal=MINUTES,
        value=f"least({_burn(WINDOW_S)}, {_burn(1800)})",
        unit="times",
        above=6,
        for_s=900,
        keep_firing_s=900,
        page="tenant",
        summary="{tenant} on {site}: availability is spent {value} times faster than the contract allows",
    ),
    Rule(
        name="UnattributedWork",
        question="Do GPUs work that belong to nobody?",
        severity="ticket",
        scope="site",
        signal=MINUTES,
        value=(
            f"if(any(of_tenant) = 0 AND sumIf(dt_ms, {_LAST5}) > 0,"
            f" 100 * sumIf(active_ms, {_LAST5}) / sumIf(dt_ms, {_LAST5}), NULL)"
        ),
        unit="%",
        above=20,
        for_s=900,
        keep_firing_s=600,
        summary="{site}: GPUs of nobody are at work {value} % of the time",
    ),
    Rule(
        name="JobIdle",
        question="Does a job hold GPUs and use none of them?",
        severity="info",
        scope="job",
        signal=JOBS,
        value="100 * sum(idle) / nullIf(sum(told), 0)",
        unit="%",
        above=95,
        for_s=1800,
        keep_firing_s=300,
        page="job",
        tenant_visible=True,
        summary="{workload} of {tenant}: {value} % of its GPUs have been idle for half an hour",
    ),
    Rule(
        name="JobPartlyIdle",
        question="Do some of a job's GPUs stand still while the rest work: hung, or never started?",
        severity="info",
        scope="job",
        signal=JOBS,
        value="if(sum(idle) <= 0.5 * sum(told), 100 * sum(idle) / nullIf(sum(told), 0), NULL)",
        unit="%",
        above=1,
        for_s=900,
        keep_firing_s=300,
        page="job",
        tenant_visible=True,
        summary="{workload} of {tenant}: {value} % of its GPUs are idle while the others work",
    ),
)
