"""Faults as they are written on the command line, when they happen, and what each of them does."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields

import numpy as np
import pytest

from agents import fleet, physics
from agents.faults import KINDS, Fault, FaultKind, Kind
from agents.simulator import SimulatorSource
from agents.sources import Wanted, open_source
from pipeline.catalog import FAST_BY_NAME, SLOW_BY_NAME
from pipeline.errors import Refuse
from pipeline.records import Event, MeterReading
from pipeline.settings import Settings
from pipeline.wire import LAYOUT

START_MS = 1_763_640_000_000
FAST_AT = {column.name: at for at, column in enumerate(LAYOUT.fast)}
SLOW_AT = {column.name: at for at, column in enumerate(LAYOUT.slow)}
NODES = 40
SEED = 371
"""Its second job trains on nodes 2 to 13 for hours; the last node stays with nobody."""
BUSY, TRAINS, NOBODY = 8 * 2, slice(8 * 2, 8 * 14), slice(8 * 39, 8 * 40)
TICKS = 30


@dataclass(frozen=True)
class Seen:
    """So many ticks of a site: metrics as ticks x GPUs, in stored integers; and what was told."""

    metrics: dict[str, np.ndarray]
    events: list[Event]
    meters: dict[str, list[float]]

    def __getitem__(self, name: str) -> np.ndarray:
        return self.metrics[name]


def seen(*faults: Fault, ticks: int = TICKS, nodes: int = NODES) -> Seen:
    """What a site shows after faults have struck at its fifth second."""
    source = SimulatorSource(nodes, seed=SEED, random_faults=False, start_ms=START_MS)
    for second in range(1, 6):
        source.read(START_MS + 1000 * second)
    source.records()
    for fault in faults:
        source.inject(fault)
    readings = [source.read(START_MS + 1000 * second) for second in range(6, 6 + ticks)]
    told = source.records()
    meters: dict[str, list[float]] = {}
    for record in told:
        if isinstance(record, MeterReading):
            meters.setdefault(record.meter, []).append(record.watts)
    return Seen(
        {
            name: np.array([np.asarray(columns[at]) for columns in rows]).astype(np.int64)
            for rows, places in (
                ([r.fast for r in readings], FAST_AT),
                ([r.slow for r in readings], SLOW_AT),
            )
            for name, at in places.items()
        },
        [record for record in told if isinstance(record, Event)],
        meters,
    )


@pytest.fixture(scope="module")
def well() -> Seen:
    """The same site without a fault."""
    return seen()


def test_a_planned_fault_waits_for_its_time() -> None:
    """As on the command line: after so many seconds, for so many more."""
    source = SimulatorSource(4, random_faults=False, start_ms=START_MS)
    source.inject(Fault.parse("gpu_lost:1@5+4"))
    readings = (source.read(START_MS + 1000 * second) for second in range(1, 12))
    gone = [bool(np.asarray(reading.fast[FAST_AT["dt_ms"]])[1] == 0) for reading in readings]
    assert gone == [False] * 4 + [True] * 4 + [False] * 3


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("rack_loss", Fault("rack_loss")),
        ("rack_loss:16@60+300", Fault("rack_loss", 16, for_s=300, after_s=60)),
        ("xid=79:12@30", Fault("xid", 12, 79, after_s=30)),
        ("hot_gpu+10", Fault("hot_gpu", for_s=10)),
    ],
)
def test_a_fault_can_be_written(text: str, fault: Fault) -> None:
    assert Fault.parse(text) == fault


@pytest.mark.parametrize(
    "text",
    ["", "fire", "ecc=3", "xid=", "xid:-1", "xid@x", "xid+1@2", "xid 1", "xid@1e9", "xid:\u0663"],
)
def test_a_fault_that_is_none_is_refused_with_the_form(text: str) -> None:
    with pytest.raises(Refuse, match=r"--fault .* is not KIND.*rack_loss@60\+300"):
        Fault.parse(text)


def test_faults_happen_to_simulated_sites_only() -> None:
    with pytest.raises(Refuse, match="not to dcgm: add --simulate"):
        open_source(Wanted("dcgm", faults=("ecc",)), Settings())


def test_the_table_names_metrics_that_there_are() -> None:
    for kind in KINDS.values():
        assert {*kind.shows, *filter(None, [kind.slowed])} <= FAST_BY_NAME.keys()
        assert {*kind.states, *kind.per_s, *kind.once} <= SLOW_BY_NAME.keys()
        assert kind.scope == "gpu" or not kind.once


@pytest.mark.parametrize("kind", [k for k in KINDS if KINDS[k] != Kind(is_moment=True)])
def test_every_kind_does_something(kind: FaultKind, well: Seen) -> None:
    """None is in the table for nothing; and no two do the same, but in another place."""
    where = NOBODY.start if kind == "stray_work" else BUSY
    hit = seen(Fault(kind, where))
    differs = [n for n in well.metrics if not np.array_equal(well[n], hit[n])]
    assert differs or hit.events or hit.meters != well.meters
    others = [v for k, v in KINDS.items() if k != kind]
    assert KINDS[kind] not in others
    assert any(getattr(KINDS[kind], f.name) != getattr(Kind(), f.name) for f in fields(Kind))


@pytest.mark.parametrize("kind", ["straggler", "thermal_slowdown", "power_brake", "absurd_power",
    "energy_drift", "pcie_replays", "remap_failure", "recovery_action", "idle_gpu"])  # fmt: skip
def test_only_what_a_fault_touches_is_touched(kind: FaultKind, well: Seen) -> None:
    """Everybody else's readings are what they would have been, to the bit."""
    hit = seen(Fault(kind, 8 * 4))
    width = 32 if kind == "power_brake" else 1
    for name, values in well.metrics.items():
        mine = np.r_[8 * 4 : 8 * 4 + width]
        assert np.array_equal(np.delete(values, mine, 1), np.delete(hit[name], mine, 1)), name


