"""What the faults in force come to, as arrays over the GPUs of a simulated site.

Made anew whenever a fault begins or ends, so that a tick without faults costs nothing.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import numpy as np
from msgspec.structs import replace

from agents.faults import KINDS, Fault
from agents.physics import Column, Flags, Floats, Positions
from pipeline.catalog import FAST_BY_NAME
from pipeline.records import MeterReading

STATES: Final = tuple(dict.fromkeys(name for kind in KINDS.values() for name in kind.states))
"""Slow columns that faults set, and that are 0 without."""


class Struck(NamedTuple):
    """A fault in force: since when, positions of its GPUs, the meter that it would touch."""

    fault: Fault
    since_ms: int
    gpus: slice
    meter: str


@dataclass(frozen=True, slots=True)
class Effects:
    """What faults do together; per GPU, or positions of those that are touched.

    off: their node's power is gone, not only theirs. clock: at most this share of the full one;
    None where every GPU may run as it can.
    """

    away: Flags
    off: Flags
    resistance: Floats
    clock: Floats | None = None
    frozen: Positions = field(default_factory=lambda: np.zeros(0, np.intp))
    states: dict[str, Column] = field(default_factory=dict)
    striking: tuple[Struck, ...] = ()

    @property
    def varies(self) -> bool:
        """Whether who stands idle changes while the same faults are in force."""
        return any(one.fault.does.swing_s or one.fault.does.climb_s for one in self.striking)

    def slots(self, home: Positions, nobody: int, stray: int, now_ms: int) -> Positions:
        """Each GPU's slot: `home`, or that of nobody where it stands idle, or of stray work."""
        out = home
        for one in self.striking:
            kind, gpus = one.fault.does, one.gpus
            if kind.idles or kind.works:
                out = home.copy() if out is home else out
                touched = gpus.stop - gpus.start if kind.works else _idle(one, now_ms)
                out[gpus.stop - touched : gpus.stop] = stray if kind.works else nobody
        return out

    def grow(self, health: dict[str, Column], dt_ms: int) -> bool:
        """Let counters grow for so long; true if any did."""
        growing = [one for one in self.striking if one.fault.does.per_s]
        for fault, _, gpus, _ in growing:
            for counter, per_s in fault.does.per_s.items():
                health[counter][gpus] += per_s * dt_ms // 1000
        return bool(growing)

    def slowed(self, added: dict[str, Column], dt_ms: int) -> None:
        """Count the time that faults slow GPUs."""
        for fault, _, gpus, _ in self.striking:
            if fault.does.slowed:
                column = added[fault.does.slowed] = added[fault.does.slowed].copy()
                column[gpus] = dt_ms

    def counted(self, mj: Column) -> None:
        """Leave what counters do not count."""
        for fault, _, gpus, _ in self.striking:
            if fault.does.counts != 1:
                mj[gpus] = mj[gpus] * fault.does.counts
        mj[self.frozen] = 0

    def shown(self, gauges: dict[str, Column]) -> dict[str, Column]:
        """The gauges as GPUs show them, where that differs from what is true."""
        for fault, _, gpus, _ in self.striking:
            if fault.does.reasons:
                gauges["throttle_reasons"][gpus] |= fault.does.reasons
            for name, (times, plus) in fault.does.shows.items():
                column = gauges[name] = gauges[name].copy()
                column[gpus] = column[gpus] * times + plus * FAST_BY_NAME[name].scale
        return gauges

    def frozen_in(
        self, gauges: dict[str, Column], held: dict[int, dict[str, int]]
    ) -> dict[str, Column]:
        """The gauges with what frozen GPUs said first, kept in `held`, in place of what is true."""
        frozen = set(self.frozen.tolist())
        for gpu in held.keys() - frozen:
            del held[gpu]
        for gpu in frozen - held.keys():
            held[gpu] = {name: int(values[gpu]) for name, values in gauges.items()}
        if not frozen:
            return gauges
        at = np.array(list(held))
        out = {name: values.copy() for name, values in gauges.items()}
        for name, values in out.items():
            values[at] = [said[name] for said in held.values()]
        return out

    def read(self, readings: list[MeterReading], held_w: dict[str, float]) -> list[MeterReading]:
        """The readings as meters show them; `held_w` keeps what stuck ones showed first."""
        reads = {
            one.meter: one.fault.does.reads for one in self.striking if one.fault.does.misreads
        }
        for meter in held_w.keys() - {name for name, share in reads.items() if share == math.inf}:
            del held_w[meter]
        if not reads:
            return readings
        out = []
        for reading in readings:
            share, true_w = reads.get(reading.meter, 1.0), reading.watts
            if share == math.inf:
                watts = held_w.setdefault(reading.meter, true_w)
                out.append(replace(reading, watts=watts))
            elif not math.isnan(share):
                out.append(replace(reading, watts=round(true_w * share, 1)))
        return out


def _idle(one: Struck, now_ms: int) -> int:
    """How many of a fault's GPUs stand idle now."""
    kind, age_s = one.fault.does, (now_ms - one.since_ms) / 1000
    share = kind.idles
    if kind.swing_s and age_s % kind.swing_s < kind.swing_s / 2:
        share = 0.0
    if kind.climb_s:
        share *= max(0.0, 1 - age_s / kind.climb_s)
    return round(share * int(one.gpus.stop - one.gpus.start))


def effects(striking: Iterable[Struck], gpus: int) -> Effects:
    """What faults do together to a site of so many GPUs."""
    found = tuple(striking)

    def over(names: Callable[[Fault], bool]) -> Flags:
        mask = np.zeros(gpus, np.bool_)
        for one in found:
            if names(one.fault):
                mask[one.gpus] = True
        return mask

    resistance, clock = np.ones(gpus, np.float32), np.ones(gpus, np.float32)
    states = {name: np.zeros(gpus, "<u1") for name in STATES}
    for fault, _, at, _ in found:
        kind = fault.does
        resistance[at] = np.maximum(resistance[at], kind.resistance)
        clock[at] = np.minimum(clock[at], kind.clock)
        for name, value in kind.states.items():
            states[name][at] = np.maximum(states[name][at], value)
    return Effects(
        away=over(lambda f: f.does.is_away),
        off=over(lambda f: f.does.is_away and f.does.scope != "gpu"),
        resistance=resistance,
        clock=clock if clock.min(initial=1) < 1 else None,
        frozen=np.flatnonzero(over(lambda f: f.does.is_frozen)),
        states=states,
        striking=found,
    )
