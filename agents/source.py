"""What a sampler reads from: one protocol for NVML, the simulator, recorded logs and dcgm-exporter."""

from dataclasses import dataclass, field
from typing import Protocol, Self, overload

from pipeline.records import Inventory, Record


class Vector(Protocol):
    """Integers of one storage type: an array.array, or a numpy array of the simulator."""

    def __len__(self) -> int: ...

    @overload
    def __getitem__(self, at: int, /) -> int: ...
    @overload
    def __getitem__(self, at: slice, /) -> Self: ...

    def tobytes(self) -> bytes:
        """Little-endian bytes."""
        ...


@dataclass(frozen=True, slots=True)
class Reading:
    """One tick of every node that a source serves.

    `fast` and `slow` stand in the order of pipeline.wire.LAYOUT (fast begins with dt_ms, flags,
    energy_kind); each vector has one integer per GPU, node after node in inventory order, in the
    metric's storage integers, null codes where nothing was reported. dt_ms = 0: this GPU was not
    read at this tick. `instances` are MIG instances as (GPU position, gi, ci), which only a source
    of a single node may have; `slices` has one integer per instance.
    """

    fast: tuple[Vector, ...]
    slow: tuple[Vector, ...]
    instances: tuple[tuple[int, int, int], ...] = ()
    slices: tuple[Vector, ...] = field(default=())


class Source(Protocol):
    """GPUs that can be read once per tick.

    A source computes deltas (energy_j, throttle times, link bytes), since only it knows whether
    its counters are continuous: after more than two missed ticks, a restart, or a change of boot,
    driver epoch or UUID the delta is the null code, never a catch-up lump. dt_ms is the period, or
    the distance to that GPU's previous row, capped at two periods.
    """

    name: str

    @property
    def generation(self) -> int:
        """Grows when inventory, epochs or instances change: the sampler then flushes first."""
        ...

    @property
    def boot_epoch(self) -> int:
        """32 bits that change with every boot of the node."""
        ...

    @property
    def driver_epoch(self) -> int:
        """32 bits that change whenever the driver's raw counters restart."""
        ...

    def inventory(self) -> tuple[Inventory, ...]:
        """The nodes and GPUs of the present generation."""
        ...

    def read(self, tick_ms: int) -> Reading:
        """Values at a tick, UTC milliseconds aligned to the period. Bounded in time.

        Raises Unavailable when nothing at all can be read now (a hung driver, a dead exporter).
        """
        ...

    def records(self) -> list[Record]:
        """Events, allocations and meter readings since the last call."""
        ...

    def close(self) -> None:
        """Release the device; idempotent."""
        ...
