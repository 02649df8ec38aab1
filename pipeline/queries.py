"""Every SELECT that answers a person, named and typed."""

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from pipeline.errors import Refuse
from pipeline.records import id64
from pipeline.store import Store

By = Literal["site", "tenant"]
STEPS: Final[Mapping[str, int]] = {"1s": 1, "1m": 60, "15m": 900, "1h": 3600}
SECOND_MS: Final = 1000
DAY_MS: Final = 86_400_000
LATEST_MS: Final = 4_102_444_800_000
SECONDS_SUFFICE_MS: Final = 6 * 3_600_000
"""Up to this length a range is read second by second, whatever its step."""


@dataclass(frozen=True, slots=True)
class Power:
    """Mean watts of a site (or of a tenant on it) over a step beginning at ts_ms.

    coverage is the measured share of the expected GPU-time; watts are never scaled up by it.
    expected_from says what was expected: "inventory", or "seen" (GPUs of the last 24 h).
    """

    ts_ms: int
    site: str
    tenant: str | None
    watts: float
    coverage: float | None
    expected_from: str


@dataclass(frozen=True, slots=True)
class Span:
    """The sample time that a store holds, [from_ms, until_ms); rows = 0: it is empty."""

    rows: int
    from_ms: int
    until_ms: int


def span(store: Store) -> Span:
    """First and last sample in the store, by its seconds."""
    row = store.query(
        "SELECT sum(rows), toUnixTimestamp(min(ts)), toUnixTimestamp(max(ts)) FROM power_seconds"
    ).rows[0]
    return Span(int(row[0]), row[1] * SECOND_MS, (row[2] + 1) * SECOND_MS if row[0] else 0)


