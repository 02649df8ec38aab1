"""The ClickHouse data source's macros and variables, as its documentation defines them.

Those that our panels use, and no other: an unknown one is refused. Values of variables are bound as
parameters, never written into the text.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from pipeline.errors import Refuse

_MACRO: Final = re.compile(r"\$__(\w+)")
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
        if "\0" in values[name]:
            # A server would cut the value there, or refuse it with a page of its own words.
            raise Refuse(f"the value of the variable {name!r} has a NUL in it")
        used[name] = values[name]
        return f"{{{name}:String}}"

    text = _VARIABLE.sub(bound, _macros(sql, span))
    left = _LEFT.search(text)
    if left:
        raise Refuse(f"unknown macro or variable at {text[left.start() : left.start() + 40]!r}")
    return Query(text, used)


def _macros(sql: str, span: Span) -> str:
    """The text with every macro expanded; arguments may hold macros and parentheses."""
    plain, calls = _plain(span), _calls(span)
    out, at = [], 0
    while found := _MACRO.search(sql, at):
        name, end = found[1], found.end()
        if name in plain:
            text = plain[name]
        elif name in calls and sql[end : end + 1] == "(":
            argument, end = _argument(sql, end)
            text = calls[name].replace("?", _macros(argument, span))
        else:
            raise Refuse(f"unknown macro {found[0]!r}" + (", it needs a column" * (name in calls)))
        out += [sql[at : found.start()], text]
        at = end
    return "".join([*out, sql[at:]])


def _argument(sql: str, opening: int) -> tuple[str, int]:
    """What stands between the parenthesis at `opening` and its partner, and where that ends."""
    depth = 0
    for at in range(opening, len(sql)):
        depth += {"(": 1, ")": -1}.get(sql[at], 0)
        if not depth:
            argument = sql[opening + 1 : at].strip()
            if not argument:
                break
            return argument, at + 1
    raise Refuse(f"a macro's column is missing or does not end: {sql[opening : opening + 40]!r}")


def _plain(span: Span) -> Mapping[str, str]:
    return {
        "fromTime": f"toDateTime({span.from_ms // 1000})",
        "toTime": f"toDateTime({span.until_ms // 1000})",
        "fromTime_ms": f"fromUnixTimestamp64Milli({span.from_ms})",
        "toTime_ms": f"fromUnixTimestamp64Milli({span.until_ms})",
        "interval_s": str(_interval_s(span)),
    }


def _calls(span: Span) -> Mapping[str, str]:
    """Macros of one argument, which stands for each question mark."""
    edge, step_s = _plain(span), _interval_s(span)
    return {
        "timeFilter": f"? >= {edge['fromTime']} AND ? <= {edge['toTime']}",
        "timeFilter_ms": f"? >= {edge['fromTime_ms']} AND ? <= {edge['toTime_ms']}",
        "timeInterval": f"toStartOfInterval(toDateTime(?), INTERVAL {step_s} second)",
        "timeInterval_ms": (
            f"toStartOfInterval(toDateTime64(?, 3), INTERVAL {step_s * 1000} millisecond)"
        ),
    }


def _interval_s(span: Span) -> int:
    """Never below a second, as the data source has it."""
    return max(1, span.interval_s)
