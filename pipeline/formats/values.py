"""Columns of text or numbers into times, integers and names, whole columns at once.

A column of text is looked at once per distinct value where the fast conversion does not take it.
"""

import math
import zoneinfo
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.catalog import Metric
from pipeline.errors import Refuse
from pipeline.formats.cells import (
    BAD_TIME,
    DATE_DIGITS,
    NEWEST_MS,
    NOT_REPORTED,
    OLDEST_MS,
    UNIT_SIGNS,
    number,
    time_ms,
)

_MAX_EXACT: Final = 1 << 53


def times(column: pa.Array, local: zoneinfo.ZoneInfo) -> NDArray[np.int64]:
    """UTC milliseconds of a column, BAD_TIME where there is none or it is out of range."""
    kind = column.type
    if pa.types.is_timestamp(kind) and (kind.tz or local.key == "UTC"):
        out = _milliseconds(column)
    elif pa.types.is_timestamp(kind):
        out = _distinct_times(column.cast(pa.string()), local)
    elif pa.types.is_integer(kind) or pa.types.is_floating(kind):
        numbers = np.asarray(column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False))
        ok = np.isfinite(numbers) & (np.abs(numbers) < _MAX_EXACT)
        out = np.where(ok, np.where(ok, numbers, 0).astype(np.int64), BAD_TIME)
    elif _is_text(kind):
        out = _distinct_times(column, local)
    else:
        raise Refuse(f"a column of type {kind} holds no times")
    out[(out < OLDEST_MS) | (out >= NEWEST_MS)] = BAD_TIME
    return out


def numbers(column: pa.Array, metric: Metric) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Values in the metric's unit, NaN where not reported, and which are no numbers."""
    if not _is_text(column.type):
        try:
            typed = column.cast(pa.float64(), safe=False)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise Refuse(f"a column of type {column.type} holds no numbers") from error
        values = np.array(typed.to_numpy(zero_copy_only=False), np.float64)
        return values, np.zeros(len(values), np.bool_)
    text = pc.ascii_trim_whitespace(column.cast(pa.string()))
    missing = pc.is_in(text, value_set=pa.array(NOT_REPORTED))
    text = pc.if_else(missing, pa.scalar(None, pa.string()), text)
    sign = UNIT_SIGNS.get(metric.unit, "")
    cast = _cast(text, pa.float64())
    if cast is None and sign:
        cast = _cast(pc.replace_substring_regex(text, f" ?{sign}$", ""), pa.float64())
    if cast is None:
        return _distinct_numbers(text, sign)
    values = np.array(cast.to_numpy(zero_copy_only=False), np.float64)
    return values, np.zeros(len(values), np.bool_)


def _cast(text: pa.Array, kind: pa.DataType) -> pa.Array | None:
    """The texts as a type, None if one does not fit; the first tells cheaply for most."""
    try:
        text.drop_null()[:1].cast(kind)
        return text.cast(kind)
    except pa.ArrowInvalid:
        return None


def stored(
    values: NDArray[np.float64], metric: Metric
) -> tuple[NDArray[np.generic], NDArray[np.bool_]]:
    """The metric's storage integers, rounded, and which values do not fit into them."""
    kind = np.dtype(f"<{metric.storage}")
    limits = np.iinfo(kind)
    low = int(limits.min) + (metric.storage[0] == "i")  # its null code is the lowest
    high = min(int(limits.max) - (metric.storage[0] == "u"), _MAX_EXACT)
    with np.errstate(over="ignore"):
        scaled = np.rint(values * metric.scale)
    absent = np.isnan(scaled)
    bad = ~absent & ((scaled < low) | (scaled > high))
    out = np.full(len(values), metric.null_code, kind)
    fits = ~absent & ~bad
    out[fits] = scaled[fits].astype(kind)
    return out, bad


def distinct(column: pa.Array) -> tuple[list[str], NDArray[np.int64]]:
    """The distinct texts of a column, trimmed ("" for null), and each row's position in them."""
    if pa.types.is_floating(column.type):  # pandas' integers beside a missing one
        column = pc.round(column).cast(pa.int64(), safe=False)
    coded = column.cast(pa.string()).fill_null("").dictionary_encode()
    codes = np.asarray(coded.indices.to_numpy(zero_copy_only=False), np.int64)
    return [value.strip() for value in coded.dictionary.to_pylist()], codes


def _is_text(kind: pa.DataType) -> bool:
    inner = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(inner) or pa.types.is_large_string(inner))


def _milliseconds(column: pa.Array) -> NDArray[np.int64]:
    per_second = {"s": 1, "ms": 1000, "us": 1_000_000, "ns": 1_000_000_000}[column.type.unit]
    raw = np.array(column.cast(pa.int64()).fill_null(BAD_TIME).to_numpy(zero_copy_only=False))
    bad = raw == BAD_TIME
    scaled = raw // (per_second // 1000) if per_second > 1 else raw * 1000
    return np.where(bad, BAD_TIME, scaled)


def _distinct_times(column: pa.Array, local: zoneinfo.ZoneInfo) -> NDArray[np.int64]:
    coded = column.cast(pa.string()).fill_null("").dictionary_encode()
    texts = coded.dictionary
    each = _whole_column(texts) if local.key == "UTC" else None
    if each is None:
        each = np.array([time_ms(text, local) for text in texts.to_pylist()], np.int64)
    codes = coded.indices.to_numpy(zero_copy_only=False)
    return each[codes] if len(each) else np.empty(0, np.int64)


def _whole_column(texts: pa.Array) -> NDArray[np.int64] | None:
    """All texts at once, where they are of one form that Arrow reads; else None."""
    if not len(texts):
        return np.empty(0, np.int64)
    text = pc.replace_substring(pc.ascii_trim_whitespace(texts), "/", "-")
    first = text[0].as_py()
    if first.isdecimal() and len(first) > DATE_DIGITS:
        cast = _cast(text, pa.int64())
        return None if cast is None else np.array(cast.to_numpy(zero_copy_only=False))
    if first[4:5] != "-":
        return None
    for kind in (pa.timestamp("ns", "UTC"), pa.timestamp("ns")):
        cast = _cast(text, kind)
        if cast is not None:
            return _milliseconds(cast)
    return None


def _distinct_numbers(text: pa.Array, unit: str) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    coded = text.fill_null("").dictionary_encode()
    each = [_attempt(value, unit) for value in coded.dictionary.to_pylist()]
    codes = coded.indices.to_numpy(zero_copy_only=False)
    values = np.array([math.nan if one is None else one for one in each], np.float64)
    return values[codes], np.array([one is None for one in each], np.bool_)[codes]


def _attempt(text: str, unit: str) -> float | None:
    try:
        return number(text, unit)
    except (ValueError, OverflowError):
        return None
