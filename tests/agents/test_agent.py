"""A whole agent on a real clock: sampled, shipped, exported, ended."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path

import pytest

from agents import agent
from agents.shipper import Ack
from pipeline.clock import SystemClock
from pipeline.errors import Refuse, Retry
from pipeline.log import Partition
from pipeline.outbox import Outbox
from pipeline.settings import AgentSettings, Settings, Site
from pipeline.spool import Spool
from pipeline.spool_log import SpoolLog
from pipeline.wire import decode, read_header
from tests.agents.tiny_source import TinySource


class MemoryBroker:
    """Keeps what it is sent and acknowledges from another thread."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, bytes]] = []
        self.away = False

    def send(self, topic: str, key: bytes, value: bytes, ack: Ack) -> None:
        if self.away:
            raise Retry("away")
        self.sent.append((topic, value))
        threading.Timer(0.01, ack, (None,)).start()

    def flush(self, timeout_s: float) -> bool:
        return True

    def close(self, timeout_s: float) -> None:
        pass


def configured(tmp_path: Path, **more: str) -> Settings:
    return Settings(
        site=Site(name="test", node="node-0"),
        agent=AgentSettings(
            period_ms=100, flush_ms=400, spool=str(tmp_path / "spool"), listen="127.0.0.1:0",
            token_file=more.get("token_file", ""),
        ),
    )  # fmt: skip


def ticks_of(payloads: list[bytes]) -> list[int]:
    heads = [read_header(payload) for payload in payloads]
    return [h.t0_ms + i * h.period_ms for h in heads for i in range(h.ticks)]


def run_for(seconds: float, settings: Settings, source: TinySource, broker: MemoryBroker) -> float:
    """Returns how long the end took."""
    clock, stop = SystemClock(), threading.Event()
    timer = threading.Timer(seconds, stop.set)
    timer.start()
    begun = clock.monotonic_s()
    assert agent.run(settings, source, lambda: broker, stop, clock) == 0
    timer.join()
    return clock.monotonic_s() - begun - seconds


def test_everything_that_was_read_is_shipped_by_the_end(tmp_path: Path) -> None:
    """Each tick arrives once, also the last ones before the end, and nothing stays behind."""
    source, broker = TinySource(), MemoryBroker()
    took_s = run_for(1.2, configured(tmp_path), source, broker)
    assert took_s < 3
    samples = [value for topic, value in broker.sent if topic == "samples"]
    shipped = ticks_of(samples)
    assert len(shipped) == len(set(shipped)) >= 7
    assert set(source.reads) == set(shipped)
    assert decode(samples[0]).header.gpus == 2
    assert broker.sent[0][0] == "inventory"
    assert source.closed
    with contextlib.closing(Spool(tmp_path / "spool", 1 << 26, SystemClock())) as spool:
        assert spool.depth().messages == 0


def test_without_a_broker_everything_waits_for_the_next_start(tmp_path: Path) -> None:
    """Two lives, the first without a broker: all ticks of both arrive, numbered on."""
    first, second, broker = TinySource(), TinySource(), MemoryBroker()
    broker.away = True
    assert run_for(0.7, configured(tmp_path), first, broker) < 5
    assert not broker.sent
    broker.away = False
    run_for(0.7, configured(tmp_path), second, broker)
    samples = [value for topic, value in broker.sent if topic == "samples"]
    assert set(first.reads + second.reads) <= set(ticks_of(samples))
    heads = [read_header(value) for value in samples]
    assert [h.seq for h in heads] == list(range(len(heads)))
    assert len({h.stream for h in heads}) == 1


