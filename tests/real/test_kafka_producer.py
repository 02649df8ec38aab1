"""The producer against a real broker: acknowledged once each, whatever happens to the broker."""

import time
from collections import Counter

import pytest
from kafka import KafkaAdminClient

from deploy.broker import Broker
from pipeline.errors import Refuse, Reject, Retry
from pipeline.kafka import KafkaLog, Producer, create_topics
from pipeline.settings import Kafka
from pipeline.topics import TOPICS
from tests.real.conftest import settings_for
from tests.real.kafka_listener import Acks, Recorder, acknowledged, read, send, total

pytestmark = [
    pytest.mark.real,
]


def test_what_is_sent_is_read_from_every_topic(kafka: Kafka) -> None:
    """Keys and values arrive unchanged, stamped by the broker's clock."""
    before_ms = time.time_ns() // 1_000_000
    producer = Producer(kafka, "round-trip")
    for topic in TOPICS:
        assert acknowledged(producer, [(b"key", f"of {topic}".encode())], topic) == [None]
    producer.close(5)
    log = KafkaLog(kafka, list(TOPICS), Recorder())
    got = read(log, lambda g: total(g) >= len(TOPICS))
    log.close()
    after_ms = time.time_ns() // 1_000_000
    assert {p.topic: [(r.key, r.value) for r in records] for p, records in got.items()} == {
        topic: [(b"key", f"of {topic}".encode())] for topic in TOPICS
    }
    for records in got.values():
        assert all(before_ms - 1 <= r.at_ms <= after_ms + 1 for r in records)


def test_lanes_cut_keys_the_same_way(kafka: Kafka) -> None:
    """A key's messages lie in the partition of the same number in samples and backfill."""
    keys = [f"node{n}".encode() for n in range(60)]
    producer = Producer(kafka, "lanes")
    for topic in ("samples", "backfill"):
        assert set(acknowledged(producer, [(key, b"x") for key in keys], topic)) == {None}
    producer.close(5)
    log = KafkaLog(kafka, ["samples", "backfill"], Recorder())
    got = read(log, lambda g: total(g) >= 2 * len(keys))
    log.close()
    where = {(p.topic, r.key): p.number for p, records in got.items() for r in records}
    assert all(where["samples", key] == where["backfill", key] for key in keys)
    assert len(set(where.values())) == kafka.lane_partitions


def test_too_large_is_rejected_before_it_is_sent(kafka: Kafka) -> None:
    """Reject is raised, nothing is acknowledged, and the producer goes on."""
    producer = Producer(kafka, "large")
    acks = Acks()
    with pytest.raises(Reject, match="at most 4194304"):
        producer.send("samples", b"k", bytes((4 << 20) + 1), acks.of(0))
    assert acknowledged(producer, [(b"k", b"small")]) == [None]
    assert not acks.by_message
    producer.close(5)


def test_a_message_that_the_broker_refuses_spoils_no_other(broker: Broker) -> None:
    """The one that is too large for its topic gets Reject; those around it arrive."""
    kafka = settings_for(broker)
    admin = KafkaAdminClient(bootstrap_servers=broker.bootstrap)
    admin.create_topics(
        {
            kafka.topic_prefix + "samples": {
                "num_partitions": 3,
                "replication_factor": 1,
                "configs": {"max.message.bytes": "20000"},
            }
        }
    )
    admin.close()
    producer = Producer(kafka, "poison")
    acks = Acks()
    noise = bytes(n * 7919 % 251 for n in range(30_011)) + _incompressible(60_000)
    fates: Counter[str] = Counter()
    for n in range(40):
        value = noise if n == 20 else b"innocent"
        send(producer, "samples", f"key{n}".encode(), value, acks.of(n))
    assert producer.flush(20)
    assert {len(a) for a in acks.by_message.values()} == {1}
    assert isinstance(acks.by_message[20][0], Reject)
    for n, (fate,) in acks.by_message.items():
        fates["sent" if fate is None else type(fate).__name__] += 1
        assert n == 20 or fate is None or isinstance(fate, Retry)
    assert (
        acknowledged(producer, [(f"key{n}".encode(), b"later") for n in range(40)]) == [None] * 40
    )
    producer.close(5)


def test_messages_on_their_way_are_bounded(kafka: Kafka) -> None:
    """Beyond the bound, by count or by bytes, Retry is raised; afterwards there is room again."""
    for messages, size in ((3, 1 << 20), (1000, 3 * 1200)):
        producer = Producer(kafka, "bounded", max_messages=messages, max_bytes=size)
        assert acknowledged(producer, [(b"k", b"first")]) == [None]
        acks, refused = Acks(), 0
        for n in range(200):
            try:
                producer.send("samples", b"k", bytes(1000), acks.of(n))
            except Retry as error:
                assert "on their way already" in str(error)
                refused += 1
            assert producer.in_flight <= 3
        assert refused > 0
        assert producer.flush(10)
        assert len(acks.by_message) + refused == 200
        assert acknowledged(producer, [(b"k", b"last")]) == [None]
        producer.close(5)


