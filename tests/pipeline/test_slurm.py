"""What Slurm prints, read: two dialects of JSON, scontrol's text, captures, and junk."""

import json
import re
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import Reject
from pipeline.slurm import Job, Place, read_squeue
from pipeline.slurm_gres import MAX_NODES, gpu_parts, hosts
from pipeline.slurm_text import read_scontrol

UTC = ZoneInfo("UTC")
START, END, SUBMIT = 1_795_278_849, 1_795_278_900, 1_795_278_800

OLD: dict[str, object] = {
    "job_id": 3, "array_job_id": 2, "array_task_id": 3, "account": "teama", "user_name": "ann",
    "job_state": "RUNNING", "nodes": "n1", "gres_detail": ["gpu:h100:2(IDX:0-1)"],
    "tres_alloc_str": "cpu=1,node=1", "tres_per_node": "gres:gpu:h100:2", "start_time": START,
    "end_time": 6_090_246_087, "submit_time": SUBMIT, "resize_time": 0, "het_job_id": 0,
    "het_job_offset": 0, "job_resources": {"nodes": "n1", "allocated_hosts": 1},
    "restart_cnt": 0, "name": "x",
}  # fmt: skip
"""A record as 22.05 writes it."""


def number(value: int | None) -> dict[str, object]:
    return {"set": value is not None, "infinite": False, "number": value or 0}


NEW: dict[str, object] = OLD | {
    "array_job_id": number(2), "array_task_id": number(3), "het_job_id": number(0),
    "het_job_offset": number(0), "job_state": ["RUNNING"], "start_time": number(START),
    "end_time": {"set": True, "infinite": True, "number": 0}, "submit_time": number(SUBMIT),
    "resize_time": number(None), "tres_per_node": "gres/gpu:h100:2",
    "job_resources": {"nodes": {"count": 1, "list": "n1", "allocation": [{"name": "n1"}]}},
}  # fmt: skip
"""The same as 23.11 and newer write it."""


def squeue(*records: dict[str, object]) -> bytes:
    return json.dumps({"meta": {"plugins": {}}, "jobs": list(records), "errors": []}).encode()


def one(record: dict[str, object]) -> Job:
    listing = read_squeue(squeue(record))
    assert not listing.refused
    (job,) = listing.jobs
    return job


def why(record: dict[str, object]) -> str:
    listing = read_squeue(squeue(record))
    assert not listing.jobs
    ((_, reason),) = listing.refused
    return reason


# -- hosts and indices ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("n1", ["n1"]),
        ("n[01-03,7]", ["n01", "n02", "n03", "n7"]),
        ("n[9-11]", ["n9", "n10", "n11"]),
        ("a-1.x,b[2-3]", ["a-1.x", "b2", "b3"]),
        ("r[1-2]n[08-09]-ib", ["r1n08-ib", "r1n09-ib", "r2n08-ib", "r2n09-ib"]),
        ("node[1433,1889-1890]", ["node1433", "node1889", "node1890"]),
    ],
)
def test_hosts_are_as_many_and_as_wide_as_written(text: str, names: list[str]) -> None:
    assert hosts(text) == names


@pytest.mark.parametrize(
    "text", ["", ",", "n[", "n]", "n[1-]", "n[3-1]", "n[]", "n[1-99999999999]", "n 1", "(null)",
             "n[1-999][1-999]", "n[[1-2]]", "a,,b", "n[1-100001]", "n\n"],
)  # fmt: skip
def test_what_is_no_list_of_nodes_is_refused(text: str) -> None:
    with pytest.raises(Reject):
        hosts(text)


@pytest.mark.parametrize(
    ("gres", "gpus"),
    [
        ("gpu:h100:2(IDX:0-1)", (0, 1)),
        ("gpu:2(IDX:1,3)", (1, 3)),
        ("gpu:h100:4(IDX:0,2-3,7)", (0, 2, 3, 7)),
        ("gpu:a100:1(IDX:4),gpu:h100:1(IDX:0)", (0, 4)),
        ("gpu(IDX:5)", (5,)),
        ("gres/gpu:h100:1(IDX:5)", (5,)),
        ("license:matlab:1", ()), ("nic:mlx5:1(IDX:0)", ()), ("gpu:0", ()), ("", ()),
        ("(null)", ()), ("gpu:h100:0(IDX:)", ()),
    ],
)  # fmt: skip
def test_gpus_are_those_that_are_named(gres: str, gpus: tuple[int, ...]) -> None:
    assert gpu_parts(gres) == (((gpus, 0),) if gpus else ())


