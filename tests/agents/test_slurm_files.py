"""Jobs on this node's GPUs: the files, what changes are told, and the scripts that write them."""

import fcntl
import itertools
import os
import random
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents import slurm_files, slurm_look
from agents.slurm_files import JobFiles, changes, describe
from agents.slurm_look import About, Seen, look
from pipeline.clock import ManualClock
from pipeline.errors import Unavailable
from pipeline.records import Allocation
from pipeline.topics import ALLOCATIONS, decode_record, encode_record

SCRIPTS = Path(__file__).parents[2] / "deploy/slurm"
NOW = 1_795_280_000_000
HERE = {"site": "lab", "node": "n1"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "jobs"
    made.mkdir()
    return made


def about(folder: Path, job: str, at_ms: int, text: str) -> None:
    path = folder / f"job.{job}"
    path.write_text(text)
    os.utime(path, (at_ms / 1000, at_ms / 1000))


# -- a look --------------------------------------------------------------------------------------


def test_files_are_gpus_and_lines_are_jobs(folder: Path) -> None:
    (folder / "0").write_text("7\n8\n")
    (folder / "1").write_text("7")
    (folder / "3.1").write_text("9_2\n")
    (folder / "3.2").write_text("9_2\n")
    about(folder, "7", NOW, "account=TeamA\nuser=ann\narray=_\n")
    seen = look(folder)
    assert seen.gpus == {"7": (0, 1), "8": (0,), "9_2": (3,)}
    assert seen.about["7"] == About("TeamA", "", NOW)
    assert seen.about["8"] == About()
    assert seen.whole == {"7", "8"}


def test_what_is_no_such_file_is_passed_over(folder: Path) -> None:
    for name in ("x", "1.2.3", ".lock", ".new", "-1", "1.", "99999", "1 ", "job.1"):
        (folder / name).write_text("7\n")
    (folder / "2").mkdir()
    (folder / "3").symlink_to(folder / "job.1")
    os.mkfifo(folder / "4")
    (folder / "5").write_bytes(b"\xff\n../7\n7;8\n\n  12  \n" + b"9" * 40 + b"\n")
    assert look(folder).gpus == {"12": (5,)}


def test_no_folder_is_no_job(tmp_path: Path) -> None:
    """It is made by the first prolog, and lies in memory."""
    assert look(tmp_path / "none") == Seen({}, {})


def test_a_job_file_that_lies_is_not_believed(folder: Path) -> None:
    (folder / "0").write_text("7\n")
    about(folder, "7", NOW, "account=a\naccount=b\narray=../../x\nuser=\x00\nnonsense\n")
    assert look(folder).about["7"].name == ""
    about(folder, "7", NOW, "array=9_2\n")
    assert look(folder).about["7"] == About("", "9_2", NOW)


def test_too_many_files_are_trouble_and_not_a_wait(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slurm_look, "MAX_FILES", 3)
    for gpu in range(4):
        (folder / str(gpu)).write_text("7\n")
    with pytest.raises(Unavailable, match="more than 3 files"):
        look(folder)


def test_a_huge_file_is_read_to_a_bound(folder: Path) -> None:
    (folder / "0").write_text("".join(f"{job}\n" for job in range(100_000, 200_000)))
    assert 1000 < len(look(folder).gpus) < 10_000


def test_no_look_while_a_script_writes(folder: Path) -> None:
    (folder / "0").write_text("7\n")
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(Unavailable, match="are writing"):
            look(folder)
    assert look(folder).gpus == {"7": (0,)}


@given(
    st.dictionaries(
        st.text("0123456789.", min_size=1, max_size=6), st.binary(max_size=60), max_size=5
    )
)
def test_any_files_are_survived(files: dict[str, bytes]) -> None:
    root = Path("/tmp") / f"slurm-files-{os.getpid()}"
    root.mkdir()
    try:
        for name in files.keys() - {".", ".."}:
            (root / name).write_bytes(files[name])
        assert all(gpus for gpus in look(root).gpus.values())
    finally:
        shutil.rmtree(root)


# -- what changed --------------------------------------------------------------------------------


def seen(**jobs: tuple[int, ...]) -> Seen:
    return Seen({name.removeprefix("j"): gpus for name, gpus in jobs.items()}, {})


def test_a_job_begins_and_ends(folder: Path) -> None:
    (folder / "0").write_text("7\n")
    about(folder, "7", NOW - 1500, "account=TeamA\n")
    known: slurm_files.Open = {}
    (begun,) = changes(known, look(folder), **HERE, now_ms=NOW, last_ms=NOW)
    assert begun == Allocation(
        site="lab", source="slurm-node", tenant="teama", account="TeamA", workload="7", node="n1",
        gpus=(0,), from_ms=NOW - 1500, asserted_at_ms=NOW,
    )  # fmt: skip
    assert decode_record(ALLOCATIONS, encode_record(begun)) == begun
    assert changes(known, look(folder), **HERE, now_ms=NOW + 2000, last_ms=NOW + 2000) == []
    (folder / "0").unlink()
    (ended,) = changes(known, look(folder), **HERE, now_ms=NOW + 4000, last_ms=NOW + 4000)
    assert (ended.from_ms, ended.until_ms) == (NOW - 1500, NOW + 4000)
    assert known == {}


def test_a_job_whose_gpus_change_is_another_claim() -> None:
    known: slurm_files.Open = {}
    changes(known, seen(j7=(0,)), **HERE, now_ms=NOW, last_ms=NOW)
    ended, begun = changes(known, seen(j7=(0, 1)), **HERE, now_ms=NOW + 9, last_ms=NOW + 9)
    assert (ended.gpus, ended.until_ms) == ((0,), NOW + 9)
    assert (begun.gpus, begun.from_ms, begun.until_ms) == ((0, 1), NOW + 9, None)


def test_a_requeued_job_on_the_same_gpus_is_another_claim(folder: Path) -> None:
    (folder / "0").write_text("7\n")
    about(folder, "7", NOW - 5000, "")
    known: slurm_files.Open = {}
    changes(known, look(folder), **HERE, now_ms=NOW, last_ms=NOW)
    about(folder, "7", NOW + 3000, "")
    ended, begun = changes(known, look(folder), **HERE, now_ms=NOW + 4000, last_ms=NOW + 4000)
    assert (ended.from_ms, ended.until_ms) == (NOW - 5000, NOW + 3000)
    assert (begun.from_ms, begun.until_ms) == (NOW + 3000, None)
    (folder / "1").write_text("7\n")
    ended, begun = changes(known, look(folder), **HERE, now_ms=NOW + 6000, last_ms=NOW + 6000)
    assert (ended.gpus, ended.until_ms) == ((0,), NOW + 6000)
    assert (begun.gpus, begun.from_ms) == ((0, 1), NOW + 6000), "not from the prolog on"


@given(
    st.lists(
        st.dictionaries(st.sampled_from("789"), st.sets(st.integers(0, 3), min_size=1)), max_size=12
    )
)
def test_claims_of_a_job_follow_one_another(looks: list[dict[str, set[int]]]) -> None:
    """At each look exactly the jobs that are there have an open claim, and none overlap."""
    known: slurm_files.Open = {}
    said: dict[tuple[str, tuple[int, ...], int], Allocation] = {}
    for step, jobs in enumerate(looks):
        at_ms = NOW + 2000 * step
        held = {job: tuple(sorted(gpus)) for job, gpus in jobs.items()}
        for claim in changes(known, Seen(held, {}), **HERE, now_ms=at_ms, last_ms=at_ms):
            said[claim.workload, claim.gpus, claim.from_ms] = claim
        assert set(known) == set(held.items())
        standing = {(c.workload, c.gpus) for c in said.values() if c.until_ms is None}
        assert standing == set(held.items())
    for job in "789":
        mine = sorted(
            (c.from_ms, c.until_ms or 1 << 60) for c in said.values() if c.workload == job
        )
        assert all(a[1] <= b[0] for a, b in itertools.pairwise(mine))


# -- the thread ----------------------------------------------------------------------------------


class Still(ManualClock):
    """Its waits end with the event only, so that the test alone looks."""

    def wait(self, event: threading.Event, timeout_s: float) -> bool:
        return event.wait(30)


class Node:
    """An agent's view of a folder, which can be restarted."""

    def __init__(self, folder: Path, state: Path) -> None:
        self.folder, self.state, self.clock = folder, state, Still(NOW)
        self.start()

    def start(self) -> None:
        self.files = JobFiles("lab", "n1", self.folder, self.state, self.clock)
        deadline_s = time.monotonic() + 10
        while not self.files.looks and time.monotonic() < deadline_s:
            time.sleep(0.001)

    def look(self, seconds: float = 2) -> list[tuple[str, int, int | None]]:
        self.clock.advance(seconds)
        self.files.look()
        return self.read()

    def read(self) -> list[tuple[str, int, int | None]]:
        return [
            (c.workload, c.from_ms - NOW, c.until_ms and c.until_ms - NOW)
            for c in self.files.read(self.clock.ms)
        ]


@pytest.fixture
def node(folder: Path, tmp_path: Path) -> Iterator[Node]:
    made = Node(folder, tmp_path / "slurm.json")
    yield made
    made.files.close()


def test_changes_are_read_once(node: Node) -> None:
    (node.folder / "0").write_text("7\n")
    assert node.look() == [("7", 2000, None)]
    assert node.look() == []
    (node.folder / "0").write_text("8\n")
    assert node.look() == [("7", 2000, 6000), ("8", 6000, None)]
    assert node.files.jobs == 1


def test_a_restarted_agent_ends_what_is_over(node: Node) -> None:
    (node.folder / "0").write_text("7\n")
    (node.folder / "1").write_text("8\n")
    assert len(node.look()) == 2
    node.look()
    node.look()
    node.files.close()
    (node.folder / "0").unlink()
    node.clock.advance(3600)
    node.start()
    assert node.read() == [("7", 2000, 6000)], "an hour ago it was last seen"
    assert node.look() == []


def test_what_nobody_took_is_said_again_after_a_crash(node: Node) -> None:
    """A change that did not reach the spool must not be lost with the process."""
    (node.folder / "0").write_text("7\n")
    node.look()
    node.look()
    (node.folder / "0").unlink()
    node.clock.advance(2)
    node.files.look()
    node.files.look()  # found, and not read: the agent dies
    node.files.close()
    node.start()
    assert node.read() == [("7", 2000, 6000)]


def test_a_damaged_state_is_no_state(node: Node) -> None:
    node.files.close()
    for junk in (
        b"",
        b"{}",
        b'{"seen_ms":"x","claims":[]}',
        b"\xff\xff",
        b'{"seen_ms":1,"claims":[[1]]}',
    ):
        node.state.write_bytes(junk)
        node.start()
        assert node.look() == []
        node.files.close()


def test_another_nodes_state_is_nobodys(node: Node) -> None:
    (node.folder / "0").write_text("7\n")
    node.look()
    node.look()
    node.files.close()
    (node.folder / "0").unlink()
    node.files = JobFiles("lab", "n2", node.folder, node.state, node.clock)
    assert node.look() == []


def test_a_folder_that_cannot_be_read_ends_nothing(node: Node) -> None:
    (node.folder / "0").write_text("7\n")
    node.look()
    shutil.move(node.folder, node.folder.with_name("away"))
    node.folder.write_text("a file")
    assert node.look() == []
    assert sum(node.files.errors.values()) == 1
    node.folder.unlink()
    shutil.move(node.folder.with_name("away"), node.folder)
    assert node.look() == []


def test_a_state_that_cannot_be_written_costs_nothing_but_a_count(
    folder: Path, tmp_path: Path
) -> None:
    node = Node(folder, tmp_path / "missing" / "state")
    try:
        (folder / "0").write_text("7\n")
        assert node.look() == [("7", 2000, None)]
        assert node.look() == []
        assert list(node.files.errors) == [f"{tmp_path}/missing/state: no such file or directory"]
    finally:
        node.files.close()


def test_a_look_that_hangs_costs_no_tick(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    let_go, looking = threading.Event(), threading.Event()

    def hang(_: Path) -> Seen:
        looking.set()
        let_go.wait(30)
        return Seen({}, {})

    monkeypatch.setattr(slurm_files, "look", hang)
    files = JobFiles("lab", "n1", folder, tmp_path / "state", Still(NOW))
    assert looking.wait(10)
    begun_s = time.monotonic()
    assert files.read(NOW) == []
    files.close()
    assert time.monotonic() - begun_s < slurm_files.LEAVE_S + 0.5
    let_go.set()


# -- the doctor ----------------------------------------------------------------------------------


def test_the_doctor_sees_a_node_without_slurm(tmp_path: Path) -> None:
    lines = describe(tmp_path / "none", {"PATH": str(tmp_path)}, tmp_path / "spool")
    assert lines == ["no Slurm on this node: nothing to do"]


def test_the_doctor_says_what_to_do(folder: Path, tmp_path: Path) -> None:
    path = {"PATH": str(tmp_path)}
    slurmd = tmp_path / "slurmd"
    slurmd.write_text("#!/bin/sh\n")
    slurmd.chmod(0o755)
    missing = describe(tmp_path / "none", path, tmp_path / "spool")
    assert missing[0] == "Slurm: this is one of its nodes"
    assert "set Prolog and Epilog in slurm.conf" in missing[1]
    (folder / "0").write_text("7\n")
    folder.chmod(0o777)
    lines = describe(folder, path, tmp_path / "spool")
    assert f"{folder}: 1 jobs now, 1 GPUs named" in lines
    assert any("may be written by others" in line for line in lines)
    assert any("job 7 has no job.7 file" in line for line in lines)


@pytest.mark.skipif(os.getuid() == 0, reason="root may read everything")
def test_the_doctor_sees_permissions(folder: Path, tmp_path: Path) -> None:
    folder.chmod(0)
    lines = describe(folder, {"PATH": str(tmp_path)}, tmp_path / "spool")
    folder.chmod(0o755)
    assert any("permission denied" in line for line in lines)


# -- prolog and epilog ---------------------------------------------------------------------------


def script(name: str, folder: Path, **env: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [SCRIPTS / name],
        env={"MEGAWATCH_SLURM_JOBS": str(folder), "SLURM_JOB_ID": "7", **env},
        capture_output=True, check=False, timeout=60,
    )  # fmt: skip


def quiet(done: subprocess.CompletedProcess[bytes]) -> bool:
    """Whatever happens a script ends well, and says nothing where Slurm would take it for news."""
    return (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_scripts_keep_the_files(tmp_path: Path) -> None:
    folder = tmp_path / "run/jobs"
    facts = {"SLURM_JOB_GPUS": "0,2", "SLURM_JOB_ACCOUNT": "teamA", "SLURM_JOB_USER": "ann"}
    assert quiet(script("prolog.sh", folder, **facts))
    assert quiet(script("prolog.sh", folder, **facts)), "a prolog that is run again changes nothing"
    assert quiet(script("prolog.sh", folder, SLURM_JOB_ID="17", SLURM_JOB_GPUS="2"))
    assert (folder / "2").read_text() == "7\n17\n"
    assert oct(folder.stat().st_mode & 0o777) == "0o755"
    found = look(folder)
    assert found.gpus == {"7": (0, 2), "17": (2,)}
    assert found.about["7"].account == "teamA"
    assert abs(found.about["7"].begun_ms - time.time() * 1000) < 60_000
    assert quiet(script("epilog.sh", folder)), "without SLURM_JOB_GPUS"
    assert look(folder).gpus == {"17": (2,)}
    assert not (folder / "0").exists()
    assert quiet(script("epilog.sh", folder, SLURM_JOB_ID="17"))
    assert [path.name for path in folder.iterdir()] == [".lock"]


def test_an_array_task_has_its_name_where_slurm_tells_it(tmp_path: Path) -> None:
    script(
        "prolog.sh", tmp_path, SLURM_JOB_GPUS="1", SLURM_ARRAY_JOB_ID="5", SLURM_ARRAY_TASK_ID="3"
    )
    assert look(tmp_path).about["7"].name == "5_3"


@pytest.mark.parametrize(
    "env",
    [
        {}, {"SLURM_JOB_GPUS": ""}, {"SLURM_JOB_ID": ""}, {"SLURM_JOB_ID": "../x", "SLURM_JOB_GPUS": "0"},
        {"SLURM_JOB_ID": "7 8", "SLURM_JOB_GPUS": "0"}, {"SLURM_JOB_GPUS": "../../etc/x"},
        {"SLURM_JOB_GPUS": "$(touch owned)"}, {"SLURM_JOB_GPUS": "0;touch owned"},
        {"SLURM_JOB_GPUS": "*"}, {"SLURM_JOB_GPUS": "0\n1"}, {"SLURM_JOB_GPUS": "0-3"},
        {"SLURM_JOB_GPUS": "0", "CUDA_VISIBLE_DEVICES": "MIG-4f1c,$(touch owned)"},
    ],
)  # fmt: skip
def test_an_environment_that_is_not_slurms_writes_nothing(
    tmp_path: Path, env: dict[str, str]
) -> None:
    folder = tmp_path / "jobs"
    assert quiet(script("prolog.sh", folder, **env))
    assert quiet(script("epilog.sh", folder, **env))
    assert not folder.exists()
    assert not list(tmp_path.rglob("owned"))


def test_a_hostile_environment_changes_nothing(tmp_path: Path) -> None:
    """A PATH with other programs, a strange IFS, an account with a line break, an ENV file."""
    folder, evil = tmp_path / "jobs", tmp_path / "evil"
    evil.mkdir()
    for name in ("grep", "mv", "flock", "mkdir", "logger"):
        (evil / name).write_text(f"#!/bin/sh\ntouch {tmp_path}/owned\n")
        (evil / name).chmod(0o755)
    done = script(
        "prolog.sh", folder, SLURM_JOB_GPUS="0,1", PATH=str(evil), IFS="0", CDPATH="/",
        ENV=str(evil / "grep"), BASH_ENV=str(evil / "grep"), POSIXLY_CORRECT="1",
        GREP_OPTIONS="-v", SLURM_JOB_ACCOUNT="a\narray=1_1\n$(touch owned)",
    )  # fmt: skip
    assert quiet(done)
    assert not (tmp_path / "owned").exists()
    found = look(folder)
    assert found.gpus == {"7": (0, 1)}
    assert found.about["7"].account == "a"


def test_a_folder_that_cannot_be_is_no_reason_to_drain(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file/below", Path("/proc/none")):
        assert quiet(script("prolog.sh", folder, SLURM_JOB_GPUS="0"))
        assert quiet(script("epilog.sh", folder, SLURM_JOB_GPUS="0"))


def test_many_at_once_lose_nothing(tmp_path: Path) -> None:
    """Jobs that share GPUs begin and end at the same moment."""
    folder = tmp_path / "jobs"
    chance = random.Random(5)
    stay = {str(job): f"{chance.randrange(4)},{4 + chance.randrange(4)}" for job in range(100, 120)}
    leave = {str(job): f"{chance.randrange(8)}" for job in range(200, 220)}

    def begin(job: str) -> bool:
        gpus = (stay | leave)[job]
        return quiet(script("prolog.sh", folder, SLURM_JOB_ID=job, SLURM_JOB_GPUS=gpus))

    def end(job: str) -> bool:
        return quiet(script("epilog.sh", folder, SLURM_JOB_ID=job))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(begin, leave))
        ends = pool.map(end, leave)
        assert all(pool.map(begin, stay))
        assert all(ends)
    wanted = {job: tuple(int(gpu) for gpu in gpus.split(",")) for job, gpus in stay.items()}
    assert look(folder).gpus == wanted
    assert {p.name for p in folder.glob("job.*")} == {f"job.{job}" for job in stay}
