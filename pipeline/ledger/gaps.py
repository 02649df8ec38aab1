"""Time of which nothing was measured: what the counters say of it, and why it was so."""

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.catalog import ABSURD_POWER_W
from pipeline.ledger.cells import QUARTER_MS
from pipeline.ledger.figures import CAUSES
from pipeline.store import Store

LOOK_MS: Final = 6 * 3_600_000
"""A gap is bridged from counters that were read at most this long before and after a quarter."""
_COUNTER: Final = np.dtype(
    [("gpu", "<u8"), ("ts_ms", "<i8"), ("counter_mj", "<i8"), ("epoch", "<u8"), ("limit_mw", "<i8")]
)
_ROW: Final = np.dtype([("gpu", "<u8"), ("ts_ms", "<i8"), ("dt_ms", "<i8"), ("energy_mj", "<i8")])
_EVENT_CAUSES: Final = {
    "gpu_lost": "gpu", "driver_released": "driver", "driver_hung": "driver",
    "driver_reloaded": "driver", "spool_overflow": "spool", "spool_corrupt": "spool", "node_down": "node",
}  # fmt: skip
assert set(_EVENT_CAUSES.values()) <= set(CAUSES)
TRANSIT_MS: Final = 600_000
"""Rows younger than this may still be on their way."""


class Bridge(NamedTuple):
    """Energy of a GPU over a gap, by its counter on both sides."""

    gpu: int
    from_ms: int
    until_ms: int
    energy_mj: int


def bridges(store: Store, gpus: Sequence[int], from_ms: int, until_ms: int) -> list[Bridge]:
    """What the counters of these GPUs say of gaps that touch [from_ms, until_ms)."""
    if not gpus:
        return []
    span = (
        f"gpu IN ({','.join(map(str, gpus))})"
        f" AND ts >= fromUnixTimestamp64Milli({from_ms - LOOK_MS}, 'UTC')"
        f" AND ts < fromUnixTimestamp64Milli({until_ms + LOOK_MS}, 'UTC')"
    )
    counters = np.frombuffer(store.raw(
        "SELECT gpu, toUnixTimestamp64Milli(ts) AS at, toInt64(assumeNotNull(energy_counter_j) * 1000),"  # noqa: S608
        " bitOr(bitShiftLeft(toUInt64(boot_epoch), 32), toUInt64(driver_epoch)),"
        f" toInt64(ifNull(power_limit_max_w, {ABSURD_POWER_W}) * 1000)"
        f" FROM gpu_health WHERE {span} AND energy_counter_j IS NOT NULL ORDER BY gpu, at",
        "RowBinary",
    ), _COUNTER)  # fmt: skip
    rows = np.frombuffer(store.raw(
        "SELECT gpu, toUnixTimestamp64Milli(ts) AS at, toInt64(dt_ms),"  # noqa: S608
        " toInt64(assumeNotNull(energy_j) * 1000)"
        f" FROM gpu_samples WHERE {span} AND energy_j IS NOT NULL ORDER BY gpu, at",
        "RowBinary",
    ), _ROW)  # fmt: skip
    out: list[Bridge] = []
    for gpu in gpus:
        out += bridged(counters[counters["gpu"] == gpu], rows[rows["gpu"] == gpu])
    return [b for b in out if b.until_ms > from_ms and b.from_ms < until_ms]


def bridged(counters: NDArray[np.void], rows: NDArray[np.void]) -> list[Bridge]:
    """One GPU's bridges: counter's difference less what rows measured, put where no row stands.

    Rows are those that have energy; the first one after a gap has none. Only between two readings of
    one boot and driver, when the counter did not fall, and when the mean over the missing time is
    not above the power limit.
    """
    out: list[Bridge] = []
    if len(counters) < 2 or not len(rows):
        return out
    ts, total = rows["ts_ms"], np.concatenate(([0], np.cumsum(rows["energy_mj"])))
    first = np.searchsorted(ts, counters["ts_ms"], side="right")
    for k in range(len(counters) - 1):
        a, b = counters[k], counters[k + 1]
        i, j = int(first[k]), int(first[k + 1])  # rows in (a, b]
        if a["epoch"] != b["epoch"]:
            continue
        missing = int(b["counter_mj"] - a["counter_mj"]) - int(total[j] - total[i])
        if missing <= 0:
            continue
        holes = _holes(rows[max(0, i - 1) : j], int(a["ts_ms"]), int(b["ts_ms"]))
        lengths = [until - since for since, until in holes]
        if not holes or missing > int(max(a["limit_mw"], b["limit_mw"])) * sum(lengths) // 1000:
            continue
        done = given = 0
        for (since, until), length in zip(holes, lengths, strict=True):
            done += length
            upto = missing * done // sum(lengths)
            out.append(Bridge(int(a["gpu"]), since, until, upto - given))
            given = upto
    return out


def _holes(rows: NDArray[np.void], from_ms: int, until_ms: int) -> list[tuple[int, int]]:
    """Where no row of these stands."""
    out = []
    before = from_ms
    for ts, dt in zip(rows["ts_ms"].tolist(), rows["dt_ms"].tolist(), strict=True):
        if ts - dt > before:
            out.append((before, ts - dt))
        before = max(before, ts)
    return [*out, (before, until_ms)] if before < until_ms else out


def causes(
    store: Store,
    site: int,
    missing: Mapping[tuple[int, int], int],
    nodes: Mapping[int, Sequence[int]],
    names: Mapping[int, str],
    now_ms: int,
) -> dict[tuple[int, int], str]:
    """Why each (gpu, quarter) is missing time: by what was told of it, else by who else is missing.

    `nodes` are the GPUs of each node, `names` the nodes' names in events.
    """
    if not missing:
        return {}
    first, last = min(q for _, q in missing), max(q for _, q in missing)
    told: dict[tuple[int, str, int], str] = {}
    for ts_ms, kind, node, gpu in store.query(
        "SELECT toUnixTimestamp64Milli(ts), kind, node, gpu FROM events"
        " WHERE site = {site:UInt64} AND kind IN {kinds:Array(String)}"
        " AND ts >= fromUnixTimestamp64Milli({since:Int64}, 'UTC')"
        " AND ts < fromUnixTimestamp64Milli({until:Int64}, 'UTC') ORDER BY ts",
        {"site": site, "kinds": list(_EVENT_CAUSES), "since": first, "until": last + QUARTER_MS},
    ).rows:
        told.setdefault((ts_ms // QUARTER_MS * QUARTER_MS, node, gpu), _EVENT_CAUSES[kind])
    out = {}
    for node, gpus in nodes.items():
        for gpu in gpus:
            for quarter in range(first, last + QUARTER_MS, QUARTER_MS):
                if (gpu, quarter) not in missing:
                    continue
                name = names.get(node, "")
                cause = told.get((quarter, name, gpu)) or told.get((quarter, name, 0))
                if cause is None and now_ms - quarter - QUARTER_MS < TRANSIT_MS:
                    cause = "transit"
                if cause is None:
                    alike = all((other, quarter) in missing for other in gpus)
                    cause = "node" if alike and len(gpus) > 1 else "gpu"
                out[gpu, quarter] = cause
    return {key: out.get(key, "unknown") for key in missing}