@pytest.mark.parametrize(
    ("gres", "reason"),
    [
        ("gpu:h100:2", "does not tell which"),
        ("gpu:ampere:8(IDX:0-3)", "says 8 and names 4"),
        ("gpu:h100:1(S:0)", "does not tell which"),
        ("gpu:a100_1g.5gb:1(IDX:3)", "MIG"),
        ("gpu:1g.10gb:2(IDX:0-1)", "MIG"),
        ("gpu:h100:1(IDX:70000)", "beyond"),
        ("gpu:h100:1(IDX:0-99999999)", "no list"),
        ("gpu:h100:1(IDX:x)", "no list"),
        ("gpu:h100:1(IDX:0", "no generic"),
    ],
)
def test_gpus_that_are_not_told_are_never_guessed(gres: str, reason: str) -> None:
    with pytest.raises(Reject, match=re.escape(reason)):
        gpu_parts(gres)


# -- squeue --json -------------------------------------------------------------------------------


@pytest.mark.parametrize("record", [OLD, NEW], ids=["22.05", "23.11"])
def test_both_dialects_say_the_same(record: dict[str, object]) -> None:
    assert one(record) == Job(
        number=3, name="2_3", account="teama", user="ann", state="held", from_ms=START * 1000,
        until_ms=None, submit_ms=SUBMIT * 1000, places=(Place("n1", (0, 1)),), has_gpus=True,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("said", "state"),
    [
        ("RUNNING", "held"), ("SUSPENDED", "held"), (["RUNNING", "CONFIGURING"], "held"),
        (["SUSPENDED", "SIGNALING"], "held"), (["RUNNING", "POWER_UP_NODE"], "held"),
        ("PENDING", "waiting"), (["PENDING", "REQUEUED"], "waiting"), ("COMPLETED", "ended"),
        (["CANCELLED", "COMPLETING"], "leaving"), ("COMPLETING", "leaving"),
        ("OUT_OF_MEMORY", "ended"), ("CANCELLED+", "ended"), (["COMPLETED", "STAGE_OUT"], "ended"),
    ],
)  # fmt: skip
def test_states_and_flags(said: object, state: str) -> None:
    assert one(OLD | {"job_state": said}).state == state


def test_the_end_is_that_of_a_job_that_is_over() -> None:
    done = OLD | {"job_state": "COMPLETED", "end_time": END, "gres_detail": []}
    assert one(done).until_ms == END * 1000
    assert one(done).places == ()
    assert one(done).has_gpus
    # A requeued job that is cleared up shows nobody's times.
    for odd in (6_090_246_087, 0, START - 1):
        assert one(done | {"job_state": "COMPLETING", "end_time": odd}).until_ms is None
    assert one(OLD | {"end_time": END}).until_ms is None, "the limit of a running job is no end"


def test_names_are_those_that_people_write() -> None:
    assert one(OLD | {"array_job_id": 0, "array_task_id": None}).name == "3"
    assert one(OLD | {"array_task_id": 0}).name == "2_0"
    het = {"array_job_id": 0, "array_task_id": None, "het_job_id": 9, "het_job_offset": 1}
    assert one(OLD | het).name == "9+1"


