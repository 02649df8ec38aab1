"""A node of fake GPUs for the tests of the NVML source: the real ctypes path, steered by a file."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from agents.nvml_source import NvmlSource
from agents.source import Reading, Vector
from deploy import fake_nvml
from pipeline.clock import ManualClock
from pipeline.errors import Unavailable
from pipeline.records import Event
from pipeline.settings import Site
from pipeline.wire import LAYOUT

PERIOD_MS = 1000
DEADLINE_S = 0.25
FAST = [column.name for column in LAYOUT.fast]
SLOW = [column.name for column in LAYOUT.slow]
SLICE = [column.name for column in LAYOUT.slices]


@dataclass(frozen=True, slots=True)
class Options:
    """How the source under test is set up."""

    stop_hung_after_s: float = 60.0
    open_wait_s: float = 10.0
    kmsg: Path | None = None


class Node:
    """A source on the fake library, and a clock that only this node moves."""

    def __init__(self, folder: Path, library: Path, options: Options, **settings: object) -> None:
        self.clock = ManualClock()
        self.control = folder / "control"
        self.kmsg = folder / "kmsg"
        self.kmsg.touch()
        self.settings = dict(settings)
        self.steer()
        self.source = NvmlSource(
            Site(name="here", hall="h1", rack="r7"),
            "node1",
            period_ms=PERIOD_MS,
            slow_every_s=2,
            clock=self.clock,
            environment={**os.environ, **fake_nvml.environment(library, self.control)},
            deadline_s=DEADLINE_S,
            kmsg=options.kmsg or self.kmsg,
            stop_hung_after_s=options.stop_hung_after_s,
            open_wait_s=options.open_wait_s,
        )
        self.told: list[Event] = []

    def steer(self, **settings: object) -> None:
        """Change the fake driver; None takes a setting away."""
        self.settings |= settings
        kept = {key: value for key, value in self.settings.items() if value is not None}
        fake_nvml.steer(self.control, {"gpus": 2, **kept})
        time.sleep(0.005)  # a running process looks at most once a millisecond

    @property
    def pid(self) -> int:
        process = self.source._link._process
        assert process is not None
        return process.pid

    def read(self) -> "Columns":
        """The next tick's columns by name: fast, slow and slice ones apart."""
        self.clock.advance(PERIOD_MS / 1000)
        time.sleep(0.003)  # so that counters of milliseconds move
        reading = self.source.read(self.clock.now_ms())
        return Columns(reading)

    def problem(self) -> str:
        """What the next tick's reading is refused with."""
        try:
            self.read()
        except Unavailable as error:
            return str(error)
        raise AssertionError("the reading was not refused")

    def read_until(self, wanted: "Callable[[Columns], object]", tries: int = 200) -> "Columns":
        """Read on until a reading is as wanted; refused ones count as tries."""
        for _ in range(tries):
            try:
                columns = self.read()
            except Unavailable:
                time.sleep(0.02)
                continue
            if wanted(columns):
                return columns
            time.sleep(0.01)
        raise AssertionError(f"not within {tries} ticks")

    def events(self, kind: str) -> list[Event]:
        """All events of a kind told so far."""
        self.told += [record for record in self.source.records() if isinstance(record, Event)]
        return [event for event in self.told if event.kind == kind]


def integers(vector: Vector) -> list[int]:
    """The values of a column."""
    return [vector[at] for at in range(len(vector))]


class Columns:
    """A reading, by column name."""

    def __init__(self, reading: Reading) -> None:
        self.fast = {name: integers(v) for name, v in zip(FAST, reading.fast, strict=True)}
        self.slow = {name: integers(v) for name, v in zip(SLOW, reading.slow, strict=True)}
        self.slices = {name: integers(v) for name, v in zip(SLICE, reading.slices, strict=True)}
        self.instances = reading.instances
