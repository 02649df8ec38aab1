"""The log against a real broker: marks survive, rebalances are told in order, gaps are counted."""

import threading
import time
from collections.abc import Iterator, Sequence

import pytest
from kafka import KafkaAdminClient, KafkaConsumer, OffsetAndMetadata, TopicPartition
from kafka.admin import MemberToRemove

from deploy.broker import Broker
from pipeline.errors import Refuse, Retry
from pipeline.kafka import KafkaLog, Producer, create_topics
from pipeline.log import LogRecord, Mark, Partition
from pipeline.settings import Kafka
from tests.real.conftest import settings_for
from tests.real.kafka_listener import Recorder, acknowledged, read, total

pytestmark = pytest.mark.real

EVENTS = Partition("events", 0)


def produce(kafka: Kafka, topic: str, count: int, first: int = 0) -> None:
    """Messages whose value is their number, over many keys."""
    producer = Producer(kafka, "feed")
    messages = [(f"key{n % 50}".encode(), b"%d" % n) for n in range(first, first + count)]
    assert set(acknowledged(producer, messages, topic)) == {None}
    producer.close(5)


def delete_before(kafka: Kafka, partition: Partition, offset: int) -> None:
    """What retention does, at once."""
    admin = KafkaAdminClient(bootstrap_servers=kafka.bootstrap)
    theirs = TopicPartition(kafka.topic_prefix + partition.topic, partition.number)
    admin.delete_records({theirs: offset})
    admin.close()


def numbers(records: list[LogRecord]) -> list[int]:
    return [int(r.value) for r in records]


def test_a_new_group_begins_at_the_beginning(kafka: Kafka) -> None:
    """Without a mark everything is read, in offset order; lag falls to nothing."""
    produce(kafka, "events", 100)
    recorder = Recorder()
    log = KafkaLog(kafka, ["events"], recorder)
    got = read(log, lambda g: total(g) >= 100)
    assert recorder.marks == {EVENTS: None}
    assert numbers(got[EVENTS]) == list(range(100))
    assert [r.offset for r in got[EVENTS]] == list(range(100))
    assert log.lag() == {EVENTS: 0}
    assert log.bounds(EVENTS) == (0, 100)
    log.close()
    assert recorder.told == [("assigned", [EVENTS]), ("revoked", [EVENTS])]


def test_an_impatient_reader_joins_all_the_same(kafka: Kafka) -> None:
    """Polls too short for any answer of the broker to arrive in still lead to partitions."""
    produce(kafka, "events", 10)
    for _ in range(3):
        log = KafkaLog(kafka, ["events"], Recorder())
        got: list[LogRecord] = []
        until = time.monotonic() + 20
        while len(got) < 10:
            assert time.monotonic() < until, "the group was never joined"
            got += [r for records in log.poll(0.001).values() for r in records]
        log.close()


@pytest.mark.parametrize(
    "mark",
    [Mark(40), Mark(40, 90), Mark(40, 90, (41, 42, 43, 77)), Mark(0, 100, tuple(range(100)))],
    ids=["done", "intent", "duplicates", "all-dropped"],
)
def test_marks_survive_a_restart(kafka: Kafka, mark: Mark) -> None:
    """The next member gets the mark as it was committed, and reads from its offset on."""
    produce(kafka, "events", 100)
    log = KafkaLog(kafka, ["events"], Recorder())
    read(log, lambda g: total(g) >= 1)
    log.commit({EVENTS: Mark(7, 9, (8,))})
    log.commit({EVENTS: mark})
    log.close()
    recorder = Recorder()
    log = KafkaLog(kafka, ["events"], recorder)
    got = read(log, lambda g: total(g) >= 100 - mark.offset)
    assert recorder.marks == {EVENTS: mark}
    assert numbers(got[EVENTS]) == list(range(mark.offset, 100))
    log.close()


def test_a_foreign_mark_is_refused(kafka: Kafka) -> None:
    """Metadata of a later version is not guessed at; the sentence says what to do."""
    produce(kafka, "events", 1)
    theirs = TopicPartition(kafka.topic_prefix + "events", 0)
    other = KafkaConsumer(
        bootstrap_servers=kafka.bootstrap, group_id=kafka.group, enable_auto_commit=False
    )
    other.assign([theirs])
    other.commit({theirs: OffsetAndMetadata(0, "9:of-a-later-version", -1)})
    other.close()
    log = KafkaLog(kafka, ["events"], Recorder())
    with pytest.raises(Refuse, match=r"events-0, group .* not of version 1; use the version"):
        read(log, lambda g: total(g) >= 1)
    log.close()


def test_paused_partitions_are_silent(kafka: Kafka) -> None:
    """Only the others are returned, until resumed; nothing is lost by it."""
    produce(kafka, "events", 10)
    produce(kafka, "meters", 10)
    log = KafkaLog(kafka, ["events", "meters"], Recorder())
    read(log, lambda g: total(g) >= 20)
    log.pause([EVENTS])
    produce(kafka, "events", 10, first=10)
    produce(kafka, "meters", 10, first=10)
    got = read(log, lambda g: total(g) >= 10)
    assert set(got) == {Partition("meters", 0)}
    assert log.poll(0.3) == {}
    log.resume([EVENTS])
    assert numbers(read(log, lambda g: total(g) >= 10)[EVENTS]) == list(range(10, 20))
    log.close()


