"""A block of columns as ClickHouse's Native format: the cheapest bulk insert that was measured.

ClickHouse's Native format: number of columns and rows (LEB128), then per column its name, its type
and its values; Nullable puts a byte map before them, String a LEB128 length before each value.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pipeline.catalog import FAST_BY_NAME, NULL_CODE
from pipeline.leb128 import leb128
from pipeline.schema import coded

Values = NDArray[np.generic] | Sequence[Any]
"""Integers of the storage type (an array), or Python values where a column is small."""
Bytes = bytes | memoryview
"""A piece of the block: an array's own memory where it can be, copied once when all are joined."""

_INT_TYPES: Final = {
    "UInt8": "<u1", "UInt16": "<u2", "UInt32": "<u4", "UInt64": "<u8",
    "Int8": "<i1", "Int16": "<i2", "Int32": "<i4", "Int64": "<i8", "Float64": "<f8",
}  # fmt: skip
_NULLABLE: Final = re.compile(r"Nullable\((.*)\)")
_ARRAY: Final = re.compile(r"Array\((.*)\)")
_AGGREGATE: Final = re.compile(r"SimpleAggregateFunction\(\w+, (.*)\)")


def block(columns: Mapping[str, Values], types: Mapping[str, str]) -> bytes:
    """The block's bytes; `types` gives the table's type for every column."""
    rows = len(next(iter(columns.values())))
    parts: list[Bytes] = [leb128(len(columns)), leb128(rows)]
    for name, values in columns.items():
        assert len(values) == rows, f"column {name} has {len(values)} of {rows} rows"
        parts += [_text(name), _text(types[name])]
        parts += _column(values, types[name])
    return b"".join(parts)


def as_stored(columns: Mapping[str, Values], types: Mapping[str, str]) -> dict[str, Values]:
    """Columns as a table stores them: metrics that it keeps as codes under their codes' names.

    See pipeline.schema.sample_columns; what is not reported (None in a list, its dtype's null code
    in an array) becomes the metric's null code.
    """
    out: dict[str, Values] = {}
    for name, values in columns.items():
        metric = FAST_BY_NAME.get(name)
        if metric is None or (stored := coded(name)) not in types:
            out[name] = values
        elif not isinstance(values, np.ndarray):
            out[stored] = [metric.null_code if v is None else v for v in values]
        elif values.dtype.str[1:] == metric.storage:
            out[stored] = values
        else:
            code = NULL_CODE[values.dtype.str[1:]]  # type: ignore[index]
            out[stored] = np.where(values == code, metric.null_code, values.astype(np.int64))
    return out


def _column(values: Values, kind: str) -> list[Bytes]:
    if found := _AGGREGATE.fullmatch(kind):
        return _column(values, found[1])
    if found := _NULLABLE.fullmatch(kind):
        return _nullable(values, found[1])
    if found := _ARRAY.fullmatch(kind):
        lists = [list(v) for v in values]
        offsets = np.cumsum([len(v) for v in lists], dtype="<u8")
        return [offsets.tobytes(), *_column([x for v in lists for x in v], found[1])]
    if kind == "String":
        raw = [v if isinstance(v, bytes) else str(v).encode() for v in values]
        return [piece for r in raw for piece in (leb128(len(r)), r)]
    if not isinstance(values, np.ndarray):
        # By way of the type: numpy makes floats of a list of integers below and above 2^63.
        return [np.array(values, _dtype(kind)).tobytes()]
    return [np.ascontiguousarray(values, _dtype(kind)).data]


def _nullable(values: Values, kind: str) -> list[Bytes]:
    if isinstance(values, np.ndarray):
        code = NULL_CODE[values.dtype.str[1:]]  # type: ignore[index]
        missing = np.asarray(values == code)
        if missing.any():
            values = np.where(missing, np.zeros(1, values.dtype), values)
        return [missing.data, *_column(values, kind)]
    filled = [("" if kind == "String" else 0) if v is None else v for v in values]
    return [bytes(v is None for v in values), *_column(filled, kind)]


def _dtype(kind: str) -> str:
    """The numpy type of a ClickHouse type's integers."""
    if kind in _INT_TYPES:
        return _INT_TYPES[kind]
    if kind.startswith("DateTime64"):
        return "<i8"
    if kind.startswith("DateTime"):
        return "<u4"
    if kind.startswith("Enum8"):
        return "<i1"
    if kind.startswith("Decimal("):
        precision = int(kind.removeprefix("Decimal(").split(",")[0])
        assert precision <= 18, f"{kind} does not fit an integer"
        return "<i4" if precision <= 9 else "<i8"
    raise AssertionError(f"no Native encoding for {kind}")


def _text(text: str) -> bytes:
    raw = text.encode()
    return leb128(len(raw)) + raw
