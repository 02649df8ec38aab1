"""Which Slurm job is on which GPU of this node, by the files that prolog and epilog keep.

The files are those of dcgm-exporter's `--hpc-job-mapping-dir`: named by GPU index (`3`), or by index
and MIG instance (`3.1`), a job id per line. `job.ID` beside them, which only our prolog writes, says
who the job's account is and when it began. A thread of its own looks, so that a folder that hangs
costs no tick; what was asserted is kept in a file, so that a restarted agent ends what is over.
"""

import contextlib
import errno
import fcntl
import itertools
import logging
import os
import queue
import re
import shutil
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from pipeline.clock import Clock
from pipeline.errors import Unavailable
from pipeline.records import Allocation, Index

log = logging.getLogger(__name__)

SOURCE: Final = "slurm-node"
FOLDER: Final = Path("/run/megawatch/slurm-jobs")
PERIOD_MS: Final = 2000
MAX_FILES: Final = 4096
MAX_BYTES: Final = 1 << 16
MAX_WAITING: Final = 10_000
LEAVE_S: Final = 0.5
"""How long `close` waits for a look that hangs."""
_GPU_FILE: Final = re.compile(r"([0-9]{1,5})(?:\.[0-9]{1,5})?")
_JOB: Final = re.compile(r"[0-9]{1,18}(?:[_+][0-9]{1,18})?")
_ARRAY: Final = re.compile(r"[0-9]{1,18}_[0-9]{1,18}")
_FACT: Final = re.compile(r"(account|user|array)=(.{0,200})")


class About(NamedTuple):
    """What the prolog wrote of a job; account and name are "" where it did not."""

    account: str = ""
    name: str = ""
    begun_ms: int = 0


class Seen(NamedTuple):
    """One look: the GPUs of each job, and what is known of the jobs."""

    gpus: Mapping[str, tuple[int, ...]]
    about: Mapping[str, About]


def look(folder: Path) -> Seen:
    """What the files say now. Raises Unavailable, also while prolog or epilog are writing."""
    try:
        with _quiet(folder):
            names = _names(folder)
            gpus: dict[str, set[int]] = {}
            for name in names:
                match = _GPU_FILE.fullmatch(name)
                if match is not None and int(match[1]) <= 0xFFFF:
                    for line in _lines(folder / name):
                        if _JOB.fullmatch(line):
                            gpus.setdefault(line, set()).add(int(match[1]))
            about = {job: _about(folder / f"job.{job}") for job in gpus}
    except FileNotFoundError:
        return Seen({}, {})  # no job has been here since the node came up
    except OSError as error:
        raise Unavailable(f"{folder}: {(error.strerror or 'unreadable').lower()}") from error
    return Seen({job: tuple(sorted(held)) for job, held in gpus.items()}, about)


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
    facts = {m[1]: m[2] for line in _lines(path) if (m := _FACT.fullmatch(line))}
    try:
        begun_ms = path.stat().st_mtime_ns // 1_000_000
    except FileNotFoundError:
        return About()
    name = facts.get("array", "")
    return About(facts.get("account", ""), name if _ARRAY.fullmatch(name) else "", begun_ms)


# -- what changed --------------------------------------------------------------------------------

Open = dict[tuple[str, tuple[int, ...]], Allocation]
"""Claims without an end, by the id of the job and its GPUs."""


class _Kept(msgspec.Struct, frozen=True):
    """What outlives the agent: the claims without an end, by id of the job, and when they stood."""

    seen_ms: int
    claims: list[tuple[str, Allocation]]


def changes(
    known: Open, seen: Seen, site: str, node: str, now_ms: int, last_ms: int
) -> list[Allocation]:
    """Assertions that make `known` what was seen, which it then is.

    `last_ms` is the look before this one: what is gone since was over then or later, and is taken
    to have been over now, or then where that is long ago (see JobFiles).
    """
    found: list[Allocation] = []
    ends: dict[str, int] = {}
    for (job, gpus), claim in list(known.items()):
        begun_ms = seen.about.get(job, About()).begun_ms
        is_again = begun_ms > claim.from_ms  # requeued, and back on the same GPUs
        if seen.gpus.get(job) == gpus and not is_again:
            continue
        del known[job, gpus]
        ends[job] = max(claim.from_ms, min(last_ms, begun_ms) if is_again else last_ms)
        found.append(msgspec.structs.replace(claim, until_ms=ends[job], asserted_at_ms=now_ms))
    for job, gpus in sorted(seen.gpus.items()):
        if (job, gpus) in known:
            continue
        about = seen.about.get(job, About())
        workload = about.name or job
        # What is new began when the prolog ran; other GPUs than before are the job's since now.
        is_told = about.begun_ms > 0 and ends.get(job, 0) <= about.begun_ms <= now_ms
        known[job, gpus] = claim = Allocation(
            site=site, source=SOURCE, tenant=about.account.lower(), workload=workload, node=node,
            account=about.account, gpus=gpus, from_ms=about.begun_ms if is_told else now_ms,
            asserted_at_ms=now_ms,
        )  # fmt: skip
        found.append(claim)
    return found


