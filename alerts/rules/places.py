"""GPUs where they stand: what is dark, what draws more than its feed may, what is left to spare.

What went dark is told once, as the largest thing that is wholly dark: a site, a hall, a PDU, a
rack, a node, or one GPU of a node that is heard. Where many nodes all over the site are silent at
once it is not they that failed: then only the coverage is told.
"""

from typing import Final

from alerts.rule import PLACE, Rule, Scope, Severity, Signal
from pipeline.records import BAD_POWER

SILENT_S: Final = 12
"""A GPU that is well is at most 5 s older here: agents flush every 4 s, and gpu_latest is written
every 5 s, 8 s before which seconds count as complete. The rest is for an agent that is restarted."""
NEW_S: Final = 120
"""A GPU that was announced so lately need not have been heard yet."""
SPREAD: Final = "greatest(20, 0.05 * site_nodes)"
"""So many silent nodes in racks that are heard are no accident of theirs."""
STALLED: Final = "greatest(20, 0.02 * site_nodes)"
"""With so many a partition of the log stands still, and a rack may be silent by chance, too: then
its nodes are told, which takes longer."""

_RACK: Final = ("hall", "row", "rack", "pdu")
_KINDS: Final = {
    "site": (), "hall": ("hall",), "feed": ("hall",), "pdu": ("hall", "pdu"), "rack": _RACK,
    "clock": _RACK, "dark site": (), "dark hall": ("hall",), "dark pdu": ("hall", "pdu"),
    "dark rack": _RACK, "dark node": _RACK, "dark gpu": _RACK,
}  # fmt: skip
"""What rows are told for, and what they name of where that is."""
_ODD: Final = "Tuple(node String, seen UInt64, lost Array(String), suspect UInt64)"
"""A node that is not wholly heard, or whose clock is off."""


def _row(kind: str, gpus: str = "0", node: str = "''", uuid: str = "''") -> str:
    """SQL of a tuple: what a row is told for, GPUs, and what of it lies below the rack."""
    return f"('{kind}', toUInt64({gpus}), {node}, {uuid})"


def _where(name: str) -> str:
    """A place's name in rows that name it: those of a hall are told without a rack."""
    kinds = ", ".join(f"'{kind}'" for kind, names in _KINDS.items() if name in names)
    return f"if(kind IN ({kinds}), {name}, '') AS of_{name}"


def _seen(place: str) -> str:
    """GPUs heard in the place of this rack; a place without a name is no place."""
    return f"if({place} = '', 1, sum(seen) OVER (PARTITION BY of_site, {place}))"


_DARK: Final = f"""
            multiIf(level IN ('site', 'hall', 'pdu', 'rack'), [(concat('dark ', level), expected, '', '')],
                level = 'parts', arrayFlatten(arrayMap(n -> if(n.seen = 0,
                    [{_row("dark node", "length(n.lost)", "n.node")}],
                    arrayMap(uuid -> {_row("dark gpu", "1", "n.node", "uuid")}, n.lost)), odd)),
                [])"""
_NODES: Final = f"""
                    SELECT any(i.site_id) AS of_site,
                        {", ".join(f"any(i.{name}) AS {name}" for name in PLACE)},
                        count() AS expected, countIf(l.gpu != 0) AS seen,
                        groupArrayIf(i.uuid, l.gpu = 0) AS lost,
                        sum(l.watts) AS watts, sum(l.braked) AS braked, sum(l.suspect) AS suspect
                    FROM
                    (
                        SELECT site_id, node_id, {", ".join(PLACE)}, gpu_id, uuid
                        FROM inventory FINAL
                        WHERE from_ts <= $at - {NEW_S} AND (until_ts IS NULL OR until_ts > $at)
                    ) AS i
                    ANY LEFT JOIN
                    (
                        SELECT gpu, bitTest(ifNull(throttle_reasons, 0), 7) AS braked,
                            bitTest(flags, 3) AS suspect,
                            if(bitAnd(flags, {BAD_POWER}) = 0, toFloat64(ifNull(power_w, 0)), 0) AS watts
                        FROM gpu_latest WHERE ts > $at - {SILENT_S}
                    ) AS l ON l.gpu = i.gpu_id
                    GROUP BY node_id"""  # noqa: S608
"""Nodes with what was heard of their GPUs. ANY: each GPU is there once, and no row is copied. It may
have two or three young rows; to merge them (FINAL) costs as much as all the rest."""

