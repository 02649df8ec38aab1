"""Who is where and who holds what, as it is told: moved GPUs, reused names, late news, corrections."""

import itertools
import random
from typing import Any

import numpy as np
import pytest

from pipeline import directory as module
from pipeline.directory import Directory
from pipeline.errors import Reject
from pipeline.ledger.contracts import Contract, iso, parse
from pipeline.records import SHARED, Allocation, Gpu, Inventory, id64
from pipeline.rows import by_table
from pipeline.warm import warmed
from pipeline.wire import LAYOUT, ROW, Layout
from tests.messages import SITE, T0_MS

A, B = id64("", "a"), id64("", "b")


def node(name: str, *uuids: str, at: int = 0, **changes) -> Inventory:
    gpus = tuple(Gpu(i, uuid) for i, uuid in enumerate(uuids))
    return Inventory(site=SITE, node=name, from_ms=T0_MS + at, gpus=gpus, **changes)


def claim(name, tenant, since=0, until=None, **changes):
    fields: dict[str, Any] = {"source": "lease", "gpus": (), "asserted_at_ms": T0_MS} | changes
    until_ms = None if until is None else T0_MS + until
    return Allocation(
        site=SITE, tenant=tenant, node=name, from_ms=T0_MS + since, until_ms=until_ms, **fields
    )


def told(changes):
    """(node, uuid, from, until) of what is to be stored, times after T0."""
    return {
        (c.node, g.uuid, c.from_ms - T0_MS, None if c.until_ms is None else c.until_ms - T0_MS)
        for c in changes
        for g in c.gpus
    }


def holder(directory: Directory, uuid: str, at: int) -> int:
    ids = np.array([[id64(SITE, uuid)]], np.uint64)
    return int(directory.holders().at(ids, np.array([[T0_MS + at]]))[0][0, 0, 0])


def test_the_first_news_of_a_node_begins_its_gpus_and_a_repetition_nothing():
    """Agents announce themselves every few minutes."""
    directory = Directory()
    assert told(directory.learn(node("n1", "g0", "g1"))) == {
        ("n1", "g0", 0, None), ("n1", "g1", 0, None),
    }  # fmt: skip
    assert directory.learn(node("n1", "g0", "g1", at=60)) == []
    assert directory.expected_gpus() == 2


def test_a_gpu_that_is_gone_ends_with_the_beginning_that_it_had():
    """Not with that of the last repetition: the row that is open would stay open for ever."""
    directory = Directory()
    directory.learn(node("n1", "g0", "g1"))
    directory.learn(node("n1", "g0", "g1", at=60))
    directory.learn(node("n1", "g0", "g1", "g2", at=70))
    assert told(directory.learn(node("n1", "g0", at=99))) == {
        ("n1", "g1", 0, 99), ("n1", "g2", 70, 99),
    }  # fmt: skip
    assert directory.expected_gpus() == 1


def test_a_gpu_that_moves_ends_on_its_old_node():
    """It is expected once, where it is."""
    directory = Directory()
    directory.learn(node("n1", "g0", "g1"))
    assert told(directory.learn(node("n2", "g1", at=50))) == {
        ("n1", "g1", 0, 50), ("n2", "g1", 50, None),
    }  # fmt: skip
    assert directory.expected_gpus() == 2
    assert told(directory.learn(node("n1", "g0", at=60))) == set()


def test_a_moved_gpu_is_held_by_whoever_holds_its_new_node():
    """The lease of the old node does not follow it."""
    directory = Directory()
    directory.claim(claim("n1", "a"))
    directory.learn(node("n1", "g0", "g1"))
    directory.learn(node("n2", "g1", at=50))
    assert holder(directory, "g0", 60) == A
    assert holder(directory, "g1", 60) == 0
    directory.claim(claim("n2", "b", since=-1000))
    assert holder(directory, "g1", 60) == B


def test_a_hostname_that_is_reused_has_other_gpus():
    """A re-imaged or replaced node: the old GPUs end, the new begin."""
    directory = Directory()
    directory.learn(node("n1", "g0", "g1"))
    assert told(directory.learn(node("n1", "h0", "h1", at=80))) == {
        ("n1", "g0", 0, 80), ("n1", "g1", 0, 80), ("n1", "h0", 80, None), ("n1", "h1", 80, None),
    }  # fmt: skip


