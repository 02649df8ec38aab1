"""Known rows in, known figures out: the pages of the fleet and of one node."""

import re
from typing import Any

import pytest

from dashboards import macros
from dashboards.pages import fleet, fleet_faults, node, node_records
from dashboards.panel import Panel
from pipeline import rows
from pipeline.clock import SystemClock
from pipeline.records import Allocation, Event, Gpu, Inventory, MeterReading, id64

SITE = "test"
HOUR_MS = 3_600_000
ALL = [p for page in (*fleet.PAGES, *node.PAGES) for row in page.rows for p in row]


def uuid(host: str, index: int) -> str:
    return f"GPU-{host}-{index}"


def gpu_id(host: str, index: int) -> int:
    return id64(SITE, uuid(host, index))


class Place:
    """A store to fill, the minute that has just ended, and panels asked about it."""

    def __init__(self, store) -> None:
        self.store = store
        self.now_ms = SystemClock().now_ms()
        self.end_ms = self.now_ms // 60_000 * 60_000

    def records(self, *records) -> None:
        for table, block in rows.by_table(records, self.now_ms).items():
            self.store.insert(table, block)

    def inventory(self, host: str, gpus: int, rack: str = "r1", **more) -> None:
        members = tuple(Gpu(i, uuid(host, i), "H100") for i in range(gpus))
        fields: dict[str, Any] = {"from_ms": self.end_ms - 2 * HOUR_MS, "gpus": members} | more
        self.records(Inventory(site=SITE, node=host, rack=rack, hall="h1", **fields))

    def rows(self, table: str, *found: dict[str, Any]) -> None:
        """Rows of a table, with GPUs as (host, index) under `of`."""
        full = []
        for row in found:
            host, index = row["of"]
            ids = {"gpu": gpu_id(host, index), "site": id64(SITE), "node": id64(SITE, host)}
            full.append(ids | {k: v for k, v in row.items() if k != "of"})
        self.store.insert(table, rows.columns(full))

    def minute(self, host: str, index: int, ago: int, **values) -> None:
        """A row of gpu_minutes, in physical units; `ago` 1 is the last whole minute."""
        row: dict[str, Any] = {
            "gpu": gpu_id(host, index), "site": id64(SITE), "ts": self.end_ms // 1000 - 60 * ago,
            "version": 1, "rows": 60, "dt_ms": 60_000,
        } | values  # fmt: skip
        self.store.command(
            f"INSERT INTO gpu_minutes ({', '.join(row)}) VALUES ({', '.join(map(str, row.values()))})"
        )

    def latest(self, host: str, index: int, age_s: float = 5, **values) -> None:
        known = {"ts": self.now_ms - int(age_s * 1000), "temp_gpu_c": 60, "power_w": 5000}
        self.rows("gpu_latest", {"of": (host, index)} | known | values)

    def samples(self, host: str, index: int, since_ms: int, seconds: range, **values) -> None:
        base: dict[str, Any] = {"dt_ms": 1000, "flags": 0, "power_w": 5000, "energy_j": 500_000}
        self.rows(
            "gpu_samples",
            *(
                {"of": (host, index), "ts": since_ms + 1000 * s} | base | values
                for s in seconds
            ),
        )  # fmt: skip

    def ask(self, panel: Panel, since_s: int = 900, step_s: int = 60, *, at_ms: int = 0, host="n1"):
        """The panel's rows by name, over the seconds before now or `at_ms`."""
        until_ms = at_ms or self.now_ms
        span = macros.Span(until_ms - 1000 * since_s, until_ms, step_s)
        asked = macros.expand(panel.sql, span, {"site": str(id64(SITE)), "node": host})
        return self.store.query(asked.sql, asked.parameters).dicts()


@pytest.fixture
def place(store):
    return Place(store)


