"""Which Slurm job is on which GPU of this node, by the files that prolog and epilog keep.

A thread of its own looks (slurm_look.py), so that a folder that hangs costs no tick; what was
asserted is kept in a file, so that a restarted agent ends what is over.
"""

import contextlib
import logging
import os
import queue
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import msgspec

from agents.pod_devices import Instance, Node, is_unknown_instance
from agents.sampler import Snapshot
from agents.slurm_look import About, Seen, look, placed
from pipeline.clock import Clock
from pipeline.errors import Unavailable
from pipeline.records import Allocation, Gpu, Index, Record

log = logging.getLogger(__name__)

SOURCE: Final = "slurm-node"
FOLDER: Final = Path("/run/megawatch/slurm-jobs")
PERIOD_MS: Final = 2000
MAX_WAITING: Final = 10_000
LEAVE_S: Final = 0.5
"""How long `close` waits for a look that hangs."""
INSTANCES_EVERY_MS: Final = 60_000
"""The driver is asked about MIG instances that it did not name at most so often."""
CAPABILITIES: Final = Path("/proc/driver/nvidia/capabilities")
"""Where the driver has a folder for each MIG instance, `gpu0/mig/gi1`."""


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
    held = _held(seen)
    for (job, gpus), claim in list(known.items()):
        begun_ms = seen.about.get(job, About()).begun_ms
        is_again = begun_ms > claim.from_ms  # requeued, and back on the same GPUs
        if ((job, gpus) in held or job in seen.unplaced) and not is_again:
            continue
        del known[job, gpus]
        ends[job] = max(claim.from_ms, min(last_ms, begun_ms) if is_again else last_ms)
        found.append(msgspec.structs.replace(claim, until_ms=ends[job], asserted_at_ms=now_ms))
    for (job, gpus), share_ppm in sorted(held.items()):
        if (job, gpus) in known:
            continue
        about = seen.about.get(job, About())
        workload = about.name or job
        # What is new began when the prolog ran; other GPUs than before are the job's since now.
        is_told = about.begun_ms > 0 and ends.get(job, 0) <= about.begun_ms <= now_ms
        known[job, gpus] = claim = Allocation(
            site=site, source=SOURCE, tenant=about.account.lower(), workload=workload, node=node,
            account=about.account, gpus=gpus, share_ppm=share_ppm,
            from_ms=about.begun_ms if is_told else now_ms, asserted_at_ms=now_ms,
        )  # fmt: skip
        found.append(claim)
    return found


def _held(seen: Seen) -> dict[tuple[str, tuple[int, ...]], int]:
    """The millionths of each of its GPUs, by the id of the job and the GPUs."""
    told = seen.parts.keys() | seen.unplaced.keys()
    held = {(job, gpus): 0 for job, gpus in seen.gpus.items() if job not in told}
    return held | {
        (job, part.gpus): part.share_ppm for job, parts in seen.parts.items() for part in parts
    }


class JobFiles:
    """Looks every period in a thread of its own; `read` never waits.

    Observes the sampler, to know the node's GPUs; `instances` asks the driver for their MIG
    instances. `looks` counts those that came to an end, `errors` those that failed by what was the
    matter, and jobs that are not told of; `jobs` is how many there were at the last.
    """

    def __init__(
        self,
        site: str,
        node: str,
        folder: Path,
        state: Path,
        clock: Clock,
        instances: Callable[[], Mapping[str, Instance]] = dict,
        capabilities: Path = CAPABILITIES,
        period_ms: int = PERIOD_MS,
    ) -> None:
        """Begin to look; `state` is a file of ours that outlives the agent."""
        self.errors: Final[Counter[str]] = Counter()
        self.looks = 0
        self.jobs = 0
        self._site, self._node, self._folder, self._state = site, node, folder, state
        self._clock = clock
        self._ask, self._capabilities = instances, capabilities
        self._gpus: Mapping[str, Gpu] = {}
        self._instances: Mapping[str, Instance] = {}
        self._ask_ms = 0
        self._missed: set[str] = set()
        self._period_ms = period_ms
        self._found: queue.SimpleQueue[Allocation] = queue.SimpleQueue()
        self._is_kept = True
        self._stop = threading.Event()
        self._last_ms, self._known = _restored(state, site, node)
        self._thread = threading.Thread(target=self._run, name="slurm files", daemon=True)
        self._thread.start()

    def on_reading(self, snapshot: Snapshot) -> None:
        """The sampler's word on which GPUs there are."""
        self._gpus = {gpu.uuid: gpu for node in snapshot.inventories for gpu in node.gpus}

    def on_record(self, record: Record) -> None:
        """The source's records say nothing about jobs."""

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
            seen = self._placed(look(self._folder), now_ms)
        except Unavailable as error:
            self.errors[str(error)[:200]] += 1
            return
        # After a pause nobody knows when a job went: it counts until it was last seen.
        paused = now_ms - self._last_ms > 3 * self._period_ms
        until_ms = self._last_ms if paused and self._last_ms else now_ms
        found = changes(self._known, seen, self._site, self._node, now_ms, until_ms)
        self._last_ms = now_ms
        self.jobs = len(seen.about)
        self._is_kept = self._is_kept and not found
        for claim in found:
            self._found.put(claim)
        self._touch()

    def _placed(self, seen: Seen, now_ms: int) -> Seen:
        """With the GPUs of jobs on MIG instances; of a job that has none that are known, a word."""
        uuids = {uuid for about in seen.about.values() for uuid in about.mig}
        is_cut = any(self._capabilities.glob("gpu*/mig/gi*"))
        if not uuids and not is_cut:
            return seen
        node = Node("", self._gpus, self._instances)
        if now_ms >= self._ask_ms and any(is_unknown_instance(uuid, node) for uuid in uuids):
            self._ask_ms = now_ms + INSTANCES_EVERY_MS
            try:
                self._instances = self._ask()
            except Unavailable as error:
                self.errors[f"MIG instances: {error}"[:200]] += 1
            node = Node("", self._gpus, self._instances)
        found = placed(seen, node, is_cut)
        missed = dict(found.unplaced) if self._gpus else {}
        for job in missed.keys() - self._missed:
            log.warning("job %s is not told of: %s", job, missed[job])
            self.errors[missed[job]] += 1
        self._missed = set(missed)
        return found

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
    lines.append(f"{folder}: {len(seen.about)} jobs now, {len(_all(seen))} GPUs named")
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
