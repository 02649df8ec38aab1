"""Send messages without ever waiting for the broker: bounded, acknowledged once, self-healing.

kafka-python's producer connects when it is built, waits for metadata when it sends, and after any
error that is not transient (one message too large, a topic not allowed, a fenced id) fails every
message for ever, with that same error. So a thread of ours builds it, and builds another whenever
one is spent; messages that were on their way with the old one are acknowledged with Retry. They
may have arrived nevertheless: whoever sends them again makes a duplicate, which the pipeline finds
by the message's own sequence number.
"""

import contextlib
import functools
import random
import threading
from collections.abc import Callable
from typing import Final, NamedTuple

from kafka import KafkaProducer, errors

from pipeline.clock import Clock, SystemClock
from pipeline.errors import MegawatchError, Refuse, Reject, Retry
from pipeline.kafka.client import (
    REQUEST_TIMEOUT_MS,
    Options,
    build,
    client_options,
    translated,
)
from pipeline.settings import Kafka
from pipeline.wire import MAX_BYTES

Ack = Callable[[Exception | None], None]

MAX_MESSAGES: Final = 4096
MAX_IN_FLIGHT_BYTES: Final = 32 << 20
BLOCK_MS: Final = 100
"""A send waits for a topic's metadata at most this long."""
DELIVERY_TIMEOUT_S: Final = 30.0

_FIRST_BACKOFF_S: Final = 0.25
_MAX_BACKOFF_S: Final = 10.0
_RETIRE_S: Final = 2.0
_HEADROOM_BYTES: Final = 1 << 16
_FRAME_BYTES: Final = 128  # what a message costs in memory beside its key and value

_BAD_MESSAGE: Final = (
    errors.MessageSizeTooLargeError,
    errors.RecordListTooLargeError,
    errors.InvalidRecordError,
)


class _Pending(NamedTuple):
    ack: Ack
    size: int
    inner: KafkaProducer


def producer_options(kafka: Kafka, client_id: str, delivery_timeout_s: float) -> Options:
    """kafka-python's options: acks=all, idempotent, zstd, everything bounded in time."""
    return client_options(kafka) | {
        "client_id": client_id,
        "acks": "all",
        "enable_idempotence": True,
        "compression_type": "zstd",
        "linger_ms": 0,
        "batch_size": 128 << 10,
        "max_request_size": MAX_BYTES + _HEADROOM_BYTES,
        "max_block_ms": BLOCK_MS,
        "delivery_timeout_ms": round(delivery_timeout_s * 1000),
        "request_timeout_ms": min(REQUEST_TIMEOUT_MS, round(delivery_timeout_s * 1000)),
        "allow_auto_create_topics": False,
        "metrics_enabled": False,
    }


