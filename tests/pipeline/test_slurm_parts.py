"""Shards, MPS and MIG: what Slurm says of parts of GPUs, what is made of it, and who is charged."""

import random
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.slurm_files import changes
from agents.slurm_look import About, Seen, placed
from pipeline.clock import ManualClock
from pipeline.errors import Reject, Retry
from pipeline.ledger import close as closing
from pipeline.ledger.check import check
from pipeline.ledger.holdings import WHOLE, Claim, parts
from pipeline.records import Gpu, Inventory, id64
from pipeline.rows import by_table
from pipeline.settings import Ledger
from pipeline.slurm import Place, read_squeue
from pipeline.slurm_feed import LEARN_EVERY_S, Feed, mig_nodes, restore
from pipeline.slurm_gres import Part, gpu_parts
from pipeline.slurm_outlets import StoreBooks
from pipeline.slurm_text import read_scontrol
from pipeline.store import Store
from tests.agents.test_slurm_mig import NODE
from tests.pipeline.test_ledger import LATER, SITE, T0, Desk, who
from tests.pipeline.test_slurm import OLD, squeue
from tests.pipeline.test_slurm_feed import NOW, Kept, Script, Site, over, record

SCONTROL_MPS = """\
JobId=1 JobName=wrap
   UserId=root(0) GroupId=root(0) MCS_label=N/A
   Priority=4294901759 Nice=0 Account=team1 QOS=(null)
   JobState=RUNNING Reason=None Dependency=(null)
   Requeue=1 Restarts=0 BatchFlag=1 Reboot=0 ExitCode=0:0
   SubmitTime=2026-11-21T23:04:52 EligibleTime=2026-11-21T23:04:52
   StartTime=2026-11-21T23:04:53 EndTime=Unknown Deadline=N/A
   NodeList=vm
   TRES=cpu=1,node=1,billing=1
   JOB_GRES=mps:25
     Nodes=vm CPU_IDs=0 Mem=0 GRES=mps:25(IDX:0)
   TresPerNode=gres:mps:25

"""
"""As Slurm 22.05 said it of a node with Gres=gpu:h100:4,mps:400, cut to what is read."""
SQUEUE_SHARDS = {"1": "shard:1(IDX:0)", "2": "shard:3(IDX:0)", "3": "gpu:h100:1(IDX:1)"}
"""Each job's gres_detail, as Slurm 22.05 said it of a node with Gres=gpu:h100:4,shard:16."""


# -- what is read --------------------------------------------------------------------------------


def test_what_22_05_says_names_the_gpu_and_not_how_many_shards_it_has() -> None:
    """With Name=shard Count=8 File=/dev/nvidia1 alone, IDX was 1 too, and the node's total 8."""
    records = [
        OLD | {"job_id": int(job), "array_job_id": 0, "array_task_id": None, "nodes": "vm",
               "gres_detail": [detail], "tres_per_node": f"gres:{detail.partition('(')[0]}"}
        for job, detail in SQUEUE_SHARDS.items()
    ]  # fmt: skip
    found = read_squeue(squeue(*records))
    assert not found.refused
    assert {job.name: job.places for job in found.jobs} == {
        "1": (Place("vm", (0,), 0),), "2": (Place("vm", (0,), 0),), "3": (Place("vm", (1,), 0),),
    }  # fmt: skip
    assert all(job.has_gpus and not job.unsure for job in found.jobs)
    (job,) = read_scontrol(SCONTROL_MPS.encode(), ZoneInfo("UTC")).jobs
    assert job.places == (Place("vm", (0,), 0),)
    assert job.has_gpus