@pytest.mark.parametrize(
    ("kind", "gpu", "gone"),
    [
        ("gpu_missing", BUSY, (BUSY, BUSY + 1)),
        ("pdu_loss", 8 * 9, (8 * 8, 8 * 16)),
        ("hall_loss", 8 * 33, (8 * 32, 8 * 40)),
        ("site_loss", 3, (0, 8 * 40)),
    ],
)
def test_what_is_lost_is_as_large_as_its_name(
    kind: FaultKind, gpu: int, gone: tuple[int, int]
) -> None:
    hit = seen(Fault(kind, gpu), ticks=2)
    assert np.flatnonzero(hit["dt_ms"][-1] == 0).tolist() == list(range(*gone))
    assert not hit.events


def test_a_straggler_works_as_long_and_draws_far_less(well: Seen) -> None:
    """No reason is told: it is busy, and slow."""
    hit = seen(Fault("straggler", BUSY))
    assert (hit["power_w"][:, BUSY].sum() < 0.6 * well["power_w"][:, BUSY].sum()).all()
    for same in ("util_gpu_pct", "throttle_sw_thermal_ms", "mem_used_mib"):
        assert np.array_equal(hit[same], well[same]), same
    assert not (hit["throttle_reasons"][:, BUSY] & ~0x4).any()
    assert (hit["clock_sm_mhz"][:, BUSY] < 0.6 * physics.CLOCK_MAX_MHZ).all()


@pytest.mark.parametrize(
    ("kind", "bit", "counter", "width"),
    [
        ("thermal_slowdown", 0x40, "throttle_hw_thermal_ms", 1),
        ("power_brake", 0x80, "throttle_power_brake_ms", 32),
    ],
)
def test_what_slows_a_gpu_is_told(
    kind: FaultKind, bit: int, counter: str, width: int, well: Seen
) -> None:
    """The bit, the time, less power: of a GPU, or of all the rack's."""
    hit = seen(Fault(kind, 8 * 4))
    at = slice(8 * 4, 8 * 4 + width)
    assert (hit["throttle_reasons"][:, at] & bit).all()
    assert (hit["throttle_reasons"][:, at] & 0x8).all()
    assert (hit[counter][:, at] == 1000).all()
    assert not np.delete(hit[counter], np.r_[at], 1).any()
    assert not well[counter].any()
    assert (hit["power_w"][:, at].sum(0) < 0.6 * well["power_w"][:, at].sum(0)).all()


