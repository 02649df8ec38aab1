"""A pipeline to be killed: two group members over one embedded store, which come and go.

chDB is one process for each folder, so that both members live here, each in a thread of its own.
Now and then one of them leaves and joins again: a rebalance. Prints "active" whenever partitions
were assigned. A line on standard input ends it once everything in the log is in the store.
"""

import contextlib
import json
import logging
import os
import random
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from pipeline.clock import SystemClock
from pipeline.errors import Retry
from pipeline.ingest import Ingest
from pipeline.kafka import KafkaLog
from pipeline.log import Mark, Partition
from pipeline.minutes import Minutes
from pipeline.service import GRACE_MS
from pipeline.settings import ClickHouse, Kafka, Pipeline
from pipeline.store import Store, open_store
from pipeline.topics import ALLOCATIONS, BACKFILL, INVENTORY, SAMPLES, TOPICS
from pipeline.warm import warmed

log = logging.getLogger(__name__)

READ = (SAMPLES, BACKFILL, INVENTORY, ALLOCATIONS)
PARTITIONS = sum(TOPICS[name].partitions or 3 for name in READ)
MEMBERS = 2
FILL_EVERY_S = 1.0
DRAIN_S = 90.0


class Options(msgspec.Struct):
    """What the test says, as JSON in the only argument."""

    kafka: Kafka
    data: str
    seed: int
    rebalance_s: tuple[float, float] = (0.4, 3.0)
    pipeline: Pipeline = Pipeline()
    members: int = MEMBERS


class Announcing(Ingest):
    """Says when it has partitions."""

    def assigned(self, marks: dict[Partition, Mark | None]) -> None:
        super().assigned(marks)
        if marks:
            print("active", flush=True)


class Member:
    """One group member in a thread, as long as it is open."""

    def __init__(self, options: Options, store: Store, number: int) -> None:
        self._options = options
        self._store = store
        self._name = f"member{number}"
        self.open()

    def open(self) -> None:
        clock = SystemClock()
        self._stop = threading.Event()
        self.ingest = Announcing(
            lambda listener: KafkaLog(self._options.kafka, READ, listener, client_id=self._name),
            self._store,
            warmed(self._store, clock.now_ms()),
            self._options.pipeline,
            clock,
        )
        self._thread = threading.Thread(target=self._run, name=self._name)
        self._thread.start()

    def leave(self) -> None:
        """Stop reading; what is in flight is finished."""
        self._stop.set()
        self._thread.join()

    def close(self) -> None:
        self.leave()
        self.ingest.close()

    def _run(self) -> None:
        try:
            self.ingest.run(self._stop)
        except BaseException:
            log.exception("%s ended by itself", self._name)
            os._exit(3)


def drive(options: Options, store: Store, ending: threading.Event) -> None:
    """Read, rebalance, fill minutes, until `ending`; then empty the log."""
    rng = random.Random(options.seed)
    members = [Member(options, store, number) for number in range(options.members)]
    filling = store.another()
    minutes = Minutes(filling)
    fill_at_s = rebalance_at_s = time.monotonic() + rng.uniform(*options.rebalance_s)
    while not ending.wait(0.05):
        now_s = time.monotonic()
        if now_s >= rebalance_at_s and options.members > 1:
            member = rng.choice(members)
            member.close()
            member.open()
            rebalance_at_s = time.monotonic() + rng.uniform(*options.rebalance_s)
        watermark = min(member.ingest.watermark_ms for member in members) - GRACE_MS
        if now_s >= fill_at_s and watermark > 0:
            with contextlib.suppress(Retry):
                minutes.fill(SystemClock().now_ms(), watermark)
            fill_at_s = now_s + FILL_EVERY_S
    for member in members[1:]:
        member.close()
    drain(members[0])
    minutes.fill(SystemClock().now_ms(), None)
    members[0].ingest.close()
    filling.close()


def drain(member: Member) -> None:
    """Until the last member has every partition, and has read each to its end."""
    until_s = time.monotonic() + DRAIN_S
    while len(member.ingest.waiting()) < PARTITIONS:
        assert time.monotonic() < until_s, "the group is not settled"
        time.sleep(0.05)
    member.leave()
    assert member.ingest.drain(DRAIN_S), "the log is not empty"
    assert len(member.ingest.waiting()) == PARTITIONS


def main(arguments: Sequence[str]) -> int:
    logging.basicConfig(
        level=logging.INFO,
        stream=sys.stderr,
        format="%(relativeCreated)d %(threadName)s %(message)s",
    )
    logging.getLogger("kafka").setLevel(logging.CRITICAL)
    options = msgspec.json.decode(arguments[0], type=Options)
    store = open_store(ClickHouse(data=options.data))
    ending = threading.Event()

    def listen() -> None:
        sys.stdin.readline()
        ending.set()

    threading.Thread(target=listen, daemon=True).start()
    drive(options, store, ending)
    store.close()
    print("drained", flush=True)
    return 0


def arguments(options: Options) -> list[str]:
    """The command line that starts a driver."""
    text = msgspec.json.encode(options).decode()
    assert json.loads(text)["data"] == options.data
    return [sys.executable, "-m", "tests.real.crash_driver", text]


ROOT = Path(__file__).parents[2]

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
