"""`megawatch bench ingest`: a real broker, a real pipeline process, thousands of simulated agents.

Four phases. Live: every node at 1 Hz, for as long as asked. Drain: a preloaded topic of batches of
one message, as fast as it goes. Proof: what the store holds against what the broker acknowledged.
Hour: what an hour of fewer nodes weighs, since a store of seconds is mostly identifiers.
Processor time is that of the pipeline process alone, merges included, by /proc; the broker and the
fleet share the machine with it, so that rows/s depend on the machine and CPU-s per million rows
much less: `machine` says how the machine compares, by an insert that was measured elsewhere too.
Each phase ends when no merge is under way. A partition of an hour goes through about two passes of
merges in all, of which these phases see part: a whole pass is measured by itself.
"""

import argparse
import json
import subprocess
import tempfile
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Final

from deploy.broker import Broker
from pipeline.bench import reference, rig
from pipeline.bench.fleet import SITE
from pipeline.kafka import create_topics
from pipeline.records import id64
from pipeline.settings import ClickHouse, Kafka, Settings
from pipeline.store import Store


@dataclass(frozen=True, slots=True)
class Plan:
    """How much of everything."""

    nodes: int
    live_s: int
    drain_s: int  # of the whole fleet's ticks, preloaded


FULL: Final = Plan(nodes=27_500, live_s=60, drain_s=24)
QUICK: Final = Plan(nodes=6_875, live_s=12, drain_s=16)
_HOUR_S: Final = 3600
_HOUR_NODES: Final = 300
"""So many that their hour is above 100 MB: there ClickHouse takes ZSTD in place of LZ4."""
_SETTLE_S: Final = 5.0
_QUIET_LOOKS: Final = 3
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
        variables = rig.environment(broker)
        data = folder / "data"
        with rig.pipeline(data, variables) as pipeline:
            rig.say(f"live: {plan.nodes * 8:,} GPUs at 1 Hz for {plan.live_s} s")
            live = _live(pipeline, data, broker.bootstrap, plan)
        rig.say(f"preloading {plan.nodes * 8 * plan.drain_s:,} rows")
        loaded = rig.send(broker.bootstrap, plan.nodes, plan.drain_s, "preload")
        with rig.pipeline(data, variables, settle_s=0) as pipeline:
            rig.say("draining")
            drained = _drain(pipeline, data, live.sent_rows + loaded.rows)
        with rig.pipeline(folder / "hour", variables, settle_s=0):
            rig.say(f"an hour of {_HOUR_NODES * 8:,} GPUs")
            hours_rows = rig.send(broker.bootstrap, _HOUR_NODES, _HOUR_S, "hour").rows
            rig.drained(folder / "hour", hours_rows)
        wire = sum(f.stat().st_size for f in (folder / "kafka").rglob("*samples-*/*.log"))
        rig.say("proving: merging, counting")
        proof = _prove(data, live.sent_rows + loaded.rows)
        stored = _weigh(folder / "hour")
        sent = live.sent_rows + loaded.rows
        return {
            "gpus": plan.nodes * 8,
            "machine": round(machine / reference.ELSEWHERE_CPU_S, 2),
            "cpu_s_per_million_rows": round(drained.cpu_s / loaded.rows * 1e6, 3),
            "rows_per_s": round(loaded.rows / drained.wall_s),
            "live_rows_per_s": round(live.sent_rows / plan.live_s),
            "live_cores": round(live.cores, 3),
            "live_cpu_s_per_million_rows": round(live.cpu_s / live.sent_rows * 1e6, 3),
            "live_fleet_late_s": live.fleet_late_s,
            "freshness_p50_s": proof.pop("freshness_p50_s"),
            "freshness_p99_s": proof.pop("freshness_p99_s"),
            "bytes_per_row_wire": loaded.bytes_per_row,
            "bytes_per_row_broker": round(wire / (sent + hours_rows), 2),
            "bytes_per_row_stored": round(stored, 2),
            "broker_cpu_s_per_million_rows": round(broker.cpu_s() / (sent + hours_rows) * 1e6, 3),
            "rows": sent,
        } | proof


# -- phases -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Live:
    sent_rows: int
    cores: float
    cpu_s: float
    fleet_late_s: float


