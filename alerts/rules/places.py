"""GPUs where they stand: what is dark, what draws more than its feed may, what is left to spare.

What went dark is told once, as the largest thing that is wholly dark: a site, a hall, a PDU, a
rack, a node, or one GPU of a node that is heard. Where many nodes all over the site are silent at
once it is not they that failed: then only the coverage is told.
"""

from typing import Final

from alerts.rule import Rule, Scope, Severity, Signal
from alerts.rules.topology import PLACE, masked, named

SILENT_S: Final = 12
"""A GPU that is well is at most 5 s older here: agents flush every 4 s, and gpu_latest is written
every 5 s, 8 s before which seconds count as complete. The rest is for an agent that is restarted."""
NEW_S: Final = 120
"""A GPU that was announced so lately need not have been heard yet."""
SPREAD: Final = "greatest(20, 0.05 * count() OVER (PARTITION BY of_site))"
"""So many silent nodes in racks that are heard are no accident of theirs."""
STALLED: Final = "greatest(20, 0.02 * count() OVER (PARTITION BY of_site))"
"""With so many a partition of the log stands still, and a rack may be silent by chance, too: then
its nodes are told, which takes longer."""

_ALL: Final = ("hall", "row", "rack", "pdu", "node", "uuid")
_RACK: Final = ("hall", "row", "rack", "pdu")
_VIEWS: Final = {
    "site": (), "hall": ("hall",), "pdu": ("hall", "pdu"), "rack": _RACK, "node": (*_RACK, "node"),
}  # fmt: skip


def _view(view: str) -> str:
    return masked([(view, _VIEWS[view])], _ALL)


def _seen(place: str) -> str:
    """GPUs heard in the place of this node; a place without a name is no place."""
    return f"if({place} = '', 1, sum(seen) OVER (PARTITION BY of_site, {place}))"


PLACES: Final = Signal(
    name="places",
    every_s=15,
    clock="data",
    labels={
        "site": named("site", "of_site"),
        "hall": "of.2",
        "row": "of.3",
        "rack": "of.4",
        "pdu": "of.5",
        "node": "of.6",
        "gpu": "of.7",
    },
    present="count()",
    # By a hash table: a large site has thousands of caps, and each node is looked up three times.
    with_=(
        "WITH (SELECT (groupArray(concat(scope, ' ', name)), groupArray(watts)) FROM $caps) AS caps"
    ),
    source=f"""(
    SELECT *, arrayJoin(arrayConcat(
        if(node = first_node, {_view("site")}, []),
        if(hall_cap > 0 OR hall_feeds > 0, {_view("hall")}, []),
        if(pdu_cap > 0, {_view("pdu")}, []),
        if(rack_cap > 0 OR rack_braked > 0, {_view("rack")}, []),
        if(suspect > 0, {_view("node").replace("'node'", "'clock'")}, []),
        multiIf(
            level = 'site', {masked([("dark", ())], _ALL)},
            level = 'hall', {masked([("dark", _VIEWS["hall"])], _ALL)},
            level = 'pdu', {masked([("dark", _VIEWS["pdu"])], _ALL)},
            level = 'rack', {masked([("dark", _VIEWS["rack"])], _ALL)},
            level = 'node', {masked([("dark", _VIEWS["node"])], _ALL)},
            level = 'gpu', arrayMap(uuid -> {masked([("dark", _ALL)], _ALL)}[1], lost), [])
    )) AS of
    FROM
    (
        SELECT *, sum(seen = 0 AND rack_seen > 0) OVER (PARTITION BY of_site) AS scattered,
            multiIf(seen = expected, '', site_seen = 0, 'site', hall_seen = 0, 'hall',
                pdu_seen = 0, 'pdu', rack_seen = 0 AND scattered <= {STALLED}, 'rack',
                scattered > {SPREAD}, '', seen = 0, 'node', 'gpu') AS level,
            transform(concat('hall ', hall), caps.1, caps.2, 0.) AS hall_cap,
            transform(concat('pdu ', pdu), caps.1, caps.2, 0.) AS pdu_cap,
            transform(concat('rack ', rack), caps.1, caps.2, 0.) AS rack_cap,
            max(pdu_cap) OVER (PARTITION BY of_site, hall) AS hall_feeds, pdu AS feed
        FROM
        (
            SELECT *, sum(seen) OVER (PARTITION BY of_site) AS site_seen,
                sum(expected) OVER (PARTITION BY of_site) AS site_expected,
                min(node) OVER (PARTITION BY of_site) AS first_node,
                {_seen("hall")} AS hall_seen, {_seen("pdu")} AS pdu_seen,
                {_seen("rack")} AS rack_seen,
                sum(braked) OVER (PARTITION BY of_site, rack) AS rack_braked
            FROM
            (
                SELECT site_id AS of_site, any(i.site) AS site,
                    {", ".join(f"any(i.{name}) AS {name}" for name in PLACE)},
                    count() AS expected, countIf(l.gpu != 0) AS seen,
                    groupArrayIf(i.uuid, l.gpu = 0) AS lost,
                    ifNull(sum(toFloat64(l.power_w)), 0) AS watts,
                    countIf(bitAnd(ifNull(l.throttle_reasons, 0), 128) != 0) AS braked,
                    countIf(bitTest(l.flags, 3)) AS suspect
                FROM
                (
                    SELECT site_id, node_id, site, {", ".join(PLACE)}, gpu_id, uuid
                    FROM inventory FINAL
                    WHERE from_ts <= $at - {NEW_S} AND (until_ts IS NULL OR until_ts > $at)
                ) AS i
                LEFT JOIN
                (
                    SELECT gpu, power_w, throttle_reasons, flags FROM gpu_latest FINAL
                    WHERE ts > $at - {SILENT_S}
                ) AS l ON l.gpu = i.gpu_id
                GROUP BY of_site, node_id
            )
        )
    )
)""",  # noqa: S608
)


