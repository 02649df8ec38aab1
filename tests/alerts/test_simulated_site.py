"""The rules on simulated sites: places that go dark, load, and what is billed."""

from collections.abc import Callable
from typing import Final

import msgspec
import pytest

from agents.faults import Fault
from agents.sampler import Sampler
from agents.simulator import SimulatorSource
from alerts.rules import RULES
from pipeline.clock import ManualClock
from tests.alerts.simulated_world import DRIVEN, INCIDENT, PER_NODE, World, world

PER_RACK: Final = 4 * PER_NODE
AHEAD_MS: Final = 90_000


@pytest.mark.slow
def test_what_goes_dark_is_told_once_as_the_largest_thing_that_is() -> None:
    """A rack within half a minute or a little more; a node, a PDU and a hall; another site."""
    with world(nodes=36) as w:
        lost_rack(w)
        w.fired.clear()
        node, pdu, hall = (w.site.source.inventory()[n] for n in (14, 24, 32))
        begun_ms = w.now_ms
        dark = [
            w.strike("node_down", PER_NODE * 14), w.strike("pdu_loss", PER_NODE * 25 + 1),
            w.strike("hall_loss", PER_NODE * 33),
        ]  # fmt: skip
        w.go(90, 30)
        assert w.names() == {"PduDark", "HallDark"}, "a reboot is no news before its time"
        w.go(120, 30)
        told = {(a.rule, *(a.labels.get(n) for n in ("hall", "pdu", "node"))) for a in w.fired}
        assert {t for t in told if t[0] != INCIDENT} == {
            ("NodeSilent", node.hall, node.pdu, node.node), ("PduDark", pdu.hall, pdu.pdu, None),
            ("HallDark", hall.hall, None, None), ("CoverageLow", None, None, None),
        }  # fmt: skip
        w.was_patient(begun_ms)
        w.clear(dark)
        w.go(240, 60)
        assert not w.active()
        w.fired.clear()
        another_site(w)


def lost_rack(w: World) -> None:
    rack = w.site.source.inventory()[4].rack
    struck_ms = w.now_ms
    fault = w.strike("rack_loss", PER_RACK + 7)
    while not w.pages() and w.now_ms < struck_ms + 90_000:
        w.go(15, ingest_s=1)
    # Struck at a whole minute; rounds are 15 s apart, seconds are complete after some 8 s.
    assert w.now_ms - struck_ms <= 45_000
    assert [p["labels"]["alertname"] for p in w.pages()] == ["RackDark"]
    page = w.pages()[0]["labels"]
    assert (page["rack"], page["scope"], page["incident"]) == (rack, "rack", f"site rack {rack}")
    assert [a.value for a in w.fired] == [PER_RACK]
    # On a site as small as this a rack is so much that CoverageLow follows after two minutes.
    w.go(45)
    assert [a.rule for a in w.fired] == ["RackDark"], "one page for one cause"
    w.clear([fault])
    w.go(180, 60)
    assert not w.active()
    assert [a.rule for a in w.resolved if a.severity == "page"] == ["RackDark"]


def another_site(w: World) -> None:
    """A site of one node, by the same pipeline, whose clock is ahead; then nothing comes of it."""
    settings = msgspec.structs.replace(
        w.site.settings, site=msgspec.structs.replace(w.site.settings.site, name="edge")
    )
    clock = ManualClock(w.now_ms + AHEAD_MS)
    # It was announced long ago: what is new need not be heard yet.
    edge = SimulatorSource(1, site="edge", random_faults=False, start_ms=w.now_ms - 600_000)
    sampler = Sampler(edge, w.site._spool, settings, clock)
    for _ in range(6):
        for second in range(30):
            clock.ms = w.now_ms + AHEAD_MS + 1000 * second
            sampler.step()
        w.go(30, 30)
    assert {(a.rule, a.labels["site"], a.labels.get("node")) for a in w.fired} == {
        ("NodeClockSkew", "edge", edge.inventory()[0].node)
    }
    w.go(150, 30)
    assert [(a.rule, a.labels["site"]) for a in w.fired] == [
        ("NodeClockSkew", "edge"), ("SiteDark", "edge"),
    ]  # fmt: skip


