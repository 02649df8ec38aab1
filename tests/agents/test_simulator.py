"""The simulated site: what a reader of it may rely on."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
import pytest

from agents import fleet, physics
from agents.faults import ECC_COUNTERS, KINDS, Fault, FaultKind, draw_faults
from agents.simulator import DELTAS, NULL_SLOW, SimulatorSource
from agents.source import Reading, Source
from pipeline.catalog import FAST, NULL_CODE, SLOW
from pipeline.errors import Refuse, Unavailable
from pipeline.records import Allocation, Event, MeterReading, Record
from pipeline.wire import LAYOUT

START_MS = 1_790_000_000_000
FAST_AT = {column.name: at for at, column in enumerate(LAYOUT.fast)}
SLOW_AT = {column.name: at for at, column in enumerate(LAYOUT.slow)}
NULL = {column.name: NULL_CODE[column.storage] for column in (*LAYOUT.fast, *LAYOUT.slow)}
GAUGES = [m.name for m in FAST if m.kind != "delta"]


def site(
    nodes: int = 4, *, quiet: bool = True, seed: int = 1, period_ms: int = 1000
) -> SimulatorSource:
    return SimulatorSource(
        nodes, seed=seed, random_faults=not quiet, start_ms=START_MS, period_ms=period_ms
    )


def ticks(source: SimulatorSource, first: int, last: int) -> Iterator[Reading]:
    """Readings of the seconds first..last after the start, both included."""
    return (source.read(START_MS + 1000 * second) for second in range(first, last + 1))


def at(source: SimulatorSource, second: int) -> Reading:
    return source.read(START_MS + 1000 * second)


def fast(reading: Reading, name: str) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    values = np.asarray(reading.fast[FAST_AT[name]])
    return values.astype(np.int64)


def slow(reading: Reading, name: str) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    values = np.asarray(reading.slow[SLOW_AT[name]])
    return values.astype(np.int64)


def content(reading: Reading) -> list[bytes]:
    return [column.tobytes() for column in (*reading.fast, *reading.slow)]


def allocations(records: Sequence[Record]) -> list[Allocation]:
    return [record for record in records if isinstance(record, Allocation)]


def events(records: Sequence[Record]) -> list[Event]:
    return [record for record in records if isinstance(record, Event)]


def meters(records: Sequence[Record], kind: str) -> dict[str, MeterReading]:
    found = (r for r in records if isinstance(r, MeterReading) and r.kind == kind)
    return {reading.meter: reading for reading in found}


def training(source: SimulatorSource) -> tuple[int, int]:
    """First GPU and number of GPUs of the first slot, which trains from the beginning."""
    slot = fleet.lease(len(source.inventory()), 1)[0]
    assert not slot.serves
    return slot.first * 8, slot.nodes * 8


# Shape and determinism


@pytest.mark.parametrize("nodes", [1, 2500])
def test_a_reading_has_the_layout_of_the_wire(nodes: int) -> None:
    """Columns stand in wire order, in the catalogue's storage, one value per GPU."""
    source: Source = site(nodes)
    reading = source.read(START_MS)
    gpus = sum(len(node.gpus) for node in source.inventory())
    assert gpus == nodes * 8
    for columns, values in ((LAYOUT.fast, reading.fast), (LAYOUT.slow, reading.slow)):
        assert len(columns) == len(values)
        for column, vector in zip(columns, values, strict=True):
            assert np.asarray(vector).dtype == np.dtype(f"<{column.storage}"), column.name
            assert len(vector) == gpus
    assert reading.instances == ()


