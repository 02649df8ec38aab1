"""Rules where it is close: states that ended, counters not reported, ids without names."""

from typing import Final

import pytest

from alerts import compile as compile_
from alerts.compile import bound, query
from alerts.compile import named as named_sql
from alerts.rules.health import HEALTH
from alerts.rules.places import PLACES
from pipeline.records import id64
from tests.alerts.test_rules_fire import CASES
from tests.alerts.world import (
    AT,
    BETA,
    BY_NAME,
    CAPS,
    GPU,
    RACK,
    SITE,
    SITE_ID,
    ago,
    named,
    site_of,
)

HEALTH_AGES: Final = {"one row a minute": range(14, 194, 60), "one row a message": range(2, 194, 4)}


@pytest.mark.parametrize("ages", HEALTH_AGES.values(), ids=list(HEALTH_AGES))
@pytest.mark.parametrize(
    ("changed_s", "column", "values", "found"),
    [
        (40, "remap_failure", (1, 0), {}),
        (40, "remap_failure", (0, 1), {"GpuRowRemapFailed": 1}),
        (130, "recovery_action", (0, 2), {"GpuRecoveryAction": 2}),
        (40, "ecc_uncorrected_volatile", (1, 4), {"GpuUncorrectableEcc": 3}),
        (57, "ecc_uncorrected_volatile", (1, 4), {"GpuUncorrectableEcc": 3}),
        (70, "ecc_uncorrected_volatile", (1, 4), {}),
        (40, "nvlink_replay_errors", (5, 305), {"GpuNvlinkErrors": 300}),
        (100, "pcie_replays", (0, 90), {}),
    ],
)  # fmt: skip
def test_health_is_that_of_the_newest_row_however_many_there_are(
    world, ages, changed_s, column, values, found
) -> None:
    """What changed so many seconds ago had a row at once, beside those that come anyway."""
    world.gpus()
    rows = {age_s: values[age_s < changed_s] for age_s in ages} | {changed_s: values[1]}
    for age_s, value in rows.items():
        columns = {"gpu": id64(SITE, "h1-r1-n1/0"), "ts": ago(age_s), "site": SITE_ID}
        world.put("gpu_health", columns | {"driver_epoch": 7, column: value})
    said = {name: rows for name, rows in world.all(HEALTH).items() if rows}
    assert said == {name: [(GPU, value)] for name, value in found.items()}


def test_a_gpu_that_is_not_heard_any_more_has_no_health(world) -> None:
    world.gpus()
    world.health(late_s=(136, 76), remap_failure=1, ecc_uncorrected_volatile=(0, 9))
    assert not any(world.all(HEALTH).values())


def test_a_counter_that_was_not_reported_did_not_grow(world) -> None:
    world.gpus()
    gpu = {"gpu": id64(SITE, "h1-r1-n1/0"), "site": SITE_ID}
    world.put("gpu_health", gpu | {"ts": ago(64), "nvlink_recovery_errors": 7})
    world.put(
        "gpu_health", gpu | {"ts": ago(4), "nvlink_replay_errors": 900, "pcie_replays": 900},
        gpu | {"ts": ago(8), "nvlink_replay_errors": 900, "pcie_replays": 900},
    )  # fmt: skip
    assert not any(world.all(HEALTH).values())


def test_absurd_watts_are_in_no_sum_that_is_held_against_a_cap(world) -> None:
    site_of("h1-r1-n1")(world)
    world.live("h1-r1-n1", 2, power_w={0: 99_000}, flags={0: 4})
    assert world.ask(BY_NAME["RackPowerOverCap"]) == []


def test_a_dark_rack_does_not_hide_a_silent_node_and_a_lost_gpu_elsewhere(world) -> None:
    nodes = ("h1-r1-n1", "h1-r1-n2", "h1-r2-n1", "h1-r2-n2", "h1-r4-n1")
    site_of(*nodes, dark=nodes[:3])(world)
    world.live("h1-r3-n1", 2)
    world.gpus("h1-r3-n1", 3)
    found = world.all(PLACES)
    dark = {n: found[n] for n in ("SiteDark", "PduDark", "RackDark", "NodeSilent", "GpuMissing")}
    rack3 = {"site": SITE, "hall": "h1", "row": "h1-row1", "rack": "h1-r3", "pdu": "h1-p2"}
    assert dark == {
        "SiteDark": [], "PduDark": [], "RackDark": [(RACK, 4)],
        "NodeSilent": [(RACK | {"rack": "h1-r2", "node": "h1-r2-n1"}, 2)],
        "GpuMissing": [(rack3 | {"node": "h1-r3-n1", "gpu": "h1-r3-n1/2"}, 1)],
    }  # fmt: skip


def test_an_id_without_a_name_is_shown_as_the_engine_writes_it(world) -> None:
    """And is asked for again: its name may come. A name that was found is not asked for again."""
    world.seconds("600000", tenant=BETA)
    world.seconds("600000")
    ((labels, _),) = world.ask(BY_NAME["SitePowerOverCap"])
    hexed = f"SELECT lower(hex(toUInt64({SITE_ID})))"
    assert labels == {"site": world.store.query(hexed).rows[0][0]}
    named(world)
    assert world.ask(BY_NAME["SitePowerOverCap"])[0][0] == {"site": SITE}
    world.store.command("TRUNCATE TABLE inventory")
    assert world.ask(BY_NAME["SitePowerOverCap"])[0][0] == {"site": SITE}


def test_grafana_is_told_the_same_names(world) -> None:
    broken = CASES["TenantOverContract"]
    broken.broken(world)
    rule = BY_NAME["TenantOverContract"]
    assert rule.signal is not None
    text = named_sql(rule.signal, rule, query(rule.signal, [rule], {}, ordered=True))
    rows = world.store.query(bound(text, CAPS), {"at": AT}).dicts()
    assert [broken.labels | {rule.name: pytest.approx(120)}] == rows


def test_an_answer_that_is_cut_is_cut_in_the_order_of_its_labels(world, monkeypatch) -> None:
    dark = tuple(f"h1-r{n}-n1" for n in (6, 2, 4))
    site_of("h1-r1-n1", "h1-r3-n1", "h1-r5-n1", *dark, dark=dark)(world)
    monkeypatch.setattr(compile_, "MAX_ROWS", 2)
    assert [labels["rack"] for labels, _ in world.ask(BY_NAME["RackDark"])] == ["h1-r2"]


IDLE: Final = {"active_ms": "0", "power_w_min": "70", "power_w_max": "70"}


def test_who_is_idle_and_steady_is_frozen_only_if_the_counter_stands_still(world) -> None:
    """With one reading of the counter a minute, or with one a message."""
    world.gpus()
    once = {"energy_counter_first_j": "9e6 - 4200 * m", "energy_counter_last_j": "9e6 - 4200 * m"}
    often = {
        "energy_counter_first_j": "9e6 - 4200 * m",
        "energy_counter_last_j": "9e6 - 4200 * (m - 1)",
    }
    world.gpu_minutes(0, **IDLE, **once)
    world.gpu_minutes(1, **IDLE, **often)
    world.gpu_minutes(2, **IDLE)
    world.gpu_minutes(3, **IDLE, energy_counter_first_j="9e6", energy_counter_last_j="9e6")
    assert world.ask(BY_NAME["GpuFrozen"]) == [(GPU | {"gpu": "h1-r1-n1/3"}, 5)]
