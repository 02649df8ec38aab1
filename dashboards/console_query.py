"""Running a dashboard's own queries: read-only, bounded, and answered as columns."""

import csv as stdlib_csv
import datetime as dt
import io
import queue
import re
from bisect import bisect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from decimal import Decimal
from itertools import pairwise
from typing import Any, Final, Literal

import msgspec

from dashboards.macros import Span, expand
from pipeline.errors import MegawatchError, Retry
from pipeline.store import Rows, Store

MAX_ROWS: Final = 200_000
"""Of an answer."""
MAX_SECONDS: Final = 30
LIMITS: Final[Mapping[str, object]] = {
    "max_execution_time": MAX_SECONDS,
    "max_memory_usage": 4 << 30,
    "max_result_rows": MAX_ROWS,
    "max_rows_to_read": 2_000_000_000,
    "max_threads": 2,
    "result_overflow_mode": "throw",
}
_SHORTER: Final = "choose a shorter time range"
_SENTENCES: Final[Mapping[str, str]] = {
    "158": f"this would read more rows than the console allows: {_SHORTER}",
    "159": f"this took longer than {MAX_SECONDS} s: {_SHORTER}",
    "241": f"this needs more memory than the console allows: {_SHORTER}",
    "396": f"the answer has more than {MAX_ROWS:,} rows: {_SHORTER}",
}
"""What the engine's error codes mean to whoever looks at a panel."""
_ERROR: Final = re.compile(
    r"^Code: (\d+)\. DB::Exception: (?:Code: \d+\. DB::Exception: )?(.*)", re.DOTALL
)
_NOISE: Final = re.compile(r"(: |\. )?In scope .*|\s*\([A-Z_]+\)( \(version .*\))?\s*$", re.DOTALL)

STEPS_S: Final = (
    1, 2, 5, 10, 15, 20, 30, 60, 120, 300, 600, 900, 1200, 1800, 3600, 7200, 10800, 21600, 43200,
    86400, 604800, 2592000, 31536000,
)  # fmt: skip
"""Distances between points that a person reads easily."""
_BETWEEN: Final = [(low + high) / 2 for low, high in pairwise(STEPS_S)]
_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r")

Kind = Literal["time", "number", "text"]


class Answer(msgspec.Struct, frozen=True):
    """A result as columns; moments are epoch milliseconds, what is not known is None."""

    names: tuple[str, ...]
    kinds: list[Kind]
    columns: list[list[Any]]
    interval_s: int


class Stores:
    """A few connections, each lent to one thread at a time; callers bound how many ask."""

    def __init__(self, store: Store, count: int) -> None:
        """Open them all: one that cannot be opened is known now."""
        self._store, self._count = store, count
        self._free: queue.SimpleQueue[Store] = queue.SimpleQueue()
        for _ in range(count):
            self._free.put(store.another())

    @contextmanager
    def lent(self) -> Iterator[Store]:
        """A connection for as long as the block lasts.

        One whose query failed is not used again: the embedded engine may leave it read-only, or
        answer its next query with nothing.
        """
        one = self._free.get()
        try:
            yield one
        except BaseException:
            one.close()
            one = self._store.another()
            raise
        finally:
            self._free.put(one)

    def close(self) -> None:
        """Release the connections, each when nobody has it any more; idempotent."""
        while self._count:
            self._free.get(timeout=2 * MAX_SECONDS).close()
            self._count -= 1


def interval_s(from_ms: int, until_ms: int, points: int) -> int:
    """The distance between points, such that a range has about `points` of them."""
    return STEPS_S[bisect(_BETWEEN, (until_ms - from_ms) / 1000 / points)]


def rows(store: Store, sql: str, span: Span, values: Mapping[str, str]) -> Rows:
    """The result of a dashboard's query. Raises Refuse, or Retry with a sentence for people."""
    query = expand(sql, span, values)
    try:
        return store.query(query.sql, query.parameters, **LIMITS)
    except Retry as error:
        raise Retry(sentence(error)) from error


def sentence(error: MegawatchError) -> str:
    """An engine's message without its codes and its own copy of the query."""
    found = _ERROR.match(str(error))
    if not found:
        return str(error)
    return _SENTENCES.get(found[1]) or f"the query failed: {_NOISE.sub('', found[2]).rstrip('.: ')}"


def answer(result: Rows, step_s: int) -> Answer:
    """Rows as columns of what JSON has."""
    columns = [list(column) for column in zip(*result.rows, strict=True)]
    columns = columns or [[] for _ in result.names]
    kinds = [_kind(column) for column in columns]
    return Answer(
        result.names,
        kinds,
        [[_plain(value) for value in column] for column in columns],
        step_s,
    )


def csv(result: Rows) -> str:
    """RFC 4180 with a header; times are ISO 8601 in UTC.

    Text that a spreadsheet would run as a formula begins with an apostrophe.
    """
    out = io.StringIO()
    writer = stdlib_csv.writer(out)
    writer.writerow([_cell(name) for name in result.names])
    writer.writerows([_cell(value) for value in row] for row in result.rows)
    return out.getvalue()


def _kind(column: Sequence[object]) -> Kind:
    """Of the first value that is known; a column of nothing is one of numbers."""
    first = next((value for value in column if value is not None), None)
    if isinstance(first, dt.date):  # also a datetime
        return "time"
    return "number" if first is None or isinstance(first, (int, float, Decimal)) else "text"


def _plain(value: object) -> object:
    if isinstance(value, Decimal):
        return float(value)
    if isinstance(value, dt.date):
        return int(_moment(value).timestamp() * 1000)
    if value is None or isinstance(value, (int, float, str)):
        return value
    return str(value)


def _moment(value: dt.date) -> dt.datetime:
    """The client gives naive times in UTC, or in the machine's zone with its name."""
    if not isinstance(value, dt.datetime):
        value = dt.datetime(value.year, value.month, value.day)  # noqa: DTZ001, see below
    return value if value.tzinfo else value.replace(tzinfo=dt.UTC)


def _cell(value: object) -> str:
    if value is None or (isinstance(value, float) and value != value):  # noqa: PLR0124, NaN
        return ""
    if isinstance(value, dt.datetime):
        moment = _moment(value).astimezone(dt.UTC)
        return moment.isoformat(timespec="milliseconds" if moment.microsecond else "seconds")
    if isinstance(value, str) and value.startswith(_FORMULA):
        return f"'{value}"
    return str(value)
