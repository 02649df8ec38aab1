"""How a modelled GPU works, draws power, warms and slows: constants, and functions of arrays.

Where the constants come from: data sheets and public reports, to the order of magnitude only. An
H100 or H200 SXM has a limit of 700 W and idles near 70 W; synchronous training swings between 600
to 690 W (compute) and 300 to 400 W (communication) every few seconds; the board slows itself from
83 C, and is slowed by hardware at 87 C; its memory runs at 2,619 or 3,201 MHz; NVLink 4 carries
450 GB/s and PCIe 5 x16 about 60 GB/s each way. An air-cooled die settles within half a minute.
A node of eight spends 1.5 to 2 kW on processors and fans and loses 6 % in its power supplies; a
hall spends a quarter of its load on cooling. Nothing here has been fitted to one real site.

A slot is a group of nodes that runs one job at a time; all its GPUs are in step. Time is in
seconds since 1970 and enters as an argument; no function keeps anything between two calls.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from agents.fleet import DAY_S, SERVES, TRAINS, Job, Model

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
Positions = npt.NDArray[np.intp]
Column = npt.NDArray[np.integer]

IDLE_W: Final = 70.0
LIMIT_W: Final = 700.0
MIN_BUSY: Final = 0.05  # share of its usual activity that a busy GPU never falls below

SLOW_FROM_C: Final = 83.0  # software slows the clock above this
RECOVER_BELOW_C: Final = 80.0
SLOWDOWN_C: Final = 87.0  # hardware slows the clock from here on
SLOWDOWN_CLOCK: Final = 0.5
FLOOR_CLOCK: Final = 0.25
SLOWING_PER_S: Final = 0.05
RECOVERY_PER_S: Final = 0.02

AMBIENT_C: Final = 25.0
AMBIENT_SWING_C: Final = 1.5
RESISTANCE_C_PER_W: Final = 0.055
HOT_RESISTANCE: Final = 2.5  # cooling has failed: times the resistance
MEMORY_RESISTANCE: Final = 1.15  # memory sits behind the die: times the resistance, plus an offset
MEMORY_OFFSET_C: Final = 3.0
LAG_GPU_S: Final = 12.0
LAG_MEM_S: Final = 40.0

WANDER_PER_S: Final = 0.95  # what is left of the AR(1) noise after one second
INSTANT_NOISE: Final = 0.01

CLOCK_MAX_MHZ: Final = 1980
CLOCK_IDLE_MHZ: Final = 345
CLOCK_STEP_MHZ: Final = 15
IDLE_MEMORY_MIB: Final = 4
CAPPED_CLOCK: Final = 0.93  # what the power cap leaves of the clock

REASON_IDLE, REASON_POWER_CAP, REASON_SW_THERMAL = 0x1, 0x4, 0x20
REASON_HW_THERMAL: Final = 0x48  # hardware slowdown, because of heat

NODE_FIXED_W_PER_GPU: Final = 1500 / 8
NODE_BUSY_W_PER_GPU: Final = 500 / 8
SUPPLY_EFFICIENCY: Final = 0.94
PUE: Final = 1.25
PUE_SWING: Final = 0.02

MODELS: Final = (
    Model("NVIDIA H100 80GB HBM3", 81_559, 551, 2619, "96.00.74.00.09"),
    Model("NVIDIA H200", 143_771, 613, 3201, "96.00.A5.00.01"),
)

IDLE, COMPUTE, COMMUNICATE, SAVE, SERVE = range(5)
"""What a GPU may be doing, row by row in PROFILE. A job loads its data as it saves a checkpoint."""

# fmt: off
# Per phase: watts above idle; then in percent: utilisation of GPU and memory, multiprocessors,
# tensor cores, memory bandwidth; then in MiB/s: PCIe sent, received, NVLink sent, received.
PROFILE: Final[Doubles] = np.array((
    (  0,   0,  0,  0,  0,  0,      0,      0,       0,       0),  # idle
    (575, 100, 48, 88, 55, 50,  1_500,  1_800,  40_000,  40_000),  # compute
    (280, 100, 18, 30,  4, 18, 22_000, 22_000, 180_000, 180_000),  # communicate
    (110,  20,  6,  5,  0,  6,  9_000,    300,       0,       0),  # save
    (430, 100, 60, 70, 22, 75,    300,    600,  15_000,  15_000),  # serve, at full load
), dtype=np.float64)
# fmt: on
ACTIVITIES: Final = (
    "util_gpu_pct",
    "util_mem_pct",
    "sm_active_pct",
    "tensor_active_pct",
    "dram_active_pct",
)  # fmt: skip
"""Names of PROFILE's columns in percent."""
WATTS: Final = 0
ACTIVITY: Final = slice(1, 6)
LINKS: Final = slice(6, 10)

