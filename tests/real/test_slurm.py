"""A real Slurm 22.05: each second of each GPU is under the right job, whatever befalls the feed."""

import functools
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from agents.slurm_look import look
from deploy.slurm_cluster import GPUS, SlurmCluster
from pipeline import rows
from pipeline.clock import SystemClock
from pipeline.ledger.claims import load
from pipeline.records import Gpu, Inventory, id64
from pipeline.settings import ClickHouse, Ledger, Slurm
from pipeline.slurm import read_squeue
from pipeline.slurm_run import Commands
from pipeline.store import open_store
from tests.real.conftest import require_real

pytestmark = [pytest.mark.real, pytest.mark.slow]

SITE = "lab"
WAIT_S = 40
Interval = tuple[int, str, str, int, int]  # GPU, account, job, from_ms, until_ms


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[SlurmCluster]:
    started = require_real("Slurm", lambda: SlurmCluster.start(tmp_path / "slurm"))
    yield started
    started.stop()


class Feed:
    """The feed's process, which can be killed."""

    def __init__(self, cluster: SlurmCluster, data: Path) -> None:
        told = {"data": str(data), "seen": f"{data}.seen", "site": SITE}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.real.slurm_process", json.dumps(told)],
            env=os.environ | cluster.env,
            cwd=Path(__file__).parents[2],
            stdout=subprocess.PIPE,
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"running\n"

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()

    def stop(self) -> None:
        self._process.terminate()
        self._process.communicate(timeout=30)
        assert self._process.returncode == 0


