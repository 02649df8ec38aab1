"""`megawatch slurm`: the feed with real commands, a real outlet, metrics, and a loop around it."""

import argparse
import contextlib
import logging
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol
from zoneinfo import ZoneInfo

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from pipeline import rows
from pipeline.clock import Clock
from pipeline.errors import Refuse, Retry
from pipeline.records import Allocation
from pipeline.settings import Settings, secret
from pipeline.slurm import Listing
from pipeline.slurm_feed import Feed, Outlet, restore
from pipeline.slurm_text import read_scontrol
from pipeline.store import Store
from pipeline.topics import ALLOCATIONS, encode_record
from pipeline.web import Page, Web, text

log = logging.getLogger(__name__)

MAX_ANSWER: Final = 1 << 30
_LEAVE_S: Final = 2.0
_CHUNK: Final = 1000
_ACK_S: Final = 30.0
_CONNECT_S: Final = 15.0
_MAX_STALE_S: Final = 120.0
_OWN: Final = "megawatch_slurm"
_CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_UNKNOWN: Final = "invalid job id"

Ack = Callable[[Exception | None], None]


@dataclass(frozen=True, slots=True)
class Options:
    """What can be said to the feed; `seen` is a file that outlives it, "" for none."""

    period_s: float = 10.0
    squeue: str = "squeue"
    scontrol: str = "scontrol"
    timeout_s: float = 60.0
    seen: str = ""
    listen: str = "127.0.0.1:9468"
    token: str = ""
    once: bool = False
    dry_run: bool = False


# -- the scheduler's commands --------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Commands:
    """Slurm through its own programs: slurm_feed.Scheduler."""

    options: Options = Options()
    env: Mapping[str, str] = field(default_factory=lambda: os.environ)

    def squeue(self) -> bytes:
        """Jobs of all states and partitions."""
        return self._run([self.options.squeue, "--all", "--states=all", "--json"])

    def job(self, name: str) -> Listing | None:
        """One job, or None if there is none of that name or number."""
        try:
            answer = self._run([self.options.scontrol, "-d", "show", "job", name])
        except Retry as error:
            if _UNKNOWN in str(error).lower():
                return None
            raise
        return read_scontrol(answer, ZoneInfo("UTC"))

    def _run(self, command: Sequence[str]) -> bytes:
        """What a command printed. Raises Retry with one sentence."""
        # No variable of somebody's shell may choose columns, filters or another form of times.
        env = {k: v for k, v in self.env.items() if not k.startswith(("SQUEUE_", "SCONTROL_"))}
        env |= {"TZ": "UTC", "LC_ALL": "C", "SLURM_TIME_FORMAT": "standard"}
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            try:
                process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=env,
                    start_new_session=True,
                )  # fmt: skip
            except OSError as error:
                raise Retry(f"cannot run {command[0]}: {error.strerror}") from error
            try:
                code = process.wait(self.options.timeout_s)
            except subprocess.TimeoutExpired as error:
                _end(process)
                raise Retry(
                    f"{command[0]} did not answer within {self.options.timeout_s:g} s"
                ) from error
            if out.seek(0, os.SEEK_END) > MAX_ANSWER:
                raise Retry(f"{command[0]} answered more than {MAX_ANSWER >> 20} MiB")
            out.seek(0)
            err.seek(0)
            answer = out.read()
            if code:
                lines = (err.read(1 << 16) + answer[:1000]).decode(errors="replace").split("\n")
                raise Retry(f"{command[0]} failed ({code}): {lines[0].strip()[:300]}")
            return answer


def _end(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):  # it hangs in the kernel: left behind
        process.wait(_LEAVE_S)


# -- outlets -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class StoreOutlet:
    """Straight into the store; the same assertion again is the same row."""

    store: Store
    clock: Clock

    def put(self, allocations: Sequence[Allocation]) -> None:
        """Insert."""
        for table, block in rows.by_table(allocations, self.clock.now_ms()).items():
            self.store.insert(table, block)


