"""From the spool to a broker that is away, slow, forgetful and out of order."""

import contextlib
import itertools
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agents.shipper import LIVE_MS, UNACKNOWLEDGED_S, WINDOW, Ack, Shipper
from pipeline.clock import ManualClock, SystemClock
from pipeline.errors import Refuse, Reject, Retry
from pipeline.outbox import Outbox
from pipeline.spool import Outgoing, Spool, Stream
from pipeline.wire import HEADER, LANE_OFFSET, LAYOUT, Header, Message, encode, read_header

RATE = 64 << 10


def empty(stream: Stream) -> bytes:
    """A real message without GPUs."""
    head = Header(1, 2, stream.id, stream.next_seq, 0, 1000, 0, 0, dropped=stream.dropped)
    fast, slow, slices = (len(b) for b in (LAYOUT.fast, LAYOUT.slow, LAYOUT.slices))
    return encode(Message(head, (), (b"", b"", b""), (b"",) * fast, (b"",) * slow, (b"",) * slices))


class Broker:
    """A producer that keeps what it was sent; each message's fate is decided by `fate`."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, bytes, bytes]] = []
        self.held: list[Ack] = []
        self.fate: Callable[[bytes], Exception | str | None] = lambda _: None
        self.closed = False

    def send(self, topic: str, key: bytes, value: bytes, ack: Ack) -> None:
        fate = self.fate(value)
        if fate == "away":
            raise Retry("broker away")
        if fate == "too large":
            raise Reject("too large")
        self.sent.append((topic, key, value))
        if fate == "hold":
            self.held.append(ack)
        else:
            assert not isinstance(fate, str)
            ack(fate)

    def release(self) -> None:
        """Answer what was held, the last first, each twice."""
        held, self.held = self.held, []
        for ack in reversed(held):
            ack(None)
            ack(None)

    def flush(self, timeout_s: float) -> bool:
        return not self.held

    def close(self, timeout_s: float) -> None:
        self.closed = True


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def spool(tmp_path: Path, clock: ManualClock) -> Iterator[Spool]:
    spool = Spool(tmp_path, 1 << 28, clock)
    yield spool
    spool.close()


def make(spool: Spool, broker: Broker, clock: ManualClock, rate: int = RATE) -> Shipper:
    return Shipper(Outbox(spool), lambda: broker, clock, spool.wake, rate)


def put(spool: Spool, clock: ManualClock, count: int = 1, age_ms: int = 0) -> None:
    spool.append([Outgoing("samples", "n", clock.now_ms() - age_ms, empty)] * count)


def topics(broker: Broker) -> Counter[str]:
    return Counter(topic for topic, _, _ in broker.sent)


def test_what_is_acknowledged_leaves_the_spool(spool: Spool, clock: ManualClock) -> None:
    """Live samples and records go out with their key; the spool is empty afterwards."""
    broker = Broker()
    shipper = make(spool, broker, clock)
    put(spool, clock)
    spool.append([Outgoing("events", "n", 0, b"{}")])
    shipper.step()
    shipper.step()
    assert topics(broker) == {"samples": 1, "events": 1}
    assert {key for _, key, _ in broker.sent} == {b"n"}
    assert spool.depth().messages == 0
    assert shipper.stats.shipped == {"live": 1, "records": 1}
    shipper.close()
    assert broker.closed


def test_the_lane_is_the_age_when_shipped(spool: Spool, clock: ManualClock) -> None:
    """Older than 60 s goes to backfill, with its lane in the header and the checksum right."""
    broker = Broker()
    shipper = make(spool, broker, clock)
    put(spool, clock, age_ms=LIVE_MS)
    put(spool, clock, age_ms=LIVE_MS + 1)
    shipper.step()
    shipper.step()
    lanes = {topic: read_header(value).lane for topic, _, value in broker.sent}
    assert lanes == {"samples": 0, "backfill": 1}
    shipper.close()


def test_the_backlog_is_limited_in_rate(spool: Spool, clock: ManualClock) -> None:
    """No more than a second's allowance at once, and the allowance per second after that."""
    broker = Broker()
    size = HEADER.size
    shipper = make(spool, broker, clock, rate=10 * size)
    put(spool, clock, count=200, age_ms=LIVE_MS * 2)
    for _ in range(100):
        clock.advance(shipper.step())
        if clock.now_ms() >= ManualClock().now_ms() + 5000:
            break
    assert 50 <= topics(broker)["backfill"] <= 62
    shipper.close()


