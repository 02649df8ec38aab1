"""What will be billed: closed in time, conserved, complete, attributed."""

from typing import Final

from alerts.rule import Rule, Signal

LOOK_BACK_S: Final = 26 * 3600
DUE_S: Final = 2 * 3600
"""A quarter of an hour that began so long ago should have been closed an hour and a half ago."""

LEDGER: Final = Signal(
    name="ledger",
    every_s=60,
    clock="wall",
    labels={"site": "of_site"},
    names={"site": "sites"},
    present="count()",
    source=f"""(
        SELECT site AS of_site, ts AS of_ts, max(minutes_version) AS minutes FROM ledger_sources
        WHERE ts >= $at - {LOOK_BACK_S} AND ts < $at GROUP BY site, ts
    ) AS q
    LEFT JOIN
    (
        SELECT site AS c_site, ts AS c_ts, countIf(state = 'closed') AS times,
            maxIf(version, state = 'closed') AS newest, argMax(state, version) AS last_state,
            argMaxIf(energy_j, version, state = 'closed') AS energy,
            argMaxIf(ledger_closes.bridged_j, version, state = 'closed') AS bridged,
            argMaxIf(measured_ms, version, state = 'closed') AS measured,
            argMaxIf(expected_ms, version, state = 'closed') AS expected
        FROM ledger_closes WHERE ts >= $at - {LOOK_BACK_S} AND ts < $at GROUP BY site, ts
    ) AS c ON c_site = of_site AND c_ts = of_ts
    LEFT JOIN
    (
        SELECT site AS h_site, ts AS h_ts, version AS h_version, sum(energy_j) AS held,
            sum(measured_ms) AS held_ms, sum(active_ms) AS worked_ms,
            sumIf(active_ms, tenant = 0) AS nobody_ms
        FROM ledger_holders WHERE ts >= $at - {LOOK_BACK_S} AND ts < $at GROUP BY site, ts, version
    ) AS h ON h_site = of_site AND h_ts = of_ts AND h_version = newest""",  # noqa: S608
)
_RECENT: Final = "times > 0 AND of_ts >= $at - 6 * 3600"

RULES: Final = (
    Rule(
        name="LedgerNotClosed",
        question="Is there a quarter of an hour that should have been closed and is not?",
        severity="ticket",
        scope="site",
        signal=LEDGER,
        value=f"countIf(times = 0 AND minutes > 0 AND of_ts < $at - {DUE_S})",
        unit="quarters",
        above=0,
        for_s=300,
        keep_firing_s=60,
        summary="{site}: {value} quarters of an hour of the last day are not closed",
    ),
    Rule(
        name="LedgerRefused",
        question="Was a closing refused or did it fail, at the last attempt?",
        severity="ticket",
        scope="site",
        signal=LEDGER,
        value="countIf(last_state != 'closed' AND c_ts = of_ts)",
        unit="quarters",
        above=0,
        for_s=300,
        keep_firing_s=60,
        promql="sum by (instance) (increase(megawatch_pipeline_ledger_not_closed_total[15m]))",
        summary="{site}: {value} quarters were refused or failed when they were last closed",
    ),
    Rule(
        name="LedgerConservationBroken",
        question="Do holders not add up to what was measured, to the millijoule?",
        severity="ticket",
        scope="site",
        signal=LEDGER,
        value="countIf(times > 0 AND (held != energy OR held_ms != measured))",
        unit="quarters",
        above=0,
        for_s=120,
        keep_firing_s=60,
        summary="{site}: in {value} closed quarters the holders do not add up to what was measured",
    ),
    Rule(
        name="LedgerCoverageLow",
        question="Will statements rest on too little measured time?",
        severity="ticket",
        scope="site",
        signal=LEDGER,
        value=f"100 * sumIf(measured, {_RECENT}) / nullIf(sumIf(expected, {_RECENT}), 0)",
        unit="%",
        below=98,
        for_s=900,
        keep_firing_s=300,
        summary="{site}: only {value} % of the expected GPU time of the last hours was measured",
    ),
    Rule(
        name="LedgerBridgedHigh",
        question="Is much of the energy inferred over gaps and not measured?",
        severity="ticket",
        scope="site",
        signal=LEDGER,
        value=(
            f"100 * toFloat64(sumIf(bridged, {_RECENT}))"
            f" / nullIf(toFloat64(sumIf(energy, {_RECENT})) + toFloat64(sumIf(bridged, {_RECENT})), 0)"
        ),
        unit="%",
        above=2,
        for_s=900,
        keep_firing_s=300,
        summary="{site}: {value} % of the energy of the last hours was bridged over gaps",
    ),
    Rule(
        name="UnattributedShareHigh",
        question="Is much of the work in the ledger nobody's?",
        severity="ticket",
        scope="site",
        signal=LEDGER,
        value=f"100 * sumIf(nobody_ms, {_RECENT}) / nullIf(sumIf(worked_ms, {_RECENT}), 0)",
        unit="%",
        above=5,
        for_s=900,
        keep_firing_s=300,
        summary="{site}: {value} % of the active GPU time of the last hours belongs to nobody",
    ),
)
