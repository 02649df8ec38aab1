"""The child's rows, in the driver's units, as the columns that a sampler sends."""

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from agents import continuity
from agents.nvml_frame import NOT_REPORTED
from agents.source import Reading, Vector
from pipeline.catalog import ARRAY_CODE, FAST, SLICE, SLOW, WIDTH, Metric
from pipeline.records import ENERGY_COUNTER, ENERGY_NONE, ENERGY_TRAPEZOID

_MIB: Final = 1 << 20
_MILLIWATTS: Final = 100  # per 0.1 W

RAW_UNITS: Final[dict[str, int]] = {
    **{m.name: _MILLIWATTS for m in FAST + SLOW if m.unit == "w"},
    **{m.name: _MIB for m in FAST + SLOW + SLICE if m.unit == "mib"},
    **{m.name: 1_000_000 for m in FAST if m.kind == "delta" and m.unit == "ms"},
    "nvlink_tx_mib": 1024,  # NVML counts PCIe in bytes, NVLink in KiB
    "nvlink_rx_mib": 1024,
}
"""How many of the driver's units make one stored integer, where it is not one."""

DELTAS: Final = tuple(m for m in FAST if m.kind == "delta")
_AT: Final = {m.name: at for at, m in enumerate(FAST)}
_POWER, _MODULE, _ENERGY = (_AT[n] for n in ("power_w", "module_power_w", "energy_j"))
_ENERGY_DELTA: Final = [m.name for m in DELTAS].index("energy_j")
_COUNTERS: Final = tuple(_AT[m.name] for m in DELTAS)


def limits(metric: Metric) -> tuple[int, int]:
    """The least and the largest integer that a metric's storage holds beside its null code."""
    bits = 8 * WIDTH[metric.storage]
    if metric.storage[0] == "i":
        return 1 - (1 << (bits - 1)), (1 << (bits - 1)) - 1
    return 0, (1 << bits) - 2


