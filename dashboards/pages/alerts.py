"""What is broken now, who was told, and which rules speak most?"""

from typing import Final

from dashboards.annotations import ALERTS
from dashboards.panel import BAD, Page, Panel
from dashboards.sql import ALERT_PLACE, SITE_VARIABLE

_ALIVE: Final = "(SELECT max(saved_at) FROM alert_state FINAL WHERE rule = '')"
_ASKED: Final = "(labels = '' OR JSONExtractString(labels, 'site') IN ('', {name}))".format(
    name="(SELECT name FROM sites WHERE id = toUInt64OrZero(${site:singlequote}))"
)
_STATES: Final = f"""SELECT rule, toString(state) AS state, severity, labels, annotations, value, active_ms
    FROM alert_state FINAL WHERE rule != '' AND state IN ('pending', 'firing') AND {_ASKED}"""

NOW: Final = Panel(
    kind="stat",
    title="Alerts now",
    description="""Alerts that fire now, by severity, those that wait for their `for`, and when the
evaluator last saved its states. No data: no evaluator has ever run on this store.""",
    sql=f"""
SELECT countIf(state = 'firing' AND severity = 'page') AS pages,
    countIf(state = 'firing' AND severity = 'ticket') AS tickets,
    countIf(state = 'firing' AND severity = 'info') AS info,
    countIf(state = 'pending') AS pending, toUnixTimestamp64Milli({_ALIVE}) AS `evaluator saved`
FROM ({_STATES})
HAVING toUnixTimestamp64Milli({_ALIVE}) > 0
""",
    columns={"evaluator saved": "dateTimeFromNow"},
    decimals=0,
    width=24,
    height=4,
)

STANDING: Final = Panel(
    kind="table",
    title="Firing and pending now",
    description="""Every alert that stands, pages first, with what it says and where. Symptoms that a
page stands for are listed too, with its name under folded. No data: nothing is wrong, or no evaluator
runs (see Alerts now).""",
    sql=f"""
SELECT severity, state, rule, toDateTime(intDiv(active_ms, 1000), 'UTC') AS since,
    JSONExtractString(annotations, 'summary') AS summary, {ALERT_PLACE} AS where,
    JSONExtractString(annotations, 'runbook') AS runbook
FROM ({_STATES})
ORDER BY indexOf(['page', 'ticket', 'info'], severity), state = 'pending', active_ms DESC
LIMIT 500
""",
    no_value="nothing fires",
    width=24,
    height=10,
)

STORY: Final = Panel(
    kind="table",
    title="What happened in the range",
    description="""Each change of an alert's state, the newest first. No data: nothing changed in the
range.""",
    sql=f"""
SELECT at, toString(state) AS became, severity, rule, value,
    JSONExtractString(annotations, 'summary') AS summary, {ALERT_PLACE} AS where
FROM alert_history
WHERE $__timeFilter_ms(at) AND {_ASKED}
ORDER BY at DESC
LIMIT 500
""",
    no_value="nothing changed",
    width=24,
    height=10,
)

BEGUN: Final = Panel(
    kind="timeseries",
    title="Alerts that began to fire",
    description="""How many alerts began to fire in each step, by severity. No data: none did in the
range.""",
    sql=f"""
SELECT $__timeInterval(at) AS time, severity, toFloat64(count()) AS alerts
FROM alert_history
WHERE $__timeFilter_ms(at) AND state = 'firing' AND {_ASKED}
GROUP BY time, severity
ORDER BY time
""",
    min=0,
    decimals=0,
    label="severity",
    no_value="none began",
    width=12,
)

NOISY: Final = Panel(
    kind="bargauge",
    title="Rules that fire most in the range",
    description="""How often each rule began to fire: what to mend, or to set otherwise. No data: none
did in the range.""",
    sql=f"""
SELECT rule, toFloat64(count()) AS times
FROM alert_history
WHERE $__timeFilter_ms(at) AND state = 'firing' AND {_ASKED}
GROUP BY rule
ORDER BY times DESC
LIMIT 15
""",
    thresholds=((50, BAD),),
    decimals=0,
    no_value="none fired",
    width=12,
)

PAGES: Final = (
    Page(
        uid="megawatch-alerts",
        title="Alerts",
        answers="What is broken now, since when, and which rules speak most.",
        variables=(SITE_VARIABLE,),
        annotations=(ALERTS,),
        rows=((NOW,), (STANDING,), (BEGUN, NOISY), (STORY,)),
        since="now-24h",
    ),
)
