"""The message that carries samples: one per node and flush, columns of fixed width.

Byte for byte in pipeline/README.md; golden-tested. Little-endian throughout:

    header (HEADER, 88 bytes) | GPU ids u8[G] | fast block | slow block | slice block

A block holds its columns one after the other; a column of width w holds its values time-major
(tick, then GPU), byte-shuffled: all lowest bytes first, then the next ones, because the high bytes
are nearly constant and Kafka's zstd then finds long runs. A column that another one predicts
(Metric.like) travels as the difference, modulo 2^(8w), zigzag-folded so that small differences of
either sign are small numbers: that saves a tenth of the whole message. The fast block has ticks × G values a
column and begins with the row columns (ROW); the slow block G values; the slice block begins with
the instances' GPU, gi and ci (S bytes each), then has ticks × S values a column.

A row with dt_ms = 0 was not sampled and does not exist. This module needs only the standard
library, since agents encode with it; pipeline/decode.py reads thousands of messages at once.
"""

import functools
import hashlib
import struct
import zlib
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from pipeline.catalog import ARRAY_CODE, FAST, SLICE, SLOW, WIDTH, Like, Metric, Storage
from pipeline.errors import Reject

MAGIC: Final = b"MEGW"
VERSION: Final = 1
LANE_OFFSET: Final = 5
CRC_FROM: Final = 12
"""The checksum covers the message from here on: not the lane, which is set when it is shipped."""

HEADER: Final = struct.Struct("<4sBBHIIQQQQQqIHHHHIII")
"""magic, version, lane, reserved, crc32, length, layout, site, node, stream, seq, t0_ms, period_ms,
ticks, gpus, slices, reserved, boot_epoch, driver_epoch, dropped: see Header."""

MAX_BYTES: Final = 4 << 20


class Column(NamedTuple):
    """A column on the wire; `like` names what predicts it, see `predict`."""

    name: str
    storage: Storage
    decimals: int
    like: Like = ""


ROW: Final = (Column("dt_ms", "u4", 0), Column("flags", "u2", 0), Column("energy_kind", "u1", 0))
"""Columns that every row has beside its metrics."""
INSTANCE: Final = ("slice_gpu", "slice_gi", "slice_ci")


@dataclass(frozen=True)
class Layout:
    """Which columns a message has, in which order. Both sides know it by its hash."""

    fast: tuple[Column, ...]
    slow: tuple[Column, ...]
    slices: tuple[Column, ...]

    def describe(self) -> str:
        """The text that is hashed, and published with the inventory."""
        blocks = (("fast", self.fast), ("slow", self.slow), ("slice", self.slices))
        return ";".join(
            f"{name}=" + ",".join(":".join(map(str, c if c.like else c[:3])) for c in columns)
            for name, columns in blocks
        )

    @functools.cached_property
    def hash(self) -> int:
        """First 8 bytes, little-endian, of SHA-256 over the description."""
        return int.from_bytes(hashlib.sha256(self.describe().encode()).digest()[:8], "little")

    def size(self, ticks: int, gpus: int, slices: int) -> int:
        """Bytes of a message of this shape."""
        wide = row_bytes(self.fast) * ticks * gpus + row_bytes(self.slow) * gpus
        return (
            HEADER.size
            + 8 * gpus
            + wide
            + (len(INSTANCE) + row_bytes(self.slices) * ticks) * slices
        )


def parse_layout(text: str) -> Layout:
    """A layout from its description; Reject where it is not one."""
    try:
        blocks = dict(part.split("=", 1) for part in text.split(";"))
        fast, slow, slices = (
            tuple(_parse_column(c) for c in blocks[name].split(",") if c)
            for name in ("fast", "slow", "slice")
        )
    except (KeyError, ValueError) as error:
        raise Reject(f"layout is not understood: {text[:80]!r}") from error
    flaw = _flaw(fast) or _flaw(slow, fast=False) or _flaw(slices, fast=False)
    if flaw:
        raise Reject(f"layout {flaw}: {text[:80]!r}")
    return Layout(fast, slow, slices)


def _flaw(columns: Sequence[Column], *, fast: bool = True) -> str:
    """What keeps a block from being read, or nothing: layouts are announced by others."""
    if fast and tuple(columns[: len(ROW)]) != ROW:
        return f"does not begin with {', '.join(c.name for c in ROW)}"
    if len({c.name for c in columns}) < len(columns):
        return "has a column twice"
    bases: set[str] = set()
    for column in columns:
        if column.like and not (fast and bases.issuperset(BASES[column.like])):
            return f"has {column.name} before what predicts it"
        # What predicts is at most 32 bits wide, so that products fit 64.
        bases |= {column.name} if WIDTH[column.storage] <= 4 else set()
    return ""