@pytest.mark.slow
def test_what_the_grid_feels_is_told() -> None:
    """More than a megawatt, with limits of a site of its size: it swings, drops, and comes back."""
    limits = {
        "SiteRampUp": 0.4, "SiteRampDown": 0.4, "SiteOscillation": 0.5, "TenantOscillation": 0.4,
        # As a swing begins nobody works for two fifths of the time: that is half a drop.
        "SiteLoadDrop": 50,
    }  # fmt: skip
    with world(nodes=16, seed=280, per_node=160, thresholds=limits) as w:
        assert not w.active()
        begun_ms = w.now_ms
        swing = w.strike("load_swing")
        w.go(195)
        assert w.names() == {"SiteOscillation", "TenantOscillation"}
        w.was_patient(begun_ms)
        w.clear([swing])
        w.go(390, 30)
        assert not w.active()
        w.fired.clear()
        drop = w.strike("load_drop")
        w.go(45)
        assert w.names() == {"SiteLoadDrop", "SiteRampDown"}
        w.go(75)
        w.clear([drop])
        w.go(60)
        assert w.names() == {"SiteLoadDrop", "SiteRampDown", "SiteRampUp"}
        w.go(300, 60)
        assert not w.active()


BOOKS: Final = tuple(
    rule
    for rule in RULES
    if rule.signal and rule.signal.name in ("meters", "tenant_minutes", "jobs", "ledger")
)
"""What takes hours is simulated in steps of fifteen seconds, which other rules would not bear."""


@pytest.mark.slow
def test_what_is_promised_and_billed_is_watched() -> None:
    """Three hours: jobs that idle, a gap, a lost GPU, meters that fail, a ledger that stands."""
    with world(nodes=16, seed=280, period_s=15, flush_s=15, warm_s=0, rules=BOOKS) as w:
        w.site._closed_ms = 1 << 60  # the ledger's keeper stands still
        w.go(600, 60)
        begun_ms = w.now_ms
        w.lease(6)

        def until(minutes: int, every_s: int = 240) -> None:
            w.go((begun_ms - w.now_ms) / 1000 + 60 * minutes, every_s)

        stray = w.strike("stray_work", PER_NODE * 15)
        idle = [w.strike("idle_job", PER_NODE * 9), w.strike("idle_gpu", 3)]
        until(40)
        assert labels(w) == {
            ("UnattributedWork", "(unallocated)"), ("JobIdle", "train-0004"),
            ("JobPartlyIdle", "train-0001"),
        }  # fmt: skip
        w.was_patient(begun_ms)
        w.clear(idle)
        w.site.clock.ms += 240_000  # neither agents nor pipeline
        until(50, 60)
        assert w.active() == {"TenantSlaBurnFast", "UnattributedWork"}, w.active()
        missing = w.strike("gpu_missing", PER_NODE)
        until(76)
        assert w.active() >= {"TenantSlaBurnFast", "TenantSlaBurnSlow", "TenantUnderDelivered"}
        w.clear([missing])
        meters(w, until)
        ledger(w, until, stray)
        assert w.names() == DRIVEN["books"]
        assert w.active() == set()


def meters(w: World, until: Callable[[int], None]) -> None:
    """The hall's repeats itself, then says nothing; the site's reads half of what flows."""
    stuck = w.strike("meter_stuck")
    until(96)
    assert ("MeterStuck", "h01") in labels(w)
    w.clear([stuck])
    until(104)
    silent = w.strike("meter_silent")
    until(118)
    assert ("MeterSilent", "h01") in labels(w)
    w.clear([silent])
    drift = w.strike("meter_drift")
    until(140)
    assert labels(w) >= {("GpuMeterDrift", "site"), ("GpuSumAboveMeter", "site")}
    assert not w.active() & {"MeterStuck", "MeterSilent"}
    w.clear([drift])


def ledger(w: World, until: Callable[[int], None], stray: Fault) -> None:
    """When its keeper comes back, what was missed and what was nobody's is in the books."""
    assert "LedgerNotClosed" in w.active()
    assert not w.names() & {"LedgerCoverageLow", "LedgerBridgedHigh", "UnattributedShareHigh"}
    w.site._closed_ms = 0
    w.clear([stray])
    until(164)
    assert "LedgerNotClosed" not in w.active()
    assert w.names() >= {"LedgerCoverageLow", "LedgerBridgedHigh", "UnattributedShareHigh"}
    until(226)


def labels(w: World) -> set[tuple[str, str]]:
    names = ("workload", "meter", "tenant")
    return {
        (a.rule, next((a.labels[n] for n in names if n in a.labels), ""))
        for a in w.fired if a.rule != INCIDENT
    }  # fmt: skip
