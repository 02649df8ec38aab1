"""Files in blocks of columns: CSV at full speed, CSV with line numbers, Parquet.

The fast CSV reader gives up at anything odd (Unfit); the file is then read again by the careful
one, which knows line numbers and names what is wrong.
"""

import csv
import io
import mmap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.errors import Refuse
from pipeline.formats.contract import Format

BLOCK_BYTES: Final = 16 << 20
LINE_MAX_BYTES: Final = 16 << 20
CAREFUL_ROWS: Final = 65_536
PARQUET_ROWS: Final = 262_144
SHOWN: Final = 10
BLANK_LINES: Final = 100  # before the header
_VALUE_SHOWN: Final = 40
_COMPRESSED: Final = {b"\x1f\x8b": "gzip", b"\x28\xb5": "zstd", b"BZ": "bzip2", b"PK": "zip"}


class Unfit(Exception):
    """The fast reader cannot read this file, or found something bad in it."""


class Block(NamedTuple):
    """Rows of a file by our names; `lines` are their numbers in the file, where known."""

    columns: dict[str, pa.Array]
    rows: int
    lines: NDArray[np.int64] | None
    read_bytes: int


class Fault(NamedTuple):
    """A bad row."""

    file: str
    line: int
    reason: str


@dataclass(slots=True)
class Faults:
    """Bad rows: how many, and the first of them."""

    count: int = 0
    first: list[Fault] = field(default_factory=list)

    def add(self, fault: Fault) -> None:
        """One more bad row."""
        self.count += 1
        self.first.append(fault)
        if len(self.first) > 2 * SHOWN:
            self.first = sorted(self.first)[:SHOWN]

    @property
    def sentences(self) -> tuple[str, ...]:
        """The first bad rows in words."""
        first = sorted(self.first)[:SHOWN]
        return tuple(f"{fault.file}: line {fault.line}: {fault.reason}" for fault in first)

    def refuse(self) -> None:
        """Refuse the import if there is a bad row."""
        if self.count:
            more = f" (and {self.count - 1} more bad rows)" if self.count > 1 else ""
            raise Refuse(f"{self.sentences[0]}{more}: repair it, or import the rest by --keep-good")


def shown(value: object) -> str:
    """A value in an error message, short."""
    text = repr(value)
    return text if len(text) <= _VALUE_SHOWN else f"{text[:_VALUE_SHOWN]}... ({len(text)} long)"


