"""The reconciler: what it asserts when jobs begin, end, are requeued, and when Slurm is silent."""

import contextlib
import os
import random
import stat
import threading
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from pipeline import rows
from pipeline.clock import ManualClock, SystemClock
from pipeline.errors import Refuse, Retry
from pipeline.records import Allocation
from pipeline.settings import Slurm
from pipeline.slurm import Job, Listing, Place, Refused
from pipeline.slurm_feed import SLACK_MS, Feed, key_of, restore
from pipeline.slurm_outlets import StoreBooks, TopicOutlet
from pipeline.slurm_run import Commands, Exporter, read_seen, run
from pipeline.store import Store
from pipeline.topics import ALLOCATIONS, decode_record
from pipeline.web import Web
from tests.pipeline.test_slurm import OLD, squeue

NOW = 1_795_280_000
"""Seconds: when the tests begin."""


def record(name: str = "7", held: str = "0-1", **changed: object) -> dict[str, object]:
    """A running job of 22.05 on node n1; `7_3` is an array task."""
    array, _, task = name.partition("_")
    count = len(range(int(held[0]), int(held[-1]) + 1))
    return OLD | {
        "job_id": int(array) * 100 + int(task or 0), "array_job_id": int(array) if task else 0,
        "array_task_id": int(task) if task else None, "start_time": NOW - 100,
        "submit_time": NOW - 200, "gres_detail": [f"gpu:h100:{count}(IDX:{held})"],
    } | ({"job_id": int(array)} if not task else {}) | changed  # fmt: skip


def over(name: str, end: int, state: str = "COMPLETED", **changed: object) -> dict[str, object]:
    return record(name) | {"job_state": state, "gres_detail": [], "end_time": end} | changed


class Script:
    """A scheduler that says what the test wants; None is silence."""

    def __init__(self) -> None:
        self.records: Sequence[dict[str, object]] | None = []
        self.jobs: dict[str, Listing | None] = {}
        self.asked: list[str] = []
        self.silent = False

    def squeue(self) -> bytes:
        if self.records is None:
            raise Retry("squeue failed (1): slurm_load_jobs error")
        return squeue(*self.records)

    def job(self, name: str) -> Listing | None:
        self.asked.append(name)
        if self.silent:
            raise Retry("scontrol did not answer within 60 s")
        return self.jobs.get(name)