class JobFiles:
    """Looks every period in a thread of its own; `read` never waits.

    `looks` counts those that came to an end, `errors` those that failed by what was the matter;
    `jobs` is how many there were at the last.
    """

    def __init__(
        self,
        site: str,
        node: str,
        folder: Path,
        state: Path,
        clock: Clock,
        period_ms: int = PERIOD_MS,
    ) -> None:
        """Begin to look; `state` is a file of ours that outlives the agent."""
        self.errors: Final[Counter[str]] = Counter()
        self.looks = 0
        self.jobs = 0
        self._site, self._node, self._folder, self._state = site, node, folder, state
        self._clock = clock
        self._period_ms = period_ms
        self._found: queue.SimpleQueue[Allocation] = queue.SimpleQueue()
        self._is_kept = True
        self._stop = threading.Event()
        self._last_ms, self._known = _restored(state, site, node)
        self._thread = threading.Thread(target=self._run, name="slurm files", daemon=True)
        self._thread.start()

    def read(self, _now_ms: int) -> list[Allocation]:
        """What changed since the last call."""
        found = []
        with contextlib.suppress(queue.Empty):
            while True:
                found.append(self._found.get_nowait())
        return found

    def close(self) -> None:
        """Stop looking, within LEAVE_S; a look that hangs is left behind. Idempotent."""
        self._stop.set()
        self._thread.join(LEAVE_S)

    def _run(self) -> None:
        while not self._stop.is_set():
            self.look()
            self.looks += 1
            self._clock.wait(self._stop, self._period_ms / 1000)

    def look(self) -> None:
        """One look; what changed waits for `read`."""
        if self._found.qsize() >= MAX_WAITING:
            self.errors["nobody takes the changes"] += 1
            return
        if not self._is_kept and self._found.empty():
            # Only what was taken is kept as said: after a crash the rest is said again.
            self._keep()
        now_ms = self._clock.now_ms()
        try:
            seen = look(self._folder)
        except Unavailable as error:
            self.errors[str(error)[:200]] += 1
            return
        # After a pause nobody knows when a job went: it counts until it was last seen.
        paused = now_ms - self._last_ms > 3 * self._period_ms
        until_ms = self._last_ms if paused and self._last_ms else now_ms
        found = changes(self._known, seen, self._site, self._node, now_ms, until_ms)
        self._last_ms = now_ms
        self.jobs = len(seen.gpus)
        self._is_kept = self._is_kept and not found
        for claim in found:
            self._found.put(claim)
        self._touch()

    def _keep(self) -> None:
        claims = [(job, claim) for (job, _), claim in self._known.items()]
        new = self._state.with_name(self._state.name + ".new")
        try:
            new.write_bytes(msgspec.json.encode(_Kept(self._last_ms, claims)))
            new.replace(self._state)
        except OSError as error:
            self._is_kept = self._trouble(error)
        else:
            self._is_kept = True

    def _touch(self) -> None:
        """That the claims still stand is the file's time, since it is so at almost every look."""
        try:
            os.utime(self._state, (self._last_ms / 1000, self._last_ms / 1000))
        except FileNotFoundError:
            return  # nothing has been asserted yet
        except OSError as error:
            self._trouble(error)

    def _trouble(self, error: OSError) -> bool:
        self.errors[f"{self._state}: {(error.strerror or 'unusable').lower()}"] += 1
        return False


def _restored(state: Path, site: str, node: str) -> tuple[int, Open]:
    """When the agent before looked last, and what it had asserted without an end."""
    try:
        kept = msgspec.json.decode(state.read_bytes(), type=_Kept)
        seen_ms = max(kept.seen_ms, state.stat().st_mtime_ns // 1_000_000)
    except (OSError, msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError):
        return 0, {}
    mine = [(job, c) for job, c in kept.claims if (c.site, c.node) == (site, node)]
    return seen_ms, {(job, claim.gpus): claim for job, claim in mine}


# -- for the doctor ------------------------------------------------------------------------------


def describe(
    folder: Path = FOLDER,
    env: Mapping[str, str] = os.environ,
    spool: Path = Path("/var/spool/slurmd"),
) -> list[str]:
    """A line per thing that was looked at on this node: scheduler, folder, permissions."""
    has_client = shutil.which("scontrol", path=env.get("PATH")) is not None
    has_node = shutil.which("slurmd", path=env.get("PATH")) is not None or spool.is_dir()
    if not has_client and not has_node and not folder.exists():
        return ["no Slurm on this node: nothing to do"]
    lines = [
        "Slurm: " + ("this is one of its nodes" if has_node else "its commands are here, no slurmd")
    ]
    try:
        seen = look(folder)
        known = folder.stat()
    except FileNotFoundError:
        lines.append(
            f"{folder} is not here: set Prolog and Epilog in slurm.conf to deploy/slurm's scripts, "
            "and run a job with GPUs"
        )
        return lines
    except Unavailable as error:
        lines.append(f"{error}: the agent's user must be able to read and enter the folder")
        return lines
    except OSError as error:
        lines.append(f"{folder}: {(error.strerror or '').lower()}")
        return lines
    lines.append(f"{folder}: {len(seen.gpus)} jobs on {len(_all(seen))} GPUs now")
    if known.st_mode & 0o022:
        lines.append(f"{folder} may be written by others than its owner: chmod 755 {folder}")
    bare = sorted(job for job in seen.gpus if not seen.about[job].begun_ms)
    if bare:
        lines.append(
            f"job {bare[0]} has no job.{bare[0]} file: another prolog wrote it, its account is "
            "left to the scheduler's feed"
        )
    return lines


def _all(seen: Seen) -> set[Index]:
    return {gpu for gpus in seen.gpus.values() for gpu in gpus}
