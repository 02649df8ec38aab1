"""Read topics as a member of a consumer group: pipeline.log.Log over Kafka.

kafka-python calls rebalance listeners in its own I/O thread, where nothing may block and nothing
can be committed. So ours only raises there, which interrupts the poll before the group is joined
again; the owner's listener is then called in the polling thread, where it may insert and commit.
"""

import contextlib
import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from kafka import (
    ConsumerRebalanceListener,
    KafkaConsumer,
    OffsetAndMetadata,
    TopicPartition,
    errors,
)
from kafka.coordinator.assignors.range import RangePartitionAssignor
from kafka.structs import MemberState

from pipeline.clock import Clock, SystemClock
from pipeline.errors import Refuse, Retry
from pipeline.kafka import batches
from pipeline.kafka.admin import check_topics
from pipeline.kafka.client import Options, as_ours, build, client_options, translated
from pipeline.kafka.marks import decode_mark, encode_mark
from pipeline.log import Listener, LogRecord, Mark, Partition
from pipeline.settings import Kafka

MAX_POLL_RECORDS: Final = 4000
MAX_POLL_INTERVAL_MS: Final = 120_000
"""An owner that does not poll for that long loses its partitions: above the longest insert."""

_ASK_TIMEOUT_MS: Final = 10_000
_SLICE_MS: Final = 200.0
_LEAVE_TIMEOUT_MS: Final = 5000


