"""A real agent process on the simulator, its spool looked into, its metrics read."""

import contextlib
import os
import re
import shutil
import sqlite3
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from deploy.broker import free_port
from pipeline.clock import SystemClock
from pipeline.ingest import Ingest
from pipeline.kafka import KafkaLog
from pipeline.minutes import Minutes
from pipeline.run import READ
from pipeline.settings import Kafka, Pipeline
from pipeline.store import Store
from pipeline.topics import TOPICS
from pipeline.warm import warmed
from tests.real.crash_process import Victim

LIVES_TO_FINISH = 5
_SAMPLE = re.compile(r"^(\w+(?:\{[^}]*\})?) (\S+)$", re.MULTILINE)


class Agent(Victim):
    """`megawatch agent --source simulator`, with its spool in a folder of the test's."""

    def __init__(self, kafka: Kafka, spool: Path, log: Path, nodes: int = 2, **changes: object):
        self.spool = spool
        self.port = free_port()
        settings = {
            "kafka__bootstrap": kafka.bootstrap, "kafka__topic_prefix": kafka.topic_prefix,
            "agent__spool": spool, "agent__listen": f"127.0.0.1:{self.port}",
            "agent__flush_ms": 1000,
        } | changes  # fmt: skip
        chosen = {f"MEGAWATCH_{name.upper()}": str(value) for name, value in settings.items()}
        command = [sys.executable, "-m", "megawatch", "agent", "--source", "simulator"]
        super().__init__([*command, "--simulate", str(nodes)], log, os.environ | chosen)

    def streams(self) -> dict[int, tuple[int, int]]:
        """Numbers given and messages thrown away, by stream, as the spool has them."""
        rows = self._ask("SELECT id, next_seq, dropped FROM stream")
        return {stream: (given, dropped) for stream, given, dropped in rows}

    def waiting(self) -> int:
        """Messages in the spool."""
        return self._ask("SELECT count(*) FROM message")[0][0]

    def metrics(self) -> dict[str, float]:
        """Its own metrics, by name and labels."""
        page = f"http://127.0.0.1:{self.port}/metrics/agent"
        with urllib.request.urlopen(page, timeout=5) as answer:
            return {name: float(value) for name, value in _SAMPLE.findall(answer.read().decode())}

    def wait_until_sampling(self, patience_s: float = 30) -> None:
        """Until it has read its GPUs, in this life."""
        wait_until(lambda: self._ticks() > 0, patience_s)

    def finish(self) -> None:
        """Stop it in peace, as often as it takes until its spool is empty."""
        for _ in range(LIVES_TO_FINISH):
            if not self.is_running:
                self.start()
                self.wait_until_sampling()
                time.sleep(2)
            assert self.stop() == 0, self.last_words()
            if not self.waiting():
                return
        raise AssertionError(f"{self.waiting()} messages are never shipped{self.last_words()}")

    def _ticks(self) -> float:
        with contextlib.suppress(OSError):
            return self.metrics().get("megawatch_agent_ticks_total", 0.0)
        return 0.0

    def _ask(self, sql: str) -> list[tuple[int, ...]]:
        uri = f"file:{self.spool}/spool.sqlite?mode=ro"
        with contextlib.closing(sqlite3.connect(uri, uri=True, timeout=5)) as db:
            return db.execute(sql).fetchall()


@contextlib.contextmanager
def reading(kafka: Kafka, store: Store, batch_age_ms: int = 200) -> Iterator[Ingest]:
    """A pipeline in a thread of this process."""
    clock = SystemClock()
    reader = Ingest(
        lambda listener: KafkaLog(kafka, READ, listener),
        store, warmed(store, clock.now_ms()), Pipeline(batch_age_ms=batch_age_ms), clock,
    )  # fmt: skip
    stop = threading.Event()
    thread = threading.Thread(target=reader.run, args=(stop,))
    thread.start()
    try:
        yield reader
    finally:
        stop.set()
        thread.join()
        reader.close()


def read_all(kafka: Kafka, store: Store) -> None:
    """Everything in the log into the store, and every minute filled."""
    with reading(kafka, store) as reader:
        partitions = sum(TOPICS[name].partitions or 3 for name in READ)
        wait_until(lambda: len(reader.waiting()) == partitions, 30)
        wait_until(lambda: sum(reader.log.lag().values()) + sum(reader.waiting().values()) == 0, 60)
    asking = store.another()
    Minutes(asking).fill(SystemClock().now_ms(), None)
    asking.close()


def wait_until(is_so, patience_s: float) -> None:
    """Ask until it is so."""
    until = time.monotonic() + patience_s
    while not is_so():
        assert time.monotonic() < until, f"not so within {patience_s} s"
        time.sleep(0.1)


def empty_store(migrated: Path, folder: Path) -> Path:
    """A copy of the empty store, which nobody has open."""
    shutil.copytree(migrated, folder, symlinks=True)
    return folder
