"""Files of GPU samples into times, devices and storage integers, in the order of the files.

A GPU without a uuid is called NODE/INDEX.
"""

import zoneinfo
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.errors import Refuse
from pipeline.formats import cells, contract, readers, values
from pipeline.formats.contract import METRICS, Options
from pipeline.formats.readers import Block, Fault, Faults, Unfit, shown

Array = NDArray[np.generic]
Columns = dict[str, Array]
"""A block: name -> one-dimensional array, all of one length."""
Progress = Callable[[int, int], None]
"""Told the rows that are done, and an estimate of all."""

MAX_ROWS: Final = 20_000_000
"""In memory at once; a row needs about 250 bytes at the peak."""

_NO_TIME: Final = "is no time of 2010 to 2099 in ISO 8601 or epoch milliseconds"


class Device(NamedTuple):
    """A GPU in a place, as the files name it."""

    site: str
    node: str
    gpu: str
    uuid: str
    model: str
    serial: str
    pci_bus_id: str
    vbios: str
    driver_version: str

    @property
    def key(self) -> str:
        """The GPU's natural key."""
        return self.uuid or f"{self.node}/{self.gpu}"

    @property
    def fault(self) -> str:
        """What is wrong with it; empty if nothing is."""
        for name, value in zip(self._fields, self, strict=True):
            if not cells.is_name(value):
                return f"{name} {shown(value)} is no printable name of at most 255 characters"
        if not self.site or not self.node:
            return f"{'node' if self.site else 'site'} is empty"
        if self.gpu and not cells.is_index(self.gpu):
            return f"gpu {shown(self.gpu)} is no index from 0 to {cells.MAX_INDEX}"
        return "" if self.gpu or self.uuid else "gpu and uuid are both empty"


class Piece(NamedTuple):
    """Rows of a block: device positions, times, storage integers by metric."""

    device: NDArray[np.int64]
    ts: NDArray[np.int64]
    metrics: Columns


@dataclass(slots=True)
class Devices:
    """Every device that was met, by its position."""

    known: dict[Device, int] = field(default_factory=dict)

    def position(self, device: Device) -> int:
        """Where a device stands; it is added if it is new."""
        return self.known.setdefault(device, len(self.known))


@dataclass(frozen=True, slots=True)
class Loaded:
    """What the files hold, in their order."""

    pieces: Sequence[Piece]
    devices: Sequence[Device]
    bad: Faults


def load(files: Sequence[Path], options: Options, progress: Progress) -> Loaded:
    """Read the files. Raises Refuse, which names the file, line, column and value."""
    devices, bad, pieces = Devices(), Faults(), list[Piece]()
    sizes = [_size(path) for path in files]
    done_bytes = 0
    for path, size in zip(files, sizes, strict=True):
        kept = len(pieces)
        for blocks, note in _attempts(path, options, bad):
            parser = _Parser(str(path), options, cells.zone(options.zone), devices)
            try:
                for block in blocks:
                    pieces.append(parser.piece(block, note))
                    read = sum(len(piece.ts) for piece in pieces)
                    _within(read)
                    share = max(1, done_bytes + block.read_bytes) / max(1, sum(sizes))
                    progress(read, max(read, round(read / share)))
                    if bad.count > readers.SHOWN and not options.keep_good:
                        bad.refuse()
                break
            except Unfit:
                del pieces[kept:]
        done_bytes += size
    if not options.keep_good:
        bad.refuse()
    return Loaded(pieces, list(devices.known), bad)


def _within(rows: int) -> None:
    if rows > MAX_ROWS:
        raise Refuse(f"more than {MAX_ROWS:,} rows: import them in parts, by time")


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise Refuse(f"cannot read {path}: {error.strerror}") from error


