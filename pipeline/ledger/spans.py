"""What the ledger reads: sums of GPUs by quarter, by minute or row by row, and meters' energy."""

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipeline import schema
from pipeline.energy import TRAPEZOID_MAX_MS
from pipeline.ledger.cells import FIELDS, QUARTER_MS, SPAN
from pipeline.store import Store

MINUTE_MS: Final = 60_000
FACILITY_MAX_MS: Final = 300_000
"""Meters above nodes are read by the minute, by systems of their own."""
_GPUS_AT_ONCE: Final = 2000
_QUERY_BYTES: Final = 1 << 24

# FIELDS out of a rollup's columns, added up. Nothing is bridged yet.
_SUMS: Final = (
    "toInt64(sum(energy_j) * 1000)",
    "toInt64(sumIf(energy_j, active_ms = 0 AND util_gpu_pct_dt_ms > 0) * 1000)",
    "toInt64(0)",
    "toInt64(sum(dt_ms))", "toInt64(sum(held_ms))", "toInt64(sum(active_ms))",
    "toInt64(sum(util_gpu_pct_ms))", "toInt64(sum(util_gpu_pct_dt_ms))",
    "toInt64(sum(power_w_ms) * 10)", "toInt64(sum(power_w_dt_ms))",
    "toInt64(sum(throttle_power_cap_ms))", "toInt64(sum(throttle_sw_thermal_ms))",
    "toInt64(sum(throttle_hw_thermal_ms))", "toInt64(sum(throttle_power_brake_ms))",
)  # fmt: skip
assert len(_SUMS) == len(FIELDS)
_METER: Final = np.dtype([("meter", "<u4"), ("ts_ms", "<i8"), ("milliwatts", "<i8")])


def by_quarter(
    store: Store, site: int, from_ms: int, until_ms: int, low: int, high: int
) -> NDArray[np.void]:
    """Sums of whole quarters of GPUs with ids in [low, high)."""
    where = f"gpu >= {low} AND gpu <= {high - 1} AND {_between('ts', from_ms, until_ms)}"
    return _from_minutes(store, site, where, "toStartOfFifteenMinutes(ts)", QUARTER_MS)


def by_minute(store: Store, site: int, spans: NDArray[np.void]) -> NDArray[np.void]:
    """The minutes of spans of quarters."""
    out = [
        _from_minutes(
            store, site, f"gpu IN ({_listed(some['device'])}) AND {_around(some)}", "ts", MINUTE_MS
        )
        for some in _at_once(spans)
    ]
    return _within(_joined(out), spans)


def by_row(store: Store, spans: NDArray[np.void]) -> NDArray[np.void]:
    """The raw rows of spans of minutes; empty where raw rows are gone."""
    out = []
    for some in _at_once(spans):
        inner = (
            f"SELECT s.gpu AS gpu, s.ts AS ts, {schema.select_list('gpu_minutes')}"  # noqa: S608
            f" FROM gpu_samples AS s WHERE s.gpu IN ({_listed(some['device'])})"
            f" AND {_around(some, 's.ts')} GROUP BY gpu, ts"
        )
        out.append(_read(store, inner, "ts", 1))
    return _within(_joined(out), spans)


def _from_minutes(
    store: Store, site: int, where: str, bucket: str, length: int
) -> NDArray[np.void]:
    inner = f"SELECT * FROM gpu_minutes FINAL WHERE site = {site} AND {where}"  # noqa: S608
    return _read(store, inner, bucket, length)


def _read(store: Store, inner: str, bucket: str, length: int) -> NDArray[np.void]:
    raw = store.raw(
        f"SELECT gpu, toInt64(toUnixTimestamp64Milli(toDateTime64({bucket}, 3, 'UTC'))) AS t,"  # noqa: S608
        f" toInt64({length}), toInt64(sum(rows)), toInt64(max(ifNull(power_w_max, 0)) * 10), {', '.join(_SUMS)}"
        f" FROM ({inner}) GROUP BY gpu, t ORDER BY gpu, t SETTINGS max_query_size = {_QUERY_BYTES}",
        "RowBinary",
    )
    return np.frombuffer(raw, SPAN)


def _between(column: str, from_ms: int, until_ms: int) -> str:
    return (
        f"{column} >= fromUnixTimestamp64Milli({from_ms}, 'UTC')"
        f" AND {column} < fromUnixTimestamp64Milli({until_ms}, 'UTC')"
    )


