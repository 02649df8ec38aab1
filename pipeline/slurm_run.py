"""`megawatch slurm`: the feed with real commands, a real outlet, metrics, and a loop around it."""

import argparse
import contextlib
import logging
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from zoneinfo import ZoneInfo

import msgspec
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from pipeline.clock import Clock
from pipeline.errors import Refuse, Retry
from pipeline.owner import is_owned
from pipeline.settings import ClickHouse, Settings, Slurm, secret
from pipeline.slurm import Listing
from pipeline.slurm_feed import Feed, Known, Outlet, restore
from pipeline.slurm_outlets import (
    Books,
    OwnerBooks,
    Printed,
    Producer,
    StoreBooks,
    TopicOutlet,
)
from pipeline.slurm_text import read_scontrol
from pipeline.store import open_store
from pipeline.web import Page, Web, text

log = logging.getLogger(__name__)

MAX_ANSWER: Final = 1 << 30
_LEAVE_S: Final = 2.0
_MAX_STALE_S: Final = 120.0
_OWN: Final = "megawatch_slurm"
_CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_UNKNOWN: Final = "invalid job id"


# -- the scheduler's commands --------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Commands:
    """Slurm through its own programs: slurm_feed.Scheduler."""

    settings: Slurm
    env: Mapping[str, str] = field(default_factory=lambda: os.environ)

    def squeue(self) -> bytes:
        """Jobs of all states and partitions."""
        return self._run([self.settings.squeue, "--all", "--states=all", "--json"])

    def job(self, name: str) -> Listing | None:
        """One job, or None if there is none of that name or number."""
        try:
            answer = self._run([self.settings.scontrol, "-d", "show", "job", name])
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
                code = process.wait(self.settings.timeout_s)
            except subprocess.TimeoutExpired as error:
                _end(process)
                raise Retry(
                    f"{command[0]} did not answer within {self.settings.timeout_s:g} s"
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


def serve(args: argparse.Namespace, settings: Settings, stop: threading.Event, clock: Clock) -> int:
    """The feed as configured, through Kafka where there is a broker. Raises Refuse."""
    from pipeline.kafka import Producer as KafkaProducer

    mine = settings.slurm
    mine = msgspec.structs.replace(mine, period_s=args.period or mine.period_s)
    with contextlib.ExitStack() as stack:
        books = stack.enter_context(_opened(settings.clickhouse, clock, once=args.once))
        producer = None
        if settings.kafka.bootstrap:
            producer = KafkaProducer(settings.kafka, "megawatch-slurm")
            stack.callback(producer.close, 5.0)
        return run(
            settings.site.name, mine, books, producer, stop, clock,
            lambda line: print(line, file=sys.stderr), once=args.once, dry_run=args.dry_run,
        )  # fmt: skip


@contextlib.contextmanager
def _opened(settings: ClickHouse, clock: Clock, *, once: bool) -> Iterator[Books]:
    """The store: what runs for long leaves an embedded one to whoever has it open, or will."""
    data = Path(settings.data)
    if settings.data and (not once or is_owned(data)):
        yield OwnerBooks(data)
        return
    with contextlib.closing(open_store(settings)) as store:
        yield StoreBooks(store, clock)


def run(
    site: str,
    settings: Slurm,
    books: Books,
    producer: Producer | None,
    stop: threading.Event,
    clock: Clock,
    say: Callable[[str], None],
    *,
    once: bool = False,
    dry_run: bool = False,
) -> int:
    """Reconcile until `stop` is set, or once; the exit status.

    What is known is restored from the books, and allocations go there, or to the topic if there is
    a producer. Raises Refuse, and Retry where once is all there is.
    """
    if not 1 <= settings.period_s <= 3600:
        raise Refuse(f"[slurm] period_s={settings.period_s:g}: it is from 1 to 3600")
    restored = _restored(site, settings, books, stop, clock, once)
    if restored is None:
        return 0
    known, asserted_ms = restored
    seen_ms = max(read_seen(settings.seen), asserted_ms)
    outlet: Outlet = TopicOutlet(producer, clock) if producer else books
    feed = Feed(
        site, Commands(settings), Printed(say) if dry_run else outlet, clock, known, seen_ms
    )  # fmt: skip
    log.info("%d claims are open", len(known))
    with contextlib.ExitStack() as stack:
        if settings.listen and not once:
            token = secret("", settings.token_file)
            web = Web(settings.listen, Exporter(feed, clock).pages(), token)
            stack.callback(web.close)
        while True:
            failed = turn(feed, books, "" if dry_run else settings.seen, say if once else None)
            if once or clock.wait(stop, settings.period_s):
                return int(failed and once)


def _restored(
    site: str, settings: Slurm, books: Books, stop: threading.Event, clock: Clock, once: bool
) -> tuple[Known, int] | None:
    """What the books know, as soon as they answer; None if told to stop before."""
    said = ""
    while True:
        try:
            return restore(books.ask, site)
        except Retry as error:
            if once:
                raise
            if said != str(error):
                said = str(error)
                log.warning("%s; it is tried again", said)
        if clock.wait(stop, settings.period_s):
            return None


def turn(feed: Feed, books: Books, seen: str, say: Callable[[str], None] | None) -> bool:
    """Learn, ask, remember when, hand over: each as far as it goes. True if something failed."""

    def remember() -> None:
        if feed.seen_ms:
            write_seen(seen, feed.seen_ms)

    def learn() -> None:
        feed.learn(books.ask)

    failed = False
    for what, work in (
        ("store", learn), ("squeue", feed.poll), ("seen", remember), ("deliver", feed.deliver),
    ):  # fmt: skip
        problem: Exception | None = None
        try:
            work()
        except (Retry, OSError) as error:
            problem, failed = error, True
            if say:
                say(f"{what}: {error}")
        feed.problem(what, problem)
    return failed


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
