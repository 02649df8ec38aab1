"""Broker away, store away, disk full, poisoned messages: what is kept, and what is said of the rest."""

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from deploy.broker import Broker
from pipeline import native
from pipeline.clock import SystemClock
from pipeline.errors import Retry, Unavailable
from pipeline.kafka import Producer, create_topics
from pipeline.settings import ClickHouse, Kafka
from pipeline.spool import Outgoing, Spool
from pipeline.store import Store
from pipeline.topics import SAMPLES
from tests.messages import message
from tests.real.conftest import settings_for
from tests.real.crash_agent import Agent, empty_store, read_all, reading, wait_until
from tests.real.crash_audit import Held, audit, doubles, one
from tests.real.crash_feed import Feed
from tests.real.crash_process import Victim
from tests.real.kafka_listener import acknowledged

pytestmark = pytest.mark.real

OUTAGE_S = float(os.environ.get("MEGAWATCH_OUTAGE_S", "20"))
HOUR_MS = 3_600_000
OLD_MESSAGES = 400
OLD_TICKS, OLD_GPUS = 4, 8
OLD_ROWS = OLD_MESSAGES * OLD_TICKS * OLD_GPUS
ROOT = Path(__file__).parents[2]


def pipeline(kafka: Kafka, data: Path, log: Path) -> Victim:
    """`megawatch pipeline` over an embedded store."""
    chosen = {
        "MEGAWATCH_KAFKA__BOOTSTRAP": kafka.bootstrap,
        "MEGAWATCH_KAFKA__TOPIC_PREFIX": kafka.topic_prefix,
        "MEGAWATCH_KAFKA__GROUP": kafka.group,
        "MEGAWATCH_KAFKA__SESSION_TIMEOUT_MS": "6000",
        "MEGAWATCH_PIPELINE__LISTEN": "127.0.0.1:0",
    }
    command = [sys.executable, "-m", "megawatch", "pipeline", "--data", str(data)]
    return Victim(command, log, os.environ | chosen)


