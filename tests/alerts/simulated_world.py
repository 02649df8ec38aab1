"""A simulated site with its evaluator and receiver, and what each SQL rule is driven by there."""

import functools
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest

import pipeline.bench.simulated as bench
from agents.faults import Fault, FaultKind
from agents.fleet import TENANTS
from agents.simulator import SimulatorSource
from alerts.alert import Alert
from alerts.evaluator import Evaluator
from alerts.rule import Rule
from alerts.rules import RULES
from pipeline.ledger import contract_store, contracts
from tests.alerts.receiver import Receiver, receiver

PER_NODE: Final = 8
BY_NAME: Final = {rule.name: rule for rule in RULES}
SWITCH: Final = "DeadMansSwitch"
INCIDENT: Final = "Incident"
"""Not a rule: what folds several alerts into one."""

DRIVEN: Final[dict[str, frozenset[str]]] = {
    "gpus": frozenset({
        "AgentDropping", "GpuEnergyMismatch", "GpuFrozen", "GpuHotAgainstPeers", "GpuLost",
        "GpuMissing", "GpuNvlinkErrors", "GpuPcieReplays", "GpuPowerBrake", "GpuPowerUnreadable",
        "GpuRecoveryAction", "GpuRemapPending", "GpuRowRemapFailed", "GpuStraggler",
        "GpuThermalSlowdown", "GpuUncorrectableEcc", "RackPowerBrake", "XidApplication",
        "XidBurst", "XidDriver", "XidFatal", "XidHardware",
    }),
    "caps": frozenset({
        "FeedRedundancyLost", "HallPowerOverCap", "MeterOverCap", "PduPowerOverCap",
        "RackPowerOverCap", "SitePowerForecast", "SitePowerOverCap", "TenantOverContract",
    }),
    "places": frozenset({
        "CoverageLow", "HallDark", "NodeClockSkew", "NodeSilent", "PduDark", "RackDark", "SiteDark",
    }),
    "load": frozenset({
        "SiteLoadDrop", "SiteOscillation", "SiteRampDown", "SiteRampUp", "TenantOscillation",
    }),
    "books": frozenset({
        "GpuMeterDrift", "GpuSumAboveMeter", "JobIdle", "JobPartlyIdle", "LedgerBridgedHigh",
        "LedgerCoverageLow", "LedgerNotClosed", "MeterSilent", "MeterStuck", "TenantSlaBurnFast",
        "TenantSlaBurnSlow", "TenantUnderDelivered", "UnattributedShareHigh", "UnattributedWork",
    }),
    "pipeline": frozenset({
        SWITCH, "DeadLetters", "RejectedShareHigh", "SamplesStale", "SamplesStopped",
        "StoreDiskFilling", "StoreDiskFull", "TooManyParts", "WatermarkBehind",
    }),
}  # fmt: skip
"""Rules that simulated sites drive, by the world that does."""
BY_ROWS_ALONE: Final = {
    "LedgerRefused": "no reading makes a closed quarter lose what was measured",
    "LedgerConservationBroken": "the ledger's own arithmetic would have to be wrong",
}
"""Rules that nothing at a site can break, and why: test_rules_fire.py writes the rows."""