def test_absurd_watts_are_shown_and_not_drawn(well: Seen) -> None:
    hit = seen(Fault("absurd_power", BUSY))
    assert (hit["power_w"][:, BUSY] == 100 * well["power_w"][:, BUSY]).all()
    assert (hit["power_w"][:, BUSY] > 10 * 2500).any()
    assert np.array_equal(hit["energy_j"], well["energy_j"])
    assert hit.meters == well.meters


def test_a_counter_that_drifts_counts_less_than_is_drawn(well: Seen) -> None:
    """Of a quarter, to a millijoule a tick; the counter and its deltas agree all the same."""
    hit = seen(Fault("energy_drift", BUSY))
    assert np.abs(hit["energy_j"][:, BUSY] - 0.75 * well["energy_j"][:, BUSY]).max() <= 1
    grown = np.diff(hit["energy_counter_j"][:, BUSY])
    assert (grown == hit["energy_j"][1:, BUSY]).all()
    assert np.array_equal(hit["power_w"], well["power_w"])


def test_pcie_replays_come_one_after_the_other(well: Seen) -> None:
    hit = seen(Fault("pcie_replays", BUSY))
    assert (np.diff(hit["pcie_replays"][:, BUSY]) == 2).all()


@pytest.mark.parametrize(
    ("kind", "state", "value", "xid"),
    [("remap_failure", "remap_failure", 1, 64), ("recovery_action", "recovery_action", 2, 154)],
)
def test_what_the_driver_asks_for_is_told(
    kind: FaultKind, state: str, value: int, xid: int
) -> None:
    hit = seen(Fault(kind, BUSY))
    assert (hit[state][:, BUSY] == value).all()
    assert not np.delete(hit[state], BUSY, 1).any()
    assert [(e.kind, e.code) for e in hit.events] == [("xid", xid)]


def test_the_worst_of_two_states_is_told() -> None:
    """A GPU with two faults asks for the larger repair; when that is over, for the smaller."""
    source = SimulatorSource(4, random_faults=False, start_ms=START_MS)
    worse = Fault("recovery_action", 5)
    for fault in (Fault("ecc", 5), worse):
        source.inject(fault)
    asked = SLOW_AT["recovery_action"]
    assert np.asarray(source.read(START_MS + 1000).slow[asked])[5] == 2
    source.clear(worse)
    assert np.asarray(source.read(START_MS + 2000).slow[asked])[5] == 1


def test_a_lost_message_is_told_by_its_node_alone() -> None:
    hit = seen(Fault("spool_overflow", BUSY))
    assert [(e.kind, e.uuid, e.node) for e in hit.events] == [
        ("spool_overflow", "", fleet.place(2, NODES).node)
    ]


@pytest.mark.parametrize(("kind", "at"), [("idle_gpu", slice(BUSY, BUSY + 1)), ("idle_job", TRAINS),
    ("load_drop", slice(0, 8 * NODES))])  # fmt: skip
def test_who_stands_idle_draws_what_idle_gpus_draw(kind: FaultKind, at: slice, well: Seen) -> None:
    """One GPU of a job, the whole job, or everybody; those beside them work on."""
    hit = seen(Fault(kind, BUSY))
    assert not hit["util_gpu_pct"][:, at].any()
    assert (np.abs(hit["power_w"][:, at] - 700) < 100).all()
    assert not hit["nvlink_tx_mib"][:, at].any()
    beside = np.delete(np.arange(8 * NODES), np.r_[at])
    assert np.array_equal(hit["power_w"][:, beside], well["power_w"][:, beside])
    assert beside.size == 0 or hit["util_gpu_pct"][:, beside].any()


def test_an_idle_job_of_nobody_is_its_node() -> None:
    hit = seen(Fault("idle_job", NOBODY.start), Fault("stray_work", NOBODY.start + 8 - 1))
    assert hit["util_gpu_pct"][:, NOBODY].any(), "the later fault counts"


def test_stray_work_is_nobodys(well: Seen) -> None:
    """The node works as if it trained, and no allocation says so."""
    hit = seen(Fault("stray_work", NOBODY.start))
    assert not well["util_gpu_pct"][:, NOBODY].any()
    assert (hit["util_gpu_pct"][:, NOBODY] > 0).all()
    assert hit["power_w"][:, NOBODY].mean() > 2000
    assert np.array_equal(hit["power_w"][:, : NOBODY.start], well["power_w"][:, : NOBODY.start])


