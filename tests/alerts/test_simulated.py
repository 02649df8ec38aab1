"""The rules on simulated sites: from the simulator's readings through wire, ingest and store to a page.

Here are GPUs, caps and the pipeline itself; places, load and books are in test_simulated_site.py.
"""

from typing import Final

import pytest

from agents.faults import FaultKind
from pipeline.spool import Outgoing
from tests.alerts.simulated_world import (
    BY_NAME,
    BY_ROWS_ALONE,
    DRIVEN,
    INCIDENT,
    PER_NODE,
    SWITCH,
    World,
    world,
)
from tests.alerts.world import WITH_SQL

SEED: Final = 280
"""Of sixteen nodes six train for hours (one job), two serve, the last is nobody's."""
STRUCK: Final[tuple[tuple[FaultKind, int, int, frozenset[str]], ...]] = (
    ("straggler", 0, 1, frozenset({"GpuStraggler"})),
    ("energy_drift", 0, 5, frozenset({"GpuEnergyMismatch"})),
    # What heat slows is a straggler, too.
    ("thermal_slowdown", 1, 1, frozenset({"GpuThermalSlowdown", "GpuStraggler"})),
    ("pcie_replays", 1, 5, frozenset({"GpuPcieReplays"})),
    ("absurd_power", 2, 1, frozenset({"GpuPowerUnreadable"})),
    ("link_errors", 2, 5, frozenset({"GpuNvlinkErrors", "XidFatal"})),
    ("frozen", 3, 1, frozenset({"GpuFrozen"})),
    ("ecc", 3, 5, frozenset({
        "GpuRecoveryAction", "GpuRemapPending", "GpuUncorrectableEcc", "XidHardware",
    })),
    ("hot_gpu", 4, 1, frozenset({"GpuHotAgainstPeers"})),
    ("remap_failure", 4, 5, frozenset({"GpuRowRemapFailed", "XidFatal"})),
    ("recovery_action", 5, 1, frozenset({"GpuRecoveryAction"})),
    ("gpu_lost", 6, 1, frozenset({"GpuLost", "GpuMissing", "XidFatal"})),
    ("gpu_missing", 7, 1, frozenset({"GpuMissing"})),
    ("energy_reset", 14, 1, frozenset()),
)  # fmt: skip
"""What strikes which GPU of which node, and the rules that name that GPU."""
BRAKED: Final = range(8, 12)
"""The nodes of the third rack."""
LEFT_BEHIND: Final = {"LedgerBridgedHigh", "LedgerCoverageLow"}
"""What fires once a quarter of an hour with minutes of no pipeline is closed."""
BURST: Final = ((0, 7), (1, 7), (2, 7), (3, 7))
"""Node and GPU of the first rack whose driver reports XID 79."""


def gpu(w: World, node: int, index: int) -> str:
    return w.site.source.inventory()[node].gpus[index].uuid


def test_every_rule_with_sql_is_driven_by_a_site_or_cannot_be() -> None:
    driven = [name for names in DRIVEN.values() for name in names]
    assert sorted([*driven, *BY_ROWS_ALONE]) == sorted(WITH_SQL)


@pytest.mark.slow
def test_a_healthy_site_pages_nobody_until_its_pipeline_fails() -> None:
    """Jobs start and end, one after the other; then messages are poisoned, then nothing comes."""
    with world(nodes=8) as w:
        w.lease(1)
        w.go(900, 60)
        jobs = w.site.store.query("SELECT uniqExact(workload) FROM allocations").rows[0][0]
        assert jobs > 1
        assert w.pages() == []
        assert w.names() - w.names("info") == set(), [a.labels for a in w.fired]
        assert not w.evaluator.totals.errors
        w.fired.clear()
        poisoned(w)
        w.go(60)
        assert w.names() == {"DeadLetters"}
        w.go(75)
        assert w.names() == {"DeadLetters", "RejectedShareHigh"}
        stopped(w)
        disks(w)
        assert w.names() - LEFT_BEHIND | {SWITCH} == DRIVEN["pipeline"]


def poisoned(w: World) -> None:
    """A producer of another version: a tenth of five minutes' messages."""
    w.site._spool.append([
        Outgoing("samples", f"other-{n}", w.now_ms, b"no message of ours") for n in range(150)
    ])  # fmt: skip


def stopped(w: World) -> None:
    """Nothing is sampled and nothing is ingested: the switch goes, samples are missed."""

    def switch() -> str:
        return next(a.state for a in w.evaluator.alerts.values() if a.rule == SWITCH)

    before = w.names()
    assert switch() == "firing"
    w.stand_still(60)
    assert w.names() == before
    w.stand_still(60)
    assert switch() == "resolved"
    assert w.names() - before == {"SamplesStopped"}
    w.stand_still(105)
    assert w.names() - before == {"SamplesStopped", "SamplesStale", "WatermarkBehind"}
    # The watermark of before is judged meanwhile: nobody is told that the whole site is dark.
    w.go(180, 60)
    assert switch() == "firing"
    assert not w.active() & {"SamplesStopped", "SamplesStale", "WatermarkBehind"}
    w.go(1020, 180, ingest_s=60)
    # Poison is forgotten after twenty minutes; what was not measured is in the ledger by then.
    assert w.active() <= LEFT_BEHIND


