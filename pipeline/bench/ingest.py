"""`megawatch bench ingest`: a real broker, a real pipeline process, thousands of simulated agents.

Three phases, each into a store of its own. Live: every node at 1 Hz, for as long as asked. Drain: a
preloaded topic of batches of one message, as fast as it goes. Hour: what an hour of fewer nodes
weighs, since a store of seconds is mostly identifiers.
What the stores hold is proved against what the broker acknowledged. Processor time is that of the
pipeline process alone, by /proc; the broker and the fleet share the machine with it, so that rows/s
depend on the machine and CPU-s per million rows much less: `machine` says how the machine compares,
by an insert that was measured elsewhere too. A minute sees few merges: each row goes through about
one pass (pipeline/merges.py), which is measured by itself; `bench soak` sees them as they come.
"""

import argparse
import contextlib
import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from deploy.broker import Broker
from pipeline.bench import reference, rig
from pipeline.kafka import create_topics
from pipeline.settings import ClickHouse, Kafka, Settings
from pipeline.store import Store


@dataclass(frozen=True, slots=True)
class Plan:
    """How much of everything."""

    nodes: int
    live_s: int
    drain_s: int  # of the whole fleet's ticks, preloaded
    hour_nodes: int


FULL: Final = Plan(nodes=27_500, live_s=45, drain_s=20, hour_nodes=150)
"""So many nodes that their hour is above 64 MiB: there it becomes ZSTD in place of LZ4."""
QUICK: Final = Plan(nodes=6_875, live_s=8, drain_s=24, hour_nodes=5)
_HOUR_S: Final = 3600
_QUIET_LOOKS: Final = 2
_LOOK_EVERY_S: Final = 2.0  # a look costs the pipeline some 30 ms of its own time


def run(args: argparse.Namespace, _: Settings) -> int:
    """Measure, clean up, print one line of JSON."""
    plan = QUICK if args.quick else FULL
    with tempfile.TemporaryDirectory(prefix="megawatch-bench-") as folder:
        found = _measure(Path(folder), plan)
    print(json.dumps(found))
    return 0


def _measure(folder: Path, plan: Plan) -> dict[str, object]:
    rig.say("timing the machine")
    machine = reference.measure()
    rig.say("starting a broker")
    with Broker.start(folder / "kafka") as broker:
        create_topics(Kafka(bootstrap=broker.bootstrap, replication=1))
        rig.say(f"live: {plan.nodes * 8:,} GPUs at 1 Hz for {plan.live_s} s")
        live = _live(folder / "live", broker, plan)
        rig.say(f"preloading {plan.nodes * 8 * plan.drain_s:,} rows")
        loaded = rig.send(broker.bootstrap, plan.nodes, plan.drain_s, "preload")
        rig.say("draining")
        drained = _drain(folder / "drain", broker, loaded.rows)
        rig.say(f"an hour of {plan.hour_nodes * 8:,} GPUs")
        hour = _hour(folder / "hour", broker, plan)
        wire = sum(f.stat().st_size for f in (folder / "kafka").rglob("*samples-*/*.log"))
        rows = live.sent.rows + loaded.rows
        return {
            "gpus": plan.nodes * 8,
            "machine": round(machine / reference.ELSEWHERE_CPU_S, 2),
            "cpu_s_per_million_rows": round(drained.cpu_s / loaded.rows * 1e6, 3),
            "rows_per_s": round(loaded.rows / drained.wall_s),
            "live_rows_per_s": round(live.sent.rows / plan.live_s),
            "live_cores": round(live.cores, 3),
            "live_cpu_s_per_million_rows": round(live.cpu_s / live.sent.rows * 1e6, 3),
            "live_fleet_late_s": live.sent.late_s,
            "freshness_p50_s": live.proof["freshness_p50_s"],
            "freshness_p99_s": live.proof["freshness_p99_s"],
            "merge_pass_cpu_s_per_million_rows": round(live.merge_cpu_s / live.sent.rows * 1e6, 3),
            "bytes_per_row_wire": loaded.bytes_per_row,
            "bytes_per_row_broker": round(wire / (rows + hour.rows), 2),
            "bytes_per_row_stored": round(hour.bytes_per_row, 2),
            "broker_cpu_s_per_million_rows": round(broker.cpu_s() / (rows + hour.rows) * 1e6, 3),
            "rows": rows,
            "rows_lost": live.proof["rows_lost"] + drained.proof["rows_lost"],
            "rows_duplicated": live.proof["rows_duplicated"] + drained.proof["rows_duplicated"],
            "energy_conserved": all(p["energy_conserved"] for p in (live.proof, drained.proof)),
        }


