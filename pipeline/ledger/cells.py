"""A quarter's energy and time, given to whoever held the device: integers, nothing lost.

A cell is one device in one quarter of an hour under parts that do not change. What was measured
comes as spans (of a quarter, a minute, or a row) and goes to the cell that holds it; a span that a
change of hands cuts is asked for again, finer. Then each cell is divided by its parts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipeline.ledger.holdings import NOBODY, WHOLE, Part, Parts, Piece
from pipeline.records import UNALLOCATED

QUARTER_MS: Final = 900_000
FIELDS: Final = (
    "energy_mj", "idle_mj", "bridged_mj", "measured_ms", "held_ms", "active_ms", "util_pct_ms",
    "util_dt_ms", "power_dw_ms", "power_dt_ms", "throttle_power_cap_ms", "throttle_sw_thermal_ms",
    "throttle_hw_thermal_ms", "throttle_power_brake_ms",
)  # fmt: skip
"""What is divided, each an integer: millijoules, milliseconds, percent and 0.1 W times them."""
SPAN: Final = np.dtype(
    [
        ("device", "<u8"),
        ("from_ms", "<i8"),
        ("length_ms", "<i8"),
        ("rows", "<i8"),
        ("max_dw", "<i8"),
    ]
    + [(name, "<i8") for name in FIELDS]
)
"""Spans of `rows` raw rows begin at from_ms; a row is a span of length 1 at its tick, and stands for the time before."""
ENERGY: Final = FIELDS.index("energy_mj")
IDLE: Final = FIELDS.index("idle_mj")
BRIDGED: Final = FIELDS.index("bridged_mj")
MEASURED: Final = FIELDS.index("measured_ms")
SHOW_MS: Final = 1_200_000
"""How long after a change of hands a row may still stand for time before it: twice the longest
period of a recorded log. Pieces are made from so long before a range on."""
_TIME_BITS: Final = 43

Integers = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Cells:
    """Cells sorted by (device, time), and behind them one edge for each change of hands.

    An edge takes the energy between the last reading before a change and the first after it, which
    neither holder's readings span: it is the common tenant's, or nobody's.
    """

    devices: NDArray[np.uint64]  # distinct, sorted
    device: NDArray[np.uint64]
    quarter_ms: Integers
    from_ms: Integers
    until_ms: Integers
    begun_ms: Integers  # of the piece, which may be quarters ago
    edge: Integers  # index of the edge for rows from before the piece, -1 where there is none
    parts: list[Parts]
    keys: Integers  # of the proper cells: dense device and from_ms

    def find(self, spans: NDArray[np.void]) -> tuple[Integers, NDArray[np.bool_]]:
        """The cell of each span's beginning, and which spans are cut by a change of hands.

        A span that begins where a piece begins, or soon after, is cut too, unless it is a row: its
        first row stands for time before.
        """
        dense = np.searchsorted(self.devices, spans["device"])
        first = self.at(dense, spans["from_ms"])
        last = self.at(dense, spans["from_ms"] + spans["length_ms"] - 1)
        # A row stands for at most two periods before it.
        reach = 2 * spans["measured_ms"] // np.maximum(1, spans["rows"])
        early = (spans["from_ms"] - reach < self.begun_ms[first]) & (self.edge[first] >= 0)
        return first, (first != last) | (early & (spans["length_ms"] > 1))

    def at(self, dense: NDArray[np.intp], at_ms: Integers) -> Integers:
        """The cell of devices, by their index in `devices`, at a time."""
        key = (dense.astype(np.int64) << _TIME_BITS) | at_ms
        return np.searchsorted(self.keys, key, side="right") - 1


def cells(devices: Mapping[int, Sequence[Piece]], from_ms: int, until_ms: int) -> Cells:
    """The cells of [from_ms, until_ms), whole quarters; pieces begin before it, to show changes."""
    order = sorted(devices)
    rows: list[tuple[int, int, int, int, int, int]] = []
    edges: list[tuple[int, int, int, int, int, int]] = []
    parts: list[Parts] = []
    edge_parts: list[Parts] = []
    for device in order:
        before: Piece | None = None
        for piece in devices[device]:
            begin, end = max(piece.from_ms, from_ms), min(piece.until_ms, until_ms)
            while begin < end:
                quarter, edge = begin // QUARTER_MS * QUARTER_MS, -1
                stop = min(end, quarter + QUARTER_MS)
                if before is not None and begin - piece.from_ms < SHOW_MS:
                    edge = len(edges)
                    edges.append((device, quarter, begin, begin, piece.from_ms, -1))
                    edge_parts.append(_between(before.parts, piece.parts))
                rows.append((device, quarter, begin, stop, piece.from_ms, edge))
                parts.append(piece.parts)
                begin = stop
            before = piece
    return _laid_out(order, rows, edges, parts + edge_parts)


def _laid_out(
    order: Sequence[int],
    rows: Sequence[tuple[int, ...]],
    edges: Sequence[tuple[int, ...]],
    parts: list[Parts],
) -> Cells:
    devices = np.array(order, np.uint64)
    device = np.array([r[0] for r in (*rows, *edges)], np.uint64)
    table = np.array([r[1:] for r in (*rows, *edges)], np.int64).reshape(-1, 5)
    edge = np.where(table[:, 4] >= 0, table[:, 4] + len(rows), -1)
    dense = np.searchsorted(devices, device[: len(rows)])
    keys = (dense.astype(np.int64) << _TIME_BITS) | table[: len(rows), 1]
    return Cells(
        devices, device, table[:, 0], table[:, 1], table[:, 2], table[:, 3], edge, parts, keys
    )


def _between(before: Parts, after: Parts) -> Parts:
    """Whose the moment of a change is: the tenant's that held all of it on both sides, or nobody's."""
    tenants = {part.tenant for part in (*before, *after)}
    return (Part(tenants.pop(), UNALLOCATED, WHOLE),) if len(tenants) == 1 else NOBODY


@dataclass(slots=True)
class Sums:
    """What each cell was given: sums (cells, FIELDS), and the highest power in 0.1 W."""

    cells: Cells
    sums: Integers
    max_dw: Integers

    @classmethod
    def zero(cls, made: Cells) -> "Sums":
        """Nothing yet."""
        count = len(made.device)
        return cls(made, np.zeros((count, len(FIELDS)), np.int64), np.zeros(count, np.int64))

    def give(self, spans: NDArray[np.void]) -> NDArray[np.void]:
        """Give spans to their cells; returns those that are cut and must come again, finer.

        Rows are never cut: the energy of one that stands for time before its piece began goes to
        the edge.
        """
        if not len(spans):
            return spans
        cell, cut = self.cells.find(spans)
        whole, cell = spans[~cut], cell[~cut]
        values = np.stack([whole[name] for name in FIELDS], axis=1)
        edge = self.cells.edge[cell]
        early = whole["from_ms"] - whole["measured_ms"] < self.cells.begun_ms[cell]
        astray = (whole["length_ms"] == 1) & early & (edge >= 0)
        if astray.any():
            moved = np.zeros((int(astray.sum()), len(FIELDS)), np.int64)
            for at in (ENERGY, IDLE):
                moved[:, at] = values[astray, at]
                values[astray, at] = 0
            np.add.at(self.sums, edge[astray], moved)
        np.add.at(self.sums, cell, values)
        np.maximum.at(self.max_dw, cell, whole["max_dw"])
        return spans[cut]

    def give_evenly(self, spans: NDArray[np.void]) -> None:
        """Give cut spans whose rows are gone, to their cells by time, by largest remainder."""
        for span in spans:
            device = np.searchsorted(self.cells.devices, span["device"])
            begin, end = int(span["from_ms"]), int(span["from_ms"] + span["length_ms"])
            first = int(self.cells.at(np.array([device]), np.array([begin]))[0])
            last = int(self.cells.at(np.array([device]), np.array([end - 1]))[0])
            for i, value in self._over(first, last, begin, end, [int(span[n]) for n in FIELDS]):
                self.sums[i] += value
                self.max_dw[i] = max(self.max_dw[i], span["max_dw"])

    def bridge(self, device: int, from_ms: int, until_ms: int, energy_mj: int) -> int:
        """Give energy over a gap to the cells under it; returns how much lies in these cells."""
        known = self.cells.devices
        dense = int(np.searchsorted(known, np.uint64(device)))
        if dense == len(known) or known[dense] != device:
            return 0
        mine = np.flatnonzero(self.cells.keys >> _TIME_BITS == dense)
        given = 0
        lengths, hit = [], []
        for i in mine.tolist():
            over = min(until_ms, int(self.cells.until_ms[i])) - max(
                from_ms, int(self.cells.from_ms[i])
            )
            if over > 0:
                lengths.append(over)
                hit.append(i)
        # Cumulative, so that the same gap closed in two runs adds up to the same.
        whole = until_ms - from_ms
        for i, over in zip(hit, lengths, strict=True):
            begin = max(from_ms, int(self.cells.from_ms[i])) - from_ms
            part = energy_mj * (begin + over) // whole - energy_mj * begin // whole
            self.sums[i, BRIDGED] += part
            given += part
        return given

    def _over(
        self, first: int, last: int, begin: int, end: int, values: list[int]
    ) -> list[tuple[int, Integers]]:
        out, done, given = [], 0, np.zeros(len(values), np.int64)
        for i in range(first, last + 1):
            done += min(end, int(self.cells.until_ms[i])) - max(begin, int(self.cells.from_ms[i]))
            upto = np.array([value * done // (end - begin) for value in values], np.int64)
            out.append((i, upto - given))
            given = upto
        return out


@dataclass(frozen=True, slots=True)
class Held:
    """Rows of device, quarter and holder: what the ledger stores."""

    device: NDArray[np.uint64]
    quarter_ms: Integers
    tenant: NDArray[np.uint64]
    workload: NDArray[np.uint64]
    allocated_ms: Integers
    sums: Integers  # (rows, FIELDS)
    max_dw: Integers
    estimated_mj: Integers  # of the energy: divided by shares


def divided(given: Sums, expected_ms: Integers) -> Held:
    """Each cell's sums and expected time, divided by its parts, and added up by holder."""
    made = given.cells
    count = np.array([len(p) for p in made.parts], np.int64)
    cell = np.repeat(np.arange(len(count)), count)
    flat = [part for parts in made.parts for part in parts]
    tenant = np.array([p.tenant for p in flat], np.uint64)
    workload = np.array([p.workload for p in flat], np.uint64)
    share = np.array([p.share_ppm for p in flat], np.int64)
    values = np.concatenate((given.sums, expected_ms[:, None]), axis=1)[cell]
    shared = np.flatnonzero(count[cell] > 1)
    estimated = np.zeros(len(cell), np.int64)
    if len(shared):
        for at in range(values.shape[1]):
            values[shared, at] = _apportioned(values[shared, at], share[shared], cell[shared])
        estimated[shared] = values[shared, ENERGY]
    return _by_holder(
        made.device[cell], made.quarter_ms[cell], tenant, workload, values, given.max_dw[cell],
        estimated,
    )  # fmt: skip