def power(
    store: Store, from_ms: int, until_ms: int, step_s: int, by: By, site: str = ""
) -> list[Power]:
    """Watts by step. Steps are cut at the range and at the newest second, and averaged over that.

    A long range in steps of minutes and more is read from the minutes, and widened to whole ones.
    """
    table = "power_seconds"
    from_ms, until_ms = from_ms // SECOND_MS * SECOND_MS, -(-until_ms // SECOND_MS) * SECOND_MS
    if step_s >= STEPS["1m"] and until_ms - from_ms > SECONDS_SUFFICE_MS:
        table = "tenant_minutes"
        from_ms, until_ms = from_ms // 60_000 * 60_000, -(-until_ms // 60_000) * 60_000
    key = "site, tenant" if by == "tenant" else "site"
    where = " AND site = {site:UInt64}" if site else ""
    found = store.query(
        f"SELECT toUnixTimestamp(toStartOfInterval(ts, INTERVAL {step_s} SECOND)) AS step, {key},"
        " toFloat64(sum(power_w_ms)), sum(power_w_dt_ms)"
        f" FROM {table} WHERE ts >= toDateTime({{since:Int64}}, 'UTC')"
        f" AND ts < toDateTime({{until:Int64}}, 'UTC'){where} GROUP BY step, {key} ORDER BY step, {key}",
        {"since": from_ms // SECOND_MS, "until": until_ms // SECOND_MS, "site": id64(site)},
    ).rows
    if not found:
        return []
    end_ms = min(until_ms, span(store).until_ms)
    sites, tenants = _names(store, "sites"), _names(store, "tenants")
    expected = _Expected.load(store, from_ms, end_ms, by)
    out = []
    for start, site_id, *rest in found:
        tenant_id = rest[0] if by == "tenant" else None
        product, measured = rest[-2:]
        begin, stop = max(start * SECOND_MS, from_ms), min((start + step_s) * SECOND_MS, end_ms)
        want = expected.gpu_ms((site_id, tenant_id), begin, stop)
        out.append(
            Power(
                ts_ms=start * SECOND_MS,
                site=sites.get(site_id, f"{site_id:016x}"),
                tenant=None if tenant_id is None else tenants.get(tenant_id, f"{tenant_id:016x}"),
                watts=product / max(1, stop - begin),
                coverage=min(1.0, measured / want) if want > 0 else None,
                expected_from=expected.basis,
            )
        )
    return out


def _names(store: Store, view: Literal["sites", "tenants"]) -> dict[int, str]:
    return {row[0]: row[1] for row in store.query(f"SELECT id, name FROM {view}").rows}


@dataclass(frozen=True, slots=True)
class _Expected:
    """How many GPUs were expected when, as (from_ms, until_ms, count) per site and tenant."""

    basis: str
    intervals: Mapping[tuple[int, int | None], Sequence[tuple[int, int, int]]]

    @classmethod
    def load(cls, store: Store, from_ms: int, until_ms: int, by: By) -> "_Expected":
        rows = _expected_by_tenant(store) if by == "tenant" else _expected_by_site(store)
        if rows:
            return cls("inventory", _grouped(rows))
        seen = store.query(
            "SELECT site, uniqExact(gpu) FROM gpu_samples"
            " WHERE ts >= fromUnixTimestamp64Milli({since:Int64}, 'UTC')"
            " AND ts < fromUnixTimestamp64Milli({until:Int64}, 'UTC') GROUP BY site",
            {"since": until_ms - DAY_MS, "until": until_ms},
        ).rows
        return cls("seen", _grouped([(s, None, from_ms, until_ms, n) for s, n in seen]))

    def gpu_ms(self, key: tuple[int, int | None], begin_ms: int, end_ms: int) -> int:
        """Expected GPU-time in [begin_ms, end_ms), in ms."""
        return sum(
            max(0, min(until, end_ms) - max(since, begin_ms)) * count
            for since, until, count in self.intervals.get(key, ())
        )


def _grouped(
    rows: Sequence[Sequence[int | None]],
) -> dict[tuple[int, int | None], list[tuple[int, int, int]]]:
    out: dict[tuple[int, int | None], list[tuple[int, int, int]]] = {}
    for site, tenant, since, until, count in rows:
        assert site is not None
        assert since is not None
        assert until is not None
        assert count is not None
        out.setdefault((site, tenant), []).append((since, until, count))
    return out


_FOREVER: Final = "toDateTime64('2200-01-01 00:00:00', 3, 'UTC')"


def _expected_by_site(store: Store) -> Sequence[Sequence[int | None]]:
    return store.query(
        "SELECT site_id, NULL, toUnixTimestamp64Milli(from_ts) AS since,"
        f" toUnixTimestamp64Milli(ifNull(until_ts, {_FOREVER})) AS until, count()"
        " FROM inventory FINAL GROUP BY site_id, since, until"
    ).rows


def _expected_by_tenant(store: Store) -> Sequence[Sequence[int | None]]:
    """GPUs of the inventory that an allocation covers, by its tenant; the rest is unallocated.

    A tenant's claims on a GPU count once, as a lease and a job do. A GPU that several tenants claim
    at once is expected of each of them: the ledger divides it.
    """
    claimed = store.query(
        f"""
WITH latest AS
(
    SELECT site_id, node_id, tenant_id, gpus, from_ts,
        argMax(ifNull(until_ts, {_FOREVER}), asserted_at) AS until_ts
    FROM allocations WHERE tenant_id != 0
    GROUP BY site_id, node_id, source, tenant_id, workload_id, gpus, from_ts
),
claims AS
(
    SELECT a.site_id AS site, arrayJoin([a.tenant_id, 0]) AS holder, i.gpu_id AS gpu,
        toUnixTimestamp64Milli(greatest(a.from_ts, i.from_ts)) AS since,
        toUnixTimestamp64Milli(least(a.until_ts, ifNull(i.until_ts, {_FOREVER}))) AS until
    FROM latest AS a INNER JOIN (SELECT * FROM inventory FINAL) AS i
        ON a.site_id = i.site_id AND a.node_id = i.node_id
    WHERE (empty(a.gpus) OR has(a.gpus, i.gpu_index)) AND until > since
)
SELECT site, holder, span.1, span.2, count()
FROM
(
    SELECT site, holder, arrayJoin({UNION}) AS span FROM claims GROUP BY site, holder, gpu
)
GROUP BY site, holder, span"""
    ).rows
    taken = [(s, 0, since, until, -int(n or 0)) for s, who, since, until, n in claimed if not who]
    free = [(site, 0, since, until, n) for site, _, since, until, n in _expected_by_site(store)]
    return [*(row for row in claimed if row[1]), *free, *taken]


UNION: Final = """arrayFold(
        (done, next) -> if(
            notEmpty(done) AND done[-1].2 >= next.1,
            arrayPushBack(arrayPopBack(done), (done[-1].1, greatest(done[-1].2, next.2))),
            arrayPushBack(done, next)),
        arraySort(groupArray((since, until))), CAST([], 'Array(Tuple(Int64, Int64))'))"""
"""Spans of one GPU, those that overlap or touch made one."""


def parse_time(text: str, now_ms: int, zone: dt.tzinfo) -> int:
    """Epoch ms of an ISO 8601 time, epoch ms, `now`, or a distance back like -24h. Raises Refuse."""
    found = _time(text, now_ms, zone)
    if found is None:
        raise Refuse(f"time {text!r} is not understood: give ISO 8601, epoch milliseconds, or -24h")
    if not 0 <= found < LATEST_MS:
        raise Refuse(f"time {text!r} is not between 1970 and 2100")
    return found


def _time(text: str, now_ms: int, zone: dt.tzinfo) -> int | None:
    units = {"s": 1000, "m": 60_000, "h": 3_600_000, "d": DAY_MS}
    if text == "now":
        return now_ms
    if text.startswith("-") and text[-1] in units and text[1:-1].isdecimal():
        return now_ms - int(text[1:-1]) * units[text[-1]]
    if text.isdecimal() and len(text) >= 12:
        return int(text)
    try:
        moment = dt.datetime.fromisoformat(text)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=zone)
        return round(moment.timestamp() * 1000)
    except (ValueError, OverflowError):
        return None