def megawatch(*words: object) -> str:
    """What a command prints."""
    done = subprocess.run(
        [sys.executable, "-m", "megawatch", *map(str, words)],
        cwd=ROOT, capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    return done.stdout


def asked(data: Path, sql: str) -> int:
    """One integer of the store, from its owner."""
    return int(megawatch("sql", "--data", data, "--format", "csv", sql) or 0)


def fill_spool(folder: Path, age_ms: int) -> int:
    """A backlog of an earlier outage: its stream, of OLD_MESSAGES messages."""
    clock = SystemClock()
    begin_ms = (clock.now_ms() - age_ms) // 1000 * 1000
    with contextlib.closing(Spool(folder, 1 << 30, clock)) as spool:
        for n in range(OLD_MESSAGES):
            t0_ms = begin_ms + n * OLD_TICKS * 1000

            def encode(stream, t0_ms=t0_ms):
                return message(
                    "old", stream.next_seq, t0_ms, ticks=OLD_TICKS, gpus=OLD_GPUS, stream=stream.id
                )

            spool.append([Outgoing(SAMPLES, "old", t0_ms + (OLD_TICKS - 1) * 1000, encode)])
        return spool.streams["old"].id


def test_an_outage_of_the_broker_loses_nothing(
    own_broker: Broker, migrated: Path, tmp_path: Path
) -> None:
    """The agent goes on into its spool; afterwards live comes first and the backlog behind it.

    The pipeline is killed meanwhile, and started before the broker is back: it waits.
    """
    kafka = settings_for(own_broker)
    create_topics(kafka)
    data = empty_store(migrated, tmp_path / "data")
    old = fill_spool(tmp_path / "spool", age_ms=3 * HOUR_MS)
    agent = Agent(kafka, tmp_path / "spool", tmp_path / "agent.log", agent__backfill_kib_per_s=64)
    reader = pipeline(kafka, data, tmp_path / "pipeline.log")
    total = f"SELECT count() FROM gpu_samples WHERE stream != {old}"
    late = f"SELECT count() FROM gpu_samples WHERE stream = {old}"
    try:
        go_through_an_outage(own_broker, agent, reader)
        wait_until(lambda: asked(data, total) > 0, 60)
        assert asked(data, late) < OLD_ROWS, "the backlog came first"
        wait_until(lambda: asked(data, late) == OLD_ROWS, 60)
        fresh = json.loads(megawatch("power", "--data", data, "--step", "1s", "--json"))[-1]
        assert asked(data, "SELECT toInt64(now() - max(ts)) FROM power_seconds") <= 15
        assert fresh["watts"] > 0

        # Once more, and hard: what the broker had acknowledged is still there.
        own_broker.stop(kill=True)
        time.sleep(3)
        own_broker.restart()
        time.sleep(3)
        wait_until(lambda: agent.waiting() <= 4, 60)
        agent.finish()
        given = {stream: count for stream, (count, _) in agent.streams().items()}
        there = "SELECT uniqExact(stream, seq) FROM gpu_samples"
        wait_until(lambda: asked(data, there) >= sum(given.values()), 60)
        assert reader.stop(60) == 0, reader.last_words()
    finally:
        agent.close()
        reader.close()
    held = audited(data)
    assert held.messages_by_stream == given
    assert held.rows == held.distinct_rows
    assert set(held.energy_mj.values()) == {held.energy_mj["gpu_samples"]}
    assert held.dead_letters == 0


def go_through_an_outage(broker: Broker, agent: Agent, reader: Victim) -> None:
    """The broker is away, the pipeline is killed and started meanwhile, the broker is back."""
    broker.stop()
    agent.start()
    agent.wait_until_sampling()
    reader.start()
    time.sleep(OUTAGE_S / 2)
    reader.kill()  # it has not found its broker so far, and waits for it
    reader.start()
    time.sleep(OUTAGE_S / 2)
    assert reader.is_running, reader.last_words()
    assert agent.waiting() >= OLD_MESSAGES + OUTAGE_S
    ticks = agent.metrics()["megawatch_agent_ticks_total"]
    assert ticks >= OUTAGE_S - 3, "the agent stopped sampling"
    broker.restart()


def audited(data: Path) -> Held:
    """What is there in the end, and that each lane carried what is its own."""
    store = Store(ClickHouse(data=str(data)))
    try:
        inserts = "FROM ingest_log WHERE kind = 'insert' AND rows > 0 AND"
        late_lanes = f"SELECT DISTINCT topic {inserts} until_ts < now() - 7200"
        assert store.query(late_lanes).rows == [("backfill",)]
        first_live = one(store, f"SELECT min(at) {inserts} topic = 'samples'")
        last_late = one(store, f"SELECT max(at) {inserts} topic = 'backfill'")
        assert first_live < last_late
        assert doubles(store) == []
        return audit(store)
    finally:
        store.close()


class _Away(Store):
    """A store that can be away: what is asked of it then is to be asked again."""

    away = threading.Event()

    def another(self) -> "Store":
        return _Away(self.settings)

    def insert(self, table: str, columns: Mapping[str, native.Values], token: str = "") -> None:
        if self.away.is_set():
            raise Retry("the store is away, for a test")
        super().insert(table, columns, token)
        if self.away.is_set():
            raise Retry("the store went away before it answered, for a test")


def test_a_store_that_is_away_loses_nothing(kafka: Kafka, store: Store) -> None:
    """Whatever part of an insert was done before, all of it is there in the end, once."""
    producer = Producer(kafka, "away-feed")
    now_ms = SystemClock().now_ms()
    feed = Feed(producer, 5, 4, now_ms - HOUR_MS)
    stop = threading.Event()
    feeding = threading.Thread(target=feed.run, args=(stop, 80.0))
    flaky = _Away(store.settings)
    flaky.away.clear()
    feeding.start()
    try:
        with reading(kafka, flaky) as reader:
            for _ in range(4):
                wait_until(lambda: reader.totals.inserts > 0, 30)
                time.sleep(0.7)
                flaky.away.set()
                before = reader.totals.inserts
                time.sleep(1.5)
                assert reader.totals.inserts <= before + 1
                flaky.away.clear()
            retries = reader.totals.retries
            stop.set()
            feeding.join()
            feed.finish()
    finally:
        flaky.away.clear()
        stop.set()
        feeding.join()
        producer.close(5)
        flaky.close()
    assert retries > 0
    read_all(kafka, store)
    held = audit(store)
    assert doubles(store) == []
    assert (held.rows, held.distinct_rows) == (feed.truth.rows, feed.truth.rows)
    assert held.messages_by_stream == feed.truth.messages_by_stream
    assert held.energy_mj == dict.fromkeys(held.energy_mj, feed.truth.energy_mj)


def test_a_poisoned_message_harms_no_neighbour(
    kafka: Kafka, migrated: Path, tmp_path: Path
) -> None:
    """It becomes a dead letter with its reason; those before and behind it arrive."""
    poison = {
        "cut short": message(seq=1)[:-7],
        "damaged": message(seq=1)[:200] + b"\xff\x00\xff" + message(seq=1)[203:],
        "no message": b"hello",
        "empty": b"",
    }
    good = [message(seq=n, t0_ms=SystemClock().now_ms() // 1000 * 1000 - 40_000 + n * 4000)
            for n in range(len(poison) + 1)]  # fmt: skip
    mixed = [good[0]]
    for bad, following in zip(poison.values(), good[1:], strict=True):
        mixed += [bad, following]
    producer = Producer(kafka, "poison")
    assert set(acknowledged(producer, [(b"n1", value) for value in mixed])) == {None}
    assert acknowledged(producer, [(b"n1", b'{"site": 3}')], "inventory") == [None]
    producer.close(5)
    data = empty_store(migrated, tmp_path / "data")
    store = Store(ClickHouse(data=str(data)))
    try:
        read_all(kafka, store)
        assert one(store, "SELECT count() FROM gpu_samples") == len(good) * 8
        assert one(store, "SELECT arraySort(groupUniqArray(seq)) FROM gpu_samples") == [
            0,
            1,
            2,
            3,
            4,
        ]
    finally:
        store.close()
    letters = json.loads(
        megawatch("deadletters", "list", "--data", data, "--json").splitlines()[-1]
    )
    listed = {(letter["topic"], letter["offset"]): letter["reason"] for letter in letters}
    partition = {letter["partition"] for letter in letters if letter["topic"] == "samples"}
    assert len(partition) == 1
    assert {at for topic, at in listed if topic == "samples"} == {1, 3, 5, 7}
    assert "truncated" in listed["samples", 1]
    assert "checksum" in listed["samples", 3]
    assert "truncated" in listed["samples", 5]
    assert "inventory" in listed["inventory", 0]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount() -> Path:
        if os.geteuid():
            raise Unavailable("only root can mount one")
        command = ["mount", "-t", "tmpfs", "-o", "size=2m", "megawatch-test", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise Unavailable(done.stderr.strip())
        return folder

    try:
        mounted = mount()
    except Unavailable as error:
        pytest.skip(f"a small file system is missing: {error}")
    yield mounted
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_costs_what_is_counted(
    kafka: Kafka, store: Store, small_disk: Path, tmp_path: Path
) -> None:
    """The agent goes on, counts what it cannot keep, and recovers when there is space again."""
    agent = Agent(kafka, small_disk / "spool", tmp_path / "agent.log", nodes=4)
    dropped = 'megawatch_agent_spool_dropped_total{reason="disk_full"}'
    ballast = small_disk / "ballast"
    try:
        agent.start()
        agent.wait_until_sampling()
        time.sleep(3)
        with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
            while file.write(b"x" * 1024):
                pass
        wait_until(lambda: agent.metrics().get(dropped, 0) >= 8, 30)
        ballast.unlink()
        full = agent.metrics()[dropped]
        time.sleep(5)
        recovered = agent.metrics()
        assert recovered["megawatch_agent_source_up"] == 1
        assert agent.is_running
        wait_until(lambda: agent.waiting() <= 8, 30)
        agent.finish()
        streams = agent.streams()
    finally:
        agent.close()
    read_all(kafka, store)
    rows = store.query(
        "SELECT stream, max(seq) + 1, uniqExact(seq) FROM gpu_samples GROUP BY stream"
    )
    missing = {stream: top - count for stream, top, count in rows.rows}
    print(f"dropped {recovered[dropped]}, missing {missing}")
    assert missing == {stream: lost for stream, (_, lost) in streams.items()}
    assert {stream: top for stream, top, _ in rows.rows} == {s: n for s, (n, _) in streams.items()}
    assert 0 < sum(missing.values()) <= recovered[dropped]
    assert full > 0
    told = "SELECT sum(count) FROM events WHERE kind = 'spool_disk_full'"
    assert one(store, told) == recovered[dropped]
    assert doubles(store) == []