def test_a_node_that_changes_its_rack_begins_anew():
    """Power by rack follows the move."""
    directory = Directory()
    directory.learn(node("n1", "g0", rack="r1"))
    changes = directory.learn(node("n1", "g0", at=30, rack="r2"))
    assert told(changes) == {("n1", "g0", 0, 30), ("n1", "g0", 30, None)}
    assert [c.rack for c in changes if c.until_ms is None] == ["r2"]


def test_a_new_layout_is_stored_though_the_gpus_are_the_same():
    """Else an upgraded agent would not be understood after a restart of the pipeline."""
    directory = Directory()
    directory.learn(node("n1", "g0", layout=LAYOUT.describe()))
    other = Layout((*ROW, LAYOUT.fast[3]), (), ())
    changes = directory.learn(node("n1", "g0", at=30, layout=other.describe()))
    assert [c.layout for c in changes if c.until_ms is None] == [other.describe()]
    assert directory.layouts[other.hash] == other


def test_older_news_of_a_node_that_come_late_change_nothing():
    """The newer assertion stands."""
    directory = Directory()
    directory.learn(node("n1", "g1", at=50))
    assert directory.learn(node("n1", "g0")) == []
    assert directory.expected_gpus() == 1


def test_older_news_of_another_node_do_not_take_a_gpu_back():
    """It was there until it moved; no interval ends before it begins."""
    directory = Directory()
    directory.learn(node("n2", "g1", at=50))
    assert told(directory.learn(node("n1", "g0", "g1"))) == {
        ("n1", "g0", 0, None), ("n1", "g1", 0, 50),
    }  # fmt: skip
    assert {g.uuid for g in directory.nodes[id64(SITE, "n2")].gpus} == {"g1"}
    assert directory.expected_gpus() == 2


def test_an_interval_that_is_over_is_stored_as_it_is():
    """History from a file."""
    past = node("n1", "g0", until_ms=T0_MS + 5)
    assert Directory().learn(past) == [past]


def test_two_gpus_with_one_id_are_refused(monkeypatch):
    """Loudly, and naming both."""
    monkeypatch.setattr(module, "id64", lambda scope, key="": 77 if key.startswith("g") else 5)
    directory = Directory()
    directory.learn(node("n1", "g0"))
    with pytest.raises(Reject, match=r"GPU g1 of test has the id 0+4d of \('test', 'g0'\)"):
        directory.learn(node("n1", "g1", at=1))


def test_an_unreadable_layout_is_refused_and_forgotten():
    """The record is a dead letter, the directory stays as it was."""
    directory = Directory()
    with pytest.raises(Reject):
        directory.learn(node("n1", "g0", layout="fast=;slow=;slice="))
    assert directory.expected_gpus() == 0
    assert len(directory.learn(node("n1", "g0"))) == 1


def test_a_correction_replaces_the_claim_that_it_corrects():
    """The newest assertion counts, in whatever order they arrive."""
    for order in ((1, 2), (2, 1)):
        directory = Directory()
        directory.learn(node("n1", "g0"))
        for asserted in order:
            until = 100 if asserted == 1 else 20
            directory.claim(claim("n1", "a", until=until, asserted_at_ms=T0_MS + asserted))
        assert [holder(directory, "g0", at) for at in (10, 50)] == [A, 0]


def test_claims_of_gpus_hold_those_gpus():
    """By NVML index; none means the whole node."""
    directory = Directory()
    directory.claim(claim("n1", "a", gpus=(1,)))
    directory.learn(node("n1", "g0", "g1"))
    assert [holder(directory, g, 5) for g in ("g0", "g1")] == [0, A]


def test_claims_that_ended_long_ago_are_forgotten():
    """Memory is bounded by what is in force."""
    directory = Directory()
    directory.learn(node("n1", "g0"))
    directory.claim(claim("n1", "a", until=10))
    directory.forget_before(T0_MS + 11)
    assert directory.claims(SITE, "n1") == []
    assert not len(directory.holders().keys)


def leased(tenant: str, rack: str, since: int = 0, until: int | None = None) -> Contract:
    till = "" if until is None else f"until = {iso(T0_MS + until)}"
    return parse(
        f"""
        [[contract]]
        tenant = "{tenant}"
        select = [{{rack = "{rack}"}}]
        timezone = "UTC"
        from = {iso(T0_MS + since)}
        {till}
        contracted_gpus = 1
        contracted_kw = 1
        price_per_gpu_hour = 1
        price_per_kwh = 1
        currency = "EUR"
        availability_pct = 99
        """,
        "c.toml", SITE, T0_MS,
    )[0]  # fmt: skip