@pytest.mark.parametrize("since_s", [900, 86_400])
def test_nothing_is_said_of_an_empty_store(place, since_s):
    """Every query runs, and gives no row: no 0 that nobody measured."""
    assert {p.title: place.ask(p, since_s) for p in ALL if p.sql} == {
        p.title: [] for p in ALL if p.sql
    }


@pytest.mark.parametrize("panel", [p for p in ALL if p.sql], ids=lambda p: p.title)
def test_panels_say_what_they_are(panel):
    """What it shows, and what no data means; links read columns that the query has, ids hidden."""
    assert "No data" in panel.description or "absent where" in panel.description
    for address in panel.links.values():
        for name in re.findall(r"\$\{__data\.fields\.(\w+)\}", address):
            assert re.search(rf"\bAS {name}\b", panel.sql), name
            assert name == "node" or name in panel.hidden


def test_missing(place):
    """Expected by the inventory in force and not heard for a minute; the retired are not expected."""
    place.inventory("n1", 4)
    place.inventory("n2", 2, rack="r2")
    place.inventory("n3", 2, until_ms=place.now_ms - 1000)
    for index, age_s in enumerate((5, 50, 70)):
        place.latest("n1", index, age_s)
    place.latest("n3", 0)
    place.latest("stray", 0)
    assert place.ask(fleet.GPUS_NOW) == [{"expected": 6, "seen": 2, "missing": 4, "unlisted": 2}]
    nodes = place.ask(fleet.MISSING_NODES)
    assert [(r["node"], r["missing_gpus"], r["gpus"]) for r in nodes] == [
        ("n1", 2, "2 3"), ("n2", 2, "0 1"),
    ]  # fmt: skip
    assert nodes[0]["last_seen"] is not None
    assert nodes[1]["last_seen"] is None
    assert nodes[0]["site_id"] == str(id64(SITE))
    racks = place.ask(fleet.MISSING_RACKS)
    assert [tuple(r.values()) for r in racks] == [
        ("h1", "r1", 2, 4, 1, 0),
        ("h1", "r2", 2, 2, 1, 1),
    ]


def test_nobody_is_missing_twice(place):
    """Old rows of gpu_latest beside new ones, and an inventory that was told again, count once."""
    place.inventory("n1", 2)
    place.inventory("n1", 2)
    for index in range(2):
        place.latest("n1", index, 300)
        place.latest("n1", index, 3)
    assert place.ask(fleet.GPUS_NOW) == [{"expected": 2, "seen": 2, "missing": 0, "unlisted": 0}]
    assert place.ask(fleet.MISSING_NODES) == []


def test_hot_is_hotter_than_the_peers(place):
    """Not a constant: a node that is hot throughout is no outlier, a mild GPU among cool ones is."""
    for host, temps in {
        "hot": (85, 85, 85, 86, 85),
        "mixed": (50, 50, 50, 51, 65),
        "pair": (70, 40),
        "stale": (),
    }.items():
        place.inventory(host, len(temps) or 1, rack="r2" if host == "pair" else "r1")
        for index, temp in enumerate(temps):
            place.latest(host, index, temp_gpu_c=temp)
    place.inventory("other", 3, rack="r2")
    for index in range(3):
        place.latest("other", index, temp_gpu_c=41)
    place.latest("stale", 0, 300, temp_gpu_c=99)
    found = place.ask(fleet.HOTTEST)
    assert [(r["node"], r["gpu"], r["temp_c"], r["peers_c"], r["above_c"]) for r in found] == [
        ("pair", 0, 70, 41, 29), ("mixed", 4, 65, 50, 15), ("hot", 3, 86, 85, 1),
        ("mixed", 3, 51, 50, 1),
    ]  # fmt: skip


