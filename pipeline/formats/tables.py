"""Small files, row by row: meter readings, allocations, inventory."""

import math
import typing
import zoneinfo
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from pipeline.errors import Reject
from pipeline.formats import cells, contract, readers
from pipeline.formats.cells import MAX_INDEX, is_index
from pipeline.formats.contract import Options
from pipeline.formats.readers import Fault, Faults, shown
from pipeline.records import Allocation, Gpu, Inventory, MeterKind, MeterReading

Progress = Callable[[int, int], None]

SOURCE: Final = "import"
METER_KINDS: Final = typing.get_args(MeterKind)
WATTS_MAX: Final = 1e10
"""Ten gigawatts: more is no meter of a site."""
_TELL_EVERY: Final = 10_000

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Row:
    """A row's values by our names, as text."""

    found: Mapping[str, object]
    options: Options
    local: zoneinfo.ZoneInfo

    def text(self, name: str, default: str = "") -> str:
        """A name or nothing. Raises Reject."""
        cell = self.found.get(name)
        text = self.options.constants.get(name, default) if cell is None else str(cell).strip()
        if not cells.is_name(text):
            raise Reject(f"{name} {shown(text)} is no printable name of at most 255 characters")
        return text

    def needed(self, name: str, default: str = "") -> str:
        """A name that must be there. Raises Reject."""
        found = self.text(name, default)
        if not found:
            raise Reject(f"{name} is empty")
        return found

    def time_ms(self, name: str) -> int | None:
        """A time, None where the cell is empty. Raises Reject."""
        cell = self.found.get(name, self.options.constants.get(name))
        if cell is None or (isinstance(cell, str) and not cell.strip()):
            return None
        text = cell.isoformat() if isinstance(cell, datetime) else str(cell)
        at = cells.time_ms(text, self.local)
        if not cells.OLDEST_MS <= at < cells.NEWEST_MS:
            raise Reject(f"{name} {shown(cell)} is no time of 2010 to 2099 in ISO 8601 or epoch ms")
        return at

    def needed_ms(self, name: str) -> int:
        """A time that must be there. Raises Reject."""
        at = self.time_ms(name)
        if at is None:
            raise Reject(f"{name} is empty")
        return at

    def interval_ms(self) -> tuple[int, int | None]:
        """From and until; the end may be open. Raises Reject."""
        begin, end = self.needed_ms("from"), self.time_ms("until")
        if end is not None and end <= begin:
            raise Reject(f"until {shown(self.found.get('until'))} is not after from")
        return begin, end

    @property
    def site(self) -> str:
        """The site, as the row or the options say."""
        return self.needed("site", self.options.site)


def meters(
    files: Sequence[Path], options: Options, progress: Progress, bad: Faults
) -> Iterator[MeterReading]:
    """Readings in the order of the files; bad rows are noted in `bad`. Raises Refuse."""
    needed = ("ts", "meter", "kind", "watts")
    return _made(files, options, progress, bad, (contract.METERS, needed), _meter)


def allocations(
    files: Sequence[Path], options: Options, progress: Progress, bad: Faults
) -> Iterator[Allocation]:
    """Allocations in the order of the files, not yet asserted. Raises Refuse."""
    needed = ("tenant", "node", "from")
    return _made(files, options, progress, bad, (contract.ALLOCATIONS, needed), _allocation)


def inventory(
    files: Sequence[Path], options: Options, progress: Progress, bad: Faults
) -> list[Inventory]:
    """One record per node, place and interval. Raises Refuse."""
    needed = ("node", "gpu", "from")
    groups: dict[Inventory, dict[str, Gpu]] = {}
    for row in _made(files, options, progress, bad, (contract.INVENTORY, needed), _placed):
        where, gpu = row
        groups.setdefault(where, {})[gpu.uuid] = gpu
    return [
        msgspec.structs.replace(where, gpus=tuple(sorted(gpus.values(), key=lambda g: g.index)))
        for where, gpus in groups.items()
    ]


