"""A source small enough to know every value it gives, and to break on request."""

from array import array
from collections.abc import Callable

from agents.source import Reading
from pipeline.catalog import ARRAY_CODE, NULL_CODE
from pipeline.errors import Unavailable
from pipeline.records import ENERGY_COUNTER, Gpu, Inventory, Record
from pipeline.wire import LAYOUT, Column

POWER = next(i for i, c in enumerate(LAYOUT.fast) if c.name == "power_w")
ENERGY = next(i for i, c in enumerate(LAYOUT.fast) if c.name == "energy_j")
ENERGY_COUNTER_AT = next(i for i, c in enumerate(LAYOUT.slow) if c.name == "energy_counter_j")


def power(tick_ms: int, gpu: int) -> int:
    """Tenths of a watt, different at each tick and GPU."""
    return 1000 + (tick_ms // 100) % 100_000 + 7 * gpu


class TinySource:
    """Deterministic GPUs: power tells tick and position, the counter is the tick."""

    name = "tiny"

    def __init__(self, nodes: int = 1, gpus: int = 2) -> None:
        self.generation = 1
        self.boot_epoch = 11
        self.driver_epoch = 22
        self.nodes, self.gpus = nodes, gpus
        self.instances: tuple[tuple[int, int, int], ...] = ()
        self.waiting: list[Record] = []
        self.unavailable = ""
        self.reads: list[int] = []
        self.on_read: Callable[[], object] = lambda: None
        self.changes_during_read = False
        self.closed = False

    def inventory(self) -> tuple[Inventory, ...]:
        return tuple(
            Inventory(
                site="test",
                node=f"node-{n}",
                from_ms=0,
                driver_version="580.1",
                gpus=tuple(
                    Gpu(i, f"GPU-{n}-{i}", model='H200 "SXM"', pci_bus_id=f"00000000:{i:02X}:00.0")
                    for i in range(self.gpus)
                ),
            )
            for n in range(self.nodes)
        )

    def read(self, tick_ms: int) -> Reading:
        self.reads.append(tick_ms)
        self.on_read()
        if self.changes_during_read:
            self.changes_during_read = False
            self.generation += 1
            self.driver_epoch += 1
        if self.unavailable:
            raise Unavailable(self.unavailable)
        count = self.nodes * self.gpus
        return Reading(
            tuple(self._fast(c, tick_ms, count) for c in LAYOUT.fast),
            tuple(self._slow(c, tick_ms, count) for c in LAYOUT.slow),
            self.instances,
            tuple(array(ARRAY_CODE[c.storage], [5] * len(self.instances)) for c in LAYOUT.slices)
            if self.instances
            else (),
        )

    def records(self) -> list[Record]:
        waiting, self.waiting = self.waiting, []
        return waiting

    def close(self) -> None:
        self.closed = True

    def _fast(self, column: Column, tick_ms: int, count: int) -> "array[int]":
        constant = {
            "dt_ms": 1000, "flags": 0, "energy_kind": ENERGY_COUNTER, "temp_gpu_c": 41,
            "energy_j": 400_000, "util_gpu_pct": 87, "sm_active_pct": 905, "mem_used_mib": 1000,
            "clock_sm_mhz": 1980, "throttle_power_cap_ms": 3,
        }  # fmt: skip
        if column.name == "power_w":
            values = [power(tick_ms, gpu) for gpu in range(count)]
        else:
            value = constant.get(column.name, NULL_CODE[column.storage])
            values = [value] * count
        return array(ARRAY_CODE[column.storage], values)

    def _slow(self, column: Column, tick_ms: int, count: int) -> "array[int]":
        constant = {
            "energy_counter_j": tick_ms, "power_limit_w": 7000, "mem_total_mib": 143_771,
            "mem_reserved_mib": 600, "remap_uncorrected_rows": 0,
        }  # fmt: skip
        value = constant.get(column.name, NULL_CODE[column.storage])
        return array(ARRAY_CODE[column.storage], [value] * count)
