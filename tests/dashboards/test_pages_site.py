"""The page Site power: known rows in, known figures on its panels."""

import random

import pytest

from dashboards import macros
from dashboards.pages import site as page
from dashboards.pages import swings
from pipeline import queries
from pipeline.records import BAD_POWER, id64

SITE = "north"
ID = id64(SITE)
T0 = 1_790_001_000
"""Epoch seconds: the first of a quarter of an hour and of its minute."""
RED, BLUE = id64("", "red"), id64("", "blue")
JOB = id64(SITE, "job-1")


def ask(store, panel, since, until, step_s=1, site=ID):
    """Rows of a panel over [T0 + since, T0 + until)."""
    span = macros.Span((T0 + since) * 1000, (T0 + until) * 1000, step_s)
    query = macros.expand(panel.sql, span, {"site": str(site)})
    return store.query(query.sql, query.parameters).dicts()


def samples(store, seconds, gpus=(1,), tenant=RED, watts=500, workload=0, flags=0):
    """A row a second of each GPU."""
    insert(store, of(seconds, gpus, tenant, watts, workload, flags))


def of(seconds, gpus=(1,), tenant=RED, watts=500, workload=0, flags=0):
    """The same as rows, to insert many of them at once."""
    return [
        (gpu, (T0 + second) * 1000, ID, tenant, workload, 1000, flags, watts * 10)
        for second in seconds
        for gpu in gpus
    ]


def insert(store, rows):
    """Samples, with their GPUs in the table of the latest."""
    names = ("gpu", "ts", "site", "tenant", "workload", "dt_ms", "flags", "power_w")
    store.insert("gpu_samples", dict(zip(names, map(list, zip(*rows, strict=True)), strict=True)))
    gpus = sorted({row[0] for row in rows})
    store.insert("gpu_latest", {"gpu": gpus, "site": [ID] * len(gpus)})


def inventory(store, gpus, since=-3600, until=None, site=SITE):
    """GPUs of the inventory, from a time on."""
    one = {
        "site": site, "site_id": id64(site), "node": "n1", "node_id": 7,
        "from_ts": int((T0 + since) * 1000),
        "until_ts": None if until is None else int((T0 + until) * 1000),
    }  # fmt: skip
    store.insert(
        "inventory",
        {"gpu_id": list(gpus), "gpu_index": list(gpus)}
        | {name: [value] * len(gpus) for name, value in one.items()},
    )


def contract(store, tenant="red", kw=10, gpus=8, since=-100, until=None, said=1, site=SITE):
    """An assertion of a contract."""
    store.insert("contracts", {
        "site": [site], "tenant": [tenant], "tenant_id": [id64("", tenant)], "selectors": [["{}"]],
        "from_ts": [(T0 + since) * 1000], "until_ts": [None if until is None else (T0 + until) * 1000],
        "contracted_gpus": [gpus], "contracted_kw": [kw * 1000], "asserted_at": [said],
    })  # fmt: skip


def names(store, *tenants):
    """Tenants and a workload that allocations name."""
    for tenant in tenants:
        store.insert("allocations", {
            "site": [SITE], "site_id": [ID], "tenant": [tenant], "tenant_id": [id64("", tenant)],
            "workload": ["job-1"], "workload_id": [JOB], "asserted_at": [1],
        })  # fmt: skip


def meter(store, kind, name, seconds, watts):
    """Readings of a meter."""
    store.insert("meters", {
        "site": [ID] * len(seconds), "meter": [name] * len(seconds), "kind": [kind] * len(seconds),
        "ts": [(T0 + s) * 1000 for s in seconds], "watts": [watts * 1000] * len(seconds),
    })  # fmt: skip


KINDS = {"site": 6, "hall": 5, "node": 1}


@pytest.fixture
def busy(store):
    """Ten minutes of two tenants and of nobody, at changing watts, with a hole and a bad reading."""
    dice = random.Random(4)
    inventory(store, list(range(1, 7)))
    inventory(store, [9], since=250.25, until=431.5)
    names(store, "red", "blue")
    rows = []
    for tenant, gpus in ((RED, (1, 2)), (BLUE, (3, 4)), (0, (5,))):
        for begin in range(0, 610, 10):
            if not (tenant == BLUE and 200 <= begin < 230):
                seconds = range(begin, begin + 10)
                rows += of(seconds, gpus, tenant, dice.randrange(100, 700))
    insert(store, [*rows, *of([77], (6,), RED, 9999, flags=BAD_POWER)])
    return store


