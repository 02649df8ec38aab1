"""A live hour's rows are merged once where parts are large, and the engine's way where they are not."""

import os
import sys
import threading
import time

import numpy as np
import pytest

from pipeline import merges
from pipeline.merges import LEAST_BYTES, TOGETHER, _change

HOUR_MS = 1_795_000_000_000 // 3_600_000 * 3_600_000
MIB = 2**20


def insert(store, parts, rows) -> None:
    """Parts of some 33 bytes a row: ids that nothing compresses."""
    rng = np.random.default_rng()  # an equal block would be left out as a repetition
    for _ in range(parts):
        ids = rng.integers(0, 2**63, (4, rows), dtype=np.uint64)
        block = dict(zip(("gpu", "node", "stream", "seq"), ids, strict=True))
        block |= {"ts": np.full(rows, HOUR_MS), "dt_ms": np.full(rows, 1000, np.uint32)}
        store.insert("gpu_samples", block)


@pytest.mark.parametrize(
    ("bound", "fresh_bytes", "want"),
    [
        (0, LEAST_BYTES - 1, ""),
        (84 * MIB, LEAST_BYTES - 1, ""),
        (84 * MIB, LEAST_BYTES / 2 - 1, "RESET SETTING"),
        (0, 4 * MIB, f"= {336 * MIB}"),
        (336 * MIB, 4 * MIB, ""),
        (336 * MIB, 4.9 * MIB, ""),
        (336 * MIB, 3.2 * MIB, ""),
        (336 * MIB, 6 * MIB, f"= {504 * MIB}"),
        (336 * MIB, 2 * MIB, f"= {168 * MIB}"),
    ],
)
def test_the_bound_follows_the_parts_and_does_not_flutter(bound, fresh_bytes, want):
    """It holds one merge of fresh parts, and never what one became and as many again."""
    change = _change(bound, fresh_bytes)
    assert want in change
    assert bool(want) == bool(change)


def test_a_store_is_fitted_once_and_given_back(store, monkeypatch):
    """Too few parts say nothing."""
    monkeypatch.setattr(merges, "LEAST_BYTES", 30_000)
    insert(store, 10, 1000)
    assert merges.fit(store) == ""
    insert(store, 15, 1000)
    assert f"min_parts_to_merge_at_once = {TOGETHER}" in merges.fit(store)
    assert merges.fit(store) == ""
    insert(store, 120, 10)
    assert "RESET SETTING" in merges.fit(store)
    assert merges.fit(store) == ""


@pytest.mark.skipif(sys.platform != "linux", reason="threads have a priority on Linux alone")
def test_merges_give_way_and_inserts_do_not(store):
    """The engine's threads are told by name: one of another name would be found here."""
    insert(store, 1, 10)
    ours = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    assert merges.give_way() == merges.give_way() > 0
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == ours


def test_every_row_is_merged_once(store, monkeypatch):
    """What a merge left is not taken in by the next."""
    monkeypatch.setattr(merges, "TOGETHER", 10)
    monkeypatch.setattr(merges, "_LEAST_PARTS", 1)
    monkeypatch.setattr(merges, "LEAST_BYTES", 1)
    insert(store, 1, 1000)
    assert merges.fit(store)
    until_s, merged, deepest = time.monotonic() + 120, 0, 0
    while merged < 3:
        assert time.monotonic() < until_s, "no merges"
        insert(store, 5, 1000)  # what comes wakes the selector
        merged, deepest = store.query(
            "SELECT countIf(level > 0), max(level) FROM system.parts"
            " WHERE active AND table = 'gpu_samples'"
        ).rows[0]
    assert deepest == 1
