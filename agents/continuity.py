"""Raw cumulative counters of many GPUs in, deltas and dt_ms out: what may be summed, and what not.

A delta is the difference of two counters, each floored to the stored unit, so that deltas over a
continuous stretch add up to exactly last minus first, whatever the ticks in between. It is None
(not reported) where the counter is not known to have run on: after a gap of more than two periods,
a restart, a decrease, a change of epoch. A decrease is a reset, never a wrap; a gap never becomes
one lump in a single row.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from pipeline.catalog import ABSURD_POWER_W
from pipeline.records import FLAG_ABSURD_ENERGY, FLAG_ABSURD_POWER, FLAG_NEGATIVE_POWER

GAP_PERIODS: Final = 2
"""A row stands for at most this many periods, and so does a delta."""
TRAPEZOID_MAX_MS: Final = 10_000

_PER_MILLIJOULE: Final = 20  # (0.1 W + 0.1 W) / 2 over 1 ms is a twentieth of a millijoule


@dataclass(frozen=True, slots=True)
class Step:
    """One row of one GPU: the time that it stands for, and one delta per counter."""

    dt_ms: int
    deltas: tuple[int | None, ...]


@dataclass(frozen=True, slots=True)
class Trace:
    """What must be remembered of a GPU: its last row, and where each counter was last seen."""

    tick_ms: int
    epoch: int
    seen: tuple[tuple[int, int] | None, ...]


def advance(
    before: Trace | None,
    tick_ms: int,
    epoch: int,
    raw: Sequence[int | None],
    units: Sequence[int],
    period_ms: int,
) -> tuple[Trace, Step]:
    """The next row of a GPU and the new trace.

    `units` says how many raw units make one stored unit (ns to ms: 1,000,000). A counter that was
    not reported at one tick runs on at the next.
    """
    alike = before is not None and before.epoch == epoch and before.tick_ms < tick_ms
    old = before.seen if before is not None and alike else (None,) * len(units)
    oldest_ms = tick_ms - GAP_PERIODS * period_ms
    deltas = tuple(
        _delta(seen, value, unit, oldest_ms)
        for seen, value, unit in zip(old, raw, units, strict=True)
    )
    seen = tuple(
        last if value is None else (tick_ms, value) for last, value in zip(old, raw, strict=True)
    )
    step = Step(row_ms(before.tick_ms if before else None, tick_ms, period_ms), deltas)
    return Trace(tick_ms, epoch, seen), step


def row_ms(before_ms: int | None, tick_ms: int, period_ms: int) -> int:
    """dt_ms of a row: distance to the GPU's previous row, capped; the period where none is known.

    A tick that does not lie after the previous one (a stepped clock) stands for a period.
    """
    if before_ms is None or tick_ms <= before_ms:
        return period_ms
    return min(tick_ms - before_ms, GAP_PERIODS * period_ms)


def _delta(
    seen: tuple[int, int] | None, value: int | None, unit: int, oldest_ms: int
) -> int | None:
    if seen is None or value is None:
        return None
    at_ms, before = seen
    if at_ms < oldest_ms or value < before:
        return None
    return value // unit - before // unit


class Continuity:
    """The traces of many GPUs, each by a key of its own (its UUID)."""

    def __init__(self, units: Sequence[int], period_ms: int) -> None:
        self._units = tuple(units)
        self._period_ms = period_ms
        self._traces: dict[str, Trace] = {}

    def step(self, key: str, tick_ms: int, epoch: int, raw: Sequence[int | None]) -> Step:
        """The row of one GPU at a tick; epochs are equal while raw counters are comparable."""
        self._traces[key], step = advance(
            self._traces.get(key), tick_ms, epoch, raw, self._units, self._period_ms
        )
        return step

    def break_off(self) -> None:
        """The next delta of every counter is not known (a restart); dt_ms runs on."""
        none = (None,) * len(self._units)
        self._traces = {
            key: Trace(trace.tick_ms, trace.epoch, none) for key, trace in self._traces.items()
        }

    def keep_only(self, keys: Sequence[str]) -> None:
        """Forget GPUs that are no longer here."""
        self._traces = {key: self._traces[key] for key in keys if key in self._traces}


@dataclass(frozen=True, slots=True)
class Power:
    """The last power reading of a GPU without an energy counter, in 0.1 W."""

    tick_ms: int
    deciwatts: int
    remainder: int = 0


def trapezoid(
    before: Power | None, tick_ms: int, deciwatts: int, period_ms: int
) -> tuple[Power, int | None]:
    """Energy in mJ between two consecutive power readings of 0.1 W, None across a gap.

    The remainder below a millijoule is carried, so that sums are exact over a continuous stretch.
    """
    longest_ms = min(TRAPEZOID_MAX_MS, GAP_PERIODS * period_ms)
    if before is None or not 0 < tick_ms - before.tick_ms <= longest_ms:
        return Power(tick_ms, deciwatts), None
    area = (before.deciwatts + deciwatts) * (tick_ms - before.tick_ms) + before.remainder
    return Power(tick_ms, deciwatts, area % _PER_MILLIJOULE), area // _PER_MILLIJOULE


def flags(deciwatts: int | None, millijoules: int | None, dt_ms: int) -> int:
    """Bits of `flags` that a power of 0.1 W and an energy deserve: negative, absurd."""
    bits = 0
    if deciwatts is not None and deciwatts < 0:
        bits |= FLAG_NEGATIVE_POWER
    if deciwatts is not None and deciwatts > 10 * ABSURD_POWER_W:
        bits |= FLAG_ABSURD_POWER
    if millijoules is not None and millijoules > ABSURD_POWER_W * dt_ms:
        bits |= FLAG_ABSURD_ENERGY
    return bits
