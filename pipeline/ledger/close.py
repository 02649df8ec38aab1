"""Closing: quarters behind the watermark become rows of the ledger, and again when they change.

A quarter is written under a new version, GPUs first, then holders and meters, and last its row in
ledger_closes, which makes it count: what was killed in between never was. A re-close that finds less
is refused, and the version before it stands.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

from pipeline import rows
from pipeline.ledger import claims, compute
from pipeline.ledger.cells import BRIDGED, ENERGY, FIELDS, MEASURED, QUARTER_MS, SHOW_MS, Held
from pipeline.ledger.compute import Computed
from pipeline.ledger.figures import CAUSES, HISTOGRAM_BINS
from pipeline.ledger.said import said
from pipeline.native import Values
from pipeline.records import id64
from pipeline.store import Store

State = Literal["closed", "refused", "failed"]
_STATES: Final[Mapping[State, int]] = {"closed": 1, "refused": 2, "failed": 3}
RUN_MS: Final = 4 * QUARTER_MS
"""Quarters that are worked out together."""
_PLAIN: Final = {
    "energy_mj": "energy_j", "idle_mj": "idle_j", "bridged_mj": "bridged_j",
    "util_pct_ms": "util_gpu_pct_ms", "util_dt_ms": "util_gpu_pct_dt_ms",
    "power_dw_ms": "power_w_ms", "power_dt_ms": "power_w_dt_ms",
}  # fmt: skip
_COLUMNS: Final = tuple(_PLAIN.get(name, name) for name in FIELDS)
"""The ledger's columns for FIELDS: decimals in the same integers."""
_UTIL: Final = (FIELDS.index("util_pct_ms"), FIELDS.index("util_dt_ms"))


@dataclass(frozen=True, slots=True)
class Known:
    """What a version of a quarter was made from."""

    version: int
    data_version: int
    said: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a quarter."""

    quarter_ms: int
    state: State
    reason: str
    energy_mj: int
    measured_ms: int
    expected_ms: int


def close(
    store: Store,
    site: str,
    precedence: Sequence[str],
    quarters: Iterable[int],
    now_ms: int,
    told: Callable[[Outcome], None] = lambda _: None,
) -> list[Outcome]:
    """Close these quarters (their beginnings, epoch ms), in runs; what was closed is closed anew."""
    out: list[Outcome] = []
    for begin, end in _runs(sorted(set(quarters))):
        for outcome in _close_run(store, site, precedence, begin, end, now_ms):
            told(outcome)
            out.append(outcome)
    return out


def known(
    store: Store, site: str, from_ms: int, until_ms: int, *, attempts: bool = False
) -> dict[int, Known]:
    """The last closed version of each quarter in [from_ms, until_ms); or the last attempt at it."""
    state = "" if attempts else " AND state = 'closed'"
    found = store.query(
        "SELECT toInt64(toUnixTimestamp(ts)) * 1000, max(version), argMax(data_version, version),"  # noqa: S608
        f" argMax(said, version) FROM ledger_closes WHERE site = {{site:UInt64}}{state}"
        " AND ts >= toDateTime({since:Int64}, 'UTC') AND ts < toDateTime({until:Int64}, 'UTC')"
        " GROUP BY ts",
        {"site": id64(site), "since": from_ms // 1000, "until": -(-until_ms // 1000)},
    ).rows
    return {row[0]: Known(*row[1:]) for row in found}


def data_versions(store: Store, site: str, from_ms: int, until_ms: int) -> dict[int, int]:
    """The highest version of the minutes of each quarter that has any; 0 for meters alone."""
    found = store.query(
        "SELECT toInt64(toUnixTimestamp(ts)) * 1000, max(minutes_version) FROM ledger_sources"
        " WHERE site = {site:UInt64} AND ts >= toDateTime({since:Int64}, 'UTC')"
        " AND ts < toDateTime({until:Int64}, 'UTC') GROUP BY ts",
        {"site": id64(site), "since": from_ms // 1000, "until": -(-until_ms // 1000)},
    ).rows
    return {quarter: version for quarter, version in found}  # noqa: C416


def open_quarters(
    store: Store, site: str, from_ms: int, until_ms: int, *, untried: bool = False
) -> list[int]:
    """Whole quarters in [from_ms, until_ms) that have data and are not closed as things stand.

    Only those that nobody tried to close as things stand, if `untried`.
    """
    have = data_versions(store, site, from_ms, until_ms)
    closed = known(store, site, from_ms, until_ms, attempts=untried)
    says = said(store, site, from_ms, until_ms)
    return [
        quarter
        for quarter, version in sorted(have.items())
        if quarter >= from_ms
        and quarter + QUARTER_MS <= until_ms
        and (
            quarter not in closed
            or version > closed[quarter].data_version
            or says.get(quarter, 0) != closed[quarter].said
        )
    ]


def closable_until(store: Store, grace_ms: int) -> int:
    """Up to where quarters are complete: the minutes' watermark, or all there is without live rows."""
    live, minutes = store.query(
        "SELECT countIf(kind = 'insert' AND topic = 'samples'),"
        " toUnixTimestamp64Milli(maxIf(watermark, kind = 'insert')) FROM ingest_log"
    ).rows[0]
    if live:
        return max(0, int(minutes) - grace_ms)
    newest = store.query(
        "SELECT toInt64(toUnixTimestamp(max(ts))) * 1000 FROM ledger_sources"
    ).rows[0][0]
    return newest + QUARTER_MS if newest else 0