def test_live_samples_do_not_wait_behind_a_backlog(spool: Spool, clock: ManualClock) -> None:
    """With a day of backlog on its way unanswered, a fresh message goes out at once."""
    broker = Broker()
    broker.fate = lambda value: "hold" if value[LANE_OFFSET] == 1 else None
    shipper = make(spool, broker, clock, rate=1 << 30)
    put(spool, clock, count=1000, age_ms=LIVE_MS * 2)
    shipper.step()
    assert topics(broker) == {"backfill": WINDOW["backfill"]}
    put(spool, clock)
    shipper.step()
    assert topics(broker)["samples"] == 1
    shipper.close()


def test_what_is_on_its_way_is_bounded(spool: Spool, clock: ManualClock) -> None:
    """A broker that never answers holds a window of messages, not the spool."""
    broker = Broker()
    broker.fate = lambda _: "hold"
    shipper = make(spool, broker, clock)
    put(spool, clock, count=WINDOW["live"] + 100)
    for _ in range(5):
        shipper.step()
    assert len(broker.sent) == shipper.stats.in_flight == WINDOW["live"]
    broker.release()
    shipper.step()
    assert len(broker.sent) == WINDOW["live"] + 100
    shipper.close()


def test_a_broker_that_is_away_is_asked_less_and_less(spool: Spool, clock: ManualClock) -> None:
    """Backoff up to ten seconds, nothing lost, and all of it goes out when it is back."""
    broker = Broker()
    asked = []

    def away(_: bytes) -> str:
        asked.append(clock.monotonic_s())
        return "away"

    broker.fate = away
    shipper = make(spool, broker, clock)
    put(spool, clock, count=3)
    for _ in range(100):
        clock.advance(shipper.step())
    pauses = [b - a for a, b in itertools.pairwise(asked)]
    assert pauses[0] < 1.1
    assert 4.5 < pauses[-1] < 11.1
    assert shipper.stats.errors["Retry"] == len(asked)
    broker.fate = lambda _: None
    for _ in range(20):
        clock.advance(shipper.step())
    assert spool.depth().messages == 0
    shipper.close()


def test_a_factory_that_fails_is_tried_again(spool: Spool, clock: ManualClock) -> None:
    """A broker that is away at the start is no reason to stop."""
    broker = Broker()
    calls = []

    def factory() -> Broker:
        calls.append(1)
        if len(calls) < 3:
            raise Retry("no broker")
        return broker

    shipper = Shipper(Outbox(spool), factory, clock, spool.wake, RATE)
    put(spool, clock)
    for _ in range(10):
        clock.advance(shipper.step())
    assert len(calls) == 3
    assert len(broker.sent) == 1
    shipper.close()


def test_a_message_that_can_never_be_taken_is_counted_and_gone(
    spool: Spool, clock: ManualClock
) -> None:
    """Whether the client refuses it or the broker; the others pass."""
    broker = Broker()
    fates = iter(["too large", Reject("no"), None])
    broker.fate = lambda _: next(fates)
    shipper = make(spool, broker, clock)
    put(spool, clock, count=3)
    shipper.step()
    shipper.step()
    assert shipper.stats.rejected == 2
    assert shipper.stats.shipped == {"live": 1}
    assert spool.depth().messages == 0
    shipper.close()


def test_a_message_that_is_never_answered_is_sent_again(spool: Spool, clock: ManualClock) -> None:
    """A producer that forgets cannot block the window for ever."""
    broker = Broker()
    broker.fate = lambda _: "hold"
    shipper = make(spool, broker, clock)
    put(spool, clock)
    shipper.step()
    broker.held.clear()
    broker.fate = lambda _: None
    clock.advance(UNACKNOWLEDGED_S)
    for _ in range(5):
        clock.advance(shipper.step())
    assert len(broker.sent) == 2
    assert spool.depth().messages == 0
    shipper.close()


@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(seed=st.integers(0, 2**32), batches=st.lists(st.integers(1, 40), min_size=1, max_size=8))
def test_everything_arrives_whatever_the_broker_does(
    tmp_path_factory: pytest.TempPathFactory, seed: int, batches: list[int]
) -> None:
    """Failing, refusing, forgetting to answer, answering twice and backwards: nothing is lost,
    and live samples that can go are never left behind while backlog goes."""
    folder = tmp_path_factory.mktemp("s")
    with contextlib.closing(Spool(folder, 1 << 28, clock := ManualClock())) as spool:
        _check_arrival(random.Random(seed), batches, spool, clock)