NOISE: Final = (0.01, 0.01, 0.2)  # of a GPU's activity, by what its slot runs: none, train, serve
MEMORY_SHARE: Final = (0.0, 0.92, 0.88)
LOAD_MEAN, LOAD_SWING = 0.5, 0.4  # of serving, over a day


@dataclass(slots=True)
class Work:
    """What each slot runs: one element per slot, see fleet.Job.

    A training job repeats steps of `step_s`, of which the first `compute_s` compute and the rest
    communicate; the first `save_s` of every `save_every_s` load or save. Serving follows the day,
    `phase` radians off. `intensity` scales the power above idle.
    """

    kind: npt.NDArray[np.uint8]
    since_s: Doubles
    step_s: Doubles
    compute_s: Doubles
    save_every_s: Doubles
    save_s: Doubles
    intensity: Doubles
    phase: Doubles


def no_work(slots: int) -> Work:
    """Slots in which nothing runs."""
    ones = [np.ones(slots) for _ in range(7)]
    return Work(np.zeros(slots, np.uint8), *ones)


def put(work: Work, slot: int, job: Job) -> None:
    """Let a job run in a slot."""
    for column, value in job._asdict().items():
        getattr(work, column)[slot] = value


@dataclass(frozen=True, slots=True)
class Load:
    """What slots ask of their GPUs during an interval, one element per slot.

    Watts are above idle, for an average board at full clock: `compute_w` while computing, which
    is `compute_share` of the interval; `other_w` the rest, averaged over the whole interval;
    `instant_w` at the interval's end. `activity` and `links` are the columns of PROFILE.
    """

    compute_share: Floats
    compute_w: Floats
    other_w: Floats
    instant_w: Floats
    noise: Floats
    activity: Floats
    links: Doubles


def wave_share(start_s: Doubles, end_s: Doubles, period_s: Doubles, high_s: Doubles) -> Doubles:
    """Exact share of [start, end) in which a square wave, high first, is high."""

    def high_until(at: Doubles) -> Doubles:
        whole, rest = np.divmod(at, period_s)
        high: Doubles = whole * high_s + np.minimum(rest, high_s)
        return high

    share: Doubles = (high_until(end_s) - high_until(start_s)) / (end_s - start_s)
    return np.clip(share, 0.0, 1.0)


def phases(work: Work, start_s: float, end_s: float) -> Doubles:
    """Share of the interval that each slot spends in each phase: slots x phases, rows sum to 1."""
    start, end = start_s - work.since_s, end_s - work.since_s
    saving = wave_share(start, end, work.save_every_s, work.save_s)
    computing = wave_share(start, end, work.step_s, work.compute_s)
    middle = (start_s + end_s) / 2
    load = LOAD_MEAN + LOAD_SWING * np.sin(2 * np.pi * middle / DAY_S + work.phase)
    trains, serves = work.kind == TRAINS, work.kind == SERVES
    share = np.zeros((len(work.kind), len(PROFILE)))
    share[:, COMPUTE] = trains * (1 - saving) * computing
    share[:, COMMUNICATE] = trains * (1 - saving) * (1 - computing)
    share[:, SAVE] = trains * saving
    share[:, SERVE] = serves * load
    share[:, IDLE] = 1 - share.sum(axis=1)
    return share