def _runs(quarters: Sequence[int]) -> list[tuple[int, int]]:
    out: list[tuple[int, int]] = []
    for quarter in quarters:
        if out and out[-1][1] == quarter and quarter - out[-1][0] < RUN_MS:
            out[-1] = (out[-1][0], quarter + QUARTER_MS)
        else:
            out.append((quarter, quarter + QUARTER_MS))
    return out


# -- one run ------------------------------------------------------------------------------------


def _close_run(
    store: Store, site: str, precedence: Sequence[str], from_ms: int, until_ms: int, now_ms: int
) -> list[Outcome]:
    site_id = id64(site)
    before = known(store, site, from_ms, until_ms)
    tried = known(store, site, from_ms, until_ms, attempts=True)
    version = max([now_ms, *(k.version + 1 for k in tried.values())])
    # Read before anything else: what comes meanwhile makes the quarter open again.
    data = data_versions(store, site, from_ms, until_ms)
    says = said(store, site, from_ms, until_ms)
    found = claims.load(store, site, precedence, from_ms - SHOW_MS, until_ms)
    totals = _Totals.empty(from_ms, until_ms)
    broken = ""
    try:
        for chunk in compute.gpus(store, found, site_id, from_ms, until_ms, now_ms):
            _write_quarters(store, site_id, version, chunk)
            totals.add(chunk)
    except ValueError as error:  # the law does not hold: nothing of this run counts
        broken = str(error)
    meter_mj = _write_meters(store, found, site, version, from_ms, until_ms) if not broken else {}
    lost = {} if broken else _lost(store, site_id, version, before, from_ms, until_ms)
    if not broken:
        _write_holders(store, site_id, version, totals)
    out = []
    for quarter in range(from_ms, until_ms, QUARTER_MS):
        if quarter not in data:
            continue
        state: State = "failed" if broken else "refused" if quarter in lost else "closed"
        outcome = totals.outcome(quarter, state, broken or lost.get(quarter, ""))
        _write_close(store, site_id, version, outcome, totals, data, says, meter_mj, now_ms)
        out.append(outcome)
    return out