def disks(w: World) -> None:
    """No test fills a disk: as if there were more to keep free than there is, and fewer parts."""
    full = {"StoreDiskFilling": 101, "StoreDiskFull": 101, "TooManyParts": 0}
    w.rules = tuple(BY_NAME[name] for name in full)
    w.restart(thresholds=full)
    w.stand_still(45)
    assert not w.active()
    w.stand_still(75)
    assert w.active() == {"StoreDiskFull"}
    w.stand_still(540)
    assert w.active() == full.keys()
    w.restart(thresholds={"StoreDiskFilling": 0, "StoreDiskFull": 0, "TooManyParts": 1e9})
    w.stand_still(60)
    assert not w.active()


@pytest.mark.slow
def test_each_fault_of_a_gpu_is_told_by_its_rules() -> None:
    """All at once, each on a GPU of its own; then, while they are forgotten, caps are crossed."""
    with world(nodes=16, seed=SEED) as w:
        w.lease(6, kw_per_gpu=1)
        begun_ms = w.now_ms
        struck = [w.strike(kind, PER_NODE * node + i) for kind, node, i, _ in STRUCK]
        struck += [w.strike("power_brake", PER_NODE * BRAKED[0])]
        for node, i in BURST:
            w.strike("xid", PER_NODE * node + i, 79)
        w.strike("xid", PER_NODE * 13 + 2, 31)
        w.strike("spool_overflow", PER_NODE * 15)
        for second in (1, 2, 3):
            w.strike("xid", PER_NODE * 5 + 5, 38, after_s=second)
        w.go(960, 60)
        told_of_gpus(w)
        told_of_others(w)
        assert w.names() == DRIVEN["gpus"]
        w.was_patient(begun_ms)
        assert w.names("page") == {"XidBurst", "RackPowerBrake"}
        assert {p["labels"]["alertname"] for p in w.pages()} <= {*w.names("page"), INCIDENT}
        w.clear(struck)
        w.fired.clear()
        w.go(180, 60)
        caps(w)
        w.go((begun_ms - w.now_ms) / 1000 + 2640, 180, ingest_s=60)
        assert w.active() == set()


def told_of_gpus(w: World) -> None:
    expected = {gpu(w, node, i): set(rules) for _, node, i, rules in STRUCK}
    expected |= {gpu(w, node, i): {"XidFatal"} for node, i in BURST}
    expected |= {gpu(w, n, i): {"GpuPowerBrake"} for n in BRAKED for i in range(PER_NODE)}
    expected[gpu(w, 5, 5)] = {"XidDriver"}
    found: dict[str, set[str]] = {uuid: set() for uuid in expected}
    for alert in w.fired:
        if uuid := alert.labels.get("gpu"):
            found.setdefault(uuid, set()).add(alert.rule)
    assert found == expected


def told_of_others(w: World) -> None:
    nodes = w.site.source.inventory()
    others = [a for a in w.fired if "gpu" not in a.labels and a.rule != INCIDENT]
    where = sorted((a.rule, a.labels.get("node") or a.labels.get("rack") or "") for a in others)
    assert where == [
        ("AgentDropping", nodes[15].node), ("RackPowerBrake", nodes[BRAKED[0]].rack),
        ("XidApplication", ""), ("XidBurst", nodes[0].rack),
    ]  # fmt: skip
    # Of the job that ran then.
    application = next(a for a in others if a.rule == "XidApplication")
    assert application.labels["workload"]
    assert application.labels["xid"] == "31"


def caps(w: World) -> None:
    """Caps that a full site crosses, a contract that grants little, and a load that climbs."""
    climb = w.strike("load_climb")
    w.go(60)
    w.restart(thresholds={"TenantOverContract": 20}, cap_kw={
        "site": 52, "hall h01": 40, "pdu h01-pdu01": 10, "pdu h01-pdu02": 18, "rack h01-r01": 8,
    })  # fmt: skip
    begun_ms = w.now_ms
    w.go(660, 30)
    assert w.names() == DRIVEN["caps"], sorted(w.names() ^ DRIVEN["caps"])
    w.was_patient(begun_ms - 60_000)
    first = {rule: min(a.fired_ms for a in w.fired if a.rule == rule) for rule in w.names()}
    assert first["SitePowerForecast"] < first["SitePowerOverCap"], "a forecast comes before"
    assert {a.labels["meter"] for a in w.fired if a.rule == "MeterOverCap"} == {"site", "h01"}
    w.clear([climb])
    w.strike("load_drop")
    w.go(480, 60)
    # An idle hall still needs more than that for fans and pumps, and a contract has five minutes.
    assert w.active() & DRIVEN["caps"] <= {"MeterOverCap", "TenantOverContract"}
    w.restart()
