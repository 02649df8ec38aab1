"""The Slurm feed beside the process that has the embedded store open: through its socket."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from pipeline import commands
from pipeline.clock import ManualClock
from pipeline.errors import Refuse, Retry
from pipeline.owner import NAME, Output, Owner, is_owned
from pipeline.records import Allocation, Gpu, Inventory, id64
from pipeline.settings import Settings
from pipeline.slurm_feed import mig_nodes, restore
from pipeline.slurm_outlets import OwnerBooks, StoreBooks, take
from pipeline.store import Store
from pipeline.topics import encode_record
from pipeline.warm import warmed
from pipeline.writer import CONTRACTS_EVERY_MS, Writer
from tests.pipeline.test_slurm import squeue
from tests.pipeline.test_slurm_feed import over, record, script

MEGAWATCH = [sys.executable, "-m", "megawatch"]
WAIT_S = 120

CLAIMS = [
    Allocation(
        site="lab", source="slurm", tenant="ä b'\\", account="Ä b'\\", workload="7_3", node="n1",
        gpus=(0, 3), share_ppm=250_000, from_ms=1_795_280_000_123, asserted_at_ms=1_795_280_001_456,
    ),
    Allocation(
        site="lab", source="slurm", tenant="c", workload="8", node="n1", gpus=(1,), from_ms=5,
        until_ms=9, asserted_at_ms=1_795_280_001_457,
    ),
]  # fmt: skip


@pytest.fixture
def owned(store: Store, tmp_path: Path) -> Iterator[OwnerBooks]:
    """Books through an owner that runs the real commands on a real store."""

    def run(argv: Sequence[str], cwd: Path, out: Output, err: Output) -> int:
        from pipeline import arguments

        args = arguments.parser().parse_args(argv)
        context = commands.Context(store, Settings(), ManualClock(5), cwd, out, err)
        body = {"sql": commands.sql, "import": commands.import_}[args.command]
        try:
            return body(args, context)
        except Refuse as error:
            print(f"megawatch: {error}", file=err)
            return 2

    folder = tmp_path / "owned"
    folder.mkdir()
    owner = Owner(folder, run)
    yield OwnerBooks(folder)
    owner.close()


def test_what_was_put_is_what_is_restored(owned: OwnerBooks, store: Store) -> None:
    """To the millisecond and the letter, and once however often it is put."""
    owned.put(CLAIMS)
    owned.put(CLAIMS)
    known, asserted_ms = restore(owned.ask, "lab")
    assert list(known.values()) == CLAIMS[:1]
    assert asserted_ms == CLAIMS[1].asserted_at_ms
    assert store.query("SELECT count() FROM allocations FINAL").rows == [(2,)]
    assert restore(owned.ask, "elsewhere") == ({}, 0)
    assert mig_nodes(owned.ask, "lab") == frozenset()
    assert [path.name for path in owned.data.iterdir()] == [NAME], "no file is left behind"


def test_many_claims_are_put_at_once(owned: OwnerBooks, store: Store) -> None:
    """More than a request over the socket may hold."""
    many = [
        Allocation(site="lab", source="slurm", tenant="a", node=f"n{i}", from_ms=i)
        for i in range(20_000)
    ]
    owned.put(many)
    assert store.query("SELECT uniqExact(node) FROM allocations").rows == [(20_000,)]


def test_an_owner_that_is_away_is_tried_again(tmp_path: Path) -> None:
    """Its folder, too, may be gone for a while."""
    with pytest.raises(Retry, match=r"nobody has .* open: start it with `megawatch up`"):
        OwnerBooks(tmp_path).put(CLAIMS)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(Retry, match="nobody has"):
        restore(OwnerBooks(tmp_path).ask, "lab")
    with pytest.raises(Retry, match="No such file"):
        OwnerBooks(tmp_path / "none").put(CLAIMS)


@pytest.mark.parametrize(
    ("said", "code", "reason"),
    [
        (("", "aside\nmegawatch: the disk is full\n"), 1, "its owner says: megawatch: the disk"),
        (("", ""), 2, "no reason given"),
        (("[{]", ""), 0, "cannot be read"),
        (('{"a": 1}', ""), 0, "cannot be read"),
        (("", ""), 0, "cannot be read"),
    ],
)
def test_an_owner_that_fails_is_one_sentence(
    tmp_path: Path, said: tuple[str, str], code: int, reason: str
) -> None:
    def run(argv: Sequence[str], cwd: Path, out: Output, err: Output) -> int:
        out.write(said[0])
        err.write(said[1])
        return code

    owner = Owner(tmp_path, run)
    try:
        with pytest.raises(Retry, match=reason) as caught:
            OwnerBooks(tmp_path).ask("SELECT 1")
    finally:
        owner.close()
    assert "\n" not in str(caught.value)


def test_records_that_are_none_are_refused_whole(store: Store, tmp_path: Path) -> None:
    context: Any = SimpleNamespace(store=store, clock=ManualClock(5), say=print)
    file = tmp_path / "x.jsonl"
    good = encode_record(CLAIMS[0])
    for bad in (b"{", b'{"site":"lab"}', b"", good.replace(b"250000", b"1000001")):
        file.write_bytes(good + b"\n" + bad + b"\n")
        with pytest.raises(Refuse, match=r"x\.jsonl:2: "):
            take(context, "allocations", [file], as_json=False)
    with pytest.raises(Refuse, match="cannot read"):
        take(context, "allocations", [tmp_path / "none"], as_json=False)
    with pytest.raises(Refuse, match="is for allocations, not samples"):
        take(context, "samples", [file], as_json=False)
    assert store.query("SELECT count() FROM allocations").rows == [(0,)]


def test_what_is_put_into_an_embedded_store_reaches_the_running_pipeline(store: Store) -> None:
    """Without a broker: rows are stamped with it soon after, and no longer when it is over."""
    clock = ManualClock(CLAIMS[0].asserted_at_ms)
    directory = warmed(store, clock.ms)
    gpus = tuple(Gpu(index, f"GPU-{index}") for index in range(4))
    directory.learn(Inventory(site="lab", node="n1", from_ms=1, gpus=gpus))
    ids = np.array([[id64("lab", gpu.uuid) for gpu in gpus]], np.uint64)
    writer = Writer(store, directory, clock)

    def tenants() -> list[int]:
        writer._renew_leases(clock.ms)
        found, _ = directory.holders().at(ids, np.array([[clock.ms]]))
        return [int(tenant) for tenant in found[0, 0]]

    assert tenants() == [0, 0, 0, 0]
    claim = replace(CLAIMS[0], share_ppm=0)
    StoreBooks(store, clock).put([claim])
    clock.advance(CONTRACTS_EVERY_MS / 1000)
    lab = id64("", claim.tenant)
    assert tenants() == [lab, 0, 0, lab]
    before = directory.holders()
    clock.advance(CONTRACTS_EVERY_MS / 1000)
    assert tenants() == [lab, 0, 0, lab]
    assert directory.holders() is before, "what is known already costs nothing"
    ended = replace(claim, until_ms=clock.ms - 5, asserted_at_ms=claim.asserted_at_ms + 1)
    StoreBooks(store, clock).put([ended])
    clock.advance(CONTRACTS_EVERY_MS / 1000)
    assert tenants() == [0, 0, 0, 0]


# -- the whole of it -----------------------------------------------------------------------------


class World:
    """A folder with `megawatch up` in it, a pretended squeue, and the feed as others start it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.data = folder, folder / "data"
        self.env = os.environ | {
            "MEGAWATCH_AGENT__LISTEN": "127.0.0.1:0", "MEGAWATCH_SLURM__LISTEN": "",
            "MEGAWATCH_SLURM__SQUEUE": script(folder / "squeue", f"cat {folder}/jobs.json"),
            "MEGAWATCH_SLURM__SCONTROL": script(folder / "scontrol", "echo Invalid job id; exit 1"),
        }  # fmt: skip
        self.running: list[subprocess.Popen[bytes]] = []

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        with (self.folder / "err").open("ab") as err:
            process = subprocess.Popen(
                [*MEGAWATCH, *arguments, "--data", str(self.data)], env=self.env,
                stdout=subprocess.DEVNULL, stderr=err,
            )  # fmt: skip
        self.running.append(process)
        return process

    def up(self) -> subprocess.Popen[bytes]:
        process = self.start("up", "--simulate", "1", "--listen", "127.0.0.1:0")
        self.until("up has the store open", lambda: is_owned(self.data))
        return process

    def run(self, *arguments: str) -> str:
        done = subprocess.run(
            [*MEGAWATCH, *arguments, "--data", str(self.data)], env=self.env, check=False,
            capture_output=True, text=True, timeout=WAIT_S,
        )  # fmt: skip
        assert done.returncode == 0, done
        return done.stdout

    def told(self) -> dict[str, int]:
        """The end of each of Slurm's jobs that the store has, in s; 0 while it is open."""
        found = json.loads(self.run(
            "sql", "--format", "json",
            "SELECT workload, toUInt32(toUnixTimestamp(argMax(tuple(until_ts), asserted_at).1)) AS u"
            " FROM allocations WHERE source = 'slurm' GROUP BY workload",
        ))  # fmt: skip
        return {row["workload"]: row["u"] or 0 for row in found}

    def jobs(self, *records: dict[str, object]) -> None:
        new = self.folder / "new.json"
        new.write_bytes(squeue(*records))
        new.rename(self.folder / "jobs.json")

    def stop(self, process: subprocess.Popen[bytes]) -> None:
        process.send_signal(signal.SIGTERM)
        process.wait(WAIT_S)
        self.running.remove(process)

    def said(self) -> str:
        return (self.folder / "err").read_text()

    def until(self, what: str, holds: Callable[[], bool]) -> None:
        deadline_s = time.monotonic() + WAIT_S
        while not holds():
            alive = [process.poll() for process in self.running]
            assert time.monotonic() < deadline_s, f"{what}: not in time; {alive}; {self.said()}"
            time.sleep(0.2)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    for process in made.running:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_the_feed_runs_beside_up_and_outlives_it(world: World) -> None:
    """Once; then for long, while `up` is away, a job ends, another begins, and all of it arrives."""
    now = int(time.time())
    first = record("7", start_time=now - 100, account="Lab")
    second = record("8", "2-2", start_time=now + 1, submit_time=now, account="Lab")
    world.jobs(first)
    up = world.up()
    world.run("slurm", "--once")
    assert world.told() == {"7": 0}
    node = world.run("sql", "--format", "csv", "SELECT tenant, account, node, gpus FROM allocations"
                     " WHERE source = 'slurm'")  # fmt: skip
    assert node.strip() == '"lab","Lab","n1","[0,1]"'
    assert (world.data / "slurm.seen").exists()

    feed = world.start("slurm", "--period", "1")
    world.stop(up)
    assert not is_owned(world.data)
    world.jobs(over("7", now + 1, start_time=now - 100), second)
    time.sleep(3)
    assert feed.poll() is None, world.said()
    up = world.up()
    world.until("what happened meanwhile is told", lambda: world.told() == {"7": now + 1, "8": 0})
    assert json.loads(world.run("ledger", "status", "--json").splitlines()[-1])
    world.stop(feed)
    assert feed.returncode == 0
    said = world.said()
    assert said.count("start it with `megawatch up`") <= 3, "once for each thing that it tries"
    assert "Traceback" not in said
    world.stop(up)


@pytest.mark.slow
def test_a_feed_that_starts_before_up_waits_for_it(world: World) -> None:
    """And leaves it the store; where there never was one it says so."""
    world.data.mkdir()
    feed = world.start("slurm", "--period", "1")
    assert feed.wait(WAIT_S) == 2
    assert "no store in" in world.said()
    world.running.clear()
    world.stop(world.up())
    now = int(time.time())
    world.jobs(record("7", start_time=now - 100))
    world.run("slurm", "--once")
    assert world.told() == {"7": 0}, "what asks once opens the store, as other commands do"
    world.jobs(record("7", start_time=now - 100), record("8", "3-3", start_time=now))
    feed = world.start("slurm", "--period", "1")
    time.sleep(2)
    assert feed.poll() is None
    world.up()
    world.until("the job is told", lambda: world.told() == {"7": 0, "8": 0})
    world.stop(feed)
    claims = world.folder / "claims.jsonl"
    claims.write_bytes(encode_record(CLAIMS[1]) + b"\n")
    said = world.run("import", "allocations", "--format", "records", "--json", str(claims))
    assert json.loads(said.splitlines()[-1]) == {"rows_inserted": 1}