def until(what: str, holds: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < deadline_s, f"{what}: not within {WAIT_S} s"
        time.sleep(0.2)


class Witness:
    """What scontrol itself says of a job, asked while it says so; times are UTC seconds."""

    def __init__(self, cluster: SlurmCluster) -> None:
        self.cluster = cluster

    def __call__(self, job: str) -> dict[str, str]:
        text = self.cluster.run("env", "TZ=UTC", "scontrol", "-d", "show", "job", job)
        facts = dict(re.findall(r"(\w+)=(\S*)", text))
        told = re.search(r"GRES=\S*\(IDX:([0-9,-]+)\)", text)
        return facts | {"idx": told[1] if told else ""}

    def state(self, job: str) -> str:
        return self(job)["JobState"]

    def is_over(self, job: str) -> bool:
        return self.state(job) in ("CANCELLED", "COMPLETED")

    def runs(self, job: str) -> dict[str, str]:
        until(f"job {job} runs", lambda: self.state(job) == "RUNNING")
        return self(job)


def ms(text: str) -> int:
    return round(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() * 1000)


def run_of(began: dict[str, str], end: str, name: str) -> list[Interval]:
    first, _, last = began["idx"].partition("-")
    gpus = range(int(first), int(last or first) + 1)
    return [(gpu, began["Account"], name, ms(began["StartTime"]), ms(end)) for gpu in gpus]


def test_every_second_of_every_gpu_is_under_its_job(cluster: SlurmCluster, tmp_path: Path) -> None:
    """Runs, ends, a cancelled, a requeued, an array; the feed is killed in the middle."""
    witness = Witness(cluster)
    begun_ms = time.time_ns() // 1_000_000 - 2000
    data = tmp_path / "data"
    prepare(data, cluster.host, begun_ms)
    feed = Feed(cluster, data)
    expected: list[Interval] = []

    long = cluster.submit(12, 2, "-A", "teamA")
    cancelled = cluster.submit(300, 1, "-A", "teamB")
    again = cluster.submit(300, 1, "-A", "teamC", "--requeue")
    began = {job: witness.runs(job) for job in (long, cancelled, again)}
    time.sleep(2.5)
    cluster.run("scontrol", "requeue", again)
    until("requeued", lambda: witness.state(again) == "PENDING")
    expected += run_of(began[again], witness(again)["SubmitTime"], again)
    time.sleep(1.5)

    feed.kill()  # while two jobs run, one of which ends now and one later, both unseen
    cluster.run("scancel", cancelled)
    until("cancelled", lambda: witness.state(cancelled) == "CANCELLED")
    until("done", lambda: witness.state(long) == "COMPLETED")
    second = witness.runs(again)
    array = cluster.submit(6, 1, "-A", "TeamA", "--array=3-4")
    first_task = witness.runs(f"{array}_3")
    feed = Feed(cluster, data)

    expected += run_of(began[long], witness(long)["EndTime"], long)
    expected += run_of(began[cancelled], witness(cancelled)["EndTime"], cancelled)
    second_task = witness.runs(f"{array}_4")
    time.sleep(2)
    cluster.run("scancel", again)
    for job in (again, f"{array}_3", f"{array}_4"):
        until(f"{job} over", functools.partial(witness.is_over, job))
    expected += run_of(second, witness(again)["EndTime"], again)
    for task, told in ((f"{array}_3", first_task), (f"{array}_4", second_task)):
        expected += run_of(told, witness(task)["EndTime"], task)
    time.sleep(2.5)
    feed.stop()

    assert {account for _, account, *_ in expected} == {"teama", "teamb", "teamc"}
    assert check(data, cluster.host, expected, begun_ms) > 4 * 15
    until("the epilogs have run", lambda: look(cluster.jobs).gpus == {})


def prepare(data: Path, host: str, from_ms: int) -> None:
    """A store with the node's four GPUs in it."""
    store = open_store(ClickHouse(data=str(data)))
    gpus = tuple(Gpu(index, f"GPU-{index}") for index in range(GPUS))
    node = Inventory(site=SITE, node=host, from_ms=from_ms, gpus=gpus)
    for table, block in rows.by_table([node], from_ms).items():
        store.insert(table, block)
    store.close()


def check(data: Path, host: str, expected: list[Interval], from_ms: int) -> int:
    """Compare who the ledger says had each GPU with scontrol's times, but for 1 s at each edge."""
    until_ms = time.time_ns() // 1_000_000
    store = open_store(ClickHouse(data=str(data)))
    try:
        site = load(store, SITE, Ledger().precedence, from_ms, until_ms)
        left = store.query(
            "SELECT workload FROM allocations GROUP BY workload, node, gpus, from_ts"
            " HAVING argMax(tuple(until_ts), asserted_at).1 IS NULL"
        ).rows
        assert not left, "claims without an end"
    finally:
        store.close()
    compared = 0
    for gpu in range(GPUS):
        device = id64(SITE, f"GPU-{gpu}")
        edges = [
            at for index, *_, since, until in expected if index == gpu for at in (since, until)
        ]
        for at_ms in range(from_ms, until_ms, 250):
            if any(abs(at_ms - edge) <= 1000 for edge in edges):
                continue
            compared += 1
            piece = next(
                p for p in site.pieces(device, from_ms, until_ms) if p.from_ms <= at_ms < p.until_ms
            )
            wanted = [
                (id64("", account), id64(SITE, job))
                for index, account, job, since, until in expected
                if index == gpu and since <= at_ms < until
            ]
            found = [(part.tenant, part.workload) for part in piece.parts]
            assert found == (wanted or [(0, 0)]), (gpu, at_ms, expected)
    return compared


def test_slurm_and_the_node_agree_on_two_jobs_of_one_node(cluster: SlurmCluster) -> None:
    """squeue, scontrol and the prolog's files name the same GPUs."""
    witness = Witness(cluster)
    jobs = [cluster.submit(60, gpus, "-A", "teamA") for gpus in (1, 2)]
    told = {job: witness.runs(job)["idx"] for job in jobs}
    commands = Commands(Slurm(), os.environ | cluster.env)
    listed = {j.name: j for j in read_squeue(commands.squeue()).jobs}
    files = look(cluster.jobs)
    for job in jobs:
        detailed = commands.job(job)
        assert detailed is not None
        (one,) = detailed.jobs
        assert one.places == listed[job].places
        assert one.from_ms == listed[job].from_ms
        ((_, gpus, _),) = one.places
        first, _, last = told[job].partition("-")
        assert gpus == tuple(range(int(first), int(last or first) + 1)) == files.gpus[job]
        assert files.about[job].account == "teama"
        assert abs(files.about[job].begun_ms - (one.from_ms or 0)) < 3000
    assert commands.job("999") is None
    cluster.run("scancel", *jobs)


def test_a_dead_controller_ends_nothing(cluster: SlurmCluster, tmp_path: Path) -> None:
    """While slurmctld is away squeue fails, in time, and with a sentence."""
    from pipeline.errors import Retry

    pid = int((cluster.folder / "run/slurmctld.pid").read_text())
    os.kill(pid, 15)
    until("it ended", lambda: not Path(f"/proc/{pid}").exists())
    commands = Commands(Slurm(timeout_s=3), os.environ | cluster.env)
    begun_s = SystemClock().monotonic_s()
    with pytest.raises(Retry, match=r"^squeue (failed|did not answer)"):
        commands.squeue()
    assert SystemClock().monotonic_s() - begun_s < 10
