"""`megawatch bench alerts`: what rules cost at a large site, and whether a healthy site stays quiet.

Cost: a store of that size is written by SQL (pipeline/bench/site.py), and each signal is asked with
all of its rules for some rounds. Time is that of this process's processors, queries and their
threads included, less what an idle store takes. Quiet: a simulated site without faults goes through
the real pipeline, faster than time, and the rules judge it.
"""

import argparse
import json
import os
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from alerts import evaluate
from alerts.evaluator import Evaluator
from alerts.rule import Rule, Signal, by_signal
from alerts.rules import RULES
from pipeline.bench import site
from pipeline.bench.site import SITE, Extent
from pipeline.clock import ManualClock, SystemClock
from pipeline.settings import ClickHouse, Settings
from pipeline.store import Store, open_store

FLEET: Final = 220_000
QUICK: Final = 22_000
INTERVAL_S: Final = 15
BUDGET_PCT: Final = 5.0
"""Of a core, for all rules at INTERVAL_S."""
SETTLED_S: Final = 8
"""How far behind the clock seconds are complete, as measured on a running site."""
RACK_KW: Final = 200.0
PDU_RACKS: Final = 8
_MERGES_S: Final = 60.0
_IDLE_S: Final = 3.0


class Site(Protocol):
    """A simulated site over a store, see pipeline/bench/simulated.py."""

    settings: Settings
    clock: ManualClock
    store: Store

    def go(self, until_ms: int, every_ms: int) -> None:
        """Let simulated time pass; samples reach the store at multiples of `every_ms`."""


Simulate = Callable[[Path, int], AbstractContextManager[Site]]
"""A site of so many nodes over a new store in a folder. Alerts know no agents: it is given."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How much of everything; `every_s` is simulated time between rounds."""

    rounds: int
    nodes: int
    hours: float
    every_s: int


FULL: Final = Plan(rounds=10, nodes=8, hours=168, every_s=600)
SMALL: Final = Plan(rounds=3, nodes=8, hours=2, every_s=120)
SAMPLES_MS: Final = 10_000
"""From one sample to the next on the quiet site, of which no rule takes offence."""
_NEAR_MS: Final = 15_000
"""A round is judged with what came until so long before, as on a running site."""
_TELL_H: Final = 12


def run(args: argparse.Namespace, settings: Settings, simulate: Simulate) -> int:
    """Measure, clean up, print one line of JSON; 1 if a healthy site was paged."""
    gpus = args.gpus or (QUICK if args.quick else FLEET)
    plan = SMALL if args.quick else FULL
    extent = Extent(
        gpus=gpus // 32 * 32, now_s=int(time.time()) // 60 * 60, samples_s=20, gpu_minutes=10,
        seconds_days=0.1, minutes_days=3 if args.quick else 30,
    )  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="megawatch-bench-") as folder:
        found = cost(Path(folder) / "cost", extent, plan.rounds, settings.alerts.thresholds)
        found |= quiet(simulate(Path(folder) / "quiet", plan.nodes), plan)
    print(json.dumps(found))
    return 1 if found["pages"] else 0


# -- cost ---------------------------------------------------------------------------------------


def cost(
    folder: Path, extent: Extent, rounds: int, thresholds: Mapping[str, float]
) -> dict[str, object]:
    """Fill a store and ask every signal so many times; CPU seconds by signal, percent of a core."""
    store = open_store(ClickHouse(data=str(folder)))
    try:
        begun_s = time.perf_counter()
        for what in site.fill(store, extent):
            _say(what)
        # A live table has parts that are not merged yet.
        for late_s in (15, 10, 5):
            store.command(site.latest(extent, extent.now_s - late_s))
        filled_s = time.perf_counter() - begun_s
        _settle(store)
        idle = _idle_cpu_per_s()
        rules = [rule for rule in RULES if rule.signal is not None]
        took = {}
        for name, group in by_signal(rules).items():
            _say(f"asking {name}")
            took[name] = _asked(store, group, extent, rounds, thresholds, idle)
        signals = {rule.signal.name: rule.signal for rule in rules if rule.signal}
        every_s = {name: signal.calm_s or signal.every_s for name, signal in signals.items()}
        watches = [signal for signal in signals.values() if signal.watch]
        watch = {s.name: _watched(store, s, extent, rounds, idle) for s in watches}
        per_s = sum(cpu / every_s[name] for name, (cpu, _) in took.items()) + sum(
            cpu / signals[name].every_s for name, cpu in watch.items()
        )
        return {
            "gpus": extent.gpus, "filled_s": round(filled_s), "rules": len(rules),
            "cpu_s_by_signal": {name: round(cpu, 3) for name, (cpu, _) in took.items()},
            "wall_s_by_signal": {name: round(wall, 3) for name, (_, wall) in took.items()},
            "watch_cpu_s": {name: round(cpu, 3) for name, cpu in watch.items()},
            "every_s": every_s, "cpu_s_per_interval": round(per_s * INTERVAL_S, 3),
            "core_pct": round(100 * per_s, 2), "budget_pct": BUDGET_PCT,
            "idle_cpu_per_s": round(idle, 4), "rounds": rounds, "cores": os.cpu_count(),
            "load": [round(load, 1) for load in os.getloadavg()],
        }  # fmt: skip
    finally:
        store.close()