def load_of(work: Work, start_s: float, end_s: float) -> Load:
    """What the slots ask for between two times, and at the end of that interval."""
    share = phases(work, start_s, end_s)
    instant = phases(work, end_s - 1e-3, end_s)
    watts = PROFILE[:, WATTS]
    compute_w = work.intensity * watts[COMPUTE]
    average_w = work.intensity * (share @ watts)
    levels = share @ PROFILE
    return Load(
        compute_share=share[:, COMPUTE].astype(np.float32),
        compute_w=compute_w.astype(np.float32),
        other_w=(average_w - share[:, COMPUTE] * compute_w).astype(np.float32),
        instant_w=(work.intensity * (instant @ watts)).astype(np.float32),
        noise=np.array(NOISE, np.float32)[work.kind],
        activity=levels[:, ACTIVITY].T.astype(np.float32),
        links=levels[:, LINKS].T * (end_s - start_s) * 1024,
    )


@dataclass(frozen=True, slots=True)
class Boards:
    """How GPUs differ for life: watts when idle, watts per work, air at the inlet, cooling."""

    idle_w: Floats
    gain: Floats
    inlet_c: Floats
    resistance: Floats


def boards(rng: np.random.Generator, gpus: int) -> Boards:
    """A lot of boards as they come from the factory and stand in their racks."""

    def spread(mean: float, deviation: float) -> Floats:
        lot = rng.standard_normal(gpus, dtype=np.float32)
        return np.float32(mean) + np.float32(deviation) * np.clip(lot, -3, 3)

    return Boards(
        spread(IDLE_W, 2), spread(1, 0.02), spread(0, 1), spread(RESISTANCE_C_PER_W, 3e-3)
    )


@dataclass(frozen=True, slots=True)
class State:
    """What GPUs carry from one interval to the next: temperatures, clock (1 is full), noise."""

    temp_gpu_c: Floats
    temp_mem_c: Floats
    clock: Floats
    wander: Floats


def cold(gpus: int) -> State:
    """GPUs that have just been switched on."""
    ambient = np.full(gpus, AMBIENT_C, np.float32)
    return State(ambient, ambient, np.ones(gpus, np.float32), np.zeros(gpus, np.float32))


@dataclass(frozen=True, slots=True)
class Flow:
    """What GPUs did in an interval: power, activity beside that of the slot, power cap hit."""

    average_w: Floats
    instant_w: Floats
    busy: Floats
    capped: Flags


def draw(lot: Boards, state: State, load: Load, slot: Positions, noise: Floats) -> Flow:
    """Power of each GPU over an interval; `noise` is this interval's innovation."""
    busy = np.maximum(1 + load.noise[slot] * state.wander, np.float32(MIN_BUSY))
    gain = lot.gain * busy * state.clock * state.clock
    room = LIMIT_W - lot.idle_w
    share = load.compute_share[slot]
    want = load.compute_w[slot] * gain
    capped = (want > room) & (share > 0)
    above = share * np.minimum(want, room) + load.other_w[slot] * gain
    instant = load.instant_w[slot] * gain * (1 + np.float32(INSTANT_NOISE) * noise)
    average_w = lot.idle_w + np.minimum(above, room)
    return Flow(average_w, lot.idle_w + np.minimum(instant, room), busy, capped)


def wander(state: State, noise: Floats, dt_s: float) -> State:
    """The state with its AR(1) noise moved on; over a long time it is drawn anew."""
    kept = WANDER_PER_S**dt_s
    moved = np.float32(kept) * state.wander + np.float32((1 - kept * kept) ** 0.5) * noise
    return State(state.temp_gpu_c, state.temp_mem_c, state.clock, moved)


def warm(state: State, power_w: Floats, air_c: Floats, resistance: Floats, dt_s: float) -> State:
    """First-order lag towards ambient + R x P, and the slowing that keeps the board from harm."""
    rise = resistance * power_w
    gpu = lag(state.temp_gpu_c, air_c + rise, LAG_GPU_S, dt_s)
    behind = air_c + np.float32(MEMORY_RESISTANCE) * rise + np.float32(MEMORY_OFFSET_C)
    mem = lag(state.temp_mem_c, behind, LAG_MEM_S, dt_s)
    return State(gpu, mem, slow(state.clock, gpu, dt_s), state.wander)


def lag(value: Floats, target: Floats, time_constant_s: float, dt_s: float) -> Floats:
    """A value after dt of approaching a constant target exponentially."""
    return value + np.float32(-np.expm1(-dt_s / time_constant_s)) * (target - value)


