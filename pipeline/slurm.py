"""What Slurm says of its jobs, as intervals on GPUs: `squeue --json`; slurm_text.py has scontrol.

Pure: bytes in, jobs and named refusals out, whatever the bytes are. Nothing is guessed: a job whose
GPUs are not told by index keeps the reason why, and holds none.
"""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal, NamedTuple

import msgspec

from pipeline.errors import Reject
from pipeline.slurm_gres import Part, gpu_parts, hosts

State = Literal["waiting", "held", "leaving", "ended"]
"""`leaving`: the job is over and Slurm is clearing up; its times may be another run's already."""

MAX_S: Final = 4_102_444_800
"""Times later than 2100 are none: a requeued job shows such."""
_MAX_JOBS: Final = 1_000_000

_STATES: Final[dict[State, frozenset[str]]] = {
    "leaving": frozenset({"COMPLETING"}),
    "waiting": frozenset(
        {"PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD", "SPECIAL_EXIT"}
    ),
    "ended": frozenset({
        "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "LAUNCH_FAILED", "NODE_FAIL",
        "OUT_OF_MEMORY", "PREEMPTED", "REVOKED", "STAGE_OUT", "TIMEOUT",
    }),
    "held": frozenset({"CONFIGURING", "RESIZING", "RUNNING", "SIGNALING", "STOPPED", "SUSPENDED"}),
}  # fmt: skip
"""By what the first of these that is said means for the GPUs."""


class Place(NamedTuple):
    """GPUs of a node, and how much of each (see slurm_gres.Part)."""

    node: str
    gpus: tuple[int, ...]
    share_ppm: int = 0


@dataclass(frozen=True, slots=True)
class Job:
    """One run of a job. Times are UTC milliseconds; None is: not, or not to be known.

    number: Slurm's own, which array tasks and parts of het jobs have too; name: as people write it
    (`7_3`, `9+1`). until_ms is set where the run is over. submit_ms is when this run was queued: a
    requeue is a new one. unsure: why `places` is empty though the job has GPUs.
    """

    number: int
    name: str
    account: str
    user: str
    state: State
    from_ms: int | None
    until_ms: int | None
    submit_ms: int | None = None
    resize_ms: int | None = None
    places: tuple[Place, ...] = ()
    has_gpus: bool = False
    unsure: str = ""


class Refused(NamedTuple):
    """What could not be read: `what` names it."""

    what: str
    reason: str


class Listing(NamedTuple):
    """Everything that one answer told."""

    jobs: tuple[Job, ...]
    refused: tuple[Refused, ...]


def named(number: int, array: int, task: int | None, het: int, offset: int) -> str:
    """A job as people write it: `7_3` in an array, `9+1` in a het job, else its number."""
    if array and task is not None:
        return f"{array}_{task}"
    return f"{het}+{offset}" if het else str(number)


def state_of(words: Iterable[str]) -> State:
    """What a job's state and its flags mean for its GPUs. Raises Reject."""
    said = {word.upper().rstrip("+") for word in words}
    for state, known in _STATES.items():
        if said & known:
            return state
    raise Reject(f"state {','.join(sorted(said))[:40]!r} is not known")


def over(job: Job, end_ms: int | None) -> Job:
    """A job with its end, if it is over and the end can be this run's."""
    if job.state not in ("leaving", "ended") or end_ms is None or job.from_ms is None:
        return job
    return replace(job, until_ms=end_ms) if end_ms >= job.from_ms else job


# -- squeue --json -------------------------------------------------------------------------------


class _Record(msgspec.Struct, frozen=True):
    """What we read of a job, in any dialect."""

    job_id: object = None
    array_job_id: object = None
    array_task_id: object = None
    het_job_id: object = None
    het_job_offset: object = None
    account: object = ""
    user_name: object = ""
    job_state: object = None
    start_time: object = None
    end_time: object = None
    submit_time: object = None
    resize_time: object = None
    nodes: object = ""
    job_resources: msgspec.Raw = msgspec.Raw(b"null")
    gres_detail: object = ()
    tres_alloc_str: object = ""
    tres_per_job: object = ""
    tres_per_node: object = ""
    tres_per_socket: object = ""
    tres_per_task: object = ""


class _Answer(msgspec.Struct, frozen=True):
    jobs: list[msgspec.Raw]


_ANSWER: Final = msgspec.json.Decoder(_Answer)
_RECORD: Final = msgspec.json.Decoder(_Record)


def read_squeue(answer: bytes) -> Listing:
    """The jobs of `squeue --json`, 22.05 and newer. Raises Reject if it is no such answer."""
    try:
        raws = _decoded(answer).jobs
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise Reject(f"squeue's answer cannot be read: {error}") from error
    if len(raws) > _MAX_JOBS:
        raise Reject(f"squeue tells of {len(raws)} jobs, at most {_MAX_JOBS} are read")
    jobs: list[Job] = []
    refused: list[Refused] = []
    for at, raw in enumerate(raws):
        what = f"job at {at}"
        try:
            record = _RECORD.decode(raw)
            what = f"job {record.job_id}"[:40]
            jobs.append(_job(record))
        except (Reject, msgspec.DecodeError, msgspec.ValidationError, UnicodeError) as error:
            refused.append(Refused(what, str(error)))
        except RecursionError:
            refused.append(Refused(what, "it is nested too deeply"))
    return Listing(tuple(jobs), tuple(refused))


