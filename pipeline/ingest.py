"""From the log to the store, exactly once.

Per partition: plan a batch (which messages are new), commit the plan as intent, insert under a
token, commit the end. After a crash the plan is found in the commit and repeated to the letter; the
store knows the token. One insert is in flight at most; live samples go before records, records
before backfill.
"""

import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Final

from pipeline import decode
from pipeline.clock import Clock
from pipeline.directory import Directory
from pipeline.errors import Retry
from pipeline.log import Listener, Log, LogRecord, Mark, Partition
from pipeline.lookup import in_table, recall
from pipeline.seen import Seen
from pipeline.settings import Pipeline
from pipeline.store import Store
from pipeline.topics import BACKFILL, LANES, SAMPLES, TOPICS
from pipeline.writer import Batch, Totals, Writer, Written

_log: Final = logging.getLogger("megawatch.ingest")

ROW_BYTES: Final = 110  # of a message, on the wire before compression
IDLE_MS: Final = 10_000
"""A live partition without messages for this long does not hold the watermark back."""
MAX_DROPPED: Final = 500  # duplicates in one plan: they must fit into the commit's metadata
_PENDING_BATCHES: Final = 3  # per partition, before it is paused
_BACKOFF_S: Final = (0.2, 0.5, 1.0, 2.0, 5.0)


@dataclass(slots=True)
class _Queue:
    """What was polled of a partition and is not planned yet."""

    records: list[LogRecord] = field(default_factory=list)
    size: int = 0
    since_s: float = 0.0
    replay: Mark | None = None
    newest_ms: int = 0
    polled_ms: int = 0
    paused: bool = False