def iso(ts_ms: int, zone: dt.tzinfo) -> str:
    """A time as ISO 8601, to the millisecond where it has any."""
    moment = dt.datetime.fromtimestamp(ts_ms / 1000, zone)
    text = moment.isoformat(timespec="milliseconds" if ts_ms % 1000 else "seconds")
    return text.replace("+00:00", "Z")


@dataclass(frozen=True, slots=True)
class Status:
    """What a store holds; times are ISO 8601 UTC, age_s is of the newest sample."""

    schema: int
    rows: int
    gpus_seen: int
    gpus_expected: int
    first_sample: str | None
    newest_sample: str | None
    age_s: float | None
    watermark: str | None
    rows_per_s: float
    duplicates: int
    gaps: int
    dead_letters: int
    disk_mib: float
    parts: int


def status(store: Store, now_ms: int) -> Status:
    """Counts, freshness and losses of a store."""
    held = span(store)
    utc = dt.UTC
    log = store.query(
        "SELECT sum(duplicates), sum(gaps), toUnixTimestamp64Milli(max(watermark)),"
        " sumIf(rows, kind = 'insert' AND at > fromUnixTimestamp64Milli({since:Int64}, 'UTC'))"
        " FROM ingest_log WHERE kind != 'fill'",
        {"since": now_ms - 60_000},
    ).rows[0]
    disk = store.query(
        "SELECT sum(bytes_on_disk), count() FROM system.parts"
        " WHERE active AND database = currentDatabase()"
    ).rows[0]
    seen = store.query("SELECT uniqExact(gpu) FROM gpu_latest").rows[0][0]
    return Status(
        schema=store.query("SELECT max(number) FROM schema_migrations").rows[0][0],
        rows=held.rows,
        gpus_seen=seen,
        gpus_expected=store.query(
            "SELECT count() FROM inventory FINAL WHERE until_ts IS NULL"
        ).rows[0][0],
        first_sample=iso(held.from_ms, utc) if held.rows else None,
        newest_sample=iso(held.until_ms - 1000, utc) if held.rows else None,
        age_s=round((now_ms - held.until_ms + 1000) / 1000, 1) if held.rows else None,
        watermark=iso(log[2], utc) if log[2] else None,
        rows_per_s=round(log[3] / 60, 1),
        duplicates=log[0],
        gaps=log[1],
        dead_letters=store.query(
            "SELECT count() FROM dead_letters FINAL WHERE replayed_at IS NULL"
        ).rows[0][0],
        disk_mib=round(disk[0] / 2**20, 1),
        parts=disk[1],
    )


EnergyTable = Literal["gpu_samples", "power_seconds", "tenant_minutes", "gpu_minutes"]


def energy_mj(store: Store, table: EnergyTable) -> str:
    """All the energy of a table in whole millijoules, as text: JSON has no 64-bit integers."""
    final = " FINAL" if table == "gpu_minutes" else ""
    sql = f"SELECT toString(toInt64(ifNull(sum(energy_j), 0) * 1000)) FROM {table}{final}"
    found: str = store.query(sql).rows[0][0]
    return found