def is_parquet(path: Path, form: Format) -> bool:
    """Whether a file is Parquet rather than text. Raises Refuse for neither."""
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise Refuse(f"cannot read {path}: {error.strerror}") from error
    if magic == b"PAR1":
        if form not in ("auto", "parquet"):
            raise Refuse(f"{path}: is Parquet, not {form}")
        return True
    if form == "parquet":
        raise Refuse(f"{path}: is not Parquet")
    if not magic:
        raise Refuse(f"{path}: is empty, a header line is the least")
    if magic[:2] in _COMPRESSED:
        raise Refuse(f"{path}: is compressed ({_COMPRESSED[magic[:2]]}), unpack it first")
    if magic[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise Refuse(f"{path}: is UTF-16 text, save it as UTF-8 first")
    return False


def csv_header(path: Path) -> list[str]:
    """The first record of a CSV file. Raises Refuse."""
    with path.open("rb") as raw:
        for line, record in _records(raw, path):
            if isinstance(record, list) and any(cell.strip() for cell in record):
                return record
            if line > BLANK_LINES:
                break
    raise Refuse(f"{path}: has no header line")


def parquet_header(path: Path) -> list[str]:
    """The columns of a Parquet file. Raises Refuse."""
    try:
        return list(pq.read_schema(path).names)
    except (pa.ArrowInvalid, OSError) as error:
        raise Refuse(f"{path}: is not readable Parquet: {_first_line(error)}") from error


def fast(path: Path, at: Mapping[str, int], width: int) -> Iterator[Block]:
    """Blocks of strings, by Arrow's CSV reader. Raises Unfit."""
    names = [f"c{i}" for i in range(width)]
    wanted = sorted({f"c{i}" for i in at.values()})
    try:
        with path.open("rb") as file:
            reader = pyarrow.csv.open_csv(
                file,
                read_options=pyarrow.csv.ReadOptions(
                    use_threads=False, block_size=BLOCK_BYTES, column_names=names,
                    skip_rows_after_names=1,
                ),
                parse_options=pyarrow.csv.ParseOptions(newlines_in_values=_has_quotes(path)),
                convert_options=pyarrow.csv.ConvertOptions(
                    column_types=dict.fromkeys(wanted, pa.string()), include_columns=wanted,
                    strings_can_be_null=False,
                ),
            )  # fmt: skip
            for batch in reader:
                columns = {ours: batch.column(f"c{i}") for ours, i in at.items()}
                yield Block(columns, batch.num_rows, None, file.tell())
    except pa.ArrowInvalid as error:
        raise Unfit from error


def careful(
    path: Path, at: Mapping[str, int], header: Sequence[str], bad: Faults
) -> Iterator[Block]:
    """The same blocks with line numbers; records of the wrong width are bad rows.

    A repetition of the header (logs put together) is skipped.
    """
    lines: list[int] = []
    cells: dict[str, list[str]] = {ours: [] for ours in at}
    with path.open("rb") as raw:
        for line, record in _records(raw, path):
            if isinstance(record, str):
                bad.add(Fault(str(path), line, record))
            elif len(record) != len(header):
                if record:
                    bad.add(Fault(str(path), line, _width(record, header)))
            elif record != header:
                lines.append(line)
                for ours, i in at.items():
                    cells[ours].append(record[i])
            if len(lines) == CAREFUL_ROWS:
                yield _block(cells, lines, raw.tell())
                lines, cells = [], {ours: [] for ours in at}
        yield _block(cells, lines, raw.tell())


def parquet(path: Path, at: Mapping[str, int]) -> Iterator[Block]:
    """Blocks of typed columns; the row's number stands for its line. Raises Refuse."""
    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            first, size = 1, path.stat().st_size
            wanted = sorted({names[i] for i in at.values()})
            for batch in file.iter_batches(PARQUET_ROWS, columns=wanted, use_threads=False):
                columns = {ours: batch.column(names[i]) for ours, i in at.items()}
                lines = np.arange(first, first + batch.num_rows, dtype=np.int64)
                first += batch.num_rows
                done = size * first // max(1, file.metadata.num_rows)
                yield Block(columns, batch.num_rows, lines, min(done, size))
    except (pa.ArrowException, OSError) as error:
        raise Refuse(f"{path}: is not readable Parquet: {_first_line(error)}") from error


def records(path: Path, at: Mapping[str, int], header: Sequence[str], bad: Faults,
            form: Format) -> Iterator[tuple[int, dict[str, object]]]:  # fmt: skip
    """Small files row by row: line number, values by our names."""
    blocks = parquet(path, at) if is_parquet(path, form) else careful(path, at, header, bad)
    for block in blocks:
        assert block.lines is not None
        values = {ours: column.to_pylist() for ours, column in block.columns.items()}
        for i, line in enumerate(block.lines.tolist()):
            yield line, {ours: column[i] for ours, column in values.items()}


def _width(record: Sequence[str], header: Sequence[str]) -> str:
    return f"{len(record)} values, the header has {len(header)}"


def _block(cells: Mapping[str, list[str]], lines: Sequence[int], read_bytes: int) -> Block:
    columns = {ours: pa.array(values, pa.string()) for ours, values in cells.items()}
    return Block(columns, len(lines), np.array(lines, np.int64), read_bytes)


def _records(raw: io.BufferedReader, path: Path) -> Iterator[tuple[int, list[str] | str]]:
    """Records with the number of their first line; a string says why one is none."""
    reader = csv.reader(_lines(raw, path))
    while True:
        line = reader.line_num + 1
        try:
            yield line, next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield line, str(error)


def _lines(raw: io.BufferedReader, path: Path) -> Iterator[str]:
    number = 0
    while line := raw.readline(LINE_MAX_BYTES):
        number += 1
        if len(line) == LINE_MAX_BYTES and not line.endswith(b"\n"):
            raise Refuse(f"{path}: line {number} is longer than {LINE_MAX_BYTES >> 20} MiB")
        yield line.decode("utf-8-sig" if number == 1 else "utf-8", "replace")


def _has_quotes(path: Path) -> bool:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return data.find(b'"') >= 0


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
