"""Recorded rows in order of (GPU, time): the time that each stands for, and its energy.

All in integers: 0.1 W, milliseconds, millijoules. The energy of an interval belongs to the row at
its end. What follows from one reading to the next is a difference of rounded running totals, so
that the rows of an unbroken stretch add up to its rounded total exactly.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np
from numpy.typing import NDArray

GAP_PERIODS: Final = 2
"""A longer distance is a gap: no row stands for it, and no counter's difference spans it."""
TRAPEZOID_MAX_MS: Final = 10_000
"""Readings further apart say nothing about the time between them."""
PERIOD_MAX_MS: Final = 600_000
"""Rows further apart than this do not make a period."""
PERIOD_ALONE_MS: Final = 1000
"""The period of a GPU whose rows do not tell it."""
UNKNOWN: Final = -1

_PER_MILLIJOULE: Final = 20  # (0.1 W + 0.1 W) / 2 over 1 ms is a twentieth of a millijoule

Integers = NDArray[np.int64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Rhythm:
    """Per row: distance to the GPU's previous row (0 for its first), and the GPU's period."""

    gap_ms: Integers
    period_ms: Integers

    @property
    def new_segment(self) -> Flags:
        """Rows that continue nothing: the first of a GPU, and those after a gap."""
        return np.asarray((self.gap_ms == 0) | (self.gap_ms > GAP_PERIODS * self.period_ms))


def rhythm(gpu: NDArray[np.generic], ts_ms: Integers) -> Rhythm:
    """The rhythm of rows sorted by (gpu, ts), each pair there once; period = median distance."""
    rows = len(ts_ms)
    gap = np.zeros(rows, np.int64)
    same = gpu[1:] == gpu[:-1]
    gap[1:][same] = np.diff(ts_ms)[same]
    starts = [0, *(np.flatnonzero(~same) + 1).tolist(), rows]
    period = np.empty(rows, np.int64)
    for start, stop in pairwise(starts):
        period[start:stop] = _median(gap[start + 1 : stop])
    return Rhythm(gap, period)


def _median(gaps: Integers) -> int:
    near = gaps[gaps <= PERIOD_MAX_MS]
    return max(1, round(float(np.median(near)))) if len(near) else PERIOD_ALONE_MS


def row_ms(rows: Rhythm) -> NDArray[np.uint32]:
    """dt_ms: the distance to the previous row; one period where a row continues nothing."""
    return np.where(rows.new_segment, rows.period_ms, rows.gap_ms).astype(np.uint32)


def trapezoid(
    gpu: NDArray[np.generic], ts_ms: Integers, deciwatts: NDArray[np.generic], good: Flags
) -> Integers:
    """Millijoules since the previous good reading of the GPU, UNKNOWN where there is none near.

    Readings that are not good (missing, negative, absurd) are passed over.
    """
    out = np.full(len(ts_ms), UNKNOWN, np.int64)
    at = np.flatnonzero(good)
    if len(at) < 2:
        return out
    mine, when, power = gpu[at], ts_ms[at], deciwatts[at].astype(np.int64)
    gap = np.diff(when)
    joined = (mine[1:] == mine[:-1]) & (gap <= TRAPEZOID_MAX_MS)
    area = np.where(joined, (power[1:] + power[:-1]) * np.where(joined, gap, 0), 0)
    total = np.concatenate((np.zeros(1, np.int64), np.cumsum(area)))
    start = np.where(np.concatenate((np.ones(1, np.bool_), ~joined)), np.arange(len(at)), 0)
    since_start = total - total[np.maximum.accumulate(start)]
    millijoules = (since_start + _PER_MILLIJOULE // 2) // _PER_MILLIJOULE
    out[at[1:][joined]] = np.diff(millijoules)[joined]
    return out


def counted(
    gpu: NDArray[np.generic], ts_ms: Integers, counter_mj: Integers, rows: Rhythm
) -> Integers:
    """Differences of a counter of millijoules (UNKNOWN where not reported).

    UNKNOWN after a decrease (a reset, never a wrap) and across more than GAP_PERIODS periods.
    """
    out = np.full(len(ts_ms), UNKNOWN, np.int64)
    at = np.flatnonzero(counter_mj >= 0)
    if len(at) < 2:
        return out
    step = np.diff(counter_mj[at])
    near = np.diff(ts_ms[at]) <= GAP_PERIODS * rows.period_ms[at[1:]]
    fine = (gpu[at[1:]] == gpu[at[:-1]]) & near & (step >= 0)
    out[at[1:][fine]] = step[fine]
    return out


def resets(gpu: NDArray[np.generic], counter_mj: Integers) -> NDArray[np.uint32]:
    """How often each row's counter had started again by then, per GPU."""
    at = np.flatnonzero(counter_mj >= 0)
    fell = np.zeros(len(counter_mj), np.int64)
    if len(at) > 1:
        down = (np.diff(counter_mj[at]) < 0) & (gpu[at[1:]] == gpu[at[:-1]])
        fell[at[1:][down]] = 1
    total = np.cumsum(fell)
    same = np.concatenate((np.zeros(min(len(gpu), 1), np.bool_), gpu[1:] == gpu[:-1]))
    start = np.maximum.accumulate(np.where(same, 0, np.arange(len(gpu))))
    return (total - (total - fell)[start]).astype(np.uint32) if len(gpu) else fell.astype(np.uint32)
