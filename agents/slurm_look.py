"""What the files that Slurm's prolog and epilog keep say of this node's GPUs, at one look.

The files are those of dcgm-exporter's `--hpc-job-mapping-dir`: named by GPU index (`3`), or by index
and MIG instance (`3.1`), a job id per line. `job.ID` beside them, which only our prolog writes, says
who the job's account is, when it began, and the UUIDs of its MIG instances: the driver knows of
which GPU those are and how large. Of `3.1` that is not known, and its part is an equal one of what
others leave.
"""

import contextlib
import errno
import fcntl
import itertools
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final, NamedTuple

from agents.pod_devices import Claim, Node, place
from agents.pod_resources import Held
from pipeline.errors import Unavailable

MAX_FILES: Final = 4096
MAX_BYTES: Final = 1 << 16
OTHERWISE: Final = (
    "Slurm counts the node's MIG instances among its GPUs, so that the index of a whole one may be"
    " another's"
)
_GPU_FILE: Final = re.compile(r"([0-9]{1,5})(\.[0-9]{1,5})?")
_JOB: Final = re.compile(r"[0-9]{1,18}(?:[_+][0-9]{1,18})?")
_JOB_FILE: Final = re.compile(rf"job\.({_JOB.pattern})")
_ARRAY: Final = re.compile(r"[0-9]{1,18}_[0-9]{1,18}")
_FACT: Final = re.compile(r"(account|user|array)=(.{0,200})|(mig)=([0-9A-Za-z,/-]{0,8192})")


class About(NamedTuple):
    """What the prolog wrote of a job; account and name are "" where it did not.

    mig: the UUIDs of its MIG instances.
    """

    account: str = ""
    name: str = ""
    begun_ms: int = 0
    mig: tuple[str, ...] = ()


class Seen(NamedTuple):
    """One look: the GPUs of each job by the files that are named so, and what is known of the jobs.

    whole: the jobs that are in the file of a GPU and not of an instance. parts: what those with MIG
    instances hold; unplaced: jobs of which that cannot be told now, and why.
    """

    gpus: Mapping[str, tuple[int, ...]]
    about: Mapping[str, About]
    whole: frozenset[str] = frozenset()
    parts: Mapping[str, tuple[Claim, ...]] = {}
    unplaced: Mapping[str, str] = {}


def look(folder: Path) -> Seen:
    """What the files say now. Raises Unavailable, also while prolog or epilog are writing."""
    try:
        with _quiet(folder):
            names = _names(folder)
            gpus: dict[str, set[int]] = {}
            whole: set[str] = set()
            for name in names:
                match = _GPU_FILE.fullmatch(name)
                if match is not None and int(match[1]) <= 0xFFFF:
                    jobs = [line for line in _lines(folder / name) if _JOB.fullmatch(line)]
                    whole.update([] if match[2] else jobs)
                    for job in jobs:
                        gpus.setdefault(job, set()).add(int(match[1]))
            named = {match[1] for name in names if (match := _JOB_FILE.fullmatch(name))}
            about = {job: _about(folder / f"job.{job}") for job in gpus.keys() | named}
    except FileNotFoundError:
        return Seen({}, {})  # no job has been here since the node came up
    except OSError as error:
        raise Unavailable(f"{folder}: {(error.strerror or 'unreadable').lower()}") from error
    return Seen(
        {job: tuple(sorted(held)) for job, held in gpus.items()},
        {job: told for job, told in about.items() if job in gpus or told.mig}, frozenset(whole),
    )  # fmt: skip


@contextlib.contextmanager
def _quiet(folder: Path) -> Iterator[None]:
    """While neither prolog nor epilog of ours writes; others have no lock and need none."""
    try:
        lock = os.open(folder / ".lock", os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        folder.stat()
        yield
        return
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise Unavailable(f"{folder}: prolog or epilog are writing") from error
            raise
        yield
    finally:
        os.close(lock)


def _names(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        names = [entry.name for entry in itertools.islice(entries, MAX_FILES + 1)]
    if len(names) > MAX_FILES:
        raise OSError(errno.E2BIG, f"more than {MAX_FILES} files")
    return names


def _lines(path: Path) -> list[str]:
    """A file's lines; none if it went meanwhile, or is no plain file."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ELOOP, errno.ENXIO):
            return []
        raise
    try:
        text = os.read(file, MAX_BYTES)
    except IsADirectoryError:
        return []
    finally:
        os.close(file)
    return [line.strip() for line in text.decode(errors="replace").splitlines()]


def _about(path: Path) -> About:
    matches = [m for line in _lines(path) if (m := _FACT.fullmatch(line))]
    facts = {m[1] or m[3]: m[2] or m[4] or "" for m in matches}
    try:
        begun_ms = path.stat().st_mtime_ns // 1_000_000
    except FileNotFoundError:
        return About()
    name = facts.get("array", "")
    mig = tuple(filter(None, facts.get("mig", "").split(",")))
    return About(facts.get("account", ""), name if _ARRAY.fullmatch(name) else "", begun_ms, mig)


def placed(seen: Seen, node: Node, is_cut: bool) -> Seen:
    """With what the jobs on MIG instances hold; `is_cut`: the node has such instances."""
    parts: dict[str, tuple[Claim, ...]] = {}
    unplaced = dict.fromkeys(seen.whole, OTHERWISE) if is_cut else {}
    for job, about in seen.about.items():
        if about.mig:
            unplaced.pop(job, None)
            found = place([Held("", job, "", uuid) for uuid in about.mig], node)
            if found.unplaced:
                unplaced[job] = next(iter(found.unplaced.values()))
            else:
                parts[job] = tuple(found.claims)
    return seen._replace(parts=parts, unplaced=unplaced)
