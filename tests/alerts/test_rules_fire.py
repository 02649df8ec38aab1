"""Every rule with SQL: what breaks it is found with its labels, what is well is not."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import pytest

from alerts.rule import by_signal
from alerts.rules import RULES
from tests.alerts.world import (
    BETA,
    BY_NAME,
    GPU,
    JOB,
    NODE,
    RACK,
    SITE,
    WHO,
    WITH_SQL,
    World,
    ago,
    named,
    site_of,
)


@dataclass(frozen=True)
class Case:
    """What breaks a rule, with the labels and value that must come back, and what does not."""

    broken: Callable[[World], object]
    labels: dict[str, str]
    value: float
    healthy: Callable[[World], object]
    also: int = 1


def does(*steps: Callable[[World], object]) -> Callable[[World], None]:
    def run(world: World) -> None:
        for step in steps:
            step(world)

    return run


FOUR: Final = ("h1-r1-n1", "h1-r1-n2", "h1-r2-n1", "h1-r3-n1", "h2-r1-n1")
STEADY: Final = "1000000 + 1000 * (s % 3)"

CASES: Final[dict[str, Case]] = {
    "SitePowerOverCap": Case(
        does(named, lambda w: w.seconds("600000"), lambda w: w.seconds("500000", tenant=BETA)),
        {"site": SITE}, 110, does(named, lambda w: w.seconds("990000")),
    ),
    "SitePowerForecast": Case(
        does(named, lambda w: w.seconds("950000 + 200 * s")), {"site": SITE}, 107,
        does(named, lambda w: w.seconds("950000 + 20 * s")),
    ),
    "SiteRampUp": Case(
        does(named, lambda w: w.seconds("100e6 + if(s >= -10, 30e6, 0)", "100000")),
        {"site": SITE}, 30, does(named, lambda w: w.seconds("100e6 + if(s >= -10, 10e6, 0)")),
    ),
    "SiteRampDown": Case(
        does(named, lambda w: w.seconds("100e6 - if(s >= -10, 30e6, 0)", "100000")),
        {"site": SITE}, 30,
        # A partition lags: a third of every tenant's GPUs is not there yet.
        does(named, lambda w: w.seconds("if(s >= -10, 66e6, 100e6)", "if(s >= -10, 66, 100)"),
             lambda w: w.seconds("if(s >= -10, 66e6, 100e6)", "if(s >= -10, 66, 100)", tenant=BETA)),
    ),
    "SiteLoadDrop": Case(
        # One tenant's GPUs changed hands, the others' fell: the whole site is compared.
        does(named, lambda w: w.seconds("if(s >= -10, 1e6, 5e6)", "if(s >= -10, 50, 100)"),
             lambda w: w.seconds("if(s >= -10, 2e6, 1e6)", "if(s >= -10, 150, 100)", tenant=BETA)),
        {"site": SITE}, 50,
        does(named, lambda w: w.seconds("if(s >= -10, 4e6, 8e6)", "if(s >= -10, 50, 100)")),
    ),
    "SiteOscillation": Case(
        does(named, lambda w: w.seconds("100e6 + 10e6 * sin(2 * pi() * s / 8)", "100000")),
        {"site": SITE}, 20, does(named, lambda w: w.seconds("100e6 + 0.4e6 * s", "100000")),
    ),
    "TenantOscillation": Case(
        does(named, lambda w: w.seconds("50e6 + 5e6 * sin(2 * pi() * s / 5)"),
             lambda w: w.seconds("50e6 - 5e6 * sin(2 * pi() * s / 5)", tenant=BETA)),
        WHO, 10, does(named, lambda w: w.seconds("if(s % 4 = 0, 40e6, 50e6)", "if(s % 4 = 0, 80, 100)")),
        also=2,
    ),
    "HallPowerOverCap": Case(
        does(site_of("h1-r1-n1"), lambda w: w.live("h1-r1-n1", 2, power_w={0: 9000, 1: 99_000})),
        {"site": SITE, "hall": "h1"}, 108, site_of("h1-r1-n1"),
    ),
    "PduPowerOverCap": Case(
        does(site_of("h1-r1-n1", "h1-r2-n1"), lambda w: w.live("h1-r2-n1", 2, power_w={0: 24_200})),
        {"site": SITE, "hall": "h1", "pdu": "h1-p1"}, 130, site_of("h1-r1-n1"),
    ),
    "RackPowerOverCap": Case(
        does(site_of("h1-r1-n1"), lambda w: w.live("h1-r1-n1", 2, power_w={0: 11_400})),
        RACK, 120, does(site_of("h1-r2-n1"), lambda w: w.live("h1-r2-n1", 2, power_w={0: 11_400})),
    ),
    "FeedRedundancyLost": Case(
        does(site_of("h1-r1-n1", "h1-r3-n1"),
             lambda w: w.live("h1-r1-n1", 2, power_w={0: 12_000, 1: 0}),
             lambda w: w.live("h1-r3-n1", 2, power_w={0: 12_000, 1: 0})),
        {"site": SITE, "hall": "h1"}, 120,
        does(site_of("h1-r1-n1", "h1-r3-n1"), lambda w: w.live("h1-r1-n1", 2, power_w={0: 12_000})),
    ),
    "SiteDark": Case(site_of(*FOUR, dark=FOUR), {"site": SITE}, 10, site_of(*FOUR, dark=FOUR[1:])),
    "HallDark": Case(
        site_of(*FOUR, dark=FOUR[:4]), {"site": SITE, "hall": "h1"}, 8, site_of(*FOUR, dark=FOUR[1:4]),
    ),
    "PduDark": Case(
        site_of(*FOUR, dark=FOUR[:3]), {"site": SITE, "hall": "h1", "pdu": "h1-p1"}, 6,
        site_of(*FOUR, dark=FOUR[:2]),
    ),
    "RackDark": Case(site_of(*FOUR, dark=FOUR[:2]), RACK, 4, site_of(*FOUR, dark=FOUR[:1])),
    "NodeSilent": Case(
        site_of(*FOUR, dark=FOUR[:1]), NODE, 2,
        # Many nodes all over the site: they did not fail, samples are late.
        site_of(*(f"h1-r{r}-n{n}" for r in range(1, 22) for n in (1, 2)),
                dark=tuple(f"h1-r{r}-n1" for r in range(1, 22))),
    ),
    "GpuMissing": Case(
        does(lambda w: w.gpus(count=2), lambda w: w.live(count=2, late_s={0: 61})), GPU, 1,
        does(lambda w: w.gpus(count=2), lambda w: w.live(count=2, late_s={0: 11})),
    ),
    "CoverageLow": Case(
        does(lambda w: w.gpus(count=8), lambda w: w.live(count=7)), {"site": SITE}, 87.5,
        # Announced a minute ago: not expected yet.
        does(lambda w: w.gpus(count=8), lambda w: w.live(count=8), lambda w: w.gpus("h1-r1-n2", 4, 60)),
    ),
    "RackPowerBrake": Case(
        does(lambda w: w.gpus(count=2), lambda w: w.live(count=2, throttle_reasons={0: 0x88, 1: 0x80})),
        RACK, 100,
        does(lambda w: w.gpus(count=2), lambda w: w.live(count=2, throttle_reasons={0: 0x80, 1: 0x4})),
    ),
    "NodeClockSkew": Case(
        does(lambda w: w.gpus(count=2), lambda w: w.live(count=2, flags={0: 8, 1: 9})), NODE, 2,
        does(lambda w: w.gpus(count=2), lambda w: w.live(count=2, flags={0: 1, 1: 4})),
    ),
    "MeterOverCap": Case(
        does(named, lambda w: w.meter("if(s >= -60, 21000, 19000) + s % 7", "pdu", "h1-p1")),
        {"site": SITE, "pdu": "h1-p1", "meter": "h1-p1"}, 105,
        does(named, lambda w: w.meter("19000 + s % 7", "pdu", "h1-p1")),
    ),
    "MeterSilent": Case(
        does(named, lambda w: w.meter("if(s < -600, 19000 + s % 7, -2e9)", "rack", "h1-r1")),
        {"site": SITE, "rack": "h1-r1", "meter": "h1-r1"}, 605,
        does(named, lambda w: w.meter("19000 + s % 7", "rack", "h1-r1")),
    ),
    "MeterStuck": Case(
        does(named, lambda w: w.meter("19000", "hall", "h1")),
        {"site": SITE, "hall": "h1", "meter": "h1"}, 120,
        does(named, lambda w: w.meter("19000 + s % 7", "hall", "h1")),
    ),
    "GpuSumAboveMeter": Case(
        does(named, lambda w: w.meter("50000 + s % 7"), lambda w: w.minutes("100")),
        {"site": SITE, "meter": SITE}, 120,
        does(named, lambda w: w.meter("80000 + s % 7"), lambda w: w.minutes("100")),
    ),
    "GpuMeterDrift": Case(
        does(named, lambda w: w.meter("if(s >= -600, 100000, 80000) + s % 7"), lambda w: w.minutes("100")),
        {"site": SITE, "meter": SITE}, 25,
        # Load fell, and the meter with it, by less: pumps and fans run on.
        does(named, lambda w: w.meter("if(s >= -600, 50000, 80000) + s % 7"),
             lambda w: w.minutes("100", "if(m >= -10, 200, 600)")),
    ),
    "TenantOverContract": Case(
        does(named, lambda w: w.contract(kw=50), lambda w: w.minutes("100")), WHO, 120,
        does(named, lambda w: w.contract(kw=61), lambda w: w.minutes("100")),
    ),
    "TenantUnderDelivered": Case(
        does(named, lambda w: w.contract(gpus=125), lambda w: w.minutes("100")), WHO, 80,
        does(named, lambda w: w.contract(gpus=100), lambda w: w.minutes("100")),
    ),
    "TenantSlaBurnFast": Case(
        does(named, lambda w: w.contract(), lambda w: w.minutes("if(m >= -60, 80, 100)")), WHO, 20,
        # Over for five minutes: nobody needs to be woken.
        does(named, lambda w: w.contract(), lambda w: w.minutes("if(m BETWEEN -60 AND -6, 50, 100)")),
    ),
    "TenantSlaBurnSlow": Case(
        does(named, lambda w: w.contract(), lambda w: w.minutes("92")), WHO, 8,
        # A contract of an hour ago is not measured by the hours before.
        does(named, lambda w: w.contract(age_s=3600), lambda w: w.minutes("if(m < -60, 0, 100)")),
    ),
    "UnattributedWork": Case(
        does(named, lambda w: w.minutes("100", active="0.5", tenant=0)),
        {"site": SITE, "tenant": "(unallocated)"}, 50,
        does(named, lambda w: w.minutes("100", active="0.1", tenant=0), lambda w: w.minutes("100")),
    ),
    "JobIdle": Case(
        does(lambda w: w.gpus(count=4), lambda w: w.job(),
             lambda w: w.live(count=4, util_gpu_pct=dict.fromkeys(range(4), 0))),
        JOB, 100, does(lambda w: w.gpus(count=4), lambda w: w.job(), lambda w: w.live(count=4)),
    ),
    "JobPartlyIdle": Case(
        does(lambda w: w.gpus(count=4), lambda w: w.job(), lambda w: w.live(count=4, util_gpu_pct={0: 0})),
        JOB, 25,
        does(lambda w: w.gpus(count=4), lambda w: w.job(),
             lambda w: w.live(count=4, util_gpu_pct={0: 0}, late_s={0: 90})),
    ),
    "GpuHotAgainstPeers": Case(
        does(lambda w: w.gpus(), lambda w: w.job(), lambda w: w.live(temp_gpu_c={0: 80})),
        GPU | JOB, 20,
        # It works twice as hard as the others: no wonder.
        does(lambda w: w.gpus(), lambda w: w.live(
            temp_gpu_c={0: 80}, power_w={i: 250 if i else 600 for i in range(8)})),
    ),
    "GpuStraggler": Case(
        does(lambda w: w.gpus(), lambda w: w.job(), lambda w: w.live(power_w={0: 300})), GPU | JOB, 50,
        does(lambda w: w.gpus(), lambda w: w.live(power_w={0: 70}, util_gpu_pct={0: 0})),
    ),
    "GpuPowerUnreadable": Case(
        does(lambda w: w.gpus(), lambda w: w.job(), lambda w: w.live(flags={0: 4})), GPU | JOB, 1,
        does(lambda w: w.gpus(), lambda w: w.live(flags={0: 9})),
    ),
    "GpuThermalSlowdown": Case(
        does(lambda w: w.gpus(), lambda w: w.gpu_minutes(throttle_hw_thermal_ms="30000")), GPU, 50,
        does(lambda w: w.gpus(), lambda w: w.gpu_minutes(throttle_hw_thermal_ms="3000")),
    ),
    "GpuPowerBrake": Case(
        does(lambda w: w.gpus(), lambda w: w.gpu_minutes(throttle_power_brake_ms="60000")), GPU, 100,
        does(lambda w: w.gpus(), lambda w: w.gpu_minutes(throttle_hw_thermal_ms="60000")),
    ),
    "GpuFrozen": Case(
        does(lambda w: w.gpus(), lambda w: w.gpu_minutes(stuck=True)), GPU, 5,
        # Repeated at the edge from a slow exporter: that is no live reading that froze.
        does(lambda w: w.gpus(), lambda w: w.gpu_minutes(stuck=True, held_ms="56000")),
    ),
    "GpuEnergyMismatch": Case(
        does(lambda w: w.gpus(), lambda w: w.gpu_minutes(energy_j="27000")), GPU, 25,
        does(lambda w: w.gpus(), lambda w: w.gpu_minutes(energy_j="if(m % 2, 31000, 41000)")),
    ),
    "GpuUncorrectableEcc": Case(
        does(lambda w: w.gpus(), lambda w: w.health(ecc_uncorrected_volatile=(1, 4))), GPU, 3,
        does(lambda w: w.gpus(), lambda w: w.health(ecc_uncorrected_volatile=(4, 4)),
             lambda w: w.health(1, reload=True, ecc_uncorrected_volatile=(0, 4))),
    ),
    "GpuRowRemapFailed": Case(
        does(lambda w: w.gpus(), lambda w: w.health(remap_failure=1)), GPU, 1,
        does(lambda w: w.gpus(), lambda w: w.health(remap_failure=(1, 0))),
    ),
    "GpuRemapPending": Case(
        does(lambda w: w.gpus(), lambda w: w.health(retired_pages_pending=1)), GPU, 1,
        does(lambda w: w.gpus(), lambda w: w.health(remap_pending=(1, 0))),
    ),
    "GpuRecoveryAction": Case(
        does(lambda w: w.gpus(), lambda w: w.health(recovery_action=(0, 2))), GPU, 2,
        does(lambda w: w.gpus(), lambda w: w.health(recovery_action=(2, 0))),
    ),
    "GpuNvlinkErrors": Case(
        does(lambda w: w.gpus(), lambda w: w.health(nvlink_replay_errors=(5, 305), nvlink_recovery_errors=(1, 61))),
        GPU, 360, does(lambda w: w.gpus(), lambda w: w.health(nvlink_replay_errors=(1000, 1010))),
    ),
    "GpuPcieReplays": Case(
        does(lambda w: w.gpus(), lambda w: w.health(pcie_replays=(0, 9))), GPU, 9,
        does(lambda w: w.gpus(), lambda w: w.health(pcie_replays=(100, 107))),
    ),
    "XidFatal": Case(
        does(lambda w: w.gpus(), lambda w: w.event("xid", 79), lambda w: w.event("xid", 79, late_s=90)),
        GPU | {"xid": "79"}, 2,
        does(lambda w: w.gpus(), lambda w: w.event("xid", 13), lambda w: w.event("xid", 79, late_s=700)),
    ),
    "XidHardware": Case(
        does(lambda w: w.gpus(), lambda w: w.event("xid", 94)), GPU | {"xid": "94"}, 1,
        does(lambda w: w.gpus(), lambda w: w.event("xid", 31)),
    ),
    "XidDriver": Case(
        # A code that nobody knows yet.
        does(lambda w: w.gpus(), *(lambda w, s=s: w.event("xid", 9999, late_s=s) for s in (10, 20, 30))),
        GPU | {"xid": "9999"}, 3,
        does(lambda w: w.gpus(), lambda w: w.event("xid", 9999), lambda w: w.event("xid", 43)),
    ),
    "XidApplication": Case(
        # Sixteen GPUs of one job: one alert, of the job.
        does(lambda w: w.gpus(), lambda w: w.job(), lambda w: w.live(),
             *(lambda w, i=i: w.event("xid", 31, i) for i in range(8))),
        JOB | {"xid": "31"}, 8, does(lambda w: w.gpus(), lambda w: w.event("xid", 79)),
    ),
    "XidBurst": Case(
        does(lambda w: w.gpus(), *(lambda w, i=i: w.event("xid", 74, i) for i in range(5))), RACK, 5,
        does(lambda w: w.gpus(), *(lambda w, s=s: w.event("xid", 74, late_s=s) for s in range(9))),
    ),
    "GpuLost": Case(
        does(lambda w: w.gpus(), lambda w: w.event("gpu_lost")), GPU, 1,
        does(lambda w: w.gpus(), lambda w: w.event("driver_reloaded")),
    ),
    "AgentDropping": Case(
        does(lambda w: w.gpus(), lambda w: w.event("spool_overflow", i=-1, count=40),
             lambda w: w.event("spool_corrupt", i=-1, count=2, late_s=9)),
        NODE, 42, does(lambda w: w.gpus(), lambda w: w.event("clock_back", i=-1, count=9)),
    ),
    "DeadMansSwitch": Case(
        lambda w: w.insert(), {}, 1, lambda w: w.insert(behind_s=61),
    ),
    "SamplesStopped": Case(
        does(lambda w: w.insert(late_s=70), lambda w: w.insert(topic="meters", rows=5),
             lambda w: w.insert(rows=0)),
        {}, 70, lambda w: w.insert(late_s=10),
    ),
    "WatermarkBehind": Case(
        lambda w: w.insert(watermark=ago(90)), {}, 90, lambda w: w.insert(watermark=ago(50)),
    ),
    "SamplesStale": Case(
        lambda w: w.insert(until_ts=ago(45)), {}, 45, lambda w: w.insert(until_ts=ago(20)),
    ),
    "RejectedShareHigh": Case(
        does(lambda w: w.insert(messages=50, rejected=10), lambda w: w.insert(messages=50)), {}, 10,
        does(lambda w: w.insert(messages=96, rejected=4), lambda w: w.insert(late_s=400, rejected=10)),
    ),
    "DeadLetters": Case(
        does(*(lambda w, n=n: w.put("dead_letters", {
            "topic": "samples", "offset": n, "at": ago(30), "version": 1}) for n in (1, 1, 2))),
        {"topic": "samples"}, 2,
        lambda w: w.put("dead_letters", {"topic": "samples", "offset": 1, "at": ago(700)}),
    ),
    "LedgerNotClosed": Case(
        does(named, lambda w: w.quarter(3 * 3600, ""), lambda w: w.quarter(4 * 3600, "refused"),
             lambda w: w.quarter(5 * 3600)),
        {"site": SITE}, 2, does(named, lambda w: w.quarter(3600, ""), lambda w: w.quarter(5 * 3600)),
    ),
    "LedgerRefused": Case(
        does(named, lambda w: w.quarter(7200), lambda w: w.quarter(7200, "refused", version=2)),
        {"site": SITE}, 1,
        does(named, lambda w: w.quarter(7200, "failed"), lambda w: w.quarter(7200, version=2)),
    ),
    "LedgerConservationBroken": Case(
        does(named, lambda w: w.quarter(7200, held=3599), lambda w: w.quarter(8100)), {"site": SITE}, 1,
        does(named, lambda w: w.quarter(7200, held=1, version=1), lambda w: w.quarter(7200, version=2)),
    ),
    "LedgerCoverageLow": Case(
        does(named, lambda w: w.quarter(7200, measured=810_000)), {"site": SITE}, 90,
        does(named, lambda w: w.quarter(7200, measured=890_000), lambda w: w.quarter(9 * 3600, measured=1)),
    ),
    "LedgerBridgedHigh": Case(
        does(named, lambda w: w.quarter(7200, bridged=400)), {"site": SITE}, 10,
        does(named, lambda w: w.quarter(7200, bridged=40)),
    ),
    "UnattributedShareHigh": Case(
        does(named, lambda w: w.quarter(7200, nobody=80_000)), {"site": SITE}, 10,
        does(named, lambda w: w.quarter(7200, nobody=8_000)),
    ),
}  # fmt: skip
UNDER_OUR_FEET: Final = ("StoreDiskFilling", "StoreDiskFull", "TooManyParts")
"""They look at the disks and parts of the store itself, which no test can fill."""
FROM_NOTHING: Final = ("SamplesStopped", "WatermarkBehind", "SamplesStale", *UNDER_OUR_FEET)


def test_every_rule_with_sql_has_a_case() -> None:
    assert sorted({*CASES, *UNDER_OUR_FEET}) == sorted(WITH_SQL)


@pytest.mark.parametrize("name", CASES)
def test_what_breaks_a_rule_comes_back_with_its_labels(world, name) -> None:
    case = CASES[name]
    case.broken(world)
    found = world.ask(BY_NAME[name])
    assert [labels for labels, _ in found].count(case.labels) == 1, found
    assert len(found) == case.also, found
    value = next(v for labels, v in found if labels == case.labels)
    assert value == pytest.approx(case.value, rel=0.05)


@pytest.mark.parametrize("name", CASES)
def test_what_is_well_does_not(world, name) -> None:
    CASES[name].healthy(world)
    assert world.ask(BY_NAME[name]) == []


def test_from_nothing_comes_nothing(world) -> None:
    firsts = [rules[0] for rules in by_signal(RULES).values()]
    for rule in firsts:
        assert rule.signal is not None
        found = {name for name, rows in world.all(rule.signal).items() if rows}
        assert found <= set(FROM_NOTHING), rule.signal


def test_no_samples_at_all_is_an_alarm(world) -> None:
    assert world.ask(BY_NAME["SamplesStopped"]) == [({}, 999)]