def test_a_resumed_partition_is_read_to_its_end(kafka: Kafka) -> None:
    """Fetched, paused, resumed while others were read: nothing stays behind in the client."""
    count = 30_000
    producer = Producer(kafka, "feed")
    messages = [(f"key{n % 50}".encode(), b"%0700d" % n) for n in range(count)]
    assert set(acknowledged(producer, messages, "samples")) == {None}
    producer.close(5)
    log = KafkaLog(kafka, ["samples"], Recorder())
    waiting: dict[Partition, int] = {}
    got, paused, until_s = 0, set[Partition](), time.monotonic() + 30
    while got < count and time.monotonic() < until_s:
        for partition, records in log.poll(0.2).items():
            waiting[partition] = waiting.get(partition, 0) + len(records)
            got += len(records)
        if waiting:  # a slow reader: one partition at a time
            longest = max(waiting, key=lambda p: waiting[p])
            waiting[longest] = max(0, waiting[longest] - 1500)
        full = {p for p, behind in waiting.items() if behind > 3000}
        log.pause(sorted(full - paused))
        log.resume(sorted(paused - full))
        paused = full
    assert got == count
    log.close()


def test_only_owned_partitions_are_committed(kafka: Kafka) -> None:
    """Before assignment, for a stranger's partition and after close, commit raises Retry."""
    produce(kafka, "events", 1)
    log = KafkaLog(kafka, ["events"], Recorder())
    with pytest.raises(Retry, match="events-0 is no longer ours"):
        log.commit({EVENTS: Mark(1)})
    read(log, lambda g: total(g) >= 1)
    log.commit({EVENTS: Mark(1)})
    with pytest.raises(Retry, match="samples-2 is no longer ours"):
        log.commit({Partition("samples", 2): Mark(1)})
    log.close()
    with pytest.raises(Retry, match="no longer ours"):
        log.commit({EVENTS: Mark(1)})


def test_retention_that_overtakes_a_mark_is_counted(kafka: Kafka) -> None:
    """Deleted messages are skipped aloud; what of an intended insert is left is told as such."""
    produce(kafka, "events", 100)
    log = KafkaLog(kafka, ["events"], Recorder())
    read(log, lambda g: total(g) >= 1)
    log.commit({EVENTS: Mark(10, 60, (12, 55))})
    log.close()
    delete_before(kafka, EVENTS, 30)
    recorder = Recorder()
    log = KafkaLog(kafka, ["events"], recorder)
    got = read(log, lambda g: total(g) >= 70)
    assert recorder.marks == {EVENTS: Mark(30, 60, (55,))}
    assert log.skipped == {EVENTS: 20}
    assert numbers(got[EVENTS]) == list(range(30, 100))
    log.close()


def test_retention_that_overtakes_a_reader_is_counted(kafka: Kafka) -> None:
    """A member that slept too long goes on at the log's beginning, and says how much is gone."""
    produce(kafka, "events", 10)
    log = KafkaLog(kafka, ["events"], Recorder())
    read(log, lambda g: total(g) >= 10)
    log.pause([EVENTS])
    log.poll(0.5)
    produce(kafka, "events", 90, first=10)
    delete_before(kafka, EVENTS, 50)
    log.resume([EVENTS])
    got = read(log, lambda g: total(g) >= 50)
    assert numbers(got[EVENTS]) == list(range(50, 100))
    assert log.skipped == {EVENTS: 40}
    log.close()


class Member:
    """A log in a thread of its own, which commits what it reads, and where everything is noted."""

    def __init__(self, kafka: Kafka, topics: list[str]) -> None:
        self.journal: list[tuple[str, object]] = []
        self.owned: frozenset[Partition] = frozenset()
        self.failure: BaseException | None = None
        self._leave = threading.Event()
        self._log = KafkaLog(kafka, topics, self)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def assigned(self, marks: dict[Partition, Mark | None]) -> None:
        self.journal.append(("assigned", dict(marks)))
        self.owned = frozenset(marks)

    def revoked(self, partitions: Sequence[Partition]) -> None:
        assert threading.current_thread() is self._thread, "told in the polling thread"
        # Partitions are still ours to commit; this is what a pipeline does last.
        self._log.commit({p: Mark(self._next(p)) for p in partitions})
        self.journal.append(("revoked", sorted(partitions)))
        self.owned = frozenset()

    def _next(self, partition: Partition) -> int:
        for kind, what in reversed(self.journal):
            if kind == "read" and what[0] == partition:  # type: ignore[index]
                return what[1] + 1  # type: ignore[index,no-any-return]
            if kind == "assigned":
                mark = what[partition]  # type: ignore[index]
                return mark.offset if mark else 0
        raise AssertionError(partition)

    def _run(self) -> None:
        try:
            while not self._leave.is_set():
                for partition, records in self._log.poll(0.1).items():
                    assert partition in self.owned, "a record of a partition that is not ours"
                    for record in records:
                        self.journal.append(("read", (partition, record.offset)))
            self._log.close()
        except BaseException as error:
            self.failure = error

    def leave(self) -> None:
        self._leave.set()
        self._thread.join(30)
        assert self.failure is None, self.failure
        assert not self._thread.is_alive()

    def read(self) -> list[tuple[Partition, int]]:
        return [what for kind, what in self.journal if kind == "read"]  # type: ignore[misc]


