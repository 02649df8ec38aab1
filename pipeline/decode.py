"""Thousands of messages at once into columns: no Python loop per row, and none per value.

Messages of one layout and shape are laid side by side as a matrix of bytes; a column is then a
slice of it. All shapes of a batch end as one block.
"""

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pipeline.catalog import FAST, SLICE, SLOW, WIDTH, Metric
from pipeline.errors import Reject
from pipeline.holders import Holders
from pipeline.records import ENERGY_NONE, ENERGY_TRAPEZOID
from pipeline.thin import digests
from pipeline.wire import (
    BASES,
    CRC_FROM,
    HEADER,
    INSTANCE,
    MAGIC,
    VERSION,
    Column,
    Layout,
    predict,
    read_header,
    row_bytes,
)

Array = NDArray[np.generic]
Columns = dict[str, Array]
"""A block: name -> one-dimensional array, all of one length."""

HEADER_DTYPE: Final = np.dtype(
    [
        ("magic", "S4"), ("version", "u1"), ("lane", "u1"), ("reserved", "<u2"), ("crc", "<u4"),
        ("length", "<u4"), ("layout", "<u8"), ("site", "<u8"), ("node", "<u8"), ("stream", "<u8"),
        ("seq", "<u8"), ("t0_ms", "<i8"), ("period_ms", "<u4"), ("ticks", "<u2"), ("gpus", "<u2"),
        ("slices", "<u2"), ("reserved2", "<u2"), ("boot_epoch", "<u4"), ("driver_epoch", "<u4"),
        ("dropped", "<u4"),
    ]
)  # fmt: skip
assert HEADER_DTYPE.itemsize == HEADER.size

_SHAPE: Final = ["layout", "ticks", "gpus", "slices"]  # 16 bits each but the first
OLDEST_MS: Final = 1_262_304_000_000  # 2010: no GPU before it is worth a watt
AHEAD_MS: Final = 300_000
"""A live row further ahead of the broker's clock than this is quarantined."""
NEWEST_MS: Final = 4_102_444_800_000  # 2100: the rollups' seconds end in 2106
MAX_PERIOD_MS: Final = 60_000
_TOGETHER: Final = 512
"""Messages that are unshuffled at once: what of them is touched stays in the processor's cache."""
_EPOCHS: Final = ("boot_epoch", "driver_epoch")
_NEWS: Final = frozenset(
    m.name for m in SLOW if m.kind in ("state", "counter") and m.name != "energy_counter_j"
)
Worth = Callable[[NDArray[np.void], NDArray[np.uint64]], NDArray[np.bool_]]
"""Which messages' slow columns are worth a row, by headers and digests (pipeline/thin.py)."""


@dataclass(frozen=True, slots=True)
class Checked:
    """Messages that can be decoded, their headers side by side, and what was wrong with others."""

    headers: NDArray[np.void]
    positions: list[int]
    rejects: list[tuple[int, str]]


def check(values: Sequence[bytes], at_ms: Sequence[int], layouts: Mapping[int, Layout]) -> Checked:
    """Read and judge the headers of a batch.

    `positions` are the indices of good messages in `values`, `rejects` pairs of index and reason;
    `at_ms` is the broker's time of each message.
    """
    good: list[int] = []
    rejects: list[tuple[int, str]] = []
    size = HEADER.size
    for i, value in enumerate(values):
        # The checksum is the one per-message cost; everything else is judged side by side below.
        if len(value) >= size and zlib.crc32(memoryview(value)[CRC_FROM:]) == int.from_bytes(
            value[8:12], "little"
        ):
            good.append(i)
        else:
            rejects.append((i, _reason(value)))
    headers = np.frombuffer(b"".join([values[i][:size] for i in good]), HEADER_DTYPE)
    wrong = _wrong(headers, np.array([len(values[i]) for i in good]), layouts)
    late = headers["t0_ms"] + headers["ticks"].astype(np.int64) * headers["period_ms"]
    ahead = late - np.array([at_ms[i] for i in good], np.int64) > AHEAD_MS
    for k in np.flatnonzero(wrong | ahead):
        reason = _reason(values[good[k]], layouts) if wrong[k] else _ahead(late[k], at_ms[good[k]])
        rejects.append((good[k], reason))
    keep = ~(wrong | ahead)
    positions = [i for i, ok in zip(good, keep.tolist(), strict=True) if ok]
    return Checked(headers[keep], positions, rejects)


