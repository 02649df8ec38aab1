"""A recorded log played again, at its own pace or another, as if it happened now.

The log's first row is the first tick. At each tick a GPU shows its latest row; one that it showed
before is held, and where the log has a gap there is no row. Energy is that of the wall time of the
replay: what the log says between two ticks, divided by the speed, so that sums are exact at any
speed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from agents.continuity import GAP_PERIODS, flags, row_ms
from agents.gathered import ABSENT, GpuRow, fits, reading
from agents.recording import Track, load
from agents.source import Reading
from pipeline.catalog import FAST_BY_NAME
from pipeline.clock import Clock, SystemClock
from pipeline.errors import Refuse, Unavailable
from pipeline.formats.contract import Options
from pipeline.records import ENERGY_COUNTER, ENERGY_NONE, FLAG_HELD, Gpu, Inventory, Record
from pipeline.settings import Site
from pipeline.wire import LAYOUT

SOURCE: Final = "replay"
SPEEDS: Final = (0.001, 1000.0)


@dataclass(slots=True)
class _Shown:
    """What a track showed at the previous tick."""

    tick_ms: int
    row: int
    cycle: int
    segment: int
    energy_mj: int


class ReplaySource:
    """Recorded CSV files behind agents.source.Source; see the module.

    `speed` 2 plays two seconds of the log a second. Without `loop`, reading is Unavailable after
    the last row. Rows that name no node are of this one. `options` are those of an import. Raises Refuse on a file that cannot be read.
    """

    name = SOURCE

    def __init__(
        self,
        files: Sequence[Path],
        site: Site,
        *,
        options: Options | None = None,
        speed: float = 1.0,
        loop: bool = False,
        period_ms: int = 1000,
        clock: Clock | None = None,
    ) -> None:
        slowest, fastest = SPEEDS
        if not slowest <= speed <= fastest:
            raise Refuse(f"replay: speed {speed} is not between {slowest} and {fastest:g}")
        self._site = site
        recording = load(files, options or Options(), site.hostname)
        self._tracks, self.rows_bad = recording.tracks, recording.rows_bad
        self._loaded_ms = (clock or SystemClock()).now_ms()
        self._speed, self._loop, self._period_ms = speed, loop, period_ms
        self._first_ms = min(track.times[0] for track in self._tracks)
        self._last_ms = max(track.times[-1] for track in self._tracks)
        self._began_ms: int | None = None
        self._cycle = 0
        self._shown: dict[str, _Shown] = {}

    @property
    def generation(self) -> int:
        """Grows with every repetition of the log, since its counters begin again."""
        return 1 + self._cycle

    @property
    def boot_epoch(self) -> int:
        """Always 1: a recording does not boot."""
        return 1

    @property
    def driver_epoch(self) -> int:
        """When it was loaded, and the number of repetitions."""
        return (self._loaded_ms // 1000 + self._cycle) & 0xFFFFFFFF

    def inventory(self) -> tuple[Inventory, ...]:
        """The nodes and GPUs of the recording."""
        nodes: dict[str, list[Gpu]] = {}
        for track in self._tracks:
            nodes.setdefault(track.node, []).append(track.gpu)
        return tuple(
            Inventory(
                site=self._site.name, node=node, from_ms=self._loaded_ms, hall=self._site.hall,
                row=self._site.row, rack=self._site.rack, pdu=self._site.pdu, gpus=tuple(gpus),
                layout=LAYOUT.describe(), source=SOURCE,
            )
            for node, gpus in nodes.items()
        )  # fmt: skip

    def records(self) -> list[Record]:
        """None: a log of samples has no events."""
        return []

    def close(self) -> None:
        """Nothing to release."""

    def read(self, tick_ms: int) -> Reading:
        """What the log shows at a tick. Raises Unavailable after its end."""
        if self._began_ms is None:
            self._began_ms = tick_ms
        since_ms = max(0, tick_ms - self._began_ms) * self._speed
        length_ms = self._last_ms - self._first_ms + self._period_ms * self._speed
        cycle, into_ms = divmod(since_ms, length_ms)
        if cycle and not self._loop:
            raise Unavailable("replay: end of recording")
        self._cycle = int(cycle)
        log_ms = self._first_ms + into_ms
        return reading([self._row(track, log_ms, tick_ms) for track in self._tracks])

    def _row(self, track: Track, log_ms: float, tick_ms: int) -> GpuRow:
        at = track.at(log_ms)
        if at is None:
            return ABSENT
        before = self._shown.get(track.gpu.uuid)
        now = _Shown(
            tick_ms, at, self._cycle, track.segment[at],
            int(track.energy_at(at, log_ms) / self._speed),
        )  # fmt: skip
        self._shown[track.gpu.uuid] = now
        dt_ms = row_ms(before.tick_ms if before else None, tick_ms, self._period_ms)
        held = before is not None and (before.cycle, before.row) == (now.cycle, at)
        unknown = held and track.silent(at)
        delta = None if unknown else _delta(before, now, GAP_PERIODS * self._period_ms)
        metrics = dict(track.rows[at].metrics)
        metrics.pop("energy_j", None)
        metrics.pop("energy_counter_j", None)
        if delta is not None:
            metrics["energy_j"] = delta
        if track.energy_kind == ENERGY_COUNTER:
            metrics["energy_counter_j"] = now.energy_mj
        bits = flags(metrics.get("power_w"), delta, dt_ms) | (FLAG_HELD if held else 0)
        return GpuRow(dt_ms, bits, ENERGY_NONE if delta is None else track.energy_kind, metrics)


def _delta(before: _Shown | None, now: _Shown, longest_ms: int) -> int | None:
    """Millijoules between two ticks of one segment."""
    if before is None or (before.cycle, before.segment) != (now.cycle, now.segment):
        return None
    if not 0 < now.tick_ms - before.tick_ms <= longest_ms:
        return None
    delta = now.energy_mj - before.energy_mj
    return delta if fits(FAST_BY_NAME["energy_j"].storage, delta) else None