def _decoded(answer: bytes) -> _Answer:
    try:
        answer.decode()
    except UnicodeDecodeError:
        # Job names and paths may hold any bytes; nothing that is read here does.
        answer = answer.decode(errors="replace").encode()
    try:
        return _ANSWER.decode(answer)
    except msgspec.ValidationError:
        raise
    except msgspec.DecodeError:
        # Slurm writes infinite weights as Infinity, which is no JSON: slowly, without them.
        tree = json.loads(answer, parse_constant=lambda _: None)
        return _ANSWER.decode(json.dumps(tree).encode())


def _job(record: _Record) -> Job:
    number = _whole(record.job_id, "job_id")
    if not number:
        raise Reject("job_id is missing")
    array, task = _whole(record.array_job_id, "array_job_id"), record.array_task_id
    het = _whole(record.het_job_id, "het_job_id")
    index = _whole(task, "array_task_id")
    offset = _whole(record.het_job_offset, "het_job_offset") or 0
    words = record.job_state if isinstance(record.job_state, list) else [record.job_state]
    job = Job(
        number=number, name=named(number, array or 0, index, het or 0, offset),
        account=_word(record.account, "account"), user=_word(record.user_name, "user_name"),
        state=state_of(str(word) for word in words),
        from_ms=_moment(record.start_time, "start_time"), until_ms=None,
        submit_ms=_moment(record.submit_time, "submit_time"),
        resize_ms=_moment(record.resize_time, "resize_time"), has_gpus=_wants_gpus(record),
    )  # fmt: skip
    if job.state == "held":
        return _placed(job, record)
    return over(job, _moment(record.end_time, "end_time"))


def _placed(job: Job, record: _Record) -> Job:
    """A job that has its GPUs now. Raises Reject without a beginning."""
    if job.from_ms is None:
        raise Reject("it runs and has no start_time")
    try:
        details = _details(record.gres_detail)
        if not any(details):
            return replace(job, unsure="gres_detail is empty") if job.has_gpus else job
        places = _paired(record, [gpu_parts(detail) for detail in details])
    except Reject as error:
        return replace(job, has_gpus=True, unsure=str(error))
    return replace(job, places=places, has_gpus=bool(places))


def _details(value: object) -> list[str]:
    if not isinstance(value, list | tuple) or not all(isinstance(v, str) for v in value):
        raise Reject("gres_detail is no list of texts")
    return list(value)


def _paired(record: _Record, parts: Sequence[tuple[Part, ...]]) -> tuple[Place, ...]:
    """Each node with its GPUs, in the order of the job's resources, which gres_detail has too."""
    names = hosts(_word(record.nodes, "nodes"))
    if len(set(names)) != len(names) or len(names) != len(parts):
        raise Reject(f"gres_detail has {len(parts)} entries for {len(names)} nodes")
    if len(set(parts)) > 1:
        inner = msgspec.json.decode(record.job_resources)
        listed = inner.get("nodes") if isinstance(inner, dict) else None
        listed = listed.get("list") if isinstance(listed, dict) else listed
        ordered = hosts(listed) if isinstance(listed, str) else []
        if sorted(ordered) != sorted(names):
            raise Reject("job_resources does not tell the order of the nodes")
        names = ordered
    pairs = zip(names, parts, strict=True)
    return tuple(Place(name, *part) for name, mine in pairs for part in mine)


_GPU_WORD: Final = re.compile(r"(?:^|[,:/])(?:gpu|mps|shard)\b")


def _wants_gpus(record: _Record) -> bool:
    told: list[object] = [
        record.tres_alloc_str, record.tres_per_job, record.tres_per_node, record.tres_per_socket,
        record.tres_per_task,
    ]  # fmt: skip
    told += record.gres_detail if isinstance(record.gres_detail, list) else []
    return any(isinstance(text, str) and _GPU_WORD.search(text) for text in told)


def _whole(value: object, name: str) -> int | None:
    """A number, plain or as {set, infinite, number}; None where it is not set. Raises Reject."""
    if isinstance(value, dict):
        if not value.get("set") or value.get("infinite"):
            return None
        value = value.get("number")
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 63:
        raise Reject(f"{name} {str(value)[:40]!r} is no number")
    return value


def _moment(value: object, name: str) -> int | None:
    """Seconds as milliseconds; none for what is not, or cannot be, a time."""
    seconds = _whole(value, name)
    return seconds * 1000 if seconds and seconds <= MAX_S else None


def _word(value: object, name: str) -> str:
    if not isinstance(value, str):
        raise Reject(f"{name} is no text")
    return value