@pytest.mark.parametrize(
    ("gres", "wanted"),
    [
        ("shard:3(0/4,3/4,0/4,0/4)", (Part((1,), 750_000),)),
        ("shard:h100:6(2/4,4/4)", (Part((0,), 500_000), Part((1,), 1_000_000))),
        ("shard:2(1/8,0/0,1/8)", (Part((0, 2), 125_000),)),
        ("mps:h100:50(0/100,50/100)", (Part((1,), 500_000),)),
        ("mps:200(200/1300,0/1200)", (Part((0,), 153_847),)),
        ("shard(1/3)", (Part((0,), 333_334),)),
        ("gpu:h100:1(IDX:3),shard:1(1/4,0/4,0/4,0/4)", (Part((3,)), Part((0,), 250_000))),
        ("mps:50(IDX:0,2)", (Part((0, 2)),)),
        ("shard:0(0/4)", ()),
    ],
)
def test_parts_of_gpus(gres: str, wanted: tuple[Part, ...]) -> None:
    assert gpu_parts(gres) == tuple(sorted(wanted, key=lambda part: part.share_ppm))


@pytest.mark.parametrize(
    ("gres", "reason"),
    [
        ("shard:3(0/4,2/4)", "says 3 and names 2"),
        ("shard:5(5/4)", "more than there is"),
        ("shard:1(1/0)", "more than there is"),
        ("shard:3(CNT:3)", "does not tell which"),
        ("shard:3", "does not tell which"),
        ("mps:1(IDX:0,2)", "says 1 and names 2"),
        ("gpu:2(1/4,1/4)", "does not tell which"),
        ("gpu:h100:1(IDX:0),shard:1(1/4)", "a second time, differently"),
        ("shard:a100_1g.10gb:1(1/4)", "counts MIG instances"),
        ("gpu:a100_3g.20gb:1(IDX:0)", "install deploy/slurm's prolog"),
        ("shard:1(1/4" + ",0/4" * 0x10000 + ")", "more than there is"),
        ("shard:1(-1/4)", "does not tell"),
    ],
)
def test_parts_that_are_not_told_are_never_guessed(gres: str, reason: str) -> None:
    with pytest.raises(Reject, match=reason):
        gpu_parts(gres)


@given(st.lists(st.integers(1, 12), min_size=1, max_size=9), st.integers(0, 20), st.integers(0, 3))
def test_a_full_gpu_is_wholly_somebodys_and_a_part_is_as_large_as_it_was(
    taken: list[int], free: int, gpu: int
) -> None:
    """Thirds and sevenths do not add up in millionths; nobody is charged for what is left over."""
    total = sum(taken) + free
    claims = []
    for job, count in enumerate(taken, 1):
        note = ",".join(f"{count if at == gpu else 0}/{total}" for at in range(4))
        ((gpus, share),) = gpu_parts(f"shard:{count}({note})")
        assert gpus == (gpu,)
        assert 0 <= share - count * WHOLE / total < 1
        claims.append(Claim(0, 1, job, job, 0, share))
    held = {part.tenant: part.share_ppm for part in parts(claims)}
    assert sum(held.values()) == WHOLE
    assert abs(held.pop(0, 0) - free * WHOLE / total) <= len(taken)
    assert free or sum(held.values()) == WHOLE
    for job, count in enumerate(taken, 1):
        assert abs(held[job] - count * WHOLE / total) <= len(taken)


# -- what is asserted ----------------------------------------------------------------------------


@pytest.fixture
def site() -> Site:
    return Site()


def test_a_job_has_an_allocation_for_each_share_of_each_node(site: Site) -> None:
    wide = record(
        "7", nodes="n[1-2]", job_resources={"nodes": "n[1-2]"},
        gres_detail=["shard:6(2/4,4/4)", "shard:4(0/4,4/4)"],
    )  # fmt: skip
    site.poll(wide)
    assert sorted((c.node, c.gpus, c.share_ppm) for c in site.feed.known.values()) == [
        ("n1", (0,), 500_000), ("n1", (1,), 1_000_000), ("n2", (1,), 1_000_000),
    ]  # fmt: skip
    assert len(site.poll(over("7", NOW + 15, nodes="n[1-2]"))) == 3


