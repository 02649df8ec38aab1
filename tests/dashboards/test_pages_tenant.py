"""The page Tenant: its money is the statement's, its rows are what a tenant may see."""

import random
import re
from zoneinfo import ZoneInfo

import pytest

from dashboards import macros
from dashboards.pages import tenant as page
from pipeline import rbac
from pipeline.ledger import usage
from pipeline.ledger.figures import CAUSES, HISTOGRAM_BINS, THROTTLES
from pipeline.records import id64
from pipeline.settings import ClickHouse
from tests.dashboards.test_pages_site import ID, SITE, T0, contract, insert, inventory, of

QUARTER = 900
BERLIN = "Europe/Berlin"
MONTH = 1_788_213_600
"""2026-09-01 00:00 in Berlin, which is August still in UTC."""
TENANTS = ("plain", "two", "ended", "late", "corrected", "free", "none")
PANELS = [panel for row in page.PAGES[0].rows for panel in row]


def asked(panel, tenant, since, until, step_s=1, site=ID):
    """The query of a panel over [since, until) epoch seconds, with its parameters."""
    span = macros.Span(since * 1000, until * 1000, step_s)
    return macros.expand(panel.sql, span, {"site": str(site), "tenant": str(id64("", tenant))})


def ask(store, panel, tenant, since, until, step_s=1):
    """The rows of it."""
    query = asked(panel, tenant, since, until, step_s)
    return store.query(query.sql, query.parameters).dicts()


def close(store, quarters, tenants, seed=1, version=1, state=1):
    """Quarters of the ledger, with figures by chance: (ts, tenant) to what was inserted."""
    dice = random.Random(seed)
    rows = []
    for ts in quarters:
        for tenant in tenants:
            held = dice.randrange(1, 9) * QUARTER * 1000 - dice.randrange(2) * 333_333
            measured = held - dice.randrange(3) * 10_007
            rows.append({
                "site": ID, "ts": ts, "tenant": id64("", tenant), "workload": dice.randrange(3),
                "version": version, "allocated_ms": held, "measured_ms": measured,
                "energy_j": dice.randrange(10**9), "bridged_j": dice.randrange(10**6),
                "util_gpu_pct_ms": measured * 50, "util_gpu_pct_dt_ms": measured,
                "active_ms": dice.randrange(measured), "gap_ms_by_cause": [0] * len(CAUSES),
                "util_ms_by_bin": [0] * HISTOGRAM_BINS,
                **{f"throttle_{name}_ms": dice.randrange(99_999) for name in THROTTLES},
            })  # fmt: skip
    store.insert("ledger_holders", {name: [row[name] for row in rows] for name in rows[0]})
    store.insert("ledger_closes", {
        "site": [ID] * len(quarters), "ts": list(quarters), "version": [version] * len(quarters),
        "state": [state] * len(quarters),
    })  # fmt: skip


def priced(store, tenant, since, until=None, *, hour="2.10", kwh="0.1855", said=1, zone=BERLIN):
    """A contract with prices, from and until seconds of the month."""
    millionths = {name: round(float(value) * 10**6) for name, value in
                  (("price_per_gpu_hour", hour), ("price_per_kwh", kwh))}  # fmt: skip
    row = {
        "site": SITE, "tenant": tenant, "tenant_id": id64("", tenant), "selectors": ["{}"],
        "timezone": zone, "from_ts": (MONTH + since) * 1000,
        "until_ts": None if until is None else (MONTH + until) * 1000, "contracted_gpus": 5,
        "contracted_kw": 7000, "currency": "EUR", "availability_pct": 995_000, "asserted_at": said,
    } | millionths  # fmt: skip
    store.insert("contracts", {name: [value] for name, value in row.items()})


@pytest.fixture
def month(store):
    """September so far, closed twice: the second time other figures, the third time refused."""
    inventory(store, [1])
    quarters = [
        MONTH - QUARTER,
        MONTH,
        MONTH + QUARTER,
        *range(MONTH + 86_400, MONTH + 200_000, 9000),
    ]
    close(store, quarters, TENANTS)
    close(store, quarters[1:4], TENANTS, seed=2, version=2)
    close(store, quarters[2:3], TENANTS, seed=3, version=3, state=2)
    priced(store, "plain", -1000)
    priced(store, "two", -9000, 86_400)
    priced(store, "two", 86_400, hour="3.333333", kwh="0.000001")
    priced(store, "ended", -9000, 90_000, hour="1.5")
    priced(store, "late", 150_000, hour="1.25")
    priced(store, "corrected", -5, said=5, hour="0.01")
    priced(store, "corrected", -5, said=4, hour="9")
    priced(store, "free", -1000, hour="0", kwh="0")
    return store


