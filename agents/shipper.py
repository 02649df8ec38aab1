"""From the spool to the broker: live samples first, the backlog behind them at a limited rate.

A message leaves the spool when the broker has acknowledged it. Until then it is in a bounded
window; whatever fails is sent again after a backoff. The producer's acknowledgements come from
threads of its own and are only queued there: all work on the spool is done by the shipper's.
"""

import functools
import logging
import queue
import random
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple, Protocol

from pipeline.clock import Clock
from pipeline.errors import Reject, Retry
from pipeline.outbox import Outbox, Stored
from pipeline.topics import BACKFILL, LANES, SAMPLES
from pipeline.wire import with_lane

log = logging.getLogger(__name__)

LIVE_MS: Final = 60_000
Lane = Literal["live", "backfill", "records"]
WINDOW: Final[dict[Lane, int]] = {"live": 512, "backfill": 64, "records": 64}
"""Unacknowledged messages, per lane, so that none can take another's place."""
UNACKNOWLEDGED_S: Final = 120.0
"""A message without an answer for so long is sent again; the producer gives up long before."""
_FIRST_BACKOFF_S: Final = 0.5
_MAX_BACKOFF_S: Final = 10.0
_IDLE_S: Final = 1.0
_GATHER_S: Final = 0.05
"""Answers and messages of so long are handled together."""

Ack = Callable[[Exception | None], None]


class Producer(Protocol):
    """What the shipper needs of a Kafka client; topics are named without the prefix."""

    def send(self, topic: str, key: bytes, value: bytes, ack: Ack) -> None:
        """Hand over a message; `ack` is called once, from any thread: None, Retry or Reject.

        Raises Retry (broker away, too much on its way) or Reject (never possible).
        """
        ...

    def flush(self, timeout_s: float) -> bool:
        """Wait until all is acknowledged; False when time is up."""
        ...

    def close(self, timeout_s: float) -> None:
        """Disconnect."""
        ...


@dataclass(slots=True)
class ShipperStats:
    """What the shipper counts; written by its thread, read by the exporter.

    `shipped` counts acknowledged messages by lane, `errors` failures by kind, `rejected` messages
    that the broker will never take: the only ones that the shipper throws away.
    """

    shipped: Counter[str] = field(default_factory=Counter)
    shipped_bytes: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    rejected: int = 0
    in_flight: int = 0


class _Flight(NamedTuple):
    lane: Lane
    size: int
    until_s: float


