"""The pipeline is killed at any instant, over and over: every row is in the store exactly once."""

import os
import random
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from deploy.broker import Broker
from pipeline.clock import SystemClock
from pipeline.ingest import Ingest
from pipeline.kafka import KafkaLog, Producer, create_topics
from pipeline.settings import ClickHouse, Kafka, Pipeline
from pipeline.store import Store
from pipeline.warm import warmed
from tests.real import crash_driver
from tests.real.conftest import require_real, settings_for
from tests.real.crash_audit import audit, doubles, one
from tests.real.crash_feed import Feed
from tests.real.crash_process import Victim

pytestmark = pytest.mark.real

KILLS = int(os.environ.get("MEGAWATCH_KILLS", "50"))
SEED = int(os.environ.get("MEGAWATCH_SEED", "1"))
ALIVE_S = (0.2, 2.5)
MESSAGES_PER_S = 60
HOUR_MS = 3_600_000
BACKLOG_MESSAGES = 500

# The broker lets a dead member go after a second and a half, so that fifty lives take minutes.
QUICK = {"group.min.session.timeout.ms": "1000"}
SESSION_MS = 1500


@pytest.fixture(scope="module")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kafka]:
    folder = tmp_path_factory.mktemp("crash-broker")
    broker = require_real("Apache Kafka", lambda: Broker.start(folder, properties=QUICK))
    made = replace(settings_for(broker), session_timeout_ms=SESSION_MS)
    create_topics(made)
    yield made
    broker.stop()


@pytest.fixture
def data(tmp_path: Path, migrated: Path) -> Path:
    """The folder of an empty store that nobody has open."""
    shutil.copytree(migrated, tmp_path / "data", symlinks=True)
    return tmp_path / "data"


def test_no_kill_loses_or_doubles_a_row(kafka: Kafka, data: Path, tmp_path: Path) -> None:
    """Samples and backfill in three partitions each, two members, rebalances, SIGKILL: exact."""
    rng = random.Random(SEED)
    producer = Producer(kafka, "crash-feed")
    now_ms = time.time_ns() // 1_000_000
    feed = Feed(producer, SEED, nodes=8, start_ms=now_ms - 8 * HOUR_MS)
    done = threading.Event()
    feeding = threading.Thread(target=feed.run, args=(done, MESSAGES_PER_S))
    options = crash_driver.Options(
        kafka=kafka, data=str(data), seed=SEED, pipeline=Pipeline(batch_age_ms=100)
    )
    victim = Victim(crash_driver.arguments(options), tmp_path / "driver.log")
    feeding.start()
    try:
        for _ in range(KILLS):
            victim.start()
            victim.wait_for("active", 60)
            time.sleep(rng.uniform(*ALIVE_S))
            victim.kill()
        victim.start()
        done.set()
        feeding.join()
        feed.finish()
        victim.tell()
        victim.wait_for("drained", 120)
        assert victim.end(None, 20) == 0
    finally:
        done.set()
        feeding.join()
        victim.close()
        producer.close(5)
    said = victim.said()
    print(f"{feed.truth}\nrepeated inserts: {said.count(' repeating ')}")
    assert feed.truth.repetitions > KILLS
    if KILLS >= 20:
        assert " repeating " in said, "no kill fell into an insert: the test proves nothing"
    store = Store(ClickHouse(data=str(data)))
    try:
        held = audit(store)
        assert doubles(store) == []
    finally:
        store.close()
    assert (held.rows, held.distinct_rows) == (feed.truth.rows, feed.truth.rows)
    assert held.messages_by_stream == feed.truth.messages_by_stream
    assert held.energy_mj == dict.fromkeys(held.energy_mj, feed.truth.energy_mj)
    assert held.dead_letters == 0


def test_live_does_not_wait_behind_the_backlog(kafka: Kafka, store: Store) -> None:
    """While hours of backlog are still on their way, what is measured now can be queried."""
    # Topics of its own: live means what is young, and the other test's is not.
    kafka = replace(kafka, topic_prefix="backlog.", group="backlog", session_timeout_ms=6000)
    create_topics(kafka)
    producer = Producer(kafka, "backlog-feed")
    now_ms = time.time_ns() // 1_000_000
    late = Feed(producer, 2, 4, now_ms - 6 * HOUR_MS, prefix="late", ticks=50, gpus=8)
    live = Feed(producer, 3, 4, now_ms - 60_000, prefix="live")
    late.backlog(BACKLOG_MESSAGES)
    late.finish()
    limited = Pipeline(batch_rows=20_000, backfill_rows_per_s=10_000)
    clock = SystemClock()
    stop = threading.Event()
    reader = Ingest(
        lambda listener: KafkaLog(kafka, crash_driver.READ, listener),
        store, warmed(store, clock.now_ms()), limited, clock,
    )  # fmt: skip
    reading = threading.Thread(target=reader.run, args=(stop,))
    reading.start()
    asking = store.another()
    try:
        wait_until(lambda: rows_of(asking, late) > 0, 30)
        begun_s = time.monotonic()
        live.live(40)
        wait_until(lambda: rows_of(asking, live) == live.truth.rows, 15)  # six, on a free machine
        took_s = time.monotonic() - begun_s
        waiting = late.truth.rows - rows_of(asking, late)
        print(f"live after {took_s:.2f} s, {waiting} rows of backlog still on their way")
        assert waiting > 0
    finally:
        stop.set()
        reading.join()
        asking.close()
        reader.close()
        producer.close(5)


def rows_of(store: Store, feed: Feed) -> int:
    """Rows of a feed's nodes that can be queried."""
    streams = ",".join(map(str, feed.truth.messages_by_stream))
    return int(one(store, f"SELECT count() FROM gpu_samples WHERE stream IN ({streams})"))


def wait_until(is_so: Callable[[], bool], patience_s: float) -> None:
    """Ask until it is so."""
    until = time.monotonic() + patience_s
    while not is_so():
        assert time.monotonic() < until, f"not so within {patience_s} s"
        time.sleep(0.1)