def test_nodes_with_different_gpus_follow_the_order_of_the_resources() -> None:
    """`nodes` is sorted by name; the details are in the order of slurm.conf."""
    record = OLD | {
        "nodes": "a1,z[1-2]",
        "gres_detail": ["gpu:h100:1(IDX:1)", "gpu:h100:1(IDX:2)", "gpu:h100:1(IDX:3)"],
        "job_resources": {"nodes": "z[1-2],a1"},
    }
    assert one(record).places == (Place("z1", (1,)), Place("z2", (2,)), Place("a1", (3,)))
    untold = one(record | {"job_resources": {}})
    assert untold.places == ()
    assert "order" in untold.unsure
    assert "3 entries for 1 nodes" in one(record | {"nodes": "z1"}).unsure
    alike = record | {"gres_detail": ["gpu:h100:1(IDX:1)"] * 3, "job_resources": None}
    assert [p.node for p in one(alike).places] == ["a1", "z1", "z2"]


def test_nodes_without_gpus_and_jobs_without_gpus_hold_none() -> None:
    some = OLD | {"nodes": "n[1-2]", "gres_detail": ["", "gpu:h100:1(IDX:0)"],
                  "job_resources": {"nodes": "n[1-2]"}}  # fmt: skip
    assert one(some).places == (Place("n2", (0,)),)
    none = one(OLD | {"gres_detail": [], "tres_per_node": ""})
    assert (none.places, none.has_gpus, none.unsure) == ((), False, "")


@pytest.mark.parametrize(
    "changed",
    [{"gres_detail": []}, {"gres_detail": ["gpu:h100:2"]}, {"gres_detail": "gpu"},
     {"gres_detail": ["gpu:1g.10gb:1(IDX:0)"]}, {"gres_detail": [], "tres_per_node": "",
      "tres_alloc_str": "cpu=1,gres/gpu=2"}, {"nodes": "n[1-2"}, {"nodes": 5}],
)  # fmt: skip
def test_gpus_that_squeue_does_not_tell_have_a_reason(changed: dict[str, object]) -> None:
    job = one(OLD | changed)
    assert job.has_gpus
    assert job.unsure
    assert job.places == ()


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"job_id": None}, "job_id is missing"), ({"job_id": "3"}, "job_id '3' is no number"),
        ({"job_id": -1}, "no number"), ({"job_id": True}, "no number"),
        ({"job_state": "DANCING"}, "'DANCING' is not known"), ({"job_state": []}, "not known"),
        ({"start_time": 0}, "no start_time"), ({"start_time": 1.5}, "no number"),
        ({"account": None}, "account is no text"),
    ],
)  # fmt: skip
def test_a_record_that_cannot_be_read_is_named(changed: dict[str, object], reason: str) -> None:
    assert reason in why(OLD | changed)


def test_one_bad_record_costs_no_other() -> None:
    listing = read_squeue(squeue(OLD, {"job_id": 7, "job_state": 8}, NEW))
    assert len(listing.jobs) == 2
    assert [r.what for r in listing.refused] == ["job 7"]


def test_a_name_of_any_bytes_costs_nothing() -> None:
    answer = squeue(OLD | {"name": "@@"}).replace(b"@@", b"\xff\xfe\x80")
    assert len(read_squeue(answer).jobs) == 1


def test_an_infinite_number_costs_nothing() -> None:
    answer = squeue(OLD | {"billable_tres": float("inf"), "x": float("nan")}, NEW)
    assert b"Infinity" in answer
    assert len(read_squeue(answer).jobs) == 2


@pytest.mark.parametrize("answer", [b"", b"{}", b"[]", b'{"jobs":3}', b"slurm_load_jobs error",
                                    b'{"jobs":[', b"[" * 100_000])  # fmt: skip
def test_no_answer_is_not_an_empty_one(answer: bytes) -> None:
    """An empty list of jobs would end them all."""
    with pytest.raises(Reject, match="squeue's answer"):
        read_squeue(answer)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
    | st.sampled_from(["gpu:h100:2(IDX:0-1)", "n[1-3]", "RUNNING", "COMPLETING", START]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=10,
)  # fmt: skip


@given(st.lists(st.dictionaries(st.sampled_from(sorted(OLD)), JSON, max_size=len(OLD)), max_size=4))
def test_squeue_never_crashes(records: list[dict[str, object]]) -> None:
    whole = [OLD | record for record in records]
    listing = read_squeue(squeue(*whole, *records))
    assert len(listing.jobs) + len(listing.refused) == 2 * len(records)
    for job in listing.jobs:
        assert not job.places or (job.state == "held" and job.from_ms and not job.unsure)


