"""Laws of the spool: whatever happens, nothing is lost uncounted and nothing done comes back."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from pipeline.clock import ManualClock, SystemClock
from pipeline.outbox import Outbox
from pipeline.spool import MIN_BYTES, Outgoing, Spool, Stream

NODES = ("a", "b", "c")
SIZE = 60_000  # so that a score of messages fills the smallest spool


def _message(stream: Stream) -> bytes:
    return b"%d %d " % (stream.id, stream.next_seq) + bytes(SIZE)


def _identity(payload: bytes) -> tuple[int, int]:
    stream, seq = payload.split(b" ", 2)[:2]
    return int(stream), int(seq)


class SpoolMachine(RuleBasedStateMachine):
    """Appends, acknowledgements, overflow and crashes in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp())
        self.lives = 0
        self.clock = ManualClock()
        self.spool = Spool(self.root / "0", MIN_BYTES, self.clock)
        self.box = Outbox(self.spool)
        self.done: set[tuple[int, int]] = set()
        self.given: Counter[int] = Counter()

    def waiting(self) -> dict[tuple[int, int], int]:
        found = [self.box.fetch(i) for i in sorted(self.box.live(0, 1000))]
        return {_identity(m.payload): m.id for m in found if m is not None}

    @rule(nodes=st.lists(st.sampled_from(NODES), min_size=1, max_size=6))
    def append(self, nodes: list[str]) -> None:
        self.clock.advance(1)
        items = [Outgoing("samples", node, self.clock.now_ms(), _message) for node in nodes]
        assert self.spool.append(items) == len(nodes)
        for node in nodes:
            self.given[self.spool.streams[node].id] += 1

    @rule(data=st.data())
    def acknowledge(self, data: st.DataObject) -> None:
        """Some of those that wait, in any order, some of them twice."""
        waiting = self.waiting()
        if not waiting:
            return
        chosen = data.draw(st.lists(st.sampled_from(sorted(waiting)), max_size=10))
        self.box.remove([waiting[identity] for identity in chosen])
        self.done.update(chosen)

    @rule()
    def crash(self) -> None:
        """Go on with the files as they lie on the disk at this instant."""
        self.lives += 1
        image = self.root / str(self.lives)
        shutil.copytree(self.root / str(self.lives - 1), image)
        self.box.close()
        self.spool.close()
        self.spool = Spool(image, MIN_BYTES, self.clock)
        self.box = Outbox(self.spool)

    @rule(back_s=st.integers(1, 10))
    def clock_steps_back(self, back_s: int) -> None:
        self.clock.advance(-back_s)

    @invariant()
    def what_is_done_stays_done(self) -> None:
        assert not self.done & set(self.waiting())

    @invariant()
    def nothing_is_lost_uncounted(self) -> None:
        """given = acknowledged + waiting + dropped, for each stream."""
        there = Counter(stream for stream, _ in (*self.done, *self.waiting()))
        for stream in self.spool.streams.values():
            assert stream.next_seq == self.given[stream.id]
            assert stream.next_seq == there[stream.id] + stream.dropped

    @invariant()
    def numbers_increase(self) -> None:
        last: dict[int, int] = {}
        for stream, seq in self.waiting():
            assert seq > last.get(stream, -1)
            last[stream] = seq

    def teardown(self) -> None:
        self.box.close()
        self.spool.close()
        shutil.rmtree(self.root)


TestSpool = SpoolMachine.TestCase
TestSpool.settings = settings(max_examples=20, stateful_step_count=20, deadline=None)

_WRITER = """
import sys
from pathlib import Path
from pipeline.clock import SystemClock
from pipeline.spool import Outgoing, Spool
spool = Spool(Path(sys.argv[1]), 1 << 28, SystemClock())
while True:
    before = spool.streams["a"].next_seq if spool.streams else 0
    spool.append([Outgoing("samples", "a", 1, lambda s: b"%d %d " % (s.id, s.next_seq))] * 3)
    print(before + 2, flush=True)
"""


@pytest.mark.parametrize("after_s", [0.25, 0.3, 0.37, 0.41, 0.5])
def test_what_was_reported_as_stored_is_there_after_kill_9(tmp_path: Path, after_s: float) -> None:
    """Killed at any instant: every number reported is in the file, once, without a hole."""
    for _ in range(2):
        with subprocess.Popen(
            [sys.executable, "-c", _WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True
        ) as writer:
            assert writer.stdout is not None
            reported = int(writer.stdout.readline())
            threading.Event().wait(after_s / 5)
            os.kill(writer.pid, signal.SIGKILL)
            lines = writer.stdout.read().split("\n")
        reported = max([reported, *(int(line) for line in lines[:-1])])
        spool = Spool(tmp_path, 1 << 28, SystemClock())
        box = Outbox(spool)
        found = [box.fetch(i) for i in box.live(0, 10**6)]
        identities = [_identity(m.payload) for m in found if m is not None]
        assert len({stream for stream, _ in identities}) == 1
        assert [seq for _, seq in identities] == list(range(len(identities)))
        assert len(identities) > reported
        assert spool.streams["a"].next_seq == len(identities)
        box.close()
        spool.close()