def slow(clock: Floats, temp_c: Floats, dt_s: float) -> Floats:
    """The clock that a board allows itself at a temperature, as a share of the full one."""
    if temp_c.max(initial=0) <= SLOW_FROM_C and clock.min(initial=1) >= 1:
        return clock
    change = np.where(temp_c > SLOW_FROM_C, -SLOWING_PER_S, 0.0)
    change = np.where(temp_c < RECOVER_BELOW_C, RECOVERY_PER_S, change)
    ceiling = np.where(temp_c >= SLOWDOWN_C, SLOWDOWN_CLOCK, 1.0)
    return np.clip(clock + change * dt_s, FLOOR_CLOCK, ceiling).astype(np.float32)


def cut(flow: Flow, present: Flags) -> Flow:
    """The same without those whose power is off."""
    return Flow(
        flow.average_w * present, flow.instant_w * present, flow.busy, flow.capped & present
    )


def clock_mhz(working: Flags, flow: Flow, clock: Floats) -> Floats:
    """The multiprocessor clock, in the steps that boards have."""
    full = np.where(working, np.float32(CLOCK_MAX_MHZ), np.float32(CLOCK_IDLE_MHZ))
    mhz = full * clock * np.where(flow.capped, np.float32(CAPPED_CLOCK), np.float32(1))
    stepped: Floats = np.floor(mhz / np.float32(CLOCK_STEP_MHZ)) * np.float32(CLOCK_STEP_MHZ)
    return stepped


def reasons(working: Flags, flow: Flow, state: State) -> npt.NDArray[np.uint32]:
    """Why the clock is below its maximum: NVML's bits."""
    slowed, hot = state.clock < 1, state.temp_gpu_c >= SLOWDOWN_C
    bits = ~working * np.uint32(REASON_IDLE) | flow.capped * np.uint32(REASON_POWER_CAP)
    return bits | slowed * np.uint32(REASON_SW_THERMAL) | hot * np.uint32(REASON_HW_THERMAL)


def activity(load: Load, flow: Flow, slot: Positions) -> dict[str, Floats]:
    """Utilisation in percent, by name."""
    return {
        name: np.minimum(level[slot] * flow.busy, np.float32(100))
        for name, level in zip(ACTIVITIES, load.activity, strict=True)
    }


def memory_mib(kind: npt.NDArray[np.uint8], lot: Boards, total_mib: Floats) -> Floats:
    """Memory in use under a kind of job."""
    share = np.array(MEMORY_SHARE, np.float32)[kind]
    return total_mib * share * np.clip(lot.gain, 0.95, 1.04) + np.float32(IDLE_MEMORY_MIB)


def air_c(lot: Boards, at_s: float) -> Floats:
    """Air at each board's inlet: warmest in the afternoon."""
    day = AMBIENT_C + AMBIENT_SWING_C * np.sin(2 * np.pi * (at_s / DAY_S - 0.4))
    return lot.inlet_c + np.float32(day)


def whole(values: Floats | Doubles) -> npt.NDArray[np.uint32]:
    """Rounded to 32 bits, of which a very long interval keeps the lowest."""
    return np.rint(values).astype(np.int64).astype("<u4")


def blank(values: Column, at: Positions, null: int) -> Column:
    """A copy with nothing known at some positions."""
    out = values.copy()
    out[at] = null
    return out


def node_ac_w(gpus_w: Doubles, gpus: int) -> Doubles:
    """Power at the plug of nodes of so many GPUs, from the sum over each node's GPUs."""
    busy = gpus_w / (gpus * LIMIT_W)
    around = gpus * (NODE_FIXED_W_PER_GPU + NODE_BUSY_W_PER_GPU * busy)
    plug: Doubles = (gpus_w + around) / SUPPLY_EFFICIENCY
    return plug


def pue(at_s: float) -> float:
    """Power of a hall over that of its nodes: worst on a warm afternoon."""
    day = np.sin(2 * np.pi * (at_s / DAY_S - 0.4))
    return float(PUE + PUE_SWING * day + PUE_SWING / 4 * np.sin(2 * np.pi * at_s / 1700))
