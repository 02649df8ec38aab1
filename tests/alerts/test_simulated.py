"""The rules on simulated sites: from the simulator's readings through wire, ingest and store to a page."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest

from agents.fleet import KINDS, Fault, FaultKind
from alerts.alert import Alert
from alerts.evaluator import Evaluator
from alerts.rules import RULES
from pipeline.bench.simulated import Simulated
from tests.alerts.receiver import Receiver, receiver

NODES: Final = 16
PER_NODE: Final = 8
PER_RACK: Final = 4 * PER_NODE
INTERVAL_MS: Final = 15_000
BY_NAME: Final = {rule.name: rule for rule in RULES}
SWITCH: Final = "DeadMansSwitch"


@dataclass
class World:
    """A site, its evaluator, and whoever is told."""

    site: Simulated
    evaluator: Evaluator
    told: Receiver
    fired: list[Alert] = field(default_factory=list)
    """Every alert when it began to fire, the dead man's switch left out."""
    resolved: list[Alert] = field(default_factory=list)

    @property
    def now_ms(self) -> int:
        return self.site.clock.ms

    def go(
        self, seconds: float, interval_ms: int = INTERVAL_MS, every_ms: int = INTERVAL_MS
    ) -> None:
        """Rounds at multiples of the interval."""
        until_ms = self.now_ms + round(seconds * 1000)
        while self.now_ms < until_ms:
            tick_ms = (self.now_ms // interval_ms + 1) * interval_ms
            self.site.go(tick_ms, every_ms)
            self.evaluator.round(tick_ms)
            for alert in self.evaluator.alerts.values():
                if alert.rule == SWITCH:
                    continue
                known = (alert.fingerprint, alert.fired_ms)
                if alert.state == "firing" and known not in self._keys(self.fired):
                    self.fired.append(alert)
                if alert.state == "resolved" and known not in self._keys(self.resolved):
                    self.resolved.append(alert)

    @staticmethod
    def _keys(alerts: list[Alert]) -> set[tuple[int, int]]:
        return {(a.fingerprint, a.fired_ms) for a in alerts}

    def names(self, severity: str = "") -> set[str]:
        """Rules that have fired."""
        return {a.rule for a in self.fired if severity in ("", a.severity)}

    def active(self) -> set[str]:
        """Rules that fire now."""
        return {
            a.rule
            for a in self.evaluator.alerts.values()
            if a.state == "firing" and a.rule != SWITCH
        }

    def pages(self) -> list[dict[str, Any]]:
        """What was posted to wake somebody: by labels, the newest of each."""
        return [a for a in self.told.alerts.values() if a["labels"]["severity"] == "page"]

    def strike(self, kind: FaultKind, gpu: int, code: int = 31) -> Fault:
        """From the next tick on."""
        fault = Fault(kind, gpu, code)
        self.site.source.inject(fault)
        return fault


@contextmanager
def world(nodes: int = NODES, seed: int = 1) -> Iterator[World]:
    """A site that has been running for five minutes, so that nothing of its start is left."""
    with (
        tempfile.TemporaryDirectory() as folder,
        receiver() as told,
        Simulated(Path(folder) / "data", nodes, seed=seed) as site,
    ):
        alerts = msgspec.structs.replace(site.settings.alerts, alertmanagers=(told.url,))
        settings = msgspec.structs.replace(site.settings, alerts=alerts)
        site.lease(1, kw_per_gpu=4.0)
        evaluator = Evaluator(settings, site.store.another(), RULES, site.clock)
        try:
            made = World(site, evaluator, told)
            made.go(300)
            made.fired.clear()
            yield made
        finally:
            evaluator.close()


STRUCK: Final[tuple[tuple[FaultKind, int], ...]] = (
    ("xid", 79), ("xid", 31), ("gpu_lost", 0), ("hot_gpu", 0), ("link_errors", 0), ("ecc", 0),
    ("energy_reset", 0), ("frozen", 0),
)  # fmt: skip
"""What happens to the fourth GPU of the first, second, ... node."""
EXPECTED: Final[tuple[frozenset[str], ...]] = (
    frozenset({"XidFatal"}),
    frozenset({"XidApplication"}),
    frozenset({"XidFatal", "GpuLost", "GpuMissing"}),
    frozenset({"GpuHotAgainstPeers"}),
    frozenset({"XidFatal", "GpuNvlinkErrors"}),
    frozenset({"XidHardware", "GpuUncorrectableEcc", "GpuRecoveryAction", "GpuRemapPending"}),
    frozenset(),
    frozenset({"GpuFrozen"}),
)
GPU_LABELS: Final = {"site", "hall", "row", "rack", "pdu", "node", "gpu"}


@pytest.mark.slow
def test_a_healthy_site_pages_nobody() -> None:
    """Jobs start and end, one after the other."""
    with world(nodes=8) as w:
        w.go(1200, interval_ms=60_000)
        jobs = w.site.store.query("SELECT uniqExact(workload) FROM allocations").rows[0][0]
        assert jobs > 1
        assert w.pages() == []
        assert w.names("page") == set()
        assert w.names("ticket") == set(), [a.labels for a in w.fired]
        assert not w.evaluator.totals.errors


@pytest.mark.slow
def test_each_fault_of_a_gpu_is_told_by_its_rules() -> None:
    """All at once, each on a node of its own; nobody is woken for one GPU."""
    assert {kind for kind, _ in STRUCK} | {"rack_loss", "node_down"} == set(KINDS)
    with world() as w:
        nodes = w.site.source.inventory()
        begun_ms = w.now_ms
        faults = [w.strike(kind, PER_NODE * n + 3, code) for n, (kind, code) in enumerate(STRUCK)]
        w.go(720)
        for n, expected in enumerate(EXPECTED):
            here = {a.rule for a in w.fired if a.labels.get("gpu") == nodes[n].gpus[3].uuid}
            assert here == expected - {"XidApplication"}, (STRUCK[n], here)
        others = [a for a in w.fired if not set(a.labels) >= GPU_LABELS]
        assert {a.rule for a in others} == {"XidApplication"}, [a.rule for a in others]
        # Of the job that ran then, also when the next one has begun.
        assert [a.labels["xid"] for a in others] == ["31"]
        assert others[0].labels["workload"]
        for alert in w.fired:
            rule = BY_NAME[alert.rule]
            assert alert.fired_ms - begun_ms >= rule.for_s * 1000, alert.rule
            assert alert.fired_ms - alert.active_ms >= rule.for_s * 1000, alert.rule
        assert w.pages() == []
        for fault in faults:
            w.site.source.clear(fault)
        w.go(2700, interval_ms=180_000)
        assert w.active() == set()


@pytest.mark.slow
def test_a_lost_rack_is_one_page_within_half_a_minute_or_a_little_more() -> None:
    with world() as w:
        rack = w.site.source.inventory()[4].rack
        struck_ms = w.now_ms
        fault = w.strike("rack_loss", PER_RACK + 7)
        while not w.pages() and w.now_ms < struck_ms + 90_000:
            w.go(15, every_ms=1000)
        # Struck at a whole minute; rounds are 15 s apart, seconds are complete after some 8 s.
        assert w.now_ms - struck_ms <= 45_000
        assert [p["labels"]["alertname"] for p in w.pages()] == ["RackDark"]
        page = w.pages()[0]["labels"]
        assert (page["rack"], page["scope"], page["incident"]) == (
            rack,
            "rack",
            f"site rack {rack}",
        )
        told = [a for a in w.fired if a.rule == "RackDark"]
        assert [a.value for a in told] == [PER_RACK]
        # On a site as small as this a rack is so much that CoverageLow follows after two minutes.
        w.go(45)
        assert w.names("page") == {"RackDark"}
        assert not w.names() & {"NodeSilent", "GpuMissing", "Incident"}, "one page for one cause"
        w.site.source.clear(fault)
        w.go(180)
        assert not w.active()
        assert [a.rule for a in w.resolved if a.severity == "page"] == ["RackDark"]


@pytest.mark.slow
def test_a_node_that_is_down_is_a_ticket() -> None:
    # Of fewer nodes one would be more than CoverageLow lets pass.
    with world(nodes=24) as w:
        node = w.site.source.inventory()[9].node
        fault = w.strike("node_down", PER_NODE * 9)
        w.go(90)
        assert "NodeSilent" not in w.names(), "a reboot is no news before its time"
        w.go(120)
        assert [(a.rule, a.labels.get("node")) for a in w.fired] == [("NodeSilent", node)]
        assert w.pages() == []
        w.site.source.clear(fault)
        w.go(180)
        assert not w.active()