def test_xids_by_tier(place):
    """Each event once however often it was delivered; a code that we lack is said, not hidden."""
    place.inventory("n1", 2)
    since_ms = place.end_ms - 300_000

    def xid(code: int, at_s: int, index: int = 0) -> Event:
        at_ms = since_ms + 1000 * at_s
        return Event(
            site=SITE, node="n1", ts_ms=at_ms, kind="xid", uuid=uuid("n1", index), code=code
        )

    place.records(xid(31, 1), xid(31, 2), xid(79, 3, 1), xid(94, 4), xid(999, 5))
    dropped = Event(site=SITE, node="n1", ts_ms=since_ms, kind="agent_dropped", code=79)
    place.records(xid(31, 1), dropped)
    found = place.ask(fleet_faults.XID_CODES)
    assert [(r["xid"], r["tier"], r["events"], r["gpus"]) for r in found] == [
        (79, "fatal", 1, 1), (94, "hardware", 1, 1), (31, "application", 2, 1),
        (999, "unlisted", 1, 1),
    ]  # fmt: skip
    assert found[0]["action"].startswith("Drain and reboot")
    counts = place.ask(fleet_faults.XIDS_OVER_TIME, step_s=3600)
    assert sum(r["xids"] for r in counts) == 5
    worst = place.ask(fleet_faults.WORST_NODES)
    assert [(r["fatal_xids"], r["hardware_xids"], r["missing_gpus"]) for r in worst] == [(1, 1, 2)]
    said = place.ask(node_records.EVENTS)
    assert [(r["kind"], r["gpu"], r["xid"], r["tier"]) for r in said][:3] == [
        ("xid", 0, 999, "unlisted"), ("xid", 0, 94, "hardware"), ("xid", 1, 79, "fatal"),
    ]  # fmt: skip
    assert (said[-1]["kind"], said[-1]["gpu"], said[-1]["xid"], said[-1]["tier"]) == (
        "agent_dropped", None, None, "",
    )  # fmt: skip


def health(place, host: str, index: int, values, **more) -> None:
    """Corrected errors every 2 s, the last of them just now; a value may bring its driver epoch."""
    pairs = [v if isinstance(v, tuple) else (v, 1) for v in values]
    place.rows("gpu_health", *(
        {
            "of": (host, index), "ts": place.now_ms - 2000 * (len(pairs) - n), "boot_epoch": 1,
            "driver_epoch": epoch, "ecc_corrected_volatile": value,
        } | more
        for n, (value, epoch) in enumerate(pairs)
    ))  # fmt: skip


def test_increase_across_a_reset(place):
    """What was added on both sides of a reset counts, what stood before the range does not."""
    place.inventory("n1", 6)
    health(place, "n1", 0, [100, 105, (2, 2), (3, 2)])  # a driver reload, seen as one
    health(place, "n1", 1, [100, 105, 0, 3])  # a reset that the source does not name
    health(place, "n1", 2, [100, 100, 101])
    health(place, "n1", 3, [500, 500])  # nothing new
    health(place, "n1", 4, [None, None])
    health(place, "n1", 5, [50, (0, 2), (60, 2)])  # higher than before the reset
    found = place.ask(fleet_faults.MEMORY_ERRORS)
    assert [(r["gpu"], r["corrected"]) for r in found] == [(5, 60), (0, 8), (1, 8), (2, 1)]
    assert {r["uncorrected"] for r in found} == {None}
    late = place.ask(
        fleet_faults.MEMORY_ERRORS, 3
    )  # what the last rows have that those before had not
    assert [(r["gpu"], r["corrected"]) for r in late] == [(5, 60), (1, 3), (0, 1), (2, 1)]
    assert place.ask(fleet_faults.MEMORY_ERRORS, 1, at_ms=place.now_ms - 2500) == []


