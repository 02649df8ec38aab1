"""The tick: read the source once per period, pack what was read, put it into the spool.

Ticks are UTC multiples of the period, taken from the clock each time, so they cannot drift. They
strictly increase within a stream: a tick that comes late, or again because the clock went back, is
skipped and counted. The sampler writes to the spool only, so no network can hold it up.
"""

import functools
import logging
import threading
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

import msgspec

from agents.packing import Epochs, Node, Row, nodes_of, pack
from agents.source import Reading, Source
from pipeline.clock import Clock
from pipeline.errors import Unavailable
from pipeline.records import Event, Inventory, MeterReading, Record
from pipeline.settings import Settings
from pipeline.spool import Outgoing, Spool
from pipeline.topics import INVENTORY, SAMPLES, TOPICS, encode_record
from pipeline.wire import LAYOUT

log = logging.getLogger(__name__)

INVENTORY_EVERY_MS: Final = 600_000
DROPS_EVERY_MS: Final = 60_000
MAX_BACK_MS: Final = 86_400_000
"""A clock that is further behind the last tick was wrong before: new streams begin."""
_MAX_REASONS: Final = 32
_TOPIC_OF: Final = {topic.record: topic.name for topic in TOPICS.values()}


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The newest reading, for those who serve it."""

    tick_ms: int
    inventories: tuple[Inventory, ...]
    reading: Reading


class Observer(Protocol):
    """Who is told of everything that is read, in the sampler's thread."""

    def on_reading(self, snapshot: Snapshot) -> None:
        """A tick was read."""
        ...

    def on_record(self, record: Record) -> None:
        """The source had this to say beside samples."""
        ...


@dataclass(slots=True)
class SamplerStats:
    """What the sampler counts; written by its thread, read by the exporter.

    `skipped` counts ticks by reason (late, clock_back), `holes` ticks at which nothing could be
    read, by what the source said. `turned_s` is the monotonic time of the loop's last turn.
    """

    ticks: int = 0
    messages: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    holes: Counter[str] = field(default_factory=Counter)
    lateness_s: float = 0.0
    lateness_max_s: float = 0.0
    read_s: float = 0.0
    turned_s: float = 0.0


@dataclass(slots=True)
class _Share:
    """A node, when its next message is due, and the newest tick that was packed."""

    node: Node
    phase_ms: int
    due_ms: int | None = None
    packed_ms: int = 0


def _all(_: int) -> bool:
    return True


