"""Laws of recorded energy: exact sums, whatever the order; nothing across a gap."""

from fractions import Fraction
from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipeline import energy

GAPS = st.integers(1, 15_000)
POWER = st.integers(-2000, 120_000)


@st.composite
def logs(draw: st.DrawFn) -> tuple[list[int], list[int], list[int]]:
    """GPU, time and power of rows, sorted by (gpu, ts)."""
    gpu: list[int] = []
    ts: list[int] = []
    power: list[int] = []
    for g in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, 1000))
        for gap in draw(st.lists(GAPS, max_size=12)):
            at += gap
            gpu.append(g)
            ts.append(at)
            power.append(draw(POWER))
    return gpu, ts, power


def stretches(gpu: list[int], ts: list[int], good: list[int]) -> list[list[int]]:
    """Positions of good readings, cut where they are too far apart."""
    out: list[list[int]] = []
    for i in good:
        last = out[-1][-1] if out else None
        near = last is not None and gpu[last] == gpu[i] and ts[i] - ts[last] <= 10_000
        if near:
            out[-1].append(i)
        else:
            out.append([i])
    return out


@given(logs())
def test_rows_of_a_stretch_add_up_to_its_rounded_total(
    log: tuple[list[int], list[int], list[int]],
) -> None:
    """Against an independent computation in exact fractions; bad readings are passed over."""
    gpu, ts, power = log
    good = [i for i, p in enumerate(power) if 0 <= p <= 100_000]
    flags = np.zeros(len(gpu), np.bool_)
    flags[good] = True
    found = energy.trapezoid(np.array(gpu), np.array(ts, np.int64), np.array(power), flags)
    assert all(found[i] == energy.UNKNOWN for i in range(len(gpu)) if i not in good)
    for stretch in stretches(gpu, ts, good):
        pairs = list(pairwise(stretch))
        joules = sum(
            (Fraction(power[a] + power[b], 20) * (ts[b] - ts[a]) for a, b in pairs), Fraction()
        )
        assert found[stretch[0]] == energy.UNKNOWN
        assert sum(found[i] for i in stretch[1:]) == int(joules + Fraction(1, 2))
        assert all(found[i] >= 0 for i in stretch[1:])


@given(st.lists(st.tuples(st.integers(1, 5000), st.integers(-50, 900_000)), max_size=30))
def test_a_counter_gives_no_more_than_it_grew(steps: list[tuple[int, int]]) -> None:
    """Σ of differences ≤ what the counter grew; none on a reset or after a gap."""
    ts = np.cumsum([1000, *(gap for gap, _ in steps)])
    counter = np.maximum(0, np.cumsum([10_000, *(grown for _, grown in steps)]))
    gpu = np.zeros(len(ts), np.int64)
    rows = energy.rhythm(gpu, ts)
    found = energy.counted(gpu, ts, counter, rows)
    longest = 2 * rows.period_ms[0]
    expected = [
        max(0, int(b - a))
        for a, b, gap in zip(counter, counter[1:], np.diff(ts), strict=False)
        if gap <= longest and b >= a
    ]
    assert sorted(found[found >= 0].tolist()) == sorted(expected)
    assert found[0] == energy.UNKNOWN


@given(logs())
def test_a_row_stands_for_its_distance_or_a_period(
    log: tuple[list[int], list[int], list[int]],
) -> None:
    """dt is never above two periods, never 0, and equal to the distance within a segment."""
    gpu, ts, _ = log
    rows = energy.rhythm(np.array(gpu, np.int64), np.array(ts, np.int64))
    dt = energy.row_ms(rows)
    assert np.all(dt >= 1)
    assert np.all(dt <= 2 * rows.period_ms)
    inside = ~rows.new_segment
    assert np.array_equal(dt[inside], rows.gap_ms[inside])
    assert np.array_equal(dt[~inside], rows.period_ms[~inside])
