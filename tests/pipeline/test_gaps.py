"""Bridges over gaps, from rows as agents send them."""

import pytest

from pipeline.catalog import FAST_BY_NAME
from pipeline.ledger.gaps import bridges

T0_MS = 1_790_000_000_000
WATTS = 650
UNKNOWN = FAST_BY_NAME["energy_j"].null_code


@pytest.mark.parametrize("gap_s", [3, 10, 27, 60])
def test_a_gap_is_bridged_however_short_it_is(store, gap_s):
    """650 W of at most 700: the row after a gap covers two ticks without their energy."""
    seconds = [*range(1, 21), *range(20 + gap_s, 121)]
    after = seconds.index(20 + gap_s)
    store.insert("gpu_samples", {
        "gpu": [7] * len(seconds), "ts": [T0_MS + 1000 * s for s in seconds],
        "dt_ms": [2000 if n == after else 1000 for n in range(len(seconds))],
        "energy_j": [UNKNOWN if n == after else 1000 * WATTS for n in range(len(seconds))],
    })  # fmt: skip
    store.insert("gpu_health", {
        "gpu": [7, 7], "ts": [T0_MS + 1000, T0_MS + 120_000], "boot_epoch": [1, 1],
        "driver_epoch": [1, 1], "power_limit_max_w": [7000, 7000],
        "energy_counter_j": [10**9, 10**9 + 119 * 1000 * WATTS],
    })  # fmt: skip
    (found,) = bridges(store, [7], T0_MS, T0_MS + 900_000)
    assert found.energy_mj == gap_s * 1000 * WATTS
    assert (found.from_ms, found.until_ms) == (T0_MS + 20_000, T0_MS + 1000 * (20 + gap_s))
