"""The facility's meters: over their caps, silent, stuck, at odds with the sum over GPUs."""

from typing import Final

from alerts.rule import Rule, Signal

METERS: Final = Signal(
    name="meters",
    every_s=30,
    clock="data",
    labels={
        "site": "of_site",
        **{kind: f"if(kind = '{kind}', meter, '')" for kind in ("hall", "row", "rack", "pdu")},
        "meter": "meter",
    },
    names={"site": "sites"},
    present="count()",
    source="""(
        SELECT site AS of_site, toString(meters.kind) AS kind, meter, max(ts) AS last_ts,
            avgIf(toFloat64(watts), ts >= $at - 30) AS latest_w,
            avgIf(toFloat64(watts), ts >= toStartOfMinute($at) - 600 AND ts < toStartOfMinute($at)) AS now_w,
            avgIf(toFloat64(watts), ts < toStartOfMinute($at) - 600) AS before_w,
            countIf(ts >= $at - 600) AS readings,
            minIf(watts, ts >= $at - 600) = maxIf(watts, ts >= $at - 600) AS stuck
        FROM meters
        WHERE meters.kind > 'node' AND ts >= toStartOfMinute($at) - 3600 AND ts < $at AND watts >= 0
        GROUP BY of_site, kind, meter
    ) AS m
    LEFT JOIN
    (
        SELECT site, toFloat64(sumIf(power_w_ms, ts >= toStartOfMinute($at) - 600)) / 600e3 AS gpus_now_w,
            toFloat64(sumIf(power_w_ms, ts < toStartOfMinute($at) - 600)) / 3000e3 AS gpus_before_w
        FROM tenant_minutes
        WHERE ts >= toStartOfMinute($at) - 3600 AND ts < toStartOfMinute($at)
        GROUP BY site
    ) AS g ON g.site = m.of_site
    LEFT JOIN $caps AS caps ON caps.scope = m.kind AND caps.name = m.meter""",
)
_ANY_SITE: Final = "if(any(kind) = 'site', arraySum(c -> if(c.1 = 0, c.2, 0), $site_caps), 0)"
"""The cap of a site that is not named, since there is but one."""

RULES: Final = (
    Rule(
        name="MeterOverCap",
        folds=False,
        question="Does a meter read more than its feed may carry?",
        severity="page",
        scope="pdu",
        signal=METERS,
        value=f"100 * max(latest_w) / nullIf(greatest(max(caps.watts), {_ANY_SITE}), 0)",
        unit="%",
        above=100,
        for_s=30,
        keep_firing_s=120,
        summary="{site}: meter {meter} reads {value} % of its cap",
    ),
    Rule(
        name="MeterSilent",
        question="Has a meter stopped that was read within the hour?",
        severity="ticket",
        scope="pdu",
        signal=METERS,
        value="dateDiff('second', max(last_ts), $at)",
        unit="s",
        above=300,
        for_s=60,
        summary="{site}: meter {meter} has been silent for {value} s",
    ),
    Rule(
        name="MeterStuck",
        question="Does a meter repeat one value, whatever the GPUs do?",
        severity="ticket",
        scope="pdu",
        signal=METERS,
        value="if(max(stuck) AND max(readings) >= 10, max(readings), NULL)",
        unit="readings",
        above=0,
        for_s=300,
        keep_firing_s=300,
        summary="{site}: meter {meter} gave the same value {value} times in ten minutes",
    ),
    Rule(
        name="GpuSumAboveMeter",
        question="Do GPUs draw more than the site's meter reads, which cannot be?",
        severity="ticket",
        scope="site",
        signal=METERS,
        value="if(any(kind) = 'site' AND max(now_w) > 0, 100 * max(gpus_now_w) / max(now_w), NULL)",
        unit="%",
        above=98,
        for_s=300,
        keep_firing_s=600,
        summary="{site}: GPUs are {value} % of what meter {meter} reads",
    ),
    Rule(
        name="GpuMeterDrift",
        question="Does the site's meter move while its GPUs do not?",
        severity="ticket",
        scope="site",
        signal=METERS,
        value=(
            "if(any(kind) = 'site' AND max(before_w) > 0 AND max(gpus_now_w)"
            " BETWEEN 0.9 * max(gpus_before_w) AND 1.1 * max(gpus_before_w),"
            " 100 * abs(max(now_w) / max(before_w) - max(gpus_now_w) / max(gpus_before_w)), NULL)"
        ),
        unit="%",
        above=10,
        for_s=600,
        keep_firing_s=600,
        summary="{site}: meter {meter} and the sum over GPUs moved apart by {value} %",
    ),
)
