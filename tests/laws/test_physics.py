"""What the simulator's model obeys, whatever the numbers."""

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents import physics
from agents.fleet import NO_JOB, SERVES, TRAINS, Job, draw_job

DAY_START_S = 1_790_000_000.0
seconds = st.floats(0, 1e6)
periods = st.floats(0.1, 1000)


def slots(*jobs: Job) -> physics.Work:
    work = physics.no_work(len(jobs))
    for number, job in enumerate(jobs):
        physics.put(work, number, job)
    return work


def job(kind: int, seed: int = 1) -> Job:
    return draw_job(kind, DAY_START_S - 500, random.Random(seed))


def floats(*values: float) -> physics.Floats:
    return np.array(values, np.float32)


def lot(gpus: int) -> physics.Boards:
    return physics.boards(np.random.default_rng(7), gpus)


def wave(start_s: float, end_s: float, period_s: float, high: float) -> float:
    arrays = [np.array([v]) for v in (start_s, end_s, period_s, period_s * high)]
    return float(physics.wave_share(*arrays)[0])


@given(seconds, st.floats(0.1, 100), st.floats(0.1, 100), periods, st.floats(0, 1))
def test_shares_of_a_wave_add_up(
    start_s: float, first_s: float, second_s: float, period_s: float, high: float
) -> None:
    """The time spent high in two adjoining intervals is that of both together: an integral."""
    middle_s, end_s = start_s + first_s, start_s + first_s + second_s
    parts = wave(start_s, middle_s, period_s, high) * first_s
    parts += wave(middle_s, end_s, period_s, high) * second_s
    assert parts == pytest.approx(
        wave(start_s, end_s, period_s, high) * (end_s - start_s), abs=1e-5
    )


@given(seconds, periods, st.floats(0, 1))
def test_a_whole_period_has_its_duty(start_s: float, period_s: float, high: float) -> None:
    """Over a whole period the share is the duty, wherever it begins."""
    assert wave(start_s, start_s + period_s, period_s, high) == pytest.approx(high, abs=1e-4)


def test_a_wave_is_high_first() -> None:
    """The wave begins high; the share of a second that it ends in is exact."""
    assert wave(0.0, 1.0, 4.0, 0.5) == 1
    assert wave(1.5, 2.5, 4.0, 0.5) == pytest.approx(0.5)
    assert wave(2.0, 4.0, 4.0, 0.5) == 0


@given(st.integers(0, 1000), st.sampled_from([NO_JOB, TRAINS, SERVES]), seconds, periods)
def test_phases_are_a_partition_of_time(
    seed: int, kind: int, start_s: float, length_s: float
) -> None:
    """A slot is in exactly one phase at a time: shares are within 0 to 1 and sum to 1."""
    start_s += DAY_START_S
    shares = physics.phases(slots(job(kind, seed)), start_s, start_s + length_s)
    assert shares.sum(axis=1) == pytest.approx(1)
    assert shares.min() >= -1e-9
    assert shares.max() <= 1 + 1e-9


def test_a_job_loads_before_it_computes() -> None:
    """The first seconds of a job go into loading, then it computes and communicates."""
    began = job(TRAINS)._replace(since_s=DAY_START_S, save_s=10, save_every_s=300)
    work = slots(began)
    assert physics.phases(work, DAY_START_S, DAY_START_S + 10)[0, physics.SAVE] == 1
    later = physics.phases(work, DAY_START_S + 10, DAY_START_S + 300)[0]
    assert later[physics.SAVE] == 0
    assert later[physics.COMPUTE] > later[physics.COMMUNICATE] > 0


def test_serving_follows_the_day() -> None:
    """Serving draws more at its best hour than at its worst, with a day between two of a kind."""
    hours = np.arange(24) * 3600.0
    work = slots(job(SERVES))
    watts = [physics.load_of(work, DAY_START_S + h, DAY_START_S + h + 1).other_w[0] for h in hours]
    assert max(watts) > 4 * min(watts)
    again = physics.load_of(work, DAY_START_S + 86_400, DAY_START_S + 86_401).other_w[0]
    assert again == pytest.approx(watts[0], rel=1e-3)


@given(
    st.floats(20, 90),
    st.floats(20, 90),
    st.floats(0.1, 100),
    st.floats(0.1, 50),
    st.floats(0.1, 50),
)
def test_lag_is_a_flow(
    value: float, target: float, constant_s: float, first_s: float, second_s: float
) -> None:
    """Waiting twice is waiting the sum, and the value never overshoots its target."""

    def after(start: physics.Floats, dt_s: float) -> physics.Floats:
        return physics.lag(start, floats(target), constant_s, dt_s)

    start = floats(value)
    twice, once = after(after(start, first_s), second_s), after(start, first_s + second_s)
    assert twice == pytest.approx(once, abs=1e-2)
    assert min(value, target) - 1e-3 <= once[0] <= max(value, target) + 1e-3


