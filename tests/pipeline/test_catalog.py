"""The one declaration of every metric holds together."""

import re
from collections import Counter

import pytest

from pipeline.catalog import (
    ARRAY_CODE,
    FAST,
    METRICS,
    NULL_CODE,
    SLICE,
    SLOW,
    UNITS,
    WIDTH,
    Metric,
)
from pipeline.schema import column_type, rollup_columns

every_metric = pytest.mark.parametrize("metric", METRICS, ids=lambda m: f"{m.cadence}-{m.name}")


@pytest.mark.parametrize("block", [FAST, SLOW, SLICE])
def test_names_are_unique_within_a_table(block):
    """A name is a column."""
    assert max(Counter(m.name for m in block).values()) == 1


@every_metric
def test_a_name_is_a_column_with_its_unit_last(metric):
    """Counts have none, and a scaled metric always has one."""
    assert re.fullmatch(r"[a-z][a-z0-9_]*", metric.name)
    assert metric.unit in ("", *UNITS)
    assert metric.unit or not metric.decimals
    assert metric.scale == 10**metric.decimals


@every_metric
def test_a_metric_says_what_it_means_and_where_it_is_read(metric):
    """The metric table and the exposition's help come from here."""
    assert not metric.meaning[0].islower()
    assert metric.meaning.strip() == metric.meaning
    assert "\n" not in metric.meaning
    assert metric.nvml


@pytest.mark.parametrize("storage", WIDTH)
def test_the_null_code_is_the_value_that_a_type_can_spare(storage):
    """The highest unsigned, the lowest signed; it fits its width."""
    raw = NULL_CODE[storage].to_bytes(WIDTH[storage], "little", signed=storage[0] == "i")
    assert raw in (b"\xff" * WIDTH[storage], b"\0" * (WIDTH[storage] - 1) + b"\x80")
    assert ARRAY_CODE[storage].islower() == (storage[0] == "i")


@pytest.mark.parametrize("dialect", ["dcgm", "dcgm49"])
def test_no_two_metrics_share_a_name_in_a_dialect(dialect):
    """A scrape with a name twice is refused by Prometheus."""
    names = [getattr(m, dialect).name for m in METRICS if getattr(m, dialect)]
    assert max(Counter(names).values()) == 1
    assert all(re.fullmatch(r"DCGM_FI_[A-Z0-9_]+", name) for name in names)


@every_metric
def test_both_dialects_know_a_metric_or_neither_does(metric):
    """And none scales by nothing."""
    assert (metric.dcgm is None) == (metric.dcgm49 is None)
    assert all(d is None or d.factor > 0 for d in (metric.dcgm, metric.dcgm49))


def test_only_fast_metrics_are_rolled_up_and_only_by_sums_that_mean_something():
    """A state or a counter has no mean and no sum."""
    for metric in METRICS:
        assert not metric.rollups or (
            metric.cadence == "fast" and metric.kind in ("gauge", "delta")
        )


def test_energy_is_64_bits_wide_in_every_table():
    """A year of a gigawatt in millijoules still fits."""
    energies = [m for m in METRICS if m.unit == "j"]
    assert {column_type(m) for m in energies} == {"Nullable(Decimal(18, 3))"}
    for table in ("power_seconds", "tenant_minutes", "gpu_minutes"):
        (column,) = (c for c in rollup_columns(table) if c.name == "energy_j")
        assert (column.function, column.type) == ("sum", "Decimal(38, 3)")


def test_a_metric_knows_its_unit_by_its_name():
    """The last word, if it is one."""
    made = Metric("power_cap_w", "gauge", "fast", "i4", 1, "Cap", "FI 1")
    assert made.unit == "w"
    assert Metric("pstate", "state", "fast", "u1", 0, "State", "x").unit == ""
