"""What `scontrol -d show job` says of jobs, as the same intervals on GPUs as in slurm.py."""

import re
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Final
from zoneinfo import ZoneInfo

from pipeline.errors import Reject
from pipeline.slurm import (
    MAX_S,
    Job,
    Listing,
    Place,
    Refused,
    named,
    over,
    state_of,
)
from pipeline.slurm_gres import Part, gpu_parts, hosts

_EPOCH: Final = datetime.fromtimestamp(0, ZoneInfo("UTC"))
_BLOCK: Final = re.compile(r"^JobId=", re.MULTILINE)
_HEAD: Final = re.compile(
    r"(?P<number>\d{1,18})(?: ArrayJobId=(?P<array>\d{1,18}) ArrayTaskId=(?P<task>\S+)"
    r"(?: ArrayTaskThrottle=\d+)?)?(?: HetJobId=(?P<het>\d{1,18}) HetJobOffset=(?P<offset>\d{1,9}))?"
    r" JobName="
)
_LINES: Final = {
    "user": re.compile(r"^ {3}UserId=(\S+)\(\d+\) GroupId=", re.MULTILINE),
    "account": re.compile(r"^ {3}Priority=\S+ Nice=\S+ Account=(\S*) QOS=", re.MULTILINE),
    "state": re.compile(r"^ {3}JobState=(\S+) Reason=", re.MULTILINE),
    "submit": re.compile(r"^ {3}SubmitTime=(\S+) EligibleTime=", re.MULTILINE),
    "times": re.compile(r"^ {3}StartTime=(\S+) EndTime=(\S+) Deadline=", re.MULTILINE),
}
_GRES_LINE: Final = re.compile(
    r"^ {5}Nodes=(\S+) CPU_IDs=\S+ Mem=\d+ GRES=(\S*)[^\S\n]*$", re.MULTILINE
)
_HAS_GPUS: Final = re.compile(
    r"^ {3}(?:JOB_GRES|TresPer\w+|AllocTRES|TRES)=(?:\S*[,:/])?(?:gpu|mps|shard)\b", re.MULTILINE
)
_NO_TIME: Final = frozenset({"Unknown", "None", "N/A", "(null)"})


def read_scontrol(answer: bytes, zone: ZoneInfo) -> Listing:
    """The jobs of `scontrol -d show job`, whose times are local in `zone`. Never raises.

    A name or comment may imitate lines: a block that says anything twice is refused, and so are
    jobs that are told twice, differently.
    """
    text = answer.decode(errors="replace")
    jobs: dict[int, Job] = {}
    refused: list[Refused] = []
    twice: set[int] = set()
    for block in _BLOCK.split(text)[1:]:
        what = f"job {re.split(r'[^0-9]', block, maxsplit=1)[0][:20]}"
        try:
            job = _of_block(block, zone)
        except Reject as error:
            refused.append(Refused(what, str(error)))
            continue
        if jobs.setdefault(job.number, job) != job:
            twice.add(job.number)
    refused += [Refused(f"job {number}", "it is told twice, differently") for number in twice]
    return Listing(tuple(j for n, j in jobs.items() if n not in twice), tuple(refused))


def _of_block(block: str, zone: ZoneInfo) -> Job:
    head = _HEAD.match(block)
    if head is None:
        raise Reject("its first line is not as Slurm writes it")
    said: dict[str, tuple[str, ...]] = {}
    for name, pattern in _LINES.items():
        found = list(pattern.finditer(block))
        if len(found) != 1:
            raise Reject(f"it tells its {name} {len(found)} times")
        said[name] = found[0].groups()
    (user,), (account,), (state,) = said["user"], said["account"], said["state"]
    start, end = said["times"]
    task = head["task"] or ""
    job = Job(
        number=int(head["number"]),
        name=named(
            int(head["number"]), int(head["array"] or 0), int(task) if task.isdecimal() else None,
            int(head["het"] or 0), int(head["offset"] or 0),
        ),
        account="" if account == "(null)" else account, user=user, state=state_of([state]),
        from_ms=_local(start, zone), until_ms=None, submit_ms=_local(said["submit"][0], zone),
        has_gpus=bool(_HAS_GPUS.search(block)),
    )  # fmt: skip
    if head["task"] and not task.isdecimal() and job.state != "waiting":
        raise Reject(f"it runs, and is the tasks {task[:20]!r}")
    if job.state != "held":
        return over(job, _local(end, zone))
    if job.from_ms is None:
        raise Reject("it runs and has no StartTime")
    try:
        places = _told_places(block)
    except Reject as error:
        return replace(job, has_gpus=True, unsure=str(error))
    if job.has_gpus and not places:
        return replace(job, unsure="no line tells which GPUs")
    return replace(job, places=places, has_gpus=bool(places))


def _told_places(block: str) -> tuple[Place, ...]:
    told: dict[str, tuple[Part, ...]] = {}
    for nodes, gres in _GRES_LINE.findall(block):
        parts = gpu_parts(gres)
        for node in hosts(nodes):
            if told.setdefault(node, parts) != parts:
                raise Reject(f"node {node} is told twice, differently")
    return tuple(Place(node, *part) for node, parts in told.items() for part in parts)


def _local(text: str, zone: ZoneInfo) -> int | None:
    """A local time as UTC milliseconds. Raises Reject where it is none, or is two."""
    if text in _NO_TIME:
        return None
    try:
        moment = datetime.strptime(text, "%Y-%m-%dT%H:%M:%S").replace(tzinfo=zone)
        if moment.utcoffset() != moment.replace(fold=1).utcoffset():
            raise Reject(f"{text} is twice or never where clocks are set back or forth")
        at_ms = (moment - _EPOCH) // timedelta(milliseconds=1)
    except (ValueError, OverflowError) as error:
        raise Reject(f"{text[:40]!r} is no time") from error
    return at_ms if 0 < at_ms <= MAX_S * 1000 else None
