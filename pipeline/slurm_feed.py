"""The site's jobs as allocations: what Slurm says now against what is known, and the difference.

A claim is one run of a job on the GPUs of one node. It is asserted when it is first seen and again
when it is over, with the same key, so that a repetition changes nothing. Nothing is ended because
Slurm did not answer.
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Literal, NamedTuple, Protocol

import msgspec

from pipeline.clock import Clock
from pipeline.errors import Reject, Retry
from pipeline.records import Allocation, id64
from pipeline.slurm import Job, Listing, Refused, read_squeue
from pipeline.slurm_gres import MIG

log = logging.getLogger(__name__)

SOURCE: Final = "slurm"
ASK_S: Final = 5.0
"""How long a poll may ask about jobs one by one; the next one goes on."""
SLACK_MS: Final = 30_000
"""How far the scheduler's clock may be ahead: later ends are still to come."""
LEARN_EVERY_S: Final = 300.0
MAX_PENDING: Final = 500_000
_MAX_SAID: Final = 10_000

How = Literal["told", "requeued", "restarted", "resized", "retracted", "last seen"]
"""How the end of a claim is known."""


class Key(NamedTuple):
    """What makes two assertions the same claim, within a site and a source."""

    tenant: str
    workload: str
    node: str
    gpus: tuple[int, ...]
    from_ms: int


Known = dict[Key, Allocation]


class End(NamedTuple):
    """When a claim was over, and how that is known."""

    at_ms: int
    how: How


class Outlet(Protocol):
    """Where allocations go."""

    def put(self, allocations: Sequence[Allocation]) -> None:
        """Hand over; on Retry any part may have arrived, and all come again."""
        ...


class Scheduler(Protocol):
    """Who is asked about jobs."""

    def squeue(self) -> bytes:
        """Every job that the scheduler remembers, as JSON. Raises Retry."""
        ...

    def job(self, name: str) -> Listing | None:
        """One job in detail, by name or number; None if the scheduler knows none. Raises Retry."""
        ...


def key_of(claim: Allocation) -> Key:
    """The key of an assertion."""
    return Key(claim.tenant, claim.workload, claim.node, claim.gpus, claim.from_ms)


Ask = Callable[[str], Sequence[Mapping[str, object]]]
"""Asks the store, wherever that is: the rows of a SELECT by column. Raises Retry."""

_OPEN: Final = """
SELECT tenant, workload, any(account) AS account, node, gpus,
    argMax(share_ppm, asserted_at) AS share_ppm, toUnixTimestamp64Milli(from_ts) AS from_ms,
    toUnixTimestamp64Milli(max(asserted_at)) AS asserted_at_ms
FROM allocations WHERE site_id = {site} AND source = '{source}'
GROUP BY tenant, workload, node, gpus, from_ts
-- In a tuple, since argMax passes over a bare NULL, which here means: until further notice.
HAVING argMax(tuple(until_ts), asserted_at).1 IS NULL
"""
_NEWEST: Final = """
SELECT toUnixTimestamp64Milli(max(asserted_at)) AS newest_ms FROM allocations
WHERE site_id = {site} AND source = '{source}'
"""
_MIG_NODES: Final = """
SELECT DISTINCT node FROM inventory FINAL
WHERE site_id = {site} AND until_ts IS NULL AND gpu_id IN
(
    SELECT gpu FROM gpu_health WHERE site = {site} AND ts > now() - INTERVAL 1 HOUR
    GROUP BY gpu HAVING argMax(mig_mode, ts) = 1
)
"""


def restore(ask: Ask, site: str) -> tuple[Known, int]:
    """The claims that the store has without an end, and when the last assertion was, or 0."""
    names = {"site": id64(site), "source": SOURCE}
    claims = [
        # JSON on the way may have made texts of numbers.
        msgspec.convert({**row, "site": site, "source": SOURCE}, Allocation, strict=False)
        for row in ask(_OPEN.format_map(names))
    ]
    newest_ms = int(str(ask(_NEWEST.format_map(names))[0]["newest_ms"]))
    return {key_of(claim): claim for claim in claims}, newest_ms


def mig_nodes(ask: Ask, site: str) -> frozenset[str]:
    """The nodes that have a GPU in MIG mode, as their agents said last within an hour."""
    return frozenset(str(row["node"]) for row in ask(_MIG_NODES.format(site=id64(site))))


def claims_of(job: Job, known: Iterable[Key], site: str) -> list[Allocation]:
    """The claims of a job that holds GPUs; `known` are those that were open on it before."""
    assert job.from_ms is not None, "a job that holds GPUs has begun"
    runs = (job.from_ms, job.resize_ms)
    mine = {(key.node, key.gpus): key.from_ms for key in known if key.from_ms in runs}
    claims = []
    for node, gpus, share_ppm in job.places:
        since = mine.get((node, gpus))
        if since is None:
            # GPUs that joined a job that was seen with others before are its own only since then.
            since = job.resize_ms if mine and job.resize_ms else job.from_ms
        claims.append(
            Allocation(
                site=site, source=SOURCE, tenant=job.account.lower(), workload=job.name,
                account=job.account, node=node, gpus=gpus, share_ppm=share_ppm, from_ms=since,
            )
        )  # fmt: skip
    return claims