def _over(scope: Scope, severity: Severity) -> Rule:
    return Rule(
        name=f"{scope.capitalize()}PowerOverCap",
        folds=False,
        question=f"Do the GPUs on one {scope} alone draw more than it may carry?",
        severity=severity,
        scope=scope,
        signal=PLACES,
        value=f"100 * sumIf(watts, of.1 = '{scope}') / nullIf(maxIf({scope}_cap, of.1 = '{scope}'), 0)",
        unit="%",
        above=100,
        for_s=30,
        keep_firing_s=120,
        summary="{site} {" + scope + "}: GPUs alone draw {value} % of its cap",
    )


def _dark(scope: Scope, severity: Severity, what: str, for_s: int) -> Rule:
    return Rule(
        name=f"{scope.capitalize()}Dark" if scope not in ("node", "gpu") else
        {"node": "NodeSilent", "gpu": "GpuMissing"}[scope],
        question=f"Is a whole {scope} of the inventory silent, and nothing larger?"
        if scope != "gpu" else "Is a GPU of the inventory silent, while its node is heard?",
        severity=severity,
        scope=scope,
        signal=PLACES,
        value=f"nullIf(sumIf(if(level = 'gpu', 1, expected), of.1 = 'dark' AND level = '{scope}'), 0)",
        unit="GPUs",
        above=0,
        for_s=for_s,
        keep_firing_s=60,
        page="fleet" if scope not in ("node", "gpu") else "node",
        summary=what,
    )  # fmt: skip


RULES: Final = (
    _over("hall", "page"),
    _over("pdu", "page"),
    _over("rack", "page"),
    Rule(
        name="FeedRedundancyLost",
        folds=False,
        question="Would the hall's other PDUs be overloaded if its largest one failed now?",
        severity="ticket",
        scope="hall",
        signal=PLACES,
        value=(
            "100 * sumIf(watts, of.1 = 'hall' AND pdu_cap > 0) / nullIf("
            "arraySum(c -> c.2, groupUniqArrayIf((feed, pdu_cap), of.1 = 'hall'))"
            " - arrayMax(c -> c.2, arrayPushBack(groupUniqArrayIf((feed, pdu_cap), of.1 = 'hall'),"
            " ('', 0.))), 0)"
        ),
        unit="%",
        above=100,
        for_s=300,
        keep_firing_s=300,
        summary="{site} {hall}: with its largest PDU gone the others would carry {value} % of their caps",
    ),
    _dark("site", "page", "{site}: all {value} GPUs are silent", 0),
    _dark("hall", "page", "{site} {hall}: the hall's {value} GPUs are all silent", 0),
    _dark("pdu", "page", "{site} {pdu}: all {value} GPUs behind the PDU are silent", 0),
    _dark("rack", "page", "{site} {rack}: the rack's {value} GPUs are all silent", 0),
    _dark("node", "ticket", "{site} {node}: the node's {value} GPUs are all silent", 120),
    _dark("gpu", "ticket", "{site} {node}: {gpu} is silent while its node is heard", 120),
    Rule(
        name="CoverageLow",
        question="Are enough of the expected GPUs heard to trust the megawatts shown?",
        severity="page",
        scope="site",
        signal=PLACES,
        value="100 * maxIf(site_seen, of.1 = 'site') / nullIf(maxIf(site_expected, of.1 = 'site'), 0)",
        unit="%",
        below=95,
        for_s=120,
        keep_firing_s=120,
        summary="{site}: only {value} % of the expected GPUs are heard",
    ),
    Rule(
        name="RackPowerBrake",
        question="Does something outside brake a rack's GPUs?",
        severity="page",
        scope="rack",
        signal=PLACES,
        value="100 * sumIf(braked, of.1 = 'rack') / nullIf(sumIf(seen, of.1 = 'rack'), 0)",
        unit="%",
        above=50,
        for_s=30,
        keep_firing_s=120,
        page="fleet",
        summary="{site} {rack}: the power brake slows {value} % of the rack's GPUs",
    ),
    Rule(
        name="NodeClockSkew",
        question="Is a node's clock more than a minute off the broker's?",
        severity="ticket",
        scope="node",
        signal=PLACES,
        value="nullIf(sumIf(suspect, of.1 = 'clock'), 0)",
        unit="GPUs",
        above=0,
        for_s=120,
        keep_firing_s=120,
        page="node",
        summary="{site} {node}: the clock is more than a minute off; samples of {value} GPUs are misplaced",
    ),
)