def _lost(
    store: Store,
    site_id: int,
    version: int,
    before: Mapping[int, Known],
    from_ms: int,
    until_ms: int,
) -> dict[int, str]:
    """Quarters in which a GPU has less measured time than the version that counts."""
    if not before:
        return {}
    found = store.query(
        "SELECT toInt64(toUnixTimestamp(ts)) * 1000, count(), sum(was - now), any(gpu) FROM"
        " (SELECT ts, gpu, sumIf(measured_ms, version = {new:UInt64}) AS now,"
        " sumIf(measured_ms, version != {new:UInt64}) AS was"
        " FROM ledger_quarters WHERE site = {site:UInt64}"
        " AND ts >= toDateTime({since:Int64}, 'UTC') AND ts < toDateTime({until:Int64}, 'UTC')"
        " AND ((ts, version) IN (SELECT ts, max(version) FROM ledger_closes"
        " WHERE site = {site:UInt64} AND state = 'closed' GROUP BY ts) OR version = {new:UInt64})"
        " GROUP BY ts, gpu) WHERE now < was GROUP BY ts",
        {"new": version, "site": site_id, "since": from_ms // 1000, "until": until_ms // 1000},
    ).rows
    return {
        quarter: f"{count} GPUs would have {lost / 1000:.0f} s less measured than the version that "
        f"counts, GPU {gpu:016x} among them: the data it was closed from is gone"
        for quarter, count, lost, gpu in found
    }


@dataclass(slots=True)
class _Totals:
    """Holders' sums over the chunks of a run."""

    from_ms: int
    sums: dict[tuple[int, int, int], list[int]]
    gaps: dict[tuple[int, int, int], list[int]]
    bins: dict[tuple[int, int, int], list[int]]
    gpus: dict[int, int]

    @classmethod
    def empty(cls, from_ms: int, _until_ms: int) -> "_Totals":
        return cls(from_ms, {}, {}, {}, {})

    def add(self, chunk: Computed) -> None:
        held = chunk.held
        order = np.lexsort((held.workload, held.tenant, held.quarter_ms))
        quarter, tenant, workload = (
            c[order] for c in (held.quarter_ms, held.tenant, held.workload)
        )
        new = np.ones(len(order), np.bool_)
        new[1:] = (quarter[1:] != quarter[:-1]) | (tenant[1:] != tenant[:-1])
        new[1:] |= workload[1:] != workload[:-1]
        starts = np.flatnonzero(new)
        if not len(starts):
            return
        causes = np.stack([np.where(chunk.gap_cause == c, chunk.gap_ms, 0) for c in CAUSES], axis=1)
        small = np.where(chunk.gap_cause == "", chunk.gap_ms, 0)
        causes[:, CAUSES.index("unknown")] += small
        one = np.ones((len(order), 1), np.int64)
        table = np.concatenate(
            (one, held.allocated_ms[:, None], held.sums, held.estimated_mj[:, None],
             chunk.gap_ms[:, None], causes, _bins(held)), axis=1,
        )  # fmt: skip
        total = np.add.reduceat(table[order], starts, axis=0).tolist()
        width = 4 + len(FIELDS)
        for key, row in zip(
            zip(quarter[starts].tolist(), tenant[starts].tolist(), workload[starts].tolist(),
                strict=True), total, strict=True,
        ):  # fmt: skip
            cut = width + len(CAUSES)
            for into, part in (
                (self.sums, row[:width]), (self.gaps, row[width:cut]), (self.bins, row[cut:]),
            ):  # fmt: skip
                into[key] = [
                    a + b for a, b in zip(into.get(key, [0] * len(part)), part, strict=True)
                ]
        pairs = np.unique(np.stack([held.quarter_ms, held.device.view(np.int64)], axis=1), axis=0)
        for quarter_ms, count in zip(*np.unique(pairs[:, 0], return_counts=True), strict=True):
            self.gpus[int(quarter_ms)] = self.gpus.get(int(quarter_ms), 0) + int(count)

    def of(self, quarter_ms: int, field: int) -> int:
        return sum(row[field] for key, row in self.sums.items() if key[0] == quarter_ms)

    def outcome(self, quarter_ms: int, state: State, reason: str) -> Outcome:
        return Outcome(
            quarter_ms, state, reason, self.of(quarter_ms, 2 + ENERGY),
            self.of(quarter_ms, 2 + MEASURED), self.of(quarter_ms, 1),
        )  # fmt: skip


def _bins(held: Held) -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
    """Time of known utilisation, in the bin of the row's mean."""
    percent, known_ms = held.sums[:, _UTIL[0]], held.sums[:, _UTIL[1]]
    mean = percent // np.maximum(1, known_ms)
    place = np.clip(mean * HISTOGRAM_BINS // 100, 0, HISTOGRAM_BINS - 1)
    out = np.zeros((len(place), HISTOGRAM_BINS), np.int64)
    out[np.arange(len(place)), place] = known_ms
    return out


# -- rows ---------------------------------------------------------------------------------------


def _write_quarters(store: Store, site_id: int, version: int, chunk: Computed) -> None:
    held, count = chunk.held, len(chunk.held.device)
    block: dict[str, Values] = {
        "site": np.full(count, site_id, np.uint64), "ts": held.quarter_ms // 1000,
        "gpu": held.device, "tenant": held.tenant, "workload": held.workload,
        "version": np.full(count, version, np.uint64), "allocated_ms": held.allocated_ms,
        "estimated_j": held.estimated_mj, "gap_ms": chunk.gap_ms, "power_w_max": held.max_dw,
        "gap_cause": chunk.gap_cause.tolist(),
    }  # fmt: skip
    block |= {name: held.sums[:, i] for i, name in enumerate(_COLUMNS)}
    store.insert("ledger_quarters", block)


def _write_holders(store: Store, site_id: int, version: int, totals: _Totals) -> None:
    found: list[rows.Row] = []
    for key, sums in totals.sums.items():
        row: rows.Row = {
            "site": site_id, "ts": key[0] // 1000, "tenant": key[1], "workload": key[2],
            "version": version, "gpus": sums[0], "allocated_ms": sums[1],
            "estimated_j": sums[-2], "gap_ms": sums[-1], "gap_ms_by_cause": totals.gaps[key],
            "util_ms_by_bin": totals.bins[key],
        }  # fmt: skip
        found.append(row | dict(zip(_COLUMNS, sums[2:-2], strict=True)))
    if found:
        store.insert("ledger_holders", rows.columns(found))


def _write_meters(
    store: Store, found: claims.Site, site: str, version: int, from_ms: int, until_ms: int
) -> dict[int, int]:
    """Meters' rows; returns the energy by node meters of each quarter."""
    names, held = compute.meters(store, found, site, from_ms, until_ms)
    out: dict[int, int] = {}
    made: list[rows.Row] = []
    for i in range(len(held.device)):
        kind, meter = names[int(held.device[i])]
        energy, quarter = int(held.sums[i, ENERGY]), int(held.quarter_ms[i])
        if kind == "node":
            out[quarter] = out.get(quarter, 0) + energy
        made.append({
            "site": id64(site), "ts": quarter // 1000, "kind": kind, "meter": meter,
            "tenant": int(held.tenant[i]), "workload": int(held.workload[i]), "version": version,
            "energy_j": energy, "measured_ms": int(held.sums[i, MEASURED]),
            "allocated_ms": int(held.allocated_ms[i]),
        })  # fmt: skip
    if made:
        store.insert("ledger_meters", rows.columns(made))
    return out


def _write_close(
    store: Store,
    site_id: int,
    version: int,
    outcome: Outcome,
    totals: _Totals,
    data: Mapping[int, int],
    says: Mapping[int, int],
    meter_mj: Mapping[int, int],
    now_ms: int,
) -> None:
    quarter = outcome.quarter_ms
    row: rows.Row = {
        "site": site_id, "ts": quarter // 1000, "version": version,
        "state": _STATES[outcome.state], "reason": outcome.reason,
        "gpus": totals.gpus.get(quarter, 0), "energy_j": outcome.energy_mj,
        "bridged_j": totals.of(quarter, 2 + BRIDGED), "meter_energy_j": meter_mj.get(quarter, 0),
        "measured_ms": outcome.measured_ms, "expected_ms": outcome.expected_ms,
        "data_version": data[quarter], "said": says.get(quarter, 0), "closed_at": now_ms,
    }  # fmt: skip
    store.insert("ledger_closes", rows.columns([row]))


def span(store: Store, site: str) -> tuple[int, int]:
    """The time that has minutes or meters, [from_ms, until_ms) in whole quarters; (0, 0): none."""
    first, last = store.query(
        "SELECT toInt64(toUnixTimestamp(min(ts))) * 1000, toInt64(toUnixTimestamp(max(ts))) * 1000"
        " FROM ledger_sources WHERE site = {site:UInt64}",
        {"site": id64(site)},
    ).rows[0]
    return first, last + QUARTER_MS * bool(last)