@pytest.mark.parametrize(("step", "since", "until"), [
    ("1s", 0, 610), ("1s", 5, 333), ("1m", 0, 610), ("1m", 0, 720), ("15m", 0, 610), ("1m", 60, 300),
])  # fmt: skip
def test_power_and_coverage_are_those_of_the_command(busy, step, since, until):
    """Also in the last step, which is cut at the newest second."""
    span = ((T0 + since) * 1000, (T0 + until) * 1000)
    seconds = queries.STEPS[step]
    said = queries.power(busy, *span, seconds, "tenant", SITE)
    shown = ask(busy, page.POWER_BY_TENANT, since, until, seconds)
    assert {(r["time"].timestamp() * 1000, r["tenant_name"]): r["watts"] for r in shown} == {
        (p.ts_ms, p.tenant): pytest.approx(p.watts, rel=1e-12) for p in said
    }
    covered = {p.ts_ms: p.coverage for p in queries.power(busy, *span, seconds, "site", SITE)}
    shown = {
        r["time"].timestamp() * 1000: r["coverage"]
        for r in ask(busy, page.COVERAGE, since, until, seconds)
    }
    last = max(covered)
    assert {t: shown[t] for t in covered if t < last or until <= 610} == {
        t: pytest.approx(c, rel=1e-12) for t, c in covered.items() if t < last or until <= 610
    }


def test_a_silent_site_is_covered_by_nothing(busy):
    """0 of what is expected; where nothing is expected there is no coverage."""
    assert {r["coverage"] for r in ask(busy, page.COVERAGE, 700, 760)} == {0}
    assert ask(busy, page.COVERAGE, -9000, -8000) == []


def test_power_now_is_the_last_complete_second(busy):
    """As the command has it, with its coverage; the seconds that are not settled are not shown."""
    (said,) = queries.power(busy, (T0 + 609) * 1000, (T0 + 610) * 1000, 1, "site", SITE)
    (shown,) = ask(busy, page.NOW_PANEL, 0, 615)
    assert (shown["power"], shown["coverage"]) == (said.watts, pytest.approx(said.coverage))
    busy.command(
        "INSERT INTO ingest_log (at, kind, watermark)"
        f" SELECT now64(3), 'insert', fromUnixTimestamp64Milli({(T0 + 265) * 1000})"
    )
    (said,) = queries.power(busy, (T0 + 259) * 1000, (T0 + 260) * 1000, 1, "site", SITE)
    assert said.coverage == pytest.approx(5 / 7)
    (shown,) = ask(busy, page.NOW_PANEL, 0, 300)
    assert (shown["power"], shown["coverage"]) == (said.watts, pytest.approx(said.coverage))
    assert ask(busy, page.NOW_PANEL, 0, 330) == []


def test_power_that_stopped_is_no_power_now(busy):
    """A minute after the last row there is none, and no other site has any."""
    assert ask(busy, page.NOW_PANEL, 0, 671) == []
    assert ask(busy, page.NOW_PANEL, 0, 610, site=5) == []


def test_without_an_inventory_power_has_no_coverage(store):
    """And no series of it."""
    samples(store, range(5))
    assert ask(store, page.NOW_PANEL, 0, 5) == [{"power": 500.0, "coverage": None}]
    assert ask(store, page.COVERAGE, 0, 5) == []


def test_headroom_is_to_the_contracts_in_force(store):
    """The newest assertion of each; none that ended, begins later, was withdrawn or is elsewhere."""
    inventory(store, [1])
    samples(store, range(5))
    assert ask(store, page.HEADROOM, 0, 5) == []
    contract(store, kw=10, said=1)
    contract(store, kw=3, said=2)
    contract(store, "blue", kw=2)
    contract(store, "old", kw=100, until=4)
    contract(store, "new", kw=100, since=50)
    contract(store, "undone", kw=100, said=1)
    contract(store, "undone", kw=100, until=-100, said=2)
    contract(store, "far", kw=100, site="south")
    assert ask(store, page.HEADROOM, 0, 5) == [
        {"contracted": 5000.0, "headroom": 4500.0, "used": 0.1}
    ]
    assert ask(store, page.HEADROOM, 0, 500) == []


def test_the_peak_is_the_best_whole_quarter(store):
    """Its mean over 900 s, and when it began; what the range cuts does not count."""
    for quarter, watts in enumerate((9000, 400, 800, 600)):
        samples(store, range(quarter * 900, quarter * 900 + 900, 10), watts=watts)
    samples(store, range(3600, 3700), watts=99_000)
    shown = ask(store, page.PEAK, 30, 3720, 60)
    assert shown == [{"peak": 80.0, "began": (T0 + 1800) * 1000}]
    assert ask(store, page.PEAK, 30, 900, 60) == []


