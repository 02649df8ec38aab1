"""Who held a GPU: the same as a search row by row, for any intervals and times."""

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipeline.holders import FOREVER_MS, NOBODY, Holders, stamps
from pipeline.ledger.holdings import LEASE, Claim
from pipeline.records import SHARED, UNALLOCATED

GPUS = (2, 3, 2**63, 2**64 - 1)
times = st.integers(0, 30)
ends = st.one_of(st.integers(1, 31), st.just(FOREVER_MS))
claims = st.builds(
    Claim, times, ends, st.sampled_from((0, 10, 20, 2**64 - 2)), st.sampled_from((0, 5, 6)),
    st.sampled_from((LEASE, 0, 0, 1)), st.just(0),
).filter(lambda c: c.from_ms < c.until_ms)  # fmt: skip
some = st.lists(st.tuples(st.sampled_from(GPUS), claims), max_size=8)


def naive(claimed: list[tuple[int, Claim]], gpu: int, at_ms: int) -> tuple[int, int]:
    """Tenant and workload of a GPU at a time."""
    over = [c for g, c in claimed if g == gpu and c.from_ms <= at_ms < c.until_ms]
    leased = {c.tenant for c in over if c.rank == LEASE}
    best = min((c.rank for c in over if c.rank != LEASE), default=0)
    running = [c for c in over if c.rank == best]
    return (
        agreed((leased or {c.tenant for c in running}) - {UNALLOCATED}),
        agreed({c.workload for c in running} - {UNALLOCATED}),
    )


def agreed(names: set[int]) -> int:
    if not names:
        return UNALLOCATED
    return SHARED if len(names) > 1 else next(iter(names))


def index(claimed: list[tuple[int, Claim]]) -> Holders:
    table = [
        (gpu, *held) for gpu in GPUS for held in stamps([c for g, c in claimed if g == gpu])
    ]  # fmt: skip
    return Holders.of(np.array(table, np.uint64).reshape(-1, 5))


@given(st.lists(claims, max_size=8))
def test_stamps_do_not_overlap(claimed):
    """And none is empty."""
    found = sorted((h.from_ms, h.until_ms) for h in stamps(claimed))
    assert all(start < stop for start, stop in found)
    assert all(a[1] <= b[0] for a, b in itertools.pairwise(found))


@given(st.lists(claims, max_size=8))
def test_stamps_say_what_the_claims_say_at_every_time(claimed):
    """A lease decides the tenant, the first source what runs; shared where several hold it."""
    found = stamps(claimed)
    for at_ms in (*range(32), FOREVER_MS - 1):
        over = [h for h in found if h.from_ms <= at_ms < h.until_ms]
        stamp = (over[0].tenant, over[0].workload) if over else (UNALLOCATED, UNALLOCATED)
        assert stamp == naive([(2, c) for c in claimed], 2, at_ms)


@given(
    some,
    st.lists(
        st.tuples(st.lists(st.sampled_from((1, *GPUS)), min_size=2, max_size=2), times), max_size=4
    ),
    st.integers(1, 5),
    st.integers(1, 7),
)
def test_a_batch_is_stamped_as_row_by_row(claimed, messages, ticks, period_ms):
    """Known and unknown GPUs, and holders that change within a message."""
    ids = np.array([gpus for gpus, _ in messages], np.uint64).reshape(-1, 2)
    begins = np.array([at for _, at in messages], np.int64).reshape(-1, 1)
    at_ms = begins + np.arange(ticks) * period_ms
    tenant, workload = index(claimed).at(ids, at_ms)
    assert tenant.shape == workload.shape == (len(messages), ticks, 2)
    for m in range(len(messages)):
        for t in range(ticks):
            for g in range(2):
                found = (int(tenant[m, t, g]), int(workload[m, t, g]))
                assert found == naive(claimed, int(ids[m, g]), int(at_ms[m, t]))


def test_nobody_holds_anything_without_allocations():
    """The empty index answers for any shape."""
    tenant, workload = NOBODY.at(np.ones((3, 2), np.uint64), np.zeros((3, 4), np.int64))
    assert tenant.shape == (3, 4, 2)
    assert not tenant.any()
    assert not workload.any()