def _wrong(
    headers: NDArray[np.void], lengths: NDArray[np.int64], layouts: Mapping[int, Layout]
) -> NDArray[np.bool_]:
    """Which headers do not describe a message that this build can read."""
    wrong = (headers["magic"] != MAGIC) | (headers["version"] != VERSION)
    wrong |= headers["length"] != lengths
    wrong |= (headers["ticks"] == 0) | (headers["gpus"] == 0) | (headers["period_ms"] == 0)
    wrong |= headers["period_ms"] > MAX_PERIOD_MS
    wrong |= (headers["t0_ms"] < OLDEST_MS) | (headers["t0_ms"] > NEWEST_MS)
    expected = np.zeros(len(headers), np.int64)
    for members in _by_shape(headers):
        key, ticks, gpus, slices = headers[members[0]][_SHAPE].tolist()
        if key in layouts:
            expected[members] = layouts[key].size(ticks, gpus, slices)
    unfit: NDArray[np.bool_] = wrong | (expected != lengths)
    return unfit


def _by_shape(headers: NDArray[np.void]) -> list[NDArray[np.intp]]:
    """Indices of messages that can be decoded side by side, in turn of their first."""
    # By integers: numpy compares records field by field, a hundred times slower.
    _, layout = np.unique(headers["layout"], return_inverse=True)
    key = layout.astype(np.uint64)
    for name in _SHAPE[1:]:
        key = key << np.uint64(16) | headers[name]
    shapes, first = np.unique(key, return_index=True)
    return [np.flatnonzero(key == shapes[i]) for i in np.argsort(first)]


def _ahead(late_ms: int, at_ms: int) -> str:
    return f"clock: samples {(int(late_ms) - at_ms) / 1000:.0f} s ahead of the broker's clock"


def _reason(value: bytes, layouts: Mapping[int, Layout] | None = None) -> str:
    """Why a message cannot be read, in the words of the one-message decoder."""
    try:
        head = read_header(value)
    except Reject as error:
        return str(error)
    if layouts is not None and head.layout not in layouts:
        return f"unknown layout {head.layout:016x}"
    return (
        f"corrupt: {len(value)} bytes, {head.ticks} ticks of {head.period_ms} ms, "
        f"{head.gpus} GPUs, {head.slices} slices at {head.t0_ms} ms do not fit together"
    )


@dataclass(slots=True)
class Decoded:
    """Blocks for gpu_samples, gpu_health and slice_samples."""

    samples: Columns = field(default_factory=dict)
    health: Columns = field(default_factory=dict)
    slices: Columns = field(default_factory=dict)


def decode(
    values: Sequence[bytes],
    headers: NDArray[np.void],
    layouts: Mapping[int, Layout],
    holders: Holders,
    worth: Worth | None = None,
) -> Decoded:
    """Columns of checked messages, in storage integers, stamped with who held each GPU.

    Rows that were not sampled (dt_ms = 0) are left out, and so are the slow columns of messages
    that are not `worth` it.
    """
    parts: list[Decoded] = []
    for members in _by_shape(headers):
        group = _Group.of([values[i] for i in members.tolist()], headers[members])
        layout = layouts[int(group.headers[0]["layout"])]
        parts.append(_decode_group(group, layout, holders, worth))
    return Decoded(*(_concat([getattr(p, f) for p in parts]) for f in Decoded.__slots__))


def _concat(blocks: Sequence[Columns]) -> Columns:
    blocks = [b for b in blocks if b]
    if len(blocks) < 2:
        return blocks[0] if blocks else {}
    return {name: np.concatenate([b[name] for b in blocks]) for name in blocks[0]}


@dataclass(frozen=True, slots=True)
class _Group:
    """Messages of one shape, side by side."""

    headers: NDArray[np.void]
    matrix: NDArray[np.uint8]
    ticks: int
    gpus: int
    slices: int
    gpu_ids: NDArray[np.uint64]  # (messages, gpus)
    times: NDArray[np.int64]  # (messages, ticks)

    @classmethod
    def of(cls, values: Sequence[bytes], headers: NDArray[np.void]) -> "_Group":
        ticks, gpus, slices = (int(headers[0][k]) for k in ("ticks", "gpus", "slices"))
        matrix = np.frombuffer(b"".join(values), np.uint8).reshape(len(values), -1)
        ids = matrix[:, HEADER.size : HEADER.size + 8 * gpus]
        period = headers["period_ms"].astype(np.int64)
        times = headers["t0_ms"][:, None] + np.arange(ticks) * period[:, None]
        return cls(
            headers, matrix, ticks, gpus, slices, np.ascontiguousarray(ids).view("<u8"), times
        )