def test_increase_of_thinned_health(place):
    """The first row within the range may be the one that brings the change."""
    place.inventory("n1", 3)
    for index, said in enumerate((((75, 7), (40, 9)), ((80, 7), (40, 9)), ((55, 7), (20, 7)))):
        place.rows("gpu_health", *(
            {"of": ("n1", index), "ts": place.now_ms - 1000 * ago, "ecc_corrected_volatile": count}
            for ago, count in said
        ))  # fmt: skip
    found = place.ask(fleet_faults.MEMORY_ERRORS, 60)
    assert [(r["gpu"], r["corrected"]) for r in found] == [(0, 2), (1, 2)]
    found = place.ask(fleet_faults.MEMORY_ERRORS, 2)
    assert [(r["gpu"], r["corrected"]) for r in found] == []


@pytest.mark.parametrize("every_s", [4, 60])
def test_a_state_is_that_of_the_newest_row(place, every_s):
    """Of rows by message and of thinned ones: who waited a while ago and was helped does not wait."""
    place.inventory("n1", 5)
    asked = {"recovery_action": 1, "remap_pending": 1, "remap_failure": 0}
    helped = {"recovery_action": 0, "remap_pending": 0, "remap_failure": 0}

    def said(index: int, began: int, ended: int, values) -> None:
        ages = sorted({*range(began, ended, -every_s)}, reverse=True)
        place.rows("gpu_health", *(
            {"of": ("n1", index), "ts": place.now_ms - 1000 * age} | values for age in ages
        ))  # fmt: skip

    said(0, 72, 12, asked)
    said(0, 10, 0, helped)
    said(1, 70, 40, helped)
    said(1, 38, 0, asked)
    said(2, 74, 60, asked)
    said(2, 57, 0, dict.fromkeys(asked))
    said(3, 110, 80, asked)  # not heard since
    said(4, 70, 0, helped | {"remap_failure": 1})
    (stat,) = place.ask(fleet_faults.HANDS_NOW)
    assert stat == {"recovery": 1, "remap_pending": 1, "remap_failed": 1, "pages_pending": None}
    waiting = place.ask(fleet_faults.WAITING)
    assert [(r["gpu"], r["recovery"], r["remap_pending"], r["remap_failed"]) for r in waiting] == [
        (4, "", 0, 1), (1, "reset GPU", 1, 0),
    ]  # fmt: skip
    assert [r["waiting_gpus"] for r in place.ask(fleet_faults.WORST_NODES)] == [2]


def test_nobody_waits(place):
    """A figure of 0 where it is reported and nobody waits."""
    place.inventory("n1", 1)
    health(place, "n1", 0, [0], recovery_action=0)
    (stat,) = place.ask(fleet_faults.HANDS_NOW)
    assert stat == {
        "recovery": 0,
        "remap_pending": None,
        "remap_failed": None,
        "pages_pending": None,
    }


def test_health_of_the_node_in_a_short_range(place):
    """A range shorter than a minute still has each GPU's newest health, not that of long ago."""
    place.inventory("n1", 2)
    place.rows("gpu_health", *(
        {"of": ("n1", index), "ts": place.now_ms - 1000 * ago, "ecc_corrected_volatile": count}
        for index, ago, count in ((0, 64, 3), (0, 62, 4), (1, 90, 5))
    ))  # fmt: skip
    found = place.ask(node_records.HEALTH, 10)
    assert [(r["gpu"], r["ecc_corrected"]) for r in found] == [(0, 4)]
    assert len(place.ask(node_records.HEALTH, 120)) == 2