def test_a_producer_that_does_not_close_delays_the_end_only_so_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that hangs is left behind: status 0, since the spool has everything."""
    release = threading.Event()

    class Hanging(MemoryBroker):
        def close(self, timeout_s: float) -> None:
            release.wait(20)

    monkeypatch.setattr(agent, "SHIPPER_LEAVES_S", 0.3)
    assert run_for(0.3, configured(tmp_path), TinySource(), Hanging()) < 2
    release.set()


def test_embedded_the_spool_is_the_log(tmp_path: Path) -> None:
    """Without a producer the pipeline of the same process reads what the sampler writes."""
    clock, stop, source = SystemClock(), threading.Event(), TinySource()
    settings = configured(tmp_path)

    class Quiet:
        def assigned(self, marks: object) -> None: ...
        def revoked(self, partitions: object) -> None: ...

    with contextlib.closing(agent.open_spool(settings, clock)) as spool:
        thread = threading.Thread(
            target=agent.run, args=(settings, source, None, stop, clock, spool)
        )
        thread.start()
        log = SpoolLog(spool, Quiet(), clock)
        seen: list[bytes] = []
        until = clock.monotonic_s() + 10
        while len(ticks_of(seen)) < 6 and clock.monotonic_s() < until:
            seen += [r.value for r in log.poll(0.5).get(Partition("samples", 0), [])]
        stop.set()
        thread.join(5)
        seen += [r.value for r in log.poll(0).get(Partition("samples", 0), [])]
        log.close()
    assert ticks_of(seen) == source.reads
    assert len(source.reads) >= 6


def test_a_mistake_in_the_source_ends_the_agent_with_what_was_read_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Status 1 for the service manager, the traceback in the log, the samples in the spool."""
    source = TinySource()

    def fail_late() -> None:
        if len(source.reads) == 5:
            raise ZeroDivisionError("a mistake")

    source.on_read = fail_late
    broker = MemoryBroker()
    broker.away = True
    clock = SystemClock()
    status = agent.run(configured(tmp_path), source, lambda: broker, threading.Event(), clock)
    assert status == 1
    assert "a mistake" in caplog.text
    with contextlib.closing(Spool(tmp_path / "spool", 1 << 26, clock)) as spool:
        box = Outbox(spool)
        kept = [m.payload for i in box.live(0, 99) if (m := box.fetch(i))]
        box.close()
    assert ticks_of(kept) == source.reads[:4]


def test_bad_settings_are_refused_and_leave_nothing_open(tmp_path: Path) -> None:
    """An empty token, or one that is not there; the spool is free again."""
    (tmp_path / "empty").touch()
    for token_file, sentence in (
        (tmp_path / "empty", "is empty"),
        (tmp_path / "no", "cannot read"),
    ):
        source = TinySource()
        with pytest.raises(Refuse, match=sentence):
            agent.run(
                configured(tmp_path, token_file=str(token_file)), source, MemoryBroker,
                threading.Event(), SystemClock(),
            )  # fmt: skip
        assert source.closed
    Spool(tmp_path / "spool", 1 << 26, SystemClock()).close()


def test_a_producer_that_refuses_its_settings_ends_the_agent_with_its_sentence(
    tmp_path: Path,
) -> None:
    """Refuse comes out of the shipper's thread to whoever started the agent."""

    def factory() -> MemoryBroker:
        raise Refuse("no such CA file")

    with pytest.raises(Refuse, match="no such CA file"):
        agent.run(configured(tmp_path), TinySource(), factory, threading.Event(), SystemClock())


_PROCESS = """
import signal, sys, threading
from pathlib import Path
from agents import agent, exporter
from pipeline import web
from pipeline.clock import SystemClock
from tests.agents.test_agent import MemoryBroker, configured
from tests.agents.tiny_source import TinySource
stop, broker, source = threading.Event(), MemoryBroker(), TinySource()
signal.signal(signal.SIGTERM, lambda *_: stop.set())
started = web.Web.__init__
def tell(self, *arguments):
    started(self, *arguments)
    print(self.port, flush=True)
web.Web.__init__ = tell
status = agent.run(configured(Path(sys.argv[1])), source, lambda: broker, stop, SystemClock())
print(len(source.reads), sum(topic == "samples" for topic, _ in broker.sent), flush=True)
sys.exit(status)
"""


def test_sigterm_ends_a_process_cleanly_within_five_seconds(tmp_path: Path) -> None:
    """A real process: its page is served, then SIGTERM, then status 0 and everything shipped."""
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-c", _PROCESS, str(tmp_path)],
        stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2],
    ) as process:  # fmt: skip
        assert process.stdout is not None
        port = int(process.stdout.readline())
        threading.Event().wait(0.8)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
            body = answer.read().decode()
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait(5) == 0
        reads, messages = (int(n) for n in process.stdout.read().split())
    assert "DCGM_FI_DEV_POWER_USAGE{" in body
    assert "megawatch_agent_ticks_total" in body
    assert reads >= 5
    assert messages >= 2
    with contextlib.closing(Spool(tmp_path / "spool", 1 << 26, SystemClock())) as spool:
        assert spool.depth().messages == 0