def _check_arrival(
    dice: random.Random, batches: list[int], spool: Spool, clock: ManualClock
) -> None:
    broker = Broker()
    lost_answer = Retry("not acknowledged")
    broker.fate = lambda _: dice.choice([None, None, "hold", lost_answer, "away"])
    shipper = make(spool, broker, clock, rate=1 << 20)
    for count in batches:
        put(spool, clock, count, age_ms=dice.choice([0, LIVE_MS * 2]))
        before, box = len(broker.sent), Outbox(spool)
        since_ms = clock.now_ms() - LIVE_MS
        clock.advance(shipper.step())
        fresh = [topic for topic, _, _ in broker.sent[before:]]
        if "backfill" in fresh:
            assert set(box.live(since_ms, 10**6)) <= set(shipper._flights)
            assert fresh == sorted(fresh, reverse=True), "samples before backfill"
        box.close()
        if dice.random() < 0.5:
            broker.release()
    broker.fate = lambda _: None
    for _ in range(300):
        clock.advance(shipper.step())
        broker.release()
    shipper.step()
    assert spool.depth().messages == 0
    arrived = {read_header(value).seq for _, _, value in broker.sent}
    assert arrived == set(range(sum(batches)))
    shipper.close()


def test_the_end_ships_what_is_fresh_and_keeps_the_rest(spool: Spool, clock: ManualClock) -> None:
    """Told to stop: live samples go out, the backlog stays on the disk."""
    broker = Broker()
    shipper = make(spool, broker, clock)
    put(spool, clock, count=10, age_ms=LIVE_MS * 2)
    put(spool, clock, count=5)
    stop = threading.Event()
    stop.set()
    shipper.run(stop)
    assert topics(broker) == {"samples": 5}
    assert spool.depth().messages == 10
    assert broker.closed


def test_the_end_does_not_wait_for_a_broker_that_is_away(spool: Spool, clock: ManualClock) -> None:
    """One last attempt, then the messages wait for the next start."""
    broker = Broker()
    broker.fate = lambda _: "away"
    shipper = make(spool, broker, clock)
    put(spool, clock, count=5)
    begun = clock.monotonic_s()
    shipper.finish(3.0)
    shipper.close()
    assert clock.monotonic_s() - begun < 0.2
    assert spool.depth().messages == 5


def test_the_end_waits_a_bounded_time_for_answers(spool: Spool, clock: ManualClock) -> None:
    """A broker that never answers delays the end by what was allowed, no more."""
    broker = Broker()
    broker.fate = lambda _: "hold"
    shipper = make(spool, broker, clock)
    put(spool, clock, count=5)
    begun = clock.monotonic_s()
    shipper.finish(3.0)
    assert 3.0 <= clock.monotonic_s() - begun < 3.2
    shipper.close()


def test_bad_settings_are_not_retried(spool: Spool, clock: ManualClock) -> None:
    """Refuse goes to whoever started the shipper."""

    def factory() -> Broker:
        raise Refuse("no such CA file")

    shipper = Shipper(Outbox(spool), factory, clock, spool.wake, RATE)
    with pytest.raises(Refuse, match="CA file"):
        shipper.run(threading.Event())


def test_an_append_wakes_the_shipper(tmp_path: Path) -> None:
    """On a real clock: a message is out long before the idle wait is over."""
    clock = SystemClock()
    spool = Spool(tmp_path, 1 << 26, clock)
    broker = Broker()
    arrived, stop = threading.Event(), threading.Event()
    broker.fate = lambda _: arrived.set()
    shipper = Shipper(Outbox(spool), lambda: broker, clock, spool.wake, RATE)
    thread = threading.Thread(target=shipper.run, args=(stop,))
    thread.start()
    clock.wait(threading.Event(), 0.1)
    spool.append([Outgoing("samples", "n", clock.now_ms(), empty)])
    assert arrived.wait(0.8)
    stop.set()
    shipper.wake.set()
    thread.join(5)
    assert not thread.is_alive()
    assert spool.depth().messages == 0
    spool.close()