def test_ramps_compare_complete_seconds(store):
    """1,000 W in a second; over 5 s a fifth of it; over 60 s a sixtieth."""
    samples(store, range(100), gpus=(1, 2, 3, 4), watts=500)
    samples(store, range(100, 120), gpus=(1, 2, 3, 4), watts=750)
    by_second = {int(r["time"].timestamp()) - T0: r for r in ask(store, swings.RAMP, 0, 120)}
    assert by_second[100] | {"time": 0} == {
        "time": 0, "over 1 s": pytest.approx(1e-3), "over 5 s": pytest.approx(2e-4),
        "over 60 s": pytest.approx(1e-3 / 60),
    }  # fmt: skip
    assert by_second[101]["over 1 s"] == 0
    assert by_second[101]["over 5 s"] == pytest.approx(2e-4)
    assert 0 not in by_second
    assert by_second[3]["over 5 s"] is None
    assert max(by_second) == 119


def test_a_step_shows_its_steepest_ramp_with_its_sign(store):
    """A rise of 100 W and a fall of 400 W within ten seconds."""
    for second, watts in enumerate((500, 600, 200, 200, 200)):
        samples(store, [second], watts=watts)
    (row,) = ask(store, swings.RAMP, 0, 10, 10)
    assert row["over 1 s"] == pytest.approx(-4e-4)


def test_gpus_that_fall_silent_are_no_ramp(store):
    """A second with fewer GPUs is compared with none, nor is one after a hole."""
    samples(store, range(20), gpus=(1, 2))
    samples(store, [*range(10), *range(12, 20)], gpus=(3, 4))
    shown = {int(r["time"].timestamp()) - T0: r["over 1 s"] for r in ask(store, swings.RAMP, 0, 20)}
    assert set(shown.values()) == {0, None}
    assert {s for s, ramp in shown.items() if ramp is None} | {10, 12} == {10, 12}
    assert ask(store, swings.RAMP, 100, 200) == []


def test_ramps_of_long_ranges_compare_minutes(store):
    """Only over 60 s."""
    samples(store, range(60), watts=500)
    samples(store, range(60, 120), watts=800)
    assert [
        (r["over 1 s"], r["over 5 s"], r["over 60 s"]) for r in ask(store, swings.RAMP, 0, 180, 60)
    ] == [(None, None, pytest.approx(3e-4 / 60))]


def test_movers_add_up_to_the_change_of_the_site(busy):
    """By tenant and by workload, signed, the site first; equal to the command's watts."""
    samples(busy, range(610, 615), (1, 2), BLUE, 650, JOB)
    samples(busy, range(610, 615), (3, 4), BLUE, 10)
    for until in (600, 615):
        at = {n: queries.power(busy, (T0 + n) * 1000, (T0 + n + 1) * 1000, 1, "site", SITE)
              for n in (until - 61, until - 1)}  # fmt: skip
        change = at[until - 1][0].watts - at[until - 61][0].watts
        for panel in (swings.MOVERS, swings.WORKLOAD_MOVERS):
            total, *rows = ask(busy, panel, 0, until)
            assert (total["tenant"], total["change"]) == ("(site)", pytest.approx(change))
            assert sum(r["change"] for r in rows) == pytest.approx(change)
            assert sum(r["now"] for r in rows) == pytest.approx(at[until - 1][0].watts)
            assert [abs(r["change"]) for r in rows] == sorted(
                (abs(r["change"]) for r in rows), reverse=True
            )
    by_name = {(r["tenant"], r["workload"]): r for r in rows}
    assert by_name["blue", "job-1"]["now"] == pytest.approx(1300)
    assert by_name["blue", "job-1"]["gpus"] == 2
    moved = {r["tenant"]: r for r in ask(busy, swings.MOVERS, 0, 615)}
    assert moved["red"]["now"] == 0
    assert (moved["red"]["gpus_before"], moved["red"]["gpus_now"]) == (2, 0)
    assert moved["blue"]["tenant_id"] == str(BLUE)


def test_many_workloads_leave_others_that_add_up(store):
    """Fifteen by name; the rest in one row."""
    rows = []
    for gpu in range(1, 31):
        rows += of(range(70), (gpu,), RED, 100 + gpu, workload=gpu)
        rows += of([70], (gpu,), RED, 100 + 3 * gpu, workload=gpu)
    insert(store, rows)
    total, *rows = ask(store, swings.WORKLOAD_MOVERS, 0, 71)
    assert [r["change"] for r in rows[:15]] == pytest.approx([2.0 * n for n in range(30, 15, -1)])
    assert (rows[15]["tenant"], rows[15]["gpus"]) == ("(others)", 15)
    assert len(rows) == 16
    assert sum(r["change"] for r in rows) == pytest.approx(total["change"]) == pytest.approx(930)
    assert total["gpus"] == 30


def test_without_the_second_before_nobody_moved(store):
    """A minute that is not there is not 0 W."""
    samples(store, range(60))
    assert ask(store, swings.MOVERS, 0, 60) == []
    assert ask(store, swings.WORKLOAD_MOVERS, 0, 60) == []


