"""All rows of an import as rows of gpu_samples and gpu_health: joined, sorted, deltas computed.

Logs are rotated and GPUs interleave, so all files of one import are taken together. Of rows with
the same GPU and time the last stands.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipeline import energy
from pipeline.catalog import ABSURD_POWER_W, FAST, FAST_BY_NAME, SLOW, SLOW_BY_NAME
from pipeline.errors import Refuse
from pipeline.formats.cells import NEWEST_MS
from pipeline.formats.contract import METRICS
from pipeline.formats.readers import Faults
from pipeline.formats.samples import Array, Columns, Device, Loaded, Piece
from pipeline.records import (
    ENERGY_COUNTER,
    ENERGY_NONE,
    ENERGY_TRAPEZOID,
    FLAG_ABSURD_ENERGY,
    FLAG_ABSURD_POWER,
    FLAG_NEGATIVE_POWER,
    Gpu,
    Inventory,
    id64,
)

HEALTH_EVERY_MS: Final = 10_000
HOUR_MS: Final = 3_600_000
SOURCE: Final = "import"

_COUNTER: Final = "energy_counter_j"
_NO_ENERGY: Final = FAST_BY_NAME["energy_j"].null_code
_INTEGRATED: Final = -2


@dataclass(frozen=True, slots=True)
class Samples:
    """All rows, sorted by (hour, gpu, ts).

    `fast` are the columns of gpu_samples that are reported, `health` those of gpu_health, none if
    no file has a slow value.
    """

    fast: Columns
    health: Columns
    inventories: tuple[Inventory, ...]
    rows_read: int
    rows_repeated: int
    bad: Faults

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return len(self.fast["ts"])


def joined(loaded: Loaded) -> Samples:
    """All pieces together, with dt_ms, flags and energy, sorted by (hour, gpu, ts)."""
    pieces, devices, bad = loaded.pieces, loaded.devices, loaded.bad
    device = _concatenated([piece.device for piece in pieces], np.int64)
    ts = _concatenated([piece.ts for piece in pieces], np.int64)
    read = len(ts)
    ids = np.array([id64(d.site, d.key) for d in devices], np.uint64)
    _refuse_collisions(devices, ids)
    number = np.unique(ids, return_inverse=True)[1][device] if read else device
    order = np.lexsort((ts, number))  # stable: equal rows stay in the order of the files
    number, ts = number[order], ts[order]
    last = np.ones(read, np.bool_)
    last[:-1] = (number[1:] != number[:-1]) | (ts[1:] != ts[:-1])
    order, number, ts = order[last], number[last], ts[last]
    metrics = {name: _metric(pieces, name)[order] for name in _present(pieces)}
    device = device[order]
    rows = energy.rhythm(number, ts)
    fast = _with_energy(number, ts, rows, metrics)
    fast |= _identity(device, devices, ids) | {"ts": ts}
    inventories = _inventories(device, ts, rows, devices)
    health = _health(fast, number, metrics)
    by_hour = np.argsort(ts // HOUR_MS, kind="stable")
    return Samples(
        {name: column[by_hour] for name, column in fast.items()},
        health, inventories, read + bad.count, read - len(ts), bad,
    )  # fmt: skip


def _refuse_collisions(devices: Sequence[Device], ids: NDArray[np.uint64]) -> None:
    names: dict[int, tuple[str, str]] = {}
    for device, number in zip(devices, ids.tolist(), strict=True):
        other = names.setdefault(number, (device.site, device.key))
        if other != (device.site, device.key):
            raise Refuse(f"GPUs {device.key} and {other[1]} have the same id: rename one of them")


def filled(columns: Columns) -> Columns:
    """The same rows with every fast column, null where no file reports it."""
    return _absent(len(columns["ts"])) | columns


def _absent(rows: int) -> Columns:
    """Every fast metric, not reported; one value each, shown `rows` times."""
    return {m.name: np.broadcast_to(np.array(m.null_code, f"<{m.storage}"), (rows,)) for m in FAST}


def _concatenated(arrays: Sequence[Array], kind: type[np.generic]) -> NDArray[np.int64]:
    return np.concatenate([np.empty(0, kind), *arrays]).astype(np.int64, copy=False)


def _present(pieces: Sequence[Piece]) -> list[str]:
    return [name for name in METRICS if any(name in piece.metrics for piece in pieces)]


def _metric(pieces: Sequence[Piece], name: str) -> Array:
    """A metric of all rows; not reported by files without it."""
    metric = METRICS[name]
    kind = np.dtype(f"<{metric.storage}")
    return np.concatenate(
        [
            piece.metrics[name]
            if name in piece.metrics
            else np.full(len(piece.ts), metric.null_code, kind)
            for piece in pieces
        ]
    )


def _identity(device: Array, devices: Sequence[Device], ids: NDArray[np.uint64]) -> Columns:
    node = np.array([id64(d.site, d.node) for d in devices], np.uint64)
    site = np.array([id64(d.site) for d in devices], np.uint64)
    return {"gpu": ids[device], "node": node[device], "site": site[device]}


def _with_energy(
    gpu: NDArray[np.int64], ts: NDArray[np.int64], rows: energy.Rhythm, metrics: Columns
) -> Columns:
    """Every fast column that is reported; energy as given, else of the counter, else of the power, GPU by GPU."""
    count = len(ts)
    absent = _absent(count)
    columns = {m.name: metrics[m.name] for m in FAST if m.name in metrics}
    power = (columns["power_w"] if "power_w" in columns else absent["power_w"]).astype(np.int64)
    negative = (power < 0) & (power != FAST_BY_NAME["power_w"].null_code)
    absurd = power > ABSURD_POWER_W * FAST_BY_NAME["power_w"].scale
    good = (power >= 0) & ~absurd
    dt = energy.row_ms(rows)
    given = (columns["energy_j"] if "energy_j" in columns else absent["energy_j"]).astype(np.int64)
    given[given == _NO_ENERGY] = energy.UNKNOWN
    counter = _counter(metrics, count)
    of_power = energy.trapezoid(gpu, ts, power, good)
    read = np.where(
        _anywhere(gpu, given >= 0), given,
        np.where(_anywhere(gpu, counter >= 0), energy.counted(gpu, ts, counter, rows), _INTEGRATED),
    )  # fmt: skip
    integrated = read == _INTEGRATED
    too_much = ~integrated & (
        (read > ABSURD_POWER_W * np.maximum(dt, rows.gap_ms)) | (read >= _NO_ENERGY)
    )
    millijoules = np.where(integrated, of_power, np.where(too_much, energy.UNKNOWN, read))
    known = millijoules >= 0
    columns["energy_j"] = np.where(known, millijoules, _NO_ENERGY).astype("<u4")
    kind = np.where(integrated, ENERGY_TRAPEZOID, ENERGY_COUNTER)
    flags = (
        negative * FLAG_NEGATIVE_POWER + absurd * FLAG_ABSURD_POWER + too_much * FLAG_ABSURD_ENERGY
    )
    return columns | {
        "dt_ms": dt,
        "flags": flags.astype(np.uint16),
        "energy_kind": np.where(known, kind, ENERGY_NONE).astype(np.uint8),
    }


def _counter(metrics: Columns, count: int) -> NDArray[np.int64]:
    if _COUNTER not in metrics:
        return np.full(count, energy.UNKNOWN, np.int64)
    raw = metrics[_COUNTER]
    return np.where(raw == SLOW_BY_NAME[_COUNTER].null_code, energy.UNKNOWN, raw.astype(np.int64))


def _anywhere(gpu: NDArray[np.int64], reported: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """True on all rows of a GPU that reports at least once."""
    if not len(gpu):
        return reported
    return (np.bincount(gpu, reported) > 0)[gpu]


def _health(fast: Columns, gpu: NDArray[np.int64], metrics: Columns) -> Columns:
    """Slow values: each GPU's first row of HEALTH_EVERY_MS that reports one; none if no file does.

    The driver epoch counts how often a GPU's energy counter began again.
    """
    slow = {m.name: metrics[m.name] for m in SLOW if m.name in metrics}
    if not slow:
        return {}
    reported = np.logical_or.reduce([c != METRICS[n].null_code for n, c in slow.items()])
    at = np.flatnonzero(reported)
    slot, mine = fast["ts"].astype(np.int64)[at] // HEALTH_EVERY_MS, gpu[at]
    first = np.ones(len(at), np.bool_)
    first[1:] = (slot[1:] != slot[:-1]) | (mine[1:] != mine[:-1])
    at = at[first]
    epoch = energy.resets(gpu, _counter(metrics, len(gpu)))
    columns: Columns = {name: fast[name][at] for name in ("gpu", "ts", "node", "site")}
    columns |= {"boot_epoch": np.zeros(len(at), np.uint32), "driver_epoch": epoch[at]}
    for m in SLOW:
        absent = np.full(len(at), m.null_code, f"<{m.storage}")
        columns[m.name] = slow[m.name][at] if m.name in slow else absent
    return columns


def _inventories(
    device: NDArray[np.int64],
    ts: NDArray[np.int64],
    rows: energy.Rhythm,
    devices: Sequence[Device],
) -> tuple[Inventory, ...]:
    """Who was where while the rows lasted: closed intervals, so that nobody is missed afterwards."""
    if not len(ts):
        return ()
    begin = np.full(len(devices), NEWEST_MS, np.int64)
    end = np.zeros(len(devices), np.int64)
    np.minimum.at(begin, device, ts)
    np.maximum.at(end, device, ts + rows.period_ms)
    met = [(d, int(begin[i]), int(end[i])) for i, d in enumerate(devices) if end[i]]
    nodes_of: dict[str, set[str]] = {}
    for d, _, _ in met:
        nodes_of.setdefault(d.key, set()).add(d.node)
    groups: dict[tuple[str, str, str], list[tuple[Device, int, int]]] = {}
    for entry in met:
        d = entry[0]
        moved = d.key if len(nodes_of[d.key]) > 1 else ""
        groups.setdefault((d.site, d.node, moved), []).append(entry)
    return tuple(_inventory(entries) for _, entries in sorted(groups.items()))


def _inventory(entries: Sequence[tuple[Device, int, int]]) -> Inventory:
    told: dict[str, Device] = {}
    for d, _, _ in entries:
        known = told.get(d.key, d)
        told[d.key] = Device(*(old or new for old, new in zip(known, d, strict=True)))
    ranked = sorted(told)
    gpus = [
        Gpu(
            index=int(d.gpu) if d.gpu else ranked.index(key), uuid=key, model=d.model,
            serial=d.serial, pci_bus_id=d.pci_bus_id, vbios=d.vbios,
        )
        for key, d in told.items()
    ]  # fmt: skip
    first = entries[0][0]
    return Inventory(
        site=first.site, node=first.node, from_ms=min(begin for _, begin, _ in entries),
        until_ms=max(end for _, _, end in entries), gpus=tuple(sorted(gpus, key=lambda g: g.index)),
        source=SOURCE, driver_version=first.driver_version,
    )  # fmt: skip