def _made(
    files: Sequence[Path],
    options: Options,
    progress: Progress,
    bad: Faults,
    names: tuple[Sequence[str], Sequence[str]],
    make: Callable[[Row], T],
) -> Iterator[T]:
    """What `make` makes of each row; its Reject is a bad row."""
    known, needed = names
    local = cells.zone(options.zone)
    done = 0
    for path in files:
        is_parquet = readers.is_parquet(path, options.format)
        header = readers.parquet_header(path) if is_parquet else readers.csv_header(path)
        at = contract.resolve(header, known, options, str(path))
        contract.require({*at, *options.constants}, needed, header, str(path))
        for line, found in readers.records(path, at, header, bad, options.format):
            done += 1
            if done % _TELL_EVERY == 0:
                progress(done, done)
            try:
                yield make(Row(found, options, local))
            except Reject as reason:
                bad.add(Fault(str(path), line, str(reason)))


def _meter(row: Row) -> MeterReading:
    kind = row.needed("kind")
    if kind not in METER_KINDS:
        raise Reject(f"kind {shown(kind)} is none of {', '.join(METER_KINDS)}")
    text = row.needed("watts")
    try:
        watts = float(text.removesuffix("W"))
    except ValueError:
        watts = math.nan
    if not abs(watts) <= WATTS_MAX:
        raise Reject(f"watts {shown(text)} is no number of watts within {WATTS_MAX:.0e}")
    return MeterReading(
        site=row.site, meter=row.needed("meter"), kind=typing.cast("MeterKind", kind),
        ts_ms=row.needed_ms("ts"), watts=watts,
    )  # fmt: skip


def _allocation(row: Row) -> Allocation:
    begin, end = row.interval_ms()
    return Allocation(
        site=row.site, source=row.needed("source", SOURCE), tenant=row.needed("tenant"),
        node=row.needed("node"), from_ms=begin, until_ms=end, workload=row.text("workload"),
        account=row.text("account"), gpus=gpu_list(row.text("gpus")),
        share_ppm=_share(row.text("share")),
    )  # fmt: skip


def _share(text: str) -> int:
    """A part of a GPU above 0 and up to 1, in millionths; 0 where nothing is stated."""
    if not text:
        return 0
    try:
        share = float(text)
    except ValueError:
        share = math.nan
    if not 1e-6 <= share <= 1:
        raise Reject(f"share {shown(text)} is no part of a GPU above 0 and up to 1")
    return round(share * 1_000_000)


def gpu_list(text: str) -> tuple[int, ...]:
    """GPU indices written `0-3,5`, sorted, each once; empty is the whole node. Raises Reject."""
    found: set[int] = set()
    for part in text.replace(" ", "").split(",") if text.strip() else ():
        first, _, last = part.partition("-")
        last = last if "-" in part else first
        if not (is_index(first) and is_index(last) and int(first) <= int(last)):
            raise Reject(f"gpus {shown(text)} is no list such as 0-3,5 of indices to {MAX_INDEX}")
        found.update(range(int(first), int(last) + 1))
    return tuple(sorted(found))


def _placed(row: Row) -> tuple[Inventory, Gpu]:
    begin, end = row.interval_ms()
    node, index = row.needed("node"), row.needed("gpu")
    if not is_index(index):
        raise Reject(f"gpu {shown(index)} is no index from 0 to {MAX_INDEX}")
    memory = row.text("memory_mib") or "0"
    if not (memory.isascii() and memory.isdecimal() and len(memory) < 10):
        raise Reject(f"memory_mib {shown(memory)} is no number of mebibytes")
    gpu = Gpu(
        index=int(index), uuid=row.text("uuid") or f"{node}/{int(index)}", model=row.text("model"),
        serial=row.text("serial"), pci_bus_id=row.text("pci_bus_id"), vbios=row.text("vbios"),
        memory_mib=int(memory),
    )  # fmt: skip
    where = Inventory(
        site=row.site, node=node, from_ms=begin, until_ms=end, hall=row.text("hall"),
        row=row.text("row"), rack=row.text("rack"), pdu=row.text("pdu"), source=SOURCE,
        driver_version=row.text("driver_version"),
    )  # fmt: skip
    return where, gpu