@pytest.fixture
def feed(kafka: Kafka) -> Iterator[Producer]:
    producer = Producer(kafka, "feed")
    yield producer
    producer.close(5)


def wait_for(members: list[Member], what: str, fact) -> None:
    until = time.monotonic() + 30
    while not fact():
        for member in members:
            assert member.failure is None, member.failure
        assert time.monotonic() < until, f"no {what}: {[sorted(m.owned) for m in members]}"
        time.sleep(0.02)


def test_members_share_and_hand_over_exactly(kafka: Kafka, feed: Producer) -> None:
    """As members come and go each message is read once, each mark being the last one committed.

    And both lanes of a number lie with one member, so that a node's stream is in one place.
    """
    lanes = ["samples", "backfill"]
    everything = frozenset(Partition(lane, n) for lane in lanes for n in range(3))
    sent = 0

    def send(count: int) -> None:
        nonlocal sent
        for lane in lanes:
            keys = [(f"node{n}".encode(), b"x") for n in range(sent, sent + count)]
            assert set(acknowledged(feed, keys, lane)) == {None}
        sent += count

    first = Member(kafka, lanes)
    wait_for([first], "assignment", lambda: first.owned == everything)
    send(200)
    second = Member(kafka, lanes)
    wait_for(
        [first, second],
        "sharing",
        lambda: first.owned and second.owned and first.owned | second.owned == everything,
    )
    assert not first.owned & second.owned
    for member in (first, second):
        numbers_of = [{p.number for p in member.owned if p.topic == lane} for lane in lanes]
        assert numbers_of[0] == numbers_of[1], "lanes are not together"
    send(200)
    wait_for([first, second], "messages", lambda: len(first.read()) + len(second.read()) >= 800)
    first.leave()
    wait_for([second], "taking over", lambda: second.owned == everything)
    send(200)
    wait_for([second], "messages", lambda: len(first.read()) + len(second.read()) >= 1200)
    second.leave()
    seen = first.read() + second.read()
    assert len(seen) == len(set(seen)) == 1200, "read twice, or never"
    for member in (first, second):
        _told_in_turn(member)


def _told_in_turn(member: Member) -> None:
    """assigned and revoked alternate, and nothing is read outside of them."""
    holds = False
    for kind, _ in member.journal:
        if kind == "assigned":
            assert not holds
            holds = True
        else:
            assert holds, f"{kind} while nothing is held"
            holds = kind == "read"
    assert not holds, "closing revokes"


def test_a_member_that_was_thrown_out_cannot_commit(kafka: Kafka) -> None:
    """One that did not poll for too long loses its partitions: Retry, and revoked at next poll."""
    produce(kafka, "events", 10)
    recorder = Recorder()
    log = KafkaLog(kafka, ["events"], recorder)
    read(log, lambda g: total(g) >= 10)
    admin = KafkaAdminClient(bootstrap_servers=kafka.bootstrap)
    members = admin.describe_groups([kafka.group])[kafka.group]["members"]
    admin.remove_group_members(kafka.group, [MemberToRemove(member_id=members[0]["member_id"])])
    admin.close()
    with pytest.raises(Retry, match="rebalanced"):
        log.commit({EVENTS: Mark(10)})
    read(log, lambda _: len(recorder.told) >= 3)
    assert recorder.told == [("assigned", [EVENTS]), ("revoked", [EVENTS]), ("assigned", [EVENTS])]
    assert recorder.marks == {EVENTS: None}
    log.commit({EVENTS: Mark(10)})
    log.close()


def test_reading_goes_on_after_the_broker_was_away(own_broker: Broker) -> None:
    """Away: commit says Retry, poll returns nothing or says Retry. Back: nothing is missing."""
    kafka = settings_for(own_broker)
    create_topics(kafka)
    produce(kafka, "events", 10)
    recorder = Recorder()
    log = KafkaLog(kafka, ["events"], recorder)
    read(log, lambda g: total(g) >= 10)
    log.commit({EVENTS: Mark(10)})
    own_broker.stop()
    with pytest.raises(Retry):
        log.commit({EVENTS: Mark(10)})
    for _ in range(3):
        try:
            assert log.poll(0.2) == {}
        except Retry:
            continue
    own_broker.restart()
    produce(kafka, "events", 10, first=10)
    got: list[int] = []
    until = time.monotonic() + 30
    while len(got) < 10 and time.monotonic() < until:
        try:
            got += [int(r.value) for records in log.poll(0.2).values() for r in records]
        except Retry:
            continue
    assert got == list(range(10, 20))
    assert recorder.marks[EVENTS] in (None, Mark(10))
    log.commit({EVENTS: Mark(20)})
    log.close()
