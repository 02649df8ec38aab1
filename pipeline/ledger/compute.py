"""Quarters of an hour worked out from what the store holds: values, nothing is written here."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipeline.ledger import gaps, spans
from pipeline.ledger.cells import (
    ENERGY,
    MEASURED,
    QUARTER_MS,
    SHOW_MS,
    Cells,
    Held,
    Integers,
    Sums,
    cells,
    divided,
    run_starts,
)
from pipeline.ledger.claims import Site
from pipeline.ledger.holdings import NOBODY, Piece
from pipeline.records import id64
from pipeline.store import Store

GPUS_AT_ONCE: Final = 60_000
_TOLERANCE_MS: Final = 3_000
"""Less missing than this is a late tick, and no gap to bridge."""


@dataclass(frozen=True, slots=True)
class Computed:
    """A chunk of GPUs: who held them, the gap of each row and its cause."""

    held: Held
    gap_ms: Integers
    gap_cause: NDArray[np.str_]


def chunks(store: Store, site_id: int, from_ms: int, until_ms: int) -> list[tuple[int, int]]:
    """Ranges of GPU ids, [low, high), that divide the work evenly: ids are hashes."""
    count = store.query(
        "SELECT uniq(gpu) FROM gpu_minutes WHERE site = {site:UInt64}"
        " AND ts >= fromUnixTimestamp64Milli({since:Int64}, 'UTC')"
        " AND ts < fromUnixTimestamp64Milli({until:Int64}, 'UTC')",
        {"site": site_id, "since": from_ms, "until": until_ms},
    ).rows[0][0]
    pieces = int(count) // GPUS_AT_ONCE + 1
    return list(pairwise(i * 2**64 // pieces for i in range(pieces + 1)))


def gpus(
    store: Store, site: Site, site_id: int, from_ms: int, until_ms: int, now_ms: int
) -> Iterator[Computed]:
    """Every GPU of a site over whole quarters, in chunks of ids. Raises ValueError if the law fails."""
    for low, high in chunks(store, site_id, from_ms, until_ms):
        measured = spans.by_quarter(store, site_id, from_ms, until_ms, low, high)
        known = {gpu for gpu in site.stays if low <= gpu < high}
        devices = sorted(known.union(measured["device"].tolist()))
        if not devices:
            continue
        made = cells(
            {d: site.pieces(d, from_ms - SHOW_MS, until_ms) for d in devices}, from_ms, until_ms
        )
        given = Sums.zero(made)
        finer = given.give(measured)
        if len(finer):
            _by_rows(store, given, given.give(spans.by_minute(store, site_id, finer)))
        expected = _expected(made, site, measured, from_ms, until_ms)
        _bridge(store, given, expected, from_ms, until_ms)
        held = divided(given, expected)
        _check(held, measured)
        gap = np.maximum(0, held.allocated_ms - held.sums[:, MEASURED])
        yield Computed(held, gap, _causes(store, site, site_id, held, gap, now_ms))


def meters(
    store: Store, site: Site, name: str, from_ms: int, until_ms: int
) -> tuple[list[tuple[str, str]], Held]:
    """Every meter's quarters: of a node by its holders, above nodes nobody's."""
    names, found = spans.meters(store, id64(name), from_ms, until_ms)
    nobody = [Piece(from_ms - SHOW_MS, until_ms, NOBODY)]
    devices = {
        i: site.node_pieces(id64(name, meter), from_ms - SHOW_MS, until_ms)
        if kind == "node"
        else nobody
        for i, (kind, meter) in enumerate(names)
    }
    made = cells(devices, from_ms, until_ms)
    given = Sums.zero(made)
    given.give(found)
    seen = np.unique((found["device"].astype(np.int64) << 43) | found["from_ms"] // QUARTER_MS)
    cell = (made.device.astype(np.int64) << 43) | made.quarter_ms // QUARTER_MS
    expected = np.where(np.isin(cell, seen), made.until_ms - made.from_ms, 0)
    return names, divided(given, expected)


def _by_rows(store: Store, given: Sums, minutes: NDArray[np.void]) -> None:
    """Give cut minutes row by row; those whose raw rows are gone, or are fewer by now, by time."""
    if not len(minutes):
        return
    rows = spans.by_row(store, minutes)
    key = [("device", "<u8"), ("minute", "<i8")]
    of_rows = np.zeros(len(rows), key)
    of_rows["device"] = rows["device"]
    of_rows["minute"] = rows["from_ms"] // spans.MINUTE_MS * spans.MINUTE_MS
    kinds, at = np.unique(of_rows, return_inverse=True)
    sums = np.zeros((len(kinds), 2), np.int64)
    np.add.at(sums, at, np.stack([rows["energy_mj"], rows["measured_ms"]], axis=1))
    whole = dict(zip(kinds.tolist(), map(tuple, sums.tolist()), strict=True))
    good = np.array(
        [
            whole.get((m["device"], m["from_ms"])) == (m["energy_mj"], m["measured_ms"])
            for m in minutes
        ],
        np.bool_,
    )
    trusted = {(int(m["device"]), int(m["from_ms"])) for m in minutes[good]}
    keep = np.array([k in trusted for k in of_rows.tolist()], np.bool_)
    given.give(rows[keep] if len(rows) else rows)
    given.give_evenly(minutes[~good])


def _expected(
    made: Cells, site: Site, measured: NDArray[np.void], from_ms: int, until_ms: int
) -> Integers:
    """How much of each cell its GPU was expected; without inventory in quarters that have rows."""
    out = made.until_ms - made.from_ms
    fixed = {
        device
        for device in made.devices.tolist()
        if site.expected_ms(device, from_ms, until_ms) == until_ms - from_ms
    }
    seen = set(zip(measured["device"].tolist(), measured["from_ms"].tolist(), strict=True))
    odd = [i for i, device in enumerate(made.device.tolist()) if device not in fixed]
    for i in odd:
        device, begin, end = int(made.device[i]), int(made.from_ms[i]), int(made.until_ms[i])
        if device in site.stays:
            out[i] = site.expected_ms(device, begin, end)
        elif (device, int(made.quarter_ms[i])) not in seen:
            out[i] = 0
    return out


def _bridge(store: Store, given: Sums, expected: Integers, from_ms: int, until_ms: int) -> None:
    made = given.cells
    dense = np.searchsorted(made.devices, made.device)
    wanted = np.bincount(dense, expected, len(made.devices))
    found = np.bincount(dense, given.sums[:, MEASURED], len(made.devices))
    short = made.devices[(wanted - found > _TOLERANCE_MS) & (found > 0)]
    for bridge in gaps.bridges(store, short.tolist(), from_ms, until_ms):
        given.bridge(*bridge)


def _causes(
    store: Store, site: Site, site_id: int, held: Held, gap: Integers, now_ms: int
) -> NDArray[np.str_]:
    real = np.flatnonzero(gap > _TOLERANCE_MS)
    missing = {(int(held.device[i]), int(held.quarter_ms[i])): int(gap[i]) for i in real.tolist()}
    found = gaps.causes(store, site_id, missing, site.nodes, site.names, now_ms)
    out = np.full(len(gap), "", dtype="U7")
    for i in real.tolist():
        out[i] = found[int(held.device[i]), int(held.quarter_ms[i])]
    return out


def _check(held: Held, measured: NDArray[np.void]) -> None:
    """The law: for each GPU and quarter, all holders together have what was measured."""
    keys = np.concatenate((held.device, measured["device"]))
    times = np.concatenate((held.quarter_ms, measured["from_ms"]))
    values = np.concatenate(
        (held.sums[:, [ENERGY, MEASURED]],
         -np.stack([measured["energy_mj"], measured["measured_ms"]], axis=1))
    )  # fmt: skip
    order = np.lexsort((times, keys))
    keys, times, values = keys[order], times[order], values[order]
    starts = run_starts(keys, times)
    off = np.add.reduceat(values, starts, axis=0)
    bad = np.flatnonzero(off.any(axis=1))
    if len(bad):
        i = starts[bad[0]]
        raise ValueError(
            f"GPU {int(keys[i]):016x}: its holders have {off[bad[0]][0]:+d} mJ and "
            f"{off[bad[0]][1]:+d} ms against what was measured ({len(bad)} GPUs are off)"
        )
