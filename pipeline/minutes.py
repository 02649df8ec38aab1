"""Fills gpu_minutes behind the watermark, again for every minute that late rows touch.

What to fill is read from ingest_log, so that imports, backfill and several pipelines are covered
alike and a restart forgets nothing. A minute is computed anew from its raw rows; the row with the
highest version counts, so that doing it twice changes nothing.
"""

import logging
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final

from pipeline import rows, schema
from pipeline.store import Store

_log: Final = logging.getLogger("megawatch.minutes")

MINUTE_MS: Final = 60_000
LOOK_BACK_MS: Final = 60_000
"""An insert's log row becomes visible at most this long after the time that it carries."""
CHUNK_ROWS: Final = 6_000_000
"""Raw rows that one statement may read, so that memory is bounded: GPUs are taken in id ranges."""
_MAX_RUN: Final = 60  # minutes filled by one statement
OLD_MS: Final = 86_400_000
"""Minutes older than this may have lost raw rows to retention: a fuller row of them stays."""


@dataclass(slots=True)
class Minutes:
    """The one owner of gpu_minutes."""

    store: Store
    _done: dict[tuple[int, str, int, int], int] = field(default_factory=dict)
    _cursor_ms: int | None = None
    _version: int = 0

    def fill(self, now_ms: int, watermark_ms: int | None) -> int:
        """Fill what is complete below the watermark (None: everything); minutes filled."""
        # A clock that was set back must not hide what is inserted under earlier times.
        cursor = min(self._cursor(), now_ms - LOOK_BACK_MS)
        inserts = self.store.query(
            "SELECT toUnixTimestamp64Milli(at), topic, partition, first,"
            " toUnixTimestamp64Milli(from_ts), toUnixTimestamp64Milli(until_ts)"
            " FROM ingest_log WHERE kind != 'fill' AND rows > 0"
            " AND at >= fromUnixTimestamp64Milli({cursor:Int64}, 'UTC')",
            {"cursor": cursor},
        ).rows
        minutes: set[int] = set()
        waiting: list[int] = []
        reached: dict[tuple[int, str, int, int], int] = {}
        for at, topic, partition, first, from_ms, until_ms in inserts:
            key = (at, topic, partition, first)
            touched = range(from_ms // MINUTE_MS, until_ms // MINUTE_MS + 1)
            begun = max(self._done.get(key, touched.start), touched.start)
            ready = touched.stop if watermark_ms is None else watermark_ms // MINUTE_MS
            upto = min(ready, touched.stop)
            minutes.update(range(begun, upto))
            reached[key] = max(begun, upto)
            if upto < touched.stop:
                waiting.append(at)
        self._version = max(now_ms, self._version + 1)
        for start, stop in _runs(sorted(minutes)):
            is_old = stop * MINUTE_MS < now_ms - OLD_MS
            self._fill(start * MINUTE_MS, stop * MINUTE_MS, self._version, fuller=is_old)
        self._done |= reached  # only now: what failed is filled again
        if minutes:
            self._remember(min([*waiting, now_ms - LOOK_BACK_MS]), now_ms, minutes)
        return len(minutes)

    def _cursor(self) -> int:
        if self._cursor_ms is None:
            found = self.store.query(
                "SELECT toUnixTimestamp64Milli(max(watermark)), max(last) FROM ingest_log"
                " WHERE kind = 'fill'"
            ).rows
            self._cursor_ms, self._version = max(0, found[0][0]), found[0][1]
        return self._cursor_ms

    def _remember(self, cursor_ms: int, now_ms: int, minutes: set[int]) -> None:
        self._cursor_ms = cursor_ms
        self._done = {key: upto for key, upto in self._done.items() if key[0] >= cursor_ms}
        row: rows.Row = {
            "at": now_ms, "kind": "fill", "rows": len(minutes), "watermark": cursor_ms,
            "last": self._version,
            "from_ts": min(minutes) * MINUTE_MS, "until_ts": (max(minutes) + 1) * MINUTE_MS,
        }  # fmt: skip
        self.store.insert("ingest_log", rows.columns([row]))

    def _fill(self, from_ms: int, until_ms: int, version: int, *, fuller: bool) -> None:
        for low, high in self._id_ranges(from_ms, until_ms):
            sql = fill_statement(from_ms, until_ms, low, high, version, fuller=fuller)
            self.store.command(sql)
        _log.debug("filled minutes [%s, %s)", from_ms, until_ms)

    def _id_ranges(self, from_ms: int, until_ms: int) -> list[tuple[int, int]]:
        """Ranges of GPU ids, [low, high), that divide the rows evenly: ids are hashes."""
        count = self.store.query(
            "SELECT count() FROM gpu_samples"
            " WHERE ts >= fromUnixTimestamp64Milli({since:Int64}, 'UTC')"
            " AND ts < fromUnixTimestamp64Milli({until:Int64}, 'UTC')",
            {"since": from_ms, "until": until_ms},
        ).rows[0][0]
        pieces = count // CHUNK_ROWS + 1
        edges = [i * 2**64 // pieces for i in range(pieces + 1)]
        return list(pairwise(edges))


def fill_statement(
    from_ms: int, until_ms: int, low: int, high: int, version: int, *, fuller: bool = False
) -> str:
    """The INSERT that computes the minutes of [from_ms, until_ms) for GPUs in [low, high).

    `fuller`: only those of which not more time is there already. That costs a look at all minutes
    of the day. One thread: with two, each has every GPU in a table of its own, and to merge those
    costs as much as all the rest.
    """
    names = [c.name for c in schema.rollup_columns("gpu_minutes")]
    span = (
        f"s.gpu >= {low} AND s.gpu <= {high - 1}"
        f" AND s.ts >= fromUnixTimestamp64Milli({from_ms}, 'UTC')"
        f" AND s.ts < fromUnixTimestamp64Milli({until_ms}, 'UTC')"
    )
    return f"""
INSERT INTO gpu_minutes (gpu, ts, site, version, ingested_at,
    energy_counter_first_j, energy_counter_last_j, {", ".join(names)})
SELECT m.gpu, m.minute, m.of_site, {version}, m.at, h.counter_first, h.counter_last,
    {", ".join(f"m.{name}" for name in names)}
FROM
(
    SELECT s.gpu AS gpu, toStartOfMinute(s.ts) AS minute, any(s.site) AS of_site,
        max(s.ingested_at) AS at, {schema.select_list("gpu_minutes")}
    FROM gpu_samples AS s WHERE {span} GROUP BY gpu, minute
) AS m
LEFT JOIN
(
    SELECT s.gpu AS gpu, toStartOfMinute(s.ts) AS minute,
        argMin(s.energy_counter_j, s.ts) AS counter_first,
        argMax(s.energy_counter_j, s.ts) AS counter_last
    FROM gpu_health AS s WHERE {span} GROUP BY gpu, minute
) AS h ON m.gpu = h.gpu AND m.minute = h.minute{_not_fuller(span) if fuller else ""}
SETTINGS max_threads = 1"""  # noqa: S608


def _not_fuller(span: str) -> str:
    return f"""
LEFT JOIN
(
    SELECT s.gpu AS gpu, s.ts AS minute, argMax(s.dt_ms, s.version) AS had_ms
    FROM gpu_minutes AS s WHERE {span} GROUP BY gpu, minute
) AS o ON m.gpu = o.gpu AND m.minute = o.minute
WHERE m.dt_ms >= o.had_ms"""  # noqa: S608


def _runs(minutes: list[int]) -> list[tuple[int, int]]:
    """Consecutive minutes as half-open ranges of at most an hour."""
    out: list[tuple[int, int]] = []
    for minute in minutes:
        if out and out[-1][1] == minute and minute - out[-1][0] < _MAX_RUN:
            out[-1] = (out[-1][0], minute + 1)
        else:
            out.append((minute, minute + 1))
    return out