class Ingest:
    """The loop. One thread calls it; inserts run in a second one."""

    def __init__(
        self,
        open_log: Callable[[Listener], Log],
        store: Store,
        directory: Directory,
        settings: Pipeline,
        clock: Clock,
        on_rows: Callable[[Written], None] = lambda _: None,
    ) -> None:
        """Nothing is read before the first step."""
        self.store, self.settings, self.clock = store, settings, clock
        self.directory = directory
        self.totals = Totals()
        self.watermark_ms = 0
        self._on_rows = on_rows
        mine = store.another()
        self._writer = Writer(mine, directory, clock)
        self._queues: dict[Partition, _Queue] = {}
        self._seen: dict[int, Seen] = {}
        self._pool = ThreadPoolExecutor(1, "insert")
        self._flying: tuple[Batch, Future[Written]] | None = None
        self._backfill_after_s = 0.0
        try:
            self.log = open_log(self)
        except BaseException:
            mine.close()
            raise

    # -- partitions come and go (called from within poll) --------------------------------------

    def assigned(self, marks: dict[Partition, Mark | None]) -> None:
        """Begin with what may be half done."""
        for partition, mark in marks.items():
            replay = mark if mark is not None and mark.end is not None else None
            self._queues[partition] = _Queue(replay=replay, polled_ms=self.clock.now_ms())
            self._seen.setdefault(partition.number, Seen())
            _log.info("assigned %s/%s at %s", *partition, mark)

    def revoked(self, partitions: Sequence[Partition]) -> None:
        """Finish the insert in flight, then forget everything about these."""
        if self._flying and self._flying[0].partition in partitions:
            self.finish()
        for partition in partitions:
            self._queues.pop(partition, None)
            self._seen.pop(partition.number, None)
        _log.info("revoked %s", ", ".join(f"{t}/{n}" for t, n in partitions))

    # -- the loop ------------------------------------------------------------------------------

    def run(self, stop: threading.Event) -> None:
        """Until told to stop; what is then in flight is left to `finish`."""
        failures = 0
        while not stop.is_set():
            try:
                self.step(0.2)
                failures = 0
            except Retry as error:
                _log.warning("log: %s; trying again", error)
                self.totals.retries += 1
                self.clock.wait(stop, _BACKOFF_S[min(failures, len(_BACKOFF_S) - 1)])
                failures += 1

    def drain(self, timeout_s: float) -> bool:
        """Go on until the log is empty and everything is in the store; False if time ran out."""
        until = self.clock.monotonic_s() + timeout_s
        while self.clock.monotonic_s() < until:
            self.step(0.05)
            idle = self._flying is None and not any(q.records for q in self._queues.values())
            if idle and not sum(self.log.lag().values()):
                return True
            self._hurry()
        return False

    def finish(self) -> None:
        """End the insert in flight, or give it up; its partition may not be planned for after that.

        Given up, its intent stands in the commit: whoever comes next repeats it. One try is enough,
        since without a broker each takes as long as a commit may.
        """
        if self._flying is None:
            return
        try:
            self._land(wait=True)
        except Retry as error:
            _log.warning("%s is left to be repeated: %s", self._flying[0].token, error)
            self._flying = None

    def close(self) -> None:
        """Finish what is in flight and leave."""
        self.finish()
        try:
            self._writer.flush_latest()
        except Retry as error:
            _log.warning("the newest ticks are not shown: %s", error)
        self._pool.shutdown()
        self.log.close()
        self._writer.store.close()

    def step(self, timeout_s: float) -> None:
        """Poll once, move what can be moved. Raises Retry when the log is away."""
        # While an insert is in flight the poll is its waiting time; otherwise new batches set it.
        polled = self.log.poll(0.02 if self._flying else timeout_s)
        now_s, now_ms = self.clock.monotonic_s(), self.clock.now_ms()
        for partition, records in polled.items():
            queue = self._queues.get(partition)
            if queue is None or not records:
                continue
            if not queue.records:
                queue.since_s = now_s
            queue.records += records
            queue.size += sum(len(r.value) for r in records)
            queue.polled_ms = now_ms
        self._land(wait=False)
        if self._flying is None:
            self._launch(now_s)
        self._balance()

    def _hurry(self) -> None:
        for queue in self._queues.values():
            queue.since_s = 0.0

    def _balance(self) -> None:
        """Bounded memory: a partition that is far ahead of the inserts is paused."""
        bound = _PENDING_BATCHES * self._batch_bytes
        for partition, queue in self._queues.items():
            # A replay needs all of its messages, however small batches are now.
            full = queue.size > bound and queue.replay is None
            if full and not queue.paused:
                self.log.pause([partition])
            elif queue.paused and not full:
                self.log.resume([partition])
            queue.paused = full

    @property
    def _batch_bytes(self) -> int:
        return self.settings.batch_rows * ROW_BYTES

    def waiting(self) -> dict[Partition, int]:
        """Messages that were polled and not inserted yet, by partition."""
        return {p: len(q.records) for p, q in list(self._queues.items())}

    # -- planning ------------------------------------------------------------------------------

    def _launch(self, now_s: float) -> None:
        # A live batch that is ready goes first; one that is still gathering does not keep the rest
        # waiting, or a busy site's backlog would never come through.
        repeating = self._repeating()
        ready = [
            p
            for p, q in self._queues.items()
            if self._is_ready(q, now_s) and (q.replay is not None or p.number not in repeating)
        ]
        for partition in sorted(ready, key=lambda p: (_rank(p), self._queues[p].since_s)):
            behind = partition.topic == BACKFILL and self._queues[partition].replay is None
            if behind and now_s < self._backfill_after_s:
                continue
            batch = self._plan(partition)
            if batch is not None:
                self._submit(batch)
                if behind:
                    rows = sum(len(r.value) for r in batch.records) / ROW_BYTES
                    self._backfill_after_s = now_s + rows / self.settings.backfill_rows_per_s
                return

    def _repeating(self) -> set[int]:
        """Numbers of partitions with a half-done insert, which must be repeated first.

        Until then, what it covers would look new on the other lane.
        """
        pending = [p for p, q in self._queues.items() if q.replay is not None]
        lag = self.log.lag() if pending else {}
        for partition in pending:
            queue = self._queues[partition]
            if not queue.records and lag.get(partition) == 0:
                queue.replay = None  # retention has taken all of it away
        return {p.number for p in pending if self._queues[p].replay is not None}

    def _is_ready(self, queue: _Queue, now_s: float) -> bool:
        if queue.replay is not None:
            return bool(queue.records)
        aged = now_s - queue.since_s >= self.settings.batch_age_ms / 1000
        return bool(queue.records) and (aged or queue.size >= self._batch_bytes)

    def _plan(self, partition: Partition) -> Batch | None:
        """The next batch, its intent committed; None if it cannot be complete yet."""
        queue = self._queues[partition]
        if queue.replay is not None:
            return self._repeat(partition, queue, queue.replay)
        records = self._cut(queue)
        if partition.topic in LANES:
            batch = self._sift(partition, records)
        else:
            batch = Batch(partition, records)
        first, end = batch.records[0].offset, batch.records[-1].offset + 1
        self.log.commit({partition: Mark(first, end, batch.dropped)})
        # Only now: a plan that was not committed is made again, and must find the same as new.
        batch = replace(batch, gaps=self._remember(partition, batch))
        _consume(queue, len(batch.records))
        queue.since_s = self.clock.monotonic_s()
        return batch

    def _cut(self, queue: _Queue) -> list[LogRecord]:
        """The oldest messages, up to one block."""
        size = 0
        for i, record in enumerate(queue.records):
            size += len(record.value)
            if size >= self._batch_bytes:
                return queue.records[: i + 1]
        return list(queue.records)

    def _repeat(self, partition: Partition, queue: _Queue, mark: Mark) -> Batch | None:
        """Exactly the messages of an earlier life's intent, once all of them are here."""
        assert mark.end is not None
        records = [r for r in queue.records if r.offset < mark.end]
        last = queue.records[-1].offset
        compacted = TOPICS[partition.topic].compacted
        if last < mark.end - 1 and not (compacted and self.log.lag().get(partition, 0) == 0):
            return None
        queue.replay = None
        if not records or (records[0].offset, records[-1].offset) != (mark.offset, mark.end - 1):
            # Retention or compaction took a part: what is left is judged like anything new.
            return None
        if partition.topic in LANES:
            checked = self._check(records)
            batch = Batch.of_samples(partition, records, checked, mark.dropped)
            values = [records[i].value for i in checked.positions]
            recall(self._memory(partition), self.store, checked.headers, values)
            self._remember(partition, batch)
        else:
            batch = Batch(partition, records)
        _consume(queue, len(records))
        _log.info("repeating %s/%s [%s, %s)", *partition, mark.offset, mark.end)
        return batch

    def _check(self, records: Sequence[LogRecord]) -> decode.Checked:
        return decode.check(
            [r.value for r in records], [r.at_ms for r in records], self.directory.layouts
        )

    def _memory(self, partition: Partition) -> Seen:
        """What was seen of a partition's streams, on both lanes."""
        return self._seen.setdefault(partition.number, Seen())

    def _remember(self, partition: Partition, batch: Batch) -> int:
        """Note the batch's messages as seen; returns how many before them are missing."""
        seen = self._memory(partition)
        pairs = zip(batch.headers["stream"].tolist(), batch.headers["seq"].tolist(), strict=True)
        return sum(seen.add(stream, seq) for stream, seq in pairs)

    def _sift(self, partition: Partition, records: list[LogRecord]) -> Batch:
        """A batch without the messages that were seen before; cut short if those are many."""
        checked = self._check(records)
        seen = self._memory(partition)
        streams = checked.headers["stream"].tolist()
        seqs = checked.headers["seq"].tolist()
        alike = len(set(zip(streams, seqs, strict=True))) < len(seqs)
        # Nearly every batch: what follows costs as much as checking the messages.
        if partition.topic != BACKFILL and not alike and seen.all_new(streams, seqs):
            return Batch.of_samples(partition, records, checked, ())
        verdicts = [seen.judge(s, n) for s, n in zip(streams, seqs, strict=True)]
        if partition.topic == BACKFILL:  # another reader may have had it on the live lane
            verdicts = ["doubtful" if v == "new" else v for v in verdicts]
        new_streams = {s for s in streams if not seen.knows(s)}
        values = [records[i].value for i in checked.positions]
        recall(seen, self.store, checked.headers, values)
        # Of a stream that the table does not have from these messages' time on nothing is stored.
        absent = {s for s in new_streams if not seen.knows(s)}
        doubtful = [
            i for i, v in enumerate(verdicts) if v == "doubtful" and streams[i] not in absent
        ]
        stored = in_table(
            self.store,
            checked.headers[doubtful],
            [values[i] for i in doubtful],
        )
        dropped: list[int] = []
        batch: set[tuple[int, int]] = set()
        for i, message in enumerate(zip(streams, seqs, strict=True)):
            if verdicts[i] == "known" or message in stored or message in batch:
                dropped.append(records[checked.positions[i]].offset)
                if len(dropped) == MAX_DROPPED:
                    records = records[: checked.positions[i] + 1]
                    checked = self._check(records)
                    break
            batch.add(message)
        return Batch.of_samples(partition, records, checked, tuple(dropped))

    # -- inserting -----------------------------------------------------------------------------

    def _submit(self, batch: Batch) -> None:
        self._flying = (batch, self._pool.submit(self._write, batch))

    def _write(self, batch: Batch) -> Written:
        begun = self.clock.monotonic_s()
        done = self._writer.write(batch, self.watermark_ms)
        self.totals.insert_s += self.clock.monotonic_s() - begun
        return done

    def _land(self, *, wait: bool) -> None:
        """If the insert is done, commit its end; if it failed, try the very same one again."""
        if self._flying is None:
            return
        batch, future = self._flying
        if not wait and not future.done():
            return
        try:
            done = future.result()
        except Retry as error:
            self.totals.retries += 1
            if wait:
                raise
            _log.warning("insert of %s: %s; trying again", batch.token, error)
            self.clock.wait(threading.Event(), _BACKOFF_S[2])
            self._submit(batch)
            return
        self.log.commit({batch.partition: Mark(batch.records[-1].offset + 1)})
        self._flying = None
        self._count(batch, done)
        self._on_rows(done)

    def _count(self, batch: Batch, done: Written) -> None:
        self.totals.add(batch, done)
        queue = self._queues.get(batch.partition)
        if queue is not None:
            queue.newest_ms = max(queue.newest_ms, done.until_ms)
        self.watermark_ms = max(self.watermark_ms, self._watermark())

    def _watermark(self) -> int:
        """Below this every live partition that speaks has been heard."""
        now_ms = self.clock.now_ms()
        live = [
            q.newest_ms
            for p, q in self._queues.items()
            if p.topic == SAMPLES and (q.records or now_ms - q.polled_ms < IDLE_MS)
        ]
        return min(live, default=0)


def _rank(partition: Partition) -> int:
    return {SAMPLES: 0, BACKFILL: 2}.get(partition.topic, 1)


def _consume(queue: _Queue, count: int) -> None:
    queue.size -= sum(len(r.value) for r in queue.records[:count])
    del queue.records[:count]