def test_a_share_that_is_told_later_corrects_the_claim(site: Site) -> None:
    """A controller that is upgraded says how many shards there are; its jobs run on."""
    site.poll(record("7", gres_detail=["shard:1(IDX:0)"]))
    (before,) = site.feed.known.values()
    site.slurm.records = [record("7", gres_detail=["shard:1(1/4,0/4)"])]
    site.feed.poll()
    (after,) = site.feed.pending.values()
    assert (before.share_ppm, after.share_ppm) == (0, 250_000)
    assert after.asserted_at_ms > before.asserted_at_ms
    assert (after.from_ms, after.until_ms) == (before.from_ms, None)
    site.feed.pending.clear()
    site.feed.poll()
    assert site.feed.pending == {}
    site.slurm.records = [over("7", NOW + 15)]
    site.feed.poll()
    (ended,) = site.feed.pending.values()
    assert ended.share_ppm == 250_000
    assert site.feed.stats.begun == 1


def test_a_share_survives_a_restart(store: Store) -> None:
    site = Site()
    books = StoreBooks(store, site.clock)
    site.feed = Feed("lab", site.slurm, books, site.clock)
    told, untold = (["shard:1(1/4,0/4)"], ["shard:1(IDX:1)"])
    site.poll(record("7", gres_detail=told), record("8", gres_detail=untold))
    known, _ = restore(books.ask, "lab")
    assert known == site.feed.known
    assert {claim.share_ppm for claim in known.values()} == {250_000, 0}


# -- nodes with MIG instances --------------------------------------------------------------------


def inventory(node: str, gpus: int) -> Inventory:
    here = tuple(Gpu(index, f"GPU-{node}-{index}") for index in range(gpus))
    return Inventory(site="lab", node=node, from_ms=1, gpus=here)


def health(store: Store, node: str, modes: dict[int, int | None], age_s: int) -> None:
    gpus = [id64("lab", f"GPU-{node}-{index}") for index in modes]
    (now_s,) = store.query("SELECT toUnixTimestamp(now())").rows[0]
    count = len(modes)
    store.insert("gpu_health", {
        "gpu": gpus, "ts": [(now_s - age_s) * 1000] * count, "mig_mode": list(modes.values()),
        "site": [id64("lab")] * count, "node": [id64("lab", node)] * count,
    })  # fmt: skip


def test_the_store_knows_which_nodes_have_gpus_in_mig_mode(store: Store) -> None:
    books = StoreBooks(store, ManualClock())
    assert mig_nodes(books.ask, "lab") == frozenset()
    for table, block in by_table([inventory(f"n{n}", 2) for n in range(1, 7)], 1).items():
        store.insert(table, block)
    health(store, "n1", {0: 0, 1: 1}, 30)
    health(store, "n2", {0: 0, 1: 0}, 30)
    health(store, "n3", {0: 1}, 7200)  # its agent is gone: nobody knows
    health(store, "n4", {0: 1}, 300)  # was switched back
    health(store, "n4", {0: 0}, 30)
    health(store, "n5", {0: 1}, 300)  # the newest row does not say
    health(store, "n5", {0: None}, 30)
    assert mig_nodes(books.ask, "lab") == {"n1", "n5"}
    assert mig_nodes(books.ask, "other") == frozenset()


