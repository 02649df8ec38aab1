"""Record batches as a fetch returns them: bytes to messages, in place of the client's reader.

An agent sends one message a batch, so what the client does for each batch (an object for it, one
for its record, one for its consumer) is done for each message, and was the largest part of the
consumer's time: 30 µs a message against 9 here. Layout: Kafka's record batch, version 2
(https://kafka.apache.org/documentation/#recordbatch).
"""

import struct
import zlib
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from crc32c import crc32c
from kafka.codec import gzip_decode, lz4_decode, snappy_decode
from kafka.consumer.fetcher import Fetcher
from kafka.errors import CorruptRecordError

from pipeline.kafka.codec import decompress
from pipeline.log import LogRecord

_FRAME: Final = struct.Struct(">qi")  # base offset, length of the rest
# leader epoch, magic, crc, attributes, last offset delta, first and newest timestamp, producer's
# id, epoch and sequence, records
_HEADER: Final = struct.Struct(">ibIhiqqqhii")
_CHECKED_FROM: Final = _FRAME.size + 9  # the checksum covers what follows it
_BODY_FROM: Final = _FRAME.size + _HEADER.size
_MAGIC: Final = 2
_CODEC, _APPEND_TIME, _CONTROL = 0x07, 0x08, 0x20
_CODECS: Final = {1: gzip_decode, 2: snappy_decode, 3: lz4_decode, 4: decompress}
_DAMAGED: Final = (
    LookupError, ValueError, TypeError, RuntimeError, OSError, EOFError, zlib.error,
    CorruptRecordError,
)  # fmt: skip
"""What decompressors and broken records raise."""


class Batch(NamedTuple):
    """A batch's messages; those of the broker itself (control batches) are left out."""

    next_offset: int
    leader_epoch: int
    records: list[LogRecord]


def batches(fetched: bytes) -> Iterator[Batch]:
    """What a fetch returned of one partition; the last batch may be cut off, and is left out.

    Raises CorruptRecordError.
    """
    whole = memoryview(fetched)
    at, end = 0, len(whole)
    while end - at >= _FRAME.size:
        base, length = _FRAME.unpack_from(whole, at)
        upto = at + _FRAME.size + length
        if upto > end:
            return
        if length < _HEADER.size:
            raise CorruptRecordError(f"batch at offset {base}: only {length} bytes")
        yield _batch(base, whole[at:upto])
        at = upto


def _batch(base: int, raw: memoryview) -> Batch:
    epoch, magic, checksum, attributes, last, first_ms, newest_ms, _, _, _, count = (
        _HEADER.unpack_from(raw, _FRAME.size)
    )
    if magic != _MAGIC:
        raise CorruptRecordError(f"batch at offset {base}: message format {magic}, not {_MAGIC}")
    if crc32c(raw[_CHECKED_FROM:]) != checksum:
        raise CorruptRecordError(f"batch at offset {base}: the checksum does not fit")
    if attributes & _CONTROL:
        return Batch(base + last + 1, epoch, [])
    try:
        codec = attributes & _CODEC
        body = _CODECS[codec](raw[_BODY_FROM:]) if codec else bytes(raw[_BODY_FROM:])
        at_ms = newest_ms if attributes & _APPEND_TIME else None
        records = _records(body, count, base, first_ms, at_ms)
    except _DAMAGED as error:
        raise CorruptRecordError(f"batch at offset {base}: {error}") from error
    return Batch(base + last + 1, epoch, records)


def _records(
    body: bytes, count: int, base: int, first_ms: int, at_ms: int | None
) -> list[LogRecord]:
    out = []
    at = 0
    for _ in range(count):
        length, at = _varint(body, at)
        end = at + length
        since_ms, at = _varint(body, at + 1)  # after one byte of attributes, of which none is used
        delta, at = _varint(body, at)
        size, at = _varint(body, at)
        key = body[at : at + size] if size > 0 else b""
        at += max(0, size)
        size, at = _varint(body, at)
        value = body[at : at + size] if size > 0 else b""
        if not at + max(0, size) < end <= len(body):  # headers follow, at least their number
            raise ValueError(f"a record of {length} bytes does not fit")
        at = end
        out.append(
            LogRecord(base + delta, first_ms + since_ms if at_ms is None else at_ms, key, value)
        )
    if at != len(body):
        raise ValueError(f"{len(body) - at} bytes after the last record")
    return out


def _varint(body: bytes, at: int) -> tuple[int, int]:
    """A zigzag varint, and where it ends."""
    byte = body[at]
    if byte < 128:
        return (byte >> 1) ^ -(byte & 1), at + 1
    value = byte & 127
    shift = 7
    while byte > 127:
        at += 1
        byte = body[at]
        value |= (byte & 127) << shift
        shift += 7
        if shift > 70:
            raise ValueError("a number is too long")
    return (value >> 1) ^ -(value & 1), at + 1


class Unpacked(Fetcher.PartitionRecords):  # type: ignore[misc]
    """The client's reader of one partition's fetch, giving LogRecords."""

    def _unpack_records(self, _tp: object, records: Any, *_: object) -> Iterator[LogRecord]:
        for batch in batches(records._buffer):  # noqa: SLF001
            self.leader_epoch = batch.leader_epoch
            for record in batch.records:
                self.records_read += 1
                self.bytes_read += len(record.value)
                self.next_fetch_offset = record.offset + 1
                yield record
            self.next_fetch_offset = batch.next_offset  # compaction may have taken the last ones
        self.drain()
