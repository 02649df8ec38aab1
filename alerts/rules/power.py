"""Watts of sites and tenants, second by second: caps, ramps, drops, oscillation.

Changes are only judged where the same GPUs were heard before and after. Either the site's count is
the same, then its sums are compared; or it is not, then only tenants whose count is. A partition
that lags takes some GPUs of every tenant, so that nothing is compared and nothing fires. What
really falls silent is told by the rules of places.py and, as load, by the facility's meters.

Power is an average over a second, so only oscillation slower than 2 s can be seen, and that near
2 s comes out at two thirds of its size. What is faster needs the facility's own instruments.
"""

from typing import Final

from alerts.rule import Rule, Signal

SERIES_S: Final = 128
OSCILLATION_S: Final = 64
NEEDS_W: Final = 1_000_000
"""Below a megawatt a single job's checkpoint is a fifth of the load, and nobody's grid minds."""


_WINDOWS: Final = {"now": (10, 0), "ago": (10, 10), "last": (5, 0), "minute": (5, 60)}
"""Seconds of a mean, and how long ago they ended."""


def _mean(array: str, window: str) -> str:
    """Mean of an array over a window."""
    seconds, ago = _WINDOWS[window]
    return f"arraySum(arraySlice({array}, {SERIES_S - seconds - ago + 1}, {seconds})) / {seconds}"


def _change(now: str, before: str) -> str:
    """Watts by which the same GPUs draw more than before."""
    same = "{0} > 0 AND {0} BETWEEN 0.99 * {1} AND 1.01 * {1}"
    whole = same.format(f"sum(g_{now})", f"sum(g_{before})")
    each = same.format(f"g_{now}", f"g_{before}")
    return f"if({whole}, sum(w_{now}) - sum(w_{before}), sumIf(w_{now} - w_{before}, {each}))"