def _around(spans: NDArray[np.void], column: str = "ts") -> str:
    until = spans["from_ms"] + spans["length_ms"]
    return _between(column, int(spans["from_ms"].min()), int(until.max()))


def _listed(ids: NDArray[np.uint64]) -> str:
    return ",".join(map(str, np.unique(ids).tolist()))


def _at_once(spans: NDArray[np.void]) -> list[NDArray[np.void]]:
    """Spans of some GPUs at a time, by when they begin, so that no query reads what nobody wants."""
    order = spans[np.lexsort((spans["device"], spans["from_ms"]))]
    return [order[i : i + _GPUS_AT_ONCE] for i in range(0, len(order), _GPUS_AT_ONCE)]


def _joined(parts: Sequence[NDArray[np.void]]) -> NDArray[np.void]:
    return np.unique(np.concatenate(parts)) if parts else np.zeros(0, SPAN)


def _within(found: NDArray[np.void], spans: NDArray[np.void]) -> NDArray[np.void]:
    """What was asked for: the query reads every time for every GPU."""
    if not len(found):
        return found
    order = np.lexsort((spans["from_ms"], spans["device"]))
    spans = spans[order]
    # Position of (device, time) among the spans, by one dense integer each.
    devices = np.unique(spans["device"])
    key = (np.searchsorted(devices, spans["device"]).astype(np.int64) << 43) | spans["from_ms"]
    mine = np.searchsorted(devices, found["device"]).astype(np.int64)
    at = np.searchsorted(key, (mine << 43) | found["from_ms"], side="right") - 1
    hit = (at >= 0) & (spans["device"][at] == found["device"])
    inside: NDArray[np.void] = found[
        hit & (found["from_ms"] < (spans["from_ms"] + spans["length_ms"])[at])
    ]
    return inside


def meters(
    store: Store, site: int, from_ms: int, until_ms: int
) -> tuple[list[tuple[str, str]], NDArray[np.void]]:
    """Meters as (kind, name), and their readings' spans (device = index of the meter).

    Energy is the trapezoid to the reading before; across more than 10 s (meters of racks, halls and
    sites: 5 min) there is none. Negative readings are passed over; of readings at one time the last
    that was stored counts.
    """
    since = from_ms - FACILITY_MAX_MS  # the reading before the first
    names = [
        (kind, name)
        for kind, name in store.query(
            "SELECT DISTINCT toString(kind), meter FROM meters WHERE site = {site:UInt64} AND"  # noqa: S608
            f" {_between('ts', since, until_ms)} ORDER BY kind, meter",
            {"site": site},
        ).rows
    ]
    raw = store.raw(
        "SELECT toUInt32(dense_rank() OVER (ORDER BY toString(kind), meter) - 1) AS n,"  # noqa: S608
        " toUnixTimestamp64Milli(ts) AS at, toInt64(watts * 1000)"
        f" FROM meters FINAL WHERE site = {site} AND {_between('ts', since, until_ms)}"
        " ORDER BY n, at",
        "RowBinary",
    )
    found = np.frombuffer(raw, _METER)
    longest = [TRAPEZOID_MAX_MS if kind == "node" else FACILITY_MAX_MS for kind, _ in names]
    good = found[found["milliwatts"] >= 0]
    return names, _trapezoids(good, np.array(longest, np.int64), from_ms)


def _trapezoids(
    readings: NDArray[np.void], longest_ms: NDArray[np.int64], from_ms: int
) -> NDArray[np.void]:
    out = np.zeros(len(readings), SPAN)
    if not len(readings):
        return out
    meter, ts, power = (readings[name] for name in ("meter", "ts_ms", "milliwatts"))
    gap = np.zeros(len(readings), np.int64)
    same = meter[1:] == meter[:-1]
    gap[1:][same] = np.diff(ts)[same]
    near = (gap > 0) & (gap <= longest_ms[meter])
    # Each pair is rounded by itself, so that it does not matter from where a range is read.
    twice_microjoules = np.zeros(len(readings), np.int64)
    twice_microjoules[1:] = np.where(near[1:], (power[1:] + power[:-1]) * gap[1:], 0)
    out["device"], out["from_ms"], out["length_ms"], out["rows"] = meter, ts, 1, 1
    out["energy_mj"] = (twice_microjoules + 1000) // 2000
    out["measured_ms"] = np.where(near, gap, 0)
    out["max_dw"] = power // 100
    return out[ts >= from_ms]