def test_an_index_on_a_node_with_mig_instances_is_not_believed(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    """The job's other nodes are told of; what to do is said once."""
    site.feed.mig_nodes = frozenset({"n2"})
    wide = record("7", nodes="n[1-2]", gres_detail=["gpu:h100:2(IDX:0-1)"] * 2)
    assert len(site.poll(wide)) == 1
    assert site.poll(wide) == site.poll(wide) == []
    assert {claim.node for claim in site.feed.known.values()} == {"n1"}
    assert site.feed.stats.unsure == 1
    assert caplog.text.count("job 7 on n2 is left out: Slurm counts MIG instances") == 1
    assert "install deploy/slurm's prolog and epilog" in caplog.text


def test_which_nodes_those_are_is_asked_now_and_then(site: Site) -> None:
    asked = []

    def ask(sql: str) -> list[dict[str, object]]:
        asked.append(sql)
        if len(asked) == 2:
            raise Retry("away")
        return [{"node": "n1"}]

    site.feed.learn(ask)
    site.feed.learn(ask)
    assert len(asked) == 1
    assert site.feed.mig_nodes == {"n1"}
    site.clock.advance(LEARN_EVERY_S)
    with pytest.raises(Retry):
        site.feed.learn(ask)
    assert site.feed.mig_nodes == {"n1"}, "no answer is no news"
    site.feed.learn(ask)
    assert len(asked) == 3


@pytest.fixture
def desk(store, tmp_path):
    return Desk(store, tmp_path, ManualClock(LATER))


@pytest.mark.parametrize("seed", range(2))
def test_jobs_told_by_a_node_and_by_the_site_are_charged_in_one_ledger(desk, seed) -> None:
    """MIG on n1, by the agent; an ordinary job and two with shards on n2, by squeue.

    What squeue says of whole GPUs on n1 must not outrank the agent's word on another GPU.
    """
    chance = random.Random(seed)
    watts = [chance.randrange(1000, 7000) / 10 for _ in range(3)]
    desk.samples(range(900), watts[0], (0,), "n1")
    desk.samples(range(900), watts[1], (0,), "n2")
    desk.samples(range(900), watts[2], (1,), "n2")
    books = StoreBooks(desk.store, ManualClock(T0))
    at: dict[str, Any] = {"start_time": T0 // 1000, "submit_time": T0 // 1000 - 5}
    slurm = Script()
    slurm.records = [
        record("7", **at, gres_detail=["gpu:h100_1g.10gb:1(IDX:2)"]),
        record("9", **at, gres_detail=["gpu:h100:1(IDX:0)"], account="wrong"),
        record("8", **at, nodes="n2", gres_detail=["gpu:h100:1(IDX:0)"], account="whole"),
        record("10", **at, nodes="n2", gres_detail=["shard:1(0/4,1/4)"], account="a"),
        record("11", **at, nodes="n2", gres_detail=["shard:2(0/4,2/4)"], account="b"),
    ]
    feed = Feed(SITE, slurm, books, ManualClock(T0))
    feed.mig_nodes = frozenset({"n1"})
    feed.poll()
    feed.deliver()
    jobs = {"7": About("mig", "", T0, ("MIG-a",)), "17": About("mig2", "", T0, ("MIG-b",))}
    seen = placed(Seen({}, jobs), NODE, is_cut=True)
    books.put(changes({}, seen, SITE, "n1", T0, T0))

    quarters = closing.open_quarters(desk.store, SITE, *closing.span(desk.store, SITE))
    closing.close(desk.store, SITE, Ledger().precedence, quarters, LATER)
    found = {key: energy for key, (energy, _) in desk.ledger().items()}
    assert sum(found.values()) == pytest.approx(899 * sum(watts), abs=1e-6)
    energy = [899 * mean for mean in watts]
    for key, wanted in {
        who("mig", "7"): energy[0] / 7, who("mig2", "17"): energy[0] * 2 / 7,
        who("whole", "8"): energy[1], who("a", "10"): energy[2] / 4, who("b", "11"): energy[2] / 2,
        (0, 0): energy[0] * 4 / 7 + energy[2] / 4,
    }.items():  # fmt: skip
        assert found.pop(key) == pytest.approx(wanted, rel=1e-4)
    assert found == {}
    assert check(desk.store, SITE, T0, LATER).broken == []


def test_the_outlet_gets_the_shares() -> None:
    kept, slurm = Kept(), Script()
    slurm.records = [record("7", gres_detail=["mps:25(25/100)"])]
    feed = Feed("lab", slurm, kept, ManualClock(NOW * 1000))
    feed.poll()
    feed.deliver()
    assert [claim.share_ppm for claim in kept.puts] == [250_000]