def test_the_residual_is_the_meters_less_the_gpus(store):
    """Of the site's meters, which come before halls; only where all have read."""
    samples(store, range(1200), gpus=(1, 2))
    assert ask(store, page.METERS, 0, 1200)[0]["residual"] is None
    for hall, seconds in (("A", range(0, 1200, 60)), ("B", range(0, 600, 60))):
        meter(store, KINDS["hall"], hall, list(seconds), 700)
    meter(store, KINDS["hall"], "A", [30], -5)
    shown = ask(store, page.METERS, 0, 1210, 5)
    assert [int(r["time"].timestamp()) - T0 for r in shown] == [0, 300, 600, 900]
    assert [r["hall meters"] for r in shown] == [1400.0, 1400.0, None, None]
    assert [r["residual"] for r in shown] == [400.0, 400.0, None, None]
    meter(store, KINDS["site"], "grid", list(range(0, 1200, 60)), 2500)
    assert [r["residual"] for r in ask(store, page.METERS, 0, 1210, 5)] == pytest.approx(
        [1500.0] * 4
    )


def test_node_meters_are_read_from_closed_quarters(store):
    """The last version that was closed, as a mean over its quarter."""
    samples(store, range(910))
    for version, state, joules in ((1, 1, 900_000), (2, 1, 540_000), (3, 2, 1)):
        store.insert("ledger_closes", {
            "site": [ID], "ts": [T0], "version": [version], "state": [state],
            "meter_energy_j": [joules * 1000],
        })  # fmt: skip
    shown = ask(store, page.METERS, 0, 910)
    assert [(r["GPUs"], r["node meters"], r["residual"]) for r in shown] == [
        (500.0, 600.0, 100.0)
    ] * 3
    (whole,) = ask(store, page.METERS, 0, 910, 900)
    assert (whole["node meters"], whole["residual"]) == (600.0, pytest.approx(100.0))


def test_the_table_of_tenants_has_who_draws_and_who_leases(busy):
    """Watts and GPUs of the second, shares of one, and a lessee without power has an empty cell."""
    contract(busy, "red", kw=2, gpus=2)
    contract(busy, "green", kw=1, gpus=1)
    rows = {r["tenant"]: r for r in ask(busy, page.TENANTS, 0, 610)}
    assert set(rows) == {"red", "blue", "green", "(unallocated)"}
    assert sum(r["share"] or 0 for r in rows.values()) == pytest.approx(1)
    said = queries.power(busy, (T0 + 609) * 1000, (T0 + 610) * 1000, 1, "tenant", SITE)
    assert {p.tenant: p.watts for p in said} == {
        n: r["power"] for n, r in rows.items() if n != "green"
    }
    assert (rows["green"]["power"], rows["green"]["gpus_leased"]) == (None, 1)
    assert rows["blue"]["gpus_leased"] is None
    assert rows["red"]["gpus_measured"] == 2
    assert rows["red"]["used"] == pytest.approx(rows["red"]["power"] / 2000)
    assert rows["red"]["site_id"] == str(ID)
    assert ask(busy, page.TENANTS, 0, 700) == []


def test_annotations_are_of_the_site(store):
    """What began on it within the range: alerts, versions of agents, allocations."""
    alerts, deploys, allocations = page.PAGES[0].annotations
    store.insert("alert_history", {"at": [T0 * 1000] * 2, "rule": ["hot", "hot"], "state": [1, 2]})
    for version, second in (("1.0", -500), ("1.1", 20), ("1.1", 40)):
        store.insert("inventory", {
            "site": [SITE], "site_id": [ID], "gpu_id": [second + 600], "node_id": [second + 600],
            "agent_version": [version], "from_ts": [(T0 + second) * 1000],
            "asserted_at": [(T0 + second) * 1000],
        })  # fmt: skip
    for tenant, second in (("red", 10), ("red", 5000)):
        store.insert("allocations", {
            "site_id": [ID], "tenant": [tenant], "tenant_id": [id64("", tenant)], "node_id": [1],
            "from_ts": [(T0 + second) * 1000],
        })  # fmt: skip
    assert [r["text"] for r in ask(store, alerts, 0, 100)] == ["hot firing"]
    (deploy,) = ask(store, deploys, 0, 100)
    assert deploy["time"].timestamp() == T0 + 20
    assert deploy["text"] == "agents 1.1 begin: 2 nodes by now"
    assert [r["text"] for r in ask(store, allocations, 0, 100)] == [
        "red: 1 allocations begin on 1 nodes"
    ]
    for one in (deploys, allocations):
        assert ask(store, one, 0, 100, site=5) == []