@dataclass
class World:
    """A site, its evaluator, and whoever is told."""

    site: bench.Simulated
    told: Receiver
    rules: tuple[Rule, ...]
    evaluator: Evaluator
    fired: list[Alert] = field(default_factory=list)
    """Every alert when it began to fire, the dead man's switch left out; a test may clear it."""
    resolved: list[Alert] = field(default_factory=list)
    _known: set[tuple[int, int, str]] = field(default_factory=set)

    @property
    def now_ms(self) -> int:
        return self.site.clock.ms

    def go(self, seconds: float, every_s: int = 15, ingest_s: int = 0) -> None:
        """Rounds at multiples of the interval and at the end, each after an ingest or several."""
        until_ms, interval_ms = self.now_ms + round(seconds * 1000), every_s * 1000
        while self.now_ms < until_ms:
            tick_ms = min(until_ms, (self.now_ms // interval_ms + 1) * interval_ms)
            self.site.go(tick_ms, (ingest_s or every_s) * 1000)
            self.round()

    def stand_still(self, seconds: float) -> None:
        """The same with neither agents nor pipeline."""
        until_ms = self.now_ms + round(seconds * 1000)
        while self.now_ms < until_ms:
            self.site.clock.ms += 15_000
            self.round()

    def round(self) -> None:
        self.evaluator.round(self.now_ms)
        kept = {"firing": self.fired, "resolved": self.resolved}
        for alert in self.evaluator.alerts.values():
            known = (alert.fingerprint, alert.fired_ms, alert.state)
            if alert.rule != SWITCH and alert.state in kept and known not in self._known:
                self._known.add(known)
                kept[alert.state].append(alert)

    def restart(self, **alerts: Any) -> None:
        """Another evaluator with other settings, which takes up where the last one stopped."""
        self.evaluator.close()
        self.evaluator = evaluator_of(self.site, self.told, self.rules, alerts)

    def names(self, severity: str = "") -> set[str]:
        """Rules that have fired."""
        return {a.rule for a in self.fired if severity in ("", a.severity)} - {INCIDENT}

    def active(self) -> set[str]:
        """Rules that fire now."""
        alerts = self.evaluator.alerts.values()
        return {a.rule for a in alerts if a.state == "firing"} - {SWITCH, INCIDENT}

    def pages(self) -> list[dict[str, Any]]:
        """What was posted to wake somebody: by labels, the newest of each."""
        return [a for a in self.told.alerts.values() if a["labels"]["severity"] == "page"]

    def strike(self, kind: FaultKind, gpu: int = 0, code: int = 31, after_s: float = 0) -> Fault:
        """From the next tick on, or so many seconds later."""
        age_s = (self.now_ms - self.site.source._start_ms) / 1000 if after_s else 0
        fault = Fault(kind, gpu, code, after_s=age_s + after_s)
        self.site.source.inject(fault)
        return fault

    def clear(self, faults: Iterable[Fault]) -> None:
        for fault in faults:
            self.site.source.clear(fault)

    def lease(self, nodes: int, kw_per_gpu: float = 4.0) -> None:
        """A contract of the first tenant over the first nodes from now on."""
        leased = self.site.source.inventory()[:nodes]
        gpus = sum(len(node.gpus) for node in leased)
        text = bench._LEASE.format(
            tenant=TENANTS[0], nodes=", ".join(f'"{node.node}"' for node in leased),
            since=datetime.fromtimestamp(self.now_ms // 1000, UTC).isoformat(), gpus=gpus,
            kw=gpus * kw_per_gpu,
        )  # fmt: skip
        site = self.site.settings.site.name
        parsed = contracts.parse(text, "lease", site, self.now_ms)
        contract_store.write(self.site.store, parsed)

    def was_patient(self, since_ms: int) -> None:
        """Nothing fired before its time, counted from what broke it and from its first hit."""
        for alert in self.fired:
            for_ms = BY_NAME[alert.rule].for_s * 1000 if alert.rule != INCIDENT else 0
            assert alert.fired_ms - max(since_ms, alert.active_ms) >= for_ms, alert.rule


def evaluator_of(
    site: bench.Simulated, told: Receiver, rules: tuple[Rule, ...], alerts: dict[str, Any]
) -> Evaluator:
    wanted = msgspec.structs.replace(site.settings.alerts, alertmanagers=(told.url,), **alerts)
    settings = msgspec.structs.replace(site.settings, alerts=wanted)
    return Evaluator(settings, site.store.another(), rules, site.clock)


@contextmanager
def world(
    nodes: int, *, seed: int = 1, period_s: int = 1, flush_s: int = 4, per_node: int = PER_NODE,
    warm_s: int = 300, rules: tuple[Rule, ...] = RULES, **alerts: Any,
) -> Iterator[World]:  # fmt: skip
    """A site that has been running for a while, so that nothing of its start is left."""
    source = functools.partial(SimulatorSource, gpus_per_node=per_node)
    with (
        pytest.MonkeyPatch.context() as patch,
        tempfile.TemporaryDirectory() as folder,
        receiver() as told,
    ):
        patch.setattr(bench, "SimulatorSource", source)
        data = Path(folder) / "data"
        with bench.Simulated(
            data, nodes, period_ms=period_s * 1000, flush_ms=flush_s * 1000, seed=seed
        ) as site:
            made = World(site, told, rules, evaluator_of(site, told, rules, alerts))
            try:
                made.go(warm_s, 60)
                made.fired.clear()
                yield made
            finally:
                made.evaluator.close()