def end_of(claim: Allocation, job: Job | None, now_ms: int, seen_ms: int) -> End | None:
    """When a claim was over that is not held now; None: not to be known yet.

    `job` is what Slurm says of it, None if it knows nothing; `seen_ms` when it was last seen.
    """
    since = claim.from_ms
    last_seen = End(max(since, min(seen_ms, now_ms)), "last seen")
    if job is None:
        return last_seen
    submit = job.submit_ms or 0
    if job.state == "waiting":
        return End(submit, "requeued") if submit >= since else last_seen
    if job.state == "held":
        return _end_while_held(since, job, now_ms)
    if submit > since:
        return End(submit, "requeued")
    is_same = job.from_ms == since or job.state == "ended"
    if job.until_ms is not None and is_same and since <= job.until_ms <= now_ms + SLACK_MS:
        return End(job.until_ms, "told")
    # While it is cleared up a requeued job shows times that are nobody's: they settle.
    return None if job.state == "leaving" else last_seen


def _end_while_held(since: int, job: Job, now_ms: int) -> End | None:
    """The job runs, but not as this claim has it."""
    begun = job.from_ms or 0
    if job.unsure:
        # Perhaps it still holds the same: only another run is news.
        return End(job.submit_ms or 0, "requeued") if begun > since < (job.submit_ms or 0) else None
    if begun > since:
        requeued = since < (job.submit_ms or 0) <= begun
        return End(job.submit_ms or 0, "requeued") if requeued else End(begun, "restarted")
    if begun < since and since != job.resize_ms:
        return End(since, "retracted")
    resized = job.resize_ms or 0
    return End(resized if resized > since else max(since, now_ms), "resized")


@dataclass(slots=True)
class Stats:
    """What the feed counts. `short` are jobs that were over before they were seen with GPUs."""

    polls: int = 0
    problems: Counter[str] = field(default_factory=Counter)
    begun: int = 0
    ends: Counter[str] = field(default_factory=Counter)
    refused: int = 0
    unsure: int = 0
    short: int = 0
    dropped: int = 0
    jobs: int = 0
    gpus: int = 0
    poll_s: float = 0.0