@pytest.mark.parametrize("tenant", TENANTS)
def test_the_month_is_the_statements_to_the_cent(month, tenant):
    """GPU-hours, energy, cost, delivery, idle and slowed time, whatever contracts there were."""
    now = MONTH + 250_000
    zone = "UTC" if tenant == "none" else BERLIN
    since = MONTH + 7200 if tenant == "none" else MONTH
    (used,) = ask(month, page.MONTH_USE, tenant, now - 60, now)
    until = used["until"] // 1000
    assert until == MONTH + 86_400 + 9000 * 12 + QUARTER
    (said,) = usage.statement(
        month, SITE, ZoneInfo(zone), (since * 1000, until * 1000), tenant=tenant
    ).tenants
    assert used["GPU-hours"] == pytest.approx(said.gpu_hours_allocated, abs=1e-6)
    assert used["energy"] == pytest.approx(said.gpu_energy_kwh, abs=1e-8)
    assert used["coverage"] == pytest.approx(said.coverage, abs=1e-6)
    (lost,) = ask(month, page.MONTH_LOST, tenant, now - 60, now)
    assert lost.pop("idle") == pytest.approx(said.gpu_hours_idle, abs=1e-6)
    assert list(lost.values()) == pytest.approx(list(said.throttled_hours.values()), abs=1e-6)
    cost = ask(month, page.MONTH_COST, tenant, now - 60, now)
    delivered = ask(month, page.MONTH_DELIVERED, tenant, now - 60, now)
    if said.terms is None:
        assert (tenant, cost, delivered) == ("none", [], [])
        return
    assert [cost[0][name] for name in ("of GPU-hours", "of energy", "cost", "currency")] == [
        said.cost_gpu_hours, said.cost_energy, said.cost, said.currency,
    ]  # fmt: skip
    assert delivered[0]["delivered"] == pytest.approx(said.delivered_gpus, abs=1e-3)
    assert delivered[0]["availability"] == pytest.approx(said.availability_pct, abs=1e-4)
    assert (delivered[0]["contracted"], delivered[0]["promised"]) == (5, 99.5)


def test_a_month_without_closed_quarters_has_no_figures(month):
    """Not 0 kWh, not 0 EUR: another month, another tenant."""
    for panel in (page.MONTH_USE, page.MONTH_COST, page.MONTH_DELIVERED, page.MONTH_LOST):
        assert ask(month, panel, "plain", MONTH + 40 * 86_400, MONTH + 41 * 86_400) == []
        assert ask(month, panel, "somebody", MONTH, MONTH + 250_000) == []


@pytest.fixture
def live(store):
    """Two minutes and ten seconds of a tenant with two of three GPUs, next to another's."""
    inventory(store, [1, 2, 9])
    contract(store, "red", kw=2, gpus=3)
    contract(store, "blue", kw=50, gpus=50)
    rows = of(range(130), (1, 2)) + of(range(130), (9,), id64("", "blue"), 9000)
    insert(store, rows)
    return store


def test_what_is_now(live):
    """GPUs, watts against the contract; utilisation that nobody reports is not 0."""
    (gpus,) = ask(live, page.GPUS_NOW, "red", T0, T0 + 130)
    assert gpus == {"leased": 3, "measured": 2.0, "active": None, "measured of leased": 2 / 3}
    (power,) = ask(live, page.POWER_NOW, "red", T0, T0 + 130)
    assert power == {"power": 1000.0, "contracted": 2000.0, "used": 0.5}
    (used,) = ask(live, page.UTILIZATION_NOW, "red", T0, T0 + 130)
    assert set(used.values()) == {None}
    for panel in (page.GPUS_NOW, page.POWER_NOW):
        assert ask(live, panel, "red", T0, T0 + 191) == []
    assert ask(live, page.UTILIZATION_NOW, "red", T0, T0 + 400) == []


def test_active_gpus_and_utilisation_are_of_the_last_whole_minute(store):
    """One of two GPUs at 80 %, the other idle: one active, 40 %."""
    for gpu, util in ((1, 80), (2, 0)):
        seconds = range(70)
        store.insert("gpu_samples", {
            "gpu": [gpu] * 70, "ts": [(T0 + s) * 1000 for s in seconds], "site": [ID] * 70,
            "tenant": [id64("", "red")] * 70, "dt_ms": [1000] * 70, "power_w": [5000] * 70,
            "util_gpu_pct": [util] * 70, "throttle_power_cap_ms": [250 * (gpu - 1)] * 70,
        })  # fmt: skip
    assert ask(store, page.GPUS_NOW, "red", T0, T0 + 70)[0]["active"] == 1
    (used,) = ask(store, page.UTILIZATION_NOW, "red", T0, T0 + 70)
    assert used == {"GPU": 40.0, "multiprocessors": None, "tensor cores": None}
    (point,) = ask(store, page.UTILIZATION, "red", T0, T0 + 70)
    assert (point["GPU"], point["time"].timestamp()) == (40.0, T0)
    (slowed,) = ask(store, page.SLOWED, "red", T0, T0 + 70)
    assert (slowed["power cap"], slowed["power brake"]) == (0.125, 0)


