"""The Kafka topics: what each carries, how it is cut, how long it is kept."""

from dataclasses import dataclass
from typing import Final

import msgspec

from pipeline.errors import Reject
from pipeline.records import Allocation, Event, Inventory, MeterReading, Record

_HOUR_MS: Final = 3_600_000
_DAY_MS: Final = 24 * _HOUR_MS


@dataclass(frozen=True, slots=True)
class Topic:
    """A topic without the configured prefix; `record` is None where columns travel (wire.py).

    `partitions` is None for the lanes, whose number is configured: samples and backfill have
    equally many, so that the same reader gets the same node's messages of both.
    """

    name: str
    partitions: int | None
    retention_ms: int
    compacted: bool
    record: type[Record] | None
    meaning: str

    def config(self) -> dict[str, str]:
        """Kafka's topic configuration. LogAppendTime: the broker's clock judges the nodes'."""
        return {
            "cleanup.policy": "compact" if self.compacted else "delete",
            "retention.ms": "-1" if self.compacted else str(self.retention_ms),
            "message.timestamp.type": "LogAppendTime",
            "max.message.bytes": str(4 << 20),
        }


SAMPLES: Final = "samples"
BACKFILL: Final = "backfill"
INVENTORY: Final = "inventory"
ALLOCATIONS: Final = "allocations"
METERS: Final = "meters"
EVENTS: Final = "events"
DEADLETTERS: Final = "deadletters"

TOPICS: Final[dict[str, Topic]] = {
    t.name: t
    for t in (
        Topic(SAMPLES, None, 2 * _DAY_MS, False, None, "ticks younger than 60 s, always first"),
        Topic(
            BACKFILL, None, 7 * _DAY_MS, False, None, "ticks that waited in a spool, rate limited"
        ),
        Topic(INVENTORY, 1, 0, True, Inventory, "nodes, their GPUs and wire layouts; key = node"),
        Topic(ALLOCATIONS, 1, 30 * _DAY_MS, False, Allocation, "who holds which GPUs, and when"),
        Topic(METERS, 1, 7 * _DAY_MS, False, MeterReading, "power meters of nodes, halls, sites"),
        Topic(EVENTS, 1, 30 * _DAY_MS, False, Event, "XIDs, lost GPUs, drops"),
        Topic(DEADLETTERS, 1, 30 * _DAY_MS, False, None, "what could not be read, with the reason"),
    )
}
LANES: Final = (SAMPLES, BACKFILL)
"""Index of a lane = its byte in the message header."""

_DECODERS: Final = {
    name: msgspec.json.Decoder(topic.record) for name, topic in TOPICS.items() if topic.record
}


def encode_record(record: Record) -> bytes:
    """A record as the JSON of its topic."""
    return msgspec.json.encode(record)


def decode_record(topic: str, payload: bytes) -> Record:
    """The record in a message of a JSON topic; Reject says what is wrong with it."""
    try:
        return _DECODERS[topic].decode(payload)
    except (msgspec.ValidationError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Reject(f"{topic}: {error}") from error