@pytest.mark.parametrize("quiet", [True, False])
def test_the_same_seed_and_ticks_give_the_same_world(quiet: bool) -> None:
    """Readings, records and inventory are a function of seed and ticks; another seed differs."""
    one, two, other = site(64, quiet=quiet), site(64, quiet=quiet), site(64, quiet=quiet, seed=2)
    for source in (one, two, other):
        source.inject(Fault("gpu_lost", 7, for_s=3))
    for first, second in zip(ticks(one, 1, 20), ticks(two, 1, 20), strict=True):
        assert content(first) == content(second)
    assert one.records() == two.records()
    assert one.inventory() == two.inventory()
    assert one.driver_epoch == two.driver_epoch
    assert content(at(one, 21)) != content(at(other, 21))
    assert one.inventory()[0].gpus[0].uuid != other.inventory()[0].gpus[0].uuid


def test_readings_are_never_changed_afterwards() -> None:
    """A sampler may keep a reading while later ones are taken, faults and all."""
    source = site(4)
    source.inject(Fault("link_errors", 3))
    kept = at(source, 1)
    before = content(kept)
    for second, kind in enumerate(KINDS, 2):
        source.inject(Fault(kind, 3))
        at(source, second)
    assert content(kept) == before


def test_values_stay_within_what_the_boards_can_do() -> None:
    """No value wraps in its storage or leaves the range that its unit has."""
    source = site(200)
    for reading in ticks(source, 1, 30):
        for metric in FAST:
            values = fast(reading, metric.name)
            values = values[values != NULL[metric.name]]
            low, high = 0, {"pct": 100 * metric.scale, "c": 100, "ms": 1000}.get(metric.unit, 2**31)
            assert values.size == 0 or (low <= values.min() and values.max() <= high), metric.name
        assert fast(reading, "power_w").max() <= 7000
        assert fast(reading, "power_w").min() >= 600
        assert (fast(reading, "mem_used_mib") < slow(reading, "mem_total_mib")).all()
        assert (fast(reading, "temp_gpu_c") + fast(reading, "temp_margin_c") == 87).all()


def test_null_stands_only_where_it_is_documented() -> None:
    """Module power, fan and retired pages are null; deltas are null in the first row only."""
    source = site(50)
    first, later = at(source, 1), at(source, 2)
    for reading, deltas_known in ((first, False), (later, True)):
        for metric in FAST:
            null = metric.name == "module_power_w" or (metric.name in DELTAS and not deltas_known)
            assert ((fast(reading, metric.name) == NULL[metric.name]) == null).all(), metric.name
        for metric in SLOW:
            values = np.asarray(reading.slow[SLOW_AT[metric.name]])
            assert ((values == NULL[metric.name]) == (metric.name in NULL_SLOW)).all(), metric.name
    assert (fast(first, "energy_kind") == 0).all()
    assert (fast(later, "energy_kind") == 1).all()


# Energy and time


def test_energy_deltas_are_differences_of_the_counter() -> None:
    """Sums of deltas equal counter at the end minus counter at the beginning, in millijoules."""
    source = site(8)
    begin = slow(at(source, 1), "energy_counter_j")
    total = np.zeros(64, np.int64)
    for reading in ticks(source, 2, 60):
        total += fast(reading, "energy_j")
    assert (total == slow(reading, "energy_counter_j") - begin).all()


