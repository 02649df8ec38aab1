"""`megawatch bench soak`: a fleet at 1 Hz for as long as asked, and what a minute did not show.

Merges that fall behind, memory that grows, rows that come late: they take an hour to be seen. The
broker and the fleet share the machine, as in `bench ingest`.
"""

import argparse
import contextlib
import json
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from deploy.broker import Broker
from pipeline.bench import rig
from pipeline.bench.fleet import GPUS
from pipeline.kafka import create_topics
from pipeline.settings import ClickHouse, Kafka, Settings
from pipeline.store import Store

FULL: Final = (220_000, 60)  # GPUs, minutes
QUICK: Final = (55_000, 1)
_LOOK_EVERY_S: Final = 60.0


class _Look(NamedTuple):
    """How things stand."""

    rows: int
    parts: int
    rss_mb: int
    cores: float  # since the look before


def run(args: argparse.Namespace, _: Settings) -> int:
    """Run, clean up, print one line of JSON."""
    gpus, minutes = QUICK if args.quick else FULL
    gpus, minutes = args.gpus or gpus, args.minutes or minutes
    with tempfile.TemporaryDirectory(prefix="megawatch-soak-") as folder:
        print(json.dumps(soak(Path(folder), gpus // GPUS, minutes * 60)))
    return 0


def soak(folder: Path, nodes: int, seconds: int) -> dict[str, object]:
    """So many nodes for so many seconds; what it cost, and what the store then holds."""
    rig.say("starting a broker")
    with Broker.start(folder / "kafka") as broker:
        create_topics(Kafka(bootstrap=broker.bootstrap, replication=1))
        data = folder / "data"
        with rig.pipeline(data, broker) as pipeline:
            rig.say(f"{nodes * GPUS:,} GPUs at 1 Hz for {seconds:,} s")
            begun_s, before = time.monotonic(), rig.cpu_s(pipeline.pid)
            with rig.fleet(broker.bootstrap, nodes, seconds, "live") as fleet:
                looks = list(_watch(fleet, pipeline.pid, data))
                sent = fleet.wait()
            rig.drained(pipeline, sent.rows)
            cpu_s, wall_s = rig.cpu_s(pipeline.pid) - before, time.monotonic() - begun_s
        broker_cores = broker.cpu_s() / wall_s
    rig.say("proving")
    with contextlib.closing(Store(ClickHouse(data=str(data)))) as store:
        proof = rig.proved(store, sent.rows) | {"bytes_per_row_stored": _weight(store, sent.rows)}
    return {
        "gpus": nodes * GPUS,
        "seconds": seconds,
        "rows": sent.rows,
        "live_cores": round(cpu_s / wall_s, 3),
        "live_cpu_s_per_million_rows": round(cpu_s / sent.rows * 1e6, 3),
        "live_fleet_late_s": sent.late_s,
        "broker_cores": round(broker_cores, 3),
        "rss_mb_first": looks[0].rss_mb,
        "rss_mb_last": looks[-1].rss_mb,
        "rss_mb_max": max(look.rss_mb for look in looks),
        "parts_max": max(look.parts for look in looks),
    } | proof


def _watch(fleet: rig.Fleet, pid: int, data: Path) -> Iterator[_Look]:
    """A look a minute, and a last one when the fleet has ended."""
    begun_s = time.monotonic()
    at_s, spent_s = begun_s, rig.cpu_s(pid)
    ended = False
    while not ended:
        while time.monotonic() - at_s < _LOOK_EVERY_S and not ended:
            time.sleep(1)
            ended = fleet.process.poll() is not None
        cores = (rig.cpu_s(pid) - spent_s) / (time.monotonic() - at_s)
        at_s, spent_s = time.monotonic(), rig.cpu_s(pid)
        found = rig.ask(
            data,
            "SELECT (SELECT sum(rows) FROM power_seconds), count() FROM system.parts"
            " WHERE active AND table = 'gpu_samples'",
        )
        rows, parts = map(int, found.split(","))
        look = _Look(rows, parts, _rss_mb(pid), cores)
        rig.say(
            f"  {(at_s - begun_s) / 60:.0f} min: {rows:,} rows, {parts} parts, "
            f"{look.rss_mb:,} MB, {cores:.2f} core"
        )
        yield look


def _rss_mb(pid: int) -> int:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") // 1_000_000


def _weight(store: Store, rows: int) -> float:
    """Bytes of all tables per row, as they are: not merged to the end."""
    found: int = store.query(
        "SELECT sum(bytes_on_disk) FROM system.parts WHERE active AND database = currentDatabase()"
    ).rows[0][0]
    return round(found / max(1, rows), 2)
