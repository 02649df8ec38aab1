"""What a store holds, by SQL: every row once, and the same millijoules in every table."""

from dataclasses import dataclass
from typing import Any

from pipeline.store import Store

ENERGY_TABLES = ("gpu_samples", "power_seconds", "tenant_minutes", "gpu_minutes FINAL")


@dataclass(frozen=True)
class Held:
    """What is in the tables."""

    rows: int
    distinct_rows: int
    messages_by_stream: dict[int, int]
    energy_mj: dict[str, int]
    dead_letters: int


def audit(store: Store) -> Held:
    """Count everything; a stream whose numbers have gaps is not counted but raises."""
    rows, distinct = store.query("SELECT count(), uniqExact(gpu, ts) FROM gpu_samples").rows[0]
    streams = store.query(
        "SELECT stream, min(seq), max(seq), uniqExact(seq) FROM gpu_samples GROUP BY stream"
    ).rows
    for stream, low, high, count in streams:
        assert (low, high) == (0, count - 1), (
            f"stream {stream}: {count} messages of [{low}, {high}], missing {gaps(store, stream)}"
        )
    return Held(
        rows,
        distinct,
        {stream: count for stream, _, _, count in streams},
        {table: energy_mj(store, table) for table in ENERGY_TABLES},
        one(store, "SELECT count() FROM dead_letters"),
    )


def gaps(store: Store, stream: int) -> list[int]:
    """Numbers of a stream, below its newest, of which there is no row; at most 20."""
    rows = store.query(
        "SELECT number FROM numbers((SELECT max(seq) FROM gpu_samples WHERE stream = {s:UInt64}))"
        " WHERE number NOT IN (SELECT seq FROM gpu_samples WHERE stream = {s:UInt64}) LIMIT 20",
        {"s": stream},
    ).rows
    return [row[0] for row in rows]


def doubles(store: Store) -> list[tuple[int, int]]:
    """Messages, as (stream, seq), with a row that is there twice; at most 20."""
    rows = store.query(
        "SELECT DISTINCT stream, seq FROM (SELECT stream, seq FROM gpu_samples"
        " GROUP BY stream, seq, gpu, ts HAVING count() > 1) ORDER BY stream, seq LIMIT 20"
    ).rows
    return [(row[0], row[1]) for row in rows]


def energy_mj(store: Store, table: str) -> int:
    """The table's energy."""
    return int(one(store, f"SELECT sum(energy_j) FROM {table}") * 1000)


def one(store: Store, sql: str) -> Any:
    """The one value of a query."""
    return store.query(sql).rows[0][0]
