"""Rules of one signal as one query: what breaks a threshold, and nothing else, comes back."""

import functools
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from alerts.rule import PLACE, Named, Rule, Signal
from pipeline.records import id64

AT: Final = "{at:DateTime('UTC')}"
"""The evaluator's parameter: the time of evaluation."""
MAX_ROWS: Final = 60_000
"""Of one answer: every node of a dark site of 220,000 GPUs fits, and folds into one page."""
NAMES: Final[dict[Named, str]] = {
    "sites": "SELECT id, name FROM sites",
    "tenants": "SELECT id, name FROM tenants",
    "workloads": "SELECT id, name FROM workloads",
    "gpus": f"SELECT gpu_id AS id, uuid AS name, {', '.join(PLACE)} FROM gpus",  # noqa: S608
}
"""What is known of ids."""


def query(
    signal: Signal, rules: Sequence[Rule], thresholds: Mapping[str, float],
    *, every: bool = False, ordered: bool = False,
) -> str:  # fmt: skip
    """Labels, then one column per rule by its name, of groups that break any of the rules.

    With `every`, of all groups that can be judged at all. What breaks which rule, the reader
    compares: the engine plans a level more of the query dearly, and so it does an order, which
    only an answer needs that is cut. `at` and `caps` are still to be bound, see `bound`.
    """
    labels = [f"toString({sql}) AS {name}" for name, sql in signal.labels.items()]
    values = [f"toFloat64({rule.value}) AS {rule.name}" for rule in rules]
    wanted = [
        f"{r.name} IS NOT NULL" if every
        else f"{r.name} {r.operator} {thresholds.get(r.name, r.threshold)!r}" for r in rules
    ]  # fmt: skip
    names = ", ".join(signal.labels)
    grouped = f" GROUP BY {names}" if names else ""
    order = f" ORDER BY {names}" if names and ordered else ""
    return (
        f"{signal.with_} SELECT {', '.join(labels + values)} FROM {signal.source}{grouped}"  # noqa: S608
        f" HAVING {' OR '.join(wanted)}{order} LIMIT {MAX_ROWS}"
    ).strip()


def named(signal: Signal, rule: Rule, sql: str) -> str:
    """A query of one rule with names in place of ids, for who cannot look them up afterwards."""
    if not signal.names:
        return sql
    stands = PLACE if "gpu" in signal.names else ()
    labels = ", ".join(
        f"multiIf(q.{label} = '', '', of_{label}.name != '', of_{label}.name,"
        f" lower(hex(toUInt64OrZero(q.{label})))) AS {label}"
        if label in signal.names
        else f"{'of_gpu' if label in stands else 'q'}.{label} AS {label}"
        for label in signal.labels
    )
    joins = " ".join(
        f"LEFT JOIN ({NAMES[table]}) AS of_{label} ON of_{label}.id = toUInt64OrZero(q.{label})"
        for label, table in signal.names.items()
    )
    return f"SELECT {labels}, q.{rule.name} AS {rule.name} FROM ({sql}) AS q {joins}"  # noqa: S608


def bound(sql: str, caps_w: Mapping[str, float], at: str = AT) -> str:
    """The query with its time and the configured caps ("site", or "rack h01-r03": watts)."""
    if "$caps" in sql or "$site_caps" in sql:
        sites, table = _caps(tuple(caps_w.items()))
        sql = sql.replace("$site_caps", sites).replace("$caps", table)
    return sql.replace("$at", at)


@functools.lru_cache(maxsize=4)
def _caps(caps_w: tuple[tuple[str, float], ...]) -> tuple[str, str]:
    """Those of sites, and all. Kept: of thousands they cost as much to write as a rule to ask."""
    caps = [(*key.partition(" ")[::2], float(watts)) for key, watts in caps_w]
    sites = ", ".join(
        f"({id64(name) if name else 0}, {watts!r})"
        for scope, name, watts in caps
        if scope == "site"
    )
    return f"CAST([{sites}], 'Array(Tuple(UInt64, Float64))')", _table(caps)


def _table(caps: Iterable[tuple[str, str, float]]) -> str:
    """Caps as a subquery.

    As one text, and no constant: the engine plans a table of thousands of values far more dearly
    than it reads one, and computes a constant anew at each step of planning. Few caps differ, so
    that each is written once, with the names of all that share it.
    """
    alike: dict[tuple[str, float], list[str]] = {}
    for scope, name, watts in caps:
        alike.setdefault((scope, watts), []).append(name)
    text = _quoted(json.dumps([(*key, names) for key, names in alike.items()]))
    kind = "Array(Tuple(String, Float64, Array(String)))"
    return (
        "(SELECT cap.1 AS scope, arrayJoin(cap.3) AS name, cap.2 AS watts FROM (SELECT arrayJoin("  # noqa: S608
        f"JSONExtract(materialize('{text}'), '{kind}')) AS cap))"
    )


def _quoted(name: str) -> str:
    return name.replace("\\", "\\\\").replace("'", "\\'")