def test_temperature_settles_at_ambient_plus_resistance_times_power() -> None:
    """After many time constants the die is at ambient + R x P; after one it is 63 % there."""
    air, resistance, power = floats(25), floats(0.05), floats(600)
    state = physics.cold(1)
    for _ in range(12):
        state = physics.warm(state, power, air, resistance, 1.0)
    assert state.temp_gpu_c[0] == pytest.approx(25 + 30 * (1 - np.exp(-1)), abs=0.01)
    assert state.temp_mem_c[0] < state.temp_gpu_c[0]  # memory lags more
    settled = physics.warm(state, power, air, resistance, 1e6)
    assert settled.temp_gpu_c[0] == pytest.approx(55)
    assert settled.temp_mem_c[0] > 55


def test_clocks_fall_when_hot_and_come_back_when_cool() -> None:
    """Above the limit a board slows, at the slowdown temperature at once; cool, it recovers."""
    full = floats(1)
    assert physics.slow(full, floats(82), 1.0)[0] == 1
    assert physics.slow(full, floats(84), 1.0)[0] == pytest.approx(0.95)
    assert physics.slow(full, floats(90), 1.0)[0] == physics.SLOWDOWN_CLOCK
    assert physics.slow(full, floats(84), 1e6)[0] == physics.FLOOR_CLOCK
    assert physics.slow(floats(0.5), floats(81), 1.0)[0] == pytest.approx(0.5)
    assert physics.slow(floats(0.5), floats(70), 1.0)[0] == pytest.approx(0.52)
    assert physics.slow(floats(0.5), floats(70), 1e6)[0] == 1


@given(st.integers(0, 200), st.sampled_from([NO_JOB, TRAINS, SERVES]), seconds)
def test_power_stays_between_idle_and_limit(seed: int, kind: int, at_s: float) -> None:
    """No board draws less than it does when idle, or more than its limit, however it wanders."""
    boards, rng = lot(64), np.random.default_rng(seed)
    noise = rng.standard_normal(64, dtype=np.float32) * np.float32(3)
    state = physics.wander(physics.cold(64), noise, 1e6)
    load = physics.load_of(slots(job(kind, seed)), DAY_START_S + at_s, DAY_START_S + at_s + 1)
    flow = physics.draw(boards, state, load, np.zeros(64, np.intp), noise)
    for watts in (flow.average_w, flow.instant_w):
        assert (watts >= boards.idle_w - 1e-3).all()
        assert (watts <= physics.LIMIT_W + 1e-3).all()


def test_the_cap_binds_only_while_computing() -> None:
    """A job that wants more than the limit gets the limit, is told so, and clocks drop."""
    greedy = job(TRAINS)._replace(intensity=1.5, step_s=10.0, compute_s=5.0, since_s=DAY_START_S - 60,
                                  save_s=10, save_every_s=300)  # fmt: skip
    boards, slot, noise = lot(8), np.zeros(8, np.intp), np.zeros(8, np.float32)

    def at(start_s: float) -> physics.Flow:
        load = physics.load_of(slots(greedy), DAY_START_S + start_s, DAY_START_S + start_s + 1)
        return physics.draw(boards, physics.cold(8), load, slot, noise)

    computing, communicating = at(1), at(7)
    assert computing.capped.all()
    assert computing.average_w == pytest.approx(physics.LIMIT_W)
    assert not communicating.capped.any()
    assert communicating.average_w.max() < physics.LIMIT_W
    half = at(4.5)
    mean_w = (computing.average_w + communicating.average_w) / 2
    assert half.average_w == pytest.approx(mean_w, rel=1e-3)
    working, clock = np.ones(8, np.bool_), np.ones(8, np.float32)
    slower = physics.clock_mhz(working, computing, clock)
    assert (slower < physics.clock_mhz(working, communicating, clock)).all()
    assert (slower % physics.CLOCK_STEP_MHZ == 0).all()


def test_noise_keeps_its_spread() -> None:
    """AR(1) noise has unit variance in the long run and remembers the second before."""
    rng = np.random.default_rng(3)
    state = physics.cold(20_000)
    for _ in range(200):
        before = state.wander
        state = physics.wander(state, rng.standard_normal(20_000, dtype=np.float32), 1.0)
    assert state.wander.std() == pytest.approx(1, abs=0.03)
    assert np.corrcoef(before, state.wander)[0, 1] == pytest.approx(physics.WANDER_PER_S, abs=0.01)


@given(st.floats(0, 5600))
def test_a_plug_draws_more_than_its_gpus(gpus_w: float) -> None:
    """A node of eight takes 1.5 to 2 kW for itself, and its supplies lose some."""
    plug_w = float(physics.node_ac_w(np.array([gpus_w]), 8)[0])
    itself_w = plug_w * physics.SUPPLY_EFFICIENCY - gpus_w
    assert 1499 < itself_w < 2001
    assert plug_w > gpus_w


@given(st.floats(0, 1e9))
def test_cooling_takes_about_a_quarter(at_s: float) -> None:
    """Power usage effectiveness moves slowly around 1.25."""
    assert 1.2 < physics.pue(at_s) < 1.3
    assert abs(physics.pue(at_s + 1) - physics.pue(at_s)) < 1e-3
