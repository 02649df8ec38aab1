"""The embedded store's bound: above its cap on disk the oldest samples go, and it says so."""

import logging
from typing import Final

from pipeline.store import Store

_log: Final = logging.getLogger("megawatch.store")

_EXPENDABLE: Final = ("gpu_samples", "gpu_health", "slice_samples")
"""Rollups, inventory and allocations are small, and are what remains of the past."""


def enforce(store: Store, max_disk_gib: float) -> list[str]:
    """Drop the oldest partitions of raw tables until the store fits; what was dropped."""
    dropped = []
    while (over := _bytes(store) - max_disk_gib * 2**30) > 0:
        oldest = store.query(
            "SELECT table, partition_id, partition FROM system.parts WHERE active"
            " AND database = currentDatabase() AND table IN {tables:Array(String)}"
            " GROUP BY table, partition_id, partition ORDER BY min(min_time) LIMIT 1",
            {"tables": list(_EXPENDABLE)},
        ).rows
        if not oldest:
            break
        table, partition_id, partition = oldest[0]
        store.command(f"ALTER TABLE {table} DROP PARTITION ID '{partition_id}'")
        _log.warning(
            "the store is %.0f MiB over max_disk_gib=%s: dropped %s of %s",
            over / 2**20, max_disk_gib, table, partition,
        )  # fmt: skip
        dropped.append(f"{table} {partition}")
    return dropped


def _bytes(store: Store) -> int:
    found: int = store.query(
        "SELECT sum(bytes_on_disk) FROM system.parts WHERE active AND database = currentDatabase()"
    ).rows[0][0]
    return found