@given(st.binary(max_size=200))
def test_squeue_takes_any_bytes(answer: bytes) -> None:
    try:
        read_squeue(answer)
    except Reject:
        return


@given(st.text(alphabet="n[]0123456789,-()", max_size=60))
def test_hosts_are_bounded(text: str) -> None:
    try:
        assert 1 <= len(hosts(text)) <= MAX_NODES
    except Reject:
        return


@given(st.text(alphabet="gpu:h10(IDX-),S/", max_size=40))
def test_indices_of_junk(text: str) -> None:
    try:
        assert all(0 <= gpu <= 0xFFFF for part in gpu_parts(text) for gpu in part.gpus)
    except Reject:
        return


# -- scontrol ------------------------------------------------------------------------------------

TEXT = """\
JobId=3 ArrayJobId=2 ArrayTaskId=3 JobName=wrap
   UserId=ann(1001) GroupId=ann(1001) MCS_label=N/A
   Priority=4294901758 Nice=0 Account=teama QOS=(null)
   JobState=RUNNING Reason=None Dependency=(null)
   Requeue=1 Restarts=0 BatchFlag=1 Reboot=0 ExitCode=0:0
   SubmitTime=2026-11-21T16:33:20 EligibleTime=2026-11-21T16:34:09
   StartTime=2026-11-21T16:34:09 EndTime=Unknown Deadline=N/A
   NodeList=n[01-03]
   TRES=cpu=1,node=3,billing=1
   JOB_GRES=gpu:h100:5
     Nodes=n[01-02] CPU_IDs=1 Mem=0 GRES=gpu:h100:2(IDX:0,3)
     Nodes=n03 CPU_IDs=1-4 Mem=0 GRES=gpu:h100:1(IDX:2)
   TresPerNode=gres:gpu:h100:2

"""


def told(text: str, zone: ZoneInfo = UTC) -> Job:
    listing = read_scontrol(text.encode(), zone)
    assert not listing.refused
    (job,) = listing.jobs
    return job


def refused(text: str, zone: ZoneInfo = UTC) -> str:
    listing = read_scontrol(text.encode(), zone)
    assert not listing.jobs
    return " ".join(r.reason for r in listing.refused)


def test_scontrol_tells_of_every_node() -> None:
    assert told(TEXT) == Job(
        number=3, name="2_3", account="teama", user="ann", state="held", from_ms=START * 1000,
        until_ms=None, submit_ms=SUBMIT * 1000, has_gpus=True,
        places=(Place("n01", (0, 3)), Place("n02", (0, 3)), Place("n03", (2,))),
    )  # fmt: skip


def test_het_jobs_and_those_that_are_over() -> None:
    het = TEXT.replace("ArrayJobId=2 ArrayTaskId=3", "HetJobId=9 HetJobOffset=1")
    assert told(het).name == "9+1"
    done = re.sub(r"     Nodes=.*\n", "", TEXT).replace("RUNNING", "COMPLETED")
    done = done.replace("EndTime=Unknown", "EndTime=2026-11-21T16:35:00")
    assert told(done).until_ms == END * 1000
    assert told(done).has_gpus
    assert "no line tells" in told(done.replace("COMPLETED", "RUNNING")).unsure


def test_times_are_those_of_the_zone() -> None:
    assert told(TEXT, ZoneInfo("Asia/Kolkata")).from_ms == (START - 19_800) * 1000
    # 2026-10-25 02:30 came twice in Berlin, 2026-03-29 02:30 never.
    for day in ("2026-10-25", "2026-03-29"):
        text = TEXT.replace("StartTime=2026-11-21T16:34:09", f"StartTime={day}T02:30:00")
        assert "twice or never" in refused(text, ZoneInfo("Europe/Berlin"))
        assert told(text, UTC).from_ms
    assert "is no time" in refused(TEXT.replace("StartTime=2026", "StartTime=26"))