def _live(pipeline: "subprocess.Popen[bytes]", data: Path, bootstrap: str, plan: Plan) -> _Live:
    before, begun_s = rig.cpu_s(pipeline.pid), time.monotonic()
    sent = rig.send(bootstrap, plan.nodes, plan.live_s, "live")
    rig.drained(data, sent.rows)
    cores = (rig.cpu_s(pipeline.pid) - before) / (time.monotonic() - begun_s)
    _merged(data)
    return _Live(sent.rows, cores, rig.cpu_s(pipeline.pid) - before, sent.late_s)


@dataclass(frozen=True, slots=True)
class _Drained:
    wall_s: float
    cpu_s: float


def _drain(pipeline: "subprocess.Popen[bytes]", data: Path, rows: int) -> _Drained:
    """From a ready process, before it has its partitions, to the last row; its CPU with merges."""
    begun_s, before = time.time(), rig.cpu_s(pipeline.pid)
    rig.drained(data, rows)
    newest = rig.ask(data, "SELECT toUnixTimestamp64Milli(max(at)) FROM ingest_log WHERE rows > 0")
    wall_s = int(newest) / 1000 - begun_s
    _merged(data)
    return _Drained(wall_s, rig.cpu_s(pipeline.pid) - before)


def _merged(data: Path) -> None:
    """Wait until no merge has been under way for some looks."""
    quiet = 0
    while quiet < _QUIET_LOOKS:
        time.sleep(_LOOK_EVERY_S)
        quiet = 0 if int(rig.ask(data, "SELECT count() FROM system.merges")) else quiet + 1


def _prove(data: Path, sent: int) -> dict[str, object]:
    """What is in the store, by SQL, after its merges."""
    store = Store(ClickHouse(data=str(data)))
    begun_s = time.process_time()
    store.command("OPTIMIZE TABLE gpu_samples FINAL")
    pass_s = time.process_time() - begun_s
    count, distinct = store.query(
        "SELECT count(), uniqExact(gpu, ts) FROM gpu_samples WHERE site = {site:UInt64}",
        {"site": id64(SITE)},
    ).rows[0]
    ages = store.query(
        # Of the oldest tick of every insert of the live lane: an upper bound for all its rows.
        "SELECT quantilesExactWeighted(0.5, 0.99)"
        "(toUnixTimestamp64Milli(at) - toUnixTimestamp64Milli(from_ts), rows)"
        " FROM ingest_log WHERE kind = 'insert' AND rows > 0 AND topic = 'samples'"
        " AND at < (SELECT min(at) + INTERVAL {live:UInt32} SECOND FROM ingest_log WHERE rows > 0)",
        {"live": _live_seconds(store)},
    ).rows[0][0]
    energies = store.query(
        "SELECT (SELECT sum(energy_j) FROM gpu_samples) = (SELECT sum(energy_j) FROM power_seconds)"
        " AND (SELECT sum(energy_j) FROM gpu_samples) = (SELECT sum(energy_j) FROM tenant_minutes)"
    ).rows[0][0]
    store.close()
    return {
        "freshness_p50_s": round(ages[0] / 1000, 2),
        "freshness_p99_s": round(ages[1] / 1000, 2),
        "merge_pass_cpu_s_per_million_rows": round(pass_s / max(1, count) * 1e6, 3),
        "rows_lost": sent - distinct,
        "rows_duplicated": count - distinct,
        "energy_conserved": bool(energies),
    }


def _live_seconds(store: Store) -> int:
    """Length of the first uninterrupted stretch of inserts: the live phase."""
    ats = [row[0] for row in store.query(
        "SELECT toUnixTimestamp(at) FROM ingest_log WHERE rows > 0 ORDER BY at"
    ).rows]  # fmt: skip
    for earlier, later in pairwise(ats):
        if later - earlier > _SETTLE_S:
            return int(earlier - ats[0]) + 1
    return int(ats[-1] - ats[0]) + 1


def _weigh(data: Path) -> float:
    """Bytes of all tables per row of gpu_samples, merged."""
    store = Store(ClickHouse(data=str(data)))
    for table in ("gpu_samples", "gpu_health", "power_seconds", "tenant_minutes", "gpu_minutes"):
        store.command(f"OPTIMIZE TABLE {table} FINAL")
    found: float = store.query(
        "SELECT sum(bytes_on_disk) / (SELECT count() FROM gpu_samples)"
        " FROM system.parts WHERE active AND database = currentDatabase()"
    ).rows[0][0]
    store.close()
    return found