def test_who_waits_for_somebody(place):
    """The state is the newest; what is not reported is absent, not 0."""
    place.inventory("n1", 3)
    for index, action in enumerate((0, 2, 0)):
        health(place, "n1", index, [0], recovery_action=action, remap_pending=index // 2)
    (stat,) = place.ask(fleet_faults.HANDS_NOW)
    assert stat == {"recovery": 1, "remap_pending": 1, "remap_failed": None, "pages_pending": None}
    waiting = place.ask(fleet_faults.WAITING)
    assert [(r["gpu"], r["recovery"], r["remap_pending"]) for r in waiting] == [
        (1, "reboot node", 0), (2, "", 1),
    ]  # fmt: skip
    assert place.ask(fleet_faults.WORST_NODES)[0]["waiting_gpus"] == 2


def test_frozen(place):
    """Power and energy stand still; steady power with a counter that runs is a steady job."""
    place.inventory("n1", 6)
    flat = {"power_w_min": 400.1, "power_w_max": 400.1}
    still = {"energy_counter_first_j": 7000, "energy_counter_last_j": 7000}
    runs = {"energy_counter_first_j": 7000, "energy_counter_last_j": 9000}
    for ago in (1, 2, 3):
        place.minute("n1", 0, ago, **flat, **still)
        place.minute("n1", 1, ago, **flat, **runs)
        place.minute("n1", 2, ago, power_w_min=400.1, power_w_max=400.2, **still)
        place.minute("n1", 3, ago, power_w_min=400 + ago, power_w_max=400 + ago, **still)
        once = dict.fromkeys(still, 9000 - ago)  # one reading a minute, and it moves
        place.minute("n1", 5, ago, **flat, **once)
    place.minute("n1", 4, 1, **flat, **still)
    found = place.ask(fleet.FROZEN)
    assert [(r["node"], r["gpu"], r["power_w"], r["minutes"]) for r in found] == [
        ("n1", 0, 400.1, 3)
    ]


def test_racks_by_temperature(place):
    """Means of a rack's GPUs weighted by their time, a cell a minute; no reading, no cell."""
    place.inventory("n1", 2, rack="r1")
    place.inventory("n2", 1, rack="r2")
    place.minute("n1", 0, 1, temp_gpu_c_ms=80 * 60_000, temp_gpu_c_dt_ms=60_000)
    place.minute("n1", 1, 1, temp_gpu_c_ms=20 * 20_000, temp_gpu_c_dt_ms=20_000)
    place.minute("n2", 0, 1, temp_gpu_c_ms=0, temp_gpu_c_dt_ms=0)
    found = place.ask(fleet.RACK_HEAT)
    assert [(r["rack"], r["temp_c"]) for r in found] == [("r1", 65.0)]


@pytest.mark.parametrize("step_s", [1, 60])
def test_slowed_gpus(place, step_s):
    """120 GPU-seconds in a minute are two GPUs, whatever step is asked for."""
    place.store.insert("tenant_minutes", {
        "site": [id64(SITE)] * 3, "tenant": [2, 3, 2],
        "ts": [place.end_ms // 1000 - s for s in (120, 120, 60)],
        "throttle_hw_thermal_ms": [60_000, 60_000, 30_000],
    })  # fmt: skip
    found = place.ask(fleet.THROTTLING, 900, step_s, at_ms=place.end_ms)
    assert [(r["hw_thermal"], r["power_cap"]) for r in found] == [(2.0, 0.0), (0.5, 0.0)]


def test_slowed_gpus_in_uneven_steps(place):
    """A step of 90 s is rounded to whole minutes, so that each holds what its length says."""
    minutes = range(1, 31)
    place.store.insert("tenant_minutes", {
        "site": [id64(SITE)] * 30, "tenant": [2] * 30,
        "ts": [place.end_ms // 1000 - 60 * m for m in minutes],
        "throttle_power_brake_ms": [180_000] * 30,
    })  # fmt: skip
    found = place.ask(fleet.THROTTLING, 1200, 90, at_ms=place.end_ms)
    assert {r["power_brake"] for r in found} == {3.0}
    assert len(found) in (10, 11)


def filled(place) -> None:
    """Two whole minutes of a node with three GPUs; in the second, one lacks 5 s."""
    place.inventory("n1", 3)
    since_ms = place.end_ms - 120_000
    for index, watts in enumerate((500, 400, 300)):
        seconds = [range(120)] if index else [range(70), range(75, 120)]
        for part in seconds:
            place.samples("n1", index, since_ms, part, power_w=watts * 10, temp_gpu_c=60 + index)
    place.records(*(
        MeterReading(site=SITE, meter="n1", kind="node", ts_ms=since_ms + 1000 * s, watts=w)
        for s, w in ((0, 1990), (30, 2010), (60, 1800), (90, 1900))
    ))  # fmt: skip


def test_the_node_is_the_sum_of_its_gpus(place):
    """The meter less the GPUs is what is left; not where a GPU's time is missing."""
    filled(place)
    found = place.ask(node.METER, 120, 1, at_ms=place.end_ms)
    assert [(r["meter_w"], r["gpus_w"], r["residual_w"]) for r in found] == [
        (2000.0, 1200.0, 800.0), (1850.0, pytest.approx(1200 - 500 * 5 / 60), None),
    ]  # fmt: skip


def test_a_flagged_reading_is_in_no_sum(place):
    """Absurd power is kept out of the node's sum and out of the lines."""
    filled(place)
    place.samples("n1", 1, place.end_ms - 121_000, range(1), power_w=99_999_999, flags=4)
    watts = [r["value"] for r in place.ask(node._POWER, 125, 1) if r["gpu"] == "GPU 1"]
    assert set(watts) == {400.0}


def test_lines_are_one_a_gpu(place):
    """Every second of each GPU, named by its index; longer steps are means."""
    filled(place)
    seconds = place.ask(node._POWER, 120, 1, at_ms=place.end_ms)
    assert len(seconds) == 3 * 120 - 5
    assert {r["gpu"]: r["value"] for r in seconds} == {"GPU 0": 500, "GPU 1": 400, "GPU 2": 300}
    steps = place.ask(node._HEAT[0], 120, 60, at_ms=place.end_ms)
    assert [(r["gpu"], r["value"]) for r in steps][:3] == [
        ("GPU 0", 60), ("GPU 1", 61), ("GPU 2", 62),
    ]  # fmt: skip
    assert place.ask(node._HEAT[1], 120, 60) == []  # memory temperature is not reported


def test_minutes_stand_in_for_long_ranges(place):
    """Beyond two hours the same figures come from gpu_minutes, the newest version of each."""
    place.inventory("n1", 1)
    kept = {"power_w_ms": 400 * 60_000, "power_w_dt_ms": 60_000, "energy_j": 24_000}
    place.minute("n1", 0, 5, version=2, **kept)
    place.minute("n1", 0, 5, version=1, **kept | {"power_w_ms": 1, "energy_j": 1})
    assert [(r["gpu"], r["value"]) for r in place.ask(node._POWER, 86_400)] == [("GPU 0", 400.0)]
    assert place.ask(node._POWER, 3600) == []
    assert [r["energy_j"] for r in place.ask(node.ENERGY, 86_400)] == [24_000.0]
    (row,) = place.ask(node.METER, 86_400)
    assert (row["gpus_w"], row["meter_w"], row["residual_w"]) == (400.0, None, None)


def test_energy_of_the_range(place):
    """The sum of what was measured, in joules; NULL is not 0."""
    filled(place)
    found = place.ask(node.ENERGY, 120, at_ms=place.end_ms - 1)
    assert [(r["gpu"], r["energy_j"]) for r in found] == [
        ("GPU 0", 57_500.0), ("GPU 1", 60_000.0), ("GPU 2", 60_000.0),
    ]  # fmt: skip


def test_gaps(place):
    """Holes, the beginning and the end; a tick that stands for a missed one leaves none."""
    end_ms = place.end_ms
    place.inventory("n1", 4, from_ms=end_ms - 60_000)
    since_ms = end_ms - 60_000
    place.samples("n1", 0, since_ms, range(60))
    place.samples("n1", 1, since_ms, range(20))
    place.samples("n1", 1, since_ms, range(21, 22), dt_ms=2000)
    place.samples("n1", 1, since_ms, range(22, 60))
    place.samples("n1", 2, since_ms, range(3, 50))
    found = place.ask(node_records.COVERAGE, 600, at_ms=end_ms)
    assert [
        (r["gpu"], r["expected_s"], r["without_rows_s"], r["longest_gap_s"]) for r in found
    ] == [(0, 60, 0, 0), (1, 60, 0, 0), (2, 60, 13, 10), (3, 60, 60, 60)]
    assert [r["coverage_pct"] for r in found] == [100, 100, pytest.approx(100 * 47 / 60), 0]
    assert found[3]["newest_row"] is None
    spans = place.ask(node_records.GAPS, 600, at_ms=end_ms)
    assert [(r["gap_s"], r["gpus"]) for r in spans] == [(10, "2"), (60, "3"), (3, "2")]


def test_rows_of_another_node_do_not_count(place):
    """A GPU that moved brings only the seconds that it spent here."""
    place.inventory("n1", 1, from_ms=place.end_ms - 60_000)
    place.samples("n1", 0, place.end_ms - 60_000, range(30))
    moved = {"of": ("n1", 0), "node": id64(SITE, "n2"), "dt_ms": 1000, "power_w": 9000}
    place.rows("gpu_samples", *({**moved, "ts": place.end_ms - 1000 * s} for s in range(1, 31)))
    assert {r["value"] for r in place.ask(node._POWER, 61, 1, at_ms=place.end_ms)} == {500.0}


def test_who_holds_the_node(place):
    """As last asserted; what ended before the range is not shown, nor what others hold."""
    base: dict[str, Any] = {"site": SITE, "source": "lease", "node": "n1"}
    from_ms = place.end_ms - HOUR_MS
    place.records(
        Allocation(**base, tenant="ada", workload="w1", from_ms=from_ms, asserted_at_ms=1),
        Allocation(**base, tenant="bob", from_ms=from_ms, asserted_at_ms=1, gpus=(0, 3)),
        Allocation(**base, tenant="bob", from_ms=from_ms, asserted_at_ms=2, gpus=(0, 3), until_ms=from_ms + 60_000),
        Allocation(**base | {"node": "n2"}, tenant="eve", from_ms=from_ms, asserted_at_ms=1),
    )  # fmt: skip
    (now,) = place.ask(node_records.HOLDERS, 900)
    assert (now["tenant"], now["workload"], now["held"], now["until"]) == ("ada", "w1", "all", None)
    assert (now["tenant_id"], now["workload_id"]) == (str(id64("", "ada")), str(id64(SITE, "w1")))
    whole = place.ask(node_records.HOLDERS, 7200)
    assert [(r["tenant"], r["held"], r["until"] is None) for r in whole] == [
        ("ada", "all", True), ("bob", "0 3", False),
    ]  # fmt: skip


def test_side_by_side(place):
    """Newest tick with names; a GPU that was never heard has a row and no figures."""
    place.inventory("n1", 3)
    place.records(Allocation(site=SITE, source="lease", tenant="ada", node="n1", from_ms=0))
    place.latest("n1", 0, 30, power_w=1000)
    place.latest("n1", 0, 3, tenant=id64("", "ada"), throttle_reasons=0x44, power_w=None)
    place.latest("n1", 1, 300, tenant=0)
    first, second, third = place.ask(node.SIDE_BY_SIDE)
    assert (first["tenant"], first["power_w"], first["clocks_limited_by"]) == (
        "ada", None, "power cap, hardware thermal",
    )  # fmt: skip
    assert (second["tenant"], second["power_w"], second["workload"]) == ("(unallocated)", 500.0, "")
    assert (third["newest"], third["power_w"], third["tenant"]) == (None, None, "")
    (now,) = place.ask(node.NOW)
    assert (now["gpus"], now["seen"], now["gpus_w"], now["hottest_c"]) == (3, 1, None, 60)