def test_a_missing_topic_is_named(broker: Broker) -> None:
    """Retry says which command creates it."""
    kafka = settings_for(broker)
    producer = Producer(kafka, "missing")
    sentence = f"topic {kafka.topic_prefix}samples; if it does not exist, run `megawatch topics"
    until = time.monotonic() + 20
    while time.monotonic() < until:
        with pytest.raises(Retry) as caught:
            producer.send("samples", b"k", b"v", Acks().of(0))
        if sentence in str(caught.value):
            break
        time.sleep(0.05)
    else:
        pytest.fail(f"the last error was {caught.value}")
    assert producer.in_flight == 0
    producer.close(1)


def test_a_short_outage_loses_nothing_and_acknowledges_once(own_broker: Broker) -> None:
    """Messages sent while the broker is away arrive once it is back, in order, without a repeat."""
    kafka = settings_for(own_broker)
    create_topics(kafka)
    producer = Producer(kafka, "outage")
    acks = Acks()
    for n in range(50):
        send(producer, "samples", b"node", b"%d" % n, acks.of(n))
    own_broker.stop()
    worst_s = 0.0
    for n in range(50, 100):
        began = time.perf_counter()
        producer.send("samples", b"node", b"%d" % n, acks.of(n))
        worst_s = max(worst_s, time.perf_counter() - began)
    assert worst_s < 1.0, "a send waited for the broker"
    own_broker.restart()
    for n in range(100, 150):
        send(producer, "samples", b"node", b"%d" % n, acks.of(n))
    assert producer.flush(25)
    producer.close(5)
    assert acks.by_message == {n: [None] for n in range(150)}
    log = KafkaLog(kafka, ["samples"], Recorder())
    (records,) = read(log, lambda g: total(g) >= 150).values()
    log.close()
    assert [int(r.value) for r in records] == list(range(150))


def test_a_long_outage_is_told_and_survived(own_broker: Broker) -> None:
    """What could not be delivered in time is acknowledged with Retry, once; then all goes on."""
    kafka = settings_for(own_broker)
    create_topics(kafka)
    producer = Producer(kafka, "long-outage", delivery_timeout_s=3)
    assert acknowledged(producer, [(b"k", b"before")]) == [None]
    own_broker.stop(kill=True)
    acks = Acks()
    for n in range(20):
        producer.send("samples", f"k{n}".encode(), b"during", acks.of(n))
    assert producer.flush(15), "an outage must end in an answer"
    assert all(len(a) == 1 and isinstance(a[0], Retry) for a in acks.by_message.values())
    assert len(acks.by_message) == 20
    own_broker.restart()
    assert acknowledged(producer, [(f"k{n}".encode(), b"after") for n in range(20)]) == [None] * 20
    producer.close(5)


def test_without_a_broker_it_says_retry_and_closes(own_broker: Broker) -> None:
    """Connecting never blocks the sender, and closing in the middle of it ends soon."""
    own_broker.stop()
    producer = Producer(settings_for(own_broker), "nobody")
    with pytest.raises(Retry, match="not connected yet"):
        producer.send("samples", b"k", b"v", Acks().of(0))
    began = time.perf_counter()
    producer.close(1)
    assert time.perf_counter() - began < 10


def test_closing_answers_for_what_is_on_its_way(own_broker: Broker) -> None:
    """Messages that a dead broker never acknowledged get Retry at the latest from close()."""
    kafka = settings_for(own_broker)
    create_topics(kafka)
    producer = Producer(kafka, "closing")
    assert acknowledged(producer, [(b"k", b"before")]) == [None]
    own_broker.stop(kill=True)
    acks = Acks()
    for n in range(5):
        producer.send("samples", b"k", b"during", acks.of(n))
    producer.close(0.2)
    assert [len(acks.by_message[n]) for n in range(5)] == [1] * 5
    assert all(isinstance(acks.by_message[n][0], Retry) for n in range(5))
    with pytest.raises(Retry, match="closed"):
        producer.send("samples", b"k", b"v", acks.of(9))


def test_bad_settings_are_refused_at_once() -> None:
    """What no waiting can mend is not retried in the background."""
    with pytest.raises(Refuse, match="bootstrap is empty"):
        Producer(Kafka(), "nowhere")


def _incompressible(count: int) -> bytes:
    state, out = 1, bytearray()
    for _ in range(count):
        state = (state * 6364136223846793005 + 1442695040888963407) % (1 << 64)
        out.append(state >> 56)
    return bytes(out)
