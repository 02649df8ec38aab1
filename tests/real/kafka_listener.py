"""What the Kafka tests share: a listener that records, acknowledgements, reading until."""

import threading
import time
from collections.abc import Callable, Iterable, Sequence

from pipeline.errors import Retry
from pipeline.kafka import KafkaLog, Producer
from pipeline.kafka.producer import Ack
from pipeline.log import LogRecord, Mark, Partition


class Recorder:
    """A listener that keeps what it was told, in order."""

    def __init__(self) -> None:
        self.told: list[tuple[str, list[Partition]]] = []
        self.marks: dict[Partition, Mark | None] = {}

    def assigned(self, marks: dict[Partition, Mark | None]) -> None:
        self.told.append(("assigned", sorted(marks)))
        self.marks = dict(marks)

    def revoked(self, partitions: Sequence[Partition]) -> None:
        self.told.append(("revoked", sorted(partitions)))
        for partition in partitions:
            del self.marks[partition]


class Acks:
    """Acknowledgements by message, from whichever thread."""

    def __init__(self) -> None:
        self.by_message: dict[int, list[Exception | None]] = {}
        self._lock = threading.Lock()

    def of(self, message: int) -> Callable[[Exception | None], None]:
        def ack(error: Exception | None) -> None:
            with self._lock:
                self.by_message.setdefault(message, []).append(error)

        return ack


def send(
    producer: Producer, topic: str, key: bytes, value: bytes, ack: Ack, patience_s: float = 15
) -> None:
    """Send, again and again while the producer says Retry."""
    until = time.monotonic() + patience_s
    while True:
        try:
            producer.send(topic, key, value, ack)
        except Retry:
            if time.monotonic() > until:
                raise
            time.sleep(0.02)
        else:
            return


def acknowledged(
    producer: Producer, messages: Iterable[tuple[bytes, bytes]], topic: str = "samples"
) -> list[Exception | None]:
    """Send all, and how each was acknowledged, in order; exactly one acknowledgement each."""
    acks = Acks()
    count = 0
    for count, (key, value) in enumerate(messages, 1):
        send(producer, topic, key, value, acks.of(count))
    assert producer.flush(20), "not all is acknowledged"
    assert {len(a) for a in acks.by_message.values()} == {1}
    return [acks.by_message[n][0] for n in range(1, count + 1)]


def read(
    log: KafkaLog,
    enough: Callable[[dict[Partition, list[LogRecord]]], bool],
    patience_s: float = 20,
) -> dict[Partition, list[LogRecord]]:
    """Poll until it is enough; what was read."""
    got: dict[Partition, list[LogRecord]] = {}
    until = time.monotonic() + patience_s
    while not enough(got):
        assert time.monotonic() < until, f"read only { {p: len(r) for p, r in got.items()} }"
        for partition, records in log.poll(0.2).items():
            got.setdefault(partition, []).extend(records)
    return got


def total(got: dict[Partition, list[LogRecord]]) -> int:
    return sum(map(len, got.values()))