class Producer:
    """Sends keyed messages; a key's partition number is the same in topics of the same width."""

    def __init__(
        self,
        kafka: Kafka,
        client_id: str,
        *,
        max_messages: int = MAX_MESSAGES,
        max_bytes: int = MAX_IN_FLIGHT_BYTES,
        delivery_timeout_s: float = DELIVERY_TIMEOUT_S,
        clock: Clock | None = None,
    ) -> None:
        """Return at once and connect in the background. Raises Refuse on bad settings."""
        self._kafka = kafka
        self._options = producer_options(kafka, client_id, delivery_timeout_s)
        self._max_messages = max_messages
        self._max_bytes = max_bytes
        self._delivery_timeout_s = delivery_timeout_s
        self._clock: Clock = clock or SystemClock()
        self._changed = threading.Condition()
        self._inner: KafkaProducer | None = None
        self._spent = threading.Event()
        self._reason = f"not connected yet to Kafka at {kafka.bootstrap}"
        self._pending: dict[int, _Pending] = {}
        self._bytes = 0
        self._sent = 0
        self._acknowledged_s = self._clock.monotonic_s()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._keep_connected, name=client_id, daemon=True)
        self._thread.start()

    @property
    def in_flight(self) -> int:
        """Messages that are sent and not yet acknowledged."""
        return len(self._pending)

    def send(self, topic: str, key: bytes, value: bytes, ack: Ack) -> None:
        """Hand over a message; `ack` is called exactly once, from another thread, and never raises.

        ack(None): the broker has it. ack(Retry): it may or may not have it. ack(Reject): it never
        will. Raises Retry (too much in flight, not connected) or Reject (too large), and then
        `ack` is not called. Takes at most about BLOCK_MS.
        """
        if len(value) > MAX_BYTES:
            raise Reject(f"a message of {len(value)} bytes, at most {MAX_BYTES} are allowed")
        name = self._kafka.topic_prefix + topic
        ticket, inner = self._admit(ack, len(key) + len(value) + _FRAME_BYTES)
        try:
            future = inner.send(name, key=key, value=value)
        except errors.KafkaError as error:
            # If it was acknowledged meanwhile, with an error, by a reconnection, that is enough.
            if self._take(ticket) is not None:
                raise self._send_error(name, error) from error
            return
        future.add_callback(lambda _: self._settle(ticket, None))
        future.add_errback(functools.partial(self._settle, ticket))

    def flush(self, timeout_s: float) -> bool:
        """Wait until every message is acknowledged, well or badly; False when time is up."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._pending, timeout_s)

    def close(self, timeout_s: float) -> None:
        """Flush, then acknowledge what is left with Retry, and disconnect. Idempotent."""
        self.flush(timeout_s)
        self._closing.set()
        self._spent.set()
        # In the middle of a connection attempt the thread ends later, by itself.
        self._thread.join(2 * _RETIRE_S)

    def _admit(self, ack: Ack, size: int) -> tuple[int, KafkaProducer]:
        with self._changed:
            if self._inner is None or self._spent.is_set():
                raise Retry(self._reason)
            if len(self._pending) >= self._max_messages or self._bytes + size > self._max_bytes:
                raise Retry(f"{len(self._pending)} messages are on their way already")
            self._sent += 1
            self._pending[self._sent] = _Pending(ack, size, self._inner)
            self._bytes += size
            return self._sent, self._inner

    def _take(self, ticket: int) -> _Pending | None:
        with self._changed:
            pending = self._pending.pop(ticket, None)
            if pending is not None:
                self._bytes -= pending.size
                if not self._pending:
                    self._changed.notify_all()
            return pending

    def _send_error(self, topic: str, error: Exception) -> MegawatchError:
        if isinstance(error, _BAD_MESSAGE):
            return Reject(f"{topic} cannot hold the message: {error}")
        if isinstance(error, errors.KafkaTimeoutError):
            return Retry(
                f"Kafka at {self._kafka.bootstrap} has not told of topic {topic}; "
                "if it does not exist, run `megawatch topics create`"
            )
        return Retry(f"Kafka at {self._kafka.bootstrap}: {error}")

    def _settle(self, ticket: int, error: Exception | None) -> None:
        """A message's fate, in a thread of the inner producer."""
        pending = self._take(ticket)
        if pending is None:
            return
        if error is None:
            self._acknowledged_s = self._clock.monotonic_s()
            pending.ack(None)
            return
        with self._changed:
            was_sound = pending.inner is self._inner and not self._spent.is_set()
            if was_sound and self._spends(error):
                self._reason = f"reconnecting to Kafka at {self._kafka.bootstrap}: {error}"
                self._spent.set()
        # Only the first to fail is to blame: those behind it fail with its error.
        if was_sound and isinstance(error, _BAD_MESSAGE):
            pending.ack(Reject(f"Kafka does not take the message: {error}"))
        else:
            pending.ack(Retry(f"not acknowledged: {error}"))

    def _spends(self, error: Exception) -> bool:
        """Whether an inner producer that said so will never send again."""
        if not isinstance(error, errors.RetriableError):
            return True
        # One partition without a leader is no reason, unless nothing gets through at all.
        return self._clock.monotonic_s() - self._acknowledged_s >= self._delivery_timeout_s

    def _keep_connected(self) -> None:
        backoff_s = _FIRST_BACKOFF_S
        while not self._closing.is_set():
            connected_s = self._clock.monotonic_s()
            if self._connect():
                self._spent.wait()
                self._retire()
                if self._acknowledged_s > connected_s:
                    backoff_s = _FIRST_BACKOFF_S
            jitter = random.uniform(0.5, 1.0)  # noqa: S311  nothing secret about it
            self._clock.wait(self._closing, backoff_s * jitter)
            backoff_s = min(2 * backoff_s, _MAX_BACKOFF_S)
        self._reason = "the producer is closed"

    def _connect(self) -> bool:
        try:
            with translated(self._kafka):
                inner = build(KafkaProducer, self._options)
        except (Retry, Refuse) as error:
            self._reason = str(error)
            return False
        with self._changed:
            self._inner = inner
            if not self._closing.is_set():
                self._spent.clear()
        return True

    def _retire(self) -> None:
        """Close the inner producer, and settle whatever it did not."""
        with self._changed:
            inner, self._inner = self._inner, None
        assert inner is not None, "only what was connected is retired"
        # close() alone gives up, and leaves its thread running, while messages are on their way.
        inner._sender.force_close()  # noqa: SLF001
        with contextlib.suppress(errors.KafkaTimeoutError):
            inner.close(timeout=_RETIRE_S)
        with self._changed:
            left = [ticket for ticket, p in self._pending.items() if p.inner is inner]
        for ticket in left:
            pending = self._take(ticket)
            if pending is not None:
                pending.ack(Retry(f"not acknowledged: {self._reason}"))
