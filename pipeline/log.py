"""A replayable log of messages: Kafka, or, embedded, the agent's own spool.

The pipeline writes its intent into the log's commit before it inserts, so that after a crash it
repeats exactly the same insert, which the store then recognises by its token.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol


class Partition(NamedTuple):
    """A partition of a topic; the topic is named without the configured prefix."""

    topic: str
    number: int


class LogRecord(NamedTuple):
    """A message and where it stands. `at_ms` is the broker's clock."""

    offset: int
    at_ms: int
    key: bytes
    value: bytes


@dataclass(frozen=True, slots=True)
class Mark:
    """What is committed for a partition: everything below `offset` is in the store.

    With `end`, an insert of exactly [offset, end) may have happened: it is repeated first, leaving
    out the messages at the offsets in `dropped`, which were found to be duplicates.
    """

    offset: int
    end: int | None = None
    dropped: tuple[int, ...] = ()


class Listener(Protocol):
    """Who is told about partitions that come and go; called from within `poll`."""

    def assigned(self, marks: dict[Partition, Mark | None]) -> None:
        """These partitions are ours now, from these marks on (None: never committed)."""
        ...

    def revoked(self, partitions: Sequence[Partition]) -> None:
        """These are about to be somebody else's: finish or abandon, then forget them."""
        ...


class Log(Protocol):
    """One reader's view of the log. All calls come from one thread.

    Attributes:
        skipped: messages per partition that retention deleted before they were read.
    """

    skipped: dict[Partition, int]

    def poll(self, timeout_s: float) -> dict[Partition, list[LogRecord]]:
        """New messages in offset order, from each partition's mark on. Raises Retry."""
        ...

    def commit(self, marks: dict[Partition, Mark]) -> None:
        """Make marks durable, before returning. Raises Retry (partition lost, broker away)."""
        ...

    def pause(self, partitions: Sequence[Partition]) -> None:
        """Stop returning messages of these until resumed."""
        ...

    def resume(self, partitions: Sequence[Partition]) -> None:
        """Undo pause."""
        ...

    def lag(self) -> dict[Partition, int]:
        """Messages behind the end of each assigned partition, as known without asking."""
        ...

    def close(self) -> None:
        """Leave, giving partitions back."""
        ...