class Sampler:
    """One thread calls `run`, or `step` and `finish`; others may look at `stats` and `latest`."""

    def __init__(
        self,
        source: Source,
        spool: Spool,
        settings: Settings,
        clock: Clock,
        observers: Sequence[Observer] = (),
        meters: Callable[[int], Sequence[Record]] | None = None,
    ) -> None:
        self.stats: Final = SamplerStats()
        self.latest: Snapshot | None = None
        self._source = source
        self._spool = spool
        self._site = settings.site
        self._period_ms = settings.agent.period_ms
        self._flush_ms = settings.agent.flush_ms
        self._clock = clock
        self._observers = observers
        self._meters = meters
        self._generation: int | None = None
        self._inventories: tuple[Inventory, ...] = ()
        self._announced_ms = 0
        self._shares: tuple[_Share, ...] = ()
        self._gpus = 0
        self._epochs = Epochs(self._period_ms, 0, 0)
        self._rows: deque[Row] = deque()
        self._outgoing: list[Outgoing] = []
        self._reported: Counter[str] = Counter()
        self._reported_ms = 0
        self._is_storing = True
        # The first tick is the next one, and none that the spool has seen comes again.
        seen = (stream.last_tick_ms for stream in spool.streams.values())
        self._last_ms = max([self._aligned(clock.now_ms()), *seen])
        self._back_ms = 0

    def run(self, stop: threading.Event) -> None:
        """Until told to stop; what was read is in the spool then."""
        try:
            while not stop.is_set():
                due_ms = self.step()
                self._clock.wait(stop, (due_ms - self._clock.now_ms()) / 1000)
        finally:
            self.finish()

    def step(self) -> int:
        """Do what is due now; returns when to come back, in UTC milliseconds."""
        now_ms = self._clock.now_ms()
        self.stats.turned_s = self._clock.monotonic_s()
        tick_ms = self._aligned(now_ms)
        self._refresh(now_ms)
        if tick_ms < self._last_ms:
            self._clock_is_back(tick_ms)
        if tick_ms > self._last_ms:
            self._flush(lambda due_ms: due_ms < tick_ms)
            self._tick(tick_ms, now_ms)
        self._flush(lambda due_ms: due_ms <= now_ms)
        self._collect(now_ms)
        self._append(now_ms)
        due = [share.due_ms for share in self._shares if share.due_ms is not None]
        return min([tick_ms + self._period_ms, *(at for at in due if at > now_ms)])

    def finish(self) -> None:
        """The last flush: everything that was read goes into the spool."""
        now_ms = self._clock.now_ms()
        self._flush(_all)
        self._collect(now_ms)
        self._reported_ms = 0  # drops that nobody was told of are told now, or never
        self._append(now_ms)

    def _aligned(self, at_ms: int) -> int:
        return at_ms // self._period_ms * self._period_ms

    def _clock_is_back(self, tick_ms: int) -> None:
        """No tick comes twice: wait until the clock has caught up, unless that is hopeless."""
        behind_ms = self._last_ms - tick_ms
        if tick_ms != self._back_ms:
            if not self._back_ms:
                log.warning("the clock went back: no samples for %d ms", behind_ms)
                self._event("clock_back", f"{behind_ms} ms behind the last tick")
                self._flush(_all)
            self._back_ms = tick_ms
            self.stats.skipped["clock_back"] += 1
        if behind_ms > MAX_BACK_MS:
            self._append(self._clock.now_ms())
            self._spool.renew_streams()
            for share in self._shares:
                share.packed_ms = 0
            self._last_ms = tick_ms - self._period_ms

    def _tick(self, tick_ms: int, now_ms: int) -> None:
        missed = (tick_ms - self._last_ms) // self._period_ms - 1
        if missed and self.stats.ticks:
            self.stats.skipped["late"] += missed
        self._last_ms = tick_ms
        self._back_ms = 0
        late_ms = now_ms - tick_ms
        if late_ms > self._period_ms // 2:
            self.stats.skipped["late"] += 1
            return
        self.stats.ticks += 1
        self.stats.lateness_s += late_ms / 1000
        self.stats.lateness_max_s = max(self.stats.lateness_max_s, late_ms / 1000)
        reading = self._read(tick_ms)
        self._refresh(now_ms)
        if reading is not None:
            self._keep(Row(tick_ms, reading))

    def _read(self, tick_ms: int) -> Reading | None:
        begun_s = self._clock.monotonic_s()
        try:
            return self._source.read(tick_ms)
        except Unavailable as error:
            self._hole(str(error)[:120])
            return None
        finally:
            self.stats.read_s += self._clock.monotonic_s() - begun_s

    def _hole(self, reason: str) -> None:
        holes = self.stats.holes
        known = reason in holes or len(holes) < _MAX_REASONS
        holes[reason if known else "other"] += 1

    def _keep(self, row: Row) -> None:
        reading = row.reading
        if len(reading.fast[0]) != self._gpus:
            self._hole("the reading does not fit the inventory")
            return
        if self._rows and self._rows[-1].reading.instances != reading.instances:
            self._flush(_all)
        self.latest = Snapshot(row.tick_ms, self._inventories, reading)
        for observer in self._observers:
            observer.on_reading(self.latest)
        if self._shares:
            self._rows.append(row)
        for share in self._shares:
            if share.due_ms is None:
                ahead_ms = (share.phase_ms - row.tick_ms) % self._flush_ms
                share.due_ms = row.tick_ms + ahead_ms

    def _flush(self, which: Callable[[int], bool]) -> None:
        """Pack the rows of these nodes that are not packed yet."""
        ready = [s for s in self._shares if s.due_ms is not None and which(s.due_ms)]
        for share in ready:
            rows = [row for row in self._rows if row.tick_ms > share.packed_ms]
            share.due_ms = None
            share.packed_ms = rows[-1].tick_ms
            encode = functools.partial(pack, share.node, rows, self._epochs)
            self._outgoing.append(Outgoing(SAMPLES, share.node.name, share.packed_ms, encode))
        if ready:
            self.stats.messages += len(ready)
            packed_ms = min(share.packed_ms for share in self._shares)
            while self._rows and self._rows[0].tick_ms <= packed_ms:
                self._rows.popleft()

    def _refresh(self, now_ms: int) -> None:
        """If the source's GPUs or epochs changed: pack what was read before, then begin anew."""
        generation = self._source.generation
        if generation != self._generation:
            self._flush(_all)
            self._rows.clear()
            self._generation = generation
            self._adopt(self._source.inventory())
            self._epochs = Epochs(
                self._period_ms, self._source.boot_epoch, self._source.driver_epoch
            )
            self._announce(now_ms)
        elif now_ms - self._announced_ms >= INVENTORY_EVERY_MS or now_ms < self._announced_ms:
            self._announce(now_ms)

    def _adopt(self, inventories: Sequence[Inventory]) -> None:
        layout = LAYOUT.describe()
        self._inventories = tuple(
            msgspec.structs.replace(inventory, layout=layout) for inventory in inventories
        )
        nodes = nodes_of(self._inventories)
        # A node alone flushes to the millisecond; many flush at ticks, to share transactions.
        step_ms = 1 if len(nodes) == 1 else self._period_ms
        self._shares = tuple(
            _Share(node, node.node_id % self._flush_ms // step_ms * step_ms)
            for node in nodes
            if node.gpu_ids
        )
        self._gpus = sum(len(node.gpu_ids) for node in nodes)

    def _announce(self, now_ms: int) -> None:
        self._announced_ms = now_ms
        for inventory in self._inventories:
            self._record(INVENTORY, inventory.node, now_ms, inventory)

    def _collect(self, now_ms: int) -> None:
        """Records of the source, each under its topic."""
        measured = self._meters(now_ms) if self._meters else ()
        for record in [*self._source.records(), *measured]:
            for observer in self._observers:
                observer.on_record(record)
            key = record.meter if isinstance(record, MeterReading) else record.node
            self._record(_TOPIC_OF[type(record)], key, now_ms, record)

    def _record(self, topic: str, key: str, now_ms: int, record: Record) -> None:
        self._outgoing.append(Outgoing(topic, key, now_ms, encode_record(record)))

    def _event(self, kind: str, detail: str, count: int = 1) -> None:
        now_ms = self._clock.now_ms()
        site, node = self._site.name, self._site.hostname
        event = Event(site=site, node=node, ts_ms=now_ms, kind=kind, count=count, detail=detail)
        self._record(_TOPIC_OF[Event], node, now_ms, event)

    def _append(self, now_ms: int) -> None:
        """One transaction for all that came up in this turn."""
        reported = self._report_drops(now_ms)
        if not self._outgoing:
            return
        outgoing, self._outgoing = self._outgoing, []
        self._is_storing = bool(self._spool.append(outgoing))
        if self._is_storing:
            self._reported.update(reported)

    def _report_drops(self, now_ms: int) -> Counter[str]:
        """Events for what the spool threw away since the last ones, once it takes any."""
        if not self._is_storing or 0 <= now_ms - self._reported_ms < DROPS_EVERY_MS:
            return Counter()
        fresh = self._spool.drops - self._reported
        if fresh:
            self._reported_ms = now_ms
        for reason, count in fresh.items():
            self._event(f"spool_{reason}", f"{count} messages were thrown away: {reason}", count)
        return fresh
