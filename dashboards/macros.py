"""The ClickHouse data source's macros and variables, as its documentation defines them.

Those that our panels use, and no other: an unknown one is refused. Values of variables are bound as
parameters, never written into the text.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from pipeline.errors import Refuse

_MACRO: Final = re.compile(r"\$__(\w+)(?:\(([^()]*)\))?")
_VARIABLE: Final = re.compile(r"\$\{(\w+):singlequote\}")
_LEFT: Final = re.compile(r"\$[{_a-zA-Z]")


@dataclass(frozen=True, slots=True)
class Span:
    """The time range of a page, and how far apart a panel's points are."""

    from_ms: int
    until_ms: int
    interval_s: int = 1


@dataclass(frozen=True, slots=True)
class Query:
    """SQL for the store, with its parameters."""

    sql: str
    parameters: Mapping[str, str]


def expand(sql: str, span: Span, values: Mapping[str, str]) -> Query:
    """A panel's query for a range and values of variables. Raises Refuse for what is unknown."""
    used: dict[str, str] = {}

    def bound(found: re.Match[str]) -> str:
        name = found[1]
        if name not in values:
            raise Refuse(f"the query needs the variable {name!r}, which has no value")
        used[name] = values[name]
        return f"{{{name}:String}}"

    text = _MACRO.sub(lambda found: _macro(found, span), sql)
    text = _VARIABLE.sub(bound, text)
    left = _LEFT.search(text)
    if left:
        raise Refuse(f"unknown macro or variable at {text[left.start() : left.start() + 40]!r}")
    return Query(text, used)


def _macro(found: re.Match[str], span: Span) -> str:
    name, argument = found[1], (found[2] or "").strip()
    since_s, until_s = span.from_ms // 1000, span.until_ms // 1000
    since_ms, until_ms = (f"fromUnixTimestamp64Milli({ms})" for ms in (span.from_ms, span.until_ms))
    plain = {
        "fromTime": f"toDateTime({since_s})",
        "toTime": f"toDateTime({until_s})",
        "fromTime_ms": since_ms,
        "toTime_ms": until_ms,
        "interval_s": str(span.interval_s),
    }
    calls = {
        "timeFilter": f"{argument} >= toDateTime({since_s}) AND {argument} <= toDateTime({until_s})",
        "timeFilter_ms": f"{argument} >= {since_ms} AND {argument} <= {until_ms}",
        "timeInterval": f"toStartOfInterval(toDateTime({argument}), INTERVAL {span.interval_s} second)",
        "timeInterval_ms": (
            f"toStartOfInterval(toDateTime64({argument}, 3),"
            f" INTERVAL {span.interval_s * 1000} millisecond)"
        ),
    }
    text = calls.get(name) if found[2] is not None else plain.get(name)
    if text is None:
        raise Refuse(f"unknown macro {found[0]!r}")
    return text