def megawatts(hit: Seen) -> np.ndarray:
    watts: np.ndarray = hit["power_w"].sum(axis=1) / 1e7
    return watts


def test_the_site_swings_in_step() -> None:
    """Three seconds of work and two of none, for as long as it lasts."""
    watts = megawatts(seen(Fault("load_swing")))
    low = watts < 0.5 * watts.max()
    assert low.tolist() == [i % 5 >= 3 for i in range(TICKS)]


def test_the_site_climbs() -> None:
    """From two fifths of the load to all of it in a quarter of an hour, and it stays there."""
    watts, usual = megawatts(seen(Fault("load_climb"), ticks=960)), megawatts(seen(ticks=960))
    share = watts / usual
    assert 0.3 < share[:10].mean() < 0.65
    assert share[900:] == pytest.approx(1, abs=0.001)
    minutes = share[:900].reshape(-1, 60).mean(axis=1)
    assert (np.diff(minutes) > -0.05).all()


def meters(kind: FaultKind) -> tuple[Seen, Seen]:
    """Of two halls, GPU 0 stands in the first."""
    return seen(), seen(Fault(kind, 0))


def test_a_silent_meter_is_its_hall_s_alone() -> None:
    usual, hit = meters("meter_silent")
    assert usual.meters.keys() - hit.meters.keys() == {"h01"}
    assert {k: v for k, v in usual.meters.items() if k != "h01"} == hit.meters


def test_a_stuck_meter_repeats_what_it_read_first() -> None:
    usual, hit = meters("meter_stuck")
    assert len(set(usual.meters["h01"])) == len(usual.meters["h01"]) > 3
    assert hit.meters["h01"] == [usual.meters["h01"][0]] * len(usual.meters["h01"])
    assert hit.meters["h02"] == usual.meters["h02"]


def test_a_drifting_meter_reads_two_fifths() -> None:
    usual, hit = meters("meter_drift")
    assert hit.meters["sim"] == pytest.approx([0.4 * w for w in usual.meters["sim"]], abs=0.1)
    assert hit.meters["h01"] == usual.meters["h01"]


def ends(kind: FaultKind, of: Callable[[SimulatorSource, int], object]) -> Iterator[object]:
    source = SimulatorSource(NODES, seed=SEED, random_faults=False, start_ms=START_MS)
    fault = Fault(kind, NOBODY.start if kind == "stray_work" else BUSY)
    for second in range(1, 20):
        if second == 3:
            source.inject(fault)
        if second == 6:
            source.clear(fault)
        yield of(source, START_MS + 1000 * second)


@pytest.mark.parametrize(
    "kind", [k for k, does in KINDS.items() if not does.is_moment and does.resistance == 1]
)
def test_when_a_fault_is_cleared_nothing_of_it_is_left(kind: FaultKind) -> None:
    """Thirteen seconds later gauges and meters are those of a site that never had it.

    But for temperatures, which are a little warmer or colder, and counters, which have counted.
    """

    def gauges(source: SimulatorSource, tick_ms: int) -> dict[str, list[int]]:
        reading = source.read(tick_ms)
        names = ("util_gpu_pct", "throttle_reasons", "throttle_power_brake_ms", "clock_sm_mhz",
            "throttle_hw_thermal_ms", "nvlink_tx_mib", "mem_used_mib", "power_w", "dt_ms")  # fmt: skip
        return {name: np.asarray(reading.fast[FAST_AT[name]]).tolist() for name in names} | {
            name: np.asarray(reading.slow[SLOW_AT[name]]).tolist()
            for name in ("remap_pending", "remap_failure", "recovery_action")
        } | {
            record.meter: [round(record.watts)]
            for record in source.records() if isinstance(record, MeterReading)
        }  # fmt: skip

    *_, last = ends(kind, gauges)
    source = SimulatorSource(NODES, seed=SEED, random_faults=False, start_ms=START_MS)
    for second in range(1, 20):
        usual = gauges(source, START_MS + 1000 * second)
    assert last == usual