def test_power_is_drawn_beside_what_was_agreed(live):
    """In steps of seconds and of minutes alike, the last one cut at the newest row."""
    for step in (10, 60):
        shown = ask(live, page.POWER, "red", T0, T0 + 600, step)
        assert {(r["power"], r["contracted"]) for r in shown} == {(1000.0, 2000.0)}
        assert len(shown) == -(-130 // step)


def test_energy_is_provisional_until_it_is_closed(store):
    """By quarter; both where both are; by day of the contract's zone in a long range."""
    inventory(store, [1])
    priced(store, "red", -1000)
    close(store, [MONTH, MONTH + QUARTER], ["red"])
    sums = store.query(
        "SELECT toFloat64(sum(energy_j + bridged_j)), sum(allocated_ms) FROM ledger_holders"
    ).rows[0]
    store.insert("gpu_samples", {
        "gpu": [1, 1], "ts": [MONTH * 1000, (MONTH + 1800) * 1000], "site": [ID] * 2,
        "tenant": [id64("", "red")] * 2, "dt_ms": [1000] * 2, "energy_j": [3_600_000] * 2,
    })  # fmt: skip
    shown = ask(store, page.ENERGY, "red", MONTH + 60, MONTH + 3600, 60)
    assert [int(r["time"].timestamp()) - MONTH for r in shown] == [0, 900, 1800]
    assert [r["provisional"] for r in shown] == [0.001, None, 0.001]
    assert [r["closed"] is None for r in shown] == [False, False, True]
    (day,) = ask(store, page.ENERGY, "red", MONTH + 60, MONTH + 5 * 86_400, 600)
    assert day["time"].timestamp() == MONTH
    assert day["provisional"] == pytest.approx(0.002)
    assert day["closed"] == pytest.approx(sums[0] / 3.6e6)
    (hours,) = ask(store, page.GPU_HOURS, "red", MONTH + 60, MONTH + 5 * 86_400, 600)
    assert hours["provisional"] == pytest.approx(2 / 3600)
    assert hours["closed"] == pytest.approx(sums[1] / 3.6e6)


def test_delivered_gpus_are_means_over_closed_quarters(month):
    """Held and measured, of the version that counts."""
    shown = ask(month, page.DELIVERED, "plain", MONTH, MONTH + 1800)
    rows = month.query(
        "SELECT allocated_ms / 900000, measured_ms / 900000 FROM ledger_holders WHERE version = 2"
        " AND tenant = {tenant:UInt64} AND ts < toDateTime({until:Int64}) ORDER BY ts",
        {"tenant": id64("", "plain"), "until": MONTH + 1800},
    ).rows
    assert [(r["held"], r["measured"], r["contracted"]) for r in shown] == [
        (*row, 5) for row in rows
    ]
    assert len(shown) == 2


def test_the_page_reads_what_a_tenant_may_read(month):
    """All its queries give a tenant the same, asked in a database that has its views alone."""
    insert(month, of(range(130), (1, 2), id64("", "plain")))
    made = rbac.statements(ClickHouse(database="default"), ["plain"])
    home = f"default_tenant_{id64('', 'plain'):016x}"
    month.command(f"CREATE DATABASE {home}")
    for sql in made:
        if found := re.match(r"CREATE OR REPLACE VIEW (\S+) .* SECURITY DEFINER AS (.*)", sql):
            month.command(f"CREATE VIEW {found[1]} AS {found[2]}")
    views = [name for (name,) in month.query(f"SHOW TABLES FROM {home}").rows]
    for panel in (*PANELS, *page.PAGES[0].variables):
        for span in ((T0, T0 + 130), (MONTH, MONTH + 250_000)):
            query = asked(panel, "plain", *span, 60)
            names = set(re.findall(r"\b(?:FROM|JOIN) (\w+)", query.sql))
            assert names <= {*views, "sums", "period", "contract", "closed"}
            there = re.sub(rf"\b(FROM|JOIN) ({'|'.join(views)})\b", rf"\1 {home}.\2", query.sql)
            mine = month.query(there, query.parameters).dicts()
            if panel in PANELS:
                assert mine == month.query(query.sql, query.parameters).dicts()
            else:
                assert len(mine) == 1
    assert page.PAGES[0].annotations == ()