def _decode_group(group: _Group, layout: Layout, holders: Holders, worth: Worth | None) -> Decoded:
    headers, ticks, gpus = group.headers, group.ticks, group.gpus
    count = len(headers)
    at = HEADER.size + 8 * gpus
    records = _records(group.matrix, at, layout.fast, ticks, gpus)
    at += row_bytes(layout.fast) * ticks * gpus
    # In the order of the table, by GPU, then by time: the engine looks whether a block is in order
    # before it sorts, and to sort a GPU's ticks as one costs a quarter of sorting rows there. GPUs
    # in order are also found among their holders at a third of the cost.
    order = np.argsort(group.gpu_ids.reshape(-1), kind="stable")
    values = _columns(records.take(order, axis=0), layout.fast, ticks)
    for column in layout.fast:
        if column.like:
            values[column.name] = unfold(column, values)
    message, ids = order // gpus, group.gpu_ids.reshape(-1)[order]
    times = group.times[message]
    tenant, workload = holders.at(ids[:, None], times)
    # A hostile or broken dt may not reach a view that spreads a row over its seconds.
    limit = np.repeat((headers["period_ms"] * np.uint32(2))[message], ticks)
    dt = np.minimum(values["dt_ms"], limit)
    # An enumeration with a value outside it could never be read back.
    kind = values["energy_kind"].astype(np.uint8)
    kind[kind > ENERGY_TRAPEZOID] = ENERGY_NONE
    samples = _identity(headers, message, ids, times)
    samples |= {"tenant": tenant.reshape(-1), "workload": workload.reshape(-1), "dt_ms": dt}
    samples |= {"flags": values["flags"], "energy_kind": kind}
    samples |= _known(values, layout.fast, FAST, len(dt))
    there = dt > 0
    if not there.all():
        samples = {name: column[there] for name, column in samples.items()}
    present = np.empty((count * gpus, ticks), np.bool_)
    present[order] = there.reshape(-1, ticks)
    out = Decoded(samples)
    heard: NDArray[np.bool_] = present.any(axis=1).reshape(count, gpus)
    out.health = _decode_health(group, at, layout, heard, worth)
    if group.slices:
        at += row_bytes(layout.slow) * gpus
        out.slices = _decode_slices(group, at, layout, present.reshape(count, gpus, ticks))
    return out


