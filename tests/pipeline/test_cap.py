"""Above its cap on disk the embedded store drops the oldest raw rows, and only those."""

import logging

import numpy as np

from pipeline import cap

HOUR_MS = 3_600_000
T0_MS = 1_795_000_000_000 // (24 * HOUR_MS) * 24 * HOUR_MS


def fill(store, hours) -> None:
    rng = np.random.default_rng(3)
    for hour in hours:
        count = 20_000
        store.insert(
            "gpu_samples",
            {
                "gpu": rng.integers(0, 2**63, count, dtype=np.uint64),
                "ts": T0_MS + hour * HOUR_MS + rng.integers(0, HOUR_MS, count),
                "seq": rng.integers(0, 2**63, count, dtype=np.uint64),
                "dt_ms": np.full(count, 1000, np.uint32),
            },
        )


def hours_left(store) -> list[int]:
    found = store.query(
        "SELECT DISTINCT intDiv(toUnixTimestamp64Milli(ts), 3600000) AS h FROM gpu_samples ORDER BY h"
    ).rows
    return [row[0] - T0_MS // HOUR_MS for row in found]


def size_gib(store) -> float:
    return cap._bytes(store) / 2**30


def test_below_the_cap_nothing_is_dropped(store):
    """Not a row."""
    fill(store, range(3))
    assert cap.enforce(store, 1.0) == []
    assert hours_left(store) == [0, 1, 2]


def test_the_oldest_hours_go_until_the_store_fits_and_it_is_said(store, caplog):
    """In whatever order they came; rollups stay."""
    fill(store, (3, 0, 2, 1))
    seconds = store.query("SELECT sum(rows) FROM power_seconds").rows[0][0]
    bound = size_gib(store) * 0.75
    with caplog.at_level(logging.WARNING, "megawatch.store"):
        dropped = cap.enforce(store, bound)
    left = hours_left(store)
    assert left
    assert left == [0, 1, 2, 3][-len(left) :]
    assert len(dropped) == 4 - len(left) > 0
    assert size_gib(store) <= bound
    assert all("dropped" in r.message and "max_disk_gib" in r.message for r in caplog.records)
    assert store.query("SELECT sum(rows) FROM power_seconds").rows[0][0] == seconds


def test_an_impossible_cap_ends(store):
    """When there is nothing left to drop it stops, and keeps what is not expendable."""
    fill(store, range(2))
    store.insert("meters", {"meter": ["m"], "ts": [T0_MS]})
    assert len(cap.enforce(store, 0.0)) == 2
    assert hours_left(store) == []
    assert store.query("SELECT count() FROM meters").rows[0][0] == 1