_LAST: Final = SERIES_S - OSCILLATION_S + 1
_ROW: Final = f"range({OSCILLATION_S})"
_WAVES: Final = range(3, OSCILLATION_S // 2 + 1)
_ANGLE: Final = f"2 * pi() / {OSCILLATION_S} * k * i"
_TURNS: Final = ", ".join(
    f"arrayMap(k -> arrayMap(i -> {function}({_ANGLE}), {_ROW}),"
    f" range({_WAVES.start}, materialize({_WAVES.stop}))) AS {name}"
    for function, name in (("cos", "cosines"), ("sin", "sines"))
)
"""One row of a table, and no constant: the engine plans two thousand numbers more dearly than it
computes them."""


SECONDS: Final = Signal(
    name="seconds",
    clock="data",
    labels={"site": "of_site", "tenant": "if(view = 'site', '', toString(of_tenant))"},
    names={"site": "sites", "tenant": "tenants"},
    present="count()",
    source=f"""(
    SELECT of_site, of_tenant, view, now_w, ago_w, minute_w, sudden_w, whole, line,
        nullIf(arrayReduce('min', arrayMap(c -> c.2,
            arrayFilter(c -> c.1 = 0 OR c.1 = of_site, $site_caps))), 0) AS cap_w,
        arrayMap((v, i) -> v - line.1 * i - line.2, recent, {_ROW}) AS level,
        if(NOT whole, [0., 0.], arrayMap((c, s) -> 2 / {OSCILLATION_S}
            * sqrt(pow(arrayDotProduct(level, c), 2) + pow(arrayDotProduct(level, s), 2)),
            cosines, sines)) AS waves,
        2 * arrayMax(arrayMap((a, b) -> sqrt(a * a + b * b), arrayPopBack(waves),
            arrayPopFront(waves))) AS swing_w
    FROM
    (
        SELECT of_site, view, if(view = 'site', 0, of_tenant) AS of_tenant,
            sumForEach(r) AS recent, sumForEach(g) AS heard,
            sum(w_now) AS now_w, sum(w_ago) AS ago_w,
            {_change("last", "minute")} AS minute_w, {_change("now", "ago")} AS sudden_w,
            arrayReduce('simpleLinearRegression', {_ROW}, recent) AS line,
            arrayMin(heard) > 0 AND arrayMin(heard) >= 0.99 * arrayMax(heard) AS whole
        FROM
        (
            SELECT site AS of_site, tenant AS of_tenant,
                groupArrayInsertAt(0., {SERIES_S})(watts, slot) AS w,
                groupArrayInsertAt(0., {SERIES_S})(gpus, slot) AS n,
                arraySlice(w, {_LAST}) AS r, arraySlice(n, {_LAST}) AS g,
                {", ".join(f"{_mean('w', x)} AS w_{x}, {_mean('n', x)} AS g_{x}" for x in _WINDOWS)}
            FROM
            (
                SELECT site, tenant, toFloat64(sum(power_w_ms)) / 1000 AS watts,
                    sum(power_w_dt_ms) / 1000 AS gpus,
                    toUInt32(dateDiff('second', $at - {SERIES_S}, ts)) AS slot
                FROM power_seconds WHERE ts >= $at - {SERIES_S} AND ts < $at
                GROUP BY site, tenant, ts
            )
            GROUP BY of_site, of_tenant
        )
        ARRAY JOIN ['site', 'tenant'] AS view
        GROUP BY of_site, view, of_tenant
    ) AS rows
    CROSS JOIN (SELECT {_TURNS}) AS turns
)""",  # noqa: S608
)


def _site(value: str) -> str:
    return f"if(any(view) = 'site', {value}, NULL)"


RULES: Final = (
    Rule(
        name="SitePowerOverCap",
        folds=False,
        question="Do the site's GPUs alone draw more than the site may?",
        severity="page",
        scope="site",
        signal=SECONDS,
        value=_site("100 * max(now_w) / max(cap_w)"),
        unit="%",
        above=100,
        for_s=30,
        keep_firing_s=120,
        summary="{site}: GPUs alone draw {value} % of the site's cap",
    ),
    Rule(
        name="SitePowerForecast",
        folds=False,
        question="Will the site cross its cap within ten minutes, as it climbs now?",
        severity="ticket",
        scope="site",
        signal=SECONDS,
        value=_site(
            "if(any(whole) AND max(now_w) BETWEEN 0.8 * max(cap_w) AND max(cap_w),"
            f" 100 * (any(line.1) * {OSCILLATION_S + 600} + any(line.2)) / max(cap_w), NULL)"
        ),
        unit="%",
        above=100,
        for_s=60,
        keep_firing_s=120,
        summary="{site}: at this climb GPUs draw {value} % of the site's cap in ten minutes",
    ),
    Rule(
        name="SiteRampUp",
        folds=False,
        question="Does the same GPUs' load climb faster than the supply contract allows?",
        severity="page",
        scope="site",
        signal=SECONDS,
        value=_site("max(minute_w) / 1e6"),
        unit="MW/min",
        above=20,
        for_s=15,
        keep_firing_s=120,
        summary="{site}: load climbed {value} MW within a minute",
    ),
    Rule(
        name="SiteRampDown",
        folds=False,
        question="Does the same GPUs' load fall faster than the supply contract allows?",
        severity="page",
        scope="site",
        signal=SECONDS,
        value=_site("-min(minute_w) / 1e6"),
        unit="MW/min",
        above=20,
        for_s=15,
        keep_firing_s=120,
        summary="{site}: load fell {value} MW within a minute",
    ),
    Rule(
        name="SiteLoadDrop",
        folds=False,
        question="Did a large part of the load go away within ten seconds, with its GPUs still heard?",
        severity="page",
        scope="site",
        signal=SECONDS,
        value=_site(f"if(max(ago_w) > {NEEDS_W}, -100 * min(sudden_w) / max(ago_w), NULL)"),
        unit="%",
        above=25,
        keep_firing_s=300,
        summary="{site}: {value} % of the load went away within ten seconds",
    ),
    Rule(
        name="SiteOscillation",
        folds=False,
        question="Does the site's load swing in step, in a band that the grid feels?",
        severity="page",
        scope="site",
        signal=SECONDS,
        value=_site("max(swing_w) / 1e6"),
        unit="MW",
        above=10,
        for_s=60,
        keep_firing_s=300,
        summary="{site}: load swings by {value} MW, with a period between 2 and 21 s",
    ),
    Rule(
        name="TenantOscillation",
        folds=False,
        question="Whose work swings in step?",
        severity="info",
        scope="tenant",
        signal=SECONDS,
        value="if(any(view) = 'tenant', max(swing_w) / 1e6, NULL)",
        unit="MW",
        above=5,
        for_s=60,
        keep_firing_s=300,
        page="tenant",
        tenant_visible=True,
        summary="{tenant} on {site}: load swings by {value} MW, with a period between 2 and 21 s",
    ),
)