def _parse_column(text: str) -> Column:
    name, storage, decimals, like = (*text.split(":"), "")[:4]
    if storage not in WIDTH or (like and like not in BASES) or text.count(":") > 3:
        raise ValueError(text)
    return Column(name, storage, int(decimals), like)


def row_bytes(columns: Sequence[Column]) -> int:
    """Bytes of a value in each of these columns."""
    return sum(WIDTH[c.storage] for c in columns)


def _columns(metrics: Sequence[Metric]) -> tuple[Column, ...]:
    return tuple(Column(m.name, m.storage, m.decimals, m.like) for m in metrics)


LAYOUT: Final = Layout(ROW + _columns(FAST), _columns(SLOW), _columns(SLICE))
"""The layout of this version's catalogue."""


@dataclass(frozen=True, slots=True)
class Header:
    """What a message says of itself.

    A stream is one life of one spool; (stream, lane, seq) is the message's identity, and seq is
    given once, when the message enters the spool. boot_epoch and driver_epoch change when the node
    or its driver restarts: raw counters are comparable only within both. dropped counts messages
    of this stream that the spool had to throw away so far.
    """

    site: int
    node: int
    stream: int
    seq: int
    t0_ms: int
    period_ms: int
    ticks: int
    gpus: int
    slices: int = 0
    boot_epoch: int = 0
    driver_epoch: int = 0
    dropped: int = 0
    lane: int = 0
    layout: int = LAYOUT.hash


@dataclass(frozen=True, slots=True)
class Message:
    """A message taken apart; columns hold raw little-endian bytes, time-major, not shuffled."""

    header: Header
    gpu_ids: tuple[int, ...]
    instances: tuple[bytes, bytes, bytes]
    fast: tuple[bytes, ...]
    slow: tuple[bytes, ...]
    slices: tuple[bytes, ...]


def encode(message: Message, layout: Layout = LAYOUT) -> bytes:
    """The bytes of a message; columns stand in the layout's order."""
    head = message.header
    parts = [struct.pack(f"<{head.gpus}Q", *message.gpu_ids)]
    known = dict(zip((c.name for c in layout.fast), message.fast, strict=True))
    parts += [_shuffle(c, _folded(c, layout, known)) for c in layout.fast]
    parts += [_shuffle(c, v) for c, v in zip(layout.slow, message.slow, strict=True)]
    parts += message.instances
    parts += [_shuffle(c, v) for c, v in zip(layout.slices, message.slices, strict=True)]
    body = b"".join(parts)
    expected = layout.size(head.ticks, head.gpus, head.slices)
    assert HEADER.size + len(body) == expected, "columns do not have the header's shape"
    header = HEADER.pack(
        MAGIC, VERSION, head.lane, 0, 0, expected, layout.hash, head.site, head.node, head.stream,
        head.seq, head.t0_ms, head.period_ms, head.ticks, head.gpus, head.slices, 0,
        head.boot_epoch, head.driver_epoch, head.dropped,
    )  # fmt: skip
    crc = zlib.crc32(body, zlib.crc32(header[CRC_FROM:]))
    return header[:8] + crc.to_bytes(4, "little") + header[CRC_FROM:] + body


def with_lane(payload: bytes, lane: int) -> bytes:
    """The same message, marked as shipped on that lane."""
    return payload[:LANE_OFFSET] + bytes((lane,)) + payload[LANE_OFFSET + 1 :]


def read_header(payload: bytes) -> Header:
    """The checked header of a message. Raises Reject, which names what is wrong."""
    if len(payload) < HEADER.size:
        raise Reject(f"truncated: {len(payload)} bytes, a header alone has {HEADER.size}")
    (magic, version, lane, _, crc, length, layout, site, node, stream, seq, t0_ms, period_ms,
     ticks, gpus, slices, _, boot, driver, dropped) = HEADER.unpack_from(payload)  # fmt: skip
    if magic != MAGIC:
        raise Reject(f"not a Megawatch message: begins with {payload[:4]!r}")
    if version != VERSION:
        raise Reject(f"unknown version {version}, this build reads version {VERSION}")
    if length != len(payload):
        raise Reject(f"truncated: {len(payload)} bytes of {length}")
    if crc != zlib.crc32(payload[CRC_FROM:]):
        raise Reject("corrupt: the checksum does not match")
    return Header(site, node, stream, seq, t0_ms, period_ms, ticks, gpus, slices, boot, driver,
                  dropped, lane, layout)  # fmt: skip