class Producer(Protocol):
    """What the outlet needs of a Kafka client."""

    def send(self, topic: str, key: bytes, value: bytes, ack: Ack) -> None:
        """Hand over a message; `ack` is called once. Raises Retry or Reject."""
        ...

    def close(self, timeout_s: float) -> None:
        """Disconnect."""
        ...


@dataclass(frozen=True, slots=True)
class TopicOutlet:
    """Through the topic `allocations`, keyed by node, each message acknowledged."""

    producer: Producer
    clock: Clock

    def put(self, allocations: Sequence[Allocation]) -> None:
        """Send, and wait for every answer."""
        for at in range(0, len(allocations), _CHUNK):
            self._put(allocations[at : at + _CHUNK])

    def _put(self, allocations: Sequence[Allocation]) -> None:
        answers: queue.SimpleQueue[Exception | None] = queue.SimpleQueue()
        deadline_s = self.clock.monotonic_s() + _CONNECT_S
        for record in allocations:
            self._send(record, answers.put, deadline_s)
        for _ in allocations:
            try:
                problem = answers.get(timeout=_ACK_S * 2)
            except queue.Empty as error:
                raise Retry("the broker did not acknowledge allocations in time") from error
            if problem is not None:
                raise Retry(f"allocations were not acknowledged: {problem}") from problem

    def _send(self, record: Allocation, ack: Ack, deadline_s: float) -> None:
        never = threading.Event()
        while True:
            try:
                self.producer.send(ALLOCATIONS, record.node.encode(), encode_record(record), ack)
            except Retry:  # it connects in the background
                if self.clock.monotonic_s() > deadline_s:
                    raise
                self.clock.wait(never, 0.1)
            else:
                return


@dataclass(frozen=True, slots=True)
class Printed:
    """Says what would be asserted."""

    say: Callable[[str], None]

    def put(self, allocations: Sequence[Allocation]) -> None:
        """A line each."""
        for claim in allocations:
            self.say(encode_record(claim).decode())


# -- metrics -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Exporter:
    """What the feed says of itself."""

    feed: Feed
    clock: Clock

    def pages(self) -> dict[str, Callable[[], Page]]:
        """By path."""
        registry = CollectorRegistry(auto_describe=False)
        registry.register(self)
        return {
            "/metrics": lambda: Page(200, _CONTENT_TYPE, generate_latest(registry)),
            "/healthz": self.health,
        }

    def health(self) -> Page:
        """200 while Slurm answered not long ago."""
        age_s = (self.clock.now_ms() - self.feed.seen_ms) / 1000
        if not self.feed.seen_ms or age_s > _MAX_STALE_S:
            return text(503, "Slurm has not answered lately\n")
        return text(200, "ok\n")

    def collect(self) -> Iterator[Metric]:
        """For the registry."""
        stats, feed = self.feed.stats, self.feed
        for name, meaning, count in (
            ("polls", "Answers of squeue that were read", stats.polls),
            ("poll_seconds", "Time spent in them", stats.poll_s),
            ("begun", "Claims asserted as begun", stats.begun),
            ("short_jobs", "Jobs over before they were seen with GPUs", stats.short),
            ("dropped", "Assertions thrown away, since too many wait", stats.dropped),
        ):
            yield CounterMetricFamily(f"{_OWN}_{name}", meaning, value=count)
        for name, meaning, value in (
            ("jobs", "Jobs that hold GPUs", stats.jobs),
            ("gpus", "GPUs held, each as often as it is", stats.gpus),
            ("unsure_jobs", "Jobs whose GPUs squeue does not tell", stats.unsure),
            ("refused_jobs", "Jobs of the last answer that cannot be read", stats.refused),
            ("open_claims", "Claims without an end", len(feed.known)),
            ("pending", "Assertions that wait to be handed over", len(feed.pending)),
        ):
            yield GaugeMetricFamily(f"{_OWN}_{name}", meaning, value=value)
        if feed.seen_ms:
            age_s = (self.clock.now_ms() - feed.seen_ms) / 1000
            yield GaugeMetricFamily(f"{_OWN}_age_seconds", "Since Slurm last answered", value=age_s)
        for name, label, counts in (
            ("ends", "how", stats.ends), ("problems", "what", stats.problems),
        ):  # fmt: skip
            family = CounterMetricFamily(f"{_OWN}_{name}", f"Counted by {label}", labels=[label])
            for key, number in dict(counts).items():
                family.add_metric([key], number)
            yield family