class Kept:
    """An outlet that keeps what it gets, and can refuse."""

    def __init__(self) -> None:
        self.puts: list[Allocation] = []
        self.is_broken = False

    def put(self, allocations: Sequence[Allocation]) -> None:
        if self.is_broken:
            raise Retry("the broker is away")
        self.puts += allocations

    def take(self) -> list[tuple[str, tuple[int, ...], int, int | None]]:
        taken, self.puts = self.puts, []
        return [
            (a.workload, a.gpus, a.from_ms // 1000 - NOW, a.until_ms and a.until_ms // 1000 - NOW)
            for a in taken
        ]


class Site:
    """A feed with its surroundings; every poll is ten seconds after the last."""

    def __init__(self) -> None:
        self.slurm, self.outlet, self.clock = Script(), Kept(), ManualClock(NOW * 1000)
        self.feed = Feed("lab", self.slurm, self.outlet, self.clock)

    def poll(
        self, *records: dict[str, object]
    ) -> list[tuple[str, tuple[int, ...], int, int | None]]:
        self.slurm.records = records
        self.clock.advance(10)
        self.feed.poll()
        self.feed.deliver()
        return self.outlet.take()

    def restart(self) -> None:
        known = {key: claim for key, claim in self.feed.known.items()}  # noqa: C416
        seen_ms = self.feed.seen_ms
        self.feed = Feed("lab", self.slurm, self.outlet, self.clock, known, seen_ms)


@pytest.fixture
def site() -> Site:
    return Site()


# -- the ordinary ways of jobs -------------------------------------------------------------------


def test_a_job_is_asserted_when_it_begins_and_when_it_ends(site: Site) -> None:
    site.slurm.records = [record("7")]
    site.feed.poll()
    site.feed.deliver()
    (claim,) = site.outlet.puts
    assert claim == Allocation(
        site="lab", source="slurm", tenant="teama", account="teama", workload="7", node="n1",
        gpus=(0, 1), from_ms=(NOW - 100) * 1000, asserted_at_ms=NOW * 1000,
    )  # fmt: skip
    site.outlet.take()
    assert site.poll(record("7")) == [], "nothing changed, nothing is said"
    assert site.poll(over("7", NOW + 15)) == [("7", (0, 1), -100, 15)]
    assert site.poll(over("7", NOW + 15)) == []
    assert site.feed.known == {}


def test_a_tenant_is_the_account_in_lower_case(site: Site) -> None:
    site.slurm.records = [record("7", account="TeamA")]
    site.feed.poll()
    (claim,) = site.feed.pending.values()
    assert (claim.tenant, claim.account) == ("teama", "TeamA")


def test_each_node_of_a_job_is_a_claim_of_its_own(site: Site) -> None:
    wide = record("7", nodes="n[1-3]", gres_detail=["gpu:h100:2(IDX:0-1)"] * 3)
    assert len(site.poll(wide)) == 3
    assert {claim.node for claim in site.feed.known.values()} == {"n1", "n2", "n3"}
    ended = site.poll(over("7", NOW + 12, nodes="n[1-3]"))
    assert [until for *_, until in ended] == [12, 12, 12]


def test_jobs_without_gpus_and_pending_ones_are_nothing(site: Site) -> None:
    bare = record("8", gres_detail=[], tres_per_node="")
    waits = record("9", job_state="PENDING", gres_detail=[], start_time=0, nodes="")
    assert site.poll(bare, waits) == []
    assert site.slurm.asked == []


def test_several_jobs_on_one_gpu_stand_side_by_side(site: Site) -> None:
    assert len(site.poll(record("7", "0-0"), record("8_1", "0-0"), record("8_2", "0-0"))) == 3
    assert all(claim.share_ppm == 0 for claim in site.feed.known.values())


def test_a_job_that_clears_up_is_over_at_its_end(site: Site) -> None:
    site.poll(record("7"))
    assert site.poll(over("7", NOW + 14, "COMPLETING")) == [("7", (0, 1), -100, 14)]


# -- requeues, restarts, resizes -----------------------------------------------------------------


def test_a_requeue_ends_one_run_and_begins_another(site: Site) -> None:
    """What 22.05 shows on the way: nobody's times, then a new time of submission."""
    site.poll(record("7"))
    odd = over("7", 6_090_246_087, "COMPLETING", start_time=NOW + 15, restart_cnt=1)
    assert site.poll(odd) == [], "its times are nobody's yet"
    soon = over("7", NOW + 130, "COMPLETING", start_time=NOW + 15)
    assert site.poll(soon) == []
    near = over("7", NOW + 32, "COMPLETING", start_time=NOW + 25)
    assert site.poll(near) == []
    waits = over("7", 0, "PENDING", start_time=0, submit_time=NOW + 15)
    assert site.poll(waits) == [("7", (0, 1), -100, 15)]
    again = record("7", "2-3", start_time=NOW + 45, submit_time=NOW + 15)
    assert site.poll(again) == [("7", (2, 3), 45, None)]


def test_a_requeue_that_nobody_saw(site: Site) -> None:
    site.poll(record("7"))
    again = record("7", start_time=NOW + 15, submit_time=NOW + 12)
    assert set(site.poll(again)) == {("7", (0, 1), -100, 12), ("7", (0, 1), 15, None)}
    # ... and one whose second run is over, too.
    gone = over("7", NOW + 29, start_time=NOW + 27, submit_time=NOW + 25)
    assert site.poll(gone) == [("7", (0, 1), 15, 25)]


def test_a_beginning_that_slurm_moves_is_moved(site: Site) -> None:
    """A node that boots first: the job begins when it is up, on the same submission."""
    site.poll(record("7"))
    moved = record("7", start_time=NOW + 8)
    assert set(site.poll(moved)) == {("7", (0, 1), -100, 8), ("7", (0, 1), 8, None)}
    back = record("7", start_time=NOW + 2)
    assert set(site.poll(back)) == {("7", (0, 1), 8, 8), ("7", (0, 1), 2, None)}
    assert len(site.feed.known) == 1


def test_a_resized_job_keeps_what_it_keeps(site: Site) -> None:
    two = record("7", nodes="n[1-2]", gres_detail=["gpu:h100:2(IDX:0-1)"] * 2)
    site.poll(two)
    assert site.poll(record("7", resize_time=NOW + 15)) == [("7", (0, 1), -100, 15)]
    assert {claim.node for claim in site.feed.known.values()} == {"n1"}
    grown = record(
        "7", nodes="n[1,3]", gres_detail=["gpu:h100:2(IDX:0-1)"] * 2, resize_time=NOW + 25
    )
    assert site.poll(grown) == [("7", (0, 1), 25, None)]
    assert site.poll(grown) == []


# -- what Slurm does not tell --------------------------------------------------------------------


def test_gpus_that_squeue_does_not_tell_are_asked_of_scontrol(site: Site) -> None:
    site.poll(record("6"))
    (claim,) = site.feed.known.values()
    known = Job(
        7, "7", "teama", "ann", "held", claim.from_ms, None, claim.from_ms - 1,
        places=(Place("n1", (3,)),), has_gpus=True,
    )  # fmt: skip
    site.slurm.jobs["7"] = Listing((known,), ())
    assert site.poll(record("6"), record("7", gres_detail=[])) == [("7", (3,), -100, None)]
    assert site.poll(record("6"), over("7", NOW + 22)) == [("7", (3,), -100, 22)]


def test_what_scontrol_cannot_tell_either_is_asked_once_and_never_guessed(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    vague = record("7", gres_detail=["gpu:h100:2"])
    mig = record("8", gres_detail=["gpu:1g.10gb:1(IDX:3)"])
    assert site.poll(vague, mig) == site.poll(vague, mig) == []
    assert site.slurm.asked == ["7"], "of MIG instances it knows no more"
    assert caplog.text.count("job 7 from") == caplog.text.count("job 8 from") == 1
    assert "MIG" in caplog.text
    assert site.feed.stats.unsure == 2


def test_a_job_that_was_sure_is_not_ended_by_doubt(site: Site) -> None:
    site.poll(record("7"))
    assert site.poll(record("7", gres_detail=[])) == []
    assert site.poll(record("7")) == []
    assert len(site.feed.known) == 1


@pytest.mark.parametrize("silence", ["squeue", "scontrol", "junk", "empty text"])
def test_silence_ends_nothing(site: Site, silence: str) -> None:
    site.poll(record("7"))
    if silence == "scontrol":
        site.slurm.silent = True
        assert site.poll() == [], "squeue does not list it, scontrol does not answer"
        assert site.feed.stats.problems["scontrol"] == 1
    else:
        site.slurm.records = None
        if silence != "squeue":
            site.slurm.squeue = lambda: b"{}" if silence == "junk" else b""  # type: ignore[method-assign]
        with pytest.raises(Retry):
            site.feed.poll()
    assert len(site.feed.known) == 1
    site.slurm.silent = False
    fresh = Site()
    fresh.feed.known.update(site.feed.known)
    assert fresh.poll(over("7", NOW + 5)) == [("7", (0, 1), -100, 5)]


def test_a_record_that_cannot_be_read_ends_nothing(site: Site) -> None:
    """squeue shows the job in a state of next year; scontrol shows the same."""
    site.poll(record("7"))
    site.slurm.jobs["7"] = Listing((), (Refused("job 7", "state 'DANCING' is not known"),))
    assert site.poll(record("7", job_state="DANCING")) == []
    assert len(site.feed.known) == 1
    assert site.feed.stats.refused == 1


def test_a_job_that_slurm_forgot_ends_when_it_was_last_seen(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    site.poll(record("7"))
    site.poll(record("7"))
    site.clock.advance(3600)
    assert site.poll() == [("7", (0, 1), -100, 20)]
    assert site.slurm.asked == ["7"]
    assert "last seen" in caplog.text
    assert site.feed.stats.ends == {"last seen": 1}


def test_scontrol_tells_the_end_of_what_squeue_does_not_list(site: Site) -> None:
    site.poll(record("7"))
    (claim,) = site.feed.known.values()
    done = Job(7, "7", "teama", "ann", "ended", claim.from_ms, (NOW + 13) * 1000, claim.from_ms - 1)
    site.slurm.jobs["7"] = Listing((done,), ())
    assert site.poll() == [("7", (0, 1), -100, 13)]


def test_an_answer_about_another_job_ends_nothing(site: Site) -> None:
    site.poll(record("7"))
    site.slurm.jobs["7"] = Listing((Job(8, "8", "a", "ann", "ended", 1, 2),), ())
    assert site.poll() == []
    assert len(site.feed.known) == 1


def test_an_end_to_come_is_no_end(site: Site) -> None:
    site.poll(record("7"))
    beyond = NOW + 20 + SLACK_MS // 1000 + 1
    assert site.poll(over("7", beyond, "COMPLETING")) == []
    assert len(site.feed.known) == 1


def test_asking_is_bounded_in_time(site: Site) -> None:
    site.poll(*[record(str(job), "0-0") for job in range(1, 101)])

    def slow(name: str) -> None:
        site.slurm.asked.append(name)
        site.clock.advance(1)

    site.slurm.job = slow  # type: ignore[method-assign]
    assert 5 <= len(site.poll()) <= 7
    total = 0
    for _ in range(20):
        total += len(site.poll())
    assert site.feed.known == {}, "the rest is asked about in later polls"


def test_short_jobs_are_counted(site: Site) -> None:
    site.poll()
    assert site.poll(over("7", NOW + 17, start_time=NOW + 15)) == []
    site.poll(over("7", NOW + 17, start_time=NOW + 15))
    assert site.feed.stats.short == 1


# -- outlets and restarts ------------------------------------------------------------------------


def test_what_was_not_taken_is_said_again(site: Site) -> None:
    site.outlet.is_broken = True
    for state in (record("7"), record("7"), over("7", NOW + 25)):
        with pytest.raises(Retry):
            site.poll(state)
    site.outlet.is_broken = False
    assert site.poll() == [("7", (0, 1), -100, 25)], "its one assertion has both ends"
    assert site.feed.pending == {}


def test_the_last_word_has_the_latest_time_of_assertion(site: Site) -> None:
    """Also when the clock went back: readers take the newest assertion of a claim."""
    site.poll(record("7"))
    (begun,) = site.feed.known.values()
    site.clock.ms -= 3_600_000
    site.slurm.records = [over("7", 0, "PENDING", submit_time=NOW + 1)]
    site.feed.poll()
    (ended,) = site.feed.pending.values()
    assert ended.asserted_at_ms == begun.asserted_at_ms + 1


def test_a_restart_from_the_store_goes_on_where_it_was(store: Store) -> None:
    site = Site()
    outlet = StoreBooks(store, site.clock)
    site.feed = Feed("lab", site.slurm, outlet, site.clock)
    wide = record("8", nodes="n[1-2]", gres_detail=["gpu:h100:2(IDX:0-1)"] * 2, account="B")
    site.poll(record("7"), wide, record("9_2", "2-3"))
    site.poll(over("7", NOW + 15), wide, record("9_2", "2-3"))
    others = [
        Allocation(site="lab", source="import", tenant="x", node="n1", from_ms=5),
        Allocation(site="other", source="slurm", tenant="x", node="n1", from_ms=5),
    ]
    for table, block in rows.by_table(others, 1).items():
        store.insert(table, block)
    known, asserted_ms = restore(StoreBooks(store, ManualClock()).ask, "lab")
    assert known == site.feed.known
    assert len(known) == 3
    assert asserted_ms == site.clock.ms
    again = Feed("lab", site.slurm, outlet, site.clock, known, asserted_ms)
    site.feed = again
    site.poll(over("7", NOW + 15), wide, over("9_2", NOW + 28))
    assert again.stats.begun == 0
    assert again.stats.ends == {"told": 1}
    assert set(restore(StoreBooks(store, ManualClock()).ask, "lab")[0]) == {
        key for key in known if key.workload == "8"
    }
    assert restore(StoreBooks(store, ManualClock()).ask, "nowhere") == ({}, 0)


def test_saying_it_again_changes_nothing_in_the_store(store: Store) -> None:
    site = Site()
    site.slurm.records = [record("7")]
    site.feed.poll()
    claims = list(site.feed.pending.values())
    outlet = StoreBooks(store, site.clock)
    outlet.put(claims)
    outlet.put(claims)
    assert store.query("SELECT count() FROM allocations FINAL").rows == [(1,)]


class Broker:
    """A producer of which some sends fail, at once or by their answer."""

    def __init__(self, refuse: Callable[[int], Exception | None]) -> None:
        self.sent: list[tuple[str, bytes, bytes]] = []
        self._refuse = refuse
        self.tries = 0

    def send(self, topic: str, key: bytes, value: bytes, ack: Callable[..., None]) -> None:
        self.tries += 1
        problem = self._refuse(self.tries)
        if problem is None:
            self.sent.append((topic, key, value))
        threading.Thread(target=ack, args=[problem]).start()

    def close(self, timeout_s: float) -> None:
        raise AssertionError


def test_the_topic_gets_every_record_under_its_node() -> None:
    broker = Broker(lambda _: None)
    claims = [
        Allocation(site="lab", source="slurm", tenant="a", node=f"n{i}", from_ms=i)
        for i in range(1500)
    ]
    TopicOutlet(broker, SystemClock()).put(claims)
    assert [decode_record(topic, value) for topic, _, value in broker.sent] == claims
    assert {(topic, key) for topic, key, _ in broker.sent} == {
        (ALLOCATIONS, claim.node.encode()) for claim in claims
    }


def test_one_message_without_an_answer_makes_all_come_again(site: Site) -> None:
    broker = Broker(lambda attempt: Retry("not acknowledged") if attempt == 2 else None)
    site.feed = Feed("lab", site.slurm, TopicOutlet(broker, SystemClock()), site.clock)
    with pytest.raises(Retry, match="not acknowledged"):
        site.poll(record("7", "0-0"), record("8", "1-1"), record("9", "2-2"))
    assert len(site.feed.pending) == 3
    site.poll(record("7", "0-0"), record("8", "1-1"), record("9", "2-2"))
    assert site.feed.pending == {}
    assert {decode_record(t, v).workload for t, _, v in broker.sent} == {"7", "8", "9"}  # type: ignore[union-attr]


# -- a law ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(12))
def test_whatever_happens_every_run_is_told_exactly_once(seed: int) -> None:
    """Random jobs, restarts, silences and a broken outlet: each run that lasts is one claim."""
    chance = random.Random(seed)
    site, runs = Site(), [Run(chance, number) for number in range(1, 40)]
    said: dict[object, Allocation] = {}
    for step in range(90):
        at = NOW + 10 * (step + 1)
        site.clock.ms = at * 1000
        for run_ in runs:
            run_.advance(at)
        site.slurm.records = (
            None if chance.random() < 0.2 else [r.record(at) for r in runs if r.known(at)]
        )
        site.outlet.is_broken = chance.random() < 0.2
        for work in (site.feed.poll, site.feed.deliver):
            with contextlib.suppress(Retry):
                work()
        for claim in site.outlet.puts:
            said[key_of(claim)] = claim
        site.outlet.puts = []
        if chance.random() < 0.1 and not site.feed.pending:
            site.restart()
    found = sorted(
        (c.workload, c.from_ms // 1000, (c.until_ms or 0) // 1000) for c in said.values()
    )
    assert found == sorted((str(r.number), since, until) for r in runs for since, until in r.done)
    assert len(found) > 40


class Run:
    """A job that waits, runs for a while, and is perhaps requeued, at seconds that it knows."""

    def __init__(self, chance: random.Random, number: int) -> None:
        self.number, self._chance = number, chance
        self.submit = NOW
        self.start = NOW + chance.randrange(1, 300)
        self.end = self.start + chance.randrange(80, 200)
        self.requeues = chance.randrange(2)
        self.done: list[tuple[int, int]] = []
        self.is_over = False

    def advance(self, at: int) -> None:
        if at < self.end or self.is_over:
            return
        self.done.append((self.start, self.end))
        if self.requeues:
            self.requeues -= 1
            self.submit = self.end
            self.start = self.submit + self._chance.randrange(1, 40)
            self.end = self.start + self._chance.randrange(80, 200)
        else:
            self.is_over = True

    def known(self, at: int) -> bool:
        """Slurm forgets a job 200 s after its end."""
        return not self.is_over or at < self.end + 200

    def record(self, at: int) -> dict[str, object]:
        name, submit = str(self.number), self.submit
        if self.is_over:
            return over(name, self.end, start_time=self.start, submit_time=submit)
        if at < self.start:
            return over(name, 0, "PENDING", start_time=0, submit_time=submit)
        return record(name, "0-1", start_time=self.start, submit_time=submit)


# -- commands ------------------------------------------------------------------------------------


def script(path: Path, body: str) -> str:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def test_a_command_is_asked_in_utc_and_without_the_shells_filters(tmp_path: Path) -> None:
    echo = script(tmp_path / "squeue", 'echo "$TZ $LC_ALL [$SQUEUE_STATES] $*"')
    env = dict(os.environ) | {"SQUEUE_STATES": "PD", "TZ": "Asia/Kolkata"}
    assert Commands(Slurm(squeue=echo), env).squeue() == b"UTC C [] --all --states=all --json\n"


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (
            "echo 'slurm_load_jobs error: Unable to contact' >&2; exit 1",
            r"failed \(1\): slurm_load_jobs",
        ),
        ("sleep 60", "did not answer within 0.5 s"),
        ("sleep 60 & sleep 60", "did not answer within 0.5 s"),
        ("kill -9 $$", r"failed \(-9\)"),
    ],
)
def test_a_command_that_fails_or_hangs_is_one_sentence(
    tmp_path: Path, body: str, sentence: str
) -> None:
    commands = Commands(Slurm(squeue=script(tmp_path / "squeue", body), timeout_s=0.5))
    begun_s = SystemClock().monotonic_s()
    with pytest.raises(Retry, match=sentence) as caught:
        commands.squeue()
    assert "\n" not in str(caught.value)
    assert SystemClock().monotonic_s() - begun_s < 10


def test_a_command_that_hangs_leaves_no_child_behind(tmp_path: Path) -> None:
    body = f"sleep 60 & echo $! >{tmp_path}/pid; wait"
    with pytest.raises(Retry):
        Commands(Slurm(squeue=script(tmp_path / "squeue", body), timeout_s=1)).squeue()
    child = Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}/stat")
    deadline_s = SystemClock().monotonic_s() + 10
    while child.exists() and ") Z " not in child.read_text():
        assert SystemClock().monotonic_s() < deadline_s
        SystemClock().wait(threading.Event(), 0.05)


def test_a_command_that_is_missing_is_one_sentence() -> None:
    with pytest.raises(Retry, match="cannot run no-such-squeue: No such file"):
        Commands(Slurm(squeue="no-such-squeue")).squeue()


def test_no_such_job_is_an_answer_and_trouble_is_none(tmp_path: Path) -> None:
    gone = script(
        tmp_path / "gone", "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1"
    )
    assert Commands(Slurm(scontrol=gone)).job("7") is None
    away = script(tmp_path / "away", "echo 'slurm_load_jobs error: Unable to contact' >&2; exit 1")
    with pytest.raises(Retry):
        Commands(Slurm(scontrol=away)).job("7")


# -- the loop ------------------------------------------------------------------------------------


def listing_of(path: Path, *records: dict[str, object]) -> str:
    path.with_suffix(".json").write_bytes(squeue(*records))
    return script(path, f"cat {path.with_suffix('.json')}")


def once(
    store: Store, clock: ManualClock, settings: Slurm,
    say: Callable[[str], None] = print, *, dry_run: bool = False,
) -> int:  # fmt: skip
    books, stop = StoreBooks(store, clock), threading.Event()
    return run("lab", settings, books, None, stop, clock, say, once=True, dry_run=dry_run)


def test_once_asserts_and_remembers(store: Store, tmp_path: Path) -> None:
    clock = ManualClock(NOW * 1000)
    seen = str(tmp_path / "seen")
    settings = Slurm(squeue=listing_of(tmp_path / "squeue", record("7")), seen=seen)
    assert once(store, clock, settings) == 0
    assert read_seen(seen) == clock.ms
    assert len(restore(StoreBooks(store, ManualClock()).ask, "lab")[0]) == 1


def test_a_dry_run_says_and_changes_nothing(store: Store, tmp_path: Path) -> None:
    lines: list[str] = []
    seen = tmp_path / "seen"
    squeue_ = listing_of(tmp_path / "squeue", record("7"))
    settings = Slurm(squeue=squeue_, seen=str(seen))
    once(store, ManualClock(), settings, lines.append, dry_run=True)
    assert '"workload":"7"' in lines[0]
    assert restore(StoreBooks(store, ManualClock()).ask, "lab") == ({}, 0)
    assert not seen.exists()


def test_once_fails_where_slurm_fails(store: Store) -> None:
    lines: list[str] = []
    settings = Slurm(squeue="no-such-squeue", seen="")
    assert once(store, ManualClock(), settings, lines.append) == 1
    assert lines == ["squeue: cannot run no-such-squeue: No such file or directory"]


def test_a_feed_away_for_an_hour_ends_forgotten_jobs_when_they_were_last_seen(
    store: Store, tmp_path: Path
) -> None:
    """The remembered time outlives the process; the assertions alone would say: at the beginning."""
    clock, seen = ManualClock(NOW * 1000), str(tmp_path / "seen")
    scontrol = script(tmp_path / "scontrol", "echo 'Invalid job id specified' >&2; exit 1")
    there = Slurm(squeue=listing_of(tmp_path / "a", record("7")), seen=seen)
    for _ in range(3):
        once(store, clock, there)
        clock.advance(1000)
    clock.advance(3600)
    once(store, clock, Slurm(squeue=listing_of(tmp_path / "b"), scontrol=scontrol, seen=seen))
    ended = store.query("SELECT toUnixTimestamp(max(until_ts)) FROM allocations").rows
    assert ended == [(NOW + 2000,)]


def test_nonsense_is_refused(store: Store) -> None:
    with pytest.raises(Refuse, match="period_s"):
        once(store, ManualClock(), Slurm(period_s=0))


def test_the_loop_goes_on_after_trouble_and_stops_when_told(store: Store, tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    body = f"[ -e {flag} ] || {{ touch {flag}; exit 1; }}; cat {tmp_path}/ok.json"
    listing_of(tmp_path / "ok", record("7"))
    settings = Slurm(squeue=script(tmp_path / "squeue", body), listen="", seen="")

    class Stopping(ManualClock):
        """Stops the loop at the third wait."""

        waits = 0

        def wait(self, event: threading.Event, timeout_s: float) -> bool:
            self.waits += 1
            return super().wait(event, timeout_s) or self.waits == 3

    clock = Stopping(NOW * 1000)
    books = StoreBooks(store, clock)
    assert run("lab", settings, books, None, threading.Event(), clock, print) == 0
    assert clock.waits == 3
    assert len(restore(StoreBooks(store, ManualClock()).ask, "lab")[0]) == 1


def test_what_the_feed_says_of_itself(site: Site) -> None:
    exporter = Exporter(site.feed, site.clock)
    assert exporter.health().status == 503
    site.poll(record("7"))
    site.poll(over("7", NOW + 15), record("8"))
    site.slurm.records = None
    site.feed.problem("squeue", Retry("away"))
    assert exporter.health().status == 200
    web = Web("127.0.0.1:0", exporter.pages())
    try:
        page = urllib.request.urlopen(f"http://127.0.0.1:{web.port}/metrics").read().decode()
    finally:
        web.close()
    for line in (
        "megawatch_slurm_polls_total 2.0", 'megawatch_slurm_ends_total{how="told"} 1.0',
        'megawatch_slurm_problems_total{what="squeue"} 1.0', "megawatch_slurm_gpus 2.0",
        "megawatch_slurm_open_claims 1.0", "megawatch_slurm_begun_total 2.0",
    ):  # fmt: skip
        assert line in page.splitlines()
    site.clock.advance(600)
    assert exporter.health().status == 503