def test_a_lease_outranks_whoever_runs_there():
    """The lessee is the tenant, what runs stays the workload; an account of Slurm is no tenant."""
    directory = Directory()
    directory.learn(node("n1", "g0", rack="r1"))
    directory.claim(claim("n1", "b", source="slurm", workload="job"))
    directory.lease([leased("a", "r1", 5000, 9000)])
    assert [holder(directory, "g0", at) for at in (4999, 5000, 8999, 9000)] == [B, A, A, B]
    ids = np.array([[id64(SITE, "g0")]], np.uint64)
    workload = directory.holders().at(ids, np.array([[T0_MS + 6000]]))[1]
    assert workload == id64(SITE, "job")


def test_a_lease_follows_the_inventory_and_the_contract():
    """A node that joins, one that moves to another rack, a contract that is replaced."""
    directory = Directory()
    directory.lease([leased("a", "r1"), leased("b", "r2")])
    directory.learn(node("n1", "g0", rack="r1"))
    assert holder(directory, "g0", 10) == A
    directory.learn(node("n1", "g0", rack="r2", at=1000))
    assert holder(directory, "g0", 1010) == B
    directory.lease([leased("a", "r2")])
    assert holder(directory, "g0", 1010) == A
    directory.lease([])
    assert holder(directory, "g0", 1010) == 0


def test_the_first_source_of_the_precedence_is_believed():
    """As in the ledger; sources of one rank that disagree share."""
    directory = Directory(("slurm", "import"))
    directory.learn(node("n1", "g0"))
    directory.claim(claim("n1", "a", source="import"))
    assert holder(directory, "g0", 0) == A
    directory.claim(claim("n1", "b", source="slurm", since=10))
    assert [holder(directory, "g0", at) for at in (9, 10)] == [A, B]
    directory.claim(claim("n1", "a", source="slurm", since=20))
    assert holder(directory, "g0", 20) == SHARED


def test_a_directory_from_the_store_is_the_one_that_was_lived(store):
    """A restart forgets nothing: same nodes, same layouts, same holders, same next changes."""
    chance = random.Random(7)
    live = Directory()
    names, uuids = ["n1", "n2", "n3"], [f"g{i}" for i in range(6)]
    layout = Layout((*ROW, LAYOUT.fast[3]), (), ()).describe()
    for at in range(40):
        now_ms = T0_MS + at * 1000
        if chance.random() < 0.6:
            some = chance.sample(uuids, chance.randint(1, 3))
            record = node(
                chance.choice(names), *some, at=at * 1000, rack=chance.choice(("r1", "r1", "r2")),
                layout=chance.choice(("", layout)),
            )  # fmt: skip
            stored = live.learn(record)
        else:
            since = chance.choice((0, 5000, at * 1000))
            record = claim(
                chance.choice(names), chance.choice("ab"), since,
                chance.choice((None, since + 9000, since + 60_000)), asserted_at_ms=now_ms,
                gpus=chance.choice(((), (0,), (1, 2))), workload=chance.choice(("", "job")),
            )  # fmt: skip
            live.claim(record)
            stored = [record]
        for table, block in by_table(stored, now_ms).items():
            store.insert(table, block)
    again = warmed(store, T0_MS + 40_000)
    assert {n: set(i.gpus) for n, i in live.nodes.items() if i.gpus} == {
        n: set(i.gpus) for n, i in again.nodes.items() if i.gpus
    }
    assert again.layouts == live.layouts
    for uuid in uuids:
        for at in range(0, 80_000, 500):
            assert holder(again, uuid, at) == holder(live, uuid, at), (uuid, at)
    for name in names:
        news = node(name, "g0", "g9", at=50_000, rack="r3")
        assert told(again.learn(news)) == told(live.learn(news))
    intervals = store.query(
        "SELECT gpu_id, toUnixTimestamp64Milli(from_ts), toUnixTimestamp64Milli(until_ts)"
        " FROM inventory FINAL ORDER BY gpu_id, from_ts"
    ).rows
    assert all(until is None or until > since for _, since, until in intervals)
    for (gpu, _, until), (next_gpu, since, _) in itertools.pairwise(intervals):
        assert gpu != next_gpu or (until is not None and until <= since)
