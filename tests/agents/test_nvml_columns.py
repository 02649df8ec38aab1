"""Rows in the driver's units become columns in the catalogue's."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.nvml_columns import NO_ROW, RAW_UNITS, Rows, delta, gauge, limits, reading
from agents.nvml_frame import NOT_REPORTED
from pipeline.catalog import FAST, FAST_BY_NAME, METRICS, SLICE, SLOW, Metric
from pipeline.records import (
    ENERGY_COUNTER,
    ENERGY_NONE,
    ENERGY_TRAPEZOID,
    FLAG_ABSURD_ENERGY,
    FLAG_ABSURD_POWER,
    FLAG_NEGATIVE_POWER,
)
from pipeline.wire import LAYOUT
from tests.agents.nvml_node import integers

POWER = FAST_BY_NAME["power_w"]
ENERGY = FAST_BY_NAME["energy_j"]
AT = {metric.name: at for at, metric in enumerate(FAST)}


def raw(**values: int) -> list[int]:
    row = [NOT_REPORTED] * len(FAST)
    for name, value in values.items():
        row[AT[name]] = value
    return row


@given(st.sampled_from(METRICS), st.integers(-(1 << 63), (1 << 63) - 1))
def test_a_gauge_is_the_nearest_stored_integer_or_the_null_code(metric: Metric, value: int) -> None:
    (stored,) = gauge(metric, [value])
    unit = RAW_UNITS.get(metric.name, 1)
    low, high = limits(metric)
    if stored == metric.null_code:
        assert value == NOT_REPORTED or not low <= (value + unit // 2) // unit <= high
    else:
        assert abs(stored * unit - value) * 2 <= unit


@pytest.mark.parametrize(
    ("milliwatts", "stored"),
    [(345_678, 3457), (345_649, 3456), (345_650, 3457), (-150, -1), (0, 0)],
)
def test_power_is_rounded_to_a_tenth_of_a_watt_never_truncated(
    milliwatts: int, stored: int
) -> None:
    assert list(gauge(POWER, [milliwatts])) == [stored]


def test_a_delta_that_does_not_fit_is_not_reported() -> None:
    assert list(delta(ENERGY, [None, 0, 2**32 - 2, 2**32 - 1, 2**40])) == [
        ENERGY.null_code, 0, 2**32 - 2, ENERGY.null_code, ENERGY.null_code,
    ]  # fmt: skip


def test_a_gpu_that_reports_nothing_was_not_read() -> None:
    assert Rows(1000).row("a", 0, 1, raw()) is NO_ROW


def test_module_power_that_only_mirrors_the_gpu_is_no_module() -> None:
    rows = Rows(1000)
    mirrored = rows.row("a", 0, 1, raw(power_w=300_000, module_power_w=300_000))
    grace = rows.row("b", 0, 1, raw(power_w=300_000, module_power_w=480_000))
    assert mirrored.raw[AT["module_power_w"]] == NOT_REPORTED
    assert grace.raw[AT["module_power_w"]] == 480_000


def test_a_gpu_with_a_counter_never_falls_back_to_the_trapezoid() -> None:
    rows = Rows(1000)
    kinds = []
    energies = []
    for at, energy in enumerate((1000, NOT_REPORTED, 3000)):
        values = raw(energy_j=energy, power_w=1_000)
        rows.is_reset(["a"], [values])
        row = rows.row("a", at * 1000, 1, values)
        kinds.append(row.energy_kind)
        energies.append(row.deltas[0])
    assert kinds == [ENERGY_COUNTER] * 3
    assert energies == [None, None, 2000]


def test_a_gpu_without_a_counter_is_integrated_from_good_power_only() -> None:
    rows = Rows(1000)
    powers = (300_000, 300_000, 11_000_000, 300_000, NOT_REPORTED, 300_000)
    made = [
        rows.row("a", at * 1000, 1, raw(power_w=power, temp_gpu_c=40))
        for at, power in enumerate(powers)
    ]
    assert [row.deltas[0] for row in made] == [None, 300_000, None, None, None, None]
    kinds = [row.energy_kind for row in made]
    assert kinds == [
        ENERGY_TRAPEZOID, ENERGY_TRAPEZOID, ENERGY_NONE, ENERGY_TRAPEZOID, ENERGY_NONE,
        ENERGY_TRAPEZOID,
    ]  # fmt: skip


def test_bad_readings_are_kept_and_flagged() -> None:
    rows = Rows(1000)
    absurd = rows.row("a", 0, 1, raw(power_w=10_000_100))
    negative = rows.row("b", 0, 1, raw(power_w=-5_000))
    rows.is_reset(["c"], [raw(energy_j=0)])
    rows.row("c", 0, 1, raw(energy_j=0))
    lump = rows.row("c", 1000, 1, raw(energy_j=10_000_001))
    assert [r.flags for r in (absurd, negative, lump)] == [
        FLAG_ABSURD_POWER, FLAG_NEGATIVE_POWER, FLAG_ABSURD_ENERGY,
    ]  # fmt: skip
    columns = reading([absurd, negative], {}, [], ())
    assert integers(columns.fast[3]) == [100_001, -50]


def test_a_lower_energy_counter_is_a_reset_for_the_whole_node() -> None:
    rows = Rows(1000)
    assert not rows.is_reset(["a", "b"], [raw(energy_j=5), raw(energy_j=9)])
    assert not rows.is_reset(["a", "b"], [raw(energy_j=5), raw()])
    assert rows.is_reset(["a", "b"], [raw(energy_j=6), raw(energy_j=8)])
    assert not rows.is_reset(["a", "b"], [raw(energy_j=6), raw(energy_j=8)])


def test_a_reading_has_the_layouts_columns_and_nothing_of_a_gpu_that_was_not_read() -> None:
    rows = Rows(1000)
    values = raw(power_w=300_000, energy_j=77)
    rows.is_reset(["a"], [values])
    slow = {0: list(range(len(SLOW))), 1: list(range(len(SLOW)))}
    columns = reading([rows.row("a", 0, 1, values), NO_ROW], slow, [1 << 20, 2, 3, 4], ((0, 1, 0),))
    assert [len(c) for c in columns.fast] == [2] * len(LAYOUT.fast)
    assert [len(c) for c in columns.slow] == [2] * len(LAYOUT.slow)
    assert [integers(c) for c in columns.slices] == [[1], [2], [3], [4]]
    assert [integers(c) for c in columns.fast[:3]] == [
        [1000, 0],
        [0, 0],
        [ENERGY_COUNTER, ENERGY_NONE],
    ]
    names = [metric.name for metric in SLOW]
    assert integers(columns.slow[names.index("energy_counter_j")]) == [77, 2**64 - 1]
    assert integers(columns.slow[names.index("mig_mode")]) == [names.index("mig_mode"), 255]
    assert len(columns.slices) == len(SLICE)