def _decode_health(
    group: _Group, at: int, layout: Layout, heard: NDArray[np.bool_], worth: Worth | None
) -> Columns:
    """Slow columns of the GPUs that were `heard` (messages, gpus), where they are worth a row."""
    headers, gpus = group.headers, group.gpus
    if worth is not None:
        news = [headers[name][:, None] for name in _EPOCHS]
        news.append(_words(group.matrix, at, layout.slow, gpus))
        heard = heard & worth(headers, digests(news))[:, None]
    told = np.flatnonzero(heard.any(axis=1))
    block = group.matrix[:, at : at + row_bytes(layout.slow) * gpus].take(told, axis=0)
    records = _records(block, 0, layout.slow, 1, gpus)
    rows = np.flatnonzero(heard[told])
    columns = _columns(records.take(rows, axis=0), layout.slow, 1)
    message, gpu = told[rows // gpus], rows % gpus
    out = _identity(headers, message, group.gpu_ids[message, gpu], group.times[message, :1])
    out |= {name: headers[name][message] for name in _EPOCHS}
    return out | _known(columns, layout.slow, SLOW, len(message))


def _words(
    matrix: NDArray[np.uint8], at: int, columns: Sequence[Column], count: int
) -> NDArray[np.uint64]:
    """The bytes of what `thin` looks at, of every message, eight to a word."""
    parts = []
    for column in columns:
        end = at + WIDTH[column.storage] * count
        if column.name in _NEWS:
            parts.append(matrix[:, at:end])
        at = end
    size = sum(part.shape[1] for part in parts)
    parts.append(np.zeros((len(matrix), -size % 8 or 8), np.uint8))
    return np.concatenate(parts, axis=1).view(np.uint64)


def _identity(
    headers: NDArray[np.void],
    message: NDArray[np.intp],
    gpu_ids: NDArray[np.uint64],
    times: NDArray[np.int64],
) -> Columns:
    """Who, when and in which message, for rows (GPU of a message, tick): `times` is (GPUs, ticks)."""
    ticks = times.shape[1]
    columns: Columns = {"gpu": np.repeat(gpu_ids, ticks), "ts": times.reshape(-1)}
    for name in ("node", "site", "stream", "seq"):
        columns[name] = np.repeat(headers[name][message], ticks)
    return columns


def _records(
    matrix: NDArray[np.uint8], at: int, columns: Sequence[Column], ticks: int, each: int
) -> NDArray[np.uint8]:
    """A block of messages, unshuffled, as a record per (message, GPU or instance).

    A record has every column's ticks, one column after the other. To put GPUs in order is then to
    move one piece of memory for each, not one in every column.
    """
    places = [np.empty((each, 0), np.intp)]
    for column in columns:
        width = WIDTH[column.storage]
        gpu, tick, byte = np.ogrid[:each, :ticks, :width]
        places.append((at + (byte * ticks + tick) * each + gpu).reshape(each, -1))
        at += width * ticks * each
    where = np.concatenate(places, axis=1).reshape(-1)
    out = np.empty((len(matrix), len(where)), np.uint8)
    for low in range(0, len(matrix), _TOGETHER):
        piece = slice(low, low + _TOGETHER)
        matrix[piece].take(where, axis=1, out=out[piece], mode="clip")
    return out.reshape(len(matrix) * each, len(where) // each)


def _columns(records: NDArray[np.uint8], columns: Sequence[Column], ticks: int) -> Columns:
    """Columns of records; a record's ticks lie together."""
    out: Columns = {}
    at = 0
    for column in columns:
        size = ticks * WIDTH[column.storage]
        # As values of that many bytes: four times as fast as copying them byte by byte.
        together = records[:, at : at + size].view(f"V{size}").copy()
        out[column.name] = together.view(column.storage).reshape(-1)
        at += size
    return out


def fold(column: Column, columns: Columns) -> Array:
    """A predicted column as it travels (pipeline/wire.py), for whole arrays at once."""
    unsigned = np.dtype(f"u{np.dtype(column.storage).itemsize}")
    rest = columns[column.name].view(unsigned) - _predicted(column, columns, unsigned)
    negative = rest >> np.array(8 * unsigned.itemsize - 1, unsigned)
    folded: Array = (rest << np.array(1, unsigned)) ^ (np.array(0, unsigned) - negative)
    return folded


def unfold(column: Column, columns: Columns) -> Array:
    """A predicted column's values from what travelled."""
    unsigned = np.dtype(f"u{np.dtype(column.storage).itemsize}")
    folded = columns[column.name].view(unsigned)
    one = np.array(1, unsigned)
    rest = (folded >> one) ^ (np.array(0, unsigned) - (folded & one))
    values: Array = (rest + _predicted(column, columns, unsigned)).view(column.storage)
    return values


def _predicted(column: Column, columns: Columns, unsigned: np.dtype[Any]) -> NDArray[Any]:
    bases = [columns[name].astype(np.int64) for name in BASES[column.like]]
    predicted: NDArray[np.int64] = predict(column.like, bases)
    return predicted.astype(unsigned)


def _known(
    columns: Columns, layout: Sequence[Column], metrics: Sequence[Metric], rows: int
) -> Columns:
    """The catalogue's metrics: unknown columns are skipped, absent or re-typed ones are NULL."""
    spoken = {column[:3] for column in layout}
    return {
        m.name: columns[m.name]
        if (m.name, m.storage, m.decimals) in spoken
        else np.full(rows, m.null_code, m.storage)
        for m in metrics
    }


def _decode_slices(group: _Group, at: int, layout: Layout, present: NDArray[np.bool_]) -> Columns:
    """Instances' rows, less those whose GPU is not in the message or was not sampled."""
    count, ticks, slices = len(group.headers), group.ticks, group.slices
    end = at + len(INSTANCE) * slices
    instances = group.matrix[:, at:end].reshape(count, len(INSTANCE), slices)
    records = _records(group.matrix, end, layout.slices, ticks, slices)
    position = np.minimum(instances[:, 0], group.gpus - 1).astype(np.intp)
    message = np.repeat(np.arange(count), slices)
    ids = np.take_along_axis(group.gpu_ids, position, axis=1).reshape(-1)
    out = _identity(group.headers, message, ids, group.times[message])
    for name, which in (("gi", 1), ("ci", 2)):
        out[name] = np.repeat(instances[:, which].reshape(-1), ticks)
    columns = _columns(records, layout.slices, ticks)
    out |= _known(columns, layout.slices, SLICE, len(out["gpu"]))
    there = np.take_along_axis(present, position[:, :, None], axis=1)
    exists = (there & (instances[:, 0] < group.gpus)[:, :, None]).reshape(-1)
    return out if exists.all() else {name: column[exists] for name, column in out.items()}