class Shipper:
    """One thread calls `run`, or `step` and `finish`. Set `wake` to call it out of its wait."""

    def __init__(
        self,
        outbox: Outbox,
        producer_factory: Callable[[], Producer],
        clock: Clock,
        wake: threading.Event,
        backfill_bytes_per_s: int,
    ) -> None:
        self.stats: Final = ShipperStats()
        self.wake: Final = wake
        self._outbox = outbox
        self._factory = producer_factory
        self._producer: Producer | None = None
        self._clock = clock
        self._answers: queue.SimpleQueue[tuple[int, Exception | None]] = queue.SimpleQueue()
        self._flights: dict[int, _Flight] = {}
        self._finishing = False
        self._failures = 0
        self._not_before_s = 0.0
        self._rate = max(1, backfill_bytes_per_s)
        self._budget = float(self._rate)
        self._refilled_s = clock.monotonic_s()

    def run(self, stop: threading.Event, finish_s: float = 3.0) -> None:
        """Until told to stop; then `finish_s` more for what can be shipped."""
        try:
            while not stop.is_set():
                self.wake.clear()
                pause_s = self.step()
                if not stop.is_set():
                    self._clock.wait(self.wake, pause_s)
                    self._clock.wait(stop, _GATHER_S)
            self.finish(finish_s)
        finally:
            self.close()

    def step(self) -> float:
        """Take answers, send what may be sent; returns after how many seconds to come back."""
        now_s = self._clock.monotonic_s()
        try:
            self._settle(now_s)
            if now_s < self._not_before_s:
                return _pause_s(self._not_before_s - now_s)
            producer = self._producer = self._producer or self._factory()
            self._send(producer, "records", self._outbox.records)
            since_ms = self._clock.now_ms() - LIVE_MS
            if not self._send(producer, "live", functools.partial(self._outbox.live, since_ms)):
                return _IDLE_S
            return self._backfill(producer, since_ms, now_s)
        except Retry as error:
            self._back_off(error)
            return _pause_s(self._not_before_s - now_s)
        finally:
            self.stats.in_flight = len(self._flights)

    def finish(self, timeout_s: float) -> None:
        """Ship what is fresh and await the answers, for a bounded time; the rest stays on disk."""
        end_s = self._clock.monotonic_s() + timeout_s
        self._finishing = True
        self._not_before_s = 0.0
        never = threading.Event()
        while self._clock.monotonic_s() < end_s:
            self.step()
            if not self._flights:
                return
            self._clock.wait(never, _GATHER_S)

    def close(self) -> None:
        """Disconnect, take the last answers; idempotent."""
        if self._producer is not None:
            self._producer.close(0.0)  # finish has waited for the answers
            self._producer = None
        try:
            self._settle(self._clock.monotonic_s())
        except Retry as error:
            log.warning("answers lost at the end, these messages will be sent twice: %s", error)
        self._outbox.close()

    def _send(self, producer: Producer, lane: Lane, waiting: Callable[[int], list[int]]) -> bool:
        """Send what waits on a lane, as its window allows; True if nothing is left waiting."""
        mine = sum(flight.lane == lane for flight in self._flights.values())
        room = WINDOW[lane] - mine
        found = waiting(len(self._flights) + room + 1)
        ids = [i for i in found if i not in self._flights]
        for message_id in ids[:room]:
            if lane == "backfill" and self._budget <= 0:
                return False
            size = self._send_one(producer, lane, message_id)
            if lane == "backfill":
                self._budget -= size
        return len(ids) <= room

    def _send_one(self, producer: Producer, lane: Lane, message_id: int) -> int:
        message = self._outbox.fetch(message_id)
        if message is None:
            return 0
        topic, value = _shipped_as(message, lane)
        until_s = self._clock.monotonic_s() + UNACKNOWLEDGED_S
        # Known to be on its way before the producer, which may answer at once, has it.
        self._flights[message_id] = _Flight(lane, len(value), until_s)
        try:
            producer.send(
                topic, message.key.encode(), value, functools.partial(self._answer, message_id)
            )
        except Reject as error:
            self._answer(message_id, error)
        except Retry:
            del self._flights[message_id]
            raise
        return len(value)

    def _backfill(self, producer: Producer, before_ms: int, now_s: float) -> float:
        """Send the backlog as its rate allows; returns when to come back for more."""
        if self._finishing:
            return _IDLE_S
        refill = (now_s - self._refilled_s) * self._rate
        self._budget = min(self._budget + refill, float(self._rate))
        self._refilled_s = now_s
        waiting = functools.partial(self._outbox.backlog, before_ms)
        if self._send(producer, "backfill", waiting) or self._budget > 0:
            return _IDLE_S
        return _pause_s(-self._budget / self._rate)

    def _answer(self, message_id: int, error: Exception | None) -> None:
        self._answers.put((message_id, error))
        self.wake.set()

    def _settle(self, now_s: float) -> None:
        """Take the answers: what is done leaves the spool, what failed will be sent again."""
        answers = [self._answers.get() for _ in range(self._answers.qsize())]
        failures = [e for _, e in answers if e is not None and not isinstance(e, Reject)]
        done = [i for i, e in answers if e is None or isinstance(e, Reject)]
        try:
            if done:
                self._outbox.remove(done)
        except Retry:
            for answer in answers:
                self._answers.put(answer)
            raise
        for message_id, error in answers:
            self._count(self._flights.pop(message_id, None), error)
        overdue = [i for i, flight in self._flights.items() if now_s >= flight.until_s]
        for message_id in overdue:
            del self._flights[message_id]
            failures.append(Retry("a message was never answered"))
        if failures:
            self._back_off(failures[-1])
        elif answers:
            self._failures = 0

    def _count(self, flight: _Flight | None, error: Exception | None) -> None:
        if isinstance(error, Reject):
            log.error("a message that the broker will never take is thrown away: %s", error)
            self.stats.rejected += 1
        elif error is None and flight is not None:
            self.stats.shipped[flight.lane] += 1
            self.stats.shipped_bytes += flight.size

    def _back_off(self, error: Exception) -> None:
        self.stats.errors[type(error).__name__] += 1
        pause_s = min(_MAX_BACKOFF_S, _FIRST_BACKOFF_S * 2**self._failures)
        pause_s *= random.uniform(0.5, 1.0)  # noqa: S311, only spreads the agents
        self._failures = min(self._failures + 1, 16)
        self._not_before_s = self._clock.monotonic_s() + pause_s
        log.warning("shipping waits %.1f s: %s", pause_s, error)


def _pause_s(wanted_s: float) -> float:
    return min(_IDLE_S, max(_GATHER_S, wanted_s))


def _shipped_as(message: Stored, lane: Lane) -> tuple[str, bytes]:
    """The topic on which a message goes, and its bytes there."""
    if lane == "records":
        return message.topic, message.payload
    topic = SAMPLES if lane == "live" else BACKFILL
    return topic, with_lane(message.payload, LANES.index(topic))
