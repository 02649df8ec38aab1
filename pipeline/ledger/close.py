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
from pipeline.ledger.cells import ENERGY, FIELDS, MEASURED, QUARTER_MS, SHOW_MS
from pipeline.ledger.compute import Computed
from pipeline.ledger.said import said
from pipeline.ledger.totals import Totals
from pipeline.native import Values
from pipeline.records import id64
from pipeline.store import Store

State = Literal["closed", "refused", "failed"]
_STATES: Final[Mapping[State, int]] = {"closed": 1, "refused": 2, "failed": 3}
RUN_MS: Final = 4 * QUARTER_MS
"""Quarters that are worked out together."""
_PLAIN: Final = {
    "energy_mj": "energy_j", "estimated_mj": "estimated_j", "idle_mj": "idle_j",
    "bridged_mj": "bridged_j", "util_pct_ms": "util_gpu_pct_ms", "util_dt_ms": "util_gpu_pct_dt_ms",
    "power_dw_ms": "power_w_ms", "power_dt_ms": "power_w_dt_ms",
}  # fmt: skip
_COLUMNS: Final = tuple(_PLAIN.get(name, name) for name in FIELDS)
"""The ledger's columns for FIELDS: decimals in the same integers."""


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
    totals = Totals()
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
        outcome = Outcome(
            quarter, state, broken or lost.get(quarter, ""), totals.of(quarter, "energy_mj"),
            totals.of(quarter, "measured_ms"), totals.of(quarter, "allocated_ms"),
        )  # fmt: skip
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


def _write_holders(store: Store, site_id: int, version: int, totals: Totals) -> None:
    found: list[rows.Row] = [
        {
            "site": site_id, "ts": quarter_ms // 1000, "tenant": tenant, "workload": workload,
            "version": version, "gap_ms_by_cause": gaps, "util_ms_by_bin": bins,
        }
        | {_PLAIN.get(name, name): value for name, value in sums.items()}
        for (quarter_ms, tenant, workload), sums, gaps, bins in totals.rows()
    ]  # fmt: skip
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
    totals: Totals,
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
        "bridged_j": totals.of(quarter, "bridged_mj"), "meter_energy_j": meter_mj.get(quarter, 0),
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