def decode(payload: bytes, layout: Layout = LAYOUT) -> Message:
    """One message taken apart, for people and tests; Reject names what is wrong."""
    head = read_header(payload)
    if head.layout != layout.hash:
        raise Reject(f"unknown layout {head.layout:016x}, this build knows {layout.hash:016x}")
    if len(payload) != layout.size(head.ticks, head.gpus, head.slices):
        raise Reject(f"corrupt: {len(payload)} bytes do not fit its shape")
    at = HEADER.size
    gpu_ids = struct.unpack_from(f"<{head.gpus}Q", payload, at)
    at += 8 * head.gpus

    def take(columns: Sequence[Column], count: int) -> tuple[bytes, ...]:
        nonlocal at
        out = []
        for column in columns:
            size = WIDTH[column.storage] * count
            out.append(_unshuffle(column, payload[at : at + size]))
            at += size
        return tuple(out)

    known: dict[str, bytes] = {}
    for column, raw in zip(layout.fast, take(layout.fast, head.ticks * head.gpus), strict=True):
        known[column.name] = _unfolded(column, raw, layout, known)
    fast = tuple(known.values())
    slow = take(layout.slow, head.gpus)
    gpu, gi, ci = (payload[at + i * head.slices : at + (i + 1) * head.slices] for i in range(3))
    at += len(INSTANCE) * head.slices
    slices = take(layout.slices, head.ticks * head.slices)
    return Message(head, gpu_ids, (gpu, gi, ci), fast, slow, slices)


def _shuffle(column: Column, raw: bytes) -> bytes:
    width = WIDTH[column.storage]
    return raw if width == 1 else b"".join([raw[i::width] for i in range(width)])


def _unshuffle(column: Column, shuffled: bytes) -> bytes:
    width = WIDTH[column.storage]
    if width == 1:
        return shuffled
    count = len(shuffled) // width
    out = bytearray(len(shuffled))
    for i in range(width):
        out[i::width] = shuffled[i * count : (i + 1) * count]
    return bytes(out)


BASES: Final[dict[Like, tuple[str, ...]]] = {
    "power_w": ("power_w",),
    "-temp_gpu_c": ("temp_gpu_c",),
    "power_w*dt_ms": ("power_w", "dt_ms"),
    "nvlink_tx_mib": ("nvlink_tx_mib",),
}
"""The columns that a prediction is made from; they stand before the predicted one."""


def predict(like: Like, bases: Sequence[Any]) -> Any:
    """What a value should be, from the bases' storage integers; also for whole arrays of them."""
    if like == "-temp_gpu_c":
        return -bases[0]  # the margin to a slowdown temperature that is the GPU's own constant
    if like == "power_w*dt_ms":
        return bases[0] * bases[1] // 10  # 0.1 W x ms in mJ
    return bases[0]


def _predictions(column: Column, layout: Layout, known: Mapping[str, bytes]) -> list[int]:
    storages = {c.name: c.storage for c in layout.fast}
    columns = [array(ARRAY_CODE[storages[name]], known[name]) for name in BASES[column.like]]
    return [predict(column.like, bases) for bases in zip(*columns, strict=True)]


def _folded(column: Column, layout: Layout, known: Mapping[str, bytes]) -> bytes:
    raw = known[column.name]
    if not column.like:
        return raw
    bits = 8 * WIDTH[column.storage]
    mask = (1 << bits) - 1
    out = array(_UNSIGNED[column.storage])
    values = array(ARRAY_CODE[column.storage], raw)
    for value, predicted in zip(values, _predictions(column, layout, known), strict=True):
        rest = (value - predicted) & mask
        out.append((rest << 1) & mask ^ (mask if rest >> (bits - 1) else 0))
    return out.tobytes()


def _unfolded(column: Column, raw: bytes, layout: Layout, known: Mapping[str, bytes]) -> bytes:
    if not column.like:
        return raw
    mask = (1 << 8 * WIDTH[column.storage]) - 1
    out = array(_UNSIGNED[column.storage])
    values = array(_UNSIGNED[column.storage], raw)
    for folded, predicted in zip(values, _predictions(column, layout, known), strict=True):
        rest = folded >> 1 ^ (mask if folded & 1 else 0)
        out.append((rest + predicted) & mask)
    return out.tobytes()


_UNSIGNED: Final[dict[Storage, str]] = {
    storage: {1: "B", 2: "H", 4: "I", 8: "Q"}[width] for storage, width in WIDTH.items()
}