class Feed:
    """One thread calls `poll`; others may look at `stats`, `known`, `pending` and `seen_ms`.

    mig_nodes: where Slurm's indices are not the GPUs', as `learn` found.
    """

    def __init__(
        self, site: str, scheduler: Scheduler, outlet: Outlet, clock: Clock,
        known: Known | None = None, seen_ms: int = 0,
    ) -> None:  # fmt: skip
        self.stats: Final = Stats()
        self.known: Final = dict(known or {})
        self.pending: Final[Known] = {}
        self.seen_ms = seen_ms
        self.mig_nodes: frozenset[str] = frozenset()
        self._learn_s = clock.monotonic_s()
        self._site = site
        self._scheduler = scheduler
        self._outlet = outlet
        self._clock = clock
        self._said: set[Refused] = set()
        self._trouble: dict[str, str] = {}

    def learn(self, ask: Ask) -> None:
        """Now and then: which nodes have GPUs in MIG mode. Raises Retry, and all stands."""
        now_s = self._clock.monotonic_s()
        if now_s >= self._learn_s:
            self.mig_nodes = mig_nodes(ask, self._site)
            self._learn_s = now_s + LEARN_EVERY_S

    def poll(self) -> None:
        """Ask once; what changed is pending then. Raises Retry, and nothing is ended."""
        begun_s = self._clock.monotonic_s()
        listing = self._listing()
        # Held jobs first: of two records of one name the one with GPUs counts.
        ranked = sorted(listing.jobs, key=lambda job: job.state == "held")
        jobs: dict[str, Job | None] = {job.name: job for job in ranked}
        open_by_job: dict[str, list[Key]] = {}
        for key in self.known:
            open_by_job.setdefault(key.workload, []).append(key)
        until_s = begun_s + ASK_S
        self._ask_unsure(jobs, until_s)
        self._ask_gone([name for name in open_by_job if name not in jobs], jobs, until_s)
        now_ms = self._clock.now_ms()
        held = self._held(jobs, open_by_job)
        self._end(held, jobs, now_ms)
        self._begin(held, now_ms)
        self._count(jobs, held, open_by_job)
        self.seen_ms = now_ms
        self.stats.polls += 1
        self.stats.poll_s += self._clock.monotonic_s() - begun_s

    def deliver(self) -> None:
        """Hand over what is pending. Raises Retry, and it stays pending."""
        if self.pending:
            self._outlet.put(list(self.pending.values()))
            self.pending.clear()

    def _listing(self) -> Listing:
        try:
            listing = read_squeue(self._scheduler.squeue())
        except Reject as error:
            raise Retry(str(error)) from error
        self._refuse(listing.refused)
        self.stats.refused = len(listing.refused)
        return listing

    def _refuse(self, refused: Iterable[Refused]) -> None:
        if len(self._said) > _MAX_SAID:
            self._said.clear()
        for one in refused:
            if one not in self._said:
                self._said.add(one)
                log.warning("%s is left out: %s", one.what, one.reason)

    def _ask_unsure(self, jobs: dict[str, Job | None], until_s: float) -> None:
        """Have scontrol tell the GPUs that squeue does not; what it cannot tell is asked once."""
        unsure = [job for job in jobs.values() if job and job.state == "held" and job.unsure]
        self.stats.unsure = len(unsure)
        for job in unsure:
            reason = Refused(f"job {job.name} from {job.from_ms}", job.unsure)
            if reason in self._said or self._clock.monotonic_s() > until_s:
                continue
            if MIG in job.unsure:  # nor can scontrol
                self._refuse([reason])
                continue
            told = self._asked(str(job.number))
            if told is None:
                continue
            same = [
                j for j in told if (j.name, j.from_ms, j.state) == (job.name, job.from_ms, "held")
            ]
            if same and not same[0].unsure:
                jobs[job.name] = replace(same[0], resize_ms=job.resize_ms)
            else:
                self._refuse([reason])

    def _ask_gone(self, names: list[str], jobs: dict[str, Job | None], until_s: float) -> None:
        """What became of jobs that squeue does not list: None where Slurm knows them no more."""
        for name in names:
            if self._clock.monotonic_s() > until_s:
                return
            told = self._asked(name)
            if told is None:
                continue
            mine = [job for job in told if job.name == name]
            if mine or not told:
                jobs[name] = mine[0] if mine else None

    def _asked(self, name: str) -> Sequence[Job] | None:
        """What scontrol says of a job: none if there is no such job; None if it does not say."""
        try:
            listing = self._scheduler.job(name)
        except Retry as error:
            self.problem("scontrol", error)
            return None
        if listing is None:
            return ()
        self._refuse(listing.refused)
        return listing.jobs or None

    def problem(self, what: str, error: Exception | None) -> None:
        """Count what is the matter, and say it once; None says that all is well again."""
        if error is None:
            if self._trouble.pop(what, None) is not None:
                log.warning("%s works again", what)
            return
        self.stats.problems[what] += 1
        if self._trouble.get(what) != str(error):
            self._trouble[what] = str(error)
            log.warning("%s; it is tried again", error)

    def _held(
        self, jobs: Mapping[str, Job | None], known: Mapping[str, Sequence[Key]]
    ) -> dict[Key, Allocation]:
        holding = [j for j in jobs.values() if j and j.state == "held" and j.places]
        claims = [c for job in holding for c in claims_of(job, known.get(job.name, ()), self._site)]
        elsewhere = [claim for claim in claims if claim.node in self.mig_nodes]
        self._refuse(Refused(f"job {c.workload} on {c.node}", MIG) for c in elsewhere)
        self.stats.unsure += len({claim.workload for claim in elsewhere})
        return {key_of(claim): claim for claim in claims if claim.node not in self.mig_nodes}

    def _end(self, held: Known, jobs: Mapping[str, Job | None], now_ms: int) -> None:
        for key, claim in list(self.known.items()):
            if key in held or key.workload not in jobs:
                continue
            end = end_of(claim, jobs[key.workload], now_ms, self.seen_ms)
            if end is None:
                continue
            if end.how == "last seen":
                log.warning(
                    "job %s on %s: Slurm does not tell when it ended; taken is when it was last seen",
                    key.workload, key.node,
                )  # fmt: skip
            self.stats.ends[end.how] += 1
            del self.known[key]
            self._assert(msgspec.structs.replace(claim, until_ms=end.at_ms), now_ms)

    def _begin(self, held: Known, now_ms: int) -> None:
        for key, claim in held.items():
            before = self.known.get(key)
            if before is None:
                self.stats.begun += 1
                self._assert(claim, now_ms)
            elif before.share_ppm != claim.share_ppm:  # Slurm says more of it than it did before
                self._assert(msgspec.structs.replace(before, share_ppm=claim.share_ppm), now_ms)

    def _assert(self, claim: Allocation, now_ms: int) -> None:
        # The last word on a claim is the one that was said last, also if the clock stood still.
        at_ms = max(now_ms, claim.asserted_at_ms + 1)
        said = msgspec.structs.replace(claim, asserted_at_ms=at_ms)
        key = key_of(claim)
        if claim.until_ms is None:
            self.known[key] = said
        self.pending[key] = said
        while len(self.pending) > MAX_PENDING:
            del self.pending[next(iter(self.pending))]
            self.stats.dropped += 1

    def _count(
        self,
        jobs: Mapping[str, Job | None],
        held: Known,
        known: Mapping[str, Sequence[Key]],
    ) -> None:
        self.stats.jobs = len({key.workload for key in held})
        self.stats.gpus = sum(len(key.gpus) for key in held)
        for job in jobs.values():
            if job is None or not job.has_gpus or job.state not in ("leaving", "ended"):
                continue
            if (
                0 < self.seen_ms < (job.from_ms or 0) < (job.until_ms or 0)
                and job.name not in known
            ):
                self.stats.short += 1
