"""`megawatch bench agent`: what one agent costs its node, NVML in its child, eight fake GPUs.

A real agent process, a libnvidia-ml.so.1 without GPUs behind the real ctypes path, and a real
broker where one can be started (without one the agent only spools, and the result says so). Two
phases. Cost: processor time of the agent and of its child, after the start has settled, while its
metrics are read as rarely as Prometheus does; memory is proportional set size. Ticks: the metrics
are read each second, so that the difference between two readings is one tick.
"""

import argparse
import contextlib
import itertools
import json
import math
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from agents.cost import measure
from deploy import fake_nvml
from deploy.broker import Broker, free_port
from pipeline.clock import Clock, SystemClock
from pipeline.errors import Refuse, Unavailable
from pipeline.kafka import create_topics
from pipeline.settings import Kafka, Settings

GPUS: Final = 8
WARM_UP_S: Final = 5
FULL_S: Final = 60
QUICK_S: Final = 20
SCRAPE_EVERY_S: Final = 15.0
"""Prometheus' usual interval; what it costs the agent is part of its cost."""
_START_S: Final = 30.0
_STOP_S: Final = 15.0
_DAY_S: Final = 86_400
_MIB: Final = 1 << 20
_CPUCLOCK_SCHED: Final = 2

_READ: Final = "megawatch_agent_source_read_seconds"
_LATE: Final = "megawatch_agent_tick_lateness_seconds"
_SAMPLE: Final = re.compile(r"^(\w+)(?:\{[^}]*\})? (\S+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Usage:
    """CPU seconds so far and memory, of the agent and of its children."""

    at_s: float
    parent_cpu_s: float
    child_cpu_s: float
    parent_pss_bytes: int
    child_pss_bytes: int


def run(args: argparse.Namespace, _: Settings) -> int:
    """Measure, clean up, print one line of JSON."""
    seconds = QUICK_S if args.quick else FULL_S
    with tempfile.TemporaryDirectory(prefix="megawatch-bench-") as folder:
        found = bench(Path(folder), seconds)
    print(json.dumps(found))
    return 0


def bench(folder: Path, seconds: int, *, with_broker: bool = True) -> dict[str, object]:
    """What an agent costs that runs for so long after its warm-up. Raises Refuse."""
    try:
        library = fake_nvml.build(folder / "nvml")
    except Unavailable as error:
        raise Refuse(f"bench agent needs a fake NVML: {error}") from error
    with contextlib.ExitStack() as stack:
        bootstrap = _broker(stack, folder / "kafka") if with_broker else None
        if bootstrap is None:
            _say("no broker: the agent spools only")
        port = free_port()
        environment = _environment(folder, library, bootstrap, port)
        agent = stack.enter_context(_agent(environment))
        return _measure(agent, port, seconds, folder / "spool") | {"broker": bootstrap is not None}


def _broker(stack: contextlib.ExitStack, folder: Path) -> str | None:
    """The address of a broker with topics, which ends with the stack; None where there is none."""
    _say("starting a broker")
    try:
        broker = stack.enter_context(Broker.start(folder))
    except Unavailable as error:
        _say(str(error))
        return None
    create_topics(Kafka(bootstrap=broker.bootstrap, replication=1))
    return broker.bootstrap


def _environment(
    folder: Path, library: Path, bootstrap: str | None, port: int
) -> Mapping[str, str]:
    control = folder / "control"
    fake_nvml.steer(control, {"gpus": GPUS})
    return {
        **os.environ,
        **fake_nvml.environment(library, control),
        "MEGAWATCH_KAFKA__BOOTSTRAP": bootstrap or f"127.0.0.1:{free_port()}",
        "MEGAWATCH_AGENT__SPOOL": str(folder / "spool"),
        "MEGAWATCH_AGENT__LISTEN": f"127.0.0.1:{port}",
    }


@contextlib.contextmanager
def _agent(environment: Mapping[str, str]) -> Iterator["subprocess.Popen[bytes]"]:
    """A real `megawatch agent`, stopped by SIGTERM."""
    command = [sys.executable, "-m", "megawatch", "agent", "--source", "nvml"]
    process = subprocess.Popen(command, env=dict(environment))
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(_STOP_S)


def _measure(
    agent: "subprocess.Popen[bytes]", port: int, seconds: int, spool: Path
) -> dict[str, object]:
    clock: Clock = SystemClock()
    page = f"http://127.0.0.1:{port}/metrics"
    _await_ticks(agent, page, clock)
    _say(f"warming up for {WARM_UP_S} s")
    clock.wait(threading.Event(), WARM_UP_S)
    _say(f"cost: {seconds} s")
    first = _scrape(page)
    before = usage(agent.pid, clock)
    _scrapes(page, seconds, SCRAPE_EVERY_S, clock)
    after = usage(agent.pid, clock)
    last = _scrape(page)
    _say(f"ticks: {seconds} s")
    pages = _scrapes(page, seconds, 1.0, clock)
    gone_s = after.at_s - before.at_s
    parent = 100 * (after.parent_cpu_s - before.parent_cpu_s) / gone_s
    child = 100 * (after.child_cpu_s - before.child_cpu_s) / gone_s
    return {
        "cpu_pct_of_core": round(parent + child, 3),
        "pss_mib": round((after.parent_pss_bytes + after.child_pss_bytes) / _MIB, 1),
        "tick_ms_p99": round(1000 * p99(per_tick(pages, _READ)), 3),
        "late_ms_p99": round(1000 * p99(per_tick(pages, _LATE)), 3),
        "cpu_pct_parent": round(parent, 3),
        "cpu_pct_child": round(child, 3),
        "pss_mib_parent": round(after.parent_pss_bytes / _MIB, 1),
        "pss_mib_child": round(after.child_pss_bytes / _MIB, 1),
        "gpus": GPUS,
        "seconds": seconds,
        "ticks": round(last[f"{_READ}_count"] - first[f"{_READ}_count"]),
        "spooled_bytes_per_day": round(spooled_bytes(first, last) / gone_s * _DAY_S),
        "spool_file_bytes": sum(file.stat().st_size for file in spool.iterdir()),
    }


def _scrapes(page: str, seconds: int, every_s: float, clock: Clock) -> list[dict[str, float]]:
    """The page, again and again for so long."""
    begun_s = due_s = clock.monotonic_s()
    never = threading.Event()
    pages = []
    while due_s + every_s <= begun_s + seconds:
        due_s += every_s
        clock.wait(never, due_s - clock.monotonic_s())
        pages.append(_scrape(page))
    clock.wait(never, begun_s + seconds - clock.monotonic_s())
    return pages


def _await_ticks(agent: "subprocess.Popen[bytes]", page: str, clock: Clock) -> None:
    """Until the driver is open and GPUs were read."""
    until_s = clock.monotonic_s() + _START_S
    never = threading.Event()
    while True:
        if agent.poll() is not None:
            raise Refuse(f"the agent ended with status {agent.returncode}: see above")
        if clock.monotonic_s() > until_s:
            raise Refuse(f"the agent read no GPU within {_START_S:.0f} s")
        with contextlib.suppress(OSError):
            found = _scrape(page)
            if found.get("megawatch_agent_source_up") and found.get("megawatch_agent_ticks_total"):
                return
        clock.wait(never, 0.2)


def usage(pid: int, clock: Clock) -> Usage:
    """What the agent has used so far, and its children, by /proc."""
    children = _children(pid)
    family_pss = _pss_bytes(pid)
    child_pss = sum(_pss_bytes(child) for child in children)
    return Usage(
        clock.monotonic_s(), _cpu_s(pid), sum(_cpu_s(child) for child in children),
        family_pss - child_pss, child_pss,
    )  # fmt: skip


def _pss_bytes(pid: int) -> int:
    """Of a process and its descendants."""
    size = measure(pid).pss_bytes
    if size is None:
        raise Refuse("bench agent needs a kernel that tells memory in /proc/PID/smaps_rollup")
    return size


def _children(pid: int) -> list[int]:
    texts = (task.read_text() for task in Path(f"/proc/{pid}/task").glob("*/children"))
    return [int(child) for text in texts for child in text.split()]


def _cpu_s(pid: int) -> float:
    """To the nanosecond: /proc/PID/stat counts hundredths, too coarse for so little."""
    return time.clock_gettime((~pid << 3) | _CPUCLOCK_SCHED)  # as clock_getcpuclockid(3) makes it


def _scrape(page: str) -> dict[str, float]:
    with urllib.request.urlopen(page, timeout=5) as answer:  # noqa: S310, our own address
        return parse(answer.read().decode())


def parse(page: str) -> dict[str, float]:
    """Sums over the labels of each series."""
    found: dict[str, float] = {}
    for name, value in _SAMPLE.findall(page):
        found[name] = found.get(name, 0.0) + float(value)
    return found


def per_tick(pages: Sequence[Mapping[str, float]], summary: str) -> list[float]:
    """Mean seconds over the ticks between one page and the next, which are one or two."""
    return [
        (later[f"{summary}_sum"] - page[f"{summary}_sum"]) / ticks
        for page, later in itertools.pairwise(pages)
        if (ticks := later[f"{summary}_count"] - page[f"{summary}_count"]) > 0
    ]


def p99(values: Sequence[float]) -> float:
    """The smallest value that 99 % do not exceed; not a number without values."""
    ranked = sorted(values)
    return ranked[math.ceil(0.99 * len(ranked)) - 1] if ranked else math.nan


def spooled_bytes(first: Mapping[str, float], last: Mapping[str, float]) -> float:
    """Bytes that went into the spool between two pages: what left it and what stayed."""
    names = ("megawatch_agent_shipped_bytes_total", "megawatch_agent_spool_bytes")
    return max(0.0, sum(last.get(name, 0.0) - first.get(name, 0.0) for name in names))


def _say(text: str) -> None:
    print(f"bench: {text}", file=sys.stderr, flush=True)