PLACES: Final = Signal(
    name="places",
    every_s=15,
    clock="data",
    labels={
        "site": "of_site",
        "hall": "of_hall",
        "row": "of_row",
        "rack": "of_rack",
        "pdu": "of_pdu",
        "node": "of_node",
        "gpu": "of_gpu",
    },
    names={"site": "sites"},
    present="count()",
    watch=f"SELECT uniqExact(node) FROM gpu_latest WHERE ts > $at - {SILENT_S}",  # noqa: S608
    calm_s=30,
    # Racks, of which there are few, not nodes, are looked at from every side; caps are joined, since
    # the engine plans a constant of thousands of values far more dearly than it reads a table.
    source=f"""(
    SELECT rows.*, caps.watts AS cap_w FROM
    (
        SELECT of_site, watts, seen, braked, site_seen, site_expected, pdu AS feed,
            of.1 AS kind, of.2 AS gpus, of.3 AS of_node, of.4 AS of_gpu,
            {", ".join(map(_where, _RACK))},
            if(kind = 'feed', 'pdu', kind) AS cap_scope,
            multiIf(kind = 'hall', hall, kind = 'rack', rack, pdu) AS cap_name
        FROM
        (
            SELECT *, sum(if(rack_seen > 0, silent, 0)) OVER (PARTITION BY of_site) AS scattered,
                multiIf(seen = expected, '', site_seen = 0, 'site', hall_seen = 0, 'hall',
                    pdu_seen = 0, 'pdu', rack_seen = 0 AND scattered <= {STALLED}, 'rack',
                    scattered > {SPREAD}, '', 'parts') AS level
            FROM
            (
                SELECT *, sum(seen) OVER (PARTITION BY of_site) AS site_seen,
                    sum(expected) OVER (PARTITION BY of_site) AS site_expected,
                    sum(nodes) OVER (PARTITION BY of_site) AS site_nodes,
                    min((hall, row, rack, pdu)) OVER (PARTITION BY of_site) AS first,
                    {_seen("hall")} AS hall_seen, {_seen("pdu")} AS pdu_seen,
                    {_seen("rack")} AS rack_seen
                FROM
                (
                    SELECT of_site, {", ".join(_RACK)}, count() AS nodes,
                        countIf(n.seen = 0) AS silent, sum(n.expected) AS expected, sum(n.seen) AS seen,
                        sum(n.watts) AS watts, sum(n.braked) AS braked,
                        groupArrayIf(CAST((n.node, n.seen, n.lost, n.suspect), '{_ODD}'),
                            n.seen < n.expected OR n.suspect > 0) AS odd
                    FROM ({_NODES}
                    ) AS n GROUP BY of_site, {", ".join(_RACK)}
                )
            )
        )
        ARRAY JOIN arrayConcat(
            if((hall, row, rack, pdu) = first, [{_row("site")}], []),
            [{", ".join(map(_row, ("hall", "feed", "pdu", "rack")))}],
            arrayMap(n -> {_row("clock", "n.suspect", "n.node")}, arrayFilter(n -> n.suspect > 0, odd)),
            {_DARK}
        ) AS of
    ) AS rows
    LEFT JOIN $caps AS caps ON caps.scope = rows.cap_scope AND caps.name = rows.cap_name
    WHERE kind NOT IN ('hall', 'feed', 'pdu', 'rack') OR cap_w > 0 OR (kind = 'rack' AND braked > 0)
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
        value=f"100 * sumIf(watts, kind = '{scope}') / nullIf(maxIf(cap_w, kind = '{scope}'), 0)",
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
        value=f"nullIf(sumIf(gpus, kind = 'dark {scope}'), 0)",
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
            "100 * sumIf(watts, kind = 'feed') / nullIf("
            "arraySum(c -> c.2, groupUniqArrayIf((feed, cap_w), kind = 'feed'))"
            " - arrayMax(c -> c.2, arrayPushBack(groupUniqArrayIf((feed, cap_w), kind = 'feed'),"
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
        value="100 * maxIf(site_seen, kind = 'site') / nullIf(maxIf(site_expected, kind = 'site'), 0)",
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
        value="100 * sumIf(braked, kind = 'rack') / nullIf(sumIf(seen, kind = 'rack'), 0)",
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
        value="nullIf(sumIf(gpus, kind = 'clock'), 0)",
        unit="GPUs",
        above=0,
        for_s=120,
        keep_firing_s=120,
        page="node",
        summary="{site} {node}: the clock is more than a minute off; samples of {value} GPUs are misplaced",
    ),
)
