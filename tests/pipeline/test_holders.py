"""Who held a GPU: the same as a search row by row, for any intervals and times."""

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipeline.holders import FOREVER_MS, NOBODY, Held, Holders, resolve
from pipeline.records import SHARED, UNALLOCATED

GPUS = (2, 3, 2**63, 2**64 - 1)
times = st.integers(0, 30)
ends = st.one_of(st.integers(1, 31), st.just(FOREVER_MS))
held = st.builds(
    Held, st.sampled_from(GPUS), times, ends, st.sampled_from((0, 10, 20, 2**64 - 2)),
    st.sampled_from((0, 5, 6)),
).filter(lambda h: h.from_ms < h.until_ms)  # fmt: skip
some = st.lists(held, max_size=8)


def naive(intervals: list[Held], gpu: int, at_ms: int) -> tuple[int, int]:
    """Tenant and workload of a GPU at a time."""
    over = [h for h in intervals if h.gpu == gpu and h.from_ms <= at_ms < h.until_ms]
    tenants = {h.tenant for h in over} - {UNALLOCATED}
    workloads = {h.workload for h in over} - {UNALLOCATED}
    return agreed(tenants), agreed(workloads)


def agreed(names: set[int]) -> int:
    if not names:
        return UNALLOCATED
    return SHARED if len(names) > 1 else next(iter(names))


def index(intervals: list[Held]) -> Holders:
    return Holders.of(np.array(resolve(intervals), np.uint64).reshape(-1, 5))


@given(some)
def test_resolved_intervals_do_not_overlap(intervals):
    """And none is empty."""
    for gpu in GPUS:
        mine = sorted((h.from_ms, h.until_ms) for h in resolve(intervals) if h.gpu == gpu)
        assert all(start < stop for start, stop in mine)
        assert all(a[1] <= b[0] for a, b in itertools.pairwise(mine))


@given(some)
def test_resolved_intervals_say_the_same_at_every_time(intervals):
    """Shared exactly where holders disagree; a lease and a job of one tenant agree."""
    found = resolve(intervals)
    for gpu in GPUS:
        for at_ms in (*range(32), FOREVER_MS - 1):
            assert naive(found, gpu, at_ms) == naive(intervals, gpu, at_ms)


@given(
    some,
    st.lists(
        st.tuples(st.lists(st.sampled_from((1, *GPUS)), min_size=2, max_size=2), times), max_size=4
    ),
    st.integers(1, 5),
    st.integers(1, 7),
)
def test_a_batch_is_stamped_as_row_by_row(intervals, messages, ticks, period_ms):
    """Known and unknown GPUs, and holders that change within a message."""
    ids = np.array([gpus for gpus, _ in messages], np.uint64).reshape(-1, 2)
    begins = np.array([at for _, at in messages], np.int64).reshape(-1, 1)
    at_ms = begins + np.arange(ticks) * period_ms
    tenant, workload = index(intervals).at(ids, at_ms)
    assert tenant.shape == workload.shape == (len(messages), ticks, 2)
    for m in range(len(messages)):
        for t in range(ticks):
            for g in range(2):
                found = (int(tenant[m, t, g]), int(workload[m, t, g]))
                assert found == naive(intervals, int(ids[m, g]), int(at_ms[m, t]))


def test_nobody_holds_anything_without_allocations():
    """The empty index answers for any shape."""
    tenant, workload = NOBODY.at(np.ones((3, 2), np.uint64), np.zeros((3, 4), np.int64))
    assert tenant.shape == (3, 4, 2)
    assert not tenant.any()
    assert not workload.any()