# -- the loop ------------------------------------------------------------------------------------


def serve(
    args: argparse.Namespace,
    settings: Settings,
    store: Store,
    stop: threading.Event,
    clock: Clock,
) -> int:
    """The feed as configured, through Kafka where there is a broker. Raises Refuse."""
    from pipeline.kafka import Producer as KafkaProducer

    mine = settings.slurm
    options = Options(
        period_s=args.period or mine.period_s, squeue=mine.squeue, scontrol=mine.scontrol,
        timeout_s=mine.timeout_s, seen=mine.seen, listen=mine.listen,
        token=secret("", mine.token_file), once=args.once, dry_run=args.dry_run,
    )  # fmt: skip
    producer = (
        KafkaProducer(settings.kafka, "megawatch-slurm") if settings.kafka.bootstrap else None
    )
    try:
        return run(
            settings.site.name, options, store, producer, stop, clock,
            lambda line: print(line, file=sys.stderr),
        )  # fmt: skip
    finally:
        if producer:
            producer.close(5.0)


def run(
    site: str,
    options: Options,
    store: Store | None,
    producer: Producer | None,
    stop: threading.Event,
    clock: Clock,
    say: Callable[[str], None],
) -> int:
    """Reconcile until `stop` is set, or once; the exit status.

    Allocations go to the topic if there is a producer, else into the store; what is known is
    restored from the store if there is one. Raises Refuse.
    """
    if not 1 <= options.period_s <= 3600:
        raise Refuse(f"[slurm] period_s={options.period_s:g}: it is from 1 to 3600")
    outlet = _outlet(options, store, producer, clock, say)
    known, asserted_ms = restore(store, site) if store else ({}, 0)
    seen_ms = max(read_seen(options.seen), asserted_ms)
    feed = Feed(site, Commands(options), outlet, clock, known, seen_ms)
    log.info("%d claims are open", len(known))
    with contextlib.ExitStack() as stack:
        if options.listen and not options.once:
            web = Web(options.listen, Exporter(feed, clock).pages(), options.token)
            stack.callback(web.close)
        while True:
            failed = turn(feed, options, say)
            if options.once or clock.wait(stop, options.period_s):
                return int(failed and options.once)


def turn(feed: Feed, options: Options, say: Callable[[str], None]) -> bool:
    """Ask, remember when, hand over: each as far as it goes. True if something failed."""

    def remember() -> None:
        if not options.dry_run and feed.seen_ms:
            write_seen(options.seen, feed.seen_ms)

    failed = False
    for what, work in (("squeue", feed.poll), ("seen", remember), ("deliver", feed.deliver)):
        problem: Exception | None = None
        try:
            work()
        except (Retry, OSError) as error:
            problem, failed = error, True
            if options.once:
                say(f"{what}: {error}")
        feed.problem(what, problem)
    return failed


def _outlet(
    options: Options,
    store: Store | None,
    producer: Producer | None,
    clock: Clock,
    say: Callable[[str], None],
) -> Outlet:
    if options.dry_run:
        return Printed(say)
    if producer is not None:
        return TopicOutlet(producer, clock)
    if store is not None:
        return StoreOutlet(store, clock)
    raise Refuse("nowhere to put allocations: set [kafka] bootstrap, or give --data or --store")


def read_seen(path: str) -> int:
    """When Slurm was last heard by the feed's life before, or 0."""
    with contextlib.suppress(OSError, ValueError):
        return max(0, int(Path(path).read_text())) if path else 0
    return 0


def write_seen(path: str, seen_ms: int) -> None:
    """Remember it, at once or not at all. Raises OSError."""
    if path:
        new = Path(f"{path}.new")
        new.write_text(f"{seen_ms}\n")
        new.rename(path)
