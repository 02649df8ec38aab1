"""What the agent serves: GPU metrics in dcgm-exporter's dialects, its own metrics, its health."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Protocol, runtime_checkable

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, SummaryMetricFamily
from prometheus_client.metrics_core import Metric

from agents.cost import measure
from agents.exposition import FROM_49, UP_TO_48, Dialect, Totals, render
from agents.kubernetes import Pods
from agents.node_meters import Meters
from agents.sampler import Sampler, Snapshot
from agents.shipper import Shipper
from agents.source import Source
from pipeline.clock import Clock
from pipeline.errors import Unavailable
from pipeline.spool import Spool
from pipeline.web import Page, Pages, text

STALE_PERIODS: Final = 3
STUCK_S: Final = 30.0
"""A sampler that has not turned for so long does not come back by itself."""
_CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_OWN: Final = "megawatch_agent"


class CallCost(Protocol):
    """What the calls of one function of the driver have cost since it was opened."""

    @property
    def calls(self) -> int:
        """How many there were."""
        ...

    @property
    def seconds(self) -> float:
        """Their time in all."""
        ...

    @property
    def longest_s(self) -> float:
        """The longest one."""
        ...


@runtime_checkable
class Timed(Protocol):
    """A source that knows what its calls cost."""

    def costs(self) -> Mapping[str, CallCost]:
        """By function."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Exporter:
    """Looks at the parts of a running agent; every method may be called from any thread."""

    source: Source
    sampler: Sampler
    spool: Spool
    shipper: Shipper | None
    totals: Totals
    clock: Clock
    period_ms: int
    version: str
    meters: Meters | None = None
    pods: Pods | None = None

    def pages(self) -> Pages:
        """By path."""
        registry = CollectorRegistry(auto_describe=False)
        registry.register(self)
        return {
            "/metrics": lambda: _metrics(self._gpus(UP_TO_48).encode() + generate_latest(registry)),
            "/metrics/dcgm49": lambda: _metrics(self._gpus(FROM_49).encode()),
            "/metrics/agent": lambda: _metrics(generate_latest(registry)),
            "/healthz": self.health,
        }

    def health(self) -> Page:
        """200 while the sampler's loop turns, whether or not the GPUs can be read."""
        idle_s = self.clock.monotonic_s() - self.sampler.stats.turned_s
        if idle_s > STUCK_S:
            return text(503, f"stuck: the sampler has not turned for {idle_s:.0f} s\n")
        return text(200, "ok\n" if self._fresh() else "ok, but the GPUs cannot be read now\n")

    def collect(self) -> Iterator[Metric]:
        """The agent's own metrics, for the registry."""
        yield _gauges("info", "Version of the agent", "version", {self.version: 1})
        yield from self._cost()
        yield from self._sampling()
        yield from self._spooling()
        if self.shipper is not None:
            yield from self._shipping(self.shipper)
        if self.meters is not None:
            yield from self._metering(self.meters)
        if self.pods is not None:
            yield _gauge("pods", "Pods that hold GPUs", self.pods.holders)
            yield _gauge("pods_seen_ms", "When the kubelet last answered", self.pods.seen_ms)
            yield _gauge("pod_devices_unplaced", "Held, but not known", len(self.pods.unplaced))
            yield _counters("pods_errors", "Polls in trouble", "reason", self.pods.errors)

    def _fresh(self) -> Snapshot | None:
        """The newest reading, unless it is so old that it must vanish."""
        latest = self.sampler.latest
        if latest is None:
            return None
        age_ms = abs(self.clock.now_ms() - latest.tick_ms)
        return latest if age_ms <= STALE_PERIODS * self.period_ms else None

    def _gpus(self, dialect: Dialect) -> str:
        snapshot = self._fresh()
        return render(snapshot, self.totals, dialect) if snapshot else ""

    def _cost(self) -> Iterator[Metric]:
        cost = measure()
        yield _counter("cpu_seconds", "Processor time of the agent and its children", cost.cpu_s)
        if cost.pss_bytes is not None:
            yield _gauge("memory_pss_bytes", "Memory of the agent and its children", cost.pss_bytes)

    def _metering(self, meters: Meters) -> Iterator[Metric]:
        watts = GaugeMetricFamily(
            f"{_OWN}_meter_watts", "Power by meter; they overlap: never add them",
            labels=["meter", "what"],
        )  # fmt: skip
        for key, value in meters.watts(self.clock.now_ms()).items():
            watts.add_metric(list(key), value)
        errors = CounterMetricFamily(
            f"{_OWN}_meter_errors", "Readings missing or odd", labels=["meter", "reason"]
        )
        for reason, count in dict(meters.errors).items():
            errors.add_metric(list(reason), count)
        yield watts
        yield errors

    def _sampling(self) -> Iterator[Metric]:
        stats = self.sampler.stats
        fresh = self._fresh() is not None
        yield _gauge("source_up", "1 while the GPUs can be read", int(fresh))
        yield _counter("ticks", "Ticks that were read", stats.ticks)
        yield _counters("ticks_skipped", "Ticks that were not read", "reason", stats.skipped)
        yield _counters("holes", "Ticks that the source could not answer", "reason", stats.holes)
        yield _counter("messages", "Messages of samples", stats.messages)
        lateness = {"": (stats.ticks, stats.lateness_s)}
        yield _summary("tick_lateness_seconds", "How late ticks were read", "", lateness)
        yield _gauge("tick_lateness_max_seconds", "The latest tick", stats.lateness_max_s)
        read = {"": (stats.ticks, stats.read_s)}
        yield _summary("source_read_seconds", "Time to read all GPUs once", "", read)
        if isinstance(self.source, Timed):
            costs = self.source.costs()
            sums = {name: (cost.calls, cost.seconds) for name, cost in costs.items()}
            yield _summary("source_call_seconds", "Time of the driver's calls", "call", sums)
            longest = {name: cost.longest_s for name, cost in costs.items()}
            yield _gauges("source_call_max_seconds", "The longest call", "call", longest)

    def _spooling(self) -> Iterator[Metric]:
        yield _counters("spool_dropped", "Messages thrown away", "reason", self.spool.drops)
        try:
            depth = self.spool.depth()
        except Unavailable:
            return
        yield _gauge("spool_messages", "Messages that wait in the spool", depth.messages)
        yield _gauge("spool_bytes", "Bytes of the spool in use", depth.size_bytes)
        oldest_ms = depth.oldest_ms
        age_s = 0.0 if oldest_ms is None else max(0, self.clock.now_ms() - oldest_ms) / 1000
        yield _gauge("spool_oldest_age_seconds", "Age of the oldest message in the spool", age_s)

    def _shipping(self, shipper: Shipper) -> Iterator[Metric]:
        stats = shipper.stats
        yield _counters("shipped", "Messages that the broker has", "lane", stats.shipped)
        yield _counter("shipped_bytes", "Bytes that the broker has", stats.shipped_bytes)
        yield _counters("producer_errors", "Failed attempts to ship", "error", stats.errors)
        yield _counter("rejected", "Messages that the broker will never take", stats.rejected)
        yield _gauge("in_flight", "Messages sent and not yet acknowledged", stats.in_flight)


def _metrics(body: bytes) -> Page:
    return Page(200, _CONTENT_TYPE, body)


def _gauge(name: str, meaning: str, value: float) -> Metric:
    return GaugeMetricFamily(f"{_OWN}_{name}", meaning, value=value)


def _counter(name: str, meaning: str, value: float) -> Metric:
    return CounterMetricFamily(f"{_OWN}_{name}", meaning, value=value)


def _gauges(name: str, meaning: str, label: str, values: Mapping[str, float]) -> Metric:
    family = GaugeMetricFamily(f"{_OWN}_{name}", meaning, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family


def _counters(name: str, meaning: str, label: str, values: Mapping[str, float]) -> Metric:
    family = CounterMetricFamily(f"{_OWN}_{name}", meaning, labels=[label])
    for key, value in dict(values).items():  # a copy: its owner goes on counting
        family.add_metric([key], value)
    return family


def _summary(
    name: str, meaning: str, label: str, values: Mapping[str, tuple[int, float]]
) -> Metric:
    family = SummaryMetricFamily(f"{_OWN}_{name}", meaning, labels=[label] if label else [])
    for key, (count, total) in dict(values).items():
        family.add_metric([key] if label else [], count, total)
    return family