def _apportioned(total: Integers, share: Integers, cell: Integers) -> Integers:
    """Totals by shares that add up to WHOLE per cell, by largest remainder (cells in order)."""
    # In two steps, so that no product leaves 64 bits.
    high, low = np.divmod(total, WHOLE)
    scaled = low * share
    out = high * share + scaled // WHOLE
    remainder = scaled % WHOLE
    starts = run_starts(cell)
    lengths = np.diff(np.append(starts, len(cell)))
    left = total[starts] - np.add.reduceat(out, starts)
    order = np.lexsort((np.arange(len(cell)), -remainder, cell))
    rank = np.arange(len(cell)) - np.repeat(starts, lengths)
    out[order] += rank < np.repeat(left, lengths)
    return out


def run_starts(*columns: NDArray[np.generic]) -> NDArray[np.intp]:
    """Where rows begin that are alike in all of these columns, which are sorted together."""
    new = np.ones(len(columns[0]), np.bool_)
    new[1:] = np.logical_or.reduce([column[1:] != column[:-1] for column in columns])
    return np.flatnonzero(new)


def _by_holder(
    device: NDArray[np.uint64],
    quarter: Integers,
    tenant: NDArray[np.uint64],
    workload: NDArray[np.uint64],
    values: Integers,
    max_dw: Integers,
    estimated: Integers,
) -> Held:
    order = np.lexsort((workload, tenant, quarter, device))
    device, quarter, tenant, workload = (
        device[order], quarter[order], tenant[order], workload[order],
    )  # fmt: skip
    starts = run_starts(device, quarter, tenant, workload)
    if not len(starts):
        empty = np.zeros(0, np.int64)
        return Held(device, empty, tenant, workload, empty, values[:, :-1], empty, empty)
    total = np.add.reduceat(values[order], starts, axis=0)
    # An edge that got nothing, where nothing was expected either, is no row.
    peak = np.maximum.reduceat(max_dw[order], starts)
    kept = np.flatnonzero(total.any(axis=1))
    at = starts[kept]
    return Held(
        device[at], quarter[at], tenant[at], workload[at], total[kept, -1], total[kept, :-1],
        peak[kept], np.add.reduceat(estimated[order], starts)[kept],
    )  # fmt: skip
