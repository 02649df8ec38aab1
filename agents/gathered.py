"""Readings out of values by name: for sources that get a few GPUs' worth of text, not arrays."""

import math
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from agents.source import Reading
from pipeline.catalog import ARRAY_CODE, NULL_CODE, Metric, Storage
from pipeline.records import ENERGY_NONE
from pipeline.wire import LAYOUT, ROW, Column

_LIMITS: Final[dict[Storage, tuple[int, int]]] = {
    storage: (null + 1, -null - 1) if storage[0] == "i" else (0, null - 1)
    for storage, null in NULL_CODE.items()
}


@dataclass(frozen=True, slots=True)
class GpuRow:
    """One GPU at one tick: storage integers by metric name, fast and slow; what is absent is null."""

    dt_ms: int
    flags: int = 0
    energy_kind: int = ENERGY_NONE
    metrics: Mapping[str, int] = field(default_factory=dict)


ABSENT: Final = GpuRow(0)
"""A GPU that was not read at this tick."""


def stored(metric: Metric, value: float) -> int | None:
    """A value in the metric's unit as its storage integer; None where it is none or does not fit."""
    scaled = value * metric.scale  # which may leave the floats
    if not math.isfinite(scaled):
        return None
    number = round(scaled)
    low, high = _LIMITS[metric.storage]
    return number if low <= number <= high else None


def fits(storage: Storage, number: int) -> bool:
    """Whether a storage integer fits, and is not the null code."""
    low, high = _LIMITS[storage]
    return low <= number <= high


def reading(
    rows: Sequence[GpuRow],
    instances: Sequence[tuple[int, int, int]] = (),
    slices: Sequence[Mapping[str, int]] = (),
) -> Reading:
    """The reading of these GPUs, and of MIG instances with their values by name."""
    metrics = [row.metrics for row in rows]
    fast = (
        array(ARRAY_CODE[ROW[0].storage], [row.dt_ms for row in rows]),
        array(ARRAY_CODE[ROW[1].storage], [row.flags for row in rows]),
        array(ARRAY_CODE[ROW[2].storage], [row.energy_kind for row in rows]),
        *(_column(column, metrics) for column in LAYOUT.fast[len(ROW) :]),
    )
    return Reading(
        fast,
        tuple(_column(column, metrics) for column in LAYOUT.slow),
        tuple(instances),
        tuple(_column(column, slices) for column in LAYOUT.slices) if instances else (),
    )


def _column(column: Column, rows: Sequence[Mapping[str, int]]) -> "array[int]":
    null = NULL_CODE[column.storage]
    return array(ARRAY_CODE[column.storage], [row.get(column.name, null) for row in rows])