def _attempts(
    path: Path, options: Options, bad: Faults
) -> Iterator[tuple[Iterator[Block], Faults | None]]:
    """A file's blocks: read fast, then, where that is Unfit, carefully, noting bad rows."""
    is_parquet = readers.is_parquet(path, options.format)
    header = readers.parquet_header(path) if is_parquet else readers.csv_header(path)
    at = contract.resolve(header, contract.SAMPLES, options, str(path))
    have = {*at, *options.constants}
    contract.require(have, ("ts", "node"), header, str(path))
    if "uuid" not in have:
        contract.require(have, ("gpu",), header, str(path))
    if not at.keys() & METRICS.keys():
        raise Refuse(f"{path}: no column of a metric, such as power_w: name it with --map")
    if is_parquet:
        yield readers.parquet(path, at), bad
    else:
        yield readers.fast(path, at, len(header)), None
        yield readers.careful(path, at, header, bad), bad


@dataclass(frozen=True, slots=True)
class _Parser:
    """Blocks of one file into pieces."""

    where: str
    options: Options
    local: zoneinfo.ZoneInfo
    devices: Devices

    def piece(self, block: Block, bad: Faults | None) -> Piece:
        """The good rows of a block; the others are noted in `bad`, or Unfit is raised."""
        ts = values.times(block.columns["ts"], self.local)
        device, faults = self._devices(block)
        wrong = {"ts": ts == cells.BAD_TIME, "": device < 0}
        metrics: Columns = {}
        for name in [name for name in METRICS if name in block.columns]:
            numbers, unread = values.numbers(block.columns[name], METRICS[name])
            metrics[name], unfit = values.stored(numbers, METRICS[name])
            wrong[name] = unread | unfit
        out = np.logical_or.reduce(list(wrong.values()))
        if not out.any():
            return Piece(device, ts, metrics)
        if bad is None:
            raise Unfit
        for row in np.flatnonzero(out).tolist():
            name = next(name for name, mask in wrong.items() if mask[row])
            bad.add(self._fault(block, row, name, faults.get(int(device[row]), "")))
        good = ~out
        return Piece(device[good], ts[good], {n: column[good] for n, column in metrics.items()})

    def _fault(self, block: Block, row: int, name: str, reason: str) -> Fault:
        assert block.lines is not None, "only a reader that knows lines notes bad rows"
        if name:
            value = block.columns[name][row].as_py()
            reason = f"{name} {shown(value)} {_NO_TIME if name == 'ts' else _misfit(name)}"
        return Fault(self.where, int(block.lines[row]), reason)

    def _devices(self, block: Block) -> tuple[NDArray[np.int64], dict[int, str]]:
        """Each row's device; those that cannot be have negative positions, and a reason."""
        constants = {"site": self.options.site, **self.options.constants}
        codes = np.zeros(block.rows, np.int64)
        found: list[tuple[str, ...]] = [()]
        for name in Device._fields:
            if name in block.columns:
                texts, column = values.distinct(block.columns[name])
                if name == "gpu":
                    texts = [str(int(text)) if cells.is_index(text) else text for text in texts]
                codes, found = _combined(codes, found, column, texts)
            else:
                found = [(*names, constants.get(name, "")) for names in found]
        faults: dict[int, str] = {}
        positions = np.zeros(max(1, len(found)), np.int64)
        for i, names in enumerate(found):
            device = Device._make(names)
            if fault := device.fault:
                positions[i] = -1 - i
                faults[-1 - i] = fault
            else:
                positions[i] = self.devices.position(device)
        return positions[codes], faults


def _combined(
    codes: NDArray[np.int64],
    found: Sequence[tuple[str, ...]],
    column: NDArray[np.int64],
    texts: Sequence[str],
) -> tuple[NDArray[np.int64], list[tuple[str, ...]]]:
    """Distinct combinations of what was found so far with one more column."""
    coded = pa.array(codes * len(texts) + column).dictionary_encode()
    pairs = coded.dictionary.to_pylist()
    return (
        coded.indices.to_numpy().astype(np.int64),
        [(*found[pair // len(texts)], texts[pair % len(texts)]) for pair in pairs],
    )


def _misfit(name: str) -> str:
    metric = METRICS[name]
    return f"is no number that {name} can hold ({metric.storage}, {metric.decimals} decimals)"