@pytest.mark.parametrize("period_ms", [1000, 250])
def test_power_is_the_average_that_the_energy_says(period_ms: int) -> None:
    """Power times dt is the energy, to half of power's last digit, row by row."""
    source = site(8, period_ms=period_ms)
    source.read(START_MS)
    for step in range(1, 40):
        reading = source.read(START_MS + step * period_ms)
        said_mj = fast(reading, "power_w") * fast(reading, "dt_ms")
        assert (np.abs(fast(reading, "energy_j") * 10 - said_mj) <= period_ms // 2).all()


@pytest.mark.parametrize("missed", [1, 2, 10, 29])
def test_missed_ticks_leave_no_trace(missed: int) -> None:
    """After a gap all gauges, counters and meters are those of a source that was always read."""
    read, skipped = site(32), site(32)
    for source in (read, skipped):
        list(ticks(source, 1, 5))
        source.records()
    *_, one = ticks(read, 6, 6 + missed)
    two = at(skipped, 6 + missed)
    for name in GAUGES:
        assert (fast(one, name) == fast(two, name)).all(), name
    for metric in SLOW:
        assert one.slow[SLOW_AT[metric.name]].tobytes() == two.slow[SLOW_AT[metric.name]].tobytes()
    assert meters(read.records(), "site") == meters(skipped.records(), "site")


def test_a_row_after_one_missed_tick_covers_both() -> None:
    """dt is two periods, and every delta is the sum of the two."""
    read, skipped = site(8), site(8)
    list(ticks(read, 1, 5))
    list(ticks(skipped, 1, 5))
    one, two = ticks(read, 6, 7)
    both = at(skipped, 7)
    assert (fast(both, "dt_ms") == 2000).all()
    assert (fast(both, "energy_kind") == 1).all()
    for name in DELTAS:
        assert (fast(both, name) == fast(one, name) + fast(two, name)).all(), name


@pytest.mark.parametrize("distance", [3, 31, 32, 100_000])
def test_a_gap_is_never_one_lump(distance: int) -> None:
    """After more than two periods deltas are null, dt is capped, and the counter has run on."""
    source = site(8)
    before = at(source, 1)
    after = at(source, 1 + distance)
    assert (fast(after, "dt_ms") == 2000).all()
    assert (fast(after, "energy_kind") == 0).all()
    for name in DELTAS:
        assert (fast(after, name) == NULL[name]).all(), name
    grown = slow(after, "energy_counter_j") - slow(before, "energy_counter_j")
    assert (grown > distance * 60_000).all()
    assert (grown < distance * 700_001).all()
    assert (fast(at(source, 2 + distance), "energy_kind") == 1).all()


def test_a_clock_that_steps_back_breaks_continuity() -> None:
    """A tick that is not later than the last one has null deltas and stands for a period."""
    source = site(2)
    list(ticks(source, 10, 12))
    back = at(source, 5)
    assert (fast(back, "dt_ms") == 1000).all()
    assert (fast(back, "energy_j") == NULL["energy_j"]).all()
    assert (fast(at(source, 6), "energy_kind") == 1).all()


# Work


def test_a_training_job_swings_in_step() -> None:
    """Power of a job's GPUs rises and falls together, between compute and communication."""
    source = site(200)
    first, count = training(source)
    power = np.array(
        [fast(r, "power_instant_w")[first : first + count] for r in ticks(source, 1, 120)]
    )
    middle = (power.max() + power.min()) / 2
    high = power > middle
    assert (high.all(axis=1) | ~high.any(axis=1)).all()
    assert 5 < np.count_nonzero(np.diff(high[:, 0].astype(int))) < 120
    assert np.median(power[high]) > 5800
    assert np.median(power[~high]) < 4200


def test_inference_wanders_each_gpu_by_itself() -> None:
    """GPUs that serve neither swing together nor stand still."""
    source = site(400)
    slot = next(s for s in fleet.lease(400, 1) if s.serves and s.nodes >= 4)
    span = slice(slot.first * 8, (slot.first + slot.nodes) * 8)
    power = np.array([fast(r, "power_w")[span] for r in ticks(source, 1, 100)], np.float64)
    assert power.std(axis=0).min() > 0
    together = np.asarray(np.corrcoef(power.T))[np.triu_indices(power.shape[1], 1)]
    assert abs(together.mean()) < 0.3


def test_idle_gpus_idle() -> None:
    """GPUs that nobody has leased draw some 70 W, at low clocks, with reason idle and no links."""
    source = site(100)
    reading = list(ticks(source, 1, 3))[-1]
    leased = {a.node for a in allocations(source.records())}
    idle = np.repeat([node.node not in leased for node in source.inventory()], 8)
    assert idle.any()
    assert (np.abs(fast(reading, "power_w")[idle] - 700) < 100).all()
    for name, value in (("util_gpu_pct", 0), ("clock_sm_mhz", 345), ("throttle_reasons", 1),
                        ("nvlink_tx_mib", 0), ("mem_used_mib", physics.IDLE_MEMORY_MIB)):  # fmt: skip
        assert (fast(reading, name)[idle] == value).all(), name
    assert fast(reading, "power_w")[~idle].mean() > 2000


def test_the_power_cap_is_told() -> None:
    """Where compute is capped, the reason's bit, the time slowed and a lower clock are seen."""
    source = site(400)
    seen = False
    for reading in ticks(source, 1, 20):
        capped = fast(reading, "throttle_reasons") == 0x4
        if reading is not None and fast(reading, "energy_kind").all() and capped.any():
            seen = True
            assert (fast(reading, "throttle_power_cap_ms")[capped] > 0).all()
            assert (fast(reading, "throttle_power_cap_ms")[~capped] == 0).all()
            assert (fast(reading, "clock_sm_mhz")[capped] < physics.CLOCK_MAX_MHZ).all()
    assert seen


# Topology, tenants, jobs


@pytest.mark.parametrize("nodes", [1, 20, 300, 5000])
def test_every_gpu_has_one_name_and_place(nodes: int) -> None:
    """Hostnames and UUIDs are unique; racks, rows and halls nest."""
    inventory = site(nodes).inventory()
    assert len({node.node for node in inventory}) == nodes
    assert len({gpu.uuid for node in inventory for gpu in node.gpus}) == nodes * 8
    parents: dict[str, set[str]] = defaultdict(set)
    for node in inventory:
        assert node.node.startswith(f"{node.rack}-n")
        parents[node.rack].add(node.row)
        parents[node.row].add(node.hall)
        parents[node.pdu].add(node.hall)
    assert all(len(names) == 1 for names in parents.values())
    assert inventory[0].node == "h01-r01-n01"
    assert {gpu.model for node in inventory for gpu in node.gpus} <= {
        m.name for m in physics.MODELS
    }


@pytest.mark.parametrize("nodes", [1, 3, 4, 9, 50, 2500])
def test_slots_cut_the_leased_nodes(nodes: int) -> None:
    """Slots lie side by side from the first node on; from four nodes up some stay free."""
    slots = fleet.lease(nodes, 5)
    assert [s.first for s in slots] == np.cumsum([0, *(s.nodes for s in slots[:-1])]).tolist()
    leased = sum(s.nodes for s in slots)
    assert leased == nodes if nodes < 4 else leased < nodes
    tenants = {s.tenant for s in slots}
    assert len(tenants) >= min(nodes, 3)
    assert all(1 <= s.nodes <= 256 for s in slots)


def test_allocations_tell_one_story_without_overlap() -> None:
    """Each node has one holder at a time from the start on, and ends repeat their beginning."""
    source = site(30)
    at(source, 1)
    records = source.records()
    for second in range(61, 6 * 3600, 60):
        at(source, second)
        records += source.records()
    assert source.records_dropped == 0
    spans: dict[tuple[str, str, str, int], int | None] = {}
    for a in allocations(records):
        assert (a.site, a.source) == ("sim", "simulator")
        assert a.tenant in fleet.TENANTS
        key = (a.node, a.tenant, a.workload, a.from_ms)
        assert (key in spans) == (a.until_ms is not None)
        assert a.asserted_at_ms >= (a.until_ms or a.from_ms)
        spans[key] = a.until_ms
    by_node: dict[str, list[tuple[int, int | None]]] = defaultdict(list)
    for (node, _, _, from_ms), until_ms in spans.items():
        by_node[node].append((from_ms, until_ms))
    assert len(by_node) == 29
    for intervals in by_node.values():
        intervals.sort()
        assert intervals[0][0] == START_MS
        assert intervals[-1][1] is None
        assert all(one[1] == two[0] for one, two in pairwise(intervals))
    assert sum(len(intervals) for intervals in by_node.values()) > 2 * len(by_node)


def test_a_job_is_where_its_allocation_says() -> None:
    """Nodes with a workload work; nodes without one idle, at every tick of an hour."""
    source = site(30)
    held: dict[str, str] = {}
    hosts = [node.node for node in source.inventory()]
    for second in range(1, 3600, 7):
        reading = at(source, second)
        for a in allocations(source.records()):
            if a.until_ms is None:
                held[a.node] = a.workload
            else:
                assert held.pop(a.node) == a.workload
        works = fast(reading, "throttle_reasons").reshape(30, 8)[:, 0] & 1 == 0
        assert works.tolist() == [bool(held.get(host)) for host in hosts]


def test_job_times_do_not_depend_on_ticks() -> None:
    """Who holds what from when until when is the same however often the source was read."""

    def story(every_s: int) -> set[tuple[str, str, int, int | None]]:
        source = site(20, quiet=False)
        for second in range(every_s, 3601, every_s):
            at(source, second)
        told = allocations(source.records())
        return {(a.node, a.workload, a.from_ms, a.until_ms) for a in told}

    assert story(4) == story(40) == story(400)


def test_a_job_begins_with_its_allocation() -> None:
    """A job's steps count from the time at which its allocation begins, later than the world's."""
    schedule = fleet.Schedule("sim", 20, 3, START_MS)
    schedule.advance(START_MS)
    slot_of = {fleet.place(s.first, 20).node: n for n, s in enumerate(schedule.slots)}
    checked = 0
    for second in range(10, 3600, 10):
        for a in allocations(schedule.advance(START_MS + 1000 * second)):
            if a.until_ms is None and a.node in slot_of:
                assert schedule.jobs[slot_of[a.node]].since_s == a.from_ms / 1000
                checked += 1
    assert checked > 3


def test_a_workload_has_one_tenant_and_one_run() -> None:
    """A workload's name is never used again, by anybody."""
    source = site(40)
    runs: dict[str, set[tuple[str, int]]] = defaultdict(set)
    for second in range(1, 12 * 3600, 60):
        at(source, second)
        for a in allocations(source.records()):
            runs[a.workload].add((a.tenant, a.from_ms))
    runs.pop("")
    assert len(runs) > 20
    assert all(len(run) == 1 for run in runs.values())


# Meters


def test_meters_see_more_than_the_gpus() -> None:
    """A node's meter exceeds its GPUs, halls exceed their nodes by the cooling, the site sums up."""
    source = site(300)
    at(source, 9)
    source.records()
    reading = at(source, 10)
    records = source.records()
    gpus_w = fast(reading, "power_w").reshape(300, 8).sum(axis=1) / 10
    nodes, halls = meters(records, "node"), meters(records, "hall")
    inventory = source.inventory()
    for node, watts in zip(inventory, gpus_w.tolist(), strict=True):
        assert nodes[node.node].watts > watts + 1500
    assert len(halls) == 3
    for hall, meter in halls.items():
        plugs_w = sum(nodes[n.node].watts for n in inventory if n.hall == hall)
        assert meter.watts / plugs_w == pytest.approx(physics.pue(START_MS / 1000 + 10), rel=1e-4)
    (total,) = meters(records, "site").values()
    assert total.watts == pytest.approx(sum(m.watts for m in halls.values()), abs=1)
    assert total.ts_ms == START_MS + 10_000


def test_node_meters_of_a_huge_site_take_turns() -> None:
    """No tick carries more than some 200 node meters, and each node's turn comes."""
    source = site(5000)
    seen: dict[str, int] = {}
    for reading in ticks(source, 1, 25):
        assert reading is not None
        nodes = meters(source.records(), "node")
        assert len(nodes) <= 200
        assert not seen.keys() & nodes.keys()
        seen |= dict.fromkeys(nodes, 1)
    assert len(seen) == 5000


# Faults


def lost(kind: FaultKind, gone: int) -> None:
    """A source loses GPUs, then gets them back."""
    source = site(30)
    fault = Fault(kind, 8)
    list(ticks(source, 1, 3))
    source.records()
    source.inject(fault)
    for reading in ticks(source, 4, 10):
        away = fast(reading, "dt_ms") == 0
        assert away.sum() == gone
        assert away[8]
        for metric in FAST:
            assert (fast(reading, metric.name)[away] == NULL[metric.name]).all()
            if metric.name != "module_power_w":
                assert (fast(reading, metric.name)[~away] != NULL[metric.name]).all()
        for metric in SLOW:
            values = np.asarray(reading.slow[SLOW_AT[metric.name]])
            assert (values[away] == NULL[metric.name]).all()
    assert len(source.inventory()[1].gpus) == 8
    source.clear(fault)
    back, after = ticks(source, 11, 12)
    assert (fast(back, "dt_ms") == np.where(away, 2000, 1000)).all()
    assert ((fast(back, "energy_j") == NULL["energy_j"]) == away).all()
    assert ((fast(back, "energy_kind") == 0) == away).all()
    assert (slow(back, "energy_counter_j")[away] <= 700_000).all()
    assert (fast(after, "energy_kind") == 1).all()
    assert (fast(after, "dt_ms") == 1000).all()


@pytest.mark.parametrize(("kind", "gone"), [("gpu_lost", 1), ("node_down", 8), ("rack_loss", 32)])
def test_what_is_lost_has_no_rows_and_comes_back_anew(kind: FaultKind, gone: int) -> None:
    """While away dt is 0 and all is null; afterwards counters begin again, others do not notice."""
    lost(kind, gone)


def test_a_lost_gpu_is_told_by_its_node_and_a_lost_rack_by_nobody() -> None:
    """A GPU's loss is XID 79 and gpu_lost; with its node or rack the agent is gone as well."""
    source = site(30)
    at(source, 1)
    for fault in (Fault("gpu_lost", 3), Fault("node_down", 40), Fault("rack_loss", 100)):
        source.inject(fault)
    at(source, 2)
    told = events(source.records())
    lost_uuid = source.inventory()[0].gpus[3].uuid
    assert [(e.kind, e.code, e.uuid) for e in told] == [
        ("xid", 79, lost_uuid), ("gpu_lost", 0, lost_uuid),
    ]  # fmt: skip
    assert {e.node for e in told} == {source.inventory()[0].node}
    source.inject(Fault("xid", 41))
    at(source, 3)
    assert not events(source.records())


def test_a_loss_between_two_reads_is_no_continuity() -> None:
    """Counters that began again during a missed tick make a null delta, not a wrong one."""
    source = site(4)
    list(ticks(source, 1, 3))
    source.inject(Fault("gpu_lost", 6, for_s=1))
    reading = at(source, 5)
    assert (fast(reading, "dt_ms") == 2000).all()
    assert ((fast(reading, "energy_j") == NULL["energy_j"]) == (np.arange(32) == 6)).all()


def test_a_lost_gpu_draws_nothing() -> None:
    """The meter of its node falls by what it would have drawn, beside a little for the fans."""
    dark, lit = site(4), site(4)
    for source in (dark, lit):
        list(ticks(source, 8, 9))
        source.records()
    dark.inject(Fault("gpu_lost", 1))
    at(dark, 10)
    gpu_w = fast(at(lit, 10), "power_w")[1] / 10
    host = lit.inventory()[0].node
    missing_w = (
        meters(lit.records(), "node")[host].watts - meters(dark.records(), "node")[host].watts
    )
    assert gpu_w < missing_w * physics.SUPPLY_EFFICIENCY < 1.1 * gpu_w + 1


def test_a_rack_without_power_is_missed_by_the_meters() -> None:
    """Its node meters are silent, and hall and site draw less than without the fault."""
    dark, lit = site(30), site(30)
    for source in (dark, lit):
        at(source, 8)
        source.records()
    dark.inject(Fault("rack_loss", 0))
    for source in (dark, lit):
        list(ticks(source, 9, 10))
    missed, all_of = dark.records(), lit.records()
    plugs_w = sum(meters(all_of, "node")[node.node].watts for node in dark.inventory()[:4])
    silent = meters(all_of, "node").keys() - meters(missed, "node").keys()
    assert silent == {node.node for node in dark.inventory()[:4]}
    for kind in ("hall", "site"):
        (less,), (more,) = meters(missed, kind).values(), meters(all_of, kind).values()
        lost_w = plugs_w * physics.pue(START_MS / 1000 + 10)
        assert more.watts - less.watts == pytest.approx(lost_w, abs=1)


def test_a_hot_gpu_climbs_and_throttles() -> None:
    """Without cooling a GPU at work heats up, slows down, says why, and recovers when cleared."""
    source = site(8)
    hot = training(source)[0]
    before = list(ticks(source, 1, 5))[-1]
    fault = Fault("hot_gpu", hot)
    source.inject(fault)
    slowed_ms = 0
    for reading in ticks(source, 6, 90):
        slowed_ms += fast(reading, "throttle_sw_thermal_ms")[hot]
    assert fast(reading, "temp_gpu_c")[hot] > fast(before, "temp_gpu_c")[hot] + 15
    assert fast(reading, "temp_gpu_c")[hot] > fast(reading, "temp_gpu_c")[hot + 1] + 15
    assert fast(reading, "temp_gpu_c")[hot] <= 95
    assert fast(reading, "throttle_reasons")[hot] & 0x20
    assert fast(reading, "clock_sm_mhz")[hot] < 0.9 * fast(reading, "clock_sm_mhz")[hot + 1]
    assert slowed_ms > 30_000
    assert not np.delete(fast(reading, "throttle_sw_thermal_ms"), hot).any()
    source.clear(fault)
    *_, after = ticks(source, 91, 200)
    assert fast(after, "throttle_sw_thermal_ms")[hot] == 0
    assert fast(after, "temp_gpu_c")[hot] < 75


def test_link_errors_grow_while_they_last() -> None:
    """NVLink counters of that GPU grow each second until the fault is over, with XID 74 once."""
    source = site(4)
    at(source, 1)
    source.inject(Fault("link_errors", 5, for_s=10))
    seen = [slow(reading, "nvlink_crc_errors") for reading in ticks(source, 2, 15)]
    grown = [int(values[5]) for values in seen]
    assert grown == [40 * min(n, 10) for n in range(1, 15)]
    assert not np.delete(seen[-1], 5).any()
    assert [(e.kind, e.code) for e in events(source.records())] == [("xid", 74)]


def test_an_uncorrected_memory_error_asks_for_a_reset() -> None:
    """Counters rise by one, a remap is pending, the driver asks for a reset until it is cleared."""
    source = site(4)
    before = at(source, 1)
    fault = Fault("ecc", 9)
    source.inject(fault)
    during = at(source, 2)
    source.clear(fault)
    after = at(source, 3)
    hit = np.arange(32) == 9
    for name in ECC_COUNTERS:
        assert (slow(during, name) - slow(before, name) == hit).all()
        assert (slow(after, name) == slow(during, name)).all()
    assert (slow(during, "remap_pending") == hit).all()
    assert (slow(during, "recovery_action") == hit).all()
    assert not slow(after, "remap_pending").any()
    assert [e.code for e in events(source.records())] == [94, 63]


def test_an_xid_is_an_event_each_time() -> None:
    """Equal XIDs in a row are two events, with the GPU's UUID and node."""
    source = site(4)
    at(source, 1)
    for second in (2, 3):
        source.inject(Fault("xid", 17, code=31))
        at(source, second)
    told = events(source.records())
    node = source.inventory()[2]
    assert [(e.kind, e.code, e.node, e.uuid) for e in told] == [
        ("xid", 31, node.node, node.gpus[1].uuid)
    ] * 2
    assert [e.ts_ms for e in told] == [START_MS + 1000, START_MS + 2000]


def test_an_energy_reset_is_one_null_delta_for_its_node() -> None:
    """The counters of a node begin again and no lump is made of it."""
    source = site(4)
    list(ticks(source, 1, 3))
    source.inject(Fault("energy_reset", 12))
    hit, after = ticks(source, 4, 5)
    node = np.arange(32) // 8 == 1
    assert ((fast(hit, "energy_j") == NULL["energy_j"]) == node).all()
    assert (fast(hit, "dt_ms") == 1000).all()
    assert (slow(hit, "energy_counter_j")[node] <= 700_000).all()
    assert (fast(after, "energy_kind") == 1).all()
    assert [e.kind for e in events(source.records())] == ["driver_reload"]


def test_a_frozen_gpu_repeats_itself() -> None:
    """Every gauge stands still and its deltas are 0 until the fault is over; no lump follows."""
    source = site(4)
    at(source, 1)
    fault = Fault("frozen", 2)
    source.inject(fault)
    readings = list(ticks(source, 2, 20))
    for name in GAUGES:
        assert len({int(fast(reading, name)[2]) for reading in readings}) == 1, name
    for name in DELTAS:
        assert all(fast(reading, name)[2] == 0 for reading in readings), name
    assert len({int(slow(reading, "energy_counter_j")[2]) for reading in readings}) == 1
    assert len({int(fast(reading, "power_instant_w")[3]) for reading in readings}) > 10
    source.clear(fault)
    after = at(source, 21)
    assert 60_000 <= fast(after, "energy_j")[2] <= 700_000


@pytest.mark.parametrize("missed", [0, 3])
def test_a_fault_ends_by_itself(missed: int) -> None:
    """A fault with a duration is over after it, however often the source was read meanwhile."""
    source = site(4)
    at(source, 1)
    source.inject(Fault("gpu_lost", 1, for_s=4))
    gone = [fast(at(source, s), "dt_ms")[1] == 0 for s in range(2, 12, 1 + missed)]
    assert gone == ([True] * 4 + [False] * 6 if missed == 0 else [True, False, False])


def test_random_faults_come_at_about_the_public_rate() -> None:
    """Some three XIDs per thousand GPUs and day, among them a few losses; none when told not to."""
    told = [f for step in range(300) for f in draw_faults(1, step, 100_000, 288)]
    per_day_and_thousand = len(told) / 100
    assert 2.7 < per_day_and_thousand < 3.3
    assert {f.kind for f in told} >= {"xid", "ecc", "gpu_lost", "link_errors", "hot_gpu"}
    quiet = site(2500)
    list(ticks(quiet, 1, 3))
    at(quiet, 10_000)
    assert not events(quiet.records())
    noisy = site(2500, quiet=False)
    list(ticks(noisy, 1, 3))
    at(noisy, 10_000)
    assert events(noisy.records())


@pytest.mark.parametrize(
    "fault",
    [Fault("xid", 32), Fault("xid", -1), Fault("fire", 0)],  # type: ignore[arg-type]
)
def test_a_fault_that_cannot_be_is_refused(fault: Fault) -> None:
    """The sentence names the value and what is valid."""
    with pytest.raises(Refuse, match=f"no fault {fault.kind!r} of GPU {fault.gpu}: .*GPUs 0 to 31"):
        site(4).inject(fault)


def test_a_site_of_nothing_is_refused() -> None:
    """Zero nodes make no site."""
    with pytest.raises(Refuse, match="nodes=0"):
        SimulatorSource(0)


def test_a_closed_source_reads_nothing() -> None:
    """Closing is idempotent and final."""
    source = site(1)
    source.close()
    source.close()
    with pytest.raises(Unavailable):
        source.read(START_MS)
