"""What is written in the Native format is what the engine reads, for every type that tables use."""

import datetime as dt
import re
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline import native
from pipeline.catalog import NULL_CODE
from pipeline.schema import statements
from pipeline.settings import ClickHouse
from pipeline.store import Store

UTC = dt.UTC
MS = dt.timedelta(milliseconds=1)
EPOCH = dt.datetime(1970, 1, 1)  # noqa: DTZ001 - as the client gives it


def _ms(value):
    return None if value is None else (value.replace(tzinfo=None) - EPOCH) // MS


# type -> (values to insert, what the engine's answer is as the inserted integer or text)
CASES: dict[str, tuple[list[Any], Callable[[Any], Any]]] = {
    "UInt8": ([0, 1, 255], int), "UInt16": ([0, 65535, 7], int), "UInt32": ([0, 2**32 - 1, 7], int),
    "UInt64": ([5, 2**63 + 5, 2**64 - 1], int), "Int16": ([-(2**15), -1, 2**15 - 1], int),
    "Int32": ([-(2**31), -1, 2**31 - 1], int), "Float64": ([-1.5, 0.1, 1e300], float),
    "String": (["", "Zoë\0\n'\\", "x" * 300], str), "DateTime('UTC')": (
        [0, 1_795_000_000, 2**32 - 1], lambda v: _ms(v) // 1000
    ), "DateTime64(3, 'UTC')": ([0, 1_795_000_000_123, 4_102_444_800_000], _ms),
    "Enum8('none' = 0, 'counter' = 1, 'trapezoid' = 2)": (
        [0, 2, 1], ["none", "counter", "trapezoid"].index
    ),
    "Decimal(9, 1)": ([-5, 0, 999_999_999], lambda v: int(v * 10)),
    "Decimal(18, 3)": ([-5, 0, 10**18 - 1], lambda v: int(v * 1000)),
    "Nullable(UInt8)": ([None, 0, 255], lambda v: v), "Nullable(Int16)": ([None, -5], lambda v: v),
    "Nullable(UInt64)": (
        [2**64 - 1, None, 0], lambda v: v
    ), "Nullable(Decimal(9, 1))": ([-1, None, 5], lambda v: None if v is None else int(v * 10)),
    "Nullable(DateTime64(3, 'UTC'))": ([None, 5, None], _ms),
    "Nullable(String)": (["", None, "x"], lambda v: v),
    "Array(UInt16)": ([[], [1, 2, 65535], [0]], list),
    "Array(String)": ([["a", ""], [], ["ü"]], list),
    "SimpleAggregateFunction(max, DateTime('UTC'))": ([1, 2, 3], lambda v: _ms(v) // 1000),
    "SimpleAggregateFunction(sum, UInt64)": ([1, 2**63, 3], int),
}  # fmt: skip


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    opened = Store(ClickHouse(data=str(tmp_path_factory.mktemp("native"))))
    yield opened
    opened.close()


def round_trip(store, kind, values):
    store.command("DROP TABLE IF EXISTS trip")
    store.command(f"CREATE TABLE trip (n UInt32, v {kind}) ENGINE = MergeTree ORDER BY n")
    store._types.clear()
    store.insert("trip", {"n": np.arange(len(values), dtype=np.uint32), "v": values})
    return [row[0] for row in store.query("SELECT v FROM trip ORDER BY n").rows]


@pytest.mark.parametrize("kind", CASES)
def test_values_come_back_as_they_went(store, kind):
    """From Python lists, with nulls, arrays and the ends of each range."""
    values, back = CASES[kind]
    assert [back(v) for v in round_trip(store, kind, values)] == values


@pytest.mark.parametrize("storage", ["u1", "u2", "u4", "u8", "i2", "i4"])
def test_null_codes_become_null(store, storage):
    """And only they: their neighbours stay."""
    signed = storage[0] == "i"
    kind = f"Nullable({'Int' if signed else 'UInt'}{8 * int(storage[1])})"
    code = NULL_CODE[storage]
    near = code + 1 if signed else code - 1
    assert round_trip(store, kind, np.array([code, near, 0, 1], storage)) == [None, near, 0, 1]


def test_every_type_of_the_schema_is_covered():
    """A new type in a migration needs a case here."""
    covered = {
        re.sub(r"\d+", "9", kind.split("(")[0] if "Enum8" in kind else kind) for kind in CASES
    }
    for statement in statements("embedded", ClickHouse()):
        if statement.sql.find("CREATE TABLE") < 0:
            continue
        body = statement.sql.partition("\n(\n")[2].partition("\n)\n")[0]
        for line in body.split("\n"):
            kind = re.sub(r" (CODEC|DEFAULT|ALIAS) ?\(?.*|,$", "", line.strip()).split(" ", 1)[1]
            kind = re.sub(r"SimpleAggregateFunction\(\w+, (.*)\)", r"\1", kind)
            if "Decimal(38" in kind:
                continue  # filled by views only
            name = re.sub(r"\d+", "9", "Enum8" if kind.startswith("Enum8") else kind)
            assert name in covered, kind


@given(st.lists(st.binary(max_size=200), max_size=20))
@settings(
    deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_a_string_holds_any_bytes(store, values):
    """Dead letters are kept whole."""
    if "blob" not in [r[0] for r in store.query("SHOW TABLES").rows]:
        store.command("CREATE TABLE blob (n UInt32, v String) ENGINE = Memory")
    store.command("TRUNCATE TABLE blob")
    store.insert("blob", {"n": list(range(len(values))), "v": values})
    found = [bytes.fromhex(r[0]) for r in store.query("SELECT hex(v) FROM blob ORDER BY n").rows]
    assert found == values


def test_a_number_that_does_not_fit_is_an_error_not_another_number():
    """Never stored wrapped around."""
    for kind, value in (("UInt16", 70_000), ("UInt32", -1), ("UInt64", 2**64)):
        with pytest.raises(OverflowError):
            native.block({"v": [value]}, {"v": kind})


def test_columns_of_different_lengths_are_a_programming_error():
    """Half a row is never sent."""
    with pytest.raises(AssertionError, match="column b has 1 of 2 rows"):
        native.block({"a": [1, 2], "b": [1]}, {"a": "UInt8", "b": "UInt8"})


def test_decimals_are_integers_underneath(store):
    """5000 tenths are 500 watts."""
    assert round_trip(store, "Decimal(9, 1)", np.array([5000], np.int32)) == [Decimal("500.0")]


def test_what_is_not_reported_is_stored_as_the_metrics_code():
    """Whatever it came as: None, the code of the column's own width, or of another."""
    types = {
        "power_w_code": "Decimal(9, 1)",
        "power_w": "",
        "util_gpu_pct_code": "UInt8",
        "gpu": "",
    }
    missing = -(2**31)
    assert native.as_stored({"power_w": [5000, None]}, types) == {"power_w_code": [5000, missing]}
    narrow = np.array([5000, missing], np.int32)
    assert native.as_stored({"power_w": narrow}, types)["power_w_code"] is narrow
    short = native.as_stored({"power_w": np.array([5000, -(2**15)], np.int16)}, types)
    assert list(short["power_w_code"]) == [5000, missing]
    util = native.as_stored({"util_gpu_pct": np.array([7, 2**16 - 1], np.uint16)}, types)
    assert list(util["util_gpu_pct_code"]) == [7, 255]
    assert native.as_stored({"gpu": [1], "power_w": [1]}, {"gpu": "UInt64"}) == {
        "gpu": [1],
        "power_w": [1],
    }
