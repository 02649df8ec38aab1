"""What could not be read waits, whole; once it can be read it gets in, once."""

from dataclasses import replace

import pytest

from pipeline import deadletters, wire
from pipeline.clock import ManualClock
from pipeline.directory import Directory
from pipeline.ingest import Ingest
from pipeline.log import Partition
from pipeline.settings import Pipeline
from pipeline.topics import encode_record
from tests.memory_log import MemoryLog, MemoryTopics
from tests.messages import T0_MS, inventory, message

SAMPLES, EVENTS = Partition("samples", 0), Partition("events", 0)
OTHER = wire.Layout((*wire.LAYOUT.fast[:4],), (), ())


@pytest.fixture
def feed(store):
    topics = MemoryTopics()

    def now(partition: Partition, *values: bytes, at_ms: int = T0_MS + 5000) -> None:
        for value in values:
            topics.add(partition, value, at_ms, b"n1")
        reader = Ingest(
            lambda listener: MemoryLog(topics, listener), store, Directory(), Pipeline(),
            ManualClock(at_ms),
        )  # fmt: skip
        assert reader.drain(20)
        reader.close()

    return now


def count(store, table="gpu_samples"):
    return store.query(f"SELECT count() FROM {table}").rows[0][0]


def foreign(seq: int = 0) -> bytes:
    """A message in a layout that only its inventory explains."""
    part = wire.decode(message(seq=seq, t0_ms=T0_MS + seq * 4000))
    return wire.encode(replace(part, fast=part.fast[:4], slow=(), slices=()), OTHER)


def test_letters_are_listed_newest_first_with_their_reason(store, feed):
    """Where it was, when, how long, why."""
    feed(SAMPLES, b"x" * 10, at_ms=T0_MS)
    feed(SAMPLES, message(), b"y" * 20, at_ms=T0_MS + 7000)
    found = deadletters.waiting(store, 10)
    assert [(f.topic, f.partition, f.offset, f.bytes) for f in found] == [
        ("samples", 0, 2, 20), ("samples", 0, 0, 10),
    ]  # fmt: skip
    assert found[1].at == "2026-11-18T11:06:40Z"
    assert "truncated: 10 bytes" in found[1].reason
    assert len(deadletters.waiting(store, 1)) == 1


def test_a_letter_gets_in_once_its_layout_is_known(store, feed):
    """The agent's upgrade was faster than its inventory."""
    feed(SAMPLES, foreign())
    assert count(store) == 0
    feed(Partition("inventory", 0), encode_record(inventory("n1", layout=OTHER.describe())))
    clock = ManualClock(T0_MS + 60_000)
    assert deadletters.replay(store, clock) == deadletters.Replayed(1, 8, 0)
    assert count(store) == 8
    assert deadletters.waiting(store, 10) == []
    assert deadletters.replay(store, clock) == deadletters.Replayed(0, 0, 0)
    assert count(store) == 8


def test_what_is_still_bad_goes_on_waiting(store, feed):
    """Noise does not get better."""
    feed(SAMPLES, b"noise", b"")
    feed(EVENTS, b"{")
    clock = ManualClock(T0_MS + 60_000)
    assert deadletters.replay(store, clock) == deadletters.Replayed(0, 0, 3)
    assert len(deadletters.waiting(store, 10)) == 3


def test_a_message_from_the_future_gets_in_when_its_time_has_come(store, feed):
    """Judged by the clock of the replay."""
    ahead = message(t0_ms=T0_MS + 3_600_000)
    feed(SAMPLES, ahead)
    assert deadletters.replay(store, ManualClock(T0_MS + 60_000)).still_bad == 1
    done = deadletters.replay(store, ManualClock(T0_MS + 3_700_000))
    assert (done.replayed, done.rows, count(store)) == (1, 8, 8)


def test_a_letter_whose_message_came_again_adds_nothing(store, feed):
    """By row: the table is asked first."""
    feed(SAMPLES, message(t0_ms=T0_MS + 3_600_000))
    feed(SAMPLES, message(t0_ms=T0_MS + 3_600_000), at_ms=T0_MS + 3_605_000)
    done = deadletters.replay(store, ManualClock(T0_MS + 3_700_000))
    assert (done.replayed, done.rows, count(store)) == (1, 0, 8)


def test_two_letters_with_the_same_message_get_in_once(store, feed):
    """A duplicate among the dead."""
    feed(SAMPLES, foreign(), foreign())
    feed(Partition("inventory", 0), encode_record(inventory("n1", layout=OTHER.describe())))
    done = deadletters.replay(store, ManualClock(T0_MS + 60_000))
    assert (done.replayed, done.rows, count(store)) == (2, 8, 8)


def test_every_byte_of_a_letter_is_kept(store, feed):
    """Also those that are no text."""
    raw = bytes(range(256)) * 2
    feed(SAMPLES, raw)
    found = store.query("SELECT hex(payload), hex(key) FROM dead_letters").rows[0]
    assert (bytes.fromhex(found[0]), bytes.fromhex(found[1])) == (raw, b"n1")
