"""What benchmarks of ingest are made of: a pipeline and a fleet as processes, questions to its store."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from deploy.broker import Broker, free_port
from pipeline.errors import Refuse
from pipeline.store import Store

_TICK_S: Final = 1 / os.sysconf("SC_CLK_TCK")
# An agent's batch holds one message. Live, the broker would need a core for it that is not here.
_PER_BATCH: Final = {"live": 20, "preload": 1, "hour": 1}
_WAIT_S: Final = 120.0
_LOOK_EVERY_S: Final = 1.0
_ROWS: Final = re.compile(r"^megawatch_pipeline_rows_total (\S+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Pipeline:
    """A `megawatch pipeline` as a process; it is asked how far it is where that costs it least."""

    process: "subprocess.Popen[bytes]"
    listen: str

    @property
    def pid(self) -> int:
        """Its process."""
        return self.process.pid

    def is_ready(self) -> bool:
        """Whether it answers; it reads the log from then on."""
        with contextlib.suppress(OSError):
            self.rows()
            return True
        return False

    def rows(self) -> int:
        """Rows that it has inserted."""
        with urllib.request.urlopen(f"http://{self.listen}/metrics", timeout=10) as answer:
            found = _ROWS.search(answer.read().decode())
        assert found is not None
        return int(float(found[1]))


@contextlib.contextmanager
def pipeline(data: Path, broker: Broker, settle_s: float = 5.0) -> Iterator[Pipeline]:
    """A real `megawatch pipeline` at this broker, ready, stopped by SIGTERM."""
    command = [sys.executable, "-m", "megawatch", "pipeline", "--data", str(data)]
    listen = f"127.0.0.1:{free_port()}"
    variables = os.environ | {
        "MEGAWATCH_KAFKA__BOOTSTRAP": broker.bootstrap,
        "MEGAWATCH_PIPELINE__LISTEN": listen,
    }
    process = subprocess.Popen(command, env=variables)
    made = Pipeline(process, listen)
    try:
        _until(made.is_ready, process, "the pipeline did not start")
        time.sleep(settle_s)  # the group's first assignment takes its time
        yield made
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def _until(ready: Callable[[], bool], process: "subprocess.Popen[bytes]", otherwise: str) -> None:
    until_s = time.monotonic() + _WAIT_S
    while not ready():
        if process.poll() is not None or time.monotonic() > until_s:
            raise Refuse(otherwise)
        time.sleep(0.1)


def cpu_s(pid: int) -> float:
    """User and system seconds of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * _TICK_S


@dataclass(frozen=True, slots=True)
class Sent:
    """What the broker acknowledged, and how far behind its own clock the fleet fell."""

    rows: int
    late_s: float
    bytes_per_row: float


@dataclass(frozen=True, slots=True)
class Fleet:
    """Thousands of agents in a process of their own (pipeline/bench/fleet.py)."""

    process: "subprocess.Popen[str]"

    def wait(self) -> Sent:
        """What was sent in all, at the end. Raises Refuse."""
        out, _ = self.process.communicate()
        if self.process.returncode:
            raise Refuse("the fleet failed: the result would mean nothing")
        found = json.loads(out.strip().splitlines()[-1])
        return Sent(found["rows"], found["late_s"], found["bytes_per_row"])


@contextlib.contextmanager
def fleet(bootstrap: str, nodes: int, seconds: int, mode: str) -> Iterator[Fleet]:
    """So many nodes' ticks of so many seconds, and those of the first message."""
    command = [sys.executable, "-m", "pipeline.bench.fleet", bootstrap, str(nodes),
               str(seconds + 3), mode, str(_PER_BATCH[mode])]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield Fleet(process)
        finally:
            process.kill()


def send(bootstrap: str, nodes: int, seconds: int, mode: str) -> Sent:
    """All that such a fleet sends."""
    with fleet(bootstrap, nodes, seconds, mode) as sending:
        return sending.wait()


def drained(pipeline: Pipeline, rows: int) -> None:
    """Wait until the pipeline has inserted so many rows."""
    until_s = time.monotonic() + _WAIT_S
    while (found := pipeline.rows()) < rows:
        if time.monotonic() > until_s:
            raise Refuse(f"only {found:,} of {rows:,} rows arrived within {_WAIT_S:.0f} s")
        say(f"  {found:,} of {rows:,} rows", again=True)
        time.sleep(_LOOK_EVERY_S)


def proved(store: Store, sent: int) -> dict[str, Any]:
    """What the store holds against what the broker acknowledged, and how late live rows came."""
    # A GPU's rows lie together: its ticks are told apart without a table of all of them.
    count, distinct = store.query(
        "SELECT sum(ticks), sum(apart) FROM"
        " (SELECT count() AS ticks, uniqExact(ts) AS apart FROM gpu_samples GROUP BY gpu)",
        optimize_aggregation_in_order=1,
    ).rows[0]
    raw, seconds, minutes = store.query(
        "SELECT (SELECT sum(energy_j) FROM gpu_samples), (SELECT sum(energy_j) FROM power_seconds),"
        " (SELECT sum(energy_j) FROM tenant_minutes)"
    ).rows[0]
    # Of the oldest tick of every insert of the live lane: an upper bound for all its rows.
    p50, p99, most = store.query(
        "SELECT quantileExactWeighted(0.5)(age, rows), quantileExactWeighted(0.99)(age, rows),"
        " max(age) FROM (SELECT toUnixTimestamp64Milli(at) - toUnixTimestamp64Milli(from_ts) AS age,"
        " rows FROM ingest_log WHERE kind = 'insert' AND rows > 0 AND topic = 'samples')"
    ).rows[0]
    return {
        "freshness_p50_s": round(p50 / 1000, 2),
        "freshness_p99_s": round(p99 / 1000, 2),
        "freshness_max_s": round(most / 1000, 2),
        "rows_lost": sent - distinct,
        "rows_duplicated": count - distinct,
        "energy_conserved": raw == seconds == minutes,
    }


def ask(data: Path, sql: str) -> str:
    """A query's answer as CSV, from the store's owner."""
    command = [sys.executable, "-m", "megawatch", "sql", "--data", str(data), "--format", "csv",
               sql]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "0"


def say(text: str, *, again: bool = False) -> None:
    """Progress; a line that repeats is rewritten on a terminal and left out elsewhere."""
    if again and not sys.stderr.isatty():
        return
    print(f"\r{text}\x1b[K" if again else f"bench: {text}", end="" if again else "\n",
          file=sys.stderr, flush=True)  # fmt: skip