def gauge(metric: Metric, raw: Sequence[int]) -> "array[int]":
    """A column of raw values: rounded to the stored unit, the null code where there is none."""
    unit = RAW_UNITS.get(metric.name, 1)
    half = unit // 2
    low, high = limits(metric)
    null = metric.null_code
    stored = (null if v == NOT_REPORTED else (v + half) // unit for v in raw)
    return array(ARRAY_CODE[metric.storage], [v if low <= v <= high else null for v in stored])


def delta(metric: Metric, values: Sequence[int | None]) -> "array[int]":
    """A column of deltas; one that the storage cannot hold is not reported."""
    _, high = limits(metric)
    null = metric.null_code
    fitting = [null if v is None or v > high else v for v in values]
    return array(ARRAY_CODE[metric.storage], fitting)


@dataclass(frozen=True, slots=True)
class Row:
    """One GPU at one tick."""

    raw: Sequence[int]
    dt_ms: int
    flags: int
    energy_kind: int
    deltas: tuple[int | None, ...]


NO_ROW: Final = Row((NOT_REPORTED,) * len(FAST), 0, 0, ENERGY_NONE, (None,) * len(DELTAS))
"""A GPU that was not read at this tick."""


class Rows:
    """Makes rows of raw ones: deltas from counters, energy from power where there is no counter."""

    def __init__(self, period_ms: int) -> None:
        self._period_ms = period_ms
        self._continuity = continuity.Continuity(
            [RAW_UNITS.get(m.name, 1) for m in DELTAS], period_ms
        )
        self._energies: dict[str, int] = {}
        self._powers: dict[str, continuity.Power] = {}

    def break_off(self) -> None:
        """The reader was restarted: no delta before the second row."""
        self._continuity.break_off()
        self._powers.clear()

    def is_reset(self, uuids: Sequence[str], raws: Sequence[Sequence[int]]) -> bool:
        """Whether the energy counter of any GPU begins anew, as it does when a driver is loaded."""
        reset = False
        for uuid, raw in zip(uuids, raws, strict=True):
            energy = raw[_ENERGY]
            if energy != NOT_REPORTED:
                reset |= energy < self._energies.get(uuid, 0)
                self._energies[uuid] = energy
        return reset

    def row(self, uuid: str, tick_ms: int, epoch: int, raw: Sequence[int]) -> Row:
        """The row of one GPU; one of which nothing was reported was not read."""
        if all(value == NOT_REPORTED for value in raw):
            return NO_ROW
        raw = _without_mirrored_module(raw)
        counters = [None if raw[at] == NOT_REPORTED else raw[at] for at in _COUNTERS]
        step = self._continuity.step(uuid, tick_ms, epoch, counters)
        power = gauge(FAST[_POWER], raw[_POWER : _POWER + 1])[0]
        known_power = None if power == FAST[_POWER].null_code else power
        deltas, kind = step.deltas, ENERGY_COUNTER
        if uuid not in self._energies:
            energy, kind = self._from_power(uuid, tick_ms, known_power)
            deltas = (*deltas[:_ENERGY_DELTA], energy, *deltas[_ENERGY_DELTA + 1 :])
        flags = continuity.flags(known_power, deltas[_ENERGY_DELTA], step.dt_ms)
        return Row(raw, step.dt_ms, flags, kind, deltas)

    def _from_power(self, uuid: str, tick_ms: int, power: int | None) -> tuple[int | None, int]:
        if power is None or continuity.flags(power, None, 0):
            self._powers.pop(uuid, None)
            return None, ENERGY_NONE
        before = self._powers.get(uuid)
        self._powers[uuid], energy = continuity.trapezoid(before, tick_ms, power, self._period_ms)
        return energy, ENERGY_TRAPEZOID


def _without_mirrored_module(raw: Sequence[int]) -> Sequence[int]:
    """Where there is no module around the GPU, some drivers answer with the GPU's own power."""
    if raw[_MODULE] in (NOT_REPORTED, raw[_POWER]):
        return [*raw[:_MODULE], NOT_REPORTED, *raw[_MODULE + 1 :]]
    return raw


def reading(
    rows: Sequence[Row],
    slow: Mapping[int, Sequence[int]],
    slices: Sequence[int],
    instances: tuple[tuple[int, int, int], ...],
) -> Reading:
    """The columns of a tick. `slow` has the last slow row by GPU position, as far as it is known."""
    fast: list[Vector] = [
        array(ARRAY_CODE["u4"], [row.dt_ms for row in rows]),
        array(ARRAY_CODE["u2"], [row.flags for row in rows]),
        array(ARRAY_CODE["u1"], [row.energy_kind for row in rows]),
    ]
    deltas = {m.name: at for at, m in enumerate(DELTAS)}
    for at, metric in enumerate(FAST):
        if metric.kind == "delta":
            fast.append(delta(metric, [row.deltas[deltas[metric.name]] for row in rows]))
        else:
            fast.append(gauge(metric, [row.raw[at] for row in rows]))
    return Reading(
        fast=tuple(fast),
        slow=_slow(rows, slow),
        instances=instances,
        slices=tuple(gauge(m, slices[at :: len(SLICE)]) for at, m in enumerate(SLICE)),
    )


def _slow(rows: Sequence[Row], slow: Mapping[int, Sequence[int]]) -> tuple[Vector, ...]:
    blank = (NOT_REPORTED,) * len(SLOW)
    known = [slow.get(at, blank) if row.dt_ms else blank for at, row in enumerate(rows)]
    columns = []
    for at, metric in enumerate(SLOW):
        if metric.name == "energy_counter_j":  # of this very tick, beside its first delta
            columns.append(gauge(metric, [row.raw[_ENERGY] for row in rows]))
        else:
            columns.append(gauge(metric, [row[at] for row in known]))
    return tuple(columns)