@pytest.mark.parametrize(
    "name",
    [
        "x\n   Priority=1 Nice=0 Account=rich QOS=x",
        "x\n   JobState=PENDING Reason=None",
        "x\n   StartTime=2020-01-01T00:00:00 EndTime=Unknown Deadline=N/A",
    ],
)
def test_a_name_that_imitates_lines_is_refused(name: str) -> None:
    """Whoever submits a job chooses its name, and must not choose who pays."""
    assert "2 times" in refused(TEXT.replace("JobName=wrap", f"JobName={name}"))


def test_a_name_that_imitates_another_job_changes_none() -> None:
    fake = TEXT.replace("JobName=wrap", "JobName=x\n" + TEXT.replace("JobId=3", "JobId=4").strip())
    listing = read_scontrol((TEXT.replace("JobId=3", "JobId=4") + fake).encode(), UTC)
    # The real 4 stands; the block that begins in the name says everything twice.
    assert [(job.number, job.account) for job in listing.jobs] == [(4, "teama")]
    assert len(listing.refused) == 2
    assert not read_scontrol((TEXT + TEXT.replace("=teama", "=rich")).encode(), UTC).jobs


def test_a_node_told_twice_differently_is_unsure() -> None:
    twice = TEXT.replace("Nodes=n03", "Nodes=n02")
    assert "n02 is told twice" in told(twice).unsure
    assert len(read_scontrol((TEXT + TEXT).encode(), UTC).jobs) == 1


@given(st.text(max_size=300), st.integers(0, len(TEXT)), st.integers(0, 60))
def test_scontrol_never_crashes(junk: str, at: int, cut: int) -> None:
    text = TEXT[:at] + junk + TEXT[at + cut :]
    read_scontrol(text.encode(errors="replace") + b"\xff", UTC)


# -- captures ------------------------------------------------------------------------------------


def test_every_capture_of_scontrol_is_read_or_refused_with_a_reason(captures: Path) -> None:
    found: dict[str, list[str]] = {}
    for path in sorted((captures / "slurm_fixtures").glob("gcm_scontrol_out_*.txt")):
        listing = read_scontrol(path.read_bytes(), UTC)
        gpus = [f"{j.name}:{sum(len(p.gpus) for p in j.places)}{' ' + j.unsure if j.unsure else ''}"
                for j in listing.jobs]  # fmt: skip
        gpus += [f"{r.what}! {r.reason}" for r in listing.refused]
        found[path.stem.removeprefix("gcm_scontrol_out_")] = gpus
    contradicts = "'gpu:ampere:8(IDX:{})' says 8 and names {}"
    assert found == {
        "all_gpus": ["30185_28:8"],
        "main_array_job": [
            "31185_128:0 " + contradicts.format("5-7", 3),
            "job 30214! it runs, and is the tasks '28-59%100'",
        ],
        "multi_node": ["8401413:64"],
        "no_gpus": ["30185_28:0 no line tells which GPUs"],
        "repeated_entry": ["30185_28:0 no line tells which GPUs"],
        "some_gpus": ["30185_28:0 " + contradicts.format("0-3", 4)],
        "unique_entries": [
            "30185_28:0 " + contradicts.format("0-3", 4),
            "31185_128:0 " + contradicts.format("5-7", 3),
        ],
    }


def test_every_other_capture_is_no_list_of_jobs(captures: Path) -> None:
    """Partitions, accounting and node lists are read as no jobs, or refused; never as something."""
    folder = captures / "slurm_fixtures"
    read = read_squeue((folder / "telegraf_slurmrestd_jobs.json").read_bytes())
    assert (len(read.jobs), read.refused) == (3, ())
    assert not any(job.has_gpus or job.places for job in read.jobs)
    for path in folder.iterdir():
        if path.suffix == ".json" and "jobs" not in path.name:
            with pytest.raises(Reject, match="required field `jobs`"):
                read_squeue(path.read_bytes())
        elif path.suffix == ".txt" and "scontrol_out_" not in path.name:
            assert not read_scontrol(path.read_bytes(), UTC).jobs
            with pytest.raises(Reject, match="cannot be read"):
                read_squeue(path.read_bytes())