def consumer_options(kafka: Kafka, client_id: str) -> Options:
    """kafka-python's options, tuned as measured: few large fetches, memory bounded."""
    return client_options(kafka) | {
        "client_id": client_id,
        "group_id": kafka.group,
        "enable_auto_commit": False,
        # Positions are set from marks only; what retention overtakes is counted, not skipped over.
        "auto_offset_reset": "none",
        # The same members hold samples-N and backfill-N: both topics have as many partitions.
        "partition_assignment_strategy": (RangePartitionAssignor,),
        "session_timeout_ms": kafka.session_timeout_ms,
        "heartbeat_interval_ms": min(3000, kafka.session_timeout_ms // 4),
        "max_poll_interval_ms": MAX_POLL_INTERVAL_MS,
        "max_poll_records": MAX_POLL_RECORDS,
        "fetch_min_bytes": 1 << 20,
        "fetch_max_wait_ms": 150,
        "max_partition_fetch_bytes": 4 << 20,
        "fetch_max_bytes": 16 << 20,
        "receive_buffer_bytes": 1 << 20,
        "check_crcs": True,
        "allow_auto_create_topics": False,
        "metrics_enabled": False,
    }


class KafkaLog:
    """One member of the group; see pipeline.log.Log for the contract.

    Attributes:
        skipped: messages per partition that retention deleted before they were read.
    """

    def __init__(
        self,
        kafka: Kafka,
        topics: Sequence[str],
        listener: Listener,
        *,
        client_id: str = "megawatch-pipeline",
        clock: Clock | None = None,
    ) -> None:
        """Subscribe; partitions come with the polls. Raises Retry (no broker), Refuse (no topic)."""
        check_topics(kafka, topics)
        self.skipped: dict[Partition, int] = {}
        self._kafka = kafka
        self._listener = listener
        self._clock: Clock = clock or SystemClock()
        self._rebalance = _Rebalance()
        self._position: dict[Partition, int] = {}
        self._end: dict[Partition, int] = {}
        self._is_closed = False
        with translated(kafka):
            self._consumer = build(KafkaConsumer, consumer_options(kafka, client_id))
        self._consumer._fetcher.PartitionRecords = batches.Unpacked  # noqa: SLF001
        self._consumer.subscribe(
            [kafka.topic_prefix + topic for topic in topics], listener=self._rebalance
        )

    def poll(self, timeout_s: float) -> dict[Partition, list[LogRecord]]:
        """New messages; the listener is called from in here. Raises Retry, Refuse."""
        deadline_s = self._clock.monotonic_s() + timeout_s
        while True:
            left_s = max(0.0, deadline_s - self._clock.monotonic_s())
            records = self._poll_once(min(left_s * 1000, _SLICE_MS))
            if records or left_s == 0:
                return records

    def commit(self, marks: Mapping[Partition, Mark]) -> None:
        """Make marks durable. Raises Retry (partition lost, broker away)."""
        for partition in marks:
            if partition not in self._position:
                raise Retry(f"{partition.topic}-{partition.number} is no longer ours")
        offsets = {
            self._theirs(partition): OffsetAndMetadata(mark.offset, encode_mark(mark), -1)
            for partition, mark in marks.items()
        }
        try:
            self._consumer.commit(offsets, timeout_ms=_ASK_TIMEOUT_MS)
        except errors.OffsetMetadataTooLargeError as error:
            raise Refuse("offset.metadata.max.bytes of the broker is below 4096") from error
        except (errors.CommitFailedError, errors.RebalanceInProgressError) as error:
            raise Retry("the group is being rebalanced: nothing was committed") from error
        except errors.KafkaError as error:
            raise as_ours(self._kafka, error) from error

    def pause(self, partitions: Sequence[Partition]) -> None:
        """Stop returning messages of these until resumed, or until they are assigned anew."""
        self._consumer.pause(*self._held(partitions))

    def resume(self, partitions: Sequence[Partition]) -> None:
        """Undo pause."""
        self._consumer.resume(*self._held(partitions))

    def lag(self) -> dict[Partition, int]:
        """Messages behind the end of each assigned partition, as of the last fetch."""
        return {
            partition: max(0, self._known_end(partition) - position)
            for partition, position in self._position.items()
        }

    def bounds(self, partition: Partition) -> tuple[int, int]:
        """The first offset that is kept, and the one after the last. Raises Retry."""
        theirs = self._theirs(partition)
        with translated(self._kafka):
            begin = self._consumer.beginning_offsets([theirs], timeout_ms=_ASK_TIMEOUT_MS)
            end = self._consumer.end_offsets([theirs], timeout_ms=_ASK_TIMEOUT_MS)
        return begin[theirs], end[theirs]

    def close(self) -> None:
        """Leave the group; what is still held is revoked first. Idempotent."""
        if self._is_closed:
            return
        self._is_closed = True
        try:
            self._hand_back()
        finally:
            self._rebalance.held = False
            with contextlib.suppress(errors.KafkaError):  # the broker notices by itself, later
                self._consumer.close(timeout_ms=_LEAVE_TIMEOUT_MS)

    def _poll_once(self, timeout_ms: float) -> dict[Partition, list[LogRecord]]:
        self._release_parked()
        try:
            batch = self._consumer.poll(timeout_ms=timeout_ms)
        except errors.NoOffsetForPartitionError:
            batch = {}  # assigned and never committed: the marks below give it a position
        except errors.OffsetOutOfRangeError as error:
            self._continue_at_beginning(error.args[0])
            return {}
        except errors.LogTruncationError as error:
            self._continue_at_beginning(error.divergent_offsets)
            return {}
        except errors.KafkaError as error:
            if not isinstance(error.__cause__, _Interrupt):
                raise as_ours(self._kafka, error) from error
            self._hand_back()
            return {}
        if not batch:
            self._finish_joining()
        if self._rebalance.fresh:
            self._take_over(sorted(self._rebalance.fresh))
            return {}
        received = {self._ours(theirs): records for theirs, records in batch.items()}
        for partition, records in received.items():
            self._position[partition] = records[-1].offset + 1
        return received

    def _release_parked(self) -> None:
        # What was fetched of a partition before it was paused is parked, and taken up again only
        # where the slot for records in hand is None; a used up one is not None but false, and the
        # partition would never be heard of again.
        fetcher = self._consumer._fetcher  # noqa: SLF001
        if not fetcher._next_partition_records:  # noqa: SLF001
            fetcher._next_partition_records = None  # noqa: SLF001

    def _finish_joining(self) -> None:
        # A poll that ends while the group is being joined because of new metadata leaves the
        # client convinced that no join is needed: it would never take its partitions.
        if self._consumer.group_metadata().state is MemberState.REBALANCING:
            self._consumer._coordinator.request_rejoin()  # noqa: SLF001

    def _take_over(self, partitions: Sequence[TopicPartition]) -> None:
        """Begin where the marks say; whatever the client has fetched already is read again."""
        with translated(self._kafka):
            begin = self._consumer.beginning_offsets(partitions, timeout_ms=_ASK_TIMEOUT_MS)
            end = self._consumer.end_offsets(partitions, timeout_ms=_ASK_TIMEOUT_MS)
            marks = {theirs: self._committed(theirs) for theirs in partitions}
        for theirs in partitions:
            marks[theirs] = self._within(self._ours(theirs), marks[theirs], begin[theirs])
        self._end = {self._ours(theirs): end[theirs] for theirs in partitions}
        for theirs in partitions:
            mark = marks[theirs]
            self._seek(theirs, begin[theirs] if mark is None else mark.offset)
        self._rebalance.fresh = frozenset()
        self._rebalance.held = True
        self._listener.assigned({self._ours(theirs): marks[theirs] for theirs in partitions})

    def _committed(self, theirs: TopicPartition) -> Mark | None:
        found = self._consumer.committed(theirs, metadata=True, timeout_ms=_ASK_TIMEOUT_MS)
        if found is None:
            return None
        try:
            return decode_mark(found.offset, found.metadata or "")
        except Refuse as error:
            raise Refuse(
                f"{theirs.topic}-{theirs.partition}, group {self._kafka.group!r}: {error}; use the "
                "version that wrote it, or reset the offset with kafka-consumer-groups.sh"
            ) from error

    def _within(self, partition: Partition, mark: Mark | None, begin: int) -> Mark | None:
        """The mark, moved to the log's beginning if retention has overtaken it."""
        if mark is None or mark.offset >= begin:
            return mark
        self._count_skipped(partition, begin - mark.offset)
        if mark.end is None or mark.end <= begin:
            return Mark(max(begin, mark.end or 0))
        return Mark(begin, mark.end, tuple(offset for offset in mark.dropped if offset >= begin))

    def _continue_at_beginning(self, partitions: Iterable[TopicPartition]) -> None:
        """The position is outside of the log: retention has overtaken it, or the log was cut."""
        with translated(self._kafka):
            begin = self._consumer.beginning_offsets(list(partitions), timeout_ms=_ASK_TIMEOUT_MS)
        for theirs, offset in begin.items():
            position = self._position.get(self._ours(theirs))
            if position is not None:
                self._count_skipped(self._ours(theirs), max(0, offset - position))
                self._seek(theirs, offset)

    def _count_skipped(self, partition: Partition, count: int) -> None:
        self.skipped[partition] = self.skipped.get(partition, 0) + count

    def _hand_back(self) -> None:
        """Tell the listener, once, that everything held is about to be somebody else's."""
        try:
            if self._position:
                self._listener.revoked(sorted(self._position))
        finally:
            self._position.clear()
            self._rebalance.held = False

    def _seek(self, theirs: TopicPartition, offset: int) -> None:
        self._consumer.seek(theirs, offset)
        self._position[self._ours(theirs)] = offset

    def _known_end(self, partition: Partition) -> int:
        high: int | None = self._consumer.highwater(self._theirs(partition))
        return self._end[partition] if high is None else high

    def _held(self, partitions: Iterable[Partition]) -> list[TopicPartition]:
        return [self._theirs(p) for p in partitions if p in self._position]

    def _theirs(self, partition: Partition) -> TopicPartition:
        return TopicPartition(self._kafka.topic_prefix + partition.topic, partition.number)

    def _ours(self, theirs: TopicPartition) -> Partition:
        return Partition(theirs.topic.removeprefix(self._kafka.topic_prefix), theirs.partition)


class _Interrupt(Exception):
    """Ends a poll, so that the polling thread can hand its partitions back."""


class _Rebalance(ConsumerRebalanceListener):  # type: ignore[misc]
    """What the I/O thread says of a rebalance to the polling thread, which waits meanwhile."""

    def __init__(self) -> None:
        self.held = False
        self.fresh: frozenset[TopicPartition] = frozenset()

    def on_partitions_revoked(self, _revoked: Iterable[TopicPartition]) -> None:
        """Interrupt the poll until the owner has handed back; then let the group be joined."""
        self.fresh = frozenset()
        if self.held:
            raise _Interrupt

    def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        """Leave word for the polling thread."""
        self.fresh = frozenset(assigned)


def _is_worth_logging(record: logging.LogRecord) -> bool:
    return not (record.exc_info and record.exc_info[0] is _Interrupt)


# The client takes our interrupt for a failure of the listener, and logs it with a traceback.
logging.getLogger("kafka.coordinator.consumer").addFilter(_is_worth_logging)
