"""Everything in one process: what an earlier run left behind."""

import pytest

from pipeline import rows, up
from pipeline.queries import Power
from pipeline.records import Allocation
from pipeline.warm import allocations
from tests.messages import SITE, T0_MS


def test_a_new_run_ends_what_the_one_before_left_open(store):
    """Of the same source, with its last row; what others said, or what had ended, stays."""

    def claim(source, tenant, until_ms=None):
        return Allocation(
            site=SITE, source=source, tenant=tenant, node="n1", from_ms=T0_MS, until_ms=until_ms
        )

    said = [claim("simulator", "a"), claim("slurm", "b"), claim("simulator", "c", T0_MS + 10**9)]
    for table, block in rows.by_table(said, T0_MS).items():
        store.insert(table, block)
    store.insert("power_seconds", {"ts": [T0_MS // 1000 + 60], "rows": [1]})
    up._end_claims(store, "simulator", T0_MS + 3_600_000)
    until = {claim.tenant: claim.until_ms for claim in allocations(store, 0)}
    assert until == {"a": T0_MS + 61_000, "b": None, "c": T0_MS + 10**9}
    up._end_claims(store, "simulator", T0_MS + 3_600_001)
    assert {c.tenant: c.until_ms for c in allocations(store, 0)} == until


@pytest.mark.parametrize(
    ("coverage", "shown"),
    [
        ([1.0, 1.0, 0.995, 0.4], 2),  # agents flush every four seconds: the newest are not whole
        (
            [1.0, 0.75, 0.75, 0.2],
            0,
        ),  # a rack went dark just now: the last whole second, and its age
        ([0.75, 0.75, 0.75, 0.2], 2),  # it stays dark: what is left, not what came first of it
        ([None, None], 1),
        ([], None),
    ],
)
def test_the_watts_shown_are_of_a_second_as_complete_as_any(coverage, shown):
    seconds = [
        Power(ts_ms=n, site="s", tenant=None, watts=1, coverage=c, expected_from="inventory")
        for n, c in enumerate(coverage)
    ]
    found = up.settled(seconds)
    assert (found.ts_ms if found else None) == shown
