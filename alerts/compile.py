"""Rules of one signal as one query: what breaks a threshold, and nothing else, comes back."""

import json
from collections.abc import Mapping, Sequence
from typing import Final

from alerts.rule import Rule, Signal

AT: Final = "{at:DateTime('UTC')}"
"""The evaluator's parameter: the time of evaluation."""
MAX_ROWS: Final = 60_000
"""Of one answer: every node of a dark site of 220,000 GPUs fits, and folds into one page. In order
of their labels, so that a longer answer is cut at the same place every time."""


def query(signal: Signal, rules: Sequence[Rule], thresholds: Mapping[str, float]) -> str:
    """Labels, then one column per rule by its name: the value where it breaks, else NULL.

    `at` and `caps` are still to be bound, see `bound`.
    """
    labels = ", ".join(f"toString({sql}) AS {name}" for name, sql in signal.labels.items())
    values = ", ".join(f"toFloat64({rule.value}) AS v_{rule.name}" for rule in rules)
    broken = [
        f"v_{r.name} {r.operator} {thresholds.get(r.name, r.threshold)!r}" for r in rules
    ]  # fmt: skip
    picked = ", ".join(
        f"if({broke}, v_{rule.name}, NULL) AS {rule.name}"
        for rule, broke in zip(rules, broken, strict=True)
    )
    names = ", ".join(signal.labels)
    grouped = f" GROUP BY {names}" if names else ""
    ordered = f" ORDER BY {names}" if names else ""
    lead = f"{names}, " if names else ""
    return (
        f"{signal.with_} SELECT {lead}{picked} FROM (SELECT {labels}{', ' if labels else ''}{values}"  # noqa: S608
        f" FROM {signal.source}{grouped}) WHERE {' OR '.join(broken)}{ordered} LIMIT {MAX_ROWS}"
    ).strip()


def bound(sql: str, caps_w: Mapping[str, float], at: str = AT) -> str:
    """The query with its time and the configured caps ("site", or "rack h01-r03": watts)."""
    # As one text: the engine plans a table of thousands of values far more dearly than it reads one.
    text = _quoted(json.dumps([(*key.partition(" ")[::2], float(w)) for key, w in caps_w.items()]))
    table = (
        "(SELECT cap.1 AS scope, cap.2 AS name, cap.3 AS watts FROM (SELECT arrayJoin("  # noqa: S608
        f"JSONExtract('{text}', 'Array(Tuple(String, String, Float64))')) AS cap))"
    )
    return sql.replace("$caps", table).replace("$at", at)


def _quoted(name: str) -> str:
    return name.replace("\\", "\\\\").replace("'", "\\'")
