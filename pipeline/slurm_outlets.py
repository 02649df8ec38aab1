"""Where the Slurm feed puts allocations, and whom it asks what it said before.

The store itself; the process that has an embedded store open, over its socket; the topic
`allocations`; or somebody who only wants to see them.
"""

import io
import json
import queue
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import msgspec

from pipeline import rows
from pipeline.clock import Clock
from pipeline.commands import Context
from pipeline.errors import Refuse, Reject, Retry
from pipeline.owner import forward
from pipeline.records import Allocation
from pipeline.slurm_feed import Outlet
from pipeline.store import Store
from pipeline.topics import ALLOCATIONS, decode_record, encode_record

_CHUNK: Final = 1000
_ACK_S: Final = 30.0
_CONNECT_S: Final = 15.0

Ack = Callable[[Exception | None], None]


class Books(Outlet, Protocol):
    """A store, wherever it is open."""

    def ask(self, sql: str) -> Sequence[Mapping[str, object]]:
        """The rows of a SELECT by column; numbers may be texts. Raises Retry."""
        ...


@dataclass(frozen=True, slots=True)
class StoreBooks:
    """The store, open in this process; the same assertion again is the same row."""

    store: Store
    clock: Clock

    def ask(self, sql: str) -> Sequence[Mapping[str, object]]:
        """Select."""
        return self.store.query(sql).dicts()

    def put(self, allocations: Sequence[Allocation]) -> None:
        """Insert."""
        for table, block in rows.by_table(allocations, self.clock.now_ms()).items():
            self.store.insert(table, block)


# -- an embedded store that another process has open ----------------------------------------------


@dataclass(frozen=True, slots=True)
class OwnerBooks:
    """The embedded store in a folder, through whoever has it open; who is away comes back."""

    data: Path

    def ask(self, sql: str) -> Sequence[Mapping[str, object]]:
        """`megawatch sql` in the owner."""
        answer = self._run("sql", "--format", "json", sql)
        try:
            return msgspec.json.decode(answer, type=list[dict[str, object]])
        except msgspec.MsgspecError as error:
            raise Retry(f"{self.data}: its owner's answer cannot be read: {error}") from error

    def put(self, allocations: Sequence[Allocation]) -> None:
        """`megawatch import allocations` in the owner, of a file in the folder that both see."""
        try:
            with tempfile.NamedTemporaryFile(
                dir=self.data, prefix="slurm-", suffix=".jsonl"
            ) as file:
                file.writelines(encode_record(claim) + b"\n" for claim in allocations)
                file.flush()
                self._run("import", "allocations", "--format", "records", file.name)
        except OSError as error:
            raise Retry(f"{self.data}: {error.strerror}") from error

    def _run(self, *command: str) -> str:
        """What a command printed. Raises Retry with one sentence."""
        out, err = io.StringIO(), io.StringIO()
        try:
            code = forward(self.data, command, out, err)
        except (OSError, ValueError) as error:
            raise Retry(f"{self.data}: its owner broke off: {error}") from error
        if code is None:
            raise Retry(f"nobody has {self.data} open: start it with `megawatch up`")
        if code:
            said = err.getvalue().strip().splitlines() or ["no reason given"]
            raise Retry(f"{self.data}: its owner says: {said[-1]}")
        return out.getvalue()


def take(context: Context, what: str, files: Sequence[Path], as_json: bool) -> int:
    """Insert records as they travel, a line each, as asserted. Raises Refuse."""
    if what != "allocations":
        raise Refuse(f"--format records is for allocations, not {what}")
    claims: list[Allocation] = []
    for path in files:
        try:
            lines = path.read_bytes().splitlines()
        except OSError as error:
            raise Refuse(f"cannot read {path}: {error.strerror}") from error
        for number, line in enumerate(lines, 1):
            try:
                record = decode_record(ALLOCATIONS, line)
            except Reject as error:
                raise Refuse(f"{path}:{number}: {error}") from error
            assert isinstance(record, Allocation), "the topic has no other records"
            claims.append(record)
    StoreBooks(context.store, context.clock).put(claims)
    context.say(f"{len(claims)} records taken")
    if as_json:
        context.print(json.dumps({"rows_inserted": len(claims)}))
    return 0


# -- elsewhere -----------------------------------------------------------------------------------


class Producer(Protocol):
    """What the outlet needs of a Kafka client."""

    def send(self, topic: str, key: bytes, value: bytes, ack: Ack) -> None:
        """Hand over a message; `ack` is called once. Raises Retry or Reject."""
        ...

    def close(self, timeout_s: float) -> None:
        """Disconnect."""
        ...


@dataclass(frozen=True, slots=True)
class TopicOutlet:
    """Through the topic `allocations`, keyed by node, each message acknowledged."""

    producer: Producer
    clock: Clock

    def put(self, allocations: Sequence[Allocation]) -> None:
        """Send, and wait for every answer."""
        for at in range(0, len(allocations), _CHUNK):
            self._put(allocations[at : at + _CHUNK])

    def _put(self, allocations: Sequence[Allocation]) -> None:
        answers: queue.SimpleQueue[Exception | None] = queue.SimpleQueue()
        deadline_s = self.clock.monotonic_s() + _CONNECT_S
        for record in allocations:
            self._send(record, answers.put, deadline_s)
        for _ in allocations:
            try:
                problem = answers.get(timeout=_ACK_S * 2)
            except queue.Empty as error:
                raise Retry("the broker did not acknowledge allocations in time") from error
            if problem is not None:
                raise Retry(f"allocations were not acknowledged: {problem}") from problem

    def _send(self, record: Allocation, ack: Ack, deadline_s: float) -> None:
        never = threading.Event()
        while True:
            try:
                self.producer.send(ALLOCATIONS, record.node.encode(), encode_record(record), ack)
            except Retry:  # it connects in the background
                if self.clock.monotonic_s() > deadline_s:
                    raise
                self.clock.wait(never, 0.1)
            else:
                return


@dataclass(frozen=True, slots=True)
class Printed:
    """Says what would be asserted."""

    say: Callable[[str], None]

    def put(self, allocations: Sequence[Allocation]) -> None:
        """A line each."""
        for claim in allocations:
            self.say(encode_record(claim).decode())
