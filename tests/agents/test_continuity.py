"""Deltas and dt_ms: conserved over continuous stretches, unknown across every break."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.continuity import Continuity, Power, Step, Trace, advance, flags, row_ms, trapezoid
from pipeline.records import FLAG_ABSURD_ENERGY, FLAG_ABSURD_POWER, FLAG_NEGATIVE_POWER

PERIOD_MS = 1000
UNITS = (1, 1_000_000, 1024)

Seen = tuple[int, int, int | None]
"""Tick, epoch, counter."""

increments = st.lists(st.integers(0, 1 << 40), min_size=1, max_size=50)
gaps = st.sampled_from((PERIOD_MS, 2 * PERIOD_MS))


def run(rows: list[Seen], unit: int = 1, period_ms: int = PERIOD_MS) -> list[Step]:
    """Steps of one GPU through rows of (tick, epoch, raw)."""
    trace: Trace | None = None
    steps = []
    for tick_ms, epoch, raw in rows:
        trace, step = advance(trace, tick_ms, epoch, [raw], (unit,), period_ms)
        steps.append(step)
    return steps


@given(st.integers(0, 1 << 62), increments, st.sampled_from(UNITS), st.data())
def test_deltas_of_a_continuous_stretch_add_up_to_last_minus_first(
    start: int, adds: list[int], unit: int, data: st.DataObject
) -> None:
    tick_ms, value = 0, start
    rows: list[Seen] = [(tick_ms, 1, value)]
    for add in adds:
        tick_ms += data.draw(gaps)
        value += add
        rows.append((tick_ms, 1, value))
    first, *rest = (step.deltas[0] for step in run(rows, unit))
    assert first is None
    assert None not in rest
    known = [delta for delta in rest if delta is not None]
    assert sum(known) == value // unit - start // unit
    assert min(known) >= 0


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 1), st.none() | st.integers(0, 99))))
def test_whatever_comes_no_delta_is_negative_and_no_row_longer_than_two_periods(
    rows: list[Seen],
) -> None:
    at_ms = 0
    seen: list[Seen] = []
    for gap, epoch, value in rows:
        at_ms += gap * 500 - 500
        seen.append((at_ms, epoch, value))
    for step in run(seen):
        assert step.deltas[0] is None or step.deltas[0] >= 0
        assert 0 < step.dt_ms <= 2 * PERIOD_MS


@given(st.lists(st.none() | st.integers(0, 10**9), min_size=2, max_size=40))
def test_a_counter_that_is_silent_for_one_tick_loses_nothing(values: list[int | None]) -> None:
    values = list(values)
    for at in range(1, len(values)):  # never silent twice in a row
        if values[at] is None and values[at - 1] is None:
            values[at] = 0
    total = 0
    known: list[Seen] = []
    for at, value in enumerate(values):
        total += value or 0
        known.append((at * PERIOD_MS, 1, None if value is None else total))
    heard = [raw for _, _, raw in known if raw is not None]
    deltas = [step.deltas[0] for step in run(known)]
    assert sum(delta or 0 for delta in deltas) == (heard[-1] - heard[0] if heard else 0)


def test_a_gap_of_two_periods_is_bridged_and_a_longer_one_is_not() -> None:
    rows: list[Seen] = [(0, 1, 10), (2000, 1, 30), (4001, 1, 70), (5001, 1, 75)]
    assert [step.deltas[0] for step in run(rows)] == [None, 20, None, 5]


def test_a_decrease_is_a_reset_never_a_wrap() -> None:
    rows: list[Seen] = [(0, 1, 2**32 - 1), (1000, 1, 5), (2000, 1, 9)]
    assert [step.deltas[0] for step in run(rows)] == [None, None, 4]


def test_another_epoch_breaks_a_growing_counter() -> None:
    rows: list[Seen] = [(0, 1, 10), (1000, 2, 20), (2000, 2, 21)]
    assert [step.deltas[0] for step in run(rows)] == [None, None, 1]


def test_nanoseconds_become_milliseconds_without_losing_the_rest() -> None:
    rows: list[Seen] = [(at * 1000, 1, at * 1_500_000) for at in range(5)]
    assert [step.deltas[0] for step in run(rows, 1_000_000)] == [None, 1, 2, 1, 2]


@pytest.mark.parametrize(
    ("before_ms", "tick_ms", "dt_ms"),
    [
        (None, 5000, 1000), (4000, 5000, 1000), (3500, 5000, 1500), (3000, 5000, 2000),
        (1000, 5000, 2000), (5000, 5000, 1000), (9000, 5000, 1000),
    ],
)  # fmt: skip
def test_a_row_stands_for_the_distance_to_the_previous_one_capped_at_two_periods(
    before_ms: int | None, tick_ms: int, dt_ms: int
) -> None:
    assert row_ms(before_ms, tick_ms, PERIOD_MS) == dt_ms


def test_a_clock_that_steps_back_breaks_the_counters() -> None:
    rows: list[Seen] = [(9000, 1, 10), (3000, 1, 20), (4000, 1, 25)]
    assert [step.deltas[0] for step in run(rows)] == [None, None, 5]


def test_gpus_are_kept_apart_and_a_restart_breaks_all_but_keeps_their_time() -> None:
    gpus = Continuity((1,), PERIOD_MS)
    gpus.step("a", 0, 1, [10])
    gpus.step("b", 0, 1, [500])
    assert gpus.step("a", 1000, 1, [11]).deltas == (1,)
    assert gpus.step("b", 1000, 1, [507]).deltas == (7,)
    gpus.break_off()
    step = gpus.step("a", 3000, 1, [20])
    assert (step.dt_ms, step.deltas) == (2000, (None,))
    gpus.keep_only(["b"])
    assert gpus.step("a", 9000, 1, [21]).dt_ms == PERIOD_MS


def test_a_trace_is_a_value() -> None:
    trace = Trace(0, 1, ((0, 5),))
    after, _ = advance(trace, 1000, 1, [6], (1,), PERIOD_MS)
    assert trace == Trace(0, 1, ((0, 5),))
    assert after == Trace(1000, 1, ((1000, 6),))


@given(st.lists(st.integers(0, 100_000), min_size=2, max_size=50))
def test_trapezoids_add_up_to_the_whole_area_less_a_millijoule(powers: list[int]) -> None:
    before: Power | None = None
    total = 0
    for at, power in enumerate(powers):
        before, energy = trapezoid(before, at * 1000, power, PERIOD_MS)
        total += energy or 0
    twentieths = sum((a + b) * 1000 for a, b in itertools.pairwise(powers))
    assert total == twentieths // 20


def test_a_trapezoid_never_spans_a_gap() -> None:
    start = Power(0, 3000)
    assert trapezoid(start, 2000, 3000, PERIOD_MS)[1] == 600_000  # 300 W for 2 s, in mJ
    assert trapezoid(start, 2001, 3000, PERIOD_MS)[1] is None
    assert trapezoid(start, 10_000, 3000, 10_000)[1] == 3_000_000
    assert trapezoid(start, 10_001, 3000, 10_000)[1] is None
    assert trapezoid(start, 0, 3000, PERIOD_MS)[1] is None


def test_absurd_readings_are_flagged_and_sane_ones_are_not() -> None:
    assert flags(7000, 700_000, 1000) == 0
    assert flags(None, None, 1000) == 0
    assert flags(-1, None, 1000) == FLAG_NEGATIVE_POWER
    assert flags(100_001, None, 1000) == FLAG_ABSURD_POWER
    assert flags(7000, 10_000_001, 1000) == FLAG_ABSURD_ENERGY
