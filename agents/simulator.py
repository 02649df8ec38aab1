"""A seeded site of any size behind the Source protocol: for demos, tests and machines with no GPU.

The world begins at `start_ms`. What happens is a function of the seed and of time: jobs follow
their own clocks (fleet.py), noise is drawn from (seed, tick). Every period is stepped through, also
those that nobody read, so up to MAX_STEPS missed ticks leave no trace but the wider row that the
contract asks for. A longer gap is one long step under the jobs of its beginning: temperatures and
counters stay plausible, but differ from those of an unbroken run. The model is in physics.py.

Faults are data (faults.py), and arrays while they are in force (struck.py).

Null by design, as on the real boards: module power (no Grace), fan (SXM), retired pages (Hopper
remaps rows). A GPU that is gone has dt_ms = 0 and null everywhere, and comes back with counters
that began again, thus with one row of null deltas. A frozen GPU repeats its values, and its energy
counter stands still; the meters go on.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Final

import numpy as np

from agents import fleet, physics, struck
from agents.faults import Fault, draw_faults
from agents.fleet import place
from agents.physics import Column
from agents.source import Reading
from pipeline.catalog import FAST, FAST_BY_NAME, SLOW
from pipeline.clock import SystemClock
from pipeline.errors import Refuse, Unavailable
from pipeline.records import (
    ENERGY_COUNTER,
    ENERGY_NONE,
    Event,
    Inventory,
    MeterKind,
    MeterReading,
    Record,
    id64,
)
from pipeline.wire import LAYOUT, ROW

Columns = dict[str, Column]

MAX_STEPS: Final = 30
SETTLING_MS: Final = 3_600_000
MAX_RECORDS: Final = 1_000_000  # waiting for records(); the oldest go first, counted
MAX_FAULTS: Final = 10_000
NODE_METERS_PER_S: Final = 200  # huge sites read their node meters less often, in turn
NODE_METER_S, HALL_METER_S = 10, 5
H200_SHARE: Final = 0.25

NULL_SLOW: Final = ("fan_pct", "retired_pages_sbe", "retired_pages_dbe", "retired_pages_pending")
CONSTANT: Final = {
    "flags": 0, "pstate": 0, "throttle_sync_boost_ms": 0,
    "module_power_w": FAST_BY_NAME["module_power_w"].null_code,
}  # fmt: skip
DELTAS: Final = tuple(m.name for m in FAST if m.kind == "delta")
LINKS: Final = ("pcie_tx_mib", "pcie_rx_mib", "nvlink_tx_mib", "nvlink_rx_mib")
NULLS: Final = {c.name: 0 for c in ROW} | {m.name: m.null_code for m in (*FAST, *SLOW)}
"""What stands in a row that does not exist."""


def _stored(name: str, values: physics.Floats | physics.Doubles) -> Column:
    """A gauge in its unit as the integers of the catalogue."""
    metric = FAST_BY_NAME[name]
    stored: Column = np.rint(values * metric.scale).astype(f"<{metric.storage}")
    return stored


class SimulatorSource:
    """A site of `nodes` nodes behind agents.source.Source.

    The same seed, `start_ms` (UTC, by default the machine's clock) and ticks give the same readings
    and records; `random_faults` lets faults.RANDOM_FAULTS happen. Raises Refuse on a number that
    makes no site.
    """

    name = fleet.SOURCE
    generation = 1  # what is expected does not change when it fails

    def __init__(
        self,
        nodes: int,
        *,
        site: str = "sim",
        seed: int = 1,
        period_ms: int = 1000,
        gpus_per_node: int = 8,
        random_faults: bool = True,
        start_ms: int | None = None,
    ) -> None:
        if min(nodes, period_ms, gpus_per_node) < 1 or seed < 0:
            raise Refuse(
                f"simulator: nodes={nodes} gpus_per_node={gpus_per_node} period_ms={period_ms} "
                f"seed={seed}: the seed is at least 0, the others at least 1"
            )
        begins_ms = SystemClock().now_ms() if start_ms is None else start_ms
        self._site, self._nodes, self._seed = site, nodes, seed
        self._per_node, self._gpus = gpus_per_node, nodes * gpus_per_node
        self._period_ms, self._start_ms = period_ms, begins_ms // 1000 * 1000
        self._random_faults = random_faults
        self._last_ms: int | None = None
        self._closed = False
        self._records: deque[Record] = deque(maxlen=MAX_RECORDS)
        self.records_dropped = 0
        self._due: list[Fault] = []
        self._active: dict[Fault, tuple[int, int | None]] = {}  # since, until; None: until cleared
        self._schedule = fleet.Schedule(site, nodes, seed, self._start_ms)
        slots = self._schedule.slots
        # Two more slots: nobody's, and that of work which no allocation names.
        self._nobody, self._stray = len(slots), len(slots) + 1
        self._work = physics.no_work(len(slots) + 2)
        physics.put(self._work, self._stray, fleet.stray_job(seed, self._start_ms))
        self._slot = self._home = np.full(self._gpus, self._nobody, np.intp)
        for number, slot in enumerate(slots):
            first = slot.first * gpus_per_node
            self._home[first : first + slot.nodes * gpus_per_node] = number
        self._hall = np.array([fleet.hall_of(node, nodes) for node in range(nodes)])
        # One epoch for the whole site: counters of a node that restart show as null deltas.
        self.boot_epoch = self.driver_epoch = id64(site, f"{seed}/{self._start_ms}") & 0xFFFFFFFF
        self._build(np.random.default_rng((seed, 4)))
        self._say(self._schedule.advance(self._start_ms))
        self._reassign(self._start_ms)

    def _build(self, rng: np.random.Generator) -> None:
        gpus = self._gpus
        self._newer = np.repeat(rng.random(self._nodes) < H200_SHARE, self._per_node).astype(int)
        self._boards = physics.boards(rng, gpus)
        self._state = physics.cold(gpus)
        self._energy_mj = rng.integers(0, 10**12, gpus)
        self._deltas: dict[str, Column] = {}
        self._health = {m.name: np.zeros(gpus, f"<{m.storage}") for m in SLOW}
        for m in SLOW:
            if m.name in NULL_SLOW:
                self._health[m.name][:] = m.null_code
            elif m.name.startswith("power_limit"):
                self._health[m.name][:] = round(physics.LIMIT_W * m.scale)
        self._health["mem_total_mib"] = self._model("memory_mib", "<u4")
        self._health["mem_reserved_mib"] = self._model("reserved_mib", "<u4")
        self._clock_mem = self._model("clock_mem_mhz", "<u2")
        self._health["ecc_corrected_aggregate"][:] = rng.poisson(0.2, gpus)
        self._health["pcie_replays"][:] = rng.poisson(0.1, gpus)
        storage = {c.name: f"<{c.storage}" for c in LAYOUT.fast}
        self._constant = {n: np.full(gpus, v, storage[n]) for n, v in CONSTANT.items()}
        self._no_ms = np.zeros(gpus, "<u4")
        self._fresh = np.zeros(gpus, np.bool_)  # counters began again since the last row
        self._effects = struck.effects((), gpus)
        self._was_away = self._effects.away
        self._seen = np.zeros(gpus, np.bool_)
        self._held: dict[int, dict[str, int]] = {}  # what frozen GPUs keep saying
        self._stuck: dict[str, float] = {}  # what stuck meters keep saying, in watts
        self._redraw()

    def _model(self, what: str, storage: str) -> Column:
        column: Column = np.array([getattr(m, what) for m in physics.MODELS], storage)[self._newer]
        return column

    def inventory(self) -> tuple[Inventory, ...]:
        """Every node and GPU of the site, also while they are away."""
        models, per = [physics.MODELS[newer] for newer in self._newer.tolist()], self._per_node
        return tuple(
            fleet.describe(self._site, self._seed, n, self._nodes, self._start_ms,
                           models[n * per : (n + 1) * per])
            for n in range(self._nodes)
        )  # fmt: skip

    def inject(self, fault: Fault) -> None:
        """Let a fault happen at its time, now at the earliest. Raises Refuse if it cannot be."""
        fault.check(self._gpus)
        if len(self._due) + len(self._active) >= MAX_FAULTS:
            raise Refuse(f"simulator: more than {MAX_FAULTS} faults, clear some first")
        self._due.append(fault)

    def clear(self, fault: Fault) -> None:
        """End a fault at the next tick, if it is in force."""
        if fault in self._active:
            self._active[fault] = (self._active[fault][0], 0)

    def close(self) -> None:
        """Stop: reading is then an error."""
        self._closed = True

    def records(self) -> list[Record]:
        """What happened since the last call; the first also names every tenant and job."""
        out = list(self._records)
        self._records.clear()
        return out

    def _say(self, records: Sequence[Record]) -> None:
        self.records_dropped += max(0, len(self._records) + len(records) - MAX_RECORDS)
        self._records.extend(records)

    def read(self, tick_ms: int) -> Reading:
        """Values at a tick; see the module for ticks that were missed."""
        if self._closed:
            raise Unavailable("the simulator is closed")
        last_ms, period_ms = self._last_ms, self._period_ms
        if last_ms is None:
            self._move(tick_ms - period_ms - SETTLING_MS, tick_ms - period_ms)
        new = last_ms is None or tick_ms <= last_ms
        periods = 1 if last_ms is None or new else max(1, (tick_ms - last_ms) // period_ms)
        starts = [tick_ms - n * period_ms for n in range(min(periods, MAX_STEPS + 1), 0, -1)]
        if periods > MAX_STEPS:
            starts = [tick_ms - periods * period_ms, tick_ms - period_ms]
        self._deltas = {}
        for start_ms, end_ms in pairwise([*starts, tick_ms]):
            self._happen(start_ms, end_ms)
            self._move(start_ms, end_ms)
        self._last_ms = tick_ms
        if tick_ms % 1000 == 0:
            self._say(self._meters(tick_ms))
        return self._reading(min(periods, 2) * period_ms, known=not new and periods <= 2)

    def _happen(self, start_ms: int, end_ms: int) -> None:
        over = [f for f, (_, end) in self._active.items() if end is not None and end <= start_ms]
        for fault in over:
            del self._active[fault]
        due = [f for f in self._due if self._start_ms + f.after_s * 1000 <= end_ms]
        self._due = [f for f in self._due if f not in due]
        if self._random_faults:
            step, dt_s = end_ms // self._period_ms, (end_ms - start_ms) / 1000
            due += draw_faults(self._seed, step, self._gpus, dt_s)
        for fault in due:
            self._strike(fault, start_ms)
        if over or due:
            self._redraw()
        self._say(self._schedule.advance(start_ms))
        if over or due or self._schedule.changed or self._effects.varies:
            self._reassign(start_ms)

    def _struck(self, fault: Fault, since_ms: int) -> struck.Struck:
        node, per_node = fault.gpu // self._per_node, self._per_node
        nodes = self._schedule.around(fault.does.scope, node)
        gpus = slice(nodes.start * per_node, nodes.stop * per_node)
        if fault.does.scope == "gpu":
            gpus = slice(fault.gpu, fault.gpu + 1)
        meter = self._site if fault.does.scope == "site" else place(node, self._nodes).hall
        return struck.Struck(fault, since_ms, gpus, meter)

    def _strike(self, fault: Fault, now_ms: int) -> None:
        gpus, kind = self._struck(fault, now_ms).gpus, fault.does
        if not kind.is_moment:
            until_ms = None if fault.for_s is None else now_ms + round(fault.for_s * 1000)
            self._active[fault] = (now_ms, until_ms)
        if fault.kind == "energy_reset":
            self._energy_mj[gpus] = 0
            self._fresh[gpus] = True
        for counter in kind.once:
            self._health[counter][gpus] += 1
        if self._effects.away[fault.gpu]:
            return  # nobody is there to tell
        node = place(fault.gpu // self._per_node, self._nodes).node
        gpu = fleet.gpu_uuid(self._site, self._seed, fault.gpu) if kind.scope == "gpu" else ""
        self._say([
            Event(site=self._site, node=node, ts_ms=now_ms, kind=told, uuid=gpu, code=code)
            for told, code in fault.told()
        ])  # fmt: skip

    def _redraw(self) -> None:
        """What follows from the faults in force."""
        was_away = self._effects.away
        self._effects = struck.effects(
            (self._struck(fault, since_ms) for fault, (since_ms, _) in self._active.items()),
            self._gpus,
        )
        back = was_away & ~self._effects.away
        self._energy_mj[back] = 0
        for counter in fleet.VOLATILE:
            self._health[counter][back] = 0
        self._fresh |= back
        self._resistance = self._boards.resistance * self._effects.resistance
        self._health |= self._effects.states
        self._slow: Columns = {}

    def _reassign(self, now_ms: int) -> None:
        """What follows from jobs that have ended or begun, and from who stands idle."""
        for number in self._schedule.changed:
            physics.put(self._work, number, self._schedule.jobs[number])
        self._schedule.changed.clear()
        self._slot = self._effects.slots(self._home, self._nobody, self._stray, now_ms)
        kind = self._work.kind[self._slot]
        self._working = kind != fleet.NO_JOB
        total = self._health["mem_total_mib"]
        self._mem_used = _stored("mem_used_mib", physics.memory_mib(kind, self._boards, total))

    def _move(self, start_ms: int, end_ms: int) -> None:
        """One interval of physics, and what it adds to the counters."""
        dt_ms, end_s = end_ms - start_ms, end_ms / 1000
        rng = np.random.Generator(np.random.SFC64((self._seed, 6, end_ms // self._period_ms)))
        noise = rng.standard_normal(self._gpus, dtype=np.float32)
        state = physics.wander(self._state, noise, dt_ms / 1000)
        load = physics.load_of(self._work, start_ms / 1000, end_s)
        ceiling = self._effects.clock
        runs = state if ceiling is None else replace(state, clock=np.minimum(state.clock, ceiling))
        flow = physics.draw(self._boards, runs, load, self._slot, noise)
        if self._effects.away.any():
            flow = physics.cut(flow, ~self._effects.away)
        air = physics.air_c(self._boards, end_s)
        self._state = physics.warm(state, flow.average_w, air, self._resistance, dt_ms / 1000)
        self._load, self._flow = load, flow
        self._average_mj = np.rint(flow.average_w * np.float32(dt_ms))
        self._count(dt_ms)

    def _count(self, dt_ms: int) -> None:
        slot, state = self._slot, self._state
        mj = self._average_mj.astype(np.int64)
        self._effects.counted(mj)
        self._energy_mj += mj
        slowed_ms = np.uint32(dt_ms & 0xFFFFFFFF)
        links = zip(LINKS, self._load.links, strict=True)
        added: Columns = {
            "energy_j": mj.astype("<u4"),
            "throttle_power_cap_ms": physics.whole(self._load.compute_share * dt_ms)[slot]
            * self._flow.capped,
            "throttle_sw_thermal_ms": (state.clock < 1) * slowed_ms,
            "throttle_hw_thermal_ms": (state.temp_gpu_c >= physics.SLOWDOWN_C) * slowed_ms,
            "throttle_power_brake_ms": self._no_ms,
            **{name: physics.whole(kib / 1024)[slot] for name, kib in links},
        }
        self._effects.slowed(added, dt_ms)
        for values in added.values():
            values[self._effects.frozen] = 0
        before = self._deltas
        self._deltas = {n: v + before[n] for n, v in added.items()} if before else added
        if self._effects.grow(self._health, dt_ms):
            self._slow = {}

    def _gauges(self) -> Columns:
        flow, state, ceiling = self._flow, self._state, self._effects.clock
        clock = state.clock if ceiling is None else np.minimum(state.clock, ceiling)
        temp = _stored("temp_gpu_c", state.temp_gpu_c)
        measured = {
            "power_w": self._average_mj.astype(np.float64) / self._period_ms,
            "power_instant_w": flow.instant_w,
            "temp_mem_c": state.temp_mem_c,
            "clock_sm_mhz": physics.clock_mhz(self._working, flow, clock),
            **physics.activity(self._load, flow, self._slot),
        }
        gauges: Columns = {
            **{name: _stored(name, values) for name, values in measured.items()},
            "temp_gpu_c": temp,
            "temp_margin_c": np.int16(physics.SLOWDOWN_C) - temp,
            "mem_used_mib": self._mem_used,
            "clock_mem_mhz": self._clock_mem,
            "throttle_reasons": physics.reasons(self._working, flow, state),
        }
        return self._effects.shown(gauges)

    def _reading(self, dt_ms: int, *, known: bool) -> Reading:
        unknown = self._fresh if known else np.ones(self._gpus, np.bool_)
        back_ms = 2 * self._period_ms if known else dt_ms
        dt = np.where(self._was_away & self._seen, back_ms, dt_ms).astype("<u4")
        fast: Columns = {
            "dt_ms": dt,
            "energy_kind": np.where(unknown, ENERGY_NONE, ENERGY_COUNTER).astype("<u1"),
            **self._effects.frozen_in(self._gauges(), self._held),
            **self._deltas,
            **self._constant,
        }
        away = self._effects.away
        gone = np.flatnonzero(away)
        if unknown.any():
            fast |= {n: np.where(unknown, NULLS[n], fast[n]).astype("<u4") for n in DELTAS}
        if gone.size:
            fast = {name: physics.blank(values, gone, NULLS[name]) for name, values in fast.items()}
        # Emitted arrays never change afterwards: whoever reads may keep them.
        if not self._slow:
            self._slow = {n: physics.blank(v, gone, NULLS[n]) for n, v in self._health.items()}
        energy = physics.blank(self._energy_mj.astype("<u8"), gone, NULLS["energy_counter_j"])
        slow = self._slow | {"energy_counter_j": energy}
        self._fresh, self._was_away = away.copy(), away
        self._seen |= ~away
        return Reading(
            tuple(fast[c.name] for c in LAYOUT.fast), tuple(slow[c.name] for c in LAYOUT.slow)
        )

    def _meters(self, tick_ms: int) -> list[MeterReading]:
        second, nodes = tick_ms // 1000, self._nodes
        gpus_w = self._flow.average_w.reshape(nodes, -1).sum(axis=1, dtype=np.float64)
        off = self._effects.off[:: self._per_node]
        plug_w = physics.node_ac_w(gpus_w, self._per_node) * ~off
        halls_w = np.bincount(self._hall, plug_w) * physics.pue(second)
        out = [self._meter(self._site, "site", tick_ms, halls_w.sum())]
        if second % HALL_METER_S == 0:
            firsts = np.unique(self._hall, return_index=True)[1].tolist()
            names = [place(node, nodes).hall for node in firsts]
            out += [self._meter(n, "hall", tick_ms, w) for n, w in zip(names, halls_w, strict=True)]
        # Without power a node's meter is silent too.
        every_s = max(NODE_METER_S, -(-nodes // NODE_METERS_PER_S))
        turn = np.arange(nodes) % every_s if every_s > NODE_METER_S else np.zeros(nodes)
        due = np.flatnonzero((turn == second % every_s) & ~off).tolist()
        out += [self._meter(place(n, nodes).node, "node", tick_ms, plug_w[n]) for n in due]
        return self._effects.read(out, self._stuck)

    def _meter(self, name: str, kind: MeterKind, tick_ms: int, watts: float) -> MeterReading:
        watts = round(float(watts), 1)
        return MeterReading(site=self._site, meter=name, kind=kind, ts_ms=tick_ms, watts=watts)
