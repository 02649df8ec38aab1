"""The ledger looked at again: what was closed when, and whether its sums agree."""

import datetime as dt
from collections.abc import Sequence
from typing import Final

import msgspec

from pipeline import queries
from pipeline.records import id64
from pipeline.store import Store

_MJ_PER_KWH: Final = 3_600_000_000
_RANGE: Final = (
    " site = {site:UInt64} AND ts >= toDateTime({since:Int64}, 'UTC')"
    " AND ts < toDateTime({until:Int64}, 'UTC')"
)


class Entry(msgspec.Struct, frozen=True):
    """A quarter's closings: the version that counts, and what the last one before it said."""

    version: int
    closings: int
    energy_kwh: float
    change_kwh: float
    change_gpu_hours: float
    coverage: float | None
    reason: str


class Found(msgspec.Struct, frozen=True):
    """What `verify` looked at, and a sentence for each sum that does not agree."""

    quarters: int
    rows: int
    broken: list[str]


def history(store: Store, site: str, from_ms: int, until_ms: int) -> dict[int, Entry]:
    """Every quarter that was ever closed, or that an attempt was made to close."""
    found = store.query(
        "SELECT toInt64(toUnixTimestamp(ts)) * 1000, version, toString(state), reason,"  # noqa: S608
        " toInt64((energy_j + bridged_j) * 1000), measured_ms, expected_ms"
        f" FROM ledger_closes WHERE {_RANGE} ORDER BY ts, version",
        _asked(site, from_ms, until_ms),
    ).rows
    by_quarter: dict[int, list[tuple[int, str, str, int, int, int]]] = {}
    for quarter, *rest in found:
        by_quarter.setdefault(quarter, []).append(tuple(rest))
    return {quarter: _entry(attempts) for quarter, attempts in by_quarter.items()}


def passed_over(store: Store, site: str, from_ms: int, until_ms: int) -> list[tuple[str, int]]:
    """Meters whose readings were negative, and how often: those are kept, and in no sum."""
    found = store.query(
        "SELECT concat(toString(kind), ' meter ', meter) AS name, uniqExact(ts) AS times FROM meters"  # noqa: S608
        f" WHERE watts < 0 AND {_RANGE} GROUP BY name ORDER BY times DESC, name",
        _asked(site, from_ms, until_ms),
    ).rows
    return [(name, times) for name, times in found]


def _entry(attempts: list[tuple[int, str, str, int, int, int]]) -> Entry:
    closed = [a for a in attempts if a[1] == "closed"]
    last = attempts[-1]
    reason = f"{last[1]}: {last[2]}" if last[1] != "closed" else ""
    if not closed:
        return Entry(0, 0, 0.0, 0.0, 0.0, None, reason)
    version, _, _, energy, measured, expected = closed[-1]
    before = closed[-2] if len(closed) > 1 else closed[-1]
    return Entry(
        version, len(closed), round(energy / _MJ_PER_KWH, 6),
        round((energy - before[3]) / _MJ_PER_KWH, 6), round((measured - before[4]) / 3.6e6, 6),
        round(min(1.0, measured / expected), 6) if expected else None, reason,
    )  # fmt: skip


def check(store: Store, site: str, from_ms: int, until_ms: int) -> Found:
    """The laws, by SQL over what is stored.

    Of each closed quarter: GPUs' rows, holders' rows and the closing say the same energy and time,
    and so do the minutes that it was closed from, as long as they are what they were.
    """
    asked = _asked(site, from_ms, until_ms)
    sums = "toInt64(sum({0}.energy_j) * 1000), toInt64(sum({0}.measured_ms))"
    closed = (
        "(SELECT ts, max(version) AS newest,"  # noqa: S608
        " toInt64(argMax(energy_j, version) * 1000) AS energy,"
        " toInt64(argMax(measured_ms, version)) AS measured,"
        " argMax(data_version, version) AS data"
        f" FROM ledger_closes WHERE {_RANGE} AND state = 'closed' GROUP BY ts) AS c"
    )
    tables = {
        "its GPUs' rows": ("ledger_quarters", "t.version = c.newest"),
        "its holders' rows": ("ledger_holders", "t.version = c.newest"),
    }
    broken: list[str] = []
    count = rows = 0
    for what, (name, same) in tables.items():
        found = store.query(
            "SELECT toInt64(toUnixTimestamp(c.ts)) * 1000, any(c.energy), any(c.measured), count(),"  # noqa: S608
            f" {sums.format('t')} FROM {closed} LEFT JOIN"
            f" (SELECT * FROM {name} WHERE {_RANGE}) AS t ON t.ts = c.ts AND {same} GROUP BY c.ts",
            asked,
        ).rows
        count = len(found)
        rows += sum(row[3] for row in found if row[5])
        broken += [_said(what, row[0], row[1:3], row[4:6]) for row in found if row[1:3] != row[4:6]]
    minutes = store.query(
        "SELECT toInt64(toUnixTimestamp(c.ts)) * 1000, any(c.energy), any(c.measured),"  # noqa: S608
        " toInt64(sum(t.energy_j) * 1000), toInt64(sum(t.dt_ms)), max(t.version), any(c.data)"
        f" FROM {closed} INNER JOIN (SELECT *, toStartOfFifteenMinutes(ts) AS q FROM gpu_minutes"
        f" FINAL WHERE {_RANGE}) AS t ON t.q = c.ts GROUP BY c.ts",
        asked,
    ).rows
    broken += [
        _said("the minutes", row[0], row[1:3], row[3:5])
        for row in minutes
        if row[5] == row[6] and row[1:3] != row[3:5]
    ]
    return Found(count, rows, broken)


def _said(what: str, quarter_ms: int, closed: Sequence[int], other: Sequence[int]) -> str:
    return (
        f"{queries.iso(quarter_ms, dt.UTC)}: {what} have {other[0]} mJ and {other[1]} ms, the"
        f" closing {closed[0]} mJ and {closed[1]} ms"
    )


def _asked(site: str, from_ms: int, until_ms: int) -> dict[str, object]:
    return {"site": id64(site), "since": from_ms // 1000, "until": -(-until_ms // 1000)}
