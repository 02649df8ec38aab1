"""A fleet whose every millijoule is known, sent as agents send: late, twice, on both lanes."""

import random
import threading
import time
from collections import deque
from dataclasses import dataclass, field

from pipeline.errors import Retry
from pipeline.kafka import Producer
from pipeline.records import Allocation
from pipeline.topics import (
    ALLOCATIONS,
    BACKFILL,
    INVENTORY,
    LANES,
    SAMPLES,
    encode_record,
)
from pipeline.wire import with_lane
from tests.messages import SITE, inventory, message
from tests.real.kafka_listener import send

NO_ENERGY = 0xFFFF_FFFF


@dataclass
class Truth:
    """What the store must hold in the end: first copies count, repetitions do not."""

    rows: int = 0
    energy_mj: int = 0
    messages_by_stream: dict[int, int] = field(default_factory=dict)
    repetitions: int = 0
    late: int = 0


@dataclass
class FedNode:
    """A node that tells of itself in one stream; `backlog` waits for the slower lane."""

    name: str
    stream: int
    t0_ms: int
    seq: int = 0
    backlog: deque[bytes] = field(default_factory=deque)
    sent: deque[bytes] = field(default_factory=lambda: deque(maxlen=20))
    away_for: int = 0


class Feed:
    """Makes and sends messages; `truth` is complete once `finish` has returned."""

    def __init__(
        self,
        producer: Producer,
        seed: int,
        nodes: int,
        start_ms: int,
        *,
        prefix: str = "crash",
        ticks: int = 4,
        gpus: int = 2,
    ) -> None:
        self.truth = Truth()
        self._ticks, self._gpus = ticks, gpus
        self._producer = producer
        self._rng = random.Random(seed)
        self._nodes = [
            FedNode(f"{prefix}{i}", self._rng.getrandbits(63) | 1, start_ms // 60_000 * 60_000)
            for i in range(nodes)
        ]
        self._failed: deque[tuple[str, FedNode, bytes]] = deque()
        for node in self._nodes:
            known = inventory(node.name, gpus, from_ms=start_ms)
            self._send(INVENTORY, node, encode_record(known))
            claim = Allocation(
                site=SITE, source="test", tenant=f"tenant{node.stream % 2}", node=node.name,
                from_ms=start_ms, gpus=(0,),
            )  # fmt: skip
            self._send(ALLOCATIONS, node, encode_record(claim))

    def step(self) -> None:
        """What one node does next."""
        node = self._rng.choice(self._nodes)
        dice = self._rng.random()
        if dice < 0.05 and not node.away_for:
            # The acknowledgements of the last few were lost: they come again, in order.
            for payload in list(node.sent)[-self._rng.randint(1, 4) :]:
                self._again(SAMPLES, node, payload)
        elif dice < 0.08 and node.sent:
            # So were those of some that are old by now.
            first = self._rng.randrange(len(node.sent))
            for payload in list(node.sent)[first : first + 4]:
                self._again(BACKFILL, node, payload)
        elif dice < 0.10 and not node.backlog:
            node.away_for = self._rng.randint(5, 20)
        elif dice < 0.35 and node.backlog and not node.away_for:
            late = node.backlog.popleft()
            self._send(BACKFILL, node, late)
            if self._rng.random() < 0.2:
                self._again(BACKFILL, node, late)
        else:
            self._fresh(node)

    def run(self, stop: threading.Event, per_s: float) -> None:
        """Steadily, until told to stop."""
        due_s = time.monotonic()
        while not stop.is_set():
            self.step()
            due_s += 1 / per_s
            stop.wait(max(0.0, due_s - time.monotonic()))

    def finish(self, patience_s: float = 60) -> None:
        """Send what still waits; everything has been acknowledged then."""
        for node in self._nodes:
            while node.backlog:
                self._send(BACKFILL, node, node.backlog.popleft())
        until = time.monotonic() + patience_s
        while True:
            assert self._producer.flush(patience_s), "not all is acknowledged"
            if not self._failed:
                return
            assert time.monotonic() < until, f"{len(self._failed)} messages are refused"
            for _ in range(len(self._failed)):
                self._send(*self._failed.popleft())

    def backlog(self, messages: int) -> None:
        """So many messages that only the slower lane carries, spread over the nodes."""
        for i in range(messages):
            node = self._nodes[i % len(self._nodes)]
            self._send(BACKFILL, node, self._made(node))

    def live(self, messages: int) -> None:
        """So many on the lane that goes first."""
        for i in range(messages):
            node = self._nodes[i % len(self._nodes)]
            self._send(SAMPLES, node, self._made(node))

    def _fresh(self, node: FedNode) -> None:
        payload = self._made(node)
        if node.away_for:
            node.away_for -= 1
            node.backlog.append(payload)
            self.truth.late += 1
        else:
            self._send(SAMPLES, node, payload)
            node.sent.append(payload)

    def _made(self, node: FedNode) -> bytes:
        rows = self._ticks * self._gpus
        energies = [
            self._rng.randrange(700_000) if self._rng.random() < 0.99 else NO_ENERGY
            for _ in range(rows)
        ]
        powers = [self._rng.randrange(7000) for _ in range(rows)]
        payload = message(
            node.name, node.seq, node.t0_ms, ticks=self._ticks, gpus=self._gpus, stream=node.stream,
            values={"energy_j": energies, "power_w": powers},
        )  # fmt: skip
        node.seq += 1
        node.t0_ms += self._ticks * 1000
        self.truth.rows += rows
        self.truth.energy_mj += sum(mj for mj in energies if mj != NO_ENERGY)
        self.truth.messages_by_stream[node.stream] = node.seq
        return payload

    def _again(self, topic: str, node: FedNode, payload: bytes) -> None:
        self.truth.repetitions += 1
        self._send(topic, node, payload)

    def _send(self, topic: str, node: FedNode, payload: bytes) -> None:
        if topic in LANES:
            payload = with_lane(payload, LANES.index(topic))

        def ack(error: Exception | None) -> None:
            if isinstance(error, Retry):
                self._failed.append((topic, node, payload))
            elif error is not None:
                raise AssertionError(f"the broker refuses a message: {error}")

        send(self._producer, topic, node.name.encode(), payload, ack, patience_s=60)