# -- phases -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Live:
    sent: rig.Sent
    cores: float
    cpu_s: float
    merge_cpu_s: float
    proof: dict[str, Any]


def _live(data: Path, broker: Broker, plan: Plan) -> _Live:
    with rig.pipeline(data, broker) as pipeline:
        before, begun_s = rig.cpu_s(pipeline.pid), time.monotonic()
        sent = rig.send(broker.bootstrap, plan.nodes, plan.live_s, "live")
        rig.drained(pipeline, sent.rows)
        cpu_s = rig.cpu_s(pipeline.pid) - before
        cores = cpu_s / (time.monotonic() - begun_s)
    rig.say("proving, and merging once")
    with _opened(data) as store:
        proof = rig.proved(store, sent.rows)
        before_s = time.process_time()
        store.command("OPTIMIZE TABLE gpu_samples FINAL")
        merge_cpu_s = time.process_time() - before_s
    return _Live(sent, cores, cpu_s, merge_cpu_s, proof)


@dataclass(frozen=True, slots=True)
class _Drained:
    wall_s: float
    cpu_s: float
    proof: dict[str, Any]


def _drain(data: Path, broker: Broker, rows: int) -> _Drained:
    """From a ready process, before it has its partitions, to the last row; its CPU with merges."""
    with rig.pipeline(data, broker, settle_s=0) as pipeline:
        begun_s, before = time.time(), rig.cpu_s(pipeline.pid)
        rig.drained(pipeline, rows)
        newest = rig.ask(
            data, "SELECT toUnixTimestamp64Milli(max(at)) FROM ingest_log WHERE rows > 0"
        )
        wall_s = int(newest) / 1000 - begun_s
        _merged(data)
        cpu_s = rig.cpu_s(pipeline.pid) - before
    with _opened(data) as store:
        return _Drained(wall_s, cpu_s, rig.proved(store, rows))


def _merged(data: Path) -> None:
    """Wait until no merge has been under way for some looks."""
    quiet = 0
    while quiet < _QUIET_LOOKS:
        time.sleep(_LOOK_EVERY_S)
        quiet = 0 if int(rig.ask(data, "SELECT count() FROM system.merges")) else quiet + 1


@dataclass(frozen=True, slots=True)
class _Hour:
    rows: int
    bytes_per_row: float


def _hour(data: Path, broker: Broker, plan: Plan) -> _Hour:
    """Bytes of all tables per row of gpu_samples, merged."""
    with rig.pipeline(data, broker, settle_s=0) as pipeline:
        rows = rig.send(broker.bootstrap, plan.hour_nodes, _HOUR_S, "hour").rows
        rig.drained(pipeline, rows)
    with _opened(data) as store:
        for table in (
            "gpu_samples", "gpu_health", "power_seconds", "tenant_minutes", "gpu_minutes",
        ):  # fmt: skip
            store.command(f"OPTIMIZE TABLE {table} FINAL")
        weight = store.query(
            "SELECT sum(bytes_on_disk) FROM system.parts"
            " WHERE active AND database = currentDatabase()"
        ).rows[0][0]
    return _Hour(rows, weight / rows)


def _opened(data: Path) -> contextlib.closing[Store]:
    return contextlib.closing(Store(ClickHouse(data=str(data))))