def caps_w(extent: Extent) -> dict[str, float]:
    """Caps of the whole site, its halls, racks and PDUs, none of which is reached."""
    racks = range(extent.nodes // 4)
    return {
        f"site {SITE}": extent.gpus * 1e3,
        **{f"hall h{n}": extent.gpus / site.TENANTS * 1.2e3 for n in range(site.TENANTS)},
        **{f"rack r{n}": RACK_KW * 1e3 for n in racks},
        **{f"pdu p{n}": RACK_KW * PDU_RACKS * 1e3 for n in range(len(racks) // PDU_RACKS + 1)},
    }


def _asked(
    store: Store, rules: Sequence[Rule], extent: Extent, rounds: int,
    thresholds: Mapping[str, float], idle: float,
) -> tuple[float, float]:  # fmt: skip
    """CPU and wall seconds of one question, a mean; the first one, which warms up, is not counted."""
    times = _times(extent)
    caps, clock, names = caps_w(extent), SystemClock(), evaluate.Names()
    cpu_s = wall_s = 0.0
    for number in range(rounds + 1):
        begun_s, before_s = time.perf_counter(), _cpu_s()
        asked = evaluate.ask(store, rules, thresholds, caps, times, clock, float("inf"), names)
        spent_s, gone_s = _cpu_s() - before_s, time.perf_counter() - begun_s
        if asked.errors:
            raise RuntimeError(f"a rule fails at this size: {asked.errors}")
        if number:
            cpu_s += max(0.0, spent_s - idle * gone_s)
            wall_s += gone_s
    return cpu_s / rounds, wall_s / rounds


def _watched(store: Store, signal: Signal, extent: Extent, rounds: int, idle: float) -> float:
    """CPU seconds of one look at what a signal watches, a mean."""
    times = _times(extent)
    begun_s, before_s = time.perf_counter(), _cpu_s()
    for _ in range(rounds):
        evaluate.watched(store, signal, times)
    spent_s = _cpu_s() - before_s - idle * (time.perf_counter() - begun_s)
    return max(0.0, spent_s) / rounds


def _times(extent: Extent) -> evaluate.Times:
    return evaluate.Times(extent.now_s * 1000, (extent.now_s - SETTLED_S) * 1000)


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _idle_cpu_per_s() -> float:
    begun_s, before_s = time.perf_counter(), _cpu_s()
    time.sleep(_IDLE_S)
    return (_cpu_s() - before_s) / (time.perf_counter() - begun_s)


def _settle(store: Store) -> None:
    """Wait for merges of what was filled, which are not the rules' work."""
    until_s = time.perf_counter() + _MERGES_S
    while time.perf_counter() < until_s:
        if not store.query("SELECT count() FROM system.merges").rows[0][0]:
            return
        time.sleep(1)


# -- quiet --------------------------------------------------------------------------------------


def quiet(simulated: AbstractContextManager[Site], plan: Plan) -> dict[str, object]:
    """What rules say of a healthy site over some simulated time, by rule."""
    said: dict[str, Counter[str]] = {"page": Counter(), "ticket": Counter(), "info": Counter()}
    examples: dict[str, str] = {}
    begun_s = time.perf_counter()
    with simulated as world:
        evaluator = Evaluator(world.settings, world.store.another(), RULES, world.clock)
        try:
            since_ms, every_ms = world.clock.ms, plan.every_s * 1000
            seen: set[tuple[int, int]] = set()
            while (gone_h := (world.clock.ms - since_ms) / 3_600_000) < plan.hours:
                next_ms = (world.clock.ms // every_ms + 1) * every_ms
                world.go(next_ms - _NEAR_MS, every_ms)
                world.go(next_ms, _NEAR_MS)
                if gone_h // _TELL_H < (next_ms - since_ms) / 3_600_000 // _TELL_H:
                    counts = ", ".join(f"{sum(c.values())} {name}s" for name, c in said.items())
                    _say(f"{(next_ms - since_ms) / 3_600_000:.0f} of {plan.hours:g} h: {counts}")
                evaluator.round(world.clock.ms)
                for print_, alert in evaluator.alerts.items():
                    if alert.state != "firing" or (print_, alert.fired_ms) in seen:
                        continue
                    seen.add((print_, alert.fired_ms))
                    said[alert.severity][alert.rule] += 1
                    examples.setdefault(alert.rule, alert.annotations.get("summary", ""))
            errors = sum(evaluator.totals.errors.values())
        finally:
            evaluator.close()
    return {
        "quiet_hours": plan.hours, "quiet_gpus": plan.nodes * 8, "quiet_every_s": plan.every_s,
        "quiet_took_s": round(time.perf_counter() - begun_s),
        "pages": dict(said["page"]), "tickets": dict(said["ticket"]), "infos": dict(said["info"]),
        "examples": examples, "rule_errors": errors,
    }  # fmt: skip


def _say(text: str) -> None:
    print(f"bench: {text}", file=sys.stderr, flush=True)
